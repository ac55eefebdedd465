"""Test code that uses Spool: in memory, in this process, with the time in your hands.

`isolated` gives an app a store of its own for the length of a ``with`` block; in it, `enqueued` says what was enqueued
and `run_until_idle` runs it. In a block of `inline` every job runs as soon as it is enqueued. Arguments, results,
retries, timeouts and middlewares are those of a real worker; ``process=True`` tasks run in threads.

>>> from spool import Spool, testing
>>> app = Spool()
>>> @app.task
... def greet(name: str) -> str:
...     return f"Hello {name}"
>>> with testing.isolated(app):
...     handle = greet.options(delay=3600).enqueue("Ada")
...     [(job.task, job.arguments, job.delay) for job in testing.enqueued(app)]
...     testing.run_until_idle(app), testing.run_until_idle(app, advance=3600)
...     handle.result()
[('greet', {'name': 'Ada'}, 3600.0)]
(0, 1)
'Hello Ada'
>>> with testing.inline(app):
...     greet.enqueue("Grace").result()
'Hello Grace'

With pytest:

```python
@pytest.fixture(autouse=True)
def spool():
    with testing.isolated(app):
        yield
```
"""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec.structs import replace

from spool.app import Spool
from spool.broker import (
    Around,
    Beat,
    Broker,
    Claim,
    Enqueue,
    Enqueued,
    Get,
    Heartbeat,
    Load,
    NewJob,
    Note,
    Retire,
    Retried,
    Settle,
    Verb,
)
from spool.broker.sqlite import SqliteBroker
from spool.broker.sqlite.thread import read_clock
from spool.errors import BrokerError, ConfigError, ProtectionError, ResultTimeout
from spool.executor import Executor, Intake
from spool.executor.attempt import Run
from spool.executor.pool import Processes
from spool.executor.recording import note_of, recording
from spool.job import PRIORITIES, Priority, Snapshot, new_id, read_record
from spool.settings import seconds

R = TypeVar("R")

CONCURRENCY: Final = 100
LOOK: Final = 0.01
"""Seconds between two looks for new jobs while others run: what runs may wait for what it enqueued."""
LEASE: Final = 10_000
"""Milliseconds for which a job is held if this process dies on a store that others use too."""
BEAT: Final = 1.0
"""Seconds between two beats there, whatever the event loop is busy with."""
SANDBOX_LEASE: Final = 1_000_000_000
"""The same in memory: there time may pass in no time, and the jobs are gone with the process."""


class EnqueuedJob(msgspec.Struct, frozen=True):
    """A job as it was enqueued: ``arguments`` by the parameter's name, of the annotated types; ``delay`` in seconds."""

    queue: str
    id: str
    task: str
    arguments: dict[str, Any]
    delay: float
    priority: Priority
    headers: dict[str, str]
    key: str | None = None


@contextmanager
def isolated(app: Spool) -> Generator[None]:
    """Give the app an empty store in memory; its jobs run when `run_until_idle` is called, and else not.

    Waiting for the result of a job that has not run raises `ResultTimeout` at once: it would wait for ever.
    """
    with _sandbox(app, inline=False):
        yield


@contextmanager
def inline(app: Spool) -> Generator[None]:
    """As `isolated`, but each job runs within the call that enqueues it, and so do its retries, without their delays.

    Jobs enqueued for later (``delay=``, ``at=``) wait for a `run_until_idle` that goes so far.
    """
    with _sandbox(app, inline=True):
        yield


def enqueued(app: Spool) -> list[EnqueuedJob]:
    """Return what was enqueued since the block of `isolated` or `inline` began, in that order.

    Raises `ConfigError` outside of such a block.
    """
    return [_describe(app, *each) for each in _sandbox_of(app).sent]


def run_until_idle(app: Spool, *, advance: float | dt.timedelta = 0) -> int:
    """Run all that is ready, and what that enqueues in turn; return how many attempts that were.

    With ``advance`` time passes meanwhile, so many seconds or a timedelta, in no time: jobs and retries that become due
    are run in their order. Raises `ConfigError` for it outside of a block of `isolated` or `inline`; without it,
    any store will do: there this is a worker as any, whose jobs those at work get 10 seconds after it was killed. It
    waits for nobody's lease itself: where no worker stays, what a killed call held stays held.
    """
    app.check_sync("run_until_idle", "arun_until_idle")
    return asyncio.run(arun_until_idle(app, advance=advance))


async def arun_until_idle(app: Spool, *, advance: float | dt.timedelta = 0) -> int:
    """As `run_until_idle`, in the running event loop."""
    ahead = round(seconds("advance", advance) * 1000)
    if ahead:
        _sandbox_of(app)
    broker = app.broker
    if isinstance(broker, _Sandbox):
        return await broker.run(ahead, app)
    async with _driver(app, broker, LEASE, lifespans=True) as driver, driver.beating():
        return await driver.run()


