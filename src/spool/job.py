"""Jobs as data: their states, and the records that lie in the store.

A job in the store has up to three parts:

* the **record** (`Record`): what was asked for. Written once at enqueue, never rewritten. msgpack, array-like; its
  first elements are fixed (version, task, priority, lane), so that a script can read them without decoding the rest.
* the **tally** (`Tally`): what happened so far: how often it was started, failed, crashed; one line per finished
  attempt. Text, so that Lua and SQL can append to it: a JSON array of numbers, then one JSON array per line
  (`Attempt`). A job that was never handed back has none.
* the **ending** (`Ending`): how it ended as done or cancelled, with the result. msgpack, array-like; kept for a time. A
  dead job has no ending: it keeps record and tally until it is replayed, deleted or pruned.

Every part begins with a version. Fields are only ever appended, with defaults, and unknown tails are kept: an older
worker that hands a job on loses nothing that a newer one wrote. All times are milliseconds since the epoch by the
store's clock, except ``created``, which is the producer's and is only shown.
"""

from __future__ import annotations

import enum
import functools
import os
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from spool import opaque
from spool.errors import ConfigError, StoreCorrupt

VERSION: Final = 1
"""The layout written by this release, in every record, tally and ending."""

Priority = Literal["critical", "high", "normal", "low", "background"]
PRIORITIES: Final[tuple[Priority, ...]] = ("critical", "high", "normal", "low", "background")

MAIN: Final = 0
PROCESS: Final = 1
LANES: Final = (MAIN, PROCESS)
"""Lanes of a queue: jobs for the event loop and threads, and jobs for the process pool, claimed against its free
slots."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Of a verb, as it may come from elsewhere: what a double, and so a script, can hold exactly."""

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,126}")
"""Queue and task names, and job ids and keys given by a caller. No braces or spaces: names become parts of keys."""


def check_name(kind: str, name: object) -> str:
    """Return ``name`` if it may name a ``kind`` ("queue", "task", "job id", "key"); raise `ConfigError` otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{kind} {name!r} is not usable: allowed are 1 to 127 of the characters A-Z a-z 0-9 _ . : -, "
            "the first of them a letter, digit or underscore"
        )
    return name


def is_text(text: str) -> bool:
    """Whether a store can be given it: a lone surrogate, as for a byte that is not UTF-8, has no encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.lru_cache(1000)
def task_fingerprint(task: str) -> str:
    """Return what the fingerprint of a call begins with: 8 hex digits of its task."""
    import hashlib  # only for calls with an id

    return hashlib.blake2b(task.encode(), digest_size=4).hexdigest()


_last_id = 0


