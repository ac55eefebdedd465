"""Two sides in one run, in turns: another installed version of Spool, or another broker, against this one.

A pair is one life of both sides' processes. They are started alike, at once, and live on from run to run; a first run
of either does not count. Then they take turns, as A B, B A, A B, and so on, half of the pairs the other way round. The
two runs of a turn follow one another within a moment, for the weather of a shared machine changes within seconds, and
short ones, of which there are many, see more of it than a long one. While one side runs the other has nothing to do.
Since the order alternates, neither what a first run leaves behind nor a machine that steadily becomes slower favours a
side.

What a pair says is the middle of its turns. These are not independent of each other: a process keeps the layout of its
memory, and mostly its core, for its life. Pairs share no process, so the interval is that of pairs, and has in it what
lives differ by.

Runs come first that do not count: they warm caches up, compile what was just installed, and find how many jobs it
takes for the runs of a pair to last. Then come as many pairs as asked for. If these leave the headline open, or a
limit, as many follow again, up to a bound. Who looks more often is wrong more often: so of the one percent by which the
interval may miss, each look gets its share (Bonferroni), and all looks together are right with 99 % confidence.

The first versions of Spool cannot take turns. If one is a side, each run has processes of its own, and is a turn, and
so a pair, by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from spool.bench.compare import CONFIDENCE, Change, Comparison, check_installed, compare
from spool.bench.limit import Limit
from spool.bench.plan import Plan
from spool.bench.result import BenchResult, joined
from spool.bench.sides import Couple, Index, Name, Side, has_turns, measure

SECONDS: Final = 0.5
"""How long the drains of a pair take by default, in all, on the side where they take less."""
LOOKS: Final = 3
"""By default there are so many times the pairs asked for at most."""
TURNS: Final = 8
"""Of a pair at most."""
_SHORTEST: Final = 0.05
"""Seconds that a run takes at least, or there are fewer turns: a shorter one is mostly start and end."""
_FILLINGS: Final = 10
"""So often a run fills the slots of all workers at least, for the same reason."""
_FIRST_JOBS: Final = 200
_MOST_JOBS: Final = 500_000
_WARM_UPS: Final = 4
_LONG_ENOUGH: Final = 0.8

OnRun = Callable[[Name, int], None]
"""Told whose run begins, and of which pair, from 1; 0 is one that does not count."""


class AbResult(msgspec.Struct, frozen=True, kw_only=True):
    """The document that ``spool bench ab --json`` writes."""

    schema: Literal[1] = 1
    kind: Literal["spool-bench-ab"] = "spool-bench-ab"
    sides: tuple[Side, Side]
    pairs: int
    turns: int = 1
    """Runs of each side in a pair."""
    old: list[Name] = []
    """Sides that could not live on from run to run: then processes were started for each run."""
    headline: Change
    """Of the drain, or with a rate the latency to the start; more pairs were run until it could be told."""
    comparison: Comparison
    base: BenchResult
    """The base's runs, in their order."""
    this: BenchResult


