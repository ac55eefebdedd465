"""Run one attempt of a job, on the event loop, in a thread or in a process, and say how it ended. Knows no broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic, monotonic_ns
from typing import Any, Final, Protocol

import msgspec

from spool.app import CallNext, Middleware, Spool
from spool.broker import Settlement
from spool.errors import Cancel, Release, SpoolError, StoreCorrupt
from spool.executor.attempt import (
    FOREVER,
    Failure,
    Lease,
    Recipe,
    Run,
    StopReason,
    cancelled,
    crashed,
    current_run,
    describe,
    done,
    failed,
    judge,
    released,
    unheard,
)
from spool.executor.context import JobContext, current_job
from spool.executor.pool import ProcessDied, RemoteFailure
from spool.executor.threads import Threads
from spool.job import NIL, VERSION, Record, encode_record, read_record
from spool.opaque import Refused
from spool.report import Meter
from spool.retry import RetryPolicy
from spool.task import Task

__all__ = ["Executor", "Intake", "JobContext", "Lease", "Pool", "Run", "current_job"]

logger = logging.getLogger("spool.worker")

Finish = Callable[[Run], None]

AGAIN: Final = 5.0
"""Seconds until a job that this worker cannot read yet, or does not know, is offered again."""

_UNSET: Final = object()


class Pool(Protocol):
    """Runs attempts of ``process=True`` tasks; `Processes` is one."""

    def run(self, run: Run, body: bytes) -> Awaitable[Any]:
        """Run the attempt of the record that ``body`` encodes, and return its result: a `msgspec.Raw` if encoded."""
        ...


class Executor:
    """Runs attempts for one worker process.

    ``worker`` is the name that its attempts carry. ``threads`` bounds how many ``def`` tasks run at a time;
    ``processes`` runs those with ``process=True``. ``stubborn`` is called with each run on the loop or in a thread that
    goes on ``kill_after`` seconds after it was told that time is up or the lease lost; ``due`` with the time of the
    next timeout (monotonic), before the job in question starts. ``record_logs`` is meant for tasks that do not say.
    Raises `ConfigError` for a task whose annotations cannot be used.

    **Timeouts and other stops.** An async task is cancelled; what it returns after that does not count. A thread gets a
    CancelledError, which Python delivers only between two bytecodes: a thread that waits in C, for a lock, a socket or
    ``time.sleep``, goes on until that returns. A process gets SIGTERM, which raises CancelledError in the task, and
    after a grace time SIGKILL; only this process is replaced. An attempt is settled when it has ended, never before:
    one on the loop or in a thread that goes on ends only with the whole worker process (``stubborn``).
    """

    def __init__(
        self,
        app: Spool,
        worker: str,
        *,
        threads: int = 100,
        processes: Pool | None = None,
        kill_after: float = 5.0,
        stubborn: Finish = lambda _: None,
        due: Callable[[float], None] = lambda _: None,
        record_logs: bool = False,
    ) -> None:
        self.worker = worker
        self.kill_after = kill_after
        self._stubborn = stubborn
        self._app = app
        self._record_logs = record_logs or app.record_logs
        self._loop = asyncio.get_running_loop()
        self._chain = _compose(app.middlewares)
        self._threads = Threads(threads, self._loop)
        self._processes = processes
        self._deadlines = Deadlines(self._loop, lambda run: self.stop(run, "timeout"), due)

    @property
    def records(self) -> bool:
        """Whether log lines of any task are to be recorded."""
        words = [task.settings.record_logs for task in self._app.tasks.values()]
        return any(self._record_logs if word is None else word for word in words)

    def intake(self, queue: str, finish: Finish, lease: Lease = FOREVER, note: Finish = unheard) -> Intake:
        """Return what starts the jobs of one queue; ``finish`` is called with each run when it has ended.

        ``note`` is called, in any thread, with each that has something to say (`Recipe`). A job whose turn comes when
        ``lease`` has run out is not started: it ends without a settlement.
        """
        recipes = {name: self._recipe(task, queue, finish, lease, note) for name, task in self._app.tasks.items()}
        return Intake(self, queue, recipes, finish)

    def stop(self, run: Run, reason: StopReason) -> None:
        """Make a run end. The first reason counts, but "lost" outdoes the others. Nothing happens to one that ended."""
        if run.ended or (run.stop is not None and reason != "lost"):
            return
        run.stop = reason
        if reason in ("timeout", "lost") and run.began and run.recipe.kind != "process":
            self._loop.call_later(self.kill_after, self._look_after, run)
        if run.inner is not None:
            run.inner.stop()
        elif run.task is not None:
            run.task.cancel()
            if not run.began:  # then not even its first line will run
                self.end(run, self._stopped(run, None))

    def refuse(self, run: Run, error: SpoolError) -> Settlement:
        """Return how a run is settled whose result cannot be brought to the store: as dead, by an error of ours."""
        return failed(run, msgspec.structs.replace(describe(error), traceback=""))

    def end(self, run: Run, settlement: Settlement | None) -> None:
        """End a run that never began; ``finish`` is called later, never from within."""
        run.settlement, run.ended = settlement, monotonic_ns()
        self._loop.call_soon(run.recipe.finish, run)

    def _drop(self, run: Run) -> None:
        """End a run that may be another worker's by now."""
        run.task, run.stop = None, "lost"
        self.end(run, None)

    @property
    def due(self) -> float:
        """When the next timeout is, as `Deadlines.first`."""
        return self._deadlines.first

    def _look_after(self, run: Run) -> None:
        if not run.ended:
            self._stubborn(run)

    def late(self, run: Run) -> Settlement:
        """Return how a run that does not end at its timeout is settled by who ends its process. From any thread."""
        timeout = run.recipe.timeout or 0.0
        late = f"not done within its timeout of {timeout:g} s, nor {self.kill_after:g} s later: its process was killed"
        return failed(run, _judge(run, TimeoutError(late)))

    def close(self) -> None:
        """Let the threads end when they are through. Processes belong to whoever made them."""
        self._threads.close()

    def _recipe(self, task: Task[..., Any], queue: str, finish: Finish, lease: Lease, note: Finish) -> Recipe:
        plain = task.settings.kind == "async" and self._chain is None
        window = self._app.dedupe_window
        recipe = Recipe.of(
            task,
            queue,
            self.worker,
            finish,
            window=window,
            plain=plain,
            lease=lease,
            record_logs=self._record_logs,
            note=note,
        )
        if recipe.kind == "process":
            return msgspec.structs.replace(recipe, encode=_pass_encoded(recipe.encode))
        return recipe

    # One attempt

    async def attempt(self, run: Run) -> None:
        """Run it and settle it, whatever happens. The hot path: what can be done per batch or task is not done here."""
        recipe = run.recipe
        began = monotonic_ns()
        if began > recipe.lease.until:
            self._drop(run)
            return
        run.began = began
        current_run.set(run)
        args = result = _UNSET
        try:
            if recipe.timeout is not None:
                self._deadlines.add(run, recipe.timeout)
            if recipe.plain:
                args, kwargs = recipe.read(run.record.payload)
                result = await recipe.fn(*args, **kwargs)
            else:
                result = await self._invoke(run)
            run.ended = monotonic_ns()
            if run.stop is None:
                run.settlement = done(run, recipe.encode(result))
            else:
                run.settlement = self._stopped(run, None)
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - a task may raise anything; SystemExit is meant for it, not for us
            run.ended = run.ended or monotonic_ns()
            read = not recipe.plain or args is not _UNSET
            run.settlement = self._broken(run, error, final=not read or result is not _UNSET)
        if recipe.timeout is not None:
            self._deadlines.discard(run, recipe.timeout)
        run.task = None  # its context holds the run: a cycle, which only the collector would find
        recipe.finish(run)

    async def _invoke(self, run: Run) -> Any:
        """Run what is not a plain async task: in a thread, in a process, or with middleware around it."""
        call = self._in_process if run.recipe.kind == "process" else self._here(run)
        return await (call(run) if self._chain is None else self._chain(JobContext(run), lambda: call(run)))

    def _here(self, run: Run) -> Callable[[Run], Awaitable[Any]]:
        recipe = run.recipe
        try:
            args, kwargs = recipe.read(run.record.payload)
        except Exception as error:
            raise _Misfit from error
        if recipe.kind == "thread":
            return lambda run: self._threads.run(run, recipe.fn, args, kwargs)
        return lambda _: recipe.fn(*args, **kwargs)

    def _in_process(self, run: Run) -> Awaitable[Any]:
        if self._processes is None:
            raise RuntimeError("this worker has no process pool: its pool size is 0")
        # Again as bytes: the process reads the arguments itself, and decides about a retry.
        return self._processes.run(run, encode_record(run.record))

    # How it ended

    def _broken(self, run: Run, error: BaseException, *, final: bool) -> Settlement | None:
        """Settle an attempt that raised; ``final``: arguments or result do not fit, and trying again cannot help."""
        try:
            if run.stop is not None:
                return self._stopped(run, error)
            if isinstance(error, _Misfit):
                return failed(run, describe(error.__cause__ or error))
            return failed(run, describe(error)) if final else _raised(run, error)
        except Exception as problem:  # noqa: BLE001 - a job must not hang because its error is beyond description
            return failed(run, describe(problem))

    def _stopped(self, run: Run, error: BaseException | None) -> Settlement | None:
        match run.stop:
            case "timeout":
                late = TimeoutError(f"not done within its timeout of {run.recipe.timeout:g} s")
                late.__traceback__ = error.__traceback__ if error else None
                return failed(run, _judge(run, late))
            case "cancelled":
                return cancelled(run, run.reason or ("cancelled while running" if run.began else "cancelled"))
            case "stopped":
                return released(run, "stopped", 0)
            case _:
                return None


