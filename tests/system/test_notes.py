"""What jobs of a real worker say: on the loop, in threads and in processes, and by whom it is kept."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from spool import Handle, Job, State
from spool.broker import Broker, Get, JobNote, Load, Note, connect
from spool.report import read_row
from spool.supervisor import Fleet, WorkerOptions
from tests import speaking_shop as shop
from tests.eventually import eventually

KINDS = [shop.in_loop, shop.in_thread, shop.in_process]


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path) -> str:
    return f"sqlite:///{tmp_path}/spool.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")


@contextmanager
def working(url: str, **given) -> Iterator[Broker]:
    broker = connect(url)
    given = {"log_level": "error", "pool_size": 1} | given
    options = WorkerOptions(app="tests.speaking_shop:app", url=url, **given)
    with closing(broker), shop.app.using(broker), Fleet(options) as fleet:
        fleet.wait_ready()
        yield broker


def said(job: Job) -> list[str]:
    return [line.message for line in job.log]


def test_lines_and_progress_of_every_kind_of_task(url, tmp_path):
    with working(url):
        gates = {task.name: tmp_path / task.name for task in KINDS}
        handles = {task.name: task.enqueue(task.name, str(gates[task.name])) for task in KINDS}
        for name, handle in handles.items():
            eventually(lambda handle=handle: len(handle.job().log) == 2, 15)
            job = handle.job()
            assert job.state is State.RUNNING
            assert said(job) == [f"hello {name}", "attempt 1"]
            assert [line.level for line in job.log] == ["INFO", "WARNING"]
            assert (job.progress.done, job.progress.total, job.progress.message) == (1, 3, "began")
            gates[name].touch()
            handle.result(15)
            assert said(handle.job()) == [f"hello {name}", "attempt 1"]
            assert (handle.progress().done, handle.progress().message) == (3, "done")
            assert job.started <= job.log[0].at <= handle.job().finished


def test_short_jobs_say_all_they_have_to_say(url):
    with working(url):
        handles = [task.enqueue(str(number)) for number in range(20) for task in KINDS]
        for handle in handles:
            handle.result(20)
            assert len(handle.job().log) == 2
            assert handle.progress().done == 3


def test_a_task_that_says_nothing_of_it_is_recorded_when_the_worker_does(url):
    with working(url) as _:
        handle = shop.quiet.enqueue("a")
        handle.result(10)
        assert handle.job().log == []
    with working(url, record_logs=True):
        handle = shop.quiet.enqueue("b")
        handle.result(10)
        assert said(handle.job()) == ["unheard b"]


def test_what_a_job_leaves_behind_in_its_process_speaks_for_no_other(url, tmp_path):
    gate, passed, end = (tmp_path / name for name in ("gate", "passed", "end"))
    with working(url):
        shop.leaves.enqueue(str(gate), str(passed)).result(15)
        handle = shop.in_process.enqueue("x", str(end))
        eventually(lambda: len(handle.job().log) == 2, 15)
        gate.touch()
        eventually(passed.exists, 15)
        end.touch()
        handle.result(15)
        assert said(handle.job()) == ["hello x", "attempt 1"]
        assert handle.progress().done == 3


def test_lines_of_both_attempts_are_kept_with_the_dead_job(url):
    with working(url):
        handle = shop.fails.enqueue("x")
        eventually(lambda: handle.status() is State.DEAD, 15)
        job = handle.job()
    assert [line.attempt for line in job.log] == [1, 1, 2, 2]
    assert job.log[1].message.startswith("no luck\nTraceback")


def test_what_a_killed_worker_said_before_is_kept_and_later_words_of_it_are_not(url, tmp_path):
    """The words of a stale incarnation, sent late, change nothing."""
    gate = tmp_path / "gate"
    with working(url) as broker:
        handle = shop.in_loop.enqueue("x", str(gate))
        eventually(lambda: len(handle.job().log) == 2, 15)
        snapshot = broker.call(_get(handle))
        os.kill(_pid_of(broker, snapshot.incarnation), signal.SIGKILL)
        eventually(lambda: len(handle.job().log) == 4, 15)
        assert broker.call(_get(handle)).incarnation != snapshot.incarnation
        before = handle.job()
        late = [JobNote(handle.id, fence, lines=[b"late"], step=99, progress=b"late") for fence in range(1, 5)]
        assert broker.call(Note(handle.queue, snapshot.incarnation, late)).refused == [handle.id] * 4
        assert handle.job() == before
        gate.touch()
        handle.result(15)
        assert [line.attempt for line in handle.job().log] == [1, 1, 2, 2]


def test_a_job_with_much_to_say_is_bounded_and_does_not_keep_others_from_ending(url):
    with working(url, concurrency=20):
        shop.neighbour.enqueue().result(10)
        chatty = shop.chatty.enqueue(100_000)
        eventually(lambda: chatty.job().log_dropped > 0, 30)
        for each in [shop.neighbour.enqueue() for _ in range(50)]:
            each.result(20)
        chatty.result(60)
        job = chatty.job()
    assert said(job)[-1] == "line 99999 of a job that has much to say"
    assert len(job.log) <= 200
    assert len(job.log) + job.log_dropped == 100_000


def _get(handle: Handle[None]) -> Get:
    return Get(handle.queue, handle.id)


def _pid_of(broker: Broker, incarnation: str) -> int:
    (row,) = [each.body for each in broker.call(Load("worker")).documents if each.key == incarnation]
    return read_row(row).pid
