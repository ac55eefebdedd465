"""Many callers at once, and the two ways to call."""

import asyncio
import contextlib
import gc
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spool.broker import (
    Act,
    Beat,
    Cancel,
    Claim,
    Delete,
    Done,
    Enqueue,
    Find,
    Get,
    Heartbeat,
    Load,
    Pause,
    Replay,
    Resume,
    Retire,
    Settle,
    Stats,
    Store,
    Verb,
    Watch,
)
from spool.errors import BrokerUnavailable, LeaseLost, VersionConflict
from spool.job import State
from tests.contract.driver import LEASE, Driver, ending, job, jobs, tally
from tests.eventually import eventually


def drain(broker, clock, incarnation, start):
    """Claim and settle until nothing is left; returns the ids."""
    mine = Driver(broker, clock)
    mine.beat(incarnation)
    start.wait(10)
    taken = []
    while True:
        claimed = mine.take(incarnation, 13)
        if not claimed:
            return taken
        taken += claimed
        assert mine.settle(incarnation, *(mine.done(id) for id in claimed)).accepted == len(claimed)


def test_claimers_in_many_threads_never_get_the_same_job(q, broker, clock):
    q.enqueue(*jobs(1500))
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(drain, broker, clock, f"w{number}", start) for number in range(8)]
        taken = Counter(id for each in workers for id in each.result(50))
    assert taken == Counter(each.id for each in jobs(1500))
    assert q.totals() == {"enqueued": 1500, "done": 1500}


def test_enqueuers_in_many_threads_lose_nothing(q, broker, clock):
    def enqueue(number):
        mine = Driver(broker, clock)
        for batch in range(20):
            mine.enqueue(*jobs(10, f"t{number}-{batch}-"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enqueue, range(8)))
    assert sum(q.stats().ready) == q.totals()["enqueued"] == 1600
    ids = q.ids(State.READY, 1000)
    assert len(set(ids)) == 1600
    for number in range(8):
        mine = [id for id in ids if id.startswith(f"t{number}-")]
        assert mine == [each.id for batch in range(20) for each in jobs(10, f"t{number}-{batch}-")]


def test_one_id_enqueued_by_many_threads_is_one_job(q, broker, clock):
    start = threading.Barrier(8)

    def enqueue(_):
        start.wait(10)
        return Driver(broker, clock).enqueue(job("a", fingerprint="f")).existing

    with ThreadPoolExecutor(8) as pool:
        existing = list(pool.map(enqueue, range(8)))
    assert sorted(existing) == [[]] + [["a"]] * 7
    assert q.totals() == {"enqueued": 1}


def test_one_document_written_by_many_threads_counts_every_write(broker):
    def write(_):
        done = 0
        while done < 10:
            version = next((each.version for each in broker.call(Load("doc")).documents), 0)
            with contextlib.suppress(VersionConflict):
                broker.call(Store("doc", "k", b"", if_version=version))
                done += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert broker.call(Load("doc")).documents[0].version == 40


def test_a_retired_worker_and_its_thread_agree_on_who_settled(q, broker, clock):
    """Whatever the order in which they come, each job is settled or handed back, never both."""
    q.worker("w", *jobs(200))
    verbs = [q.settle_verb("w", q.done(each.id)) for each in jobs(200)]
    with ThreadPoolExecutor(2) as pool:
        settling = pool.submit(lambda: sum(broker.call(verb).accepted for verb in verbs))
        retiring = pool.submit(lambda: q.retire("w").handed_back)
        assert settling.result(30) + retiring.result(30) == 200
    assert len(q.ids(State.DONE)) + len(q.ids(State.READY)) == 200


async def test_claimers_in_one_loop_never_get_the_same_job(q, broker):
    async def work(incarnation):
        await broker.acall(Beat("q", [Heartbeat(incarnation, LEASE, ("t",))]))
        taken, seq = [], 0
        while True:
            seq += 1
            claimed = await broker.acall(Claim("q", incarnation, seq, (7, 0)))
            if not claimed.jobs:
                return taken
            taken += [id for id, _ in claimed.jobs]
            settlements = [Done(id, seq, ending()) for id, _ in claimed.jobs]
            settled = await broker.acall(Settle("q", incarnation, seq, settlements))
            assert settled.accepted == len(settlements)

    async with contextlib.aclosing(broker):
        q.enqueue(*jobs(500))
        taken = await asyncio.gather(*(work(f"w{number}") for number in range(6)))
        assert Counter(id for each in taken for id in each) == Counter(each.id for each in jobs(500))
        assert q.totals()["done"] == 500


def script(queue: str) -> list[Verb[Any]]:
    """Verbs of every kind that tell one story; each reply depends on what went before."""
    new = [job("a"), job("b", fingerprint="f"), job("c", delay=5000), job("d", lane=1, priority=0), job("u", "unknown")]
    settlements = [Done("a", 1, ending()), Done("never", 1, ending())]
    return [
        Enqueue(queue, new),
        Enqueue(queue, [job("b", fingerprint="g"), job("b", fingerprint="f")]),
        Claim(queue, "w", 1),
        Beat(queue, [Heartbeat("w", LEASE, ("t",)), Heartbeat("v", LEASE)]),
        Claim(queue, "w", 1, (5, 5)),
        Claim(queue, "w", 1, (5, 5)),
        *(Find(queue, state) for state in State),
        *(Get(queue, id) for id in ("a", "c", "never")),
        Settle(queue, "w", 1, settlements, b"metrics"),
        Act(queue, Cancel("enough"), ["b", "c"]),
        Beat(queue, [Heartbeat("w", LEASE)]),
        Watch(queue),
        Retire(queue, "w", "crashed", "signal 9"),
        Act(queue, Pause()),
        Stats(queue),
        Act(queue, Resume()),
        Act(queue, Delete(), ["a", "c"]),
        Act(queue, Replay(), ["a"]),
        Store(f"doc-{queue}", "k", b"1"),
        Store(f"doc-{queue}", "k", b"2", if_version=5),
        Load(f"doc-{queue}"),
        Stats(queue),
    ]


