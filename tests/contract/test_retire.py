"""`Retire`: each reason, the steps, and what stays refused."""

import json

import pytest

from spool.broker import Cancel, Replay, Retired
from spool.errors import LeaseLost
from spool.job import Attempt, State
from tests.contract.driver import CORRUPT, LEASE, NEWER_TAIL, NO_TALLIES, job, jobs, tally, too_deep


def crash(q, *ids, times=1):
    """Let incarnations crash with these jobs, which they run as ordinary ones or on trial."""
    for _ in range(times):
        incarnation = f"crash{q.totals().get('crashed', 0)}-{ids[0]}"
        q.beat(incarnation)
        taken = q.take(incarnation, 1000)
        taken += [id for _ in ids for id in q.take(incarnation, trial=True)]
        assert taken == list(ids)
        q.retire(incarnation, "crashed", "killed by signal 11")


def test_stopped_hands_back_to_the_old_place(q, clock):
    q.worker("w", "a", "b")
    q.enqueue("c")
    started = clock.wall
    clock.advance(30)
    assert q.retire("w", "stopped") == Retired(clock.wall, 2, 0)
    assert q.ids(State.READY) == ["a", "b", "c"]
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.failures, numbers.crashes, numbers.losses) == (1, 0, 0, 0)
    assert lines == [Attempt(1, "stopped", started, clock.wall, "w")]


def test_crashed_counts_a_crash(q, clock):
    q.worker("w", "a")
    q.retire("w", "crashed", "killed by signal 9")
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.failures, numbers.crashes, numbers.losses) == (1, 0, 1, 0)
    assert lines == [Attempt(1, "crashed", clock.wall, clock.wall, "w")]
    assert q.ids(State.READY) == ["a"]


def test_lost_counts_a_loss(q, clock):
    q.worker("w", "a")
    q.retire("w", "lost")
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.failures, numbers.crashes, numbers.losses) == (1, 0, 0, 1)
    assert lines == [Attempt(1, "lost", clock.wall, clock.wall, "w")]
    assert q.ids(State.READY) == ["a"]


def test_a_lease_that_ran_out_is_reaped_by_the_next_claim_as_lost(q, clock):
    q.worker("w", "a", "b")
    q.enqueue("c")
    q.beat("other")
    started = clock.wall
    q.march(LEASE + 100, "other")
    assert q.take("other") == ["a", "b", "c"]
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.losses) == (1, 1)
    assert lines == [Attempt(1, "lost", started, clock.wall, "w")]


def test_a_lease_that_has_not_run_out_is_not_reaped(q):
    q.worker("w", "a")
    q.beat("other")
    q.march(LEASE - 1, "other")
    assert q.take("other") == []
    assert q.get("a").incarnation == "w"


def test_several_leases_are_reaped(q):
    names = [f"w{number}" for number in range(12)]
    for name in names:
        q.worker(name, f"job-{name}")
    q.beat("other")
    q.march(LEASE + 100, "other")
    for _ in range(10):
        q.promote("other")
    assert q.stats().running == 0
    assert q.stats().workers == 1
    assert sum(q.stats().ready) == 12


def test_a_second_crash_makes_a_suspect(q):
    q.enqueue("a")
    crash(q, "a", times=2)
    assert q.state("a") == State.SUSPECT
    assert q.tally("a").crashes == 2


def test_the_last_crash_kills_the_job(q, clock):
    q.enqueue("a")
    crash(q, "a", times=3)
    found = q.get("a")
    assert (found.state, found.finished, found.incarnation) == (State.DEAD, clock.wall, None)
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.crashes) == (3, 3)
    assert [each.outcome for each in lines] == ["crashed"] * 3
    assert (lines[-1].error_type, lines[-1].message) == ("WorkerCrashed", "killed by signal 11")
    assert (lines[0].error_type, lines[0].message) == ("", "")
    assert q.totals() == {"enqueued": 1, "crashed": 3, "dead": 1}


@pytest.mark.parametrize("most", [1, 2, 5])
def test_max_crashes_is_the_records(q, most):
    q.enqueue(job("a", max_crashes=most))
    crash(q, "a", times=most - 1)
    assert q.state("a") == (State.READY if most <= 2 else State.SUSPECT)
    crash(q, "a")
    assert q.state("a") == State.DEAD


