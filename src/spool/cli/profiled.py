"""``spool bench profiled``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spool.cli.bench import head
from spool.cli.loads import html_option, json_option, load_options, make_plan, url_option
from spool.cli.output import print_table, write_report, write_result
from spool.cli.progress import staged

if TYPE_CHECKING:
    from spool.bench.breakdown import Breakdown, Row, Sum
    from spool.bench.profiled import Profiled, Side
    from spool.bench.runner import OnStage
    from spool.profile import Profile

_FUNCTIONS = 10


@click.command(short_help="CPU and memory profiles, and where the time goes.")
@click.option("--jobs", "--tasks", type=click.IntRange(1), default=5000, show_default=True, help="Of a run, at least.")
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=3.0,
    show_default=True,
    help="Each run has as many jobs as take so long, if these are more.",
)
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Runs with and without recording.")
@click.option(
    "--side",
    type=click.Choice(["worker", "producer", "both"]),
    default="worker",
    show_default=True,
    help="Whose profiles are written; of both, the producer's are producer-cpu.prof and producer-mem.prof.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, exists=True, writable=True, path_type=Path),
    default=".",
    show_default=True,
    help="Directory for cpu.prof and mem.prof.",
)
@load_options
@url_option
@json_option
@html_option
def profiled(
    *,
    jobs: int,
    seconds: float,
    pairs: int,
    side: Side,
    output: Path,
    url: str | None,
    file: str | None,
    html: str | None,
    **load: Any,
) -> int:
    """Record what a load spends time and memory on, and say where the time of each job goes.

    Writes cpu.prof and mem.prof, prints the functions on top, two sums that come to what the clock says, and one line
    that names the bottleneck. Runs with and without recording take turns, so that the cost of recording is known. Needs
    the extra "profile". Exits with 1 if a job was lost, run twice, or not ended in time.
    """
    from spool.bench.profiled import profiled as run
    from spool.bench.profiled import runs_of

    plan = make_plan(jobs, **load)
    with staged(runs_of(pairs)) as stages:

        def listener(what: str, jobs: int) -> OnStage | None:
            return stages(jobs, what) if stages else None

        found = run(plan, url, side=side, pairs=pairs, seconds=seconds, on_run=listener)
    files = _write(found, output, side)
    if file != "-":
        _show(found, files)
    write_result(found.document, file)
    write_report(found.document, html)
    runs = found.document.runs
    return int(any(not each.complete or each.lost or each.duplicated for each in runs))


def _write(found: Profiled, output: Path, side: Side) -> list[tuple[Path, Profile]]:
    from spool.profile import write

    of_workers = [("cpu.prof", found.cpu), ("mem.prof", found.memory)]
    of_producer = [("cpu.prof", found.producer_cpu), ("mem.prof", found.producer_memory)]
    if side == "both":
        wanted = [*of_workers, *((f"producer-{name}", profile) for name, profile in of_producer)]
    else:
        wanted = of_workers if side == "worker" else of_producer
    written: list[tuple[Path, Profile]] = []
    for name, profile in wanted:
        if profile is not None:
            write(output / name, profile)
            written.append((output / name, profile))
    return written


def _show(found: Profiled, files: list[tuple[Path, Profile]]) -> None:
    head(found.document)
    for path, profile in files:
        _show_top(path, profile)
    breakdown = found.document.breakdown
    if breakdown is not None:
        show_breakdown(breakdown)


def _show_top(path: Path, profile: Profile) -> None:
    from spool.profile.table import shown, top, total

    name, unit = profile.types[profile.column(None)]
    whole = total(profile) or 1
    click.echo(f"{path}: {name}, {shown(total(profile), unit)}")
    print_table(
        ("Self", "%", "Cumulative", "Function"),
        [
            (shown(row.own, unit), f"{row.own / whole:.1%}", shown(row.cumulative, unit), f"{row.function}  {row.file}")
            for row in top(profile)[:_FUNCTIONS]
        ],
        numeric=("Self", "%", "Cumulative"),
    )
    click.echo()


def show_breakdown(found: Breakdown) -> None:
    """Print both sums, what the store did, the cost, and the line that names the bottleneck."""
    from spool.bench.bottleneck import GUIDE, line

    click.echo(f"A job, from enqueue to its accepted outcome: µs, mean of {found.job.samples:,} jobs")
    _show_sum(found.job, "the clock, mean of all jobs")
    if found.worker is None:
        click.echo("Where the workers' time goes is not known: this system does not tell what threads wait for")
    else:
        click.echo(f"A worker process while it drains: µs per job, from {found.worker.samples:,} looks")
        _show_sum(found.worker, "the clock: drain × processes / jobs")
    if found.store:
        busy = "" if found.store_busy is None else f", which worked for {found.store_busy:.0%} of the time"
        click.echo(f"The store meanwhile{busy}: µs per job")
        print_table(("", "µs"), [(row.what, f"{row.us:,.1f}") for row in found.store], numeric=("µs",))
        click.echo()
    cost = found.cost
    spread = "" if cost.plus_minus is None else f", ± {cost.plus_minus:.1f}"
    click.echo(f"Sampling costs {cost.percent:.1f} % of the throughput{spread} ({cost.pairs} pairs of runs)")
    if found.bottleneck is not None:
        click.echo(line(found.bottleneck))
        click.echo(f"What to do: {GUIDE}#{found.bottleneck.section}")


def _show_sum(found: Sum, clock: str) -> None:
    rows: Iterable[Row] = (row for row in found.rows if row.us)
    whole = found.clock_us or 1.0
    print_table(
        ("", "µs", "%"),
        [
            *((row.what, f"{row.us:,.1f}", f"{row.share:.1%}") for row in rows),
            ("not accounted for", f"{found.unaccounted_us:,.1f}", f"{found.unaccounted_us / whole:.1%}"),
            (clock, f"{found.clock_us:,.1f}", "100.0%"),
        ],
        numeric=("µs", "%"),
    )
    click.echo()
