"""The course of things over a time: what the rollers left in the broker, as series of equal steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from spool.broker import Broker, Load
from spool.errors import ConfigError
from spool.telemetry.bucket import (
    EVENTS,
    EVERYWHERE,
    GAUGES,
    KIND,
    OUTCOMES,
    TIERS,
    Attempts,
    Bucket,
    Line,
    Lines,
    Tier,
    unpack,
)

SHORTEST: Final = 60.0
LONGEST: Final = 86_400.0
PERCENTS: Final = (50, 95, 99)
DEPTHS: Final = GAUGES[:5]
STATES: Final = GAUGES[5:]
ENDS: Final = ("done", "dead", "cancelled")

Series = list[float | None]


class Latency(msgspec.Struct, frozen=True):
    """Seconds, by step; None where nothing was measured.

    Percentiles are read from histograms whose buckets end at powers of two, and interpolated within a bucket.
    """

    p50: Series
    p95: Series
    p99: Series
    mean: Series
    count: list[int]


class Course(msgspec.Struct, frozen=True):
    """What happened from ``start`` to ``end``, in steps of ``step`` ms. Every series has one value for each time.

    ``times`` are the beginnings of the steps, the last of which may not be over yet. ``counts`` are numbers of events
    (see `spool.telemetry.bucket.EVENTS`), ``outcomes`` of attempts by how they ended; of one task, ``counts`` is empty.
    ``throughput``: jobs (of a task: attempts) that ended, per second. ``depth`` (ready jobs by priority) and ``states``
    (jobs by state, live workers) are means of what was seen, ``oldest`` is the longest that a ready job had waited, in
    seconds; None where nobody looked. ``missed``: settles whose counts were gone before anybody read them, ``damaged``:
    whose counts could not be read: what is shown of attempts is that much too low.
    """

    now: int
    start: int
    end: int
    step: int
    queue: str
    task: str
    times: list[int]
    counts: dict[str, list[int]]
    outcomes: dict[str, list[int]]
    throughput: list[float]
    wait: Latency
    run: Latency
    depth: dict[str, Series]
    states: dict[str, Series]
    oldest: Series
    missed: list[int]
    damaged: list[int]


def quantile(histogram: Mapping[int, int], part: float) -> float | None:
    """Return the value below which ``part`` of what a histogram counts lies, in its unit; None for an empty one.

    Within a bucket, from 2^(b-1) to 2^b, values are taken as spread evenly. That is off by less than a factor of 2.

    >>> quantile({11: 100}, 0.5)
    1536.0
    """
    rank, passed = part * sum(histogram.values()), 0
    for bucket in sorted(histogram):
        count = histogram[bucket]
        if passed + count >= rank and count:
            low = 2.0 ** (bucket - 1) if bucket else 0.0
            return low + low * (rank - passed) / count
        passed += count
    return None


def tier_of(seconds: float) -> Tier:
    """Return the finest tier that is kept for so long."""
    return next((tier for tier in TIERS if tier.span >= seconds * 1000), TIERS[-1])


class History:
    """Reads courses, from any thread.

    What was read within the last ``fresh`` seconds is not read again; in steps of a minute, six times as long.

    >>> from spool.broker import connect
    >>> History(connect("sqlite://:memory:")).course(300).step
    1000
    """

    def __init__(self, broker: Broker, fresh: float = 1.0) -> None:
        self._broker = broker
        self._fresh = fresh
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str, str, int], tuple[float, Course]] = {}

    def course(self, seconds: float, queue: str = "", task: str = "") -> Course:
        """Return the last ``seconds`` (60 to 86,400) of one queue, or of all (""); and of one task, or of all ("").

        Raises `ConfigError` for another range, and `BrokerError`.
        """
        if not SHORTEST <= seconds <= LONGEST:
            raise ConfigError(f"a range is {SHORTEST:g} to {LONGEST:g} seconds, not {seconds:g}")
        tier = tier_of(seconds)
        wanted = (tier.name, queue, task, round(seconds * 1000) // tier.step)
        with self._lock:
            at, course = self._read.get(wanted, (0.0, None))
            if course is None or time.monotonic() - at > self._fresh * max(1, tier.step // 10_000):
                course = self._look(tier, *wanted[1:])
                recent = [(key, value) for key, value in self._read.items() if key != wanted][-31:]
                self._read = {**dict(recent), wanted: (time.monotonic(), course)}
        return course

    def _look(self, tier: Tier, queue: str, task: str, steps: int) -> Course:
        loaded = self._broker.call(Load(KIND, tier.name, tier.pages))
        end = loaded.now - loaded.now % tier.step
        times = [end - tier.step * back for back in reversed(range(steps))]
        found: dict[int, _Step] = {at: _Step() for at in times}
        for document in loaded.documents:
            if document.key.startswith(tier.name):
                kind: type[Bucket | Lines] = Bucket if task else Lines
                for bucket in unpack(document.body, kind):
                    if bucket.start in found:
                        found[bucket.start].take(bucket, queue, task)
        return _course(_Frame(loaded.now, tier.step, times, queue, task), list(found.values()))


class _Step:
    """What is known of one step of a course, queues together."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.attempts = Attempts()
        self.gauges: list[float] | None = None
        self.oldest = self.missed = self.damaged = 0

    def take(self, bucket: Bucket | Lines, queue: str, task: str) -> None:
        """Add what a bucket has of a queue, or of all; and of a task, or of all."""
        everywhere = bucket.lines.pop(EVERYWHERE, None)
        for name, line in bucket.lines.items():
            if queue in ("", name):
                self._add(line)
        if task and isinstance(bucket, Bucket):
            self.attempts = Attempts()
            for name, tasks in bucket.tasks.items():
                if queue in ("", name) and task in tasks:
                    self.attempts.merge(tasks[task])
        if not queue and everywhere is not None and everywhere.samples and self.gauges is not None:
            self.gauges[-1] = everywhere.sums[-1] / everywhere.samples

    def ended(self, task: str) -> int:
        """Return how many jobs ended; of a task, how many attempts."""
        return sum(self.attempts.outcomes.values()) if task else sum(self.counts.get(event, 0) for event in ENDS)

    def _add(self, line: Line) -> None:
        for event, count in line.counts.items():
            self.counts[event] = self.counts.get(event, 0) + count
        self.attempts.merge(line.attempts)
        if line.samples:
            before = self.gauges or [0.0] * len(GAUGES)
            self.gauges = [a + b / line.samples for a, b in zip(before, line.sums, strict=False)]
        self.oldest = max(self.oldest, line.oldest)
        self.missed += line.missed
        self.damaged += line.damaged


