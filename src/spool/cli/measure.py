"""``spool demo`` and ``spool bench``."""

from __future__ import annotations

import signal
import sys
import sysconfig
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spool.cli.output import console, print_json, print_table, printable, write_result
from spool.job import PRIORITIES, Priority

if TYPE_CHECKING:
    from spool.bench import BenchResult, Plan
    from spool.bench.plan import Kind

_KINDS = ("noop", "cpu", "io")
_CLEAR_LINE = "\r\x1b[K"
_STAGE_SECONDS = 0.5
_WORK_MS = {"noop": 0.0, "cpu": 1.0, "io": 10.0}


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


@click.group(short_help="Measure throughput, latency and memory.")
def bench() -> None:
    """Measure throughput, latency and memory, with every job accounted for.

    Runs on a store of its own and leaves nothing behind: a temporary SQLite file, or with --url a new key prefix.
    """


@bench.command(short_help="A fixed small load, against the project's targets.")
@click.option("--url", help="Broker; default a temporary SQLite file.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, writable=True),
    callback=check_file,
    help="Write the result here; - is stdout only.",
)
@click.option("--check", is_flag=True, help="Exit with 1 if a target is missed.")
def quick(*, url: str | None, file: str | None, check: bool) -> int:
    """1,000 jobs of 1 KiB through 4 worker processes, against the project's targets.

    Jobs are enqueued one by one from 100 callers at once while the workers run them.
    """
    from spool.bench import QUICK
    from spool.bench.report import targets

    document = _run(QUICK, url)
    lines = targets(document)
    if file != "-":
        _head(document)
        rows = [
            (each.metric, each.result, each.target, "met" if each.met else "missed", each.measured) for each in lines
        ]
        print_table(("Metric", "Result", "Target", "Status", "Measured"), rows, numeric=("Result",))
    write_result(document, file)
    return int(check and not all(each.met for each in lines))


@bench.command()
@click.option("--jobs", "--tasks", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option("--concurrency", type=click.IntRange(1), default=100, show_default=True, help="Jobs at once in each.")
@click.option("--payload", type=click.IntRange(0), default=1024, show_default=True, help="Bytes of text for each job.")
@click.option("--kind", type=click.Choice(_KINDS), default="noop", show_default=True, help="What a job does.")
@click.option("--work-ms", type=click.FloatRange(0), help="How long, for cpu (default 1) and io (default 10).")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option(
    "--rate", type=click.FloatRange(0), default=0.0, help="Enqueue so many a second, whatever happens (open loop)."
)
@click.option("--producers", type=click.IntRange(0), default=0, help="Enqueue one by one from so many callers at once.")
@click.option("--prefill", is_flag=True, help="Enqueue everything before the workers start.")
@click.option("--url", help="Broker; default a temporary SQLite file.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, writable=True),
    callback=check_file,
    help="Write the result here; - is stdout only.",
)
@click.option(
    "--max-seconds", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="Stop after."
)
def custom(
    *,
    jobs: int,
    workers: int,
    concurrency: int,
    payload: int,
    kind: Kind,
    work_ms: float | None,
    priority: Priority,
    rate: float,
    producers: int,
    prefill: bool,
    url: str | None,
    file: str | None,
    max_seconds: float,
) -> int:
    """Carry a load of your own. Without --rate or --producers jobs are enqueued in bulk.

    Exits with 1 if a job was lost, run twice, failed, or not ended in time.
    """
    from spool.bench import Plan
    from spool.bench.report import summary

    plan = Plan(
        jobs=jobs,
        workers=workers,
        concurrency=concurrency,
        payload=payload,
        kind=kind,
        work_ms=_WORK_MS[kind] if work_ms is None else work_ms,
        priority=priority,
        rate=rate,
        producers=producers,
        prefill=prefill,
        max_seconds=max_seconds,
    )
    document = _run(plan, url)
    if file != "-":
        _head(document)
        print_table(("Measure", "Result", "What it is"), summary(document), numeric=("Result",))
    write_result(document, file)
    result = document.result
    return int(not result.complete or result.done != result.jobs or result.duplicated > 0)


def _run(plan: Plan, url: str | None) -> BenchResult:
    """Run a plan, with its stages on stderr if that is a terminal."""
    from spool.bench import run

    with stoppable():
        if not sys.stderr.isatty():
            return run(plan, url)
        try:
            return run(plan, url, _Stages(plan.jobs))
        finally:
            click.echo(_CLEAR_LINE, nl=False, err=True)


class _Stages:
    """One line about how far a run is, written anew now and then: no animation takes part in what is measured."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._last = ("", 0.0)

    def __call__(self, stage: str, ended: int) -> None:
        last, at = self._last
        now = time.monotonic()
        if stage != last or now - at > _STAGE_SECONDS:
            self._last = (stage, now)
            click.echo(f"{_CLEAR_LINE}{stage}: {ended:,} of {self._jobs:,} jobs have ended", nl=False, err=True)


def _head(document: BenchResult) -> None:
    plan, machine = document.config, document.machine
    click.echo(
        f"{plan.jobs:,} {plan.kind} jobs of {plan.payload:,} bytes, {plan.workers} worker "
        f"{'process' if plan.workers == 1 else 'processes'} × {plan.concurrency}, on {document.broker.url}\n"
        f"spool {document.versions['spool']}, Python {document.versions['python']}, "
        f"{machine.cores} cores, {machine.processor}\n"
        + (
            "all jobs enqueued before the workers started\n"
            if plan.prefill
            else "workers were ready before the first job was enqueued\n"
        )
    )
