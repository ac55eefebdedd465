"""The verbs of clients and observers on SQLite: jobs, counts, metrics and documents."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from spool.broker import (
    Act,
    Acted,
    Blob,
    Cancel,
    Delete,
    Document,
    Enqueue,
    Enqueued,
    Find,
    Found,
    Get,
    Load,
    Loaded,
    NewJob,
    Pause,
    QueueStats,
    Replay,
    Resume,
    Stats,
    Store,
    Stored,
    Watch,
    Watched,
)
from spool.broker.sqlite.notes import drop_notes, end_notes, forget_notes, with_notes
from spool.broker.sqlite.store import (
    BAND,
    CANCELLED,
    DEAD,
    DONE,
    FAR,
    READY,
    RUNNING,
    SCHEDULED,
    SHARD,
    STATES,
    Queue,
    Row,
    Transaction,
    to_json,
)
from spool.errors import ConfigError, StoreCorrupt, VersionConflict
from spool.job import (
    LANES,
    NAME,
    PRIORITIES,
    TALLY_LIMIT,
    VERSION,
    Ending,
    Record,
    Snapshot,
    State,
    encode_ending,
    read_ending,
    read_record,
    split_tally,
)

RECENT: Final = 10_000
"""How many endings of a queue are listed, and how many blobs kept."""
PAGE: Final = 1000


def record_of(body: bytes | None) -> Record | None:
    """Return a record, or None where it is missing or cannot be read."""
    try:
        return None if body is None else read_record(body)
    except StoreCorrupt:
        return None


def tally_text(numbers: list[Any], lines: str) -> str:
    """Return the text of a tally; the oldest lines go when it grows too long."""
    while len(lines) > TALLY_LIMIT and "\n" in lines:
        lines = lines.partition("\n")[2]
    return f"{to_json(numbers)}\n{lines}" if lines else to_json(numbers)


def enqueue(tx: Transaction, verb: Enqueue) -> Enqueued:
    queue = tx.queue(verb.queue)
    jobs: Sequence[NewJob] = verb.jobs
    existing: list[str] = []
    conflicts: list[str] = []
    if verb.resend or any(job.fingerprint for job in jobs) or len({job.id for job in jobs}) < len(jobs):
        jobs, existing, conflicts = _sift(tx, queue, verb)
    if jobs:
        existing += _insert(tx, queue, jobs)
    if verb.durable:  # a commit that changes nothing writes nothing, and jobs that are there may not be on the disk
        queue.state.sequence += 1
    tx.stirred.add(queue.name)
    return Enqueued(tx.now, existing, conflicts)


def _sift(tx: Transaction, queue: Queue, verb: Enqueue) -> tuple[list[NewJob], list[str], list[str]]:
    """Tell the new jobs from those that are there already, and those whose id another job has."""
    asked = [job.id for job in verb.jobs if job.fingerprint or verb.resend]
    known = _fingerprints(tx, queue, asked) if asked else {}
    fresh: list[NewJob] = []
    existing: list[str] = []
    conflicts: list[str] = []
    for job in verb.jobs:
        there = known.get(job.id)
        if there is None:
            fresh.append(job)
            known[job.id] = job.fingerprint
        elif there.startswith(job.fingerprint) or job.fingerprint.startswith(there):
            existing.append(job.id)
        else:
            conflicts.append(job.id)
    return fresh, existing, conflicts


def _fingerprints(tx: Transaction, queue: Queue, ids: list[str]) -> dict[str, str]:
    wanted = to_json(ids)
    known: dict[str, str] = {}
    for id, _, body in tx.all("endings_by_id", queue.id, wanted, tx.now):
        try:
            known[id] = read_ending(body).fingerprint
        except StoreCorrupt:
            known[id] = ""
    for row, body in tx.records("jobs_by_id", queue.id, wanted):
        record = record_of(body)
        known[row.id] = record.fingerprint if record else ""
    return known


def _insert(tx: Transaction, queue: Queue, jobs: Sequence[NewJob]) -> list[str]:
    """Store jobs; return the ids that were taken after all, which a producer of fresh ids never sees."""
    state, now = queue.state, tx.now
    first = state.sequence + 1
    sequence, key = state.sequence, queue.id * SHARD + state.sequence
    rows: list[Any] = []
    bodies: list[Any] = []
    scheduled = 0
    for job in jobs:
        sequence += 1
        key += 1
        due = job.due or now + job.delay
        place = job.priority * BAND + sequence
        if due > now:
            rows += (queue.id, job.id, SCHEDULED, job.lane, job.priority, place, key, min(due, FAR))
            scheduled += 1
        else:
            rows += (queue.id, job.id, READY, job.lane, job.priority, place, key, None)
            state.ready[job.lane][job.priority] += 1
        bodies += (key, job.record)
    state.sequence = sequence
    state.scheduled += scheduled
    taken: list[str] = []
    if tx.insert("add_jobs", 8, rows) < len(jobs):
        taken = tx.read("taken", queue.id, to_json([job.id for job in jobs]), queue.id * SHARD + first, key)
        _uncount(queue, [job for job in jobs if job.id in taken], now)
        ours = [job.id not in taken for job in jobs]
        bodies = [value for n, own in enumerate(ours) if own for value in bodies[2 * n : 2 * n + 2]]
    tx.insert("add_records", 2, bodies)
    queue.count("enqueued", len(jobs) - len(taken))
    return taken


def _uncount(queue: Queue, jobs: list[NewJob], now: int) -> None:
    for job in jobs:
        if (job.due or now + job.delay) > now:
            queue.state.scheduled -= 1
        else:
            queue.state.ready[job.lane][job.priority] -= 1


def get(tx: Transaction, verb: Get) -> Snapshot | None:
    queue = tx.find_queue(verb.queue)
    if queue is None:
        return None
    found = tx.records("jobs_by_id", queue.id, to_json([verb.id]))
    if found:
        there = _snapshots(tx, queue, found)
        return with_notes(tx, queue, there[0]) if there else None
    ending = tx.one("ending", queue.id, verb.id, tx.now)
    if ending is None:
        return None
    state: int = ending[0]
    return with_notes(tx, queue, Snapshot(queue.name, verb.id, STATES[state], ending=ending[1]))


def _snapshots(tx: Transaction, queue: Queue, found: list[tuple[Row, bytes | None]]) -> list[Snapshot]:
    holders = {row.holder for row, _ in found if row.holder is not None}
    names: dict[str, str] = tx.read("names", to_json(list(holders))) if holders else {}
    return [
        Snapshot(
            queue=queue.name,
            id=row.id,
            state=STATES[row.state],
            record=body,
            tally=row.tally,
            due=row.at if row.state == SCHEDULED else None,
            incarnation=names.get(str(row.holder)),
            started=row.at if row.state == RUNNING else None,
            finished=row.at if row.state == DEAD else None,
        )
        for row, body in found
        if body is not None
    ]


def find(tx: Transaction, verb: Find) -> Found:
    queue = tx.find_queue(verb.queue)
    if queue is None:
        return Found(tx.now, [])
    limit = max(1, min(verb.limit, PAGE))
    after = _read_cursor(verb)
    if verb.state in (State.DONE, State.CANCELLED):
        return _find_ended(tx, queue, DONE if verb.state is State.DONE else CANCELLED, after, limit)
    found = _find_jobs(tx, queue, verb.state, after, limit + 1)
    cursor = ""
    if len(found) > limit:
        del found[limit:]
        cursor = _cursor_at(tx, found[-1][0], verb.state)
    return Found(tx.now, _snapshots(tx, queue, found), cursor)


_FIRST: Final[dict[State, list[Any]]] = {
    State.SCHEDULED: [0, ""],
    State.RUNNING: ["", ""],
    State.PARKED: ["", -1],
    State.DEAD: [FAR],
    State.DONE: [2**63 - 1],
    State.CANCELLED: [2**63 - 1],
}


_decode_cursor = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | str]).decode


def _read_cursor(verb: Find) -> list[Any]:
    first = _FIRST.get(verb.state, [-1])
    if not verb.cursor:
        return first
    try:
        cursor = _decode_cursor(verb.cursor)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{verb.cursor!r} is not a cursor of {verb.state} jobs") from error
    if [type(part) for part in cursor] != [type(part) for part in first]:
        raise ConfigError(f"{verb.cursor!r} is not a cursor of {verb.state} jobs")
    return cursor


def _cursor_at(tx: Transaction, row: Row, state: State) -> str:
    if state is State.SCHEDULED:
        return to_json([row.at, row.id])
    if state is State.PARKED:
        return to_json([row.task, row.place])
    if state is State.RUNNING:
        names: dict[str, str] = tx.read("names", to_json([row.holder]))
        return to_json([names[str(row.holder)], row.id])
    return to_json([row.place])


def _find_jobs(
    tx: Transaction, queue: Queue, state: State, after: list[Any], limit: int
) -> list[tuple[Row, bytes | None]]:
    if state is State.READY:
        lanes = [tx.records("ready_of", queue.id, lane, *after, limit) for lane in LANES]
        return list(heapq.merge(*lanes, key=lambda found: found[0].place))[:limit]
    name = "suspects" if state is State.SUSPECT else f"find_{state}"
    return tx.records(name, queue.id, *after, limit)


def _find_ended(tx: Transaction, queue: Queue, state: int, after: list[Any], limit: int) -> Found:
    low, high = queue.id * SHARD + max(0, queue.state.endings - RECENT), min(after[0], (queue.id + 1) * SHARD)
    found = tx.all("find_ended", low, high, state, tx.now, limit + 1)
    looked, last = tx.one("ended_page", low, high)
    cursor = ""
    if len(found) > limit:
        del found[limit:]
        cursor = to_json([found[-1][0]])
    elif looked == PAGE:
        cursor = to_json([last])
    jobs = [Snapshot(queue.name, id, STATES[state], ending=body) for _, id, body in found]
    return Found(tx.now, jobs, cursor)


def act(tx: Transaction, verb: Act) -> Acted:
    if isinstance(verb.action, Pause | Resume):
        tx.queue(verb.queue).state.paused = isinstance(verb.action, Pause)
        tx.stirred.add(verb.queue)
        return Acted(tx.now)
    queue = tx.find_queue(verb.queue)
    if queue is None or not verb.ids:
        return Acted(tx.now)
    ids = list(dict.fromkeys(verb.ids))
    meant = tuple(verb.states) or STATES
    jobs = tx.records("jobs_by_id", queue.id, to_json(ids))
    found = {row.id: (row, body) for row, body in jobs if body is not None and STATES[row.state] in meant}
    match verb.action:
        case Cancel() as wish:
            return Acted(tx.now, _cancel(tx, queue, [found[id] for id in ids if id in found], wish))
        case Replay():
            return Acted(tx.now, _replay(tx, queue, [found[id][0] for id in ids if id in found]))
        case Delete():
            return Acted(tx.now, _delete(tx, queue, ids, {id: row for id, (row, _) in found.items()}, meant))


def _cancel(tx: Transaction, queue: Queue, found: list[tuple[Row, bytes]], wish: Cancel) -> list[str]:
    endings: list[tuple[str, int, int, bytes]] = []
    noted: list[Row] = []
    changed: list[str] = []
    for row, body in found:
        if row.state == DEAD or (row.state == RUNNING and row.wish is not None):
            continue
        changed.append(row.id)
        if row.state == RUNNING:
            row.wish = wish.reason
            noted.append(row)
        else:
            queue.number(row, -1)
            endings.append((row.id, CANCELLED, wish.ttl, _cancelled(tx, row, body, wish)))
    if noted:
        tx.move(queue, noted)
        queue.state.wishes += len(noted)
        tx.wished.add(queue.name)
    finish(tx, queue, endings)
    return changed


def _cancelled(tx: Transaction, row: Row, body: bytes, wish: Cancel) -> bytes:
    record = record_of(body)
    ending = Ending(
        version=VERSION,
        state=State.CANCELLED,
        task=record.task if record else "",
        fingerprint=record.fingerprint if record else "",
        created=record.created if record else 0,
        started=0,
        finished=tx.now,
        attempts=split_tally(row.tally)[0][1],
        reason=wish.reason,
        tally=row.tally,
        priority=row.priority,
        key=record.key if record and NAME.fullmatch(record.key or "") else None,
    )
    return encode_ending(ending)


def finish(tx: Transaction, queue: Queue, endings: list[tuple[str, int, int, bytes]]) -> None:
    """Turn jobs, which are no longer counted, into endings: (id, `DONE` or `CANCELLED`, ttl, body) of each."""
    if not endings:
        return
    tx.remove(queue, [ending[0] for ending in endings])
    end_notes(tx, queue, ((id, ttl) for id, _, ttl, _ in endings))
    key, now = queue.id * SHARD + queue.state.endings, tx.now
    rows: list[Any] = []
    done = 0
    for id, state, ttl, body in endings:
        key += 1
        done += state == DONE
        rows += (key, queue.id, id, state, min(now + ttl, FAR), body)
    tx.insert("add_endings", 6, rows)
    queue.state.endings += len(endings)
    queue.count("done", done)
    queue.count("cancelled", len(endings) - done)
    tx.ended.append((queue.name, [ending[0] for ending in endings]))


def _replay(tx: Transaction, queue: Queue, rows: list[Row]) -> list[str]:
    dead = [row for row in rows if row.state == DEAD]
    for row in dead:
        numbers, lines = split_tally(row.tally)
        numbers[2], numbers[3], numbers[5] = 0, 0, numbers[5] + 1
        row.tally = tally_text(numbers, lines)
        queue.to_tail(row)
    tx.move(queue, dead)
    queue.count("replayed", len(dead))
    tx.stirred.add(queue.name)
    return [row.id for row in dead]


def _delete(tx: Transaction, queue: Queue, ids: list[str], jobs: dict[str, Row], meant: Sequence[State]) -> list[str]:
    gone = [id for id in ids if id in jobs and jobs[id].state != RUNNING]
    for id in gone:
        queue.number(jobs[id], -1)
    tx.remove(queue, gone)
    drop_notes(tx, queue, gone)
    others = tx.all("endings_by_id", queue.id, to_json([id for id in ids if id not in jobs]), tx.now)
    endings = [id for id, state, _ in others if STATES[state] in meant]
    if endings:
        tx.run("forget", queue.id, to_json(endings), tx.now)
        forget_notes(tx, queue, endings)
    queue.count("deleted", len(gone) + len(endings))
    tx.ended.append((queue.name, gone))
    changed = {*gone, *endings}
    return [id for id in ids if id in changed]


def stats(tx: Transaction, verb: Stats) -> QueueStats:
    queue = tx.find_queue(verb.queue)
    if queue is None:
        return QueueStats(tx.now, [0] * 5, 0, {}, 0, 0, 0, 0, paused=False, totals={})
    state = queue.state
    return QueueStats(
        now=tx.now,
        ready=[sum(lanes) for lanes in zip(*state.ready, strict=True)],
        scheduled=state.scheduled,
        parked=state.parked,
        suspect=state.suspect,
        running=state.running,
        dead=state.dead,
        workers=tx.value("workers", queue.id, tx.boot),
        paused=state.paused,
        totals=state.totals,
        sequence=state.sequence,
        heads=_heads(tx, queue),
    )


def _heads(tx: Transaction, queue: Queue) -> list[int]:
    heads = [0] * len(PRIORITIES)
    for lane, ready in enumerate(queue.state.ready):
        for priority, count in enumerate(ready):
            low = priority * BAND
            place = tx.value("first_ready", queue.id, lane, low, low + BAND) if count else None
            if place is not None:
                heads[priority] = min(heads[priority] or BAND, place - low)
    return heads


def watch(tx: Transaction, verb: Watch) -> Watched:
    queue = tx.find_queue(verb.queue)
    if queue is None:
        return Watched(tx.now, [])
    if verb.cursor and not (verb.cursor.isdecimal() and len(verb.cursor) < 20):
        raise ConfigError(f"{verb.cursor!r} is not a cursor of Watch")
    after = min(int(verb.cursor or 0), FAR)
    found = tx.all("watch", queue.id, after, max(1, min(verb.limit, PAGE)))
    missed = found[0][0] - after - 1 if found else 0
    return Watched(tx.now, [Blob(str(number), *_stamp_of(body, tx.now)) for number, body in found], missed)


def stamped(now: int, blob: bytes) -> bytes:
    """Return what is kept of a blob: the time, as eight bytes, and itself."""
    return now.to_bytes(8) + blob


def _stamp_of(body: bytes, now: int) -> tuple[int, bytes]:
    """Return time and blob. What has no time, from an older release or by damage, is from now."""
    if len(body) < 8 or body[0]:
        return now, body
    return int.from_bytes(body[:8]), body[8:]


def load(tx: Transaction, verb: Load) -> Loaded:
    limit = max(1, min(verb.limit, PAGE))
    if verb.kind == "queue":
        found = tx.all("queues", verb.cursor, limit + 1)
    else:
        found = tx.all("documents", verb.kind, verb.cursor, tx.now, limit + 1)
    more = len(found) > limit
    documents = [Document(*row) for row in found[:limit]]
    return Loaded(tx.now, documents, documents[-1].key if more else "")


def store(tx: Transaction, verb: Store) -> Stored:
    tx.run("purge_documents", tx.now)
    found = tx.one("document", verb.kind, verb.key, tx.now)
    version: int = found[0] if found else 0
    if verb.if_version not in (None, version):
        raise VersionConflict(f"{verb.kind} {verb.key} has version {version}, not {verb.if_version}")
    expires = min(tx.now + verb.ttl, FAR) if verb.ttl else None
    for key, body in verb.others.items():
        before = tx.one("document", verb.kind, key, tx.now)
        tx.run("set_document", verb.kind, key, before[0] + 1 if before else 1, body, expires)
    if verb.body is None:
        tx.run("remove_document", verb.kind, verb.key)
        return Stored(tx.now, 0)
    tx.run("set_document", verb.kind, verb.key, version + 1, verb.body, expires)
    return Stored(tx.now, version + 1)
