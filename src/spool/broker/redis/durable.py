"""Enqueues that are acknowledged only when they are on the server's disk.

WAITAOF answers for the writes of its own connection alone, and at once where that has made none. So the script that
stores the jobs goes out on the same connection, and one more write after it: a job that was there already came by
another connection, and may not be on the disk yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Final

from spool.broker.redis.line import Address, BlockingLine, Line
from spool.broker.redis.scripts import Call
from spool.broker.redis.wire import ServerError
from spool.errors import BrokerRefused, NotDurable

#: Seconds by which the server's wait for its disk ends before ours for its answer; it may be a tenth late.
MARGIN: Final = 1.0

Command = tuple[str | bytes | float, ...]
Steps = Generator[Command, Any, bool]
"""Yields commands, is sent what the server says to each, errors too."""


class Disk:
    """What is asked of a server about its disk."""

    def __init__(self, address: Address, url: str) -> None:
        self._url = url
        self._timeout = max(1, round(1000 * (address.timeout - min(MARGIN, address.timeout / 2))))

    def store(self, line: BlockingLine, call: Call) -> Any:
        """Carry a call out on a connection, and return its reply when it is on the disk.

        Raises `BrokerRefused`, and then nothing was stored, `NotDurable`, and what connections raise.
        """
        waits = _drive(line, self.prepare())
        reply = line.run(call)
        if waits:
            _drive(line, self.confirm(call.key))
        return reply

    def prepare(self) -> Steps:
        """Return whether the server has to be waited for. Raises `BrokerRefused` where that cannot be done."""
        reply = yield ("WAITAOF", 1, 0, 1)
        if not isinstance(reply, ServerError):
            return True
        if "unknown command" not in str(reply):
            raise self._refusal() if "appendonly" in str(reply) else reply
        reply = yield ("CONFIG", "GET", "append*")
        settings = {} if isinstance(reply, ServerError) else dict(zip(reply[::2], reply[1::2], strict=True))
        if (settings.get(b"appendonly"), settings.get(b"appendfsync")) != (b"yes", b"always"):
            raise self._refusal()
        return False  # it answers no write before that is on the disk

    def _refusal(self) -> BrokerRefused:
        return BrokerRefused(
            f"{self._url} cannot confirm that a job is on the disk, so nothing was stored: durability='fsync' needs "
            "Redis 7.2 or newer with appendonly yes, or an older one with appendonly yes and appendfsync always that "
            "may be asked for it (CONFIG GET)"
        )

    def confirm(self, key: str) -> Steps:
        """Wait until all that this connection has written is on the disk. Raises `NotDurable`."""
        for command in (("HSET", key + "meta", "synced", 1), ("WAITAOF", 1, 0, self._timeout)):
            reply = yield command
            if isinstance(reply, ServerError):
                raise NotDurable(f"{self._url} stored it, but cannot confirm that it is on the disk: {reply}")
        if reply[0] < 1:
            waited = f"{self._timeout / 1000:g} s"
            raise NotDurable(f"{self._url} stored it, but did not confirm within {waited} that it is on the disk")
        return True


def _drive(line: BlockingLine, steps: Steps) -> bool:
    reply: Any = None
    try:
        while True:
            command = steps.send(reply)
            try:
                reply = line.send(*command)
            except ServerError as error:
                reply = error
    except StopIteration as end:
        return bool(end.value)


class DurableLine:
    """A connection of an event loop for durable calls: those that come while the disk is busy share the next sync."""

    def __init__(self, address: Address, url: str) -> None:
        self._disk = Disk(address, url)
        self.line = Line(address)
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self, call: Call) -> Any:
        """As `Disk.store`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name="spool-durable")
        return await future

    async def _serve(self) -> None:
        group: list[tuple[Call, asyncio.Future[Any]]] = []
        error: Exception = ConnectionError("the connection was closed")
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                replies = await self._store([call for call, _ in group])
                for (_, future), reply in zip(group, replies, strict=True):
                    _answer(future, reply)
        except Exception as failure:  # noqa: BLE001 - whatever it is, those who wait have to be told
            error = failure
        finally:
            self._task = None
            left, self._waiting = [*group, *self._waiting], []
            for _, future in left:
                _answer(future, error)

    async def _store(self, calls: list[Call]) -> list[Any]:
        """Return a reply or an error for each."""
        waits = await self._drive(self._disk.prepare())
        connection = self.line.connections
        replies: list[Any] = await asyncio.gather(*map(self.line.run, calls), return_exceptions=True)
        if waits and not all(isinstance(reply, BaseException) for reply in replies):
            try:
                await self._drive(self._disk.confirm(calls[0].key))
            except NotDurable as error:
                replies = [reply if isinstance(reply, BaseException) else error for reply in replies]
        if self.line.connections != connection:
            raise ConnectionError("the connection was lost meanwhile")
        return replies

    async def _drive(self, steps: Steps) -> bool:
        reply: Any = None
        try:
            while True:
                command = steps.send(reply)
                try:
                    reply = await self.line.send(*command)
                except ServerError as error:
                    reply = error
        except StopIteration as end:
            return bool(end.value)

    async def close(self) -> None:
        """Close the connection; those who wait are told."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self.line.close()


def _answer(future: asyncio.Future[Any], reply: Any) -> None:
    if future.done():
        return
    if isinstance(reply, BaseException):
        future.set_exception(reply)
        future.exception()  # whoever awaits it sees it; nobody has to
    else:
        future.set_result(reply)
