"""Health, for whoever keeps the server running; needs no token, and tells nothing of what is in the store."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal

import msgspec

from spool import __version__
from spool.broker import Load
from spool.errors import SpoolError
from spool.server.problems import Problem
from spool.server.routes import Ask, Operation, Reply

ALIVE: Final = "/healthz"


class Health(msgspec.Struct, frozen=True):
    """``status`` is "ok"; whoever gets no answer, or another status, knows better."""

    status: Literal["ok"] = "ok"
    version: str = __version__


async def alive(_ask: Ask[None, None]) -> Health:
    """Answer: the process serves."""
    return Health()


async def ready(ask: Ask[None, None]) -> Any:
    """Answer whether the store serves, within 2 s."""
    try:
        async with asyncio.timeout(2):
            await ask.services.broker.acall(Load("server"))
    except (SpoolError, TimeoutError):  # why is in the log of whoever may read it, and not said to anybody
        problem = Problem("The store cannot serve now", 503, "the store does not answer")
        return Reply(problem, 503, ((b"retry-after", b"1"),), "application/problem+json")
    return Health()


ROUTES = (
    Operation("GET", ALIVE, alive, None, "Whether the process serves", response=Health),
    Operation(
        "GET",
        "/readyz",
        ready,
        None,
        "Whether the store serves",
        response=Health,
        answers={503: "The store does not answer"},
    ),
)
