"""The profiled benchmark: CPU and memory profiles of the processes that carry a load, and where its time goes.

The same load is carried several times. Runs that are looked at take turns with runs that are not, so that what looking
costs is known, and allocations are recorded in a run of their own, since that costs far more. Profile and breakdown are
of the former runs, the benchmark's figures of those that nobody looked at.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from spool.bench.account import Account, Books, Settles, rows
from spool.bench.bottleneck import bottleneck
from spool.bench.breakdown import (
    STORE_ROWS,
    Breakdown,
    TaskKind,
    Window,
    cost_of,
    job_sum,
    journeys,
    rows_of,
    sqlite_rows,
    trips_and_runs,
    worker_sum,
)
from spool.bench.plan import Plan
from spool.bench.result import BenchResult, joined
from spool.bench.runner import Observer, OnStage, run
from spool.bench.sampler import Sample, Sampler
from spool.bench.stacks import in_handlers, shares
from spool.bench.storeload import load_of
from spool.bench.timing import TimedBroker, Trip, read_notes, thread_names
from spool.bench.usertask import UserTask
from spool.broker import Broker, connect
from spool.profile import CpuRecorder, MemoryRecorder, Profile, merge, read
from spool.profile.cpu import find_spy
from spool.supervisor import Fleet

Inside = tuple[dict[str, float], float | None]
"""What a store did for each job, in nanoseconds, and the share of the time in which it worked."""
Side = Literal["worker", "producer", "both"]
OnRun = Callable[[str, int], OnStage | None]
"""Told what is done in the run that begins, and how many jobs it has; returns who listens to its stages."""

RATE: Final = 10
"""Stacks a second, of all worker processes together. For each a process pauses for 0.7 ms."""
_LOWEST_RATE: Final = 5
"""Of each process, however many there are."""
_SETTLED: Final = 0.8
"""Seconds from where the workers are ready to where they begin, with looks and without. Whoever begins to look needs
some of them, and workers that have been idle for so long take 25 ms more for their first thousands of jobs."""
_PRODUCER_RATE: Final = 100
"""What that costs is not in the time to drain, and enqueueing takes a part of it."""
_MOST_JOBS: Final = 500_000


class Profiled(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; profiles of a side that was not asked for are None."""

    document: BenchResult
    cpu: Profile | None = None
    memory: Profile | None = None
    producer_cpu: Profile | None = None
    producer_memory: Profile | None = None


def profiled(
    plan: Plan,
    url: str | None = None,
    *,
    side: Side = "worker",
    pairs: int = 3,
    seconds: float,
    on_run: OnRun = lambda _, __: None,
) -> Profiled:
    """Carry out a plan `runs_of` times; return what came out, with the document's `Breakdown`.

    Two first runs do not count: they say how many jobs take ``seconds``, and the others have so many, if they are more
    than the plan's. Raises what `spool.bench.run` raises, and `ConfigError` or `ProfileError` if processes cannot be
    recorded.
    """
    find_spy()  # rather now than after the first run

    def carry(what: str, plan: Plan, observer: Observer) -> BenchResult:
        return run(plan, url, on_run(what, plan.jobs), observer=observer)

    # The plan's jobs may be over before it can be told how fast they go.
    shortest = carry("warming up", plan, Bystander())
    first = carry("warming up", _longer(plan, shortest, seconds / 3), Bystander())
    few, plan = (_longer(plan, first, each) for each in (seconds / 6, seconds))
    free: list[BenchResult] = []
    looked: list[BenchResult] = []
    lookers: list[Looker] = []
    for pair in range(pairs):
        for looks in (False, True) if pair % 2 == 0 else (True, False):
            if looks:
                lookers.append(Looker(plan, side))
                looked.append(carry("recording", plan, lookers[-1]))
            else:
                free.append(carry("not recording", plan, Bystander()))
    memory = MemoryWatch(side)
    carry("recording memory", few, memory)
    pairs_found = [
        (one.result.drain_per_s or 0.0, other.result.drain_per_s or 0.0)
        for one, other in zip(free, looked, strict=True)
    ]
    return Profiled(
        document=msgspec.structs.replace(
            joined(free, lambda run: run.per_s),
            breakdown=breakdown_of(plan, lookers, pairs_found, sqlite=first.broker.kind == "sqlite"),
        ),
        cpu=_merged([each.profile for each in lookers]),
        memory=memory.workers,
        producer_cpu=_merged([each.producer for each in lookers]),
        producer_memory=memory.producer,
    )


