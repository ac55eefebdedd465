"""Spool: the registry of an app's tasks, and its client."""

from __future__ import annotations

import datetime as dt
import inspect
import os
import sys
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, Self, TypeVar, overload

from msgspec.structs import replace

from spool.broker import Broker, Enqueue, Enqueued, connect
from spool.bulk import Bulk
from spool.errors import (
    BrokerFull,
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    SyncInLoop,
    TaskExists,
)
from spool.job import Priority
from spool.lifespan import Lifespan, checked_lifespan
from spool.payload import MAX_PAYLOAD
from spool.protection import Encryption, Protection, Signing
from spool.resend import graver, pauses, refused_again
from spool.retry import DEFAULT_BACKOFF, Backoff, Exceptions, checked_policy
from spool.selection import Selection
from spool.selection.criteria import StateName, When, criteria
from spool.selection.walk import Steps, arun, look_up, run
from spool.settings import (
    Durability,
    OnDisconnect,
    TaskKind,
    TaskSettings,
    attempt_timeout,
    check_count,
    checked_redact,
    seconds,
)
from spool.task import Call, Task
from spool.view import Job

if TYPE_CHECKING:
    import asyncio

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="Middleware")
L = TypeVar("L", bound="Callable[[Any], AbstractAsyncContextManager[Any]] | Callable[[Any], AsyncIterator[Any]]")

CallNext = Callable[[], Awaitable[Any]]
Middleware = Callable[[Any, CallNext], Awaitable[Any]]
"""Wraps each attempt: ``async (context, call_next) -> result``."""

DEFAULT_URL: Final = "sqlite:///spool.db"


