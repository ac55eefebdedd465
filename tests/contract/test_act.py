"""`Act`: every action on a job of every state."""

import msgspec
import pytest

from spool.broker import Cancel, Delete, Pause, Replay, Resume
from spool.errors import ConfigError
from spool.job import NIL, Ending, State, read_ending, read_tally
from tests.contract.driver import CORRUPT, NEWER_TAIL, NO_TALLIES, Driver, job, jobs, tally, until
from tests.contract.test_enqueue import (
    into_cancelled,
    into_dead,
    into_done,
    into_parked,
    into_ready,
    into_running,
    into_scheduled,
    into_suspect,
)

STATES = [
    into_ready,
    into_scheduled,
    into_running,
    into_parked,
    into_suspect,
    into_dead,
    into_done,
    into_cancelled,
]
NOT_STARTED = {State.SCHEDULED, State.READY, State.PARKED, State.SUSPECT}


def bring(q: Driver, into) -> State:
    q.beat("w")
    q.enqueue(job("a", fingerprint="f", delay=5000 if into is into_scheduled else 0))
    state = into(q)
    assert q.state("a") == state
    return state


KEYS = ["k", "order-17", "A" * 31, "b" * 32, "C" * 65, "d:e.f" * 25, "z" * 127]


@pytest.mark.parametrize("key", KEYS, ids=len)
def test_what_is_cancelled_keeps_its_key(q, key):
    headers = {"last": "\u0440"}  # whose last byte is one that may begin a key
    payloads = [msgspec.msgpack.Ext(5, b"\xc0" * 5), "x" * 3000, "\xd9A"]
    keyed = [job(f"k{n}", key=key, payload=payload, headers=headers) for n, payload in enumerate(payloads)]
    plain = [job(f"p{n}", payload=payload, headers=headers) for n, payload in enumerate(payloads)]
    q.enqueue(*keyed, *plain, job("damaged", body=CORRUPT))
    q.act(Cancel(), *(each.id for each in (*keyed, *plain)), "damaged")
    assert [read_ending(q.get(each.id).ending).key for each in keyed] == [key] * 3
    for each in plain:
        ending = q.get(each.id).ending
        assert read_ending(ending).key is None
        assert ending[0] == 0x9D, "one element less, and no byte more than before there were keys"
    assert read_ending(q.get("damaged").ending).key is None


NO_KEYS = [
    "",
    " ",
    "a b",
    "a\nb",
    "-a",
    ".a",
    "\u00e9",
    "\u00fcabc",
    "\u00e3abc",  # whose last byte but those of "abc" is also how a text of three begins
    "\u1023abc",
    "\U0001f4a3abc",
    "x\u00b5" + "a" * 21,
    "-" * 32,
    "\u0661" + "b" * 40,
    "x" * 128,
    "x" * 160,
    "x" * 200,
    "x" * 300,
]


@pytest.mark.parametrize("last", ["\u0440", "\u1023", "\U0001f4a3", "", "x" * 40])
def test_what_is_cancelled_keeps_no_key_that_is_none(q, last):
    headers = {"last": last}
    for number, key in enumerate((*NO_KEYS, "abc")):
        q.enqueue(job(f"j{number:02}", key=key, headers=headers))
    ids = q.ids(State.READY)
    assert q.act(Cancel(), *ids) == ids
    assert [read_ending(q.get(id).ending).key for id in ids] == [None] * len(NO_KEYS) + ["abc"]


@pytest.mark.parametrize("into", STATES)
def test_cancel_ends_what_has_not_started(q, into):
    state = bring(q, into)
    before = q.dump()
    changed = q.act(Cancel(reason="no longer needed"), "a")
    if state in NOT_STARTED:
        assert changed == ["a"]
        assert q.ids(State.CANCELLED) == ["a"]
        assert q.ids(state) == []
        assert q.totals()["cancelled"] == 1
        assert read_ending(q.get("a").ending).reason == "no longer needed"
    elif state is State.RUNNING:
        assert changed == ["a"]
        assert q.dump() == before
        assert q.beat("w")[0].cancel == {"a": "no longer needed"}
    else:
        assert changed == []
        assert q.dump() == before


