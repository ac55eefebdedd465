"""What becomes of jobs when worker processes are killed, stopped, blocked or ruined; on both brokers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spool import State
from spool.broker import Act, Broker, Cancel, Load, Stats, connect
from spool.report import read_row
from spool.supervisor import Fleet, WorkerOptions
from tests import rough_shop as shop
from tests.eventually import eventually


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url: str = request.getfixturevalue("redis_url") if request.param == "redis" else f"sqlite:///{tmp_path}/jobs.db"
    monkeypatch.setenv("SPOOL_URL", url)
    return url


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = connect(url)
    with shop.app.using(broker), shop.pooled.using(broker):
        yield broker
    broker.close()


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "log"
    path.touch()
    return str(path)


LEASE = 2.0


def options(url: str, **settings: Any) -> WorkerOptions:
    return WorkerOptions(
        **{"app": "tests.rough_shop:app", "url": url, "lease": LEASE, "kill_after": 0.5, "log_level": "error"}
        | settings
    )


class Line(NamedTuple):
    """What a handler wrote; ``at`` in seconds of the monotonic clock."""

    job: str
    pid: int
    at: float


def said(log: str, word: str) -> list[Line]:
    """The lines that begin with a word."""
    lines = [line.split() for line in Path(log).read_text().splitlines()]
    return [Line(job, int(pid), int(ns) / 1e9) for begin, job, pid, ns in lines if begin == word]


def totals(broker: Broker) -> dict[str, int]:
    return broker.call(Stats("default")).totals


def pids_of(broker: Broker) -> list[int]:
    return [read_row(row.body).pid for row in broker.call(Load("worker")).documents]


@contextmanager
def supervisor(
    url: str, *arguments: str, app: str = "app", under: Sequence[str] = (), errors: Path | None = None, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """``spool worker`` as a process of its own, in a group of its own; ``under`` a command that starts it."""
    command = [*under, sys.executable, "-m", "spool", "worker", f"tests.rough_shop:{app}", "--url", url]
    command += ["--log-level", "debug" if errors else "error", "--lease", str(LEASE), *arguments]
    with errors.open("wb") if errors else nullcontext() as stderr:
        process = subprocess.Popen(command, start_new_session=True, stderr=stderr, env=os.environ | env)
    try:
        yield process
    finally:
        for pid in (process.pid, *family(process.pid)):
            try:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()


@contextmanager
def elsewhere(url: str, how: str, place: Path, *arguments: str, app: str = "app") -> Iterator[Path]:
    """A worker that looks as if it ran on another machine. Gives the file that it logs to."""
    errors = place / "elsewhere.log"
    under: list[str] = []
    env = {}
    if how == "namespace":
        under = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # A small system has no such program, and who is not root may not.
        if not shutil.which("unshare") or subprocess.run([*under, "true"], check=False, capture_output=True).returncode:
            pytest.skip("no other pid namespace can be made here")
    else:
        (place / "sitecustomize.py").write_text(ANOTHER_BOOT)
        env["PYTHONPATH"] = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    with supervisor(url, *arguments, app=app, under=under, errors=errors, **env):
        yield errors


ANOTHER_BOOT = """
from spool.worker import heartbeat

read = heartbeat._read
heartbeat._read = lambda path: "another" if path.endswith("boot_id") else read(path)
"""

SURVEYED = "of this machine is gone"
"""What a supervisor logs that hands back the jobs of a process which it sees to be gone."""


def family(pid: int) -> list[int]:
    """All descendants of a process."""
    found, parents = [], [pid]
    while parents:
        parent = parents.pop()
        for task in Path(f"/proc/{parent}/task").glob("*"):
            try:
                children = [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
            found += children
            parents += children
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waited_for_a_processor(pid: int) -> float:
    """Seconds for which the main thread of a process could have run and was not let; 0 where nobody counts them."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


# Kills


def test_the_jobs_of_a_killed_child_run_again_within_a_second(broker, url, log, record_property):
    with supervisor(url, "--processes", "2", "--concurrency", "2", "--lease", "10"):
        eventually(lambda: len(pids_of(broker)) == 2)
        handles = [shop.nap.enqueue(log, 2.0) for _ in range(20)]
        # All four slots are taken, and none is free before half a second is over.
        eventually(lambda: len(said(log, "start")) == 12)
        eventually(lambda: time.monotonic() > said(log, "start")[-1].at + 0.5)
        victim = said(log, "start")[-1].pid
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        for handle in handles:
            handle.result(30)
    starts, ends = said(log, "start"), said(log, "end")
    cut = {line.job for line in starts if line.pid == victim} - {line.job for line in ends if line.pid == victim}
    after = sorted((line for line in starts if line.at > killed), key=lambda line: line.at)
    again = [line.at - killed for line in after if line.job in cut]
    record_property("again", max(again))
    assert len(cut) == len(again) == 2
    assert {line.job for line in after[:2]} == cut
    assert max(again) < 1
    # None lost, none completed twice.
    assert sorted(line.job for line in ends) == sorted(handle.id for handle in handles)
    assert sorted(line.job for line in starts) == sorted([*(handle.id for handle in handles), *cut])
    assert totals(broker) == {"enqueued": 20, "done": 20, "crashed": 2}


