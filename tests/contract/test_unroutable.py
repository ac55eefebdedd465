"""`Claim.unroutable_after`: parked jobs that nobody came for die, if who claims says so."""

import msgspec
import pytest

from spool.broker import Cancel, Delete, Pause, Replay
from spool.job import Attempt, State
from tests.contract.driver import LEASE, job, jobs, tally
from tests.contract.test_claim import make_suspect
from tests.contract.test_waiting import in_thread

AFTER = 2000


@pytest.fixture
def bury(q):
    """Claim nothing, with the field given; returns how many died of it."""

    def bury(incarnation="w", after=AFTER):
        before = q.totals().get("dead", 0)
        q.claim(incarnation, 0, unroutable_after=after)
        return q.totals().get("dead", 0) - before

    return bury


def park(q, *new):
    q.beat("w")
    q.enqueue(*new)
    assert q.take("w") == []


def test_by_default_parked_jobs_wait_for_ever(q):
    park(q, job("a", "unknown"))
    for _ in range(5):
        q.march(LEASE, "w")
        q.promote("w")
    assert (q.state("a"), q.totals()) == (State.PARKED, {"enqueued": 1})


def test_a_job_dies_when_it_was_parked_for_longer(q, bury, clock):
    park(q, job("a", "unknown"))
    clock.advance(AFTER)
    assert bury() == 0
    assert q.state("a") == State.PARKED
    clock.advance(1)
    assert bury() == 1
    found = q.get("a")
    assert (found.state, found.finished, found.incarnation) == (State.DEAD, clock.wall, None)
    assert (q.ids(State.DEAD), q.ids(State.PARKED)) == (["a"], [])
    assert (q.stats().parked, q.stats().dead) == ({}, 1)
    assert q.totals() == {"enqueued": 1, "dead": 1}
    assert bury() == 0


def test_the_time_is_by_parking_not_by_enqueueing(q, bury, clock):
    q.enqueue(job("a", "unknown"))
    clock.advance(5 * AFTER)
    q.beat("w")
    q.take("w")
    assert bury() == 0


def test_the_tally_says_of_what_it_died(q, bury, clock):
    park(q, job("a", "unknown"))
    since = clock.wall
    clock.advance(2999)
    bury()
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.failures, numbers.crashes, numbers.losses, numbers.generation) == (0, 0, 0, 0, 0)
    message = "no worker knew the task unknown for 2 s"
    assert lines == [Attempt(0, "died", since, clock.wall, "w", "Unroutable", message)]


def test_attempts_and_failures_stay_as_they_were(q, bury, clock):
    q.worker("w", "a")
    q.settle("w", q.retried("a", text=tally(attempts=4, failures=2)))
    q.beat("w", tasks=())
    assert q.take("w") == []
    before, (first,) = q.history("a")
    clock.advance(AFTER + 1)
    assert bury() == 1
    numbers, lines = q.history("a")
    assert (numbers, lines[0]) == (before, first)
    assert [(each.number, each.outcome) for each in lines[1:]] == [(4, "died")]


@pytest.mark.parametrize("task", ['the "task"', "back\\slash", "größe/日本", "100%d"])
def test_a_task_may_be_called_anything(q, bury, clock, task):
    park(q, job("a", task))
    clock.advance(AFTER + 1)
    assert bury() == 1
    assert q.history("a")[1][0].message == f"no worker knew the task {task} for 2 s"


def test_who_waits_is_told(q, broker, bury, clock):
    park(q, job("a", "unknown"))
    collect = in_thread(broker, "a")
    clock.advance(AFTER + 1)
    bury()
    assert collect() == [q.get("a")]


def test_a_noted_cancellation_goes(q, bury, clock):
    q.worker("w", "a")
    q.act(Cancel("enough"), "a")
    q.retire("w")
    q.beat("other", tasks=())
    assert q.take("other") == []
    clock.advance(AFTER + 1)
    assert bury("other") == 1
    q.act(Replay(), "a")
    q.beat("other", tasks=("t",))
    assert q.take("other") == ["a"]
    assert q.beat("other")[0].cancel == {}


