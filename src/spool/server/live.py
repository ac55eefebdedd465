"""Routes of the live stream: WebSocket, and server-sent events for where that does not come through. See `Hub`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from spool.errors import BrokerError
from spool.server.guard import Rate
from spool.server.hub import Client
from spool.server.messages import LiveMessage, LiveResync
from spool.server.problems import Refused
from spool.server.routes import Ask, Operation
from spool.server.services import Services

RECHECK: Final = 10.0
"""Seconds after which it is asked again whether a client may still listen."""
LONGEST: Final = 256
"""Characters of what a client may say."""
OVER: Final = 4401
"""Code of a WebSocket that is closed since its session, or token, is not good any more."""
_REFUSED: Final = 1008
_RESYNC: Final = '{"type":"resync"}'


@asynccontextmanager
async def looking(services: Services) -> AsyncGenerator[None]:
    """Stop the hub at the end."""
    try:
        yield
    finally:
        await services.hub.close()


async def live(ask: Ask[None, None]) -> None:
    """Send a snapshot and then deltas, as text; a client says ``{"type":"resync"}`` for another snapshot, nothing else.

    Closed with the code 4401 when the token is not good any more, and with 1008 when a client says something else.
    """
    _, receive, send = ask.asgi
    hub = ask.services.hub
    if hub.full:
        raise Refused(503, "too many listen", ((b"retry-after", b"5"),))
    await receive()
    await send({"type": "websocket.accept"})
    client = hub.join(ask.principal.queues)

    async def write(text: str) -> None:
        await send({"type": "websocket.send", "text": text})

    sending = asyncio.ensure_future(_send_all(ask, client, write))
    hearing = asyncio.ensure_future(_hear(client, receive))
    try:
        await asyncio.wait((sending, hearing), return_when=asyncio.FIRST_COMPLETED)
        if code := _REFUSED if hearing.done() and hearing.result() else OVER if _over(sending) else 0:
            await send({"type": "websocket.close", "code": code})
    finally:
        hub.leave(client)
        for task in (sending, hearing):
            task.cancel()
        await asyncio.wait((sending, hearing))


async def _send_all(ask: Ask[None, None], client: Client, write: Any) -> None:
    """Send what there is until the client may not listen any more."""
    checked = time.monotonic()
    while True:
        text = await client.take()
        client.sending = time.monotonic()
        if client.sending - checked > RECHECK:
            with suppress(BrokerError):  # who cannot ask the store is told so by what is sent, and asks again
                if not await ask.still_allowed():
                    return
                checked = time.monotonic()
        await write(text)
        client.sending = 0.0


def _over(sending: asyncio.Future[None]) -> bool:
    """Whether a client may not listen any more. Raises what went wrong."""
    if sending.done():
        sending.result()
    return sending.done()


async def _hear(client: Client, receive: Any) -> bool:
    """Return True when the client has said what it may not, False when it is gone."""
    rate = Rate(1.0, 10.0)
    while True:
        message = await receive()
        if message["type"] != "websocket.receive":
            return False
        text = message.get("text") or ""
        if len(text) > LONGEST or text.replace(" ", "") != _RESYNC or rate.wait(""):
            return True
        client.resync()


async def events(ask: Ask[None, None]) -> Any:
    """Send the same as server-sent events without an end, a message as the data of each.

    The last one, ``event: over`` with the data ``{}``, says that the token is not good any more.
    """
    if ask.services.hub.full:
        raise Refused(503, "too many listen", ((b"retry-after", b"5"),))

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        client = ask.services.hub.join(ask.principal.queues)

        async def write(text: str) -> None:
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

        sending = asyncio.ensure_future(_send_all(ask, client, write))
        gone = asyncio.ensure_future(_gone(receive))
        stop = asyncio.ensure_future(ask.services.stopping.wait())
        tasks = (sending, gone, stop)
        try:
            with ask.services.resting():
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                # Only where it is over for good is a client not to come back.
                last = b"event: over\ndata: {}\n\n" if _over(sending) else b""
                await send({"type": "http.response.body", "body": last})
        finally:
            ask.services.hub.leave(client)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    return stream


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


ROUTES = (
    Operation(
        "WEBSOCKET",
        "/api/v1/live",
        live,
        "read",
        "What happens, live",
        shown_request=LiveResync,
        response=LiveMessage,
        status=101,
        queues=True,
    ),
    Operation(
        "GET",
        "/api/v1/live/events",
        events,
        "read",
        "The same as server-sent events",
        response=LiveMessage,
        produces="text/event-stream",
        queues=True,
    ),
)
