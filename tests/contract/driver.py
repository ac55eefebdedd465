"""A queue under test: short ways to say what a client or a worker does to it."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from spool.broker import (
    Act,
    Acted,
    Action,
    Beat,
    Broker,
    Cancelled,
    Claim,
    Claimed,
    Died,
    Done,
    Enqueue,
    Enqueued,
    Find,
    Get,
    Heartbeat,
    JobNote,
    NewJob,
    Note,
    Orders,
    QueueStats,
    Released,
    Retire,
    Retired,
    Retried,
    Settle,
    Settled,
    Settlement,
    Stats,
)
from spool.job import (
    VERSION,
    Attempt,
    Ending,
    Record,
    Snapshot,
    State,
    Tally,
    encode_ending,
    encode_record,
    read_tally,
)
from tests.model_state import Clock
from tests.tallies import write_tally

LEASE = 10_000
CORRUPT = b"\xc1 these bytes are no record"
NO_TALLIES = (
    "rubbish",
    "{}",
    "7",
    "[1,1]",
    "[1,1,1,0,0,0",
    "[1,1,1,0,0,0]]",
    "[1,1,1,0,0,0,]",
    '[1,1,1,0,0,"x"]',
    "[1,null,0,0,0,0]",
    "[1,{},0,0,0,0]",
    "[1,true,0,0,0,0]",
    "[1,-1,0,0,0,0]",
    "[1,2.5,0,0,0,0]",
    "[1,1e999,0,0,0,0]",
    "[1,9007199254740993,0,0,0,0]",
    "[1,18446744073709551615,0,0,0,0]",
    "[1,1,1,0,0,0," + "[" * 20_000,
)
"""Texts in which what happened to a job cannot be read."""
NEWER_TAIL = ',123456789012345678,2.5,null,"a]b",[],{"a":[null]}]'
"""What a newer release may have appended to the counts of a tally."""


def record(
    task: str = "t",
    *,
    priority: int = 2,
    lane: int = 0,
    fingerprint: str = "",
    max_crashes: int = 3,
    payload: Any = "",
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    body = msgspec.Raw(msgspec.msgpack.encode([[payload], {}]))
    created = 1_700_000_000_000
    return encode_record(
        Record(VERSION, task, priority, lane, max_crashes, fingerprint, created, body, headers=headers, key=key)
    )


def job(id: str, task: str = "t", *, delay: int = 0, due: int = 0, body: bytes | None = None, **fields: Any) -> NewJob:
    """A job whose record agrees with what `NewJob` repeats of it."""
    repeated = {name: fields[name] for name in ("priority", "lane", "fingerprint") if name in fields}
    return NewJob(id, record(task, **fields) if body is None else body, delay=delay, due=due, **repeated)


def too_deep() -> bytes:
    """A record with one more part, which nests deeper than any reader goes."""
    body = record("t")
    return b"\xdc" + ((body[0] & 0x0F) + 1).to_bytes(2, "big") + body[1:] + b"\x91" * 20_000 + b"\xc0"


def jobs(count: int, prefix: str = "j", **fields: Any) -> list[NewJob]:
    return [job(f"{prefix}{number:05}", **fields) for number in range(count)]


def ending(state: str = "done", *, fingerprint: str = "", result: Any = None) -> bytes:
    raw = msgspec.Raw(msgspec.msgpack.encode(result))
    return encode_ending(Ending(VERSION, state, "t", fingerprint, 1, 2, 3, 1, raw))


def tally(*, attempts: int = 1, failures: int = 0, crashes: int = 0, outcome: str = "retried") -> str:
    lines = [Attempt(attempts, outcome, 1, 2, "w", "ValueError", "no", "Traceback…")]
    return write_tally(Tally(attempts=attempts, failures=failures, crashes=crashes), lines)


def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    """Wait for what happens by the real clock: the expiry of keys, another thread."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class Driver:
    """One queue of a broker. Sequence numbers and fences are kept here, as a worker would."""

    def __init__(self, broker: Broker, clock: Clock, queue: str = "q") -> None:
        self.broker, self.clock, self.queue = broker, clock, queue
        self.call = broker.call
        self._claims: Counter[str] = Counter()
        self._settles: Counter[str] = Counter()
        self._fences: dict[str, int] = {}
        self._beaten: set[str] = set()

    def enqueue(self, *new: str | NewJob, resend: bool = False) -> Enqueued:
        """Store jobs; a plain id stands for an ordinary job of the task "t"."""
        return self.call(Enqueue(self.queue, [job(each) if isinstance(each, str) else each for each in new], resend))

    def beat(self, *incarnations: str, tasks: tuple[str, ...] | None = None, lease: int = LEASE) -> list[Orders]:
        """Beat for incarnations; those which beat first know the task "t"."""
        beats = []
        for each in incarnations:
            names = ("t",) if tasks is None and each not in self._beaten else tasks
            beats.append(Heartbeat(each, lease, names))
        self._beaten.update(incarnations)
        return self.call(Beat(self.queue, beats)).orders

    def heartbeat(self, incarnation: str, **fields: Any) -> Orders:
        return self.call(Beat(self.queue, [Heartbeat(incarnation, LEASE, **fields)])).orders[0]

    def claim(
        self, incarnation: str, main: int = 100, process: int = 0, *, even: bool = False, **options: Any
    ) -> Claimed:
        self._claims[incarnation] += 1
        verb = Claim(self.queue, incarnation, self._claims[incarnation], (main, process), even=even, **options)
        claimed = self.call(verb)
        self._fences.update(dict.fromkeys(dict(claimed.jobs), verb.seq))
        return claimed

    def take(self, incarnation: str, main: int = 100, process: int = 0, **options: Any) -> list[str]:
        """Claim, and return the ids."""
        return [id for id, _ in self.claim(incarnation, main, process, **options).jobs]

    def last_claim(self, incarnation: str, main: int = 100) -> Claim:
        """The verb of the last claim, to be sent again."""
        return Claim(self.queue, incarnation, self._claims[incarnation], (main, 0))

    def settle(self, incarnation: str, *settlements: Settlement, metrics: bytes = b"") -> Settled:
        return self.call(self.settle_verb(incarnation, *settlements, metrics=metrics))

    def settle_verb(self, incarnation: str, *settlements: Settlement, metrics: bytes = b"") -> Settle:
        self._settles[incarnation] += 1
        return Settle(self.queue, incarnation, self._settles[incarnation], settlements, metrics)

    def fence(self, id: str) -> int:
        return self._fences[id]

    def done(self, id: str, *, ttl: int = 3_600_000, body: bytes | None = None) -> Done:
        return Done(id, self._fences[id], body or ending(), ttl)

    def cancelled(self, id: str, *, ttl: int = 3_600_000) -> Cancelled:
        return Cancelled(id, self._fences[id], ending("cancelled"), ttl)

    def retried(self, id: str, *, delay: int = 0, text: str = "") -> Retried:
        return Retried(id, self._fences[id], text or tally(failures=1), delay)

    def released(self, id: str, *, delay: int = 0, text: str = "") -> Released:
        return Released(id, self._fences[id], text or tally(outcome="released"), delay)

    def died(self, id: str, *, text: str = "") -> Died:
        return Died(id, self._fences[id], text or tally(failures=1, outcome="died"))

    def note(self, incarnation: str, *notes: JobNote) -> list[str]:
        """Note what jobs say; returns the ids refused."""
        return self.call(Note(self.queue, incarnation, notes)).refused

    def says(self, id: str, *lines: bytes, first: int = 0, step: int = 0, progress: bytes = b"") -> JobNote:
        return JobNote(id, self._fences[id], first, lines, step, progress)

    def log(self, id: str) -> tuple[bytes, ...]:
        found = self.get(id)
        assert found is not None
        return found.log

    def retire(
        self, incarnation: str, reason: Any = "stopped", detail: str = "", blamed: tuple[str, ...] | None = None
    ) -> Retired:
        return self.call(Retire(self.queue, incarnation, reason, detail, blamed))

    def act(self, action: Action, *ids: str, states: tuple[State, ...] = ()) -> list[str]:
        acted: Acted = self.call(Act(self.queue, action, ids, states))
        return acted.changed

    def get(self, id: str) -> Snapshot | None:
        return self.call(Get(self.queue, id))

    def state(self, id: str) -> State | None:
        found = self.get(id)
        return found.state if found else None

    def tally(self, id: str) -> Tally:
        return self.history(id)[0]

    def history(self, id: str) -> tuple[Tally, list[Attempt]]:
        found = self.get(id)
        assert found is not None
        return read_tally(found.tally)

    def stats(self) -> QueueStats:
        return self.call(Stats(self.queue))

    def totals(self) -> dict[str, int]:
        return self.stats().totals

    def snapshots(self, state: State, limit: int = 100) -> list[Snapshot]:
        """List all jobs of a state, page by page."""
        found, cursor = [], ""
        while True:
            page = self.call(Find(self.queue, state, cursor, limit))
            assert len(page.jobs) <= limit
            found += page.jobs
            cursor = page.cursor
            if not cursor:
                return found

    def ids(self, state: State, limit: int = 100) -> list[str]:
        return [each.id for each in self.snapshots(state, limit)]

    def dump(self) -> dict[str, Any]:
        """All there is to see: counts, and every job."""
        stats = msgspec.structs.asdict(self.stats())
        del stats["now"]
        return stats | {state.value: self.snapshots(state) for state in State}

    def march(self, ms: int, *alive: str) -> None:
        """Let time pass in steps too small for an amnesty, while these incarnations beat."""
        while ms > 0:
            step = min(ms, LEASE // 4)
            self.clock.advance(step)
            ms -= step
            if alive:
                self.beat(*alive)

    def lose(self, incarnation: str, *alive: str) -> None:
        """Let the lease of an incarnation run out and be reaped, while others go on."""
        assert incarnation not in alive
        self.march(LEASE + 100, *alive)
        self.claim(alive[0], 0)

    def promote(self, incarnation: str) -> None:
        """Keep house, and take nothing."""
        self.claim(incarnation, 0)

    def worker(self, incarnation: str, *new: str | NewJob) -> list[str]:
        """Register an incarnation, and let it claim these jobs and all that is ready; returns their ids."""
        self.beat(incarnation)
        self.enqueue(*new)
        taken = []
        while more := self.take(incarnation, 1000, 1000):
            taken += more
        return taken
