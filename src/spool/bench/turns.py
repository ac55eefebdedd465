"""One side of runs in turns: its workers live on from run to run, and each run begins when it is told to.

Whoever started it gives the orders, over a socket, a line of JSON each. `Fill` begins a run of so many jobs, and with
``prefill`` enqueues them while the queue is paused. `Go` lets the workers at them, or without ``prefill`` enqueues them
now, and is answered when all have ended. `Close` is answered with the run's result. Only between `Go` and its answer
is there work of note: that is when the others have to be idle.

Jobs are numbered through, and `End` is answered with the books of the whole life, closed when its workers have ended:
a job that ran once more, in somebody else's turn, is in these.
"""

from __future__ import annotations

import socket
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from spool.bench import load
from spool.bench.account import Books, Settles, account
from spool.bench.machine import cpu_seconds, family, memory_of
from spool.bench.plan import Plan
from spool.bench.result import BenchResult
from spool.bench.runner import Bench, document
from spool.broker import Pause, Resume
from spool.broker.scratch import scratch
from spool.errors import BenchError
from spool.supervisor import Fleet

_FLUSH_SECONDS: Final = 0.05
_POLL_SECONDS: Final = 0.01
_REST_SECONDS: Final = 2 * load.PAUSE_NS / 1e9
"""Before a run: without a pause, the claim that it begins with would not be noted."""
_PATIENCE_SECONDS: Final = 2.0
"""How long notes may take to be written."""


class Fill(msgspec.Struct, frozen=True, tag="fill"):
    """Get ready for a run of so many jobs; answered with `Done`."""

    jobs: int


class Go(msgspec.Struct, frozen=True, tag="go"):
    """Run; answered with `Done` when all jobs have ended, or ``max_seconds`` are over."""


class Close(msgspec.Struct, frozen=True, tag="close"):
    """Answered with the run's `BenchResult`."""


class End(msgspec.Struct, frozen=True, tag="end"):
    """Answered with `Life`, before the process ends. It ends as well if it hears nothing any more."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The order is carried out; also said once at the beginning, when the workers are ready."""


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    result: BenchResult


class Life(msgspec.Struct, frozen=True, tag="life"):
    """What became of all jobs, those of runs that do not count included."""

    jobs: int
    lost: int
    duplicated: int


Order: TypeAlias = Fill | Go | Close | End
Answer: TypeAlias = Done | Closed | Life


def take_turns(plan: Plan, url: str | None, descriptor: int) -> None:
    """Carry out a plan on a store of its own as often as asked for, by the orders that come over a socket.

    Raises what `spool.bench.run` raises.
    """
    with socket.socket(fileno=descriptor) as line, line.makefile("rwb") as file:
        line.set_inheritable(False)  # else the line were open for as long as any worker lives

        def answer(with_: Answer) -> None:
            file.write(msgspec.json.encode(with_) + b"\n")
            file.flush()

        with scratch(url, "bench") as store, tempfile.TemporaryDirectory(prefix="spool-bench-") as directory:
            turns = _Turns(plan, store, Path(directory))
            with closing(turns.bench):
                with turns.bench.fleet() as fleet:
                    turns.bench.warm_up()
                    answer(Done())
                    for order in _orders(file):
                        answer(turns.obey(order, fleet))
                answer(turns.life())


def _orders(file: Iterator[bytes]) -> Iterator[Fill | Go | Close]:
    decode = msgspec.json.Decoder(Order).decode
    for text in file:
        order = decode(text)
        if isinstance(order, End):
            return
        yield order
    raise BenchError("whoever gave the orders is gone")


class _Turns:
    """Runs on one store, by one fleet."""

    def __init__(self, plan: Plan, store: str, directory: Path) -> None:
        self.bench = Bench(plan, store, directory, flush=_FLUSH_SECONDS)
        self._directory, self._reader = directory, load.Reader(directory)
        self._ids: list[str] = []
        """Of all jobs of runs that were closed."""
        self._started = ""
        self._cpu = 0.0

    def obey(self, order: Fill | Go | Close, fleet: Fleet) -> Done | Closed:
        match order:
            case Fill(jobs):
                self._fill(jobs)
            case Go():
                self._go(fleet)
            case Close():
                return Closed(self._close(fleet))
        return Done()

    def _fill(self, jobs: int) -> None:
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._reader.read()  # warm-up
        self.bench.begin(jobs, len(self._ids))
        if self.bench.plan.prefill:
            self.bench.hold(Pause())
            self.bench.produce()
        time.sleep(_REST_SECONDS)

    def _go(self, fleet: Fleet) -> None:
        before = cpu_seconds(family(fleet.pids))
        if self.bench.plan.prefill:
            # The wait for its turn is not the queue's.
            self.bench.producer.postpone(time.monotonic_ns() - self.bench.producer.ended)
            self.bench.hold(Resume())
        else:
            self.bench.produce()
        self.bench.wait(fleet, _POLL_SECONDS)
        self._cpu = cpu_seconds(family(fleet.pids)) - before

    def _close(self, fleet: Fleet) -> BenchResult:
        bench = self.bench
        run = bench.close_books(self._noted(), memory_of(family(fleet.pids)), self._cpu)
        self._ids += bench.producer.ids
        return document(bench.plan, self._started, bench.url, [run])

    def _noted(self) -> load.Noted:
        """Return what workers noted of the run, as soon as they have noted the end of each of its jobs."""
        ids = self.bench.producer.ids
        wanted, ended = set(ids), 0
        noted = load.Noted([], {})
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            new = self._reader.read(ids if self.bench.plan.task else ())
            noted.starts.extend(self._numbered(starts) for starts in new.starts)
            for process, notes in new.notes.items():
                noted.notes.setdefault(process, []).extend(notes)
                ended += sum(_ended(note, wanted) for note in notes)
            if ended >= len(ids) or time.monotonic() > until:
                return noted
            time.sleep(_POLL_SECONDS)

    def _numbered(self, starts: array[int]) -> array[int]:
        """Return starts numbered as those of a run by itself."""
        if not self.bench.plan.task:
            for index in range(0, len(starts), 2):
                starts[index] -= len(self._ids)
        return starts

    def life(self) -> Life:
        """Return the books of all runs, when no worker is left that could add to them."""
        everything = load.Reader(self._directory).read(self._ids if self.bench.plan.task else ())
        times = [0] * len(self._ids)
        notes = [note for each in everything.notes.values() for note in each]
        closed = account(Books(self._ids, times, times, everything.starts, notes, found={}))
        return Life(closed.jobs, closed.lost, closed.duplicated)


def _ended(note: object, wanted: set[str]) -> int:
    if not isinstance(note, Settles):
        return 0
    other = [id for id, outcome in note.other if outcome in ("Died", "Cancelled")]
    return sum(id in wanted for id in (*note.done, *other))
