"""A result as one HTML file that needs nothing else: figures and tables by Python, plots by uPlot, all in the page.

Whatever comes out of a result is data: escaped where it is text, and with no ``<`` where a script reads it. The page
allows itself only the scripts and styles that it was written with, by their hashes, and no network.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Final

import msgspec

from spool.bench import charts, report
from spool.bench.charts import Chart
from spool.bench.result import BenchResult
from spool.bench.scale import Scaling

Row = Sequence[str]
_LEVELS: Final = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999, 0.999999, 1.0)


def page(document: BenchResult | Scaling) -> str:
    """Return the report of a result."""
    if isinstance(document, Scaling):
        return _scaling(document)
    return _run(document)


def _run(document: BenchResult) -> str:
    drawn = charts.of_run(document)
    result = document.result
    parts = [
        _head("Spool benchmark", document),
        _wrong(document),
        _figures(
            [
                ("throughput", _figure(result.per_s, "/s", 0)),
                ("drain", _figure(result.drain_per_s, "/s", 0)),
                ("start p50", _figure(result.latency_ms.start.p50, " ms", 2)),
                ("start p99", _figure(result.latency_ms.start.p99, " ms", 2)),
                ("done p99", _figure(result.latency_ms.done.p99, " ms", 2)),
                ("errors", f"{report.error_rate(result):.2%}"),
                ("memory (PSS)", _figure(result.memory_mb.pss, " MB", 0)),
            ]
        ),
        _plots("Course and latency", drawn)
        if drawn
        else '<p class="soft">This result has no course of its run: it is from before results had one.</p>',
        _card("Percentiles", _percentiles(document)),
        _card("Share of each worker process", _shares(document)),
        _breakdown(document),
        _card(
            "Measured", _table(("Measure", "Result", "What it is"), report.summary(document), numeric=(1,), said=True)
        ),
        _card("Repetitions", _repetitions(document)),
        _card("Configuration", _configuration(document)),
    ]
    return _assemble(f"Spool benchmark, {document.started}", parts, drawn)


def _scaling(found: Scaling) -> str:
    drawn = charts.of_scaling(found)
    first = found.results[0]
    what = charts.NAMES[found.axis]
    law = [] if found.law is None else [f"<p>{escape(report.law_line(found.law))}</p>"]
    heads, rows = report.scaling_rows(found)
    parts = [
        _head(f"Spool scalability: {what}", first, f"and the same with {', '.join(map(str, found.values))} {what}"),
        *(_wrong(each) for each in found.results),
        *law,
        _plots("What more of them bring", drawn),
        _card("Measured", _table(heads, rows, numeric=range(len(heads)))),
        _card("Configuration", _configuration(first)),
    ]
    return _assemble(f"Spool scalability, {first.started}", parts, drawn)


# Parts


def _head(title: str, document: BenchResult, more: str = "") -> str:
    lines = [*report.head(document), more]
    said = "".join(f'<p class="soft">{escape(line)}</p>' for line in [document.started, *lines] if line)
    return f"<header><h1>{escape(title)}</h1>{said}</header>"


def _wrong(document: BenchResult) -> str:
    result = document.result
    counts = {
        "failed": result.failed,
        "lost": result.lost,
        "unfinished": result.unfinished,
        "run twice": result.duplicated,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f'<p class="bad">Of {result.jobs:,} jobs {said}.</p>' if said else ""


def _figures(each: Iterable[tuple[str, str]]) -> str:
    found = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in each)
    return f'<dl class="figures">{found}</dl>'


def _plots(title: str, drawn: Iterable[Chart]) -> str:
    return f'<h2>{escape(title)}</h2><div class="plots">{"".join(map(_plot, drawn))}</div>'


def _plot(chart: Chart) -> str:
    name = f"{chart.title}: {chart.y_label} by {chart.x_label}, of {', '.join(line.label for line in chart.lines)}"
    return (
        f"<figure><figcaption>{escape(chart.title)}, {escape(chart.y_label)}<p>{escape(chart.about)}</p></figcaption>"
        f'<div class="plot" id="{chart.id}" role="img" aria-label="{escape(name)}"></div>'
        f"<details><summary>Figures</summary>{_points(chart)}</details></figure>"
    )


def _points(chart: Chart) -> str:
    heads = (chart.x_label, *(f"{line.label}, {chart.y_label}" for line in chart.lines))
    rows = [
        [_x(chart, x), *("–" if value is None else f"{value:,.6g}" for value in values)]
        for x, *values in zip(chart.x, *(line.values for line in chart.lines), strict=True)
    ]
    return _table(heads, rows, numeric=range(len(heads)), name=chart.title)


def _x(chart: Chart, x: float) -> str:
    return f"{100 * (1 - 1 / x):.6g} %" if chart.x_scale == "tail" else f"{x:,.6g}"


def _card(title: str, body: str) -> str:
    return f'<h2>{escape(title)}</h2><div class="card">{body}</div>' if body else ""


def _table(
    heads: Sequence[str], rows: Iterable[Row], *, numeric: Iterable[int] = (), name: str = "", said: bool = False
) -> str:
    """Return a table; one of words (``said``) has its cells below each other where the page is narrow."""
    right = set(numeric)

    def cells(tag: str, row: Row) -> str:
        opened = [f'<{tag} class="number">' if index in right else f"<{tag}>" for index in range(len(row))]
        return "".join(f"{each}{escape(cell)}</{tag}>" for each, cell in zip(opened, row, strict=True))

    # What scrolls has to be reached by keyboard, and so needs a name.
    label = escape(name or ", ".join(heads))
    opened = '<table class="said">' if said else "<table>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{opened}'
        f"<thead><tr>{cells('th', heads)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _percentiles(document: BenchResult) -> str:
    if document.spread is None:
        return ""
    start, done = (
        dict(zip(each.shares, each.ms, strict=True)) for each in (document.spread.start, document.spread.done)
    )
    levels = [level for level in _LEVELS if level in start or level in done]
    rows = [
        (
            "longest" if level == 1 else f"{100 * level:.10g} %",
            *(_figure(each.get(level), "", 3) for each in (start, done)),
        )
        for level in levels
    ]
    return _table(("of the jobs", "start, ms", "done, ms"), rows, numeric=(1, 2))


def _shares(document: BenchResult) -> str:
    if document.series is None:
        return ""
    workers = document.series.workers
    total = sum(each.done for each in workers) or 1
    rows = "".join(
        f'<tr><td>process {each.process}</td><td class="number">{each.done:,}</td>'
        f'<td class="number">{each.done / total:.1%}</td>'
        f'<td><progress max="{total}" value="{each.done}" aria-label="share of process {each.process}"></progress></td>'
        for each in workers
    )
    heads = '<th>Worker</th><th class="number">Jobs done</th><th class="number">Share</th><th></th>'
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _repetitions(document: BenchResult) -> str:
    if len(document.runs) < 2:
        return ""
    rows = [
        (
            f"{number}" + (" (shown)" if run == document.result else ""),
            _figure(run.per_s, "/s", 0),
            _figure(run.drain_per_s, "/s", 0),
            _figure(run.latency_ms.start.p50, " ms", 2),
            _figure(run.latency_ms.start.p99, " ms", 2),
        )
        for number, run in enumerate(document.runs, 1)
    ]
    return _table(("Run", "Throughput", "Drain", "Start p50", "Start p99"), rows, numeric=range(1, 5))


def _configuration(document: BenchResult) -> str:
    plan: dict[str, Any] = msgspec.to_builtins(document.config)
    machine: dict[str, Any] = msgspec.to_builtins(document.machine)
    rows = [
        *((name, _plain(value)) for name, value in plan.items() if value is not None),
        ("broker", document.broker.url),
        *((f"machine: {name}", _plain(value)) for name, value in machine.items()),
        *((f"version of {name}", value) for name, value in document.versions.items()),
    ]
    return _table(("What", "Value"), rows, said=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _breakdown(document: BenchResult) -> str:
    """Show where the time goes, if the document says so: sums of rows, each with microseconds and a share."""
    found: dict[str, Any] | None = msgspec.to_builtins(document.breakdown)
    if not found:
        return ""
    parts: list[str] = []
    for key, title in (("job", "A job, from enqueue to its accepted outcome"), ("worker", "A worker process")):
        if (part := found.get(key)) is not None:
            rows = [(row["what"], f"{row['us']:,.1f}", f"{row['share']:.1%}") for row in part["rows"] if row["us"]]
            rows += [
                ("not accounted for", f"{part['unaccounted_us']:,.1f}", ""),
                ("the clock", f"{part['clock_us']:,.1f}", ""),
            ]
            parts.append(f"<h3>{title}</h3>{_table(('Part', 'µs per job', 'Share'), rows, numeric=(1, 2), name=title)}")
    if found.get("store"):
        store = [(row["what"], f"{row['us']:,.1f}") for row in found["store"]]
        parts.append(f"<h3>The store meanwhile</h3>{_table(('Part', 'µs per job'), store, numeric=(1,))}")
    if bottleneck := found.get("bottleneck"):
        parts.append(f"<p><strong>{escape(bottleneck['reason'])}</strong></p><p>{escape(bottleneck['advice'])}</p>")
    if cost := found.get("cost"):
        parts.append(f'<p class="soft">Looking cost {cost["percent"]:.1f} % of the throughput.</p>')
    return _card("Where the time goes", "".join(parts))


def _figure(value: float | None, unit: str, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


# The file


def _assemble(title: str, parts: Iterable[str], drawn: Sequence[Chart]) -> str:
    scripts = [
        _asset(f"{name}.js") for name in ("bench/page/language", "assets/uplot/uPlot.iife.min", "bench/page/report")
    ]
    style = _asset("assets/uplot/uPlot.min.css") + _asset("bench/page/report.css")
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash, scripts)),
        "style-src": _hash(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    tail = ""
    if drawn:
        data = msgspec.json.encode(drawn).decode().replace("<", "\\u003c")
        tail = (
            '<noscript><p class="bad">Plots need JavaScript; their figures are in the tables below each.</p></noscript>'
            f'<script type="application/json" id="plots">{data}</script>'
            + "".join(f"<script>{each}</script>" for each in scripts)
        )
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main>\n{body}\n</main>\n{tail}</body></html>\n"
    )


def _policy(directives: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _asset(path: str) -> str:
    return files("spool").joinpath(path).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
