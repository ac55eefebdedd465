"""Runs a benchmark: a store of its own, ordinary worker processes, a producer, and the books at the end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, Protocol

import msgspec

from spool import __version__
from spool.app import Spool
from spool.bench import load
from spool.bench.account import Account, Books, account, rows
from spool.bench.calibrate import Calibration, calibrate
from spool.bench.machine import Memory, MemoryTrace, cpu_seconds, family, machine, memory_of, versions
from spool.bench.plan import Plan
from spool.bench.produce import Producer
from spool.bench.result import BenchResult, Latency, Measured, Store
from spool.bench.series import Series, Spread, series, spread
from spool.bench.timing import one_of
from spool.bench.usertask import UserTask
from spool.broker import Act, Broker, Find, Get, Pause, Resume, Stats
from spool.broker.scratch import scratch
from spool.errors import BenchError, BrokerUnavailable
from spool.job import State
from spool.supervisor import Fleet, WorkerOptions

if TYPE_CHECKING:
    from spool.bench.produce import Sender

Stage = Literal["starting workers", "warming up", "enqueueing", "draining", "stopping workers", "closing the books"]
OnStage = Callable[[Stage, int], None]
"""Told the stage that begins, or goes on, and how many jobs have ended so far."""

_POLL_SECONDS: Final = 0.05
_REPORT_SECONDS: Final = 0.25
_IN_STORE: Final = (State.SCHEDULED, State.READY, State.PARKED, State.SUSPECT, State.RUNNING, State.DEAD)


def run(
    plan: Plan,
    url: str | None = None,
    on_stage: OnStage | None = None,
    *,
    repeat: int = 1,
    raw: IO[bytes] | None = None,
    observer: Observer | None = None,
) -> BenchResult:
    """Carry out a plan on a store of its own (see `spool.broker.scratch`), ``repeat`` times; return what came out.

    ``raw`` gets a line of JSON for each job (`spool.bench.account.JobRow`), repetition after repetition; ``observer``
    looks on.

    Workers have registered with the broker before the first job is enqueued; with ``prefill`` they start when all are.
    Leaves nothing behind. Raises `ConfigError` for a store that is not empty, `BrokerError` for one that cannot be
    used, `EnqueueInterrupted` if not all jobs could be enqueued, and `BenchError` if the warm-up does not end.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    runs: list[Run] = []
    calibrations: list[Calibration] = []
    where = ""
    for _ in range(repeat):
        with scratch(url, "bench") as store, tempfile.TemporaryDirectory(prefix="spool-bench-") as directory:
            bench = Bench(plan, store, Path(directory), on_stage, observer)
            where = where or bench.url
            try:
                calibrations += calibrate(bench.app.broker)
                runs.append(bench.run(raw))
                calibrations += calibrate(bench.app.broker)
            finally:
                bench.close()
    return document(plan, started, where, runs, calibrations)


