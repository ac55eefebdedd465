"""The demo: a directory tree indexed by worker processes, one job per file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import islice
from typing import Final

import msgspec

from spool.app import Spool
from spool.broker import Act, Broker, Delete, Find, QueueStats, Stats
from spool.broker.scratch import scratch
from spool.demo.files import Facts, Failure, Totals, walk
from spool.demo.tasks import QUEUE, analyse_file, app
from spool.errors import ConfigError, StoreCorrupt
from spool.job import Snapshot, State, read_ending
from spool.supervisor import Fleet, WorkerOptions
from spool.view import view

#: Jobs in the store at a time, and with them what the demo holds in memory. Must stay below the 10,000 endings that a
#: broker lists.
_WINDOW: Final = 5000
_CHUNK: Final = 500
_PAGE: Final = 1000
_POLL_SECONDS: Final = 0.05
_MISSING_SECONDS: Final = 10.0
#: Reading a file keeps a thread of a worker busy: more of them than this only take turns.
_CONCURRENCY: Final = 4

_read_facts = msgspec.msgpack.Decoder(Facts).decode


def _ignore(_: object) -> None:
    pass


class Progress(msgspec.Struct, frozen=True):
    """How far the demo is."""

    found: int
    """Files found so far; all of them once ``listed``."""
    listed: bool
    indexed: int
    failed: int
    waiting: int
    seconds: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo arrived at."""

    directory: str
    broker: str
    processes: int
    jobs: int
    seconds: float
    """From the first enqueue to the last outcome; worker processes were ready before."""
    jobs_per_s: float
    totals: Totals
    unreadable: list[bytes]
    """Directories that could not be listed."""


def run(
    directory: str,
    url: str | None = None,
    processes: int | None = None,
    *,
    keep: bool = False,
    on_start: Callable[[str], None] = _ignore,
    on_progress: Callable[[Progress], None] = _ignore,
) -> Report:
    """Index a directory on a store of its own (see `spool.broker.scratch`), which ``keep`` leaves behind.

    ``processes`` defaults to one per CPU. ``on_start`` is told the store's URL once the workers are ready, and
    ``on_progress`` how far it is, some times a second. Raises `ConfigError` for a directory that is none, and
    `BrokerError`.
    """
    if not os.path.isdir(directory):  # noqa: PTH112 - Path.is_dir raises where this says no
        raise ConfigError(f"there is no directory {directory!r}")
    directory = os.path.abspath(directory)  # noqa: PTH100 - resolve() would follow links
    processes = processes or _cpus()
    with scratch(url, "demo", keep=keep) as store, Spool(store) as client:
        options = WorkerOptions(
            app="spool.demo.tasks:app",
            url=store,
            queues=(QUEUE,),
            concurrency=_CONCURRENCY,
            processes=processes,
            grace=5.0,
            log_level="error",
        )
        with _fleet(options) as fleet:
            fleet.wait_ready()
            on_start(client.broker.url)
            index = _Index(client.broker, directory)
            with app.using(client.broker):
                index.run(on_progress)
        return Report(
            directory=directory,
            broker=client.broker.url,
            processes=processes,
            jobs=index.enqueued,
            seconds=round(index.seconds, 3),
            jobs_per_s=round(index.enqueued / index.seconds, 1) if index.enqueued else 0.0,
            totals=index.totals,
            unreadable=index.unreadable,
        )


@contextmanager
def _fleet(options: WorkerOptions) -> Generator[Fleet]:
    with Fleet(options) as fleet:
        try:
            yield fleet
        except BaseException:
            fleet.kill()  # the store goes as well: there is nothing to hand back
            raise


class _Index:
    """Enqueues files, a window of them at a time, and adds up what their jobs found."""

    def __init__(self, broker: Broker, directory: str) -> None:
        self._broker = broker
        self.unreadable: list[bytes] = []
        self._paths = walk(os.fsencode(directory), self.unreadable)
        self.totals = Totals()
        self.enqueued = 0
        self.seconds = 0.0
        self._dead = 0
        self._listed = False

    def run(self, on_progress: Callable[[Progress], None]) -> None:
        began = moved = time.monotonic()
        while True:
            self._fill()
            stats = self._broker.call(Stats(QUEUE))
            self._dead = stats.totals.get("dead", 0)
            collected = self._collect_results(stats.totals.get("done", 0) - self.totals.files)
            now = time.monotonic()
            self.seconds = now - began
            waiting = _waiting(stats)
            on_progress(Progress(self.enqueued, self._listed, self.totals.files, self._dead, waiting, self.seconds))
            if self._listed and self.totals.files + self._dead >= self.enqueued:
                break
            if collected or waiting:
                moved = now
            elif now - moved > _MISSING_SECONDS:
                raise StoreCorrupt(
                    f"{self._outstanding} jobs have ended, but {self._broker.url} lists no results for them"
                )
            if not collected:
                time.sleep(_POLL_SECONDS)
        self._collect_failures()

    @property
    def _outstanding(self) -> int:
        return self.enqueued - self.totals.files - self._dead

    def _fill(self) -> None:
        while not self._listed and self._outstanding + _CHUNK <= _WINDOW:
            added = app.enqueue_many(analyse_file.call(path) for path in islice(self._paths, _CHUNK))
            self.enqueued += added
            self._listed = added < _CHUNK

    def _collect_results(self, expected: int) -> int:
        """Add up the results that are there, about ``expected``, and forget them, so that each is read once."""
        collected = 0
        cursor = ""
        while collected < expected:
            page = self._broker.call(Find(QUEUE, State.DONE, cursor, _PAGE))
            for snapshot in page.jobs:
                self.totals.add(_facts(snapshot))
            if page.jobs:
                self._broker.call(Act(QUEUE, Delete(), [snapshot.id for snapshot in page.jobs]))
            collected += len(page.jobs)
            cursor = page.cursor
            if not cursor:
                break
        return collected

    def _collect_failures(self) -> None:
        cursor = ""
        while True:
            page = self._broker.call(Find(QUEUE, State.DEAD, cursor, _PAGE))
            for snapshot in page.jobs:
                self.totals.fail(_failure(snapshot))
            cursor = page.cursor
            if not cursor:
                return


def _facts(snapshot: Snapshot) -> Facts:
    if snapshot.ending is None:
        raise StoreCorrupt(f"{snapshot.queue}/{snapshot.id} is done but has no ending")
    return _read_facts(read_ending(snapshot.ending).result)


def _failure(snapshot: Snapshot) -> Failure:
    job = view(snapshot)
    last = job.history[-1]
    path = job.arguments[0][0] if job.arguments else b""
    return Failure(path, last.error_type.rpartition(".")[2], last.message)


def _waiting(stats: QueueStats) -> int:
    return sum(stats.ready) + stats.scheduled + stats.running + stats.suspect + sum(stats.parked.values())


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
