import time
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool.errors import ConfigError, StoreCorrupt
from spool.job import (
    NO_TALLY,
    TALLY_LIMIT,
    VERSION,
    Attempt,
    Ending,
    LogLine,
    Options,
    Progress,
    Record,
    Snapshot,
    State,
    Tally,
    check_name,
    encode_ending,
    encode_line,
    encode_progress,
    encode_record,
    extend_tally,
    new_id,
    read_ending,
    read_record,
    read_tally,
)
from spool.view import view
from tests.tallies import write_tally

PAYLOAD = msgspec.msgpack.encode([["x"], {"y": 1}])
RECORD = Record(VERSION, "send", 1, 0, 3, "", 1000, msgspec.Raw(PAYLOAD), Options(retries=1), {"trace": "1"})


def failed(number, traceback="Traceback"):
    return Attempt(number, "retried", number * 10, number * 10 + 5, "me", "ValueError", "no", traceback)


class TestNames:
    @pytest.mark.parametrize("name", ["a", "mail", "_x", "9", "a.b:c-d_E", "x" * 127])
    def test_usable(self, name):
        assert check_name("queue", name) == name

    @pytest.mark.parametrize(
        "name", ["", " ", "a b", "-a", ".a", ":a", "a{b}", "a/b", "a\n", "ä", "x" * 128, None, 5, b"a"]
    )
    def test_not_usable(self, name):
        with pytest.raises(ConfigError, match=r"queue .* is not usable: allowed are 1 to 127 of the characters"):
            check_name("queue", name)


class TestIds:
    def test_they_are_uuids_of_version_7(self):
        before = time.time_ns() // 1_000_000
        each = uuid.UUID(new_id())
        assert (each.version, each.variant) == (7, uuid.RFC_4122)
        assert before <= each.int >> 80 <= time.time_ns() // 1_000_000

    def test_they_are_usable_as_names_and_differ(self):
        ids = [new_id() for _ in range(10_000)]
        assert len(set(ids)) == 10_000
        assert check_name("job id", ids[0])

    def test_they_sort_by_time(self):
        first = new_id()
        start = time.time_ns()
        while time.time_ns() - start < 1000:
            pass
        assert first < new_id()


class TestStates:
    def test_terminal_ones(self):
        assert {state for state in State if state.terminal} == {State.DONE, State.DEAD, State.CANCELLED}

    def test_they_are_text(self):
        assert State.DONE == "done"


class TestRecord:
    def test_it_comes_back(self):
        assert read_record(encode_record(RECORD)) == RECORD

    def test_its_first_elements_are_where_scripts_look_for_them(self):
        assert msgspec.msgpack.decode(encode_record(RECORD))[:8] == [1, "send", 1, 0, 3, "", 1000, [["x"], {"y": 1}]]

    def test_a_shorter_one_takes_defaults_and_a_longer_one_is_read(self):
        fields = msgspec.msgpack.decode(encode_record(RECORD))
        assert read_record(msgspec.msgpack.encode(fields[:8])).headers is None
        assert read_record(msgspec.msgpack.encode([*fields, "later", 5])) == RECORD

    def test_a_newer_layout(self):
        newer = encode_record(msgspec.structs.replace(RECORD, version=VERSION + 1))
        with pytest.raises(StoreCorrupt, match="record has layout 2; this release knows up to 1"):
            read_record(newer)

    @given(st.binary(max_size=100))
    def test_damage(self, body):
        with pytest.raises(StoreCorrupt, match="record cannot be decoded"):
            read_record(body)

    def test_text_that_is_none(self):
        with pytest.raises(StoreCorrupt, match="record cannot be decoded"):
            read_record(encode_record(RECORD).replace(b"send", b"se\xffd"))

    def test_nesting_that_no_client_of_ours_wrote(self):
        deep = msgspec.structs.replace(RECORD, payload=msgspec.Raw(b"\x92\x91" + b"\x91" * 100_000 + b"\x90\x80"))
        with pytest.raises(StoreCorrupt, match="record cannot be decoded"):
            read_record(encode_record(deep))
        assert "record cannot be decoded" in view(Snapshot("mail", "one", State.READY, encode_record(deep))).error


