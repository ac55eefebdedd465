"""One life of a worker: an incarnation that claims jobs, has them run, and settles them.

A life has one loop that claims for all queues, one loop per queue that settles, and a thread that beats. None of the
loops is ever cancelled while the store may be carrying out what it asked for; they end by flags.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

from spool.broker import Broker, Claim, Claimed, Heartbeat, Orders, Released, Retire, Retried, Settle, Store, Verb
from spool.errors import BrokerError, LeaseLost
from spool.executor import Executor, Intake
from spool.executor.attempt import Failure, Run, StopReason
from spool.job import PROCESS, new_id
from spool.report import WorkerRow, pack
from spool.worker.heartbeat import Heart, is_fatal
from spool.worker.slots import MAX_UNSETTLED, Line, Slots

R = TypeVar("R")

logger = logging.getLogger("spool.worker")

MAX_CLAIM: Final = 200
CLAIM_BYTES: Final = 64 * 1024
"""What the reply to a claim should not exceed: Redis sends so much, and carries out other commands before the rest.

Measured with records of 1.1 KiB: claims of 200 drained at 60,000 jobs/s, claims of 55 at 90,000.
"""
MAX_SETTLE: Final = 500
COMPANY: Final = 0.001
"""Seconds that a settle waits for company after the one before it, while jobs run that may end in that time."""
PROBE: Final = 0.02
"""Seconds between two looks at a queue that had nothing, while others keep us busy."""
SILENCE: Final = 0.8
"""The part of the lease after which a worker that hears nothing stops its jobs: before the store gives them away."""
STUCK: Final = 5.0
"""Seconds that jobs which were told to stop may take before the worker ends without them."""


class Owner(Protocol):
    """What a life needs of its worker."""

    name: str
    queues: list[str]
    lease: float
    unroutable_after: float | None
    stopping: bool

    def registered(self, incarnation: str) -> None:
        """Take note that the incarnation holds its leases."""
        ...

    def describe(self, incarnation: str, running: int) -> WorkerRow:
        """Return the worker's row; called from a thread."""
        ...


