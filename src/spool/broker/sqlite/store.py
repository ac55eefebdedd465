"""What the verbs of the SQLite broker work with: jobs as rows, a queue's counters, and the transaction they share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final

import msgspec

from spool.job import LANES, PRIORITIES, State

STATES: Final = (
    State.READY,
    State.SCHEDULED,
    State.PARKED,
    State.SUSPECT,
    State.RUNNING,
    State.DEAD,
    State.DONE,
    State.CANCELLED,
)
"""The states by the number that stands for them in the file."""
READY, SCHEDULED, PARKED, SUSPECT, RUNNING, DEAD, DONE, CANCELLED = range(len(STATES))

BAND: Final = 2**50
"""A place is priority * BAND + sequence."""
SHARD: Final = 2**44
"""A key of a record or an ending is queue id * SHARD + sequence."""
FAR: Final = 2**53
"""Later than any time that matters, and still an integer to everybody."""

_MOST_ROWS: Final = 256
_COLUMNS: Final = (
    "id, state, lane, priority, place, suspect, at, holder, fence, task, wish, coalesce(CAST(tally AS TEXT), '')"
)


class Row(msgspec.Struct, array_like=True):
    """A job without its record, as its row says; changed in place and written back by `Transaction.move`."""

    id: str
    state: int
    lane: int
    priority: int
    place: int
    suspect: int
    at: int | None
    holder: int | None
    fence: int | None
    task: str | None
    wish: str | None
    tally: str
    size: int | None = None
    """Bytes of its record, where that was asked for and is there."""


_encode = msgspec.json.Encoder().encode
_read_row = msgspec.json.Decoder(Row).decode
_read_rows = msgspec.json.Decoder(list[Row]).decode


def to_json(value: object) -> str:
    return _encode(value).decode()


def _load() -> tuple[list[str], dict[str, str]]:
    """Return the statements of the schema, and the named ones. A statement begins in a line of its own."""
    text = resources.files("spool.broker.sqlite").joinpath("statements.sql").read_text("utf-8")
    head, *parts = text.split("\n-- name: ")
    schema: list[str] = []
    statement = ""
    for line in head.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            schema.append(statement)
            statement = ""
    named: dict[str, str] = {}
    for part in parts:
        name, _, sql = part.partition("\n")
        named[name] = sql.partition(";")[0]
    return schema, named


SCHEMA, _STATEMENTS = _load()
_BARE = {
    name: f"SELECT json_group_array(json_array({_COLUMNS})) FROM ({sql})"  # noqa: S608 - our own file
    for name, sql in _STATEMENTS.items()
}
_FULL = {
    name: f"SELECT json_group_array(json_array({_COLUMNS}, length(body))), group_concat(hex(body), '') "  # noqa: S608
    f"FROM ({sql}) AS job LEFT JOIN record ON record.key = job.record"
    for name, sql in _STATEMENTS.items()
}
_ONE_BY_ONE = {
    name: f"SELECT json_array({_COLUMNS}), CAST(body AS BLOB) "  # noqa: S608
    f"FROM ({sql}) AS job LEFT JOIN record ON record.key = job.record"
    for name, sql in _STATEMENTS.items()
}
_many: dict[tuple[str, int], str] = {}


def _insert_many(name: str, rows: int) -> str:
    """Return an insert for up to so many rows: those whose first column is NULL are padding."""
    sql = _many.get((name, rows))
    if sql is None:
        head, _, values = _STATEMENTS[name].partition("VALUES")
        sql = f"{head} SELECT * FROM (VALUES {', '.join([values] * rows)}) WHERE column1 IS NOT NULL"  # noqa: S608
        _many[name, rows] = sql
    return sql


class QueueState(msgspec.Struct):
    """What a queue knows of itself: its counters, which change together with what they count, and its clock."""

    sequence: int = 0
    endings: int = 0
    blobs: int = 0
    paused: bool = False
    ready: list[list[int]] = msgspec.field(default_factory=lambda: [[0] * len(PRIORITIES) for _ in LANES])
    """By lane and priority."""
    scheduled: int = 0
    parked: dict[str, int] = {}
    suspect: int = 0
    running: int = 0
    dead: int = 0
    totals: dict[str, int] = {}
    boot: str = ""
    """Which of the machine's boots ``seen`` and ``amnesty`` belong to."""
    seen: int | None = None
    amnesty: int = 0
    wishes: int = 0
    """How often a running job was to be cancelled."""
    noted: int = 0
    """Jobs, of those that have not ended, which noted something."""