class _Frame(msgspec.Struct, frozen=True):
    """What a course is of."""

    now: int
    step: int
    times: list[int]
    queue: str
    task: str

    def rates(self, counts: Sequence[int]) -> list[float]:
        """Return numbers by step as numbers per second. A step under way is as long as it is by now."""
        widths = (max(1000, min(self.step, self.now - at)) for at in self.times)
        return [count * 1000 / width for count, width in zip(counts, widths, strict=True)]


def _course(frame: _Frame, steps: Sequence[_Step]) -> Course:
    gauges: dict[str, Series] = {
        name: [None if step.gauges is None else step.gauges[n] for step in steps] for n, name in enumerate(GAUGES)
    }
    return Course(
        now=frame.now,
        start=frame.times[0],
        end=frame.times[-1] + frame.step,
        step=frame.step,
        queue=frame.queue,
        task=frame.task,
        times=frame.times,
        counts={} if frame.task else {event: [step.counts.get(event, 0) for step in steps] for event in EVENTS},
        outcomes={name: [step.attempts.outcomes.get(name, 0) for step in steps] for name in OUTCOMES},
        throughput=frame.rates([step.ended(frame.task) for step in steps]),
        wait=_latency([(step.attempts.waits, step.attempts.waited) for step in steps], 1e-3),
        run=_latency([(step.attempts.runs, step.attempts.ran) for step in steps], 1e-9),
        depth={name: gauges[name] for name in DEPTHS},
        states={name: gauges[name] for name in STATES},
        oldest=[None if step.gauges is None else step.oldest / 1000 for step in steps],
        missed=[step.missed for step in steps],
        damaged=[step.damaged for step in steps],
    )


def _latency(steps: Sequence[tuple[dict[int, int], float]], unit: float) -> Latency:
    counts = [sum(histogram.values()) for histogram, _ in steps]
    p50, p95, p99 = (
        [None if (value := quantile(histogram, percent / 100)) is None else value * unit for histogram, _ in steps]
        for percent in PERCENTS
    )
    mean = [total / count if count else None for (_, total), count in zip(steps, counts, strict=True)]
    return Latency(p50, p95, p99, mean, counts)