def new_id() -> str:
    """Return a new time-ordered id: a UUIDv7 (RFC 9562), 32 hex digits without dashes.

    >>> len(new_id())
    32
    """
    now = time.time_ns()
    # RFC 9562 method 3: the 12 bits after the millisecond hold its fraction, so that ids of one process sort by time.
    head = (now // 1_000_000) << 16 | 0x7000 | (now % 1_000_000) * 4096 // 1_000_000
    tail = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    return f"{head << 64 | tail:032x}"


class State(enum.StrEnum):
    """Where a job stands. `PARKED` and `SUSPECT` are shades of ready; the last three are terminal."""

    SCHEDULED = "scheduled"
    READY = "ready"
    PARKED = "parked"
    SUSPECT = "suspect"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether only an explicit replay leaves this state."""
        return self in _TERMINAL


_TERMINAL = frozenset({State.DONE, State.DEAD, State.CANCELLED})


class Options(msgspec.Struct, array_like=True, frozen=True):
    """What one call overrides of its task's declaration; None means as declared. Times in seconds."""

    retries: int | None = None
    timeout: float | None = None
    result_ttl: float | None = None
    on_disconnect: str | None = None


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What was asked for. ``payload`` is msgpack of [args, kwargs]; the task's own types read it.

    The element behind ``parent`` is the signature of a job that is signed (`spool.protection`).
    """

    version: int
    task: str
    priority: int
    lane: int
    max_crashes: int
    fingerprint: str
    """Hash of the task, then one of task and arguments, where the caller gave the id, else empty: decides between "the
    same" and `JobConflict`. Of an encrypted call, that of the task alone: one begins with the other, if they are the
    same as far as one can tell."""
    created: int
    payload: msgspec.Raw
    options: Options | None = None
    headers: dict[str, str] | None = None
    key: str | None = None
    group: str | None = None
    expires: int | None = None
    parent: str | None = None


NIL: Final = msgspec.Raw(b"\xc0")
"""msgpack's nil: the result of a job that returned None, or whose result was not to be kept."""


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """One line of a tally. ``outcome``: done, retried, died, released, cancelled, stopped, crashed or lost."""

    number: int
    outcome: str
    started: int
    ended: int
    worker: str = ""
    error_type: str = ""
    message: str = ""
    traceback: str = ""


class Tally(msgspec.Struct, array_like=True, frozen=True):
    """What happened to a job so far, over all its generations.

    ``attempts`` counts starts and never falls. ``failures`` counts exceptions and ``crashes`` the attempts that took
    their worker down; both begin anew with a replay, which raises ``generation``. ``losses`` counts leases that ran
    out.
    """

    version: int = VERSION
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    losses: int = 0
    generation: int = 0


class Ending(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How a job ended as done or cancelled. ``result`` is msgpack; `NIL` when it was not to be kept.

    Signature and key are not stored where there are none: see `encode_ending`.
    """

    version: int
    state: str
    task: str
    fingerprint: str
    created: int
    started: int
    finished: int
    attempts: int
    result: msgspec.Raw = NIL
    reason: str = ""
    worker: str = ""
    tally: str = ""
    priority: int = 2
    signature: msgspec.Raw = NIL
    """As it lies there; `spool.protection` makes it, and looks at it."""
    key: str | None = None


NO_TALLY: Final = Tally()
_decode_tally = msgspec.json.Decoder(Tally).decode
_decode_attempts = msgspec.json.Decoder(Attempt).decode_lines
_split_counts = msgspec.json.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(min_length=6)]).decode
_decode_count = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0, lt=2**53)]).decode
_encode_json = msgspec.json.Encoder().encode

#: A tally longer than this loses the tracebacks, then the oldest lines, of its earlier attempts.
TALLY_LIMIT: Final = 64 * 1024


def read_tally(text: str) -> tuple[Tally, list[Attempt]]:
    """Return the numbers and the attempts of a tally; of an empty text, a fresh one. Raises `StoreCorrupt`."""
    if not text:
        return NO_TALLY, []
    head, _, lines = text.partition("\n")
    try:
        tally = _decode_tally(head)
        attempts = _decode_attempts(lines)
    except opaque.UNREADABLE as error:
        raise StoreCorrupt(f"a job's tally cannot be read: {error}") from error
    if tally.version > VERSION:
        raise StoreCorrupt(f"a job's tally has layout {tally.version}; this release knows up to {VERSION}")
    return tally, attempts


def split_tally(text: str) -> tuple[list[Any], str]:
    """Return the counts of a tally, behind them what a newer release appended as it is, and the lines.

    Where the counts are damaged both begin anew: whoever counts on must not fail for as long as the job is there.
    """
    head, _, lines = text.partition("\n")
    try:
        counts = _split_counts(head)
        return [*map(_decode_count, counts[:6]), *counts[6:]], lines
    except opaque.UNREADABLE:
        return [VERSION, 0, 0, 0, 0, 0], ""


def extend_tally(text: str, attempt: Attempt, *, failures: int = 0, crashes: int = 0) -> str:
    """Return the text of a tally with one attempt more, and with what it adds to the counts.

    What a newer release appended to the counts or to a line is kept. Beyond `TALLY_LIMIT` the earlier attempts lose
    their tracebacks, and then the oldest ones go. A tally that cannot be read begins anew.
    """
    try:
        read_tally(text)
    except StoreCorrupt:
        text = ""
    numbers, rest = split_tally(text)
    for index, more in ((1, 1), (2, failures), (3, crashes)):
        numbers[index] += more
    lines = rest.split("\n") if rest else []
    lines.append(_encode_json(attempt).decode())
    return "\n".join([_encode_json(numbers).decode(), *fitting(lines)])


def fitting(lines: list[str]) -> list[str]:
    """Return the lines of a tally as far as they fit into `TALLY_LIMIT`."""
    if _size(lines) > TALLY_LIMIT:
        lines[:-1] = [_without_traceback(line) for line in lines[:-1]]
        while len(lines) > 1 and _size(lines) > TALLY_LIMIT:
            del lines[0]
    return lines


def _size(lines: list[str]) -> int:
    return sum(map(len, lines)) + len(lines)


def _without_traceback(line: str) -> str:
    fields: list[Any] = msgspec.json.decode(line)
    fields[7:8] = [""] if len(fields) > 7 else []
    return _encode_json(fields).decode()


class Progress(msgspec.Struct, frozen=True):
    """How far an attempt said that it is: ``done`` of ``total`` (None: it did not say), in units of its own.

    ``at`` is when it said so, in milliseconds since the epoch.
    """

    done: int | float
    total: int | float | None = None
    message: str = ""
    at: int = 0
    attempt: int = 0


class LogLine(msgspec.Struct, frozen=True):
    """One line that a job logged, ``at`` which time (ms since the epoch), in the ``attempt`` of that number."""

    at: int
    attempt: int
    level: str
    logger: str
    message: str


class Snapshot(msgspec.Struct, frozen=True):
    """A job as the store holds it, undecoded. Which fields are set depends on the state.

    ``record`` is None once a job is done or cancelled, ``ending`` is None until then. ``due`` is set when scheduled,
    ``incarnation`` and ``started`` when running, ``finished`` when dead. ``progress`` and ``log`` are what the job's
    attempts noted (`spool.broker.Note`), and ``log_dropped`` counts the earlier lines that are not kept; only `Get`
    fills them.
    """

    queue: str
    id: str
    state: State
    record: bytes | None = None
    tally: str = ""
    ending: bytes | None = None
    due: int | None = None
    incarnation: str | None = None
    started: int | None = None
    finished: int | None = None
    progress: bytes = b""
    log: tuple[bytes, ...] = ()
    log_dropped: int = 0


class _StoredProgress(msgspec.Struct, array_like=True, frozen=True):
    version: int
    done: int | float
    total: int | float | None
    message: str
    at: int
    attempt: int


class _StoredLine(msgspec.Struct, array_like=True, frozen=True):
    version: int
    at: int
    attempt: int
    level: str
    logger: str
    message: str


_encode_note = msgspec.msgpack.Encoder().encode
_decode_progress = msgspec.msgpack.Decoder(_StoredProgress).decode
_decode_line = msgspec.msgpack.Decoder(_StoredLine).decode
_decode_record = msgspec.msgpack.Decoder(Record).decode
_decode_ending = msgspec.msgpack.Decoder(Ending).decode
_decode_arguments = msgspec.msgpack.Decoder(tuple[list[Any], dict[str, Any]]).decode
encode_fields = msgspec.msgpack.Encoder().encode
"""Encodes the fields of a record or of an ending, as a struct or as a tuple."""
encode_record = encode_fields


def encode_ending(ending: Ending) -> bytes:
    """Return an ending as it is stored: without the fields at its end that say nothing, as most have no key."""
    fields = msgspec.structs.astuple(ending)
    if ending.key is None:
        fields = fields[:-1] if ending.signature != NIL else fields[:-2]
    return encode_fields(fields)


def read_record(body: bytes) -> Record:
    """Decode a record. Raises `StoreCorrupt` when it is damaged or of a newer layout."""
    try:
        record = _decode_record(body)
    except opaque.UNREADABLE as error:
        raise StoreCorrupt(f"a job's record cannot be decoded: {error}") from error
    if record.version > VERSION:
        raise StoreCorrupt(f"a job's record has layout {record.version}; this release knows up to {VERSION}")
    return record


def read_ending(body: bytes) -> Ending:
    """Decode an ending. Raises `StoreCorrupt` when it is damaged or of a newer layout."""
    try:
        ending = _decode_ending(body)
    except opaque.UNREADABLE as error:
        raise StoreCorrupt(f"a job's ending cannot be decoded: {error}") from error
    if ending.version > VERSION:
        raise StoreCorrupt(f"a job's ending has layout {ending.version}; this release knows up to {VERSION}")
    return ending


def read_arguments(record: Record) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call as plain values, `ENCRYPTED` for those that are. Raises `StoreCorrupt`."""
    if opaque.unwrap(record.payload) is not None:
        return [opaque.ENCRYPTED], {}
    try:
        return _decode_arguments(record.payload)
    except (*opaque.UNREADABLE, ValueError) as error:
        raise StoreCorrupt(f"the arguments cannot be decoded: {error}") from error


def encode_progress(progress: Progress) -> bytes:
    """Return a report of progress as it is stored: msgpack, array-like."""
    return _encode_note(_StoredProgress(VERSION, *msgspec.structs.astuple(progress)))


def encode_line(line: LogLine) -> bytes:
    """Return a log line as it is stored: msgpack, array-like."""
    return _encode_note(_StoredLine(VERSION, *msgspec.structs.astuple(line)))


def read_progress(body: bytes) -> Progress | None:
    """Decode a report of progress; None for none, and for one that is damaged or of a newer layout."""
    try:
        stored = _decode_progress(body)
    except opaque.UNREADABLE:
        return None
    return Progress(*msgspec.structs.astuple(stored)[1:]) if stored.version <= VERSION else None


def read_lines(bodies: Sequence[bytes]) -> list[LogLine]:
    """Decode log lines; those that are damaged or of a newer layout are left out."""
    lines: list[LogLine] = []
    for body in bodies:
        try:
            stored = _decode_line(body)
        except opaque.UNREADABLE:
            continue
        if stored.version <= VERSION:
            lines.append(LogLine(*msgspec.structs.astuple(stored)[1:]))
    return lines