_read_state = msgspec.json.Decoder(QueueState).decode


@dataclass
class Queue:
    """A queue within a transaction: moves rows from state to state, and counts."""

    id: int
    name: str
    state: QueueState
    written: str

    def ready(self, lane: int) -> int:
        return sum(self.state.ready[lane])

    def count(self, total: str, number: int = 1) -> None:
        if number:
            self.state.totals[total] = self.state.totals.get(total, 0) + number

    def number(self, row: Row, step: int) -> None:
        """Count the row in (1) or out (-1) of the state it is in."""
        state = self.state
        if row.state == READY:
            state.ready[row.lane][row.priority] += step
        elif row.state == SCHEDULED:
            state.scheduled += step
        elif row.state == SUSPECT:
            state.suspect += step
        elif row.state == RUNNING:
            state.running += step
        elif row.state == DEAD:
            state.dead += step
        else:
            task = row.task or ""
            state.parked[task] = state.parked.get(task, 0) + step
            if not state.parked[task]:
                del state.parked[task]

    def _put(self, row: Row, state: int, at: int | None = None, task: str | None = None) -> None:
        self.number(row, -1)
        row.state, row.at, row.task, row.holder, row.fence = state, at, task, None, None
        self.number(row, 1)

    def to_place(self, row: Row) -> None:
        """Make it ready in its old place; a suspect among the suspects."""
        self._put(row, SUSPECT if row.suspect else READY)

    def to_tail(self, row: Row) -> None:
        """Make it ready at the tail of its priority."""
        self.state.sequence += 1
        row.place, row.suspect = row.priority * BAND + self.state.sequence, 0
        self._put(row, READY)

    def schedule(self, row: Row, due: int) -> None:
        self._put(row, SCHEDULED, min(due, FAR))

    def park(self, row: Row, task: str, now: int) -> None:
        self._put(row, PARKED, now, task)

    def take(self, row: Row, holder: int, fence: int, now: int) -> None:
        self._put(row, RUNNING, now)
        row.holder, row.fence = holder, fence

    def bury(self, row: Row, now: int) -> None:
        self.state.sequence += 1
        row.place, row.suspect, row.wish = self.state.sequence, 0, None
        self._put(row, DEAD, now)
        self.count("dead")


class Idle:
    """What claims that found nothing saw and did not write, so that polling an empty queue needs no write lock."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        """The boot clock, by queue."""
        self.claimed: dict[tuple[int, str], int] = {}
        """The claim's sequence number, by queue and incarnation."""

    def note(self, queue: int, boot: int, incarnation: str, seq: int) -> None:
        if len(self.claimed) >= 10_000:  # nobody says when an incarnation is gone for good
            self.claimed.clear()
        self.seen[queue], self.claimed[queue, incarnation] = boot, seq


