"""What each fault does when it strikes, and how it is undone."""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections.abc import Callable
from typing import Any

from spool.chaos import handlers
from spool.chaos.fleet import HOUR, Fleet
from spool.chaos.handlers import QUEUES
from spool.chaos.journal import Event, EventKind
from spool.chaos.plan import FAULTS, Plan, Strike
from spool.chaos.processes import send
from spool.chaos.produce import Job, Producers, Sender
from spool.chaos.proxy import Mode, Network
from spool.chaos.redis_store import RedisStore, forgotten
from spool.chaos.sqlite_store import SqliteStore


class Agenda:
    """What is to be done when, by the monotonic clock."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = itertools.count()

    def at(self, when: float, what: Callable[..., object], *args: Any) -> None:
        heapq.heappush(self._entries, (when, next(self._count), what, args))

    def after(self, seconds: float, what: Callable[..., object], *args: Any) -> None:
        self.at(time.monotonic() + seconds, what, *args)

    @property
    def last(self) -> float:
        """When the last thing is to be done; 0 when there is none."""
        return max((entry[0] for entry in self._entries), default=0.0)

    def do_due(self) -> bool:
        """Do the first thing that is due; False when there is none."""
        if not self._entries or self._entries[0][0] > time.monotonic():
            return False
        _, _, what, args = heapq.heappop(self._entries)
        what(*args)
        return True


class Injector:
    """Carries out strikes on what a run consists of."""

    def __init__(
        self,
        plan: Plan,
        *,
        store: RedisStore | SqliteStore,
        network: Network | None,
        fleet: Fleet,
        sender: Sender,
        producers: Producers,
        agenda: Agenda,
        note: Callable[[Event], None],
    ) -> None:
        self._plan, self._store, self._network, self._fleet = plan, store, network, fleet
        self._sender, self._producers, self._agenda, self._note = sender, producers, agenda, note
        self._poisons = itertools.count()
        self._unsent: list[Job] = []

    @property
    def unsent(self) -> bool:
        """Whether there are poison jobs of which nobody knows yet that they are there."""
        return bool(self._unsent)

    def send_again(self) -> None:
        self._unsent = [job for job in self._unsent if self._sender.send(job)]

    def strike(self, strike: Strike) -> None:
        """Carry out one strike, and put its end on the agenda."""
        name = strike.fault.replace("-", "_")
        if FAULTS[strike.fault].subject == "job":
            self._poison(strike)
        else:
            getattr(self, f"_do_{name}")(strike)

    def _done(
        self, strike: Strike, kind: EventKind, *, worker: str = "", pids: list[int] | None = None, at: int = 0
    ) -> None:
        begin = at or time.monotonic_ns()
        until = begin + int(strike.seconds * 1e9)
        self._note(Event(kind, begin, strike.fault, until, worker, pids or []))

    def _do_kill_child(self, strike: Strike) -> None:
        if worker := self._fleet.pick(strike.pick):
            at, pids = self._fleet.kill_child(worker, strike.pick2)
            self._done(strike, "kill", worker=worker.name, pids=pids, at=at)

    def _do_kill_supervisor(self, strike: Strike) -> None:
        if worker := self._fleet.pick(strike.pick):
            at, pids = self._fleet.kill_supervisor(worker)
            self._done(strike, "kill", worker=worker.name, pids=pids, at=at)
            self._agenda.after(strike.seconds, self._fleet.revive, worker)

    def _do_kill_all(self, strike: Strike) -> None:
        workers = [worker for worker in self._fleet.workers if not worker.killed]
        tolls = [self._fleet.kill(worker) for worker in workers]
        at = max((toll.at for toll in tolls), default=0)
        self._done(strike, "kill", pids=[pid for toll in tolls for pid in toll.pids], at=at)
        for worker in workers:
            self._agenda.after(strike.seconds, self._fleet.revive, worker)

    def _do_stop_worker(self, strike: Strike) -> None:
        if worker := self._fleet.pick(strike.pick):
            self._done(strike, "stop", worker=worker.name, pids=self._fleet.stop(worker))
            self._agenda.after(strike.seconds, self._fleet.resume, worker)

    def _do_stop_child(self, strike: Strike) -> None:
        if worker := self._fleet.pick(strike.pick):
            pids = self._fleet.stop_child(worker, strike.pick2)
            self._done(strike, "stop", worker=worker.name, pids=pids)
            for pid in pids:
                self._agenda.after(strike.seconds, send, pid, signal.SIGCONT)

    def _do_deploy(self, strike: Strike) -> None:
        workers = self._fleet.workers
        for turn, worker in enumerate(workers):
            wait = strike.seconds * turn / len(workers)
            self._agenda.after(wait, self._fleet.replace, worker)

    def _do_clock(self, strike: Strike) -> None:
        if self._fleet.clocks_can_be_wrong:
            self._done(strike, "clock", worker=self._fleet.set_clock(HOUR if strike.pick < 0.5 else -HOUR))
            self._agenda.after(strike.seconds, self._fleet.set_clock, 0)

    def _do_kill_producer(self, strike: Strike) -> None:
        place = self._producers.kill(strike.pick)
        # No harm to a job: what becomes of the call that it was in, the audit asks of every call.
        self._done(strike, "note")
        self._agenda.after(strike.seconds, self._producers.revive, place)

    @property
    def _redis(self) -> RedisStore:
        assert isinstance(self._store, RedisStore)  # noqa: S101 - a plan has no faults of another store
        return self._store

    def _do_redis_kill(self, strike: Strike) -> None:
        self._restart(strike, self._redis.kill())

    def _do_power_loss(self, strike: Strike) -> None:
        self._restart(strike, self._redis.lose_power(strike.pick))

    def _restart(self, strike: Strike, killed: int) -> None:
        def revive() -> None:
            lost = self._redis.revive(killed)
            self._note(Event("outage", killed, strike.fault, time.monotonic_ns()))
            if lost is not None:
                self._note(forgotten(lost, strike.fault))

        self._agenda.after(strike.seconds, revive)

    def _do_redis_pause(self, strike: Strike) -> None:
        at = time.monotonic_ns()
        self._redis.pause()
        self._agenda.after(strike.seconds, self._over, "outage", strike, at, self._redis.resume)

    def _do_client_pause(self, strike: Strike) -> None:
        at = time.monotonic_ns()
        self._redis.client_pause(strike.seconds)
        self._agenda.after(strike.seconds, self._over, "outage", strike, at)

    def _do_maxmemory(self, strike: Strike) -> None:
        at = time.monotonic_ns()
        self._redis.fill()
        self._agenda.after(strike.seconds, self._over, "full", strike, at, self._redis.drain)

    def _do_disk_full(self, strike: Strike) -> None:
        store = self._store
        assert isinstance(store, SqliteStore)  # noqa: S101 - as above
        at = time.monotonic_ns()
        store.fill()
        self._agenda.after(strike.seconds, self._over, "full", strike, at, store.drain)

    def _over(self, kind: EventKind, strike: Strike, began: int, undo: Callable[[], None] | None = None) -> None:
        if undo is not None:
            undo()
        self._note(Event(kind, began, strike.fault, time.monotonic_ns()))

    def _do_corrupt(self, strike: Strike) -> None:
        ids = self._store.corrupt(QUEUES, strike.pick)
        self._note(Event("damage", time.monotonic_ns(), strike.fault, ids=ids))

    def _do_flushall(self, strike: Strike) -> None:
        self._note(forgotten(self._redis.flush(), strike.fault))

    def _do_cut(self, strike: Strike) -> None:
        self._shut(strike, "cut")

    def _do_half_open(self, strike: Strike) -> None:
        self._shut(strike, "half-open")

    def _do_delay(self, strike: Strike) -> None:
        self._shut(strike, "delay")

    def _do_reply_lost(self, strike: Strike) -> None:
        self._shut(strike, "reply-lost")

    def _shut(self, strike: Strike, mode: Mode) -> None:
        """Shut the gate of one worker, of the producers, or now and then of all."""
        network, at, gates = self._network, time.monotonic_ns(), self._plan.workers + 1
        if network is None:
            return
        hit = list(range(gates)) if strike.pick2 < 0.3 else [int(strike.pick * gates)]
        for gate in hit:
            network.set(gate, mode, self._plan.lease / 4)
        slot = hit[0] if len(hit) == 1 and hit[0] < self._plan.workers else None
        name = "" if slot is None else self._fleet.workers[slot].name

        def reopen() -> None:
            for gate in hit:
                network.set(gate, "open")
            self._note(Event("cut", at, strike.fault, time.monotonic_ns(), name))

        self._agenda.after(strike.seconds, reopen)

    def _poison(self, strike: Strike) -> None:
        """Enqueue a job that is a fault, each time by another of the tasks that bring it about."""
        variants = handlers.VARIANTS[strike.fault]
        job = Job(f"x{next(self._poisons)}-{strike.fault}", QUEUES[0], variants[int(strike.pick * len(variants))])
        self._note(Event("poison", time.monotonic_ns(), strike.fault, ids=[job.id]))
        if self._sender.send(job):
            self._unsent.append(job)