def outcome(reply: Any) -> Any:
    """Return what of a reply or error does not depend on the queue and the moment."""
    if isinstance(reply, Exception):
        return type(reply)
    fields = msgspec.to_builtins(reply, builtin_types=(bytes,))
    if isinstance(fields, dict) and "blobs" in fields:
        fields["blobs"] = [blob["body"] for blob in fields["blobs"]]
    return repr(fields).replace("'sync'", "").replace("'async'", "")


async def test_call_and_acall_are_twins(broker):
    async def acall(verb):
        try:
            return await broker.acall(verb)
        except (LeaseLost, VersionConflict) as error:
            return error

    def call(verb):
        try:
            return broker.call(verb)
        except (LeaseLost, VersionConflict) as error:
            return error

    async with contextlib.aclosing(broker):
        for verb, twin in zip(script("sync"), script("async"), strict=True):
            assert outcome(call(verb)) == outcome(await acall(twin))
        await broker.acall(Store("doc-async", "k", None))


# What a loop that ended without `aclose` leaves to the garbage collector says so, and pytest would keep it to tell us.
in_loops_of_its_own = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def collected(broker):
    """Close the broker, and let the collector do its work while its words are not heard."""
    yield
    broker.close()
    gc.collect()


@in_loops_of_its_own
def test_a_broker_works_in_several_loops_one_after_the_other(q, broker, collected):
    async def use(id):
        await broker.acall(Enqueue("q", [job(id)]))
        await broker.await_work(["q"], 0.01)
        return await broker.aended("q", id, 0.01)

    for id in "abc":
        assert asyncio.run(use(id)) is None
    assert q.ids(State.READY) == ["a", "b", "c"]


@in_loops_of_its_own
def test_a_broker_works_in_several_loops_at_once(q, broker, collected):
    async def use(id):
        for number in range(20):
            await broker.acall(Enqueue("q", [job(f"{id}{number}")]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda id: asyncio.run(use(id)), "abcd"))
    assert len(q.ids(State.READY)) == 80


async def test_a_cancelled_acall_leaves_a_broker_that_works(q, broker):
    async with contextlib.aclosing(broker):
        q.beat("w")
        for number in range(30):
            calling = asyncio.create_task(broker.acall(Enqueue("q", [job(f"j{number}", fingerprint="f")])))
            await asyncio.sleep(0)
            if number % 3:
                await asyncio.sleep(0.0003 * (number % 3))
            calling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await calling
            assert (await broker.acall(Get("q", "never"))) is None
            assert (await broker.acall(Stats("q"))).workers == 1
        assert len(q.ids(State.READY)) == q.totals().get("enqueued", 0)


def test_a_closed_broker_is_unavailable(q, broker):
    q.enqueue("a")
    broker.close()
    broker.close()
    with pytest.raises(BrokerUnavailable):
        broker.call(Stats("q"))
    with pytest.raises(BrokerUnavailable):
        broker.ended("q", "a", 1)


async def test_an_aclosed_broker_is_unavailable(broker):
    await broker.acall(Enqueue("q", [job("a")]))
    await broker.aclose()
    await broker.aclose()
    with pytest.raises(BrokerUnavailable):
        await broker.acall(Stats("q"))
    with pytest.raises(BrokerUnavailable):
        await broker.aended("q", "a", 1)
    with pytest.raises(BrokerUnavailable):
        await broker.await_work(["q"], 1)
    with pytest.raises(BrokerUnavailable):
        broker.call(Stats("q"))


def test_a_broker_has_a_url(broker):
    assert isinstance(broker.url, str)
    assert broker.url


def test_texts_with_a_meaning_elsewhere_are_only_texts(q):
    """Incarnations and task names may be anything that their owners are."""
    q.beat("host:1.2-3_x", tasks=("t", "a:b.c"))
    q.enqueue(job("a", "a:b.c"), job("b:c", "t"), job("9.0", "t"))
    assert q.take("host:1.2-3_x") == ["a", "b:c", "9.0"]
    q.settle("host:1.2-3_x", q.done("b:c"), q.died("9.0", text=tally()))
    assert (q.state("b:c"), q.state("9.0")) == (State.DONE, State.DEAD)


@in_loops_of_its_own
def test_loops_that_ended_leave_no_connections_behind(broker, collected):
    async def use():
        await broker.acall(Stats("q"))
        await broker.aended("q", "never", 0.01)

    def open_files():
        gc.collect()
        return len(list(Path("/dev/fd").iterdir()))

    for _ in range(3):
        asyncio.run(use())
    before = open_files()
    for _ in range(15):
        asyncio.run(use())
    eventually(lambda: open_files() <= before + 5)  # a server in this process closes its ends a moment later
