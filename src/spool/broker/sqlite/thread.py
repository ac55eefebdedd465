"""The thread that owns a SQLite file: it carries out what it is handed, many verbs to a commit."""

from __future__ import annotations

import contextlib
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from spool.broker import Act, Beat, Claim, Claimed, Enqueue, Find, Get, Load, Note, Retire, Settle, Stats, Store, Watch
from spool.broker.sqlite.file import Location, busy, connect, explain, full
from spool.broker.sqlite.jobs import act, enqueue, find, get, load, stats, store, watch
from spool.broker.sqlite.leases import beat, claim, idle, settle
from spool.broker.sqlite.notes import note
from spool.broker.sqlite.retire import retire
from spool.broker.sqlite.store import Idle, Transaction
from spool.broker.sqlite.waiting import AwaitOrders, AwaitWork, Ended, Ticket, Waiting, deliver
from spool.errors import BrokerUnavailable, SpoolError

T = TypeVar("T")
Clock = Callable[[], tuple[int, int]]

READS: Final[dict[type, Callable[[Transaction, Any], object]]] = {
    Get: get,
    Find: find,
    Stats: stats,
    Watch: watch,
    Load: load,
}
WRITES: Final[dict[type, Callable[[Transaction, Any], object]]] = {
    Enqueue: enqueue,
    Act: act,
    Beat: beat,
    Claim: claim,
    Settle: settle,
    Note: note,
    Retire: retire,
    Store: store,
}
DURABLE: Final = frozenset({Enqueue, Act, Settle, Store})
"""What is on the disk before it is answered. A lease or a claim means nothing once the machine is down."""

PATIENCE: Final = 10.0
"""Seconds of trying to get a lock that other processes hold."""
GROUP: Final = 2000
"""Jobs after which a commit takes no more verbs, so that others get the lock too."""

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def read_clock() -> tuple[int, int]:
    """Return the wall clock and the time since boot, in milliseconds."""
    return time.time_ns() // 1_000_000, time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


