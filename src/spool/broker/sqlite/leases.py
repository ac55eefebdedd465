"""The verbs of workers on SQLite: leases, claims, settlements."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from spool.broker import (
    Beat,
    Beaten,
    Cancelled,
    Claim,
    Claimed,
    Died,
    Done,
    Heartbeat,
    Orders,
    Released,
    Retried,
    Settle,
    Settled,
    Settlement,
)
from spool.broker.sqlite.jobs import RECENT, finish, stamped, tally_text
from spool.broker.sqlite.notes import drop_notes
from spool.broker.sqlite.retire import STEP, hand_back, retire_some
from spool.broker.sqlite.store import CANCELLED, DONE, Queue, Row, Transaction, to_json
from spool.errors import LeaseLost
from spool.job import LANES, MAIN, Attempt, split_tally
from spool.opaque import UNREADABLE

UNROUTABLE: Final = 100
"""Jobs that one claim lets die because nobody knows their task."""
MOST: Final = 1000
"""Jobs of a lane that one claim takes, and as many that it parks on the way."""
CHUNK: Final = 256
CUT: Final = 50
"""Milliseconds for the others to take their share."""
TRIAL: Final = 2
"""The line of suspects, beside those of the lanes."""
MAX_DEAD: Final = 100_000
DAY: Final = 86_400_000
DEAD_FOR: Final = 30 * DAY
TOMBSTONE_FOR: Final = DAY


class _Head(msgspec.Struct, array_like=True, gc=False):
    """The start of a record, whatever its version."""

    version: int
    task: str


_read_head = msgspec.msgpack.Decoder(_Head).decode


class _Incarnation(NamedTuple):
    name: str
    key: int
    lease: int
    deadline: int
    tasks: str | None
    claimed: int
    settled: int
    reply: str | None


class _Leases(NamedTuple):
    live: int
    other: int | None
    """The first end among the other incarnations' leases, by the boot clock."""
    expired: int
    retiring: int


@functools.lru_cache(maxsize=64)
def _names(tasks: str | None) -> frozenset[str]:
    return frozenset(msgspec.json.decode(tasks)) if tasks else frozenset()


def _incarnation(tx: Transaction, queue: Queue, name: str) -> _Incarnation | None:
    found = tx.one("incarnation", queue.id, name)
    return _Incarnation(name, *found) if found else None


def _last_seen(tx: Transaction, queue: Queue) -> int | None:
    seen = queue.state.seen
    return None if seen is None else max(seen, tx.idle.seen.get(queue.id, seen))


def _jumped(tx: Transaction, queue: Queue, lease: int) -> bool:
    seen = _last_seen(tx, queue)
    return seen is not None and (queue.state.boot != tx.boot_id or abs(tx.boot - seen) > lease / 3)


def _look_at_clock(tx: Transaction, queue: Queue, lease: int) -> None:
    """Note that the clock was seen; grant an amnesty if it jumped or stood still."""
    state = queue.state
    if _jumped(tx, queue, lease):
        state.amnesty = tx.boot + lease
        tx.run("clamp", state.amnesty, queue.id)
    state.seen, state.boot = tx.boot, tx.boot_id
    tx.idle.seen.pop(queue.id, None)


def beat(tx: Transaction, verb: Beat) -> Beaten:
    queue = tx.queue(verb.queue)
    gone = set(tx.read("tombstones", queue.id, to_json([each.incarnation for each in verb.beats])))
    lease = next((each.lease for each in verb.beats if each.incarnation not in gone), None)
    if lease is not None:
        _look_at_clock(tx, queue, lease)
    orders = [Orders(lost=True) if each.incarnation in gone else _beat(tx, queue, each) for each in verb.beats]
    tx.run("purge_endings", tx.now, STEP)
    tx.run("purge_notes", tx.now, STEP)
    tx.run("purge_tombstones", queue.id, tx.now - TOMBSTONE_FOR)
    _prune_dead(tx, queue)
    return Beaten(tx.now, orders, queue.state.suspect)


def _beat(tx: Transaction, queue: Queue, beat: Heartbeat) -> Orders:
    tasks = None if beat.tasks is None else to_json(beat.tasks)
    key, known = tx.one("beat", queue.id, beat.incarnation, beat.lease, tx.boot + beat.lease, tasks)
    unknown = _reconcile(tx, queue, key, beat)
    held: int = tx.value("holding", queue.id, key)
    cancel: dict[str, str] = tx.read("wishes", queue.id, key) if held else {}
    return Orders(cancel=cancel, held=held, unknown=unknown, tasks=not known)