@pytest.mark.parametrize("body", [CORRUPT, too_deep()], ids=["no record", "too deep"])
def test_a_damaged_record_does_not_crash_workers_for_ever(q, body):
    q.enqueue(job("a", body=body))
    crash(q, "a", times=3)
    assert q.state("a") == State.DEAD


def test_suspects_keep_their_order(q):
    q.enqueue("a", "b", job("first", priority=0))
    crash(q, "first", "a", "b", times=2)
    assert q.ids(State.SUSPECT) == ["first", "a", "b"]


def test_crashes_are_counted_over_what_the_worker_reported(q):
    q.worker("w", "a")
    q.settle("w", q.released("a", text=tally(attempts=7, crashes=1)))
    q.take("w")
    q.retire("w", "crashed")
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.crashes, lines[-1].number) == (8, 2, 8)
    assert len(lines) == 2
    assert q.state("a") == State.SUSPECT


@pytest.mark.parametrize("reason", ["stopped", "lost"])
def test_a_suspect_handed_back_is_still_a_suspect(q, reason):
    q.enqueue("a")
    crash(q, "a", times=2)
    q.beat("w")
    assert q.take("w", trial=True) == ["a"]
    q.retire("w", reason)
    assert q.state("a") == State.SUSPECT


def test_a_suspect_released_is_still_a_suspect(q):
    q.enqueue("a")
    crash(q, "a", times=2)
    q.beat("w")
    q.take("w", trial=True)
    q.settle("w", q.released("a", text=tally(attempts=3, crashes=2)))
    assert q.state("a") == State.SUSPECT


def test_lanes_and_priorities_are_kept(q):
    q.worker("w", job("p", lane=1), job("low", priority=4), job("high", priority=0))
    q.retire("w", "crashed")
    q.enqueue(job("p2", lane=1), job("low2", priority=4), job("high2", priority=0))
    q.beat("other")
    assert q.take("other", 9, 0) == ["high", "high2", "low", "low2"]
    assert q.take("other", 0, 9) == ["p", "p2"]


def test_at_most_500_jobs_a_call(q):
    q.worker("w", *jobs(1000))
    q.enqueue(*jobs(200, "k"))
    while q.take("w"):
        pass
    assert q.stats().running == 1200
    replies = [q.retire("w"), q.retire("w"), q.retire("w"), q.retire("w")]
    assert [each.handed_back for each in replies] == [500, 500, 200, 0]
    assert [each.remaining for each in replies] == [700, 200, 0, 0]
    assert q.stats().running == 0
    assert q.ids(State.READY) == sorted(each.id for each in [*jobs(1000), *jobs(200, "k")])
    assert q.totals()["stopped"] == 1200


def test_an_incarnation_that_holds_very_many_is_handed_back_to_the_last(q):
    q.beat("w")
    q.enqueue(*jobs(10_000))
    while q.take("w", 1000):
        pass
    replies = [q.retire("w") for _ in range(20)]
    assert [each.handed_back for each in replies] == [500] * 20
    assert replies[-1].remaining == 0
    assert sum(q.stats().ready) == 10_000


def test_claims_go_on_where_the_caller_of_retire_died(q):
    q.beat("w")
    q.enqueue(*jobs(1200))
    while q.take("w"):
        pass
    q.retire("w", "crashed", "gone")
    assert q.stats().running == 700
    assert len(q.ids(State.RUNNING)) == 700
    q.beat("other")
    for _ in range(10):
        q.promote("other")
    assert q.stats().running == 0
    assert q.totals() == {"enqueued": 1200, "crashed": 1200}


def test_only_the_blamed_have_crashed(q, clock):
    q.worker("w", "a", "b", "c", job("d", max_crashes=1))
    q.enqueue("e")
    started = clock.wall
    clock.advance(30)
    assert q.retire("w", "crashed", "signal 11", blamed=("b", "d")) == Retired(clock.wall, 4, 0)
    assert q.ids(State.READY) == ["a", "b", "c", "e"]
    assert q.history("a")[1] == [Attempt(1, "stopped", started, clock.wall, "w")]
    assert (q.tally("a").attempts, q.tally("a").crashes) == (1, 0)
    assert q.history("b")[1] == [Attempt(1, "crashed", started, clock.wall, "w")]
    assert (q.tally("b").attempts, q.tally("b").crashes) == (1, 1)
    assert q.history("d")[1] == [Attempt(1, "crashed", started, clock.wall, "w", "WorkerCrashed", "signal 11")]
    assert q.ids(State.DEAD) == ["d"]
    assert q.totals() == {"enqueued": 5, "crashed": 2, "stopped": 2, "dead": 1}


