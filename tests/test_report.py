import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import StoreCorrupt
from spool.report import BUCKETS, Meter, TaskReport, WorkerRow, encode_row, pack, read_row, unpack


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.lists(st.sampled_from(["retried", "died", "lost"])))
def test_what_was_counted_is_what_is_read(runs, others):
    meter = Meter("send")
    others = others[: len(runs)]
    for run in runs:
        meter.runs[run.bit_length()] += 1
        meter.waits[0] += 1
    for outcome in others:
        meter.others[outcome] = meter.others.get(outcome, 0) + 1
    (report,) = unpack(pack([meter]))
    assert report.task == "send"
    assert sum(report.outcomes.values()) == sum(report.runs[1::2]) == len(runs)
    assert report.outcomes.get("done", 0) == len(runs) - len(others)
    assert report.waits == [0, len(runs)]
    for bucket, count in zip(report.runs[::2], report.runs[1::2], strict=True):
        assert bucket < BUCKETS
        assert count == sum(run.bit_length() == bucket for run in runs)
    assert pack([meter]) == b""


def test_a_blob_is_small():
    meter = Meter("send")
    meter.runs[13] = 480
    meter.runs[14] = 20
    meter.waits[9] = 500
    assert len(pack([meter])) < 40


REPORTS = (
    ["send", {"done": -1}, [], [5, 1]],
    ["send", {"done": 1}, [], [5]],
    ["send", {"done": 1}, [65, 1], []],
    ["send", {"done": 1}, [], [-1, 1]],
    ["send", {"done": 1}, [], [5, -1]],
    ["send", {"done": 1}, [], [5, 1], -1],
)
DAMAGED = [b"\xc1", b"\x90", *map(msgspec.msgpack.encode, ([1, 5], [2], *([1, report] for report in REPORTS)))]


@pytest.mark.parametrize("blob", DAMAGED)
def test_blobs_that_cannot_be_read_are_told(blob):
    with pytest.raises(StoreCorrupt):
        unpack(blob)


def test_a_later_release_may_append_to_a_report():
    blob = msgspec.msgpack.encode([1, ["send", {"done": 1}, [], [5, 1], 0, 17, "new"]])
    assert unpack(blob) == [TaskReport("send", {"done": 1}, [], [5, 1], 0, 17)]
    blob = msgspec.msgpack.encode([1, ["send", {"done": 1}, [], [5, 1]]])
    assert unpack(blob) == [TaskReport("send", {"done": 1}, [], [5, 1])]
    assert unpack(b"") == []


def test_rows_come_back_as_they_were():
    row = WorkerRow("i", "n", "h", 1, "b", "ns", 2, 3, ["q"], 100, 0, 10_000, 4, False, "0", "cpython")
    assert read_row(encode_row(row)) == row
    with pytest.raises(StoreCorrupt):
        read_row(b"{}")
