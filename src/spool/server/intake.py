"""Enqueues on their way in: bound to their tasks, and gathered, so that those which come at once go out as one call."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from spool.app import Spool
from spool.broker import Enqueue, NewJob
from spool.catalogue import Catalogue
from spool.errors import ConfigError, StoreCorrupt, TaskUnknown
from spool.job import VERSION, Priority, Record, check_name, encode_record, new_id
from spool.payload import Signature
from spool.report import TaskParameter, TaskRow, read_task_row
from spool.server.documents import Documents
from spool.server.routes import Name, Whole
from spool.settings import MAX_SECONDS, check_durability, check_priority, checked_headers, overrides, seconds

CHUNK_JOBS: Final = 500
CHUNK_BYTES: Final = 1024 * 1024
_MAX_CRASHES: Final = 3
_COMPARED: Final = 300
"""Tasks that a name which is none is compared with, at 10 µs each."""

MAX_MOMENT: Final = 253_402_300_799_999
"""The end of the year 9999, beyond which few calendars go."""
_Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]


class JobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call to be stored as a job. What is left out is as the task declares it.

    ``queue`` may be left out for a task that a worker has declared; with it, a task is taken that no worker knows yet,
    and waits, parked, for one that does. ``id`` makes the call idempotent. ``at`` is in milliseconds since the epoch,
    ``delay``, ``timeout`` and ``result_ttl`` are in seconds. ``key`` is what jobs are found by.
    """

    task: Name
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    queue: Name | None = None
    id: Name | None = None
    delay: _Seconds | None = None
    at: Annotated[float, Meta(ge=0, le=MAX_MOMENT, multiple_of=1)] | None = None
    priority: Priority | None = None
    retries: Whole | None = None
    timeout: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] | None = None
    result_ttl: _Seconds | None = None
    on_disconnect: Literal["stop", "continue"] | None = None
    headers: dict[str, str] = {}
    durability: Literal["fsync"] | None = None
    key: Name | None = None


class Known(msgspec.Struct, frozen=True):
    """A task as far as one has to know it to store calls of it; both None if its row cannot be read."""

    row: TaskRow | None = None
    signature: Signature | None = None


_KINDS: Final = {
    "positional_only": inspect.Parameter.POSITIONAL_ONLY,
    "positional_or_keyword": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "keyword_only": inspect.Parameter.KEYWORD_ONLY,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}
_ANY: Final = [TaskParameter("args", False, "var_positional"), TaskParameter("kwargs", False, "var_keyword")]  # noqa: FBT003


def signature_of(task: str, parameters: Sequence[TaskParameter]) -> Signature:
    """Return what binds and encodes calls of a task that is known by its parameters alone; their types are not."""

    def stand_in() -> None: ...

    listed = [
        inspect.Parameter(
            each.name,
            _KINDS[each.kind],
            default=inspect.Parameter.empty if each.required or each.kind.startswith("var_") else None,
        )
        for each in parameters
    ]
    stand_in.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined] # what inspect.signature looks at
    return Signature(task, stand_in)


def _read_known(body: bytes) -> Known:
    try:
        row = read_task_row(body)
        return Known(row, signature_of(row.task, row.parameters))
    except (StoreCorrupt, ValueError):  # the latter: parameters that no function can have
        return Known()


