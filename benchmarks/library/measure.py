"""How one operation is measured: first its time, by pytest-benchmark; then, apart from that, what it allocates."""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ALLOCATION_CALLS: Final = 1_000
"""Operations over which allocations are counted, where a round has only one."""
MAX_ROUNDS: Final = 1_000


class Allocations:
    """What was allocated while it was recorded, as `go test -benchmem` counts: all that was asked for, freed or not.

    By memray, in every thread of this process, in C as well. What Python takes from its free lists (short tuples, list
    heads, floats) is no allocation. Where there is no memray (Windows), ``bytes`` and ``count`` stay None.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self.count: int | None = None

    @contextmanager
    def record(self) -> Iterator[None]:
        try:
            import memray
        except ImportError:
            yield
            return
        freed = {memray.AllocatorType[name] for name in ("FREE", "MUNMAP", "PYMALLOC_FREE")}
        with tempfile.TemporaryDirectory(prefix="spool-bench-") as directory:
            path = Path(directory) / "allocations"
            with memray.Tracker(path, trace_python_allocators=True):
                _unprofile()
                yield
            with memray.FileReader(path) as reader:
                sizes = [each.size for each in reader.get_allocation_records() if each.allocator not in freed]
        self.bytes, self.count = sum(sizes), len(sizes)


def _unprofile() -> None:
    """Take memray's profile function out of all threads. It has Python make an object of each frame: an allocation."""
    threading.setprofile(None)
    if sys.version_info >= (3, 12):
        threading.setprofile_all_threads(None)
        return
    api = ctypes.pythonapi
    for function in (api.PyInterpreterState_Get, api.PyInterpreterState_ThreadHead, api.PyThreadState_Next):
        function.restype = ctypes.c_void_p
    state = api.PyInterpreterState_ThreadHead(ctypes.c_void_p(api.PyInterpreterState_Get()))
    while state:
        api._PyEval_SetProfile(ctypes.c_void_p(state), None, None)  # noqa: SLF001 - 3.11 has no other
        state = api.PyThreadState_Next(ctypes.c_void_p(state))


def _repeat(operation: Callable[[], Any], times: int) -> None:
    for _ in itertools.repeat(None, times):  # which makes no numbers
        operation()


class Row:
    """A line of the table: what was measured of one benchmark, per operation."""

    def __init__(self, name: str, group: str, seconds: float, allocations: tuple[float, float] | None) -> None:
        self.name, self.group, self.seconds, self.allocations = name, group, seconds, allocations


class Measure:
    """Measures the operation of one benchmark. Every figure that is shown or stored is per operation."""

    def __init__(self, benchmark: BenchmarkFixture, config: pytest.Config, rows: list[Row]) -> None:
        self._benchmark, self._rows = benchmark, rows
        self._max_time = float(config.getoption("benchmark_max_time"))
        self._min_rounds = int(config.getoption("benchmark_min_rounds"))

    def each(self, operation: Callable[[], Any]) -> None:
        """Measure a function of this process: pytest-benchmark finds out how often to call it for a round."""
        self._benchmark(operation)
        self._finish(lambda: _repeat(operation, ALLOCATION_CALLS), ALLOCATION_CALLS)

    def rounds(self, prepare: Callable[[], Any], run: Callable[[Any], None], *, operations: int) -> None:
        """Measure rounds of so many operations. What ``prepare`` does and returns for each is not in the time."""
        rounds = 1
        if self._benchmark.enabled:
            given = prepare()
            began = time.perf_counter()
            run(given)
            rounds = math.ceil(self._max_time / (time.perf_counter() - began))
            rounds = min(max(rounds, self._min_rounds), MAX_ROUNDS)

        def setup() -> tuple[tuple[Any], dict[str, Any]]:
            if (stats := self._benchmark.stats) is not None:
                stats.iterations = operations  # a round is divided by it: all figures are per operation
            return (prepare(),), {}

        self._benchmark.pedantic(run, setup=setup, rounds=rounds)
        given = prepare() if self._benchmark.enabled else None
        self._finish(lambda: run(given), operations)

    def _finish(self, again: Callable[[], Any], operations: int) -> None:
        if not self._benchmark.enabled:
            return
        recorded = Allocations()
        with recorded.record():
            again()
        per_operation = None
        if recorded.bytes is not None and recorded.count is not None:
            per_operation = recorded.bytes / operations, recorded.count / operations
            self._benchmark.extra_info["bytes_per_op"] = round(per_operation[0], 1)
            self._benchmark.extra_info["allocs_per_op"] = round(per_operation[1], 2)
        stats = self._benchmark.stats.stats
        self._rows.append(Row(self._benchmark.name, self._benchmark.group or "", stats.median, per_operation))
