"""How the commands print: tables for people, JSON for programs. Text out of the store is data, never terminal codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from spool.bench import BenchResult
    from spool.bench.scale import Scaling


def console() -> Console:
    """Return a console on stdout; as wide as the text where that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False, emoji=False)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Iterable[str] = (),
    widths: Mapping[str, int] | None = None,
) -> None:
    """Print rows under column heads; columns named in ``numeric`` are aligned to the right.

    Where stdout is no terminal, ``widths`` gives columns a width that does not depend on what is in them, and a figure
    that needs more moves the rest of its own line alone: a diff of two outputs has the lines whose figures differ.
    """
    if widths is not None and not sys.stdout.isatty():
        right = set(numeric)
        for row in (columns, *rows):
            cells = [
                f"{printable(cell):{'>' if name in right else '<'}{widths.get(name, len(name))}}"
                for name, cell in zip(columns, row, strict=True)
            ]
            click.echo("  ".join(cells).rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    right = set(numeric)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(each)) for each in row))
    out = console()
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_json(value: Any) -> None:
    """Print one JSON document, indented."""
    import msgspec

    encoded = msgspec.json.encode(value, enc_hook=_plain)
    sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")


def write_result(document: object, file: str | None) -> None:
    """Write a document as JSON to a file, or to stdout for ``-``; None writes nothing. Raises `ConfigError`."""
    import msgspec

    from spool.errors import ConfigError

    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
    if file == "-":
        sys.stdout.write(text)
    elif file is not None:
        try:
            Path(file).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the result to {file}: {error}") from error


def write_report(document: BenchResult | Scaling, file: str | None) -> None:
    """Write a benchmark's result as a page; None writes nothing. Raises `ConfigError`."""
    if file is None:
        return
    from spool.bench.page import page
    from spool.errors import ConfigError

    try:
        Path(file).write_text(page(document), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the report to {file}: {error}") from error


def _plain(value: Any) -> Any:
    # pydantic models are known by their methods, as in spool.payload
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", by_alias=True) if dump else repr(value)


def printable(value: object, *, lines: bool = False) -> str:
    """Return text without control characters, which are written as escapes; ``lines`` keeps line ends and tabs."""
    text = str(value)
    if text.isprintable():
        return text
    keep = "\n\t" if lines else ""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode("ascii") for each in text
    )


def moment(milliseconds: int | None) -> str:
    """Return a time of the store as local time, to the second."""
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
