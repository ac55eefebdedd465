"""Keep a worker's leases: a thread that beats, whatever the event loop is busy with."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from spool import __version__
from spool.broker import Beat, Broker, Heartbeat, Orders, Store
from spool.errors import BrokerError, BrokerRefused, BrokerUnavailable, StoreCorrupt
from spool.report import WorkerRow, encode_row
from spool.worker.slots import Line

logger = logging.getLogger("spool.worker")

ROW_EVERY: Final = 3.0
"""Seconds between two writings of a worker's row."""

_UNREACHABLE: Final = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}


def is_silence(error: BaseException) -> bool:
    """Tell silence from an answer: a store that refuses us, or is loading, has not given our jobs to others.

    Silence is a time-out or a host that cannot be reached; there may be a healthy store beyond a broken network.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, TimeoutError) or (isinstance(link, OSError) and link.errno in _UNREACHABLE):
            return True
        link = link.__cause__ or link.__context__
    return False


class Holder(Protocol):
    """Who holds the leases: an incarnation. ``obey`` and ``miss`` are called in the loop's thread."""

    incarnation: str
    tasks: tuple[str, ...]

    @property
    def lines(self) -> Sequence[Line]: ...

    def obey(self, line: Line, beat: Heartbeat, orders: Orders) -> None: ...

    def miss(self, error: Exception) -> None: ...

    def row(self) -> WorkerRow: ...


class Heart:
    """Beats for an incarnation, once for each of its queues every min(1 s, lease/10).

    In a thread, with the broker's blocking calls: an event loop that is blocked keeps its lease. ``post`` hands a call
    to the loop's thread.
    """

    def __init__(self, broker: Broker, life: Holder, lease: float, post: Callable[..., object]) -> None:
        self._broker = broker
        self._life = life
        self._lease = lease
        self._post = post
        self._kicked = threading.Event()
        self._stopped = False
        self._row_due = 0.0
        self._thread = threading.Thread(target=self._run, name="spool-heart", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """Beat now."""
        self._kicked.set()

    def stop(self) -> None:
        """Beat no more. Does not wait for a beat that is on its way."""
        self._stopped = True
        self._kicked.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopped:
                for line in self._life.lines:
                    self._beat(line)
                self._write_row()
                self._kicked.wait(min(1.0, self._lease / 10))
                self._kicked.clear()
        except Exception as error:
            if self._stopped and isinstance(error, RuntimeError):
                return  # the loop is closed, and so are we
            # A worker without beats would work on until its jobs are given away, and never know.
            logger.exception("the beat thread failed")
            with contextlib.suppress(RuntimeError):
                self._post(self._life.miss, error)

    def _beat(self, line: Line) -> None:
        if self._stopped:
            return
        report, line.report = line.report, None
        beat = Heartbeat(
            self._life.incarnation,
            round(self._lease * 1000),
            tasks=self._life.tasks if line.tell_tasks else None,
            held=len(line.held),
            claim_seq=report[0] if report else 0,
            held_ids=report[1] if report else None,
        )
        sent = time.monotonic()
        try:
            reply = self._broker.call(Beat(line.name, (beat,)))
        except BrokerError as error:
            if report:
                line.report = report
            if not is_silence(error):
                line.heard = time.monotonic()
            self._post(self._life.miss, error)
        else:
            # The lease runs from the moment the store saw the beat, which is no earlier than it was sent.
            line.heard = sent
            self._post(self._life.obey, line, beat, reply.orders[0])

    def _write_row(self) -> None:
        if self._stopped or time.monotonic() < self._row_due:
            return
        ttl = round(max(3 * self._lease, 5 * ROW_EVERY) * 1000)
        try:
            self._broker.call(Store("worker", self._life.incarnation, encode_row(self._life.row()), ttl))
        except BrokerError as error:
            logger.debug("the worker's row was not written: %s", error)
        self._row_due = time.monotonic() + ROW_EVERY


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
