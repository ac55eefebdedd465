"""``spool demo``, and what commands that run for a while have in common."""

from __future__ import annotations

import signal
import sys
import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from spool.cli.output import console, print_json, printable


def _interrupt(_signum: int, _frame: object) -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def stoppable() -> Generator[None]:
    """Let SIGTERM do what Ctrl-C does, so that neither leaves a store or processes behind."""
    # By way of a real SIGINT, which a running event loop knows how to take; what a script starts with & has it ignored.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _interrupt}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def check_file(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a file that cannot be written before the run, not after it."""
    if value is not None and value != "-" and not Path(value).absolute().parent.is_dir():
        raise click.BadParameter(f"there is no directory {str(Path(value).parent)!r}")
    return value


@click.command()
@click.argument("directory", required=False)
@click.option("--url", help="Broker; default a temporary SQLite file. On Redis a key prefix of its own.")
@click.option("--processes", type=click.IntRange(1), help="Worker processes; default one per CPU.")
@click.option("--keep", is_flag=True, help="Leave the store behind, dead jobs and all, and say where.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(*, directory: str | None, url: str | None, processes: int | None, keep: bool, as_json: bool) -> None:
    """Index a directory tree with the queue, one job per file.

    Each job reads a file: size, SHA-256, lines, words, and for .py files functions, classes and the longest function.
    Files that do not parse fail, are tried once more, and end in the dead letter queue. DIRECTORY
    defaults to this Python's standard library. Left out are __pycache__, site-packages and links.
    """
    from rich.console import Console

    from spool.demo import run
    from spool.demo.show import as_json as plain
    from spool.demo.show import progress, summary

    errors = Console(stderr=True, highlight=False, markup=False, emoji=False)

    def begin(store: str) -> None:
        what = printable(directory or "the standard library")
        errors.print(f"workers are ready; indexing {what} on {store}", soft_wrap=True)

    where = directory or sysconfig.get_paths()["stdlib"]
    with stoppable(), progress(errors) as update:
        report = run(where, url, processes, keep=keep, on_start=begin, on_progress=update)
    if as_json:
        print_json(plain(report))
    else:
        console().print(summary(report), soft_wrap=not sys.stdout.isatty())
    if keep:
        click.echo(f"kept: spool dead list --url '{report.broker}'", err=True)
