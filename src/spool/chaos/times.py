"""How long it took: from the death of a worker to the next start of what it ran, and from an outage to work again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from spool.chaos.history import SECOND, Attempt, History
from spool.chaos.journal import Event


class Spread(msgspec.Struct, frozen=True):
    """Seconds, by nearest rank over all values."""

    count: int
    p50: float | None = None
    p99: float | None = None
    max: float | None = None


def spread(nanoseconds: Sequence[int]) -> Spread:
    """Return the spread of some durations.

    >>> spread([1_500_000_000, 500_000_000, 2_000_000_000])
    Spread(count=3, p50=1.5, p99=2.0, max=2.0)
    """
    ordered = sorted(nanoseconds)
    if not ordered:
        return Spread(0)
    p50, p99, top = (ordered[max(0, math.ceil(q * len(ordered) / 100) - 1)] for q in (50, 99, 100))
    return Spread(len(ordered), *(round(value / SECOND, 3) for value in (p50, p99, top)))


class Times(msgspec.Struct, frozen=True):
    """What was measured. ``late`` holds, by promise, the cases in which nothing else explains a longer time."""

    redelivery: dict[str, Spread]
    """By fault: from what was done to a worker to the next start of a job that it ran."""
    resumed: dict[str, Spread]
    """By fault: from the store's return to the next start by each worker."""
    late: dict[str, list[str]]


SLACK: Final = 0.5
"""Seconds that a busy machine may add to what is promised."""
CHILD: Final = 1.0
"""Seconds in which the jobs of a killed child run again under a supervisor that lives."""
MACHINE: Final = 2.0
"""Seconds beyond the lease in which those of a lost machine do."""
RESUME: Final = 5.0
"""Seconds after the return of the store in which every worker has claimed again."""

FROM_START: Final = "kill-all, counted from the start of new workers"

REDELIVERED: Final = "jobs of a dead worker run again in time"
RESUMED: Final = "workers claim again within 5 s of the store's return"


def measure(history: History) -> Times:
    """Measure a run."""
    redelivery: dict[str, list[int]] = defaultdict(list)
    resumed: dict[str, list[int]] = defaultdict(list)
    late: dict[str, list[str]] = {REDELIVERED: [], RESUMED: []}
    for event, before, after in _redelivered(history):
        fault, took = event.fault or "deploy", after.started - event.at
        redelivery[fault].append(took)
        if fault == "kill-all":
            redelivery[FROM_START].append(after.started - event.until)
        bound = _bound(history, event)
        if took > bound and _undisturbed(history, event, before, after):
            late[REDELIVERED].append(
                f"{before.id}: {fault} of {event.worker or 'all'}, and {took / SECOND:.2f} s until attempt "
                f"{after.number}; {bound / SECOND:.1f} s are promised"
            )
    for event, worker, again in _resumed(history):
        if again is not None:
            resumed[event.fault].append(again - event.until)
        limit = event.until + int(RESUME * SECOND)
        calm = limit < history.evidence.loaded and not history.disturbances(event.at - history.lease, limit, event)
        if calm and (again is None or again > limit):
            when = "not at all" if again is None else f"after {(again - event.until) / SECOND:.2f} s"
            late[RESUMED].append(f"worker {worker} after {event.fault}: {when}")
    return Times(_spreads(redelivery), _spreads(resumed), late)


def _spreads(found: dict[str, list[int]]) -> dict[str, Spread]:
    return {fault: spread(values) for fault, values in sorted(found.items())}


def _redelivered(history: History) -> Iterator[tuple[Event, Attempt, Attempt]]:
    """Yield what took an attempt away, the attempt, and the next one of the job."""
    told = {event.worker: event for event in history.of("term")}
    # Its processes have a moment to end in order when a supervisor is gone.
    told |= {event.worker: event for event in history.of("kill") if event.fault == "kill-supervisor"}
    for attempts in history.attempts.values():
        for before, after in pairwise(attempts):
            event = history.harm(before) if before.ended is None or before.ended > after.started else None
            if event is None and before.how == "cancelled" and before.worker in told:
                term = told[before.worker]
                if before.ended is not None and term.at < before.ended:
                    event = term if term.fault else msgspec.structs.replace(term, at=before.ended)
            if event is not None and after.started >= event.at:
                yield event, before, after


def _bound(history: History, event: Event) -> int:
    match event.fault:
        case "kill-child":
            return int((CHILD + SLACK) * SECOND)
        case "":  # a deploy; nobody takes over before there is a process that was not told to stop
            return history.served(event.at) - event.at + int((CHILD + SLACK) * SECOND)
        case "kill-all":  # nor here before there are the new ones
            return max(history.lease, event.until - event.at) + int((MACHINE + SLACK) * SECOND)
        case _:
            return history.lease + int((MACHINE + SLACK) * SECOND)


def _undisturbed(history: History, event: Event, before: Attempt, after: Attempt) -> bool:
    # A job that was in a crash before goes through the line of suspects, which has a pace of its own.
    if before.number > 1 or before.id in history.poisons or _is_blocked(history, event.at, after):
        return False
    window = event.at + _bound(history, event)
    others = history.disturbances(event.at - 2 * history.lease, min(after.started, window), event)
    return not [each for each in others if each.kind != "term" or event.fault]


def _is_blocked(history: History, since: int, attempt: Attempt) -> bool:
    """Whether a job blocked the loop of that process before the attempt: it was claimed, and waited for the loop."""
    blocks = (
        each for id, fault in history.poisons.items() if fault == "block-loop" for each in history.attempts.get(id, ())
    )
    life = history.lives.get(attempt.pid)
    processes = {attempt.pid, *(life.family if life else ())}  # a process of the pool is given its jobs by that loop
    return any(
        each.pid in processes and each.started <= attempt.started and (each.ended is None or each.ended >= since)
        for each in blocks
    )


def _resumed(history: History) -> Iterator[tuple[Event, str, int | None]]:
    """Yield each return of the store, each worker that was there all the time, and when that started a job again."""
    starts: dict[str, list[int]] = defaultdict(list)
    for attempts in history.attempts.values():
        for attempt in attempts:
            starts[attempt.worker].append(attempt.started)
    ups = {event.worker: event.at for event in history.of("up")}
    for event in history.of("outage", "cut"):
        if event.fault in ("reply-lost", "delay"):
            continue
        for worker, up in ups.items():
            if up > event.at or not _serves(history, worker, up, event.until + int(RESUME * SECOND)):
                continue
            if event.worker in ("", worker):
                again = min((at for at in starts[worker] if at >= event.until), default=None)
                yield event, worker, again


def _serves(history: History, worker: str, since: int, until: int) -> bool:
    """Whether nothing ended or stopped a worker in that time."""
    ends = [event.at for event in history.of("term", "exit") if event.worker == worker]
    harms = [event for event in history.of("kill", "stop") if event.worker in ("", worker)]
    ends += [event.at for event in harms if event.fault not in ("kill-child", "stop-child")]
    return not any(since <= at < until for at in ends)
