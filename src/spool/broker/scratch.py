"""A store of one's own for a while: a temporary SQLite file, or a key prefix on Redis; removed afterwards."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import redis
import redis.exceptions

from spool.broker import Stats, connect
from spool.broker.url import hidden, split
from spool.errors import BrokerUnavailable, ConfigError

_BATCH: Final = 1000


@contextmanager
def scratch(url: str | None, purpose: str, *, keep: bool = False) -> Generator[str]:
    """Yield the URL of an empty store for ``purpose`` (a word), and remove the store afterwards unless ``keep``.

    Without a URL it is a SQLite file in a temporary directory. On Redis it is a fresh prefix ``spool-<purpose>-…``,
    or the one that the URL names, which must have no keys. A SQLite file that the URL names must not be there yet.

    Raises `ConfigError` for a store that is not empty, and `BrokerError` if it cannot be used.

    >>> with scratch(None, "example") as url:
    ...     url.startswith("sqlite:///")
    True
    """
    scheme = "sqlite" if url is None else split(url).scheme
    if scheme in ("http", "https"):
        raise ConfigError(
            "this needs a store to itself, and a server has its own: give the URL of a Redis or a new file"
        )
    if url is None:
        with _temporary_file(purpose, keep=keep) as found:
            yield found
    elif scheme == "sqlite":
        with _named_file(url, keep=keep) as found:
            yield found
    else:
        with _prefix(url, purpose, keep=keep) as found:
            yield found


@contextmanager
def _temporary_file(purpose: str, *, keep: bool) -> Generator[str]:
    directory = Path(tempfile.mkdtemp(prefix=f"spool-{purpose}-"))
    file = directory / "spool.db"
    try:
        yield f"sqlite:///{quote(str(file))}"
    finally:
        if not keep:
            _remove_file(file)
            with suppress(OSError):
                directory.rmdir()


@contextmanager
def _named_file(url: str, *, keep: bool) -> Generator[str]:
    file = Path(unquote(urlsplit(url).path)[1:])
    if urlsplit(url).netloc or file == Path():
        raise ConfigError(f"{hidden(url)} is not for this: worker processes need a SQLite file (sqlite:///new.db)")
    if file.exists():
        raise ConfigError(f"the SQLite file {str(file)!r} is there already; this needs a new one, and removes it again")
    try:
        yield url
    finally:
        if not keep:
            _remove_file(file)


def _remove_file(file: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


@contextmanager
def _prefix(url: str, purpose: str, *, keep: bool) -> Generator[str]:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    given = "prefix" in query
    query.setdefault("prefix", f"spool-{purpose}-{secrets.token_hex(4)}")
    prefix, mine = query["prefix"], parts._replace(query=urlencode(query)).geturl()
    if given and (found := next(_keys(mine, prefix), None)) is not None:
        raise ConfigError(f"prefix {prefix!r} of this Redis has data ({found!r}); this needs an empty one")
    broker = connect(mine)
    try:
        # Says in our words what is wrong with a server that cannot be used, before anything is started.
        broker.call(Stats(purpose))
    finally:
        broker.close()
    try:
        yield mine
    except BaseException:
        if not keep:
            with suppress(BrokerUnavailable):  # which is what went wrong, most likely
                _remove_keys(mine, prefix)
        raise
    if not keep:
        _remove_keys(mine, prefix)


def _keys(url: str, prefix: str) -> Iterator[bytes]:
    """Yield every key under a prefix, by SCAN: as slow as the whole database is large, and blocking nobody."""
    with client_of(url) as client:
        yield from client.scan_iter(match=_pattern(prefix), count=_BATCH)


def _remove_keys(url: str, prefix: str) -> None:
    # A killed process may have left a last command in its socket: done is what a whole pass finds nothing for.
    with client_of(url) as client:
        while _remove_once(client, _pattern(prefix)):
            pass


def _remove_once(client: Any, pattern: str) -> int:
    removed = cursor = 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern, count=_BATCH)
        if keys:
            removed += client.unlink(*keys)
        if cursor == 0:
            return removed


def _pattern(prefix: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + ":{*"


@contextmanager
def client_of(url: str) -> Generator[Any]:
    """Yield a plain Redis client for a broker's URL. Raises `BrokerUnavailable` for whatever goes wrong with it."""
    parts = urlsplit(url)
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(parts.scheme, parts.scheme)
    query = urlencode([each for each in parse_qsl(parts.query) if each[0] != "prefix"])
    try:
        connected: Any = redis.Redis  # its annotations are not complete
        with connected.from_url(parts._replace(scheme=scheme, query=query).geturl()) as client:
            yield client
    except redis.exceptions.RedisError as error:
        raise BrokerUnavailable(f"cannot look through {parts.scheme}://{parts.hostname}: {error}") from error
