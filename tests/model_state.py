"""What the model (`tests.model`) knows: a queue with its jobs, and the documents."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from spool.broker import Cancel, Document, JobNote, Load, Loaded, Retire, Settled, Store, Stored
from spool.errors import StoreCorrupt, VersionConflict
from spool.job import VERSION, Snapshot, State, read_record

B = TypeVar("B")
T = TypeVar("T")


@dataclass
class Clock:
    """Two clocks set by hand, in milliseconds: of the wall, and since the machine's boot."""

    wall: int = 1_800_000_000_000
    boot: int = 50_000_000

    def __call__(self) -> int:
        return self.wall

    def advance(self, ms: int) -> None:
        self.wall += ms
        self.boot += ms


@dataclass
class Notes:
    """What a job noted."""

    whose: tuple[str, int] = ("", 0)
    """Incarnation and fence of the attempt that noted last; and how many lines it wrote, and its last step."""
    seen: int = 0
    step: int = 0
    lines: list[bytes] = field(default_factory=list)
    dropped: int = 0
    progress: bytes = b""

    def take(self, incarnation: str, note: JobNote) -> None:
        if self.whose != (incarnation, note.fence):
            self.whose, self.seen, self.step = (incarnation, note.fence), 0, 0
        for number, line in enumerate(note.lines, note.first):
            if number >= self.seen:
                self.lines.append(line)
                self.dropped += number - self.seen
                self.seen = number + 1
        if note.first > self.seen:
            self.dropped += note.first - self.seen
            self.seen = note.first
        while len(self.lines) > 200 or sum(map(len, self.lines)) > 65536:
            del self.lines[0]
            self.dropped += 1
        if note.progress and note.step > self.step:
            self.step, self.progress = note.step, note.progress

    def on(self, snapshot: Snapshot) -> Snapshot:
        return msgspec.structs.replace(
            snapshot, progress=self.progress, log=tuple(self.lines), log_dropped=self.dropped
        )


@dataclass
class Entry:
    """A job that is not done or cancelled."""

    id: str
    record: bytes
    priority: int
    lane: int
    fingerprint: str
    state: State = State.READY
    place: int = 0
    suspect: bool = False
    """Whether its place is among the suspects."""
    tally: str = ""
    due: int | None = None
    incarnation: str | None = None
    fence: int = 0
    started: int | None = None
    parked: int | None = None
    """Since when, if it is."""
    finished: int | None = None
    dangling: bool = False
    cancel: Cancel | None = None
    notes: Notes = field(default_factory=Notes)

    @property
    def turn(self) -> tuple[int, int]:
        return self.priority, self.place

    @property
    def task(self) -> str | None:
        record = readable(read_record, self.record)
        return record.task if record else None

    @property
    def sort_key(self) -> list[Any]:
        match self.state:
            case State.SCHEDULED:
                return [self.due, self.id]
            case State.RUNNING:
                return [self.incarnation, self.id]
            case State.PARKED:
                return [self.task, *self.turn]
            case State.DEAD:
                return [-self.place]
            case _:
                return [*self.turn]

    def snapshot(self, queue: "Queue") -> Snapshot:
        return Snapshot(
            queue=queue.name,
            id=self.id,
            state=self.state,
            record=self.record,
            tally=self.tally,
            due=self.due,
            incarnation=self.incarnation,
            started=self.started,
            finished=self.finished,
        )


@dataclass
class Remembered:
    """A job that is done or cancelled."""

    id: str
    state: State
    ending: bytes
    until: int
    order: int
    notes: Notes

    def snapshot(self, queue: "Queue") -> Snapshot:
        return Snapshot(queue.name, self.id, self.state, ending=self.ending)


@dataclass
class Incarnation:
    lease: int = 0
    deadline: int = 0
    tasks: frozenset[str] | None = None
    claim_seq: int = 0
    settle_seq: int = 0
    settled: Settled | None = None


