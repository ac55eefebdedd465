"""A run: start everything, let the faults strike, heal, wait until all is quiet, and look at what is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from spool.broker import Broker, Stats, connect
from spool.chaos import handlers
from spool.chaos.fleet import Fleet
from spool.chaos.handlers import QUEUES, Setting
from spool.chaos.history import Evidence
from spool.chaos.inject import Agenda, Injector
from spool.chaos.journal import Asked, Event, Journal, only, read
from spool.chaos.plan import Script
from spool.chaos.produce import Job, Pace, Producers, Sender
from spool.chaos.proxy import Network
from spool.chaos.redis_store import RedisStore
from spool.chaos.sqlite_store import SqliteStore
from spool.chaos.survey import Survey, patient, survey
from spool.errors import BrokerError, ConfigError

OnStage = Callable[[str], None]

TICK: Final = 0.05
BEGIN: Final = 60.0
"""Seconds that workers and producers have to begin in."""
FRESH: Final = 20
"""Jobs enqueued after everything, to see that the fleet serves."""
FRESH_SECONDS: Final = 10.0
QUIET: Final = 20.0
"""Seconds without any progress, beyond ten leases, after which what still waits is stuck."""
LONGEST: Final = 60.0
"""Seconds of recovery, beyond 30 leases, after which it is too slow to be one."""


def run(script: Script, directory: Path, on_stage: OnStage) -> Evidence:
    """Carry out a plan with its strikes in an empty directory, and return all that was seen.

    From the main thread only. Everything that it starts has ended when it returns. Raises `ConfigError` when there is
    no Redis to start.
    """
    harness = Harness(script, directory, on_stage)
    try:
        return harness.run()
    finally:
        harness.close()


class Harness:
    """One run."""

    def __init__(self, script: Script, directory: Path, on_stage: OnStage) -> None:
        self._plan, self._strikes, self._directory, self._on_stage = script.plan, script.strikes, directory, on_stage
        (directory / "lives").mkdir()
        self._journal = Journal(directory / "harness.log")
        self._agenda = Agenda()
        self._store = self._make_store()
        self._network: Network | None = None
        plan = script.plan
        paces = [Pace(number + 1, plan.seed, plan.rate / plan.producers) for number in range(plan.producers)]
        self._producers = Producers(directory, paces)
        self._fleet: Fleet | None = None
        self._broker: Broker | None = None
        self._injector: Injector | None = None

    def _make_store(self) -> RedisStore | SqliteStore:
        plan = self._plan
        if plan.broker == "redis":
            return RedisStore(self._directory, plan.durability)
        synchronous = "full" if plan.durability == "always" else "normal"
        fillable = any(strike.fault == "disk-full" for strike in self._strikes)
        return SqliteStore(self._directory, synchronous=synchronous, fillable=fillable, pids=self._store_users)

    def _store_users(self) -> list[int]:
        return [*self.fleet.pids(), *self._producers.pids()]

    @property
    def injector(self) -> Injector:
        assert self._injector is not None  # noqa: S101 - made before anything strikes
        return self._injector

    @property
    def fleet(self) -> Fleet:
        assert self._fleet is not None  # noqa: S101 - made before anything strikes
        return self._fleet

    def note(self, event: Event) -> None:
        self._journal.note(event)

    # The run

    def run(self) -> Evidence:
        plan = self._plan
        self._on_stage("starting")
        self._store.start()
        self._start_workers()
        self._producers.start()
        self._wait_for("producers", lambda: self._producers.begun)
        began = time.monotonic()
        for strike in self._strikes:
            self._agenda.at(began + strike.at, self.injector.strike, strike)
        self._on_stage("striking")
        self._pass_time(began + plan.seconds)
        loaded = time.monotonic_ns()
        self._on_stage("healing")
        self._pass_time(self._agenda.last)
        self._heal()
        self._producers.end(plan.lease + 10.0)
        self._on_stage("recovering")
        quiet = self._recover()
        fresh = self._serve_fresh()
        self._on_stage("stopping")
        self.fleet.shut_down()
        self._on_stage("auditing")
        return self._evidence(quiet, fresh, loaded)

    def _start_workers(self) -> None:
        plan, directory = self._plan, self._directory
        urls = [self._store.url] * (plan.workers + 1)
        if isinstance(self._store, RedisStore):
            self._network = Network(self._store.port)
            options = f"socket_timeout={plan.lease / 2:g}&socket_connect_timeout={plan.lease / 2:g}"
            urls = [f"redis://127.0.0.1:{self._network.gate()}/0?{options}" for _ in urls]
        own = Setting(self._store.url, plan.lease)
        target = handlers.prepare(directory, own)
        (directory / "producers.json").write_bytes(msgspec.json.encode(Setting(urls[-1], plan.lease)))
        self._broker = connect(self._store.url)
        self._sender = Sender(handlers.make(directory, own), Journal(directory / "producer-0.log"))
        self._fleet = Fleet(plan, target, urls, directory, self.note)
        self._injector = Injector(
            plan,
            store=self._store,
            network=self._network,
            fleet=self._fleet,
            sender=self._sender,
            producers=self._producers,
            agenda=self._agenda,
            note=self.note,
        )
        self._fleet.start()
        wanted = plan.workers * plan.processes
        self._wait_for("workers", lambda: sum(len(self.fleet.children(each)) for each in self.fleet.workers) == wanted)

    def _wait_for(self, who: str, begun: Callable[[], bool]) -> None:
        deadline = time.monotonic() + BEGIN
        while not begun():
            self.fleet.tend()
            if time.monotonic() > deadline:
                raise ConfigError(f"the {who} do not begin within {BEGIN:g} s; --keep shows what they say")
            time.sleep(TICK)

    def _pass_time(self, until: float) -> None:
        """Do what is on the agenda until then, and look after everybody."""
        while time.monotonic() < until:
            if not self._agenda.do_due():
                self._tend()
                time.sleep(TICK)
        while self._agenda.do_due():
            pass

    def _tend(self) -> None:
        self._store.tend()
        self.fleet.tend()
        self.injector.send_again()

    # Afterwards

    def _heal(self) -> None:
        self._store.heal()
        if self._network is not None:
            self._network.heal()
        self.fleet.heal()
        self.note(Event("note", time.monotonic_ns(), note="healed"))

    def _recover(self) -> float | None:
        """Wait until nothing waits or runs; return the seconds, or None when it no longer gets better."""
        began = moved = time.monotonic()
        patience, limit = QUIET + 10 * self._plan.lease, LONGEST + 30 * self._plan.lease
        last: object = None
        while True:
            self._tend()
            counts = [self._progress(queue) for queue in QUEUES]
            if not any(each.waiting for each in counts) and not self.injector.unsent:
                return time.monotonic() - began
            progress = [each.ended for each in counts]
            if progress != last:
                last, moved = progress, time.monotonic()
            elif time.monotonic() - moved > patience:
                return None
            if time.monotonic() - began > limit:
                return None
            time.sleep(0.1)

    def _progress(self, queue: str) -> Progress:
        assert self._broker is not None  # noqa: S101 - made before anything strikes
        found = patient(self._broker, Stats(queue))
        waiting = sum(found.ready) + found.scheduled + sum(found.parked.values()) + found.suspect + found.running
        return Progress(waiting, sum(found.totals.get(each, 0) for each in ("done", "dead", "cancelled")))

    def _serve_fresh(self) -> float | None:
        """Enqueue ordinary jobs, and return within how many seconds all were done; None if they were not."""
        began = time.monotonic()
        jobs = [Job(f"fresh-{number}", QUEUES[number % len(QUEUES)], "quick") for number in range(FRESH)]
        for job in jobs:
            self._sender.send(job)
        assert self._broker is not None  # noqa: S101 - as above
        for job in jobs:
            left = began + FRESH_SECONDS - time.monotonic()
            with contextlib.suppress(BrokerError):
                if self._broker.ended(job.queue, job.id, max(0.01, left)) is None:
                    return None
        return time.monotonic() - began

    def _evidence(self, quiet: float | None, fresh: float | None, loaded: int) -> Evidence:
        directory = self._directory
        produced = read(directory, "producer-*.log")
        check = self._store.check() if isinstance(self._store, SqliteStore) else "ok"
        return Evidence(
            plan=self._plan,
            produced=produced,
            handled=read(directory, "handlers-*.log"),
            events=only(Event, read(directory, "harness.log")),
            survey=self._survey(produced),
            quiet=quiet,
            fresh=fresh,
            loaded=loaded,
            store_check=check,
        )

    def _survey(self, produced: list[Any]) -> Survey:
        assert self._broker is not None  # noqa: S101 - as above
        ids: dict[str, dict[str, None]] = {queue: {} for queue in QUEUES}
        for line in only(Asked, produced):
            ids[line.queue][line.id] = None
        return survey(self._broker, ids)

    def close(self) -> None:
        self._producers.end(0.5)
        if self._fleet is not None:
            self._fleet.close()
        if self._network is not None:
            self._network.close()
        if self._broker is not None:
            self._broker.close()
        self._store.close()
        self._journal.close()


class Progress(msgspec.Struct, frozen=True):
    """How many jobs of a queue have not ended, and how many have."""

    waiting: int
    ended: int
