"""Waiting for the end of jobs in Redis: a subscription that is told, and a look now and then if a word was lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from spool.broker.redis.line import Address, BlockingLine, Line
from spool.broker.redis.scripts import Call, ended, queue_key, read_waits, wait_call
from spool.broker.redis.wire import mapped
from spool.errors import BrokerUnavailable
from spool.job import Snapshot, new_id

#: Seconds after which a waiter asks again: a notice can be lost, and a registration lasts 60 s.
RECHECK: Final = 2.0
#: Seconds for which a failing store is asked again before those who wait are told.
PATIENCE: Final = 5.0

Ask = Callable[[Call], Any]


class Mailbox:
    """A subscription with which one thread at a time waits for the end of a job."""

    def __init__(self, address: Address, prefix: str) -> None:
        self._prefix = prefix
        self._channel = f"{prefix}:ended:{new_id()}"
        self._ears = BlockingLine(address, self._channel)

    def wait(self, ask: Ask, queue: str, id_: str, deadline: float | None) -> Snapshot | str:
        """Return the job's end, "look" if the caller must `Get` it, or "late" at the deadline (monotonic).

        ``ask`` carries out a call. Raises what connections raise.
        """
        while True:
            found = read_waits(queue, ask(wait_call(self._prefix, queue, self._channel, [id_])))
            if id_ in found:
                return found[id_] or "look"
            told = self._listen(queue, id_, deadline)
            if told is not None:
                return told
            if deadline is not None and time.monotonic() >= deadline:
                return "late"

    def _listen(self, queue: str, id_: str, deadline: float | None) -> Snapshot | str | None:
        until = time.monotonic() + RECHECK
        until = until if deadline is None else min(until, deadline)
        while (left := until - time.monotonic()) > 0:
            message = self._ears.hear(left)
            if message is not None:
                key, name, ending = message.split(b"\n", 2)
                if key == queue_key(self._prefix, queue).encode() and name == id_.encode():
                    return ended(queue, id_, ending) if ending else "look"
        return None

    @property
    def stale(self) -> bool:
        """Whether the subscription is gone, or holds word of an earlier wait."""
        return self._ears.stale

    def close(self) -> None:
        """Give the connection back."""
        self._ears.close()


class Post:
    """One subscription for all of an event loop's coroutines that wait for the end of a job."""

    def __init__(self, line: Line, address: Address, prefix: str, url: str) -> None:
        self._line, self._prefix, self._url = line, prefix, url
        self._channel = f"{prefix}:ended:{new_id()}"
        self.ears = Line(address, self._channel, self._hear)
        self._waits: dict[tuple[str, str], list[asyncio.Future[Snapshot | None]]] = {}
        self._fresh: set[tuple[str, str]] = set()
        self._poke = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def wait(self, queue: str, id_: str, timeout: float | None) -> Snapshot | str:
        """As `Mailbox.wait`, with a timeout in seconds."""
        future: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()
        key = (queue, id_)
        self._waits.setdefault(key, []).append(future)
        self._fresh.add(key)
        self._poke.set()
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name="spool-results")
        try:
            await asyncio.wait([future], timeout=timeout)
            return (future.result() or "look") if future.done() else "late"
        finally:
            self._forget(key, future)

    def _forget(self, key: tuple[str, str], future: asyncio.Future[Snapshot | None]) -> None:
        waiting = self._waits.get(key, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waits.pop(key, None)
            self._fresh.discard(key)
        future.cancel()
        if not self._waits and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _serve(self) -> None:
        """Register new waits as they come, and look at all of them now and then, for as long as anybody waits."""
        failing = 0.0
        while True:
            self._poke.clear()
            keys = set(self._waits)
            try:
                with mapped(self._url):
                    await self.ears.send("PING")  # subscribes at first, and again where the connection was lost
                while keys:
                    self._fresh -= keys
                    await self._register(keys)
                    failing = 0.0
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._poke.wait(), RECHECK)
                    self._poke.clear()
                    keys = set(self._fresh)
            except BrokerUnavailable as error:
                failing = failing or time.monotonic()
                if time.monotonic() - failing > PATIENCE:
                    return self._fail(error)
                await asyncio.sleep(0.2)
            except Exception as error:  # noqa: BLE001 - who waits is told, and who comes later is served anew
                return self._fail(error)

    async def _register(self, keys: Iterable[tuple[str, str]]) -> None:
        by_queue: dict[str, list[str]] = {}
        for queue, id_ in keys:
            by_queue.setdefault(queue, []).append(id_)
        for queue, ids in by_queue.items():
            for start in range(0, len(ids), 1000):
                call = wait_call(self._prefix, queue, self._channel, ids[start : start + 1000])
                with mapped(self._url):
                    found = read_waits(queue, await self._line.run(call))
                for id_, snapshot in found.items():
                    self._answer(queue, id_, snapshot)

    def _hear(self, message: bytes) -> None:
        key, name, ending = message.split(b"\n", 2)
        queue, id_ = key.decode()[len(self._prefix) + 2 : -2], name.decode()
        self._answer(queue, id_, ended(queue, id_, ending) if ending else None)

    def _answer(self, queue: str, id_: str, snapshot: Snapshot | None) -> None:
        for future in self._waits.get((queue, id_), ()):
            if not future.done():
                future.set_result(snapshot)

    def _fail(self, error: Exception) -> None:
        self._task = None
        for futures in list(self._waits.values()):
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    async def close(self) -> None:
        """Tell those who wait that the broker was closed, and give the connection back."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._fail(BrokerUnavailable(f"the broker {self._url} was closed"))
        await self.ears.close()
