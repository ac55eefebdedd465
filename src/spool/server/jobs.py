"""Routes for jobs: enqueue one and many, list, look up, wait for the result, cancel, retry, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from spool.broker import Act, Delete, Get, Replay, cancellation
from spool.catalogue import Catalogue
from spool.errors import JobConflict, JobNotFound, SpoolError, TaskUnknown
from spool.job import LogLine, Progress, Snapshot, State
from spool.opaque import UNREADABLE
from spool.server.chosen import Chosen, select
from spool.server.intake import JobRequest
from spool.server.problems import Problem, Refused, problem_of
from spool.server.routes import Ask, Operation, Reply
from spool.view import Job, view

LONGEST_WAIT: Final = 60.0
_HINTS: Final = 10
"""Unknown tasks of a batch for which it is said what may have been meant."""


class Enqueued(msgspec.Struct, frozen=True):
    """A stored job. ``created`` is false if its id was there already, with the same task and arguments."""

    queue: str
    id: str
    created: bool


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`Calls`, each undecoded: one that cannot be read is answered as such, and the others are stored."""

    jobs: list[msgspec.Raw]


class Calls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calls to be stored, at most 1,000 unless the server is set otherwise."""

    jobs: list[JobRequest]


class BatchItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one call of a batch: queue, id and ``created``, as of one that comes alone, or ``error``."""

    queue: str = ""
    id: str = ""
    created: bool | msgspec.UnsetType = msgspec.UNSET
    error: Problem | None = None


class Batch(msgspec.Struct, frozen=True):
    """What became of a batch: an item for each call, in order. ``stored`` counts those that are in the store."""

    stored: int
    failed: int
    items: list[BatchItem]


class ResultQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``wait``: seconds to wait for the job's end, at most 60."""

    wait: Annotated[float, Meta(ge=0, le=LONGEST_WAIT)] = 0.0


class Result(msgspec.Struct, frozen=True):
    """How a job ended, or where it stands. ``result`` of a job that is done and whose result was kept, else null."""

    queue: str
    id: str
    state: State
    result: Any
    error: str = ""
    traceback: str = ""


class Told(msgspec.Struct, frozen=True):
    """What a job said of itself: how far it is, and its last log lines; ``log_dropped`` counts those before."""

    queue: str
    id: str
    state: State
    progress: Progress | None
    log: list[LogLine]
    log_dropped: int


class JobsQuery(Chosen, frozen=True):
    """Which jobs, in which ``state``; at most ``limit`` of them, after ``cursor``."""

    state: list[State] = msgspec.field(default_factory=list[State])
    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Jobs(msgspec.Struct, frozen=True):
    """A page of jobs. ``cursor`` is for the next page, empty on the last; a page may be short, or empty, before it."""

    items: list[Job]
    cursor: str


class CancelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why, which the job will say."""

    reason: str = "cancelled through the server"


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing is to be said."""


class Acted(msgspec.Struct, frozen=True):
    """Whether anything changed, and where the job stands now; null once it is forgotten."""

    changed: bool
    state: State | None


async def enqueue(ask: Ask[None, JobRequest]) -> Any:
    """Store one job."""
    services, request = ask.services, ask.body
    if not services.intake.ready(request):
        await services.intake.look_for([request])
    queue, job = services.intake.seal(request)
    ask.check_queue(queue)
    created = await services.intake.put(queue, job, request.durability)
    if created is None:
        raise _conflict(queue, job.id)
    services.audit.count(ask.principal, "enqueue", queue)
    where = ((b"location", f"/api/v1/jobs/{queue}/{job.id}".encode()),)
    return Reply(Enqueued(queue, job.id, created), 201 if created else 200, where)


def _conflict(queue: str, id: str) -> JobConflict:
    return JobConflict(f"{queue}/{id} is taken by a job with another task or other arguments")


_decode_request = msgspec.json.Decoder(JobRequest).decode