class TaskDecorator(Protocol):
    """What `Spool.task` with settings returns: turns a function into a task."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R, R]: ...


class Spool:
    """An app: its tasks, and the client that stores their jobs and looks them up.

    ``url`` names the broker (see `spool.broker.connect`); None is the environment's ``SPOOL_URL``, else
    ``sqlite:///spool.db``. No connection is made before the first use. ``max_payload`` limits the arguments, and the
    result, of one job, in bytes (default 1 MiB). For ``dedupe_window`` seconds (default 1 h) at least, a job that ended
    is remembered, so that its id stays taken. An enqueue to a store that cannot be reached is tried again for up to
    ``enqueue_timeout`` seconds (default 5). ``record_logs`` keeps the log lines of jobs whose task does not say
    otherwise. ``signing`` and ``encryption`` keep others from making or changing jobs in the store, and from reading
    them (`spool.protection`); None is the environment's keys, if it has any.

    An app may be used from several threads and event loops, and after a fork. Methods with the prefix ``a`` are for
    event loops; the others block, and raise `SyncInLoop` inside one.

    >>> app = Spool("sqlite://:memory:")
    >>> @app.task(queue="mail", retries=5)
    ... async def send(to: str, body: str) -> int:
    ...     return len(body)
    >>> handle = send.enqueue("a@b.c", body="hi")
    >>> app.job(handle.id).task
    'send'
    """

    def __init__(
        self,
        url: str | Broker | None = None,
        *,
        max_payload: int = MAX_PAYLOAD,
        dedupe_window: float = 3600.0,
        enqueue_timeout: float = 5.0,
        record_logs: bool = False,
        signing: Signing | None = None,
        encryption: Encryption | None = None,
    ) -> None:
        check_count("max_payload", max_payload, least=1)
        self._protection = Protection(signing, encryption)
        self._url = url
        self._broker: Broker | None = None
        self._made: dict[str, Broker] = {}
        self._tasks: dict[str, Task[..., Any]] = {}
        self.max_payload = max_payload
        self.dedupe_window = seconds("dedupe_window", dedupe_window)
        self.enqueue_timeout = seconds("enqueue_timeout", enqueue_timeout)
        self.record_logs = record_logs
        self.lifespans: list[Lifespan] = []
        self.middlewares: list[Middleware] = []

    def __repr__(self) -> str:
        return f"<Spool {', '.join(self._tasks) or 'without tasks'}>"

    # Declaring

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The declared tasks by name; read-only."""
        return MappingProxyType(self._tasks)

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R, R]: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: Priority = "normal",
        retries: int = 3,
        backoff: Backoff = DEFAULT_BACKOFF,
        retry_on: Exceptions = Exception,
        no_retry_on: Exceptions = (),
        timeout: float | dt.timedelta | None = None,
        result_ttl: float | dt.timedelta = 3600.0,
        max_crashes: int = 3,
        on_disconnect: OnDisconnect = "stop",
        process: bool = False,
        redact: Sequence[str] = (),
        record_logs: bool | None = None,
    ) -> TaskDecorator: ...

    def task(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: Priority = "normal",
        retries: int = 3,
        backoff: Backoff = DEFAULT_BACKOFF,
        retry_on: Exceptions = Exception,
        no_retry_on: Exceptions = (),
        timeout: float | dt.timedelta | None = None,
        result_ttl: float | dt.timedelta = 3600.0,
        max_crashes: int = 3,
        on_disconnect: OnDisconnect = "stop",
        process: bool = False,
        redact: Sequence[str] = (),
        record_logs: bool | None = None,
    ) -> Any:
        """Declare a function as a task; with or without settings.

        ``name`` (default: the function's own) is what jobs are stored under and has to stay the same while any are.
        ``retries`` counts attempts after the first, spaced by ``backoff``, after exceptions of ``retry_on`` that are
        not of ``no_retry_on``. ``timeout`` limits one attempt, in seconds (default: none). The result is kept for
        ``result_ttl`` seconds, or the app's ``dedupe_window`` if that is longer; 0 keeps only that the job ended, and
        ``result()`` is None. ``async def`` runs on the worker's event loop, ``def`` in a thread, or with ``process`` in
        a process pool; there the job is dead after ``max_crashes`` attempts that took their process down.
        ``on_disconnect`` says what becomes of a job that runs when its worker has not reached the store for 0.8 of its
        lease: "stop" ends it, before the store gives it to another worker; "continue" lets it run on, and its outcome
        counts if the store has not done so by then. ``redact`` names parameters whose values the command line and the
        server never show. ``record_logs`` keeps the last lines that a job logs (level INFO and above; 200, 64 KiB) with
        it, False never, None as app and worker say.

        Raises `TaskExists` for a name taken twice and `ConfigError` for a setting that cannot be used.
        """
        policy = checked_policy(retries, backoff, retry_on, no_retry_on)

        def declare(fn: Callable[..., Any]) -> Task[..., Any]:
            kind = _kind(fn, process=process)
            named = name if name is not None else getattr(fn, "__name__", "")
            limit = None if timeout is None else attempt_timeout(timeout)
            kept = seconds("result_ttl", result_ttl)
            hidden = checked_redact(redact, fn)
            settings = TaskSettings(
                named, kind, queue, priority, policy, limit, kept, max_crashes, on_disconnect, hidden, record_logs
            )
            return self._declare(Task(fn, settings, self))

        return declare if fn is None else declare(fn)

    def _declare(self, task: Task[..., Any]) -> Task[..., Any]:
        taken = self._tasks.setdefault(task.settings.name, task)
        if taken is not task:
            raise TaskExists(
                f"the task name {task.settings.name!r} is taken by {taken.__module__}.{taken.__qualname__}; "
                f"give {task.__module__}.{task.__qualname__} another one: @app.task(name=…)"
            )
        return task

    def lifespan(self, fn: L) -> L:
        """Declare what surrounds the life of each worker process, and of each in its pool: clients, models to load.

        ``fn`` takes the app and returns an async context manager, or is an async generator function that yields once.
        It may be used more than once; what was entered first is left last. Raises `ConfigError` for other functions;
        if only a call tells what it returns, the worker does not start.

        >>> app = Spool("sqlite://:memory:")
        >>> @app.lifespan
        ... async def pool(app):
        ...     print("starting")
        ...     yield
        ...     print("stopping")
        """
        self.lifespans.append(checked_lifespan(fn))
        return fn

    def middleware(self, fn: M) -> M:
        """Declare a wrapper of each attempt: ``async (context, call_next) -> result``. The first one is outermost.

        >>> app = Spool("sqlite://:memory:")
        >>> @app.middleware
        ... async def timed(context, call_next):
        ...     result = await call_next()
        ...     print(context.task, "done")
        ...     return result
        """
        if not inspect.iscoroutinefunction(fn) and not inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
            raise ConfigError(f"a middleware is an async function of (context, call_next), not {fn!r}")
        self.middlewares.append(fn)
        return fn

    # Connecting

    @property
    def broker(self) -> Broker:
        """The broker; made at first use, without a connection. Raises `ConfigError` for a URL that cannot be used."""
        return self._broker or self._connect()

    @property
    def location(self) -> str | Broker:
        """What the broker is made from: a URL, password and all, or a broker."""
        return self._url or os.environ.get("SPOOL_URL") or DEFAULT_URL

    def _connect(self) -> Broker:
        url = self.location
        if not isinstance(url, str) and not callable(getattr(url, "acall", None)):
            raise ConfigError(f"a broker is named by a URL, as redis://localhost or sqlite:///jobs.db, not by {url!r}")
        broker = self._protection.around(connect(url) if isinstance(url, str) else url)
        # Two threads may come here at once; no lock, since another thread may hold it during a fork.
        first = self._made.setdefault("broker", broker)
        if first is not broker:
            broker.close()
        self._broker = first
        return first

    @contextmanager
    def using(self, broker: Broker, *, plain: bool = False) -> Generator[Broker]:
        """Use another broker inside the ``with`` block, in all threads; ``plain`` without signing and encryption."""
        broker = broker if plain else self._protection.around(broker)
        before, self._broker = self._broker, broker
        try:
            yield broker
        finally:
            self._broker = before

    async def run_worker(
        self,
        queues: Sequence[str] = (),
        *,
        concurrency: int = 100,
        lease: float = 10.0,
        grace: float = 30.0,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Work in this process and event loop until ``stop`` is set, or at once until cancelled.

        For small deployments, beside a web app: a thread keeps the leases. Where jobs may take their process down, or
        must end at their timeouts whatever they do, run ``spool worker``, which can kill and replace it. Tasks with
        ``process=True`` are not run. ``queues`` is by default all that the tasks are declared for; running jobs get
        ``grace`` seconds after ``stop``; what is left is handed back, uncounted. Raises `ConfigError` and, if it cannot
        begin, `BrokerRefused`.

        ```python
        async with asyncio.TaskGroup() as group:
            working = group.create_task(app.run_worker(["mail"]))
            ...
            working.cancel()
        ```
        """
        from spool.worker import run

        await run(self, queues, concurrency=concurrency, lease=lease, grace=grace, stop=stop)

    def close(self) -> None:
        """Give connections and threads back. Using the app again connects again."""
        self.check_sync("close", "aclose")
        if broker := self._disconnected():
            broker.close()

    async def aclose(self) -> None:
        """As `close`, in the running event loop."""
        if broker := self._disconnected():
            await broker.aclose()

    def _disconnected(self) -> Broker | None:
        self._made.clear()
        broker, self._broker = self._broker, None
        return broker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @staticmethod
    def check_sync(method: str, twin: str) -> None:
        """Raise `SyncInLoop` inside a running event loop."""
        # Who has a loop has imported this; others are spared the import.
        events = sys.modules.get("asyncio.events")
        if events is not None and events._get_running_loop() is not None:  # noqa: SLF001 - in asyncio's __all__
            raise SyncInLoop(f"{method}() would block the running event loop: await {twin}() instead")

    # Enqueueing

    def send(self, verb: Enqueue) -> Enqueued:
        """Carry out an enqueue; while the store cannot be reached, again and again for ``enqueue_timeout``."""
        try:
            return self.broker.call(verb)
        except BrokerUnavailable as error:
            failure = lost = error
        again = replace(verb, resend=True)
        for pause in pauses(self.enqueue_timeout):
            time.sleep(pause)
            try:
                return self.broker.call(again)
            except BrokerUnavailable as error:
                failure, lost = error, graver(lost, error)
            except (BrokerFull, BrokerRefused) as error:
                raise refused_again(lost, error) from error
        raise failure

    async def asend(self, verb: Enqueue) -> Enqueued:
        """As `send`, in the running event loop."""
        try:
            return await self.broker.acall(verb)
        except BrokerUnavailable as error:
            failure = lost = error
        import asyncio

        again = replace(verb, resend=True)
        for pause in pauses(self.enqueue_timeout):
            await asyncio.sleep(pause)
            try:
                return await self.broker.acall(again)
            except BrokerUnavailable as error:
                failure, lost = error, graver(lost, error)
            except (BrokerFull, BrokerRefused) as error:
                raise refused_again(lost, error) from error
        raise failure

    def enqueue_many(self, calls: Iterable[Call], *, durability: Durability = None) -> int:
        """Store the jobs of many calls and return how many, those whose id was there already included.

        Takes any iterable and sends it in chunks, so memory stays constant; jobs of one queue keep their order. With
        ``durability="fsync"`` a chunk counts as stored when it is on the store's disk (see `Task.options`). If anything
        goes wrong part of the way, raises `EnqueueInterrupted`, which says how many are stored for good; its
        ``__cause__`` is what went wrong.

        >>> app = Spool("sqlite://:memory:")
        >>> @app.task
        ... def square(number: int) -> int:
        ...     return number * number
        >>> app.enqueue_many(square.call(number) for number in range(1000))
        1000
        """
        self.check_sync("enqueue_many", "aenqueue_many")
        bulk = Bulk(durability)
        try:
            for call in calls:
                for verb in bulk.add(call):
                    bulk.acknowledge(verb, self.send(verb))
            for verb in bulk.rest():
                bulk.acknowledge(verb, self.send(verb))
        except Exception as error:
            raise bulk.interrupted(error) from error
        return bulk.acknowledged

    async def aenqueue_many(self, calls: Iterable[Call] | AsyncIterable[Call], *, durability: Durability = None) -> int:
        """As `enqueue_many`, in the running event loop; also takes an async iterable."""
        bulk = Bulk(durability)
        try:
            if isinstance(calls, AsyncIterable):
                async for call in calls:
                    for verb in bulk.add(call):
                        bulk.acknowledge(verb, await self.asend(verb))
            else:
                for call in calls:
                    for verb in bulk.add(call):
                        bulk.acknowledge(verb, await self.asend(verb))
            for verb in bulk.rest():
                bulk.acknowledge(verb, await self.asend(verb))
        except Exception as error:
            raise bulk.interrupted(error) from error
        return bulk.acknowledged

    # Looking up

    def job(self, id: str, queue: str | None = None) -> Job:
        """Return all that is known of a job, by ``queue/id``, or by id and queue.

        By the id alone it is looked for in every queue. Raises `JobNotFound`, and `ConfigError` for an id that several
        queues have.
        """
        self.check_sync("job", "ajob")
        return run(self.broker, self._look_up(id, queue))

    async def ajob(self, id: str, queue: str | None = None) -> Job:
        """As `job`, in the running event loop."""
        return await arun(self.broker, self._look_up(id, queue))

    def _look_up(self, id: str, queue: str | None) -> Steps[Job]:
        return look_up(id, (queue,) if queue else None, (task.settings.queue for task in self._tasks.values()))

    def jobs(
        self,
        *,
        id: str | Iterable[str] | None = None,
        queue: str | Iterable[str] | None = None,
        state: StateName | Iterable[StateName] | None = None,
        task: str | Task[..., Any] | None = None,
        error: str | None = None,
        since: When | None = None,
        until: When | None = None,
        key: str | None = None,
        search: str | None = None,
    ) -> Selection:
        """Return the jobs that meet all of these; None is any. See `Selection` for what can be done with them.

        By ``queue/id`` or id, queue and state, one or several; by task; by key; by what is their id, ``queue/id``, task
        or key (``search``); by text that the last error, ``Type: message``, contains; by when the job ended, or if it
        has not, was created, in since ≤ t < until. A time is a datetime with a zone, or before now, by the store's
        clock: a timedelta or a number of seconds. Raises `ConfigError`.
        """
        chosen = criteria(
            id=id, queue=queue, state=state, task=task, error=error, since=since, until=until, key=key, search=search
        )
        results = (task.settings.result_ttl for task in self._tasks.values())
        return Selection(self, chosen, remember=max(self.dedupe_window, *results, 0))


def _kind(fn: Callable[..., Any], *, process: bool) -> TaskKind:
    if isinstance(fn, Task) or not callable(fn):
        raise ConfigError(f"a task is made of a function, not of {fn!r}")
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise ConfigError(f"a task returns one result: {fn.__qualname__} is a generator")
    if inspect.iscoroutinefunction(fn):
        if process:
            raise ConfigError(f"process=True is for def, not for async def: {fn.__qualname__}")
        return "async"
    return "process" if process else "thread"
