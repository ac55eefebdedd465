"""Producers: processes that enqueue at a pace and note each call before and after."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from spool.app import Spool
from spool.chaos import handlers
from spool.chaos.handlers import QUEUES, Setting
from spool.chaos.journal import Answer, Answered, Asked, Journal, Wished, only, read
from spool.chaos.processes import end, send, spawn
from spool.errors import BrokerError, BrokerFull, BrokerRefused, JobConflict, SpoolError

AGAIN: Final = 0.5
"""The part of the enqueues with an unknown end that are sent again, as a producer with an idempotent id may."""
CANCELLED: Final = 0.01

PRODUCE: Final = "import sys; from spool.chaos.produce import main; main(*sys.argv[1:])"
"""What a fresh interpreter runs to be a producer; its arguments are the directory and a `Pace` as JSON."""


class Job(msgspec.Struct, frozen=True):
    """A call to make."""

    id: str
    queue: str
    task: str
    args: tuple[Any, ...] = ()
    delay: float | None = None


class Sender:
    """Enqueues, and keeps the journal of it."""

    def __init__(self, app: Spool, journal: Journal) -> None:
        self._app = app
        self._journal = journal

    def send(self, job: Job) -> bool:
        """Enqueue one job; returns whether it is worth sending again, since nobody knows whether it is there."""
        task = self._app.tasks[job.task].options(id=job.id, queue=job.queue, delay=job.delay)
        self._journal.note(Asked(job.id, job.queue, job.task, time.monotonic_ns()))
        answer: Answer
        error = ""
        try:
            handle = task.enqueue(*job.args)
            answer = "acknowledged" if handle.created else "existing"
        except (BrokerFull, BrokerRefused) as problem:
            answer, error = "refused", f"{type(problem).__name__}: {problem}"
        except JobConflict as problem:
            answer, error = "conflict", str(problem)
        except (SpoolError, OSError) as problem:
            answer, error = "unknown", f"{type(problem).__name__}: {problem}"
        self._journal.note(Answered(job.id, answer, time.monotonic_ns(), error))
        return answer == "unknown"

    def cancel(self, job: Job) -> None:
        """Ask for a job's cancellation; it may come too late."""
        self._journal.note(Wished(job.id, time.monotonic_ns()))
        try:
            self._app.tasks[job.task].handle(job.id, job.queue).cancel("not wanted")
        except (BrokerError, OSError):
            return


def jobs(seed: int, number: int, lease: float) -> Iterator[Job]:
    """Yield what producer ``number`` enqueues, without end: the same for the same seed."""
    dice = random.Random(f"spool chaos {seed} {number}")  # noqa: S311 - to be repeated, not to be secret
    count = 0
    while True:
        count += 1
        queue = QUEUES[dice.random() < 0.2]
        task = dice.choices(tuple(_MIX), tuple(_MIX.values()))[0]
        args: tuple[Any, ...] = ()
        delay = None
        match task:
            case "slow":
                args = (round(dice.uniform(0.2, 1.5) * lease, 3),)
            case "threaded" | "pooled":
                args = (round(dice.uniform(0.01, 0.1), 3),)
            case "flaky":
                args = (dice.randint(1, 2),)
            case "doomed":
                args = (1000,)
            case _:
                delay = round(dice.uniform(0.1, lease), 3) if dice.random() < 0.05 else None
        yield Job(f"p{number}-{count}", queue, task, args, delay)


_MIX: Final = {"quick": 78, "slow": 6, "threaded": 6, "pooled": 3, "flaky": 6, "doomed": 1}


class Pace(msgspec.Struct, frozen=True):
    """What a producer process is told."""

    number: int
    seed: int
    rate: float


class Producers:
    """The producers of a run: real processes, killed and started again. From the main thread only, as the workers."""

    def __init__(self, directory: Path, paces: Sequence[Pace]) -> None:
        self._directory = directory
        self._paces = paces
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start them all."""
        self._processes = [self._spawn(pace) for pace in self._paces]

    def _spawn(self, pace: Pace) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PRODUCE, str(self._directory), msgspec.json.encode(pace).decode()]
        return spawn(command, self._directory / f"producer-{pace.number}.err", cwd=self._directory)

    @property
    def begun(self) -> bool:
        """Whether each has enqueued something."""
        logs = [self._directory / f"producer-{pace.number}.log" for pace in self._paces]
        return all(log.exists() and log.stat().st_size for log in logs)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def kill(self, pick: float) -> int:
        """SIGKILL one of them; return its place."""
        place = int(pick * len(self._processes))
        send(self._processes[place].pid, signal.SIGKILL)
        self._processes[place].wait()
        return place

    def revive(self, place: int) -> None:
        """Start another in the place of one that was killed: it goes on where that one stopped."""
        self._processes[place] = self._spawn(self._paces[place])

    def end(self, timeout: float) -> None:
        """Have them finish the call that they are in."""
        for process in self._processes:
            end(process, timeout)


def rest(all_jobs: Iterator[Job], asked: Iterable[Asked]) -> Iterator[Job]:
    """Yield what is left after those that were asked for, from the newest of them on: its answer may be unknown.

    >>> from itertools import islice
    >>> done = [Asked(f"p1-{count}", "chaos", "quick", count) for count in (1, 2)]
    >>> [job.id for job in islice(rest(jobs(0, 1, 2.0), done), 3)]
    ['p1-2', 'p1-3', 'p1-4']
    """
    left = {line.id for line in asked}
    for job in all_jobs:
        left.discard(job.id)
        if not left:
            yield job


def main(directory: str, pace: str) -> None:
    """Enqueue until SIGTERM."""
    stopped = False

    def stop(_signum: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    where, told = Path(directory), msgspec.json.decode(pace, type=Pace)
    setting = msgspec.json.decode((where / "producers.json").read_bytes(), type=Setting)
    sender = Sender(handlers.make(where, setting), Journal(where / f"producer-{told.number}.log"))
    dice = random.Random(f"spool chaos {told.seed} {told.number} again")  # noqa: S311 - as above
    unknown: list[Job] = []
    due = time.monotonic()
    asked = only(Asked, read(where, f"producer-{told.number}.log"))
    for job in rest(jobs(told.seed, told.number, setting.lease), asked):
        due = max(due + 1 / told.rate, time.monotonic() - 1.0)  # after an outage it catches up a second, and no more
        time.sleep(max(0.0, due - time.monotonic()))
        if stopped:
            break
        if sender.send(job):
            unknown += [job] if dice.random() < AGAIN else []
        else:
            if dice.random() < CANCELLED:
                sender.cancel(job)
            if unknown and sender.send(again := unknown.pop()):
                unknown.append(again)