class TestEnding:
    def test_it_comes_back(self):
        ending = Ending(VERSION, "done", "send", "ff", 1, 2, 3, 4, msgspec.Raw(b"\x05"), "", "me", "[1]", 0)
        assert read_ending(encode_ending(ending)) == ending
        keyed = msgspec.structs.replace(ending, key="order-17")
        assert read_ending(encode_ending(keyed)) == keyed

    def test_without_a_key_it_is_as_it_was_before_there_were_keys(self):
        ending = Ending(VERSION, "done", "send", "ff", 1, 2, 3, 4, msgspec.Raw(b"\x05"), "", "me", "[1]", 0)
        assert msgspec.msgpack.decode(encode_ending(ending)) == [
            *(1, "done", "send", "ff", 1, 2, 3, 4),
            *(5, "", "me", "[1]", 0),
        ]

    def test_damage_and_newer_layouts(self):
        with pytest.raises(StoreCorrupt, match="ending cannot be decoded"):
            read_ending(b"\xc1")
        with pytest.raises(StoreCorrupt, match="ending cannot be decoded"):
            read_ending(encode_ending(Ending(VERSION, "done", "send", "", 1, 2, 3, 4)).replace(b"send", b"se\xffd"))
        with pytest.raises(StoreCorrupt, match="ending has layout 9"):
            read_ending(encode_ending(Ending(9, "done", "send", "", 1, 2, 3, 4)))


class TestTally:
    def test_none_is_a_fresh_one(self):
        assert read_tally("") == (NO_TALLY, [])

    def test_it_comes_back(self):
        tally, attempts = Tally(attempts=2, failures=1, crashes=1), [failed(1), Attempt(2, "crashed", 3, 4)]
        assert read_tally(write_tally(tally, attempts)) == (tally, attempts)

    def test_a_line_may_be_appended_as_text(self):
        text = write_tally(Tally(attempts=1), [failed(1)]) + '\n[2,"stopped",30,40,"you"]'
        assert read_tally(text)[1] == [failed(1), Attempt(2, "stopped", 30, 40, "you")]

    def test_it_is_extended_by_an_attempt_and_what_that_counts(self):
        text = extend_tally("", failed(1), failures=1)
        text = extend_tally(text, Attempt(2, "crashed", 30, 40, "\u2028"), crashes=1)
        assert read_tally(text) == (
            Tally(attempts=2, failures=1, crashes=1),
            [failed(1), Attempt(2, "crashed", 30, 40, "\u2028")],
        )

    def test_what_a_newer_release_appended_is_kept(self):
        text = extend_tally('[1,1,0,0,0,0,"new"]\n[1,"stopped",1,2,"me","","","","new"]', failed(2), failures=1)
        assert text.startswith('[1,2,1,0,0,0,"new"]\n[1,"stopped",1,2,"me","","","","new"]\n[2,')

    @pytest.mark.parametrize("text", ["rubbish", "[1,1]", f"[1,{2**64 - 1},0,0,0,0]", "[1,0,0,0,0,0]\nrubbish"])
    def test_one_that_cannot_be_read_begins_anew(self, text):
        assert read_tally(extend_tally(text, failed(1), failures=1)) == (
            Tally(attempts=1, failures=1),
            [failed(1)],
        )

    def test_it_is_bounded_by_what_matters_least(self):
        text = ""
        for number in range(100):
            text = extend_tally(text, failed(number, "x" * 2000))
        attempts = read_tally(text)[1]
        assert len(text) <= TALLY_LIMIT + 100
        assert len(attempts) == 100
        assert attempts[-1].traceback
        assert not attempts[0].traceback

    def test_then_by_the_oldest_attempts(self):
        text = ""
        for number in range(2500):
            text = extend_tally(text, failed(number))
        attempts = read_tally(text)[1]
        assert len(text) <= TALLY_LIMIT + 100
        assert attempts[-1].number == 2499
        assert 100 < len(attempts) < 2500

    @pytest.mark.parametrize("text", ["x", "[]x", "[1]\nx", '{"a":1}', "[9,0,0,0,0,0]"])
    def test_damage_and_newer_layouts(self, text):
        with pytest.raises(StoreCorrupt, match="tally"):
            read_tally(text)


