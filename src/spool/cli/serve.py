"""``spool server`` and ``spool token``."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from spool.cli.output import moment, print_json, print_table
from spool.cli.store import DEFAULT_URL, json_option, opened, url_option
from spool.errors import ConfigError

if TYPE_CHECKING:
    from spool.server.serve import Serving


def needs_server() -> None:
    """Raise `ConfigError` where the extra is not installed."""
    needed = ("starlette", "uvicorn", "httptools", "websockets", "prometheus_client")
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise ConfigError("this needs the extra 'server': pip install 'spool-queue[server]'")


@click.command()
@url_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 is any free one.")
@click.option("--read-only", is_flag=True, help="Refuse whatever changes anything.")
@click.option("--no-auth", is_flag=True, help="Ask nobody for a token.")
@click.option("--allowed-host", multiple=True, metavar="NAME", help="A name under which it may be asked; repeatable.")
@click.option("--origin", multiple=True, metavar="URL", help="An origin of pages that may log in, behind a proxy.")
@click.option("--trust-proxy", default="", metavar="ADDRESS", help="Believe a proxy there who the client is.")
@click.option("--certificate", type=click.Path(exists=True, dir_okay=False), help="For TLS, a PEM file,")
@click.option("--key", type=click.Path(exists=True, dir_okay=False), help="and its key.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS, or without tokens.")
@click.option(
    "--max-body", type=click.IntRange(1024), default=1024 * 1024, show_default=True, help="Bytes of a request's body."
)
@click.option(
    "--rate", type=click.FloatRange(0), default=2000.0, show_default=True, help="Requests a second per token."
)
@click.option(
    "--enqueue-rate", type=click.FloatRange(0), default=0.0, help="The same for enqueueing; default no limit."
)
def server(
    *,
    url: str | None,
    no_auth: bool,
    allowed_host: tuple[str, ...],
    origin: tuple[str, ...],
    trust_proxy: str,
    certificate: str | None,
    key: str | None,
    max_body: int,
    rate: float,
    enqueue_rate: float,
    **given: Any,
) -> int:
    """Serve a broker over HTTP: an API, and a dashboard in the browser.

    At its first start on a store it makes a token and prints it, this once; `spool token` makes more. It listens on
    this machine alone unless told otherwise, and then wants TLS. SIGTERM or Ctrl-C stops it in order.

    With the keys in SPOOL_ENCRYPTION_KEYS it shows what is encrypted, with those in SPOOL_SIGNING_KEYS it signs what is
    enqueued through it.
    """
    needs_server()
    from spool.server.serve import Serving
    from spool.server.settings import Limits, ServerSettings

    settings = ServerSettings(
        auth=not no_auth,
        allowed_hosts=allowed_host,
        origins=origin,
        trusted_proxy=trust_proxy,
        certificate=certificate or "",
        key=key or "",
        limits=Limits(body=max_body, rate=rate, enqueue_rate=enqueue_rate),
        **given,
    )
    return _run(Serving(url or os.environ.get("SPOOL_URL") or DEFAULT_URL, settings))


def _run(serving: Serving) -> int:
    told = threading.Event()

    def tell(_number: int, _frame: FrameType | None) -> None:
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    serving.start()
    click.echo(f"serving {serving.url}", err=True)
    if serving.first_token is not None:
        click.echo(f"a token to log in with, shown this once: {serving.first_token}", err=True)
    if not serving.settings.local and not serving.settings.allowed_hosts:
        click.echo("requests by other names than its address are refused: see --allowed-host", err=True)
    if not serving.settings.auth:
        click.echo("nobody is asked for a token: whoever reaches this address may do anything", err=True)
    while serving.alive and not told.wait(1.0):
        pass
    serving.stop()
    return 0 if told.is_set() else 1


@click.group()
def token() -> None:
    """Make, list and revoke tokens: who may use the server."""


@token.command()
@url_option
@click.argument("name")
@click.option(
    "--scope",
    multiple=True,
    required=True,
    type=click.Choice(["read", "enqueue", "work", "operate", "admin"]),
    help="What it may do; repeatable. operate includes read and enqueue, admin all.",
)
@click.option("--queue", multiple=True, help="Only this queue; repeatable. Default all.")
@click.option("--expires", metavar="TIME", help="After 12h, 30d, ...; default never.")
def create(*, url: str | None, name: str, scope: tuple[str, ...], queue: tuple[str, ...], expires: str | None) -> None:
    """Make a token for NAME and print it, this once: the store does not have it."""
    needs_server()
    from spool.broker import Load
    from spool.server.auth import new_token, storing

    lasts = None if expires is None else _lasting(expires)
    with opened(url) as broker:
        now = broker.call(Load("server")).now
        id, secret, row = new_token(name, scope, now, queues=queue or None, expires_in=lasts)
        broker.call(storing(id, row))
    click.echo(secret)


def _lasting(text: str) -> float:
    from spool.cli.store import UNITS

    number, unit = text[:-1], UNITS.get(text[-1:])
    try:
        if unit is not None and float(number) > 0:
            return float(number) * unit
    except ValueError:
        pass
    raise click.UsageError(f"--expires {text!r} is no time: 90s, 30m, 12h, 7d", click.get_current_context())


@token.command("list")
@url_option
@json_option
def list_tokens(*, url: str | None, as_json: bool) -> None:
    """List the tokens; their secrets nobody has."""
    needs_server()
    rows = _rows(url)
    if as_json:
        print_json(
            [
                {"id": id, "name": row.name, "scopes": row.scopes, "queues": row.queues, "created": row.created}
                | {"expires": row.expires}
                for id, row in rows.items()
            ]
        )
        return
    print_table(
        ("id", "name", "scopes", "queues", "created", "expires"),
        [
            (
                id,
                row.name,
                ", ".join(row.scopes),
                "all" if row.queues is None else ", ".join(row.queues),
                moment(row.created),
                moment(row.expires) or "never",
            )
            for id, row in rows.items()
        ],
    )


@token.command()
@url_option
@click.argument("id", nargs=-1, required=True)
def revoke(*, url: str | None, id: tuple[str, ...]) -> None:
    """Take tokens back, by their ids. Servers know it within 2 s."""
    needs_server()
    from spool.broker import Store
    from spool.server.auth import KIND

    known = _rows(url)
    unknown = [each for each in id if each not in known]
    if unknown:
        raise ConfigError(f"no token has the id {', '.join(unknown)}: see spool token list")
    with opened(url) as broker:
        for each in id:
            broker.call(Store(KIND, each, None))
            click.echo(f"{each} ({known[each].name}) revoked")


def _rows(url: str | None) -> dict[str, Any]:
    from spool.broker import Load
    from spool.server.auth import KIND, read_token

    with opened(url) as broker:
        rows: dict[str, Any] = {}
        cursor = ""
        while True:
            page = broker.call(Load(KIND, cursor))
            rows |= {document.key: read_token(document.body) for document in page.documents}
            cursor = page.cursor
            if not cursor:
                return dict(sorted(rows.items(), key=lambda pair: pair[1].created))