def test_a_suspect_that_is_not_blamed_stays_among_the_suspects(q):
    q.enqueue("a", "b")
    crash(q, "a", "b", times=2)
    q.beat("trial")
    assert [q.take("trial", trial=True) for _ in range(2)] == [["a"], ["b"]]
    q.retire("trial", "crashed", "signal 9", blamed=("b",))
    assert (q.ids(State.SUSPECT), q.ids(State.DEAD)) == (["a"], ["b"])
    assert (q.tally("a").crashes, q.tally("b").crashes) == (2, 3)


def test_nobody_may_be_blamed(q):
    q.worker("w", "a", "b")
    q.retire("w", "crashed", blamed=())
    assert q.totals() == {"enqueued": 2, "stopped": 2}


@pytest.mark.parametrize("reason", ["stopped", "lost"])
def test_blame_means_nothing_without_a_crash(q, reason):
    q.worker("w", "a", "b")
    q.retire("w", reason, blamed=("a",))
    assert q.totals() == {"enqueued": 2, reason: 2}


def test_what_the_incarnation_does_not_hold_cannot_be_blamed(q):
    q.worker("w", "a")
    q.worker("other", "b")
    q.enqueue("c")
    assert q.retire("w", "crashed", blamed=("b", "c", "never", "a", "a")).handed_back == 1
    assert q.totals() == {"enqueued": 3, "crashed": 1}
    assert (q.get("b").incarnation, q.state("c")) == ("other", State.READY)


def test_the_blamed_go_first_and_the_rest_in_steps(q):
    q.beat("w")
    q.enqueue(*jobs(1200))
    while q.take("w"):
        pass
    replies = [q.retire("w", "crashed", blamed=("j01199", "j00600")) for _ in range(3)]
    assert [(each.handed_back, each.remaining) for each in replies] == [(500, 700), (500, 200), (200, 0)]
    assert q.totals() == {"enqueued": 1200, "crashed": 2, "stopped": 1198}
    assert (q.tally("j01199").crashes, q.tally("j00600").crashes) == (1, 1)


def test_more_than_a_step_can_be_blamed_at_once(q):
    q.beat("w")
    q.enqueue(*jobs(800))
    while q.take("w"):
        pass
    reply = q.retire("w", "crashed", blamed=tuple(each.id for each in jobs(700)))
    assert (reply.handed_back, reply.remaining) == (700, 100)
    assert q.totals()["crashed"] == 700
    assert q.retire("w").remaining == 0
    assert q.totals()["stopped"] == 100


def test_claims_hand_back_as_stopped_what_was_not_blamed(q):
    q.beat("w")
    q.enqueue(*jobs(700))
    while q.take("w"):
        pass
    q.retire("w", "crashed", "gone", blamed=("j00005",))
    q.beat("other")
    q.promote("other")
    assert q.totals() == {"enqueued": 700, "crashed": 1, "stopped": 699}


@pytest.mark.parametrize("again", [("a",), ("b",), None])
def test_blame_is_laid_once(q, again):
    q.worker("w", "a", "b")
    q.retire("w", "crashed", blamed=("a",))
    before = q.dump()
    assert q.retire("w", "crashed", blamed=again).handed_back == 0
    assert q.dump() == before


def test_blame_that_comes_too_late_is_not_laid(q):
    q.beat("w")
    q.enqueue(*jobs(600))
    while q.take("w"):
        pass
    q.retire("w", "stopped")
    left = q.ids(State.RUNNING)[0]
    q.retire("w", "crashed", blamed=(left,))
    assert q.totals() == {"enqueued": 600, "stopped": 600}


def test_from_the_first_call_on_the_incarnation_is_refused(q):
    q.beat("w")
    q.enqueue(*jobs(600))
    while q.take("w"):
        pass
    held = q.ids(State.RUNNING)[0]
    q.retire("w")
    assert q.stats().running == 100
    left = q.ids(State.RUNNING)[0]
    assert q.beat("w")[0].lost
    assert q.settle("w", q.done(left)).refused == [left]
    assert q.settle("w", q.done(held)).refused == [held]
    with pytest.raises(LeaseLost):
        q.take("w")


