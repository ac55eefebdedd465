"""What is drawn of a result: titles, axes, units and points, whoever draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from spool.bench.result import BenchResult
from spool.bench.scale import Axis, Scaling
from spool.bench.series import Distribution

NAMES: Final[dict[Axis, str]] = {"workers": "worker processes", "payload": "bytes of payload", "jobs": "jobs waiting"}
_LEAST_MS: Final = 0.001
"""A logarithmic axis has no 0."""
_CURVE: Final = 200


class Line(msgspec.Struct, frozen=True):
    label: str
    values: Sequence[float | None]
    style: Literal["line", "steps", "points", "law"] = "line"
    """Steps: a value is that of the time since the one before. Points: those that were measured, joined. Law: a
    curve that was fitted."""


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One plot; ``tail`` is an axis of percentiles, with one over the share that is beyond for x."""

    id: str
    title: str
    about: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Sequence[Line]
    x_scale: Literal["linear", "log", "tail"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    x_ticks: Sequence[float] = ()
    """Where the axis is marked; empty: where it suits."""


def of_run(document: BenchResult) -> list[Chart]:
    """Return the plots of one run; none for a document from before there was a series in it."""
    return [*_over_time(document), *_latency(document)]


def _over_time(document: BenchResult) -> list[Chart]:
    series = document.series
    if series is None:
        return []
    ends = [round((step + 1) * series.step_s, 6) for step in range(len(series.done))]
    rates = [round(done / series.step_s, 3) for done in series.done]
    charts = [
        Chart(
            id="throughput",
            title="Throughput over time",
            about=f"Jobs whose outcome Done was accepted, in steps of {series.step_s:g} s. 0 is the first enqueue.",
            x_label="seconds",
            y_label="jobs/s",
            x=[0.0, *ends],
            lines=[Line("done", [0.0, *rates], "steps")],
        ),
        Chart(
            id="depth",
            title="Queue depth over time",
            about="Waiting: enqueue was called, not started yet. Running: started, and no worker knew of the end yet.",
            x_label="seconds",
            y_label="jobs",
            x=[0.0, *ends],
            lines=[Line("waiting", [0, *series.waiting]), Line("running", [0, *series.running])],
        ),
    ]
    if series.memory_s:
        charts.append(
            Chart(
                id="memory",
                title="Memory over time",
                about="RSS of the worker processes and their children, summed; shared pages count for each.",
                x_label="seconds",
                y_label="MB",
                x=series.memory_s,
                lines=[Line("RSS", series.memory_mb)],
            )
        )
    return charts


def _latency(document: BenchResult) -> list[Chart]:
    if document.spread is None or not document.spread.start.ms:
        return []
    start, done = document.spread.start, document.spread.done
    tail = sorted({*_tail(start), *_tail(done)})
    edges = sorted({*start.edges_ms, *done.edges_ms})
    return [
        Chart(
            id="percentiles",
            title="Latency by percentile",
            about="So many of the jobs took no longer. From mark to mark a tenth as many are beyond.",
            x_label="percentile",
            y_label="ms",
            x=tail,
            lines=[Line(name, _on(tail, _tail(each))) for name, each in (("start", start), ("done", done))],
            x_scale="tail",
            y_scale="log",
        ),
        Chart(
            id="histogram",
            title="Latency distribution",
            about="Jobs by how long they took; 20 bins for each power of ten.",
            x_label="ms",
            y_label="jobs",
            x=edges,
            lines=[Line(name, _bins(edges, each), "steps") for name, each in (("start", start), ("done", done))],
            x_scale="log",
        ),
    ]


def _tail(found: Distribution) -> dict[float, float]:
    """Return durations by one over the share of the jobs that took longer; the longest by how many jobs there are."""
    count = sum(found.counts)
    return {
        float(f"{1 / (1 - share) if share < 1 else count:.9g}"): max(ms, _LEAST_MS)
        for share, ms in zip(found.shares, found.ms, strict=True)
    }


def _on(x: Sequence[float], points: dict[float, float]) -> list[float | None]:
    return [points.get(each) for each in x]


def _bins(edges: Sequence[float], found: Distribution) -> list[float | None]:
    by_end = dict(zip(found.edges_ms[1:], found.counts, strict=True))
    return [float(by_end.get(edge, 0)) for edge in edges]


def of_scaling(found: Scaling) -> list[Chart]:
    """Return the plots of runs with more and more of something."""
    values, results = [float(each) for each in found.values], [each.result for each in found.results]
    workers = found.axis == "workers"

    def chart(id: str, title: str, about: str, y_label: str, lines: list[Line], *, log: bool = False) -> Chart:
        return Chart(
            id=id,
            title=title,
            about=about,
            x_label=NAMES[found.axis],
            y_label=y_label,
            x=values,
            lines=lines,
            x_scale="linear" if workers else "log",
            y_scale="log" if log else "linear",
            x_ticks=values,
        )

    indexes = range(len(values))
    charts = [_rates(found, chart("rate", "Throughput", "Jobs drained per second.", "jobs/s", []))]
    if workers:
        speed_up = [found.speed_up(index) for index in indexes]
        ideal = [value / values[0] for value in values]
        charts += [
            chart(
                "speed-up",
                "Speed-up",
                "Throughput over that of the first run.",
                "times",
                [Line("measured", speed_up, "points"), Line("ideal", ideal, "law")],
            ),
            chart(
                "efficiency",
                "Efficiency",
                "Throughput for each worker over that of the first run: 1 where twice the workers do twice the work.",
                "share",
                [Line("efficiency", [found.efficiency(index) for index in indexes], "points")],
            ),
        ]
    latencies = [each.latency_ms.start for each in results]
    lines = [
        Line("p50", [each.p50 and max(each.p50, _LEAST_MS) for each in latencies], "points"),
        Line("p99", [each.p99 and max(each.p99, _LEAST_MS) for each in latencies], "points"),
    ]
    about = "From enqueue to the handler's start. All jobs wait from the beginning, so it is mostly that."
    charts.append(chart("latency", "Start latency", about, "ms", lines, log=True))
    memory = [Line("PSS", [each.memory_mb.pss for each in results], "points")]
    charts.append(chart("memory", "Memory", "PSS of all worker processes at the end of each run.", "MB", memory))
    return charts


def _rates(found: Scaling, chart: Chart) -> Chart:
    rates = dict(zip(chart.x, (each.result.drain_per_s for each in found.results), strict=True))
    if found.law is None:
        return msgspec.structs.replace(chart, lines=[Line("measured", list(rates.values()), "points")])
    low, high = chart.x[0], chart.x[-1]
    x = sorted({*chart.x, *(round(low + (high - low) * step / _CURVE, 3) for step in range(_CURVE + 1))})
    law = Line("law", [round(found.law(each), 1) for each in x], "law")
    about = f"{chart.about} The law is the universal scalability law, fitted to what was measured."
    lines = [Line("measured", [rates.get(each) for each in x], "points"), law]
    return msgspec.structs.replace(chart, x=x, lines=lines, about=about)
