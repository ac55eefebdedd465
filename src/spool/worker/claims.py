"""Claim jobs for one life of a worker: from which queues, how many, when again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from spool.broker import Broker, Claim, Claimed
from spool.errors import LeaseLost, SpoolError
from spool.executor import Intake
from spool.executor.attempt import Run
from spool.job import PROCESS
from spool.worker.slots import COMPANY, MAX_UNSETTLED, Line, Slots

if TYPE_CHECKING:
    from spool.worker.life import Life

MAX_CLAIM: Final = 200
CLAIM_BYTES: Final = 64 * 1024
"""What the reply to a claim should not exceed: Redis sends so much, and carries out other commands before the rest.

Measured with records of 1.1 KiB: claims of 200 drained at 60,000 jobs/s, claims of 55 at 90,000.
"""
PROBE: Final = 0.02
"""Seconds between two looks at a queue that had nothing, while others keep us busy."""
PUNCTUAL: Final = 0.5
"""Seconds; shorter waits for work end on time."""
SURVIVED: Final = 5.0
"""Seconds after which a suspect is thought to do no harm, and the next one is put on trial."""
ACQUITTED: Final = 5
"""Rounds without a suspect after which a trial is over."""


class Claims:
    """The claims of one life."""

    def __init__(
        self,
        life: Life,
        broker: Broker,
        slots: Slots,
        intakes: dict[str, Intake],
        *,
        after: int,
        trial: bool,
    ) -> None:
        self._life = life
        self._broker = broker
        self._slots = slots
        self._lines = life.lines
        self._intakes = intakes
        self._unroutable_after = after
        self._trial = trial
        self._waiter: asyncio.Task[Any] | None = None
        self._nudged = False

    async def run(self) -> None:
        turn = 0
        while not self._life.ending:
            if self._life.quiet:  # for good: who wants it to work again stops it, and another begins
                await asyncio.sleep(PROBE)
                continue
            if not any(line.hot for line in self._lines):
                await self._wait_for_work()
                continue
            await self._slots.enough()
            claims = [self._claim(*share) for share in _shares(self._due(turn), self._slots)]
            turn += 1
            if len(claims) == 1:
                await claims[0]
            elif claims:
                # One queue's store may be slow to answer; the others do not wait for it.
                await asyncio.wait([self._life.spawn(claim) for claim in claims], timeout=1.0)
            else:  # none is to be asked now: they have yet to answer, or to take what has ended
                await asyncio.sleep(COMPANY)

    def _due(self, turn: int) -> list[Line]:
        """Return the queues to ask, in rotation: those that had more, and now and then the others."""
        now = time.monotonic()
        first = turn % len(self._lines)
        due = [
            line
            for line in self._lines[first:] + self._lines[:first]
            if not line.claiming
            and len(line.finished) < MAX_UNSETTLED
            and line.share.rests_until <= now
            and (line.hot or now - line.probed >= PROBE)
            and not self._mute(line)
        ]
        for line in due:
            line.probed = now
        return due

    def _mute(self, line: Line) -> bool:
        """Whether what we claimed now would be stopped at once, since only beats do not get through."""
        if self._life.is_silent(line):
            line.muted, line.hot = True, False
        return line.muted

    async def run_trial(self) -> None:
        """Run suspects: the next one when those before it have ended, or have done no harm for a while."""
        idle = 0
        while not self._life.ending and idle < ACQUITTED:
            idle += 1
            for line in self._lines:
                await self._slots.enough()
                if not self._mute(line) and (runs := await self._claim(line, 1, 0)):
                    idle = 0
                    await self._watch(runs)
            if idle:
                await self._life.pause(idle)
        self._life.drain("no suspects are left")

    async def _watch(self, runs: list[Run]) -> None:
        end = time.monotonic() + SURVIVED
        # No event: this is rare, and others are not to pay for it whenever a job ends.
        while not all(run.ended for run in runs) and not self._life.ending and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(PROBE)

    async def _claim(self, line: Line, main: int, pool: int, wait: float = 0.0) -> list[Run]:
        """Take jobs for so many slots; with ``wait``, when there is word of work, or after so many seconds."""
        reply = None
        main = int(min(main, self._life.budget))
        line.claiming = True
        self._slots.take(main, pool)
        even = line.share.even(time.monotonic())
        try:
            verb = Claim(
                line.name,
                self._life.incarnation,
                line.claim_seq + 1,
                (main, pool),
                trial=self._trial,
                unroutable_after=self._unroutable_after,
                even=even,
                wait=wait,
            )
            # One that waits is sent once: should it fail, whoever looks next finds out what is wrong.
            reply = await (self._broker.acall(verb) if wait else self._life.ask(verb))
        finally:
            line.claiming = False
            if reply is None or not reply.jobs:
                self._slots.give(main, pool)
        if reply is None:
            return []
        offset = reply.now - time.monotonic_ns() // 1_000_000
        line.claim_seq += 1
        line.share.note(reply, time.monotonic(), even=even)
        # What it had no slots for, it could not see: there may be work for those that were freed meanwhile.
        unseen = (not main and self._slots.main > 0) or (not pool and self._slots.pool > 0)
        line.hot = unseen or (bool(reply.jobs) and reply.next_at is not None and reply.next_at <= reply.now)
        line.next_at = None if reply.next_at is None else reply.next_at - offset
        if not reply.jobs:
            return []
        runs = self._start(line, reply, offset)
        pooled = sum([run.record.lane == PROCESS for run in runs])
        self._slots.give(main - len(runs) + pooled, pool - pooled)
        self._life.take_budget(len(runs))
        return runs

    def _start(self, line: Line, reply: Claimed, offset: int) -> list[Run]:
        start, tallies, fence = self._intakes[line.name].start, reply.tallies, line.claim_seq
        runs = [start(id, fence, body, tallies.get(id, "") if tallies else "", offset) for id, body in reply.jobs]
        line.record_size = max(256, sum([len(body) for _, body in reply.jobs]) // len(runs))
        line.held.update(runs)
        line.running += len(runs)
        if self._life.is_silent(line):  # the answer took too long: they may be another worker's
            self._life.stop_runs(runs, "lost")
            line.mismatches = 1  # so that the first beat that gets through is followed by the ids
        elif self._trial:
            self._life.put_on_trial(line.name, runs[0].id)  # before its first line
        if self._life.ending:  # claimed while we were told to stop: back they go, without having begun
            self._life.stop_runs(runs, "lost" if self._life.over else "stopped")
        return runs

    async def _wait_for_work(self) -> None:
        if self._life.ending:
            return
        timeout = self._patience()
        # With no slots left of one kind there may be work which we do not listen for.
        freed = self._slots.freed() if self._slots.lack else None
        if freed is not None:
            freed.add_done_callback(lambda _: self.nudge())
        for line in self._lines:
            line.hot = True  # whatever ends the wait
        self._waiter = asyncio.current_task()
        try:
            await self._listen(timeout)
        except asyncio.CancelledError:
            if not self._nudged or self._waiter is None or self._waiter.uncancel():
                raise
        except SpoolError as error:
            self._waiter = None  # what is nudged from here on is no longer the wait, but the loop itself
            self._life.note_outage(error)
            await self._life.pause(1)
        finally:
            self._waiter, self._nudged = None, False
            if freed is not None:
                freed.cancel()

    async def _listen(self, timeout: float) -> None:
        """Wait for word of work; of the only queue there is with the next claim, which is carried out at the word."""
        now = time.monotonic()
        # What is left to others, or to whom the store answers, is not listened to either: the word is theirs.
        lines = [line for line in self._lines if line.share.rests_until <= now and not self._mute(line)]
        lanes = self._slots.lanes()
        if not lines or not lanes:
            await asyncio.sleep(timeout)
        elif len(self._lines) > 1 or lines[0].share.even(now):
            await self._broker.await_work([line.name for line in lines], timeout, lanes)
        else:
            with contextlib.suppress(LeaseLost):  # a claim that does not wait finds out what to do about it
                for share in _shares(lines, self._slots):
                    await self._claim(*share, wait=timeout)

    def _patience(self) -> float:
        """Return for how many seconds to wait for work."""
        due = min((line.next_at for line in self._lines if line.next_at is not None), default=None)
        timeout = random.uniform(0.5, 1.0)  # noqa: S311 - jitter, so that idle workers do not come in step
        if due is None:
            return timeout
        left = (due - time.monotonic_ns() // 1_000_000) / 1000
        # A long wait may be over late: then it is not to be the last one before the job is due.
        return min(timeout, max(0.005, left) if left < PUNCTUAL else left - 0.1)

    def has_settled(self, line: Line) -> None:
        """Take note that jobs are no longer ours: we may run less than our part again."""
        if line.share.rests_until:
            line.share.rests_until = 0.0
            self.nudge()

    def nudge(self) -> None:
        """Wait for work no longer: there may be some. The one place where a loop is cancelled: it asks for a hint."""
        if self._waiter is not None and not self._nudged:
            self._nudged = True
            self._waiter.cancel()


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
