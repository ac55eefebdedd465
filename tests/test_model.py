"""The same random sequence of verbs on the model and on a broker: every reply and all that can be seen is the same.

``SPOOL_TEST_LONG=1`` looks longer.
"""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from spool.broker import (
    Act,
    Beat,
    Beaten,
    Broker,
    Cancel,
    Cancelled,
    Claim,
    Claimed,
    Delete,
    Died,
    Done,
    Enqueue,
    Find,
    Get,
    Heartbeat,
    JobNote,
    Load,
    Note,
    Orders,
    Pause,
    QueueStats,
    Released,
    Replay,
    Resume,
    Retire,
    Retried,
    Settle,
    Settled,
    Stats,
    Store,
    Verb,
    Watch,
    Watched,
)
from spool.errors import LeaseLost, SpoolError, VersionConflict
from spool.job import Snapshot, State, read_ending, read_tally
from tests.contract.driver import CORRUPT, LEASE, ending, job, tally
from tests.model import ModelBroker
from tests.model_state import Clock

LONG = bool(os.environ.get("SPOOL_TEST_LONG"))
PROFILE = settings(
    max_examples=1000 if LONG else 150,
    stateful_step_count=80 if LONG else 50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=tuple(Phase) if LONG else (Phase.generate, Phase.shrink),
    print_blob=True,
)

