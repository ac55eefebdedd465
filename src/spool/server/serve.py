"""Run the application under uvicorn, with limits on connections that an application cannot see.

uvicorn with httptools and uvloop was chosen by measurement (`python -m benchmarks.server`): one process takes 22,500
bare enqueues a second over 32 connections, under granian 17,500.

uvicorn's protocol times the pause between two requests, and nothing else: a client that sends a byte a minute is served
for ever, and what a header may grow to is unbounded. `Connection` adds a deadline for each part of a request, checked
for all connections once a second, and bounds on headers and on the number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Final, Self

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from spool.broker import connect
from spool.errors import ConfigError
from spool.server.app import App, create_app
from spool.server.auth import first_token
from spool.server.problems import TITLES, Problem
from spool.server.settings import Limits, ServerSettings

logger = logging.getLogger("spool.server")

SPARE_FILES: Final = 200
"""File descriptors that are left for the store and for files."""


class Wardens:
    """The open connections of a server, and the deadlines that they have to meet."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most = min(limits.connections, _file_limit() - SPARE_FILES)
        self.open: dict[Connection, None] = {}

    def add(self, connection: Connection) -> None:
        """Take in a new connection; of too many, the one that has been idle the longest goes."""
        self.open[connection] = None
        if len(self.open) > self.most:
            idle = next((each for each in self.open if each.idle), connection)
            idle.drop()

    def sweep(self) -> None:
        """End the connections that are late."""
        now = time.monotonic()
        for connection in [each for each in self.open if each.deadline < now or each.stalled < now]:
            connection.expire()

    async def run(self) -> None:
        """Sweep once a second, for ever."""
        while True:
            await asyncio.sleep(1)
            self.sweep()


class Connection(HttpToolsProtocol):
    """A connection with deadlines. The hooks are those of uvicorn's protocol, which has no other way in."""

    def __init__(self, wardens: Wardens, **given: Any) -> None:
        super().__init__(**given)
        self._wardens = wardens
        self._limits = wardens.limits
        self.deadline = self.stalled = inf
        self.idle = True
        self._refused = self._reading_head = False
        self._unread = self._head = self._count = 0

    def connection_made(self, transport: Any) -> None:
        """Start the time for the first request."""
        super().connection_made(transport)
        self.deadline = time.monotonic() + self._limits.begin
        self._wardens.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._wardens.open.pop(self, None)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the protocol for WebSockets, which pings."""
        self._wardens.open.pop(self, None)
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and refuse a head that has grown too large."""
        if self._refused:
            return
        super().data_received(data)
        if self._reading_head:
            self._unread += len(data)  # a header that never ends is not told to anybody
            if self._unread > self._limits.headers:
                self._refused = True
        if self._refused and not self.transport.is_closing():
            self._answer(431, "the headers are too large")

    def on_message_begin(self) -> None:
        """Start the time for the head of a request."""
        super().on_message_begin()
        self.deadline = time.monotonic() + self._limits.begin
        self.idle, self._reading_head = False, True
        self._unread = self._head = self._count = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count headers, and what they hold."""
        self._head += len(name) + len(value)
        self._count += 1
        if self._head > self._limits.headers or self._count > self._limits.header_count:
            self._refused = True
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the time for the body, and the application."""
        self._reading_head = False
        if not self._refused and len(self.url) <= self._limits.headers:
            self.deadline = time.monotonic() + self._limits.receive
            super().on_headers_complete()
        else:
            self._refused = True

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the time: now it is the application's."""
        if not self._refused:
            self.deadline = inf
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request. uvicorn times that too, but for a client that sends empty lines meanwhile."""
        super().on_response_complete()
        if not self.pipeline and self in self._wardens.open:
            self.idle = True
            if self.deadline == inf:  # else the body, which nobody wanted, is still to come
                self.deadline = time.monotonic() + self._limits.idle
            self._wardens.open[self] = self._wardens.open.pop(self)  # idle for the shortest time: at the end

    def pause_writing(self) -> None:
        """Start the time for a client that does not read."""
        self.stalled = time.monotonic() + self._limits.write
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop it."""
        self.stalled = inf
        super().resume_writing()

    def expire(self) -> None:
        """End a connection that is late."""
        self.deadline = self.stalled = inf
        if self._reading_head:
            self._answer(408, "the request took too long")
        else:
            self.drop()

    def drop(self) -> None:
        """End the connection, now."""
        self._wardens.open.pop(self, None)
        self.transport.abort()

    def _answer(self, status: int, detail: str) -> None:
        problem = msgspec.json.encode(Problem(TITLES[status], status, detail))
        head = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(problem) + problem)
        self.transport.close()


