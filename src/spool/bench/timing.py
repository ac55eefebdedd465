"""What a worker process notes of itself while `spool bench profiled` looks for where its time goes.

Nothing here is in a process that is not being timed. Three things are noted, none of them for each job:

- for each claim, when it was sent and answered, and for which jobs (`Trip`); settles are in the notes of every
  benchmark (`spool.bench.account.Settles`);
- of every seventh job, or of many jobs of every 29th, when its handler was called and when it returned (`Ran`): neither
  shares a factor with the ten of which a mixed load's jobs come, nor with the sizes of batches. The handlers themselves
  say so: one more call around each of them would cost as much as a handler that does nothing;
- in four numbers that other processes can read (`Gauge`), what the worker is waiting for at the moment.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import msgspec

from spool.broker import Around, Broker, Claim, Claimed, Enqueue, Settle, Settled, Verb
from spool.executor import current_job
from spool.job import LANES, PROCESS

R = TypeVar("R")
Step = Literal["enqueue", "claim"]

TIMED: Final = 3
"""Which job is timed, by its number modulo `one_of`: of those that wait ever longer, the first has waited less."""
_MANY: Final = 50_000
_FIELDS: Final = 4
LEFT: Final = 4
"""Beside the lanes that are listened to: that there were more jobs than the last claim took."""
_encode = msgspec.msgpack.Encoder().encode


def one_of(jobs: int) -> int:
    """Of how many jobs one is timed, if there are so many: 1,700 tell as much as 7,000, and cost a quarter.

    >>> one_of(5000), one_of(200_000)
    (7, 29)
    """
    return 7 if jobs < _MANY else 29


class Trip(msgspec.Struct, frozen=True, array_like=True, tag="trip"):
    """One round trip to the broker: nanoseconds of CLOCK_MONOTONIC, and the jobs that it was about."""

    step: Step
    sent: int
    answered: int
    ids: Sequence[str]


class Ran(msgspec.Struct, frozen=True, array_like=True, tag="ran"):
    """One call of a handler."""

    id: str
    began: int
    ended: int


class Threads(msgspec.Struct, frozen=True, array_like=True, tag="threads"):
    """The names of a process's threads by the system's ids."""

    names: dict[int, str]


Note = Trip | Ran | Threads


class Gauge:
    """What a worker waits for at the moment, in a file that others have mapped as well.

    How many claims are under way, how many settles, for which lanes of work it listens (a bit for each, and `LEFT`; a
    lane that has no slot left is not listened to), and how many jobs lie between claim and settle.
    """

    def __init__(self) -> None:
        self.values = memoryview(bytearray(8 * _FIELDS)).cast("q")

    def open(self, directory: Path) -> None:
        """Let others see it from here on: a file of the process that calls."""
        path = directory / f"{os.getpid()}.gauge"
        path.write_bytes(self.values)
        with path.open("r+b") as file:
            self.values = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


class Timing:
    """The notes of one worker process, or of the one that it is forked from, until it begins to `flush` them."""

    def __init__(self, directory: Path, every: int) -> None:
        self._directory = directory
        self.every = every
        """Of so many jobs one is timed."""
        self._pid = 0
        self._gauge = Gauge()
        self._notes: list[Note] = []
        self._known = 0

    def broker(self, broker: Broker) -> TimedBroker:
        return TimedBroker(broker, self._notes, self._gauge)

    def ran(self, began: int) -> None:
        """Note that the handler of the current job, which was called at ``began``, has just returned or raised."""
        self._notes.append(Ran(current_job().id, began, time.monotonic_ns()))

    def flush(self) -> None:
        """Write down what is there; handlers in threads may append meanwhile."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._gauge.open(self._directory)
        threads = threading.enumerate()
        if len(threads) != self._known:
            self._known = len(threads)
            self._notes.append(Threads({each.native_id: each.name for each in threads if each.native_id}))
        count = len(self._notes)
        data = _encode(self._notes[:count])
        with (self._directory / f"{self._pid}.timing").open("ab") as file:
            file.write(len(data).to_bytes(4, "big") + data)
        del self._notes[:count]


def read_notes(directory: Path) -> dict[int, list[Note]]:
    """Return what each process noted, by process id."""
    decode = msgspec.msgpack.Decoder(list[Trip | Ran | Threads]).decode
    found: dict[int, list[Note]] = {}
    for path in sorted(directory.glob("*.timing")):
        data = memoryview(path.read_bytes())
        notes = found[int(path.stem)] = []
        while len(data) >= 4 and len(data) >= 4 + (size := int.from_bytes(data[:4], "big")):
            notes += decode(data[4 : 4 + size])
            data = data[4 + size :]
    return found


class TimedBroker(Around):
    """A broker that passes everything on, and notes its round trips; with a gauge, also what is under way."""

    def __init__(self, broker: Broker, notes: list[Any], gauge: Gauge | None = None) -> None:
        super().__init__(broker)
        self._notes = notes
        self._gauge = gauge or Gauge()
        self._pool = False
        self._left = 0

    def call(self, verb: Verb[R]) -> R:
        sent = time.monotonic_ns()
        reply = self._broker.call(verb)
        if isinstance(verb, Enqueue):
            self._notes.append(Trip("enqueue", sent, time.monotonic_ns(), [job.id for job in verb.jobs]))
        return reply

    async def acall(self, verb: Verb[R]) -> R:
        if isinstance(verb, Settle):
            return cast("R", await self._settle(verb))
        sent = time.monotonic_ns()
        if isinstance(verb, Claim):
            return cast("R", await self._claim(verb, sent))
        reply = await self._broker.acall(verb)
        if isinstance(verb, Enqueue):
            self._notes.append(Trip("enqueue", sent, time.monotonic_ns(), [job.id for job in verb.jobs]))
        return reply

    async def _claim(self, verb: Claim, sent: int) -> Claimed:
        gauge = self._gauge.values
        if verb.wait:
            gauge[2] = self._listening(verb.lanes)
        else:
            gauge[0] += 1
        try:
            reply = await self._broker.acall(verb)
        finally:
            if verb.wait:
                gauge[2] = 0
                sent = time.monotonic_ns()  # until there was work it was no round trip, but waiting for some
            else:
                gauge[0] -= 1
        # Without a slot in the pool, a claim does not learn of the jobs that wait for one.
        self._pool = self._pool or verb.slots[PROCESS] > 0
        if verb.slots[PROCESS] or not self._pool:
            self._left = LEFT if reply.next_at is not None and reply.next_at <= reply.now else 0
        if reply.jobs:
            gauge[3] += len(reply.jobs)
            self._notes.append(Trip("claim", sent, time.monotonic_ns(), [id for id, _ in reply.jobs]))
        return reply

    async def _settle(self, verb: Settle) -> Settled:
        gauge = self._gauge.values
        gauge[3] -= len(verb.settlements)
        gauge[1] += 1
        try:
            return await self._broker.acall(verb)
        finally:
            gauge[1] -= 1

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        self._gauge.values[2] = self._listening(lanes)
        try:
            await self._broker.await_work(queues, timeout, lanes)
        finally:
            self._gauge.values[2] = 0

    def _listening(self, lanes: Sequence[int]) -> int:
        return sum(1 << lane for lane in lanes) | self._left


def thread_names(notes: Iterable[Note]) -> dict[int, str]:
    """Return all names that threads of a process had."""
    names: dict[int, str] = {}
    for note in notes:
        if isinstance(note, Threads):
            names.update(note.names)
    return names