REAPED = 3
"""Leases that a claim reaps at least, when so many have run out."""
BACK = [-LEASE // 2, -4 * LEASE]
"""Jumps of the clock into the past, for brokers that show them as they are."""
WORKERS = st.sampled_from(["w0", "w1", "w2"])
CHOSEN = st.sampled_from(["a", "b", "c", "d", "e"])
"""Ids that callers give; the others are counted up."""
TASKS = st.sampled_from(["t"] * 8 + ["u", "v"])
KNOWN = st.sampled_from([None, None, None, ("t",), ("t", "u"), ("t", "u", "v"), ("u",)])
STEPS = st.sampled_from([1, 100, 700, LEASE // 4])
NEW = st.fixed_dictionaries(
    {
        "id": st.one_of(st.none(), CHOSEN),
        "task": TASKS,
        "priority": st.integers(0, 4),
        "lane": st.sampled_from([0, 0, 1]),
        "fingerprint": st.sampled_from(["f", "f", "g", "fg"]),
        "max_crashes": st.sampled_from([3, 3, 1]),
        "delay": st.sampled_from([0] * 9 + [50, 3000, LEASE]),
        "corrupt": st.sampled_from([False] * 9 + [True]),
    }
)
UNROUTABLE = st.sampled_from([0, 0, 0, 1, 500, LEASE])
SLOTS = st.sampled_from([(4, 2), (4, 2), (4, 2), (9, 9), (1, 0), (0, 1), (2, 1)])
RARELY = st.sampled_from([False, False, False, True])
OUTCOMES = st.sampled_from(["done", "done", "cancelled", "retried", "later", "released", "snoozed", "died"])
ACTIONS = st.sampled_from([Cancel("enough"), Cancel(), Replay(), Delete()])
FAULTS = st.sampled_from(
    ["none", "none", "none", "none", "outage", "pause", "stopped", "crashed", "crashed", "crashed"]
)
REASONS = st.sampled_from(["stopped", "crashed", "crashed", "lost"])


def plain_ending(body: bytes | None) -> Any:
    """An ending decoded, but for what the contract leaves open in those that the store writes."""
    if not body:
        return body
    read = msgspec.structs.asdict(read_ending(body))
    return read | {"tally": read_tally(read["tally"]), "result": bytes(read["result"])}


def plain_job(found: Snapshot) -> dict[str, Any]:
    fields = msgspec.structs.asdict(found)
    return fields | {"tally": read_tally(found.tally), "ending": plain_ending(found.ending)}


def plain_orders(orders: Orders) -> Any:
    if orders.lost:
        return "lost"
    return orders.cancel, orders.held, sorted(orders.unknown), orders.tasks


def plain(reply: Any, lanes: dict[str, int]) -> Any:
    """A reply without what the contract leaves open: order across lanes and of refused ids, the time of a repeat."""
    match reply:
        case Claimed():
            jobs = [[each for each in reply.jobs if lanes[each[0]] == lane] for lane in (0, 1)]
            tallies = {id: read_tally(text) for id, text in reply.tallies.items()}
            return reply.now, jobs, tallies, reply.next_at, reply.cut
        case Beaten():
            return reply.now, [plain_orders(each) for each in reply.orders], reply.suspects
        case Settled():
            return reply.accepted, sorted(reply.refused)
        case Watched() | QueueStats():
            return plain_look(reply)
        case Snapshot():
            return plain_job(reply)
        case _:
            return type(reply) if isinstance(reply, Exception) else reply


def plain_look(reply: Watched | QueueStats) -> Any:
    """What an observer sees, without the form of cursors and the numbers of sequences."""
    if isinstance(reply, Watched):
        return reply.now, [(blob.at, blob.body) for blob in reply.blobs], reply.missed
    return msgspec.structs.replace(reply, sequence=0, heads=[head > 0 for head in reply.heads])


class Twins(RuleBasedStateMachine):
    """A queue in the model, and one in a broker."""

    numbers = itertools.count()

    def __init__(self, broker: Broker, clock: Clock, jumps: Sequence[int]) -> None:
        super().__init__()
        self.jumps = jumps
        self.broker, self.clock, self.model = broker, clock, ModelBroker(clock)
        self.queue = f"q{next(self.numbers)}"
        self.fresh = itertools.count()
        self.claims: Counter[str] = Counter()
        self.settles: Counter[str] = Counter()
        self.beaten: set[str] = set()
        self.lives: Counter[str] = Counter()
        self.last: dict[type, Verb[Any]] = {}
        self.lanes: dict[str, int] = {}
        self.totals: dict[str, int] = {}

    def outcome(self, broker: Any, verb: Verb[Any]) -> Any:
        try:
            return broker.call(verb)
        except SpoolError as error:
            assert isinstance(error, LeaseLost | VersionConflict), error  # noqa: PT017 - others are not expected at all
            return error

    def both(self, verb: Verb[Any], *, next_at: bool = True) -> Any:
        """Carry a verb out on both; returns the reply."""
        self.last[type(verb)] = verb
        expected, found = self.outcome(self.model, verb), self.outcome(self.broker, verb)
        if isinstance(expected, Claimed) and isinstance(found, Claimed) and not next_at:
            expected, found = (msgspec.structs.replace(each, next_at=None) for each in (expected, found))
        assert plain(found, self.lanes) == plain(expected, self.lanes)
        return found

    def incarnation(self, worker: str) -> str:
        return f"{worker}-{self.lives[worker]}"

    def running(self) -> list[Snapshot]:
        return self.model.call(Find(self.queue, State.RUNNING)).jobs

    def fence(self, id: str) -> int:
        entry = self.model.queue(self.queue).entries.get(id)
        return entry.fence if entry else 1

    def ids(self) -> list[str]:
        queue = self.model.queue(self.queue)
        return sorted({*queue.entries, *queue.endings, "never"})

    @initialize()
    def start(self) -> None:
        self.clock.advance(10 * LEASE)
        self.beat(["w0"], ("t",))

    @rule(new=st.lists(NEW, min_size=1, max_size=6))
    def enqueue(self, new: list[dict[str, Any]]) -> None:
        jobs = []
        for fields in new:
            id, corrupt = fields["id"], fields["corrupt"]
            options = {name: fields[name] for name in ("task", "max_crashes", "delay")}
            options |= {} if corrupt else {"priority": fields["priority"], "lane": fields["lane"]}
            if id is None:
                id = f"j{next(self.fresh):04}"
            elif not corrupt:
                options["fingerprint"] = fields["fingerprint"]
            jobs.append(job(id, body=CORRUPT if corrupt else None, **options))
        # An id without fingerprint is promised to be fresh; of repeats in one call only the effect is promised.
        known = {*self.ids(), *self.lanes}
        jobs = [each for each in jobs if each.fingerprint or each.id not in known]
        jobs = list({each.id: each for each in jobs}.values())
        stored = {each.id for each in jobs} - set(self.model.queue(self.queue).entries)
        self.lanes.update({each.id: each.lane for each in jobs if each.id in stored})
        self.both(Enqueue(self.queue, jobs))

    @rule(workers=st.lists(WORKERS, min_size=1, max_size=3, unique=True), tasks=KNOWN)
    def beat(self, workers: list[str], tasks: tuple[str, ...] | None) -> None:
        names = [self.incarnation(each) for each in workers]
        beats = [Heartbeat(each, LEASE, tasks if each in self.beaten else tasks or ("t",)) for each in names]
        self.beaten.update(names)
        self.both(Beat(self.queue, beats))

    @rule(worker=WORKERS, data=st.data())
    def reconcile(self, worker: str, data: st.DataObject) -> None:
        name = self.incarnation(worker)
        held = data.draw(st.lists(st.sampled_from(self.ids()), unique=True, max_size=4))
        seq = data.draw(st.integers(0, self.claims[name]))
        self.beaten.add(name)
        self.both(Beat(self.queue, [Heartbeat(name, LEASE, ("t",), claim_seq=seq, held_ids=tuple(held))]))

    @rule(worker=WORKERS, slots=SLOTS, trial=RARELY, unroutable_after=UNROUTABLE, even=st.booleans())
    def claim(
        self, worker: str, slots: tuple[int, int], *, trial: bool, unroutable_after: int = 0, even: bool = False
    ) -> None:
        name = self.incarnation(worker)
        self.claims[name] += 1
        self.both(Claim(self.queue, name, self.claims[name], slots, trial, unroutable_after, even))

    @rule(
        worker=WORKERS,
        new=st.lists(NEW, min_size=1, max_size=4),
        slots=SLOTS,
        trial=RARELY,
        fault=FAULTS,
        data=st.data(),
    )
    def work(self, worker: str, new: list[Any], slots: tuple[int, int], fault: str, data: Any, *, trial: bool) -> None:
        """Enqueue, beat, claim, and settle some: what goes on all day, or the first thing after a fault."""
        self.enqueue(new)
        if fault == "outage":
            self.clock.advance(data.draw(st.sampled_from([LEASE // 3 + 50, 3 * LEASE, *self.jumps])))
        elif fault == "pause":
            self.both(Act(self.queue, Pause()))
        elif fault != "none":
            name = self.incarnation(worker)
            held = tuple(each.id for each in self.running() if each.incarnation == name)
            blamed = data.draw(st.sampled_from([None, None, (), held[:1], held[1:]]))
            self.both(Retire(self.queue, name, fault, "signal 9", blamed))
            self.lives[worker] += 1
        self.beat([worker], None)
        self.claim(worker, slots, trial=trial, unroutable_after=data.draw(UNROUTABLE))
        if fault == "pause":
            self.both(Act(self.queue, Resume()))
        if self.running() and data.draw(st.booleans()):
            self.settle(data)

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Settle jobs of one who runs some, and now and then one that is not its own."""
        running = self.running()
        name = data.draw(st.sampled_from(sorted({each.incarnation or "" for each in running}) or ["w0-0"]))
        mine = [each.id for each in running if each.incarnation == name]
        chosen = data.draw(st.lists(st.sampled_from(mine), min_size=1, unique=True)) if mine else []
        if data.draw(RARELY):
            chosen.append(data.draw(st.sampled_from([id for id in self.ids() if id not in mine])))
        settlements = [self.settlement(id, data.draw(OUTCOMES)) for id in chosen]
        if data.draw(RARELY):
            settlements = [msgspec.structs.replace(each, fence=each.fence + 1) for each in settlements]
        self.settles[name] += 1
        metrics = data.draw(st.sampled_from([b"", b"blob"]))
        self.both(Settle(self.queue, name, self.settles[name], settlements, metrics))

    def settlement(self, id: str, outcome: str) -> Any:
        entry = self.model.queue(self.queue).entries.get(id)
        old, _ = read_tally(entry.tally if entry else "")
        fence = self.fence(id)
        text = tally(attempts=old.attempts + 1, failures=old.failures + 1, crashes=old.crashes, outcome=outcome)
        match outcome:
            case "done":
                return Done(id, fence, ending(fingerprint="f", result=id))
            case "cancelled":
                return Cancelled(id, fence, ending("cancelled"))
            case "retried" | "later":
                return Retried(id, fence, text, 0 if outcome == "retried" else 2000)
            case "released" | "snoozed":
                return Released(id, fence, text, 0 if outcome == "released" else 700)
            case _:
                return Died(id, fence, text)

    @rule(data=st.data())
    def note(self, data: st.DataObject) -> None:
        """Say something of jobs that run, or did."""
        running = self.running()
        name = data.draw(st.sampled_from(sorted({each.incarnation or "" for each in running}) or ["w0-0"]))
        mine = [each.id for each in running if each.incarnation == name]
        chosen = data.draw(st.lists(st.sampled_from(mine or self.ids()), min_size=1, max_size=3))
        notes = [
            JobNote(
                id,
                self.fence(id) + data.draw(st.sampled_from([0, 0, 0, 0, 1])),
                data.draw(st.sampled_from([0, 0, 1, 2, 150])),
                [b"x" * data.draw(st.sampled_from([1, 2, 40_000]))] * data.draw(st.sampled_from([0, 1, 2, 150])),
                data.draw(st.integers(0, 3)),
                data.draw(st.sampled_from([b"", b"some", b"more"])),
            )
            for id in chosen
        ]
        self.both(Note(self.queue, name, notes))
        for id in chosen:
            self.both(Get(self.queue, id))

    @rule(kind=st.sampled_from([Enqueue, Claim, Claim, Settle, Note]), older=st.booleans())
    def again(self, kind: type, *, older: bool) -> None:
        """A reply was lost, or a command comes late."""
        match self.last.get(kind):
            case Enqueue() as verb:
                self.both(Enqueue(self.queue, verb.jobs, resend=True))
            case Claim() as verb:
                self.both(msgspec.structs.replace(verb, seq=max(1, verb.seq - older)), next_at=False)
                self.last[Claim] = verb
            case Note() as verb:
                self.both(verb)
            case Settle() as verb:
                self.both(msgspec.structs.replace(verb, seq=max(1, verb.seq - older)))
                self.last[Settle] = verb

    @rule(worker=WORKERS, reason=REASONS, data=st.data())
    def retire(self, worker: str, reason: Any, data: st.DataObject) -> None:
        """Retire an incarnation, which goes on as if it had not heard."""
        held = [each.id for each in self.running() if each.incarnation == self.incarnation(worker)]
        some = st.lists(st.sampled_from(held or ["never"]), max_size=2, unique=True)
        blamed = data.draw(some) + data.draw(st.lists(st.sampled_from(self.ids()), max_size=1))
        given = tuple(blamed) if data.draw(st.booleans()) else None
        self.both(Retire(self.queue, self.incarnation(worker), reason, "signal 9", given))

    @precondition(
        lambda self: len({*self.model.queue(self.queue).alive, *map(self.incarnation, ("w0", "w1", "w2"))}) <= REAPED
    )
    @rule(worker=WORKERS)
    def come_back(self, worker: str) -> None:
        """Forget an incarnation; there are never more than one claim reaps."""
        self.lives[worker] += 1

    @rule(action=ACTIONS, data=st.data())
    def act(self, action: Any, data: st.DataObject) -> None:
        entries = self.model.queue(self.queue).entries.values()
        matter = [each.id for each in entries if (each.state is State.DEAD) == isinstance(action, Replay)]
        some = st.lists(st.sampled_from(matter or self.ids()), min_size=1, max_size=3, unique=True)
        ids = data.draw(some) + data.draw(st.lists(st.sampled_from(self.ids()), max_size=1))
        states = data.draw(st.just(()) | st.lists(st.sampled_from(State), min_size=1, unique=True))
        self.both(Act(self.queue, action, list(dict.fromkeys(ids)), states))

    @rule(
        key=st.sampled_from("xy"),
        body=st.sampled_from([b"1", b"", None]),
        version=st.sampled_from([None, 0, 1, 2]),
        others=st.dictionaries(st.sampled_from("xyz"), st.just(b"3"), max_size=2),
    )
    def store(self, key: str, body: bytes | None, version: int | None, others: dict[str, bytes]) -> None:
        self.both(Store(self.queue, key, body, if_version=version, others=others))
        self.both(Load(self.queue))

    @rule(ms=STEPS)
    def advance(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(workers=st.lists(WORKERS, min_size=1, max_size=2, unique=True))
    def march(self, workers: list[str]) -> None:
        """Let a lease go by while some of them beat; the first claims, and takes nothing."""
        for _ in range(5):
            self.clock.advance(LEASE // 4 + 10)
            self.beat(workers, None)
        self.claim(workers[0], (0, 0), trial=False)

    @invariant()
    def all_that_can_be_seen_is_the_same(self) -> None:
        stats: QueueStats = self.both(Stats(self.queue))
        assert all(stats.totals.get(name, 0) >= count for name, count in self.totals.items()), "a total fell"
        self.totals = stats.totals
        lists = {state: self.listed(state) for state in State}
        assert sum(stats.ready) == len(lists[State.READY])
        assert sum(stats.parked.values()) == len(lists[State.PARKED])
        for state in (State.SCHEDULED, State.SUSPECT, State.RUNNING, State.DEAD):
            assert getattr(stats, state.value) == len(lists[state])
        ids = [id for each in lists.values() for id in each]
        assert len(ids) == len(set(ids))
        # Conservation: what was stored and not deleted is somewhere. No ending expires in the time of an example.
        assert len(ids) == stats.totals.get("enqueued", 0) - stats.totals.get("deleted", 0)

    def listed(self, state: State) -> list[str]:
        verb = Find(self.queue, state, "", 1000)
        found = [plain_job(each) for each in self.broker.call(verb).jobs]
        expected = [plain_job(each) for each in self.model.call(verb).jobs]
        if state in (State.SCHEDULED, State.DEAD, State.DONE, State.CANCELLED):  # ties are in any order
            found.sort(key=lambda each: each["id"])
            expected.sort(key=lambda each: each["id"])
        assert found == expected
        return [each["id"] for each in found]

    def teardown(self) -> None:
        for id in self.ids():
            self.both(Get(self.queue, id))
        self.both(Watch(self.queue))


def run(broker: Broker, clock: Clock, jumps: Sequence[int] = (), profile: settings = PROFILE) -> None:
    try:
        run_state_machine_as_test(lambda: Twins(broker, clock, jumps), settings=profile)
    finally:
        broker.close()


@pytest.mark.timeout(3600 if LONG else 300)
def test_the_model_is_its_own_twin():
    """The sequences drawn are possible ones, and the model forgets nothing between them."""
    clock = Clock()
    run(ModelBroker(clock), clock, BACK, settings(PROFILE, max_examples=20))


@pytest.mark.timeout(3600 if LONG else 300)
def test_sqlite():
    from spool.broker.sqlite import SqliteBroker

    clock = Clock()
    run(SqliteBroker("sqlite://:memory:", clock=lambda: (clock.wall, clock.boot)), clock)


@pytest.mark.timeout(3600 if LONG else 300)
def test_redis(redis_url):
    from spool.broker.redis import RedisBroker

    clock = Clock()
    run(RedisBroker(redis_url, clock=clock), clock, BACK)


@pytest.mark.timeout(3600 if LONG else 300)
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_over_http(request, front, kind):
    from spool.broker.http import HttpBroker
    from spool.broker.redis import RedisBroker
    from spool.broker.sqlite import SqliteBroker

    clock = Clock()
    if kind == "redis":
        front.put_before(RedisBroker(request.getfixturevalue("redis_url"), clock=clock))
    else:
        front.put_before(SqliteBroker("sqlite://:memory:", clock=lambda: (clock.wall, clock.boot)))
    run(
        HttpBroker(front.url),
        clock,
        BACK if kind == "redis" else (),
        settings(PROFILE, max_examples=100 if LONG else 8),
    )
    front.take_away()
