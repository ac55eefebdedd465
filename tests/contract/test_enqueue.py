"""`Enqueue`: what is stored, in which order, and what an id given by the caller means."""

import msgspec
import pytest

from spool.broker import Enqueue
from spool.errors import ConfigError
from spool.job import State
from tests.contract.driver import CORRUPT, Driver, ending, job, jobs, record


@pytest.fixture(autouse=True)
def worker(q: Driver):
    q.beat("w")


def test_jobs_are_taken_in_the_order_given(q):
    q.enqueue("a", "b", "c")
    q.enqueue("d")
    assert q.take("w") == ["a", "b", "c", "d"]


def test_the_order_does_not_depend_on_the_ids(q):
    q.enqueue("z", "m", "a")
    assert q.take("w") == ["z", "m", "a"]


def test_a_higher_priority_is_taken_first_whenever_it_came(q):
    q.enqueue(*(job(f"p{priority}", priority=priority) for priority in (4, 2, 0, 3, 1)))
    q.enqueue(job("late", priority=0))
    assert q.take("w") == ["p0", "late", "p1", "p2", "p3", "p4"]


def test_the_record_comes_back_as_it_was_given(q):
    body = record(payload="\x00\n\udcff".encode("utf-8", "surrogateescape").hex())
    q.enqueue(job("a", body=body), job("bytes", body=CORRUPT))
    assert q.claim("w").jobs == [("a", body), ("bytes", CORRUPT)]


def test_a_call_of_no_jobs_does_nothing(q):
    reply = q.enqueue()
    assert (reply.existing, reply.conflicts, q.totals()) == ([], [], {})


def test_thousands_of_jobs_are_stored_in_one_step_and_in_order(q):
    many = jobs(5000)
    q.enqueue(*many)
    assert sum(q.stats().ready) == 5000
    assert [each.id for each in many[:100]] == q.take("w", 100)


def test_thousands_of_jobs_with_ids_of_the_caller_are_looked_up(q):
    many = jobs(3000, fingerprint="f")
    q.enqueue(*many[1000:2000])
    reply = q.enqueue(*many)
    assert reply.existing == [each.id for each in many[1000:2000]]
    assert q.totals() == {"enqueued": 3000}


def test_a_large_record_is_stored(q):
    body = record(payload="x" * 1_000_000)
    q.enqueue(job("a", body=body))
    assert q.claim("w").jobs == [("a", body)]


def test_now_is_the_clock_of_the_store(q, clock):
    assert q.enqueue("a").now == clock.wall
    clock.advance(7)
    assert q.enqueue("b").now == clock.wall


def test_a_delayed_job_is_scheduled_by_the_clock_of_the_store(q, clock):
    q.enqueue(job("a", delay=5000))
    found = q.get("a")
    assert (found.state, found.due) == (State.SCHEDULED, clock.wall + 5000)
    assert q.take("w") == []


def test_a_job_with_a_due_time_is_scheduled_for_it(q, clock):
    q.enqueue(job("a", due=clock.wall + 1234))
    found = q.get("a")
    assert (found.state, found.due) == (State.SCHEDULED, clock.wall + 1234)


def test_a_past_due_time_is_ready_at_once(q, clock):
    q.enqueue("a", job("b", due=clock.wall - 1), "c", job("d", due=1))
    assert q.ids(State.READY) == ["a", "b", "c", "d"]


def test_ready_and_scheduled_jobs_of_all_lanes_and_priorities_go_into_one_call(q):
    q.enqueue("a", job("b", delay=9), job("c", lane=1), job("d", priority=0), job("e", priority=0, lane=1, delay=1))
    assert q.ids(State.SCHEDULED) == ["e", "b"]
    assert q.ids(State.READY) == ["d", "a", "c"]
    assert q.stats().ready == [1, 0, 2, 0, 0]


