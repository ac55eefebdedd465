"""Tasks: declared functions, the calls that become jobs, and handles on those jobs."""

from __future__ import annotations

import datetime as dt
import math
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, cast

import msgspec

from spool.broker import Act, Broker, Enqueue, Enqueued, Get, NewJob, cancellation
from spool.errors import ConfigError, JobCancelled, JobConflict, JobFailed, JobNotFound, ResultTimeout
from spool.job import (
    MAIN,
    PROCESS,
    VERSION,
    Options,
    Priority,
    Progress,
    Record,
    Snapshot,
    State,
    check_name,
    encode_record,
    is_text,
    new_id,
    read_ending,
)
from spool.payload import Signature, write_result
from spool.settings import (
    Durability,
    OnDisconnect,
    TaskSettings,
    check_durability,
    check_priority,
    checked_headers,
    due_time,
    overrides,
    seconds,
)
from spool.view import Job, view

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    R_co = TypeVar("R_co", covariant=True)
    C_co = TypeVar("C_co", covariant=True, default=Any)
else:  # defaults of type variables need Python 3.13, but only type checkers need the defaults
    from typing import TypeVar

    R_co = TypeVar("R_co", covariant=True)
    C_co = TypeVar("C_co", covariant=True)

P = ParamSpec("P")


class Client(Protocol):
    """What a task needs of its app."""

    @property
    def broker(self) -> Broker: ...

    @property
    def max_payload(self) -> int: ...

    @property
    def dedupe_window(self) -> float: ...

    def send(self, verb: Enqueue) -> Enqueued: ...

    async def asend(self, verb: Enqueue) -> Enqueued: ...

    def check_sync(self, method: str, twin: str) -> None: ...


class Call(msgspec.Struct, frozen=True, gc=False):
    """A call of a task, checked and encoded, not yet stored: what `Spool.enqueue_many` takes."""

    queue: str
    job: NewJob
    durable: bool = False


class Plan(msgspec.Struct, frozen=True):
    """How the jobs of a call are stored: the task's declaration with what `Task.options` overrides."""

    queue: str
    priority: int
    lane: int
    max_crashes: int
    id: str | None = None
    delay: int = 0
    due: int = 0
    options: Options | None = None
    headers: dict[str, str] | None = None
    durable: bool = False
    key: str | None = None


