"""Documents of one kind, kept in memory for a moment: what each request needs of tokens, sessions and tasks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, TypeVar

from spool.broker import Broker, Document, Load
from spool.errors import StoreCorrupt

T = TypeVar("T")

logger = logging.getLogger("spool.server")

FRESH: Final = 2.0
"""Seconds for which what was read is taken for what is there: so long a revoked token works on another server."""
AGAIN: Final = 0.2
"""Seconds between two readings because of a key that was not there: who guesses must not keep the store busy."""


class Documents(Generic[T]):
    """The documents of a kind by key, at most `FRESH` seconds old; those that ``read`` cannot read are left out."""

    def __init__(self, broker: Broker, kind: str, read: Callable[[bytes], T]) -> None:
        self._broker = broker
        self._kind = kind
        self._read = read
        self._rows: dict[str, T] = {}
        self._at = -FRESH
        self._clock = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: str) -> T | None:
        """Return one, None if it is not there: then it was not there after this was called."""
        asked = time.monotonic()
        found = (await self.recent()).get(key)
        while found is None and self._at < asked:
            await asyncio.sleep(max(0.0, self._at + AGAIN - time.monotonic()))
            if self._at < asked:  # else somebody else has read them meanwhile
                await self._join()
            found = self._rows.get(key)
        return found

    def held(self, key: str) -> T | None:
        """Return one without asking the store; None if that has to be done."""
        return self._rows.get(key) if self.fresh else None

    def last(self, key: str) -> T | None:
        """Return one as it was read last, whenever that was."""
        return self._rows.get(key)

    def keys(self) -> list[str]:
        """Return the keys as they were read last."""
        return sorted(self._rows)

    @property
    def fresh(self) -> bool:
        """Whether what was read is taken for what is there."""
        return time.monotonic() - self._at <= FRESH

    async def all(self) -> dict[str, T]:
        """Return all of them, as they are now."""
        await self.refresh()
        return self._rows

    async def recent(self) -> dict[str, T]:
        """Return all of them, as they were within the last `FRESH` seconds."""
        if not self.fresh:
            await self._join()
        return self._rows

    def now(self) -> float:
        """Return the store's clock (ms), as of the last reading and the time since."""
        return self._clock + (time.monotonic() - self._at) * 1000

    async def refresh(self) -> None:
        """Read them as they are now, with all that was written before; many who ask at once share one reading."""
        asked = time.monotonic()
        while self._at < asked:  # what is being read by now may have been read before that was written
            await self._join()

    async def _join(self) -> None:
        """Wait for the reading under way, or for a new one."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh(), name=f"spool-read-{self._kind}")
            self._reading.add_done_callback(self._over)
        await asyncio.shield(self._reading)

    def _over(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # whoever awaits it sees it; nobody has to

    async def _refresh(self) -> None:
        begun = time.monotonic()
        rows: dict[str, T] = {}
        clock = self._clock
        async for document, now in load(self._broker, self._kind):
            clock = now
            try:
                rows[document.key] = self._read(document.body)
            except StoreCorrupt as error:
                logger.debug("%s %s: %s", self._kind, document.key, error)
        self._rows, self._at, self._clock = rows, begun, clock


async def load(broker: Broker, kind: str, cursor: str = "") -> AsyncIterator[tuple[Document, int]]:
    """Yield each document of a kind after ``cursor``, with the store's time."""
    while True:
        page = await broker.acall(Load(kind, cursor))
        for document in page.documents:
            yield document, page.now
        cursor = page.cursor
        if not cursor:
            return
