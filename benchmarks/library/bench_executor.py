"""What the executor adds to a job, between its claim and its settlement: no broker takes part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.library.measure import Measure
from benchmarks.library.tasks import app, in_process, in_thread, on_loop
from spool import Task
from spool.broker import Done
from spool.executor import Executor, Run
from spool.executor.pool import Processes

SLOTS = 100
"""Jobs at once: what a worker process has by default."""
IN_PROCESSES = 20
"""Jobs of a round for a pool of one process, which runs them one by one."""


class Harness:
    """Gives an executor the jobs of a round as a worker does, all that were claimed at once."""

    def __init__(self, loop: asyncio.Runner, processes: Processes | None = None) -> None:
        self._runner = loop
        self._processes = processes
        self._left = 0
        loop.run(self._open())

    async def _open(self) -> None:
        self._executor = Executor(app, "bench:1", threads=SLOTS, processes=self._processes)
        self._intake = self._executor.intake("default", self._finish)

    def _finish(self, run: Run) -> None:
        if not isinstance(run.settlement, Done):
            raise AssertionError(run.settlement)  # noqa: TRY004 - it is no matter of types
        self._left -= 1
        if not self._left:
            self._ended.set()

    def run(self, jobs: list[tuple[str, bytes]]) -> None:
        self._runner.run(self._round(jobs))

    async def _round(self, jobs: list[tuple[str, bytes]]) -> None:
        self._left, self._ended = len(jobs), asyncio.Event()
        offset = int(time.time() * 1000) - time.monotonic_ns() // 1_000_000
        for id, body in jobs:
            self._intake.start(id, 1, body, "", offset)
        async with asyncio.timeout(30):
            await self._ended.wait()

    def close(self) -> None:
        self._executor.close()


@pytest.fixture
def harness(loop: asyncio.Runner) -> Iterator[Harness]:
    harness = Harness(loop)
    yield harness
    harness.close()


@pytest.fixture
def pooled(loop: asyncio.Runner) -> Iterator[Harness]:
    """Give a harness with a warm process."""

    async def start() -> Processes:
        processes = Processes("benchmarks.library.tasks:app", 1)
        await processes.start()
        return processes

    processes = loop.run(start())
    harness = Harness(loop, processes)
    yield harness
    harness.close()

    async def stop() -> None:
        await processes.aclose(5)

    loop.run(stop())


def jobs(task: Task[..., Any, Any], data: str, count: int) -> list[tuple[str, bytes]]:
    calls = [task.call(data, number) for number in range(count)]
    return [(call.job.id, call.job.record) for call in calls]


@pytest.mark.benchmark(group="executor")
def bench_async(measure: Measure, harness: Harness, data: str) -> None:
    measure.rounds(lambda: jobs(on_loop, data, SLOTS), harness.run, operations=SLOTS)


@pytest.mark.benchmark(group="executor")
def bench_thread(measure: Measure, harness: Harness, data: str) -> None:
    measure.rounds(lambda: jobs(in_thread, data, SLOTS), harness.run, operations=SLOTS)


@pytest.mark.benchmark(group="executor")
def bench_process(measure: Measure, pooled: Harness, data: str) -> None:
    measure.rounds(lambda: jobs(in_process, data, IN_PROCESSES), pooled.run, operations=IN_PROCESSES)