async def enqueue_many(ask: Ask[None, BatchRequest]) -> Batch:
    """Store many jobs. Each has its own answer: what is wrong with one keeps no other from being stored."""
    requests = ask.body.jobs
    most = ask.services.settings.limits.batch
    if len(requests) > most:
        raise Refused(413, f"a batch has at most {most:,} jobs, not {len(requests):,}")
    items: list[BatchItem | None] = [None] * len(requests)
    pending: list[tuple[int, str, str, asyncio.Future[bool | None]]] = []
    decoded = [_decoded(raw) for raw in requests]
    await ask.services.intake.look_for([each for each in decoded if isinstance(each, JobRequest)])
    unknown = 0
    for index, request in enumerate(decoded):
        if not isinstance(request, JobRequest):
            items[index] = BatchItem(error=request)
            continue
        try:
            queue, job = ask.services.intake.seal(request, hint=unknown < _HINTS)
            ask.check_queue(queue)
        except (SpoolError, Refused) as error:
            unknown += isinstance(error, TaskUnknown)
            items[index] = BatchItem(error=_problem(error))
        else:
            pending.append((index, queue, job.id, ask.services.intake.put(queue, job, request.durability)))
    stored: dict[str, int] = {}
    for index, queue, id, future in pending:
        items[index] = item = await _outcome(queue, id, future)
        stored[queue] = stored.get(queue, 0) + (item.error is None)
    for queue, count in stored.items():
        if count:
            ask.services.audit.count(ask.principal, "enqueue", queue, count)
    done = [item for item in items if item is not None]
    failed = sum(item.error is not None for item in done)
    return Batch(len(done) - failed, failed, done)


async def _outcome(queue: str, id: str, future: asyncio.Future[bool | None]) -> BatchItem:
    try:
        created = await future
    except SpoolError as error:
        return BatchItem(queue, id, error=problem_of(error))
    if created is None:
        return BatchItem(queue, id, error=problem_of(_conflict(queue, id)))
    return BatchItem(queue, id, created)


def _decoded(raw: msgspec.Raw) -> JobRequest | Problem:
    try:
        return _decode_request(raw)
    except UNREADABLE as error:
        return Refused(400, str(error)).problem


def _problem(error: SpoolError | Refused) -> Problem:
    return error.problem if isinstance(error, Refused) else problem_of(error)


async def find(ask: Ask[Any, None], states: Sequence[State]) -> Jobs:
    """Return a page of the jobs that a query asks for, in these states; in all of them if there is none."""
    query = ask.query
    chosen = select(ask, query, states)
    page = await chosen.apage(query.cursor, min(query.limit, ask.services.settings.limits.page))
    catalogue = await ask.services.intake.catalogue()
    return Jobs([catalogue.redacted(job) for job in page.jobs], page.cursor)


async def list_jobs(ask: Ask[JobsQuery, None]) -> Jobs:
    """List jobs, those that run first."""
    return await find(ask, ask.query.state)


async def look_up(ask: Ask[Any, Any]) -> Snapshot:
    """Return the job that the path names. Raises `JobNotFound`."""
    queue, id = ask.path["queue"], ask.path["id"]
    snapshot = await ask.services.broker.acall(Get(queue, id))
    if snapshot is None:
        raise JobNotFound(f"{queue}/{id} is not known (any more)")
    return snapshot


async def show(ask: Ask[None, None]) -> Job:
    """Return all that is known of a job."""
    snapshot = await look_up(ask)
    catalogue: Catalogue = await ask.services.intake.catalogue()
    return catalogue.redacted(view(snapshot))


async def result(ask: Ask[ResultQuery, None]) -> Any:
    """Return how a job ended; wait for that, if asked to."""
    snapshot = await look_up(ask)
    if not snapshot.state.terminal and ask.query.wait:
        snapshot = await _ended(ask, snapshot)
    job = view(snapshot)
    answer = Result(job.queue, job.id, job.state, job.result, job.error, job.traceback)
    return Reply(answer, 200 if job.state.terminal else 202)