@dataclass
class Transaction:
    """What the verbs of one group share. Queues are loaded once and written once."""

    db: sqlite3.Connection
    wall: int
    boot: int
    boot_id: str
    idle: Idle
    now: int = 0
    """The store's wall clock: never less than it ever was."""
    ended: list[tuple[str, Iterable[str]]] = field(default_factory=list[tuple[str, Iterable[str]]])
    """(queue, ids) of jobs that may have come to their end, for those who wait for it."""
    stirred: set[str] = field(default_factory=set[str])
    """Queues which may have work now that they had not before."""
    left: set[str] = field(default_factory=set[str])
    """Queues where a claim left work for others."""
    wished: set[str] = field(default_factory=set[str])
    """Queues where running jobs are to be cancelled; perhaps in vain, since an undo does not take it back."""
    _queues: dict[str, Queue] = field(default_factory=dict[str, Queue])

    def __post_init__(self) -> None:
        """Read the clock. After the wall clock was set back, the store's goes at half speed until it is caught up."""
        now, boot, boot_id = self.one("clock")
        rebooted = boot_id != self.boot_id
        slowed = now if rebooted else now + max(0, self.boot - boot) // 2
        self.now = max(self.wall, slowed, self.now)
        self._keep_time = rebooted or self.wall >= slowed

    def one(self, name: str, *values: object) -> Any:
        """Return the first row, or None."""
        return self.db.execute(_STATEMENTS[name], values).fetchone()

    def value(self, name: str, *values: object) -> Any:
        """Return the first column of the first row."""
        return self.db.execute(_STATEMENTS[name], values).fetchone()[0]

    def all(self, name: str, *values: object) -> list[Any]:
        return self.db.execute(_STATEMENTS[name], values).fetchall()

    def read(self, name: str, *values: object) -> Any:
        """Return what a statement answers in JSON."""
        return msgspec.json.decode(self.value(name, *values))

    def run(self, name: str, *values: object) -> int:
        """Return the number of rows changed."""
        return self.db.execute(_STATEMENTS[name], values).rowcount

    def insert(self, name: str, width: int, values: list[Any]) -> int:
        """Insert rows of so many columns, laid end to end; return how many were new."""
        new = 0
        for start in range(0, len(values), _MOST_ROWS * width):
            part = values[start : start + _MOST_ROWS * width]
            rows = len(part) // width
            size = 1 << (rows - 1).bit_length()
            part += [None] * ((size - rows) * width)
            new += self.db.execute(_insert_many(name, size), part).rowcount
        return new

    def jobs(self, name: str, *values: object) -> list[Row]:
        return _read_rows(self.db.execute(_BARE[name], values).fetchone()[0])

    def records(self, name: str, *values: object) -> list[tuple[Row, bytes | None]]:
        """Return jobs, each with its record; None where that is missing."""
        try:
            text, digits = self.db.execute(_FULL[name], values).fetchone()
        except sqlite3.DataError:  # together they are more than SQLite puts into one value
            return self._records_one_by_one(name, values)
        rows, bodies, at = _read_rows(text), bytes.fromhex(digits or ""), 0
        found: list[tuple[Row, bytes | None]] = []
        for row in rows:
            if row.size is None:
                found.append((row, None))
            else:
                found.append((row, bodies[at : at + row.size]))
                at += row.size
        if at != len(bodies):  # one is text, whose length is not its size: the others must not be cut wrong for it
            return self._records_one_by_one(name, values)
        return found

    def _records_one_by_one(self, name: str, values: tuple[object, ...]) -> list[tuple[Row, bytes | None]]:
        return [(_read_row(text), body) for text, body in self.db.execute(_ONE_BY_ONE[name], values)]

    def move(self, queue: Queue, rows: Iterable[Row]) -> None:
        """Write back what was changed in rows."""
        changes = [
            (queue.id, r.id, r.state, r.place, r.suspect, r.at, r.holder, r.fence, r.task, r.wish, r.tally or None)
            for r in rows
        ]
        if changes:
            self.run("move", to_json(changes))

    def remove(self, queue: Queue, ids: list[str]) -> None:
        if ids:
            self.run("remove", queue.id, to_json(ids))

    def find_queue(self, name: str) -> Queue | None:
        """Return a queue that was used before."""
        queue = self._queues.get(name)
        if queue is None and (found := self.one("queue", name)):
            queue = self._queues[name] = Queue(found[0], name, _read_state(found[1]), found[1])
        return queue

    def queue(self, name: str) -> Queue:
        """Return a queue, made where it was never used before."""
        queue = self.find_queue(name)
        if queue is None:
            text = to_json(QueueState())
            queue = self._queues[name] = Queue(self.value("add_queue", name, text), name, _read_state(text), text)
        return queue

    def flush(self) -> None:
        """Write the queues and the clock; to be called before the commit."""
        for queue in self._queues.values():
            text = to_json(queue.state)
            if text != queue.written:
                self.run("set_queue", text, queue.id)
                queue.written = text
        if self._keep_time:
            self.run("set_clock", self.now, self.boot, self.boot_id)

    def mark(self) -> Mark:
        """Open a savepoint."""
        self.db.execute("SAVEPOINT verb")
        states = {name: (queue.written, to_json(queue.state)) for name, queue in self._queues.items()}
        return Mark(states, len(self.ended), set(self.stirred), set(self.left))

    def release(self) -> None:
        self.db.execute("RELEASE verb")

    def undo(self, mark: Mark) -> None:
        """Return to a savepoint."""
        self.db.execute("ROLLBACK TO verb")
        self.db.execute("RELEASE verb")
        self._queues = {name: queue for name, queue in self._queues.items() if name in mark.states}
        for name, queue in self._queues.items():
            queue.written, text = mark.states[name]
            queue.state = _read_state(text)
        del self.ended[mark.ended :]
        self.stirred, self.left = mark.stirred, mark.left


@dataclass
class Mark:
    """Where a transaction stood."""

    states: dict[str, tuple[str, str]]
    ended: int
    stirred: set[str]
    left: set[str]
