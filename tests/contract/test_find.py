"""`Get` and `Find`: a job as it stands, and lists of one state, page by page."""

from contextlib import suppress

import pytest

from spool.broker import Act, Delete, Find, Watch
from spool.errors import ConfigError
from spool.job import Snapshot, State
from tests.contract.driver import CORRUPT, LEASE, ending, job, jobs, record, tally
from tests.contract.test_claim import make_suspect
from tests.model import ModelBroker


def test_a_job_that_is_not_known_is_none(q):
    assert q.get("never") is None


def test_ready(q):
    q.enqueue("a")
    assert q.get("a") == Snapshot("q", "a", State.READY, record())


def test_scheduled(q):
    q.enqueue(job("a", delay=5))
    assert q.get("a") == Snapshot("q", "a", State.SCHEDULED, record(), due=q.clock.wall + 5)


def test_running(q):
    q.worker("w", "a")
    assert q.get("a") == Snapshot("q", "a", State.RUNNING, record(), incarnation="w", started=q.clock.wall)


def test_running_with_a_tally(q):
    q.worker("w", "a")
    q.settle("w", q.released("a"))
    q.take("w")
    found = q.get("a")
    assert (found.state, found.tally) == (State.RUNNING, tally(outcome="released"))


def test_parked(q):
    body = record("unknown", lane=1)
    q.worker("w", job("a", "unknown", lane=1))
    assert q.get("a") == Snapshot("q", "a", State.PARKED, body)


def test_suspect(q):
    make_suspect(q, "a")
    found = q.get("a")
    assert (found.state, found.record, found.due, found.incarnation) == (State.SUSPECT, record(), None, None)
    assert found.tally != ""


def test_dead(q):
    q.worker("w", "a")
    q.settle("w", q.died("a", text=tally()))
    assert q.get("a") == Snapshot("q", "a", State.DEAD, record(), tally(), finished=q.clock.wall)


def test_done_and_cancelled(q):
    q.worker("w", "a", "b")
    q.settle("w", q.done("a"), q.cancelled("b"))
    assert q.get("a") == Snapshot("q", "a", State.DONE, ending=ending())
    assert q.get("b") == Snapshot("q", "b", State.CANCELLED, ending=ending("cancelled"))


def test_looking_changes_nothing(q):
    q.worker("w", "a", "b")
    q.settle("w", q.done("a"))
    q.enqueue("c", job("d", delay=5))
    before = q.dump()
    for id in "abcd":
        q.get(id)
    assert q.dump() == before


def list_ready(q):
    q.enqueue("b", job("c", priority=4), job("a", lane=1), job("d", priority=0, lane=1), "e", "g")
    q.enqueue(job("f", lane=1))
    return ["d", "b", "a", "e", "g", "f", "c"]


def list_scheduled(q):
    q.enqueue(*(job(id, delay=delay) for id, delay in zip("abcdefg", (70, 10, 30, 50, 40, 20, 60), strict=True)))
    return list("bfcedga")


def list_running(q):
    q.worker("w2", "b", "c")
    q.worker("w10", "z", "y", "x")
    q.worker("w1", "e", "a")
    return ["a", "e", "x", "y", "z", "b", "c"]


def list_parked(q):
    tasks = {"a": "u2", "b": "u1", "c": "u2", "d": "u10", "e": "u1", "f": "u2", "g": "u3"}
    q.worker("w", *(job(id, task) for id, task in tasks.items()))
    return ["b", "e", "d", "a", "c", "f", "g"]


def list_suspect(q):
    make_suspect(q, *"cbagfed")
    return list("cbagfed")


def list_dead(q):
    q.worker("w", *"abcdefg")
    for id in "dcgfbae":
        q.settle("w", q.died(id))
        q.clock.advance(1)
    return list("eabfgcd")


def list_done(q):
    q.worker("w", *"abcdefg", "other")
    for id in "dcgfbae":
        q.settle("w", q.done(id, ttl=100_000), *([q.cancelled("other")] if id == "g" else []))
        q.clock.advance(1)
    return list("eabfgcd")


def list_cancelled(q):
    q.worker("w", *"abcdefg", "other")
    for id in "dcgfbae":
        q.settle("w", q.cancelled(id), *([q.done("other")] if id == "b" else []))
        q.clock.advance(1)
    return list("eabfgcd")


