"""The Redis form of every verb: a script, its key, its arguments, and how its reply is read. Does no I/O."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from msgspec.structs import replace

from spool.broker import (
    Act,
    Acted,
    Beat,
    Beaten,
    Blob,
    Cancel,
    Cancelled,
    Claim,
    Claimed,
    Delete,
    Died,
    Document,
    Done,
    Enqueue,
    Enqueued,
    Find,
    Found,
    Get,
    Load,
    Loaded,
    Note,
    Noted,
    Orders,
    Pause,
    QueueStats,
    Released,
    Replay,
    Resume,
    Retire,
    Retired,
    Retried,
    Settle,
    Settled,
    Settlement,
    Stats,
    Store,
    Stored,
    Verb,
    Watch,
    Watched,
)
from spool.errors import ConfigError, StoreCorrupt
from spool.job import Snapshot, State, read_ending

#: Most values in one group: a Lua stack has room for some 8,000 at once, three of which may belong to one job.
GROUP: Final = 1000
BAND: Final = 2**50


class Script:
    """One Lua file with what it includes, under its SHA-1 (EVALSHA's name for it)."""

    def __init__(self, name: str) -> None:
        folder = importlib.resources.files("spool.broker.redis") / "lua"
        text = (folder / f"{name}.lua").read_text("utf-8")
        header = re.match(r"-- include: (.+)\n", text)
        parts = header.group(1).split(", ") if header else []
        self.name = name
        self.source = "\n".join([(folder / f"{part}.lua").read_text("utf-8") for part in parts] + [text])
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


@functools.cache
def script(name: str) -> Script:
    """Return the script of that name, read once."""
    return Script(name)


class Call(NamedTuple):
    """A verb ready to be sent."""

    script: Script
    key: str
    args: list[Any]
    parse: Callable[[Any], Any]
    durable: bool = False
    """Whether the reply counts only once what was written is on the disk."""


def _text(item: bytes) -> str:
    return item.decode(errors="replace")  # a tally, or the name of a task, may be damaged: that is no reason to fail


def _texts(items: Iterable[bytes]) -> list[str]:
    return list(map(_text, items))


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    return dict(zip(_texts(flat[::2]), _texts(flat[1::2]), strict=True))


def _enqueue(verb: Enqueue) -> tuple[str, list[Any], Callable[[Any], Any]]:
    jobs = verb.jobs
    if len(jobs) == 1 and not verb.resend:
        job = jobs[0]
        if not (job.fingerprint or job.due or job.delay):
            return "enqueue_one", [job.lane, job.priority, job.id, job.record], Enqueued
    # A repeat within one call has to be found as one, like a job of a call that was made before.
    checked = verb.resend or any(job.fingerprint for job in jobs) or len({job.id for job in jobs}) < len(jobs)
    args: list[Any] = []
    shape: tuple[Any, ...] | None = None
    size_at = 0
    for job in jobs:
        new = (job.lane, job.priority, *(("a", job.due) if job.due else ("d", job.delay) if job.delay else ("", 0)))
        if new != shape or args[size_at] == GROUP:
            shape = new
            args += new
            size_at = len(args)
            args.append(0)
        args[size_at] += 1
        args += (job.id, job.record, job.fingerprint) if checked else (job.id, job.record)
    return ("enqueue_checked", args, _enqueued) if checked else ("enqueue", args, Enqueued)


def _enqueued(reply: Any) -> Enqueued:
    return Enqueued(reply[0], _texts(reply[1]), _texts(reply[2]))


def _heartbeat_args(verb: Beat) -> list[Any]:
    forms = {(beat.lease, beat.tasks, beat.held_ids) for beat in verb.beats}
    if len(forms) == 1 and verb.beats[0].tasks is verb.beats[0].held_ids is None:
        return ["", verb.beats[0].lease, *(beat.incarnation for beat in verb.beats)]
    args: list[Any] = []
    for beat in verb.beats:
        hash_ = ""
        if beat.tasks is not None:
            digest = hashlib.sha1("\n".join(sorted(beat.tasks)).encode(), usedforsecurity=False).hexdigest()
            hash_ = digest if beat.tasks else "none"
        tasks = sorted(beat.tasks or ())
        args += (beat.incarnation, beat.lease, hash_, len(tasks), *tasks)
        args += (beat.claim_seq,)
        args += ("",) if beat.held_ids is None else (len(beat.held_ids), *beat.held_ids)
    return args


def _beat(verb: Beat) -> tuple[str, list[Any], Callable[[Any], Any]]:
    def parse(reply: Any) -> Beaten:
        return Beaten(reply[0], [_orders(each) for each in reply[2:]], reply[1])

    return "beat", _heartbeat_args(verb), parse


def _orders(reply: Any) -> Orders:
    if isinstance(reply, int):
        return Orders(held=reply)
    lost, cancel, held, unknown, tasks = reply
    return Orders(bool(lost), _pairs(cancel), held, _texts(unknown), bool(tasks))


def _claimed(reply: Any) -> Claimed:
    now, next_at, ids, records, flat, cut = reply
    tallies = _pairs(flat) if flat else {}
    jobs = list(zip(map(bytes.decode, ids), records, strict=True))
    return Claimed(now, jobs, tallies, None if next_at == b"" else next_at, cut == 1)


def _claim(verb: Claim) -> tuple[str, list[Any], Callable[[Any], Any]]:
    main, process = verb.slots
    kind = "trial" if verb.trial else "even" if verb.even else ""
    args = [verb.incarnation, verb.seq, main, process, kind, verb.unroutable_after]
    return "claim", args, _claimed


def _group_of(one: Settlement) -> tuple[tuple[Any, ...], bytes | str]:
    match one:
        case Done():
            return ("D", one.fence, one.ttl), one.ending
        case Cancelled():
            return ("C", one.fence, one.ttl), one.ending
        case Retried():
            return ("R", one.fence, one.delay), one.tally
        case Released():
            return ("L", one.fence, one.delay), one.tally
        case Died():
            return ("X", one.fence, 0), one.tally


def _settle_args(verb: Settle) -> list[Any]:
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for one in verb.settlements:
        if type(one) is Done:
            shape: tuple[Any, ...] = ("D", one.fence, one.ttl)
            value: bytes | str = one.ending
        else:
            shape, value = _group_of(one)
        group = groups.get(shape)
        if group is None:
            group = groups[shape] = []
        group += (one.id, value)
    args: list[Any] = [verb.incarnation, verb.seq, verb.metrics]
    for shape, items in groups.items():
        for part in _parts(items):
            args += (*shape, len(part) // 2, *part)
    return args


def _parts(items: list[Any]) -> Iterable[list[Any]]:
    """Cut a group to what a script can take; an id that comes twice is cut off, so that it finds itself settled."""
    seen: set[Any] = set(items[::2])
    step = 2 * GROUP if 2 * len(seen) == len(items) else 2
    return (items[start : start + step] for start in range(0, len(items), step))


def _settle(verb: Settle) -> tuple[str, list[Any], Callable[[Any], Any]]:
    def parse(reply: Any) -> Settled:
        return Settled(reply[0], reply[1], _texts(reply[2:]))

    return "settle", _settle_args(verb), parse


def _note(verb: Note) -> tuple[str, list[Any], Callable[[Any], Any]]:
    args: list[Any] = [verb.incarnation]
    for note in verb.notes:
        args += (note.id, note.fence, note.first, len(note.lines), *note.lines, note.step, note.progress)

    def parse(reply: Any) -> Noted:
        return Noted(reply[0], _texts(reply[1:]))

    return "note", args, parse


def _retire(verb: Retire) -> tuple[str, list[Any], Callable[[Any], Any]]:
    def parse(reply: Any) -> Retired:
        return Retired(*reply)

    blamed = ("",) if verb.blamed is None else ("1", *verb.blamed)
    return "retire", [verb.incarnation, verb.reason, verb.detail, *blamed], parse


def _ended_as(ending: bytes) -> State:
    """Return how a job ended; as `state_of` in the scripts, where what its worker wrote is damaged or no such state."""
    try:
        state = read_ending(ending).state
    except StoreCorrupt:
        return State.DONE
    return State.CANCELLED if state == State.CANCELLED else State.DONE


def _snapshot(queue: str, fields: Sequence[Any]) -> Snapshot:
    id_, state, record, tally, ending, due, incarnation, started, finished = fields
    name = state.decode()
    return Snapshot(
        queue,
        id_.decode(),
        _ended_as(ending) if name == "ended" else State(name),
        record if ending == b"" else None,
        tally.decode(errors="replace"),
        ending or None,
        int(float(due)) if due else None,
        incarnation.decode() or None,
        int(started) if started else None,
        int(finished) if finished else None,
    )


def _get(verb: Get) -> tuple[str, list[Any], Callable[[Any], Any]]:
    def parse(reply: Any) -> Snapshot | None:
        if not reply:
            return None
        found = _snapshot(verb.queue, reply[:9])
        if len(reply) == 9:
            return found
        return replace(found, progress=reply[9], log_dropped=reply[10], log=tuple(reply[11:]))

    return "get", [verb.id], parse


#: What a cursor looks like, per state; the script must not be given anything else.
_PLACE, _TIME, _NAMES, _ENTRY = r"\d{1,19}", r"\d{1,19} [^ ]+", r"[^ ]+ [^ ]+", r"\d{1,19}-\d{1,19} \d{1,19}"
_CURSORS: Final = {
    State.READY: _PLACE,
    State.SUSPECT: _PLACE,
    State.SCHEDULED: _TIME,
    State.DEAD: _TIME,
    State.RUNNING: _NAMES,
    State.PARKED: r"[^ ]+ -?\d{1,19}",
    State.DONE: _ENTRY,
    State.CANCELLED: _ENTRY,
}


def _check_cursor(cursor: str, pattern: str, what: str) -> None:
    if cursor and not re.fullmatch(pattern, cursor, re.ASCII):
        raise ConfigError(f"{cursor!r} is not a cursor of {what}")


def _find(verb: Find) -> tuple[str, list[Any], Callable[[Any], Any]]:
    _check_cursor(verb.cursor, _CURSORS[verb.state], f"{verb.state} jobs")
    first, _, second = verb.cursor.partition(" ")
    if verb.state is State.PARKED:
        first = unquote(first)

    def parse(reply: Any) -> Found:
        cursor = _text(reply[1])
        if cursor and verb.state is State.PARKED:  # after the name of a task, which may be anything
            task, _, place = cursor.rpartition(" ")
            cursor = f"{quote(task)} {place}"
        return Found(reply[0], [_snapshot(verb.queue, fields) for fields in reply[2:]], cursor)

    return "find", [verb.state.value, min(max(verb.limit, 1), GROUP), first, second], parse


def _act(verb: Act) -> tuple[str, list[Any], Callable[[Any], Any]]:
    names = {Cancel: "cancel", Replay: "replay", Delete: "delete", Pause: "pause", Resume: "resume"}
    reason, ttl = (verb.action.reason, verb.action.ttl) if isinstance(verb.action, Cancel) else ("", 0)

    def parse(reply: Any) -> Acted:
        return Acted(reply[0], _texts(reply[1:]))

    return "act", [names[type(verb.action)], reason, ttl, " ".join(verb.states), *verb.ids], parse


def _stats(_: Stats) -> tuple[str, list[Any], Callable[[Any], Any]]:
    def parse(reply: Any) -> QueueStats:
        now, ready, scheduled, parked, suspect, running, dead, workers, paused, totals, sequence, heads = reply
        return QueueStats(
            now=now,
            ready=list(ready),
            scheduled=scheduled,
            parked=dict(zip(_texts(parked[::2]), parked[1::2], strict=True)),
            suspect=suspect,
            running=running,
            dead=dead,
            workers=workers,
            paused=bool(paused),
            totals=dict(zip(_texts(totals[::2]), map(int, totals[1::2]), strict=True)),
            sequence=sequence,
            heads=[int(float(place)) % BAND if place else 0 for place in heads],
        )

    return "stats", [], parse


def _watch(verb: Watch) -> tuple[str, list[Any], Callable[[Any], Any]]:
    _check_cursor(verb.cursor, r"\d{1,19}-\d{1,19}/\d{1,19}", "Watch")
    after, _, seen = verb.cursor.partition("/")

    def parse(reply: Any) -> Watched:
        blobs: list[Blob] = []
        for id_, stamp, body in zip(_texts(reply[1::3]), _texts(reply[2::3]), reply[3::3], strict=True):
            at, _, number = stamp.partition("/")
            blobs.append(Blob(f"{id_}/{number or 0}", int(at or reply[0]), body))
        missed = int(blobs[0].cursor.partition("/")[2]) - int(seen or 0) - 1 if blobs else 0
        return Watched(reply[0], blobs, max(0, missed))

    return "watch", [after, min(max(verb.limit, 1), GROUP)], parse


def _load(verb: Load) -> tuple[str, list[Any], Callable[[Any], Any]]:
    return "documents", ["load", verb.kind, verb.cursor, min(max(verb.limit, 1), GROUP)], _loaded


def _store(verb: Store) -> tuple[str, list[Any], Callable[[Any], Any]]:
    body = ("", b"") if verb.body is None else ("1", verb.body)
    wanted = "" if verb.if_version is None else verb.if_version
    others = [item for pair in verb.others.items() for item in pair]
    return "documents", ["store", verb.kind, verb.key, *body, verb.ttl, wanted, *others], _stored


_FORMS: dict[type[Any], Callable[[Any], tuple[str, list[Any], Callable[[Any], Any]]]] = {
    Enqueue: _enqueue,
    Beat: _beat,
    Claim: _claim,
    Settle: _settle,
    Note: _note,
    Retire: _retire,
    Get: _get,
    Find: _find,
    Act: _act,
    Stats: _stats,
    Watch: _watch,
    Load: _load,
    Store: _store,
}

SHARED: Final = "spool"
"""In place of a queue's name in the key of a verb that is about no queue."""


def queue_key(prefix: str, queue: str) -> str:
    """Return P of `lua/_keys.lua`: what every key of a queue begins with."""
    return f"{prefix}:{{{queue}}}:"


def form(verb: Verb[Any], prefix: str, now: int | None) -> Call:
    """Return the call that carries out a verb; ``now`` overrides the server's clock (tests only)."""
    kind = type(verb)
    name, args, parse = _FORMS[kind](verb)
    args.insert(0, "" if now is None else now)
    queue: str = getattr(verb, "queue", SHARED)
    return Call(script(name), queue_key(prefix, queue), args, parse, kind is Enqueue and verb.durable)  # type: ignore[attr-defined]


def wait_call(prefix: str, queue: str, channel: str, ids: Sequence[str]) -> Call:
    """Return the call that registers ``channel`` with jobs; its reply is what `read_waits` reads."""
    return Call(script("wait"), queue_key(prefix, queue), ["", channel, *ids], list)


def read_waits(queue: str, reply: Any) -> dict[str, Snapshot | None]:
    """Return id -> snapshot of jobs that have ended; None where the caller must look with `Get`."""
    return {
        id_.decode(): ended(queue, id_.decode(), ending) if kind == b"ended" else None
        for id_, kind, ending in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    }


def ended(queue: str, id_: str, ending: bytes) -> Snapshot:
    """Return the snapshot of a job that ended as done or cancelled."""
    return _snapshot(queue, (id_.encode(), b"ended", b"", b"", ending, b"", b"", b"", b""))


def _stored(reply: Any) -> Stored:
    return Stored(*reply)


def _loaded(reply: Any) -> Loaded:
    rows = zip(reply[2::3], reply[3::3], reply[4::3], strict=True)
    return Loaded(reply[0], [Document(key.decode(), version, body) for key, version, body in rows], reply[1].decode())
