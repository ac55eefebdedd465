"""Connections to Redis: one for an event loop, on which any number of calls are under way, and one for a thread.

Commands are answered in the order in which they are sent, so the coroutines of a loop need no connection of their own
and no pool: each writes at once and awaits its place in the line of replies. That, and no work per call but packing and
parsing (both in hiredis), is what makes a single enqueue cost a fifth of what it costs through a client with a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import warnings
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, TypeAlias, cast

import hiredis
import msgspec

from spool.broker.redis.scripts import Call
from spool.broker.redis.wire import ServerError


class Address(msgspec.Struct, frozen=True):
    """Where a server is and how to enter. Times in seconds."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    """Of a Unix socket, instead of host and port."""
    database: int = 0
    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None
    connect_timeout: float = 3.0
    timeout: float = 5.0

    def greeting(self, *channels: str) -> list[tuple[str, ...]]:
        """Return the commands that begin a connection."""
        commands: list[tuple[str, ...]] = []
        if self.password:
            user = (self.username,) if self.username else ()
            commands.append(("AUTH", *user, self.password))
        if self.database:
            commands.append(("SELECT", str(self.database)))
        if channels:
            commands.append(("SUBSCRIBE", *channels))
        return commands


#: Bytes of buffer that a parser keeps between replies: enough for an ordinary claim, little enough to forget about.
_BUFFER: Final = 256 * 1024


#: Seconds after its last use for which a connection is taken for a good one without a look.
FRESH: Final = 0.05

Command: TypeAlias = tuple[str | bytes | float, ...]

_library: Any = hiredis
_pack: Callable[[Any], bytes] = _library.pack_command  # annotated there for one element alone


def _parser() -> hiredis.Reader:
    reader = hiredis.Reader(protocolError=ConnectionError, replyError=ServerError)
    reader.setmaxbuf(_BUFFER)
    return reader


def _keep_alive(sock: socket.socket) -> None:
    # Ends a connection whose other end is gone without a word, also while nothing is asked.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Line:
    """A pipelined connection, made when it is needed and again when it was lost. Belongs to the loop it is used in.

    Every call ends within the address's timeout, with a reply or an error: `ServerError` for what the server says,
    `OSError` when it cannot be reached, does not answer in time or goes away, after which the call may have been
    carried out. Nothing is sent twice.

    With a ``channel`` it is a subscription: ``hear`` gets each message, and the only command is PING.
    """

    def __init__(self, address: Address, channel: str = "", hear: Callable[[bytes], None] | None = None) -> None:
        self._address = address
        self._channel, self._hear = channel, hear
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[_Wire] | None = None
        self._closed = False
        self.connections = 0
        """How many it has made so far."""

    async def run(self, call: Call) -> Any:
        """Send a script by name, and in full if the server does not know it."""
        script, wire = call.script, self._wire
        if wire is None or wire.lost or wire.writable is not None:
            wire = await self._ready()
        reply = await wire.send(("EVALSHA", script.sha, "1", call.key, *call.args))
        if isinstance(reply, ServerError):
            if not str(reply).startswith("NOSCRIPT"):
                raise reply
            reply = await self.send("EVAL", script.source, "1", call.key, *call.args)
        return reply

    async def send(self, *command: str | bytes | float) -> Any:
        """Send one command and return its reply."""
        reply = await (await self._ready()).send(command)
        if isinstance(reply, ServerError):
            raise reply
        return reply

    async def send_behind(self, first: Command, command: Command) -> Any:
        """Send a command that blocks, and at once another, which the server turns to after it; return its reply."""
        wire = self._wire
        if wire is None or wire.lost:
            wire = await self._connected()
        blocked, behind = wire.send(first), wire.send(command)
        for reply in (await blocked, await behind):
            if isinstance(reply, ServerError):
                raise reply
        return reply

    async def _ready(self) -> _Wire:
        """Return a connection that takes a command now."""
        wire = self._wire
        if wire is None or wire.lost:
            wire = await self._connected()
        while (writable := wire.writable) is not None:
            # Shielded: it belongs to all who wait, and one that gives up must not cancel it.
            await asyncio.shield(writable)
        return wire

    async def _connected(self) -> _Wire:
        if self._closed:
            raise ConnectionError("the connection was closed")
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="spool-connect")
            self._connecting.add_done_callback(self._settled)
        connecting = self._connecting
        # Not awaited itself: one caller that gives up must not take the connection from the others, and when `close`
        # cancels it, that is an error to them and not their own cancellation.
        await asyncio.wait([connecting])
        if connecting.cancelled():
            raise ConnectionError("the connection was closed")
        return connecting.result()

    def _settled(self, task: asyncio.Task[_Wire]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._wire = task.result()
            self.connections += 1

    async def _connect(self) -> _Wire:
        address, loop = self._address, asyncio.get_running_loop()

        def make() -> _Wire:
            return _Wire(loop, address.timeout, self._hear)

        async with asyncio.timeout(address.connect_timeout):
            if address.path:
                _, wire = await loop.create_unix_connection(make, address.path)
            else:
                _, wire = await loop.create_connection(make, address.host, address.port, ssl=address.tls)
            try:
                await self._enter(wire)
            except BaseException:
                wire.abort()
                raise
        return wire

    async def _enter(self, wire: _Wire) -> None:
        for command in self._address.greeting(*([self._channel] if self._channel else ())):
            reply = await wire.send(command)
            if isinstance(reply, ServerError):
                raise reply

    async def reset(self) -> None:
        """Drop the connection; calls under way fail with `OSError`, later ones make a new one."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
            await wire.gone

    def abandon(self) -> None:
        """Let go of a connection whose loop has ended without closing it."""
        wire, self._wire = self._wire, None
        if wire is not None:
            # The last reference to the transport closes its socket, and would complain that the loop did not.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                wire.drop()

    async def close(self) -> None:
        """Close the connection; calls under way fail with `OSError`, and so does every later one."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        await self.reset()


class _Wire(asyncio.Protocol):
    """The two ends of one connection: what was sent and waits for a reply, and the parser of replies."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, timeout: float, hear: Callable[[bytes], None] | None = None
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._hear = hear
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._reader = _parser()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.writable: asyncio.Future[None] | None = None
        """Set while the server takes no more; to be awaited before sending."""
        self.gone: asyncio.Future[None] = loop.create_future()
        self.lost = False

    def send(self, command: Command) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        if self._transport is None or self.lost:
            future.set_exception(ConnectionError("the connection was lost"))
            return future
        self._waiting.append((future, monotonic()))
        self._transport.write(_pack(command))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._watch)
        return future

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are none by inheritance
        _keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._hear is not None and not isinstance(reply, ServerError) and reply[0] == b"message":
                    self._hear(reply[2])
                    continue
                future, _ = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (ConnectionError, IndexError) as error:
            self._lose(ConnectionError(f"the server does not speak the Redis protocol: {error}"))

    def pause_writing(self) -> None:
        self.writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable is not None:
            writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(exc or ConnectionError("the server closed the connection"))
        if not self.gone.done():
            self.gone.set_result(None)

    def drop(self) -> None:
        self.lost, self._transport = True, None

    def abort(self) -> None:
        self._lose(ConnectionError("the connection was closed"))

    def _watch(self) -> None:
        """One timer for all calls under way: they are answered in order, so the first one is the oldest."""
        self._timer = None
        if not self._waiting:
            return
        left = self._waiting[0][1] + self._timeout - monotonic()
        if left <= 0:
            self._lose(TimeoutError(f"no answer within {self._timeout:g} s"))
        else:
            self._timer = self._loop.call_later(left, self._watch)

    def _lose(self, error: Exception) -> None:
        if self.lost:
            return
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        self.resume_writing()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever awaits it sees it; nobody has to