@pytest.mark.parametrize("into", STATES)
def test_replay_puts_dead_jobs_back(q, into):
    state = bring(q, into)
    before = q.dump()
    changed = q.act(Replay(), "a")
    if state is State.DEAD:
        assert changed == ["a"]
        assert (q.ids(State.READY), q.ids(State.DEAD)) == (["a"], [])
        assert q.totals()["replayed"] == 1
    else:
        assert changed == []
        assert q.dump() == before


@pytest.mark.parametrize("into", STATES)
def test_delete_forgets_all_but_running_ones(q, into):
    state = bring(q, into)
    before = q.dump()
    changed = q.act(Delete(), "a")
    if state is State.RUNNING:
        assert changed == []
        assert q.dump() == before
    else:
        assert changed == ["a"]
        assert q.get("a") is None
        assert q.ids(state) == []
        assert q.totals()["deleted"] == 1


@pytest.mark.parametrize("into", STATES)
@pytest.mark.parametrize("action", [Cancel(), Replay(), Delete()])
def test_a_job_in_a_state_that_is_not_meant_is_left(q, into, action):
    state = bring(q, into)
    before = q.dump()
    assert q.act(action, "a", states=tuple(each for each in State if each is not state)) == []
    assert q.dump() == before
    assert q.beat("w")[0].cancel == {}


@pytest.mark.parametrize("into", STATES)
@pytest.mark.parametrize("action", [Cancel(), Replay(), Delete()])
def test_a_job_in_a_state_that_is_meant_is_changed_as_without_states(q, broker, clock, into, action):
    state = bring(q, into)
    other = Driver(broker, clock, "other")
    bring(other, into)
    assert q.act(action, "a", states=(state,)) == other.act(action, "a")
    assert q.state("a") == other.state("a")
    assert q.totals() == other.totals()


def test_of_several_jobs_only_those_in_states_that_are_meant(q):
    q.worker("w", "a", "b", "c", "d")
    q.settle("w", q.died("a"), q.died("b"), q.done("c"))
    q.enqueue("e", job("f", delay=5000))
    q.act(Replay(), "b")
    assert q.act(Delete(), "f", "e", "d", "c", "b", "a", "never", states=(State.DEAD, State.SCHEDULED)) == ["f", "a"]
    assert q.act(Cancel(), "b", "d", "e", states=(State.RUNNING,)) == ["d"]
    assert (q.ids(State.READY), q.ids(State.RUNNING), q.ids(State.DONE)) == (["e", "b"], ["d"], ["c"])


def test_states_do_not_matter_to_a_queue(q):
    q.act(Pause(), states=(State.DEAD,))
    assert q.stats().paused
    q.act(Resume(), states=(State.DEAD,))
    assert not q.stats().paused


@pytest.mark.parametrize("into", STATES)
@pytest.mark.parametrize("action", [Cancel(), Replay(), Delete()])
def test_sent_twice_it_does_nothing_twice(q, into, action):
    bring(q, into)
    q.act(action, "a")
    before = q.dump()
    assert q.act(action, "a") == []
    assert q.dump() == before


@pytest.mark.parametrize("action", [Cancel(), Replay(), Delete(), Pause(), Resume()])
def test_unknown_ids_are_passed_over(q, action):
    assert q.act(action, "never", "nowhere") == []
    assert q.totals() == {}
    assert q.get("never") is None


def test_the_ids_that_changed_come_in_the_order_given(q):
    q.worker("w", "b", "a")
    q.enqueue("c", "d", "e")
    q.settle("w", q.done("a"))
    assert q.act(Cancel(), "e", "never", "b", "a", "c") == ["e", "b", "c"]


def test_an_id_named_twice_changes_once(q):
    q.enqueue("a")
    assert q.act(Cancel(), "a", "a") == ["a"]
    assert q.totals()["cancelled"] == 1


def test_a_thousand_ids_in_one_call(q):
    q.enqueue(*jobs(1000))
    ids = [each.id for each in jobs(1000)]
    assert q.act(Cancel(), *ids) == ids
    assert sorted(q.ids(State.CANCELLED, 1000)) == ids


