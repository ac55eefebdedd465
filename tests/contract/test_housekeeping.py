"""What `Claim` does on the way: due jobs, parked jobs, damage, and when to come again."""

import pytest

from spool.broker import Cancel, Delete, Pause
from spool.job import State
from tests.contract.driver import LEASE, job, jobs
from tests.contract.test_claim import make_suspect


def test_due_jobs_are_promoted_before_any_is_taken(q, clock):
    q.beat("w")
    q.enqueue(job("later", priority=0, delay=50), "a")
    clock.advance(50)
    assert q.take("w", 1) == ["later"]


def test_a_job_is_not_promoted_early(q, clock):
    q.beat("w")
    q.enqueue(job("a", delay=50))
    clock.advance(49)
    assert q.take("w") == []
    clock.advance(1)
    assert q.take("w") == ["a"]


def test_due_jobs_join_the_tail_of_their_priority_in_due_order(q, clock):
    q.beat("w")
    q.enqueue(job("third", delay=30), job("first", delay=10), job("second", delay=20), job("low", priority=4, delay=5))
    clock.advance(40)
    q.enqueue("ready")
    assert q.take("w") == ["ready", "first", "second", "third", "low"]


def test_due_jobs_go_to_their_lane(q, clock):
    q.beat("w")
    q.enqueue(job("p", lane=1, delay=10), job("m", delay=10))
    clock.advance(10)
    assert q.take("w", 9, 0) == ["m"]
    assert q.take("w", 0, 9) == ["p"]


def test_due_jobs_of_a_paused_queue_get_ready_and_wait(q, clock):
    q.beat("w")
    q.enqueue(job("a", delay=10))
    q.act(Pause())
    clock.advance(10)
    assert q.take("w") == []
    assert q.state("a") == State.READY


def test_a_promoted_job_has_no_due_time_any_more(q, clock):
    q.beat("w")
    q.enqueue(job("a", delay=10))
    clock.advance(10)
    q.promote("w")
    found = q.get("a")
    assert (found.state, found.due) == (State.READY, None)


def test_many_due_jobs_get_ready_over_several_claims(q, clock):
    q.beat("w")
    q.enqueue(*(job(f"j{number:05}", delay=1000 + number) for number in range(2000)))
    clock.advance(3100)
    taken = []
    while more := q.take("w"):
        taken += more
    assert taken == [f"j{number:05}" for number in range(2000)]


def test_a_job_whose_task_is_unknown_is_parked(q):
    q.beat("w")
    q.enqueue("a", job("b", "unknown"), "c")
    assert q.take("w") == ["a", "c"]
    found = q.get("b")
    assert (found.state, found.tally, found.incarnation) == (State.PARKED, "", None)
    assert q.stats().parked == {"unknown": 1}


def test_parked_jobs_take_no_slots(q):
    q.beat("w")
    q.enqueue(job("u1", "unknown"), job("u2", "unknown"), "a", "b", "c")
    assert q.take("w", 2) == ["a", "b"]


def test_a_parked_job_goes_back_to_its_old_place_for_a_worker_that_knows_it(q):
    q.beat("w")
    q.enqueue(job("u", "unknown"), "a", "b")
    assert q.take("w", 1) == ["a"]
    q.retire("w")
    q.beat("other", tasks=("t", "unknown"))
    assert q.take("other") == ["u", "a", "b"]
    assert q.stats().parked == {}


def test_a_parked_job_stays_parked_for_the_others(q):
    q.beat("w")
    q.enqueue(job("u", "unknown"))
    q.take("w")
    q.beat("other", tasks=("t", "more"))
    assert q.take("other") == q.take("w") == []
    assert q.state("u") == State.PARKED


def test_a_worker_that_learns_a_task_gets_its_parked_jobs(q):
    q.beat("w")
    q.enqueue(job("u", "unknown"))
    assert q.take("w") == []
    q.beat("w", tasks=("t", "unknown"))
    assert q.take("w") == ["u"]


def test_a_worker_that_forgets_a_task_parks_its_jobs(q):
    q.beat("w", tasks=("t", "u"))
    q.enqueue(job("a", "u"))
    q.beat("w", tasks=("t",))
    assert q.take("w") == []
    assert q.state("a") == State.PARKED


def test_a_worker_of_no_tasks_parks_everything(q):
    q.beat("w", tasks=())
    q.enqueue("a")
    assert q.take("w") == []
    assert q.state("a") == State.PARKED


def test_a_worker_may_know_a_great_many_tasks(q):
    q.beat("w", tasks=tuple(f"task{number}" for number in range(20_000)))
    q.enqueue(job("a", "task19999"), job("b", "task20000"))
    assert q.take("w") == ["a"]


