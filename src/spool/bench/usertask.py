"""A task of the user's own as a load: found by its name, checked at once, and run on the store of the benchmark alone.

The user's app is not run itself. The workers get an app with that one task, declared as the user declared it, around
which each start is noted by the job's id; with the middlewares and lifespans of the user's app; and while they live,
what the user's code enqueues goes to the store of the benchmark too, where nobody runs it.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec

from spool.app import Spool
from spool.bench.plan import TaskCall
from spool.bench.timing import TIMED, Timing
from spool.broker import Broker
from spool.errors import ConfigError, PayloadError
from spool.executor import current_job
from spool.job import Priority
from spool.nursery import load_task
from spool.settings import TaskSettings
from spool.task import Call, Configured, Handle, Task

Noted = list[tuple[str, int]]
"""Of each start the job's id, and the time."""


class UserTask:
    """A call of a task, checked as `Task.enqueue` checks it.

    Raises `ConfigError` or `TaskUnknown` if there is no such task, `ArgumentError` for arguments that do not fit it,
    `PayloadError` for some that cannot be stored, and whatever its module raises.
    """

    def __init__(self, call: TaskCall) -> None:
        app, self._task = load_task(call.target)
        if app is None:
            raise ConfigError(f"{call.target}: its app is not in that module: name the task as module:app:task")
        self._app = app
        self._args, self._kwargs = _typed(self._task, call)
        self._task.call(*self._args, **self._kwargs)

    @property
    def settings(self) -> TaskSettings:
        """What the task is declared with."""
        return self._task.settings

    @property
    def size(self) -> int:
        """Bytes of the arguments as they are stored."""
        return len(self._task.signature.write(self._args, self._kwargs, self._app.max_payload))

    def sender(self, broker: str | Broker, queue: str, priority: Priority) -> tuple[Spool, Calls]:
        """Return an app on a broker, and what enqueues there."""
        app = Spool(broker, max_payload=self._app.max_payload, dedupe_window=self._app.dedupe_window)
        settings = msgspec.structs.replace(self.settings, queue=queue, priority=priority)
        return app, Calls(Task[..., Any](self._task.fn, settings, app).options(), self._args, self._kwargs)

    def carrier(self, broker: Broker, queue: str, noted: Noted, timing: Timing | None = None) -> Spool:
        """Return the app that workers are to run: the task on a broker and queue, with its starts noted."""
        app, theirs, settings = Spool(broker), self._app, self.settings
        app.max_payload, app.dedupe_window = theirs.max_payload, theirs.dedupe_window
        fn = _noting(self._task, noted, timing)
        app.task(
            name=settings.name,
            queue=queue,
            priority=settings.priority,
            retries=settings.retry.retries,
            backoff=settings.retry.backoff,
            retry_on=settings.retry.retry_on,
            no_retry_on=settings.retry.no_retry_on,
            timeout=settings.timeout,
            result_ttl=settings.result_ttl,
            max_crashes=settings.max_crashes,
            on_disconnect=settings.on_disconnect,
            process=settings.kind == "process",
        )(fn)
        app.middlewares.extend(theirs.middlewares)

        @app.lifespan
        async def on_this_store(_: Spool) -> AsyncGenerator[None]:
            with theirs.using(broker):
                yield

        for lifespan in theirs.lifespans:
            app.lifespan(_for_app(lifespan, theirs))
        return app


class Calls:
    """Enqueues the same call again and again. Takes what jobs of the other kinds carry, and leaves it."""

    def __init__(self, task: Configured[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._task, self._args, self._kwargs = task, args, kwargs

    def call(self, _data: str, _number: int) -> Call:
        return self._task.call(*self._args, **self._kwargs)

    def enqueue(self, _data: str, _number: int) -> Handle[Any]:
        return self._task.enqueue(*self._args, **self._kwargs)

    async def aenqueue(self, _data: str, _number: int) -> Handle[Any]:
        return await self._task.aenqueue(*self._args, **self._kwargs)


def _typed(task: Task[..., Any], call: TaskCall) -> tuple[Sequence[Any], Mapping[str, Any]]:
    try:
        payload = msgspec.msgpack.encode([call.args, call.kwargs])
    except (OverflowError, RecursionError) as error:
        raise PayloadError(f"task {task.name!r}: the arguments cannot be stored: {error}") from error
    return task.read_arguments(payload)


def _noting(task: Task[..., Any], noted: Noted, timing: Timing | None) -> Callable[..., Any]:
    """Wrap the task's function, of whatever kind, so that each start is noted first; its signature stays."""
    fn, note, now = task.fn, noted.append, time.monotonic_ns
    ran = timing.ran if timing is not None else None
    every = timing.every if timing is not None else 1
    turns = itertools.cycle([turn == TIMED for turn in range(every)])  # it is told no number, so it counts
    if task.settings.kind == "async":

        @functools.wraps(fn)
        async def noting_async(*args: Any, **kwargs: Any) -> Any:
            note((current_job().id, began := now()))
            if ran is None or not next(turns):
                return await fn(*args, **kwargs)
            try:
                return await fn(*args, **kwargs)
            finally:
                ran(began)

        return noting_async

    @functools.wraps(fn)
    def noting(*args: Any, **kwargs: Any) -> Any:
        note((current_job().id, began := now()))
        if ran is None or not next(turns):
            return fn(*args, **kwargs)
        try:
            return fn(*args, **kwargs)
        finally:
            ran(began)

    return noting


def _for_app(
    lifespan: Callable[[Spool], AbstractAsyncContextManager[Any]], app: Spool
) -> Callable[[Spool], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def surrounding(_: Spool) -> AsyncGenerator[None]:
        async with lifespan(app):
            yield

    return surrounding
