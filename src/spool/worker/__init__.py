"""The worker: claim, execute, settle. One `Worker` is one process; it lives one `Life` after the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final, Protocol

from spool.app import Spool
from spool.broker import Settlement
from spool.catalogue import publish
from spool.errors import ConfigError, SpoolError
from spool.executor import Executor
from spool.executor.attempt import Run
from spool.executor.pool import Processes
from spool.executor.recording import record
from spool.job import check_name
from spool.report import Rates, WorkerRow
from spool.worker.heartbeat import Heart, Keeper, Machine, resident
from spool.worker.life import HURRY, STUCK, Life
from spool.worker.lifespans import LEAVE, Lifespans, Stopped
from spool.worker.slots import Slots

logger = logging.getLogger("spool.worker")


PUBLISH_AGAIN: Final = 30.0
"""Seconds until the catalogue of tasks is tried again that could not be written."""


class Link(Keeper, Protocol):
    """A supervisor, as its worker sees it. From any thread.

    ``lifeline`` is a descriptor for the processes of the pool to keep open: their jobs are handed back, should this
    process die, when the last of them is gone.
    """

    lifeline: int

    def put_on_trial(self, queue: str, id: str) -> None:
        """Say which suspect is about to start."""
        ...

    def drain(self, reason: str) -> None:
        """Say that this worker claims no more and ends when its jobs have."""
        ...

    def due(self, at: float) -> None:
        """Say when the next timeout is, on the monotonic clock; 0: none."""
        ...

    async def die(self, late: Sequence[tuple[str, int, Settlement]]) -> None:
        """Ask to be killed, and for these settlements (queue, seq, settlement) afterwards."""
        ...


class Worker:
    """Runs the jobs of some queues of an app, in this process and event loop.

    ``queues``: default all that the app's tasks are declared for. ``concurrency``: jobs at a time on the loop and in
    threads (100). ``pool_size``: processes for ``process=True`` tasks (the number of CPUs if the app has such tasks,
    else 0). ``lease`` (10 s): how long the store waits for a sign of life. ``grace`` (30 s): what running jobs get when
    the worker is asked to stop. ``unroutable_after`` (None: never): the seconds after which jobs that are parked, since
    no worker knows their task, go to the dead letter queue. ``name``: shown with what its jobs did (``host:pid``).
    ``target`` (``module:attribute``) and ``url`` tell the pool's processes where app and broker are; only a pool needs
    them. ``max_jobs`` (None: no end): how many jobs to run before it ends. ``kill_after`` (5 s): what a job on the loop
    or in a thread gets to end in after its timeout. ``link`` is the way to a supervisor, which keeps the leases then
    and can end the process; without it a thread keeps them. ``trial``: run suspects only, one after the other.
    ``on_life`` is called with each incarnation that has registered itself. ``record_logs`` keeps the log lines of jobs
    whose task does not say otherwise.

    Raises `ConfigError` for what cannot be used.

    ```python
    worker = Worker(app, queues=["mail"])
    loop.add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()
    ```
    """

    def __init__(
        self,
        app: Spool,
        queues: Sequence[str] = (),
        *,
        concurrency: int = 100,
        pool_size: int | None = None,
        lease: float = 10.0,
        grace: float = 30.0,
        unroutable_after: float | None = None,
        name: str = "",
        target: str | None = None,
        url: str | None = None,
        max_jobs: int | None = None,
        kill_after: float = 5.0,
        link: Link | None = None,
        trial: bool = False,
        on_life: Callable[[str], None] | None = None,
        record_logs: bool = False,
    ) -> None:
        check_limits(queues, concurrency, pool_size, lease, grace, unroutable_after=unroutable_after)
        declared = [task.settings.queue for task in app.tasks.values()]
        self.app = app
        self.queues = list(dict.fromkeys(check_name("queue", queue) for queue in queues or declared or ["default"]))
        self.concurrency = concurrency
        self.pool_size = _pool_size(app, pool_size)
        self.lease = lease
        self.grace = self._grace = grace
        self.unroutable_after = unroutable_after
        self.machine = Machine()
        self.name = name or f"{self.machine.host}:{self.machine.pid}"
        self.stopping = self.quiet = False
        self._draining = False
        self.trial = trial
        self.condemned = False
        self._late: list[tuple[str, int, Settlement]] = []
        self.budget = math.inf if max_jobs is None else max_jobs
        self.kill_after = kill_after
        self._link = link
        self._began = int(time.time() * 1000)
        self._target = target
        self._url = url
        self._on_life = on_life
        self._record_logs = record_logs
        self._life: Life | None = None
        self._executor: Executor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._now = asyncio.Event()
        self._lifespans = Lifespans(app, grace)
        self._publishing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Ask the worker to stop: in order the first time, at once the second. From any thread or signal handler."""
        if self._loop is None:
            self._stop()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        running = self._life.running if self._life is not None else 0
        if self._draining and self._loop is not None:
            self._draining = False
            self._loop.call_later(self.grace, self._now.set)
            logger.info("worker %s stops; %d jobs run and get up to %g s", self.name, running, self.grace)
        elif self.stopping:
            self._now.set()
            logger.info("worker %s stops now and hands back %d jobs", self.name, running)
        elif self._publishing is None:
            logger.debug("worker %s stops before it was ready", self.name)
        else:
            logger.info("worker %s stops; %d jobs run and get up to %g s", self.name, running, self.grace)
        if self._loop is not None:
            self._lifespans.hurry() if self._now.is_set() else self._lifespans.stop()
        self.stopping = True
        if self._life is not None:
            self._life.wake()

    async def run(self) -> None:
        """Work until told to `stop`; then running jobs get ``grace`` seconds, and what is left is handed back.

        Stopping counts for no job as a failure. An outage of the store is waited out. Raises `ConfigError`,
        `BrokerRefused` or `StoreCorrupt` if the worker cannot begin at all, and what a lifespan raises. Cancelled, it
        stops at once. No lifespan holds it up: one that is being entered then is cancelled, and so is one that takes
        longer to leave than the rest of the grace, or 3 s if there is less.
        """
        self._loop = asyncio.get_running_loop()
        if not self.app.tasks:
            logger.warning("the app declares no tasks: all jobs will be parked; does its module import them?")
        async with AsyncExitStack() as stack:
            try:
                async with self._lifespans.cancelled(at_once=self.stopping):
                    self._executor = executor = await self._open_executor(stack)
                    keeper = self._link or self._open_heart(stack)
                    stack.push_async_callback(self._die)
                    await self._lifespans.enter(stack)
            except Stopped:
                return
            slots = Slots(self.concurrency, self.pool_size)
            survivors: list[Run] = []
            stack.callback(self._end_publishing)
            while not self.stopping:
                self._life = Life(self, executor, slots, keeper, survivors)
                await self._live(self._life)
                survivors = self._life.survivors()

    async def _die(self) -> None:
        if self.condemned and self._link is not None:
            await self._link.die(self._late)

    def _end_publishing(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()

    async def _publish(self) -> None:
        """Say what tasks there are, for those who have the store alone. Work does not wait for it, nor ends without."""
        while True:
            try:
                await publish(self.app.tasks.values(), self.app.broker)
            except SpoolError as error:
                logger.warning("the catalogue of tasks was not written, and will be tried again: %s", error)
                await asyncio.sleep(PUBLISH_AGAIN)
            else:
                return

    async def _open_executor(self, stack: AsyncExitStack) -> Executor:
        processes = None
        if self.pool_size:
            if self._target is None:
                raise ConfigError("a process pool needs to know where the app is: Worker(target='module:attribute')")
            lifeline = self._link.lifeline if self._link is not None else None
            processes = Processes(self._target, self.pool_size, url=self._url, lifeline=lifeline)
            stack.push_async_callback(self._close_processes, processes)
            await processes.start()
        executor = Executor(
            self.app,
            self.name,
            threads=self.concurrency,
            processes=processes,
            kill_after=self.kill_after,
            stubborn=self._condemn,
            due=self._link.due if self._link is not None else lambda _: None,
            record_logs=self._record_logs,
        )
        stack.callback(executor.close)
        if executor.records:
            stack.callback(record(ours=self._link is not None))
        return executor

    async def _close_processes(self, processes: Processes) -> None:
        in_order = self.app.lifespans and not self._now.is_set()
        await processes.aclose(LEAVE if in_order else 0.0)

    def _open_heart(self, stack: AsyncExitStack) -> Heart:
        heart = Heart(self.app.broker, self.lease)
        stack.callback(heart.stop)
        return heart

    def _condemn(self, run: Run) -> None:
        """End the whole process, since a job does not end when it must; what else runs here is handed back."""
        what = f"{run.queue}/{run.id} {run.record.task} goes on {self.kill_after:g} s after it was told: {run.stop}"
        if self._link is None:
            logger.error("%s; a worker without a supervisor cannot end it", what)
            return
        logger.error("%s; the process hands its other jobs back, and is killed", what)
        self.condemned = self.stopping = True
        self._now.set()
        self._lifespans.hurry()
        if self._life is not None:
            self._life.wake()

    async def _live(self, life: Life) -> None:
        try:
            await life.run()
            if not life.over:
                await life.close(self._grace, self._now, STUCK if self._link is None else HURRY)
            if self.condemned:
                self._late = life.late()
        except asyncio.CancelledError:
            self.stopping = True
            self._now.set()
            await life.close(0.0, self._now)
            raise
        finally:
            life.abandon()

    # For its lives

    def overrun(self, runs: Sequence[Run]) -> None:
        """End the process with these jobs, which do not end: nobody else may have them before."""
        what = f"{len(runs)} jobs go on although they were told to end: " + ", ".join(
            f"{run.queue}/{run.id} {run.record.task}" for run in runs[:20]
        )
        if self._link is None:
            logger.error("%s; a worker without a supervisor cannot end them, and hands them back as they are", what)
        else:
            logger.error("%s; the process is killed, and they are handed back then", what)
            self.condemned = True

    def put_on_trial(self, queue: str, id: str) -> None:
        """Tell the supervisor which suspect is about to start."""
        if self._link is not None:
            self._link.put_on_trial(queue, id)

    def be_quiet(self) -> None:
        """Claim no more, for good; what runs goes on, and the leases are kept. From any thread."""
        if not self.quiet:
            self.quiet = True
            logger.info("worker %s claims no more: it was told to be quiet", self.name)

    def drain(self, reason: str) -> None:
        """Stop claiming and end when the jobs that run have ended, however long that takes. From any thread."""
        if self._link is not None:
            self._link.drain(reason)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
                self._loop.call_soon_threadsafe(self._drain, reason)

    def _drain(self, reason: str) -> None:
        if self.stopping:
            return
        logger.info("worker %s ends when its jobs have: %s", self.name, reason)
        self.stopping = self._draining = True
        self._grace = math.inf
        if self._life is not None:
            self._life.wake()

    def blocked_by(self) -> Run | None:
        """Return the job whose step the event loop is in. From any thread."""
        task = asyncio.current_task(self._loop) if self._loop is not None else None
        return self._life.find(task) if self._life is not None and task is not None else None

    @property
    def due(self) -> float:
        """When the next timeout of a job is, on the monotonic clock; 0: none. From any thread."""
        return self._executor.due if self._executor is not None else 0.0

    def late(self) -> list[tuple[str, int, Settlement]]:
        """Return how jobs are to be settled that do not end at their timeout, as `Life.late`. From any thread."""
        return self._life.late() if self._life is not None else []

    def registered(self, incarnation: str) -> None:
        """Say that an incarnation holds its leases."""
        if self._publishing is None and self._loop is not None:
            self._publishing = self._loop.create_task(self._publish(), name="spool-catalogue")
        logger.info(
            "worker %s is ready for %s with %d tasks: %s",
            self.name,
            ", ".join(self.queues),
            len(self.app.tasks),
            ", ".join(list(self.app.tasks)[:20]),
            extra={"spool": {"incarnation": incarnation}},
        )
        if self._on_life is not None:
            self._on_life(incarnation)

    def describe(self, incarnation: str, running: int, ended: dict[str, int], rates: Rates) -> WorkerRow:
        """Return the row of an incarnation."""
        machine = self.machine
        return WorkerRow(
            incarnation,
            self.name,
            machine.host,
            machine.pid,
            machine.boot,
            machine.namespace,
            machine.born,
            self._began,
            self.queues,
            self.concurrency,
            self.pool_size,
            round(self.lease * 1000),
            running,
            self.stopping,
            machine.version,
            machine.python,
            self.quiet,
            resident(),
            ended,
            rates,
        )


async def run(
    app: Spool,
    queues: Sequence[str],
    *,
    concurrency: int,
    lease: float,
    grace: float,
    stop: asyncio.Event | None,
) -> None:
    """Run a worker as `Spool.run_worker` says."""
    worker = Worker(app, queues, concurrency=concurrency, pool_size=0, lease=lease, grace=grace)
    working = asyncio.create_task(worker.run())
    watching = asyncio.create_task(stop.wait()) if stop is not None else None
    try:
        await asyncio.wait([task for task in (working, watching) if task is not None], return_when="FIRST_COMPLETED")
        if not working.done():
            worker.stop()
        await working
    except asyncio.CancelledError:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        raise
    finally:
        if watching is not None:
            watching.cancel()


def check_limits(
    queues: Sequence[str],
    concurrency: int,
    pool_size: int | None,
    lease: float,
    grace: float,
    *,
    unroutable_after: float | None,
) -> None:
    """Raise `ConfigError` for settings that no worker can use."""
    if isinstance(queues, str):
        raise ConfigError(f"queues is a list of names, not the text {queues!r}")
    for queue in queues:
        check_name("queue", queue)
    if concurrency < 1:
        raise ConfigError(f"concurrency must be 1 or more, not {concurrency}")
    if pool_size is not None and pool_size < 0:
        raise ConfigError(f"pool_size must be 0 or more, not {pool_size}")
    if not 0.5 <= lease <= 3600:
        raise ConfigError(f"lease must be 0.5 to 3,600 seconds, not {lease}")
    if not 0 <= grace <= 86_400:
        raise ConfigError(f"grace must be 0 to 86,400 seconds, not {grace}")
    if unroutable_after is not None and not 0 < unroutable_after <= 1_000_000_000:
        raise ConfigError(
            f"unroutable_after must be more than 0, at most 1,000,000,000 seconds, not {unroutable_after}"
        )


def _pool_size(app: Spool, given: int | None) -> int:
    if not any(task.settings.kind == "process" for task in app.tasks.values()):
        return 0
    return (os.cpu_count() or 1) if given is None else given
