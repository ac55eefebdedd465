"""``spool profile``: record processes that run, and look at what came out."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spool.cli.measure import stoppable
from spool.cli.output import print_json, print_table

if TYPE_CHECKING:
    from spool.profile import Profile
    from spool.profile.convert import Format
    from spool.profile.table import Row, Sort

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_value = click.option(
    "--value", help="What is counted: samples, cpu or wall; alloc_objects, alloc_space, inuse_objects or inuse_space."
)


@click.group()
def profile() -> None:
    """Record and show CPU and memory profiles.

    They are pprof files, which `go tool pprof` reads as well.
    """


@profile.command(short_help="A table of the functions that take the most.")
@click.argument("file", type=_FILE)
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, help="Rows at most.")
@click.option("--sort", type=click.Choice(["self", "cumulative"]), default="self", show_default=True)
@click.option("--lines", is_flag=True, help="A row for each line instead of each function.")
@_value
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def top(*, file: Path, limit: int, sort: Sort, lines: bool, value: str | None, as_json: bool) -> None:
    """Print a table of the functions, or lines, that take the most.

    Self is what a function took by itself, cumulative with all that it called. CPU profiles show time on a processor;
    --value wall adds time spent waiting. Memory profiles show all bytes that were allocated; --value inuse_space those
    that were not freed.
    """
    from spool.profile import read
    from spool.profile.table import top as rows_of

    found = read(file)
    rows = rows_of(found, value, lines=lines, sort=sort)[:limit]
    if as_json:
        print_json(rows)
        return
    _head(found, value)
    _print_rows(found, value, rows)


def _head(found: Profile, value: str | None) -> None:
    from spool.profile.table import shown, total

    name, unit = found.types[found.column(value)]
    pids = {pid for sample in found.samples if (pid := sample.labels.get("pid"))}
    where = f" of {len(pids)} {'process' if len(pids) == 1 else 'processes'}" if pids else ""
    rate = f", {1e9 / found.period:,.0f} samples a second" if found.kind == "cpu" and found.period else ""
    click.echo(f"{name}: {shown(total(found, value), unit)}{where} in {found.duration / 1e9:.1f} s{rate}\n")


def _print_rows(found: Profile, value: str | None, rows: list[Row]) -> None:
    from spool.profile.table import shown, total

    unit = found.types[found.column(value)][1]
    whole = total(found, value) or 1
    print_table(
        ("Self", "%", "Cumulative", "% ", "Function", "Where"),
        [
            (
                shown(row.own, unit),
                f"{row.own / whole:.1%}",
                shown(row.cumulative, unit),
                f"{row.cumulative / whole:.1%}",
                row.function,
                _short(row.file) + (f":{row.line}" if row.line else ""),
            )
            for row in rows
        ],
        numeric=("Self", "%", "Cumulative", "% "),
    )


def _short(file: str) -> str:
    """Return a path as an import would find it here."""
    folders = [folder for folder in sys.path if folder and file.startswith(folder.rstrip(os.sep) + os.sep)]
    return os.path.relpath(file, max(folders, key=len)) if folders else file


@profile.command(short_help="Look at a profile in the browser.")
@click.argument("file", type=_FILE)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; default a free one.")
@click.option("--open/--no-open", "opens", default=True, help="Open the browser, where there is one.")
@_value
def view(*, file: Path, port: int, opens: bool, value: str | None) -> None:
    """Serve a page with flame graph and call tree, and open it in the browser. Ctrl-C ends.

    The page is speedscope, comes with Spool and fetches nothing from elsewhere. All that the profile counts, for all
    threads and for each, can be chosen at its top.
    """
    from spool.profile import read
    from spool.profile.convert import speedscope
    from spool.profile.view import Viewer

    viewer = Viewer(speedscope(read(file), file.name, value), port)
    click.echo(viewer.url)
    if opens and _has_browser():
        import webbrowser

        webbrowser.open(viewer.url)
    with stoppable():
        try:
            viewer.serve()
        except KeyboardInterrupt:
            click.echo("", err=True)


def _has_browser() -> bool:
    # Without a display, webbrowser would run one for the terminal, and only come back when that is left.
    return sys.platform in {"darwin", "win32"} or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


@profile.command(short_help="Write profiles in another format.")
@click.argument("files", metavar="FILE...", type=_FILE, nargs=-1, required=True)
@click.option("--to", type=click.Choice(["speedscope", "pstats", "pprof"]), required=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default FILE with another suffix.")
@_value
def convert(*, files: tuple[Path, ...], to: Format, output: Path | None, value: str | None) -> None:
    """Write a profile in another format; several files of one kind are added up first.

    Reads pprof files and those of memray. pstats has one value only (--value), and the number of samples in place of
    calls.
    """
    from spool.profile import merge, read
    from spool.profile.convert import SUFFIXES
    from spool.profile.convert import convert as converted
    from spool.profile.files import write_bytes

    profiles = [read(file) for file in files]
    first = files[0]
    target = output or first.with_suffix(SUFFIXES[to])
    if output is None and target in files:
        raise click.UsageError(f"{target} would be overwritten: name an --output", click.get_current_context())
    found = merge(profiles) if len(profiles) > 1 else profiles[0]
    write_bytes(target, converted(found, to, first.name, value))
    click.echo(target)


@profile.command(short_help="Record processes that run.")
@click.option("--pid", "pids", type=click.IntRange(1), multiple=True, required=True, help="A process; may be repeated.")
@click.option("--seconds", type=click.FloatRange(0, 3500, min_open=True), default=30.0, show_default=True)
@click.option("--rate", type=click.IntRange(1, 1000), default=30, show_default=True, help="Samples in a second.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="cpu.prof", show_default=True)
def record(*, pids: tuple[int, ...], seconds: float, rate: int, output: Path) -> None:
    """Record the CPU profile of Python processes that run, which pause for it now and then. Ctrl-C ends it early.

    `spool workers` lists the processes of workers. The system may allow this for root only.
    """
    from spool.profile import CpuRecorder, write

    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"there is no directory {str(output.parent)!r}", click.get_current_context())
    with stoppable(), CpuRecorder(pids, rate) as recorder:
        try:
            time.sleep(seconds)
        except KeyboardInterrupt:
            click.echo("", err=True)
        found = recorder.stop()
    write(output, found)
    click.echo(output)
