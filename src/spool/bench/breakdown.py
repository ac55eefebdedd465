"""Where the time goes: two sums for each job, both of which have to come to what the clock says. Pure functions.

**The job's**: from the call of enqueue until the worker knew that the outcome was accepted. Each seventh job was
noted, or each 29th of many, and so the claim and the settle that it was part of: the parts of one job follow each other
without a gap. The clock they are compared with is that of all jobs.

**The worker's**: what the thread with the event loop did, from the first claim that returned jobs to the last accepted
outcome, in all worker processes together. When it was on a processor, and when it could have been and none was free,
is the kernel's own account of it. For what it waited at other times is what samples found (`spool.bench.sampler`).
These are two measurements, and nothing makes them add up but that both are right: what is missing, or too much, is a
row of its own. How the processor's time is divided is what py-spy's stacks say (`spool.bench.stacks`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal

import msgspec

from spool.bench.account import Settles
from spool.bench.sampler import RUNS, Sample
from spool.bench.timing import LEFT, Note, Ran, Step, Trip
from spool.job import PROCESS

JOB_ROWS: Final = {
    "enqueue": "enqueue: call to acknowledgement",
    "queue": "waiting in the queue",
    "claim": "claim, the round trip that took it",
    "unstarted": "claimed, not started",
    "handler": "the handler, with all it waits for",
    "unsettled": "ended, waiting to be settled",
    "settle": "settle, the round trip of its outcome",
}
WORKER_ROWS: Final = {
    "decode": "decode records and arguments",
    "handler": "the handler, on the event loop",
    "encode": "encode results and outcomes",
    "protocol": "claim and settle, this side of the broker",
    "loop": "event loop, tasks, bookkeeping",
    "processor": "waiting for a processor",
    "handler_gil": "waiting for the interpreter that handlers' threads hold",
    "gil": "waiting for the interpreter or a lock",
    "blocked": "blocked in a system call on the loop",
    "handler_elsewhere": "idle: handlers compute in threads or processes",
    "threads": "idle: threads take, start and end handlers' calls",
    "slots": "idle: jobs wait, and there are no slots for others",
    "broker": "idle: waiting for the broker",
    "nothing": "idle: nothing to do",
}
STORE_ROWS: Final = {
    "scripts": "in Redis: scripts, by its commandstats",
    "processor": "in Redis: processor time, of all that it did",
    "cpu": "in SQLite's thread: on a processor, or ready for one",
    "disk": "in SQLite's thread: reading, writing, waiting for the disk",
    "gil": "in SQLite's thread: waiting for the interpreter or its turn",
}

TaskKind = Literal["async", "thread", "process"]


class Row(msgspec.Struct, frozen=True):
    """One part. ``us`` are microseconds per job, ``share`` is that of the clock, from 0 to 1."""

    key: str
    what: str
    us: float
    share: float


class Sum(msgspec.Struct, frozen=True):
    """Parts, and what they have to come to. ``clock_us == sum of the rows + unaccounted_us``."""

    rows: list[Row]
    unaccounted_us: float
    """What the clock has and no row; negative if the rows have too much."""
    clock_us: float
    samples: int
    """What it was made from: jobs, or looks at a worker."""

    def us(self, *keys: str) -> float:
        """Return what rows come to, in microseconds per job."""
        return sum(row.us for row in self.rows if row.key in keys)


class Bottleneck(msgspec.Struct, frozen=True):
    """What limits the throughput; see `spool.bench.bottleneck`."""

    kind: str
    share: float
    """Of the workers' time, from 0 to 1."""
    reason: str
    advice: str
    section: str
    """Of docs/guides/find-a-bottleneck.md."""


class Cost(msgspec.Struct, frozen=True):
    """What looking cost: throughput without, over that with it, of pairs of runs that took turns."""

    percent: float
    plus_minus: float | None
    """Half of the interval that holds the mean with 95 %; None with a single pair."""
    pairs: int


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of each job goes; part of a `spool.bench.BenchResult`."""

    job: Sum
    worker: Sum | None
    """None where the system does not tell."""
    store: list[Row]
    """What the store does for a job. It does so beside the worker, and adds to none of the sums."""
    store_busy: float | None
    """The share of the time in which the store worked, from 0 to 1."""
    stacks: int
    """From how many of them the division of the processor's time is known."""
    cost: Cost
    bottleneck: Bottleneck | None


