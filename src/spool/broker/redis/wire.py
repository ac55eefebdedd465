"""What can go wrong with a Redis server, as our errors."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

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


#: Beginnings or parts of a server's error, and what they mean to a caller.
_REFUSED = (
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "READONLY",
    "invalid password",
    "invalid username",
    "DB index",
    "AUTH <password>",
)
_AGAIN = ("LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "MISCONF", "max number of clients", "UNKILLABLE")


def translate(url: str, error: Exception) -> BrokerError:
    """Return our error for what a connection raised."""
    text = str(error)

    def says(*words: str) -> bool:
        return any(word in text for word in words)

    result: BrokerError
    if says("LEASELOST "):
        result = LeaseLost(text.partition("LEASELOST ")[2])
    elif says("VERSION "):
        result = VersionConflict(text.partition("VERSION ")[2])
    elif says("OOM command not allowed"):
        result = BrokerFull(f"{url} has no memory left (maxmemory): {text}")
    elif says(*_REFUSED):
        result = BrokerRefused(f"{url} refused: {text}")
    elif says(*_AGAIN):
        result = BrokerUnavailable(f"{url} cannot serve now: {text}", answered=True)
    elif isinstance(error, OSError):
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
    except (ServerError, OSError) as error:
        raise translate(url, error) from error