def test_the_time_begins_anew_when_it_is_parked_again(q, bury, clock):
    park(q, job("a", "u"))
    clock.advance(AFTER - 100)
    q.beat("w", tasks=("u",))
    q.promote("w")
    assert q.state("a") == State.READY
    q.beat("w", tasks=("t",))
    assert q.take("w") == []
    since = clock.wall
    clock.advance(AFTER)
    assert bury() == 0
    clock.advance(1)
    assert bury() == 1
    assert q.history("a")[1][0].started == since


def test_at_most_a_hundred_die_at_a_time_the_longest_parked_first(q, bury, clock):
    park(q, *jobs(150, "first", task="unknown"))
    clock.advance(10)
    park(q, *jobs(30, "later", task="other"))
    clock.advance(AFTER + 1)
    assert bury() == 100
    assert sorted(q.ids(State.DEAD)) == [f"first{number:05}" for number in range(100)]
    assert bury() == 80
    assert bury() == 0


def test_a_repeated_claim_lets_none_die(q, bury, clock):
    park(q, *jobs(150, task="unknown"))
    clock.advance(AFTER + 1)
    assert bury() == 100
    q.call(msgspec.structs.replace(q.last_claim("w", 0), unroutable_after=AFTER))
    assert q.totals()["dead"] == 100


def test_of_cancelled_and_deleted_ones_nothing_is_left(q, bury, clock):
    park(q, job("a", "unknown", fingerprint="f"), job("b", "unknown", fingerprint="f"))
    q.act(Cancel(), "a")
    q.act(Delete(), "b")
    clock.advance(AFTER + 1)
    assert bury() == 0
    assert q.state("a") == State.CANCELLED
    q.act(Delete(), "a")
    park(q, job("a", "unknown", fingerprint="f"))
    clock.advance(AFTER)
    assert bury() == 0
    assert q.state("a") == State.PARKED


def test_a_task_that_is_known_now_is_run_however_long_it_was_parked(q, clock):
    park(q, job("a", "u"))
    clock.advance(2 * AFTER)
    q.beat("w", tasks=("u",))
    assert [id for id, _ in q.claim("w", unroutable_after=AFTER).jobs] == ["a"]


def test_known_ones_that_are_not_unparked_yet_do_not_die(q, bury, clock):
    q.beat("w")
    q.enqueue(*jobs(1200, "u", task="u"), job("x", "unknown"))
    while sum(q.stats().parked.values()) < 1201:
        q.take("w")
    clock.advance(2 * AFTER)
    q.beat("w", tasks=("t", "u"))
    for _ in range(5):
        bury()
    assert q.ids(State.DEAD) == ["x"]
    assert sum(q.stats().ready) == 1200


def test_who_says_nothing_lets_none_die(q, bury, clock):
    park(q, job("a", "unknown"))
    q.beat("other")
    clock.advance(2 * AFTER)
    assert bury("other", 0) == 0
    assert bury("w", 3 * AFTER) == 0
    assert bury("w") == 1


def test_they_die_while_paused(q, bury, clock):
    park(q, job("a", "unknown"))
    q.act(Pause())
    clock.advance(AFTER + 1)
    assert bury() == 1


def test_a_suspect_dies_too_and_comes_back_as_an_ordinary_job(q, bury, clock):
    make_suspect(q, "s")
    q.beat("w", tasks=())
    q.take("w", trial=True)
    clock.advance(AFTER + 1)
    assert bury() == 1
    q.act(Replay(), "s")
    assert q.state("s") == State.READY


def test_a_replayed_one_is_ready_and_may_be_parked_again(q, bury, clock):
    park(q, job("a", "unknown"))
    clock.advance(AFTER + 1)
    bury()
    assert q.act(Replay(), "a") == ["a"]
    assert q.state("a") == State.READY
    assert [id for id, _ in q.claim("w", unroutable_after=AFTER).jobs] == []
    assert q.state("a") == State.PARKED
    clock.advance(AFTER + 1)
    assert bury() == 1
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.generation, len(lines)) == (0, 1, 2)
    q.act(Replay(), "a")
    q.beat("w", tasks=("unknown",))
    assert q.take("w") == ["a"]
