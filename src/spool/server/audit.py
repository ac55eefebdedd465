"""The audit log: who changed what, as documents of kind ``audit`` with a time to live.

Each call that changes something is one entry, written before its answer goes out; a call that could not be written
down is answered as failed, though it was carried out. Enqueues are summed up: an entry for each token and queue and
minute. Entries are bounded by age and by number.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from spool.broker import Broker, Load, Store
from spool.errors import BrokerError
from spool.opaque import UNREADABLE
from spool.server.auth import Principal
from spool.server.documents import load

logger = logging.getLogger("spool.server")

KIND: Final = "audit"
MOST: Final = 5000
SUMS_EVERY: Final = 60.0
_PRUNE_EVERY: Final = 20
#: Keys are listed in ascending order, and people want the latest first.
_END: Final = 10**14
_TURNS: Final = 10**6
"""So many entries of one millisecond are kept apart, in the order in which this server wrote them."""


class Entry(msgspec.Struct, frozen=True):
    """One entry. ``at`` in ms since the epoch; ``who`` and ``token``: the token's name and id; ``count`` in a sum."""

    at: int
    who: str
    token: str
    client: str
    action: str
    target: str
    status: int
    detail: str = ""
    count: int = 1


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Audit:
    """The audit log of a store, as one server writes it."""

    def __init__(self, broker: Broker, days: float) -> None:
        self._broker = broker
        self._ttl = round(days * 86_400_000)
        self._sums: dict[tuple[str, str, str, str], int] = {}
        #: Sums that are being written, by key. Written again under the same one they are still one entry, if the first
        #: writing was cut short, or its reply lost.
        self._due: dict[str, Entry] = {}
        self._since_pruning = 0
        self._written = 0

    async def note(
        self, principal: Principal, *, client: str, action: str, target: str, status: int, detail: str = ""
    ) -> None:
        """Write one entry. Raises `BrokerError`."""
        at = (await self._broker.acall(Load("server"))).now
        await self._write(Entry(at, principal.name, principal.id, client, action, target, status, detail[:500]))

    def count(self, principal: Principal, action: str, queue: str, count: int = 1) -> None:
        """Add to a sum, which is written within a minute."""
        key = (principal.id, principal.name, action, queue)
        self._sums[key] = self._sums.get(key, 0) + count

    async def _write(self, entry: Entry) -> None:
        await self._store(self._key(entry), entry)

    def _key(self, entry: Entry) -> str:
        self._written += 1
        turn = -self._written % _TURNS  # counts down, as the time does
        return f"{_END - entry.at:014d}-{turn:06d}{secrets.token_hex(6)}"

    async def _store(self, key: str, entry: Entry) -> None:
        await self._broker.acall(Store(KIND, key, _encode(entry), self._ttl))
        self._since_pruning += 1
        if self._since_pruning >= _PRUNE_EVERY:
            self._since_pruning = 0
            await self._prune()

    async def _prune(self) -> None:
        cursor, kept = "", 0
        while True:
            page = await self._broker.acall(Load(KIND, cursor))
            for document in page.documents:
                kept += 1
                if kept > MOST:
                    await self._broker.acall(Store(KIND, document.key, None))
            cursor = page.cursor
            if not cursor:
                return

    async def flush(self) -> None:
        """Write the sums. Those that were not written stay for the next time."""
        await self._write_due()
        if self._sums:
            now = (await self._broker.acall(Load("server"))).now
            sums, self._sums = self._sums, {}
            for (id, name, action, queue), count in sums.items():
                entry = Entry(now, name, id, "", action, queue, 200, count=count)
                self._due[self._key(entry)] = entry
            await self._write_due()

    async def _write_due(self) -> None:
        for key, entry in list(self._due.items()):
            await self._store(key, entry)
            del self._due[key]

    async def page(self, cursor: str, limit: int) -> tuple[list[Entry], str]:
        """Return entries, the latest first, and the cursor of the next page."""
        entries: list[Entry] = []
        last = ""
        async for document, _ in load(self._broker, KIND, cursor):
            if len(entries) == limit:
                return entries, last
            try:
                entries.append(_decode(document.body))
            except UNREADABLE:
                logger.debug("the audit entry %s cannot be read", document.key)
            last = document.key
        return entries, ""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Write the sums every minute, and at the end."""
        task = asyncio.create_task(self._run(), name="spool-audit")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            await self._flush_quietly()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SUMS_EVERY - time.time() % SUMS_EVERY)
            await self._flush_quietly()

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except BrokerError as error:
            logger.warning("the audit log's sums were not written: %s", error)
