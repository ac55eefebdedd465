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
    from spool.bench.ab import AbResult, OnRun, Side
    from spool.bench.limit import Limit

_CLEAR_LINE = "\r\x1b[K"


@click.command(short_help="Two versions or brokers in turns, and a verdict.")
@click.option("--base-env", metavar="PATH", help="Virtual environment of the base; default this one.")
@click.option("--base-url", metavar="URL", help="Broker of the base; default a temporary SQLite file.")
@click.option("--env", metavar="PATH", help="Virtual environment of the other side; default this one.")
@click.option("--url", help="Broker of the other side; default that of the base.")
@click.option("--pairs", type=click.IntRange(2), default=10, show_default=True, help="Runs of each side.")
@click.option(
    "--max-pairs", type=click.IntRange(2), help="While it cannot be told: runs of each side; default 3 times --pairs."
)
@click.option("--jobs", "--tasks", type=click.IntRange(1), help="Of each run; default as many as take --seconds.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="How long the faster side drains in a run; found by runs that do not count.",
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

    The sides differ in the installed Spool (--base-env, --env) or in the broker (--base-url, --url). They take turns as
    A B, B A, A B, in processes started alike, after pairs that do not count. Each change is that from the base to
    the other side within pairs, so a drifting machine is no matter (extra spool-queue[bench]).

    While the last line, or a limit (--fail-if), cannot be told, as many pairs again are run, up to --max-pairs. A limit
    that cannot be told even then makes the exit code 3.
    """
    from spool.bench.ab import interleave, side

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
    if file != "-":
        _show(found, markdown=markdown)
    write_result(found, file)
    return judge(limits, [found.comparison])


def _show(found: AbResult, *, markdown: bool) -> None:
    base, this = found.sides
    title = f"{_label(base, found.base.broker.kind)} → {_label(this, found.this.broker.kind)}"
    show(f"{title}, {found.pairs} pairs of {found.base.config.jobs:,} jobs", found.comparison, markdown=markdown)
    headline = found.headline
    changed = "" if headline.change is None else f", {headline.change:+.1%}"
    click.echo(f"\n{headline.metric}: {headline.verdict}{changed}")


def _label(side: Side, broker: str) -> str:
    return f"{side.name} ({side.env or 'this environment'}, {broker})"


@contextmanager
def _progress(pairs: int) -> Generator[OnRun]:
    """Let Ctrl-C and SIGTERM end it in order, and tell on stderr whose turn it is."""
    terminal, began = sys.stderr.isatty(), time.monotonic()

    def tell(name: str, pair: int) -> None:
        if pair == 0:
            line = f"warming up: {name}"
        else:
            each = (time.monotonic() - began) / pair  # the pair that does not count is one more
            left = f", {each * (pairs - pair + 1):.0f} s left" if pair <= pairs else ""
            line = f"pair {pair} of {pairs}: {name}{left}" if left else f"pair {pair}, to be sure: {name}"
        if terminal:
            click.echo(_CLEAR_LINE + line, nl=False, err=True)
        elif name == "base":
            click.echo(line, err=True)

    with stoppable():
        try:
            yield tell
        finally:
            if terminal:
                click.echo(_CLEAR_LINE, nl=False, err=True)
