"""`Settle`: each outcome, the fence, and the sequence."""

import pytest

from spool.broker import Cancel, Done, Pause, Settled, Watch
from spool.job import State
from tests.contract.driver import LEASE, ending, job, jobs, record, tally, until


@pytest.fixture(autouse=True)
def running(q):
    """Let w run a and b, with c and d behind them."""
    q.beat("w")
    q.enqueue("a", "b", "c", "d")
    assert q.take("w", 2) == ["a", "b"]


def test_done_keeps_the_ending_and_nothing_else(q):
    body = ending(result="x" * 1000)
    assert q.settle("w", q.done("a", body=body)) == Settled(q.clock.wall, 1)
    found = q.get("a")
    assert (found.state, found.ending, found.record, found.tally) == (State.DONE, body, None, "")


def test_cancelled_keeps_the_ending_and_nothing_else(q):
    q.settle("w", q.cancelled("a"))
    found = q.get("a")
    assert (found.state, found.ending, found.record) == (State.CANCELLED, ending("cancelled"), None)


def test_a_job_with_a_tally_leaves_none_behind(q):
    q.settle("w", q.released("a"))
    q.take("w", 1)
    q.settle("w", q.done("a"))
    assert q.get("a").tally == ""


def test_an_ending_is_opaque(q):
    q.settle("w", q.done("a", body=b"\x00not msgpack\xff"))
    assert q.get("a").ending == b"\x00not msgpack\xff"


@pytest.mark.parametrize("state", ["", "foo", "running", "dead"])
def test_an_ending_of_a_state_that_is_none(q, broker, state):
    q.settle("w", q.done("a", body=ending(state)))
    assert (q.state("a"), broker.ended("q", "a", 10).state) == (State.DONE, State.DONE)
    assert q.ids(State.DONE) == ["a"]
    assert "a" not in q.ids(State.RUNNING)


def test_an_ending_is_kept_for_its_ttl(q):
    q.settle("w", q.done("a", ttl=40), q.cancelled("b", ttl=60_000))
    q.clock.advance(50)
    until(lambda: q.get("a") is None)
    assert q.ids(State.DONE) == []
    assert q.state("b") == State.CANCELLED
    assert q.enqueue(job("a", fingerprint="f")).existing == []


def test_an_ending_of_no_ttl_is_not_kept(q):
    assert q.settle("w", q.done("a", ttl=0), q.done("b")).accepted == 2
    assert q.get("a") is None
    assert q.ids(State.DONE) == ["b"]
    assert q.totals()["done"] == 2


def test_retried_is_scheduled_with_the_tally_given(q):
    text = tally(failures=1)
    q.settle("w", q.retried("a", delay=700, text=text))
    found = q.get("a")
    assert (found.state, found.due, found.tally) == (State.SCHEDULED, q.clock.wall + 700, text)
    assert (found.incarnation, found.started) == (None, None)
    assert found.record == record()


def test_retried_joins_the_tail_when_it_is_due(q):
    q.settle("w", q.retried("a", delay=700))
    q.clock.advance(700)
    assert q.take("w") == ["c", "d", "a"]


def test_retried_at_once_is_scheduled_for_now(q):
    q.settle("w", q.retried("a"))
    assert q.get("a").due == q.clock.wall
    assert q.take("w") == ["c", "d", "a"]


def test_released_is_ready_in_its_old_place(q):
    q.settle("w", q.released("b"), q.released("a"))
    assert q.ids(State.READY) == ["a", "b", "c", "d"]
    assert q.get("a").tally == tally(outcome="released")
    assert q.take("w") == ["a", "b", "c", "d"]


def test_released_with_a_delay_is_scheduled(q):
    q.settle("w", q.released("a", delay=100))
    found = q.get("a")
    assert (found.state, found.due) == (State.SCHEDULED, q.clock.wall + 100)
    q.clock.advance(100)
    assert q.take("w") == ["c", "d", "a"]


def test_released_keeps_lane_and_priority(q):
    q.enqueue(job("p1", lane=1, priority=3), job("p2", lane=1, priority=3), job("first", priority=0))
    q.take("w", 1, 1)
    q.settle("w", q.released("p1"), q.released("first"))
    assert q.take("w", 0, 2) == ["p1", "p2"]
    assert q.take("w", 1, 0) == ["first"]


def test_died_keeps_record_and_the_tally_given(q):
    text = tally(failures=4, outcome="died")
    q.clock.advance(5)
    q.settle("w", q.died("a", text=text))
    found = q.get("a")
    assert (found.state, found.record, found.tally) == (State.DEAD, record(), text)
    assert (found.finished, found.incarnation, found.started) == (q.clock.wall, None, None)


def test_a_damaged_record_can_end_in_every_way(q):
    bodies = ["done", "retried", "released", "died"]
    q.enqueue(*(job(each, body=b"\xc1broken") for each in bodies))
    assert set(bodies) <= set(q.take("w"))
    settled = q.settle("w", q.done("done"), q.retried("retried"), q.released("released"), q.died("died"))
    assert settled.accepted == 4
    assert q.get("died").record == b"\xc1broken"
    assert sorted(q.take("w")) == ["released", "retried"]


def test_a_tally_is_text_of_any_kind(q):
    text = tally() + '\n[2,"retried",1,2,"w","Fehler","Gruß \\n\\u0000 ☃","…"]'
    q.settle("w", q.retried("a", text=text))
    assert q.get("a").tally == text