def test_the_reason_of_the_first_call_stays(q):
    q.beat("w")
    q.enqueue(*jobs(600))
    while q.take("w"):
        pass
    q.retire("w", "stopped")
    q.retire("w", "crashed", "late news")
    assert q.totals() == {"enqueued": 600, "stopped": 600}
    assert q.stats().suspect == q.stats().dead == 0


def test_an_unknown_incarnation_gets_a_tombstone_too(q):
    assert q.retire("never") == Retired(q.clock.wall, 0, 0)
    assert q.beat("never")[0].lost
    with pytest.raises(LeaseLost):
        q.take("never")


def test_retire_of_a_reaped_incarnation_changes_nothing(q):
    q.worker("w", "a")
    q.beat("other")
    q.lose("w", "other")
    before = q.dump()
    assert q.retire("w", "crashed").handed_back == 0
    assert q.dump() == before


def test_an_expired_lease_can_be_retired_for_its_real_reason(q):
    q.worker("w", "a")
    q.beat("other")
    q.march(LEASE + 100, "other")
    q.retire("w", "stopped")
    assert q.tally("a").losses == 0
    assert q.totals()["stopped"] == 1


def test_neighbours_keep_what_they_hold(q):
    q.worker("w", "a")
    q.worker("other", "b")
    q.retire("w")
    assert q.get("b").incarnation == "other"
    assert q.settle("other", q.done("b")).accepted == 1


def test_a_retired_worker_leaves_the_count(q):
    q.beat("a", "b")
    q.retire("a")
    assert q.stats().workers == 1


def retired(q):
    q.retire("w", "stopped")


def lost(q):
    q.lose("w", "other")


def forgotten(q):
    q.heartbeat("w", claim_seq=q.last_claim("w").seq, held_ids=())


@pytest.mark.parametrize("back", [retired, lost, forgotten])
def test_tallies_that_cannot_be_read_do_not_hold_the_queue_up(q, back):
    texts = dict(zip((f"j{n:02}" for n in range(100)), NO_TALLIES, strict=False))
    q.worker("w", *texts)
    q.settle("w", *(q.released(id, text=text) for id, text in texts.items()))
    assert q.take("w") == list(texts)
    q.beat("other")
    back(q)
    assert {id: q.tally(id).attempts for id in texts} == dict.fromkeys(texts, 1)
    q.enqueue("last")
    q.retire("w")
    assert q.take("other") == [*texts, "last"]


def test_text_of_any_kind_goes_into_the_tally(q):
    detail = 'say "no" \\ to\n\x00 control \x1b[31m characters ☃'
    q.worker("w", job("a", max_crashes=1))
    q.retire("w", "crashed", detail)
    assert q.history("a")[1][0].message == detail


def test_fields_of_a_newer_tally_are_kept(q):
    q.worker("w", "a")
    q.settle("w", q.released("a", text='[1,1,0,0,0,0,77]\n[1,"released",1,2,"w","","","","new"]'))
    q.take("w")
    q.retire("w", "stopped")
    head, first, _ = q.get("a").tally.split("\n")
    assert json.loads(head) == [1, 2, 0, 0, 0, 0, 77]
    assert first == '[1,"released",1,2,"w","","","","new"]'


def test_whatever_a_newer_release_appended_to_the_counts_is_kept(q):
    q.worker("w", "a")
    q.settle("w", q.released("a", text=f"[1,1,0,0,0,0{NEWER_TAIL}"))
    q.take("w")
    q.retire("w", "lost")
    assert q.get("a").tally.split("\n")[0] == f"[1,2,0,0,1,0{NEWER_TAIL}"


def test_large_numbers_of_a_tally_are_kept(q):
    q.worker("w", "a")
    q.settle("w", q.released("a", text=tally(attempts=1_000_000)))
    q.take("w")
    q.retire("w", "lost")
    assert q.tally("a").attempts == 1_000_001


def test_a_wish_to_cancel_survives_the_worker(q):
    q.worker("w", "a")
    q.act(Cancel(), "a")
    q.retire("w", "lost")
    assert q.act(Cancel(reason="again"), "a") == ["a"]
    assert q.state("a") == State.CANCELLED


def test_a_job_that_crashed_to_death_has_no_wish_left_when_it_is_replayed(q):
    q.worker("w", job("a", max_crashes=1))
    q.act(Cancel(), "a")
    q.retire("w", "crashed")
    assert q.state("a") == State.DEAD
    q.act(Replay(), "a")
    q.worker("v")
    assert q.beat("v")[0].cancel == {}
    assert q.act(Cancel(), "a") == ["a"]
