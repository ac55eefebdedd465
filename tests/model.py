"""The broker contract (`spool.broker`) as plain Python in memory: slow, unbounded and meant to be obviously right.

The contract suite runs on it, and a random sequence of verbs must get the same replies from it and from each broker.
Nothing is bounded here but what a caller can see (the steps of `Retire`, the pages of `Find`, `Load` and `Watch`), and
tombstones are kept for good.
"""

import asyncio
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

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
    Done,
    Enqueue,
    Enqueued,
    Find,
    Found,
    Get,
    Heartbeat,
    JobNote,
    Load,
    Loaded,
    NewJob,
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
    Watch,
    Watched,
)
from spool.errors import BrokerUnavailable, LeaseLost
from spool.job import (
    LANES,
    MAIN,
    NAME,
    PRIORITIES,
    VERSION,
    Attempt,
    Ending,
    Snapshot,
    State,
    encode_ending,
    read_ending,
    read_record,
)
from tests.model_state import (
    Clock,
    Documents,
    Entry,
    Incarnation,
    Queue,
    Remembered,
    readable,
    text_of,
)

STEP = 500
"""Jobs that one `Retire` hands back."""
UNROUTABLE = 100
"""Jobs that one `Claim` lets die because nobody knows their task."""
MAX_CRASHES = 3
"""For a record that cannot be read."""


async def poll(condition: Callable[[], bool], timeout: float | None) -> None:
    loop = asyncio.get_running_loop()
    deadline = math.inf if timeout is None else loop.time() + timeout
    while not condition() and loop.time() < deadline:  # noqa: ASYNC110 - an event would belong to one loop
        await asyncio.sleep(0.001)


