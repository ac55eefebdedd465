"""Rolling metrics up: what the workers' settles left is counted into buckets, and how things stand is sampled.

Any number of rollers may run, one in each server. One of them leads: whoever wrote the document `ROLLER` last, as long
as that is not longer ago than `LEAD`. The document holds, for each queue, how far its stream was read, and is written
together with the buckets, in one step and only if nobody else wrote it meanwhile. So every blob is counted exactly
once, whoever leads, and whatever dies or is lost at whatever moment.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Final

import msgspec

from spool.broker import Broker, Load, QueueStats, Stats, Store, Watch
from spool.errors import BrokerError, ConfigError, StoreCorrupt, VersionConflict
from spool.job import check_name, new_id
from spool.report import unpack as unpack_blob
from spool.telemetry.bucket import EVENTS, EVERYWHERE, GAUGES, KIND, TIERS, Attempts, fetch, pack, read_tier, unpack
from spool.telemetry.ledger import Ledger
from spool.telemetry.marks import Marks

logger = logging.getLogger("spool.telemetry")

ROLLER: Final = "roller"
EVERY: Final = 1.0
"""Seconds between two samples."""
LEAD: Final = 3_000
"""Milliseconds without a word from the leader after which another roller takes over."""
SILENT: Final = 15_000
"""Metrics that nobody rolled up for longer (ms) are not up to date."""
TTL: Final = 30 * 86_400_000
"""How long all documents of metrics are kept when nobody rolls (ms): all of them, so that they fit together."""
PAGE: Final = 1_000
"""Blobs of a queue in one step; the rest come with the next, at once."""
MOST_QUEUES: Final = 250
"""Queues in one step, in rotation."""


class Seen(msgspec.Struct, array_like=True):
    """How far a queue is counted: the cursor of its stream, its totals, and when (ms) they were looked at.

    ``since``: the time (ms) at which the job that had been ready for the longest then had become so; 0: none was ready.
    """

    cursor: str = ""
    totals: dict[str, int] = {}
    at: int = 0
    since: int = 0


class Progress(msgspec.Struct, array_like=True):
    """Who leads ("" after one that ended in order), when it last wrote (ms), and how far it came."""

    leader: str = ""
    at: int = 0
    queues: dict[str, Seen] = {}

    def ready_since(self, queue: str, stats: QueueStats) -> int | None:
        """Return since when (ms, by the store's clock) the job of a queue has been ready that has been for the longest.

        To a second: what became ready since the rollers looked has been from now on. None where no job is ready, and
        where nobody rolls up.
        """
        if not any(stats.ready) or self.silent(stats.now):
            return None
        seen = self.queues.get(queue)
        return seen.since if seen is not None and seen.since else stats.now

    def silent(self, now: int) -> bool:
        """Whether nobody has rolled up for a while."""
        return abs(now - self.at) > SILENT


def read_progress(broker: Broker) -> tuple[Progress | None, int]:
    """Return how far the rollers came, None where none ever ran, and the version of the document.

    Raises `StoreCorrupt` for a later layout.
    """
    document = fetch(broker, ROLLER, ROLLER[:-1])
    found = unpack(document.body, Progress) if document else []
    return (found[0] if found else None), (document.version if document else 0)


class _Lead:
    """What a roller holds while it leads."""

    def __init__(self, broker: Broker, progress: Progress | None, version: int) -> None:
        self.progress = progress or Progress()
        self.version = version
        self.ledger = Ledger(broker)
        self.turn = 0
        self.counted = 0
        self.marks: dict[str, Marks] = {}
        seen: dict[str, list[tuple[int, int]]] = {}
        for tier in TIERS:
            for bucket in read_tier(broker, tier):
                for queue, line in bucket.lines.items():
                    if line.sequence:
                        seen.setdefault(queue, []).append((bucket.start + tier.step, line.sequence))
        for queue, marks in seen.items():
            self.marks[queue] = Marks(marks)


class Roller:
    """Rolls the metrics of a broker up, in a thread of its own between `start` and `close`; or step by step (`roll`).

    ```python
    roller = Roller(app.broker)
    roller.start()
    ...
    roller.close()
    ```
    """

    def __init__(self, broker: Broker) -> None:
        self.name = new_id()
        self._broker = broker
        self._lead: _Lead | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False

    @property
    def leads(self) -> bool:
        """Whether it was this one that wrote last, as far as it knows."""
        return self._lead is not None

    def start(self) -> None:
        """Begin to roll."""
        self._thread = threading.Thread(target=self._run, name="spool-roller", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 10.0) -> None:
        """End after the step under way, which is waited for ``timeout`` seconds, and let another lead at once."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return
        lead, self._lead = self._lead, None
        if lead is not None:
            lead.progress.leader = ""
            with contextlib.suppress(BrokerError):
                self._broker.call(Store(KIND, ROLLER, pack([lead.progress]), TTL, lead.version))

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing.wait(max(0.0, due - time.monotonic())):
            more = False
            try:
                more = self.roll()
            except BrokerError as error:
                self._fail(error)
            except Exception:
                logger.exception("metrics were not rolled up")
            else:
                self._failing = False
            now = time.monotonic()
            due = now if more else max(due + EVERY, now)

    def _fail(self, error: BrokerError) -> None:
        if not self._failing:
            logger.warning("metrics are not rolled up: %s", error)
        self._failing = True

    def roll(self) -> bool:
        """Count what is there, if this roller leads or nobody does; return whether there is more to be counted at once.

        Raises `BrokerError`; then, as after a lost reply, the next step reads how far the rollers came.
        """
        lead, self._lead = self._lead, None
        lead = lead or self._take_over()
        if lead is None:
            return False
        more = self._count(lead)
        ledger, progress = lead.ledger, lead.progress
        progress.leader, progress.at = self.name, ledger.now
        body, others = pack([progress]), ledger.changes()
        try:
            stored = self._broker.call(Store(KIND, ROLLER, body, TTL, lead.version, others))
        except VersionConflict:  # another leads, and has counted this
            return False
        lead.version = stored.version
        ledger.stored()
        self._lead = lead
        return more

    def _take_over(self) -> _Lead | None:
        loaded = self._broker.call(Load(KIND, ROLLER, 1))
        progress, version = read_progress(self._broker)
        if progress is not None and progress.leader not in ("", self.name) and abs(loaded.now - progress.at) <= LEAD:
            return None
        return _Lead(self._broker, progress, version)

    def _count(self, lead: _Lead) -> bool:
        known = self._queues(lead)
        queues = known[lead.turn :][:MOST_QUEUES]
        lead.turn = lead.turn + len(queues) if lead.turn + len(queues) < len(known) else 0
        more = False
        for queue in queues:
            seen = lead.progress.queues.get(queue)
            if seen is None:
                # What it counted before there were metrics was at no known time.
                totals = {} if lead.progress.at else self._broker.call(Stats(queue)).totals
                seen = lead.progress.queues[queue] = Seen("", totals, lead.progress.at)
            more = self._read(lead.ledger, queue, seen) or more
            if abs(lead.ledger.now - seen.at) >= EVERY * 900:
                self._sample(lead, queue, seen)
        if abs(lead.ledger.now - lead.counted) >= EVERY * 900:
            self._count_workers(lead)
        return more

    def _queues(self, lead: _Lead) -> list[str]:
        names: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            loaded = self._broker.call(Load("queue", cursor))
            lead.ledger.now = loaded.now
            names += [document.key for document in loaded.documents]
            cursor = loaded.cursor or None
        return names

    def _read(self, ledger: Ledger, queue: str, seen: Seen) -> bool:
        """Count the next blobs of a queue; return whether there are likely more."""
        watched = self._broker.call(Watch(queue, seen.cursor, PAGE))
        found: dict[tuple[int, str], Attempts] = {}
        damaged: dict[int, int] = {}
        for blob in watched.blobs:
            second = blob.at - blob.at % 1000
            try:
                for report in unpack_blob(blob.body):
                    found.setdefault((second, check_name("task", report.task)), Attempts()).add(report)
            except (StoreCorrupt, ConfigError) as error:
                logger.warning("queue %s: what a worker counted is lost: %s", queue, error)
                damaged[second] = damaged.get(second, 0) + 1
        for (second, task), attempts in found.items():
            ledger.count(queue, second, task, attempts)
        for second, count in damaged.items():
            ledger.miss(queue, second, damaged=count)
        if watched.missed:
            logger.warning("queue %s: the counts of %d settles were gone before they were read", queue, watched.missed)
            ledger.miss(queue, watched.blobs[0].at, missed=watched.missed)
        if watched.blobs:
            seen.cursor = watched.blobs[-1].cursor
        return len(watched.blobs) == PAGE

    def _sample(self, lead: _Lead, queue: str, seen: Seen) -> None:
        """Take note of how a queue stands, and of what it has counted since the last time."""
        ledger, stats = lead.ledger, self._broker.call(Stats(queue))
        marks = lead.marks.setdefault(queue, Marks())
        marks.note(stats.now, stats.sequence)
        since = min((at for head in stats.heads if head and (at := marks.since(head)) is not None), default=0)
        oldest = max(0, stats.now - since) if since else 0
        for event in EVENTS:
            more = stats.totals.get(event, 0) - seen.totals.get(event, 0)
            if more > 0:
                ledger.spread(queue, event, more, seen.at)
        for bucket in ledger.buckets(ledger.now):
            line = bucket.line(queue)
            line.sample(gauges(stats))
            line.oldest, line.sequence = max(line.oldest, oldest), stats.sequence
        seen.totals, seen.at, seen.since = stats.totals, ledger.now, since

    def _count_workers(self, lead: _Lead) -> None:
        workers, cursor = 0, ""
        while True:
            loaded = self._broker.call(Load("worker", cursor))
            workers, cursor = workers + len(loaded.documents), loaded.cursor
            if not cursor:
                break
        for bucket in lead.ledger.buckets(lead.ledger.now):
            bucket.line(EVERYWHERE).sample([0] * (len(GAUGES) - 1) + [workers])
        lead.counted = lead.ledger.now


def gauges(stats: QueueStats) -> list[int]:
    """Return how a queue stands, in the order of `GAUGES`."""
    parked = sum(stats.parked.values())
    return [*stats.ready, stats.scheduled, parked, stats.suspect, stats.running, stats.dead, stats.workers]
