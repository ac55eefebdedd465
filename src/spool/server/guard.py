"""The guards before every handler: host, origin, caller, rate, and the size of what is sent.

Nothing here knows a route by name. Whatever is not GET, HEAD or OPTIONS can be sent by a page of another origin with
the session's cookie; so it is refused by the class of its method, not by a list of those that matter.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from spool.server.auth import UNGUARDED, Principal, Tokens
from spool.server.problems import Refused
from spool.server.session import Sessions
from spool.server.settings import ServerSettings

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Headers of which a second one would be somebody else's word against ours.
_ONCE: Final = frozenset({b"host", b"authorization", b"cookie", b"content-length", b"content-type", b"origin"})
_KEPT: Final = 10_000


def single_headers(pairs: list[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Return the headers by name; of those that may come twice, the last. Refuses a second one of the others."""
    headers = dict(pairs)
    if len(headers) != len(pairs):
        seen: set[bytes] = set()
        for name, _ in pairs:
            if name in seen and name in _ONCE:
                raise Refused(400, f"there is more than one header {name.decode('latin-1')!r}")
            seen.add(name)
    return headers


class Doors:
    """Who may come in: by which name of the server, from which page, as whom."""

    def __init__(self, settings: ServerSettings, tokens: Tokens, sessions: Sessions) -> None:
        self._settings = settings
        self._hosts = settings.hosts
        self._good: set[bytes] = set()
        self._tokens = tokens
        self._sessions = sessions

    def check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a host that is none of ours, which is how a name that was bound anew reaches loopback."""
        host = headers.get(b"host", b"")
        if host in self._good or "*" in self._hosts:
            return
        try:
            name = _host_name(host.decode("ascii"))
        except ValueError:
            name = ""
        if name not in self._hosts:
            raise Refused(421, "the Host header has no name of this server: add it with --allowed-host")
        if len(self._good) < 100:
            self._good.add(host)

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> Principal | None:
        """Return who asks, by bearer token, else by session; None for nobody, or whose word is not good."""
        if not self._settings.auth:
            return UNGUARDED
        given = headers.get(b"authorization")
        if given is not None:
            kind, _, token = given.decode("latin-1").partition(" ")
            return await self._tokens.verify(token.strip()) if kind.lower() == "bearer" else None
        cookie = headers.get(b"cookie")
        return None if cookie is None else await self._sessions.find(cookie.decode("latin-1"))

    def check_origin(self, headers: Mapping[bytes, bytes], scheme: str, *, strict: bool) -> None:
        """Refuse what a page of another origin sends; with ``strict`` also what does not say where it comes from."""
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in (b"same-origin", b"none"):
            raise Refused(403, "this was sent by a page of another origin")
        origin = headers.get(b"origin")
        if origin is not None:
            own = f"{scheme}://{headers.get(b'host', b'').decode('latin-1')}"
            said = origin.decode("latin-1")
            if said.lower() != own.lower() and said not in self._settings.origins:
                raise Refused(403, "this was sent by a page of another origin")
        elif strict and site is None:
            raise Refused(403, "a session is for browsers, which say where a request comes from: use a bearer token")


def _host_name(host: str) -> str:
    parts = urlsplit(f"//{host}")
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return ""
    name = (parts.hostname or "").rstrip(".")
    return f"[{name}]" if ":" in name else name


class Rate:
    """So many a second for each key, and twice that at once; 0 is no limit. The keys kept are bounded."""

    def __init__(self, per_second: float, burst: float | None = None) -> None:
        self._per_second = per_second
        self._burst = 2 * per_second if burst is None else burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str) -> float:
        """Count one; return 0, or the seconds until there is room for one, which then was not counted."""
        if not self._per_second:
            return 0.0
        now = time.monotonic()
        left, at = self._left.get(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        if left < 1:
            return (1 - left) / self._per_second
        self._left[key] = (left - 1, now)
        self._left.move_to_end(key)
        if len(self._left) > _KEPT:
            self._left.popitem(last=False)
        return 0.0

    def check(self, key: str) -> None:
        """Count one, or refuse it (429)."""
        if seconds := self.wait(key):
            raise too_many(seconds)

    def give_back(self, key: str) -> None:
        """Take one that was counted for none."""
        if key in self._left:
            left, at = self._left[key]
            self._left[key] = (left + 1, at)


def too_many(seconds: float) -> Refused:
    """Return the refusal of one request too many."""
    after = max(1, round(seconds + 0.5))
    return Refused(429, f"too many requests: come again in {after} s", ((b"retry-after", b"%d" % after),))


class Room:
    """Bytes of bodies that are in memory, of all requests together; those that come in one piece are not counted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0

    def take(self, scope: Any, size: int) -> None:
        """Count for a request, until it gives all back, or refuse it (503)."""
        if self.taken + size > self._most:
            raise Refused(503, "too much is being sent at once", ((b"retry-after", b"1"), (b"connection", b"close")))
        self.taken += size
        scope["spool.room"] = scope.get("spool.room", 0) + size

    def give_back(self, scope: Any) -> None:
        """Count no more what a request took."""
        self.taken -= scope.pop("spool.room", 0)


async def read_body(receive: Any, scope: Any, limit: int, room: Room) -> bytes:
    """Return the body. Refuses one that is larger than ``limit`` as soon as that can be told."""
    headers: Mapping[bytes, bytes] = scope["spool"]
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refused(415, "the body must not be compressed")
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts, size = [body], len(body)
    room.take(scope, size)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the client went away")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        room.take(scope, len(parts[-1]))
    return b"".join(parts)


def _too_large(limit: int) -> Refused:
    # The rest of the body is not read: the connection cannot go on.
    said = f"the body is larger than the limit of {limit:,} bytes"
    return Refused(413, said, ((b"connection", b"close"),), limit=limit)
