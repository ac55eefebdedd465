"""``spool bench scalability``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from spool.cli.bench import head
from spool.cli.loads import WORK_MS, json_option, kind_option, url_option, work_option
from spool.cli.output import print_table, write_result
from spool.cli.progress import staged

if TYPE_CHECKING:
    from spool.bench.plan import Kind
    from spool.bench.scale import Axis, Scaling

_THOUSANDS = {"": 1, "k": 1000, "m": 1_000_000}
_WIDTH = 12
_HEADS = {"workers": "Workers", "payload": "Payload", "jobs": "Depth"}


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
        head(found.results[0], f"{axis} {', '.join(f'{value:,}' for value in values)}")
        _show(found)
    write_result(found, file)


def _show(found: Scaling) -> None:
    columns = (_HEADS[found.axis], "Drain", "Speed-up", "Efficiency", "Start p50", "Start p99", "Memory")
    rows: list[tuple[str, ...]] = []
    for index, (value, each) in enumerate(zip(found.values, found.results, strict=True)):
        result = each.result
        speed_up, efficiency = found.speed_up(index), found.efficiency(index) if found.axis == "workers" else None
        rows.append(
            (
                f"{value:,}",
                _figure(result.drain_per_s, "/s", 0),
                _figure(speed_up, "", 2),
                _figure(efficiency, "", 2),
                _figure(result.latency_ms.start.p50, " ms", 1),
                _figure(result.latency_ms.start.p99, " ms", 1),
                _figure(result.memory_mb.pss, " MB", 0),
            )
        )
    print_table(columns, rows, numeric=columns, widths=dict.fromkeys(columns, _WIDTH))
    if (law := found.law) is not None:
        peak = f"most throughput with {law.peak:.0f} workers" if law.peak else "no end to it in sight"
        click.echo(
            f"\nuniversal scalability law: {law.rate:,.0f}/s of one worker, "
            f"contention {law.contention:.4f}, coherence {law.coherence:.5f}; {peak}"
        )


def _figure(value: float | None, unit: str, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"
