"""What a result keeps of a run's course: what happened when, and how durations spread."""

import math
import os
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool.bench import Plan, run
from spool.bench.account import Books, Settles
from spool.bench.machine import MemoryTrace, family, memory_of
from spool.bench.series import STEPS, Share, distribution, series, step_for

MS = 1_000_000


def books(called: list[int], starts: list[tuple[int, int]], notes: list[Settles]) -> Books:
    flat = array("q", [value for pair in starts for value in pair])
    return Books([f"j{n}" for n in range(len(called))], called, called, [flat], notes, {}, called[0])


def test_what_happened_when():
    first, second = [Settles(35 * MS, ["j0", "warm"])], [Settles(40 * MS, ["j1"], [("j2", "Died")])]
    noted = books([10 * MS, 11 * MS, 12 * MS, 30 * MS], [(0, 15 * MS), (1, 31 * MS), (2, 32 * MS)], first + second)
    found = series(noted, {7: first, 3: second}, MemoryTrace())
    assert found.step_s == 0.01
    assert found.done == [0, 0, 2]
    assert found.waiting == [2, 3, 1]
    assert found.running == [1, 1, 0]
    assert found.workers == [Share(3, 1), Share(7, 1)]


def test_a_job_that_two_processes_did_counts_once():
    notes = {1: [Settles(20 * MS, ["j0"])], 2: [Settles(30 * MS, ["j0"])]}
    found = series(books([0], [(0, 5 * MS)], [*notes[1], *notes[2]]), notes, MemoryTrace())
    assert sum(found.done) == 1
    assert found.workers == [Share(2, 1)]


@given(st.integers(0, 10**15))
def test_a_series_is_short_and_its_steps_are_no_finer_than_they_have_to_be(span):
    step = step_for(span)
    assert span <= step * STEPS
    assert step == 10 * MS or span > step * STEPS / 2.5 - 1


@given(st.lists(st.integers(0, 10**13), min_size=1))
def test_a_distribution_is_that_of_the_data(values):
    found = distribution(values)
    assert sum(found.counts) == len(values)
    assert len(found.edges_ms) == len(found.counts) + 1
    assert found.shares == sorted(set(found.shares))
    assert found.ms == sorted(found.ms)
    assert (found.shares[-1], found.ms[-1]) == (1.0, round(max(values) / 1e6, 4))
    for share, ms in zip(found.shares, found.ms, strict=True):
        not_more = sum(round(value / 1e6, 4) <= ms for value in values)
        assert not_more >= math.floor(share * len(values))


def test_a_distribution_of_a_million_is_small():
    found = distribution(range(1_000_000))
    assert len(found.shares) < 200
    assert 1 - found.shares[-2] < 3e-6
    assert len(found.counts) < 120


def test_bins_hold_what_is_between_their_edges():
    found = distribution([MS // 2, 2 * MS, 3 * MS, 500 * MS])
    for value, count in ((0.5, 1), (2.0, 1), (3.0, 1), (500.0, 1)):
        (at,) = (n for n, edge in enumerate(found.edges_ms[:-1]) if edge <= value < found.edges_ms[n + 1])
        assert found.counts[at] == count


def test_memory_is_that_of_the_process():
    trace = MemoryTrace()
    trace.look([os.getpid()])
    trace.look([os.getpid()])  # too soon
    assert len(trace.at) == 1
    assert trace.sizes[0] / 1e6 == pytest.approx(memory_of(family([os.getpid()])).rss, rel=0.1)


def test_memory_over_a_long_time_keeps_its_peaks(monkeypatch):
    clock, size = [0], [0]
    monkeypatch.setattr("spool.bench.machine.time.monotonic_ns", lambda: clock[0])
    monkeypatch.setattr("spool.bench.machine._resident", lambda _: size[0])
    trace = MemoryTrace()
    for second in range(5000):
        clock[0], size[0] = second * 1_000_000_000, 99 if second == 1234 else 1
        trace.look([2**22 + 1])
    assert 200 < len(trace.at) == len(trace.sizes) < 600
    assert trace.at == sorted(trace.at)
    assert max(trace.sizes) == 99
    assert trace.at[-1] > 4900 * 1_000_000_000


@pytest.mark.parametrize(
    "plan",
    [
        Plan(jobs=600, workers=2, prefill=True),
        Plan(jobs=300, workers=2, producers=10, warmup=50),
        Plan(jobs=200, workers=1, rate=500),
        Plan(jobs=200, workers=1, kind="failing", failing=0.1),
    ],
    ids=["prefill", "callers", "rate", "failing"],
)
def test_a_run_keeps_its_course(redis_url, plan):
    document = run(plan, redis_url)
    course, result, spread = document.series, document.result, document.spread
    assert course
    assert spread
    assert sum(course.done) == sum(each.done for each in course.workers) == result.done
    assert 1 <= len(course.workers) <= plan.workers
    assert len(course.done) == len(course.waiting) == len(course.running) <= STEPS
    assert (course.waiting[-1], course.running[-1]) == (0, 0)
    assert max(course.waiting) <= plan.jobs
    if plan.prefill:
        assert max(course.waiting) == plan.jobs
    assert len(course.done) * course.step_s == pytest.approx(result.seconds, abs=course.step_s + 0.001)
    assert len(course.memory_s) == len(course.memory_mb) > 0
    assert max(course.memory_mb) <= result.memory_mb.rss_peak * 1.05
    for latency, found in ((result.latency_ms.start, spread.start), (result.latency_ms.done, spread.done)):
        assert sum(found.counts) == latency.count
        assert found.ms[-1] == latency.max
        assert dict(zip(found.shares, found.ms, strict=True))[0.5] == latency.p50


def test_of_repetitions_the_one_shown_is_the_one_kept(redis_url):
    document = run(Plan(jobs=50, workers=1), redis_url, repeat=3)
    assert document.spread
    assert document.spread.done.ms[-1] == document.result.latency_ms.done.max