def _reconcile(tx: Transaction, queue: Queue, key: int, beat: Heartbeat) -> list[str]:
    """Hand back what the worker has forgotten; return what the store does not count as its own."""
    if beat.held_ids is None:
        return []
    mine, known = tx.jobs("held_by", queue.id, key, -1), set(beat.held_ids)
    forgotten = [row for row in mine if (row.fence or 0) <= beat.claim_seq and row.id not in known]
    hand_back(tx, queue, [(row, None) for row in forgotten], worker=beat.incarnation, outcome="released")
    return sorted(known - {row.id for row in mine})


def _prune_dead(tx: Transaction, queue: Queue) -> None:
    """Keep dead jobs bounded by count and age, a few at a time."""
    if not queue.state.dead:
        return
    over = queue.state.dead - MAX_DEAD
    oldest = tx.jobs("oldest_dead", queue.id, 100 if over > 0 else 10)
    gone = [row for n, row in enumerate(oldest) if n < over or (row.at or 0) < tx.now - DEAD_FOR]
    for row in gone:
        queue.number(row, -1)
    tx.remove(queue, [row.id for row in gone])
    drop_notes(tx, queue, [row.id for row in gone])
    queue.count("pruned", len(gone))


def claim(tx: Transaction, verb: Claim) -> Claimed | LeaseLost:
    """Claim with the write lock held. That a lease ran out is returned, not raised, so that the clock stays seen."""
    queue = tx.find_queue(verb.queue)
    me = _incarnation(tx, queue, verb.incarnation) if queue else None
    if queue is None or me is None:
        raise LeaseLost(f"incarnation {verb.incarnation} holds no lease")
    _look_at_clock(tx, queue, me.lease)
    if me.deadline <= tx.boot:
        return LeaseLost(f"the lease of incarnation {verb.incarnation} ran out")
    last = _last_claim(tx, queue, me)
    if verb.seq <= last:
        return _again(tx, queue, me, verb.seq) if verb.seq == last else Claimed(tx.now, [], next_at=tx.now)
    tx.run("set_claimed", verb.seq, me.key)
    tx.idle.claimed.pop((queue.id, me.name), None)
    leases = _keep_house(tx, queue, me)
    _bury_unroutable(tx, queue, me, verb.unroutable_after)
    jobs: list[tuple[str, bytes]] = []
    tallies: dict[str, str] = {}
    cut = False
    for line in _lines(queue, verb):
        most, short = _share(tx, queue, me, verb, line, leases=leases)
        cut |= short
        for row, body in _take(tx, queue, _Taking(me.key, verb.seq, _names(me.tasks)), line, most):
            jobs.append((row.id, body))
            if row.tally:
                tallies[row.id] = row.tally
    if _lines(queue, verb):
        tx.left.add(queue.name)
    return Claimed(tx.now, jobs, tallies, _next_at(tx, queue, verb, leases, cut=cut), cut)


def idle(tx: Transaction, verb: Claim) -> Claimed | None:
    """Answer a claim which leaves nothing to be written; None when it may."""
    queue = tx.find_queue(verb.queue)
    me = _incarnation(tx, queue, verb.incarnation) if queue else None
    if queue is None or me is None or me.deadline <= tx.boot or verb.seq <= _last_claim(tx, queue, me):
        return None
    if _jumped(tx, queue, me.lease) or tx.boot - (queue.state.seen or 0) > me.lease / 6:
        return None
    leases = _leases(tx, queue, me)
    if leases.retiring or (leases.expired and tx.boot >= queue.state.amnesty) or _lines(queue, verb):
        return None
    if _have_to_move(tx, queue, me, verb.unroutable_after):
        return None
    tx.idle.note(queue.id, tx.boot, me.name, verb.seq)
    return Claimed(tx.now, [], {}, _next_at(tx, queue, verb, leases))


def _have_to_move(tx: Transaction, queue: Queue, me: _Incarnation, after: int) -> bool:
    """Return whether there are scheduled or parked jobs that do not go on waiting."""
    state = queue.state
    if not state.parked.keys().isdisjoint(_names(me.tasks)):
        return True
    if state.scheduled and tx.value("first_due", queue.id) <= tx.now:
        return True
    return after > 0 and bool(state.parked) and tx.value("first_parked", queue.id) < tx.now - after


def _last_claim(tx: Transaction, queue: Queue, me: _Incarnation) -> int:
    return max(me.claimed, tx.idle.claimed.get((queue.id, me.name), 0))