def runs_of(pairs: int) -> int:
    """Return how many runs there are in all: pairs with and without looking, two first ones, and one for memory."""
    return 2 * pairs + 3


def task_kind(plan: Plan) -> TaskKind:
    """Return where the plan's handlers run, or most of them."""
    if plan.task is not None:
        return UserTask(plan.task).settings.kind
    return "thread" if plan.kind == "cpu" else "async"


def _longer(plan: Plan, seen: BenchResult, seconds: float) -> Plan:
    """Return the plan with as many jobs as take so long, in two digits, or with its own if they are more."""
    per_s = plan.rate or (seen.result.drain_per_s if plan.prefill else seen.result.per_s) or 0.0
    wanted = int(float(f"{min(_MOST_JOBS, per_s * seconds):.1e}"))
    return msgspec.structs.replace(plan, jobs=max(plan.jobs, wanted))


def _merged(profiles: Sequence[Profile | None]) -> Profile | None:
    found = [each for each in profiles if each is not None]
    return merge(found) if found else None


# Who looks on


def _settle(began: float) -> None:
    time.sleep(max(0.0, began + _SETTLED - time.monotonic()))


class Bystander:
    """Looks at nothing, but has everything else done as it is for those who do."""

    timed = False

    def broker(self, url: str) -> Broker:
        return connect(url)

    @contextmanager
    def watching(self, _fleet: Fleet, _directory: Path) -> Generator[None]:
        _settle(time.monotonic())
        yield

    @contextmanager
    def producing(self) -> Generator[None]:
        yield

    def end(self, books: Books, closed: Account, directory: Path) -> None:
        pass


