"""The tasks of a run: ordinary ones, and those which are the fault. Each attempt is noted by the task itself.

The workers of a run load the target that `prepare` returns. It names the directory of the run, so that nothing has to
travel in the environment: a forkserver keeps its first one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from spool.app import Spool
from spool.chaos.journal import Ended, Ending, Journal, Life, Started
from spool.chaos.processes import ancestors, look
from spool.executor import current_job
from spool.executor.process import is_pool_process
from spool.retry import Backoff

QUEUES: Final = ("chaos", "chaos-too")
KEPT: Final = 7 * 86_400.0
"""Seconds that endings are kept: for the audit, also after a clock that was an hour ahead."""
SOON: Final = Backoff(base=0.05, cap=0.5)
MEMORY: Final = 256 * 2**20

Declare = Callable[[Callable[..., Any]], object]


class Setting(msgspec.Struct, frozen=True):
    """What the processes of a run have to know; a file in its directory."""

    url: str
    lease: float


def prepare(directory: Path, setting: Setting) -> str:
    """Write down what the workers have to know, and return the target that they are to load."""
    (directory / "setting.json").write_bytes(msgspec.json.encode(setting))
    return f"{__name__}:run_{os.fsencode(directory).hex()}"


def __getattr__(name: str) -> Any:
    if not name.startswith("run_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _app(Path(os.fsdecode(bytes.fromhex(name.removeprefix("run_")))))


@functools.cache
def _app(directory: Path) -> Spool:
    setting = msgspec.json.decode((directory / "setting.json").read_bytes(), type=Setting)
    return make(directory, setting)


def make(directory: Path, setting: Setting) -> Spool:
    """Return the app of a run: what workers serve and what producers enqueue."""
    app = Spool(setting.url, enqueue_timeout=setting.lease)
    notes = Notes(directory)
    _declare(app, notes, setting.lease)

    @app.lifespan
    @asynccontextmanager
    async def noting(_: Spool) -> AsyncGenerator[None]:
        if not is_pool_process():
            notes.begin_worker()
        yield

    return app


class Notes:
    """Where this process notes its attempts; a fork of it gets a file of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def begin_worker(self) -> None:
        """Say that this process is a worker's, in the journal and by a mark for those who want to kill one."""
        pid = os.getpid()
        me = look(pid)
        (self._directory / "lives" / str(pid)).write_text(str(me.born if me else 0))
        self._journal("worker")

    def _journal(self, role: Literal["worker", "pool"] = "pool") -> Journal:
        pid = os.getpid()
        found = _journals.get(pid)
        if found is None:
            _journals.clear()  # those of the parent, whose files it shares
            found = _journals[pid] = Journal(self._directory / f"handlers-{pid}.log")
            found.note(Life(pid, role, ancestors(), time.monotonic_ns()))
        return found

    @contextmanager
    def attempt(self) -> Generator[dict[str, int]]:
        """Note the start and the end of the attempt that runs here; yield what it is to return."""
        job, pid = current_job(), os.getpid()
        journal, id, number = self._journal(), job.id, job.attempt
        journal.note(Started(id, number, job.task, job.worker, pid, time.monotonic_ns()))
        how: Ending = "failed"
        try:
            yield {"attempt": number, "pid": pid}
            how = "ok"
        except asyncio.CancelledError:
            how = "cancelled"
            raise
        finally:
            journal.note(Ended(id, number, pid, time.monotonic_ns(), how))


_journals: dict[int, Journal] = {}


def _declare(app: Spool, notes: Notes, lease: float) -> None:
    attempt = notes.attempt

    async def quick() -> dict[str, int]:
        with attempt() as note:
            return note

    async def slow(seconds: float) -> dict[str, int]:
        with attempt() as note:
            await asyncio.sleep(seconds)
            return note

    def threaded(seconds: float) -> dict[str, int]:
        with attempt() as note:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.005)
            return note

    async def flaky(failures: int) -> dict[str, int]:
        with attempt() as note:
            if current_job().failures < failures:
                raise ConnectionError("not yet")
            return note

    async def block_loop() -> dict[str, int]:
        with attempt() as note:
            time.sleep(5 * lease)  # noqa: ASYNC251 - that is the fault
            return note

    def declare(**settings: Any) -> Declare:
        return cast("Declare", app.task(queue=QUEUES[0], backoff=SOON, result_ttl=KEPT, **settings))

    declare(name="quick")(quick)
    declare(name="slow")(slow)
    declare(name="threaded")(threaded)
    declare(name="pooled", process=True)(threaded)
    declare(name="flaky", retries=5)(flaky)
    declare(name="doomed", retries=1)(flaky)
    declare(name="block-loop")(block_loop)
    _declare_poisons(declare, attempt, lease)


def _declare_poisons(declare: Callable[..., Declare], attempt: Callable[[], Any], lease: float) -> None:
    """Declare what takes its process down, or would run for ever: each on the loop or in a thread, and in a process."""
    for name, do in (("segfault", _segfault), ("exit", _exit), ("recursion", _recurse), ("memory", _hoard)):

        def poison(do: Callable[[], None] = do) -> dict[str, int]:
            with attempt() as note:
                do()
                return dict(note)

        async def poison_on_loop(do: Callable[[], None] = do) -> dict[str, int]:
            with attempt() as note:
                await asyncio.sleep(0.01)
                do()
                return dict(note)

        declare(name=name, retries=1)(poison if name in ("recursion", "memory") else poison_on_loop)
        declare(name=f"{name}.process", retries=1, process=True)(poison)

    def stubborn() -> dict[str, int]:
        with attempt() as note:
            _outlive(lease)
            return dict(note)

    async def stubborn_on_loop() -> dict[str, int]:
        with attempt() as note:
            end = time.monotonic() + STUBBORN * lease
            while time.monotonic() < end:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)
            return dict(note)

    declare(name="stubborn", retries=0, timeout=lease)(stubborn_on_loop)
    declare(name="stubborn.thread", retries=0, timeout=lease)(stubborn)
    declare(name="stubborn.process", retries=0, timeout=lease, process=True)(stubborn)


STUBBORN: Final = 20
"""Leases after which a stubborn job ends by itself: long past everything that should have ended it."""

VARIANTS: Final = {
    "block-loop": ("block-loop",),
    "segfault": ("segfault", "segfault.process"),
    "exit": ("exit", "exit.process"),
    "recursion": ("recursion", "recursion.process"),
    "memory": ("memory", "memory.process"),
    "stubborn": ("stubborn", "stubborn.thread", "stubborn.process"),
}
"""The tasks by which a fault comes about."""


def _outlive(lease: float) -> None:
    end = time.monotonic() + STUBBORN * lease
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):  # whatever is thrown into it
            time.sleep(0.05)


def _segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _exit() -> None:
    os._exit(3)


def _recurse() -> None:
    """Recurse through C until the stack of the process is used up, or Python says that it is enough."""
    before = sys.getrecursionlimit()

    def deeper(depth: int) -> int:
        return max(map(deeper, [depth + 1]))

    try:
        sys.setrecursionlimit(10**8)
        deeper(0)
    finally:
        sys.setrecursionlimit(before)


def _hoard() -> None:
    """Allocate until the kernel says no, which an address space of its own limit makes it do soon."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    hoard: list[bytearray] = []
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        while len(hoard) < 4 * MEMORY // 2**20:
            hoard.append(bytearray(2**20))
        raise MemoryError("the limit did not hold")
    finally:
        hoard.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