class TestView:
    def test_a_job_that_waits(self):
        job = view(Snapshot("mail", "one", State.SCHEDULED, encode_record(RECORD), due=5000))
        assert str(job) == "mail/one"
        assert (job.task, job.priority, job.created, job.due) == ("send", "high", 1000, 5000)
        assert job.arguments == (["x"], {"y": 1})
        assert (job.attempts, job.history, job.result, job.error) == (0, [], None, "")

    def test_a_job_that_runs(self):
        tally = write_tally(Tally(attempts=1, failures=1), [failed(1)])
        job = view(Snapshot("mail", "one", State.RUNNING, encode_record(RECORD), tally, incarnation="me", started=50))
        assert (job.attempts, job.failures, job.started, job.worker) == (2, 1, 50, "me")

    def test_a_job_that_is_done(self):
        ending = Ending(VERSION, "done", "send", "", 1, 2, 3, 1, msgspec.Raw(b"\x81\xa1a\x05"), "", "me", "", 4)
        job = view(Snapshot("mail", "one", State.DONE, ending=encode_ending(ending)))
        assert (job.result, job.priority, job.started, job.finished, job.attempts) == ({"a": 5}, "background", 2, 3, 1)
        assert job.arguments is None

    def test_a_job_that_is_dead(self):
        tally = write_tally(Tally(attempts=2, failures=2, generation=1), [failed(1), failed(2)])
        job = view(Snapshot("mail", "one", State.DEAD, encode_record(RECORD), tally, finished=99))
        assert (job.error, job.traceback, job.finished, job.generation) == ("ValueError: no", "Traceback", 99, 1)
        assert [each.number for each in job.history] == [1, 2]

    def test_damage_is_shown_and_not_raised(self):
        for snapshot in (
            Snapshot("mail", "one", State.DEAD, b"\xc1"),
            Snapshot("mail", "one", State.DONE, ending=b"\xc1"),
            Snapshot("mail", "one", State.DEAD, encode_record(RECORD), "garbage"),
        ):
            assert "cannot be" in view(snapshot).error

    @pytest.mark.parametrize("payload", [b"\xc0", b"\x93\x01\x02\x03", b"\x05"])
    def test_arguments_that_are_none(self, payload):
        record = msgspec.structs.replace(RECORD, payload=msgspec.Raw(payload))
        job = view(Snapshot("mail", "one", State.READY, encode_record(record)))
        assert job.arguments is None
        assert job.task == "send"
        assert "the arguments cannot be decoded" in job.error


def test_what_jobs_say_comes_back_as_it_was():
    line, progress = LogLine(5, 1, "INFO", "shop", "x"), Progress(1, 2.5, "half", 7, 3)
    stored = {"progress": encode_progress(progress), "log": (encode_line(line),), "log_dropped": 4}
    job = view(Snapshot("q", "a", State.DEAD, **stored))
    assert (job.progress, job.log, job.log_dropped) == (progress, [line], 4)


def test_what_cannot_be_read_of_it_is_left_out_and_counted():
    newer = msgspec.msgpack.encode([2, 5, 1, "INFO", "shop", "x", "more"])
    longer = msgspec.msgpack.encode([1, 5, 1, "INFO", "shop", "x", "more"])
    job = view(Snapshot("q", "a", State.DEAD, progress=b"\xc1", log=(b"\xc1", newer, longer, b""), log_dropped=4))
    assert (job.progress, [line.message for line in job.log], job.log_dropped) == (None, ["x"], 7)
    assert view(Snapshot("q", "a", State.DEAD, progress=msgspec.msgpack.encode([2, 1, 2, "", 3, 4]))).progress is None
