"""What the store says when all is quiet, asked through the public verbs alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from spool.broker import Broker, Find, Get, QueueStats, Stats, Verb
from spool.errors import BrokerUnavailable
from spool.job import State
from spool.view import Job, view

R = TypeVar("R")

LISTED: Final = (
    State.SCHEDULED,
    State.READY,
    State.PARKED,
    State.SUSPECT,
    State.RUNNING,
    State.DEAD,
)
"""The states whose listing is complete; that of endings goes back 10,000."""


class Found(msgspec.Struct, frozen=True):
    """A job as the store tells it. ``outcomes`` are by the number of the attempt, but for the accepted one."""

    queue: str
    state: State
    task: str = ""
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    generation: int = 0
    outcomes: dict[int, str] = {}
    accepted: int | None = None
    """The attempt that says so in the result; None when there is no result."""
    error: str = ""
    worker: str = ""


class Survey(msgspec.Struct, frozen=True):
    """Every job that the store knows, and what it counts, by queue."""

    jobs: dict[str, Found]
    stats: dict[str, QueueStats]
    listed: dict[str, dict[str, int]]


def survey(broker: Broker, ids: Mapping[str, Iterable[str]]) -> Survey:
    """Ask for every id (by queue), list every state, and count."""
    jobs: dict[str, Found] = {}
    stats: dict[str, QueueStats] = {}
    listed: dict[str, dict[str, int]] = {}
    for queue, mine in ids.items():
        for id in mine:
            snapshot = patient(broker, Get(queue, id))
            if snapshot is not None:
                jobs[id] = read(view(snapshot))
        listed[queue] = {}
        for state in (*LISTED, State.DONE, State.CANCELLED):
            found = _list(broker, queue, state)
            listed[queue][state] = len(found)
            for job in found:
                jobs.setdefault(job.id, read(job))
        stats[queue] = patient(broker, Stats(queue))
    return Survey(jobs, stats, listed)


def _list(broker: Broker, queue: str, state: State) -> list[Job]:
    found: list[Job] = []
    cursor = ""
    while True:
        page = patient(broker, Find(queue, state, cursor, 1000))
        found += [view(snapshot) for snapshot in page.jobs]
        cursor = page.cursor
        if not cursor:
            return found


def read(job: Job) -> Found:
    """Return what of a job's view is evidence."""
    return Found(
        job.queue,
        job.state,
        job.task,
        job.attempts,
        job.failures,
        job.crashes,
        job.generation,
        {line.number: line.outcome for line in job.history},
        _attempt_in(job.result),
        job.history[-1].error_type if job.history else "",
        job.worker,
    )


def _attempt_in(result: Any) -> int | None:
    try:
        return int(result["attempt"])
    except (TypeError, KeyError, ValueError):
        return None


def patient(broker: Broker, verb: Verb[R], tries: int = 20) -> R:
    """Ask again when the store is not to be reached for a moment."""
    for _ in range(tries):
        try:
            return broker.call(verb)
        except BrokerUnavailable:
            time.sleep(0.1)
    return broker.call(verb)