class _Clock:
    """The clock of a store in which time can be made to pass."""

    ahead = 0

    def __call__(self) -> tuple[int, int]:
        wall, boot = read_clock()
        return wall + self.ahead, boot + self.ahead


class _Sandbox(Around):
    """A broker in memory that keeps what was enqueued, and with ``inline`` runs it there and then."""

    def __init__(self, app: Spool, *, inline: bool) -> None:
        self.sent: list[tuple[str, NewJob, int]] = []
        self._app = app
        self._inline = inline
        self._clock = _Clock()
        super().__init__(SqliteBroker("sqlite://:memory:", clock=self._clock))
        self._loop: asyncio.AbstractEventLoop | None = None

    def call(self, verb: Verb[R]) -> R:
        reply = self._broker.call(verb)
        if isinstance(verb, Enqueue) and self._note(verb, cast("Enqueued", reply)):
            self._wait_for(self.run())
        return reply

    async def acall(self, verb: Verb[R]) -> R:
        reply = await self._broker.acall(verb)
        if isinstance(verb, Enqueue) and self._note(verb, cast("Enqueued", reply)):
            await self.run()
        return reply

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        snapshot = self._broker.call(Get(queue, id))
        if self._loop is None or snapshot is None or snapshot.state.terminal:
            return _settled(snapshot)
        return self._broker.ended(queue, id, timeout)

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        snapshot = await self._broker.acall(Get(queue, id))
        if self._loop is None or snapshot is None or snapshot.state.terminal:
            return _settled(snapshot)
        return await self._broker.aended(queue, id, timeout)

    async def run(self, ahead: int = 0, app: Spool | None = None) -> int:
        """Run all that is ready and all that becomes so while the clock goes on by so many milliseconds."""
        outermost = self._loop is None
        if outermost:
            self._loop = asyncio.get_running_loop()
        end = self._clock.ahead + ahead
        try:
            async with _driver(
                app or self._app, self._broker, SANDBOX_LEASE, lifespans=outermost, at_once=self._inline
            ) as driver:
                ran = last = await driver.run()
                while self._pass(driver.next_at, end, moved=bool(last)):
                    last = await driver.run()
                    ran += last
            self._clock.ahead = max(end, self._clock.ahead)
            return ran
        finally:
            if outermost:
                self._loop = None

    def _pass(self, due: int | None, end: int, *, moved: bool) -> bool:
        """Let time pass until something is due, unless that is after the end."""
        if due is None:
            return False
        step = max(due - self._clock()[0], 0)
        if self._clock.ahead + step > end or not (step or moved):
            return False
        self._clock.ahead += step
        return True

    def _note(self, verb: Enqueue, reply: Enqueued) -> bool:
        there = {*reply.existing, *reply.conflicts}
        self.sent += [(verb.queue, job, reply.now) for job in verb.jobs if job.id not in there]
        return self._inline and len(there) < len(verb.jobs)

    def _wait_for(self, running: Coroutine[Any, Any, int]) -> None:
        if self._loop is None:
            asyncio.run(running)
        else:  # a job in a thread enqueues another: as in a worker, all of them share one loop
            asyncio.run_coroutine_threadsafe(running, self._loop).result()


def _settled(snapshot: Snapshot | None) -> Snapshot | None:
    if snapshot is not None and not snapshot.state.terminal:
        raise ResultTimeout(
            f"{snapshot.queue}/{snapshot.id} is {snapshot.state}, and nothing runs it here by itself: "
            "call spool.testing.run_until_idle"
        )
    return snapshot


@contextmanager
def _sandbox(app: Spool, *, inline: bool) -> Generator[None]:
    sandbox = _Sandbox(app, inline=inline)
    try:
        with app.using(sandbox, plain=True):
            yield
    finally:
        sandbox.close()


def _sandbox_of(app: Spool) -> _Sandbox:
    broker = app.broker
    if not isinstance(broker, _Sandbox):
        raise ConfigError("this works only inside of `with spool.testing.isolated(app)` or `inline(app)`")
    return broker


def _describe(app: Spool, queue: str, job: NewJob, now: int) -> EnqueuedJob:
    record = read_record(job.record)
    arguments: dict[str, Any] = {}
    if task := app.tasks.get(record.task):  # another app may share the store
        args, kwargs = task.read_arguments(record.payload)
        arguments = inspect.signature(task.fn).bind(*args, **kwargs).arguments
    delay = max(job.delay, job.due - now, 0) / 1000
    return EnqueuedJob(
        queue, job.id, record.task, arguments, delay, PRIORITIES[record.priority], record.headers or {}, record.key
    )


class _Line:
    """A queue that is worked on."""

    def __init__(self, name: str, executor: Executor, changed: asyncio.Event) -> None:
        self.name = name
        self.claims = 0
        self.settles = 0
        self.running: set[Run] = set()
        self.finished: list[Run] = []
        self.next_at: int | None = None
        self._changed = changed
        self.intake: Intake = executor.intake(name, self._finish)

    def _finish(self, run: Run) -> None:
        self.finished.append(run)
        self._changed.set()


