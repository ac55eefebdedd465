"""``spool chaos``."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spool.cli.measure import check_file, stoppable
from spool.cli.output import print_table, write_result

if TYPE_CHECKING:
    from spool.chaos import Outcome, Plan, Script

_CLEAR_LINE = "\r\x1b[K"


@click.command(short_help="Break everything on purpose, and audit every job.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="Of load.")
@click.option("--seed", type=int, help="Decides load and faults; default random, and printed.")
@click.option("--broker", type=click.Choice(["redis", "sqlite"]), default="redis", show_default=True)
@click.option(
    "--durability",
    type=click.Choice(["always", "everysec", "none"]),
    default="always",
    show_default=True,
    help="Redis: appendfsync, or no AOF at all. SQLite: synchronous FULL or NORMAL.",
)
@click.option("--rate", type=float, default=100.0, show_default=True, help="Jobs enqueued per second.")
@click.option("--producers", type=int, default=2, show_default=True, help="Processes that enqueue.")
@click.option("--workers", type=int, default=3, show_default=True, help="Supervisors.")
@click.option("--processes", type=int, default=2, show_default=True, help="Worker processes of each.")
@click.option("--concurrency", type=int, default=10, show_default=True, help="Jobs at once in each of those.")
@click.option("--lease", type=float, default=2.0, show_default=True, help="Seconds.")
@click.option("--grace", type=float, default=2.0, show_default=True, help="Seconds.")
@click.option("--every", type=float, default=0.0, help="Mean seconds between two strikes; default 1.5 leases or less.")
@click.option("--singly", is_flag=True, help="Strike again only when the strike before is over and recovered from.")
@click.option("--faults", help="Which, separated by commas; default all that a durable store survives.")
@click.option("--no-faults", is_flag=True, help="Load alone.")
@click.option("--list-faults", is_flag=True, help="List them, and exit.")
@click.option("--schedule", "file", type=click.Path(exists=True, dir_okay=False), help="Run what this file says.")
@click.option("--print-schedule", is_flag=True, help="Print plan and schedule as JSON, and exit.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep all logs, in this new directory.")
@click.option(
    "--json",
    "result",
    type=click.Path(dir_okay=False, allow_dash=True, writable=True),
    callback=check_file,
    help="Write the result here; - is stdout only.",
)
def chaos(
    *,
    faults: str | None,
    no_faults: bool,
    list_faults: bool,
    file: str | None,
    print_schedule: bool,
    keep: Path | None,
    result: str | None,
    seed: int | None,
    **options: Any,
) -> int:
    """Run workers and producers under faults, then account for every job.

    Starts a broker of its own, and real processes; kills, stops, cuts off, fills up and damages them by a schedule that
    the seed decides; heals everything, waits, and audits by what producers and handlers noted and what the store says.
    Exits with 1 if a promise was broken.
    """
    from spool.chaos import Plan, Script, default_faults, dump_script, load_script, schedule

    if list_faults:
        _list_faults()
        return 0
    if file is not None:
        script = load_script(Path(file))
    else:
        chosen = default_faults(options["broker"])
        if faults is not None or no_faults:
            chosen = tuple(part.strip() for part in (faults or "").split(",") if part.strip())
        plan = Plan(seed=random.randrange(10**6) if seed is None else seed, faults=chosen, **options)  # noqa: S311 - printed
        script = Script(plan, schedule(plan))
    if print_schedule:
        click.echo(dump_script(script), nl=False)
        return 0
    return _report(script, keep, result)


def _report(script: Script, keep: Path | None, result: str | None) -> int:
    from spool.chaos import chaos as carry_out

    if result != "-":
        _head(script)
    terminal = sys.stderr.isatty()

    def tell(stage: str) -> None:
        if terminal:
            click.echo(f"{_CLEAR_LINE}{stage} …", nl=False, err=True)

    with stoppable():
        try:
            outcome = carry_out(script, keep, tell)
        finally:
            if terminal:
                click.echo(_CLEAR_LINE, nl=False, err=True)
    if result != "-":
        _print(outcome, script.plan)
    write_result(outcome, result)
    return int(not outcome.ok)


def _head(script: Script) -> None:
    plan = script.plan
    click.echo(
        f"{plan.seconds:g} s at {plan.rate:g} jobs/s on {plan.broker} ({plan.durability}), {plan.workers} workers of "
        f"{plan.processes} × {plan.concurrency}, lease {plan.lease:g} s, {len(script.strikes)} strikes\n"
        f"again: {plan.command}"
    )


def _print(outcome: Outcome, plan: Plan) -> None:
    from spool.chaos import report

    click.echo(f"struck: {report.strikes(outcome)}\n")
    print_table(("Jobs", "", "What it is"), report.counts(outcome), numeric=("",))
    click.echo()
    if times := report.durations(outcome):
        print_table(("Seconds", "count", "p50", "p99", "max"), times, numeric=("count", "p50", "p99", "max"))
        click.echo()
    recovered = outcome.recovered_after
    click.echo(
        "after the faults, all was quiet "
        + (f"within {recovered:.1f} s" if recovered is not None else "never")
        + (f"; fresh jobs were done in {outcome.fresh_within:.2f} s\n" if outcome.fresh_within is not None else "\n")
    )
    print_table(("Promise", "", ""), [(promise, verdict, "") for promise, verdict, _ in report.promises(outcome)])
    for verdict in outcome.audit.verdicts:
        if not verdict.ok:
            click.echo(f"\nBROKEN: {verdict.promise} ({verdict.broken})")
            for example in verdict.examples:
                click.echo(f"  {example}")
    click.echo(f"\n{'every promise was kept' if outcome.ok else 'BROKEN'}; again: {plan.command}")


def _list_faults() -> None:
    from spool.chaos import FAULTS

    rows = [
        (fault.name, ", ".join(fault.brokers), "when named" if fault.forgets else "yes", fault.summary)
        for fault in FAULTS.values()
    ]
    print_table(("Fault", "Brokers", "By default", "What it is"), rows)
