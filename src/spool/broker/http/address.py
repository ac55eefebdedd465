"""Where a server is, and how to enter: what the URL of an HTTP broker says."""

from __future__ import annotations

import os
import ssl
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from spool.broker import tls
from spool.broker.http.wire import HEADER, MEDIA, SPOKEN
from spool.broker.url import hidden, split, unknown
from spool.errors import ConfigError
from spool.release import __version__

#: What a URL's query may hold.
OPTIONS: Final = tls.OPTIONS | {"socket_connect_timeout", "socket_timeout"}


class Address(msgspec.Struct, frozen=True):
    """Where a server is. Times in seconds."""

    url: str
    """Without token and options: for messages."""
    host: str
    port: int
    base: str = ""
    """The path below which the server lives, behind a proxy that gives it one."""
    token: str = ""
    tls: ssl.SSLContext | None = None
    connect_timeout: float = 3.0
    timeout: float = 5.0

    @property
    def origin(self) -> str:
        """The URL of the host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls is None else 'https'}://{host}:{self.port}"

    def path(self, path: str) -> str:
        """Return the path of a request."""
        return f"{self.base}/api/v1/{path}"

    def headers(self) -> dict[str, str]:
        """Return the headers of each request."""
        headers = {"Content-Type": MEDIA, "User-Agent": f"spool/{__version__}", HEADER: SPOKEN}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def patience(self, size: int) -> float:
        """Return how long a request of so many bytes may take to be sent and answered, at 1 MB/s or faster."""
        return self.timeout + size / 1e6


def parse(url: str) -> Address:
    """Return what a URL says; the token is its password, or its user, or in ``SPOOL_TOKEN``. Raises `ConfigError`."""
    parts = split(url)
    shown = f"{parts.scheme}://{hidden(url).partition('://')[2].rpartition('@')[2].partition('?')[0].rstrip('/')}"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if others := set(options) - OPTIONS:
        raise ConfigError(f"{shown}: unknown option {unknown(others, url)}; allowed are {', '.join(sorted(OPTIONS))}")
    token = unquote(parts.password or parts.username or "") or os.environ.get("SPOOL_TOKEN", "")
    if not token.isascii() or not (token.isprintable() and " " not in token):
        raise ConfigError(f"{shown}: the token has characters that no token has")
    if not parts.hostname:
        raise ConfigError(f"cannot use the broker URL {shown}: it names no host")
    secure = parts.scheme == "https"
    try:
        return Address(
            shown,
            parts.hostname,
            parts.port or (443 if secure else 80),
            parts.path.rstrip("/"),
            token,
            tls.context_of(options) if secure else None,
            _seconds(options, "socket_connect_timeout", 3.0),
            _seconds(options, "socket_timeout", 5.0),
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot use the broker URL {shown}: {error}") from error


def _seconds(options: dict[str, str], name: str, default: float) -> float:
    value = float(options.get(name, default))
    if not 0 < value < 86_400:
        raise ValueError(f"{name} is a number of seconds, more than 0, not {value:g}")
    return value
