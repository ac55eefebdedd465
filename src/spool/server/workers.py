"""Routes for workers: who they are, what they run; quiet and stop."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from spool.broker import Broker, Find, Load, Store
from spool.errors import StoreCorrupt
from spool.job import State
from spool.report import OrderRow, WorkerRow, read_order, read_row
from spool.server.documents import load
from spool.server.jobs import Nothing
from spool.server.problems import Refused
from spool.server.routes import Ask, Operation
from spool.view import view

logger = logging.getLogger("spool.server")

UNTOLD: Final[dict[str, Any]] = {"running": None, "ended": {}, "rates": None}
"""What counts all queues of a worker, as those see it who may not know of some of them."""
ORDER_TTL: Final = 3_600_000
_PAGES: Final = 20

_State = Literal["running", "quiet", "stopping"]


class Running(msgspec.Struct, frozen=True):
    """A job that runs, since ``started`` (ms)."""

    queue: str
    id: str
    task: str
    started: int | None
    attempts: int


class Worker(msgspec.Struct, frozen=True):
    """A worker process as it described itself last, every few seconds.

    ``ordered`` is what it was told, which it may not have done yet; ``now`` is the store's clock. A token for some of
    its queues sees those alone, and not what counts them all: ``running`` and ``rates`` are null, ``ended`` is empty.
    """

    row: WorkerRow
    state: _State
    ordered: Literal["quiet", "stop"] | None
    now: int


class Workers(msgspec.Struct, frozen=True):
    """The workers that have reported lately. ``cursor`` is always empty: there are no pages."""

    items: list[Worker]
    cursor: str = ""


class WorkerJobs(msgspec.Struct, frozen=True):
    """A worker with the jobs that it runs."""

    worker: Worker
    jobs: list[Running]


class Ordered(msgspec.Struct, frozen=True):
    """An order that the worker's supervisor will read within some seconds."""

    incarnation: str
    order: Literal["quiet", "stop"]


class JobsLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many of its jobs to name."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


async def list_workers(ask: Ask[None, None]) -> Workers:
    """List workers."""
    found = await reported(ask.services.broker)
    return Workers([seen for each in found if (seen := _seen(ask, each)).row.queues])


def _seen(ask: Ask[Any, Any], worker: Worker) -> Worker:
    """Return a worker without the queues that the caller may not know of."""
    queues = [each for each in worker.row.queues if ask.sees(each)]
    if len(queues) == len(worker.row.queues):
        return worker
    return replace(worker, row=replace(worker.row, queues=queues, **UNTOLD))


async def reported(broker: Broker) -> list[Worker]:
    """Return the workers that have reported lately, by host."""
    orders = {document.key: document.body async for document, _ in load(broker, "order")}
    workers: list[Worker] = []
    async for document, now in load(broker, "worker"):
        try:
            row = read_row(document.body)
        except StoreCorrupt as error:
            logger.debug("%s: %s", document.key, error)
            continue
        ordered = _order(row.incarnation, orders.get(row.incarnation))
        state: _State = "stopping" if row.stopping else "quiet" if row.quiet else "running"
        workers.append(Worker(row, state, ordered, now))
    return sorted(workers, key=lambda each: (each.row.host, each.row.started, each.row.incarnation))


def _order(incarnation: str, body: bytes | None) -> Literal["quiet", "stop"] | None:
    try:
        return None if body is None else read_order(body).order
    except StoreCorrupt as error:
        logger.debug("%s: %s", incarnation, error)
        return None


async def _one(ask: Ask[Any, Any]) -> Worker:
    incarnation = ask.path["incarnation"]
    for each in await reported(ask.services.broker):
        if each.row.incarnation == incarnation and (seen := _seen(ask, each)).row.queues:
            return seen
    raise Refused(404, f"no worker {incarnation[:50]!r} has reported lately")


async def show(ask: Ask[JobsLimit, None]) -> WorkerJobs:
    """Return a worker and the jobs that it runs."""
    worker = await _one(ask)
    jobs: list[Running] = []
    for queue in worker.row.queues:
        cursor = ""
        for _ in range(_PAGES):
            found = await ask.services.broker.acall(Find(queue, State.RUNNING, cursor, 250))
            mine = (view(each) for each in found.jobs if each.incarnation == worker.row.incarnation)
            jobs += [Running(queue, job.id, job.task, job.started, job.attempts) for job in mine]
            cursor = found.cursor
            if not cursor or len(jobs) >= ask.query.limit:
                break
    return WorkerJobs(worker, jobs[: ask.query.limit])


async def quiet(ask: Ask[None, Nothing]) -> Ordered:
    """Let a worker claim no more jobs; those that run go on."""
    return await _send(ask, "quiet")


async def stop(ask: Ask[None, Nothing]) -> Ordered:
    """Let a worker stop in order; its supervisor starts no other in its place."""
    return await _send(ask, "stop")


async def _send(ask: Ask[None, Nothing], order: Literal["quiet", "stop"]) -> Ordered:
    worker = await _one(ask)
    broker = ask.services.broker
    now = (await broker.acall(Load("server"))).now
    body = msgspec.json.encode(OrderRow(order, now, ask.principal.name))
    await broker.acall(Store("order", worker.row.incarnation, body, ORDER_TTL))
    return Ordered(worker.row.incarnation, order)


_WORKER: Final = "/api/v1/workers/{incarnation}"

ROUTES = (
    Operation("GET", "/api/v1/workers", list_workers, "read", "List workers", response=Workers, queues=True),
    Operation("GET", _WORKER, show, "read", "Show a worker", query=JobsLimit, response=WorkerJobs, queues=True),
    Operation("POST", f"{_WORKER}/quiet", quiet, "operate", "Quiet a worker", request=Nothing, response=Ordered),
    Operation("POST", f"{_WORKER}/stop", stop, "operate", "Stop a worker", request=Nothing, response=Ordered),
)
