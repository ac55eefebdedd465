"""Worker processes as their supervisor sees them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from spool.broker import Settlement
from spool.nursery import Frames, pack_frame
from spool.supervisor.messages import FromChild, OnTrial, ToChild
from spool.supervisor.options import Role
from spool.worker.heartbeat import Heard

UNSENT: Final = 1 << 20
"""Bytes that may wait for a process which does not read; answers to beats beyond them are dropped."""


class Child:
    """One worker process."""

    def __init__(self, number: int, sock: socket.socket, role: Role) -> None:
        sock.setblocking(False)  # noqa: FBT003 - its signature
        self.number = number
        self.sock = sock
        self.role: Role = role
        self.pid = 0
        self.since = time.monotonic()
        self.ready = self.draining = self.fatal = self.dismissed = False
        self.lives: list[Incarnation] = []
        self.on_trial: OnTrial | None = None
        self.late: list[tuple[str, int, Settlement]] | None = None
        """What it asked to be settled after it was killed."""
        self.killed = ""
        """Why it was killed without asking for it."""
        self.silent = 0
        """Ticks of the supervisor since the last sign of life: its own, so that a pause of both is none."""
        self.still = 0
        """Ticks since it last used the processor; 0 where the platform does not tell."""
        self.family_gone = False
        """Whether the processes of its pool, which keep its line open, have ended as it has."""
        self.due = 0.0
        """When the next timeout of its jobs is, on the monotonic clock; 0: none that we know of."""
        self._frames = Frames()
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._used: float | None = None

    def tell(self, message: ToChild) -> None:
        """Send a message, or keep it for later. From any thread; never blocks."""
        with self._lock:
            if isinstance(message, Heard) and len(self._unsent) > UNSENT:
                return
            self._unsent += pack_frame(message)
            with contextlib.suppress(OSError):  # it is full, or nobody is there any more
                del self._unsent[: self.sock.send(self._unsent)]

    def read(self) -> Iterator[FromChild] | None:
        """Yield what it said; None at the end of the line."""
        data = self._receive()
        return None if data == b"" else self._understand(data or b"")

    def last_words(self) -> Iterator[FromChild]:
        """Yield what it said before it ended, and was not heard yet."""
        while data := self._receive():
            yield from self._understand(data)

    def _receive(self) -> bytes | None:
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self.family_gone = not data
        return data

    def _understand(self, data: bytes) -> Iterator[FromChild]:
        return (msgspec.convert(message, FromChild) for message in self._frames.feed(data))

    def tick(self) -> None:
        """Count a tick without a sign of life."""
        self.silent += 1
        used = _cpu_seconds(self.pid)
        self.still = 0 if used is None or used != self._used else self.still + 1
        self._used = used

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger keeps it from running."""
        return _state(self.pid) in "Tt"


class Incarnation:
    """One life of a worker process: a `spool.worker.heartbeat.Holder` for the supervisor's heart."""

    def __init__(
        self,
        child: Child,
        incarnation: str,
        queues: Sequence[str],
        tasks: Sequence[str],
        *,
        missed: Callable[[Exception, bool], None],
        ordered: Callable[[Child, Literal["quiet", "stop"]], None],
    ) -> None:
        self.incarnation = incarnation
        self.queues = queues
        self.tasks = tuple(tasks)
        self.latest_row = b""
        self._child = child
        self._missed = missed
        self._ordered = ordered
        self._heard = False

    def hear(self, heard: Heard) -> None:
        self._heard = self._heard or heard.orders is not None
        self._child.tell(heard)

    def miss(self, error: Exception) -> None:
        self._missed(error, self._heard)

    def row(self) -> bytes:
        return self.latest_row

    def obey(self, order: Literal["quiet", "stop"]) -> None:
        self._ordered(self._child, order)


def _stat(pid: int) -> list[str]:
    # The name of the program, in parentheses, may hold anything: what we look for comes after the last one.
    try:
        # A Path would intern its parts, several times a second, until the table of all interned strings has to grow.
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123 - as above
            return file.read().rpartition(")")[2].split()
    except (OSError, UnicodeError):
        return []


def _cpu_seconds(pid: int) -> float | None:
    """Return the processor time that a process has used; None where the platform does not tell."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else None


def _state(pid: int) -> str:
    return (_stat(pid) or ["?"])[0]


def is_gone(pid: int, born: int) -> bool:
    """Whether a process of this machine and namespace is certainly gone; ``born`` as in `spool.report.WorkerRow`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    fields = _stat(pid)
    if len(fields) <= 19:
        return False
    # A zombie runs nothing any more, and may stay for long where PID 1 does not look after orphans, as in many
    # containers. Unless other threads outlived its main one.
    if fields[0] == "Z" and int(fields[17]) <= 1:
        return True
    return bool(born) and int(fields[19]) != born