LISTINGS = {
    State.READY: list_ready,
    State.SCHEDULED: list_scheduled,
    State.RUNNING: list_running,
    State.PARKED: list_parked,
    State.SUSPECT: list_suspect,
    State.DEAD: list_dead,
    State.DONE: list_done,
    State.CANCELLED: list_cancelled,
}
"""Each makes seven jobs of its state and returns their ids in the order in which they are to be listed."""


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 100, 1000])
def test_every_state_is_listed_in_its_order_whatever_the_page(q, state, limit):
    ids = LISTINGS[state](q)
    found = q.snapshots(state, limit)
    assert [each.id for each in found] == ids
    assert found == [q.get(id) for id in ids]


@pytest.mark.parametrize("state", list(State))
def test_a_last_page_has_no_cursor(q, state):
    LISTINGS[state](q)
    assert q.call(Find(q.queue, state, "", 7)).cursor == ""
    assert q.call(Find(q.queue, state, "", 6)).cursor != ""


@pytest.mark.parametrize("state", list(State))
def test_an_empty_list(q, state):
    found = q.call(Find(q.queue, state))
    assert (found.jobs, found.cursor, found.now) == ([], "", q.clock.wall)


REMOVABLE = [each for each in State if each is not State.RUNNING]


@pytest.mark.parametrize("state", REMOVABLE)
@pytest.mark.parametrize("gone", [0, 1, 2, 3, 4])
def test_what_stays_put_is_listed_exactly_once_when_others_go(q, state, gone):
    ids = LISTINGS[state](q)
    page = q.call(Find(q.queue, state, "", 3))
    assert [each.id for each in page.jobs] == ids[:3]
    q.call(Act(q.queue, Delete(), [ids[gone]]))
    seen = ids[:3]
    while page.cursor:
        page = q.call(Find(q.queue, state, page.cursor, 3))
        seen += [each.id for each in page.jobs]
    stayed = [id for id in ids if id != ids[gone]]
    assert [id for id in seen if id != ids[gone]] == stayed


def test_what_stays_put_is_listed_exactly_once_when_others_come(q):
    ids = LISTINGS[State.READY](q)
    page = q.call(Find(q.queue, State.READY, "", 3))
    q.enqueue(*jobs(5, "first", priority=0), *jobs(5, "last", priority=4))
    seen = [each.id for each in page.jobs]
    while page.cursor:
        page = q.call(Find(q.queue, State.READY, page.cursor, 3))
        seen += [each.id for each in page.jobs]
    assert [id for id in seen if id in ids] == ids


def test_running_jobs_stay_listed_while_their_neighbours_end(q):
    ids = LISTINGS[State.RUNNING](q)
    page = q.call(Find(q.queue, State.RUNNING, "", 3))
    q.settle("w10", q.done("x"), q.done("z"))
    seen = [each.id for each in page.jobs]
    while page.cursor:
        page = q.call(Find(q.queue, State.RUNNING, page.cursor, 3))
        seen += [each.id for each in page.jobs]
    assert [id for id in seen if id not in "xz"] == [id for id in ids if id not in "xz"]


def test_newly_ended_jobs_do_not_shift_a_list_of_endings(q):
    ids = LISTINGS[State.DONE](q)
    page = q.call(Find(q.queue, State.DONE, "", 3))
    q.worker("w", *jobs(5))
    q.settle("w", *(q.done(each.id) for each in jobs(5)))
    seen = [each.id for each in page.jobs]
    while page.cursor:
        page = q.call(Find(q.queue, State.DONE, page.cursor, 3))
        seen += [each.id for each in page.jobs]
    assert seen == ids


@pytest.mark.parametrize("state", [State.DEAD, State.DONE, State.CANCELLED])
def test_many_that_ended_in_one_step_are_each_listed_once(q, state):
    q.worker("w", *jobs(250))
    outcome = {State.DEAD: q.died, State.DONE: q.done, State.CANCELLED: q.cancelled}[state]
    q.settle("w", *(outcome(each.id) for each in jobs(250)))
    for limit in (1000, 100, 7):
        assert sorted(q.ids(state, limit)) == [each.id for each in jobs(250)]


def test_many_due_at_one_time_are_each_listed_once(q):
    q.enqueue(*jobs(250, delay=5))
    for limit in (1000, 100, 7):
        assert sorted(q.ids(State.SCHEDULED, limit)) == [each.id for each in jobs(250)]


def test_jobs_due_at_one_time_survive_the_loss_of_the_last_one_seen(q):
    q.enqueue(*jobs(10, delay=5))
    page = q.call(Find(q.queue, State.SCHEDULED, "", 4))
    seen = [each.id for each in page.jobs]
    q.act(Delete(), seen[-1])
    page = q.call(Find(q.queue, State.SCHEDULED, page.cursor, 100))
    assert sorted(seen + [each.id for each in page.jobs]) == [each.id for each in jobs(10)]


