"""`Stats` and `Watch`: counts that equal the sets, totals that never fall, blobs that settles left."""

from spool.broker import Cancel, Delete, Pause, Replay, Watch
from spool.job import State
from tests.contract.driver import job, jobs
from tests.contract.test_claim import make_suspect


def check(q) -> None:
    """The counts are the sizes of the lists, and every job is in exactly one."""
    stats = q.stats()
    sizes = {state: len(q.ids(state)) for state in State}
    assert sum(stats.ready) == sizes[State.READY]
    assert sum(stats.parked.values()) == sizes[State.PARKED]
    for state in (State.SCHEDULED, State.SUSPECT, State.RUNNING, State.DEAD):
        assert getattr(stats, state.value) == sizes[state]
    ids = [id for state in State for id in q.ids(state)]
    assert len(ids) == len(set(ids)) == stats.totals.get("enqueued", 0) - stats.totals.get("deleted", 0)
    assert stats.totals.get("done", 0) >= sizes[State.DONE]


def test_an_empty_queue(q):
    stats = q.stats()
    assert (stats.now, stats.ready, stats.parked, stats.totals) == (q.clock.wall, [0, 0, 0, 0, 0], {}, {})
    assert (stats.scheduled, stats.suspect, stats.running, stats.dead, stats.workers) == (0, 0, 0, 0, 0)
    assert not stats.paused


def test_counts_equal_the_sets_on_a_long_way(q):
    make_suspect(q, "s")
    check(q)
    q.beat("w")
    q.enqueue(*jobs(6), job("p", lane=1, priority=0), job("x", delay=5), job("u", "unknown"), job("v", "unknown"))
    check(q)
    assert q.take("w", 4, 1)[:4] == [each.id for each in jobs(4)]
    check(q)
    q.settle("w", q.done("j00000"), q.died("j00001"), q.retried("j00002", delay=9), q.released("j00003"))
    check(q)
    q.take("w")
    q.act(Cancel(), "u", "x")
    q.act(Replay(), "j00001")
    q.act(Delete(), "j00000", "v")
    check(q)
    q.retire("w", "crashed")
    check(q)
    totals = {"enqueued": 11, "done": 1, "dead": 1, "retried": 1, "released": 1, "cancelled": 2, "replayed": 1}
    totals |= {"deleted": 2, "crashed": 6}
    assert q.totals() == totals


def test_ready_is_counted_by_priority_both_lanes_together(q):
    for priority in range(5):
        q.enqueue(*jobs(priority, f"m{priority}", priority=priority))
        q.enqueue(*jobs(2, f"p{priority}", priority=priority, lane=1))
    assert q.stats().ready == [2, 3, 4, 5, 6]


def test_parked_is_counted_by_task(q):
    q.worker("w", job("a", "x"), job("b", "y"), job("c", "x", lane=1))
    assert q.stats().parked == {"x": 2, "y": 1}
    q.act(Cancel(), "b")
    assert q.stats().parked == {"x": 2}


def test_heads_are_where_the_sequence_was_when_the_first_of_a_priority_joined(q):
    before = q.stats().sequence
    q.enqueue(job("a", priority=3), job("b", priority=1, lane=1), job("c", priority=3))
    joined = q.stats()
    assert joined.heads == [0, before + 2, 0, before + 1, 0]
    assert joined.sequence >= before + 3
    q.enqueue(job("later", priority=1), job("x", priority=0, delay=5))
    assert q.stats().heads == joined.heads
    q.act(Cancel(), "a", "b")
    q.clock.advance(5)
    q.beat("w")
    q.enqueue(job("y", priority=4))
    q.claim("w", 1, 0)
    after = q.stats()
    assert after.heads[3] == before + 3
    assert joined.sequence < after.heads[1] < after.heads[4] <= after.sequence


def test_workers_are_those_with_a_lease(q):
    q.beat("a", "b")
    q.retire("b")
    q.retire("never")
    assert q.stats().workers == 1


def test_paused_is_shown(q):
    q.act(Pause())
    assert q.stats().paused


def test_looking_changes_nothing(q):
    make_suspect(q, "s")
    q.worker("w", "a")
    assert q.stats() == q.stats()


def test_no_blobs(q):
    watched = q.call(Watch(q.queue))
    assert (watched.blobs, watched.now) == ([], q.clock.wall)


def test_blobs_are_read_oldest_first_after_the_cursor(q):
    q.beat("w")
    for number in range(5):
        q.settle("w", metrics=b"blob %d\x00\xff" % number)
    first = q.call(Watch(q.queue, "", 2)).blobs
    assert [blob.body for blob in first] == [b"blob 0\x00\xff", b"blob 1\x00\xff"]
    rest = q.call(Watch(q.queue, first[-1].cursor)).blobs
    assert [blob.body for blob in rest] == [b"blob %d\x00\xff" % number for number in (2, 3, 4)]
    assert q.call(Watch(q.queue, rest[-1].cursor)).blobs == []
    q.settle("w", metrics=b"new")
    assert [blob.body for blob in q.call(Watch(q.queue, rest[-1].cursor)).blobs] == [b"new"]


def test_a_blob_has_the_time_of_its_settle(q):
    q.beat("w")
    for _ in range(3):
        q.clock.advance(7)
        q.settle("w", metrics=b"blob")
    later = q.clock.wall
    q.clock.advance(1000)
    watched = q.call(Watch(q.queue))
    assert ([blob.at for blob in watched.blobs], watched.missed) == ([later - 14, later - 7, later], 0)


def test_reading_blobs_removes_none(q):
    q.beat("w")
    q.settle("w", metrics=b"blob")
    assert q.call(Watch(q.queue)).blobs == q.call(Watch(q.queue)).blobs != []


def test_a_settle_without_metrics_leaves_no_blob(q):
    q.worker("w", "a")
    q.settle("w", q.done("a"))
    assert q.call(Watch(q.queue)).blobs == []


def test_thousands_of_blobs_are_kept_and_read_in_pages(q):
    q.beat("w")
    for number in range(2500):
        q.settle("w", metrics=b"%d" % number)
    read, cursor = [], ""
    while page := q.call(Watch(q.queue, cursor)).blobs:
        assert len(page) <= 1000
        read += [int(blob.body) for blob in page]
        cursor = page[-1].cursor
    assert read == list(range(2500))
