"""``spool bench compare``, and how a comparison is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spool.cli.output import print_json, print_table
from spool.errors import ConfigError

if TYPE_CHECKING:
    from spool.bench import BenchResult
    from spool.bench.compare import Change, Comparison
    from spool.bench.limit import Limit

_BROKEN, _CANNOT_TELL = 1, 3


def _parsed(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[Limit]:
    from spool.bench.limit import limit

    return [limit(text) for text in texts]


limits_option = click.option(
    "--fail-if",
    "limits",
    multiple=True,
    metavar="LIMIT",
    callback=_parsed,
    help='Exit with 1 if it is so, with 3 if that cannot be told: "throughput<-5%".',
)
markdown_option = click.option("--markdown", is_flag=True, help="Print a table for a pull request.")


@click.command(short_help="What became faster, what slower.")
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@limits_option
@markdown_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(*, before: Path, after: tuple[Path, ...], limits: list[Limit], markdown: bool, as_json: bool) -> int:
    """Compare results that --json wrote, each with the first (extra spool-queue[bench]).

    A verdict needs repetitions (--repeat) of both. The interval is where the change lies with 99 % confidence,
    widened by how far the machine itself drifted in between; a change that is not outside of it is none.

    A limit (--fail-if) is broken, or kept, by the whole interval; else it cannot be told, and the exit code is 3.
    """
    from spool.bench.compare import compare as compared

    first = _read(before)
    found = [(path, compared(first, _read(path))) for path in after]
    if as_json:
        print_json([{"after": str(path), "comparison": each} for path, each in found])
    else:
        for path, each in found:
            show(f"{before} → {path}", each, markdown=markdown)
    return judge(limits, [each for _, each in found])


def judge(limits: Sequence[Limit], found: Sequence[Comparison]) -> int:
    """Name the limits that are broken or cannot be told, and return the exit code: 0 says that all are kept."""
    code = 0
    for limit in limits:
        verdicts = {limit.judge(each) for each in found}
        if "broken" in verdicts:
            click.echo(f"broken: {limit.text}", err=True)
            code = _BROKEN
        elif "cannot tell" in verdicts:
            click.echo(f"cannot tell: {limit.text} (more repetitions, or a quieter machine, may)", err=True)
            code = code or _CANNOT_TELL
    return code


def _read(path: Path) -> BenchResult:
    import msgspec

    from spool.bench import BenchResult

    try:
        return msgspec.json.decode(path.read_bytes(), type=BenchResult)
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"{path} is no result of spool bench: {error}") from error


_HEADS = ("Metric", "Before", "After", "Change", "Interval", "Verdict")


def show(title: str, found: Comparison, *, markdown: bool = False) -> None:
    """Print a comparison as a table, on a terminal or for a pull request."""
    (_show_markdown if markdown else _show_table)(title, found)


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