@pytest.mark.parametrize("dies", ["supervisor", "everything"])
@pytest.mark.parametrize("how", ["namespace", "boot"])
def test_a_worker_that_is_there_on_another_machine_takes_over(
    broker, url, log, tmp_path, *, record_property, how, dies
):
    with supervisor(url, "--concurrency", "2", app="pooled") as first:
        handles = [shop.linger.enqueue(log) for _ in range(2)] + [shop.linger_apart.enqueue(log)]
        eventually(lambda: len(said(log, "start")) == 3)
        eventually(lambda: len(pids_of(broker)) == 1)
        with elsewhere(url, how, tmp_path, app="pooled") as errors:
            eventually(lambda: len(pids_of(broker)) == 2)
            members = family(first.pid)
            assert {line.pid for line in said(log, "start")} <= set(members)
            killed = time.monotonic()
            (os.kill if dies == "supervisor" else os.killpg)(first.pid, signal.SIGKILL)
            eventually(lambda: not any(map(alive, members)), 5)
            gone = time.monotonic() - killed
            for handle in handles:
                handle.result(20)
            again = [line.at - killed for line in said(log, "start") if line.at > killed]
            # It looks for dead neighbours in its first seconds, and these are none.
            assert SURVEYED not in errors.read_text()
    record_property("gone", gone)
    record_property("again", max(again))
    assert gone < 1
    assert len(again) == 3
    assert max(again) < LEASE + 2
    assert totals(broker)["done"] == 3


def test_a_new_worker_takes_over_at_once_what_was_killed_on_its_machine(broker, url, log, tmp_path, record_property):
    errors = tmp_path / "errors"
    with supervisor(url, "--lease", "10") as first:
        handles = [shop.linger.enqueue(log) for _ in range(2)]
        eventually(lambda: len(said(log, "start")) == 2)
        members = family(first.pid)
        os.killpg(first.pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, members)))
        began = time.monotonic()
        with supervisor(url, "--lease", "10", errors=errors) as second:
            for handle in handles:
                handle.result(20)
            starved = sum(map(waited_for_a_processor, [second.pid, *family(second.pid)]))
            assert SURVEYED in errors.read_text()
    again = [line.at - began for line in said(log, "start") if line.at > began]
    record_property("again", max(again))
    record_property("starved", starved)
    assert len(again) == 2
    # Nearly all of it is the start of two interpreters, which the neighbours of a test can make arbitrarily long.
    assert max(again) - starved < 1
    assert totals(broker) == {"enqueued": 2, "done": 2, "lost": 2}


def test_a_worker_that_was_stopped_past_its_lease_changes_nothing(broker, url, log, tmp_path, record_property):
    errors = tmp_path / "errors"
    with supervisor(url, "--concurrency", "1", errors=errors) as first:
        eventually(lambda: len(pids_of(broker)) == 1)
        (child,) = pids_of(broker)
        with supervisor(url, "--concurrency", "1") as second:
            eventually(lambda: len(pids_of(broker)) == 2)
            handles = [shop.block.enqueue(log, 1.0) for _ in range(2)]
            eventually(lambda: len(said(log, "start")) == 2)
            stopped = time.monotonic()
            os.killpg(first.pid, signal.SIGSTOP)
            for handle in handles:
                assert handle.result(20) != child
            (again,) = said(log, "start")[2:]
            (job,) = (line.job for line in said(log, "start") if line.pid == child)
            # It wakes up in the middle of its job, ends it, and settles before its supervisor can tell it otherwise.
            os.kill(child, signal.SIGCONT)
            eventually(lambda: "no longer ours when they ended" in errors.read_text())
            os.killpg(first.pid, signal.SIGCONT)
            second.terminate()
            assert second.wait(10) == 0
        # There is nobody else now.
        woken = time.monotonic()
        assert shop.nap.enqueue(log, 0.0).result(20) == child
        record_property("back", time.monotonic() - woken)
    record_property("again", again.at - stopped)
    assert (again.job, again.pid != child) == (job, True)
    assert again.at - stopped < LEASE + 2
    assert [line.pid == child for line in said(log, "end") if line.job == job] == [False, True]
    (handle,) = (handle for handle in handles if handle.id == job)
    assert handle.result() == again.pid
    assert totals(broker) == {"enqueued": 3, "done": 3, "lost": 1}


def test_a_stopped_child_is_killed_and_replaced(broker, url, log):
    with Fleet(options(url, lease=1.0)) as fleet:
        fleet.wait_ready()
        victim = fleet.pids[0]
        handle = shop.nap.enqueue(log, 0.5)
        eventually(lambda: said(log, "start"))
        os.kill(victim, signal.SIGSTOP)
        assert handle.result(20) != victim
        assert not alive(victim)
    assert handle.job().attempts == 2
    assert totals(broker)["lost"] == 1


