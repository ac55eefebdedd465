import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from spool import BrokerRefused, ConfigError, State, StoreCorrupt
from spool.broker import Broker, Done, Enqueue, Find, Stats, connect
from spool.nursery import send_frame
from spool.supervisor import Fleet, WorkerOptions
from spool.supervisor.children import Child, is_gone
from spool.supervisor.failures import pause_after
from spool.supervisor.messages import Condemned, OnTrial
from spool.supervisor.undertaker import Undertaker
from spool.view import view
from spool.worker.heartbeat import Machine
from tests import shop
from tests.contract.driver import job
from tests.eventually import eventually


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path) -> str:
    if request.param == "redis":
        return request.getfixturevalue("redis_url")
    return f"sqlite:///{tmp_path}/spool.db"


@pytest.fixture
def broker(url) -> Iterator[Broker]:
    broker = connect(url)
    with shop.app.using(broker):
        yield broker
    broker.close()


def options(url: str, **settings) -> WorkerOptions:
    return WorkerOptions(app="tests.shop:app", url=url, log_level="error", **settings)


@contextmanager
def cli(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`run_workers` in a process of its own, with JSON on stderr."""
    program = (
        "import sys; from spool.supervisor import *; "
        "sys.exit(run_workers(msgspec.json.decode(sys.argv[1], type=WorkerOptions)))"
    )
    body = msgspec.json.encode(WorkerOptions(app="tests.shop:app", url=url, log_format="json")).decode()
    command = [sys.executable, "-c", "import msgspec; " + program, body, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def row_pids(broker: Broker) -> list[int]:
    from spool.broker import Load
    from spool.report import read_row

    return [read_row(document.body).pid for document in broker.call(Load("worker")).documents]


# Fleet


def test_a_fleet_works(broker, url):
    with Fleet(options(url, processes=2)) as fleet:
        fleet.wait_ready()
        pids = fleet.pids
        assert len(set(pids)) == 2
        handles = [shop.add.enqueue(number, 1) for number in range(50)]
        assert [handle.result(10) for handle in handles] == list(range(1, 51))
        pid, _, worker, attempt = shop.where.enqueue().result(10)
        assert pid not in pids
        assert attempt == 1
        assert int(worker.rpartition(":")[2]) in pids
        fleet.start(1)
        fleet.wait_ready()
        assert len(fleet.pids) == 3
    assert fleet.pids == []
    assert all(gone(pid) for pid in [*pids, pid])
    stats = broker.call(Stats("default"))
    assert (stats.workers, stats.totals) == (0, {"enqueued": 51, "done": 51})


def test_the_children_are_told_when_parked_jobs_are_to_die(broker, url):
    broker.call(Enqueue("default", [job("a", "unknown")]))
    with Fleet(options(url, unroutable_after=0.05)):
        assert broker.ended("default", "a", 20).state is State.DEAD


def test_a_child_that_dies_is_replaced_and_its_jobs_run_again_at_once(broker, url, tmp_path):
    log = tmp_path / "log"
    with Fleet(options(url, processes=2)) as fleet:
        fleet.wait_ready()
        before = fleet.pids
        handles = [shop.note.enqueue(str(log), 0.3) for _ in range(20)]
        eventually(lambda: len(shop.lines(log, "start")) == 20)
        victim = int(shop.lines(log, "start")[0].split()[2])
        killed = time.monotonic()
        fleet.kill(victim)
        lost = len([line for line in shop.lines(log, "start") if line.endswith(str(victim))])
        eventually(lambda: len(shop.lines(log, "start")) == 20 + lost)
        assert time.monotonic() - killed < 1
        for handle in handles:
            handle.result(10)
        eventually(lambda: len(fleet.pids) == 2 and victim not in fleet.pids)
        fleet.wait_ready()
        assert len(set(before) & set(fleet.pids)) == 1
    ends = [line.split()[1] for line in shop.lines(log, "end")]
    assert sorted(ends) == sorted(handle.id for handle in handles)
    stats = broker.call(Stats("default"))
    assert stats.totals == {"enqueued": 20, "done": 20, "crashed": lost}


def test_a_job_of_a_dead_childs_pool_runs_again_when_its_process_is_gone(broker, url, tmp_path):
    log = tmp_path / "log"
    with Fleet(options(url, processes=2)) as fleet:
        fleet.wait_ready()
        handle = shop.leave_slowly.enqueue(str(log))
        eventually(lambda: shop.lines(log, "1 "))
        for pid in fleet.pids:
            fleet.kill(pid)
        eventually(lambda: shop.lines(log, "2 "))
        handle.result(10)
    attempts = [line.split()[0] for line in shop.lines(log)]
    assert attempts == sorted(attempts)


def test_a_child_that_dies_again_and_again_is_started_ever_more_slowly():
    pauses = [pause_after(falls) for falls in range(12)]
    assert pauses[:2] == [0.0, 0.0]
    assert 0.5 <= pauses[2] <= 1.0
    assert 15 <= pauses[-1] <= 30


def test_a_fleet_that_is_killed_leaves_nothing_running(broker, url):
    fleet = Fleet(options(url, processes=2))
    fleet.start()
    fleet.wait_ready()
    pids = fleet.pids
    fleet.kill()
    assert fleet.pids == []
    eventually(lambda: all(gone(pid) for pid in pids))


def test_a_fleet_outlives_its_nursery(broker, url):
    with Fleet(options(url)) as fleet:
        fleet.wait_ready()
        (before,) = fleet.pids
        os.kill(fleet._nursery.pid, signal.SIGKILL)
        eventually(lambda: gone(before))
        assert shop.add.enqueue(1, 2).result(10) == 3
        eventually(lambda: fleet.pids and fleet.pids != [before])


def test_a_child_that_died_is_not_taken_for_what_others_left_behind(broker, url, tmp_path):
    # Else a crash would not count as one, and a poison job would cost more children than it may.
    log = tmp_path / "log"
    with Fleet(options(url)) as fleet:
        fleet.wait_ready()
        (victim,) = fleet.pids
        eventually(lambda: row_pids(broker) == [victim])
        handle = shop.note.enqueue(str(log), 0.3)
        eventually(lambda: shop.lines(log, "start"))
        os.kill(fleet._nursery.pid, signal.SIGSTOP)
        fleet.kill(victim)
        eventually(lambda: is_gone(victim, 0))
        fleet._undertaker._survey(Machine())
        os.kill(fleet._nursery.pid, signal.SIGCONT)
        handle.result(10)
    assert broker.call(Stats("default")).totals == {"enqueued": 1, "done": 1, "crashed": 1}


def test_nothing_is_left_of_the_processes_of_a_killed_child(broker, url):
    with Fleet(options(url)) as fleet:
        fleet.wait_ready()
        (worker,) = fleet.pids
        (helper,) = map(int, Path(f"/proc/{worker}/task/{worker}/children").read_text().split())
        os.kill(helper, signal.SIGSTOP)  # to see whose it becomes
        fleet.kill(worker)
        eventually(lambda: fleet.pids and worker not in fleet.pids)
        assert f"\nPPid:\t{fleet._nursery.pid}\n" in Path(f"/proc/{helper}/status").read_text()
        os.kill(helper, signal.SIGCONT)
        eventually(lambda: not Path(f"/proc/{helper}").exists())


def test_stopping_hands_back_what_does_not_end(broker, url, tmp_path):
    log = tmp_path / "log"
    with Fleet(options(url, grace=0.1)) as fleet:
        fleet.wait_ready()
        handle = shop.note.enqueue(str(log), 60)
        eventually(lambda: shop.lines(log, "start"))
        began = time.monotonic()
    assert time.monotonic() - began < 3
    job = handle.job()
    assert (job.state, job.attempts, job.failures, job.losses) == (State.READY, 1, 0, 0)


def test_children_that_cannot_begin_say_why(tmp_path):
    fleet = Fleet(WorkerOptions(app="tests.broken_shop:app", log_level="error"))
    fleet.start()
    with pytest.raises(ConfigError, match=r"^tests\.broken_shop:app cannot be imported: RuntimeError: the conf"):
        fleet.wait_ready()
    with pytest.raises(ConfigError):
        fleet.join(5)
    (tmp_path / "file").write_text("no database" * 1000)
    fleet = Fleet(options(f"sqlite:///{tmp_path}/file"))
    fleet.start()
    with pytest.raises((StoreCorrupt, BrokerRefused, ConfigError)):
        fleet.wait_ready()
    with pytest.raises((StoreCorrupt, BrokerRefused, ConfigError)):
        fleet.stop()


def test_a_store_that_is_not_there_is_waited_for():
    fleet = Fleet(options("redis://127.0.0.1:1/0"))
    fleet.start()
    with pytest.raises(TimeoutError):
        fleet.wait_ready(0.5)
    began = time.monotonic()
    fleet.stop()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "settings", [{"processes": 0}, {"concurrency": 0}, {"lease": 0}, {"unroutable_after": 0}, {"queues": ("a/b",)}]
)
def test_options_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError):
        WorkerOptions(app="tests.shop:app", **settings)


def test_the_last_words_of_a_child_are_heard_when_its_end_was_told_first():
    ours, theirs = socket.socketpair()
    child = Child(1, ours, "trial")
    said = [OnTrial("q", "first"), Condemned([("q", 7, Done("late", 7, b"x" * 100_000))]), OnTrial("q", "second")]
    for message in said:
        send_frame(theirs, message)
    theirs.close()
    assert list(child.last_words()) == said
    ours.close()


def test_an_undertaker_leaves_no_thread_behind(broker):
    Undertaker(broker, 10.0, lambda _: False).close()
    assert not [each for each in threading.enumerate() if each.name in ("spool-undertaker", "spool-survey")]


def test_a_process_that_nobody_has_waited_for_is_gone_all_the_same():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not is_gone(process.pid, 0)
        process.kill()
        eventually(lambda: gone(process.pid))
        assert is_gone(process.pid, 0)
        assert is_gone(process.pid, Machine().born)


def test_a_process_whose_main_thread_has_ended_before_the_others_is_not_gone():
    program = (
        "import ctypes, threading, sys; threading.Thread(target=input).start(); "
        "ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)"  # exit, of this thread alone
    )
    number = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    with subprocess.Popen([sys.executable, "-c", program, str(number)], stdin=subprocess.PIPE) as process:
        eventually(lambda: gone(process.pid))  # as it looks
        assert not is_gone(process.pid, 0)
        process.kill()
        eventually(lambda: is_gone(process.pid, 0))


def test_a_child_that_was_busy_until_it_was_stopped_stands_still():
    ours, theirs = socket.socketpair()
    child = Child(1, ours, "worker")
    with theirs, ours, subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        child.pid = process.pid
        child.tick()
        eventually(lambda: child.tick() or (child.silent > 2 and not child.still))
        assert not child.stopped
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: child.stopped)
        child.tick()
        before = child.still
        for _ in range(5):
            child.tick()
        assert child.still == before + 5
        process.kill()


# The command


def test_sigterm_stops_in_order(broker, url, tmp_path):
    log = tmp_path / "log"
    with cli(url) as process:
        handle = shop.note.enqueue(str(log), 0.5)
        eventually(lambda: shop.lines(log, "start"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        errors = process.stderr.read()
    assert handle.status() is State.DONE
    lines = [msgspec.json.decode(line) for line in errors.splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert "is ready for" in lines[0]["message"]
    assert "stops; 1 jobs run" in lines[-1]["message"]


def test_a_signal_to_the_whole_group_is_no_more_than_one(broker, url, tmp_path):
    log = tmp_path / "log"
    with cli(url) as process:
        handle = shop.note.enqueue(str(log), 0.5)
        pooled = shop.where.enqueue()
        eventually(lambda: shop.lines(log, "start"))
        pooled.result(10)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
    assert handle.status() is State.DONE


def test_one_that_was_told_to_stop_while_it_was_stopped_does_so(broker, url):
    # The kernel may then give the signal to any thread, and only the main one runs the handler.
    for _ in range(3):
        with cli(url) as process:
            eventually(lambda: row_pids(broker))
            os.killpg(process.pid, signal.SIGSTOP)
            process.send_signal(signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)
            assert process.wait(10) == 0


def test_a_second_signal_stops_at_once(broker, url, tmp_path):
    log = tmp_path / "log"
    with cli(url) as process:
        handle = shop.note.enqueue(str(log), 60)
        eventually(lambda: shop.lines(log, "start"))
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # signals of one kind that follow too closely are one to the kernel
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 3
    assert handle.status() is State.READY
    assert handle.job().failures == 0


def test_no_child_outlives_its_supervisor(broker, url, tmp_path):
    log = tmp_path / "log"
    with cli(url) as process:
        handle = shop.note.enqueue(str(log), 60)
        eventually(lambda: shop.lines(log, "start"))
        pool = shop.where.enqueue().result(10)[0]
        (worker,) = row_pids(broker)
        process.kill()
        killed = time.monotonic()
        eventually(lambda: gone(worker) and gone(pool))
        assert time.monotonic() - killed < 2
    # It heard of it in time to hand back what it held.
    assert handle.status() is State.READY
    assert handle.job().failures == 0


def test_the_log_tells_of_failures_only(broker, url):
    with cli(url) as process:
        shop.add.enqueue(1, 2).result(10)
        bad = shop.flaky.options(retries=0).enqueue(os.devnull, 1)
        broker.ended("default", bad.id, 10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        lines = [msgspec.json.decode(line) for line in process.stderr.read().splitlines()]
    warnings = [line for line in lines if line["level"] == "warning"]
    assert [(line["job"], line["task"], line["error"]) for line in warnings] == [(bad.id, "flaky", "ConnectionError")]


def test_two_processes_on_one_queue_lose_and_double_nothing(broker, url, tmp_path):
    log = tmp_path / "log"
    with Fleet(options(url, processes=2)) as fleet:
        ids = [shop.note.enqueue(str(log)).id for _ in range(50)]
        shop.app.enqueue_many(shop.note.call(str(log)) for _ in range(450))
        fleet.wait_ready()
        eventually(lambda: broker.call(Stats("default")).totals.get("done") == 500, 30)
    starts = [line.split()[1] for line in shop.lines(log, "start")]
    assert len(starts) == len(set(starts)) == 500
    assert set(ids) <= set(starts)
    found = broker.call(Find("default", State.DONE, limit=1000)).jobs
    assert {view(job).id for job in found} == set(starts)