def test_the_ending_of_a_cancelled_job_says_what_it_was(q):
    q.worker("w", job("a", priority=1, fingerprint="f"))
    text = tally(attempts=5, failures=1)
    q.settle("w", q.retried("a", delay=100, text=text))
    q.clock.advance(7)
    q.act(Cancel(reason='why "not"\n☃'), "a")
    ended: Ending = read_ending(q.get("a").ending)
    assert (ended.version, ended.state, ended.task, ended.fingerprint) == (1, "cancelled", "t", "f")
    assert (ended.created, ended.finished, ended.attempts) == (1_700_000_000_000, q.clock.wall, 5)
    assert (ended.result, ended.reason, ended.tally, ended.priority) == (NIL, 'why "not"\n☃', text, 1)


def test_the_ending_of_a_damaged_job_can_be_read(q):
    q.enqueue(job("a", body=CORRUPT))
    assert q.act(Cancel(), "a") == ["a"]
    ended = read_ending(q.get("a").ending)
    assert (ended.state, ended.task, ended.finished) == ("cancelled", "", q.clock.wall)


def test_a_cancelled_job_is_remembered_for_its_ttl(q):
    q.enqueue(job("a", fingerprint="f"), job("b", fingerprint="f"))
    q.act(Cancel(ttl=30), "a")
    q.act(Cancel(ttl=60_000), "b")
    q.clock.advance(40)
    until(lambda: q.get("a") is None)
    assert q.enqueue(job("a", fingerprint="g"), job("b", fingerprint="g")).conflicts == ["b"]


def test_a_job_cancelled_with_no_ttl_is_not_remembered(q):
    q.enqueue("a")
    assert q.act(Cancel(ttl=0), "a") == ["a"]
    assert q.get("a") is None
    assert q.ids(State.CANCELLED) == []
    assert q.totals()["cancelled"] == 1


def test_a_cancelled_job_is_not_handed_out(q):
    q.beat("w")
    q.enqueue("a", "b", "c", job("d", delay=5))
    q.act(Cancel(), "b", "d")
    q.clock.advance(10)
    assert q.take("w") == ["a", "c"]


def test_a_job_with_a_noted_wish_can_be_cancelled_once_it_is_back(q):
    q.worker("w", "a")
    q.act(Cancel(reason="first"), "a")
    q.settle("w", q.retried("a", delay=500))
    assert q.act(Cancel(reason="second"), "a") == ["a"]
    assert q.state("a") == State.CANCELLED


def test_a_dead_job_has_no_wish_left_when_it_is_replayed(q):
    q.worker("w", "a")
    q.act(Cancel(), "a")
    q.settle("w", q.died("a"))
    q.act(Replay(), "a")
    q.take("w")
    assert q.beat("w")[0].cancel == {}


def test_replay_goes_to_the_tail_of_its_priority(q):
    q.worker("w", job("x", priority=1), "a")
    q.settle("w", q.died("x"), q.died("a"))
    q.enqueue("b", "c")
    assert q.act(Replay(), "a", "x") == ["a", "x"]
    assert q.take("w") == ["x", "b", "c", "a"]


def test_replay_keeps_the_lane(q):
    q.worker("w", job("a", lane=1))
    q.settle("w", q.died("a"))
    q.act(Replay(), "a")
    assert q.take("w", 9, 0) == []
    assert q.take("w", 0, 9) == ["a"]


def test_replay_in_the_order_given(q):
    q.worker("w", "a", "b", "c")
    q.settle("w", q.died("a"), q.died("b"), q.died("c"))
    q.act(Replay(), "c", "a", "b")
    assert q.ids(State.READY) == ["c", "a", "b"]


def test_replay_begins_a_generation(q):
    q.worker("w", "a")
    text = tally(attempts=4, failures=3, crashes=2)
    q.settle("w", q.died("a", text=text))
    q.act(Replay(), "a")
    numbers, lines = q.history("a")
    assert (numbers.attempts, numbers.failures, numbers.crashes, numbers.generation) == (4, 0, 0, 1)
    assert lines == read_tally(text)[1]


def test_each_replay_begins_a_generation(q):
    q.worker("w", "a")
    for generation in range(1, 4):
        q.settle("w", q.died("a", text=q.get("a").tally or tally()))
        q.act(Replay(), "a")
        assert q.tally("a").generation == generation
        q.take("w")


