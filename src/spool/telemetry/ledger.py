"""What a roller has open: pages of buckets, and the sums of all time; kept until they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from spool.broker import Broker
from spool.telemetry.bucket import OTHER, TIERS, Attempts, Bucket, Tier, fetch, pack, unpack

SERIES: Final = 1_000
"""How many tasks are told apart, each with its queue. What comes later is counted as task `OTHER` of its queue, and
beyond so many queues as task `OTHER` of queue `OTHER`."""

MOST_OPEN: Final = 12
"""Pages that are kept open when all is stored."""

SUMS: Final = "sums"
"""The key of the document with the sums."""


class Sums(msgspec.Struct, array_like=True):
    """The attempts of each task since metrics began, and the blobs of each queue that could not be counted."""

    attempts: dict[str, dict[str, Attempts]] = {}
    missed: dict[str, int] = {}
    damaged: dict[str, int] = {}

    def admit(self, queue: str, task: str) -> tuple[str, str]:
        """Return the queue and task under which to count, made where there is room."""
        room = SERIES
        for series in ((queue, task), (queue, OTHER)):
            known = self.attempts.get(series[0], {})
            if series[1] in known:
                return series
            if self.size() < room:
                self.attempts.setdefault(series[0], {})[series[1]] = Attempts()
                return series
            room += SERIES
        self.attempts.setdefault(OTHER, {}).setdefault(OTHER, Attempts())
        return OTHER, OTHER

    def size(self) -> int:
        """Return how many tasks are told apart."""
        return sum(map(len, self.attempts.values()))


def read_sums(broker: Broker) -> Sums:
    """Return the sums as they are stored. Raises `StoreCorrupt` for a later layout."""
    document = fetch(broker, SUMS, SUMS[:-1])
    found = unpack(document.body, Sums) if document else []
    return found[0] if found else Sums()


class Ledger:
    """Pages and sums with changes that are not stored yet.

    ``now``, the store's time, tells what is too old to be kept, and what is left of a time when the clock was ahead.
    """

    def __init__(self, broker: Broker) -> None:
        self.now = 0
        self.sums = read_sums(broker)
        self._broker = broker
        self._pages: dict[str, dict[int, Bucket]] = {}
        self._changed: set[str] = set()
        self._summed = False

    def buckets(self, at: int) -> Iterator[Bucket]:
        """Give the bucket of a time in each tier that reaches back so far; they will be changed."""
        for tier in TIERS:
            bucket = self.bucket(tier, at)
            if bucket is not None:
                yield bucket

    def bucket(self, tier: Tier, at: int) -> Bucket | None:
        """Return the bucket of a time, to be changed; None for a time too long ago."""
        at = min(at, self.now)
        if at <= self.now - tier.span:
            return None
        page, start = tier.page(at), at - at % tier.step
        key = tier.key(page)
        buckets = self._open(tier, page)
        self._changed.add(key)
        return buckets.setdefault(start, Bucket(start))

    def _open(self, tier: Tier, page: int) -> dict[int, Bucket]:
        """Return a page. What its place in the ring held of another time goes."""
        key = tier.key(page)
        buckets = self._pages.pop(key, None)
        if buckets is None:
            document = fetch(self._broker, key, tier.key(page - 1) if page % tier.pages else tier.name)
            buckets = {bucket.start: bucket for bucket in unpack(document.body, Bucket)} if document else {}
        self._pages[key] = buckets = {at: each for at, each in buckets.items() if tier.page(at) == page}
        return buckets

    def count(self, queue: str, at: int, task: str, attempts: Attempts) -> None:
        """Count attempts at a task that were reported in the second of ``at``."""
        series = self.sums.admit(queue, task)
        self.sums.attempts[series[0]][series[1]].merge(attempts)
        self._summed = True
        for bucket in self.buckets(at):
            bucket.line(queue).attempts.merge(attempts)
            bucket.task(*series).merge(attempts)

    def miss(self, queue: str, at: int, *, missed: int = 0, damaged: int = 0) -> None:
        """Count blobs that cannot be counted otherwise."""
        for name, more in ((self.sums.missed, missed), (self.sums.damaged, damaged)):
            if more:
                name[queue] = name.get(queue, 0) + more
        self._summed = True
        for bucket in self.buckets(at):
            line = bucket.line(queue)
            line.missed += missed
            line.damaged += damaged

    def spread(self, queue: str, event: str, count: int, since: int) -> None:
        """Count ``count`` events of which is known that they were between ``since`` and now: evenly over that time."""
        for tier in TIERS:
            since_ = max(min(since, self.now), self.now - tier.span + tier.step)
            span, shared, at = self.now - since_, 0, since_
            while shared < count:
                edge = min(at - at % tier.step + tier.step, self.now)
                upto = count * (edge - since_) // span if span and edge < self.now else count
                bucket = self.bucket(tier, at)
                if upto > shared and bucket is not None:
                    counts = bucket.line(queue).counts
                    counts[event] = counts.get(event, 0) + upto - shared
                shared, at = upto, edge

    def changes(self) -> dict[str, bytes]:
        """Return the documents that are to be stored."""
        bodies = {key: pack(self._pages[key].values()) for key in self._changed}
        if self._summed:
            bodies[SUMS] = pack([self.sums])
        return bodies

    def stored(self) -> None:
        """Take note that the changes are stored."""
        self._changed.clear()
        self._summed = False
        for key in list(self._pages)[:-MOST_OPEN]:
            del self._pages[key]