class Task(Generic[P, R_co, C_co]):
    """A declared function. Made by `Spool.task`.

    Calling it runs the function as it is; `enqueue` and `aenqueue` store a job with the same arguments, typed by the
    function's own signature. ``Task[P, R]``: ``P`` its parameters, ``R`` what it returns (for ``async def``, awaited).

    >>> from spool import Spool
    >>> app = Spool("sqlite://:memory:")
    >>> @app.task
    ... def add(a: int, b: int) -> int:
    ...     return a + b
    >>> add(1, 2)
    3
    >>> add.enqueue(1, 2).status()
    <State.READY: 'ready'>
    """

    def __init__(self, fn: Callable[P, Any], settings: TaskSettings, client: Client) -> None:
        self.fn = fn
        self.settings = settings
        self._client = client
        self._signature: Signature | None = None
        lane = PROCESS if settings.kind == "process" else MAIN
        plan = Plan(settings.queue, check_priority(settings.priority), lane, settings.max_crashes)
        self._plain = Configured[P, R_co](self, client, plan)
        self.__name__ = getattr(fn, "__name__", settings.name)
        self.__qualname__ = getattr(fn, "__qualname__", settings.name)
        self.__module__ = fn.__module__
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn

    if not TYPE_CHECKING:

        def __class_getitem__(cls, parameters: Any) -> types.GenericAlias:
            # Task[[int], str] leaves out the third parameter, which only type checkers can default.
            return types.GenericAlias(cls, parameters)

    def __repr__(self) -> str:
        return f"<Task {self.settings.name}>"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C_co:
        """Run the function, here and now."""
        return cast("C_co", self.fn(*args, **kwargs))

    @property
    def name(self) -> str:
        """The name under which jobs find the task."""
        return self.settings.name

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
        """Store a job and return a handle on it.

        Raises `ArgumentError` for a call that does not fit the signature or the annotated types, `PayloadError` for
        values that cannot be stored, `BrokerUnavailable` when the store cannot be reached for ``enqueue_timeout``,
        `BrokerFull`, and `SyncInLoop` inside a running event loop.
        """
        return self._plain.enqueue(*args, **kwargs)

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
        """As `enqueue`, in the running event loop."""
        return await self._plain.aenqueue(*args, **kwargs)

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call:
        """Check and encode a call without storing it, for `Spool.enqueue_many`. Raises as `enqueue` does."""
        return self._plain.call(*args, **kwargs)

    def options(
        self,
        *,
        delay: float | dt.timedelta | None = None,
        at: dt.datetime | None = None,
        id: str | None = None,
        priority: Priority | None = None,
        queue: str | None = None,
        retries: int | None = None,
        timeout: float | dt.timedelta | None = None,
        result_ttl: float | dt.timedelta | None = None,
        on_disconnect: OnDisconnect | None = None,
        headers: Mapping[str, str] | None = None,
        durability: Durability = None,
        key: str | None = None,
    ) -> Configured[P, R_co]:
        """Return this task with other settings for the calls made through it. None leaves a setting as declared.

        ``delay``, ``timeout`` and ``result_ttl`` are in seconds or timedeltas, ``at`` is a time with its zone; the job
        is ready then, or at once if that is past. ``id`` makes the call idempotent: while the id is known, a second
        call stores nothing and its handle has ``created=False``; with other arguments it raises `JobConflict`. It is
        known until the job has ended, and then for ``result_ttl`` or the app's ``dedupe_window``, if that is longer.
        ``headers``, up to 8 KiB, travel with the job. ``key`` is what the job is about, as an order's number, by which
        jobs are found (`Spool.jobs`); any number of jobs may have the same. With ``durability="fsync"`` an enqueue
        returns when the job is on the store's disk, whatever the store's own settings.

        Raises `ConfigError` for a value that cannot be used. A durable enqueue raises `BrokerRefused`, with nothing
        stored, if the store cannot confirm it (Redis before 7.2, or without AOF), and `NotDurable` if it does not.

        >>> from spool import Spool
        >>> app = Spool("sqlite://:memory:")
        >>> @app.task
        ... def greet(name: str) -> str:
        ...     return f"Hello {name}"
        >>> greet.options(delay=60, id="greet-ada").enqueue("Ada").created
        True
        >>> greet.options(id="greet-ada").enqueue("Ada").created
        False
        """
        plan = self._plain.plan
        return Configured(
            self,
            self._client,
            Plan(
                queue=plan.queue if queue is None else check_name("queue", queue),
                priority=plan.priority if priority is None else check_priority(priority),
                lane=plan.lane,
                max_crashes=plan.max_crashes,
                id=None if id is None else check_name("job id", id),
                delay=0 if delay is None else round(seconds("delay", delay) * 1000),
                due=due_time(at, delay),
                options=overrides(retries, timeout, result_ttl, on_disconnect),
                headers=checked_headers(headers),
                durable=check_durability(durability),
                key=None if key is None else check_name("key", key),
            ),
        )

    def handle(self, id: str, queue: str | None = None) -> Handle[R_co]:
        """Return a handle on a job of this task that was enqueued earlier or elsewhere. Does not ask the store.

        Raises `ConfigError` for an id or a queue that is not text.
        """
        queue = queue or self.settings.queue
        if not is_text(queue + id):
            raise ConfigError(f"{queue!r}/{id!r} is not text: it holds a lone surrogate, which no store has")
        return Handle(self, self._client, queue, id, created=False)

    @property
    def signature(self) -> Signature:
        """How calls are checked, stored and read; made at first use, since annotations may name what comes later.

        Raises `ConfigError` if an annotation cannot be resolved or restored.
        """
        if self._signature is None:
            self._signature = Signature(self.settings.name, self.fn)
        return self._signature

    def read_arguments(self, payload: msgspec.Raw | bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the arguments in a job's payload, restored to the annotated types.

        Raises `ArgumentError`, and `Undecryptable` where they are encrypted.
        """
        return (self._signature or self.signature).read(payload)

    def encode_result(self, value: Any) -> bytes:
        """Return a result as msgpack. Raises `PayloadError` or `PayloadTooLarge`."""
        return write_result(self.settings.name, value, self._client.max_payload)


class Configured(Generic[P, R_co]):
    """A task with the settings for some calls of it. Made by `Task.options`."""

    def __init__(self, task: Task[P, R_co], client: Client, plan: Plan) -> None:
        self._task = task
        self._client = client
        self.plan = plan

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
        """As `Task.enqueue`; raises `JobConflict` if the id is taken by a call with other arguments."""
        self._client.check_sync("enqueue", "aenqueue")
        job = self._seal(args, kwargs)
        return self._handle(job, self._client.send(self._enqueue(job)))

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
        """As `enqueue`, in the running event loop."""
        job = self._seal(args, kwargs)
        return self._handle(job, await self._client.asend(self._enqueue(job)))

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call:
        """As `Task.call`."""
        return Call(self.plan.queue, self._seal(args, kwargs), self.plan.durable)

    def _enqueue(self, job: NewJob) -> Enqueue:
        return Enqueue(self.plan.queue, (job,), durable=self.plan.durable)

    def _seal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewJob:
        plan, signature = self.plan, self._task.signature
        payload = signature.write(args, kwargs, self._client.max_payload)
        fingerprint = signature.fingerprint(args, kwargs) if plan.id else ""
        record = Record(
            VERSION,
            self._task.settings.name,
            plan.priority,
            plan.lane,
            plan.max_crashes,
            fingerprint,
            int(time.time() * 1000),
            msgspec.Raw(payload),
            plan.options,
            plan.headers,
            plan.key,
        )
        return NewJob(
            plan.id or new_id(), encode_record(record), plan.priority, plan.lane, plan.delay, plan.due, fingerprint
        )

    def _handle(self, job: NewJob, reply: Enqueued) -> Handle[R_co]:
        if reply.conflicts:
            raise JobConflict(f"{self.plan.queue}/{job.id} is taken by a job with another task or other arguments")
        # What a resend finds there already was stored by the call whose reply was lost, unless the caller named it.
        created = not (reply.existing and self.plan.id)
        return Handle(self._task, self._client, self.plan.queue, job.id, created=created)


class Handle(Generic[R_co]):
    """A job that was enqueued: its ``queue`` and ``id``, and ``created``, False if the id was there already."""

    __slots__ = ("_client", "_task", "created", "id", "queue")

    def __init__(self, task: Task[..., R_co], client: Client, queue: str, id: str, *, created: bool) -> None:
        self._task = task
        self._client = client
        self.queue = queue
        self.id = id
        self.created = created

    def __str__(self) -> str:
        return f"{self.queue}/{self.id}"

    def __repr__(self) -> str:
        return f"<Handle {self}>"

    def result(self, timeout: float | None = None) -> R_co:
        """Wait for the job to end and return its result; None where none is kept (``result_ttl=0``).

        Raises `ResultTimeout` after ``timeout`` seconds (default: never), `JobFailed` if the job is dead,
        `JobCancelled`, `JobNotFound` if the job is not known (any more), `PayloadError` if the result is not of the
        annotated return type, and `ProtectionError` if it is not signed as it should be, or cannot be decrypted.
        """
        self._client.check_sync("result", "aresult")
        deadline = _deadline(timeout)
        while True:
            ended = self._client.broker.ended(self.queue, self.id, _left(deadline))
            ended = ended or self._pending(self._client.broker.call(Get(self.queue, self.id)), deadline)
            if ended is not None:
                return self._open(ended)

    async def aresult(self, timeout: float | None = None) -> R_co:
        """As `result`, in the running event loop."""
        deadline = _deadline(timeout)
        while True:
            ended = await self._client.broker.aended(self.queue, self.id, _left(deadline))
            ended = ended or self._pending(await self._client.broker.acall(Get(self.queue, self.id)), deadline)
            if ended is not None:
                return self._open(ended)

    def status(self) -> State:
        """Return where the job stands. Raises `JobNotFound`."""
        self._client.check_sync("status", "astatus")
        return self._found(self._client.broker.call(Get(self.queue, self.id))).state

    async def astatus(self) -> State:
        """As `status`, in the running event loop."""
        return self._found(await self._client.broker.acall(Get(self.queue, self.id))).state

    def job(self) -> Job:
        """Return all that is known of the job. Raises `JobNotFound`."""
        self._client.check_sync("job", "ajob")
        return view(self._found(self._client.broker.call(Get(self.queue, self.id))))

    async def ajob(self) -> Job:
        """As `job`, in the running event loop."""
        return view(self._found(await self._client.broker.acall(Get(self.queue, self.id))))

    def progress(self) -> Progress | None:
        """Return how far the job says that it is (`JobContext.progress`); None if it does not. Raises `JobNotFound`."""
        self._client.check_sync("progress", "aprogress")
        return self.job().progress

    async def aprogress(self) -> Progress | None:
        """As `progress`, in the running event loop."""
        return (await self.ajob()).progress

    def cancel(self, reason: str = "") -> bool:
        """Cancel the job if it has not ended; True if that changed anything. A running job is asked to stop."""
        self._client.check_sync("cancel", "acancel")
        return bool(self._client.broker.call(self._cancellation(reason)).changed)

    async def acancel(self, reason: str = "") -> bool:
        """As `cancel`, in the running event loop."""
        return bool((await self._client.broker.acall(self._cancellation(reason))).changed)

    def _cancellation(self, reason: str) -> Act:
        ttl = max(self._task.settings.result_ttl, self._client.dedupe_window)
        return Act(self.queue, cancellation(reason, ttl), (self.id,))

    def _found(self, snapshot: Snapshot | None) -> Snapshot:
        if snapshot is None:
            raise JobNotFound(f"{self} is not known (any more)")
        return snapshot

    def _pending(self, snapshot: Snapshot | None, deadline: float) -> Snapshot | None:
        """Tell a job that takes its time from one that ended just now and from one that is not known."""
        if self._found(snapshot).state.terminal:
            return snapshot
        if time.monotonic() >= deadline:
            raise ResultTimeout(f"{self} has not ended in the time given; it is {self._found(snapshot).state}")
        return None

    def _open(self, snapshot: Snapshot) -> R_co:
        if snapshot.state is State.DONE and snapshot.ending is not None:
            result: R_co = self._task.signature.read_result(read_ending(snapshot.ending).result)
            return result
        job = view(snapshot)
        if job.state is State.CANCELLED:
            raise JobCancelled(f"{self} ({job.task}) was cancelled" + (f": {job.error}" if job.error else ""))
        last = job.history[-1].error_type if job.history else ""
        raise JobFailed(f"{self} ({job.task}) is dead: {job.error}", last, job.traceback)


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + seconds("timeout", timeout)


def _left(deadline: float) -> float | None:
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())
