"""What a worker knows of one queue it serves, and the slots that its queues share."""

from __future__ import annotations

import asyncio
import math
from time import monotonic_ns
from typing import Final

from spool.broker import Claimed, Done
from spool.executor.attempt import Lease, Run
from spool.job import MAIN, PROCESS
from spool.worker.heartbeat import Heard, lease_time

LINGER: Final = 0.002
"""Seconds that free slots wait for others, so that one claim fills many."""

COMPANY: Final = 0.001
"""Seconds that a settle waits for company after the one before it, while jobs run that may end in that time."""

MAX_UNSETTLED: Final = 2_000
"""With so many ended jobs that the store has not been told of, a queue gives us no more."""

TURN: Final = 0.05
"""Seconds that other workers get to take what a claim which was cut to its share has left them."""

VAIN: Final = 2
"""Turns on end that others leave unused before they are given none."""

ALONE: Final = 1.0
"""Seconds, after the last claim that was cut, for which others that left jobs lying are given no turn."""


class Slots:
    """How many more jobs may run: on the loop and in threads (``main``), and in processes (``pool``)."""

    __slots__ = ("_loop", "_needed", "_waiters", "half", "main", "pool", "pool_size", "size")

    def __init__(self, size: int, pool_size: int) -> None:
        self.size = self.main = size
        self.pool_size = self.pool = pool_size
        self.half = (size + 1) // 2
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []
        self._needed = 0

    @property
    def lack(self) -> bool:
        """Whether there are none left of one kind."""
        return not self.main or (self.pool_size > 0 and not self.pool)

    def lanes(self) -> list[int]:
        """Return the lanes from which a job could be taken."""
        return [lane for lane, free in ((MAIN, self.main), (PROCESS, self.pool)) if free]

    def take(self, main: int, pool: int) -> None:
        self.main -= main
        self.pool -= pool

    def give(self, main: int, pool: int) -> None:
        self.main += main
        self.pool += pool
        if self._waiters and (self.main >= self._needed or pool):
            self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def freed(self, needed: int = 1) -> asyncio.Future[None]:
        """Return what is done when ``needed`` of main are free, or one more of the pool, or when woken."""
        self._needed = min(needed, self._needed) if self._waiters else needed
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    async def enough(self) -> None:
        """Return when half of the slots are free, or `LINGER` after the first, or when woken: it is worth a claim."""
        if not self.main and not self.pool:
            await self.freed()
        if self.main < self.half and not self.pool * 2 >= self.pool_size > 0:
            timer = self._loop.call_later(LINGER, self.wake)
            await self.freed(self.half)
            timer.cancel()


class Share:
    """How a life keeps to its fair share of one queue. Times are those of `time.monotonic`.

    A claim that was cut has left jobs to others, and until they have had the time to take them further claims are
    ``even``. When one gets nothing, since we run more than our part, we rest for what is left of that time. Others that
    leave jobs lying in two turns on end have no slot or no ears, and for a while we take what there is.
    """

    __slots__ = ("_alone_until", "_even_until", "_turns", "rests_until")

    def __init__(self) -> None:
        self.rests_until = 0.0
        self._even_until = self._alone_until = 0.0
        self._turns = 0
        """Given to the others in a row, while we got nothing."""

    def even(self, now: float) -> bool:
        """Return whether the next claim is to be ``even``."""
        return self._alone_until <= now < self._even_until

    def note(self, reply: Claimed, now: float, *, even: bool) -> None:
        """Take note of the answer to a claim."""
        self.rests_until = 0.0
        if not reply.cut:
            self._even_until, self._turns = 0.0, 0
        elif even and reply.jobs:
            self._turns = 0
        elif even:
            self.rests_until = self._even_until
        elif now < self._alone_until:
            self._alone_until = now + ALONE
        else:
            self._turns += 1
            self._even_until = now + TURN
            if self._turns > VAIN:
                self._turns, self._alone_until = 0, now + ALONE


class Line:
    """One queue in one life of a worker: the sequence numbers, and the jobs between claim and settlement.

    ``held`` are claimed and not yet known to be settled; ``finished`` of them have ended and wait to be settled.
    """

    __slots__ = (
        "_ended",
        "_loop",
        "_pooled",
        "_slots",
        "_waiter",
        "claim_seq",
        "claiming",
        "finished",
        "heard",
        "held",
        "hot",
        "lease",
        "mismatches",
        "muted",
        "name",
        "next_at",
        "probed",
        "record_size",
        "reported",
        "running",
        "settle_seq",
        "settled",
        "share",
    )

    def __init__(self, name: str, slots: Slots) -> None:
        self.name = name
        self.held: set[Run] = set()
        self.finished: list[Run] = []
        self.running = 0
        # Claims
        self.claim_seq = 0
        self.claiming = False
        self.hot = True
        self.share = Share()
        self.next_at: int | None = None
        self.record_size = 1024
        """Bytes, as far as the last claim shows."""
        self.probed = 0.0
        # Settles
        self.settle_seq = 0
        self.settled = 0.0
        # Beats
        self.lease = Lease(0)
        self.heard = -math.inf
        self.muted = False
        """Not asked for jobs, until the store answers a beat."""
        self.mismatches = 0
        self.reported: list[Run] = []
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = self._pooled = 0

    def hear(self, heard: Heard, length: float) -> None:
        """Take note of an answer to a beat, which moves the end of the lease. Called by whoever keeps it."""
        if heard.orders is not None and heard.orders.lost:
            self.lease.until, self.heard = 0, -math.inf
        # A store that refuses gives nothing away; but it may have, before it did, if the lease had run out by then.
        elif heard.orders is not None or heard.at < self.heard + length:
            self.heard = heard.at
            self.lease.until = monotonic_ns() + round((heard.at + length - lease_time()) * 1e9)

    def silence(self) -> float:
        """Return the seconds since the store's last answer to a beat."""
        return lease_time() - self.heard

    def finish(self, run: Run) -> None:
        """Take note that a job has ended; its slot is given back together with those of the others that end now."""
        self.finished.append(run)
        self._ended += 1
        if run.record.lane == PROCESS:
            self._pooled += 1
        if self._ended == 1:
            self._loop.call_soon(self._give_back)
            self.wake()

    def _give_back(self) -> None:
        ended, pooled = self._ended, self._pooled
        self._ended = self._pooled = 0
        self.running -= ended
        self._slots.give(ended - pooled, pooled)

    def wake(self) -> None:
        """Let the settle loop look again."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def some_finished(self) -> None:
        """Return when a job has ended, or when woken."""
        self._waiter = self._loop.create_future()
        await self._waiter

    def take_finished(self, most: int, size: int) -> list[Run]:
        """Return those that ended first: so many at most, with results of ``size`` bytes together, or a single one."""
        batch = self.finished[:most]
        for count, run in enumerate(batch):
            if type(run.settlement) is Done:
                size -= len(run.settlement.ending)
                if size < 0 and count:
                    most = count
                    del batch[most:]
                    break
        del self.finished[:most]
        return batch