class BlockingLine:
    """A connection for one thread at a time; connects when it is made. Errors as those of `Line`."""

    def __init__(self, address: Address, *channels: str) -> None:
        self._timeout = address.timeout
        self._reader = _parser()
        self._sock = _open(address)
        self._used = monotonic()
        try:
            self._sock.settimeout(self._timeout)
            for command in address.greeting(*channels):
                self.send(*command)
            for _ in channels[1:]:  # a subscription is answered once for each
                self._read()
        except BaseException:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)

    @property
    def stale(self) -> bool:
        """Whether the server has closed the connection, or said something that nobody asked for."""
        return monotonic() - self._used > FRESH and bool(self._poll.poll(0))

    def run(self, call: Call) -> Any:
        """Send a script by name, and in full if the server does not know it."""
        script = call.script
        try:
            return self.send("EVALSHA", script.sha, "1", call.key, *call.args)
        except ServerError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return self.send("EVAL", script.source, "1", call.key, *call.args)

    def send(self, *command: str | bytes | float) -> Any:
        """Send one command and return its reply."""
        self._sock.sendall(_pack(command))
        reply = self._read()
        self._used = monotonic()
        if isinstance(reply, ServerError):
            raise reply
        return reply

    def tell(self, *command: str) -> None:
        """Send one command on a subscription; its reply comes among the messages."""
        self._sock.sendall(_pack(command))

    def hear(self, timeout: float) -> bytes | None:
        """Return the next message of the channel; None after ``timeout`` seconds."""
        reply = self.receive(timeout)
        return None if reply is None else reply[2]

    def receive(self, timeout: float) -> Any:
        """Return the next thing that the server says, messages and errors alike; None after ``timeout`` seconds."""
        reply = None
        self._sock.settimeout(max(timeout, 0.001))
        with contextlib.suppress(TimeoutError):
            reply = self._read()
        self._sock.settimeout(self._timeout)
        return reply

    def received(self) -> Any:
        """As `receive`, of what came together with the last one; None when there is no more."""
        reply = self._reader.gets()
        return None if reply is False else reply

    def interrupt(self) -> None:
        """Let what another thread does with this fail."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # not TLS's own, which wants the reader gone

    def _read(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._sock.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def __del__(self) -> None:
        # A program that ends without closing its broker is no reason for a ResourceWarning.
        if hasattr(self, "_sock"):
            self._sock.close()


def _open(address: Address) -> socket.socket:
    if address.path:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(address.connect_timeout)
        try:
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port), address.connect_timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _keep_alive(sock)
    return sock if address.tls is None else address.tls.wrap_socket(sock, server_hostname=address.host)
