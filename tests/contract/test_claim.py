"""`Claim`: who may, what it takes, and in which order."""

import pytest

from spool.broker import Cancel, Claim, Pause, Resume
from spool.errors import LeaseLost
from spool.job import State
from tests.contract.driver import CORRUPT, LEASE, Driver, job, jobs, record, tally


def test_an_incarnation_that_never_beat_is_refused(q):
    q.enqueue("a")
    with pytest.raises(LeaseLost):
        q.take("w")
    assert q.state("a") == State.READY


def test_an_incarnation_whose_lease_ran_out_is_refused_until_it_beats(q):
    q.beat("w", "other")
    q.enqueue("a")
    q.march(LEASE + 1, "other")
    with pytest.raises(LeaseLost):
        q.take("w")
    q.beat("w")
    assert q.take("w") == ["a"]


def test_a_retired_incarnation_is_refused(q):
    q.beat("w")
    q.enqueue("a")
    q.retire("w")
    with pytest.raises(LeaseLost):
        q.take("w")
    assert q.state("a") == State.READY


def test_a_lease_of_one_queue_says_nothing_about_another(q, broker, clock):
    q.beat("w")
    with pytest.raises(LeaseLost):
        Driver(broker, clock, "other").take("w")


def test_a_claimed_job_runs_under_its_incarnation(q, clock):
    q.beat("w")
    q.enqueue("a")
    clock.advance(5)
    q.take("w")
    found = q.get("a")
    assert (found.state, found.incarnation, found.started) == (State.RUNNING, "w", clock.wall)


def test_at_most_as_many_as_there_are_slots(q):
    q.beat("w")
    q.enqueue(*jobs(10))
    assert q.take("w", 3) == ["j00000", "j00001", "j00002"]
    assert q.take("w", 0) == []
    assert len(q.take("w", 100)) == 7


def test_a_job_is_handed_out_once(q):
    q.beat("a", "b")
    q.enqueue("x")
    assert q.take("a") == ["x"]
    assert q.take("b") == []
    assert q.take("a") == []


def test_a_new_seq_takes_new_jobs(q):
    q.beat("w")
    q.enqueue("a", "b")
    assert (q.take("w", 1), q.take("w", 1)) == (["a"], ["b"])


def test_the_last_seq_answers_again_and_takes_nothing_more(q):
    q.beat("w")
    q.enqueue(*jobs(5))
    first = q.claim("w", 3)
    q.enqueue(job("z", priority=0))
    again = q.broker.call(q.last_claim("w", 3))
    assert again.jobs == first.jobs
    assert q.stats().running == 3


def test_the_last_seq_answers_in_the_same_order(q):
    q.beat("w")
    q.enqueue("z", job("m", priority=0), "a", job("p", priority=4), job("b", priority=0))
    first = q.claim("w")
    assert [id for id, _ in first.jobs] == ["m", "b", "z", "a", "p"]
    assert q.call(q.last_claim("w")).jobs == first.jobs


def test_the_last_seq_answers_with_what_is_still_unsettled(q):
    q.beat("w")
    q.enqueue("a", "b", "c", "d", "e")
    q.take("w")
    q.settle("w", q.done("a"), q.retried("b", delay=5), q.released("c"), q.died("d"))
    assert [id for id, _ in q.call(q.last_claim("w")).jobs] == ["e"]


def test_the_last_seq_answers_with_the_tallies_too(q):
    q.beat("w")
    q.enqueue("a", "b")
    q.take("w")
    q.settle("w", q.released("b", text=tally(attempts=7)))
    first = q.claim("w")
    assert first.tallies == {"b": tally(attempts=7)}
    assert q.call(q.last_claim("w")).tallies == first.tallies


def test_the_last_seq_does_nothing_else(q, clock):
    q.beat("w")
    q.take("w")
    q.enqueue(job("a", delay=5))
    clock.advance(10)
    assert q.call(q.last_claim("w")).jobs == []
    assert q.state("a") == State.SCHEDULED


def test_jobs_of_an_earlier_claim_are_not_answered_again(q):
    q.beat("w")
    q.enqueue("a", "b")
    q.take("w", 1)
    q.take("w", 1)
    assert [id for id, _ in q.call(q.last_claim("w")).jobs] == ["b"]


def test_a_smaller_seq_answers_with_no_jobs(q):
    q.beat("w")
    q.enqueue("a", "b", "c")
    old = Claim(q.queue, "w", 1, (1, 0))
    q.call(old)
    q.call(Claim(q.queue, "w", 2, (1, 0)))
    before = q.dump()
    assert q.call(old).jobs == []
    assert q.dump() == before


def test_the_seqs_of_incarnations_are_their_own(q):
    q.beat("a", "b")
    q.enqueue("x", "y")
    assert [id for id, _ in q.call(Claim(q.queue, "a", 5)).jobs] == ["x"]
    assert [id for id, _ in q.call(Claim(q.queue, "b", 2)).jobs] == ["y"]


def test_seqs_may_skip(q):
    q.beat("w")
    q.enqueue("a", "b")
    assert len(q.call(Claim(q.queue, "w", 1_000_000_000_000)).jobs) == 1
    assert len(q.call(Claim(q.queue, "w", 1_000_000_000_005)).jobs) == 1


def test_workers_split_what_is_ready(q):
    workers = [f"w{number}" for number in range(10)]
    q.beat(*workers)
    q.enqueue(*jobs(200))
    shares = [len(q.take(each)) for each in workers]
    assert max(shares) == shares[0] == 20
    assert min(shares) >= 8


def test_a_share_is_rounded_up(q):
    q.beat("a", "b", "c")
    q.enqueue(*jobs(4))
    assert len(q.take("a")) == 2