class Intake:
    """Starts the jobs of one queue. Made by `Executor.intake`."""

    def __init__(self, executor: Executor, queue: str, recipes: Mapping[str, Recipe], finish: Finish) -> None:
        self.queue = queue
        self._executor = executor
        self._attempt = executor.attempt
        self._recipes = recipes
        self._unreadable = _unreadable(queue, executor.worker, finish)
        self._loop = asyncio.get_running_loop()

    def meters(self) -> list[Meter]:
        """Return what counts its attempts, by task. From any thread."""
        return [recipe.meter for recipe in (*self._recipes.values(), self._unreadable)]

    def start(self, id: str, fence: int, body: bytes, tally: str, offset: int) -> Run:
        """Start a claimed job. ``offset`` is the store's time of the claim less the monotonic clock's, in milliseconds.

        Never raises: a record that cannot be read, or is `Refused`, ends as dead, one of a newer layout or with an
        unknown task is handed back. ``finish`` is called later, never from within.
        """
        try:
            record = read_record(body)
            recipe = self._recipes[record.task]
        except (StoreCorrupt, KeyError) as error:
            run = Run(self._unreadable, id, fence, _NO_RECORD, tally, offset)
            self._executor.end(run, self._refuse(run, body, error))
            return run
        if record.options is not None:
            recipe = recipe.overridden(record.options)
        run = Run(recipe, id, fence, record, tally, offset)
        if record.expires is not None and record.expires < run.started:
            self._executor.end(run, cancelled(run, "expired"))
            return run
        # Made directly: `create_task` of both loops goes through more Python for the same object.
        run.task = asyncio.Task(self._attempt(run), loop=self._loop, name=id)
        return run

    def _refuse(self, run: Run, body: bytes, error: Exception) -> Settlement:
        if isinstance(error, KeyError) or _is_newer(body):
            logger.warning("%s/%s is not for this worker: %s", run.queue, run.id, error)
            return released(run, "released", AGAIN)
        if isinstance(body, Refused):
            return failed(run, msgspec.structs.replace(describe(body.error), traceback=""))
        return failed(run, msgspec.structs.replace(describe(error), error_type="Undecodable", traceback=""))