@dataclass
class Queue:
    name: str
    entries: dict[str, Entry] = field(default_factory=dict)
    endings: dict[str, Remembered] = field(default_factory=dict)
    alive: dict[str, Incarnation] = field(default_factory=dict)
    tombstones: dict[str, Retire] = field(default_factory=dict)
    blobs: list[tuple[int, bytes]] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    paused: bool = False
    wishes: int = 0
    places: int = 0
    seen: int | None = None
    amnesty: int = 0

    def look_at_clock(self, now: int, lease: int) -> None:
        if self.seen is not None and abs(now - self.seen) > lease / 3:
            self.amnesty = now + lease
            for each in self.alive.values():
                each.deadline = min(each.deadline, self.amnesty)
        self.seen = now

    def live(self, now: int) -> list[str]:
        return [name for name, each in self.alive.items() if each.deadline > now]

    def share(self, now: int, ready: int, main: str | None, *, even: bool) -> int:
        """An even split of what is ready; in the main lane at least what is missing to one of all that is held, too.

        If it is to be ``even``, then in the main lane no more than that.
        """
        live = self.live(now)
        share = max(1, math.ceil(ready / len(live)))
        if main is None:
            return share
        held = sum(len(self.running(each)) for each in live)
        missing = math.ceil((ready + held) / len(live)) - len(self.running(main))
        if len(live) == 1:
            return share
        return max(0, missing) if even else max(share, missing)

    def among(self, *states: State) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state in states]

    def to_tail(self, entry: Entry) -> None:
        self.places += 1
        entry.place, entry.suspect = self.places, False
        self.to_place(entry)

    def to_place(self, entry: Entry) -> None:
        entry.state = State.SUSPECT if entry.suspect else State.READY
        entry.due = entry.incarnation = entry.started = entry.parked = entry.finished = None

    def running(self, incarnation: str) -> list[Entry]:
        held = [entry for entry in self.among(State.RUNNING) if entry.incarnation == incarnation]
        return sorted(held, key=lambda entry: (entry.lane, entry.turn))


def readable(read: Callable[[B], T], body: B) -> T | None:
    try:
        return read(body)
    except StoreCorrupt:
        return None


def text_of(entry: Entry) -> tuple[list[Any], list[str]]:
    """The counts and the lines of a job's tally; as text, since lines of a newer release are kept as they are."""
    head, *lines = entry.tally.split("\n")
    try:
        counts = json.loads(head)
    except (ValueError, RecursionError):
        counts = None
    if isinstance(counts, list) and len(counts) >= 6 and all(type(n) is int and 0 <= n < 2**53 for n in counts[:6]):
        return counts, lines
    return [VERSION, 0, 0, 0, 0, 0], []


class Documents:
    """What spans queues: the documents, and the names of the queues."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: set[str] = set()
        self._bodies: dict[tuple[str, str], tuple[Document, int]] = {}

    def know(self, queue: str) -> None:
        self._queues.add(queue)

    def load(self, verb: Load) -> Loaded:
        if verb.kind == "queue":
            documents = [Document(name, 0, b"") for name in self._queues]
        else:
            documents = [self._bodies[key][0] for key in self._bodies if key[0] == verb.kind and self._there(key)]
        documents = sorted((each for each in documents if each.key > verb.cursor), key=lambda each: each.key)
        limit = max(1, min(verb.limit, 1000))
        page, rest = documents[:limit], documents[limit:]
        return Loaded(self._clock.wall, page, page[-1].key if rest else "")

    def store(self, verb: Store) -> Stored:
        key = (verb.kind, verb.key)
        present = self._bodies[key][0].version if self._there(key) else 0
        if verb.if_version not in (None, present):
            raise VersionConflict(f"{verb.kind} {verb.key} has version {present}, not {verb.if_version}")
        until = self._clock.wall + verb.ttl if verb.ttl else 0
        for name, body in verb.others.items():
            other = (verb.kind, name)
            version = self._bodies[other][0].version if self._there(other) else 0
            self._bodies[other] = (Document(name, version + 1, body), until)
        if verb.body is None:
            self._bodies.pop(key, None)
            return Stored(self._clock.wall, 0)
        document = Document(verb.key, present + 1, verb.body)
        self._bodies[key] = (document, until)
        return Stored(self._clock.wall, document.version)

    def _there(self, key: tuple[str, str]) -> bool:
        until = self._bodies[key][1] if key in self._bodies else -1
        return until == 0 or until > self._clock.wall
