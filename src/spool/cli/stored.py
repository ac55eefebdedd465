"""``spool bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spool.cli.bench import head, show_summary
from spool.cli.loads import html_option
from spool.cli.output import write_report
from spool.cli.profiled import show_breakdown
from spool.cli.scaling import plot_option, show_scaling
from spool.errors import ConfigError

if TYPE_CHECKING:
    from spool.bench import BenchResult
    from spool.bench.scale import Scaling


@click.command(short_help="Show a result that --json wrote.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@html_option
@plot_option
def report(*, file: Path, html: str | None, plot: bool | None) -> None:
    """Show a result that quick, custom, profiled or scalability wrote with --json, or make a page of it (--html)."""
    from spool.bench.scale import Scaling

    found = _read(file)
    if html is not None:
        write_report(found, html)
    elif isinstance(found, Scaling):
        show_scaling(found, plot=plot)
    else:
        head(found)
        show_summary(found)
        if found.breakdown is not None:
            show_breakdown(found.breakdown)


def _read(file: Path) -> BenchResult | Scaling:
    import msgspec

    from spool.bench import BenchResult
    from spool.bench.scale import Scaling

    try:
        text = file.read_bytes()
        kind = msgspec.json.decode(text, type=dict[str, msgspec.Raw])["kind"]
        if msgspec.json.decode(kind) == "spool-bench-scaling":
            return msgspec.json.decode(text, type=Scaling)
        return msgspec.json.decode(text, type=BenchResult)
    except (OSError, msgspec.MsgspecError, ConfigError, KeyError, UnicodeError) as error:
        raise ConfigError(
            f"{file} is no result of spool bench quick, custom, profiled or scalability: {error}"
        ) from error