class Deadlines:
    """Calls ``expire`` with each run whose time is up, and ``due`` with the time of the next, 0 for none. One timer.

    Runs with the same timeout come due in the order in which they are added: so each timeout has a line of its own, and
    only the heads of the lines are compared, when the timer fires.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, expire: Finish, due: Callable[[float], None] = lambda _: None
    ) -> None:
        self._loop = loop
        self._expire = expire
        self._due = due
        self._lines: dict[float, dict[Run, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0

    def add(self, run: Run, timeout: float) -> None:
        """Expire this run in ``timeout`` seconds."""
        when = monotonic() + timeout
        self._lines.setdefault(timeout, {})[run] = when
        if self._timer is None or when < self._armed:
            self._arm(when)

    def discard(self, run: Run, timeout: float) -> None:
        """Forget a run that has ended. The timer stays, to look again when it fires."""
        line = self._lines.get(timeout)
        if line is not None:
            line.pop(run, None)
            if not line:
                del self._lines[timeout]

    @property
    def first(self) -> float:
        """When the next timeout is (monotonic), 0 for none. From any thread, if not quite up to date."""
        try:
            return min((next(iter(line.values()), 0.0) for line in list(self._lines.values())), default=0.0)
        except RuntimeError:  # changed meanwhile
            return self._armed

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = when
        self._due(when)
        self._timer = self._loop.call_later(max(0.0, when - monotonic()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = monotonic()
        late = [run for line in self._lines.values() for run in _until(line, now)]
        for run in late:
            self._lines[run.recipe.timeout or 0.0].pop(run, None)
            self._expire(run)
        self._lines = {timeout: line for timeout, line in self._lines.items() if line}
        if self._lines:
            self._arm(min(next(iter(line.values())) for line in self._lines.values()))
        else:
            self._due(0.0)


def _until(line: Mapping[Run, float], now: float) -> list[Run]:
    late: list[Run] = []
    for run, when in line.items():
        if when > now:
            break
        late.append(run)
    return late


class _Misfit(Exception):
    """The arguments cannot be read; the cause says why."""


def _raised(run: Run, error: BaseException) -> Settlement:
    match error:
        case Cancel():
            return cancelled(run, error.reason)
        case Release():
            return released(run, "released", error.delay)
        case RemoteFailure():
            return failed(run, error.failure)
        case ProcessDied():
            return crashed(run, str(error))
        case _:
            return failed(run, _judge(run, error))


def _judge(run: Run, error: BaseException) -> Failure:
    return judge(error, run.recipe.policy, run.read_tally()[0].failures + 1)


def _compose(middlewares: Sequence[Middleware]) -> Callable[[JobContext, CallNext], Awaitable[Any]] | None:
    """Return one callable for all of them, the first outermost; None for none, which costs an attempt nothing."""
    chain: Callable[[JobContext, CallNext], Awaitable[Any]] | None = None
    for middleware in reversed(middlewares):
        chain = middleware if chain is None else _around(middleware, chain)
    return chain


def _around(outer: Middleware, inner: Middleware) -> Middleware:
    return lambda context, call_next: outer(context, lambda: inner(context, call_next))


def _pass_encoded(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    # What comes from a process is encoded there; a middleware may have put a value of its own in its place.
    return lambda result: bytes(result) if type(result) is msgspec.Raw else encode(result)


def _is_newer(body: bytes) -> bool:
    try:
        version = msgspec.msgpack.decode(body)[0]
    except Exception:  # noqa: BLE001 - then it is not a record at all
        return False
    return isinstance(version, int) and version > VERSION


def _nothing(*_: object) -> Any:
    raise AssertionError("a job that cannot be read is not run")


_NO_RECORD: Final = Record(VERSION, "", 2, 0, 1, "", 0, NIL)


def _unreadable(queue: str, worker: str, finish: Finish) -> Recipe:
    return Recipe(
        queue,
        worker,
        finish,
        "",
        "async",
        plain=True,
        fn=_nothing,
        read=_nothing,
        encode=_nothing,
        policy=RetryPolicy(),
        timeout=None,
        keep=False,
        window=0,
        ttl=0,
        meter=Meter(""),
        runs_on=False,
    )
