"""What running jobs say, on SQLite: log lines and progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from spool.broker import MAX_LINES, MAX_LOG, JobNote, Note, Noted
from spool.broker.sqlite.store import FAR, Queue, Transaction, to_json
from spool.job import Snapshot


class Head(msgspec.Struct, array_like=True):
    """The row of a job's notes."""

    id: str
    holder: int
    fence: int
    seen: int = 0
    step: int = 0
    low: int = 0
    high: int = 0
    bytes: int = 0
    dropped: int = 0
    progress: str = ""
    """In hex."""


class _Line(NamedTuple):
    id: str
    number: int
    body: bytes


_read_heads: Final = msgspec.json.Decoder(list[Head]).decode


def note(tx: Transaction, verb: Note) -> Noted:
    queue = tx.find_queue(verb.queue)
    me = tx.one("incarnation", queue.id, verb.incarnation) if queue else None
    if queue is None or me is None:
        return Noted(tx.now, [each.id for each in verb.notes])
    ids = to_json([each.id for each in verb.notes])
    held: dict[str, int] = tx.read("fences", queue.id, me[0], ids)
    ours = [each for each in verb.notes if held.get(each.id) == each.fence]
    heads = {head.id: head for head in _read_heads(tx.value("heads", queue.id, ids))} if queue.state.noted else {}
    _begin(tx, queue, [each.id for each in ours if each.id not in heads])
    lines: list[_Line] = []
    for each in ours:
        head = heads.setdefault(each.id, Head(each.id, me[0], each.fence))
        lines += _take(head, me[0], each)
    _write(tx, queue, {each.id: heads[each.id] for each in ours}, lines)
    tx.run("purge_notes", tx.now, 2 * len(verb.notes) + 8)
    return Noted(tx.now, [each.id for each in verb.notes if held.get(each.id) != each.fence])


def _begin(tx: Transaction, queue: Queue, ids: list[str]) -> None:
    """Count the jobs that note something for the first time, and forget what earlier jobs of that name noted."""
    fresh = list(dict.fromkeys(ids))
    if fresh:
        tx.run("remove_notes", queue.id, to_json(fresh))
        queue.state.noted += len(fresh)


def _take(head: Head, holder: int, note: JobNote) -> list[_Line]:
    """Add to a head what is new in a note; return the lines that are."""
    if (head.holder, head.fence) != (holder, note.fence):
        head.holder, head.fence, head.seen, head.step = holder, note.fence, 0, 0
    new = [bytes(line) for line in note.lines[max(0, head.seen - note.first) :]]
    lines = [_Line(head.id, number, line) for number, line in enumerate(new, head.high)]
    head.dropped += max(0, note.first - head.seen)
    head.seen = max(head.seen, note.first + len(note.lines))
    head.high += len(new)
    head.bytes += sum(map(len, new))
    if note.progress and note.step > head.step:
        head.step, head.progress = note.step, note.progress.hex()
    return lines


def _write(tx: Transaction, queue: Queue, heads: dict[str, Head], lines: list[_Line]) -> None:
    tx.insert("add_lines", 4, [value for line in lines for value in (queue.id, *line)])
    for head in heads.values():
        if head.high - head.low > MAX_LINES or head.bytes > MAX_LOG:
            _drop_earliest(tx, queue, head)
    rows: list[Any] = []
    for head in heads.values():
        *row, progress = msgspec.structs.astuple(head)
        rows += (queue.id, *row, bytes.fromhex(progress))
    tx.insert("set_notes", 11, rows)


def _drop_earliest(tx: Transaction, queue: Queue, head: Head) -> None:
    for size in tx.read("line_sizes", queue.id, head.id, head.low):
        if head.high - head.low <= MAX_LINES and head.bytes <= MAX_LOG:
            break
        head.low += 1
        head.bytes -= size
        head.dropped += 1
    tx.run("drop_lines", queue.id, head.id, head.low)


def with_notes(tx: Transaction, queue: Queue, found: Snapshot) -> Snapshot:
    """Return a job, or one that has ended, with what it noted."""
    if found.ending is None and not queue.state.noted:
        return found
    row = tx.one("notes", queue.id, found.id, tx.now)
    if row is None:
        return found
    progress, dropped, low, high = row
    lines = tuple(body for (body,) in tx.all("lines", queue.id, found.id, low, high))
    return msgspec.structs.replace(found, progress=progress, log=lines, log_dropped=dropped)


def end_notes(tx: Transaction, queue: Queue, ended: Iterable[tuple[str, int]]) -> None:
    """Keep what jobs noted for as long as their endings: (id, ttl) of each."""
    if not queue.state.noted:
        return
    by_ttl: dict[int, list[str]] = {}
    for id, ttl in ended:
        by_ttl.setdefault(ttl, []).append(id)
    for ttl, ids in by_ttl.items():
        queue.state.noted -= tx.run("end_notes", min(tx.now + ttl, FAR), queue.id, to_json(ids))


def drop_notes(tx: Transaction, queue: Queue, ids: list[str]) -> None:
    """Forget what jobs noted that are removed."""
    if queue.state.noted and ids:
        queue.state.noted -= tx.run("remove_notes", queue.id, to_json(ids))


def forget_notes(tx: Transaction, queue: Queue, ids: list[str]) -> None:
    """Forget what jobs noted that have ended."""
    tx.run("remove_notes", queue.id, to_json(ids))