class Upgraded(WebSocketsSansIOProtocol):
    """A WebSocket. uvicorn's closes one whose client does not read when that has read all, and so never."""

    def __init__(self, limits: Limits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._stalled: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Start the time for a client that does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.write, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop it."""
        self._stop_time()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_time()
        super().connection_lost(exc)

    def _stop_time(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    async def send(self, message: Any) -> None:
        """Send what the application says; a refusal ends the handshake, which uvicorn would call an error."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True


def _file_limit() -> int:
    """Allow this process as many open files as it may have; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


class Serving:
    """A server that runs in a thread of its own, with its own event loop and broker.

    The thread that started it is free: the command line waits there for signals, a test makes requests. Raises
    `ConfigError` if the address cannot be listened on, and what the broker raises if the store cannot be reached.

    >>> from spool.server import ServerSettings
    >>> with Serving("sqlite://:memory:", ServerSettings(port=0)) as server:
    ...     server.url.startswith("http://127.0.0.1:"), server.first_token is not None
    (True, True)
    """

    def __init__(self, url: str, settings: ServerSettings) -> None:
        self.settings = settings
        self.first_token: str | None = None
        """The token that was made since the store had none; not to be had again."""
        self.app: App | None = None
        self._broker_url = url
        self._socket = _listen(settings)
        self.port: int = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-server", daemon=True)

    @property
    def url(self) -> str:
        """Where it is, by the address that it listens on."""
        host = self.settings.host
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.settings.certificate else 'http'}://{shown}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; returns when it serves."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Take no more connections, let requests end for up to 5 s, and return when it is over."""
        if self._loop is not None and self.app is not None and self.alive:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self.app.services.stopping.set)
        if self._server is not None:
            self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
            if self._started.is_set():
                logger.exception("the server failed")
        finally:
            self._socket.close()
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        broker = connect(self._broker_url)
        try:
            if self.settings.auth:
                self.first_token = await first_token(broker)
            self.app = create_app(broker, self.settings)
            await self._listen(self.app)
        finally:
            await broker.aclose()

    async def _listen(self, app: App) -> None:
        wardens = Wardens(self.settings.limits)
        server = self._server = uvicorn.Server(_config(app, self.settings, wardens))
        sweeping = asyncio.create_task(wardens.run(), name="spool-wardens")
        serving = asyncio.create_task(server.serve(sockets=[self._socket]), name="spool-serve")
        try:
            while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.002)
            if server.started:
                self._started.set()
            await serving
            if not server.started:
                raise ConfigError("the server could not start; the log says why")
        finally:
            sweeping.cancel()


def _config(app: App, settings: ServerSettings, wardens: Wardens) -> uvicorn.Config:
    protocol: Any = partial(Connection, wardens)
    upgraded: Any = partial(Upgraded, settings.limits)
    try:
        return uvicorn.Config(
            app,
            http=protocol,
            ws=upgraded,
            ws_max_size=64 * 1024,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=bool(settings.trusted_proxy),
            forwarded_allow_ips=settings.trusted_proxy or None,
            server_header=False,
            timeout_keep_alive=max(1, round(settings.limits.idle)),
            timeout_graceful_shutdown=5,
            ssl_certfile=settings.certificate or None,
            ssl_keyfile=settings.key or None,
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"certificate or key cannot be used: {error}") from error


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {settings.host} port {settings.port}: {error}") from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
