"""A server for tests that go through HTTP to a broker of their own, as one with a clock that stands still.

It starts once and stands in front of one broker after the other, and serves the verbs alone: that costs a test a
millisecond. `tests.server.served` has whole servers.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self

import uvicorn
import uvloop
from msgspec.structs import replace

from spool.broker import Broker
from spool.server import ServerSettings, verbs
from spool.server.app import App
from spool.server.services import Services
from spool.server.settings import Limits

OPEN = ServerSettings(auth=False, limits=Limits(rate=0))


class Front:
    """A server on a free loopback port, in a thread."""

    def __init__(self) -> None:
        self._app: App | None = None
        self._passable: asyncio.Event | None = None
        self.under_way = 0
        """How many requests are being served."""
        self.carried_out = 0
        """How many were served since the last call of `put_before`."""
        self._loop = uvloop.new_event_loop()
        config = uvicorn.Config(
            self._serve, port=0, loop="none", lifespan="off", interface="asgi3", access_log=False, log_config=None
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="test-front", daemon=True)

    def _run(self) -> None:
        self._loop.run_until_complete(self._server.serve())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.under_way += 1
        try:
            if self._passable is not None:
                await self._passable.wait()
            assert self._app is not None
            await self._app(scope, receive, send)
        finally:
            self.under_way -= 1
            self.carried_out += 1

    def __enter__(self) -> Self:
        from tests.eventually import eventually

        self._thread.start()
        eventually(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def put_before(self, broker: Broker, settings: ServerSettings = OPEN) -> App:
        """Let it serve this broker from now on."""

        async def make() -> App:
            return App(Services(broker, settings), verbs.ROUTES)

        self._app = self.run(make())
        self.carried_out = 0
        return self._app

    def limit(self, size: int) -> None:
        """Let it take requests of so many bytes, and say that it takes more, as behind a proxy with a limit."""
        assert self._app is not None
        operations = [replace(each, max_body=size) for each in verbs.ROUTES]
        self._app = App(self._app.services, operations)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold requests, before they are served, until the end of the block."""

        async def hold() -> None:
            self._passable = asyncio.Event()

        async def let_go() -> None:
            assert self._passable is not None
            self._passable.set()
            self._passable = None

        self.run(hold())
        try:
            yield
        finally:
            self.run(let_go())

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def take_away(self) -> None:
        """Let it serve none, end what it does for the last one, and close that."""
        app, self._app = self._app, None
        if app is not None:
            self.run(self._end(app))

    async def _end(self, app: App) -> None:
        app.services.stopping.set()
        async with app.services.verbs.running():
            pass
        await app.services.broker.aclose()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
