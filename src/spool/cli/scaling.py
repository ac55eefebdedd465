"""``spool bench scalability``."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from spool.cli.bench import head
from spool.cli.loads import WORK_MS, html_option, json_option, kind_option, url_option, work_option
from spool.cli.output import print_table, write_report, write_result
from spool.cli.progress import staged

if TYPE_CHECKING:
    from spool.bench.plan import Kind
    from spool.bench.scale import Axis, Scaling

_THOUSANDS = {"": 1, "k": 1000, "m": 1_000_000}
_WIDTH = 12
_COLUMNS = 80

plot_option = click.option(
    "--plot/--no-plot", default=None, help="Draw the throughput below the table; default on a terminal."
)


class Numbers(click.ParamType[list[int]]):
    """Whole numbers with commas between them: 1,2,4 or 100,1k,1m."""

    name = "numbers"

    def convert(self, value: str | list[int], param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if not isinstance(value, str):
            return value
        found = [re.fullmatch(r"(\d+)([km]?)", each.strip().lower()) for each in value.split(",")]
        numbers = [int(each[1]) * _THOUSANDS[each[2]] for each in found if each]
        if len(numbers) < len(found):
            self.fail(f"{value!r} is no list of whole numbers such as 1,2,4 or 100,1k,1m", param, ctx)
        return numbers


@click.command(short_help="The same load with more and more workers.")
@click.option("--workers-list", type=Numbers(), metavar="LIST", help="Worker processes.  [default: 1,2,4,8,16]")
@click.option("--payloads", type=Numbers(), metavar="LIST", help="Vary the bytes of each job instead: 100,1k,10k,100k.")
@click.option("--depths", type=Numbers(), metavar="LIST", help="Vary the jobs that wait instead: 1k,100k,1m.")
@click.option(
    "--jobs", type=click.IntRange(1), default=2000, show_default=True, help="Of each run; by workers, of each worker."
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Where they are not varied.")
@click.option("--concurrency", type=click.IntRange(1), default=100, show_default=True, help="Jobs at once in each.")
@kind_option
@work_option
@url_option
@json_option
@html_option
@plot_option
def scalability(
    *,
    workers_list: list[int] | None,
    payloads: list[int] | None,
    depths: list[int] | None,
    jobs: int,
    workers: int,
    concurrency: int,
    kind: Kind,
    work_ms: float | None,
    url: str | None,
    file: str | None,
    html: str | None,
    plot: bool | None,
) -> None:
    """Drain the same load with 1, 2, 4, 8 and 16 worker processes: how far more of them do more.

    All jobs are enqueued before the workers start. Efficiency is throughput for each worker, over that of the first
    run. To the workers' rates the universal scalability law is fitted: contention is the share of the work for which
    all queue, coherence what it costs that each has to agree with each other (extra spool-queue[bench]).
    """
    from spool.bench import Plan
    from spool.bench.scale import scale

    varied: dict[Axis, list[int] | None] = {"workers": workers_list, "payload": payloads, "jobs": depths}
    given: list[tuple[Axis, list[int]]] = [(axis, values) for axis, values in varied.items() if values]
    if len(given) > 1:
        raise click.UsageError("only one of --workers-list, --payloads and --depths can be varied")
    axis, values = (given or [("workers", [1, 2, 4, 8, 16])])[0]
    work = WORK_MS.get(kind, 0.0) if work_ms is None else work_ms
    plan = Plan(jobs=jobs, workers=workers, concurrency=concurrency, kind=kind, work_ms=work)
    with staged(len(values)) as stages:
        found = scale(plan, axis, values, url, stages)
    if file != "-":
        show_scaling(found, plot=plot)
    write_result(found, file)
    write_report(found, html)


def show_scaling(found: Scaling, *, plot: bool | None = None) -> None:
    """Say what was run, print a row for each value, and the law; and ``plot``, by default on a terminal."""
    from spool.bench.report import law_line, scaling_rows

    head(found.results[0], f"{found.axis} {', '.join(f'{value:,}' for value in found.values)}")
    heads, rows = scaling_rows(found)
    print_table(heads, rows, numeric=heads, widths=dict.fromkeys(heads, _WIDTH))
    if found.law is not None:
        click.echo(f"\n{law_line(found.law)}")
    elif found.axis == "workers" and find_spec("scipy") is None:
        click.echo("no law: it needs scipy (pip install 'spool-queue[bench]')", err=True)
    if sys.stdout.isatty() if plot is None else plot:
        _plot(found)


def _plot(found: Scaling) -> None:
    from spool.bench.plot import plot

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _COLUMNS
    try:
        drawn = plot(found, columns)
    except ImportError:
        click.echo("no plot: it needs plotext (pip install 'spool-queue[bench]')", err=True)
    else:
        click.echo(f"\n{drawn}")
