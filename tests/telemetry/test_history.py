"""Reading: courses, percentiles, what is wrong now, and what Prometheus sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from spool.broker import Act, Beat, Enqueue, Heartbeat, Pause, Settle
from spool.errors import BrokerUnavailable, ConfigError, LeaseLost, VersionConflict
from spool.report import Meter
from spool.telemetry import Counted, History, Roller, survey
from spool.telemetry.history import quantile
from spool.telemetry.marks import MOST, Marks
from spool.telemetry.prometheus import Exposition
from spool.telemetry.roller import LEAD
from tests.contract.driver import Driver, job
from tests.telemetry.conftest import blob


def settle(q, *blobs):
    q.beat("w")
    for each in blobs:
        q.settle("w", metrics=each)


@given(st.lists(st.integers(0, 2**40), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_off_by_less_than_a_factor_of_two(values, part):
    meter = Meter("t")
    for value in values:
        meter.runs[value.bit_length()] += 1
    found = quantile({bucket: n for bucket, n in enumerate(meter.runs) if n}, part)
    true = sorted(values)[max(0, -int(-part * len(values) // 1) - 1)]
    assert true / 2 <= found <= max(2 * true, 1)


def test_nothing_has_no_quantile():
    assert quantile({}, 0.5) is None
    assert quantile({0: 3}, 0.99) == 0.0


def test_a_course_has_one_value_for_each_step(q, roll, broker, clock):
    roll()
    q.enqueue("a", "b", job("p", priority=0))
    q.worker("w")
    q.settle("w", q.done("a"), q.died("b"), metrics=blob(done=1, died=1))
    roll(1000)
    course = History(broker).course(60)
    assert (course.step, len(course.times), course.end - course.start) == (1000, 60, 60_000)
    assert course.times == list(range(course.start, course.end, 1000))
    assert course.now == clock.wall
    assert {name: sum(counts) for name, counts in course.counts.items() if sum(counts)} == {
        "enqueued": 3,
        "done": 1,
        "dead": 1,
    }
    assert {name: sum(counts) for name, counts in course.outcomes.items() if sum(counts)} == {"done": 1, "died": 1}
    assert sum(course.throughput) == pytest.approx(2)
    at = next(n for n, count in enumerate(course.run.count) if count)
    assert (course.wait.mean[at], course.run.mean[at]) == (1.0, 0.001)
    assert 0.000524 <= course.run.p50[at] <= course.run.p99[at] <= 0.001049
    assert 0.512 <= course.wait.p95[at] <= 1.024
    assert course.states["running"][-1] == 1
    assert course.states["dead"][-1] == 1
    assert course.states["running"][0] is None
    assert course.oldest[0] is None


def test_queues_are_added_up_and_told_apart(q, roll, broker, clock):
    other = Driver(broker, clock, "mail")
    roll()
    q.enqueue("a")
    other.enqueue("b", "c")
    settle(q, blob(done=1), blob("u", done=2))
    settle(other, blob("u", done=4))
    roll(1000)
    history = History(broker)

    def seen(queue="", task=""):
        course = history.course(60, queue, task)
        return course.depth["normal"][-1], sum(course.outcomes["done"]), sum(course.counts.get("enqueued", []))

    assert seen() == (3, 7, 3)
    assert seen("mail") == (2, 4, 2)
    assert seen("mail", "u") == (2, 4, 0)
    assert seen("", "u") == (3, 6, 0)
    assert seen("q", "t") == (1, 1, 0)
    assert seen("none") == (None, 0, 0)


@pytest.mark.parametrize("form", [(300, 1000, 300), (3600, 10_000, 360), (86_400, 60_000, 1440)])
def test_each_range_has_its_step(q, roll, broker, form):
    seconds, step, steps = form
    roll()
    settle(q, blob(done=1))
    roll(seconds * 1000 - 61_000)
    course = History(broker).course(seconds)
    assert (course.step, len(course.times)) == (step, steps)
    assert sum(course.outcomes["done"]) == 1


@pytest.mark.parametrize("seconds", [0, 59, 86_401, float("nan")])
def test_other_ranges_are_refused(broker, seconds):
    with pytest.raises(ConfigError, match="60 to 86400"):
        History(broker).course(seconds)


def test_every_reader_sees_the_same_also_after_a_restart(q, roll, broker, clock):
    roll()
    settle(q, blob(done=3))
    q.enqueue("a")
    roll(1000)
    assert History(broker).course(300) == History(broker).course(300)
    clock.advance(LEAD + 1)
    Roller(broker).roll()
    again = History(broker).course(300)
    assert sum(again.outcomes["done"]) == 3
    assert sum(again.counts["enqueued"]) == 1


def test_what_was_just_read_is_not_read_again(q, roll, broker):
    roll()
    reads = Counting(broker)
    history = History(reads, fresh=60)
    first = history.course(60)
    assert history.course(60) is first
    assert reads.calls == 1
    for number in range(100):
        history.course(60, f"q{number}")
    assert len(history._read) <= 32


class Counting:
    def __init__(self, broker):
        self.broker, self.calls = broker, 0

    def call(self, verb):
        self.calls += 1
        return self.broker.call(verb)


def test_marks_stay_few_and_forget_what_a_clock_set_back_contradicts():
    marks = Marks()
    for second in range(10_000):
        marks.note(second * 1000, second * 7)
    assert len(marks._times) <= MOST
    assert marks.since(9_999 * 7) == 9_999_000
    for sequence in (1, 5000, 40_000, 69_000):
        assert sequence / 7 * 1000 <= marks.since(sequence)
    assert marks.since(70_001) is None
    marks.note(5_000_000, 69_995)
    assert marks.since(69_994) == 5_000_000
    assert max(marks._times) == 5_000_000


# What is wrong now


def kinds(broker):
    return {(each.queue, each.kind): each for each in survey(broker).troubles}


def test_all_is_well(q, roll, broker):
    q.worker("w", "a")
    q.settle("w", q.done("a"), metrics=blob(done=1))
    roll()
    health = survey(broker)
    assert (health.status, health.troubles, health.running) == ("ok", [], 0)


def test_each_trouble_is_named_with_its_queue(q, roll, broker, clock):
    roll()
    for queue in ("paused", "behind", "idle"):
        broker.call(Enqueue(queue, [job("a"), job("b")]))
    for queue in ("paused", "behind"):
        broker.call(Beat(queue, [Heartbeat("v", 600_000, ("t",))]))
    broker.call(Act("paused", Pause()))
    roll(1000)
    for number in range(3):
        q.enqueue(f"a{number}", job(f"u{number}", "unknown"))
    q.worker("w")
    q.settle("w", q.died("a0"), q.died("a1"), metrics=blob(died=2))
    q.settle("w", metrics=b"\xc1")
    q.retire("w", "crashed")
    roll(61_000)
    found = kinds(broker)
    assert set(found) == {
        ("idle", "no_workers"),
        ("paused", "paused"),
        ("behind", "behind"),
        ("q", "failing"),
        ("q", "crashing"),
        ("q", "parked"),
        ("q", "no_workers"),
        ("q", "unmeasured"),
    }
    failing = found["q", "failing"]
    assert (failing.count, failing.error.task, failing.error.error_type) == (2, "t", "ValueError")
    assert "ValueError: no" in failing.message
    assert survey(broker).status == "bad"
    assert {each.queue for each in survey(broker, frozenset({"idle"})).troubles} == {"idle"}
    q.beat("x", tasks=("t", "unknown"))
    q.claim("x")
    roll(301_000)
    assert ("q", "failing") not in kinds(broker)


def test_metrics_that_nobody_rolls_up_are_a_trouble(q, roll, broker, clock):
    assert kinds(broker)["", "unmeasured"].status == "warning"
    roll()
    assert not kinds(broker)
    clock.advance(60_000)
    assert set(kinds(broker)) == {("", "unmeasured")}


# Prometheus


def exposed(broker):
    text = Exposition(Counted(broker), process=False).render()[0].decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_equal_the_stores_totals(q, roll, broker, clock):
    roll()
    for number in range(20):
        q.enqueue(f"a{number}", f"b{number}", job(f"c{number}", priority=0))
        q.worker("w")
        q.settle("w", q.done(f"a{number}"), q.died(f"b{number}"), q.retried(f"c{number}"), metrics=blob(done=1, died=1))
        roll(500)
        found = exposed(broker)
        totals = q.totals()
        assert found["spool_jobs_ended_total", "q", "done"] == totals["done"] == number + 1
        assert found["spool_jobs_ended_total", "q", "dead"] == totals["dead"]
        assert found["spool_retries_total", "q"] == totals["retried"]
        assert found["spool_jobs_enqueued_total", "q"] == totals["enqueued"]
        assert found["spool_attempts_total", "done", "q", "t"] == number + 1
        assert found["spool_run_seconds_count", "q", "t"] == 2 * (number + 1)
        assert found["spool_jobs", "q", "dead"] == q.stats().dead
    assert found["spool_run_seconds_sum", "q", "t"] == pytest.approx(0.04)
    edges = {float(key[1]): value for key, value in found.items() if key[0] == "spool_run_seconds_bucket"}
    assert list(edges.values()) == sorted(edges.values())
    assert all(value == (40 if edge >= 0.00104 else 0) for edge, value in edges.items()), edges
    assert edges[float("inf")] == 40


def test_counters_never_fall(q, roll, broker, clock):
    before: dict = {}
    for number in range(10):
        q.enqueue(f"a{number}")
        q.worker("w")
        q.settle("w", q.done(f"a{number}"), metrics=blob(f"t{number % 3}", done=1))
        roll((LEAD + 1) if number % 2 else 100)
        if number % 2:
            Roller(broker).roll()
        now = {key: value for key, value in exposed(broker).items() if key[0].endswith(("_total", "_bucket", "_count"))}
        assert all(now[key] >= value for key, value in before.items())
        before = now


def test_a_store_that_was_never_used_can_be_scraped(broker):
    found = exposed(broker)
    assert found["spool_broker_up",] == 1
    assert found["spool_workers",] == 0


class Failing:
    url = "none"

    def __init__(self, error):
        self.error = error

    def call(self, _verb):
        raise self.error

    async def acall(self, _verb):
        raise self.error


async def test_errors_of_the_store_are_counted_by_kind():
    counted = Counted(Failing(BrokerUnavailable("gone")))
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            counted.call(Settle("q", "w", 1, []))
    with pytest.raises(BrokerUnavailable):
        await counted.acall(Settle("q", "w", 1, []))
    assert counted.errors() == {"BrokerUnavailable": 3}


@pytest.mark.parametrize("error", [VersionConflict("no"), LeaseLost("no")])
def test_what_says_no_by_right_is_no_error(error):
    counted = Counted(Failing(error))
    with pytest.raises(type(error)):
        counted.call(Settle("q", "w", 1, []))
    assert counted.errors() == {}
