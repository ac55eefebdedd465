import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from spool import (
    Backoff,
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    Handle,
    JobFailed,
    LeaseLost,
    PayloadTooLarge,
    Retry,
    Spool,
    State,
    current_job,
)
from spool.broker import (
    Beat,
    Beaten,
    Broker,
    Claim,
    Claimed,
    Enqueue,
    Find,
    Get,
    Heartbeat,
    Load,
    Orders,
    Retire,
    Settle,
    Stats,
    Store,
    Verb,
    Watch,
    connect,
)
from spool.broker.silence import is_silence
from spool.job import LANES, MAIN, PROCESS
from spool.report import read_row, unpack
from spool.view import view
from spool.worker import Worker
from spool.worker.heartbeat import Heard, lease_time
from spool.worker.slots import Line, Share, Slots
from tests import lifespan_shop, shop
from tests.contract.driver import job
from tests.eventually import aeventually

SOON = Backoff(base=0.001, cap=0.01)


class Wire:
    """A broker that others can listen to, and disturb: ``disturb`` sees each verb first, and its reply afterwards."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.sent: list[Any] = []
        self.listened: list[list[int]] = []
        self.before: Callable[[Any], None] = lambda _verb: None
        self.after: Callable[[Any, Any], Any] = lambda _verb, reply: reply

    url = "wire://"

    def call(self, verb: Verb[Any]) -> Any:
        self.sent.append(verb)
        self.before(verb)
        return self.after(verb, self._broker.call(verb))

    async def acall(self, verb: Verb[Any]) -> Any:
        self.sent.append(verb)
        if isinstance(verb, Claim) and verb.wait:
            self.listened.append(verb.lanes)
        self.before(verb)
        return self.after(verb, await self._broker.acall(verb))

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        self.listened.append(list(lanes))
        await self._broker.await_work(queues, timeout, lanes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def all(self, kind: type) -> list[Any]:
        return [verb for verb in self.sent if isinstance(verb, kind)]


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    broker = connect("sqlite://:memory:")
    yield Wire(broker)
    await broker.aclose()


@pytest.fixture
def app(wire) -> Spool:
    return Spool(wire)


@asynccontextmanager
async def running(app: Spool, *queues: str, **settings: Any) -> AsyncIterator[Worker]:
    """A worker that has registered itself; stopped in the end."""
    ready = asyncio.Event()
    worker = Worker(app, queues, on_life=lambda _: ready.set(), **settings)
    worker.task = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(10):
            await asyncio.wait([asyncio.create_task(ready.wait()), worker.task], return_when="FIRST_COMPLETED")
        yield worker
    finally:
        worker.stop()
        async with asyncio.timeout(15):
            await worker.task


async def stats(app: Spool, queue: str = "default") -> Any:
    return await app.broker.acall(Stats(queue))


async def done(app: Spool, count: int, queue: str = "default") -> None:
    async def probe() -> bool:
        return (await stats(app, queue)).totals.get("done") == count

    await aeventually(probe, 20)


async def rows(app: Spool) -> list[Any]:
    return (await app.broker.acall(Load("worker"))).documents


async def is_running(handle: Handle[Any]) -> bool:
    return await handle.astatus() is State.RUNNING


async def is_dead(handle: Handle[Any]) -> bool:
    return await handle.astatus() is State.DEAD


# Work


async def test_jobs_of_all_kinds_are_done(app):
    @app.task
    async def double(number: int) -> int:
        return number * 2

    @app.task
    def triple(number: int) -> int:
        return number * 3

    early = await double.aenqueue(1)
    async with running(app):
        assert await early.aresult(5) == 2
        handles = [await task.aenqueue(number) for number in range(20) for task in (double, triple)]
        assert [await handle.aresult(5) for handle in handles] == [
            number * factor for number in range(20) for factor in (2, 3)
        ]
    totals = (await stats(app)).totals
    assert totals == {"enqueued": 41, "done": 41}


async def test_failures_are_retried_and_die(app, caplog):
    starts = []

    @app.task(retries=2, backoff=SOON)
    async def fail() -> None:
        starts.append(current_job().attempt)
        raise ValueError("as\nalways")

    async with running(app):
        handle = await fail.aenqueue()
        await aeventually(lambda: len(starts) == 3)
        await asyncio.wait_for(app.broker.aended("default", handle.id), 5)
    job = await handle.ajob()
    assert (job.state, job.attempts, job.failures, starts) == (State.DEAD, 3, 3, [1, 2, 3])
    warnings = [record for record in caplog.records if "failed" in record.message]
    assert len(warnings) == 3
    assert warnings[-1].message == f"default/{handle.id} fail failed, dead: ValueError: as\nalways"
    assert warnings[0].spool["job"] == handle.id
    assert warnings[0].spool["attempt"] == 1


async def test_a_retry_is_taken_up_when_it_is_due(app):
    times = []

    @app.task(retries=3)
    async def again() -> None:
        times.append(time.monotonic())
        if len(times) < 4:
            raise Retry(delay=0.05)

    async with running(app):
        handle = await again.aenqueue()
        await handle.aresult(5)
    gaps = [after - before for before, after in pairwise(times)]
    assert all(0.045 <= gap < 0.4 for gap in gaps), gaps


async def test_several_queues_are_served(app):
    @app.task
    async def work() -> str:
        return current_job().queue

    async with running(app, "a", "b", "c") as worker:
        assert worker.queues == ["a", "b", "c"]
        handles = [await work.options(queue=queue).aenqueue() for queue in "abc" for _ in range(30)]
        assert [await handle.aresult(5) for handle in handles] == list("a" * 30 + "b" * 30 + "c" * 30)
    other = await work.options(queue="d").aenqueue()
    assert await other.astatus() is State.READY


async def test_by_default_the_queues_of_the_tasks_are_served(app):
    @app.task(queue="mail")
    async def one() -> None: ...

    @app.task(queue="sms")
    async def two() -> None: ...

    assert Worker(app).queues == ["mail", "sms"]
    assert Worker(Spool("sqlite://:memory:")).queues == ["default"]


async def test_a_busy_queue_does_not_starve_another(app):
    @app.task
    async def work() -> None:
        await asyncio.sleep(0.001)

    await app.aenqueue_many(work.options(queue="busy").call() for _ in range(2000))
    async with running(app, "busy", "rare", concurrency=10):
        await (await work.options(queue="rare").aenqueue()).aresult(2)
        assert sum((await stats(app, "busy")).ready) > 0


async def test_no_more_jobs_run_than_there_are_slots(app, wire):
    now = most = 0

    @app.task
    async def work() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    await app.aenqueue_many(work.options(queue=queue).call() for queue in ("a", "b") for _ in range(200))
    async with running(app, "a", "b", concurrency=7):
        for queue in ("a", "b"):
            await done(app, 200, queue)
    assert most == 7
    assert all(sum(claim.slots) <= 7 for claim in wire.all(Claim))


async def test_a_freed_slot_is_filled_while_the_others_are_busy(app):
    gate = asyncio.Event()

    @app.task
    async def wait() -> None:
        await gate.wait()

    @app.task
    async def quick() -> None: ...

    async with running(app, concurrency=4):
        waiting = [await wait.aenqueue() for _ in range(3)]
        await aeventually(lambda: len(gate._waiters) == 3)
        for _ in range(5):
            await (await quick.aenqueue()).aresult(2)
        gate.set()
        for handle in waiting:
            await handle.aresult(2)


async def test_priorities_are_strict_when_slots_are_scarce(app):
    order = []

    @app.task
    async def work(name: str) -> None:
        order.append(name)

    for priority in ("background", "low", "normal", "high", "critical"):
        for number in range(2):
            await work.options(priority=priority).aenqueue(f"{priority}{number}")
    async with running(app, concurrency=1):
        await aeventually(lambda: len(order) == 10)
    assert order == [f"{p}{n}" for p in ("critical", "high", "normal", "low", "background") for n in range(2)]


async def test_an_idle_worker_settles_at_once_and_a_busy_one_in_batches(app, wire):
    @app.task
    async def work() -> None: ...

    async with running(app):
        for _ in range(3):
            await (await work.aenqueue()).aresult(2)
        assert [len(settle.settlements) for settle in wire.all(Settle)] == [1, 1, 1]
        wire.sent.clear()
        await app.aenqueue_many(work.call() for _ in range(1000))
        await done(app, 1003)
    assert len(wire.all(Settle)) < 100


def test_a_share_is_kept_until_the_others_had_their_turn():
    share = Share()
    cut, refused, all_of_it = Claimed(0, [("a", b"")], cut=True), Claimed(0, [], cut=True), Claimed(0, [("a", b"")])
    assert not share.even(0.0)
    share.note(cut, 0.0, even=False)
    assert share.even(0.04)
    share.note(cut, 0.04, even=True)  # which gives the others no more time
    assert not share.even(0.05)
    assert not share.rests_until
    share.note(cut, 1.0, even=False)
    share.note(refused, 1.01, even=True)
    assert share.rests_until == 1.05
    share.note(all_of_it, 1.05, even=False)
    assert not share.even(1.05)
    assert not share.rests_until


def test_others_that_leave_jobs_lying_are_not_waited_for():
    share = Share()
    cut, refused = Claimed(0, [("a", b"")], cut=True), Claimed(0, [], cut=True)
    share.note(cut, 0.0, even=False)
    for turn in (0.0, 1.0):
        share.note(refused, turn + 0.01, even=True)
        assert share.even(turn + 0.02)
        share.note(cut, turn + 1.0, even=False)
    assert not share.even(2.01)
    share.note(cut, 2.9, even=False)
    assert not share.even(2.91)
    share.note(cut, 4.0, even=False)
    assert share.even(4.01)
    share.note(cut, 4.02, even=True)  # we had less than our part: no turn of the others was in vain
    share.note(cut, 4.06, even=False)
    share.note(cut, 4.12, even=False)
    assert share.even(4.13)


def nothing() -> None: ...


async def test_a_worker_listens_only_for_what_it_could_run(app, wire):
    release = asyncio.Event()
    app.task(process=True)(nothing)

    @app.task
    async def hold() -> None:
        await release.wait()

    async with running(app, concurrency=1, pool_size=1, target="tests.shop:app"):
        await aeventually(lambda: [MAIN, PROCESS] in wire.listened)
        handle = await hold.aenqueue()
        await aeventually(lambda: wire.listened[-1] == [PROCESS])
        release.set()
        await handle.aresult(5)
        await aeventually(lambda: wire.listened[-1] == [MAIN, PROCESS])


async def test_what_others_do_not_take_is_taken_by_a_worker_above_its_share(app, wire):
    started = 0

    @app.task
    async def hold() -> None:
        nonlocal started
        started += 1
        await release.wait()

    release = asyncio.Event()
    await app.broker.acall(Beat("default", [Heartbeat("deaf", 60_000, ("nothing",))]))
    async with running(app, concurrency=200):
        await app.aenqueue_many(hold.call() for _ in range(100))
        await aeventually(lambda: started == 100, 5)
        release.set()
        await done(app, 100)
    assert len(wire.all(Claim)) < 60


async def test_a_worker_that_has_settled_jobs_rests_no_longer(app, wire, monkeypatch):
    monkeypatch.setattr("spool.worker.slots.TURN", 60)
    resting, started = asyncio.Event(), []

    @app.task
    async def hold() -> None:
        release = asyncio.Event()
        started.append(release)
        await release.wait()

    def listen(verb: Any, reply: Any) -> Any:
        if isinstance(verb, Claim) and verb.even and not reply.jobs:
            resting.set()
        return reply

    wire.after = listen
    await app.broker.acall(Beat("default", [Heartbeat("deaf", 60_000, ("nothing",))]))
    async with running(app):
        await app.aenqueue_many(hold.call() for _ in range(4))
        await asyncio.wait_for(resting.wait(), 5)
        assert len(started) == 2
        started[0].set()
        await aeventually(lambda: len(started) == 3, 5)
        for release in started:
            release.set()
        await app.broker.acall(Retire("default", "deaf", "lost"))
        await aeventually(lambda: len(started) == 4, 5)
        started[3].set()
        await done(app, 4)


async def test_what_a_worker_cannot_do_does_not_stop_it(app, wire):
    @app.task
    async def work() -> int:
        return 1

    await work.options(id="broken").aenqueue()

    def corrupt(verb: Any, reply: Any) -> Any:
        if isinstance(verb, Claim) and reply.jobs:
            jobs = [(id, b"garbage" if id == "broken" else body) for id, body in reply.jobs]
            return msgspec.structs.replace(reply, jobs=jobs)
        return reply

    wire.after = corrupt
    async with running(app):
        assert await (await work.aenqueue()).aresult(5) == 1
        await app.broker.aended("default", "broken", 5)
    dead = view(await app.broker.acall(Get("default", "broken")))
    assert dead.state is State.DEAD
    assert dead.error.startswith("Undecodable")


async def test_lifespans_surround_the_work(app):
    steps = []

    @app.lifespan
    async def outer(spool):
        steps.append(("outer in", spool is app))
        yield
        steps.append("outer out")

    @app.lifespan
    async def inner(_):
        steps.append("inner in")
        yield
        steps.append("inner out")

    @app.task
    async def work() -> None:
        steps.append("work")

    async with running(app):
        await (await work.aenqueue()).aresult(5)
    assert steps == [("outer in", True), "inner in", "work", "inner out", "outer out"]


async def test_a_lifespan_that_fails_keeps_the_worker_from_starting(app, wire):
    @app.lifespan
    async def broken(_):
        raise OSError("no database")
        yield

    with pytest.raises(OSError, match="no database"):
        await Worker(app).run()
    assert wire.sent == []


async def test_a_worker_that_is_stopped_while_it_enters_a_lifespan_ends(app, wire):
    steps = []

    @app.lifespan
    async def outer(_):
        yield
        steps.append("outer out")

    @app.lifespan
    async def endless(_):
        steps.append("in")
        await asyncio.sleep(60)
        yield

    worker = Worker(app)
    working = asyncio.create_task(worker.run())
    await aeventually(lambda: steps)
    worker.stop()
    await asyncio.wait_for(working, 5)
    assert steps == ["in", "outer out"]
    assert wire.sent == []


async def test_no_lifespan_keeps_a_worker_from_ending_nor_others_from_being_left(app, caplog, monkeypatch):
    monkeypatch.setattr("spool.worker.lifespans.LEAVE", 0.05)
    steps = []

    @app.lifespan
    async def outer(_):
        yield
        await asyncio.sleep(0)
        steps.append("outer out")

    @app.lifespan
    async def endless(_):
        yield
        steps.append("leaving")
        await asyncio.sleep(60)

    async with running(app, grace=0) as worker:
        worker.stop()
        await asyncio.wait_for(worker.task, 5)
    assert steps == ["leaving", "outer out"]
    assert "endless took too long to leave, and was cancelled" in caplog.text


async def test_a_timeout_of_a_lifespans_own_is_raised(app):
    @app.lifespan
    async def broken(_):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
        yield

    with pytest.raises(TimeoutError) as raised:
        await Worker(app).run()
    assert "broken, when it was entered" in raised.value.__notes__[0]


async def test_processes_of_the_pool_have_left_their_lifespans_when_the_worker_has_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("SPOOL_TEST_LOG", str(tmp_path / "log"))
    url = f"sqlite:///{tmp_path}/jobs.db"
    broker, app = connect(url), lifespan_shop.app
    with app.using(broker):
        async with running(app, pool_size=1, target="tests.lifespan_shop:app", url=url):
            pid, entered = await (await lifespan_shop.use.aenqueue()).aresult(10)
    await broker.aclose()
    words = [line.split()[:2] for line in shop.lines(tmp_path / "log")]
    assert entered == "model"
    assert [word for word, of in words if of == str(pid)] == ["try", "in", "out"]
    assert [word for word, of in words if of == str(os.getpid())] == ["try", "in", "out"]


async def test_metrics_travel_with_the_settles(app):
    @app.task(retries=0)
    async def work(*, fail: bool) -> None:
        if fail:
            raise ValueError

    async with running(app):
        handles = [await work.aenqueue(fail=fail) for fail in (False, True, False)]
        for handle in handles:
            await app.broker.aended("default", handle.id, 5)
    blobs = (await app.broker.acall(Watch("default"))).blobs
    reports = [report for blob in blobs for report in unpack(blob.body)]
    assert {report.task for report in reports} == {"work"}
    assert sum(report.outcomes.get("done", 0) for report in reports) == 2
    assert sum(report.outcomes.get("died", 0) for report in reports) == 1
    assert sum(sum(report.runs[1::2]) for report in reports) == 3


async def test_the_worker_keeps_a_row_while_it_lives(app):
    async with running(app, "a", "b", name="me", concurrency=3):
        (document,) = await aeventually(lambda: rows(app))
        row = read_row(document.body)
        assert (row.incarnation, row.name, row.queues) == (document.key, "me", ["a", "b"])
        assert (row.concurrency, row.lease, row.running, row.stopping) == (3, 10_000, 0, False)
    assert await rows(app) == []


# Lost replies and outages


@pytest.mark.parametrize("part", ["request", "reply"])
@pytest.mark.parametrize("kind", [Claim, Settle, Beat, Retire])
async def test_what_was_not_answered_is_asked_again_until_it_is(app, wire, kind, part):
    starts = []

    @app.task
    async def work() -> None:
        starts.append(current_job().id)

    left = 3

    def lose(verb: Any) -> None:
        nonlocal left
        if isinstance(verb, kind) and left:
            left -= 1
            raise BrokerUnavailable("cut")

    if part == "request":
        wire.before = lose
    else:
        wire.after = lambda verb, reply: (lose(verb), reply)[1]
    handle = await work.aenqueue()
    async with running(app, lease=1.0):
        await handle.aresult(10)
    assert left == 0
    assert starts == [handle.id]
    assert (await stats(app)).totals == {"enqueued": 1, "done": 1}
    asked = wire.all(kind)
    if kind in {Claim, Settle}:
        assert asked[0] == asked[1] == asked[2] == asked[3]
        assert [verb.seq for verb in asked if verb.seq > 1][:2] == [2, 3][: len(asked) - 4]


@pytest.mark.parametrize("error", [ConfigError("no directory"), JobFailed("nonsense")])
@pytest.mark.parametrize("kind", [Claim, Settle, Beat, Load, Store, Retire, "await_work"])
async def test_no_error_ends_a_worker_that_has_begun(app, wire, kind, error, monkeypatch):
    monkeypatch.setattr("spool.worker.heartbeat.ORDERS_EVERY", 0.0)
    monkeypatch.setattr("spool.worker.heartbeat.ROW_EVERY", 0.0)
    left = 0

    @app.task
    async def work() -> None: ...

    def fail(verb: Any) -> None:
        nonlocal left
        if left and (verb == kind or type(verb) is kind):
            left -= 1
            raise error

    async def await_work(*given: Any) -> None:
        fail("await_work")
        await wire._broker.await_work(*given)

    wire.before = fail
    wire.await_work = await_work
    async with running(app, "default", "other", lease=1.0):
        left = 2
        if kind is not Retire:
            handle = await work.aenqueue()
            await handle.aresult(10)
            await aeventually(lambda: not left)
    assert left == 0


async def test_jobs_that_cannot_be_settled_do_not_pile_up_without_end(app, wire, monkeypatch):
    monkeypatch.setattr("spool.worker.claims.MAX_UNSETTLED", 50)
    ran = 0

    @app.task
    async def work() -> None:
        nonlocal ran
        ran += 1

    await app.aenqueue_many(work.call() for _ in range(500))

    def lose(verb: Any) -> None:
        if isinstance(verb, Settle):
            raise BrokerUnavailable("cut")

    wire.before = lose
    async with running(app, concurrency=20):
        await aeventually(lambda: len(wire.all(Settle)) >= 3)
        assert 50 <= ran <= 100
        wire.before = lambda _: None
        await done(app, 500)


async def test_large_results_are_settled_a_few_at_a_time(wire):
    app = Spool(wire, max_payload=16 << 20)

    @app.task
    async def work(size: int) -> bytes:
        return bytes(size)

    handles = [await work.aenqueue(size << 20) for size in (3, 3, 3, 0, 9, 1, 3, 3)]
    async with running(app, concurrency=8):
        await done(app, 8)
    assert [len(await handle.aresult(5)) >> 20 for handle in handles] == [3, 3, 3, 0, 9, 1, 3, 3]
    settles = [[len(each.ending) for each in verb.settlements] for verb in wire.all(Settle)]
    assert sum(map(len, settles)) == 8
    assert all(sum(endings) <= 8 << 20 or len(endings) == 1 for endings in settles)
    assert max(map(len, settles)) > 1


async def test_a_result_too_large_for_the_way_to_the_store_fails_alone(app, wire, caplog):
    @app.task
    async def work(size: int) -> bytes:
        return bytes(size)

    def refuse(verb: Any) -> None:
        if isinstance(verb, Settle) and len(msgspec.msgpack.encode(verb)) > 100_000:
            raise PayloadTooLarge("a settle has 200,000 bytes; the store takes at most 100,000 a request")

    wire.before = refuse
    sizes = [1, 200_000, 60_000, 60_000, 2]
    handles = [await work.aenqueue(size) for size in sizes]
    async with running(app, concurrency=5) as worker:
        await done(app, 4)
        await aeventually(lambda: is_dead(handles[1]))
        await aeventually(lambda: read_row(worker._life.row()).ended == {"done": 4, "died": 1})
    assert [len(await handle.aresult(5)) for handle in handles if handle is not handles[1]] == [1, 60_000, 60_000, 2]
    with pytest.raises(JobFailed, match="takes at most 100,000 a request"):
        await handles[1].aresult(5)
    assert [line for line in caplog.messages if "failed, dead: PayloadTooLarge" in line]
    assert (await stats(app)).totals == {"enqueued": 5, "done": 4, "dead": 1}
    assert await counted(app) == {"done": 4, "died": 1}


async def counted(app: Spool) -> dict[str, int]:
    """Return by outcome how many attempts ended, as the metrics say."""
    blobs = (await app.broker.acall(Watch("default"))).blobs
    outcomes = [Counter(report.outcomes) for blob in blobs for report in unpack(blob.body)]
    return dict(sum(outcomes, Counter[str]()))


async def test_a_result_that_cannot_be_encrypted_is_counted_as_the_failure_that_it_is(wire, caplog):
    class Away:
        """A key service that knows of arguments alone."""

        def encrypt(self, data: bytes, context: bytes) -> bytes:
            if msgspec.msgpack.decode(context)[0] == "result" and b"bad" in data:
                raise OSError(data)
            return data[::-1]

        def decrypt(self, data: bytes, context: bytes) -> bytes:  # noqa: ARG002
            return data[::-1]

    app = Spool(wire, encryption=Away())

    @app.task(retries=3)
    async def work(word: str) -> str:
        return word

    good, bad = [await work.aenqueue("good") for _ in range(3)], await work.aenqueue("bad")
    async with running(app, concurrency=5) as worker:
        await done(app, 3)
        await aeventually(lambda: is_dead(bad))
        await aeventually(lambda: read_row(worker._life.row()).ended == {"done": 3, "died": 1})
    assert [await handle.aresult(5) for handle in good] == ["good"] * 3
    with pytest.raises(JobFailed, match=r"ProtectionError: the result cannot be encrypted: OSError$"):
        await bad.aresult(5)
    assert [line for line in caplog.messages if "failed, dead: ProtectionError: the result cannot" in line]
    assert (await stats(app)).totals == {"enqueued": 4, "done": 3, "dead": 1}
    assert await counted(app) == {"done": 3, "died": 1}


async def test_a_queue_that_does_not_answer_does_not_hold_up_another(app, wire):
    @app.task
    async def work() -> int:
        return 1

    gate = asyncio.Event()
    inner = wire.acall

    async def hang(verb: Any) -> Any:
        if isinstance(verb, Claim) and verb.queue == "b":
            await gate.wait()
        return await inner(verb)

    wire.acall = hang
    async with running(app, "a", "b"):
        for _ in range(3):
            assert await (await work.options(queue="a").aenqueue()).aresult(5) == 1
        gate.set()
        assert await (await work.options(queue="b").aenqueue()).aresult(5) == 1


async def test_running_jobs_go_on_through_an_outage_and_are_settled_after_it(app, wire):
    gate = asyncio.Event()

    @app.task
    async def wait() -> str:
        await gate.wait()
        return "through"

    async with running(app):
        handle = await wait.aenqueue()
        await aeventually(lambda: gate._waiters)

        def refuse(verb: Any) -> None:
            raise BrokerUnavailable("down") from ConnectionRefusedError()

        wire.before = refuse
        gate.set()
        await aeventually(lambda: len(wire.all(Settle)) >= 3)
        wire.before = lambda _: None
        assert await handle.aresult(10) == "through"
    assert (await stats(app)).totals == {"enqueued": 1, "done": 1}


async def test_a_slot_freed_while_a_claim_was_under_way_is_claimed_for_at_once(app, wire):
    app.task(process=True)(nothing)
    async with running(app, concurrency=2, pool_size=1, target="tests.shop:app") as worker:
        await aeventually(lambda: [MAIN, PROCESS] in wire.listened)
        slots, freed = worker._life._slots, []

        def free(verb: Any, reply: Any) -> Any:
            if isinstance(verb, Claim) and not verb.slots[PROCESS] and not freed:
                freed.append(len(wire.sent))
                slots.give(0, 1)
            return reply

        wire.after = free
        slots.take(0, 1)  # as a job in the pool does
        worker._life._claims.nudge()
        await aeventually(lambda: freed and [verb for verb in wire.sent[freed[0] :] if isinstance(verb, Claim)])
        (following, *_) = [verb for verb in wire.sent[freed[0] :] if isinstance(verb, Claim)]
        assert (following.wait, following.slots[PROCESS]) == (0.0, 1)


@pytest.mark.parametrize("queues", [["default"], ["default", "other"]], ids=["claim", "await_work"])
async def test_a_nudge_while_the_store_is_down_does_not_end_the_claims(app, wire, monkeypatch, queues):
    @app.task
    async def one() -> int:
        return 1

    async with running(app, *queues) as worker:
        failed = asyncio.Event()

        def fail_once() -> None:
            if not failed.is_set():
                failed.set()
                asyncio.get_running_loop().call_soon(worker._life.wake)  # comes in the pause after this
                raise BrokerUnavailable("down")

        wait = wire.await_work

        async def fail_wait(*arguments: Any) -> None:
            fail_once()
            await wait(*arguments)

        monkeypatch.setattr(wire, "await_work", fail_wait)
        wire.before = lambda verb: fail_once() if isinstance(verb, Claim) and verb.wait else None
        await one.aenqueue()
        await asyncio.wait_for(failed.wait(), 5)
        assert await (await one.aenqueue()).aresult(5) == 1


async def test_a_store_that_refuses_at_the_start_ends_the_worker(app, wire):
    def refuse(_: Any) -> None:
        raise BrokerRefused("wrong password")

    wire.before = refuse
    with pytest.raises(BrokerRefused, match="wrong password"):
        await Worker(app).run()


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
async def test_a_worker_whose_beats_cannot_go_on_ends(app, wire, error):
    def fail(verb: Any) -> None:
        if isinstance(verb, Beat) and len(wire.all(Beat)) > 1:
            raise error("beyond repair")

    wire.before = fail
    with pytest.raises(error, match="beyond repair"):
        await Worker(app, lease=0.5).run()


async def test_a_store_that_is_not_there_yet_is_waited_for_and_stopping_does_not(app, wire):
    def refuse(_: Any) -> None:
        raise BrokerUnavailable("not yet")

    wire.before = refuse
    worker = Worker(app)
    task = asyncio.create_task(worker.run())
    await aeventually(lambda: len(wire.all(Beat)) >= 2)
    worker.stop()
    await asyncio.wait_for(task, 1)


@pytest.mark.parametrize("silent", [True, False])
async def test_only_a_silent_store_makes_a_worker_stop_its_jobs(app, wire, silent):
    gate = asyncio.Event()
    ends = []

    @app.task
    async def wait() -> None:
        try:
            await gate.wait()
        finally:
            ends.append(current_job().attempt)

    async with running(app, lease=0.5):
        handle = await wait.aenqueue()
        await aeventually(lambda: gate._waiters)
        cause = TimeoutError() if silent else ConnectionRefusedError()
        began = time.monotonic()

        def cut(_: Any) -> None:
            raise BrokerUnavailable("cut") from cause

        wire.before = cut
        if silent:
            await aeventually(lambda: ends)
            assert 0.25 < time.monotonic() - began < 0.5  # the last beat was a tenth of the lease before
        else:
            beats = len(wire.all(Beat))
            await aeventually(lambda: len(wire.all(Beat)) > beats + 12)
            assert ends == []
        wire.before = lambda _: None
        gate.set()
        await handle.aresult(5)
    job = await handle.ajob()
    assert job.state is State.DONE
    assert (job.failures, job.crashes) == (0, 0)
    assert len(ends) == 1 + silent


async def test_nothing_is_claimed_that_would_be_stopped_at_once(app, wire, monkeypatch):
    @app.task
    async def one() -> int:
        return current_job().attempt

    async with running(app, lease=2.0):
        with monkeypatch.context() as patch:
            patch.setattr(Line, "silence", lambda _: 1.7)
            handle = await one.aenqueue()
            claims, beats = len(wire.all(Claim)), len(wire.all(Beat))
            await aeventually(lambda: len(wire.all(Beat)) > beats + 3)
            assert len(wire.all(Claim)) <= claims + 1  # one may have been on its way
            assert (await handle.ajob()).state is State.READY
        assert await handle.aresult(5) == 1
    assert (await stats(app)).totals == {"enqueued": 1, "done": 1}


@pytest.mark.parametrize("by_call", [True, False])
async def test_a_job_may_go_on_through_silence(app, wire, by_call):
    gate = asyncio.Event()
    ends = []

    @app.task(on_disconnect="stop" if by_call else "continue")
    async def wait() -> int:
        try:
            await gate.wait()
        finally:
            ends.append(current_job().id)
        return current_job().attempt

    def cut(_: Any) -> None:
        raise BrokerUnavailable("cut") from TimeoutError()

    async with running(app, lease=0.5):
        goes_on = await wait.options(on_disconnect="continue" if by_call else None).aenqueue()
        stops = await wait.options(on_disconnect="stop").aenqueue()
        await aeventually(lambda: len(gate._waiters) == 2)
        wire.before = cut
        await aeventually(lambda: ends)
        wire.before = lambda _: None
        await aeventually(lambda: len(gate._waiters) == 2)  # what was stopped runs again
        gate.set()
        assert (await goes_on.aresult(5), await stops.aresult(5) > 1) == (1, True)
    assert sorted(ends) == sorted([goes_on.id, stops.id, stops.id])
    assert (await stats(app)).totals["done"] == 2


def test_silence_is_told_from_an_answer():
    def wrapped(cause: BaseException) -> BaseException:
        error = BrokerUnavailable("x")
        error.__cause__ = OSError("a library's own")
        error.__cause__.__context__ = cause
        return error

    assert is_silence(wrapped(TimeoutError()))
    assert is_silence(wrapped(OSError(113, "no route")))
    assert not is_silence(wrapped(ConnectionRefusedError()))
    assert not is_silence(wrapped(ConnectionResetError()))
    assert is_silence(BrokerUnavailable("a server in between is gone", silent=True))


# Leases


async def test_a_blocked_event_loop_keeps_its_lease(app, wire):
    @app.task
    async def block() -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - this is the point

    async with running(app, lease=0.5):
        handle = await block.aenqueue()
        await handle.aresult(10)
    job = await handle.ajob()
    assert (job.attempts, job.losses) == (1, 0)
    assert (await stats(app)).totals == {"enqueued": 1, "done": 1}


async def test_a_worker_that_lost_its_lease_stops_its_jobs_and_comes_back(app, wire):
    lives = []
    gate = asyncio.Event()
    ends = []

    @app.task
    async def wait() -> None:
        try:
            await gate.wait()
        finally:
            ends.append(current_job().attempt)

    ready = asyncio.Event()

    def born(incarnation: str) -> None:
        lives.append(incarnation)
        ready.set()

    worker = Worker(app, on_life=born, lease=1.0)
    task = asyncio.create_task(worker.run())
    await ready.wait()
    handle = await wait.aenqueue()
    await aeventually(lambda: gate._waiters)
    await app.broker.acall(Retire("default", lives[0], "lost"))
    await aeventually(lambda: len(lives) == 2)
    assert ends == [1]
    gate.set()
    await handle.aresult(5)
    worker.stop()
    await asyncio.wait_for(task, 5)
    assert ends == [1, 2]
    assert len(set(lives)) == 2
    assert {settle.incarnation for settle in wire.all(Settle)} == {lives[1]}


@asynccontextmanager
async def surviving(app: Spool, wire: Wire, **settings: Any) -> AsyncIterator[tuple[Any, ...]]:
    """A worker in its second life, with a job of its first that runs on, and runs again: each until its gate opens."""
    gates: list[asyncio.Event] = []
    lives: list[str] = []
    ends: list[str] = []

    @app.task(on_disconnect="continue")
    async def wait() -> str:
        how = "cut"
        try:
            gates.append(asyncio.Event())
            await gates[-1].wait()
            how = "through"
        finally:
            ends.append(how)
        return how

    worker = Worker(app, on_life=lives.append, lease=1.0, concurrency=2, **settings)
    worker.task = asyncio.create_task(worker.run())
    await aeventually(lambda: lives)
    handle = await wait.aenqueue()
    await aeventually(lambda: len(gates) == 1)
    await app.broker.acall(Retire("default", lives[0], "lost"))
    await aeventually(lambda: len(gates) == 2)
    assert (len(lives), ends) == (2, [])
    yield worker, handle, gates, ends
    worker.stop()
    await asyncio.wait_for(worker.task, 10)
    assert {settle.incarnation for settle in wire.all(Settle) if settle.settlements} <= {lives[1]}


async def test_a_job_that_outlives_the_lease_holds_its_slot_and_settles_nothing(app, wire):
    @app.task
    async def quick() -> int:
        return 1

    async with surviving(app, wire) as (worker, handle, gates, ends):
        assert worker._life.running == 2  # as the worker's row shows
        waiting = await quick.aenqueue()
        claims, beats = len(wire.all(Claim)), len(wire.all(Beat))
        await aeventually(lambda: len(wire.all(Beat)) > beats + 3)
        assert len(wire.all(Claim)) == claims  # both slots are taken
        gates[0].set()
        assert await waiting.aresult(5) == 1
        assert (worker._life.running, ends) == (1, ["through"])
        assert await handle.astatus() is State.RUNNING
        gates[1].set()
        assert await handle.aresult(5) == "through"
    assert (await stats(app)).totals["done"] == 2


async def test_a_job_that_outlived_the_lease_is_waited_for_when_the_worker_stops(app, wire):
    async with surviving(app, wire) as (worker, handle, gates, ends):
        worker.stop()
        gates[1].set()
        assert await handle.aresult(5) == "through"
        assert not worker.task.done()
        gates[0].set()
        await asyncio.wait_for(worker.task, 5)
        assert ends == ["through"] * 2


async def test_a_job_that_outlived_the_lease_is_stopped_when_the_grace_is_over(app, wire):
    async with surviving(app, wire, grace=0.0) as (worker, handle, _, ends):
        worker.stop()
        await asyncio.wait_for(worker.task, 5)
        assert ends == ["cut"] * 2
        assert await handle.astatus() is State.READY


async def test_a_lease_that_ran_out_unnoticed_is_renewed(app, wire):
    @app.task
    async def work() -> int:
        return 1

    left = 2

    def lose(verb: Any) -> None:
        nonlocal left
        if isinstance(verb, Claim) and left:
            left -= 1
            raise LeaseLost("it ran out")

    async with running(app) as worker:
        wire.before = lose
        before = worker._life.incarnation
        assert await (await work.aenqueue()).aresult(5) == 1
        assert worker._life.incarnation == before
    assert left == 0


async def test_jobs_whose_claim_was_answered_a_lease_later_do_not_begin(app, wire, monkeypatch):
    starts = []
    skipped = 0.0
    given = []

    @app.task
    async def work() -> None:
        starts.append(current_job().id)

    def sleep_once(verb: Any, reply: Any) -> Any:
        nonlocal skipped
        if isinstance(verb, Claim) and reply.jobs:
            given.append([id for id, _ in reply.jobs])
            skipped = 100.0  # as when the machine slept while the answer was on its way
            assert starts == []
        return reply

    for module in ("heartbeat", "slots"):
        monkeypatch.setattr(f"spool.worker.{module}.lease_time", lambda: lease_time() + skipped)
    wire.after = sleep_once
    async with running(app, lease=1.0):
        handle = await work.aenqueue()
        await handle.aresult(10)  # the store was told that it is not held, and gave it again
    assert given == [[handle.id]] * 2
    assert starts == [handle.id]


async def test_what_an_answer_to_a_beat_does_to_the_lease():
    line = Line("default", Slots(1, 0))
    now = lease_time()

    def left() -> float:
        return (line.lease.until - time.monotonic_ns()) / 1e9

    def hear(at: float, orders: Orders | None) -> None:
        line.hear(Heard("default", at, orders), 10.0)

    hear(now, None)
    assert line.lease.until == 0  # a store that refuses has never given us one
    hear(now, Orders())
    assert 9 < left() <= 10
    hear(now + 5, None)
    assert 14 < left() <= 15
    hear(now + 16, None)  # too late: it may have given our jobs away before it refused
    assert 14 < left() <= 15
    hear(now + 20, Orders())
    assert 29 < left() <= 30
    hear(now + 21, Orders(lost=True))
    assert line.lease.until == 0
    hear(now + 22, None)
    assert line.lease.until == 0


async def test_cancelling_a_running_job_reaches_it_with_the_next_beat(app):
    gate = asyncio.Event()

    @app.task
    async def wait() -> None:
        await gate.wait()

    @app.task
    def wait_in_thread() -> None:
        while not current_job().cancelled:
            time.sleep(0.001)

    async with running(app, lease=2.0):
        for task in (wait, wait_in_thread):
            handle = await task.aenqueue()
            await aeventually(partial(is_running, handle))
            began = time.monotonic()
            assert await handle.acancel("enough")
            assert (await app.broker.aended("default", handle.id, 5)).state is State.CANCELLED
            assert time.monotonic() - began < 1


async def test_jobs_that_worker_and_store_disagree_about_are_settled_by_id(app, wire):
    gate = asyncio.Event()
    ends = []

    @app.task
    async def wait(name: str) -> None:
        try:
            await gate.wait()
        finally:
            ends.append(name)

    async with running(app, lease=0.5) as worker:
        ours = await wait.aenqueue("ours")
        await aeventually(lambda: len(gate._waiters) == 1)
        (line,) = worker._life.lines
        # One that only the store knows of: the worker is made to forget it.
        await wait.aenqueue("forgotten")
        await aeventually(lambda: len(gate._waiters) == 2)
        forgotten = next(run for run in line.held if run.id != ours.id)
        line.held.discard(forgotten)
        await aeventually(lambda: any(verb.beats[0].held_ids is not None for verb in wire.all(Beat)))
        await aeventually(lambda: len(gate._waiters) == 3)  # handed back, and claimed anew
        gate.set()
        await ours.aresult(5)
    assert sorted(ends) == ["forgotten", "forgotten", "ours"]


async def test_a_job_that_is_no_longer_ours_is_stopped(app, wire):
    gate = asyncio.Event()
    stopped = asyncio.Event()

    @app.task
    async def wait() -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            stopped.set()
            raise

    async with running(app, lease=0.5):
        handle = await wait.aenqueue()
        await aeventually(lambda: gate._waiters)

        def disown(verb: Any, reply: Any) -> Any:
            if isinstance(verb, Beat):
                (beat,) = verb.beats
                return Beaten(reply.now, [Orders(held=0, unknown=list(beat.held_ids or ()))])
            return reply

        wire.after = disown
        await asyncio.wait_for(stopped.wait(), 5)
        wire.after = lambda _verb, reply: reply
        gate.set()
        await handle.aresult(5)  # the store still counted it as ours, so it came back by the other rule
    assert (await handle.ajob()).failures == 0


@pytest.mark.parametrize(("seconds", "ms"), [(None, 0), (0.05, 50), (0.0001, 1)])
async def test_every_claim_says_when_parked_jobs_are_to_die(app, wire, seconds, ms):
    async with running(app, unroutable_after=seconds):
        await aeventually(lambda: wire.all(Claim))
    assert {each.unroutable_after for each in wire.all(Claim)} == {ms}


async def test_a_job_that_no_worker_knows_dies_when_it_is_wished(app):
    await app.broker.acall(Enqueue("default", [job("a", "unknown")]))
    async with running(app, unroutable_after=0.05):
        found = await app.broker.aended("default", "a", 10)
    assert (found.state, view(found).error.split(":")[0]) == (State.DEAD, "Unroutable")


async def test_refused_settlements_are_told(app, wire, caplog):
    @app.task
    async def work() -> None:
        await app.broker.acall(Retire("default", incarnation[0], "lost"))

    incarnation = []
    worker = Worker(app, on_life=incarnation.append)
    task = asyncio.create_task(worker.run())
    await aeventually(lambda: incarnation)
    handle = await work.aenqueue()
    await aeventually(lambda: "no longer ours" in caplog.text)
    worker.stop()
    await asyncio.wait_for(task, 5)
    assert handle.id in caplog.text


# Stopping


async def test_stopping_lets_running_jobs_end(app):
    gate = asyncio.Event()

    @app.task
    async def wait() -> str:
        await gate.wait()
        return "through"

    async with running(app) as worker:
        handle = await wait.aenqueue()
        await aeventually(lambda: gate._waiters)
        worker.stop()
        await asyncio.sleep(0)
        late = await wait.aenqueue()
        gate.set()
        await asyncio.wait_for(worker.task, 5)
        assert await handle.aresult(1) == "through"
        assert await late.astatus() is State.READY


@pytest.mark.parametrize("hurry", [False, True])
async def test_what_does_not_end_in_time_is_handed_back_uncounted(app, wire, hurry):
    waiting = threading.Semaphore(0)

    @app.task(retries=0)
    async def wait() -> None:
        waiting.release()
        await asyncio.sleep(60)

    @app.task(retries=0)
    def wait_in_thread() -> None:
        waiting.release()
        while True:
            time.sleep(0.001)

    async with running(app, grace=60 if hurry else 0.05) as worker:
        handles = [await wait.aenqueue(), await wait_in_thread.aenqueue()]
        for _ in handles:
            await asyncio.to_thread(waiting.acquire)
        worker.stop()
        if hurry:
            worker.stop()
        await asyncio.wait_for(worker.task, 5)
        for handle in handles:
            job = await handle.ajob()
            assert (job.state, job.attempts, job.failures, job.losses) == (State.READY, 1, 0, 0)
            assert job.history[0].outcome == "stopped"
    assert wire.all(Retire)[-1].reason == "stopped"


async def test_a_job_that_cannot_be_stopped_is_left_to_the_store(app, monkeypatch):
    monkeypatch.setattr("spool.worker.life.STUCK", 0.1)
    free = threading.Event()

    @app.task
    def deaf() -> None:
        free.wait(30)

    async with running(app, grace=0) as worker:
        handle = await deaf.aenqueue()
        await aeventually(partial(is_running, handle))
        worker.stop()
        await asyncio.wait_for(worker.task, 5)
        job = await handle.ajob()
        assert (job.state, job.failures, job.history[0].outcome) == (State.READY, 0, "stopped")
    free.set()


async def test_jobs_claimed_while_stopping_go_back_unstarted(app, wire):
    started = []

    @app.task
    async def work() -> None:
        started.append(1)

    async with running(app) as worker:

        def stop_now(verb: Any, reply: Any) -> Any:
            if isinstance(verb, Claim) and reply.jobs:
                worker._stop()
            return reply

        wire.after = stop_now
        handle = await work.aenqueue()
        await asyncio.wait_for(worker.task, 5)
    job = await handle.ajob()
    assert (job.state, job.attempts, started) == (State.READY, 0, [])


async def test_stopping_without_a_store_does_not_take_forever(app, wire):
    async with running(app, lease=10.0) as worker:

        def cut(_: Any) -> None:
            raise BrokerUnavailable("cut")

        wire.before = cut
        worker.stop()
        worker.stop()
        began = time.monotonic()
        await asyncio.wait_for(worker.task, 5)
        assert time.monotonic() - began < 3


async def test_an_app_works_in_its_own_process(app):
    @app.task(queue="mail")
    async def double(number: int) -> int:
        return number * 2

    @app.task(queue="mail")
    async def wait() -> None:
        await asyncio.sleep(60)

    stop = asyncio.Event()
    working = asyncio.create_task(app.run_worker(concurrency=2, stop=stop))
    assert await (await double.aenqueue(21)).aresult(timeout=10) == 42
    stop.set()
    await asyncio.wait_for(working, 10)

    working = asyncio.create_task(app.run_worker(["mail"], grace=60))
    handle = await wait.aenqueue()
    await aeventually(lambda: is_running(handle))
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, 10)
    assert await handle.astatus() is State.READY
    assert (await stats(app, "mail")).workers == 0


async def test_what_keeps_a_worker_of_an_app_from_beginning_is_raised(app):
    with pytest.raises(ConfigError, match="lease"):
        await app.run_worker(lease=0.1)


async def test_cancelling_the_worker_stops_it_at_once_and_is_not_swallowed(app):
    @app.task
    async def wait() -> None:
        await asyncio.sleep(60)

    worker = Worker(app)
    task = asyncio.create_task(worker.run())
    handle = await wait.aenqueue()
    await aeventually(partial(is_running, handle))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    job = await handle.ajob()
    assert (job.state, job.failures) == (State.READY, 0)


async def test_nothing_of_a_worker_is_left_when_it_has_ended(app):
    @app.task
    async def work() -> None: ...

    before = {thread.name for thread in threading.enumerate()}
    async with running(app):
        await (await work.aenqueue()).aresult(5)
    await aeventually(lambda: {thread.name for thread in threading.enumerate() if "heart" in thread.name} <= before)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    found = await app.broker.acall(Find("default", State.RUNNING))
    assert found.jobs == []
    assert (await stats(app)).workers == 0


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"pool_size": -1},
        {"lease": 0.1},
        {"lease": float("nan")},
        {"grace": -1},
        {"unroutable_after": 0},
        {"unroutable_after": float("inf")},
        {"queues": ["a b"]},
        {"queues": "ab"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError):
        Worker(Spool("sqlite://:memory:"), **settings)


async def test_a_pool_needs_to_know_the_app(app):
    @app.task(process=True)
    def work() -> None: ...

    with pytest.raises(ConfigError, match="target"):
        await Worker(app).run()


async def test_annotations_that_cannot_be_used_keep_the_worker_from_starting(app):
    @app.task
    async def work(thing: "Nowhere") -> None: ...  # noqa: F821

    with pytest.raises(ConfigError, match="work"):
        await Worker(app).run()


async def test_success_is_logged_when_asked_for(app, caplog):
    @app.task
    async def work() -> None: ...

    async with running(app):
        quiet = await work.aenqueue()
        await quiet.aresult(5)
        caplog.set_level(logging.DEBUG, "spool")
        told = await work.aenqueue()
        await told.aresult(5)
    assert quiet.id not in caplog.text
    assert f"{told} work: Done" in caplog.text
