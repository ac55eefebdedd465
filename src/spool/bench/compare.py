"""Two results, or several: what became faster, what slower, and what cannot be told.

A run is repeated (``--repeat``), and stores how fast the machine did two fixed loops meanwhile (its calibration). Of
each metric the logarithms are compared, since changes are ratios: the difference of their means, with the interval in
which it lies with 99 % confidence by Student's t, after Welch for separate runs, and after Yuen for pairs, which are
runs taken in turns: of ten pairs the one with the largest change either way is left out, since on a shared machine it
is now and then the machine's. Separate runs are besides as far apart as their calibrations are, in either direction,
and by `UNSEEN` more, since two loops do not see all: a machine that drifts widens the interval, and so makes no
verdict.

Source: B. L. Welch, The generalization of "Student's" problem when several different population variances are involved,
Biometrika 34 (1947). K. K. Yuen, The two-sample trimmed t for unequal population variances, Biometrika 61 (1974).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Final, Literal, TypeAlias

import msgspec

from spool.bench.calibrate import drift
from spool.bench.result import BenchResult, Measured
from spool.errors import ConfigError

Verdict = Literal["faster", "slower", "no difference", "cannot tell"]

CONFIDENCE: Final = 0.99
ALIKE: Final = 0.07
"""What is no difference has its interval within as much on either side; a change of less than half is no verdict."""
UNSEEN: Final = 0.02
"""By so much, as a logarithm, separate runs of the same may differ though their calibrations do not: without it, a
standard deviation of 2 % between runs made one comparison in ten wrong (by simulation, of five repetitions each)."""
_TRIM: Final = 10
"""One of so many pairs is left out at either end."""


class Metric(msgspec.Struct, frozen=True):
    """A figure of a result. ``more`` says whether more of it is better."""

    name: str
    unit: str
    read: Callable[[Measured], float | None]
    more: bool


METRICS: Final = (
    Metric("throughput", "/s", lambda run: run.per_s, more=True),
    Metric("drain", "/s", lambda run: run.drain_per_s, more=True),
    Metric("enqueue", "/s", lambda run: run.enqueue_per_s, more=True),
    Metric("start p50", "ms", lambda run: run.latency_ms.start.p50, more=False),
    Metric("start p99", "ms", lambda run: run.latency_ms.start.p99, more=False),
    Metric("done p50", "ms", lambda run: run.latency_ms.done.p50, more=False),
    Metric("done p99", "ms", lambda run: run.latency_ms.done.p99, more=False),
    Metric("worker CPU", "µs", lambda run: run.worker_cpu_us, more=False),
    Metric("memory", "MB", lambda run: run.memory_mb.pss, more=False),
)


class Change(msgspec.Struct, frozen=True):
    """How one metric changed; ratios less 1, so that 0.1 is 10 % more. None where there is nothing to compare."""

    metric: str
    unit: str
    before: float | None
    """Median of the repetitions."""
    after: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Verdict = "cannot tell"


def check_installed() -> None:
    """Raise `ConfigError` if what intervals are computed with is not there: to be asked before hours of runs."""
    if find_spec("scipy") is None:
        raise ConfigError("a comparison needs SciPy: pip install 'spool-queue[bench]'")


def change(
    metric: Metric,
    before: Sequence[float],
    after: Sequence[float],
    *,
    apart: float = 0.0,
    paired: bool = False,
    turns: int = 1,
    confidence: float = CONFIDENCE,
) -> Change:
    """Compare the repetitions of two runs. ``apart``: how far, as a logarithm, their calibrations are.

    ``turns``: so many runs of either side make a pair, which says what is in the middle of them.

    Raises `ConfigError` for pairs that are none.

    >>> change(METRICS[0], [100.0, 101.0, 99.0], [80.0, 81.0, 79.0]).verdict
    'slower'
    >>> change(METRICS[0], [100.0, 101.0, 99.0], [80.0, 81.0, 79.0], apart=0.3).verdict
    'cannot tell'
    """
    if paired:
        _check_pairs(len(before), len(after), turns)
    found = Change(metric.name, metric.unit, _median(before), _median(after))
    if not before or not after or min(*before, *after) <= 0:
        return found
    logs = [math.log(each) for each in before], [math.log(each) for each in after]
    if paired:
        ratios = [b - a for a, b in zip(*logs, strict=True)]
        middle, error, freedom = _trimmed([midmean(ratios[i : i + turns]) for i in range(0, len(ratios), turns)])
    else:
        middle, error, freedom = _welch(*logs)
    spread = _t(freedom, confidence) * error if freedom else math.inf
    low, high = middle - spread - apart, middle + spread + apart
    return msgspec.structs.replace(
        found,
        change=_ratio(middle),
        low=_ratio(low),
        high=_ratio(high),
        verdict=_verdict(metric, low, high),
    )


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def _ratio(log: float) -> float | None:
    return None if math.isinf(log) else round(math.expm1(log), 5)


_Estimate: TypeAlias = tuple[float, float, float]
"""A middle, its standard error, and the error's degrees of freedom; 0 of them if there is too little to tell it."""


