"""Waiting for the end of jobs through a server: a few requests for all of an event loop's coroutines that wait.

Each request asks for some jobs, and its answer goes on for as long as any of them runs. Who comes later is asked for in
a request of its own, and takes those along that ask for no more jobs than it does: so there are few of them, twice as
large each time, and what is sent in all stays near the number of those who wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

from spool.broker.http.wire import MAX_ENDS, MAX_WAIT, Ended, EndsWait
from spool.errors import BrokerUnavailable
from spool.job import Snapshot

#: Seconds for which a server that fails is asked again before those who wait are told.
PATIENCE: Final = 5.0
#: Seconds between two tries.
PAUSE: Final = 0.2

Key = tuple[str, str]
Stream = Callable[[EndsWait], AsyncGenerator[Ended]]


class _Poll:
    """The jobs of one request, and the task that makes it."""

    def __init__(self, keys: set[Key]) -> None:
        self.keys = keys
        self.task: asyncio.Task[None] | None = None


class Ends:
    """Who waits in one event loop. ``stream`` makes a request and yields what it is answered."""

    def __init__(self, stream: Stream, url: str) -> None:
        self._stream, self._url = stream, url
        self._waits: dict[Key, list[asyncio.Future[Snapshot | None]]] = {}
        self._fresh: set[Key] = set()
        self._polls: list[_Poll] = []
        self._closed = False

    async def wait(self, queue: str, id_: str, timeout: float | None) -> Snapshot | None:
        """As `Broker.aended`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Snapshot | None] = loop.create_future()
        key = (queue, id_)
        waiting = self._waits.setdefault(key, [])
        waiting.append(future)
        if len(waiting) == 1:
            if not self._fresh:
                loop.call_soon(self._ask)  # together with all that come at the same time
            self._fresh.add(key)
        try:
            await asyncio.wait([future], timeout=timeout)
            return future.result() if future.done() else None
        finally:
            self._forget(key, future)

    def _forget(self, key: Key, future: asyncio.Future[Snapshot | None]) -> None:
        future.cancel()
        waiting = self._waits.get(key, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waits.pop(key, None)
            self._fresh.discard(key)
            for poll in self._polls:
                poll.keys.discard(key)
            self._drop([poll for poll in self._polls if not poll.keys])

    def _drop(self, polls: list[_Poll]) -> None:
        for poll in polls:
            self._polls.remove(poll)
            if poll.task is not None and poll.task is not asyncio.current_task():
                poll.task.cancel()

    def _ask(self) -> None:
        """Ask for those who came, and in the same request for those of the requests that are no larger."""
        keys, self._fresh = self._fresh, set()
        if self._closed or not keys:
            return
        while self._polls and len(self._polls[-1].keys) <= min(len(keys), MAX_ENDS - len(keys)):
            last = self._polls[-1]
            keys |= last.keys
            self._drop([last])
        rest = list(keys)
        while rest:
            poll = _Poll(set(rest[:MAX_ENDS]))
            del rest[:MAX_ENDS]
            self._polls.append(poll)
            poll.task = asyncio.create_task(self._serve(poll), name="spool-results")

    async def _serve(self, poll: _Poll) -> None:
        failing = 0.0
        while poll.keys:
            begin, asked = time.monotonic(), len(poll.keys)
            try:
                async for ended in self._stream(EndsWait(list(poll.keys), MAX_WAIT)):
                    self._answer(poll, ended)
                failing = 0.0
                if len(poll.keys) == asked and time.monotonic() - begin < PAUSE:
                    await asyncio.sleep(PAUSE)  # something cuts our requests short
            except BrokerUnavailable as error:
                failing = failing or time.monotonic()
                if time.monotonic() - failing > PATIENCE:
                    self._fail(poll, error)
                    return
                await asyncio.sleep(PAUSE)
            except Exception as error:  # noqa: BLE001 - of whatever kind: nobody else would tell those who wait
                self._fail(poll, error)
                return
        if poll in self._polls:
            self._polls.remove(poll)

    def _answer(self, poll: _Poll, ended: Ended) -> None:
        key = (ended.queue, ended.id)
        poll.keys.discard(key)
        for future in self._waits.pop(key, ()):
            if not future.done():
                future.set_result(ended.snapshot)

    def _fail(self, poll: _Poll, error: Exception) -> None:
        if poll in self._polls:
            self._polls.remove(poll)
        for key in poll.keys:
            for future in self._waits.pop(key, ()):
                if not future.done():
                    future.set_exception(error)

    async def close(self) -> None:
        """Tell those who wait that the broker was closed."""
        self._closed = True
        tasks = [poll.task for poll in self._polls if poll.task is not None]
        for poll in list(self._polls):
            self._fail(poll, BrokerUnavailable(f"the broker {self._url} was closed"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
