"""Many calls on their way into the store, in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spool.broker import Enqueue, Enqueued, NewJob
from spool.errors import ArgumentError, BrokerUnavailable, EnqueueInterrupted, JobConflict
from spool.settings import Durability, check_durability
from spool.task import Call

#: A bulk enqueue sends this many jobs, or bytes of them, of one queue at once, and holds back no more than CHUNK_TOTAL.
CHUNK_JOBS: Final = 500
CHUNK_BYTES: Final = 1024 * 1024
CHUNK_TOTAL: Final = 8 * 1024 * 1024


class Bulk:
    """A bulk enqueue on its way: calls by queue, handed out as enqueues neither too long nor too large."""

    def __init__(self, durability: Durability = None) -> None:
        self.acknowledged = 0
        self._durable = check_durability(durability)
        self._demanding: set[str] = set()
        """Queues with a call that asks for durability itself."""
        self._waiting: dict[str, list[NewJob]] = {}
        self._sizes: dict[str, int] = {}
        self._total = 0
        self._under_way = 0

    def add(self, call: Call) -> Sequence[Enqueue]:
        """Take a call in; return what is to be sent now."""
        if type(call) is not Call:
            raise ArgumentError(f"a bulk enqueue takes calls, made by task.call(…), not {call!r:.100}")
        queue, size = call.queue, len(call.job.record)
        waiting = self._waiting.setdefault(queue, [])
        waiting.append(call.job)
        if call.durable:
            self._demanding.add(queue)
        self._total += size
        self._sizes[queue] = held = self._sizes.get(queue, 0) + size
        if len(waiting) >= CHUNK_JOBS or held >= CHUNK_BYTES:
            return (self._take(queue),)
        return self.rest() if self._total >= CHUNK_TOTAL else ()

    def rest(self) -> Sequence[Enqueue]:
        """Return what is still to be sent."""
        return [self._take(queue) for queue in list(self._waiting)]

    def _take(self, queue: str) -> Enqueue:
        self._total -= self._sizes.pop(queue)
        self._under_way += 1
        durable = self._durable or queue in self._demanding
        self._demanding.discard(queue)
        return Enqueue(queue, self._waiting.pop(queue), durable=durable)

    def acknowledge(self, verb: Enqueue, reply: Enqueued) -> None:
        """Count what is stored. Raises `JobConflict`."""
        self._under_way -= 1
        conflicts = reply.conflicts
        self.acknowledged += len(verb.jobs) - len(conflicts)
        if conflicts:
            more = f", and so are {len(conflicts) - 1} more ids" if len(conflicts) > 1 else ""
            raise JobConflict(
                f"{verb.queue}/{conflicts[0]} is taken by a job with another task or other arguments{more}"
            )

    def interrupted(self, error: Exception) -> EnqueueInterrupted:
        """Return what to raise for an error."""
        stored = self.acknowledged
        if self._under_way and isinstance(error, EnqueueInterrupted):  # of an enqueue, not of who makes the calls
            stored += error.acknowledged
        least = "at least " if self._under_way and isinstance(error, BrokerUnavailable) else ""
        return EnqueueInterrupted(
            f"the bulk enqueue stopped; {least}{stored:,} jobs are stored: {type(error).__name__}: {error}", stored
        )
