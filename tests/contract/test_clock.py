"""The clock of the store: what happens to leases when it jumps, or when the store was away."""

import pytest

from spool.broker import Beat, Heartbeat
from spool.errors import LeaseLost
from spool.job import State
from tests.contract.driver import LEASE, job


@pytest.fixture(autouse=True)
def running(q):
    """Let v run a, and w stand by."""
    q.worker("v", "a")
    q.beat("w")


def holder(q):
    found = q.get("a")
    return found.incarnation if found.state is State.RUNNING else None


def test_after_an_outage_nobody_is_reaped_who_beats_within_a_lease(q):
    q.clock.advance(5 * LEASE)
    q.beat("w")
    q.promote("w")
    q.march(LEASE - 100, "w")
    q.promote("w")
    assert holder(q) == "v"
    q.beat("v")
    q.march(LEASE - 100, "w")
    q.promote("w")
    assert holder(q) == "v"
    assert q.settle("v", q.done("a")).accepted == 1


def test_after_the_amnesty_those_who_did_not_beat_are_reaped(q):
    q.clock.advance(5 * LEASE)
    q.beat("w")
    q.march(LEASE + 100, "w")
    assert q.take("w") == ["a"]
    assert q.tally("a").losses == 1


def test_a_gap_of_more_than_a_third_of_a_lease_is_an_outage(q):
    q.clock.advance(LEASE // 3 + 10)
    q.beat("w")
    q.march(LEASE * 2 // 3, "w")
    q.promote("w")
    assert holder(q) == "v"
    q.march(LEASE // 3 + 20, "w")
    assert q.take("w") == ["a"]


def test_a_smaller_gap_is_none(q):
    for _ in range(4):
        q.clock.advance(LEASE // 3 - 10)
        q.beat("w")
    assert q.take("w") == ["a"]


def test_claims_see_the_clock_as_well_as_beats(q):
    for _ in range(3):
        q.clock.advance(LEASE // 4)
        q.promote("w")
    q.clock.advance(LEASE // 4 + 100)
    with pytest.raises(LeaseLost):
        q.promote("w")
    q.beat("w")
    assert q.take("w") == ["a"]


def test_a_claim_that_is_refused_for_its_lease_has_seen_the_outage(q):
    q.clock.advance(5 * LEASE)
    with pytest.raises(LeaseLost):
        q.take("w")
    q.beat("w")
    q.promote("w")
    assert holder(q) == "v"


def test_a_second_outage_grants_a_second_amnesty(q):
    for _ in range(3):
        q.clock.advance(LEASE * 9 // 10)
        q.beat("w")
        q.promote("w")
    assert holder(q) == "v"


def test_a_clock_set_back_takes_no_lease_away_and_prolongs_none(q):
    q.clock.advance(-5 * LEASE)
    q.beat("w")
    q.promote("w")
    assert holder(q) == "v"
    q.march(LEASE - 100, "w")
    q.promote("w")
    assert holder(q) == "v"
    q.march(200, "w")
    assert q.take("w") == ["a"]


def test_a_clock_set_back_and_forth(q):
    q.clock.advance(-LEASE)
    q.beat("w")
    q.clock.advance(LEASE)
    q.beat("w")
    q.promote("w")
    assert holder(q) == "v"
    q.march(LEASE + 100, "w")
    assert q.take("w") == ["a"]


def test_leases_beyond_the_amnesty_are_clamped(q):
    q.beat("long", lease=20 * LEASE)
    q.clock.advance(LEASE // 2)
    q.beat("w")
    q.march(LEASE + 100, "w")
    q.promote("w")
    q.promote("w")
    assert q.beat("long")[0].lost


def test_the_others_are_told_to_come_at_the_end_of_the_amnesty(q):
    q.settle("v", q.done("a"))
    q.clock.advance(5 * LEASE)
    q.beat("w")
    assert q.claim("w").next_at == q.clock.wall + LEASE


def test_an_amnesty_stops_no_retirement(q):
    q.clock.advance(5 * LEASE)
    q.beat("w")
    q.retire("v", "crashed")
    assert q.take("w") == ["a"]


def test_an_amnesty_is_of_one_queue(q, broker):
    q.march(LEASE - 1000, "w")
    broker.call(Beat("elsewhere", [Heartbeat("w", LEASE, ())]))
    q.march(1100, "w")
    assert q.take("w") == ["a"]


def test_an_outage_makes_due_what_was_to_be_due(q):
    q.enqueue(job("b", delay=4 * LEASE), job("c", delay=6 * LEASE))
    q.clock.advance(5 * LEASE)
    q.beat("w")
    assert q.take("w") == ["b"]


def test_a_retired_incarnation_does_not_touch_the_clock(q):
    q.retire("v")
    q.enqueue("b")
    q.beat("u")
    assert q.take("u", 1) == ["a"]
    q.clock.advance(LEASE // 4)
    q.beat("w")
    q.clock.advance(LEASE // 4)
    before = q.dump()
    assert q.beat("v")[0].lost
    assert q.dump() == before
    q.clock.advance(LEASE // 4)
    q.beat("w")
    q.march(LEASE + 100, "w")
    q.promote("w")
    assert q.beat("u")[0].lost