def test_a_share_is_at_least_one(q):
    q.beat(*(f"w{number}" for number in range(10)))
    q.enqueue("a")
    assert q.take("w9") == ["a"]


def test_an_even_claim_takes_what_is_missing_to_an_even_split_and_no_more(q, clock):
    q.beat("a", "b")
    q.enqueue(*jobs(10))
    assert len(q.take("a")) == 5
    refused = q.claim("a", even=True)
    assert (refused.jobs, refused.cut, refused.next_at) == ([], True, clock.wall + 50)
    q.enqueue(*jobs(4, "late"))
    assert len(q.take("a", even=True)) == 2
    assert len(q.take("b", even=True)) == 7
    assert len(q.take("a")) == 0


def test_an_even_claim_of_the_only_worker_takes_all(q):
    q.beat("a")
    q.enqueue(*jobs(10))
    assert len(q.take("a", 4)) == 4
    assert len(q.take("a", even=True)) == 6


def test_an_even_claim_is_refused_its_last_slot_too(q):
    q.beat("a", "b")
    q.enqueue(*jobs(4))
    assert len(q.take("a")) == 2
    assert q.take("a", 1, even=True) == []


def test_the_slots_limit_a_share(q):
    q.beat("a", "b")
    q.enqueue(*jobs(20))
    assert len(q.take("a", 4)) == 4


def test_retired_and_expired_workers_get_no_share(q):
    q.beat("a", "b", "c", "d")
    q.enqueue(*jobs(40))
    q.retire("b")
    assert len(q.take("a")) == 14
    q.march(LEASE + 1, "a", "c")
    assert len(q.take("a")) == 13


def test_each_lane_has_its_own_slots(q):
    q.beat("w")
    q.enqueue("m1", job("p1", lane=1), "m2", job("p2", lane=1), "m3")
    assert q.take("w", 2, 0) == ["m1", "m2"]
    assert q.take("w", 0, 1) == ["p1"]
    assert sorted(q.take("w", 5, 5)) == ["m3", "p2"]


def test_each_lane_is_shared_for_itself(q):
    q.beat("a", "b")
    q.enqueue(*jobs(10), *jobs(4, "p", lane=1))
    assert len(q.take("a", 100, 100)) == 5 + 2


def test_priorities_hold_within_a_lane(q):
    q.beat("w")
    q.enqueue(*(job(f"p{priority}", lane=1, priority=priority) for priority in (3, 0, 4, 1, 2)))
    assert q.take("w", 0, 9) == ["p0", "p1", "p2", "p3", "p4"]


def test_nothing_is_taken_from_a_paused_queue(q):
    q.beat("w")
    q.enqueue("a", job("p", lane=1))
    q.act(Pause())
    assert q.take("w", 9, 9) == []
    q.act(Resume())
    assert sorted(q.take("w", 9, 9)) == ["a", "p"]


def test_a_record_that_cannot_be_read_is_handed_out_like_any_other(q):
    q.beat("w")
    q.enqueue("a", job("b", body=CORRUPT), job("c", body=b""), job("d", body=record()[:-2]), "e")
    assert q.take("w") == ["a", "b", "c", "d", "e"]


def test_a_tally_is_handed_out_with_its_job(q):
    q.beat("w")
    q.enqueue("a", "b")
    q.take("w")
    text = tally(attempts=3, failures=2)
    q.settle("w", q.retried("a", text=text))
    claimed = q.claim("w")
    assert (claimed.jobs, claimed.tallies) == ([("a", record())], {"a": text})


def test_a_job_with_a_noted_cancellation_is_handed_out_like_any_other(q):
    q.beat("w")
    q.enqueue("a")
    q.take("w")
    q.act(Cancel(), "a")
    q.settle("w", q.released("a"))
    assert q.take("w") == ["a"]
    assert q.beat("w")[0].cancel == {"a": ""}


def make_suspect(q: Driver, *ids: str) -> None:
    """Let two incarnations crash with these jobs."""
    for number in range(2):
        incarnation = f"crashing{number}"
        assert list(q.worker(incarnation, *(() if number else ids))) == list(ids)
        q.retire(incarnation, "crashed")
    assert q.ids(State.SUSPECT) == list(ids)


def test_suspects_are_not_taken_by_an_ordinary_claim(q):
    make_suspect(q, "s")
    q.beat("w")
    q.enqueue("a")
    assert q.take("w", 9, 9) == ["a"]


def test_a_trial_takes_one_suspect_and_nothing_else(q):
    make_suspect(q, "s1", "s2")
    q.beat("w")
    q.enqueue("a", job("p", lane=1))
    assert q.take("w", 9, 9, trial=True) == ["s1"]
    assert q.ids(State.READY) == ["a", "p"]
    assert q.take("w", trial=True) == ["s2"]
    assert q.take("w", trial=True) == []


def test_a_trial_answers_again_to_its_seq(q):
    make_suspect(q, "s1", "s2")
    q.beat("w")
    verb = Claim(q.queue, "w", 1, trial=True)
    first = q.call(verb)
    assert q.call(verb).jobs == first.jobs
    assert q.ids(State.SUSPECT) == ["s2"]


def test_no_trial_in_a_paused_queue(q):
    make_suspect(q, "s")
    q.beat("w")
    q.act(Pause())
    assert q.take("w", trial=True) == []


def test_a_claimed_suspect_has_its_tally(q):
    make_suspect(q, "s")
    q.beat("w")
    claimed = q.claim("w", trial=True)
    assert claimed.tallies == {"s": q.get("s").tally}


def test_many_slots_are_filled_over_several_claims(q):
    q.beat("w")
    q.enqueue(*jobs(3000))
    taken = []
    while more := q.take("w", 3000):
        taken += more
    assert taken == [f"j{number:05}" for number in range(3000)]