def interleave(
    base: Side,
    this: Side,
    options: Sequence[str] = (),
    *,
    jobs: int | None = None,
    turns: int | None = None,
    seconds: float = SECONDS,
    pairs: int = 10,
    most: int | None = None,
    limits: Sequence[Limit] = (),
    on_run: OnRun = lambda _, __: None,
) -> AbResult:
    """Run both sides in turns, in ``pairs`` lives, and compare; again and again while the headline or a limit is open.

    There are ``most`` pairs at most, by default three times ``pairs``. ``options`` are those of ``spool bench custom``,
    but for its jobs: without ``jobs`` there are as many in a pair as the faster side drains in about ``seconds``. They
    are shared out to ``turns``, by default as many, up to eight, as leave no run too short.

    Raises `ConfigError` without SciPy, before anything runs, and `BenchError` if a run fails: it names the side, and
    its note has the end of what that said.
    """
    check_installed()
    old = [side for side in (base, this) if not has_turns(side)]
    table = _Table((base, this), options, on_run, alive=not old)
    count, longest = table.share_out(jobs, seconds)
    turns = 1 if old else longest if turns is None else turns
    most = max(pairs, LOOKS * pairs if most is None else most)
    confidence = 1 - (1 - CONFIDENCE) / math.ceil(most / pairs)
    found: tuple[list[BenchResult], list[BenchResult]] = [], []
    done = 0
    while True:
        before, done = done, min(done + pairs, most)
        for pair in range(before + 1, done + 1):
            for each in table.pair(pair, turns, max(1, count // turns)):
                found[0].append(each[0])
                found[1].append(each[1])
        result = _judge((base, this), *found, turns, confidence)
        result = msgspec.structs.replace(result, old=[side.name for side in old])
        if done >= most or not is_open(result, limits):
            return result


class _Table:
    """Has the sides run, in living processes or in new ones each time."""

    def __init__(self, sides: tuple[Side, Side], options: Sequence[str], on_run: OnRun, *, alive: bool) -> None:
        self._sides, self._options, self._on_run, self._alive = sides, options, on_run, alive

    def share_out(self, jobs: int | None, seconds: float) -> tuple[int, int]:
        """Return how many jobs a pair has, and how many turns they are enough for, by runs that do not count."""
        if not self._alive:
            return self._count(jobs, seconds, self._once)[0], 1
        with Couple(self._sides, self._options, jobs or _FIRST_JOBS) as couple:
            count, warm = self._count(jobs, seconds, lambda count: self._turn(couple, 0, count))
        return count, turns_for(count, warm)

    def _count(
        self, jobs: int | None, seconds: float, warm_up: Callable[[int], Sequence[BenchResult]]
    ) -> tuple[int, Sequence[BenchResult]]:
        if jobs is None:
            return jobs_for(seconds, warm_up)
        return jobs, warm_up(jobs)

    def pair(self, pair: int, turns: int, jobs: int) -> Iterator[tuple[BenchResult, BenchResult]]:
        """Yield what came out of both sides' runs, turn by turn."""
        if not self._alive:
            yield self._once(jobs, pair)
            return
        with Couple(self._sides, self._options, jobs, 0 if pair % 2 else 1) as couple:
            for turn in range(turns + 1):
                found = self._turn(couple, pair if turn else 0, jobs, other_way=(pair + turn) % 2 == 1)
                if turn:
                    yield found

    def _turn(
        self, couple: Couple, pair: int, jobs: int, *, other_way: bool = False
    ) -> tuple[BenchResult, BenchResult]:
        couple.fill(jobs)
        order: tuple[Index, Index] = (1, 0) if other_way else (0, 1)
        for index in order:
            self._on_run(self._sides[index].name, pair)
            couple.go(index)
        return couple.close()

    def _once(self, jobs: int, pair: int = 0) -> tuple[BenchResult, BenchResult]:
        found: dict[Name, BenchResult] = {}
        for side in self._sides if pair % 2 or not pair else self._sides[::-1]:
            self._on_run(side.name, pair)
            found[side.name] = measure(side, self._options, jobs)
        return found["base"], found["this"]


def turns_for(count: int, warm: Sequence[BenchResult]) -> int:
    """Return how many turns, a power of two up to eight, so many jobs may be shared out to. ``warm``: a run of each."""
    plan = warm[0].config
    taken = min(_taken(each) / each.config.jobs for each in warm) * count
    turns = TURNS
    while turns > 1 and (taken / turns < _SHORTEST or count / turns < _FILLINGS * plan.workers * plan.concurrency):
        turns //= 2
    return turns


def _taken(found: BenchResult) -> float:
    """Return what a run took that one wants to last: with a rate, nothing makes the drain longer."""
    return found.result.enqueue_seconds if found.config.rate else found.result.drain_seconds


def is_open(result: AbResult, limits: Sequence[Limit]) -> bool:
    """Whether the headline, or one of the limits, cannot be told yet."""
    verdicts = [result.headline.verdict, *(each.judge(result.comparison) for each in limits)]
    return "cannot tell" in verdicts


def _judge(
    sides: tuple[Side, Side], base: Sequence[BenchResult], this: Sequence[BenchResult], turns: int, confidence: float
) -> AbResult:
    before, after = _joined(base), _joined(this)
    comparison = compare(before, after, paired=True, turns=turns, confidence=confidence)
    name = headline(before.config)
    change = next((each for each in comparison.changes if each.metric == name), Change(name, "", None, None))
    return AbResult(
        sides=sides,
        pairs=len(base) // turns,
        turns=turns,
        headline=change,
        comparison=comparison,
        base=before,
        this=after,
    )


def headline(plan: Plan) -> str:
    """Return the metric that the verdict is about: an open loop carries what it is given, only later."""
    return "start p50" if plan.rate else "drain"


def _joined(documents: Sequence[BenchResult]) -> BenchResult:
    # An older Spool takes calibrations all the same.
    return msgspec.structs.replace(joined(documents, lambda run: run.drain_per_s), calibrations=[])


def jobs_for(seconds: float, warm_up: Callable[[int], Sequence[BenchResult]]) -> tuple[int, Sequence[BenchResult]]:
    """Return how many jobs take either side so long, by as few runs as it takes to know, and the last of these.

    A short run is mostly start and end, which says little of how many jobs a longer one has time for.
    """
    count = _FIRST_JOBS
    warm: Sequence[BenchResult] = ()
    for _ in range(_WARM_UPS):
        warm = warm_up(count)
        rates = [rate for each in warm if (rate := each.config.rate or each.result.drain_per_s)]
        enough = count >= _MOST_JOBS or min(map(_taken, warm)) >= _LONG_ENOUGH * seconds
        if rates:
            wanted = min(_MOST_JOBS, max(100.0, max(rates) * seconds))
            count = int(float(f"{wanted:.1e}"))  # two digits, so that it looks like a choice
        if enough:
            break
    return count, warm
