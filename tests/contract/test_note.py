"""`Note`: what running jobs say is kept, bounded, and goes with the job."""

import pytest

from spool.broker import MAX_LINES, MAX_LOG, MAX_PROGRESS, Delete, JobNote, Pause, Replay
from spool.errors import ConfigError
from spool.job import State
from tests.contract.driver import LEASE, job, until


@pytest.fixture(autouse=True)
def running(q):
    """Let w run a and b."""
    q.beat("w")
    q.enqueue("a", "b")
    assert q.take("w", 2) == ["a", "b"]


def test_lines_and_progress_are_kept_as_they_are(q):
    assert q.note("w", q.says("a", b"\x00\xff", b"", step=1, progress=b"half")) == []
    found = q.get("a")
    assert (found.log, found.log_dropped, found.progress) == ((b"\x00\xff", b""), 0, b"half")
    assert found.state == State.RUNNING
    assert (q.get("b").log, q.get("b").progress) == ((), b"")


def test_lines_are_added_and_progress_is_replaced(q):
    q.note("w", q.says("a", b"1", b"2", step=1, progress=b"x"), q.says("b", b"other"))
    q.note("w", q.says("a", b"3", first=2, step=2, progress=b"y"))
    found = q.get("a")
    assert (found.log, found.progress) == ((b"1", b"2", b"3"), b"y")
    assert q.log("b") == (b"other",)


def test_a_note_without_progress_leaves_what_is_there(q):
    q.note("w", q.says("a", step=1, progress=b"x"))
    q.note("w", q.says("a", b"1"))
    assert q.get("a").progress == b"x"


def test_a_note_that_comes_again_or_late_adds_nothing(q):
    first = q.says("a", b"1", b"2", step=1, progress=b"x")
    second = q.says("a", b"2", b"3", first=1, step=2, progress=b"y")
    for each in (first, first, second, first, second):
        assert q.note("w", each) == []
    found = q.get("a")
    assert (found.log, found.log_dropped, found.progress) == ((b"1", b"2", b"3"), 0, b"y")


def test_two_notes_on_one_job_in_one_call(q):
    q.note("w", q.says("a", b"1", step=1, progress=b"x"), q.says("a", b"2", first=1, step=2, progress=b"y"))
    assert (q.log("a"), q.get("a").progress) == ((b"1", b"2"), b"y")


def test_missing_lines_count_as_dropped(q):
    q.note("w", q.says("a", b"1"))
    q.note("w", q.says("a", b"9", first=8))
    q.note("w", q.says("a", first=12))
    assert (q.log("a"), q.get("a").log_dropped) == ((b"1", b"9"), 10)


def test_the_last_lines_are_kept(q):
    for start in range(0, 450, 150):
        q.note("w", q.says("a", *(b"%d" % n for n in range(start, start + 150)), first=start))
    found = q.get("a")
    assert found.log == tuple(b"%d" % n for n in range(450 - MAX_LINES, 450))
    assert found.log_dropped == 450 - MAX_LINES


def test_the_last_bytes_are_kept(q):
    size = MAX_LOG // 4
    for n in range(3):
        q.note("w", q.says("a", *(bytes([n]) * size for _ in range(2)), first=2 * n))
    found = q.get("a")
    assert [line[0] for line in found.log] == [1, 1, 2, 2]
    assert found.log_dropped == 2
    q.note("w", q.says("a", b"x", first=6))
    assert [line[0] for line in q.log("a")] == [1, 2, 2, ord("x")]


def test_a_line_that_is_larger_than_all_may_be_is_dropped(q):
    q.note("w", q.says("a", b"1", b"x" * (MAX_LOG + 1)))
    q.note("w", q.says("a", b"3", first=2))
    assert (q.log("a"), q.get("a").log_dropped) == ((b"3",), 2)


def test_too_much_at_once_is_refused():
    with pytest.raises(ConfigError, match="201 lines"):
        JobNote("a", 1, lines=[b""] * (MAX_LINES + 1))
    with pytest.raises(ConfigError, match="bytes of progress"):
        JobNote("a", 1, step=1, progress=b"x" * (MAX_PROGRESS + 1))


def test_notes_on_jobs_of_others_are_refused(q):
    q.beat("other")
    q.enqueue("c")
    assert q.take("other") == ["c"]
    wrong = JobNote("b", q.fence("b") + 1, lines=[b"x"])
    ours = q.says("a", b"1")
    assert q.note("w", q.says("c", b"x"), wrong, JobNote("never", 1, lines=[b"x"]), ours) == ["c", "b", "never"]
    assert (q.log("a"), q.log("b"), q.log("c")) == ((b"1",), (), ())
    assert q.note("nobody", ours) == ["a"]
    assert q.note("other", ours) == ["a"]


