"""One life of a worker: an incarnation that claims jobs, has them run, and settles them.

A life has one loop that claims for all queues and one loop per queue that settles; somebody else keeps its leases (see
`spool.worker.heartbeat`). None of the loops is ever cancelled while the store may be carrying out what it asked for;
they end by flags.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Literal, TypeVar

from spool.broker import Claim, Released, Retire, Retried, Settle, Settlement, Store, Verb
from spool.errors import LeaseLost, PayloadError, ProtectionError, SpoolError
from spool.executor import Executor, Intake
from spool.executor.attempt import Failure, Run, StopReason
from spool.executor.metering import metrics_of
from spool.job import new_id
from spool.report import Speedometer, all_ended, encode_row
from spool.worker.claims import Claims
from spool.worker.heartbeat import Heard, Keeper, is_fatal
from spool.worker.notes import Notes
from spool.worker.owner import Owner
from spool.worker.slots import COMPANY, Line, Slots

R = TypeVar("R")

logger = logging.getLogger("spool.worker")

MAX_SETTLE: Final = 500
SETTLE_BYTES: Final = 8 << 20
"""Of results in one settle, unless a single one has more: the store and those on the way hold all of it at once."""
SILENCE: Final = 0.8
"""The part of the lease after which a worker that hears nothing stops its jobs: before the store gives them away."""
STUCK: Final = 5.0
"""Seconds that jobs which were told to stop may take before the worker ends without them."""
HURRY: Final = 0.5
"""The same, when the process is to end at once, and somebody is there who ends it."""


class Life:
    """One incarnation, from its first beat to its retirement, or to the loss of its lease (`over`).

    ``survivors`` are jobs of earlier lives that run on (``on_disconnect="continue"``). They hold their slots, and are
    waited for and stopped when the worker ends, and that is all: the store has given them to others.
    """

    def __init__(
        self, worker: Owner, executor: Executor, slots: Slots, keeper: Keeper, survivors: Sequence[Run] = ()
    ) -> None:
        self.incarnation = new_id()
        self.over = False
        self.queues: Sequence[str] = worker.queues
        self.lines = [Line(queue, slots) for queue in worker.queues]
        self.tasks = tuple(sorted(worker.app.tasks))
        self._worker = worker
        self._broker = broker = worker.app.broker
        self._executor = executor
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._notes = {line.name: Notes(self, line, broker) for line in self.lines}
        self._intakes: dict[str, Intake] = {
            line.name: executor.intake(line.name, line.finish, line.lease, self._notes[line.name].add)
            for line in self.lines
        }
        self._unborn = {line.name for line in self.lines}
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self.closing = False
        self._outage = False
        self._loops: set[asyncio.Task[object]] = set()
        self._by_name = {line.name: line for line in self.lines}
        after = math.ceil((worker.unroutable_after or 0) * 1000)
        self._claims = Claims(self, broker, slots, self._intakes, after=after, trial=worker.trial)
        self._survivors = survivors
        for run in survivors:
            if run.task is not None:
                run.task.add_done_callback(lambda _: self._changed.set())
        self._keeper, self._speedometer = keeper, Speedometer(time.monotonic())
        keeper.add(self)

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(line.running for line in self.lines) + sum(not run.ended for run in self._survivors)

    def _runs(self) -> list[Run]:
        """Return the jobs that are held, and those that earlier lives left. May be called from any thread."""
        return [*self._survivors, *(run for line in self.lines for run in list(line.held))]

    def survivors(self) -> list[Run]:
        """Return the jobs that run on when this life is over."""
        return [run for run in self._runs() if run.recipe.runs_on and not run.ended]

    # Life and death

    async def run(self) -> None:
        """Live until the worker is to stop, or the lease is lost. Raises what makes going on impossible."""
        while self._unborn and not self.ending:
            await self._change()
        if not self.ending:
            self._worker.registered(self.incarnation)
            for line in self.lines:
                self.spawn(self._settling(line))
            self.spawn(self._claims.run_trial() if self._worker.trial else self._claims.run())
        while not self.ending:
            self._stop_if_silent()
            await self._change(self._worker.lease / 20)
        if self._failure is not None:
            raise self._failure

    async def close(self, grace: float, now: asyncio.Event, hurry: float = STUCK) -> None:
        """Let jobs end within ``grace`` seconds or until ``now``, hand the others back, and retire.

        Jobs that do not end when told to, in `STUCK` seconds or in ``hurry`` when it is to be ``now``, are handed back
        by who ends the process; if nobody does, by the store, when the incarnation retires. A store that does not
        answer gets a lease's time, or a second when it is to be ``now``; then it finds out by itself.
        """
        await self._wait_until(lambda: not self.running, grace, now, 0.0)
        self.stop_runs(self._runs(), "stopped")
        await self._wait_until(lambda: not self.running, STUCK, now, hurry)
        if stuck := [run for run in self._runs() if not run.ended]:
            self._worker.overrun(stuck)
        self.closing = True
        self.wake()
        await self._wait_until(lambda: not self._loops, self._worker.lease, now)
        if self._worker.condemned:
            return  # what is left is settled when we are gone
        self._keeper.remove(self.incarnation)
        if len(self._unborn) < len(self.lines):
            retiring = self.spawn(self._retire())
            await self._wait_until(retiring.done, self._worker.lease, now)

    def abandon(self) -> None:
        """End what is left of it, without the store. If the worker lives on, so do jobs that are meant to."""
        self.over = True
        if not self._worker.condemned:  # then who ends the process keeps the leases until it has
            self._keeper.remove(self.incarnation)
        goes_on = not self._worker.stopping and self._failure is None
        self.stop_runs([run for run in self._runs() if not (goes_on and run.recipe.runs_on)], "lost")
        self.wake()

    def wake(self) -> None:
        """Let every loop look at the flags again."""
        self._changed.set()
        self._slots.wake()
        self._claims.nudge()
        for line in self.lines:
            line.wake()
            self._notes[line.name].wake()

    @property
    def ending(self) -> bool:
        return self.over or self._worker.stopping or self._failure is not None

    @property
    def quiet(self) -> bool:
        """Whether no more jobs are to be claimed."""
        return self._worker.quiet

    def spawn(self, loop: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = self._loop.create_task(loop)
        self._loops.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[object]) -> None:
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

    async def _wait_until(
        self, reached: Callable[[], bool], timeout: float, now: asyncio.Event | None, hurry: float = 1.0
    ) -> None:
        end = time.monotonic() + timeout
        while not reached() and (left := end - time.monotonic()) > 0:
            if now is not None and now.is_set():
                end = min(end, time.monotonic() + hurry)
                now = None
            else:
                await self._change(min(left, 3600.0))

    def stop_runs(self, runs: Iterable[Run], reason: StopReason) -> None:
        for run in [run for run in runs if not run.ended]:
            self._executor.stop(run, reason)

    async def _retire(self) -> None:
        for line in self.lines:
            left = 1
            while left:
                try:
                    left = (await self._broker.acall(Retire(line.name, self.incarnation, "stopped"))).remaining
                except SpoolError as error:
                    self.note_outage(error)
                    await self.pause(1)
        with contextlib.suppress(SpoolError):
            await self._broker.acall(Store("worker", self.incarnation, None))

    def put_on_trial(self, queue: str, id: str) -> None:
        """Say which suspect is about to start: if this process dies, it is to blame."""
        self._worker.put_on_trial(queue, id)

    def take_budget(self, jobs: int) -> None:
        """Count jobs that were claimed; the worker ends after so many."""
        self._worker.budget -= jobs
        if self._worker.budget <= 0:
            self.drain("it has run as many jobs as it was to")

    def drain(self, reason: str) -> None:
        """Have the worker end when its jobs have."""
        self._worker.drain(reason)

    def is_silent(self, line: Line) -> bool:
        """Whether the store has been silent for so long that jobs are stopped."""
        return line.silence() > SILENCE * self._worker.lease

    @property
    def budget(self) -> float:
        """How many more jobs may be claimed."""
        return self._worker.budget

    def late(self) -> list[tuple[str, int, Settlement]]:
        """Return how the jobs are to be settled, and with which seq, that were told that time is up and do not end.

        For whoever settles them when this process is gone. May be called from any thread.
        """
        return [
            (line.name, line.settle_seq + 1, self._executor.late(run))
            for line in self.lines
            for run in list(line.held)
            if run.stop == "timeout" and not run.ended
        ]

    def find(self, task: asyncio.Task[Any]) -> Run | None:
        """Return the job that a task runs, if it is one of ours. May be called from any thread."""
        return next((run for run in self._runs() if run.task is task), None)

    # Beats: these are called by who keeps the leases, in a thread of its own

    def hear(self, heard: Heard) -> None:
        """Note until when the lease holds, and have the orders obeyed."""
        line = self._by_name[heard.queue]
        line.hear(heard, self._worker.lease)
        if heard.orders is not None:
            self._post(self._obey, line, heard)

    def miss(self, error: Exception) -> None:
        """Take note that a beat failed."""
        self._post(self._miss, error)

    def row(self) -> bytes:
        """Describe this incarnation."""
        ended = all_ended(meter for intake in self._intakes.values() for meter in intake.meters())
        rates = self._speedometer.note(time.monotonic(), ended)
        return encode_row(self._worker.describe(self.incarnation, self.running, ended, rates))

    def obey(self, order: Literal["quiet", "stop"]) -> None:
        """Have the worker claim no more, or stop."""
        if order == "quiet":
            self._worker.be_quiet()
        elif not self._worker.stopping:
            self._worker.stop()

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and we are over
            self._loop.call_soon_threadsafe(call, *args)

    def _obey(self, line: Line, heard: Heard) -> None:
        """Do what the store's reply to a beat says."""
        orders = heard.orders
        if orders is None or self.over or self.closing:
            return
        if orders.lost:
            held = sum(line.running for line in self.lines)
            logger.warning("worker %s lost its lease, and with it %d jobs", self._worker.name, held)
            self.abandon()
            return
        for run in [run for run in line.held if run.id in orders.cancel]:
            run.reason = run.reason or orders.cancel[run.id]
            self.stop_runs([run], "cancelled")
        self._reconcile(line, heard)
        if line.muted:
            line.muted = False
            self._claims.nudge()
        if line.name in self._unborn:
            self._unborn.discard(line.name)
            self._changed.set()

    def _miss(self, error: Exception) -> None:
        if not isinstance(error, SpoolError) or (self._unborn and is_fatal(error)):
            self._failure = self._failure or error
            self.wake()
        else:
            self.note_outage(error)

    def _reconcile(self, line: Line, heard: Heard) -> None:
        """Jobs in a claim or settle under way make the counts differ; a difference that stays is looked into by id."""
        if heard.orders is None:
            return
        if heard.reconciled:
            gone = set(heard.orders.unknown)
            self.stop_runs([run for run in line.reported if run.id in gone], "lost")
            line.reported, line.mismatches = [], 0
        elif heard.orders.held == len(line.held):
            line.mismatches = 0
        else:
            line.mismatches += 1
            if line.mismatches >= 2:
                line.reported = list(line.held)
                ids = tuple(run.id for run in line.reported)
                self._keeper.report(self.incarnation, line.name, line.claim_seq, ids)

    def _stop_if_silent(self) -> None:
        silence = SILENCE * self._worker.lease
        for line in self.lines:
            if not line.running or not self.is_silent(line):
                continue
            runs = [run for run in line.held if not (run.ended or run.stop == "lost" or run.recipe.runs_on)]
            if runs:
                message = "worker %s has not heard from the store for %.3g s and stops its %d jobs of queue %s"
                logger.warning(message, self._worker.name, silence, len(runs), line.name)
                self.stop_runs(runs, "lost")
                line.mismatches = 1  # so that the first beat that gets through is followed by the ids

    # Settles

    async def _settling(self, line: Line) -> None:
        notes = self._notes[line.name]
        while not self.over:
            if line.finished:
                if line.running and time.monotonic() - line.settled < COMPANY and len(line.finished) < MAX_SETTLE:
                    await asyncio.sleep(COMPANY)
                line.settled = time.monotonic()
                if batch := notes.hold_back(line.take_finished(MAX_SETTLE, SETTLE_BYTES)):
                    self._log(line, batch)
                    await self._settle(line, batch)
                if self._worker.stopping:  # then somebody waits for jobs to end
                    self._changed.set()
            elif self.closing and not notes.holding:
                return
            else:
                await line.some_finished()

    async def _settle(self, line: Line, batch: Sequence[Run]) -> None:
        settlements = [run.settlement for run in batch if run.settlement is not None]
        metrics, meters = metrics_of(batch)
        if settlements:
            line.settle_seq += 1
            try:
                reply = await self.ask(Settle(line.name, self.incarnation, line.settle_seq, settlements, metrics))
            except (PayloadError, ProtectionError) as error:
                await self._settle_less(line, batch, error)
                return
            if reply is None:
                return
            if reply.refused:
                message = "queue %s: %d jobs were no longer ours when they ended: %s"
                logger.warning(message, line.name, len(reply.refused), ", ".join(reply.refused[:20]))
        for meter in meters:
            meter.told()
        line.held.difference_update(batch)
        self._claims.has_settled(line)
        again = [each.delay for each in settlements if isinstance(each, Retried | Released)]
        if again and min(again) <= 1000:
            self._loop.call_later(min(again) / 1000, self._claims.nudge)

    async def _settle_less(self, line: Line, batch: Sequence[Run], error: SpoolError) -> None:
        """Settle jobs one by one, and one whose result is too large to be sent, or cannot be encrypted, as failed."""
        if len(batch) > 1:
            for run in batch:
                await self._settle(line, [run])
            return
        (run,) = batch
        if run.failure is not None:
            raise error  # then the way to the store takes next to nothing
        run.settlement = self._executor.refuse(run, error)
        self._log(line, batch)
        await self._settle(line, batch)

    def _log(self, line: Line, batch: Sequence[Run]) -> None:
        dropped = [run.id for run in batch if run.stop == "lost" and not run.began]
        if dropped:
            message = "queue %s: %d jobs were not started, since their lease had run out by then: %s"
            logger.warning(message, line.name, len(dropped), ", ".join(dropped[:20]))
        for run in batch:
            if run.failure is not None:
                _log_failure(run, run.failure)
        if logger.isEnabledFor(logging.DEBUG):
            for run in batch:
                logger.debug("%s/%s %s: %s", run.queue, run.id, run.record.task, type(run.settlement).__name__)

    # The store

    async def ask(self, verb: Verb[R]) -> R | None:
        """Send a verb until it is answered; None when the answer is of no use any more."""
        failures = 0
        settling = type(verb) is Settle
        # What a lost claim may have taken is handed back when the incarnation retires.
        while not (self.over or (self._worker.stopping and isinstance(verb, Claim))):
            try:
                reply = await self._broker.acall(verb)
            except LeaseLost:
                # It may have run out without anybody having noticed: then a beat renews it. Else its reply says so.
                self._keeper.kick()
                await self.pause(0)
            except SpoolError as error:
                if settling and isinstance(error, PayloadError | ProtectionError):
                    raise  # it is refused however often it is sent
                failures += 1
                self.note_outage(error)
                await self.pause(failures)
            else:
                if self._outage:
                    self._outage = False
                    logger.info("the store answers again")
                return reply
        return None

    def note_outage(self, error: BaseException) -> None:
        if not self._outage:
            self._outage = True
            logger.warning("the store does not serve worker %s: %s", self._worker.name, error)

    async def pause(self, failures: int) -> None:
        longest = min(2.0, 0.05 * 2 ** min(failures, 10))
        await asyncio.sleep(random.uniform(0.02, longest))  # noqa: S311 - jitter


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