class Life:
    """One incarnation, from its first beat to its retirement, or to the loss of its lease (`over`)."""

    def __init__(self, worker: Owner, broker: Broker, executor: Executor, slots: Slots, tasks: Iterable[str]) -> None:
        self.incarnation = new_id()
        self.over = False
        self.lines = [Line(queue, slots) for queue in worker.queues]
        self.tasks = tuple(sorted(tasks))
        self._worker = worker
        self._unroutable_after = math.ceil((worker.unroutable_after or 0) * 1000)
        self._broker = broker
        self._executor = executor
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._intakes: dict[str, Intake] = {line.name: executor.intake(line.name, line.finish) for line in self.lines}
        self._unborn = {line.name for line in self.lines}
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._closing = False
        self._outage = False
        self._waiter: asyncio.Task[Any] | None = None
        self._nudged = False
        self._loops: set[asyncio.Task[None]] = set()
        self._heart = Heart(self._broker, self, worker.lease, self._loop.call_soon_threadsafe)

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(line.running for line in self.lines)

    # Life and death

    async def run(self) -> None:
        """Live until the worker is to stop, or the lease is lost. Raises what makes going on impossible."""
        while self._unborn and not self._ending:
            await self._change()
        if not self._ending:
            self._worker.registered(self.incarnation)
            for line in self.lines:
                self._spawn(self._settling(line))
            self._spawn(self._claiming())
        while not self._ending:
            self._stop_if_silent()
            await self._change(self._worker.lease / 20)
        if self._failure is not None:
            raise self._failure

    async def close(self, grace: float, now: asyncio.Event) -> None:
        """Let jobs end within ``grace`` seconds or until ``now``, hand the others back, and retire.

        Jobs that do not end when told to are left to the store: it hands them back when the incarnation retires. A
        store that does not answer gets a lease's time, or a second when it is to be ``now``; then it finds out by
        itself.
        """
        await self._wait_until(lambda: not self.running, grace, now)
        self._stop_jobs("stopped")
        await self._wait_until(lambda: not self.running, STUCK, None)
        self._closing = True
        self.wake()
        await self._wait_until(lambda: not self._loops, self._worker.lease, now)
        self._heart.stop()
        if len(self._unborn) < len(self.lines):
            retiring = self._spawn(self._retire())
            await self._wait_until(retiring.done, self._worker.lease, now)

    def abandon(self) -> None:
        """End what is left of it, without the store."""
        self.over = True
        self._heart.stop()
        self._stop_jobs("lost")
        self.wake()

    def wake(self) -> None:
        """Let every loop look at the flags again."""
        self._changed.set()
        self._slots.wake()
        self._nudge()
        for line in self.lines:
            line.wake()

    @property
    def _ending(self) -> bool:
        return self.over or self._worker.stopping or self._failure is not None

    def _spawn(self, loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(loop)
        self._loops.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._loops.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._failure is None:
            self._failure = error
        self._changed.set()

    async def _change(self, timeout: float | None = None) -> None:
        """Wait for anything to change, or for the time to pass."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        self._changed.clear()

    async def _wait_until(self, reached: Callable[[], bool], timeout: float, now: asyncio.Event | None) -> None:
        end = time.monotonic() + timeout
        while not reached() and (left := end - time.monotonic()) > 0:
            if now is not None and now.is_set():
                end = min(end, time.monotonic() + (1.0 if self._closing else 0.0))
                now = None
            else:
                await self._change(left)

    def _stop_jobs(self, reason: StopReason) -> None:
        for line in self.lines:
            self._stop_runs(line.held, reason)

    def _stop_runs(self, runs: Iterable[Run], reason: StopReason) -> None:
        for run in [run for run in runs if not run.ended]:
            self._executor.stop(run, reason)

    async def _retire(self) -> None:
        for line in self.lines:
            left = 1
            while left:
                try:
                    left = (await self._broker.acall(Retire(line.name, self.incarnation, "stopped"))).remaining
                except BrokerError as error:
                    self._note_outage(error)
                    await self._pause(1)
        with contextlib.suppress(BrokerError):
            await self._broker.acall(Store("worker", self.incarnation, None))

    # Beats: called by the heart, in the loop's thread

    def obey(self, line: Line, beat: Heartbeat, orders: Orders) -> None:
        """Do what the store's reply to a beat says."""
        if self.over or self._closing:
            return
        if orders.lost:
            logger.warning("worker %s lost its lease and stops its %d jobs", self._worker.name, self.running)
            self.abandon()
            return
        line.tell_tasks = orders.tasks
        if orders.cancel:
            wanted = set(orders.cancel)
            self._stop_runs([run for run in line.held if run.id in wanted], "cancelled")
        self._reconcile(line, beat, orders)
        if line.name in self._unborn:
            self._unborn.discard(line.name)
            self._changed.set()

    def miss(self, error: Exception) -> None:
        """Take note that a beat failed."""
        if not isinstance(error, BrokerError) or (self._unborn and is_fatal(error)):
            self._failure = self._failure or error
            self.wake()
        else:
            self._note_outage(error)

    def row(self) -> WorkerRow:
        """Describe this incarnation. Called in the heart's thread."""
        return self._worker.describe(self.incarnation, self.running)

    def _reconcile(self, line: Line, beat: Heartbeat, orders: Orders) -> None:
        """Jobs in a claim or settle under way make the counts differ; a difference that stays is looked into by id."""
        if beat.held_ids is not None:
            gone = set(orders.unknown)
            self._stop_runs([run for run in line.reported if run.id in gone], "lost")
            line.reported, line.mismatches = [], 0
        elif orders.held == beat.held:
            line.mismatches = 0
        else:
            line.mismatches += 1
            if line.mismatches >= 2:
                line.reported = list(line.held)
                line.report = (line.claim_seq, tuple(run.id for run in line.reported))

    def _stop_if_silent(self) -> None:
        silence = SILENCE * self._worker.lease
        for line in self.lines:
            if line.running and line.heard < time.monotonic() - silence:
                logger.warning(
                    "worker %s has not heard from the store for %.3g s and stops its %d jobs of queue %s",
                    self._worker.name,
                    silence,
                    line.running,
                    line.name,
                )
                self._stop_runs(line.held, "lost")
                line.mismatches = 1  # so that the first beat that gets through is followed by the ids

    # Claims

    async def _claiming(self) -> None:
        turn = 0
        while not self._ending:
            await self._slots.enough()
            claims = [self._claim(*share) for share in _shares(self._due(turn), self._slots)]
            turn += 1
            if len(claims) == 1:
                await claims[0]
            elif claims:
                # One queue's store may be slow to answer; the others do not wait for it.
                await asyncio.wait([self._spawn(claim) for claim in claims], timeout=1.0)
            else:  # none is to be asked now: they have yet to answer, or to take what has ended
                await asyncio.sleep(COMPANY)
            if not any(line.hot for line in self.lines):
                await self._wait_for_work()

    def _due(self, turn: int) -> list[Line]:
        """Return the queues to ask, in rotation: those that had more, and now and then the others."""
        now = time.monotonic()
        first = turn % len(self.lines)
        due = [
            line
            for line in self.lines[first:] + self.lines[:first]
            if not line.claiming and len(line.finished) < MAX_UNSETTLED and (line.hot or now - line.probed >= PROBE)
        ]
        for line in due:
            line.probed = now
        return due

    async def _claim(self, line: Line, main: int, pool: int) -> None:
        reply = None
        line.claiming = True
        self._slots.take(main, pool)
        try:
            verb = Claim(
                line.name,
                self.incarnation,
                line.claim_seq + 1,
                (main, pool),
                unroutable_after=self._unroutable_after,
            )
            reply = await self._ask(verb)
        finally:
            line.claiming = False
            if reply is None or not reply.jobs:
                self._slots.give(main, pool)
        if reply is None:
            return
        offset = reply.now - time.monotonic_ns() // 1_000_000
        line.claim_seq += 1
        line.hot = bool(reply.jobs) and reply.next_at is not None and reply.next_at <= reply.now
        line.next_at = None if reply.next_at is None else reply.next_at - offset
        if reply.jobs:
            runs = self._start(line, reply, offset)
            pooled = sum([run.record.lane == PROCESS for run in runs])
            self._slots.give(main - len(runs) + pooled, pool - pooled)

    def _start(self, line: Line, reply: Claimed, offset: int) -> list[Run]:
        start, tallies, fence = self._intakes[line.name].start, reply.tallies, line.claim_seq
        runs = [start(id, fence, body, tallies.get(id, "") if tallies else "", offset) for id, body in reply.jobs]
        line.record_size = max(256, sum([len(body) for _, body in reply.jobs]) // len(runs))
        line.held.update(runs)
        line.running += len(runs)
        if self._ending:  # claimed while we were told to stop: back they go, without having begun
            self._stop_runs(runs, "lost" if self.over else "stopped")
        return runs

    async def _wait_for_work(self) -> None:
        if self._ending:
            return
        due = min((line.next_at for line in self.lines if line.next_at is not None), default=None)
        timeout = random.uniform(0.5, 1.0)  # noqa: S311 - jitter, so that idle workers do not come in step
        if due is not None:
            timeout = min(timeout, max(0.005, (due - time.monotonic_ns() // 1_000_000) / 1000))
        # With no slots left of one kind there may be work which we could not take: that is no news to the store.
        freed = self._slots.freed() if self._slots.lack else None
        if freed is not None:
            freed.add_done_callback(lambda _: self._nudge())
        self._waiter = asyncio.current_task()
        try:
            await self._broker.await_work(self._worker.queues, timeout)
        except asyncio.CancelledError:
            if not self._nudged or self._waiter is None or self._waiter.uncancel():
                raise
        except BrokerError as error:
            self._waiter = None  # what is nudged from here on is no longer the wait, but the loop itself
            self._note_outage(error)
            await self._pause(1)
        finally:
            self._waiter, self._nudged = None, False
            if freed is not None:
                freed.cancel()
        for line in self.lines:
            line.hot = True

    def _nudge(self) -> None:
        """Wait for work no longer: there may be some. The one place where a loop is cancelled: it asks for a hint."""
        if self._waiter is not None and not self._nudged:
            self._nudged = True
            self._waiter.cancel()

    # Settles

    async def _settling(self, line: Line) -> None:
        while not self.over:
            if line.finished:
                if line.running and time.monotonic() - line.settled < COMPANY and len(line.finished) < MAX_SETTLE:
                    await asyncio.sleep(COMPANY)
                line.settled = time.monotonic()
                await self._settle(line, line.take_finished(MAX_SETTLE))
                if self._worker.stopping:  # then somebody waits for jobs to end
                    self._changed.set()
            elif self._closing:
                return
            else:
                await line.some_finished()

    async def _settle(self, line: Line, batch: list[Run]) -> None:
        settlements = [run.settlement for run in batch if run.settlement is not None]
        metrics = pack({run.recipe.meter for run in batch})
        self._log(batch)
        if settlements:
            line.settle_seq += 1
            reply = await self._ask(Settle(line.name, self.incarnation, line.settle_seq, settlements, metrics))
            if reply is None:
                return
            if reply.refused:
                logger.warning(
                    "queue %s: %d jobs were no longer ours when they ended: %s",
                    line.name,
                    len(reply.refused),
                    ", ".join(reply.refused[:20]),
                )
        line.held.difference_update(batch)
        again = [each.delay for each in settlements if isinstance(each, Retried | Released)]
        if again and min(again) <= 1000:
            self._loop.call_later(min(again) / 1000, self._nudge)

    def _log(self, batch: Sequence[Run]) -> None:
        for run in batch:
            if run.failure is not None:
                _log_failure(run, run.failure)
        if logger.isEnabledFor(logging.DEBUG):
            for run in batch:
                logger.debug("%s/%s %s: %s", run.queue, run.id, run.record.task, type(run.settlement).__name__)

    # The store

    async def _ask(self, verb: Verb[R]) -> R | None:
        """Send a verb until it is answered; None when the answer is of no use any more."""
        failures = 0
        # What a lost claim may have taken is handed back when the incarnation retires.
        while not (self.over or (self._worker.stopping and isinstance(verb, Claim))):
            try:
                reply = await self._broker.acall(verb)
            except LeaseLost:
                # It may have run out without anybody having noticed: then a beat renews it. Else its reply says so.
                self._heart.kick()
                await self._pause(0)
            except BrokerError as error:
                failures += 1
                self._note_outage(error)
                await self._pause(failures)
            else:
                if self._outage:
                    self._outage = False
                    logger.info("the store answers again")
                return reply
        return None

    def _note_outage(self, error: BaseException) -> None:
        if not self._outage:
            self._outage = True
            logger.warning("the store does not serve worker %s: %s", self._worker.name, error)

    async def _pause(self, failures: int) -> None:
        longest = min(2.0, 0.05 * 2 ** min(failures, 10))
        await asyncio.sleep(random.uniform(0.02, longest))  # noqa: S311 - jitter


def _shares(lines: Sequence[Line], slots: Slots) -> list[tuple[Line, int, int]]:
    """Share the free slots: one for a look at a queue that had nothing, the rest evenly among those that have work.

    One claim takes no more than half of all slots: so there is one under way while the jobs of the one before run.
    """
    cold = [line for line in lines if not line.hot]
    hot = [line for line in lines if line.hot]
    shares: list[tuple[Line, int, int]] = []
    main, pool = slots.main, slots.pool
    for index, line in enumerate([*cold, *hot]):
        left = 1 if index < len(cold) else len(lines) - index
        wanted = (1, 1) if index < len(cold) else (-(-main // left), -(-pool // left))
        most = max(1, min(slots.half, MAX_CLAIM, CLAIM_BYTES // line.record_size))
        part = min(wanted[0], main, most), min(wanted[1], pool, most)
        if part != (0, 0):
            main, pool = main - part[0], pool - part[1]
            shares.append((line, *part))
    return shares


def _log_failure(run: Run, failure: Failure) -> None:
    logger.warning(
        "%s/%s %s failed, %s: %s: %s",
        run.queue,
        run.id,
        run.record.task,
        "dead" if failure.delay is None else f"again in {failure.delay:.3g} s",
        failure.error_type,
        failure.message,
        extra={
            "spool": {
                "queue": run.queue,
                "job": run.id,
                "task": run.record.task,
                "attempt": run.attempt,
                "error": failure.error_type,
                "delay": failure.delay,
            }
        },
    )
