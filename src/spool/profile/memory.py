"""Memory profiles of this process: every allocation, by memray where there is one, else by tracemalloc."""

from __future__ import annotations

import ast
import contextlib
import os
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spool.errors import ConfigError, ProfileError
from spool.profile.files import write
from spool.profile.model import MEMORY_TYPES, Frame, Profile, Sample

if TYPE_CHECKING:
    from memray import AllocationRecord, Tracker

_DEPTH: Final = 50
"""Calls that tracemalloc remembers of each stack."""
_ALL: Final = 10_000

Totals = dict[tuple[str, tuple[Frame, ...]], list[int]]


def has_memray() -> bool:
    """Whether memray is installed."""
    try:
        import memray  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True


class MemoryRecorder:
    """Records what this process allocates, on all its threads, into a file for `spool.profile.read`.

    memray sees each call of malloc and mmap. Objects of up to 512 bytes live in pools of Python's own, and are seen
    only as far as a pool grows. tracemalloc sees Python's objects, and only those that are still there at the end: then
    what was allocated is what is in use. One recording at a time in a process.

    ```python
    recorder = MemoryRecorder()
    recorder.start(Path("mem"))
    ...
    profile = read(recorder.stop())
    ```
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._tracker: Tracker | None = None
        self._began = self._since = 0

    def start(self, base: Path) -> None:
        """Begin; ``base`` is the path of the file to come without its suffix. From the thread that stops it, too.

        Raises `ProfileError` if this process is being recorded already, or the file cannot be written.
        """
        if self._path is not None or tracemalloc.is_tracing():
            raise ProfileError("the memory of this process is being recorded already")
        self._began, self._since = time.time_ns(), time.monotonic_ns()
        if not has_memray():
            self._path = base.with_name(f"{base.name}.prof")
            tracemalloc.start(_DEPTH)
            return
        from memray import FileDestination, Tracker

        path = base.with_name(f"{base.name}.bin")
        try:
            tracker = Tracker(
                destination=FileDestination(path, overwrite=True, compress_on_exit=False),
                native_traces=False,
                follow_fork=False,
            )
            tracker.__enter__()
        except (OSError, RuntimeError) as error:
            raise ProfileError(f"memray cannot record the memory of process {os.getpid()}: {error}") from error
        self._path, self._tracker = path, tracker

    def stop(self) -> Path:
        """End, and return the file. Raises `ProfileError` if nothing is being recorded."""
        path, self._path = self._path, None
        if path is None:
            raise ProfileError("nothing is being recorded")
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.__exit__(None, None, None)
        else:
            snapshot = tracemalloc.take_snapshot()
            tracemalloc.stop()
            write(path, _of_snapshot(snapshot, self._began, time.monotonic_ns() - self._since))
        return path


def convert_memray(path: Path) -> Profile:
    """Read a file that memray wrote. Raises `ConfigError` if it cannot be read, or memray is not installed."""
    if not has_memray():
        raise ConfigError(f"{path} is a file of memray, which is not installed: pip install 'spool-queue[profile]'")
    from memray import AllocatorType, FileReader

    freeing = {int(AllocatorType.FREE), int(AllocatorType.MUNMAP), int(AllocatorType.PYMALLOC_FREE)}
    totals: Totals = {}
    try:
        with contextlib.closing(FileReader(path)) as reader:
            about = reader.metadata
            known: dict[tuple[int, int], list[int]] = {}
            for record in reader.get_allocation_records():
                if record.allocator in freeing:
                    continue
                key = (record.tid, record.stack_id)
                sums = known.get(key)
                if sums is None:
                    sums = known[key] = totals.setdefault(_place(record), [0, 0, 0, 0])
                sums[0] += record.n_allocations
                sums[1] += record.size
            for record in reader.get_leaked_allocation_records(merge_threads=False):
                sums = totals.setdefault(_place(record), [0, 0, 0, 0])
                sums[2] += record.n_allocations
                sums[3] += record.size
            began = round(about.start_time.timestamp() * 1e9)
            duration = round(about.end_time.timestamp() * 1e9) - began
            return _profile(totals, about.pid, began, duration)
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"memray cannot read {path}: {error}") from error


def _place(record: AllocationRecord) -> tuple[str, tuple[Frame, ...]]:
    # Without a limit, memray cuts as many calls off as were on the stack of whoever began to record.
    leaf_first = record.stack_trace(max_stacks=_ALL)
    # memray has the names of threads that began after its import.
    thread = record.thread_name or f"thread {record.tid}"
    return thread, tuple(Frame(*each) for each in reversed(leaf_first))


def _of_snapshot(snapshot: tracemalloc.Snapshot, began: int, duration: int) -> Profile:
    names = _Names()
    totals: Totals = {}
    for trace in snapshot.traces:
        stack = tuple(
            Frame(names.at(each.filename, each.lineno), each.filename, each.lineno) for each in trace.traceback
        )
        sums = totals.setdefault(("", stack), [0, 0, 0, 0])
        for index, value in enumerate((1, trace.size, 1, trace.size)):
            sums[index] += value
    return _profile(totals, os.getpid(), began, duration)


def _profile(totals: Totals, pid: int, began: int, duration: int) -> Profile:
    samples = [
        Sample(stack, tuple(sums), ({"thread": thread} if thread else {}) | {"pid": str(pid)})
        for (thread, stack), sums in totals.items()
    ]
    return Profile("memory", MEMORY_TYPES, samples, 1, duration, began)


class _Names:
    """The names of the functions in source files, which tracemalloc does not tell."""

    def __init__(self) -> None:
        self._files: dict[str, dict[int, str]] = {}

    def at(self, file: str, line: int) -> str:
        if file not in self._files:
            self._files[file] = _functions(file)
        return self._files[file].get(line, "<module>")


def _functions(file: str) -> dict[int, str]:
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[int, str] = {}
    for node in ast.walk(tree):  # from the outside to the inside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), node.name))
    return found