class Looker:
    """Records stacks and states of the worker processes, and takes in what they noted."""

    timed = True

    def __init__(self, plan: Plan, side: Side) -> None:
        self._plan, self._side = plan, side
        self._pause = task_kind(plan) != "thread" and plan.kind != "mixed"
        self._trips: list[Trip] = []
        self._samples: list[Sample] = []
        self._load: dict[str, float] = {}
        self._url = ""
        self.profile: Profile | None = None
        self.producer: Profile | None = None
        self.windows: list[Window] = []
        self.journeys: list[list[int]] = []
        self.jobs = 0
        self.waited = 0
        """Nanoseconds from call to accepted outcome, of all jobs."""
        self.ended = 0
        self.store: dict[str, float] = {}
        """Seconds of the store's time, by what it was spent on."""
        self.seconds = 0.0
        """For how long the store was at it."""

    def broker(self, url: str) -> Broker:
        self._url = url
        return TimedBroker(connect(url), self._trips)

    @contextmanager
    def watching(self, fleet: Fleet, directory: Path) -> Generator[None]:
        pids = fleet.pids
        rate = max(_LOWEST_RATE, RATE // len(pids))
        began = time.monotonic()
        with ExitStack() as stack:
            recorder = stack.enter_context(CpuRecorder(pids, rate, pause=self._pause))
            sampler = None if Sampler.missing() else stack.enter_context(Sampler(pids, directory))
            _settle(began)
            before = load_of(self._url)
            yield
            after = load_of(self._url)
            self._samples = sampler.stop() if sampler else []
            self.profile = recorder.stop()
        self.store = {key: after[key] - before.get(key, 0.0) for key in after}

    @contextmanager
    def producing(self) -> Generator[None]:
        if self._side == "worker":
            yield
            return
        with CpuRecorder([os.getpid()], _PRODUCER_RATE) as recorder:
            yield
            self.producer = recorder.stop()

    def end(self, books: Books, closed: Account, directory: Path) -> None:
        self.jobs = closed.done + closed.failed
        for row in rows(books):
            if row.ended is not None:
                self.waited += row.ended - row.called
                self.ended += 1
        notes = read_notes(directory)
        every = [note for found in notes.values() for note in found]
        trips, runs = trips_and_runs(every)
        called = dict(zip(books.ids, books.called, strict=True))
        settles = [note for note in books.notes if isinstance(note, Settles)]
        self.journeys = journeys(called, [*self._trips, *trips], runs, settles)
        self._trips.clear()  # all ids of the run: with many pairs, gigabytes
        if closed.first_claim is None or closed.last_settle is None:
            return
        begin = max(closed.first_claim, books.began)
        self.seconds = (closed.last_settle - (begin if self._plan.prefill else books.began)) / 1e9
        for pid in dict.fromkeys(sample.pid for sample in self._samples):
            samples = [sample for sample in self._samples if sample.pid == pid]
            window = Window(pid, begin, closed.last_settle, samples, thread_names(notes.get(pid, ())))
            self.windows.append(window)


class MemoryWatch:
    """Records what the processes allocate."""

    timed = False

    def __init__(self, side: Side) -> None:
        self._side = side
        self.workers: Profile | None = None
        self.producer: Profile | None = None

    def broker(self, url: str) -> Broker:
        return connect(url)

    @contextmanager
    def watching(self, fleet: Fleet, directory: Path) -> Generator[None]:
        if self._side == "producer":
            yield
            return
        fleet.memory.start(directory / "memory")
        yield
        if files := fleet.memory.stop():
            self.workers = merge(map(read, files))

    @contextmanager
    def producing(self) -> Generator[None]:
        if self._side == "worker":
            yield
            return
        recorder = MemoryRecorder()
        with tempfile.TemporaryDirectory(prefix="spool-memory-") as directory:
            recorder.start(Path(directory, "producer"))
            try:
                yield
            finally:
                file = recorder.stop()
            self.producer = read(file)

    def end(self, books: Books, closed: Account, directory: Path) -> None:
        pass


# What it comes to


def breakdown_of(
    plan: Plan, lookers: Sequence[Looker], pairs: Sequence[tuple[float, float]], *, sqlite: bool
) -> Breakdown:
    """Return what those who looked on found; ``pairs`` are drain rates without and with looking."""
    jobs = sum(looker.jobs for looker in lookers)
    windows = [window for looker in lookers for window in looker.windows]
    profile = _merged([looker.profile for looker in lookers])
    kind = task_kind(plan)
    ended = sum(looker.ended for looker in lookers) or 1
    parts = shares(profile) if profile else {}
    workers = worker_sum(windows, parts, jobs, kind, own=in_handlers(profile) if profile else 1.0) if windows else None
    inside, busy = sqlite_rows(windows, jobs) if sqlite else _redis(lookers, jobs)
    clock = workers.clock_us * 1000 if workers else 0.0
    return Breakdown(
        job=job_sum(
            [journey for looker in lookers for journey in looker.journeys],
            sum(looker.waited for looker in lookers) / ended,
        ),
        worker=workers,
        store=rows_of(STORE_ROWS, inside, clock),
        store_busy=busy,
        stacks=_stacks(profile),
        cost=cost_of(pairs),
        bottleneck=bottleneck(workers, busy, kind, sqlite=sqlite) if workers else None,
    )


def _redis(lookers: Sequence[Looker], jobs: int) -> Inside:
    found = [looker for looker in lookers if looker.store and looker.seconds > 0]
    if not found:
        return {}, None
    scripts = sum(looker.store["scripts"] for looker in found)
    processor = sum(looker.store["processor"] for looker in found)
    busy = statistics.mean(min(1.0, looker.store["processor"] / looker.seconds) for looker in found)
    each = 1e9 / max(1, jobs)
    return {"scripts": scripts * each, "processor": processor * each}, round(busy, 4)


def _stacks(profile: Profile | None) -> int:
    if profile is None:
        return 0
    column = profile.column("samples")
    return sum(sample.values[column] for sample in profile.samples if sample.labels.get("thread") == "MainThread")