def midmean(values: Sequence[float]) -> float:
    """Return the mean of the middle half."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def _trimmed(values: Sequence[float]) -> _Estimate:
    """Return the mean without the outermost tenth at either end, after Yuen."""
    count, cut = len(values), len(values) // _TRIM
    kept = sorted(values)[cut : count - cut]
    middle = statistics.mean(kept)
    if count < 2:
        return middle, 0.0, 0.0
    # What is left out counts as if it were the outermost that is kept.
    pulled_in = [min(max(value, kept[0]), kept[-1]) for value in values]
    error = statistics.stdev(pulled_in) * math.sqrt((count - 1) / (len(kept) * (len(kept) - 1)))
    return middle, error, len(kept) - 1


def _welch(before: Sequence[float], after: Sequence[float]) -> _Estimate:
    """Return the difference of the means."""
    middle = statistics.mean(after) - statistics.mean(before)
    if min(len(before), len(after)) < 2:
        return middle, 0.0, 0.0
    parts = [statistics.variance(each) / len(each) for each in (before, after)]
    if not sum(parts):
        return middle, 0.0, len(before) + len(after) - 2
    weights = [part**2 / (len(each) - 1) for part, each in zip(parts, (before, after), strict=True)]
    return middle, math.sqrt(sum(parts)), sum(parts) ** 2 / sum(weights)


def _t(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit  # its import takes long, and only a comparison needs it

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _verdict(metric: Metric, low: float, high: float) -> Verdict:
    more = low + high > 0
    # First, or else a change that is known to be 5 % would be called none because it is less than 7 %.
    if not low <= 0 <= high and abs(low + high) >= ALIKE:
        return "faster" if more == metric.more else "slower"
    alike = math.log1p(-ALIKE) < low and high < math.log1p(ALIKE)
    return "no difference" if alike else "cannot tell"


class Comparison(msgspec.Struct, frozen=True):
    """What became of each metric, and what else is not the same."""

    changes: list[Change]
    differences: list[str]
    """Of configuration, machine and versions: "payload: 1024, then 100". A verdict is about those as well."""
    drift: float | None
    """How far apart the calibrations are, as a ratio less 1; None where they were not taken."""
    confidence: float = CONFIDENCE
    """Of each interval."""


def _check_pairs(before: int, after: int, turns: int) -> None:
    if before != after:
        raise ConfigError(f"pairs need as many runs of either side, not {before} and {after}")
    if before % turns:
        raise ConfigError(f"{before} runs are not pairs of {turns} turns")


def compare(
    before: BenchResult, after: BenchResult, *, paired: bool = False, turns: int = 1, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two results; ``paired``: their repetitions were taken in turns, the first with the first.

    Of these ``turns`` make a pair: they had processes, and all that depends on these, in common.

    Raises `ConfigError` for pairs that are none, and without SciPy.
    """
    check_installed()
    if paired:
        _check_pairs(len(before.runs), len(after.runs), turns)
    apart = None if paired else drift(before.calibrations, after.calibrations)
    # Nobody knows how far machines that were not looked at had drifted.
    log = 0.0 if paired else math.log(apart) + UNSEEN if apart is not None else math.inf
    changes: list[Change] = []
    for metric in METRICS:
        sides = [[metric.read(run) for run in each.runs] for each in (before, after)]
        found = _whole_pairs(sides, turns) if paired else [_known(side) for side in sides]
        if any(found):
            changes.append(change(metric, *found, apart=log, paired=paired, turns=turns, confidence=confidence))
    drifted = None if apart is None else round(apart - 1, 4)
    return Comparison(changes, differences(before, after), drifted, confidence)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _whole_pairs(sides: Sequence[Sequence[float | None]], turns: int) -> list[list[float]]:
    """Leave out pairs of which not every run was measured."""
    whole: list[list[float]] = [[], []]
    for begin in range(0, len(sides[0]), turns):
        pair = [_known(side[begin : begin + turns]) for side in sides]
        if min(map(len, pair)) == turns:
            whole = [kept + values for kept, values in zip(whole, pair, strict=True)]
    return whole


def differences(before: BenchResult, after: BenchResult) -> list[str]:
    """Return what of configuration, machine and versions is not the same."""
    found: list[str] = []
    for part in ("config", "machine", "versions", "broker"):
        one, other = (msgspec.to_builtins(getattr(each, part)) for each in (before, after))
        found += [
            f"{name}: {one.get(name)}, then {other.get(name)}"
            for name in dict.fromkeys((*one, *other))
            # The store of a run is its own, and has a name of its own.
            if one.get(name) != other.get(name) and (part, name) != ("broker", "url")
        ]
    return found
