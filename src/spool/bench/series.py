"""What happened when, and how long it took as a distribution: the books of a run, small enough to be kept and drawn.

Nothing is sampled but memory. What was done, what waited and what ran at a moment follows from the times that were
noted of every job; a result keeps at most `STEPS` steps of it, and a distribution a few points for each halving of the
jobs that took longer.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

import msgspec

from spool.bench.account import Books, Claims, Settles, endings, first_starts, waits
from spool.bench.machine import MemoryTrace

STEPS: Final = 300
"""At most, of a series."""
_LEAST_STEP_NS: Final = 10_000_000
_PER_HALVING: Final = 8
_PER_DECADE: Final = 20
_LEAST_NS: Final = 1000
_ROUND: Final = (0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999, 0.999999)

Notes = Mapping[int, Sequence[Claims | Settles]]
"""What each worker process noted, by its process id."""


class Share(msgspec.Struct, frozen=True):
    """Of one worker process, how many jobs it was known to have done."""

    process: int
    done: int


class Series(msgspec.Struct, frozen=True):
    """What happened when. Time 0 is the first call of enqueue; step n ends at (n + 1) · ``step_s`` seconds."""

    step_s: float
    done: list[int]
    """Jobs whose outcome Done a worker knew to be accepted, in each step; rate is this over ``step_s``."""
    waiting: list[int]
    """Jobs whose enqueue had been called, and that had not started, at the end of each step."""
    running: list[int]
    """Jobs that had started, and whose end no worker knew of yet, at the end of each step."""
    memory_s: list[float]
    """When memory was looked at, in seconds."""
    memory_mb: list[float]
    """RSS of the worker processes and their children at those times, in 10^6 bytes, summed."""
    workers: list[Share]
    """Of each process that had a job; in the order of their process ids."""


class Distribution(msgspec.Struct, frozen=True):
    """How some durations spread: as percentiles, closer the rarer, and as a histogram. Milliseconds."""

    shares: list[float]
    """Rising, from 0 to 1: eight for each halving of what is beyond, and 0.9, 0.95, 0.99, 0.999 and so on."""
    ms: list[float]
    """For each, the smallest duration that at least this share does not exceed."""
    edges_ms: list[float]
    """Of the histogram's bins, 20 for each power of ten: one more than there are bins."""
    counts: list[int]


class Spread(msgspec.Struct, frozen=True):
    """The distributions of what `spool.bench.result.Latency` has the percentiles of."""

    start: Distribution
    done: Distribution


def series(books: Books, notes: Notes, memory: MemoryTrace) -> Series:
    """Return what happened when. ``notes`` has those of the books, by process."""
    starts, ends = first_starts(books)[0], endings(books)
    over = [at for at in ends.over.values() if at]
    last = max([*over, *starts, *books.called, books.began])
    step = step_for(last - books.began)
    count = max(1, math.ceil((last - books.began) / step))
    called, started, ended, done = (
        _steps(times, books.began, step, count) for times in (books.called, starts, over, [at for at in ends.at if at])
    )
    # A job that ended otherwise, or was handed back, may have an end and no start that was noted: it waits no more.
    gone = [max(one, other) for one, other in zip(accumulate(started), accumulate(ended), strict=True)]
    return Series(
        step_s=step / 1e9,
        done=done,
        waiting=[max(0, before - after) for before, after in zip(accumulate(called), gone, strict=True)],
        running=[before - after for before, after in zip(gone, accumulate(ended), strict=True)],
        memory_s=[round(max(0, at - books.began) / 1e9, 3) for at in memory.at],
        memory_mb=[round(size / 1e6, 1) for size in memory.sizes],
        workers=_shares(books, notes),
    )


def step_for(span: int) -> int:
    """Return a step of which so many nanoseconds hold `STEPS` at most: 10, 20, 50 or 100 ms, and so on.

    >>> step_for(1_000_000_000), step_for(10_000_000_000)
    (10000000, 50000000)
    """
    step = _LEAST_STEP_NS
    for factor in (factor * 10**power for power in range(12) for factor in (1, 2, 5)):
        step = factor * _LEAST_STEP_NS
        if step * STEPS >= span:
            break
    return step


def _steps(times: Iterable[int], began: int, step: int, count: int) -> list[int]:
    """Return how many of the times are in each step; 0 is no time."""
    found = Counter(min(count - 1, max(0, (at - began - 1) // step)) for at in times if at)
    return [found[index] for index in range(count)]


def _shares(books: Books, notes: Notes) -> list[Share]:
    """Count each job once, for the process whose note of its end is the last."""
    mine = set(books.ids)
    by: dict[str, tuple[int, int]] = {}
    for process, each in notes.items():
        for note in each:
            if isinstance(note, Settles):
                for id in note.done:
                    if id in mine and (id not in by or by[id][0] <= note.at):
                        by[id] = note.at, process
    counts = Counter(process for _, process in by.values())
    return [Share(process, counts[process]) for process in sorted(counts)]


def spread(books: Books) -> Spread:
    """Return the distributions of start and done latency."""
    return Spread(
        distribution(waits(first_starts(books)[0], books.due)), distribution(waits(endings(books).at, books.due))
    )


def distribution(nanoseconds: Iterable[int]) -> Distribution:
    """Return how durations spread. However many there are, about 200 numbers say it.

    >>> found = distribution(range(1_000_000, 101_000_000, 1_000_000))
    >>> dict(zip(found.shares, found.ms))[0.5], found.ms[-1], sum(found.counts)
    (50.0, 100.0, 100)
    """
    ordered = sorted(nanoseconds)
    if not ordered:
        return Distribution([], [], [], [])
    shares = sorted({*_halvings(len(ordered)), *(share for share in _ROUND if (1 - share) * len(ordered) >= 1), 1.0})
    ranked = [ordered[max(0, math.ceil(round(share * len(ordered), 6)) - 1)] for share in shares]
    edges, counts = _histogram(ordered)
    return Distribution(shares, [round(each / 1e6, 4) for each in ranked], edges, counts)


def _halvings(count: int) -> Iterable[float]:
    beyond = 1.0
    while beyond * count > 1:
        for part in range(_PER_HALVING):
            share = 1 - beyond * (1 - part / (2 * _PER_HALVING))
            if (1 - share) * count < 1:
                break
            yield round(share, 9)
        beyond /= 2


def _histogram(ordered: Sequence[int]) -> tuple[list[float], list[int]]:
    low = math.floor(_PER_DECADE * math.log10(max(_LEAST_NS, ordered[0])))
    high = math.floor(_PER_DECADE * math.log10(max(_LEAST_NS, ordered[-1]))) + 1
    edges = [10 ** (power / _PER_DECADE) for power in range(low, high + 1)]
    # What is below the first edge, or by a rounding beyond the last, is in the first or the last bin.
    below = [0, *(bisect.bisect_left(ordered, edge) for edge in edges[1:-1]), len(ordered)]
    counts = [after - before for before, after in pairwise(below)]
    return [float(f"{edge / 1e6:.4g}") for edge in edges], counts
