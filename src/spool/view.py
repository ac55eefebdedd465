"""Jobs as people see them: made of what the store holds, damaged or encrypted as it may be."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from spool import opaque
from spool.errors import StoreCorrupt
from spool.job import (
    NIL,
    NO_TALLY,
    PRIORITIES,
    Attempt,
    Ending,
    LogLine,
    Priority,
    Progress,
    Record,
    Snapshot,
    State,
    read_arguments,
    read_ending,
    read_lines,
    read_progress,
    read_record,
    read_tally,
)


class Job(msgspec.Struct, frozen=True):
    """A job as people see it: decoded, of whatever state. Times are milliseconds since the epoch.

    ``arguments`` and ``result`` are plain values (dicts, lists, numbers, text), None where they are no longer kept.
    ``progress`` is what the attempt that runs, or ran last, said of itself. ``log`` holds the last lines of all
    attempts, and ``log_dropped`` counts those before; both are empty in lists of jobs. ``encrypted``: there are values
    that this process has no key for; they read ``[encrypted]``. ``key`` is what the caller named the job after, None
    for nothing.
    """

    queue: str
    id: str
    state: State
    task: str
    priority: Priority
    created: int
    due: int | None
    started: int | None
    finished: int | None
    attempts: int
    failures: int
    crashes: int
    losses: int
    generation: int
    history: list[Attempt]
    arguments: tuple[list[Any], dict[str, Any]] | None
    result: Any
    error: str
    traceback: str
    worker: str
    progress: Progress | None = None
    log: list[LogLine] = []
    log_dropped: int = 0
    encrypted: bool = False
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.queue}/{self.id}"


def _plain(raw: msgspec.Raw) -> Any:
    try:
        return opaque.shown(msgspec.msgpack.decode(raw))
    except opaque.UNREADABLE:
        return None


def _notes(snapshot: Snapshot, attempt: int) -> tuple[Progress | None, list[LogLine], int]:
    """Return progress, log and how many lines are missing; progress only of the attempt that runs, if one does."""
    progress, lines = read_progress(snapshot.progress), read_lines(snapshot.log)
    if progress is not None:
        past = snapshot.state is State.RUNNING and progress.attempt != attempt
        progress = None if past else _shown(progress)
    return progress, [_shown(line) for line in lines], snapshot.log_dropped + len(snapshot.log) - len(lines)


_Said = TypeVar("_Said", Attempt, LogLine, Progress)


def _shown(said: _Said) -> _Said:
    hidden = [name for name in ("message", "traceback") if getattr(said, name, "").startswith(opaque.TEXT)]
    return replace(said, **dict.fromkeys(hidden, opaque.ENCRYPTED)) if hidden else said


def _hides(snapshot: Snapshot, record: Record | None, ending: Ending | None) -> bool:
    texts = [snapshot.tally, *((ending.tally, ending.reason) if ending else ())]
    said = b"\n".join([snapshot.progress, *snapshot.log])
    values = (record.payload if record else NIL, ending.result if ending else NIL)
    return opaque.TEXT in "\n".join(texts) or opaque.TEXT.encode() in said or any(map(opaque.unwrap, values))


def view(snapshot: Snapshot) -> Job:
    """Return the view of a snapshot. Never raises for damaged data: what cannot be read is shown as an error text."""
    record = ending = None
    damage = ""
    try:
        record = read_record(snapshot.record) if snapshot.record is not None else None
        ending = read_ending(snapshot.ending) if snapshot.ending is not None else None
        tally, history = read_tally(snapshot.tally or (ending.tally if ending else ""))
    except StoreCorrupt as error:
        tally, history, damage = NO_TALLY, [], str(error)
    history = [_shown(each) for each in history]
    last = history[-1] if history else None
    failed = last is not None and bool(last.error_type)
    arguments = None
    if record is not None:
        try:
            arguments = read_arguments(record)
        except StoreCorrupt as error:
            damage = damage or str(error)
    priority = record.priority if record else ending.priority if ending else 2
    reason = opaque.shown_text(ending.reason) if ending else ""
    progress, log, dropped = _notes(snapshot, tally.attempts + 1)
    return Job(
        queue=snapshot.queue,
        id=snapshot.id,
        state=snapshot.state,
        task=record.task if record else ending.task if ending else "",
        priority=PRIORITIES[priority] if 0 <= priority < len(PRIORITIES) else "normal",
        created=record.created if record else ending.created if ending else 0,
        due=snapshot.due,
        started=ending.started if ending else snapshot.started or (last.started if last else None),
        finished=ending.finished if ending else snapshot.finished,
        attempts=ending.attempts if ending else tally.attempts + (snapshot.state is State.RUNNING),
        failures=tally.failures,
        crashes=tally.crashes,
        losses=tally.losses,
        generation=tally.generation,
        history=history,
        arguments=arguments,
        result=_plain(ending.result) if ending else None,
        error=damage or (reason if ending else f"{last.error_type}: {last.message}" if last and failed else ""),
        traceback=last.traceback if last and failed else "",
        worker=ending.worker if ending else snapshot.incarnation or (last.worker if last else ""),
        progress=progress,
        log=log,
        log_dropped=dropped,
        encrypted=_hides(snapshot, record, ending),
        key=record.key if record else ending.key if ending else None,
    )