def test_what_a_worker_had_claimed_when_it_was_stopped_does_not_begin_when_it_wakes(broker, url, log):
    handles = [shop.nap.enqueue(log, 0.0) for _ in range(8)]
    shop.faint.enqueue(log)
    code = """
import asyncio
from tests.rough_shop import app
asyncio.run(app.run_worker(["default", "own"], concurrency=40, lease=1.0))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            eventually(lambda: said(log, "faint"))
            with Fleet(options(url)):
                assert process.pid not in [handle.result(20) for handle in handles]
                process.send_signal(signal.SIGCONT)
                # It lives on, and by now it would have begun what it was about to begin.
                assert shop.nap.options(queue="own").enqueue(log, 0.0).result(20) == process.pid
        finally:
            process.kill()
    started = [job for job, _, _ in said(log, "start")]
    assert len(started) == len(set(started)) == 9
    assert totals(broker)["lost"] == 9


# Poison


# Suspects are tried one at a time, so the whole scale takes minutes.
NEIGHBOURS, SECONDS = (99, 5.0) if os.environ.get("SPOOL_TEST_LONG") else (6, 0.3)

RUINS = ["exit", "segfault", "memory"]
if sys.version_info < (3, 12):  # newer ones count the frames of C as well, and raise an ordinary RecursionError
    RUINS.append("recursion")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", RUINS)
def test_one_poison_job_dies_alone(broker, url, log, how):
    with Fleet(options(url, concurrency=100)) as fleet:
        fleet.wait_ready()
        naps = [shop.nap.enqueue(log, SECONDS) for _ in range(NEIGHBOURS)]
        poison = shop.ruin.enqueue(log, how)
        for handle in naps:
            handle.result(800)
        assert broker.ended("default", poison.id, 60) is not None
    job = poison.job()
    assert job.state is State.DEAD
    assert len(said(log, "ruin")) == 3
    assert "WorkerCrashed" in job.error
    assert ("exit code 3" if how == "exit" else "SIG") in job.error
    assert all(handle.status() is State.DONE for handle in naps)
    assert totals(broker)["dead"] == 1
    assert broker.call(Stats("default")).suspect == 0


# Timeouts


@pytest.mark.parametrize("task", ["stubborn", "stuck", "stuck_thread"])
def test_a_job_that_ignores_its_timeout_is_ended(broker, url, log, task):
    with Fleet(options(url, lease=10.0)) as fleet:
        fleet.wait_ready()
        neighbours = [shop.nap.enqueue(log, 1.2) for _ in range(3)] if task != "stuck" else []
        eventually(lambda: len(said(log, "start")) == len(neighbours))
        handle = getattr(shop, task).enqueue(log)
        ended = broker.ended("default", handle.id, 20)
        assert ended is not None
        for neighbour in neighbours:
            neighbour.result(20)
            assert neighbour.job().crashes == 0
    job = handle.job()
    assert job.state is State.DEAD
    assert job.error.startswith("TimeoutError: not done within its timeout of 0.5 s")
    assert "killed" in job.error
    assert "crashed" not in totals(broker)


def test_a_job_that_holds_the_interpreter_beyond_its_timeout_is_ended(broker, url, log):
    with Fleet(options(url, lease=10.0)) as fleet:
        fleet.wait_ready()
        handle = shop.seize.enqueue(log)
        assert broker.ended("default", handle.id, 20) is not None
    assert "held the interpreter" in handle.job().error


@pytest.mark.parametrize("task", ["block", "hold"])
def test_a_job_that_blocks_for_many_leases_runs_once(broker, url, log, task):
    with Fleet(options(url, lease=0.5, processes=2)) as fleet:
        fleet.wait_ready()
        handle = getattr(shop, task).enqueue(log, 2.5)
        handle.result(20)
        assert len(fleet.pids) == 2
    assert len(said(log, "start")) == 1
    assert handle.job().attempts == 1


# Cancellation


@pytest.mark.parametrize("task", ["wait_for_word", "look_for_word"])
def test_a_running_job_learns_of_its_cancellation_in_a_full_worker(broker, url, log, task):
    with Fleet(options(url, concurrency=1, lease=10.0)) as fleet:
        fleet.wait_ready()
        handle = getattr(shop, task).enqueue(log)
        eventually(lambda: said(log, "start"))
        at = time.monotonic()
        broker.call(Act("default", Cancel("not wanted any more"), [handle.id]))
        assert broker.ended("default", handle.id, 10) is not None
    assert handle.status() is State.CANCELLED
    assert said(log, "told")[0].at - at < 1
    assert handle.job().error == "not wanted any more"


# Replacement


def test_processes_are_replaced_after_so_many_jobs(broker, url, log):
    with Fleet(options(url, max_jobs=5, spare=1)) as fleet:
        fleet.wait_ready()
        pids = {shop.nap.enqueue(log, 0.0).result(20) for _ in range(16)}
        assert len(pids) >= 3
        eventually(lambda: len(fleet.pids) == 1)
    assert totals(broker) == {"enqueued": 16, "done": 16}