def test_endings_are_listed_as_long_as_they_are_kept(q):
    q.worker("w", "a", "b")
    q.settle("w", q.done("a"), q.done("b"))
    q.act(Delete(), "a")
    assert q.ids(State.DONE) == ["b"]


def test_an_id_used_again_is_listed_where_it_is(q):
    q.worker("w", job("a", fingerprint="f"))
    q.settle("w", q.done("a"))
    q.act(Delete(), "a")
    q.enqueue(job("a", fingerprint="f"))
    assert q.ids(State.DONE) == []
    assert q.ids(State.READY) == ["a"]


def test_an_id_that_ended_twice_is_listed_once(q):
    q.worker("w", job("a", fingerprint="f"))
    q.settle("w", q.done("a"))
    q.act(Delete(), "a")
    q.worker("w", job("a", fingerprint="f"))
    q.settle("w", q.done("a"))
    assert q.ids(State.DONE) == ["a"]


def test_an_id_that_ended_in_two_ways_is_listed_as_the_last(q):
    q.worker("w", job("a", fingerprint="f"))
    q.settle("w", q.done("a"))
    q.act(Delete(), "a")
    q.worker("w", job("a", fingerprint="f"))
    q.settle("w", q.cancelled("a"))
    assert (q.ids(State.DONE), q.ids(State.CANCELLED)) == ([], ["a"])


def test_the_most_recent_10_000_endings_can_be_listed(q):
    q.beat("w")
    for batch in range(24):
        new = jobs(500, f"b{batch:02}-")
        q.enqueue(*new)
        taken = q.take("w", 500)
        q.settle("w", *(q.done(id, body=b"e") for id in taken))
    found = q.ids(State.DONE, 1000)
    recent = {each.id for batch in range(4, 24) for each in jobs(500, f"b{batch:02}-")}
    assert recent <= set(found)
    assert len(found) == len(set(found))


def test_running_jobs_of_an_expired_and_of_a_retired_incarnation_are_listed(q):
    q.worker("w", *jobs(600))
    q.beat("other")
    q.march(LEASE + 5, "other")
    assert len(q.ids(State.RUNNING)) == 600
    q.retire("w")
    assert len(q.ids(State.RUNNING)) == 100
    assert q.snapshots(State.RUNNING)[0].incarnation == "w"


def test_damaged_jobs_are_listed_as_they_are(q):
    q.enqueue(job("a", body=CORRUPT))
    assert [each.record for each in q.snapshots(State.READY)] == [CORRUPT]


def test_a_list_of_a_thousand(q):
    q.enqueue(*jobs(2500))
    page = q.call(Find(q.queue, State.READY, "", 1000))
    assert 0 < len(page.jobs) <= 1000
    assert q.ids(State.READY, 1000) == [each.id for each in jobs(2500)]


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("cursor", ["x", "1 2 3", "[", "(1"])
def test_what_is_no_cursor_is_refused(q, broker, state, cursor):
    if isinstance(broker, ModelBroker):  # which is only ever given its own
        return
    q.enqueue("a")
    with pytest.raises(ConfigError, match="not a cursor"):
        broker.call(Find("q", state, cursor=cursor))
    with pytest.raises(ConfigError, match="not a cursor"):
        broker.call(Watch("q", cursor=cursor))


FORGED = (f"[{10**30}]", f'["", {10**30}]', f"{10**30}", f"{10**30} 1", f"{10**30}-1 1", "\u0661 x", "9" * 5000)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("cursor", FORGED, ids=range(len(FORGED)))
def test_a_forged_cursor_leads_nowhere_and_hurts_nobody(q, broker, state, cursor):
    if isinstance(broker, ModelBroker):
        return
    q.enqueue("a")
    for verb in (Find("q", state, cursor=cursor), Watch("q", cursor=cursor)):
        with suppress(ConfigError):
            assert broker.call(verb).now
        assert q.state("a") is State.READY, "who comes next has nothing to do with it"


@pytest.mark.parametrize("task", ["unknown", "two words", "\u0661 1", " "])
def test_parked_jobs_are_listed_whatever_their_task_is_called(q, task):
    q.enqueue(*(job(each, task=task) for each in "abc"))
    q.beat("w")
    q.take("w")
    assert q.ids(State.PARKED, 1) == ["a", "b", "c"]
    assert q.ids(State.PARKED, 3) == ["a", "b", "c"]