def test_a_job_that_crashed_to_death_begins_anew(q):
    q.worker("w", job("a", max_crashes=1))
    q.retire("w", "crashed")
    q.act(Replay(), "a")
    assert q.state("a") == State.READY
    assert q.tally("a").crashes == 0


def test_a_suspect_that_died_is_no_suspect_after_its_replay(q):
    bring(q, into_suspect)
    assert q.take("w", trial=True) == ["a"]
    q.retire("w", "crashed")
    assert q.state("a") == State.DEAD
    q.act(Replay(), "a")
    q.beat("v")
    assert q.take("v") == ["a"]


def test_a_replayed_job_has_no_time_of_death(q):
    bring(q, into_dead)
    q.act(Replay(), "a")
    assert q.get("a").finished is None


def test_replay_of_a_job_without_a_tally(q):
    q.worker("w", "a")
    q.settle("w", q.died("a", text=""))
    assert q.act(Replay(), "a") == ["a"]
    assert q.tally("a").generation == 1


def test_replay_of_jobs_whose_tallies_are_damaged(q):
    texts = dict(zip((f"j{n:02}" for n in range(100)), NO_TALLIES, strict=False))
    q.worker("w", "first", *texts, "last")
    q.settle("w", q.died("first"), *(q.died(id, text=text) for id, text in texts.items()), q.died("last"))
    ids = ["first", *texts, "last"]
    assert q.act(Replay(), *ids) == ids
    assert (q.ids(State.READY), q.ids(State.DEAD)) == (ids, [])
    assert [q.get(id).tally for id in texts] == ["[1,0,0,0,0,1]"] * len(texts)
    assert q.tally("last").attempts == q.tally("last").generation == 1


def test_replay_keeps_what_a_newer_release_appended(q):
    lines = '[1,"died",1,2,"w","","","",null,"new"]'
    q.worker("w", "a")
    q.settle("w", q.died("a", text=f"[1,2,1,0,1,0{NEWER_TAIL}\n{lines}"))
    assert q.act(Replay(), "a") == ["a"]
    assert q.get("a").tally == f"[1,2,0,0,1,1{NEWER_TAIL}\n{lines}"


def test_cancel_of_jobs_whose_tallies_are_damaged(q):
    texts = dict(zip((f"j{n:02}" for n in range(100)), NO_TALLIES, strict=False))
    q.worker("w", *texts)
    q.settle("w", *(q.released(id, text=text) for id, text in texts.items()))
    assert q.act(Cancel(), *texts) == list(texts)
    assert {read_ending(q.get(id).ending).attempts for id in texts} == {0}


@pytest.mark.parametrize("action", [Cancel(), Replay(), Delete()])
def test_more_than_a_thousand_at_once_are_refused(q, action):
    ids = q.worker("w", *jobs(1001))
    q.settle("w", *(q.died(id) for id in ids))
    with pytest.raises(ConfigError, match="1,001 jobs are too many to be acted on at once: at most 1,000"):
        q.act(action, *ids)
    assert q.stats().dead == 1001
    assert q.act(Replay(), *ids[:1000]) == ids[:1000]
    assert (sum(q.stats().ready), q.stats().dead) == (1000, 1)


def test_pause_and_resume(q):
    q.beat("w")
    q.enqueue("a", "b")
    assert q.take("w", 1) == ["a"]
    q.act(Pause(), "a")
    assert q.stats().paused
    assert q.take("w") == []
    assert q.settle("w", q.done("a")).accepted == 1
    q.act(Resume(), "b")
    assert not q.stats().paused
    assert q.take("w") == ["b"]


def test_a_queue_can_be_paused_before_its_first_job(q):
    q.act(Pause())
    q.beat("w")
    q.enqueue("a")
    assert q.take("w") == []


def test_pausing_one_queue_leaves_the_others(q, broker, clock):
    q.act(Pause())
    other = Driver(broker, clock, "other")
    other.beat("w")
    other.enqueue("a")
    assert other.take("w") == ["a"]


def test_a_paused_queue_can_be_tidied(q):
    q.enqueue("a", "b")
    q.act(Pause())
    assert q.act(Cancel(), "a") == ["a"]
    assert q.act(Delete(), "b") == ["b"]
