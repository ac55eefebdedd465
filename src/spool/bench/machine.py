"""What the benchmark ran on, and the memory of its workers."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

_LIBRARIES = ("msgspec", "redis", "hiredis", "uvloop", "click", "rich")
_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TRACE_GAP = 100_000_000
_TRACE_POINTS = 600
_FAMILY_EVERY = 10


class Memory(msgspec.Struct, frozen=True):
    """Megabytes (10^6 bytes), summed over processes; None where the system does not tell (outside Linux)."""

    processes: int
    rss: float | None = None
    """Resident set; pages that the processes share are counted once for each."""
    rss_peak: float | None = None
    """Sum of each one's own highest resident set."""
    pss: float | None = None
    """Proportional set; a page shared by n processes, of whatever program, counts as 1/n for each."""


class Machine(msgspec.Struct, frozen=True):
    system: str
    processor: str
    cores: int
    """Those that this process may use."""
    memory_mb: int | None


def memory_of(pids: Iterable[int]) -> Memory:
    """Return what processes hold now. Those that are gone count as nothing and are not counted."""
    each = [found for pid in pids if (found := _memory_of(pid)) is not None]
    if not each:
        return Memory(0)
    rss, peak, pss = (round(sum(column) * 1024 / 1e6, 1) for column in zip(*each, strict=True))
    return Memory(len(each), rss, peak, pss)


def _memory_of(pid: int) -> tuple[int, int, int] | None:
    try:
        status = _kilobytes((_PROC / str(pid) / "status").read_text())
        rollup = _kilobytes((_PROC / str(pid) / "smaps_rollup").read_text())
        # The kernel counts the former by the page, the latter in batches: it may lag behind.
        return rollup["Rss"], max(status["VmHWM"], rollup["Rss"]), rollup["Pss"]
    except (OSError, KeyError):
        return None


class MemoryTrace:
    """How much processes held at one time after the other: some hundreds of points, however long it takes."""

    def __init__(self) -> None:
        self.at: list[int] = []
        """Nanoseconds of CLOCK_MONOTONIC."""
        self.sizes: list[int] = []
        """Bytes, resident, summed over the processes."""
        self._gap = _TRACE_GAP
        self._next = 0
        self._looks = 0
        self._pids: list[int] = []

    def look(self, pids: Iterable[int]) -> None:
        """Look at processes and what descends from them, unless the last time is too short ago.

        Reads one line of each: what says more (`memory_of`) holds a process up while it is read.
        """
        now = time.monotonic_ns()
        if now < self._next:
            return
        if self._looks % _FAMILY_EVERY == 0:
            self._pids = family(pids)
        self._looks += 1
        self._next = now + self._gap
        if size := sum(map(_resident, self._pids)):
            self.at.append(now)
            self.sizes.append(size)
        if len(self.at) == _TRACE_POINTS:
            self.sizes = [max(pair) for pair in zip(self.sizes[::2], self.sizes[1::2], strict=True)]
            del self.at[::2]
            self._gap *= 2


def _resident(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def family(pids: Iterable[int]) -> list[int]:
    """Return processes and all that descend from them, such as those of a worker's pool."""
    found = list(pids)
    for pid in found:
        for children in (_PROC / str(pid)).glob("task/*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used so far, user and system; 0 where the system does not tell."""
    ticks = 0
    for pid in pids:
        try:
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _kilobytes(text: str) -> dict[str, int]:
    fields = (line.split() for line in text.splitlines())
    return {field[0].rstrip(":"): int(field[1]) for field in fields if len(field) == 3 and field[2] == "kB"}


def machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(f"{platform.system()} {platform.release()}", _processor(), cores, _total_memory())


def _processor() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _total_memory() -> int | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6)
    except (ValueError, OSError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are there."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
