"""``spool bench``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from spool.cli.loads import html_option, json_option, load_options, make_plan, url_option
from spool.cli.measure import check_file, stoppable
from spool.cli.output import print_table, printable, write_report, write_result
from spool.cli.progress import staged
from spool.errors import ConfigError

if TYPE_CHECKING:
    from spool.bench import BenchResult, Plan

_TARGET_HEADS = ("Metric", "Result", "Target", "Status", "Measured")
_TARGET_WIDTHS = {"Metric": 11, "Result": 11, "Target": 14, "Status": 6}
_SUMMARY_HEADS = ("Measure", "Result", "What it is")
_SUMMARY_WIDTHS = {"Measure": 10, "Result": 45}

repeat_option = click.option(
    "--repeat",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Run it so many times, each on a store of its own; the table shows the one with the median throughput.",
)


@click.group(short_help="Measure throughput, latency and memory.")
def bench() -> None:
    """Measure throughput, latency and memory, with every job accounted for.

    Runs on a store of its own and leaves nothing behind: a temporary SQLite file, or with --url a new key prefix.
    """


@bench.command(short_help="A fixed small load, against the project's targets.")
@url_option
@json_option
@html_option
@click.option(
    "--target",
    "wanted",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Another target: throughput (jobs/s), errors (percent), p99 (ms) or memory (MB).",
)
@click.option("--check", is_flag=True, help="Exit with 1 if a target is missed.")
@repeat_option
def quick(
    *, url: str | None, file: str | None, html: str | None, wanted: tuple[str, ...], check: bool, repeat: int
) -> int:
    """1,000 jobs of 1 KiB through 4 worker processes, against the project's targets.

    Jobs are enqueued one by one from 100 callers at once while the workers run them.
    """
    from spool.bench import QUICK
    from spool.bench.report import targets

    others = dict(map(_target, wanted))
    document = _run(QUICK, url, repeat)
    lines = targets(document, others)
    if file != "-":
        head(document)
        rows = [
            (each.metric, each.result, each.target, "met" if each.met else "missed", each.measured) for each in lines
        ]
        print_table(_TARGET_HEADS, rows, numeric=("Result",), widths=_TARGET_WIDTHS)
    write_result(document, file)
    write_report(document, html)
    return int(check and not all(each.met for each in lines))


def _target(text: str) -> tuple[str, float]:
    from spool.bench.report import TARGETS

    name, equals, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not equals or name not in TARGETS or not 0 <= value < float("inf"):
        raise ConfigError(f"{text!r} is no target: NAME=NUMBER, with a name of {', '.join(TARGETS)}, and 0 or more")
    return name, value


@bench.command()
@click.option("--jobs", "--tasks", type=click.IntRange(1), default=10_000, show_default=True)
@load_options
@url_option
@json_option
@html_option
@click.option(
    "--raw",
    type=click.Path(dir_okay=False, writable=True),
    callback=check_file,
    help="Write a line of JSON for each job here: when it was due, called, started, ended.",
)
@repeat_option
@click.option("--turns", type=click.IntRange(0), hidden=True)  # the descriptor of a socket: see spool.bench.turns
def custom(
    *,
    jobs: int,
    url: str | None,
    file: str | None,
    html: str | None,
    raw: str | None,
    repeat: int,
    turns: int | None,
    **load: Any,
) -> int:
    """Carry a load of your own. Without --rate or --producers jobs are enqueued in bulk.

    With --task each job is the same call of a task of yours, which runs as it is declared, in its app's middlewares and
    lifespans, but on the store of the benchmark: your broker is not touched.

    Exits with 1 if a job was lost, run twice, not ended in time, or failed and was not meant to.
    """
    from spool.bench.result import went_wrong

    plan = make_plan(jobs, **load)
    if turns is not None:
        return _take_turns(plan, url, turns)
    with Path(raw).open("wb") if raw else nullcontext() as log:
        document = _run(plan, url, repeat, log)
    if file != "-":
        head(document)
        show_summary(document)
    write_result(document, file)
    write_report(document, html)
    return int(any(went_wrong(run, plan.kind) for run in document.runs))


def _take_turns(plan: Plan, url: str | None, descriptor: int) -> int:
    from spool.bench.turns import take_turns

    with stoppable():
        take_turns(plan, url, descriptor)
    return 0


def _run(plan: Plan, url: str | None, repeat: int, raw: IO[bytes] | None = None) -> BenchResult:
    """Run a plan, with its progress on stderr if that is a terminal."""
    from spool.bench import run

    with staged(repeat) as stages:
        return run(plan, url, stages(plan.jobs) if stages else None, repeat=repeat, raw=raw)


def show_summary(document: BenchResult) -> None:
    """Print what was measured, and what each figure is."""
    from spool.bench.report import summary

    print_table(_SUMMARY_HEADS, summary(document), numeric=("Result",), widths=_SUMMARY_WIDTHS)


def head(document: BenchResult, varied: str = "") -> None:
    """Say what was run, where."""
    from spool.bench.report import head

    first, *rest = map(printable, head(document))
    click.echo("\n".join([first, *([f"and the same with {varied}"] if varied else []), *rest]) + "\n")
