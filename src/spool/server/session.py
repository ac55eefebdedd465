"""Sessions: what a browser has instead of a token, after it was shown one at ``/login``.

A session is a document of kind ``session`` under the SHA-256 of what the cookie holds, so that all servers of a broker
know it, and who reads the store cannot take it over. Its rights are those that the token has now.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from spool.broker import Broker, Load, Store
from spool.errors import StoreCorrupt
from spool.opaque import UNREADABLE
from spool.server.auth import Principal, Tokens, digest
from spool.server.documents import Documents
from spool.server.settings import ServerSettings

KIND: Final = "session"
NAME: Final = "spool_session"
MOST: Final = 100
"""Sessions of one token. All are read every two seconds by each server, and a program may log in for each request."""


class SessionRow(msgspec.Struct, frozen=True):
    """A session as it is stored: the id of its token, and until when it is good (ms)."""

    token: str
    created: int
    expires: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SessionRow).decode


def read_session(body: bytes) -> SessionRow:
    """Read a session's document. Raises `StoreCorrupt`."""
    try:
        return _decode(body)
    except UNREADABLE as error:
        raise StoreCorrupt(f"a session cannot be read: {error}") from error


class Sessions:
    """The sessions of a store."""

    def __init__(self, broker: Broker, tokens: Tokens, settings: ServerSettings) -> None:
        self._broker = broker
        self._tokens = tokens
        self._rows = Documents(broker, KIND, read_session)
        self._seconds = settings.session
        self._secure = bool(settings.certificate) or any(each.startswith("https://") for each in settings.origins)

    async def open(self, principal: Principal) -> bytes:
        """Open a session for the holder of a token; return the value of the Set-Cookie header."""
        value = secrets.token_urlsafe(32)
        now = (await self._broker.acall(Load("server"))).now
        ttl = round(self._seconds * 1000)
        await self._make_room(principal.id)
        row = SessionRow(principal.id, now, now + ttl)
        await self._broker.acall(Store(KIND, digest(value), _encode(row), ttl))
        await self._rows.refresh()
        return self._cookie(value, round(self._seconds))

    async def _make_room(self, token: str) -> None:
        """End the oldest sessions of a token that has as many as it may."""
        theirs = sorted((row.created, key) for key, row in (await self._rows.recent()).items() if row.token == token)
        for _, key in theirs[: max(0, len(theirs) - MOST + 1)]:
            await self._broker.acall(Store(KIND, key, None))

    async def find(self, cookies: str) -> Principal | None:
        """Return whose session the cookies name, None for nobody's."""
        value = self._value(cookies)
        if not value:
            return None
        key = digest(value)
        row = self._rows.held(key) or await self._rows.get(key)
        if row is None or self._rows.now() >= row.expires:
            return None
        holder = await self._tokens.holder(row.token)
        return None if holder is None else msgspec.structs.replace(holder, cookie=True)

    async def close(self, cookies: str) -> bytes:
        """End a session; return the value of the Set-Cookie header that takes the cookie back."""
        if value := self._value(cookies):
            await self._broker.acall(Store(KIND, digest(value), None))
            await self._rows.refresh()
        return self._cookie("", 0)

    @property
    def cookie(self) -> str:
        """The name of the cookie. Behind TLS it begins so that no other host or path can set it."""
        return f"__Host-{NAME}" if self._secure else NAME

    def _value(self, cookies: str) -> str:
        # Not by http.cookies: it gives up at a cookie that it cannot read, and another port's are sent to us as well.
        for each in cookies.split(";"):
            name, _, value = each.strip().partition("=")
            if name == self.cookie:
                return value
        return ""

    def _cookie(self, value: str, seconds: int) -> bytes:
        secure = "; Secure" if self._secure else ""
        text = f"{self.cookie}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
        return text.encode()