def document(
    plan: Plan, started: str, url: str, runs: Sequence[Run], calibrations: list[Calibration] | None = None
) -> BenchResult:
    """Return the document of some runs on stores such as that of the URL."""
    median = sorted(runs, key=lambda each: each.measured.per_s or 0.0)[len(runs) // 2]
    return BenchResult(
        started=started,
        config=plan,
        broker=Store(url.partition(":")[0], url),
        versions={"spool": __version__, **versions()},
        machine=machine(),
        result=median.measured,
        runs=[each.measured for each in runs],
        calibrations=calibrations or [],
        series=median.series,
        spread=median.spread,
    )


def _ignore(_: Stage, __: int) -> None:
    pass


class Observer(Protocol):
    """Looks on while a benchmark runs."""

    timed: bool
    """Whether worker processes note where their time goes (`spool.bench.timing`)."""

    def broker(self, url: str) -> Broker:
        """Return the producer's broker."""
        ...

    def watching(self, fleet: Fleet, directory: Path, /) -> AbstractContextManager[None]:
        """Look at the workers from here on; the directory is the run's. With ``prefill`` the jobs are there by then."""
        ...

    def producing(self) -> AbstractContextManager[None]:
        """Look at the producer while it enqueues."""
        ...

    def end(self, books: Books, closed: Account, directory: Path) -> None:
        """Take in what the run came to."""
        ...


def _senders(plan: Plan, store: str | Broker, work: load.Load) -> tuple[Spool, Sequence[Sender]]:
    if plan.task is not None:
        app, calls = UserTask(plan.task).sender(store, load.QUEUE, plan.priority)
        return app, [calls]
    app, tasks = load.make(store, work, load.Notes())
    return app, tasks if plan.priority == "normal" else [task.options(priority=plan.priority) for task in tasks]


class Run(msgspec.Struct, frozen=True):
    """What came out of one run."""

    measured: Measured
    series: Series
    spread: Spread


class Bench:
    """One run; or several on one store, one after the other, each begun by `begin`."""

    def __init__(
        self,
        plan: Plan,
        store: str,
        directory: Path,
        on_stage: OnStage | None = None,
        observer: Observer | None = None,
        *,
        flush: float = load.FLUSH_SECONDS,
    ) -> None:
        self.plan, self._directory, self._observer = plan, directory, observer
        self._listened, self._on_stage = on_stage is not None, on_stage or _ignore
        work = load.Load(plan.kind, plan.work_ms / 1000, plan.failing)
        self._sender, self._senders = _senders(plan, observer.broker(store) if observer else store, work)
        self.app = Spool(store) if observer else self._sender  # the producer may close what it has been given
        self.url = self.app.broker.url
        timed = one_of(plan.jobs) if observer is not None and observer.timed else 0
        target = load.prepare(directory, load.Run(store, work, plan.task, timed, flush))
        self._options = WorkerOptions(
            app=target,
            queues=(load.QUEUE,),
            concurrency=plan.concurrency,
            processes=plan.workers,
            grace=1.0,
            profile=str(directory) if observer else None,  # for its leave to look at the processes
            log_level="error" if plan.kind in ("failing", "task") else "warning",  # which would tell of each failure
        )
        self.producer = Producer(plan, self._sender, self._senders, self._look)
        self._next_report = 0.0
        self._warm: dict[str, int] = {}
        """The store's totals when the run began, or after its warm-up."""
        self._fleet_now: Fleet | None = None
        self._trace = MemoryTrace()

    def begin(self, jobs: int, first: int) -> None:
        """Begin a run of so many jobs, which are numbered from ``first`` on: others have had the ones below."""
        self.plan = msgspec.structs.replace(self.plan, jobs=jobs)
        self.producer = Producer(self.plan, self._sender, self._senders, self._look, first)
        self._trace = MemoryTrace()
        self._warm = self.app.broker.call(Stats(load.QUEUE)).totals

    def close(self) -> None:
        self.app.close()
        self._sender.close()

    def run(self, raw: IO[bytes] | None = None) -> Run:
        if self.plan.prefill:
            self.produce()
            if self._observer is not None:
                self.hold(Pause())  # until somebody looks
            with self.fleet() as fleet, self._watching(fleet):
                if self._observer is not None:
                    self.hold(Resume())
                memory, cpu = self._drain(fleet, 0.0)
        else:
            with self.fleet() as fleet:
                self.warm_up()
                with self._watching(fleet):
                    before = cpu_seconds(family(fleet.pids))
                    self.produce()
                    memory, cpu = self._drain(fleet, before)
        ids = self.producer.ids if self.plan.task else ()
        return self.close_books(load.Reader(self._directory).read(ids), memory, cpu, raw)

    @contextmanager
    def fleet(self) -> Generator[Fleet]:
        self._on_stage("starting workers", 0)
        with Fleet(self._options) as fleet:
            try:
                fleet.wait_ready()
                self._fleet_now = fleet
                yield fleet
            except BaseException:
                fleet.kill()  # the store goes as well: there is nothing to hand back
                raise
            self._on_stage("stopping workers", self.plan.jobs)

    def warm_up(self) -> None:
        if not self.plan.warmup:
            return
        self._on_stage("warming up", 0)
        jobs, deadline = self.producer.warm_up(), time.monotonic() + self.plan.max_seconds
        while (ended := self._ended()) < jobs:
            if time.monotonic() > deadline:
                raise BenchError(f"only {ended} of {jobs} warm-up jobs ended in {self.plan.max_seconds:g} s")
            time.sleep(_POLL_SECONDS)
        time.sleep(_POLL_SECONDS)  # the workers' first claim that counts is one after a pause
        self._warm = self.app.broker.call(Stats(load.QUEUE)).totals

    def _ended(self) -> int:
        return sum(self._totals().get(state, 0) for state in ("done", "dead", "cancelled"))

    def _totals(self) -> dict[str, int]:
        totals = self.app.broker.call(Stats(load.QUEUE)).totals
        return {name: total - self._warm.get(name, 0) for name, total in totals.items()}

    def hold(self, action: Pause | Resume) -> None:
        """Keep the workers from jobs that are there already, or no longer."""
        self.app.broker.call(Act(load.QUEUE, action))

    def _watching(self, fleet: Fleet) -> AbstractContextManager[None]:
        return self._observer.watching(fleet, self._directory) if self._observer else nullcontext()

    def produce(self) -> None:
        self._on_stage("enqueueing", 0)
        with self._observer.producing() if self._observer else nullcontext():
            self.producer.run()

    def _look(self) -> None:
        """Look at the workers' memory, and say how far it is, while jobs are enqueued."""
        if self._fleet_now is not None:
            self._trace.look(self._fleet_now.pids)
        now = time.monotonic()
        # It costs the store a question, so nobody asks if nobody listens.
        if self._listened and now >= self._next_report:
            self._next_report = now + _REPORT_SECONDS
            with suppress(BrokerUnavailable):  # what it means for the run, the producer will say
                self._on_stage("enqueueing", self._ended())

    def _drain(self, fleet: Fleet, cpu_before: float) -> tuple[Memory, float]:
        self.wait(fleet)
        pids = family(fleet.pids)
        return memory_of(pids), cpu_seconds(pids) - cpu_before

    def wait(self, fleet: Fleet, poll: float = _POLL_SECONDS) -> None:
        """Wait until all jobs have ended, or the time is up, and look at the processes meanwhile."""
        jobs = len(self.producer.ids)
        while True:
            ended = self._ended()
            self._on_stage("draining", ended)
            self._trace.look(fleet.pids)
            if ended >= jobs or time.monotonic_ns() > self.producer.deadline:
                break
            time.sleep(poll)

    def close_books(self, noted: load.Noted, memory: Memory, cpu: float, raw: IO[bytes] | None = None) -> Run:
        """Return what the run came to, by what the workers noted of it."""
        self._on_stage("closing the books", self.plan.jobs)
        producer, broker = self.producer, self.app.broker
        books = Books(
            ids=producer.ids,
            called=producer.called,
            due=producer.due,
            starts=noted.starts,
            notes=[note for each in noted.notes.values() for note in each],
            found={},
            began=producer.began,
        )
        closed = account(books)
        if closed.lost:
            # No worker noted their end, so the store is asked for them.
            books = msgspec.structs.replace(books, found=_look_for(broker, books.ids))
            closed = account(books)
        if self._observer is not None:
            self._observer.end(books, closed, self._directory)
        if raw is not None:
            encode = msgspec.json.Encoder().encode
            raw.writelines(encode(row) + b"\n" for row in rows(books))
        measured = _measured(self.plan, producer, closed, totals=self._totals(), memory=memory, cpu=cpu)
        return Run(measured, series(books, noted.notes, self._trace), spread(books))


def _look_for(broker: Broker, ids: Sequence[str]) -> dict[str, State]:
    """Return where jobs stand by what the store says: those it lists, and any other that it knows by its id."""
    found: dict[str, State] = {}
    for state in _IN_STORE:
        cursor = ""
        while True:
            page = broker.call(Find(load.QUEUE, state, cursor, 1000))
            found.update((job.id, job.state) for job in page.jobs)
            cursor = page.cursor
            if not cursor:
                break
    for id in ids:
        if id not in found and (snapshot := broker.call(Get(load.QUEUE, id))) is not None:
            found[id] = snapshot.state
    return found


def _measured(
    plan: Plan, producer: Producer, closed: Account, *, totals: dict[str, int], memory: Memory, cpu: float
) -> Measured:
    end = closed.last_settle or producer.ended
    enqueueing = (producer.ended - producer.began) / 1e9
    # A claim may have been on its way when the first job came.
    draining = (end - max(closed.first_claim, producer.began)) / 1e9 if closed.first_claim else 0.0
    total = (end - producer.began) / 1e9
    return Measured(
        complete=closed.jobs == plan.jobs and not closed.unfinished,
        jobs=closed.jobs,
        done=closed.done,
        failed=closed.failed,
        dead=closed.dead,
        lost=closed.lost,
        unfinished=closed.unfinished,
        duplicated=closed.duplicated,
        extra_starts=closed.extra_starts,
        retried=closed.retried,
        refused=closed.refused,
        store=totals,
        seconds=round(total, 6),
        per_s=_rate(closed.done, total),
        enqueue_seconds=round(enqueueing, 6),
        enqueue_per_s=_rate(closed.jobs, enqueueing),
        drain_seconds=round(draining, 6),
        drain_per_s=_rate(closed.done, draining),
        latency_ms=Latency(closed.behind, closed.start, closed.start_after_call, closed.completion),
        memory_mb=memory,
        worker_cpu_us=round(cpu / closed.done * 1e6, 2) if closed.done and cpu else None,
    )


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if count and seconds > 0 else None
