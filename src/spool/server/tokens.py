"""Routes for tokens and the audit log."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from spool.broker import Load, Store
from spool.server.audit import Entry
from spool.server.auth import KIND, TokenRow, new_token, storing
from spool.server.problems import Refused
from spool.server.routes import Ask, Name, Operation, Reply, Scope
from spool.settings import MAX_SECONDS


class Token(msgspec.Struct, frozen=True):
    """A token, without its secret. Times in ms since the epoch; ``queues`` and ``expires`` null are no limit."""

    id: str
    name: str
    scopes: list[Scope]
    queues: list[str] | None
    created: int
    expires: int | None


class Tokens(msgspec.Struct, frozen=True):
    """All tokens. ``cursor`` is always empty: there are no pages."""

    items: list[Token]
    cursor: str = ""


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token to make: for these scopes, for some queues only, for so many seconds.

    ``queues`` null, or left out, are all of them.
    """

    name: Annotated[str, Meta(pattern=r"^[!-~][ -~]{0,98}[!-~]?$")]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=5)]
    #: That it has one, at least, is for `new_token` to say, which tells what means all of them.
    queues: Annotated[list[Name], Meta(max_length=100, extra_json_schema={"minItems": 1})] | None = None
    expires_in: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] | None = None


class NewToken(msgspec.Struct, frozen=True):
    """A token that was made. ``token`` is shown this once: the store does not have it."""

    id: str
    token: str


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which page of the log."""

    cursor: Annotated[str, Meta(max_length=100)] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class AuditLog(msgspec.Struct, frozen=True):
    """Entries, the latest first."""

    items: list[Entry]
    cursor: str


def _token(id: str, row: TokenRow) -> Token:
    return Token(id, row.name, row.scopes, row.queues, row.created, row.expires)


async def list_tokens(ask: Ask[None, None]) -> Tokens:
    """List the tokens."""
    rows = await ask.services.tokens.all()
    return Tokens([_token(id, row) for id, row in sorted(rows.items(), key=lambda pair: pair[1].created)])


async def create(ask: Ask[None, TokenRequest]) -> Any:
    """Make a token."""
    broker, request = ask.services.broker, ask.body
    now = (await broker.acall(Load("server"))).now
    id, token, row = new_token(request.name, request.scopes, now, queues=request.queues, expires_in=request.expires_in)
    await broker.acall(storing(id, row))
    await ask.services.tokens.refresh()
    return Reply(NewToken(id, token), 201)


async def revoke(ask: Ask[None, None]) -> Token:
    """Take a token back: here at once, by other servers within 2 s; its sessions end with it."""
    id = ask.path["token"]
    row = (await ask.services.tokens.all()).get(id)
    if row is None:
        raise Refused(404, f"there is no token {id[:50]!r}")
    await ask.services.broker.acall(Store(KIND, id, None))
    await ask.services.tokens.refresh()
    return _token(id, row)


async def audit(ask: Ask[AuditQuery, None]) -> AuditLog:
    """List what was changed, by whom, the latest first."""
    return AuditLog(*await ask.services.audit.page(ask.query.cursor, ask.query.limit))


_TOKENS: Final = "/api/v1/tokens"

ROUTES = (
    Operation("GET", _TOKENS, list_tokens, "admin", "List tokens", response=Tokens),
    Operation("POST", _TOKENS, create, "admin", "Make a token", request=TokenRequest, response=NewToken, status=201),
    Operation("DELETE", f"{_TOKENS}/{{token}}", revoke, "admin", "Revoke a token", response=Token),
    Operation("GET", "/api/v1/audit", audit, "admin", "Read the audit log", query=AuditQuery, response=AuditLog),
)