class _Driver:
    """A worker that stops when there is nothing to do. With ``at_once`` retries have no delay."""

    def __init__(self, app: Spool, broker: Broker, executor: Executor, lease: int, *, at_once: bool) -> None:
        self._me = new_id()
        self._lease = lease
        self._app = app
        self._broker = broker
        self._executor = executor
        self._at_once = at_once
        self._changed = asyncio.Event()
        self._lines: dict[str, _Line] = {}
        self._ran = 0

    @property
    def next_at(self) -> int | None:
        """When the store has something to do next, in its time."""
        return min((line.next_at for line in self._lines.values() if line.next_at is not None), default=None)

    async def run(self) -> int:
        """Run until nothing runs and nothing is ready; return how many attempts that were."""
        before, busy = self._ran, True
        while busy:
            busy = False
            for queue in await self._queues():
                line = self._lines.get(queue) or _Line(queue, self._executor, self._changed)
                self._lines[queue] = line
                busy |= await self._settle(line)
                busy |= await self._claim(line)
            if any(line.running for line in self._lines.values()):
                busy = True
                await self._change()
        return self._ran - before

    @asynccontextmanager
    async def beating(self) -> AsyncGenerator[None]:
        """Keep the leases in a thread: a job may hold the event loop for longer than they last."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                for queue in list(self._lines):
                    with suppress(BrokerError):  # whoever runs the jobs finds out
                        self._broker.call(Beat(queue, [Heartbeat(self._me, self._lease)]))

        thread = threading.Thread(target=beat, name="spool-testing-beats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            await asyncio.to_thread(thread.join)

    async def retire(self) -> None:
        for line in self._lines.values():
            await self._broker.acall(Retire(line.name, self._me))

    async def _queues(self) -> list[str]:
        names = [task.settings.queue for task in self._app.tasks.values()]
        cursor: str | None = ""
        while cursor is not None:
            page = await self._broker.acall(Load("queue", cursor))
            names += [document.key for document in page.documents]
            cursor = page.cursor or None
        return list(dict.fromkeys(names))

    async def _claim(self, line: _Line) -> bool:
        free = CONCURRENCY - len(line.running)
        if not free:
            return False
        beat = Heartbeat(self._me, self._lease, tuple(self._app.tasks))
        unwanted = (await self._broker.acall(Beat(line.name, [beat]))).orders[0].cancel
        for run in [run for run in line.running if run.id in unwanted]:
            self._executor.stop(run, "cancelled")
        line.claims += 1
        reply = await self._broker.acall(Claim(line.name, self._me, line.claims, (free, free)))
        offset = reply.now - time.monotonic_ns() // 1_000_000
        line.next_at = reply.next_at
        for id, body in reply.jobs:
            line.running.add(line.intake.start(id, line.claims, body, reply.tallies.get(id, ""), offset))
        self._ran += len(reply.jobs)
        return bool(reply.jobs)

    async def _settle(self, line: _Line) -> bool:
        batch, line.finished = line.finished, []
        if said := [note_of(run, run.journal.unsent()) for run in batch if run.journal is not None]:
            await self._broker.acall(Note(line.name, self._me, said))
        try:
            await self._tell(line, batch)
        except ProtectionError:  # of one of them: as a worker, let that one die alone
            for run in batch:
                try:
                    await self._tell(line, [run])
                except ProtectionError as error:
                    run.settlement = self._executor.refuse(run, error)
                    await self._tell(line, [run])
        line.running.difference_update(batch)
        return bool(batch)

    async def _tell(self, line: _Line, batch: list[Run]) -> None:
        settlements = [run.settlement for run in batch if run.settlement is not None]
        if self._at_once:
            settlements = [replace(each, delay=0) if isinstance(each, Retried) else each for each in settlements]
        if settlements:
            line.settles += 1
            await self._broker.acall(Settle(line.name, self._me, line.settles, settlements))

    async def _change(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self._changed.wait()
        self._changed.clear()


class _InThreads:
    """Stands in for the process pool."""

    async def run(self, run: Run, body: bytes) -> Any:  # noqa: ARG002 - what a process would read
        args, kwargs = run.recipe.read(run.record.payload)
        return await asyncio.to_thread(run.recipe.fn, *args, **kwargs)

    def close(self) -> None:
        """Nothing is to be closed."""


@asynccontextmanager
async def _driver(
    app: Spool, broker: Broker, lease: int, *, lifespans: bool, at_once: bool = False
) -> AsyncGenerator[_Driver]:
    async with AsyncExitStack() as stack:
        executor = Executor(app, "testing", threads=CONCURRENCY, processes=cast("Processes", _InThreads()))
        stack.callback(executor.close)
        stack.enter_context(recording(wanted=executor.records))
        for lifespan in app.lifespans if lifespans else ():
            await stack.enter_async_context(lifespan(app))
        driver = _Driver(app, broker, executor, lease, at_once=at_once)
        try:
            yield driver
        finally:
            await driver.retire()
