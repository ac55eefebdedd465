"""Keep the leases of worker processes: a thread that beats, whatever their event loops are busy with."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from spool import __version__
from spool.broker import Beat, Broker, Heartbeat, Load, Orders, Store
from spool.broker.silence import is_silence
from spool.errors import BrokerError, BrokerRefused, BrokerUnavailable, SpoolError, StoreCorrupt
from spool.report import read_order

logger = logging.getLogger("spool.worker")

ROW_EVERY: Final = 4.0
"""Seconds between two writings of a worker's row."""
ORDERS_EVERY: Final = 2.0
"""Seconds between two readings of what incarnations are told to do."""

# Made once: a path interns its parts, and what is interned and dies again each second fills a table of Python's, which
# then takes half a megabyte more.
_STATM: Final = Path("/proc/self/statm")
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_time() -> float:
    """Return seconds of the clock that leases are kept by: one that goes on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


class Heard(msgspec.Struct, frozen=True, tag=True):
    """That the store answered a beat. ``at`` (`lease_time`): the lease holds for its length from then on.

    ``orders`` is None if the store refused to serve: then nobody else is served either. ``reconciled`` says that the
    beat carried the ids which the holder had reported.
    """

    queue: str
    at: float
    orders: Orders | None = None
    reconciled: bool = False


class Holder(Protocol):
    """An incarnation whose leases are kept. Its methods are called in the thread of who keeps them."""

    incarnation: str
    queues: Sequence[str]
    tasks: tuple[str, ...]

    def hear(self, heard: Heard) -> None:
        """Take note of an answer."""
        ...

    def miss(self, error: Exception) -> None:
        """Take note that a beat failed."""
        ...

    def row(self) -> bytes:
        """Return the row to be written, empty for none."""
        ...

    def obey(self, order: Literal["quiet", "stop"]) -> None:
        """Do what somebody wants this incarnation to do; told again and again."""
        ...


class Keeper(Protocol):
    """Who keeps leases: a `Heart` of this process, or one of the supervisor's. From any thread."""

    def add(self, holder: Holder) -> None:
        """Begin to beat for an incarnation."""
        ...

    def remove(self, incarnation: str) -> None:
        """Beat for it no more. Does not wait for a beat that is on its way."""
        ...

    def report(self, incarnation: str, queue: str, claim_seq: int, ids: tuple[str, ...]) -> None:
        """Have the next beat compare what is held by id."""
        ...

    def kick(self) -> None:
        """Beat now."""
        ...


