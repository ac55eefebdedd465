"""Replays on their way: a paced one may take hours, which no request does.

Each is a document of kind ``replay``, written about once a second by the server that carries it out, so that all
servers show it and any can stop it: who stops it writes to the document, and the next writing finds that out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Literal

import msgspec

from spool.broker import Broker, Document, Load, Store
from spool.errors import BrokerError, SpoolError, VersionConflict
from spool.job import new_id
from spool.opaque import UNREADABLE
from spool.selection import Selection
from spool.server.documents import load

logger = logging.getLogger("spool.server")

KIND: Final = "replay"
TTL: Final = 86_400_000
EVERY: Final = 1.0
LOST: Final = 30_000
"""Milliseconds without a word of a replay after which its server is taken for gone."""
MOST: Final = 20
"""Replays that one server carries out at once."""

State = Literal["running", "done", "stopped", "failed", "lost"]


class Replay(msgspec.Struct, frozen=True):
    """How far a replay is. ``found`` grows queue by queue; times in ms; "lost": its server is gone, start another."""

    id: str
    state: State
    who: str
    rate: float | None
    started: int
    updated: int
    found: int = 0
    replayed: int = 0
    error: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Replay).decode


class Replays:
    """The replays of a store, some of them this server's."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._running: dict[str, asyncio.Task[Replay]] = {}
        self._starting = 0

    @property
    def busy(self) -> bool:
        """Whether this server carries out as many as it will."""
        return self._starting + len(self._running) >= MOST

    async def start(self, chosen: Selection, rate: float | None, who: str, wait: float) -> Replay:
        """Begin; return how it is when it ended, or after ``wait`` seconds."""
        self._starting += 1  # from here on, so that of many which begin at once none is one too many
        try:
            now = await self._now()
            replay = Replay(new_id(), "running", who, rate, now, now)
            await self._broker.acall(Store(KIND, replay.id, _encode(replay), TTL, if_version=0))
            work = _Work(self._broker, replay)
            task = asyncio.create_task(work.run(chosen), name="spool-replay")
            self._running[replay.id] = task
        finally:
            self._starting -= 1
        task.add_done_callback(lambda _: self._running.pop(replay.id))
        await asyncio.wait((task,), timeout=wait)
        return task.result() if task.done() else work.replay

    async def all(self) -> list[Replay]:
        """Return them, the latest first."""
        found: list[Replay] = []
        async for document, now in load(self._broker, KIND):
            if replay := _read(document, now):
                found.append(replay)
        return sorted(found, key=lambda each: each.started, reverse=True)

    async def stop(self, id: str) -> Replay | None:
        """Stop one; return it, or None if it is not known."""
        async for document, now in load(self._broker, KIND):
            if document.key == id:
                replay = _read(document, now)
                if replay is not None and replay.state in ("running", "lost"):
                    replay = msgspec.structs.replace(replay, state="stopped", updated=now)
                    await self._broker.acall(Store(KIND, id, _encode(replay), TTL))
                return replay
        return None

    async def _now(self) -> int:
        return (await self._broker.acall(Load("server"))).now

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Stop, at the end, those that this server carries out."""
        try:
            yield
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)


def _read(document: Document, now: int) -> Replay | None:
    try:
        replay = _decode(document.body)
    except UNREADABLE:
        logger.debug("the replay %s cannot be read", document.key)
        return None
    lost = replay.state == "running" and now - replay.updated > LOST
    return msgspec.structs.replace(replay, state="lost") if lost else replay


class _Work:
    """One replay that this server carries out."""

    def __init__(self, broker: Broker, replay: Replay) -> None:
        self._broker = broker
        self.replay = replay
        self._version = 1

    async def run(self, chosen: Selection) -> Replay:
        work = asyncio.ensure_future(chosen.areplay(self.replay.rate, on_progress=self._note, everything=True))
        try:
            while not work.done():
                await asyncio.wait((work,), timeout=EVERY)
                if not work.done() and not await self._write("running"):
                    await _stopped(work)
                    return msgspec.structs.replace(self.replay, state="stopped")
            error = work.exception()
            if error is not None and not isinstance(error, SpoolError):
                logger.error("a replay failed", exc_info=error)
            await self._write("done" if error is None else "failed", "" if error is None else str(error))
        except asyncio.CancelledError:
            await _stopped(work)
            await self._write("stopped", "the server was stopped")
            raise
        return self.replay

    def _note(self, replayed: int, found: int) -> None:
        self.replay = msgspec.structs.replace(self.replay, replayed=replayed, found=found)

    async def _write(self, state: State, error: str = "") -> bool:
        """Write how far it is; False if somebody has stopped it."""
        try:
            now = (await self._broker.acall(Load("server"))).now
            self.replay = msgspec.structs.replace(self.replay, state=state, error=error, updated=now)
            verb = Store(KIND, self.replay.id, _encode(self.replay), TTL, if_version=self._version)
            self._version = (await self._broker.acall(verb)).version
        except VersionConflict:
            return False
        except BrokerError as failure:  # the replay itself finds out whether the store is there
            logger.debug("the state of a replay was not written: %s", failure)
        return True


async def _stopped(work: asyncio.Future[int]) -> None:
    work.cancel()
    await asyncio.wait((work,))