def test_parked_jobs_keep_their_lane_and_priority(q):
    q.beat("w")
    q.enqueue(job("p", "u", lane=1, priority=3), job("m", "u", priority=4), job("first", "u", priority=0))
    q.take("w", 9, 9)
    q.beat("w", tasks=("t", "u"))
    q.enqueue(job("p2", lane=1, priority=3), job("m2", priority=4))
    assert q.take("w", 9, 0) == ["first", "m", "m2"]
    assert q.take("w", 0, 9) == ["p", "p2"]


def test_jobs_of_a_lane_not_asked_for_are_not_parked(q):
    q.beat("w")
    q.enqueue(job("p", "unknown", lane=1))
    q.take("w", 9, 0)
    assert q.state("p") == State.READY


def test_nothing_is_parked_while_paused(q):
    q.beat("w")
    q.enqueue(job("a", "unknown"))
    q.act(Pause())
    q.take("w")
    assert q.state("a") == State.READY


def test_many_parked_jobs_hide_no_known_one_for_long(q):
    q.beat("w")
    q.enqueue(*jobs(3000, "u", task="unknown"), "a")
    for _ in range(20):
        if q.take("w") == ["a"]:
            break
    assert q.state("a") == State.RUNNING


def test_many_parked_jobs_come_back_over_several_claims_in_order(q):
    q.beat("w")
    q.enqueue(*jobs(1500, "u", task="unknown"))
    for _ in range(20):
        q.promote("w")
        q.take("w")
    assert q.stats().parked == {"unknown": 1500}
    q.beat("w", tasks=("unknown",))
    taken = []
    while more := q.take("w"):
        taken += more
    assert sorted(taken) == [f"u{number:05}" for number in range(1500)]


def test_a_suspect_of_an_unknown_task_is_no_longer_in_the_way(q):
    make_suspect(q, "s")
    q.beat("w", tasks=("other",))
    assert q.take("w", trial=True) == []
    assert q.state("s") == State.PARKED


def test_a_suspect_that_was_parked_is_still_a_suspect(q):
    make_suspect(q, "s")
    q.beat("w", tasks=("other",))
    q.take("w", trial=True)
    q.beat("w", tasks=("t",))
    assert q.take("w") == []
    assert q.take("w", trial=True) == ["s"]


@pytest.mark.damages_store
def test_a_ready_id_without_a_record_is_dropped_and_counted(q, store):
    q.beat("w")
    q.enqueue("a", "b", "c")
    damaged = store.lose_record(q.queue, "b")
    if damaged:
        assert q.take("w") == ["a", "c"]
        assert q.totals()["repairs"] == 1
        assert q.stats().ready == [0] * 5
        assert q.take("w") == []


@pytest.mark.damages_store
def test_a_dropped_id_takes_no_slot(q, store):
    q.beat("w")
    q.enqueue("a", "b", "c")
    if store.lose_record(q.queue, "a"):
        assert q.take("w", 1) == ["b"]


def test_come_again_now_when_there_is_more(q, clock):
    q.beat("w")
    q.enqueue("a", "b")
    assert q.claim("w", 1).next_at == clock.wall
    assert q.claim("w", 1).next_at is None


def test_come_again_a_little_later_when_cut_to_a_share(q, clock):
    q.beat("a", "b")
    q.enqueue(*jobs(10))
    claimed = q.claim("a")
    assert (claimed.next_at, claimed.cut) == (clock.wall + 50, True)
    claimed = q.claim("b", 2)
    assert (claimed.next_at, claimed.cut) == (clock.wall, False)


def test_more_in_a_lane_not_asked_for_is_no_reason_to_come(q):
    q.beat("w")
    q.enqueue(job("p", lane=1))
    assert q.claim("w", 5, 0).next_at is None


def test_jobs_that_were_parked_are_no_reason_to_come(q):
    q.beat("w")
    q.enqueue(job("u", "unknown"))
    assert q.claim("w").next_at is None


def test_suspects_are_a_reason_for_trials_only(q, clock):
    make_suspect(q, "s1", "s2")
    q.beat("w")
    assert q.claim("w").next_at is None
    assert q.claim("w", trial=True).next_at == clock.wall
    assert q.claim("w", trial=True).next_at is None


def test_come_again_when_the_first_job_is_due(q, clock):
    q.beat("w")
    q.enqueue(job("b", delay=5000), job("a", delay=3000))
    assert q.claim("w").next_at == clock.wall + 3000


def test_come_again_when_a_foreign_lease_ends(q, clock):
    q.beat("w", "other")
    q.enqueue(job("a", delay=LEASE + 5))
    q.claim("w")
    clock.advance(1)
    q.beat("w")
    assert q.claim("w").next_at == clock.wall + LEASE - 1


def test_nobody_else_and_nothing_due_is_no_time_to_come(q):
    q.beat("w")
    assert q.claim("w").next_at is None


def test_parked_jobs_can_be_cancelled_and_deleted(q):
    q.beat("w")
    q.enqueue(job("a", "unknown"), job("b", "unknown"))
    q.take("w")
    assert q.act(Cancel(), "a") == ["a"]
    assert q.act(Delete(), "b") == ["b"]
    assert q.stats().parked == {}
