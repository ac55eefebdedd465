"""Tell the store what the jobs of one queue say: log lines and progress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Final, Protocol

from msgspec.structs import replace

from spool.broker import Broker, JobNote, Note
from spool.errors import BrokerUnavailable, PayloadTooLarge, SpoolError
from spool.executor.attempt import Run
from spool.executor.journal import Part
from spool.executor.recording import note_of
from spool.worker.slots import Line

EVERY: Final = 0.5
"""Seconds between two notes on jobs that run. Those that have ended do not wait, nor settle before it."""
TRIES: Final = 5
"""How often a store is asked that does not answer; then the jobs are settled without their last words."""
MOST: Final = 200
"""Jobs in one note."""
MOST_BYTES: Final = 512 * 1024
"""Bytes of lines in one note, more or less: the store does nothing else meanwhile."""
LINE: Final = 100
"""Bytes that a line takes besides its own, when it is encrypted."""

logger = logging.getLogger("spool.worker")

_Said = tuple[Run, Part, JobNote]


class Speaker(Protocol):
    """What this needs of a life."""

    incarnation: str
    over: bool
    closing: bool

    def spawn(self, loop: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Run something that the life waits for at its end."""
        ...

    async def pause(self, failures: int) -> None:
        """Wait before trying again."""
        ...


class Notes:
    """What the jobs of one queue say, in one life of a worker. Costs nothing while none says anything.

    A job that has ended is held back from its settlement until the store has its last words; the others are not.
    """

    def __init__(self, life: Speaker, line: Line, broker: Broker) -> None:
        self._life = life
        self._line = line
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._speaking: dict[Run, None] = {}
        self._ended: list[Run] = []
        self._poke = asyncio.Event()
        self._task: asyncio.Task[object] | None = None

    @property
    def holding(self) -> bool:
        """Whether jobs are held back."""
        return self._task is not None

    def add(self, run: Run) -> None:
        """Take note that a job has something to say. From any thread."""
        if threading.get_ident() == self._thread:
            self._add(run)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._add, run)

    def _add(self, run: Run) -> None:
        if not self._life.over:
            self._speaking[run] = None
            self._start()

    def _start(self) -> None:
        if self._task is None:
            self._task = self._life.spawn(self._run())

    def hold_back(self, batch: list[Run]) -> list[Run]:
        """Return those of the ended jobs that can be settled; the others come back as finished when they can be."""
        if not self._speaking:
            return batch
        last = [run for run in batch if run.journal is not None and run.journal.waiting]
        if not last:
            return batch
        self._ended += last
        self.wake()
        self._start()
        held = set(last)
        return [run for run in batch if run not in held]

    def wake(self) -> None:
        """Look at what there is now."""
        self._poke.set()

    async def _run(self) -> None:
        due = time.monotonic() + EVERY
        while (self._speaking or self._ended) and not self._life.over:
            if not self._ended and not self._life.closing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due - time.monotonic()):
                        await self._poke.wait()
            self._poke.clear()
            if self._ended:
                await self._send_last()
            if self._life.closing or time.monotonic() >= due:
                await self._send(list(self._speaking), tries=1)
                due = time.monotonic() + EVERY
                if self._life.closing:
                    self._speaking.clear()
        self._task = None
        self._line.wake()

    async def _send_last(self) -> None:
        ended, self._ended = self._ended, []
        try:
            await self._send(ended, tries=TRIES)
        finally:
            for run in ended:
                run.journal = None  # sent or not, it is not held back again
                self._speaking.pop(run, None)
            self._line.finished += ended
            self._line.wake()

    async def _send(self, runs: Iterable[Run], tries: int) -> None:
        for chunk in _chunks(runs):
            await self._send_chunk(chunk, tries)

    async def _send_chunk(self, chunk: list[_Said], tries: int) -> None:
        try:
            said = await self._tell([note for _, _, note in chunk], tries)
        except PayloadTooLarge as error:
            if len(chunk) > 1:
                middle = len(chunk) // 2
                await self._send_chunk(chunk[:middle], tries)
                await self._send_chunk(chunk[middle:], tries)
                return
            run, _, note = chunk[0]
            logger.warning(
                "%s/%s: the log lines are too large, and the earlier ones dropped: %s", run.queue, run.id, error
            )
            said = await self._tell_less(note, tries)
        for run, part, _ in chunk:
            if run.journal is not None and said:
                run.journal.sent(part)
            if run.journal is None or not run.journal.waiting:
                self._speaking.pop(run, None)

    async def _tell_less(self, note: JobNote, tries: int) -> bool:
        """Drop the earlier lines until the rest can be sent, as the store does when there are too many."""
        while note.lines:
            half = (len(note.lines) + 1) // 2
            note = replace(note, first=note.first + half, lines=note.lines[half:])
            with contextlib.suppress(PayloadTooLarge):
                return await self._tell([note], tries)
        return True  # it will never be sent

    async def _tell(self, notes: list[JobNote], tries: int) -> bool:
        """Return whether the store was told. Raises `PayloadTooLarge`, and nothing else: no job is lost over words."""
        for failures in range(1, tries + 1):
            if self._life.over:
                return False
            try:
                # Of those refused nobody wants to hear: they are others' by now, as their settlement will find out.
                await self._broker.acall(Note(self._line.name, self._life.incarnation, notes))
            except BrokerUnavailable:
                await self._life.pause(failures)
            except PayloadTooLarge:
                raise
            except SpoolError:
                return False
            else:
                return True
        return False


def _chunks(runs: Iterable[Run]) -> Iterable[list[_Said]]:
    """Yield what the jobs have to say, as much at a time as one note should have."""
    chunk: list[_Said] = []
    size = 0
    for run in runs:
        if run.journal is None:
            continue
        part = run.journal.unsent()
        note = note_of(run, part)
        chunk.append((run, part, note))
        size += sum(map(len, note.lines)) + LINE * len(note.lines)
        if len(chunk) == MOST or size > MOST_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