def read_boot_id() -> str:
    """Return what names this boot of the machine; empty where the system has no such name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Stop:
    """The last request."""


class StoreThread:
    """Owns the connection. ``gate`` is held while it is used: who takes it finds no transaction open."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.commits = 0
        self._location = location
        self._path = Path(location.path)  # made once, not each second: `spool.worker.heartbeat` has why
        self._clock = clock
        self._boot_id = read_boot_id()
        self._gate = threading.Lock()
        self._inbox: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._looked_at_file = 0.0
        self._synchronous = ""
        self._version: int | None = None
        self._now = 0
        self._idle = Idle()
        self._waiting = Waiting(lambda: clock()[0])
        self._hot: set[str] = set()
        """Queues whose last claim found jobs: the next one need not look first."""
        self._thread = threading.Thread(target=self._run, name="spool-sqlite", daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        self._inbox.put(ticket)

    def stop(self) -> None:
        """End the thread and close the file, once everything handed in before is answered."""
        ticket = Ticket(Stop())
        self.submit(ticket)
        if threading.current_thread() is not self._thread:  # the garbage collector calls from anywhere
            ticket.wait()
            self._thread.join()

    def freeze(self) -> None:
        """Hold the thread between two transactions, without a connection, so that the process can fork.

        A connection that exists during a fork must not be used or closed in the child, and its locks would keep the
        child from taking its own on the same file.
        """
        self._gate.acquire()
        if not self._location.memory:
            self._close()

    def thaw(self) -> None:
        self._gate.release()

    def _run(self) -> None:
        stopped: Ticket | None = None
        while stopped is None:
            group = self._gather()
            stopped = next((ticket for ticket in group if isinstance(ticket.request, Stop)), None)
            try:
                with self._gate:
                    self._serve([ticket for ticket in group if ticket is not stopped])
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave callers waiting for ever
                with self._gate:
                    self._roll_back()  # else it fails whoever comes next
                deliver((ticket, error) for ticket in group if not ticket.answered and ticket is not stopped)
        with self._gate:
            self._close()
        deliver(self._waiting.give_up(self._gone).items())
        while not self._inbox.empty():
            deliver([(self._inbox.get(), self._gone())])
        deliver([(stopped, None)])

    def _gone(self) -> Exception:
        return BrokerUnavailable(f"the broker on {self._location.path} is closed")

    def _gather(self) -> list[Ticket]:
        """Return what is to be done next: everything there is, up to a limit; nothing when it is time to look."""
        group: list[Ticket] = []
        weight = 0
        try:
            while weight < GROUP:
                ticket = self._inbox.get_nowait() if group else self._inbox.get(timeout=self._waiting.pause())
                group.append(ticket)
                weight += 1 + _size(ticket.request)
        except queue.Empty:
            pass
        return group

    def _serve(self, group: list[Ticket]) -> None:
        try:
            self._patiently(self._open)
        except (SpoolError, sqlite3.Error) as error:
            refused = [*group, *self._waiting.give_up(self._gone)]
            deliver((ticket, self._explained(error)) for ticket in refused)
            return
        reads, writes, waits = _sort(group)
        if self._waiting or waits or any(isinstance(ticket.request, Claim) for ticket in writes):
            self._notice()
        # First, since none of them can be of one who waits for the answer to a claim beside it: what that claim
        # leaves is news to it.
        for ticket in waits:
            self._waiting.add(ticket)
        for ticket in writes:
            if isinstance(ticket.request, Claim):
                self._waiting.claimed(ticket.request.queue)
        if all(isinstance(verb := ticket.request, Claim) and verb.queue not in self._hot for ticket in writes):
            reads, writes = [*reads, *writes], []
        if reads:
            writes += self._read(reads)
        if writes:
            self._write(writes)
        if self._waiting:
            self._look()

    def _read(self, tickets: list[Ticket]) -> list[Ticket]:
        """Answer what needs no lock; return claims which do."""

        def work() -> list[tuple[Ticket, object]]:
            tx = self._begin("BEGIN")
            answers: list[tuple[Ticket, object]] = []
            for ticket in tickets:
                verb: Callable[[Transaction, Any], object] = READS.get(type(ticket.request), idle)
                try:
                    answers.append((ticket, verb(tx, ticket.request)))
                except sqlite3.Error:
                    raise
                except Exception as error:  # noqa: BLE001 - the caller gets it, and the others' verbs go on
                    answers.append((ticket, error))
            tx.db.execute("COMMIT")
            return answers

        try:
            answers = self._patiently(work)
        except sqlite3.Error as error:
            self._discard(error)
            deliver((ticket, self._explained(error)) for ticket in tickets)
            return []
        undecided = [ticket for ticket, reply in answers if reply is None and isinstance(ticket.request, Claim)]
        deliver((ticket, reply) for ticket, reply in answers if ticket not in undecided)
        return undecided

    def _write(self, tickets: list[Ticket]) -> None:
        """Carry verbs out in one transaction; answer when it is committed."""
        try:
            answers = self._patiently(lambda: self._transact(tickets))
        except sqlite3.Error as error:
            if len(tickets) > 1 and not busy(error):  # it may be that only one of them finds no room on the disk
                for ticket in tickets:
                    self._write([ticket])
            else:
                self._discard(error)
                deliver((ticket, self._explained(error)) for ticket in tickets)
            return
        for ticket, reply in answers:
            if isinstance(reply, Claimed) and isinstance(ticket.request, Claim):
                (self._hot.add if reply.jobs else self._hot.discard)(ticket.request.queue)
        deliver(answers)

    def _transact(self, tickets: list[Ticket]) -> list[tuple[Ticket, object]]:
        durable = not DURABLE.isdisjoint(type(ticket.request) for ticket in tickets)
        level = self._location.synchronous if durable else "NORMAL"
        if level == "NORMAL" and any(type(each.request) is Enqueue and each.request.durable for each in tickets):
            level = "FULL"
        self._synchronise(level)
        tx = self._begin("BEGIN IMMEDIATE")
        answers: list[tuple[Ticket, object]] = []
        for ticket in tickets:
            mark = tx.mark() if len(tickets) > 1 else None
            try:
                answers.append((ticket, WRITES[type(ticket.request)](tx, ticket.request)))
            except sqlite3.Error:
                raise
            except Exception as error:  # noqa: BLE001 - the caller gets it, and the others' verbs go on
                answers.append((ticket, error))
                if mark is None:
                    self._roll_back()
                    return answers
                tx.undo(mark)
            else:
                if mark is not None:
                    tx.release()
        tx.flush()
        tx.db.execute("COMMIT")
        self._now = tx.now
        self.commits += 1
        self._waiting.stirred(tx.stirred)
        self._waiting.left(tx.left)
        self._waiting.wished(tx.wished)
        self._waiting.ended(tx.ended)
        return answers

    def _look(self) -> None:
        """Answer those whose waiting is over."""
        try:
            answers = self._patiently(lambda: self._waiting.look(lambda: self._begin("BEGIN")))
        except sqlite3.Error as cause:
            self._discard(cause)
            error: Exception = cause
            answers = self._waiting.give_up(lambda: self._explained(error))
        self._roll_back()
        deliver(answers.items())

    def _notice(self) -> None:
        """Find out whether another connection has changed the file since the last time."""
        try:
            version = self._connection().execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            version = None
        if version is None or version != self._version:
            self._version = version
            self._waiting.changed()

    def _begin(self, how: str) -> Transaction:
        db = self._connection()
        db.execute(how)
        wall, boot = self._clock()
        return Transaction(db, wall, boot, self._boot_id, self._idle, self._now)

    def _synchronise(self, level: str) -> None:
        if level != self._synchronous:
            self._connection().execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do something, again and again while another process holds the lock it needs."""
        until, pause = time.monotonic() + PATIENCE, 0.0002
        while True:
            try:
                return work()
            except sqlite3.Error as error:
                self._roll_back()
                if not busy(error) or time.monotonic() > until:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            pause = min(1.5 * pause, 0.005)

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise sqlite3.OperationalError("there is no connection")
        return self._db

    def _open(self) -> None:
        if self._moved():
            self._close()
        if self._db is None:
            self._db = connect(self._location)
            self._file = self._identity()
            self._idle, self._synchronous, self._version = Idle(), "", None
            self._hot.clear()

    def _moved(self) -> bool:
        """Whether somebody deleted or replaced the file; asked once a second."""
        now = time.monotonic()
        if self._location.memory or now < self._looked_at_file + 1:
            return False
        self._looked_at_file = now
        return self._identity() != self._file

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _roll_back(self) -> None:
        try:
            if self._db is not None and self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            self._close()

    def _discard(self, error: sqlite3.Error) -> None:
        """Open the file anew after an error that may be the connection's."""
        if not (busy(error) or full(error) or self._location.memory):
            self._close()

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def _explained(self, error: Exception) -> Exception:
        """Return what an error means; a new object, since each caller raises its own."""
        meaning = explain(error, self._location) if isinstance(error, sqlite3.Error) else type(error)(*error.args)
        meaning.__cause__ = error
        return meaning


def _size(request: object) -> int:
    parts = getattr(request, "jobs", ()), getattr(request, "settlements", ()), getattr(request, "notes", ())
    return len(parts[0]) + len(parts[1]) + len(parts[2])


def _sort(group: list[Ticket]) -> tuple[list[Ticket], list[Ticket], list[Ticket]]:
    """Tell reads, writes and waits apart."""
    reads: list[Ticket] = []
    writes: list[Ticket] = []
    waits: list[Ticket] = []
    for ticket in group:
        kind = type(ticket.request)
        if kind in WRITES:
            writes.append(ticket)
        elif kind in READS:
            reads.append(ticket)
        elif kind in (Ended, AwaitWork, AwaitOrders):
            waits.append(ticket)
        else:
            deliver([(ticket, TypeError(f"{ticket.request!r} is not a verb"))])
    return reads, writes, waits
