"""Routes for metrics: Prometheus, the course of things over a time, and what is wrong now.

Each server rolls metrics up while it runs (see `spool.telemetry`); what is answered is read from the broker, so that
every server says the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec

from spool.server.routes import Ask, Operation, Reply
from spool.server.services import Services
from spool.telemetry import Course, Roller, Summary, survey
from spool.telemetry.history import LONGEST, SHORTEST
from spool.telemetry.prometheus import Exposition


class HistoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``range``: the last so many seconds. ``queue`` and ``task``: of these alone; default all."""

    range: Annotated[float, msgspec.Meta(ge=SHORTEST, le=LONGEST)] = 300.0
    queue: str = ""
    task: str = ""


@asynccontextmanager
async def rolling(services: Services) -> AsyncGenerator[None]:
    """Roll metrics up, in a thread, while the server runs."""
    roller = Roller(services.broker)
    roller.start()
    try:
        yield
    finally:
        await asyncio.to_thread(roller.close)


async def scrape(ask: Ask[None, None]) -> Reply:
    """Return all metrics in Prometheus' text format, or as OpenMetrics if the Accept header asks for that."""
    accept = ask.headers.get(b"accept", b"").decode("latin-1")
    exposition = Exposition(ask.services.counted)
    body, media = await asyncio.to_thread(exposition.render, accept)
    return Reply(body, media=media)


async def history(ask: Ask[HistoryQuery, None]) -> Course:
    """Return what happened in the last minute to 24 hours, in steps of 1 s up to 5 minutes, 10 s up to an hour, 1 min.

    A token for some queues has to name one of them.
    """
    query = ask.query
    if query.queue or ask.principal.queues is not None:
        ask.check_queue(query.queue)
    return await asyncio.to_thread(ask.services.history.course, query.range, query.queue, query.task)


async def summary(ask: Ask[None, None]) -> Summary:
    """Return whether all is well, and if not, which queues have which trouble, with the commonest error."""
    return await asyncio.to_thread(survey, ask.services.broker, ask.principal.queues)


ROUTES = (
    Operation(
        "GET", "/metrics", scrape, "read", "Metrics for Prometheus", response=str, produces="text/plain; version=0.0.4"
    ),
    Operation(
        "GET",
        "/api/v1/metrics/history",
        history,
        "read",
        "The course of things",
        query=HistoryQuery,
        response=Course,
        queues=True,
    ),
    Operation("GET", "/api/v1/metrics/summary", summary, "read", "What is wrong now", response=Summary, queues=True),
)
