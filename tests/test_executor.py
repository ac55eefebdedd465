import asyncio
import contextvars
import datetime as dt
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from spool import Backoff, Call, Cancel, ConfigError, Release, Retry, Spool, current_job
from spool.broker import Cancelled, Died, Done, Released, Retried
from spool.executor import Executor, JobContext, Lease, Run, threads
from spool.executor.attempt import MESSAGE_LIMIT, TRACEBACK_LIMIT
from spool.executor.metering import metrics_of
from spool.executor.pool import Processes
from spool.job import VERSION, Attempt, Tally, encode_record, read_ending, read_record, read_tally
from tests import lifespan_shop, shop
from tests.eventually import aeventually
from tests.tallies import write_tally

NOW = 1_800_000_000_000
SURE = Backoff(base=2.0, jitter=False)


class Bench:
    """Runs single attempts and returns them when they have ended."""

    def __init__(self, app: Spool, **settings: Any) -> None:
        self.ended: asyncio.Queue[Run] = asyncio.Queue()
        self.executor = Executor(app, "host:1", **settings)
        self.lease = Lease(time.monotonic_ns() + 60_000_000_000)
        self.intake = self.executor.intake("mail", self.ended.put_nowait, self.lease)

    def start(self, call: Call, tally: str = "", **changes: Any) -> Run:
        body = call.job.record
        if changes:
            body = encode_record(msgspec.structs.replace(read_record(body), **changes))
        return self.intake.start(call.job.id, 7, body, tally, NOW - time.monotonic_ns() // 1_000_000)

    async def run(self, call: Call, tally: str = "", **changes: Any) -> Run:
        run = self.start(call, tally, **changes)
        async with asyncio.timeout(10):
            assert await self.ended.get() is run
        return run


@pytest.fixture
def app() -> Spool:
    return Spool("sqlite://:memory:")


def result_of(run: Run) -> Any:
    assert isinstance(run.settlement, Done), run.settlement
    return msgspec.msgpack.decode(read_ending(run.settlement.ending).result)


def last_attempt(run: Run) -> Attempt:
    assert isinstance(run.settlement, Retried | Died | Released)
    return read_tally(run.settlement.tally)[1][-1]


# Success


async def test_an_async_task_is_done_with_times_of_the_store(app):
    @app.task
    async def double(number: int) -> int:
        return number * 2

    run = await Bench(app).run(double.call(21))
    settlement = run.settlement
    assert isinstance(settlement, Done)
    assert (settlement.id, settlement.fence, settlement.ttl) == (run.id, 7, 3_600_000)
    ending = read_ending(settlement.ending)
    assert (ending.version, ending.state, ending.task, ending.attempts) == (VERSION, "done", "double", 1)
    assert (ending.worker, ending.priority, ending.reason, ending.tally) == ("host:1", 2, "", "")
    assert NOW <= ending.started <= ending.finished < NOW + 1000
    assert result_of(run) == 42


@pytest.mark.parametrize("key", ["order-17", None])
async def test_a_job_that_ends_keeps_its_key(app, key):
    @app.task(retries=0)
    async def ends(how: str) -> str:
        if how == "cancelled":
            raise Cancel("enough")
        return how

    bench = Bench(app)
    for how in ("done", "cancelled"):
        run = await bench.run(ends.options(key=key).call(how))
        ending = read_ending(run.settlement.ending)
        assert (ending.state, ending.key) == (how, key)
        assert len(msgspec.msgpack.decode(run.settlement.ending)) == (13 if key is None else 15)


async def test_the_result_is_left_out_when_it_is_not_to_be_kept(app):
    @app.task(result_ttl=0)
    async def quiet() -> str:
        return "secret"

    run = await Bench(app).run(quiet.call())
    assert result_of(run) is None
    assert run.settlement.ttl == 3_600_000  # the id stays known for the dedupe window


async def test_a_call_overrides_its_task(app):
    @app.task(result_ttl=0, retries=5)
    async def strict(*, fail: bool) -> str:
        if fail:
            raise ValueError
        return "kept"

    bench = Bench(app)
    run = await bench.run(strict.options(result_ttl=7200).call(fail=False))
    assert result_of(run) == "kept"
    assert run.settlement.ttl == 7_200_000
    assert isinstance((await bench.run(strict.options(retries=0).call(fail=True))).settlement, Died)
    assert isinstance((await bench.run(strict.call(fail=True))).settlement, Retried)


async def test_history_goes_along_with_the_ending(app):
    @app.task
    async def late() -> tuple[int, int]:
        return current_job().attempt, current_job().failures

    tally = write_tally(Tally(attempts=4, failures=2, losses=1), [Attempt(4, "retried", 1, 2, "w", "E", "m")])
    run = await Bench(app).run(late.call(), tally)
    assert result_of(run) == [5, 2]
    ending = read_ending(run.settlement.ending)
    assert (ending.attempts, ending.tally) == (5, tally)


async def test_a_def_task_runs_in_a_thread_with_the_variables_of_its_attempt(app):
    variable = contextvars.ContextVar("variable", default="")

    @app.middleware
    async def around(context, call_next):
        variable.set(context.id)
        return await call_next()

    @app.task
    def look() -> tuple[bool, str, str]:
        return threading.current_thread() is threading.main_thread(), variable.get(), current_job().id

    run = await Bench(app).run(look.call())
    assert result_of(run) == [False, run.id, run.id]
    assert variable.get() == ""


async def test_threads_are_bounded_and_used_again(app):
    gate = threading.Barrier(3)

    @app.task
    def meet() -> int:
        gate.wait(5)
        return threading.get_ident()

    @app.task
    def ident() -> int:
        return threading.get_ident()

    bench = Bench(app, threads=3)
    for _ in range(3):
        bench.start(meet.call())
    idents = {result_of(await bench.ended.get()) for _ in range(3)}
    assert len(idents) == 3
    for _ in range(9):
        assert result_of(await bench.run(ident.call())) in idents


@pytest.fixture
async def pool(app, monkeypatch):
    monkeypatch.setattr(threads, "IDLE", 0.01)
    return Pool(app)


class Pool:
    """Threads of an executor that are seen at work."""

    def __init__(self, app: Spool) -> None:
        self.seen: set[threading.Thread] = set()
        self.waiting: set[threading.Thread] = set()
        self.gate = threading.Event()
        gather = threading.Barrier(4)

        @app.task
        def meet() -> None:
            self.seen.add(threading.current_thread())
            gather.wait(5)

        @app.task
        def wait() -> None:
            self.seen.add(threading.current_thread())
            self.waiting.add(threading.current_thread())
            assert self.gate.wait(5)
            self.waiting.discard(threading.current_thread())

        self.meet, self.wait = meet, wait
        self.bench = Bench(app, threads=4)

    async def fill(self) -> None:
        """Have all four threads there, and idle."""
        for _ in range(4):
            self.bench.start(self.meet.call())
        for _ in range(4):
            result_of(await self.bench.ended.get())

    def left(self) -> int:
        return sum(each.is_alive() for each in self.seen)


async def test_threads_that_are_not_needed_end_and_others_come(pool):
    for _ in range(3):
        pool.seen.clear()
        await pool.fill()
        assert len(pool.seen) == 4
        await aeventually(lambda: not pool.left())


async def test_as_many_threads_stay_as_are_used(pool):
    await pool.fill()
    for _ in range(2):
        pool.bench.start(pool.wait.call())
    await aeventually(lambda: pool.left() == 2)
    for _ in range(2):
        pool.bench.start(pool.wait.call())
    await aeventually(lambda: len(pool.waiting) == 4)
    pool.gate.set()
    for _ in range(4):
        result_of(await pool.bench.ended.get())
    await aeventually(lambda: not pool.left())


async def test_work_that_comes_while_threads_end_is_done(pool, monkeypatch):
    monkeypatch.setattr(threads, "IDLE", 0.0)  # each turn of the loop
    pool.gate.set()
    for _ in range(300):
        for _ in range(4):
            pool.bench.start(pool.wait.call())
        async with asyncio.timeout(10):
            for _ in range(4):
                result_of(await pool.bench.ended.get())
    assert len(pool.seen) > 4  # some did end meanwhile
    await aeventually(lambda: not pool.left())


async def test_threads_end_with_their_executor_which_waits_for_none(pool, monkeypatch):
    monkeypatch.setattr(threads, "IDLE", 600.0)
    await pool.fill()
    pool.bench.start(pool.wait.call())
    await aeventually(lambda: pool.waiting)
    pool.bench.executor.close()
    await aeventually(lambda: pool.left() == 1)
    pool.gate.set()
    result_of(await pool.bench.ended.get())
    await aeventually(lambda: not pool.left())


async def test_a_thread_that_cannot_be_started_is_not_relied_on(app, monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    @app.task
    def greet() -> str:
        return "hello"

    bench = Bench(app, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert last_attempt(await bench.run(greet.call())).error_type == "RuntimeError"
    assert result_of(await bench.run(greet.call())) == "hello"


# Failure


async def test_a_failure_is_retried_with_all_that_is_known_of_it(app):
    @app.task(retries=1, backoff=SURE)
    async def fail() -> None:
        raise ConnectionError("no route")

    bench = Bench(app)
    run = await bench.run(fail.call())
    assert isinstance(run.settlement, Retried)
    assert run.settlement.delay == 2000
    tally, attempts = read_tally(run.settlement.tally)
    assert (tally.attempts, tally.failures, tally.crashes) == (1, 1, 0)
    (attempt,) = attempts
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "retried", "host:1")
    assert (attempt.error_type, attempt.message) == ("ConnectionError", "no route")
    assert NOW <= attempt.started <= attempt.ended
    again = await bench.run(fail.call(), run.settlement.tally)
    assert isinstance(again.settlement, Died)
    tally, attempts = read_tally(again.settlement.tally)
    assert (tally.attempts, tally.failures) == (2, 2)
    assert [each.outcome for each in attempts] == ["retried", "died"]


async def test_the_traceback_begins_with_the_task(app):
    @app.task
    async def fail() -> None:
        raise ValueError("here")

    @app.task
    def fail_in_thread() -> None:
        raise ValueError("there")

    bench = Bench(app)
    for task in (fail, fail_in_thread):
        trace = last_attempt(await bench.run(task.call())).traceback.splitlines()
        assert trace[0] == "Traceback (most recent call last):"
        assert "test_executor.py" in trace[1]
        assert trace[-1].startswith("ValueError")


@pytest.mark.parametrize(
    ("error", "settlement"),
    [(KeyError("k"), Died), (ValueError("v"), Retried), (OSError("o"), Died), (UnicodeError("u"), Died)],
)
async def test_the_policy_decides_by_exception(app, error, settlement):
    @app.task(retry_on=(ValueError, KeyError), no_retry_on=(KeyError, UnicodeError))
    async def fail() -> None:
        raise error

    assert type((await Bench(app).run(fail.call())).settlement) is settlement


@pytest.mark.parametrize(
    "raised", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError("mine"), StopIteration()]
)
@pytest.mark.parametrize("threaded", [False, True])
async def test_no_exception_of_a_task_gets_past_its_attempt(app, raised, threaded):
    if threaded:

        @app.task
        def fail() -> None:
            raise raised
    else:

        @app.task
        async def fail() -> None:
            raise raised

    run = await Bench(app).run(fail.call())
    assert isinstance(run.settlement, Retried)
    kind = "RuntimeError" if isinstance(raised, StopIteration) else type(raised).__name__
    assert last_attempt(run).error_type == kind


async def test_a_cancelled_task_of_the_task_is_its_own_failure(app):
    @app.task
    async def lean_on_another() -> None:
        other = asyncio.create_task(asyncio.sleep(60))
        other.cancel()
        await other

    run = await Bench(app).run(lean_on_another.call())
    assert isinstance(run.settlement, Retried)
    assert last_attempt(run).error_type == "CancelledError"


async def test_directives_say_how_the_attempt_ends(app):
    @app.task(retries=1, backoff=SURE, result_ttl=5)
    async def direct(how: str) -> None:
        raise {
            "retry": Retry("slow down", delay=30),
            "retry as declared": Retry(),
            "cancel": Cancel("not needed"),
            "release": Release("busy"),
            "release later": Release(delay=60),
        }[how]

    bench = Bench(app)
    run = await bench.run(direct.call("retry"))
    assert isinstance(run.settlement, Retried)
    assert (run.settlement.delay, last_attempt(run).error_type) == (30_000, "Retry")
    assert read_tally(run.settlement.tally)[0].failures == 1
    assert (await bench.run(direct.call("retry as declared"))).settlement.delay == 2000
    assert isinstance((await bench.run(direct.call("retry"), run.settlement.tally)).settlement, Died)
    run = await bench.run(direct.call("cancel"))
    assert isinstance(run.settlement, Cancelled)
    assert read_ending(run.settlement.ending).reason == "not needed"
    for how, delay in (("release", 100), ("release later", 60_000)):
        run = await bench.run(direct.call(how))
        assert isinstance(run.settlement, Released)
        assert run.settlement.delay == delay
        assert (read_tally(run.settlement.tally)[0], last_attempt(run).outcome) == (Tally(attempts=1), "released")


@pytest.mark.parametrize(("delay", "stored"), [(0, 0), (1e12, 315_360_000_000), (dt.timedelta(seconds=2), 2000)])
async def test_a_delay_is_cut_to_what_stores_can_keep(app, delay, stored):
    @app.task
    async def later() -> None:
        raise Release(delay=delay)

    assert (await Bench(app).run(later.call())).settlement.delay == stored


async def test_a_retry_with_a_delay_that_is_none_is_a_failure_that_says_so(app):
    @app.task(backoff=SURE)
    async def later() -> None:
        raise Retry(delay="soon")

    run = await Bench(app).run(later.call())
    assert isinstance(run.settlement, Retried)
    assert (run.settlement.delay, last_attempt(run).error_type) == (2000, "ConfigError")
    assert "a delay is a number of seconds" in last_attempt(run).message


async def test_an_error_beyond_description_is_still_settled(app):
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("I have no name")

    @app.task
    async def fail() -> None:
        raise Rude

    attempt = last_attempt(await Bench(app).run(fail.call()))
    assert attempt.error_type.endswith("Rude")
    assert attempt.message == "(no message: its __str__ raised RuntimeError)"


async def test_messages_and_tracebacks_are_bounded_and_can_be_stored(app):
    @app.task
    async def shout() -> None:
        raise ValueError("\ud800" + "ä" * 10_000_000 + "end")

    @app.task
    async def fall(depth: int = 0) -> None:
        await fall(depth + 1)

    bench = Bench(app)
    attempt = last_attempt(await bench.run(shout.call()))
    assert len(attempt.message.encode()) <= MESSAGE_LIMIT
    assert len(attempt.traceback.encode()) <= TRACEBACK_LIMIT
    assert attempt.message.endswith("end")
    assert "in shout" in attempt.traceback
    attempt = last_attempt(await bench.run(fall.call()))
    assert attempt.error_type == "RecursionError"
    assert len(attempt.traceback.encode()) <= TRACEBACK_LIMIT


# What is dead at once


async def test_a_record_that_cannot_be_read_dies_with_its_history(app):
    bench = Bench(app)
    for body in (b"", b"\xff\xfe", b"\x93\x01\xa1t", os.urandom(64)):
        run = bench.intake.start("x", 7, body, "also broken", 0)
        assert run.settlement is None or run.ended
        assert await bench.ended.get() is run
        assert isinstance(run.settlement, Died)
        assert last_attempt(run).error_type == "Undecodable"
        assert read_tally(run.settlement.tally)[0].failures == 1


async def test_what_a_worker_does_not_know_is_handed_back_for_one_that_does(app):
    @app.task
    async def known() -> None: ...

    bench = Bench(app)
    for changes in ({"task": "unknown"}, {"version": VERSION + 1}):
        run = await bench.run(known.call(), **changes)
        assert isinstance(run.settlement, Released)
        assert (run.settlement.delay, run.settlement.tally) == (5000, "")


async def test_wrong_arguments_are_not_tried_again(app):
    @app.task
    async def greet(name: str) -> str:
        return name

    @app.task
    def greet_in_thread(name: str) -> str:
        return name

    bench = Bench(app)
    for task in (greet, greet_in_thread):
        run = await bench.run(task.call("Ada"), payload=msgspec.Raw(msgspec.msgpack.encode([[1], {}])))
        assert isinstance(run.settlement, Died)
        assert last_attempt(run).error_type == "ArgumentError"
        assert "'name'" in last_attempt(run).message


async def test_an_argument_error_of_the_tasks_own_is_as_any_other(app):
    @app.task
    async def inner(number: int) -> None: ...

    @app.task
    async def outer() -> None:
        inner.call("one")

    assert isinstance((await Bench(app).run(outer.call())).settlement, Retried)


@pytest.mark.parametrize("value", [object(), 2**70, float("nan"), "x" * 2_000_000])
async def test_a_result_that_cannot_be_stored_is_not_tried_again(app, value):
    @app.task
    async def give() -> Any:
        return value

    run = await Bench(app).run(give.call())
    assert isinstance(run.settlement, Died)
    assert last_attempt(run).error_type in {"PayloadError", "PayloadTooLarge"}


async def test_a_job_past_its_expiry_is_cancelled_unseen(app):
    started = []

    @app.task
    async def act() -> None:
        started.append(1)

    bench = Bench(app)
    run = await bench.run(act.call(), expires=NOW - 1)
    assert isinstance(run.settlement, Cancelled)
    ending = read_ending(run.settlement.ending)
    assert (ending.reason, ending.attempts, started) == ("expired", 0, [])
    assert isinstance((await bench.run(act.call(), expires=NOW + 60_000)).settlement, Done)


# Timeouts and stops


async def test_an_async_task_is_cancelled_at_its_timeout(app):
    ends = []

    @app.task(timeout=0.05, backoff=SURE)
    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append(1)

    run = await Bench(app).run(hang.call())
    assert isinstance(run.settlement, Retried)
    attempt = last_attempt(run)
    assert (attempt.error_type, attempt.message) == ("TimeoutError", "not done within its timeout of 0.05 s")
    assert "in hang" in attempt.traceback
    assert ends == [1]


async def test_what_a_task_returns_after_its_timeout_does_not_count(app):
    @app.task(timeout=0.05)
    async def deaf() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done anyway"
        return ""

    run = await Bench(app).run(deaf.call())
    assert isinstance(run.settlement, Retried)
    assert last_attempt(run).error_type == "TimeoutError"


async def test_a_timeout_of_the_tasks_own_making_is_its_failure(app):
    @app.task(timeout=10)
    async def impatient() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    run = await Bench(app).run(impatient.call())
    assert last_attempt(run).error_type == "TimeoutError"
    assert last_attempt(run).message == ""


async def test_each_job_has_its_own_deadline(app):
    @app.task(timeout=60)
    async def wait(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    bench = Bench(app)
    bench.start(wait.call(0.01))
    late = [bench.start(wait.options(timeout=timeout).call(60)) for timeout in (0.2, 0.05, 0.1, 0.05)]
    order = [await bench.ended.get() for _ in range(5)]
    assert result_of(order[0]) == 0.01
    assert [late.index(run) for run in order[1:]] == [1, 3, 2, 0]


async def test_a_thread_is_told_at_its_timeout_and_settled_when_it_ended(app):
    ended = threading.Event()

    @app.task(timeout=0.3)
    def spin() -> None:
        try:
            while True:
                time.sleep(0.001)
        finally:
            ended.set()

    run = await Bench(app, threads=1).run(spin.call())
    assert ended.is_set()
    assert last_attempt(run).error_type == "TimeoutError"


async def test_a_stop_meant_for_one_job_does_not_hit_the_next_in_its_thread(app):
    @app.task
    def spin() -> None:
        while True:
            pass

    @app.task
    def count() -> int:
        return sum(range(1000))

    bench = Bench(app, threads=1)
    for _ in range(50):
        first, second = bench.start(spin.call()), bench.start(count.call())
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        bench.executor.stop(first, "cancelled")
        assert isinstance((await bench.ended.get()).settlement, Cancelled)
        assert await bench.ended.get() is second
        assert result_of(second) == 499_500


async def test_a_thread_can_look_whether_it_is_to_end(app):
    seen = threading.Event()

    @app.task
    def polite() -> bool:
        job = current_job()
        seen.set()
        try:
            while not job.cancelled:
                time.sleep(0.001)
        except asyncio.CancelledError:
            pass
        return job.cancelled

    bench = Bench(app)
    run = bench.start(polite.call())
    await aeventually(seen.is_set)
    bench.executor.stop(run, "stopped")
    await bench.ended.get()
    assert isinstance(run.settlement, Released)


@pytest.mark.parametrize("begun", [False, True])
async def test_why_a_job_was_stopped_decides_how_it_is_settled(app, begun):
    @app.task
    async def hang() -> None:
        await asyncio.sleep(60)

    bench = Bench(app)

    async def stop(*reasons: Any) -> Run:
        run = bench.start(hang.call())
        if begun:
            await asyncio.sleep(0)
        for reason in reasons:
            bench.executor.stop(run, reason)
        assert await bench.ended.get() is run
        bench.executor.stop(run, "lost")  # too late for anything
        return run

    run = await stop("stopped")
    assert isinstance(run.settlement, Released)
    assert run.settlement.delay == 0
    if begun:
        assert read_tally(run.settlement.tally)[0] == Tally(attempts=1)
        assert last_attempt(run).outcome == "stopped"
    else:
        assert run.settlement.tally == ""
    ending = read_ending((await stop("cancelled", "stopped")).settlement.ending)
    assert (ending.state, ending.attempts) == ("cancelled", int(begun))
    assert (await stop("lost")).settlement is None
    if begun:  # one that has not begun has ended with the first word
        assert (await stop("cancelled", "lost")).settlement is None
    assert len([task for task in asyncio.all_tasks() if not task.done()]) == 1


async def test_cancelling_the_loops_tasks_ends_the_attempts(app):
    @app.task
    async def hang() -> None:
        await asyncio.sleep(60)

    bench = Bench(app)
    run = bench.start(hang.call())
    await asyncio.sleep(0)
    run.task.cancel()
    await bench.ended.get()
    assert isinstance(run.settlement, Retried)


# The lease


async def test_no_attempt_begins_when_the_lease_has_run_out(app):
    begun = []

    @app.task
    async def work(name: str) -> None:
        begun.append(name)
        if name == "first":
            bench.lease.until = 0  # as after the process was stopped right here

    bench = Bench(app)
    runs = [bench.start(work.call(name)) for name in ("first", "second", "third")]
    async with asyncio.timeout(10):
        ended = {await bench.ended.get() for _ in runs}
    assert ended == set(runs)
    assert begun == ["first"]
    assert isinstance(runs[0].settlement, Done)
    assert [(run.settlement, run.stop, run.began) for run in runs[1:]] == [(None, "lost", 0)] * 2


async def test_a_lease_that_runs_out_on_the_way_to_the_thread_keeps_the_task_from_beginning(app):
    begun = []

    @app.middleware
    async def slow(_, call_next):
        bench.lease.until = 0
        return await call_next()

    @app.task
    def work() -> None:
        begun.append(1)

    bench = Bench(app)
    run = await bench.run(work.call())
    assert (begun, run.settlement, run.stop) == ([], None, "lost")


# Context and middleware


async def test_the_context_tells_about_the_job(app):
    contexts: list[JobContext] = []

    @app.task(timeout=60)
    async def look() -> None:
        contexts.append(current_job())
        await asyncio.sleep(0)
        assert current_job().id == contexts[-1].id

    run = await Bench(app).run(look.options(headers={"trace": "1"}).call())
    (context,) = contexts
    assert (context.id, context.queue, context.task) == (run.id, "mail", "look")
    assert (context.attempt, context.failures, context.worker) == (1, 0, "host:1")
    assert (context.headers, context.cancelled) == ({"trace": "1"}, False)
    assert context.deadline == pytest.approx(time.monotonic() + 60, abs=1)
    assert "look" in repr(context)
    with pytest.raises(RuntimeError, match="no job"):
        current_job()


async def test_concurrent_jobs_see_their_own_context(app):
    @app.task
    async def look() -> str:
        await asyncio.sleep(0)
        return current_job().id

    bench = Bench(app)
    for _ in range(50):
        bench.start(look.call())
    for _ in range(50):
        run = await bench.ended.get()
        assert result_of(run) == run.id


async def test_middleware_wraps_each_attempt_the_first_outermost(app):
    steps = []

    def wrapper(name: str) -> Callable[..., Any]:
        async def wrap(context, call_next):
            steps.append(f"{name} in {context.task}")
            result = await call_next()
            steps.append(f"{name} out")
            return result + 1

        return wrap

    app.middleware(wrapper("a"))
    app.middleware(wrapper("b"))

    @app.task
    async def one() -> int:
        steps.append("task")
        return 1

    assert result_of(await Bench(app).run(one.call())) == 3
    assert steps == ["a in one", "b in one", "task", "b out", "a out"]


async def test_middleware_may_end_an_attempt_and_sees_its_errors(app):
    seen = []

    @app.middleware
    async def guard(context, call_next):
        if context.headers.get("skip"):
            raise Cancel("skipped")
        try:
            return await call_next()
        except ValueError as error:
            seen.append(error)
            raise KeyError("translated") from error

    @app.task
    async def fail() -> None:
        raise ValueError

    bench = Bench(app)
    assert isinstance((await bench.run(fail.options(headers={"skip": "1"}).call())).settlement, Cancelled)
    assert last_attempt(await bench.run(fail.call())).error_type == "KeyError"
    assert len(seen) == 1


# Metrics


async def test_attempts_are_counted_by_outcome_and_time(app):
    @app.task(retries=0)
    async def work(*, fail: bool) -> None:
        if fail:
            raise ValueError

    bench = Bench(app)
    runs = [await bench.run(work.call(fail=fail), created=NOW - 5) for fail in (False, True, False)]
    runs.append(bench.start(work.call(fail=False)))
    bench.executor.stop(runs[-1], "stopped")
    blob, meters = metrics_of(runs)
    assert len(meters) == 1
    (report,) = msgspec.msgpack.decode(blob)[1:]
    assert report[:2] == ["work", {"done": 2, "died": 1, "released": 1}]
    assert sum(report[2][1::2]) == 3
    assert sum(report[3][1::2]) == 4
    assert report[4] >= 3 * 5
    assert report[5] == sum(run.ended - run.began for run in runs[:3])
    assert metrics_of([])[0] == b""


# Processes


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    processes = Processes("tests.shop:app", 2, grace=0.3)
    await processes.start()
    await aeventually(lambda: len(processes.pids) == 2)
    bench = Bench(shop.app, processes=processes)
    bench.processes = processes
    yield bench
    processes.close()


async def test_a_process_task_runs_in_one_of_the_warm_processes(bench):
    run = await bench.run(shop.where.call(), write_tally(Tally(attempts=2), []))
    pid, id, worker, attempt = result_of(run)
    assert (id, worker, attempt) == (run.id, "host:1", 3)
    assert pid in bench.processes.pids
    assert pid != os.getpid()
    big = "x" * 900_000
    assert result_of(await bench.run(shop.where.call(big)))[1] == big


async def test_process_tasks_wait_for_a_free_process(bench):
    pids: set[int] = set()
    while len(pids) < 2:  # one may begin later than the other
        for _ in range(20):
            bench.start(shop.where.call())
        pids |= {result_of(await bench.ended.get())[0] for _ in range(20)}
    assert pids == set(bench.processes.pids)


async def test_errors_are_judged_in_the_process(bench):
    run = await bench.run(shop.misbehave.call("value"))
    assert isinstance(run.settlement, Retried)
    assert len(last_attempt(run).message) <= MESSAGE_LIMIT
    trace = last_attempt(run).traceback.splitlines()
    assert "shop.py" in trace[1]
    run = await bench.run(shop.misbehave.call("key"))
    assert isinstance(run.settlement, Died)
    assert last_attempt(run).error_type == "KeyError"
    assert isinstance((await bench.run(shop.misbehave.call("exit"))).settlement, Retried)
    assert (await bench.run(shop.misbehave.call("retry"))).settlement.delay == 7000
    assert read_ending((await bench.run(shop.misbehave.call("cancel"))).settlement.ending).reason == "enough"
    assert (await bench.run(shop.misbehave.call("release"))).settlement.delay == 3000
    run = await bench.run(shop.misbehave.call("result"))
    assert isinstance(run.settlement, Died)
    assert last_attempt(run).error_type == "PayloadError"
    run = await bench.run(shop.where.call(), payload=msgspec.Raw(msgspec.msgpack.encode([[1], {}])))
    assert isinstance(run.settlement, Died)
    assert last_attempt(run).error_type == "ArgumentError"


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_process_ends_at_its_timeout_and_is_replaced_alone(bench, tmp_path, stubborn):
    before = bench.processes.pids
    run = await bench.run(shop.hang.call(str(tmp_path / "log"), stubborn=stubborn))
    assert last_attempt(run).error_type == "TimeoutError"
    assert shop.lines(tmp_path / "log", "cancelled") == ["cancelled"]
    (line,) = shop.lines(tmp_path / "log", "start")
    pid = int(line.split()[1])
    await aeventually(lambda: len(set(bench.processes.pids) - {pid}) == 2)
    assert len(set(before) & set(bench.processes.pids)) == 1
    assert result_of(await bench.run(shop.where.call("well")))[1] == "well"


async def test_a_sigterm_that_is_not_ours_does_not_end_a_task(bench, tmp_path):
    log = tmp_path / "log"
    run = bench.start(shop.hang.options(timeout=60).call(str(log), stubborn=False))
    await aeventually(lambda: shop.lines(log, "start"))
    pid = int(shop.lines(log, "start")[0].split()[1])
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert result_of(await bench.run(shop.where.call("still")))[1] == "still"
    assert not run.ended
    bench.executor.stop(run, "cancelled")
    await bench.ended.get()
    assert isinstance(run.settlement, Cancelled)


@pytest.mark.parametrize(("how", "said"), [("exit", "exit code 3"), ("SIGSEGV", "SIGSEGV"), ("SIGKILL", "SIGKILL")])
async def test_a_process_that_dies_counts_as_a_crash(bench, how, said):
    run = await bench.run(shop.die.call(how))
    assert isinstance(run.settlement, Retried)
    tally, _ = read_tally(run.settlement.tally)
    assert (tally.attempts, tally.failures, tally.crashes) == (1, 0, 1)
    attempt = last_attempt(run)
    assert (attempt.outcome, attempt.error_type) == ("crashed", "WorkerCrashed")
    assert said in attempt.message
    again = await bench.run(shop.die.call(how), run.settlement.tally)
    assert isinstance(again.settlement, Died)
    assert result_of(await bench.run(shop.where.call("well")))[1] == "well"


async def test_the_pool_outlives_its_nursery(bench):
    os.kill(bench.processes._nursery.pid, signal.SIGKILL)
    run = await bench.run(shop.where.call("well"))
    if isinstance(run.settlement, Retried):  # its process went down with the nursery
        run = await bench.run(shop.where.call("well"), run.settlement.tally)
    assert result_of(run)[1] == "well"


@pytest.mark.parametrize("renewed", [True, False])
async def test_a_process_that_was_stopped_begins_a_task_only_if_the_lease_holds(bench, tmp_path, renewed):
    log = tmp_path / "log"
    for pid in bench.processes.pids:
        os.kill(pid, signal.SIGSTOP)
    bench.lease.until = time.monotonic_ns() + 500_000_000
    run = bench.start(shop.hang.options(timeout=60).call(str(log), stubborn=False))
    await aeventually(lambda: time.monotonic_ns() > bench.lease.until)
    if renewed:
        bench.lease.until += 60_000_000_000
    for pid in bench.processes.pids:
        os.kill(pid, signal.SIGCONT)
    if renewed:
        await aeventually(lambda: shop.lines(log, "start"))
        bench.executor.stop(run, "cancelled")
    assert await asyncio.wait_for(bench.ended.get(), 10) is run
    if not renewed:
        assert (run.settlement, run.stop, shop.lines(log)) == (None, "lost", [])
        bench.lease.until += 60_000_000_000
        assert result_of(await bench.run(shop.where.call("well")))[1] == "well"  # the process is of use still


async def test_a_task_waiting_for_a_process_can_be_stopped(bench, tmp_path):
    log = tmp_path / "log"
    hanging = [bench.start(shop.hang.options(timeout=60).call(str(log), stubborn=False)) for _ in range(2)]
    await aeventually(lambda: len(shop.lines(log, "start")) == 2)
    waiting = bench.start(shop.where.call())
    await asyncio.sleep(0)
    bench.executor.stop(waiting, "stopped")
    assert await bench.ended.get() is waiting
    assert isinstance(waiting.settlement, Released)
    for run in hanging:
        bench.executor.stop(run, "lost")
        assert (await bench.ended.get()).settlement is None


async def test_without_a_pool_process_tasks_fail_by_name():
    run = await Bench(shop.app).run(shop.where.call())
    assert "no process pool" in last_attempt(run).message


# Lifespans in processes


@pytest.fixture
async def living(tmp_path, monkeypatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("SPOOL_TEST_LOG", str(tmp_path / "log"))
    bench = Bench(lifespan_shop.app, processes=Processes("tests.lifespan_shop:app", 1))
    bench.processes = bench.executor._processes
    bench.log = tmp_path / "log"
    yield bench
    bench.processes.close()


def pids(bench: Bench, word: str) -> list[int]:
    return [int(line.split()[1]) for line in shop.lines(bench.log, word)]


async def test_lifespans_surround_the_life_of_each_process(living):
    await living.processes.start()
    pid, entered = result_of(await living.run(lifespan_shop.use.call()))
    assert (entered, pids(living, "in"), pids(living, "out")) == ("model", [pid], [])
    os.kill(pid, signal.SIGKILL)
    await aeventually(lambda: len(pids(living, "in")) == 2)
    other, _ = result_of(await living.run(lifespan_shop.use.call()))
    assert pids(living, "in") == [pid, other]
    await living.processes.aclose(10)
    assert pids(living, "out") == [other]


async def test_a_lifespan_that_fails_keeps_the_pool_from_starting(living, caplog):
    living.log.with_name("log.broken").touch()
    with pytest.raises(RuntimeError, match="lifespan failed in a process of the pool: OSError: no model"):
        await living.processes.start()
    assert "lifespan_shop.py" in caplog.text  # the traceback


async def test_a_lifespan_that_is_none_is_refused_by_the_pool(monkeypatch):
    monkeypatch.setenv("SPOOL_TEST_TROUBLE", "misfit")
    processes = Processes("tests.troubled_shop:app", 1)
    with pytest.raises(ConfigError, match=r"the lifespan tests\.troubled_shop\.misfit returned 1"):
        await processes.start()
    processes.close()


async def test_a_lifespan_that_fails_later_harms_no_job_and_is_tried_less_and_less_often(living):
    await living.processes.start()
    broken = living.log.with_name("log.broken")
    broken.touch()
    (first,) = pids(living, "in")
    os.kill(first, signal.SIGKILL)
    await aeventually(lambda: len(pids(living, "try")) == 3)
    run = living.start(lifespan_shop.use.call())
    await aeventually(lambda: len(pids(living, "try")) == 4)
    assert not run.ended
    tries = [float(line.split()[2]) for line in shop.lines(living.log, "try")]
    assert tries[2] - tries[1] >= 0.9
    assert tries[3] - tries[2] >= 1.9
    broken.unlink()
    assert await asyncio.wait_for(living.ended.get(), 20) is run
    assert result_of(run)[1] == "model"