def test_only_stored_jobs_count_as_enqueued(q):
    q.enqueue(job("a", fingerprint="f"), "b", job("c", delay=5))
    q.enqueue(job("a", fingerprint="f"), job("a", fingerprint="other"))
    assert q.totals() == {"enqueued": 3}


def into_ready(q):
    return State.READY


def into_scheduled(q):
    return State.SCHEDULED


def into_running(q):
    assert q.take("w") == ["a"]
    return State.RUNNING


def into_parked(q):
    q.beat("w", tasks=("other",))
    assert q.take("w") == []
    return State.PARKED


def into_suspect(q):
    for number in range(2):
        q.beat(f"w{number}")
        assert q.take(f"w{number}") == ["a"]
        q.retire(f"w{number}", "crashed")
    return State.SUSPECT


def into_dead(q):
    q.take("w")
    q.settle("w", q.died("a"))
    return State.DEAD


def into_done(q):
    q.take("w")
    q.settle("w", q.done("a", body=ending(fingerprint="f")))
    return State.DONE


def into_cancelled(q):
    q.take("w")
    q.settle("w", q.cancelled("a"))
    return State.CANCELLED


KNOWN = [
    into_ready,
    into_scheduled,
    into_running,
    into_parked,
    into_suspect,
    into_dead,
    into_done,
]


@pytest.mark.parametrize("bring", KNOWN)
def test_an_id_is_known_in_every_state(q, bring):
    q.enqueue(job("a", fingerprint="f", delay=5000 if bring is into_scheduled else 0))
    state = bring(q)
    before = q.dump()
    same = q.enqueue(job("a", fingerprint="f", priority=0))
    other = q.enqueue(job("a", fingerprint="g"))
    unsaid = q.enqueue("a", resend=True)
    assert (same.existing, same.conflicts) == (["a"], [])
    assert (other.existing, other.conflicts) == ([], ["a"])
    assert (unsaid.existing, unsaid.conflicts) == (["a"], [])
    assert q.state("a") == state
    assert q.dump() == before


def test_an_ending_without_a_fingerprint_is_the_same_job(q):
    q.enqueue(job("a", fingerprint="f"))
    into_cancelled(q)
    assert q.enqueue(job("a", fingerprint="g")).existing == ["a"]
    assert q.state("a") == State.CANCELLED


def test_a_job_without_a_fingerprint_is_the_same_as_any(q):
    q.enqueue("a")
    assert q.enqueue(job("a", fingerprint="f")).existing == ["a"]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    ("known", "given", "same"),
    [("fg", "f", True), ("f", "fg", True), ("fg", "fh", False), ("fg", "g", False), ("g", "fg", False)],
)
def test_a_fingerprint_that_says_less_is_that_of_the_same_job(q, ended, known, given, same):
    q.enqueue(job("a", fingerprint=known))
    if ended:
        q.take("w")
        q.settle("w", q.done("a", body=ending(fingerprint=known)))
    reply = q.enqueue(job("a", fingerprint=given))
    assert (reply.existing, reply.conflicts) == ((["a"], []) if same else ([], ["a"]))
    reply = q.enqueue(job("b", fingerprint=known), job("b", fingerprint=given))
    assert reply.conflicts == ([] if same else ["b"])
    assert q.totals()["enqueued"] == 2


def test_an_ending_that_cannot_be_read_still_takes_the_id(q):
    q.enqueue(job("a", fingerprint="f"))
    q.take("w")
    q.settle("w", q.done("a", body=CORRUPT))
    assert q.enqueue(job("a", fingerprint="g")).existing == ["a"]


def test_a_fingerprint_that_is_none_still_takes_the_id(q):
    q.enqueue(job("a", body=msgspec.msgpack.encode([1, "t", 2, 0, 3, ["f"], 1, [[], {}]])))
    assert q.enqueue(job("a", fingerprint="g")).existing == ["a"]


