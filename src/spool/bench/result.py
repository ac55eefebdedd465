"""A benchmark's result: its JSON form, and what is said about it. The schema is documented in docs/reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from spool.bench.account import Percentiles
from spool.bench.breakdown import Breakdown
from spool.bench.calibrate import Calibration
from spool.bench.machine import Machine, Memory
from spool.bench.plan import Kind, Plan
from spool.bench.series import Series, Spread

SCHEMA: Final = 1
"""Raised when a field goes away or changes its meaning; new ones may come without."""


class Latency(msgspec.Struct, frozen=True):
    """How long it took from the moment enqueue was to be called for a job.

    Only an open loop has a plan for that, and may be behind it; otherwise it is the moment enqueue was called.
    """

    behind: Percentiles
    """Until it was called."""
    start: Percentiles
    """Until the handler started."""
    start_after_call: Percentiles
    """Until the handler started, from the moment enqueue was called."""
    done: Percentiles
    """Until the worker knew that the outcome was accepted."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. Rates are jobs per second; None when there was nothing to measure."""

    complete: bool
    """All jobs were enqueued and ended before ``max_seconds``."""
    jobs: int
    done: int
    failed: int
    dead: int
    lost: int
    unfinished: int
    duplicated: int
    extra_starts: int
    refused: int
    retried: int = 0
    """Attempts that failed, and were followed by another."""
    store: dict[str, int]
    """The broker's own totals at the end, counted independently of the above."""
    seconds: float
    """From the first call of enqueue to the last accepted outcome."""
    per_s: float | None
    """Done jobs over ``seconds``."""
    enqueue_seconds: float
    enqueue_per_s: float | None
    drain_seconds: float
    """From the first claim that returned jobs to the last accepted outcome."""
    drain_per_s: float | None
    latency_ms: Latency
    memory_mb: Memory
    worker_cpu_us: float | None
    """CPU time of the worker processes per done job, from their readiness to the end of the run, in µs."""


def went_wrong(run: Measured, kind: Kind) -> bool:
    """Return whether a job was lost, run twice, not ended in time, or failed and was not meant to."""
    ended = run.done + (run.failed if kind == "failing" else 0)
    return not run.complete or ended != run.jobs or run.duplicated > 0


class Store(msgspec.Struct, frozen=True):
    """Which broker carried the load. ``url`` is without its password."""

    kind: str
    url: str


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The document that ``--json`` writes."""

    schema: Literal[1] = SCHEMA
    kind: Literal["spool-bench"] = "spool-bench"
    started: str
    """ISO 8601, UTC."""
    config: Plan
    broker: Store
    versions: dict[str, str]
    machine: Machine
    result: Measured
    """Of several repetitions the one with the median throughput."""
    runs: list[Measured] = []
    """All repetitions, in their order."""
    calibrations: list[Calibration] = []
    """How fast the machine was, before and after each repetition."""
    breakdown: Breakdown | None = None
    """Where the time goes: of ``spool bench profiled`` only."""
    series: Series | None = None
    """What happened when, in the run that ``result`` is of; None in documents from before there was any."""
    spread: Spread | None = None
    """How long jobs of that run took, as distributions."""


def joined(documents: Sequence[BenchResult], rate: Callable[[Measured], float | None]) -> BenchResult:
    """Return one document for runs that were each made alone; its result is that of the median by ``rate``."""
    median = sorted(documents, key=lambda each: rate(each.result) or 0.0)[len(documents) // 2]
    return msgspec.structs.replace(
        documents[0],
        result=median.result,
        series=median.series,
        spread=median.spread,
        runs=[each.result for each in documents],
        calibrations=[each for document in documents for each in document.calibrations],
    )
