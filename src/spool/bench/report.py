"""What is said about a result: pure functions from a result to lines of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from spool.bench.account import Percentiles
from spool.bench.plan import Plan
from spool.bench.result import BenchResult, Measured
from spool.bench.scale import Axis, Law, Scaling

TARGETS: Final = {"throughput": 2500.0, "errors": 0.1, "p99": 50.0, "memory": 500.0}
"""Jobs per second, percent of the jobs, milliseconds, megabytes."""


_OWN_PREFIX: Final = re.compile(r"[?&]prefix=spool-bench-\w+")


class Target(msgspec.Struct, frozen=True):
    """One line of the quick benchmark: what came out, what was to come out, and what the figure is."""

    metric: str
    result: str
    target: str
    met: bool
    measured: str


def targets(document: BenchResult, wanted: Mapping[str, float] = TARGETS) -> list[Target]:
    """Compare a run with targets, the project's own where no other is given. What was not measured is not met."""
    wanted = {**TARGETS, **wanted}
    result, workers = document.result, document.config.workers
    errors = error_rate(result)
    per_s, p99, rss = result.per_s, result.latency_ms.start.p99, result.memory_mb.rss_peak
    return [
        Target(
            "throughput",
            _figure(per_s, "/s", 0),
            f"≥ {wanted['throughput']:,.0f}/s",
            per_s is not None and per_s >= wanted["throughput"],
            "done jobs over the time from the first enqueue call to the last accepted outcome",
        ),
        Target(
            "error rate",
            f"{errors:.2%}",
            f"< {wanted['errors']:g} %",
            result.complete and 100 * errors < wanted["errors"],
            f"failed {result.failed}, lost {result.lost}, unfinished {result.unfinished}, "
            f"run twice {result.duplicated} of {result.jobs:,}, by their ids",
        ),
        Target(
            "p99 latency",
            _figure(p99, " ms", 1),
            f"< {wanted['p99']:g} ms",
            p99 is not None and p99 < wanted["p99"],
            f"from each job's enqueue call to its handler's start, all {result.latency_ms.start.count:,} of them",
        ),
        Target(
            "memory",
            _figure(rss, " MB", 0),
            f"< {wanted['memory']:g} MB",
            rss is not None and rss < wanted["memory"],
            f"highest RSS of the {workers} worker processes, summed; shared pages counted in each",
        ),
    ]


def store_name(document: BenchResult) -> str:
    """Return where it ran, without the name that a store gets for one run: two runs on one server read alike."""
    url = document.broker.url
    if document.broker.kind == "sqlite" and "/spool-bench-" in url:
        return "a temporary SQLite file"
    return _OWN_PREFIX.sub("", url)


def head(document: BenchResult) -> list[str]:
    """Return what was run, on what, and with whom ready: three lines."""
    plan, machine = document.config, document.machine
    kind = plan.task.target if plan.task else plan.kind
    ready = "workers were ready before the first job was enqueued"
    if plan.warmup:
        ready += f", and had run {plan.warmup:,} that do not count"
    what = (
        f"{plan.jobs:,} {kind} jobs of {plan.payload:,} bytes, {plan.workers} worker "
        f"{'process' if plan.workers == 1 else 'processes'} × {plan.concurrency}, on {store_name(document)}"
    )
    versions = f"spool {document.versions['spool']}, Python {document.versions['python']}"
    return [
        what,
        f"{versions}, {machine.cores} cores, {machine.processor}",
        "all jobs enqueued before the workers started" if plan.prefill else ready,
    ]


_SCALING_HEADS: Final[dict[Axis, str]] = {"workers": "Workers", "payload": "Payload", "jobs": "Depth"}


