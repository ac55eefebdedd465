"""Producers: processes that enqueue at a pace and note each call before and after."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from spool.app import Spool
from spool.chaos import handlers
from spool.chaos.handlers import QUEUES, Setting
from spool.chaos.journal import Answer, Answered, Asked, Journal, Wished
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
    for job in jobs(told.seed, told.number, setting.lease):
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
