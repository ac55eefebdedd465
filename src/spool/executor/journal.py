"""What one attempt says, on its way to the store: the last of its log lines, and how far it is.

Written by the task's own code, in whatever thread that runs; taken by who sends it. Bounded as in the store, so that
neither a job that says much nor a store that does not answer takes memory: the earliest lines are dropped.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, NamedTuple

from spool.broker import MAX_LINES, MAX_LOG

Line = tuple[int, str, str, str]
"""When (ms, the store's clock), level, logger, message."""
Report = tuple[Any, Any, str, int]
"""Done, total, message, when."""


class Part(NamedTuple):
    """What has not been sent: the lines from number ``first`` on, and the last report with its number."""

    first: int
    lines: list[Line]
    step: int
    report: Report | None


class Journal:
    """The unsent words of one attempt. From any thread."""

    __slots__ = ("_first", "_lines", "_lock", "_report", "_size", "_step", "_told")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[Line] = deque()
        self._first = 0
        self._size = 0
        self._step = 0
        self._report: Report | None = None
        self._told = False

    def write(self, line: Line) -> bool:
        """Add a line; return whether somebody is to be told that there is something to send."""
        with self._lock:
            self._add(line)
            return self._tell()

    def report(self, report: Report) -> bool:
        """Say how far it is; returns as `write`."""
        with self._lock:
            self._report = report
            self._step += 1
            return self._tell()

    def merge(self, part: Part) -> bool:
        """Add what another journal has sent of the same attempt; returns as `write`."""
        with self._lock:
            if part.first > self._first + len(self._lines):  # they filled the other one: these are older, and too many
                self._lines.clear()
                self._first, self._size = part.first, 0
            for line in part.lines:
                self._add(line)
            if part.report is not None:
                self._report, self._step = part.report, part.step
            return self._tell()

    def _add(self, line: Line) -> None:
        self._lines.append(line)
        self._size += len(line[3])
        while len(self._lines) > MAX_LINES or self._size > MAX_LOG:
            self._size -= len(self._lines.popleft()[3])
            self._first += 1

    def _tell(self) -> bool:
        told, self._told = self._told, True
        return not told

    def unsent(self) -> Part:
        """Return what there is. It stays until it is `sent`."""
        with self._lock:
            self._told = False
            return Part(self._first, list(self._lines), self._step, self._report)

    def sent(self, part: Part) -> None:
        """Forget what was sent."""
        with self._lock:
            end = part.first + len(part.lines)
            while self._lines and self._first < end:
                self._size -= len(self._lines.popleft()[3])
                self._first += 1
            if self._step == part.step:
                self._report = None

    @property
    def waiting(self) -> bool:
        """Whether there is something to send."""
        return self._told or bool(self._lines) or self._report is not None
