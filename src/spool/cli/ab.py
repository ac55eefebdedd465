"""``spool bench ab``."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from spool.cli.comparison import judge, limits_option, markdown_option, show
from spool.cli.loads import given_options, json_option, load_options, make_plan
from spool.cli.measure import stoppable
from spool.cli.output import printable, write_result
from spool.errors import BenchError

if TYPE_CHECKING:
    from spool.bench.ab import AbResult, OnRun
    from spool.bench.limit import Limit
    from spool.bench.sides import Side

_CLEAR_LINE = "\r\x1b[K"


@click.command(short_help="Two versions or brokers in turns, and a verdict.")
@click.option("--base-env", metavar="PATH", help="Virtual environment of the base; default this one.")
@click.option("--base-url", metavar="URL", help="Broker of the base; default a temporary SQLite file.")
@click.option("--env", metavar="PATH", help="Virtual environment of the other side; default this one.")
@click.option("--url", help="Broker of the other side; default that of the base.")
@click.option("--pairs", type=click.IntRange(2), default=10, show_default=True, help="Lives of both sides' processes.")
@click.option(
    "--max-pairs", type=click.IntRange(2), help="While it cannot be told: at most so many; default 3 times --pairs."
)
@click.option(
    "--jobs", "--tasks", type=click.IntRange(1), help="Of each side in a pair; default as many as take --seconds."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="How long the faster side drains in a pair, in all; found by runs that do not count.",
)
@load_options
@limits_option
@markdown_option
@json_option
def ab(
    *,
    base_env: str | None,
    base_url: str | None,
    env: str | None,
    url: str | None,
    pairs: int,
    max_pairs: int | None,
    jobs: int | None,
    seconds: float,
    limits: list[Limit],
    markdown: bool,
    file: str | None,
    **load: Any,
) -> int:
    """Carry one load with two sides, in turns, and say for each metric which of them is faster.

    The sides differ in the installed Spool (--base-env, --env) or in the broker (--base-url, --url). For each pair
    their processes are started alike, and after a run that does not count they take up to eight turns, as A B, B A,
    A B: one is idle while the other runs. Each change is that from the base to the other side within turns, so a
    drifting machine is no matter (extra spool-queue[bench]). With a version that cannot take turns, each run has
    processes of its own, and needs a quieter machine.

    While the last line, or a limit (--fail-if), cannot be told, as many pairs again are run, up to --max-pairs. A limit
    that cannot be told even then makes the exit code 3.
    """
    from spool.bench.ab import interleave
    from spool.bench.sides import side

    make_plan(jobs or 1, **load)  # for its errors, before the first run
    sides = side("base", base_env, base_url), side("this", env, base_url if url is None else url)
    if sides[0].env == sides[1].env and sides[0].url == sides[1].url:
        click.echo("both sides are the same: what differs is the machine's", err=True)
    try:
        with _progress(pairs) as on_run:
            found = interleave(
                *sides,
                given_options(),
                jobs=jobs,
                seconds=seconds,
                pairs=pairs,
                most=max_pairs,
                limits=limits,
                on_run=on_run,
            )
    except BenchError as error:
        for note in getattr(error, "__notes__", []):
            click.echo(printable(note, lines=True), err=True)
        raise
    for name in found.old:
        click.echo(f"the {name} side is too old to take turns: each run had processes of its own", err=True)
    if file != "-":
        _show(found, markdown=markdown)
    write_result(found, file)
    return judge(limits, [found.comparison])


def _show(found: AbResult, *, markdown: bool) -> None:
    base, this = found.sides
    title = f"{_label(base, found.base.broker.kind)} → {_label(this, found.this.broker.kind)}"
    jobs, turns = found.base.config.jobs, found.turns
    carried = f"{turns} × {jobs:,} jobs" if turns > 1 else f"{jobs:,} jobs"
    show(f"{title}, {found.pairs} pairs of {carried}", found.comparison, markdown=markdown)
    headline = found.headline
    changed = "" if headline.change is None else f", {headline.change:+.1%}"
    click.echo(f"\n{headline.metric}: {headline.verdict}{changed}")


def _label(side: Side, broker: str) -> str:
    return f"{side.name} ({side.env or 'this environment'}, {broker})"


@contextmanager
def _progress(pairs: int) -> Generator[OnRun]:
    """Let Ctrl-C and SIGTERM end it in order, and tell on stderr how far it is."""
    terminal, began, shown = sys.stderr.isatty(), 0.0, -1

    def tell(_: str, pair: int) -> None:
        nonlocal began, shown
        if pair <= shown:
            return  # another turn, or a run that does not count
        shown = pair
        if pair == 0:
            line = "warming up"
        elif pair == 1:
            line, began = f"pair 1 of {pairs}", time.monotonic()
        else:
            left = (time.monotonic() - began) / (pair - 1) * (pairs - pair + 1)
            line = f"pair {pair} of {pairs}, {left:.0f} s left" if pair <= pairs else f"pair {pair}, to be sure"
        click.echo(f"{_CLEAR_LINE}{line}" if terminal else line, nl=not terminal, err=True)

    with stoppable():
        try:
            yield tell
        finally:
            if terminal:
                click.echo(_CLEAR_LINE, nl=False, err=True)