async def _ended(ask: Ask[ResultQuery, None], snapshot: Snapshot) -> Snapshot:
    services = ask.services
    if services.waits >= services.settings.limits.waits:
        raise Refused(503, "too many requests wait for results", ((b"retry-after", b"1"),))
    services.waits += 1
    waiting = asyncio.ensure_future(services.broker.aended(snapshot.queue, snapshot.id, ask.query.wait))
    gone = asyncio.ensure_future(_gone(ask.asgi[1]))
    stop = asyncio.ensure_future(services.stopping.wait())
    try:
        with services.resting():
            await asyncio.wait((waiting, gone, stop), return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not waiting.done():
            raise Refused(400, "the client went away")
        return (waiting.result() if waiting.done() else None) or await look_up(ask)
    finally:
        services.waits -= 1
        for task in (waiting, gone, stop):
            task.cancel()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def progress(ask: Ask[None, None]) -> Told:
    """Return how far a job says that it is, and what it has logged; both are empty for a job that says nothing."""
    job = view(await look_up(ask))
    return Told(job.queue, job.id, job.state, job.progress, job.log, job.log_dropped)


async def cancel(ask: Ask[None, CancelRequest]) -> Acted:
    """Cancel a job that has not ended; a running one is asked to stop."""
    return await _act(ask, cancellation(ask.body.reason, ask.services.app.dedupe_window))


async def retry(ask: Ask[None, Nothing]) -> Acted:
    """Put a dead job back, with all its retries."""
    return await _act(ask, Replay())


async def delete(ask: Ask[None, Nothing]) -> Acted:
    """Forget a job that does not run."""
    return await _act(ask, Delete())


async def _act(ask: Ask[None, Any], action: Any) -> Acted:
    queue, id = ask.path["queue"], ask.path["id"]
    acted = await ask.services.broker.acall(Act(queue, action, (id,)))
    try:
        state = (await look_up(ask)).state
    except JobNotFound:
        if not acted.changed:
            raise
        state = None
    return Acted(bool(acted.changed), state)


_JOB: Final = "/api/v1/jobs/{queue}/{id}"

ROUTES = (
    Operation(
        "POST",
        "/api/v1/jobs",
        enqueue,
        "enqueue",
        "Enqueue a job",
        request=JobRequest,
        response=Enqueued,
        status=201,
        answers={200: "It was there already", 409: "The id is taken by another job", 422: "The call cannot be stored"},
        queues=True,
    ),
    Operation(
        "POST",
        "/api/v1/jobs/batch",
        enqueue_many,
        "enqueue",
        "Enqueue many jobs",
        request=BatchRequest,
        shown_request=Calls,
        response=Batch,
        queues=True,
    ),
    Operation("GET", "/api/v1/jobs", list_jobs, "read", "List jobs", query=JobsQuery, response=Jobs, queues=True),
    Operation("GET", _JOB, show, "read", "Show a job", response=Job),
    Operation(
        "GET",
        f"{_JOB}/result",
        result,
        "read",
        "Return a job's result",
        query=ResultQuery,
        response=Result,
        answers={202: "It has not ended"},
    ),
    Operation("POST", f"{_JOB}/cancel", cancel, "operate", "Cancel a job", request=CancelRequest, response=Acted),
    Operation("POST", f"{_JOB}/retry", retry, "operate", "Retry a dead job", request=Nothing, response=Acted),
    Operation("POST", f"{_JOB}/delete", delete, "operate", "Delete a job", request=Nothing, response=Acted),
    Operation("DELETE", _JOB, delete, "operate", "Delete a job", response=Acted),
    Operation("GET", f"{_JOB}/progress", progress, "read", "Show a job's progress", response=Told),
)
