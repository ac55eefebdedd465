"""Talking to a Redis server: sending a script, and turning every error of the Redis library into one of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

import redis.exceptions

from spool.broker.redis.scripts import Call
from spool.errors import (
    BrokerError,
    BrokerFull,
    BrokerRefused,
    BrokerUnavailable,
    LeaseLost,
    SpoolError,
    VersionConflict,
)


class ServerError(Exception):
    """What a server answered in place of a reply, as it said it."""


def send(client: Any, call: Call) -> Any:
    """Send a script through a `redis.Redis`, by name, and in full if the server does not know it; return its reply."""
    try:
        return client.evalsha(call.script.sha, 1, call.key, *call.args)
    except redis.exceptions.NoScriptError:
        return client.eval(call.script.source, 1, call.key, *call.args)


def hidden(url: str) -> str:
    """Return the URL with its password blotted out."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    return url.replace(parts.netloc, f"{user}:***@{parts.netloc.rpartition('@')[2]}", 1)


#: Beginnings or parts of a server's error, and what they mean to a caller.
_REFUSED = ("NOAUTH", "WRONGPASS", "NOPERM", "READONLY", "invalid password", "invalid username", "AUTH <password>")
_AGAIN = ("LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "MISCONF", "max number of clients", "UNKILLABLE")
_SILENT = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)


def translate(url: str, error: Exception) -> BrokerError:
    """Return our error for one of the Redis library's."""
    text = str(error)

    def says(*words: str) -> bool:
        return any(word in text for word in words)

    result: BrokerError
    if says("LEASELOST "):
        result = LeaseLost(text.partition("LEASELOST ")[2])
    elif says("VERSION "):
        result = VersionConflict(text.partition("VERSION ")[2])
    elif isinstance(error, redis.exceptions.OutOfMemoryError) or says("OOM command not allowed"):
        result = BrokerFull(f"{url} has no memory left (maxmemory): {text}")
    elif isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.ReadOnlyError) or says(*_REFUSED):
        result = BrokerRefused(f"{url} refused: {text}")
    elif isinstance(error, redis.exceptions.BusyLoadingError) or says(*_AGAIN):
        result = BrokerUnavailable(f"{url} cannot serve now: {text}", answered=True)
    elif isinstance(error, _SILENT):
        result = BrokerUnavailable(f"cannot reach {url}: {text or type(error).__name__}")
    else:
        result = BrokerError(f"{url}: {text}")
    return result


@contextlib.contextmanager
def mapped(url: str) -> Generator[None]:
    """Raise what goes wrong inside as one of our errors."""
    try:
        yield
    except SpoolError:  # before the next line: one of them is a TimeoutError too
        raise
    except (ServerError, redis.exceptions.RedisError, OSError) as error:
        raise translate(url, error) from error