def test_a_damaged_job_still_takes_the_id(q):
    q.enqueue(job("a", body=CORRUPT))
    assert q.enqueue(job("a", fingerprint="g")).existing == ["a"]
    assert q.get("a").record == CORRUPT


def test_what_is_new_is_stored_beside_what_is_known(q):
    q.enqueue(job("a", fingerprint="f"), job("b", fingerprint="f"))
    reply = q.enqueue(job("c", fingerprint="f"), job("a", fingerprint="f"), job("b", fingerprint="g"), "d")
    assert (reply.existing, reply.conflicts) == (["a"], ["b"])
    assert q.ids(State.READY) == ["a", "b", "c", "d"]


def test_of_repeats_within_one_call_the_first_counts(q):
    first = job("a", fingerprint="f", payload="first")
    q.enqueue(first, job("a", fingerprint="f", payload="second"), job("b", fingerprint="f"))
    assert q.get("a").record == first.record
    assert q.ids(State.READY) == ["a", "b"]
    assert q.totals() == {"enqueued": 2}


def test_repeats_with_other_arguments_within_one_call_conflict(q):
    reply = q.enqueue(job("a", fingerprint="f"), job("a", fingerprint="g"))
    assert reply.conflicts == ["a"]
    assert q.totals() == {"enqueued": 1}


def test_repeats_are_seen_between_ready_and_scheduled_ones_too(q):
    q.enqueue(job("a", fingerprint="f", delay=100), job("a", fingerprint="f", priority=0))
    assert q.state("a") == State.SCHEDULED
    assert q.totals() == {"enqueued": 1}


def test_a_call_sent_again_stores_only_what_is_missing(q):
    q.enqueue("a", "b")
    reply = q.enqueue("a", "b", "c", resend=True)
    assert (reply.existing, reply.conflicts) == (["a", "b"], [])
    assert q.take("w") == ["a", "b", "c"]
    assert q.totals() == {"enqueued": 3}


def test_a_call_sent_again_finds_jobs_that_ended_meanwhile(q):
    q.enqueue("a", "b")
    q.take("w", 1)
    q.settle("w", q.done("a"))
    assert q.enqueue("a", "b", resend=True).existing == ["a", "b"]
    assert q.state("a") == State.DONE


def test_queues_know_nothing_of_each_others_ids(q, broker):
    q.enqueue(job("a", fingerprint="f"))
    reply = broker.call(Enqueue("other", [job("a", fingerprint="g")]))
    assert (reply.existing, reply.conflicts) == ([], [])


def test_a_deleted_id_is_free_again(q):
    from spool.broker import Delete

    q.enqueue(job("a", fingerprint="f"))
    q.act(Delete(), "a")
    assert q.enqueue(job("a", fingerprint="g")).conflicts == []
    assert q.state("a") == State.READY


@pytest.mark.parametrize("queue", ["a.b:c-d_E9", "x" * 127, "spool", "0"])
def test_any_allowed_name_is_a_queue(broker, clock, queue):
    q = Driver(broker, clock, queue)
    q.beat("w")
    q.enqueue("a")
    assert q.take("w") == ["a"]
    assert broker.call(Enqueue("q", [])).existing == []


def test_an_id_twice_in_one_call_is_one_job(q):
    first, second = record(payload="one"), record(payload="two")
    reply = q.enqueue(job("a", body=first), job("b"), job("a", body=second))
    assert (reply.existing, q.totals()["enqueued"]) == (["a"], 2)
    assert q.claim("w").jobs == [("a", first), ("b", record())]


def test_of_delay_and_due_the_time_counts(q):
    q.enqueue(job("a", delay=5, due=q.clock.wall + 50))
    assert q.get("a").due == q.clock.wall + 50


@pytest.mark.parametrize("place", [{"priority": 5}, {"priority": -1}, {"lane": 2}])
def test_a_place_that_no_claim_looks_at_is_refused(place):
    with pytest.raises(ConfigError, match="not usable"):
        job("a", **place)
