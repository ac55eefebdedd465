"""The network between the processes of a run and Redis: one gate for each, which can be shut in several ways."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Final, Literal, TypeVar

Mode = Literal["open", "cut", "half-open", "delay", "reply-lost"]
T = TypeVar("T")

_CHUNK: Final = 65_536
LOSSES: Final = 0.1
"""The part of the replies that are lost while replies are lost."""


class Network:
    """Gates to one server, in a thread of their own. ``close`` ends them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-network", daemon=True)
        self._thread.start()
        self._gates: list[_Gate] = []

    def gate(self) -> int:
        """Open a gate more and return its port, on the loopback."""
        gate = _Gate(self._port, seed=len(self._gates))
        port = self._do(gate.open())
        self._gates.append(gate)
        return port

    def set(self, number: int, mode: Mode, delay: float = 0.0) -> None:
        """Set what happens at a gate from now on."""
        self._do(self._gates[number].set(mode, delay))

    def heal(self) -> None:
        """Open all gates wide."""
        for number in range(len(self._gates)):
            self.set(number, "open")

    def close(self) -> None:
        for gate in self._gates:
            self._do(gate.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10.0)


class _Gate:
    """A listening socket, and what passes through it."""

    def __init__(self, port: int, *, seed: int) -> None:
        self._port = port
        self._mode: Mode = "open"
        self._delay = 0.0
        self._dice = random.Random(seed)  # noqa: S311 - which replies are lost depends on the traffic anyway
        self._passable = asyncio.Event()
        self._passable.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[Any]] = set()

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def set(self, mode: Mode, delay: float) -> None:
        self._mode, self._delay = mode, delay
        if mode == "half-open":
            self._passable.clear()
        else:
            self._passable.set()
        if mode == "cut":
            for writer in list(self._writers):
                _reset(writer)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._passing):
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._passing.add(task)
        self._writers.add(writer)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            _reset(writer)
            if task is not None:
                self._passing.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passable.wait()
        if self._mode == "cut":
            return
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.add(their_writer)
        try:
            ways = (self._pass(reader, their_writer, back=False), self._pass(their_reader, writer, back=True))
            tasks = [asyncio.create_task(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._writers.discard(their_writer)
            _reset(their_writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        """Pass on what comes, one way, until either end is closed."""
        while data := await reader.read(_CHUNK):
            await self._passable.wait()
            if self._mode == "delay":
                await asyncio.sleep(self._dice.uniform(0, self._delay))
            if self._mode == "reply-lost" and back and self._dice.random() < LOSSES:
                return
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other end is told at once, and gets no rest of the data."""
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