class ModelBroker:
    """A broker that is nothing but its contract."""

    url = "model:"

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self._queues: dict[str, Queue] = {}
        self._documents = Documents(self.clock)
        self._changed = threading.Condition()
        self._closed = False
        self._told: dict[tuple[str, ...], int] = {}
        """How many wishes to cancel running jobs of these queues who awaits orders was told of."""

    @property
    def now(self) -> int:
        return self.clock.wall

    @now.setter
    def now(self, value: int) -> None:
        self.clock.wall = value

    def call(self, verb: Any) -> Any:
        with self._changed:
            self._check_open()
            try:
                return getattr(self, f"_{type(verb).__name__.lower()}")(verb)
            finally:
                self._changed.notify_all()

    async def acall(self, verb: Any) -> Any:
        if isinstance(verb, Claim) and verb.wait:
            await self.await_work([verb.queue], verb.wait, verb.lanes)
        return self.call(verb)

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._over(Get(queue, id)), timeout)
            return self._get(Get(queue, id)) if self._over(Get(queue, id)) else None

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        await poll(lambda: self._over(Get(queue, id)), timeout)
        return self.ended(queue, id, 0)

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        await poll(lambda: any(self._has_work(self.queue(name), lanes) for name in queues), timeout)

    def await_orders(self, queues: Sequence[str], timeout: float) -> None:
        key = tuple(queues)
        with self._changed:
            told = self._told.setdefault(key, self._wishes(key))
            self._changed.wait_for(lambda: self._wishes(key) != told, timeout)
            self._told[key] = self._wishes(key)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def aclose(self) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the model is closed")

    def _wishes(self, queues: tuple[str, ...]) -> int:
        self._check_open()
        return sum(self.queue(name).wishes for name in queues)

    def _over(self, job: Get) -> bool:
        self._check_open()
        found = self._get(job)
        return found is None or found.state.terminal

    def _has_work(self, queue: Queue, lanes: Sequence[int]) -> bool:
        self._check_open()
        due = [entry.due for entry in queue.among(State.SCHEDULED) if entry.due is not None]
        ready = any(entry.lane in lanes for entry in queue.among(State.READY))
        waiting = ready or min(due, default=math.inf) <= self.now
        return waiting and not queue.paused

    def queue(self, name: str) -> Queue:
        return self._queues.setdefault(name, Queue(name))

    def _enqueue(self, verb: Enqueue) -> Enqueued:
        queue = self.queue(verb.queue)
        self._documents.know(verb.queue)
        existing, conflicts, fresh = [], [], set()
        for job in verb.jobs:
            there = self._fingerprint(queue, job.id) if job.fingerprint or verb.resend or job.id in fresh else None
            if there is None:
                self._add(queue, job)
                fresh.add(job.id)
            elif there.startswith(job.fingerprint) or job.fingerprint.startswith(there):
                existing.append(job.id)
            else:
                conflicts.append(job.id)
        return Enqueued(self.now, existing, conflicts)

    def _fingerprint(self, queue: Queue, id: str) -> str | None:
        """Return the fingerprint of a known job; None for an id that is not taken."""
        if id in queue.entries:
            return queue.entries[id].fingerprint
        remembered = self._remembered(queue, id)
        if remembered is None:
            return None
        ending = readable(read_ending, remembered.ending)
        return ending.fingerprint if ending else ""

    def _remembered(self, queue: Queue, id: str) -> Remembered | None:
        remembered = queue.endings.get(id)
        return remembered if remembered and remembered.until > self.now else None

    def _add(self, queue: Queue, job: NewJob) -> None:
        entry = Entry(job.id, job.record, job.priority, job.lane, job.fingerprint)
        queue.entries[job.id] = entry
        queue.totals["enqueued"] += 1
        due = job.due or self.now + job.delay
        if due > self.now:
            entry.state, entry.due = State.SCHEDULED, due
        else:
            queue.to_tail(entry)

    def _get(self, verb: Get) -> Snapshot | None:
        queue = self.queue(verb.queue)
        entry = queue.entries.get(verb.id)
        if entry is not None:
            return None if entry.dangling else entry.notes.on(entry.snapshot(queue))
        remembered = self._remembered(queue, verb.id)
        return remembered.notes.on(remembered.snapshot(queue)) if remembered else None

    def _find(self, verb: Find) -> Found:
        queue = self.queue(verb.queue)
        rows: list[tuple[list[Any], Snapshot]]
        if verb.state in (State.DONE, State.CANCELLED):
            endings = [each for each in queue.endings.values() if each.state is verb.state and each.until > self.now]
            rows = [([-each.order], each.snapshot(queue)) for each in endings]
        else:
            entries = [entry for entry in queue.among(verb.state) if not entry.dangling]
            rows = [(entry.sort_key, entry.snapshot(queue)) for entry in entries]
        rows.sort(key=lambda row: row[0])
        if verb.cursor:
            after = json.loads(verb.cursor)
            rows = [row for row in rows if row[0] > after]
        page, more = rows[: verb.limit], len(rows) > verb.limit
        return Found(self.now, [row[1] for row in page], json.dumps(page[-1][0]) if more else "")

    def _act(self, verb: Act) -> Acted:
        queue = self.queue(verb.queue)
        match verb.action:
            case Pause():
                queue.paused = True
                return Acted(self.now)
            case Resume():
                queue.paused = False
                return Acted(self.now)
            case action:
                states = set(verb.states or State)
                return Acted(self.now, [id for id in verb.ids if self._act_on(queue, id, action, states)])

    def _act_on(self, queue: Queue, id: str, action: Cancel | Replay | Delete, states: set[State]) -> bool:
        known = queue.entries.get(id) or self._remembered(queue, id)
        if known is None or known.state not in states:
            return False
        match action:
            case Cancel():
                return self._cancel(queue, id, action)
            case Replay():
                return self._replay(queue, id)
            case Delete():
                return self._delete(queue, id)

    def _cancel(self, queue: Queue, id: str, wish: Cancel) -> bool:
        entry = queue.entries.get(id)
        if entry is None or entry.dangling or entry.state is State.DEAD:
            return False
        if entry.state is State.RUNNING:
            noted, entry.cancel = entry.cancel is None, entry.cancel or wish
            queue.wishes += noted
            return noted
        numbers, _ = text_of(entry)
        record = readable(read_record, entry.record)
        ending = Ending(
            version=VERSION,
            state=State.CANCELLED,
            task=record.task if record else "",
            fingerprint=entry.fingerprint,
            created=record.created if record else 0,
            started=0,
            finished=self.now,
            attempts=numbers[1],
            reason=wish.reason,
            tally=entry.tally,
            priority=entry.priority,
            key=record.key if record and NAME.fullmatch(record.key or "") else None,
        )
        self._end(queue, entry, State.CANCELLED, encode_ending(ending), wish.ttl)
        return True

    def _end(self, queue: Queue, entry: Entry, state: State, ending: bytes, ttl: int) -> None:
        del queue.entries[entry.id]
        queue.totals[state] += 1
        order = queue.totals["done"] + queue.totals["cancelled"]
        queue.endings[entry.id] = Remembered(entry.id, state, ending, self.now + ttl, order, entry.notes)

    def _replay(self, queue: Queue, id: str) -> bool:
        entry = queue.entries.get(id)
        if entry is None or entry.state is not State.DEAD:
            return False
        numbers, lines = text_of(entry)
        numbers[2], numbers[3], numbers[5] = 0, 0, numbers[5] + 1
        entry.tally = "\n".join([msgspec.json.encode(numbers).decode(), *lines])
        queue.to_tail(entry)
        queue.totals["replayed"] += 1
        return True

    def _delete(self, queue: Queue, id: str) -> bool:
        entry = queue.entries.get(id)
        if entry is not None:
            if entry.state is State.RUNNING or entry.dangling:
                return False
            del queue.entries[id]
        elif self._remembered(queue, id):
            del queue.endings[id]
        else:
            return False
        queue.totals["deleted"] += 1
        return True

    def _beat(self, verb: Beat) -> Beaten:
        queue = self.queue(verb.queue)
        self._documents.know(verb.queue)
        leases = [beat.lease for beat in verb.beats if beat.incarnation not in queue.tombstones]
        if leases:
            queue.look_at_clock(self.now, leases[0])
        orders = [self._beat_one(queue, beat) for beat in verb.beats]
        return Beaten(self.now, orders, len(queue.among(State.SUSPECT)))

    def _beat_one(self, queue: Queue, beat: Heartbeat) -> Orders:
        if beat.incarnation in queue.tombstones:
            return Orders(lost=True)
        me = queue.alive.setdefault(beat.incarnation, Incarnation())
        me.lease, me.deadline = beat.lease, self.now + beat.lease
        if beat.tasks is not None:
            me.tasks = frozenset(beat.tasks)
        unknown = self._reconcile(queue, beat)
        mine = queue.running(beat.incarnation)
        cancel = {entry.id: entry.cancel.reason for entry in mine if entry.cancel}
        return Orders(cancel=cancel, held=len(mine), unknown=unknown, tasks=me.tasks is None)

    def _reconcile(self, queue: Queue, beat: Heartbeat) -> list[str]:
        if beat.held_ids is None:
            return []
        mine = queue.running(beat.incarnation)
        for entry in mine:
            if entry.fence <= beat.claim_seq and entry.id not in beat.held_ids:
                self._hand_back(queue, entry, "released")
        return sorted(set(beat.held_ids) - {entry.id for entry in mine})

    def _claim(self, verb: Claim) -> Claimed:
        queue = self.queue(verb.queue)
        me = queue.alive.get(verb.incarnation)
        if me is None:
            raise LeaseLost(f"{verb.incarnation} holds no lease")
        queue.look_at_clock(self.now, me.lease)
        if me.deadline <= self.now:
            raise LeaseLost(f"the lease of {verb.incarnation} ran out")
        if verb.seq <= me.claim_seq:
            again = [entry for entry in queue.running(verb.incarnation) if entry.fence == verb.seq == me.claim_seq]
            return self._claimed(again, self.now, cut=False)
        me.claim_seq = verb.seq
        self._keep_house(queue, me)
        self._bury_unroutable(queue, verb)
        taken, cut = ([], False) if queue.paused else self._take(queue, verb, me)
        return self._claimed(taken, self._next_at(queue, verb, cut=cut), cut=cut)

    def _claimed(self, entries: list[Entry], next_at: int | None, *, cut: bool) -> Claimed:
        jobs = [(entry.id, entry.record) for entry in entries]
        return Claimed(self.now, jobs, {entry.id: entry.tally for entry in entries if entry.tally}, next_at, cut)

    def _keep_house(self, queue: Queue, me: Incarnation) -> None:
        if self.now >= queue.amnesty:
            for name, each in list(queue.alive.items()):
                if each.deadline <= self.now:
                    self._bury(queue, Retire(queue.name, name, "lost"))
        for entry in queue.among(State.RUNNING):
            first = queue.tombstones.get(entry.incarnation or "")
            if first:
                self._hand_back(queue, entry, first.reason, first.detail)
        for entry in sorted(queue.among(State.SCHEDULED), key=lambda entry: entry.sort_key):
            if entry.due is not None and entry.due <= self.now:
                queue.to_tail(entry)
        for entry in queue.among(State.PARKED):
            if entry.task in (me.tasks or ()):
                queue.to_place(entry)

    def _bury_unroutable(self, queue: Queue, verb: Claim) -> None:
        parked = sorted((entry.parked or 0, entry.id, entry) for entry in queue.among(State.PARKED))
        over = [entry for since, _, entry in parked if self.now - since > verb.unroutable_after > 0]
        for entry in over[:UNROUTABLE]:
            since = entry.parked or 0
            numbers, lines = text_of(entry)
            line = Attempt(
                number=numbers[1],
                outcome="died",
                started=since,
                ended=self.now,
                worker=verb.incarnation,
                error_type="Unroutable",
                message=f"no worker knew the task {entry.task} for {(self.now - since) // 1000} s",
            )
            entry.tally = "\n".join([msgspec.json.encode(numbers).decode(), *lines, msgspec.json.encode(line).decode()])
            self._bury_job(queue, entry)

    def _take(self, queue: Queue, verb: Claim, me: Incarnation) -> tuple[list[Entry], bool]:
        if verb.trial:
            return self._take_from(queue, queue.among(State.SUSPECT), 1, verb, me), False
        taken, cut = [], False
        for lane in LANES:
            ready = [entry for entry in queue.among(State.READY) if entry.lane == lane]
            share = queue.share(self.now, len(ready), verb.incarnation if lane == MAIN else None, even=verb.even)
            cut = cut or share < min(verb.slots[lane], len(ready))
            taken += self._take_from(queue, ready, min(verb.slots[lane], share), verb, me)
        return taken, cut

    def _take_from(self, queue: Queue, line: list[Entry], most: int, verb: Claim, me: Incarnation) -> list[Entry]:
        taken: list[Entry] = []
        for entry in sorted(line, key=lambda entry: entry.turn):
            if len(taken) >= most:
                break
            if entry.dangling:
                del queue.entries[entry.id]
                queue.totals["repairs"] += 1
            elif entry.task is not None and entry.task not in (me.tasks or ()):
                entry.state, entry.parked = State.PARKED, self.now
            else:
                entry.state, entry.incarnation, entry.fence = State.RUNNING, verb.incarnation, verb.seq
                entry.started = self.now
                taken.append(entry)
        return taken

    def _next_at(self, queue: Queue, verb: Claim, *, cut: bool) -> int | None:
        if verb.trial:
            more = bool(queue.among(State.SUSPECT))
        else:
            more = any(verb.slots[entry.lane] for entry in queue.among(State.READY))
        if more and not queue.paused:
            return self.now + (50 if cut else 0)
        times = [entry.due for entry in queue.among(State.SCHEDULED) if entry.due is not None]
        times += [max(each.deadline, queue.amnesty) for name, each in queue.alive.items() if name != verb.incarnation]
        return min(times, default=None)

    def _settle(self, verb: Settle) -> Settled:
        queue = self.queue(verb.queue)
        me = queue.alive.get(verb.incarnation)
        if me is None or verb.seq < me.settle_seq:
            return Settled(self.now, 0, [each.id for each in verb.settlements])
        if verb.seq == me.settle_seq and me.settled:
            return msgspec.structs.replace(me.settled, now=self.now)
        refused = [each.id for each in verb.settlements if not self._settle_one(queue, verb.incarnation, each)]
        if verb.metrics:
            queue.blobs.append((self.now, verb.metrics))
        me.settle_seq, me.settled = verb.seq, Settled(self.now, len(verb.settlements) - len(refused), refused)
        return me.settled

    def _note(self, verb: Note) -> Noted:
        queue = self.queue(verb.queue)
        refused = []
        for each in verb.notes:
            entry = self._held(queue, verb.incarnation, each)
            if entry is None or verb.incarnation not in queue.alive:
                refused.append(each.id)
            else:
                entry.notes.take(verb.incarnation, each)
        return Noted(self.now, refused)

    def _held(self, queue: Queue, incarnation: str, each: Settlement | JobNote) -> Entry | None:
        entry = queue.entries.get(each.id)
        mine = entry and (entry.state, entry.incarnation, entry.fence) == (State.RUNNING, incarnation, each.fence)
        return entry if mine else None

    def _settle_one(self, queue: Queue, incarnation: str, each: Settlement) -> bool:
        entry = self._held(queue, incarnation, each)
        if entry is None:
            return False
        match each:
            case Done():
                self._end(queue, entry, State.DONE, each.ending, each.ttl)
            case Cancelled():
                self._end(queue, entry, State.CANCELLED, each.ending, each.ttl)
            case Died():
                entry.tally = each.tally
                self._bury_job(queue, entry)
            case Retried() | Released():
                entry.tally = each.tally
                queue.to_place(entry)
                queue.totals["retried" if isinstance(each, Retried) else "released"] += 1
                if isinstance(each, Retried) or each.delay:
                    entry.state, entry.due = State.SCHEDULED, self.now + each.delay
        return True

    def _bury_job(self, queue: Queue, entry: Entry) -> None:
        queue.to_place(entry)
        entry.state, entry.finished, entry.cancel = State.DEAD, self.now, None
        queue.totals["dead"] += 1
        queue.places += 1
        entry.place = queue.places

    def _retire(self, verb: Retire) -> Retired:
        queue = self.queue(verb.queue)
        known = verb.incarnation in queue.tombstones
        some = verb.reason == "crashed" and verb.blamed is not None
        first = self._bury(queue, msgspec.structs.replace(verb, reason="stopped") if some else verb)
        held = queue.running(verb.incarnation)
        blamed = [entry for entry in held if some and not known and entry.id in (verb.blamed or ())]
        for entry in blamed:
            self._hand_back(queue, entry, verb.reason, verb.detail)
        others = queue.running(verb.incarnation)
        step = max(STEP - len(blamed), 0)
        for entry in others[:step]:
            self._hand_back(queue, entry, first.reason, first.detail)
        return Retired(self.now, len(blamed) + len(others[:step]), len(others[step:]))

    def _bury(self, queue: Queue, verb: Retire) -> Retire:
        queue.alive.pop(verb.incarnation, None)
        return queue.tombstones.setdefault(verb.incarnation, verb)

    def _hand_back(self, queue: Queue, entry: Entry, outcome: str, detail: str = "") -> None:
        record = readable(read_record, entry.record)
        numbers, lines = text_of(entry)
        numbers[1] += 1
        numbers[3] += outcome == "crashed"
        numbers[4] += outcome == "lost"
        dies = outcome == "crashed" and numbers[3] >= (record.max_crashes if record else MAX_CRASHES)
        line = Attempt(
            number=numbers[1],
            outcome=outcome,
            started=entry.started or 0,
            ended=self.now,
            worker=entry.incarnation or "",
            error_type="WorkerCrashed" if dies else "",
            message=detail if dies else "",
        )
        entry.tally = "\n".join([msgspec.json.encode(numbers).decode(), *lines, msgspec.json.encode(line).decode()])
        queue.totals[outcome] += 1
        if dies:
            self._bury_job(queue, entry)
        else:
            entry.suspect = entry.suspect or (outcome == "crashed" and numbers[3] >= 2)
            queue.to_place(entry)

    def _stats(self, verb: Stats) -> QueueStats:
        queue = self.queue(verb.queue)
        ready = Counter(entry.priority for entry in queue.among(State.READY))
        return QueueStats(
            now=self.now,
            ready=[ready[priority] for priority in range(len(PRIORITIES))],
            scheduled=len(queue.among(State.SCHEDULED)),
            parked=dict(Counter(entry.task or "" for entry in queue.among(State.PARKED))),
            suspect=len(queue.among(State.SUSPECT)),
            running=len(queue.among(State.RUNNING)),
            dead=len(queue.among(State.DEAD)),
            workers=len(queue.live(self.now)),
            paused=queue.paused,
            totals={str(name): count for name, count in queue.totals.items() if count},
            sequence=queue.places,
            heads=[
                min((entry.place for entry in queue.among(State.READY) if entry.priority == priority), default=0)
                for priority in range(len(PRIORITIES))
            ],
        )

    def _watch(self, verb: Watch) -> Watched:
        after = int(verb.cursor or 0)
        blobs = [Blob(str(number), at, blob) for number, (at, blob) in enumerate(self.queue(verb.queue).blobs, 1)]
        return Watched(self.now, blobs[after : after + verb.limit])

    def _load(self, verb: Load) -> Loaded:
        return self._documents.load(verb)

    def _store(self, verb: Store) -> Stored:
        return self._documents.store(verb)