class Intake:
    """Turns requests into jobs, and jobs into calls of the broker."""

    def __init__(self, app: Spool) -> None:
        self._app = app
        self._tasks = Documents(app.broker, "task", _read_known)
        self._known: dict[str, Known] | None = None
        self._catalogue = Catalogue(())
        self._lines: dict[tuple[str, bool, bool], _Line] = {}

    async def catalogue(self) -> Catalogue:
        """Return what workers have declared, at most some seconds old: for what is not to be shown."""
        known = await self._tasks.recent()
        if known is not self._known:
            catalogue = Catalogue(())
            catalogue.tasks = {name: each.row for name, each in known.items() if each.row is not None}
            catalogue.damaged = {name for name, each in known.items() if each.row is None}
            self._known, self._catalogue = known, catalogue
        return self._catalogue

    def ready(self, request: JobRequest) -> bool:
        """Whether the tasks need not be read before this is sealed."""
        return self._tasks.fresh and (request.queue is not None or self._tasks.last(request.task) is not None)

    async def look_for(self, requests: Iterable[JobRequest]) -> None:
        """Read the tasks before these are sealed: anew, but once for all, where one is not there."""
        known = await self._tasks.recent()
        missing = next((each.task for each in requests if each.queue is None and each.task not in known), None)
        if missing is not None:
            await self._tasks.get(missing)

    def seal(self, request: JobRequest, *, hint: bool = True) -> tuple[str, NewJob]:
        """Return the queue and the job of a request, by the tasks as they were read last.

        Of a task that is not known it is said, with ``hint``, which one may have been meant.
        Raises `ConfigError`, `TaskError` or `PayloadError`.
        """
        name = request.task
        known = self._tasks.last(name)
        row, signature = (None, None) if known is None else (known.row, known.signature)
        if row is None or signature is None:
            if request.queue is None:
                raise self._unknown(name, hint=hint)
            check_name("task", name)
            row, signature = TaskRow(name, "", 2, 0, _MAX_CRASHES, []), signature_of(name, _ANY)
        queue = row.queue if request.queue is None else check_name("queue", request.queue)
        return queue, self._seal(request, row, signature)

    def _seal(self, request: JobRequest, row: TaskRow, signature: Signature) -> NewJob:
        args, kwargs = request.args, request.kwargs
        payload = signature.write(args, kwargs, self._app.max_payload)
        given = request.id is not None
        fingerprint = signature.fingerprint(args, kwargs) if given else ""
        priority = row.priority if request.priority is None else check_priority(request.priority)
        if request.at is not None and request.delay is not None:
            raise ConfigError("give delay or at, not both")
        record = Record(
            VERSION,
            row.task,
            priority,
            row.lane,
            row.max_crashes,
            fingerprint,
            int(time.time() * 1000),
            msgspec.Raw(payload),
            overrides(
                None if request.retries is None else int(request.retries),
                request.timeout,
                request.result_ttl,
                request.on_disconnect,
            ),
            checked_headers(request.headers) if request.headers else None,
            None if request.key is None else check_name("key", request.key),
        )
        return NewJob(
            check_name("job id", request.id) if given else new_id(),
            encode_record(record),
            priority,
            row.lane,
            0 if request.delay is None else round(seconds("delay", request.delay) * 1000),
            0 if request.at is None else max(1, int(request.at)),
            fingerprint,
        )

    def _unknown(self, name: str, *, hint: bool) -> TaskUnknown:
        import difflib

        known = self._tasks.keys()[:_COMPARED] if hint else []
        near = difflib.get_close_matches(name[:200], known, 3, 0.5) or sorted(known)[:10]
        listed = f"; it may be {', '.join(near)}" if near else ""
        return TaskUnknown(
            f"no worker has declared a task {name[:200]!r} so far{listed}. With a queue, it is stored all the same and "
            "waits for a worker that knows it"
        )

    def put(self, queue: str, job: NewJob, durability: str | None = None) -> asyncio.Future[bool | None]:
        """Store a job with those that come at the same time. True: created, False: was there, None: a conflict.

        Raises `BrokerError`; then it is as with `Enqueue`, though others may have been in the same call.
        """
        key = (queue, check_durability(durability), bool(job.fingerprint))
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self._app, queue, lambda: self._lines.pop(key), durable=key[1])
        return line.put(job)


class _Line:
    """The jobs for one queue that wait while those before them are on their way."""

    def __init__(self, app: Spool, queue: str, over: Callable[[], object], *, durable: bool) -> None:
        self._app = app
        self._queue = queue
        self._over = over
        self._durable = durable
        self._waiting: list[tuple[NewJob, asyncio.Future[bool | None]]] = []
        self._task = asyncio.create_task(self._run(), name="spool-enqueue")

    def put(self, job: NewJob) -> asyncio.Future[bool | None]:
        future: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        return future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._send(self._take())
        finally:
            self._over()

    def _take(self) -> dict[str, tuple[NewJob, asyncio.Future[bool | None]]]:
        """Take what goes out next: neither too many nor too large, and no id twice: each gets its own answer."""
        taken: dict[str, tuple[NewJob, asyncio.Future[bool | None]]] = {}
        size = 0
        for each in self._waiting:
            job = each[0]
            if len(taken) == CHUNK_JOBS or job.id in taken or (taken and size + len(job.record) > CHUNK_BYTES):
                break
            taken[job.id] = each
            size += len(job.record)
        del self._waiting[: len(taken)]
        return taken

    async def _send(self, taken: dict[str, tuple[NewJob, asyncio.Future[bool | None]]]) -> None:
        verb = Enqueue(self._queue, [job for job, _ in taken.values()], durable=self._durable)
        try:
            reply = await self._app.asend(verb)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to be told
            for _, future in taken.values():
                if not future.done():
                    future.set_exception(error)
            return
        # What a resend finds there already was stored by the call whose reply was lost, unless the caller named it.
        answers: dict[str, bool | None] = dict.fromkeys(taken, True)
        for id in reply.existing:
            answers[id] = not taken[id][0].fingerprint
        answers.update(dict.fromkeys(reply.conflicts))
        for id, (_, future) in taken.items():
            if not future.done():
                future.set_result(answers[id])