def test_every_outcome_in_one_call_in_any_order(q):
    q.take("w", 2)
    q.enqueue("e", "f")
    q.take("w")
    reply = q.settle(
        "w", q.died("f"), q.done("a"), q.released("b"), q.retried("c", delay=5), q.cancelled("d"), q.done("e")
    )
    assert (reply.accepted, reply.refused) == (6, [])
    states = [State.DONE, State.READY, State.SCHEDULED, State.CANCELLED, State.DONE, State.DEAD]
    assert [q.state(id) for id in "abcdef"] == states
    totals = {"enqueued": 6, "done": 2, "released": 1, "retried": 1, "cancelled": 1, "dead": 1}
    assert q.totals() == totals


def test_a_job_of_another_incarnation_is_refused(q):
    q.beat("other")
    q.take("other", 1)
    before = q.dump()
    reply = q.settle("w", Done("c", q.fence("c"), ending()))
    assert (reply.accepted, reply.refused) == (0, ["c"])
    assert q.dump() == before


@pytest.mark.parametrize("id", ["c", "never"])
def test_a_job_that_is_not_running_is_refused(q, id):
    assert q.settle("w", Done(id, 1, ending())).refused == [id]
    assert q.get("never") is None


def test_a_job_under_another_fence_is_refused(q):
    old = q.done("a")
    q.settle("w", q.released("a"))
    assert q.take("w", 1) == ["a"]
    assert q.settle("w", old).refused == ["a"]
    assert q.state("a") == State.RUNNING
    assert q.settle("w", q.done("a")).accepted == 1


def test_one_job_is_settled_once(q):
    q.settle("w", q.done("a"))
    assert q.settle("w", q.cancelled("a")).refused == ["a"]
    assert q.state("a") == State.DONE


def test_of_two_outcomes_for_one_job_in_one_call_one_counts(q):
    reply = q.settle("w", q.done("a"), q.died("a"))
    assert (reply.accepted, reply.refused) == (1, ["a"])
    assert sum(q.totals().get(name, 0) for name in ("done", "dead")) == 1


def test_refused_ones_do_not_hold_the_others_up(q):
    q.heartbeat("w", claim_seq=1, held_ids=("b",))
    reply = q.settle("w", q.done("a"), q.done("b"))
    assert (reply.accepted, reply.refused) == (1, ["a"])
    assert q.state("b") == State.DONE


def test_the_last_seq_gets_the_same_reply_again(q):
    verb = q.settle_verb("w", q.done("a"), Done("d", 1, ending()), q.died("b"), metrics=b"blob")
    first = q.call(verb)
    assert (first.accepted, first.refused) == (2, ["d"])
    before = q.dump()
    q.clock.advance(3)
    again = q.call(verb)
    assert (again.accepted, again.refused) == (2, ["d"])
    assert q.dump() == before
    assert [blob.body for blob in q.call(Watch(q.queue)).blobs] == [b"blob"]


def test_the_last_seq_changes_nothing_even_when_it_could(q):
    verb = q.settle_verb("w", q.released("a"))
    q.call(verb)
    assert q.take("w", 1) == ["a"]
    assert q.call(verb).accepted == 1
    assert q.state("a") == State.RUNNING


def test_a_smaller_seq_is_refused_as_a_whole(q):
    old = q.settle_verb("w", q.done("a"), metrics=b"old")
    q.settle("w", q.done("b"))
    before = q.dump()
    reply = q.call(old)
    assert (reply.accepted, reply.refused) == (0, ["a"])
    assert q.dump() == before
    assert q.call(Watch(q.queue)).blobs == []


def test_after_a_repeat_the_next_seq_counts(q):
    verb = q.settle_verb("w", q.done("a"))
    q.call(verb)
    q.call(verb)
    assert q.settle("w", q.done("b")).accepted == 1


def test_a_settle_of_nothing_carries_metrics(q):
    assert q.settle("w", metrics=b"m") == Settled(q.clock.wall, 0)
    assert [blob.body for blob in q.call(Watch(q.queue)).blobs] == [b"m"]


def test_an_expired_lease_that_nobody_reaped_still_settles(q):
    q.beat("other")
    q.march(2 * LEASE, "other")
    assert q.settle("w", q.done("a")).accepted == 1


def test_a_reaped_incarnation_settles_nothing(q):
    q.beat("other")
    q.lose("w", "other")
    before = q.dump()
    assert q.settle("w", q.done("a"), q.died("b"), metrics=b"m").refused == ["a", "b"]
    assert q.dump() == before


def test_an_unknown_incarnation_settles_nothing(q):
    before = q.dump()
    assert q.settle("nobody", q.done("a")).refused == ["a"]
    assert q.dump() == before


def test_a_paused_queue_settles(q):
    q.act(Pause())
    assert q.settle("w", q.done("a"), q.released("b")).accepted == 2


def test_a_job_wanted_cancelled_may_end_in_any_way(q):
    q.act(Cancel(), "a", "b")
    q.settle("w", q.done("a"), q.died("b"))
    assert (q.state("a"), q.state("b")) == (State.DONE, State.DEAD)


def test_hundreds_are_settled_in_one_call(q):
    q.settle("w", q.done("a"), q.done("b"))
    q.enqueue(*jobs(2000, fingerprint="f"))
    taken = []
    while more := q.take("w", 500):
        taken += more
    assert q.settle("w", *(q.done(id, ttl=5000 + number % 3) for number, id in enumerate(taken))).accepted == 2002
    assert q.stats().running == 0
    assert q.totals()["done"] == 2004


def test_a_large_result_is_kept(q):
    body = ending(result="x" * 1_000_000)
    q.settle("w", q.done("a", body=body))
    assert q.get("a").ending == body


def test_a_settle_says_the_time_of_the_store(q):
    q.clock.advance(11)
    assert q.settle("w", q.done("a")).now == q.clock.wall