class Window(msgspec.Struct, frozen=True):
    """A worker process while it drained: from the first claim to the last settle, in nanoseconds."""

    pid: int
    begin: int
    end: int
    samples: Sequence[Sample]
    threads: Mapping[int, str]


# The job's


def journeys(
    called: Mapping[str, int], trips: Iterable[Trip], runs: Sequence[Ran], settles: Iterable[Settles]
) -> list[list[int]]:
    """Return for each job that was timed how long its parts took, in nanoseconds, in the order of `JOB_ROWS`.

    Jobs that were claimed or settled more than once are left out: there is no one story to tell of them.
    """
    wanted = {run.id for run in runs}
    taken: dict[Step, dict[str, list[Trip]]] = {"enqueue": {}, "claim": {}}
    for trip in trips:
        for id in wanted.intersection(trip.ids):
            taken[trip.step].setdefault(id, []).append(trip)
    settled: dict[str, list[Settles]] = {}
    for note in settles:
        for id in wanted.intersection((*note.done, *(id for id, _ in note.other))):
            settled.setdefault(id, []).append(note)
    parts: list[list[int]] = []
    for run in runs:
        enqueues, claims = (taken[step].get(run.id, []) for step in ("enqueue", "claim"))
        ends = settled.get(run.id, [])
        if run.id not in called or any(len(notes) != 1 for notes in (enqueues, claims, ends)):
            continue
        enqueue, claim, settle = enqueues[0], claims[0], ends[0]
        stored = min(enqueue.answered, claim.answered)  # a worker may be faster than the acknowledgement
        asked = max(stored, claim.sent)
        stops = (called[run.id], stored, asked, claim.answered, run.began, run.ended, settle.sent, settle.at)
        parts.append([after - before for before, after in pairwise(stops)])
    return parts


def job_sum(parts: Sequence[Sequence[int]], clock: float) -> Sum:
    """Return the means of what `journeys` found; ``clock`` is that of all jobs, nanoseconds."""
    count = len(parts) or 1
    means = [sum(column) / count for column in zip(*parts, strict=True)] or [0.0] * len(JOB_ROWS)
    return summed(JOB_ROWS, dict(zip(JOB_ROWS, means, strict=True)), clock, len(parts))


def summed(names: Mapping[str, str], nanoseconds: Mapping[str, float], clock: float, samples: int) -> Sum:
    """Return rows with what the clock has beyond them; all in nanoseconds per job."""
    rows = rows_of(names, nanoseconds, clock)
    return Sum(rows, round((clock - sum(nanoseconds.values())) / 1000, 3), round(clock / 1000, 3), samples)


def rows_of(names: Mapping[str, str], nanoseconds: Mapping[str, float], clock: float) -> list[Row]:
    """Return a row for each name that has a value, in the order of the names."""
    return [
        Row(key, what, round(nanoseconds[key] / 1000, 3), round(nanoseconds[key] / clock, 4) if clock else 0.0)
        for key, what in names.items()
        if key in nanoseconds
    ]


# The worker's


def worker_sum(
    windows: Sequence[Window], parts: Mapping[str, float], jobs: int, kind: TaskKind, *, own: float = 1.0
) -> Sum:
    """Return what the loops' threads did for each job.

    ``parts`` is how their time on a processor is divided, ``own`` the handlers' share in that of their threads.
    """
    waits: defaultdict[str, float] = defaultdict(float)
    cpu = delay = clock = 0.0
    count = 0
    for window in windows:
        clock += window.end - window.begin
        cpu += _between(window, [sample.cpu for sample in window.samples])
        delay += _between(window, [sample.delay for sample in window.samples])
        for sample, length in clipped(window):
            count += 1
            if sample.main != RUNS:
                waits[_wait(sample, window.threads, kind)] += length
    waits["threads"] = waits["handler_elsewhere"] * (1 - own)
    waits["handler_elsewhere"] *= own
    if not sum(parts.values()):
        parts = {"loop": 1.0}  # no stack was seen: too little time for more to be known of it
    found = {part: share * cpu for part, share in parts.items()} | {"processor": delay}
    found |= {key: waits.get(key, 0.0) for key in WORKER_ROWS if key not in found}
    each = max(1, jobs)
    return summed(WORKER_ROWS, {key: found[key] / each for key in WORKER_ROWS}, clock / each, count)


