"""How the demo looks: a progress bar on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from spool.demo.files import Place
from spool.demo.indexer import Progress, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

_LINE_SECONDS: Final = 2.0


@contextmanager
def progress(console: Console) -> Generator[Callable[[Progress], None]]:
    """Yield what shows progress: a live bar if the console is a terminal, else a line every two seconds."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    figures = TextColumn(
        "{task.completed:,.0f} of {task.fields[found]}  {task.fields[rate]:,.0f} jobs/s  "
        "{task.fields[failed]:,} failed  {task.fields[waiting]:,} waiting"
    )
    with Bar(BarColumn(None), figures, TimeElapsedColumn(), console=console, transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, found="…", rate=0.0, failed=0, waiting=0)

        def update(now: Progress) -> None:
            bar.update(
                task,
                completed=now.indexed + now.failed,
                total=now.found if now.listed else None,
                found=f"{now.found:,}" + ("" if now.listed else "…"),
                rate=_rate(now),
                failed=now.failed,
                waiting=now.waiting,
            )

        yield update


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = _LINE_SECONDS

    def __call__(self, now: Progress) -> None:
        if now.seconds >= self._next:
            self._next = now.seconds + _LINE_SECONDS
            self._console.print(
                f"{now.indexed + now.failed:,} of {now.found:,} files, {_rate(now):,.0f} jobs/s, "
                f"{now.failed:,} failed, {now.waiting:,} waiting"
            )


def _rate(now: Progress) -> float:
    return (now.indexed + now.failed) / now.seconds if now.seconds > 0 else 0.0


def summary(report: Report) -> RenderableType:
    """Return the tables of the end."""
    from rich.console import Group
    from rich.text import Text

    totals = report.totals
    figures = [
        ("files", f"{totals.files:,}"),
        ("bytes", f"{totals.size:,}"),
        ("lines", f"{totals.lines:,}"),
        ("words", f"{totals.words:,}"),
        ("functions", f"{totals.functions:,}"),
        ("classes", f"{totals.classes:,}"),
        ("jobs", f"{report.jobs:,} in {report.seconds:,.2f} s by {report.processes} worker processes"),
        ("jobs/s", f"{report.jobs_per_s:,.0f}"),
        ("dead", f"{sum(totals.failed.values()):,}" + _reasons(totals.failed)),
    ]
    if report.unreadable:
        figures.append(("unreadable", f"{len(report.unreadable):,} directories"))
    root = os.fsencode(report.directory)
    parts: list[RenderableType] = [Text(f"{shown(root)}, on {report.broker}", style="bold"), _grid(figures)]
    for title, places, unit in (
        ("Largest files", totals.largest, "bytes"),
        ("Longest files", totals.longest, "lines"),
        ("Longest functions", totals.longest_functions, "lines"),
    ):
        if places:
            rows = [(f"{place.figure:,} {unit}", _whose(place, root)) for place in places]
            parts += [Text(f"\n{title}", style="bold"), _grid(rows)]
    if totals.failures:
        rows = [(shown(each.path, root), f"{each.error}: {printable(each.message)}") for each in totals.failures]
        parts += [Text("\nWhat died, and why", style="bold"), _grid(rows, right=False)]
        if (more := sum(totals.failed.values()) - len(rows)) > 0:
            parts.append(Text(f"and {more:,} more"))
    return Group(*parts)


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values, paths as text."""
    totals = report.totals
    root = os.fsencode(report.directory)

    def places(found: list[Place], unit: str) -> list[dict[str, Any]]:
        return [
            {unit: place.figure, "path": shown(place.path), **({"name": place.name} if place.name else {})}
            for place in found
        ]

    return {
        "directory": shown(root),
        "broker": report.broker,
        "processes": report.processes,
        "jobs": report.jobs,
        "seconds": report.seconds,
        "jobs_per_s": report.jobs_per_s,
        "totals": {
            "files": totals.files,
            "bytes": totals.size,
            "lines": totals.lines,
            "words": totals.words,
            "functions": totals.functions,
            "classes": totals.classes,
            "digest": f"{totals.digest:016x}",
            "dead": totals.failed,
        },
        "largest": places(totals.largest, "bytes"),
        "longest": places(totals.longest, "lines"),
        "longest_functions": places(totals.longest_functions, "lines"),
        "dead": [{"path": shown(each.path), "error": each.error, "message": each.message} for each in totals.failures],
        "unreadable": [shown(path) for path in report.unreadable],
    }


def shown(path: bytes, root: bytes = b"") -> str:
    """Return a path as printable text, relative to ``root`` where it lies below."""
    if root and path.startswith(root + b"/"):
        path = path[len(root) + 1 :]
    return printable(path.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Return text whose control characters are written as escapes: names and messages are not ours."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def _whose(place: Place, root: bytes) -> str:
    return f"{printable(place.name)}  {shown(place.path, root)}" if place.name else shown(place.path, root)


def _reasons(failed: dict[str, int]) -> str:
    each = ", ".join(f"{count:,} {name}" for name, count in sorted(failed.items()))
    return f" ({each})" if each else ""


def _grid(rows: list[tuple[str, str]], *, right: bool = True) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right" if right else "left", no_wrap=right)
    table.add_column(overflow="fold")
    for first, second in rows:
        table.add_row(Text(first), Text(second))
    return table
