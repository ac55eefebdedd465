"""Routes for queues: how deep each is, pause, resume, purge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from spool.broker import Act, Action, Pause, QueueStats, Resume, Stats
from spool.job import PRIORITIES, Priority, State
from spool.report import Rates
from spool.server.documents import load
from spool.server.jobs import Nothing
from spool.server.problems import Refused
from spool.server.routes import Ask, Operation
from spool.server.services import Services
from spool.telemetry import Recent, recent

WAITING: Final = (State.SCHEDULED, State.PARKED, State.READY, State.SUSPECT)


class Queue(msgspec.Struct, frozen=True):
    """A queue. The counts are sizes of sets at one moment; ``totals`` only grow (see `spool.broker.QueueStats`).

    ``ready`` is by priority, ``parked`` by task. ``oldest``: since when the job of any priority has been ready that has
    been for the longest, to a second, in ms since the epoch by the store's clock, which ``now`` is; null where none is
    ready. ``rates``: how many there are in a second of what ``totals`` counts. Both are null while no server rolls
    metrics up.
    """

    queue: str
    ready: dict[Priority, int]
    scheduled: int
    parked: dict[str, int]
    suspect: int
    running: int
    dead: int
    workers: int
    paused: bool
    totals: dict[str, int]
    oldest: int | None
    rates: Rates | None
    now: int


class Queues(msgspec.Struct, frozen=True):
    """All queues, by name. ``cursor`` is always empty: there are no pages."""

    items: list[Queue]
    cursor: str = ""


class Changed(msgspec.Struct, frozen=True):
    """How many jobs were changed."""

    changed: int


class Switched(msgspec.Struct, frozen=True):
    """Whether the queue hands out jobs now."""

    queue: str
    paused: bool


class PurgeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``dead``: delete the dead jobs, too."""

    dead: bool = False


async def queue_names(services: Services, only: frozenset[str] | None = None) -> list[str]:
    """Return the names of the queues that are known, or of those among ``only``."""
    names = [document.key async for document, _ in load(services.broker, "queue")]
    return sorted(name for name in names if only is None or name in only)


async def describe(services: Services, names: Sequence[str]) -> list[Queue]:
    """Return queues as they are now."""
    broker = services.broker
    found = await asyncio.to_thread(recent, broker)
    stats = await asyncio.gather(*(broker.acall(Stats(name)) for name in names))
    return [_queue(name, each, found) for name, each in zip(names, stats, strict=True)]


def _queue(name: str, stats: QueueStats, found: Recent) -> Queue:
    return Queue(
        name,
        dict(zip(PRIORITIES, stats.ready, strict=True)),
        stats.scheduled,
        stats.parked,
        stats.suspect,
        stats.running,
        stats.dead,
        stats.workers,
        stats.paused,
        stats.totals,
        found.ready_since(name, stats),
        found.rates(name),
        stats.now,
    )


async def list_queues(ask: Ask[None, None]) -> Queues:
    """List all queues, with depth, rates and totals."""
    return Queues(await describe(ask.services, await queue_names(ask.services, ask.principal.queues)))


async def _known(ask: Ask[Any, Any]) -> str:
    queue = ask.path["queue"]
    if queue not in await queue_names(ask.services):
        raise Refused(404, f"there is no queue {queue!r}")
    return queue


async def show(ask: Ask[None, None]) -> Queue:
    """Return one queue."""
    return (await describe(ask.services, [await _known(ask)]))[0]


async def pause(ask: Ask[None, Nothing]) -> Switched:
    """Hand out no more jobs of a queue. What runs goes on."""
    return await _switch(ask, Pause(), paused=True)


async def resume(ask: Ask[None, Nothing]) -> Switched:
    """Hand out jobs of a queue again."""
    return await _switch(ask, Resume(), paused=False)


async def _switch(ask: Ask[None, Nothing], action: Action, *, paused: bool) -> Switched:
    queue = await _known(ask)
    await ask.services.broker.acall(Act(queue, action))
    return Switched(queue, paused)


async def purge(ask: Ask[None, PurgeRequest]) -> Changed:
    """Delete the jobs of a queue that have not started. What runs goes on."""
    queue = await _known(ask)
    states = (*WAITING, State.DEAD) if ask.body.dead else WAITING
    return Changed(await ask.services.app.jobs(queue=queue, state=states).adelete())


_QUEUE: Final = "/api/v1/queues/{queue}"

ROUTES = (
    Operation("GET", "/api/v1/queues", list_queues, "read", "List queues", response=Queues, queues=True),
    Operation("GET", _QUEUE, show, "read", "Show a queue", response=Queue),
    Operation("POST", f"{_QUEUE}/pause", pause, "operate", "Pause a queue", request=Nothing, response=Switched),
    Operation("POST", f"{_QUEUE}/resume", resume, "operate", "Resume a queue", request=Nothing, response=Switched),
    Operation("POST", f"{_QUEUE}/purge", purge, "operate", "Purge a queue", request=PurgeRequest, response=Changed),
)