def clipped(window: Window) -> Iterable[tuple[Sample, int]]:
    """Yield samples with the nanoseconds within the window that each stands for."""
    for before, sample in pairwise(window.samples):
        length = min(sample.at, window.end) - max(before.at, window.begin)
        if length > 0:
            yield sample, length


def sqlite_rows(windows: Sequence[Window], jobs: int) -> tuple[dict[str, float], float | None]:
    """Return what SQLite's threads did for each job, in nanoseconds, and the share of the time that they worked."""
    found = Counter[str]()
    clock = 0
    for window in windows:
        threads = [thread for thread, name in window.threads.items() if name == "spool-sqlite"]
        clock += window.end - window.begin
        for sample, length in clipped(window):
            for thread in threads:
                found[sample.others.get(thread, "")] += length
    rows = {"cpu": found[RUNS], "disk": found["file"], "gil": found["gil"]}
    busy = (found[RUNS] + found["file"]) / clock if clock else 0.0
    return {key: value / max(1, jobs) for key, value in rows.items()}, round(busy, 4)


def _wait(sample: Sample, threads: Mapping[int, str], kind: TaskKind) -> str:
    """Return for what a loop's thread waits that does not run."""
    claiming, settling, listening, held = sample.gauge
    handlers = any(
        state == RUNS and threads.get(thread, "spool-") not in ("spool-sqlite", "spool-link", "MainThread")
        for thread, state in sample.others.items()
    )
    if sample.main in ("gil", "lock"):
        return "handler_gil" if handlers else "gil"
    if sample.main != "poll":
        return "blocked"
    if handlers or sample.children:
        return "handler_elsewhere"
    # A worker that neither claims nor listens for work has no slots for any, if it holds jobs.
    if held and not claiming and (not listening or (kind == "process" and not listening & 1 << PROCESS)):
        return "slots"
    return "broker" if claiming or listening & LEFT or (settling and not listening) else "nothing"


def _between(window: Window, values: Sequence[int]) -> float:
    """Return by how much a growing value grew within the window, in a straight line from sample to sample."""
    times = [sample.at for sample in window.samples]
    return _at(times, values, window.end) - _at(times, values, window.begin) if len(times) > 1 else 0.0


def _at(times: Sequence[int], values: Sequence[int], when: int) -> float:
    index = min(max(bisect_left(times, when), 1), len(times) - 1)
    before, after = times[index - 1], times[index]
    part = min(1.0, max(0.0, (when - before) / (after - before)))
    return values[index - 1] + part * (values[index] - values[index - 1])


# What it cost

_STUDENT: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t for 95 % and 1, 2, … degrees of freedom; beyond, 2.2 is on the safe side."""


def cost_of(pairs: Sequence[tuple[float, float]]) -> Cost:
    """Return what looking cost, by throughputs without and with it, jobs per second.

    >>> cost_of([(100.0, 98.0), (200.0, 196.0)]).percent
    2.0
    """
    each = [100 * (1 - looked / free) for free, looked in pairs if free]
    if not each:
        return Cost(0.0, None, 0)
    mean = sum(each) / len(each)
    if len(each) == 1:
        return Cost(round(mean, 2), None, 1)
    variance = sum((value - mean) ** 2 for value in each) / (len(each) - 1)
    student = _STUDENT[len(each) - 2] if len(each) - 2 < len(_STUDENT) else 2.2
    return Cost(round(mean, 2), round(student * (variance / len(each)) ** 0.5, 2), len(each))


def trips_and_runs(notes: Iterable[Note]) -> tuple[list[Trip], list[Ran]]:
    """Return the two kinds of notes that tell of jobs."""
    given = list(notes)
    return [note for note in given if isinstance(note, Trip)], [note for note in given if isinstance(note, Ran)]
