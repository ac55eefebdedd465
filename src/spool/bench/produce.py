"""The producer of a benchmark: enqueues the jobs of a plan, and keeps which was sent when."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeAlias

from spool.app import Spool
from spool.bench.load import QUEUE
from spool.bench.plan import Plan
from spool.broker import Stats
from spool.task import Call, Configured

#: An open loop has two threads, so that a slow call does not hold up the next, and one more for so many calls a second.
_RATE_PER_THREAD = 1000
_MAX_THREADS = 16
_READY_SECONDS = 30.0
_SEED = 1
_LOOK_NS = 100_000_000

if TYPE_CHECKING:
    from spool.bench.load import BenchTask
    from spool.bench.usertask import Calls

    Sender: TypeAlias = BenchTask | Configured[[str, int], dict[str, bool]] | Calls


def _ignore() -> None:
    pass


class Producer:
    """Enqueues jobs numbered from 0 until the plan is fulfilled or the time is up; a number taken is a job sent."""

    def __init__(
        self, plan: Plan, app: Spool, tasks: Sequence[Sender], look: Callable[[], None] = _ignore, first: int = 0
    ) -> None:
        """``look`` is called some times a second while jobs are enqueued, from one thread at a time.

        Jobs are told their number and ``first``: where several producers follow one another, each its own.
        """
        self._plan, self._app, self._tasks, self._first = plan, app, tasks, first
        self._look = look
        self._random = random.Random(_SEED)  # noqa: S311 - for arrivals, the same in every run
        self._gaps = 0.0
        self._data = "x" * plan.payload
        self._ids = [""] * plan.jobs
        self._due = array("q", bytes(8 * plan.jobs))
        self._called = array("q", bytes(8 * plan.jobs))
        self._taken = 0
        self._stopped = False
        self._lock = threading.Lock()
        self.began = self.ended = 0
        """The first call and the last acknowledgement."""
        self.deadline = 0
        """When the time is up: ``max_seconds`` after the first call."""

    @property
    def ids(self) -> Sequence[str]:
        """By number, the ids of the jobs that the store acknowledged."""
        return self._ids[: self._taken]

    @property
    def called(self) -> Sequence[int]:
        """By number, when enqueue was called; CLOCK_MONOTONIC in ns."""
        return self._called[: self._taken]

    @property
    def due(self) -> Sequence[int]:
        """By number, when enqueue was to be called in an open loop; otherwise when it was."""
        return self._due[: self._taken] if self._plan.rate else self.called

    def run(self) -> None:
        """Enqueue, once connections are open and the task's signature has been read. Raises what enqueueing raises."""
        for task in self._tasks:
            task.call(self._data, 0)
        if self._plan.rate:
            self._open_loop()
        elif self._plan.producers:
            _run_in_loop(self._callers())
        else:
            self._app.broker.call(Stats(QUEUE))
            self._begin()
            self._app.enqueue_many(self._calls())
            self.ended = time.monotonic_ns()
        if self._taken:
            self.began = self.due[0]

    def warm_up(self) -> int:
        """Enqueue the jobs that do not count, numbered below 0, and return how many."""
        numbers = range(-1, -self._plan.warmup - 1, -1)
        return self._app.enqueue_many(self._task(number).call(self._data, number) for number in numbers)

    def postpone(self, nanoseconds: int) -> None:
        """Let all that was noted have happened later: what was enqueued waited for its turn, and for nobody's work."""
        self._called = array("q", [at + nanoseconds for at in self._called])
        self._due = array("q", [at + nanoseconds for at in self._due])
        self.began += nanoseconds
        self.ended += nanoseconds
        self.deadline += nanoseconds

    def _begin(self) -> None:
        self.began = time.monotonic_ns()
        self.deadline = self.began + int(self._plan.max_seconds * 1e9)

    def _calls(self) -> Iterator[Call]:
        tasks, data, ids, called, now = self._tasks, self._data, self._ids, self._called, time.monotonic_ns
        first = self._first
        calls = [task.call for task in tasks]
        pause = self.began
        for number in range(self._plan.jobs):
            at = now()
            if at > pause:
                self._look()
                at = now()
                if at > self.deadline:
                    return
                pause = min(self.deadline, at + _LOOK_NS)
            called[number] = at
            made = calls[number % len(calls)](data, first + number)
            ids[number] = made.job.id
            self._taken = number + 1
            yield made

    async def _callers(self) -> None:
        async def caller() -> None:
            while self._taken < self._plan.jobs and (at := time.monotonic_ns()) < self.deadline:
                number = self._taken
                self._taken += 1
                self._called[number] = at
                self._ids[number] = (await self._task(number).aenqueue(self._data, self._first + number)).id

        callers = range(self._plan.producers)
        try:
            await asyncio.gather(*(self._app.broker.acall(Stats(QUEUE)) for _ in callers))
            self._begin()
            looking = asyncio.create_task(self._keep_looking())
            try:
                await asyncio.gather(*(caller() for _ in callers))
                self.ended = time.monotonic_ns()
            finally:
                looking.cancel()
        finally:
            await self._app.aclose()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_NS / 1e9)
            await asyncio.to_thread(self._look)  # which may ask the store, and wait for its answer

    def _open_loop(self) -> None:
        threads = min(_MAX_THREADS, 2 + int(self._plan.rate / _RATE_PER_THREAD))
        with ThreadPoolExecutor(threads, "spool-bench") as pool:
            try:
                ready = threading.Barrier(threads, self._begin)
                callers = [pool.submit(self._paced_caller, ready) for _ in range(threads)]
                while wait(callers, _LOOK_NS / 1e9, FIRST_EXCEPTION).not_done:
                    self._look()
                    if any(caller.done() and caller.exception() for caller in callers):
                        break
                for caller in callers:
                    caller.result()
                self.ended = time.monotonic_ns()
            finally:
                self._stopped = True  # on an error or Ctrl-C the others stop as well

    def _paced_caller(self, ready: threading.Barrier) -> None:
        self._app.broker.call(Stats(QUEUE))
        ready.wait(_READY_SECONDS)
        while (number := self._take_due()) is not None:
            if (wait := self._due[number] - time.monotonic_ns()) > 0:
                time.sleep(wait / 1e9)
            self._called[number] = time.monotonic_ns()
            self._ids[number] = self._task(number).enqueue(self._data, self._first + number).id

    def _take_due(self) -> int | None:
        with self._lock:
            number = self._taken
            due = self.began + int(self._gaps * 1e9)
            if self._stopped or number == self._plan.jobs or max(due, time.monotonic_ns()) > self.deadline:
                return None
            self._due[number] = due
            self._taken += 1
            even = self._plan.arrivals == "even"
            self._gaps = (
                self._taken / self._plan.rate if even else self._gaps + self._random.expovariate(self._plan.rate)
            )
            return number

    def _task(self, number: int) -> Sender:
        return self._tasks[number % len(self._tasks)]


def _run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
