"""What happened when, in the broker: in each second, ten seconds and minute, as documents of kind `KIND`.

There are three **tiers** (`TIERS`) of **buckets**. A bucket (`Bucket`) holds what happened in its span, by queue and by
task. Some buckets in a row make a **page**, which is one document; the pages of a tier are a ring, so that their number
is bounded, whatever the clock does. A page is zlib over msgpack:

```
[1, [start, {queue: Line}, {queue: {task: Attempts}}], …]
```

with ``start`` in milliseconds since the epoch. Fields are only ever appended, with defaults.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from spool.broker import Broker, Document, Load
from spool.errors import StoreCorrupt
from spool.job import PRIORITIES
from spool.opaque import UNREADABLE
from spool.report import MOST_COUNTED, TaskReport

K = TypeVar("K")
T = TypeVar("T")

logger = logging.getLogger("spool.telemetry")

LAYOUT: Final = 1
KIND: Final = "metrics"
"""The kind of all documents of metrics."""

EVERYWHERE: Final = ""
"""The queue whose line has what belongs to no queue: how many workers there are."""
OTHER: Final = "other"
"""The task, and the queue, of what there is no room for."""

OUTCOMES: Final = ("done", "retried", "died", "released", "cancelled", "lost")
"""How attempts end; what a later release calls otherwise is counted as `OTHER`."""
EVENTS: Final = (
    *("enqueued", "done", "cancelled", "dead", "retried", "released", "stopped", "crashed", "lost"),
    *("replayed", "deleted", "pruned", "repairs"),
)
"""The totals of `spool.broker.QueueStats`."""
GAUGES: Final = (*PRIORITIES, "scheduled", "parked", "suspect", "running", "dead", "workers")
"""What is sampled, in the order of `Line.sums`: jobs ready by priority, jobs by state, and live workers."""


class Attempts(msgspec.Struct, array_like=True):
    """Attempts of one task, or of all of a queue: outcomes, histograms as in `spool.report`, and sums in seconds."""

    outcomes: dict[str, int] = {}
    waits: dict[int, int] = {}
    runs: dict[int, int] = {}
    waited: float = 0.0
    ran: float = 0.0

    def add(self, report: TaskReport) -> None:
        """Add what a blob says of a task."""
        _add(self.outcomes, ((name if name in OUTCOMES else OTHER, n) for name, n in report.outcomes.items()))
        _add(self.waits, zip(report.waits[::2], report.waits[1::2], strict=True))
        _add(self.runs, zip(report.runs[::2], report.runs[1::2], strict=True))
        self.waited += report.waited / 1e3
        self.ran += report.ran / 1e9

    def merge(self, other: Attempts) -> None:
        """Add others."""
        _add(self.outcomes, other.outcomes.items())
        _add(self.waits, other.waits.items())
        _add(self.runs, other.runs.items())
        self.waited += other.waited
        self.ran += other.ran


def _add(counts: dict[K, int], more: Iterable[tuple[K, int]]) -> None:
    for key, count in more:
        counts[key] = min(counts.get(key, 0) + count, MOST_COUNTED)  # of rubbish, or no document could hold it


class Line(msgspec.Struct, array_like=True):
    """One queue in one bucket.

    ``counts`` of `EVENTS`, none where 0; ``sums`` of `GAUGES` over ``samples``; ``oldest``: the longest that a ready
    job was seen to have waited (ms); ``sequence``: the last one seen (see `spool.broker.QueueStats`). ``missed`` blobs
    were gone before anybody read them, ``damaged`` ones could not be read; ``attempts`` is what the others say.
    """

    counts: dict[str, int] = {}
    samples: int = 0
    sums: list[int] = []
    oldest: int = 0
    sequence: int = 0
    missed: int = 0
    damaged: int = 0
    attempts: Attempts = msgspec.field(default_factory=Attempts)

    def sample(self, gauges: Iterable[int]) -> None:
        """Take note of how things stand."""
        self.samples += 1
        found = list(gauges)
        before = self.sums + [0] * (len(found) - len(self.sums))
        self.sums = [a + b for a, b in zip(before, found, strict=True)]


class Lines(msgspec.Struct, array_like=True):
    """A bucket without its tasks, which reading leaves undecoded."""

    start: int
    lines: dict[str, Line] = {}


class Bucket(msgspec.Struct, array_like=True):
    """What happened from ``start`` on for the span of its tier."""

    start: int
    lines: dict[str, Line] = {}
    tasks: dict[str, dict[str, Attempts]] = {}

    def line(self, queue: str) -> Line:
        """Return the line of a queue, made where there is none."""
        return self.lines.setdefault(queue, Line())

    def task(self, queue: str, task: str) -> Attempts:
        """Return the attempts of a task, made where there are none."""
        return self.tasks.setdefault(queue, {}).setdefault(task, Attempts())


class Tier(msgspec.Struct, frozen=True):
    """Buckets of ``step`` ms, ``width`` of them in a page, in a ring of ``pages``."""

    name: str
    step: int
    width: int
    pages: int

    @property
    def span(self) -> int:
        """Milliseconds for which buckets are kept for certain."""
        return self.step * self.width * (self.pages - 1)

    def page(self, at: int) -> int:
        """Return the number of the page that a time is in."""
        return at // (self.step * self.width)

    def key(self, page: int) -> str:
        """Return the key of the document of a page. In the order of keys those of a tier stand together."""
        return f"{self.name}{page % self.pages:03d}"


TIERS: Final = (
    Tier("second", 1_000, 10, 31),
    Tier("ten", 10_000, 6, 61),
    Tier("minute", 60_000, 10, 145),
)
"""Seconds for 5 minutes, tens for an hour, minutes for a day."""

_encode = msgspec.msgpack.Encoder().encode
_open = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_layout_of = msgspec.msgpack.Decoder(int).decode


def pack(parts: Iterable[object]) -> bytes:
    """Return the body of a document."""
    return zlib.compress(_encode([LAYOUT, *parts]), 1)


def unpack(body: bytes, kind: type[T]) -> list[T]:
    """Return the parts of a document; of a damaged one none, with a warning. Raises `StoreCorrupt` for a later layout.

    >>> unpack(pack([Bucket(60_000)]), Lines)
    [Lines(start=60000, lines={})]
    """
    decode = msgspec.msgpack.Decoder(kind).decode
    try:
        layout, *parts = _open(zlib.decompress(body))
        known = _layout_of(layout) <= LAYOUT
        if known:
            return [decode(part) for part in parts]
    except (*UNREADABLE, ValueError, zlib.error) as error:
        logger.warning("a document of metrics cannot be read, and is begun anew: %s", error)
        return []
    raise StoreCorrupt(f"metrics have layout {_layout_of(layout)}; this release knows up to {LAYOUT}")


def fetch(broker: Broker, key: str, after: str) -> Document | None:
    """Return one document of metrics; ``after`` is a key before it, with none between the two."""
    documents = broker.call(Load(KIND, after, 1)).documents
    return documents[0] if documents and documents[0].key == key else None


def read_tier(broker: Broker, tier: Tier) -> list[Lines]:
    """Return the buckets of a tier, by time, without their tasks."""
    loaded = broker.call(Load(KIND, tier.name, tier.pages))
    bodies = [each.body for each in loaded.documents if each.key.startswith(tier.name)]
    return sorted((lines for body in bodies for lines in unpack(body, Lines)), key=lambda lines: lines.start)


def read_span(broker: Broker, tier: Tier, since: int, until: int) -> list[Lines]:
    """As `read_tier`, but only the pages with the buckets from ``since`` to ``until``, which the tier has to hold."""
    first, count = tier.page(since) % tier.pages, tier.page(until) - tier.page(since) + 1
    found: list[Lines] = []
    # The ring may end in between, and goes on at its beginning.
    for start, length in ((first, min(count, tier.pages - first)), (0, first + count - tier.pages)):
        if length > 0:
            after = tier.key(start - 1) if start else tier.name
            for document in broker.call(Load(KIND, after, length)).documents:
                found += unpack(document.body, Lines) if document.key.startswith(tier.name) else ()
    return sorted((lines for lines in found if since <= lines.start <= until), key=lambda lines: lines.start)