def scaling_rows(found: Scaling) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the heads and the rows of a table: one for each value, all of them figures."""
    heads = (_SCALING_HEADS[found.axis], "Drain", "Speed-up", "Efficiency", "Start p50", "Start p99", "Memory")
    rows: list[tuple[str, ...]] = []
    for index, (value, each) in enumerate(zip(found.values, found.results, strict=True)):
        result = each.result
        efficiency = found.efficiency(index) if found.axis == "workers" else None
        rows.append(
            (
                f"{value:,}",
                _figure(result.drain_per_s, "/s", 0),
                _figure(found.speed_up(index), "", 2),
                _figure(efficiency, "", 2),
                _figure(result.latency_ms.start.p50, " ms", 1),
                _figure(result.latency_ms.start.p99, " ms", 1),
                _figure(result.memory_mb.pss, " MB", 0),
            )
        )
    return heads, rows


def law_line(law: Law) -> str:
    """Return the law in words."""
    peak = f"most throughput with {law.peak:.0f} workers" if law.peak else "no end to it in sight"
    return (
        f"universal scalability law: {law.rate:,.0f}/s of one worker, "
        f"contention {law.contention:.4f}, coherence {law.coherence:.5f}; {peak}"
    )


def error_rate(result: Measured) -> float:
    """Return the share of jobs that did not end as done, once; 1 if there were none."""
    bad = result.jobs - result.done + result.duplicated
    return bad / result.jobs if result.jobs else 1.0


def summary(document: BenchResult) -> list[tuple[str, str, str]]:
    """Return (name, figure, what it is) for each thing measured."""
    result, memory = document.result, document.result.memory_mb
    since = _latency_origin(document.config)
    return [
        ("jobs", _books(result), "enqueued and acknowledged; every one accounted for by its id"),
        ("errors", f"{error_rate(result):.2%}", "of the jobs: failed, lost, unfinished or run twice"),
        ("enqueue", _figure(result.enqueue_per_s, "/s", 0), _enqueue_way(document.config)),
        ("drain", _figure(result.drain_per_s, "/s", 0), "first claim that returned jobs to last accepted outcome"),
        ("both", _figure(result.per_s, "/s", 0), "first enqueue call to last accepted outcome"),
        ("start", _spread(result.latency_ms.start), f"p50 / p95 / p99 / max ms, from the {since} to handler start"),
        *_pace(document),
        (
            "done",
            _spread(result.latency_ms.done),
            f"from the {since} to its worker's knowing that the outcome was accepted",
        ),
        (
            "memory",
            f"{_figure(memory.rss, '', 0)} / {_figure(memory.pss, '', 0)} MB",
            "RSS / PSS of the worker processes at the end",
        ),
        ("worker CPU", _figure(result.worker_cpu_us, " µs", 1), "per done job, all worker processes together"),
    ]


def _pace(document: BenchResult) -> list[tuple[str, str, str]]:
    if not document.config.rate:
        return []
    latency = document.result.latency_ms
    return [
        ("behind", _spread(latency.behind), "of that, how far the producer was behind its pace"),
        ("", _spread(latency.start_after_call), "from the call of enqueue, as it was made, to handler start"),
    ]


def _books(result: Measured) -> str:
    parts = [f"{result.done:,} done"]
    for name, count in (
        ("failed", result.failed),
        ("lost", result.lost),
        ("unfinished", result.unfinished),
        ("run twice", result.duplicated),
        ("outcomes refused", result.refused),
        ("attempts tried again", result.retried),
    ):
        if count or name in ("failed", "lost", "run twice"):
            parts.append(f"{count:,} {name}")
    return ", ".join(parts)


def _latency_origin(plan: Plan) -> str:
    if plan.rate:
        return "time its enqueue call was due"
    return "call of enqueue" if plan.producers else "moment enqueue_many took the call"


def _enqueue_way(plan: Plan) -> str:
    if plan.rate:
        return f"one by one, at {plan.rate:g}/s" + (" on average (Poisson)" if plan.arrivals == "poisson" else "")
    if not plan.producers:
        return "in bulk, by one enqueue_many"
    return "one by one" + (f", by {plan.producers} callers at once" if plan.producers > 1 else "")


def _spread(found: Percentiles) -> str:
    return " / ".join(_figure(value, "", 2) for value in (found.p50, found.p95, found.p99, found.max))


def _figure(value: float | None, unit: str, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"
