"""The books of a run: what became of each job, and how long it took. Pure functions over the full data."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from spool.job import State

Outcome = Literal["Cancelled", "Retried", "Released", "Died"]


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds, by nearest rank over all values; None when there are none."""

    count: int
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


def percentiles(nanoseconds: Iterable[int]) -> Percentiles:
    """Return percentiles by nearest rank: the smallest value that at least q of all values do not exceed.

    >>> percentiles([4_000_000, 1_000_000, 3_000_000, 2_000_000]).p50
    2.0
    """
    ordered = sorted(nanoseconds)
    if not ordered:
        return Percentiles(0)
    p50, p95, p99, top = (
        round(ordered[max(0, math.ceil(q * len(ordered) / 100) - 1)] / 1e6, 4) for q in (50, 95, 99, 100)
    )
    return Percentiles(len(ordered), p50, p95, p99, top)


class Claims(msgspec.Struct, frozen=True, tag="claim"):
    """What a worker process noted of a claim that returned jobs after a pause: when it was sent and answered."""

    at: int
    answered: int


class Settles(msgspec.Struct, frozen=True, tag="settle"):
    """What a worker process noted of one settle: when it was sent and answered, and how accepted attempts ended."""

    at: int
    done: list[str]
    other: list[tuple[str, Outcome]] = []
    refused: int = 0
    sent: int = 0


class Books(msgspec.Struct, frozen=True):
    """Everything that was observed. All times are nanoseconds of CLOCK_MONOTONIC, which all processes share."""

    ids: Sequence[str]
    """Of the jobs whose enqueue was acknowledged; a job's number is its index."""
    called: Sequence[int]
    """By number, when enqueue was called for it."""
    due: Sequence[int]
    """By number, when that was to be; other than ``called`` in an open loop only."""
    starts: Iterable[array[int]]
    """Of each worker process: number, time, number, time, …"""
    notes: Iterable[Claims | Settles]
    found: Mapping[str, State]
    """Jobs the store still knew after the run, of those that no worker noted as ended."""
    began: int = 0
    """When the first enqueue was called; what was noted before it was warm-up."""


class JobRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that is known of one job. Times are nanoseconds of CLOCK_MONOTONIC; None for what did not come to be."""

    number: int
    id: str
    due: int
    called: int
    started: int | None = None
    ended: int | None = None
    outcome: str = "lost"
    starts: int = 0
    returned: int = 0
    """How often it was to be tried again, or handed back: so many starts beyond the first are no surprise."""


class Account(msgspec.Struct, frozen=True):
    """What became of the jobs: ``jobs == done + failed + lost + unfinished``."""

    jobs: int
    done: int
    failed: int
    """Ended otherwise than done: dead or cancelled."""
    dead: int
    lost: int
    """Acknowledged, but neither ended nor in the store."""
    unfinished: int
    """Still in the store when the run was stopped."""
    duplicated: int
    """Jobs that were started more often than they were to be: more than once, and than once again for each retry."""
    extra_starts: int
    """How many such starts there were."""
    refused: int
    """Outcomes that the broker refused."""
    retried: int
    """Attempts that failed, and were followed by another."""
    behind: Percentiles
    """From due to called."""
    start: Percentiles
    """From due to the handler's start."""
    start_after_call: Percentiles
    """From called to the handler's start."""
    completion: Percentiles
    """From due to the moment the worker knew that the outcome was accepted."""
    first_claim: int | None
    last_settle: int | None


def account(books: Books) -> Account:
    """Close the books."""
    first_start, starts_of = first_starts(books)
    ends = endings(books)
    surprises = [max(0, count - 1 - ends.returned[number]) for number, count in enumerate(starts_of)]
    states = Counter[State]()
    lost = 0
    for number, id in enumerate(books.ids):
        state = ends.states.get(number) or books.found.get(id)
        if state is None:
            lost += 1
        else:
            states[state] += 1
    terminal = states[State.DONE] + states[State.DEAD] + states[State.CANCELLED]
    return Account(
        jobs=len(books.ids),
        done=states[State.DONE],
        failed=states[State.DEAD] + states[State.CANCELLED],
        dead=states[State.DEAD],
        lost=lost,
        unfinished=states.total() - terminal,
        duplicated=sum(count > 0 for count in surprises),
        extra_starts=sum(surprises),
        refused=ends.refused,
        retried=ends.retried,
        behind=percentiles(waits(books.called, books.due)),
        start=percentiles(waits(first_start, books.due)),
        start_after_call=percentiles(waits(first_start, books.called)),
        completion=percentiles(waits(ends.at, books.due)),
        first_claim=ends.first_claim,
        last_settle=ends.last_settle,
    )


def rows(books: Books) -> Iterator[JobRow]:
    """Yield the log from which all figures of an account can be had, in the order of the jobs' numbers."""
    first_start, starts_of = first_starts(books)
    ends = endings(books)
    for number, id in enumerate(books.ids):
        state = ends.states.get(number) or books.found.get(id)
        yield JobRow(
            number,
            id,
            books.due[number],
            books.called[number],
            first_start[number] or None,
            ends.at[number] or None,
            "lost" if state is None else str(state),
            starts_of[number],
            ends.returned[number],
        )


def first_starts(books: Books) -> tuple[list[int], list[int]]:
    """Return by number when each job first started, 0 if it did not, and how often it started."""
    first = [0] * len(books.ids)
    counts = [0] * len(books.ids)
    for starts in books.starts:
        for number, at in zip(starts[::2], starts[1::2], strict=True):
            # A job beyond the acknowledged ones was on its way when the run was stopped, one below 0 was warm-up.
            if 0 <= number < len(first):
                counts[number] += 1
                if not first[number] or at < first[number]:
                    first[number] = at
    return first, counts


class Ends:
    """What the notes say about how jobs ended, by number."""

    def __init__(self, count: int) -> None:
        self.at = [0] * count
        """When a worker knew that it was done; 0 for none did."""
        self.over: dict[int, int] = {}
        """When a worker knew that it had ended, however."""
        self.states: dict[int, State] = {}
        self.returned = Counter[int]()
        """How often an attempt ended with the job to be run again."""
        self.refused = self.retried = 0
        self.first_claim: int | None = None
        self.last_settle: int | None = None


def endings(books: Books) -> Ends:
    """Return what the notes say about how jobs ended."""
    number_of = {id: number for number, id in enumerate(books.ids)}
    ends = Ends(len(books.ids))
    for note in books.notes:
        if isinstance(note, Claims):
            if note.answered >= books.began:
                ends.first_claim = note.at if ends.first_claim is None else min(ends.first_claim, note.at)
            continue
        ends.refused += note.refused
        if note.done or note.other:
            ends.last_settle = note.at if ends.last_settle is None else max(ends.last_settle, note.at)
        for id in note.done:
            if (number := number_of.get(id)) is not None:
                ends.states[number] = State.DONE
                ends.at[number] = ends.over[number] = note.at
        for id, outcome in note.other:
            if (number := number_of.get(id)) is not None:
                _note_other(ends, number, outcome, note.at)
    return ends


def _note_other(ends: Ends, number: int, outcome: Outcome, at: int) -> None:
    if outcome in ("Died", "Cancelled"):
        ends.over[number] = at
        ends.states[number] = State.DEAD if outcome == "Died" else State.CANCELLED
    else:
        ends.returned[number] += 1
        ends.retried += outcome == "Retried"


def waits(at: Sequence[int], since: Sequence[int]) -> list[int]:
    """Return how long it was until each time, leaving out the times that are 0: what did not come to be."""
    return [then - before for then, before in zip(at, since, strict=True) if then]