def test_an_ended_attempt_notes_nothing(q):
    q.settle("w", q.done("a"), q.retried("b"))
    assert q.note("w", q.says("a", b"x"), q.says("b", b"x")) == ["a", "b"]
    assert (q.log("a"), q.log("b")) == ((), ())


def test_a_stale_worker_notes_nothing(q):
    stale = q.says("a", b"x", step=9, progress=b"x")
    q.note("w", q.says("a", b"1", step=1, progress=b"1"))
    q.retire("w", "lost")
    q.beat("other")
    q.take("other")
    q.note("other", q.says("a", b"2", step=1, progress=b"2"))
    assert q.note("w", stale) == ["a"]
    found = q.get("a")
    assert (found.log, found.progress) == ((b"1", b"2"), b"2")


def test_the_next_attempt_adds_to_the_lines_and_begins_its_count_anew(q):
    q.note("w", q.says("a", b"1", b"2", step=5, progress=b"x"))
    q.settle("w", q.retried("a"))
    assert q.get("a").log == (b"1", b"2")
    assert q.take("w") == ["a"]
    q.note("w", q.says("a", b"3", step=1, progress=b"y"))
    found = q.get("a")
    assert (found.log, found.progress, found.log_dropped) == ((b"1", b"2", b"3"), b"y", 0)


@pytest.mark.parametrize("how", ["released", "retired", "died", "replayed"])
def test_what_was_noted_stays_while_the_job_does(q, how):
    q.note("w", q.says("a", b"1", step=1, progress=b"x"))
    match how:
        case "released":
            q.settle("w", q.released("a"))
        case "retired":
            q.retire("w", "crashed")
        case _:
            q.settle("w", q.died("a"))
    if how == "replayed":
        assert q.act(Replay(), "a") == ["a"]
    found = q.get("a")
    assert (found.log, found.progress) == ((b"1",), b"x")


@pytest.mark.parametrize("ending", ["done", "cancelled"])
def test_what_was_noted_is_kept_with_the_ending(q, ending):
    q.note("w", q.says("a", b"1", step=1, progress=b"x"))
    q.settle("w", q.done("a", ttl=40) if ending == "done" else q.cancelled("a", ttl=40), q.done("b", ttl=60_000))
    found = q.get("a")
    assert (found.log, found.progress) == ((b"1",), b"x")
    q.clock.advance(60)
    until(lambda: q.get("a") is None)


def test_an_ending_that_is_not_kept_takes_what_was_noted_along(q):
    q.note("w", q.says("a", b"1"))
    q.settle("w", q.done("a", ttl=0))
    q.enqueue(job("a", fingerprint="f"))
    q.take("w")
    assert q.log("a") == ()
    q.note("w", q.says("a", b"2"))
    assert q.log("a") == (b"2",)


def test_a_waiting_job_that_is_cancelled_keeps_what_it_noted(q):
    from spool.broker import Cancel

    q.note("w", q.says("a", b"1"))
    q.settle("w", q.retried("a", delay=1000))
    assert q.act(Cancel(), "a") == ["a"]
    assert (q.state("a"), q.log("a")) == (State.CANCELLED, (b"1",))


@pytest.mark.parametrize("state", ["ready", "dead", "done"])
def test_a_deleted_job_leaves_nothing(q, state):
    q.note("w", q.says("a", b"1"))
    q.settle("w", {"ready": q.released, "dead": q.died, "done": q.done}[state]("a"))
    assert q.act(Delete(), "a") == ["a"]
    assert q.get("a") is None
    q.enqueue(job("a", fingerprint="f"))
    q.take("w")
    assert q.log("a") == ()
    q.settle("w", q.done("a"))
    assert q.log("a") == ()


def test_lists_do_not_show_it(q):
    q.note("w", q.says("a", b"1", step=1, progress=b"x"))
    assert all((each.log, each.progress) == ((), b"") for each in q.snapshots(State.RUNNING))
    q.settle("w", q.done("a"))
    assert q.snapshots(State.DONE)[0].log == ()


def test_it_works_for_an_expired_lease_that_nobody_reaped(q):
    q.clock.advance(LEASE + 1)
    assert q.note("w", q.says("a", b"1")) == []
    assert q.log("a") == (b"1",)


def test_it_works_while_paused(q):
    q.act(Pause())
    assert q.note("w", q.says("a", b"1")) == []
    assert q.log("a") == (b"1",)


def test_many_jobs_note_much(q):
    q.enqueue(*(f"m{n}" for n in range(300)))
    ids = q.take("w", 300)
    assert q.note("w", *(q.says(id, *[b"x" * 300] * MAX_LINES) for id in ids)) == []
    assert {len(q.log(id)) for id in ids} == {MAX_LINES}
    q.settle("w", *(q.done(id) for id in ids))
    assert {len(q.log(id)) for id in ids} == {MAX_LINES}
