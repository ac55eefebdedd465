"""``spool bench``."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from spool.cli.measure import check_file, stoppable
from spool.cli.output import print_json, print_table, write_result
from spool.errors import ConfigError
from spool.job import PRIORITIES, Priority

if TYPE_CHECKING:
    from spool.bench import BenchResult, Plan
    from spool.bench.compare import Change, Comparison
    from spool.bench.plan import Arrivals, Kind
    from spool.bench.result import Measured

_KINDS = ("noop", "cpu", "io", "mixed", "failing")
_CLEAR_LINE = "\r\x1b[K"
_STAGE_SECONDS = 0.5
WORK_MS = {"cpu": 1.0, "io": 10.0, "mixed": 10.0}


_PERCENT = 100

url_option = click.option("--url", help="Broker; default a temporary SQLite file.")
json_option = click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, writable=True),
    callback=check_file,
    help="Write the result here; - is stdout only.",
)
kind_option = click.option(
    "--kind", type=click.Choice(_KINDS), default="noop", show_default=True, help="What a job does."
)
work_option = click.option(
    "--work-ms", type=click.FloatRange(0), help="How long, for cpu (default 1), io and mixed (default 10)."
)
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
@click.option(
    "--target",
    "wanted",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Another target: throughput (jobs/s), errors (percent), p99 (ms) or memory (MB).",
)
@click.option("--check", is_flag=True, help="Exit with 1 if a target is missed.")
@repeat_option
def quick(*, url: str | None, file: str | None, wanted: tuple[str, ...], check: bool, repeat: int) -> int:
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
        print_table(("Metric", "Result", "Target", "Status", "Measured"), rows, numeric=("Result",))
    write_result(document, file)
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
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option("--concurrency", type=click.IntRange(1), default=100, show_default=True, help="Jobs at once in each.")
@click.option("--payload", type=click.IntRange(0), default=1024, show_default=True, help="Bytes of text for each job.")
@kind_option
@work_option
@click.option("--failing", type=click.FloatRange(0, 100), default=5, show_default=True, help="Percent of kind failing.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option(
    "--rate", type=click.FloatRange(0), default=0.0, help="Enqueue so many a second, whatever happens (open loop)."
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "even"]),
    default="poisson",
    show_default=True,
    help="How jobs come with --rate: as from many independent callers, or all as far apart.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    help="Jobs before those that count; default 100 a worker, as far as they take a second.",
)
@click.option("--producers", type=click.IntRange(0), default=0, help="Enqueue one by one from so many callers at once.")
@click.option("--prefill", is_flag=True, help="Enqueue everything before the workers start.")
@url_option
@json_option
@click.option(
    "--max-seconds", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="Stop after."
)
@click.option(
    "--raw",
    type=click.Path(dir_okay=False, writable=True),
    callback=check_file,
    help="Write a line of JSON for each job here: when it was due, called, started, ended.",
)
@repeat_option
def custom(
    *,
    jobs: int,
    workers: int,
    concurrency: int,
    payload: int,
    kind: Kind,
    work_ms: float | None,
    failing: float,
    priority: Priority,
    rate: float,
    arrivals: Arrivals,
    warmup: int | None,
    producers: int,
    prefill: bool,
    url: str | None,
    file: str | None,
    max_seconds: float,
    raw: str | None,
    repeat: int,
) -> int:
    """Carry a load of your own. Without --rate or --producers jobs are enqueued in bulk.

    Exits with 1 if a job was lost, run twice, not ended in time, or failed and was not meant to.
    """
    from spool.bench import Plan
    from spool.bench.plan import warmup_for
    from spool.bench.report import summary

    work = WORK_MS.get(kind, 0.0) if work_ms is None else work_ms
    plan = Plan(
        jobs=jobs,
        workers=workers,
        concurrency=concurrency,
        payload=payload,
        kind=kind,
        work_ms=work,
        failing=failing / _PERCENT,
        priority=priority,
        rate=rate,
        arrivals=arrivals,
        warmup=warmup_for(jobs, workers, concurrency, work, prefill=prefill) if warmup is None else warmup,
        producers=producers,
        prefill=prefill,
        max_seconds=max_seconds,
    )
    with Path(raw).open("wb") if raw else nullcontext() as log:
        document = _run(plan, url, repeat, log)
    if file != "-":
        head(document)
        print_table(("Measure", "Result", "What it is"), summary(document), numeric=("Result",))
    write_result(document, file)
    return int(any(_went_wrong(run, kind) for run in document.runs))


def _went_wrong(run: Measured, kind: Kind) -> bool:
    ended = run.done + (run.failed if kind == "failing" else 0)
    return not run.complete or ended != run.jobs or run.duplicated > 0


@bench.command(short_help="What became faster, what slower.")
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--fail-if", "limits", multiple=True, metavar="LIMIT", help='Exit with 1 if it is so: "throughput<-5%".')
@click.option("--markdown", is_flag=True, help="Print a table for a pull request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(*, before: Path, after: tuple[Path, ...], limits: tuple[str, ...], markdown: bool, as_json: bool) -> int:
    """Compare results that --json wrote, each with the first.

    A verdict needs repetitions (--repeat) of both. The interval is where the change lies with 99 % confidence,
    widened by how far the machine itself drifted in between; a change that is not outside of it is none.
    """
    from spool.bench.compare import compare as compared
    from spool.bench.compare import fails

    first = _read(before)
    found = [(path, compared(first, _read(path))) for path in after]
    broken = [limit for _, each in found for limit in limits if fails(limit, each)]
    if as_json:
        print_json([{"after": str(path), "comparison": each} for path, each in found])
    else:
        show = _show_markdown if markdown else _show_table
        for path, each in found:
            show(f"{before} → {path}", each)
    for limit in dict.fromkeys(broken):
        click.echo(f"broken: {limit}", err=True)
    return int(bool(broken))


def _read(path: Path) -> BenchResult:
    import msgspec

    from spool.bench import BenchResult

    try:
        return msgspec.json.decode(path.read_bytes(), type=BenchResult)
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"{path} is no result of spool bench: {error}") from error


_HEADS = ("Metric", "Before", "After", "Change", "Interval", "Verdict")


def _show_table(title: str, found: Comparison) -> None:
    click.echo(title)
    for difference in found.differences:
        click.secho(f"not the same: {difference}", fg="red")
    if found.drift is not None:
        click.echo(f"the machine drifted by {found.drift:.1%}")
    click.echo()
    print_table(_HEADS, [_row(each) for each in found.changes], numeric=_HEADS[1:5])


def _show_markdown(title: str, found: Comparison) -> None:
    click.echo(f"**{title}**\n")
    for difference in found.differences:
        click.echo(f"- not the same: {difference}")
    click.echo(("\n" if found.differences else "") + f"| {' | '.join(_HEADS)} |\n|{' --- |' * len(_HEADS)}")
    for each in found.changes:
        click.echo(f"| {' | '.join(_row(each))} |")


def _row(each: Change) -> tuple[str, ...]:
    before, after = (
        "–" if value is None else f"{value:,.{0 if value >= 1000 else 2}f} {each.unit}"
        for value in (each.before, each.after)
    )
    changed = "–" if each.change is None else f"{each.change:+.1%}"
    within = "–" if each.low is None or each.high is None else f"{each.low:+.1%} to {each.high:+.1%}"
    return each.metric, before, after, changed, within, each.verdict


def _run(plan: Plan, url: str | None, repeat: int, raw: IO[bytes] | None = None) -> BenchResult:
    """Run a plan, with its stages on stderr if that is a terminal."""
    from spool.bench import run

    with staged() as stages:
        return run(plan, url, stages(plan.jobs) if stages else None, repeat=repeat, raw=raw)


@contextmanager
def staged() -> Generator[type[Stages] | None]:
    """Let Ctrl-C and SIGTERM end a run in order. Gives what shows its stages, if stderr is a terminal."""
    with stoppable():
        if not sys.stderr.isatty():
            yield None
            return
        try:
            yield Stages
        finally:
            click.echo(_CLEAR_LINE, nl=False, err=True)


class Stages:
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


def head(document: BenchResult, varied: str = "") -> None:
    """Say what was run, where."""
    plan, machine = document.config, document.machine
    click.echo(
        f"{plan.jobs:,} {plan.kind} jobs of {plan.payload:,} bytes, {plan.workers} worker "
        f"{'process' if plan.workers == 1 else 'processes'} × {plan.concurrency}, on {document.broker.url}\n"
        + (f"and the same with {varied}\n" if varied else "")
        + f"spool {document.versions['spool']}, Python {document.versions['python']}, "
        f"{machine.cores} cores, {machine.processor}\n"
        + (
            "all jobs enqueued before the workers started\n"
            if plan.prefill
            else "workers were ready before the first job was enqueued"
            + (f", and had run {plan.warmup:,} that do not count\n" if plan.warmup else "\n")
        )
    )
