"""What the commands that look into a store share: which broker, and which jobs the options choose."""

from __future__ import annotations

import datetime as dt
import functools
import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import click

from spool.app import Spool
from spool.errors import ConfigError

if TYPE_CHECKING:
    from spool.broker import Broker

DEFAULT_URL = "sqlite:///spool.db"

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGO: Final = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(UNITS)}])")

Command = TypeVar("Command", bound=Callable[..., Any])


def url_option(command: Command) -> Command:
    return click.option("--url", help=f"Broker; default $SPOOL_URL, else {DEFAULT_URL}.")(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


class Moment(click.ParamType[Any]):
    """A time: absolute in ISO 8601 with its zone, or so long ago, as 90s, 30m, 2h, 7d."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime | dt.timedelta:
        if ago := _AGO.fullmatch(value):
            try:
                return dt.timedelta(seconds=float(ago[1]) * UNITS[ago[2]])
            except OverflowError:
                self.fail(f"{value!r} is too long ago", param, ctx)
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: 2h (90s, 30m, 7d) ago, or as 2026-02-03T10:00Z", param, ctx)
        if moment.utcoffset() is None:
            self.fail(f"{value!r} has no time zone: end it with Z, or with one as +02:00", param, ctx)
        return moment


def filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose jobs by what they are; the command gets those given as ``filters``."""

    @functools.wraps(command)
    def gathered(
        *,
        queue: tuple[str, ...],
        task: str | None,
        key: str | None,
        error: str | None,
        since: dt.datetime | dt.timedelta | None,
        until: dt.datetime | dt.timedelta | None,
        **others: Any,
    ) -> Any:
        given = {"queue": queue or None, "task": task, "key": key, "error": error, "since": since, "until": until}
        return command(filters={name: value for name, value in given.items() if value is not None}, **others)

    options = (
        click.option("--queue", multiple=True, help="Only this queue; may be repeated. Default all."),
        click.option("--task", help="Only jobs of this task."),
        click.option("--key", help="Only jobs with this key."),
        click.option("--error", metavar="TEXT", help="Only jobs whose last error contains this: 'Type: message'."),
        click.option("--since", type=Moment(), help="Only jobs that ended (or else were created) since then,"),
        click.option("--until", type=Moment(), help="and before then: 90s, 30m, 2h, 7d ago, or ISO with zone."),
    )
    decorated: Callable[..., Any] = gathered
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


@contextmanager
def opened(url: str | None) -> Generator[Broker]:
    """Connect to a store in order to look into it; a SQLite file that is not there is an error, not created."""
    from spool.broker import connect
    from spool.broker.url import hidden

    url = url or os.environ.get("SPOOL_URL") or DEFAULT_URL
    if url.startswith("sqlite:///") and not Path(path := unquote(urlsplit(url).path)[1:]).exists():
        where = f"{path!r} (from {hidden(url)})"
        raise ConfigError(f"there is no SQLite file {where}; --url or SPOOL_URL name another store")
    broker = connect(url)
    try:
        yield broker
    finally:
        broker.close()


@contextmanager
def client(url: str | None) -> Generator[Spool]:
    """As `opened`, with an app around it, which has no tasks."""
    with opened(url) as broker:
        yield Spool(broker)


def queue_names(broker: Broker) -> list[str]:
    """Return the queues that are known."""
    from spool.broker import Load

    names: list[str] = []
    cursor = ""
    while True:
        loaded = broker.call(Load("queue", cursor))
        names += [document.key for document in loaded.documents]
        cursor = loaded.cursor
        if not cursor:
            return sorted(names)
