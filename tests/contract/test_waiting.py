"""`ended`, `aended` and `await_work`: waiting for the end of a job, and for work."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spool.broker import Cancel, Claim, Delete, Pause, Replay, Resume
from spool.errors import LeaseLost
from spool.job import LANES, MAIN, PROCESS, State
from tests.contract.driver import ending, job, jobs

PROMPT = 1.5
"""Seconds; well below what a broker takes to ask again by itself."""


@pytest.fixture(autouse=True)
def running(q):
    q.worker("w", "a", "b", "c")


def outcomes(q):
    q.settle("w", q.done("a"), q.cancelled("b"), q.died("c"))


@pytest.mark.parametrize(("id", "state"), [("a", State.DONE), ("b", State.CANCELLED), ("c", State.DEAD)])
def test_a_job_that_has_ended_is_returned_at_once(q, broker, id, state):
    outcomes(q)
    found = broker.ended("q", id, 10)
    assert (found, found.state) == (q.get(id), state)
    assert broker.ended("q", id) == found


def test_a_job_that_is_not_known_is_none_at_once(broker):
    begin = time.monotonic()
    assert broker.ended("q", "never") is None
    assert broker.ended("q", "never", 10) is None
    assert time.monotonic() - begin < PROMPT


def test_none_after_the_timeout(q, broker):
    begin = time.monotonic()
    assert broker.ended("q", "a", 0.05) is None
    assert time.monotonic() - begin >= 0.05
    assert q.state("a") == State.RUNNING


def test_a_timeout_of_zero_looks_once(q, broker):
    assert broker.ended("q", "a", 0) is None
    outcomes(q)
    assert broker.ended("q", "a", 0).state == State.DONE


def in_thread(broker, *ids):
    """Wait for each of these jobs in a thread of its own; returns a function that collects what came, in time."""
    pool = ThreadPoolExecutor(len(ids))
    waits = [pool.submit(broker.ended, "q", id, 10) for id in ids]
    pool.shutdown(wait=False)
    # Let them register, so that it is the notice that ends the wait.
    time.sleep(0.02)

    def collect():
        begin = time.monotonic()
        found = [each.result(10) for each in waits]
        assert time.monotonic() - begin < PROMPT
        return found

    return collect


def test_a_waiter_is_told_of_each_outcome(q, broker):
    collect = in_thread(broker, "a", "b", "c")
    outcomes(q)
    assert collect() == [q.get("a"), q.get("b"), q.get("c")]


async def test_an_ending_of_a_state_that_is_none_is_the_trouble_of_its_job_alone(q, broker):
    waiting = asyncio.gather(*(broker.aended("q", id, 10) for id in "ab"))
    await asyncio.sleep(0.02)
    begin = time.monotonic()
    await asyncio.to_thread(q.settle, "w", q.done("a", body=ending("foo")), q.done("b"))
    assert [each.state for each in await waiting] == [State.DONE, State.DONE]
    assert (await broker.aended("q", "a", 10)).state == State.DONE
    assert time.monotonic() - begin < PROMPT
    await broker.aclose()


def test_a_waiter_is_told_of_a_cancelled_job(q, broker):
    q.enqueue("d", job("e", delay=5000))
    collect = in_thread(broker, "d", "e")
    q.act(Cancel(), "d", "e")
    assert [each.state for each in collect()] == [State.CANCELLED] * 2


def test_a_waiter_is_told_of_a_job_that_crashed_to_death(q, broker):
    q.worker("v", job("d", max_crashes=1))
    collect = in_thread(broker, "d")
    q.retire("v", "crashed")
    assert collect() == [q.get("d")]


def test_a_waiter_is_told_of_a_job_that_is_deleted(q, broker):
    q.enqueue("d")
    collect = in_thread(broker, "d")
    q.act(Delete(), "d")
    assert collect() == [None]


def test_a_retry_is_no_end(q, broker):
    collect = in_thread(broker, "a")
    q.settle("w", q.retried("a"))
    q.take("w")
    q.settle("w", q.done("a"))
    assert collect() == [q.get("a")]


def test_many_wait_for_one_job_and_one_for_many(q, broker):
    collect = in_thread(broker, "a", "a", "a", "b", "c", "c")
    outcomes(q)
    assert [each.id for each in collect()] == ["a", "a", "a", "b", "c", "c"]


def test_a_job_that_died_can_be_waited_for_again_after_its_replay(q, broker):
    outcomes(q)
    assert broker.ended("q", "c", 10).state == State.DEAD
    q.act(Replay(), "c")
    collect = in_thread(broker, "c")
    q.take("w")
    q.settle("w", q.done("c"))
    assert [each.state for each in collect()] == [State.DONE]


def test_a_job_of_another_queue_is_another_job(q, broker):
    outcomes(q)
    assert broker.ended("other", "a", 10) is None


async def test_many_wait_in_one_loop(q, broker):
    async with contextlib.aclosing(broker):
        ids = [each.id for each in jobs(300)]
        q.worker("w", *jobs(300))
        waits = [asyncio.create_task(broker.aended("q", id, 10)) for id in ids]
        await asyncio.sleep(0.05)
        begin = time.monotonic()
        q.settle("w", *(q.done(id) for id in ids))
        found = await asyncio.gather(*waits)
        assert time.monotonic() - begin < PROMPT
        assert [(each.id, each.state) for each in found] == [(id, State.DONE) for id in ids]


async def test_aended_of_ended_unknown_and_late_jobs(q, broker):
    async with contextlib.aclosing(broker):
        q.settle("w", q.done("a"))
        assert await broker.aended("q", "a") == q.get("a")
        assert await broker.aended("q", "never") is None
        assert await broker.aended("q", "b", 0.05) is None
        assert await broker.aended("q", "b", 0) is None


async def test_a_wait_can_be_cancelled_and_begun_again(q, broker):
    async with contextlib.aclosing(broker):
        waiting = asyncio.create_task(broker.aended("q", "a"))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        again = asyncio.create_task(broker.aended("q", "a", 10))
        await asyncio.sleep(0.02)
        q.settle("w", q.done("a"))
        assert await again == q.get("a")


async def wait_while(broker, wake, *queues, timeout=10, lanes=LANES):
    """Wait for work, do something meanwhile, and return how long the wait went on after it."""
    waiting = asyncio.create_task(broker.await_work(queues or ["q"], timeout, lanes))
    await asyncio.sleep(0.03)
    begin = time.monotonic()
    wake()
    await waiting
    return time.monotonic() - begin


@pytest.fixture
def drained(q, broker):
    """Use up the hints that the set-up left."""

    async def drain():
        outcomes(q)
        for _ in range(100):
            begin = time.monotonic()
            await broker.await_work(["q"], 0.02)
            if time.monotonic() - begin >= 0.02:
                return

    return drain


async def test_waiting_for_work_ends_after_the_timeout(q, broker, drained):
    async with contextlib.aclosing(broker):
        await drained()
        begin = time.monotonic()
        await broker.await_work(["q"], 0.1)
        assert 0.09 < time.monotonic() - begin < 5


async def test_waiting_for_work_ends_with_an_enqueue(q, broker, drained):
    async with contextlib.aclosing(broker):
        await drained()
        assert await wait_while(broker, lambda: q.enqueue("d")) < PROMPT


async def test_waiting_for_work_that_is_there_already(q, broker, drained):
    async with contextlib.aclosing(broker):
        await drained()
        q.enqueue("d")
        begin = time.monotonic()
        await broker.await_work(["q"], 10)
        assert time.monotonic() - begin < PROMPT


async def test_waiting_for_work_of_several_queues(q, broker, drained):
    async with contextlib.aclosing(broker):
        await drained()
        assert await wait_while(broker, lambda: q.enqueue("d"), "other", "q", "third") < PROMPT


def wait_in_a_loop_of_its_own(broker, lanes):
    async def wait():
        async with contextlib.aclosing(broker):
            await broker.await_work(["q"], 10, lanes)

    asyncio.run(wait())


async def test_a_worker_that_could_not_take_a_job_does_not_take_word_of_it(q, broker, drained):
    async with contextlib.aclosing(broker):
        q.beat("full", "idle")
        await drained()
        full = asyncio.create_task(asyncio.to_thread(wait_in_a_loop_of_its_own, broker, [PROCESS]))
        await asyncio.sleep(0.03)  # so that it waits for longer, and comes first
        assert await wait_while(broker, lambda: q.enqueue("d"), lanes=[MAIN]) < PROMPT
        assert not full.done()
        assert q.take("idle") == ["d"]
        q.enqueue(job("p", lane=PROCESS))
        await asyncio.wait_for(full, PROMPT)


async def test_what_comes_due_is_told_to_who_can_take_it(q, broker, drained, clock):
    async with contextlib.aclosing(broker):
        q.beat("full", "idle")
        q.enqueue(job("d", delay=100))
        await drained()
        clock.advance(100)
        assert await wait_while(broker, lambda: q.take("full", 0, 1), lanes=[MAIN]) < PROMPT


def claiming(broker, wait, *, slots=(10, 0), seq=1):
    return asyncio.create_task(broker.acall(Claim("q", "idle", seq, slots, wait=wait)))


async def test_a_claim_that_waits_takes_what_comes(q, broker, drained):
    async with contextlib.aclosing(broker):
        q.beat("idle")
        await drained()
        claim = claiming(broker, 10)
        await asyncio.sleep(0.03)
        assert not claim.done()
        begin = time.monotonic()
        q.enqueue("d", "e")
        assert [id for id, _ in (await claim).jobs] in (["d", "e"], ["d"])  # "w" lives as well: a fair share
        assert time.monotonic() - begin < PROMPT


async def test_a_claim_that_waits_in_vain_takes_nothing(q, broker, drained):
    async with contextlib.aclosing(broker):
        q.beat("idle")
        await drained()
        begin = time.monotonic()
        assert (await claiming(broker, 0.1)).jobs == []
        assert 0.09 < time.monotonic() - begin < 5


async def test_a_claim_that_waits_is_carried_out_at_its_end_without_word(q, broker, drained, clock):
    async with contextlib.aclosing(broker):
        q.beat("idle")
        q.enqueue(job("d", delay=100))
        await drained()
        clock.advance(100)
        assert [id for id, _ in (await claiming(broker, 0.05)).jobs] == ["d"]


async def test_a_claim_whose_wait_is_given_up_strands_nothing(q, broker, drained):
    async with contextlib.aclosing(broker):
        q.beat("idle")
        await drained()
        claim = claiming(broker, 10)
        await asyncio.sleep(0.03)
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
        q.enqueue("d")
        again = claiming(broker, 10)  # the same seq: it may have been carried out after all
        assert [id for id, _ in (await again).jobs] == ["d"]
        assert q.stats().running == 1


async def test_a_claim_that_waits_listens_for_its_slots_only(q, broker, drained):
    async with contextlib.aclosing(broker):
        q.beat("idle")
        await drained()
        claim = claiming(broker, 10, slots=(0, 1))
        await asyncio.sleep(0.03)
        q.enqueue("d")
        await asyncio.sleep(0.05)
        assert not claim.done()
        q.enqueue(job("p", lane=PROCESS))
        assert [id for id, _ in (await asyncio.wait_for(claim, PROMPT)).jobs] == ["p"]


async def test_a_claim_that_waits_is_refused_when_its_lease_is_gone(q, broker, drained):
    async with contextlib.aclosing(broker):
        q.beat("idle")
        await drained()
        claim = claiming(broker, 0.2)
        await asyncio.sleep(0.03)
        q.retire("idle")
        with pytest.raises(LeaseLost):
            await claim


WAKING = {
    "released": lambda q: q.settle("w", q.released("d")),
    "retired": lambda q: q.retire("w", "crashed"),
    "replayed": lambda q: q.act(Replay(), "c"),
    "resumed": lambda q: q.act(Resume()),
    "forgotten": lambda q: q.heartbeat("w", claim_seq=1000, held_ids=()),
}


@pytest.mark.parametrize("how", WAKING)
async def test_waiting_for_work_ends_when_jobs_come_back(q, broker, drained, how):
    async with contextlib.aclosing(broker):
        q.worker("w", "d")
        if how == "resumed":
            q.settle("w", q.released("d"))
            q.act(Pause())
        await drained()
        assert await wait_while(broker, lambda: WAKING[how](q)) < PROMPT


async def test_a_claim_that_leaves_jobs_behind_wakes_another_worker(q, broker, drained):
    async with contextlib.aclosing(broker):
        q.beat("w2", "w3")
        await drained()
        begin = time.monotonic()

        async def work(incarnation):
            await broker.await_work(["q"], 10)
            return q.take(incarnation, 1)

        workers = [asyncio.create_task(work(each)) for each in ("w2", "w3")]
        await asyncio.sleep(0.03)
        q.enqueue("d", "e", "f", "g")
        assert len(await asyncio.gather(*workers)) == 2
        assert time.monotonic() - begin < PROMPT


def test_enqueueing_in_a_thread_wakes_a_loop(q, broker, drained):
    woken = threading.Event()

    async def wait():
        async with contextlib.aclosing(broker):
            await drained()
            timer = threading.Timer(0.03, lambda: q.enqueue("d"))
            timer.start()
            await broker.await_work(["q"], 10)
            woken.set()
            timer.join()

    begin = time.monotonic()
    asyncio.run(wait())
    assert woken.is_set()
    assert time.monotonic() - begin < PROMPT + 1