class _Lease:
    """What a heart knows of one incarnation."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.row_due = 0.0
        self.untold = set(holder.queues)
        """Queues that have yet to be told its tasks."""
        self.reports: dict[str, tuple[int, tuple[str, ...]]] = {}


class Heart:
    """Beats for incarnations, one command for each queue every min(1 s, lease/10), however many there are.

    In a thread, with the broker's blocking calls: neither an event loop that is blocked nor one that is slow matters.
    ``suspects`` is told how many each queue has.
    """

    def __init__(self, broker: Broker, lease: float, suspects: Callable[[str, int], None] | None = None) -> None:
        self._broker = broker
        self._lease = lease
        self._suspects = suspects
        self._lock = threading.Lock()
        self._leases: dict[str, _Lease] = {}
        self._kicked = threading.Event()
        self._stopped = False
        self._listening = False
        self._orders_due = 0.0
        self._thread = threading.Thread(target=self._run, name="spool-heart", daemon=True)
        self._thread.start()

    def add(self, holder: Holder) -> None:
        with self._lock:
            self._leases[holder.incarnation] = _Lease(holder)
            listen, self._listening = not self._listening, True
        if listen:
            threading.Thread(target=self._listen, name="spool-orders", daemon=True).start()
        self.kick()

    def remove(self, incarnation: str) -> None:
        with self._lock:
            self._leases.pop(incarnation, None)

    def report(self, incarnation: str, queue: str, claim_seq: int, ids: tuple[str, ...]) -> None:
        with self._lock:
            if incarnation in self._leases:
                self._leases[incarnation].reports[queue] = (claim_seq, ids)

    def kick(self) -> None:
        self._kicked.set()

    def stop(self) -> None:
        """Beat no more. Does not wait for a beat that is on its way."""
        self._stopped = True
        self._kicked.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _held(self) -> list[_Lease]:
        with self._lock:
            return list(self._leases.values())

    def _queues(self) -> list[str]:
        return list(dict.fromkeys(queue for lease in self._held() for queue in lease.holder.queues))

    def _run(self) -> None:
        try:
            while not self._stopped:
                for queue in self._queues():
                    self._beat(queue, [lease for lease in self._held() if queue in lease.holder.queues])
                self._write_rows()
                self._read_orders()
                self._kicked.wait(min(1.0, self._lease / 10))
                self._kicked.clear()
        except Exception as error:
            # A worker without beats would work on until its jobs are given away, and never know.
            if not isinstance(error, SpoolError):
                logger.exception("the beat thread failed")
            for lease in self._held():
                lease.holder.miss(error)

    def _beat(self, queue: str, leases: Sequence[_Lease]) -> None:
        if self._stopped or not leases:
            return
        reports = [lease.reports.pop(queue, None) for lease in leases]
        beats = [self._heartbeat(lease, queue, report) for lease, report in zip(leases, reports, strict=True)]
        sent = lease_time()
        try:
            reply = self._broker.call(Beat(queue, beats))
        except SpoolError as error:
            for lease, report in zip(leases, reports, strict=True):
                if report:
                    lease.reports.setdefault(queue, report)
                if not is_silence(error):
                    lease.holder.hear(Heard(queue, lease_time()))
                lease.holder.miss(error)
            return
        for lease, orders, report in zip(leases, reply.orders, reports, strict=True):
            (lease.untold.add if orders.tasks else lease.untold.discard)(queue)
            # The lease runs from the moment the store saw the beat, which is no earlier than it was sent.
            lease.holder.hear(Heard(queue, sent, orders, report is not None))
        if self._suspects is not None:
            self._suspects(queue, reply.suspects)

    def _heartbeat(self, lease: _Lease, queue: str, report: tuple[int, tuple[str, ...]] | None) -> Heartbeat:
        return Heartbeat(
            lease.holder.incarnation,
            round(self._lease * 1000),
            tasks=lease.holder.tasks if queue in lease.untold else None,
            claim_seq=report[0] if report else 0,
            held_ids=report[1] if report else None,
        )

    def _write_rows(self) -> None:
        """Write the rows that are due, and those that soon will be, in one command."""
        now = time.monotonic()
        due = [lease for lease in self._held() if lease.row_due <= now + ROW_EVERY / 2]
        if self._stopped or not any(lease.row_due <= now for lease in due):
            return
        rows = {lease: row for lease in due if (row := lease.holder.row())}
        if not rows:
            return
        bodies = {lease.holder.incarnation: row for lease, row in rows.items()}
        incarnation, row = bodies.popitem()
        ttl = round(max(3 * self._lease, 5 * ROW_EVERY) * 1000)
        try:
            self._broker.call(Store("worker", incarnation, row, ttl, others=bodies))
        except SpoolError as error:
            logger.debug("the rows of %d workers were not written: %s", len(rows), error)
        for lease in rows:
            lease.row_due = now + ROW_EVERY

    def _read_orders(self) -> None:
        """Have the orders obeyed that are for one incarnation alone, as the dashboard gives them."""
        now = time.monotonic()
        holders = {lease.holder.incarnation: lease.holder for lease in self._held()}
        if self._stopped or not holders or now < self._orders_due:
            return
        self._orders_due = now + ORDERS_EVERY
        try:
            documents = self._broker.call(Load("order")).documents
        except SpoolError as error:
            logger.debug("the orders were not read: %s", error)
            return
        for document in documents:
            if document.key in holders:
                try:
                    holders[document.key].obey(read_order(document.body).order)
                except StoreCorrupt as error:
                    logger.warning("%s: %s", document.key, error)

    def _listen(self) -> None:
        """Beat whenever there may be orders, which would else wait for the next beat."""
        while not self._stopped:
            try:
                self._broker.await_orders(self._queues(), 30)
                self.kick()
            except SpoolError:  # word may have been lost
                if not self._stopped:
                    time.sleep(1)
                    self.kick()
            except Exception:
                logger.exception("the thread that waits for orders failed; they come with the beats")
                return


def is_fatal(error: Exception) -> bool:
    """Whether a worker that has never been able to beat should give up: waiting will not help."""
    return not isinstance(error, BrokerUnavailable) and (
        isinstance(error, BrokerRefused | StoreCorrupt) or not isinstance(error, BrokerError)
    )


# Who we are


class Machine:
    """This process, as its row names it."""

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self.boot = _read("/proc/sys/kernel/random/boot_id")
        self.namespace = _namespace()
        # The name of the program, in parentheses, may hold anything: what we look for comes after the last one.
        fields = _read("/proc/self/stat").rpartition(")")[2].split()
        self.born = int(fields[19]) if len(fields) > 19 else 0
        self.version = __version__
        self.python = f"{sys.implementation.name} {platform.python_version()}"


def resident() -> int:
    """Return the bytes of memory that this process takes."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:  # not Linux: the most it ever took
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGESIZE")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeError):
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