def _again(tx: Transaction, queue: Queue, me: _Incarnation, seq: int) -> Claimed:
    """Answer a claim whose reply was lost."""
    found = tx.records("claimed_by", queue.id, me.key, seq)
    jobs = [(row.id, body) for row, body in found if body is not None]
    return Claimed(tx.now, jobs, {row.id: row.tally for row, _ in found if row.tally}, tx.now)


def _leases(tx: Transaction, queue: Queue, me: _Incarnation) -> _Leases:
    return _Leases(*tx.one("leases", tx.boot, me.key, tx.boot, queue.id, queue.id))


def _keep_house(tx: Transaction, queue: Queue, me: _Incarnation) -> _Leases:
    leases = _leases(tx, queue, me)
    expired = leases.expired and tx.boot >= queue.state.amnesty
    if expired:
        for name in tx.read("expired", queue.id, tx.boot, 4):
            tx.run("retire", queue.id, name, tx.now, "lost", "")
    if expired or leases.retiring:
        budget = STEP
        for name in tx.read("retiring", queue.id, 4):
            budget -= retire_some(tx, queue, name, budget)[0]
        leases = _leases(tx, queue, me)
    if queue.state.scheduled:
        due = tx.jobs("due", queue.id, tx.now, STEP)
        for row in due:
            queue.to_tail(row)
        tx.move(queue, due)
    for task in queue.state.parked.keys() & _names(me.tasks):
        known = tx.jobs("parked_of", queue.id, task, STEP)
        for row in known:
            queue.to_place(row)
        tx.move(queue, known)
    return leases


def _bury_unroutable(tx: Transaction, queue: Queue, me: _Incarnation, after: int) -> None:
    # While there are more that this incarnation knows than one call unparks, the oldest may be among those.
    if after <= 0 or not queue.state.parked or queue.state.parked.keys() & _names(me.tasks):
        return
    dead = tx.jobs("parked_before", queue.id, tx.now - after, UNROUTABLE)
    if not dead:
        return
    for row in dead:
        numbers, lines = split_tally(row.tally)
        since = row.at or 0
        message = f"no worker knew the task {row.task} for {(tx.now - since) // 1000} s"
        line = to_json(Attempt(numbers[1], "died", since, tx.now, me.name, "Unroutable", message))
        row.tally = tally_text(numbers, f"{lines}\n{line}" if lines else line)
        queue.bury(row, tx.now)
    tx.move(queue, dead)
    tx.ended.append((queue.name, [row.id for row in dead]))
    _prune_dead(tx, queue)


def _lines(queue: Queue, verb: Claim) -> list[int]:
    """Return the lines, of those that a claim asks for, where jobs are to be had."""
    if queue.state.paused:
        return []
    if verb.trial:
        return [TRIAL] if queue.state.suspect else []
    return [lane for lane in LANES if verb.slots[lane] > 0 and queue.ready(lane)]


def _share(
    tx: Transaction, queue: Queue, me: _Incarnation, verb: Claim, line: int, *, leases: _Leases
) -> tuple[int, bool]:
    """Return how many jobs to take at most, and whether that is less than were asked for and are there.

    A fair share is an even split of what is ready; in the main lane also what is missing to an even split of all that
    is ready or runs, so that it does not matter who came first.
    """
    if line == TRIAL:
        return 1, False
    ready = queue.ready(line)
    most, share = min(verb.slots[line], ready), math.ceil(ready / leases.live)
    if line == MAIN and leases.live > 1 and (share < most or verb.even):
        running = tx.value("held_live", queue.id, tx.boot) if leases.expired or leases.retiring else queue.state.running
        missing = math.ceil((ready + running) / leases.live) - tx.value("holding", queue.id, me.key)
        share = max(0 if verb.even else share, missing)
    return min(most, share, MOST), share < most


class _Taking(NamedTuple):
    """Who takes jobs: holder, fence, and the tasks it knows."""

    holder: int
    fence: int
    names: frozenset[str]


def _take(tx: Transaction, queue: Queue, by: _Taking, line: int, most: int) -> list[tuple[Row, bytes]]:
    """Take jobs from the head of a line; park those whose task is unknown to who takes them."""
    after, passed = -1, 0
    taken: list[tuple[Row, bytes]] = []
    while most > len(taken) and passed < MOST:
        limit = min(most - len(taken), CHUNK)
        if line == TRIAL:
            found = tx.records("suspects", queue.id, after, limit)
        else:
            found = tx.records("ready_of", queue.id, line, after, limit)
        if not found:
            break
        after = found[-1][0].place
        ours, parked, broken = _sort_out(queue, found, by.names, tx.now)
        tx.move(queue, parked)
        tx.remove(queue, broken)
        drop_notes(tx, queue, broken)
        for row, _ in ours:
            queue.take(row, by.holder, by.fence, tx.now)
        if line == TRIAL:
            tx.move(queue, [row for row, _ in ours])
        else:
            tx.run("take", by.holder, by.fence, tx.now, queue.id, line, after)
        taken += ours
        passed += len(parked) + len(broken)
    return taken


