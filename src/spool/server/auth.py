"""Tokens: who may do what. A token is ``spool_<id>_<secret>``; the store has the SHA-256 of the secret, never itself.

A token is a document of kind ``token`` under its id. The secret has 256 random bits, so a plain hash is enough: there
is nothing to guess it from. What it may do is a set of scopes: ``operate`` includes ``read`` and ``enqueue``, ``admin``
includes all.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from typing import Final, get_args

import msgspec

from spool.broker import Broker, Load, Store
from spool.errors import ConfigError, StoreCorrupt, VersionConflict
from spool.job import check_name
from spool.opaque import UNREADABLE
from spool.server.documents import Documents
from spool.server.routes import Scope

KIND: Final = "token"
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
INCLUDED: Final[dict[Scope, frozenset[Scope]]] = {
    "read": frozenset({"read"}),
    "enqueue": frozenset({"enqueue"}),
    "work": frozenset({"work"}),
    "operate": frozenset({"operate", "read", "enqueue"}),
    "admin": frozenset(SCOPES),
}


class TokenRow(msgspec.Struct, frozen=True):
    """A token as it is stored. Times in ms since the epoch; ``queues`` and ``expires`` None are no limit."""

    name: str
    hash: str
    scopes: list[Scope]
    created: int
    queues: list[str] | None = None
    expires: int | None = None


class Principal(msgspec.Struct, frozen=True):
    """Who asks: a token, by its id and name, with all that its scopes include. ``cookie``: by way of a session."""

    id: str
    name: str
    scopes: frozenset[Scope]
    queues: frozenset[str] | None = None
    cookie: bool = False


ANYBODY: Final = Principal("", "", frozenset())
"""Who did not say."""
UNGUARDED: Final = Principal("", "nobody", frozenset(SCOPES), cookie=True)
"""Everybody, where there is no authentication. As with a cookie, it takes no more than a request to act as it."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(TokenRow).decode


def read_token(body: bytes) -> TokenRow:
    """Read a token's document. Raises `StoreCorrupt`."""
    try:
        return _decode(body)
    except UNREADABLE as error:
        raise StoreCorrupt(f"a token cannot be read: {error}") from error


def digest(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token(
    name: str,
    scopes: Iterable[str],
    now: int,
    *,
    queues: Sequence[str] | None = None,
    expires_in: float | None = None,
) -> tuple[str, str, TokenRow]:
    """Return a token's id, the token itself, and what is stored of it. Raises `ConfigError`.

    ``now`` is the store's time in ms, ``expires_in`` in seconds.

    >>> id, token, row = new_token("ci", ["enqueue"], 0, queues=["mail"])
    >>> token.startswith(f"spool_{id}_"), token in row.hash, row.scopes
    (True, False, ['enqueue'])
    """
    given = list(dict.fromkeys(scopes))
    unknown = sorted(set(given) - set(SCOPES))
    if unknown or not given:
        raise ConfigError(f"scopes are one or more of {', '.join(SCOPES)}, not {', '.join(unknown) or 'none'}")
    if not name or len(name) > 100 or not name.isprintable():
        raise ConfigError("a token's name is 1 to 100 printable characters")
    if expires_in is not None and not 0 < expires_in <= 100 * 366 * 86_400:
        raise ConfigError("a token expires after more than 0 seconds and at most 100 years")
    if queues is not None and not queues:
        raise ConfigError("queues: name one or more, or leave them out (null): all of them")
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    row = TokenRow(
        name,
        digest(secret),
        [scope for scope in SCOPES if scope in given],
        now,
        None if queues is None else [check_name("queue", queue) for queue in queues],
        None if expires_in is None else now + round(expires_in * 1000),
    )
    return id, f"spool_{id}_{secret}", row


def storing(id: str, row: TokenRow) -> Store:
    """Return the verb that stores a new token; an expired one goes by itself."""
    ttl = 0 if row.expires is None else max(1, row.expires - row.created)
    return Store(KIND, id, _encode(row), ttl, if_version=0)


async def first_token(broker: Broker) -> str | None:
    """Make an admin token if this store never had one; return it, or None.

    Of servers that start at once, one makes it. Revoking every token brings none back: ``spool token create`` does.
    """
    loaded = await broker.acall(Load(KIND))
    if loaded.documents:
        return None
    try:
        await broker.acall(Store("server", "first-token", b"{}", if_version=0))
    except VersionConflict:
        return None
    id, token, row = new_token("first", ["admin"], loaded.now)
    await broker.acall(storing(id, row))
    return token


def split_token(token: str) -> tuple[str, str] | None:
    """Return id and secret, None for what is no token."""
    parts = token.split("_", 2)
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == "spool" and parts[1] and parts[2] else None


class Tokens:
    """The tokens of a store, as a server asks for them."""

    def __init__(self, broker: Broker) -> None:
        self._rows = Documents(broker, KIND, read_token)

    async def verify(self, token: str) -> Principal | None:
        """Return whose token it is, or None."""
        parts = split_token(token)
        if parts is None:
            return None
        id, secret = parts
        row = self._rows.held(id) or await self._rows.get(id)
        # The secret is hashed and compared whether there is such a token or not: time tells nothing.
        right = hmac.compare_digest(digest(secret), row.hash if row is not None else "0" * 64)
        return self._principal(id, row) if row is not None and right else None

    async def holder(self, id: str) -> Principal | None:
        """Return whose token has this id, for a session that was opened with it."""
        row = await self._rows.get(id)
        return None if row is None else self._principal(id, row)

    def _principal(self, id: str, row: TokenRow) -> Principal | None:
        if row.expires is not None and self._rows.now() >= row.expires:
            return None
        scopes = frozenset[Scope]().union(*(INCLUDED[scope] for scope in row.scopes))
        return Principal(id, row.name, scopes, None if row.queues is None else frozenset(row.queues))

    async def all(self) -> dict[str, TokenRow]:
        """Return all of them by id."""
        return await self._rows.all()

    async def refresh(self) -> None:
        """See what was just written."""
        await self._rows.refresh()
