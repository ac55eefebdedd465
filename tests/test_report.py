import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import StoreCorrupt
from spool.report import BUCKETS, Meter, Rates, Speedometer, TaskReport, WorkerRow, encode_row, pack, read_row, unpack


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


def test_a_meter_remembers_all_that_it_ever_reported():
    meter = Meter("send")
    for _ in range(3):
        meter.runs[13] = 5
        meter.others = {"died": 2}
        pack([meter])
        meter.told()
    meter.runs[13] = 1
    pack([meter])
    assert meter.ended == {"done": 9, "died": 6}, "what is on its way may yet be told otherwise"
    meter.runs[14] = 1
    pack([meter])
    for _ in range(2):
        meter.told()
    assert meter.ended == {"done": 10, "died": 6}


def test_rates_are_of_the_time_there_was():
    speedometer = Speedometer(100.0)
    assert speedometer.note(100.2, {}) == Rates()
    assert speedometer.note(100.5, {"done": 4}) == Rates({"done": 4.0}, {"done": 4.0}), "of a second, at least"
    assert speedometer.note(104.0, {"done": 8, "died": 2}) == Rates(
        {"done": 2.0, "died": 0.5}, {"done": 2.0, "died": 0.5}
    )


@pytest.mark.parametrize("step", [0.25, 1.0, 4.0])
def test_rates_follow_the_last_ten_and_sixty_seconds(step):
    speedometer, at, done = Speedometer(0.0), 0.0, 0
    while at < 200:
        at, done = at + step, done + (10 if at < 150 else 2)
        rates = speedometer.note(at, {"done": done})
    assert rates.ten_seconds["done"] == pytest.approx(2 / step, rel=0.01)
    assert rates.minute["done"] == pytest.approx((10 * 10 + 50 * 2) / 60 / step, rel=0.15)
    assert len(speedometer._seen) <= 62
    while at < 270:
        at += step
        rates = speedometer.note(at, {"done": done})
    assert rates == Rates()


def test_counts_that_begin_anew_have_no_rate_below_zero():
    speedometer = Speedometer(0.0)
    for second in range(30):
        speedometer.note(float(second), {"done": 10 * second, "died": second})
    assert speedometer.note(30.0, {"done": 0, "died": 31}) == Rates({"died": 1.1}, {"died": 1.033})


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
    ["send", {"done": 2**53 + 1}, [], [5, 1]],
    ["send", {"done": 1}, [5, 2**53 + 1], [5, 1]],
    ["send", {"done": 1}, [], [5, 2**63 - 1]],
)
DEEP = b"\x91" * 20_000 + b"\xc0"
WITH_DEEP_TAIL = b"\x92\x01\x97" + b"".join(map(msgspec.msgpack.encode, ("send", {"done": 1}, [], [5, 1], 0, 0))) + DEEP
DAMAGED = [b"\xc1", b"\x90", b"\x92\x01" + DEEP, WITH_DEEP_TAIL]
DAMAGED += [*map(msgspec.msgpack.encode, ([1, 5], [2], *([1, report] for report in REPORTS)))]


@pytest.mark.parametrize("blob", DAMAGED, ids=range(len(DAMAGED)))
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
    assert (row.ended, row.rates) == ({}, None)
    row = msgspec.structs.replace(row, ended={"done": 3}, rates=Rates({"done": 0.3}, {"done": 0.05}))
    assert read_row(encode_row(row)) == row
    with pytest.raises(StoreCorrupt):
        read_row(b"{}")
