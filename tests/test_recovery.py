"""What becomes of jobs when worker processes are killed, stopped, blocked or ruined; on both brokers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    with shop.app.using(broker):
        yield broker
    broker.close()


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "log"
    path.touch()
    return str(path)


def options(url: str, **settings: Any) -> WorkerOptions:
    return WorkerOptions(
        **{"app": "tests.rough_shop:app", "url": url, "lease": 2.0, "kill_after": 0.5, "log_level": "error"} | settings
    )


def said(log: str, word: str) -> list[list[str]]:
    """The lines that begin with a word, each as [job, pid, time]."""
    return [line.split()[1:] for line in Path(log).read_text().splitlines() if line.startswith(f"{word} ")]


def totals(broker: Broker) -> dict[str, int]:
    return broker.call(Stats("default")).totals


def pids_of(broker: Broker) -> list[int]:
    return [read_row(row.body).pid for row in broker.call(Load("worker")).documents]


@contextmanager
def supervisor(url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """``spool worker`` as a process of its own, in a group of its own."""
    command = [sys.executable, "-m", "spool", "worker", "tests.rough_shop:app", "--url", url, "--log-level", "error"]
    process = subprocess.Popen([*command, "--lease", "2", *arguments], start_new_session=True)
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


# Kills


def test_the_jobs_of_a_killed_child_run_again_within_a_second(broker, url, log):
    with Fleet(options(url, processes=2, concurrency=2, lease=10.0)) as fleet:
        fleet.wait_ready()
        handles = [shop.nap.enqueue(log, 0.5) for _ in range(20)]
        eventually(lambda: len(said(log, "start")) >= 6)
        victim = fleet.pids[0]
        at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        for handle in handles:
            handle.result(20)
    cut = {job for job, pid, _ in said(log, "start") if int(pid) == victim} - {job for job, _, _ in said(log, "end")}
    again = [float(when) - at for job, pid, when in said(log, "start") if int(pid) != victim and float(when) > at]
    assert {job for job, _, _ in said(log, "end")} == {handle.id for handle in handles}
    assert not cut or min(again) < 1
    assert totals(broker)["done"] == 20


def test_no_child_outlives_a_killed_supervisor_and_another_takes_over(broker, url, log):
    with supervisor(url, "--concurrency", "2") as first:
        handles = [shop.nap.enqueue(log, 1.0) for _ in range(2)]
        eventually(lambda: len(said(log, "start")) == 2)
        children = family(first.pid)
        assert children
        at = time.monotonic()
        first.send_signal(signal.SIGKILL)
        eventually(lambda: not any(map(alive, children)), 5)
        gone = time.monotonic() - at
        with supervisor(url, "--lease", "10"):
            for handle in handles:
                handle.result(20)
    assert gone < 1.5
    assert totals(broker)["done"] == 2
    # They were told to hand back before they went, or the new worker saw that they were gone: no lease was waited for.
    assert max(float(when) for _, _, when in said(log, "start")) - at < 1.9


def test_what_a_dead_machine_held_is_taken_over_after_the_lease(broker, url, log):
    with supervisor(url, "--concurrency", "2") as first, supervisor(url, "--concurrency", "2") as second:
        eventually(lambda: len(pids_of(broker)) == 2)
        handles = [shop.nap.enqueue(log, 1.0) for _ in range(4)]
        eventually(lambda: len(said(log, "start")) == 4)
        for pid in (first.pid, *family(first.pid)):
            os.kill(pid, signal.SIGSTOP)
        for handle in handles:
            handle.result(20)
        # What was stopped wakes up, and changes nothing.
        for pid in (first.pid, *family(first.pid)):
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: len(pids_of(broker)) >= 2)
        assert [shop.nap.enqueue(log, 0.0).result(20) for _ in range(4)]
        assert second.poll() is None
    found = totals(broker)
    assert found["done"] == 8
    assert 1 <= found["lost"] <= 2
    assert broker.call(Stats("default")).running == 0


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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["exit", "segfault", "memory", "recursion"])
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
    assert float(said(log, "told")[0][2]) - at < 1
    assert handle.job().error == "not wanted any more"


# Replacement


def test_processes_are_replaced_after_so_many_jobs(broker, url, log):
    with Fleet(options(url, max_jobs=5, spare=1)) as fleet:
        fleet.wait_ready()
        pids = {shop.nap.enqueue(log, 0.0).result(20) for _ in range(16)}
        assert len(pids) >= 3
        eventually(lambda: len(fleet.pids) == 1)
    assert totals(broker) == {"enqueued": 16, "done": 16}