def _sort_out(
    queue: Queue, found: list[tuple[Row, bytes | None]], names: frozenset[str], now: int
) -> tuple[list[tuple[Row, bytes]], list[Row], list[str]]:
    """Tell what can be run from what is to be parked, and from rows without a record, which are dropped."""
    ours: list[tuple[Row, bytes]] = []
    parked: list[Row] = []
    broken: list[str] = []
    for row, body in found:
        if body is None:
            broken.append(row.id)
            queue.number(row, -1)
            continue
        try:
            task = _read_head(body).task
        except UNREADABLE:  # whoever runs it will find out, and say so
            task = None
        if task is None or task in names:
            ours.append((row, body))
        else:
            queue.park(row, task, now)
            parked.append(row)
    queue.count("repairs", len(broken))
    return ours, parked, broken


def _next_at(tx: Transaction, queue: Queue, verb: Claim, leases: _Leases, *, cut: bool = False) -> int | None:
    if _lines(queue, verb):
        return tx.now + (CUT if cut else 0)
    times: list[int] = []
    if queue.state.scheduled:
        times.append(tx.value("first_due", queue.id))
    if leases.other is not None:
        times.append(tx.now + max(leases.other, queue.state.amnesty) - tx.boot)
    return min(times, default=None)


def settle(tx: Transaction, verb: Settle) -> Settled:
    queue = tx.find_queue(verb.queue)
    me = _incarnation(tx, queue, verb.incarnation) if queue else None
    if queue is None or me is None or verb.seq < me.settled:
        return Settled(tx.now, 0, [each.id for each in verb.settlements])
    if verb.seq == me.settled and me.reply is not None:
        return Settled(tx.now, *msgspec.json.decode(me.reply))
    accepted, refused = _check(tx, queue, me, verb.settlements)
    _end(tx, queue, [each for each in accepted if isinstance(each, Done | Cancelled)])
    _hold_over(tx, queue, [each for each in accepted if isinstance(each, Retried | Released | Died)])
    if verb.metrics:
        queue.state.blobs += 1
        tx.run("add_metrics", queue.id, queue.state.blobs, stamped(tx.now, verb.metrics))
        tx.run("purge_metrics", queue.id, queue.state.blobs - RECENT)
    tx.run("purge_endings", tx.now, 2 * len(accepted) + 8)
    tx.run("set_settled", verb.seq, to_json([len(accepted), refused]), me.key)
    return Settled(tx.now, len(accepted), refused)


def _check(
    tx: Transaction, queue: Queue, me: _Incarnation, settlements: Sequence[Settlement]
) -> tuple[list[Settlement], list[str]]:
    """Tell settlements of jobs that are held under the fence given from the others."""
    held: dict[str, int] = tx.read("fences", queue.id, me.key, to_json([each.id for each in settlements]))
    accepted: list[Settlement] = []
    refused: list[str] = []
    for each in settlements:
        if held.pop(each.id, None) == each.fence:
            accepted.append(each)
        else:
            refused.append(each.id)
    return accepted, refused


def _end(tx: Transaction, queue: Queue, settlements: list[Done | Cancelled]) -> None:
    queue.state.running -= len(settlements)
    finish(tx, queue, [(s.id, DONE if isinstance(s, Done) else CANCELLED, s.ttl, s.ending) for s in settlements])


def _hold_over(tx: Transaction, queue: Queue, settlements: list[Retried | Released | Died]) -> None:
    if not settlements:
        return
    rows = {row.id: row for row in tx.jobs("jobs_by_id", queue.id, to_json([each.id for each in settlements]))}
    for each in settlements:
        row = rows[each.id]
        row.tally = each.tally
        if isinstance(each, Died):
            queue.bury(row, tx.now)
        elif isinstance(each, Retried):
            queue.schedule(row, tx.now + each.delay)
            queue.count("retried")
        else:
            if each.delay:
                queue.schedule(row, tx.now + each.delay)
            else:
                queue.to_place(row)
            queue.count("released")
    tx.move(queue, rows.values())
    tx.ended.append((queue.name, [each.id for each in settlements if isinstance(each, Died)]))
    tx.stirred.add(queue.name)
    _prune_dead(tx, queue)
