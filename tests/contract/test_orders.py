"""`await_orders`: learning at once that a running job is to be cancelled."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spool.broker import Cancel, Pause, Resume
from spool.errors import BrokerUnavailable
from tests.contract.driver import Driver, job

PROMPT = 1.5
"""Seconds; well below the timeouts of the waits that are to end before."""
LONG = 20


@pytest.fixture(autouse=True)
def running(q, broker):
    q.worker("w", "a", "b", "c")
    broker.await_orders(["q"], 0)


def timed(broker, timeout, *queues):
    """Wait for orders; return for how long."""
    begin = time.monotonic()
    broker.await_orders(queues or ["q"], timeout)
    return time.monotonic() - begin


def meanwhile(broker, act, *queues):
    """Wait for orders in a thread, do something, and return how long the wait went on after it."""
    with ThreadPoolExecutor(1) as pool:
        entered = threading.Event()

        def wait():
            entered.set()
            broker.await_orders(queues or ["q"], LONG)
            return time.monotonic()

        waiting = pool.submit(wait)
        entered.wait()
        time.sleep(0.05)  # so that it is the word which ends the wait
        begin = time.monotonic()
        act()
        return waiting.result(LONG + 1) - begin


def test_a_cancellation_of_a_running_job_ends_the_wait(q, broker):
    assert meanwhile(broker, lambda: q.act(Cancel(), "b")) < PROMPT
    assert q.beat("w")[0].cancel == {"b": ""}


def test_a_cancellation_between_two_waits_ends_the_second_at_once(q, broker):
    assert timed(broker, 0.01) < PROMPT
    q.act(Cancel(), "a")
    assert timed(broker, LONG) < PROMPT


def test_one_word_ends_one_wait(q, broker):
    q.act(Cancel(), "a", "b", "c")
    assert timed(broker, LONG) < PROMPT
    assert timed(broker, 0.2) >= 0.19


def test_each_cancellation_is_news(q, broker):
    for id in ("a", "b", "c"):
        assert meanwhile(broker, lambda id=id: q.act(Cancel(), id)) < PROMPT


def test_a_settled_job_makes_no_later_one_unheard(q, broker):
    q.act(Cancel(), "a")
    assert timed(broker, LONG) < PROMPT
    q.settle("w", q.cancelled("a"))
    q.act(Cancel(), "b")
    assert timed(broker, LONG) < PROMPT


def test_without_one_the_wait_ends_after_the_timeout(broker):
    assert 0.19 <= timed(broker, 0.2) < PROMPT
    assert timed(broker, 0) < PROMPT


def test_several_queues_are_listened_to(q, broker, clock):
    other = Driver(broker, clock, "other")
    other.worker("v", "x")
    assert timed(broker, 0, "empty", "q", "other") < PROMPT
    assert meanwhile(broker, lambda: other.act(Cancel(), "x"), "empty", "q", "other") < PROMPT
    assert meanwhile(broker, lambda: q.act(Cancel(), "a"), "empty", "q", "other") < PROMPT


QUIET = {
    "a cancelled job that waits": lambda q: (q.enqueue("d"), q.act(Cancel(), "d")),
    "a cancelled job that is scheduled": lambda q: (q.enqueue(job("d", delay=5000)), q.act(Cancel(), "d")),
    "a second wish": lambda q: q.act(Cancel(), "a"),
    "a job that is not known": lambda q: q.act(Cancel(), "never"),
    "work": lambda q: (q.enqueue("d"), q.take("w"), q.settle("w", q.done("d"))),
    "a pause": lambda q: (q.act(Pause()), q.act(Resume())),
    "another queue": lambda q: (o := Driver(q.broker, q.clock, "o"), o.worker("v", "x"), o.act(Cancel(), "x")),
}


@pytest.mark.parametrize("what", QUIET)
def test_what_is_no_news(q, broker, what):
    q.act(Cancel(), "a")
    broker.await_orders(["q"], LONG)
    QUIET[what](q)
    assert timed(broker, 0.2) >= 0.19


def test_closing_the_broker_ends_the_wait_with_an_error(broker):
    with pytest.raises(BrokerUnavailable, match="closed"):
        meanwhile(broker, broker.close)
    begin = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="closed"):
        broker.await_orders(["q"], LONG)
    assert time.monotonic() - begin < PROMPT


def test_closing_between_two_waits_ends_the_second(broker):
    broker.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        broker.await_orders(["q"], LONG)


def test_two_threads_may_wait_at_once(q, broker):
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(timed, broker, LONG, queue) for queue in ("q", "elsewhere")]
        time.sleep(0.05)
        q.act(Cancel(), "a")
        assert waits[0].result() < PROMPT
        Driver(broker, q.clock, "elsewhere").worker("v", "x")
        Driver(broker, q.clock, "elsewhere").act(Cancel(), "x")
        assert waits[1].result() < PROMPT + 0.05
