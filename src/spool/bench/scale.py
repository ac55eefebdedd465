"""How throughput grows with workers, payload or depth: a run for each value, and the law that the workers' follow.

The universal scalability law says that n workers carry

    X(n) = rate · n / (1 + contention · (n - 1) + coherence · n · (n - 1))

jobs per second: ``contention`` is the share of the work that all of them queue for, ``coherence`` what it costs that
each has to agree with each other. Both are 0 where twice the workers do twice the work.

Source: N. J. Gunther, Guerrilla Capacity Planning, Springer 2007, chapter 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec

from spool.bench.plan import Plan
from spool.bench.result import BenchResult
from spool.bench.runner import OnStage, run
from spool.errors import ConfigError

Axis = Literal["workers", "payload", "jobs"]
"""What is varied. ``jobs``: all are enqueued before the first worker starts, and so it is the depth of the queue."""

MIN_POINTS: Final = 4
"""Of workers, so that a law of three numbers has something to be wrong about."""


class Law(msgspec.Struct, frozen=True):
    """The universal scalability law, as fitted."""

    rate: float
    """Jobs per second of one worker."""
    contention: float
    coherence: float

    def __call__(self, workers: float) -> float:
        """Return the jobs per second that so many workers carry.

        >>> Law(1000.0, 0.0, 0.0)(8)
        8000.0
        """
        return self.rate * workers / (1 + self.contention * (workers - 1) + self.coherence * workers * (workers - 1))

    @property
    def peak(self) -> float | None:
        """With how many workers there is most throughput; None if more are always more."""
        return math.sqrt(max(0.0, 1 - self.contention) / self.coherence) if self.coherence > 0 else None


class Scaling(msgspec.Struct, frozen=True):
    """What came out: a result for each value."""

    axis: Axis
    values: list[int]
    results: list[BenchResult]
    law: Law | None
    """None for an axis other than workers, for too few values, and without scipy (extra ``bench``)."""
    schema: Literal[1] = 1
    kind: Literal["spool-bench-scaling"] = "spool-bench-scaling"

    def speed_up(self, index: int) -> float | None:
        """Return the drain rate over that of the first value; None where one of them was not measured."""
        first, this = (self.results[each].result.drain_per_s for each in (0, index))
        return this / first if first and this else None

    def efficiency(self, index: int) -> float | None:
        """Return the speed-up over that of the value itself: 1 where twice the workers do twice the work."""
        speed_up = self.speed_up(index)
        return None if speed_up is None else speed_up * self.values[0] / self.values[index]


def scale(
    plan: Plan,
    axis: Axis,
    values: Sequence[int],
    url: str | None = None,
    on_stage: Callable[[int], OnStage] | None = None,
) -> Scaling:
    """Carry out a plan for each value of an axis; ``on_stage`` makes the listener for one of them.

    On the axis of workers each gets ``plan.jobs``, so that every run takes as long. All are enqueued before the workers
    start. Raises `ConfigError` for values that are not rising, and what `run` raises.
    """
    if not values or values[0] < 1 or any(after <= before for before, after in pairwise(values)):
        raise ConfigError(f"{axis} must be numbers of 1 or more, each more than the one before, not {list(values)}")
    results: list[BenchResult] = []
    for value in values:
        one = msgspec.structs.replace(plan, prefill=True, warmup=0, **{axis: value})
        if axis == "workers":
            one = msgspec.structs.replace(one, jobs=plan.jobs * value)
        results.append(run(one, url, on_stage(one.jobs) if on_stage else None))
    rates = [each.result.drain_per_s or 0.0 for each in results]
    law = _law(values, rates) if axis == "workers" and len(values) >= MIN_POINTS and min(rates) > 0 else None
    return Scaling(axis, list(values), results, law)


def _law(values: Sequence[int], rates: Sequence[float]) -> Law | None:
    try:
        return fit(values, rates)
    except ImportError:  # what was measured is worth as much without it
        return None


def fit(workers: Sequence[int], rates: Sequence[float]) -> Law:
    """Fit the law to the rates of so many workers, by least squares of the relative errors.

    >>> law = fit([1, 2, 4, 8], [Law(100.0, 0.1, 0.01)(n) for n in (1, 2, 4, 8)])
    >>> round(law.rate), round(law.contention, 3), round(law.coherence, 3)
    (100, 0.1, 0.01)
    """
    from scipy import optimize  # its import takes long, and only a fit needs it

    def misses(law: Any) -> list[float]:
        return [Law(*map(float, law))(n) / rate - 1 for n, rate in zip(workers, rates, strict=True)]

    start = (rates[0] / workers[0], 0.01, 0.001)
    found = optimize.least_squares(misses, start, bounds=(0, math.inf), x_scale=start)
    rate, contention, coherence = map(float, found.x)
    return Law(round(rate, 1), round(contention, 5), round(coherence, 6))
