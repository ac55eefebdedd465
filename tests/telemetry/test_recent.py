"""What happened lately in each queue: rates, read from few pages of the ring, wherever in it the minute lies."""

import pytest

from spool.broker import Load
from spool.telemetry.bucket import TIERS, read_span, read_tier
from spool.telemetry.recent import recent
from spool.telemetry.roller import SILENT
from tests.contract.driver import Driver, job

SECOND = TIERS[0]


def on_a_second(clock) -> None:
    clock.advance(-clock.wall % 1000)


def test_rates_are_of_the_last_ten_and_sixty_seconds(q, broker, roll, clock):
    on_a_second(clock)
    roll()
    for second in range(60):
        ids = [f"{second}-done", f"{second}-died"] if second >= 58 else []
        q.enqueue(*(f"{second}-{number}" for number in range((6 if second < 50 else 3) - len(ids))))
        if ids:
            q.worker("w", *ids)  # which enqueues them
            q.settle("w", q.done(ids[0]), q.died(ids[1]))
        roll(1000)

    rates = recent(broker).rates("q")

    assert rates.ten_seconds == {"enqueued": 3.0, "done": 0.2, "dead": 0.2}
    assert rates.minute == {"enqueued": 5.5, "done": 0.033, "dead": 0.033}


def test_what_is_under_way_is_not_taken_for_a_whole_second(q, broker, roll, clock):
    on_a_second(clock)
    q.enqueue("first")
    roll()
    for second in range(12):
        q.enqueue(f"{second}")
        roll(1000)
    q.enqueue("now")
    roll(950)
    assert recent(broker).rates("q").ten_seconds == {"enqueued": 1.0}


def test_rates_fall_to_nothing_when_nothing_happens(q, broker, roll):
    roll()
    q.enqueue("a")
    roll(1000)
    roll(12_000)
    rates = recent(broker).rates("q")
    assert (rates.ten_seconds, rates.minute) == ({}, {"enqueued": 0.017})
    roll(60_000)
    assert recent(broker).rates("q").minute == {}


def test_without_rollers_there_are_no_rates(q, broker, roll, clock):
    q.enqueue("a")
    assert recent(broker).rates("q") is None
    roll(1000)
    assert recent(broker).rates("q") is not None
    assert recent(broker).rates("nothing") is None
    clock.advance(SILENT + 1)
    assert recent(broker).rates("q") is None


def test_each_queue_has_its_own(q, broker, roll):
    other = Driver(broker, q.clock, "mail")
    roll()
    q.enqueue("a")
    other.enqueue("b", "c", job("d", delay=10**9))
    roll(2000)
    found = recent(broker)
    assert found.rates("q").ten_seconds["enqueued"] <= 0.1
    assert found.rates("mail").ten_seconds["enqueued"] <= 0.3
    assert found.rates("mail").minute["enqueued"] > found.rates("q").minute["enqueued"]


@pytest.mark.parametrize("page", [0, 3, 7, 30])
def test_a_span_is_read_across_the_end_of_the_ring(q, broker, roll, clock, page):
    ring = SECOND.step * SECOND.width * SECOND.pages
    clock.advance(-clock.wall % ring + SECOND.step * SECOND.width * page)
    for _ in range(SECOND.pages):
        q.enqueue(f"{clock.wall}")
        roll(SECOND.step * SECOND.width)
    asked: list[int] = []

    class Counting:
        def call(self, verb):
            reply = broker.call(verb)
            if isinstance(verb, Load):
                asked.append(len(reply.documents))
            return reply

    since, until = clock.wall - 65_000, clock.wall
    found = read_span(Counting(), SECOND, since, until)

    assert found == [each for each in read_tier(broker, SECOND) if since <= each.start <= until]
    assert len(found) > 5
    assert sum(asked) <= 8, "no more pages than the span has"
