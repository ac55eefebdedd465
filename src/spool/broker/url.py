"""The URLs of brokers: read so that nothing secret gets into an error, and shown without it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

from spool.errors import ConfigError

#: Options whose values are not shown, also those that no broker knows, and all that follows.
_SECRET_OPTION: Final = re.compile("([?&][^=&]*(?:pass|pwd|secret|token|auth)[^=&]*=).*", re.IGNORECASE | re.DOTALL)
_USER: Final = re.compile(r"[\w.%+-]*:")
_PATHS: Final = ("sqlite", "unix")


def split(url: str) -> SplitResult:
    """Return the parts of a URL. Raises `ConfigError`, which the parser's own error, that quotes it, does not cause."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        # sqlite://:memory: has none. In redis://:12/ab@host it is the password as far as it could be read.
        if parts.scheme == "sqlite" or parts.port is None or parts.hostname or "@" in parts.netloc or "@" not in url:
            return parts
    raise ConfigError(
        f"cannot use the broker URL {hidden(url)}: it has no host or port that can be read; in a user name or password "
        "characters as / ? # [ ] @ are written %2F %3F %23 %5B %5D %40"
    )


def hidden(url: str) -> str:
    """Return a URL with what is secret blotted out, whether it can be read or not.

    A parser takes the first of / ? # for the end of the host, and a password with one of them for a path or a query. So
    all up to the last @ is hidden, which may be more than there is to hide; but files have names with an @ too.

    >>> hidden("redis://user:s3cr/et@localhost/0?prefix=shop&password=et")
    'redis://user:***@localhost/0?prefix=shop&password=***'
    """
    before, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    scheme = before.strip().lower()
    if not (scheme in _PATHS and rest.startswith("/")):
        entry, at, rest = rest.rpartition("@")
        if at and _SECRET_OPTION.search(entry):  # then the rest may be that of a password
            return f"{before}{mark}***"
        # A server's token may stand where others have the user.
        user = None if scheme.startswith("http") or not mark else _USER.match(entry)
        rest = f"{user[0] if user else ''}***@{rest}" if at else rest
    # What follows may be the rest of a password, too.
    return before + mark + _SECRET_OPTION.sub(r"\1***", rest.partition("#")[0])


def unknown(options: Iterable[str], url: str) -> str:
    """Return names of options for an error, but for those which may be part of a password."""
    shown = hidden(url)
    return ", ".join(sorted({name if f"{name}=" in shown else "…" for name in options}))
