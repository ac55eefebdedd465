"""Connections to a server: one for a thread, and those of an event loop.

Nothing is sent twice: only a caller knows whether a verb may be.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import warnings
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from spool.broker.http.address import Address
from spool.broker.http.wire import HEADER, LIMIT_HEADER, Answer
from spool.errors import BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    import aiohttp

#: Seconds after its last use for which a connection is taken for a good one without a look.
FRESH: Final = 0.05
#: Seconds after which one is not used again: a server closes idle ones, and maybe just then.
IDLE: Final = 4.0
#: Requests of one event loop that are under way at once, but for those that wait.
AT_ONCE: Final = 32
#: Bytes of a body above which it is sent piece by piece: all at once would hold up the event loop, and aiohttp warns.
LARGE: Final = 1 << 20


class BlockingLine:
    """A connection for one thread at a time; connects when it is made. Raises `OSError` and `HTTPException`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._headers = address.headers()
        host, port, timeout = address.host, address.port, address.connect_timeout
        if address.tls is None:
            self._http = HTTPConnection(host, port, timeout=timeout)
        else:
            self._http = HTTPSConnection(host, port, timeout=timeout, context=address.tls)
        self._http.auto_open = 0  # a request on a connection that was lost is to fail
        try:
            self._http.connect()
        except BaseException:
            self._http.close()
            raise
        sock: socket.socket = self._http.sock
        self._sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._used = monotonic()
        self.reusable = True
        """Whether the server goes on listening after its last answer."""

    @property
    def stale(self) -> bool:
        """Whether the server has closed the connection, or soon may."""
        idle = monotonic() - self._used
        return idle > IDLE or (idle > FRESH and bool(self._poll.poll(0)))

    def ask(self, path: str, body: bytes, wait: float = 0.0) -> Answer:
        """Send a request and return the answer, which may take ``wait`` seconds longer than usual."""
        response = self._send(path, body, wait)
        return self._answer(response, response.read())

    def stream(self, path: str, body: bytes, wait: float) -> Generator[Answer | bytes]:
        """Send a request; yield the answer (a stream's without its body), and then the pieces of the body."""
        response = self._send(path, body, wait)
        if response.status != 200:
            yield self._answer(response, response.read())
            return
        yield self._answer(response, b"")
        while data := response.read1(65_536):
            yield data
        self._used = monotonic()

    def _send(self, path: str, body: bytes, wait: float) -> HTTPResponse:
        self._sock.settimeout(self._address.patience(len(body)) + wait)
        try:
            self._http.request("POST", self._address.path(path), body, self._headers)
        except (BrokenPipeError, ConnectionResetError):
            # One that does not want so large a body may have said so before it closed the connection.
            with contextlib.suppress(HTTPException, OSError):
                return self._http.getresponse()
            raise
        return self._http.getresponse()

    def _answer(self, response: HTTPResponse, body: bytes) -> Answer:
        self._used, self.reusable = monotonic(), not response.will_close
        header = response.headers.get
        return Answer(response.status, header(HEADER), header(LIMIT_HEADER), body)

    def interrupt(self) -> None:
        """Let what another thread does with this fail."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # not TLS's own, which wants the reader gone

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __del__(self) -> None:
        # A program that ends without closing its broker is no reason for a ResourceWarning.
        if hasattr(self, "_sock"):
            self._sock.close()


@contextlib.contextmanager
def mapped(url: str, *, closed: Callable[[], bool] = lambda: False) -> Generator[None]:
    """Raise what goes wrong with a connection as `BrokerUnavailable`."""
    try:
        yield
    except BrokerUnavailable:
        raise
    except (OSError, HTTPException) as error:
        raise unreachable(url, error, closed=closed()) from error


def unreachable(url: str, error: Exception, *, closed: bool = False) -> BrokerUnavailable:
    """Return the error for a server that cannot be reached, or does not answer in time."""
    if closed:
        return BrokerUnavailable(f"the broker {url} was closed")
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(f"cannot reach {url}: no answer in time", silent=True)
    return BrokerUnavailable(f"cannot reach {url}: {str(error) or type(error).__name__}", silent=True)


def _library() -> Any:
    try:
        import aiohttp
    except ImportError as error:
        raise ConfigError(
            "a broker behind http:// needs aiohttp in an event loop, and in workers: pip install 'spool-queue[http]'"
        ) from error
    return aiohttp


class Session:
    """The connections of one event loop: a bounded number for what is answered at once, and more for what waits."""

    def __init__(self, address: Address) -> None:
        self._library = library = _library()
        self._address = address
        self._brief = self._open(AT_ONCE)
        self._waiting = self._open(0)
        import yarl

        self._origin = yarl.URL(address.origin)
        self._urls: dict[str, Any] = {}
        self._wrong: tuple[type[Exception], ...] = (library.ClientError, OSError, ValueError)

    def _open(self, limit: int) -> aiohttp.ClientSession:
        library, address = self._library, self._address
        connector = library.TCPConnector(
            limit=limit, keepalive_timeout=IDLE, ssl=True if address.tls is None else address.tls
        )
        session: aiohttp.ClientSession = library.ClientSession(
            connector=connector, headers=address.headers(), cookie_jar=library.DummyCookieJar()
        )
        return session

    @asynccontextmanager
    async def _asked(self, path: str, body: bytes, wait: float) -> AsyncGenerator[aiohttp.ClientResponse]:
        session, address = self._waiting if wait else self._brief, self._address
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = self._origin.with_path(address.path(path))
        timeout = self._library.ClientTimeout(
            total=address.patience(len(body)) + wait, sock_connect=address.connect_timeout
        )
        data = body if len(body) <= LARGE else io.BytesIO(body)
        try:
            async with session.post(url, data=data, timeout=timeout, allow_redirects=False) as response:
                yield response
        except self._wrong as error:
            raise unreachable(address.url, error, closed=session.closed) from error

    async def ask(self, path: str, body: bytes, wait: float = 0.0) -> Answer:
        """As `BlockingLine.ask`. Raises `BrokerUnavailable`."""
        async with self._asked(path, body, wait) as response:
            return _answer(response, await response.read())

    async def stream(self, path: str, body: bytes, wait: float) -> AsyncGenerator[Answer | bytes]:
        """As `BlockingLine.stream`. Raises `BrokerUnavailable`."""
        async with self._asked(path, body, wait) as response:
            if response.status != 200:
                yield _answer(response, await response.read())
                return
            yield _answer(response, b"")
            async for data in response.content.iter_any():
                yield data

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        await self._brief.close()
        await self._waiting.close()

    def abandon(self) -> None:
        """Let go of the connections of a loop that has ended without closing them."""
        with warnings.catch_warnings():
            # The last reference to a transport closes its socket, and would complain that the loop did not.
            warnings.simplefilter("ignore", ResourceWarning)
            for session in (self._brief, self._waiting):
                closing = session.close()
                with contextlib.suppress(StopIteration):
                    closing.send(None)  # of a loop that is closed there is nothing to wait for
                closing.close()


def _answer(response: aiohttp.ClientResponse, body: bytes) -> Answer:
    header = response.headers.get
    return Answer(response.status, header(HEADER), header(LIMIT_HEADER), body)
