"""What workers report about themselves: metrics in band, and their rows.

**Metrics.** A settle may carry one blob, the sums over the attempts that it settles. msgpack, array-like:

```
[1, [task, {outcome: count}, [bucket, count, …] of waits, [bucket, count, …] of runs, waited, ran], …]
```

Outcomes are done, retried, died, released, cancelled; and lost, when the worker held the job no longer. Bucket b of a
histogram counts values v with 2^(b-1) ≤ v < 2^b, bucket 0 the zeros; empty buckets are left out. A **wait** is the time
in milliseconds from the call of enqueue (by the producer's clock) to the start of the first attempt, so that a delay
asked for is part of it. A **run** is the time in nanoseconds from the start of an attempt to its end. ``waited`` and
``ran`` are the sums of the waits and of the runs.

**Rows.** Each incarnation keeps a document of kind ``worker`` under its own name: `WorkerRow`, as JSON. The tasks that
workers know are documents of kind ``task`` under their names: `TaskRow`, as JSON.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from spool.errors import StoreCorrupt
from spool.opaque import UNREADABLE

LAYOUT: Final = 1
MOST_COUNTED: Final = 2**53
"""What any reader can hold exactly, and no worker ever counts: a blob with more is refused, and sums stop there."""
BUCKETS: Final = 65

_NUMBERS: Final = range(BUCKETS)

Histogram = list[int]


class TaskReport(msgspec.Struct, array_like=True, frozen=True):
    """The part of a blob that is about one task."""

    task: str
    outcomes: dict[str, int]
    waits: Histogram
    runs: Histogram
    waited: int = 0
    ran: int = 0


class Meter:
    """Counts for one task of one queue, until they are reported. `spool.executor.metering` adds to the fields."""

    __slots__ = ("ended", "others", "ran", "runs", "taken", "task", "waited", "waits")

    def __init__(self, task: str) -> None:
        self.task = task
        self.waits = [0] * BUCKETS
        self.runs = [0] * BUCKETS
        self.waited = self.ran = 0
        self.others: dict[str, int] = {}
        """Outcomes but done, which is what is left of the runs."""
        self.ended: dict[str, int] = {}
        """By outcome, all that was ever told to the store."""
        self.taken: dict[str, int] = {}
        """By outcome, what is on its way there."""

    def take(self) -> TaskReport | None:
        """Return what was counted, and begin anew. When it has been told, call `told`."""
        ended = sum(self.runs)
        if not ended:
            return None
        outcomes = {"done": ended - sum(self.others.values()), **self.others}
        self.taken = outcomes = {name: n for name, n in outcomes.items() if n}
        report = TaskReport(
            self.task,
            outcomes,
            _sparse(self.waits),
            _sparse(self.runs),
            self.waited,
            self.ran,
        )
        self.waits, self.runs, self.others = [0] * BUCKETS, [0] * BUCKETS, {}
        self.waited = self.ran = 0
        return report

    def told(self) -> None:
        """Add what was taken last to all that has `ended`: not before, since it may have to be told otherwise."""
        taken, self.taken = self.taken, {}
        for name, n in taken.items():
            self.ended[name] = self.ended.get(name, 0) + n


def all_ended(meters: Iterable[Meter]) -> dict[str, int]:
    """Return by outcome what all of these ever told. From any thread."""
    ended: dict[str, int] = {}
    for meter in meters:
        for outcome, count in dict(meter.ended).items():  # a copy: who settles may be counting
            ended[outcome] = ended.get(outcome, 0) + count
    return ended


def _sparse(counts: list[int]) -> Histogram:
    found: Histogram = []
    for bucket in itertools.compress(_NUMBERS, counts):
        found += (bucket, counts[bucket])
    return found


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_layout = msgspec.msgpack.Decoder(int).decode
_decode_report = msgspec.msgpack.Decoder(TaskReport).decode


def pack(meters: Iterable[Meter]) -> bytes:
    """Return the blob of what these meters counted, empty if nothing; they begin anew."""
    reports = [report for meter in meters if (report := meter.take())]
    return _encode([LAYOUT, *reports]) if reports else b""


def unpack(blob: bytes) -> list[TaskReport]:
    """Read a blob; of an empty one, nothing. Raises `StoreCorrupt`.

    >>> meter = Meter("send")
    >>> meter.runs[20] += 2
    >>> unpack(pack([meter]))
    [TaskReport(task='send', outcomes={'done': 2}, waits=[], runs=[20, 2], waited=0, ran=0)]
    """
    if not blob:
        return []
    try:
        layout, *reports = _decode(blob)
        if _decode_layout(layout) > LAYOUT:
            raise StoreCorrupt(f"metrics have layout {_decode_layout(layout)}; this release knows up to {LAYOUT}")
        return [_checked(_decode_report(report)) for report in reports]
    except (*UNREADABLE, ValueError) as error:
        raise StoreCorrupt(f"metrics cannot be read: {error}") from error


def _checked(report: TaskReport) -> TaskReport:
    """Return a report that adds up. Raises ValueError for one that no meter made."""
    counts = list(report.outcomes.values())
    for histogram in (report.waits, report.runs):
        buckets = histogram[::2]
        if len(histogram) % 2 or any(not 0 <= bucket < BUCKETS for bucket in buckets):
            raise ValueError(f"no histogram of {BUCKETS} buckets: {histogram!r:.200}")
        counts += histogram[1::2]
    if any(not 0 <= count <= MOST_COUNTED for count in counts) or report.waited < 0 or report.ran < 0:
        raise ValueError(f"a count below zero, or above {MOST_COUNTED}: {report!r:.200}")
    return report


SPANS: Final = (10, 60)
"""Seconds over which rates are taken."""


class Rates(msgspec.Struct, frozen=True):
    """How many there were in a second, by what they are, over the last ten seconds and over the last minute.

    What there was none of is left out.
    """

    ten_seconds: dict[str, float] = {}
    minute: dict[str, float] = {}


class Speedometer:
    """Tells the rates of counts that grow, from how they stood over the last minute. Times in seconds.

    What is less than it was began anew, and has no rate until it is more again.

    >>> speedometer = Speedometer(0.0)
    >>> for second in range(100):
    ...     rates = speedometer.note(float(second), {"done": 3 * second})
    >>> rates.ten_seconds
    {'done': 3.0}
    """

    def __init__(self, at: float) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque([(at, {})])

    def note(self, at: float, counts: dict[str, int]) -> Rates:
        """Take note of how they stand, and return their rates; of the time there was, while that is shorter."""
        seen = self._seen
        while len(seen) > 1 and seen[1][0] <= at - max(SPANS):
            seen.popleft()
        rates = Rates(*(self._per_second(at, counts, span) for span in SPANS))
        if at - seen[-1][0] >= 1:
            seen.append((at, counts))
        return rates

    def _per_second(self, at: float, counts: dict[str, int], span: int) -> dict[str, float]:
        then, before = next((each for each in reversed(self._seen) if each[0] <= at - span), self._seen[0])
        more = {name: count - before.get(name, 0) for name, count in counts.items()}
        return {name: round(n / max(1.0, at - then), 3) for name, n in more.items() if n > 0}


class WorkerRow(msgspec.Struct, frozen=True):
    """One incarnation, as it describes itself every few seconds. Times in milliseconds since the epoch.

    ``boot``, ``namespace`` (of pids), ``pid`` and ``born`` (when the process started, in the kernel's ticks since boot)
    name one process of one machine for good, so that a supervisor there can tell that it is gone; empty or 0 where the
    platform does not tell.
    """

    incarnation: str
    name: str
    host: str
    pid: int
    boot: str
    namespace: str
    born: int
    started: int
    queues: list[str]
    concurrency: int
    pool_size: int
    lease: int
    running: int | None
    """Jobs of all its queues; None where that is not told: to who may not know of all of them."""
    stopping: bool
    version: str
    python: str
    quiet: bool = False
    memory: int = 0
    """Bytes of memory that the process takes."""
    ended: dict[str, int] = {}
    """Attempts that this incarnation has ended, by outcome as in metrics; none where ``running`` is not told."""
    rates: Rates | None = None
    """The same in a second, by the worker's own clock; None of a worker that does not tell, and as ``running``."""


class OrderRow(msgspec.Struct, frozen=True):
    """What somebody wants one incarnation to do: a document of kind ``order`` under its name, as JSON.

    "quiet": claim no more, and go on with what runs. "stop": stop in order, and do not be replaced. ``at`` in ms,
    ``by`` whom.
    """

    order: Literal["quiet", "stop"]
    at: int
    by: str


_decode_order = msgspec.json.Decoder(OrderRow).decode


def read_order(body: bytes) -> OrderRow:
    """Read an order. Raises `StoreCorrupt`."""
    try:
        return _decode_order(body)
    except UNREADABLE as error:
        raise StoreCorrupt(f"an order cannot be read: {error}") from error


encode_row = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(WorkerRow).decode


def read_row(body: bytes) -> WorkerRow:
    """Read a worker's row. Raises `StoreCorrupt`."""
    try:
        return _decode_row(body)
    except UNREADABLE as error:
        raise StoreCorrupt(f"a worker's row cannot be read: {error}") from error


ParameterKind = Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"]
"""As `inspect.Parameter` has them."""


class TaskParameter(msgspec.Struct, frozen=True):
    """One parameter of a task; ``required`` has no default."""

    name: str
    required: bool
    kind: ParameterKind


class TaskRow(msgspec.Struct, frozen=True):
    """One task as it was declared, for those who have the store and not the code.

    ``priority`` is the rank (0 critical to 4 background), ``lane`` 1 for ``process=True``. ``schema`` is a JSON schema
    (2020-12) of the arguments by name, an object; extra positional arguments are an array under their parameter's
    name; None where a type has no schema. ``redact`` names the parameters whose values nobody is to see. ``version`` is
    the layout of this row.
    """

    task: str
    queue: str
    priority: int
    lane: int
    max_crashes: int
    parameters: list[TaskParameter]
    schema: dict[str, Any] | None = None
    redact: list[str] = []
    version: int = LAYOUT


encode_task_row = msgspec.json.Encoder(order="deterministic").encode
_decode_task_row = msgspec.json.Decoder(TaskRow).decode


def read_task_row(body: bytes) -> TaskRow:
    """Read the row of a task. Raises `StoreCorrupt`, also for one of a newer layout."""
    try:
        row = _decode_task_row(body)
    except UNREADABLE as error:
        raise StoreCorrupt(f"the row of a task cannot be read: {error}") from error
    if row.version > LAYOUT:
        raise StoreCorrupt(f"the row of task {row.task} has layout {row.version}; this release knows up to {LAYOUT}")
    return row
