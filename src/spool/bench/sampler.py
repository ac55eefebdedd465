"""Looks again and again at what each thread of some processes is doing, and what its worker waits for: a program.

Linux tells of each thread whether it runs (or could, had it a processor) or which system call it waits in; a file of
the worker's (`spool.bench.timing.Gauge`) tells what it has under way. Both are read at the same moment, from outside:
the worker does nothing for it, and a worker that holds its interpreter cannot hide that. py-spy knows lines of code
but neither what a waiting thread waits for, nor what the other threads do meanwhile.

Samples come at random intervals, so that they fall in step with nothing; each stands for the time since the one before.

They come from each processor in turn. From the interrupt to the look it takes some ten microseconds, in which whoever
is on the sampler's processor is held up, while a thread on another one goes on, until it needs what is held up. Of two
that take turns several times a millisecond, as an event loop and the thread of its store may, looks from one processor
find always the same one at work too often: a sum was off by 9 % with looks from the one's processor, by 14 % to the
other side with looks from the other's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self, cast

import msgspec

from spool.errors import ProfileError

INTERVAL: Final = 0.005
"""Seconds from one sample to the next, on average, if there are few threads to look at."""
SHARE: Final = 0.01
"""Of a processor, at most, the sampler takes from processes that never wait: to them each look is a delay."""
_MORE: Final = 0.02
"""And beyond that, from processes whose loops only wait: threads of theirs may compute meanwhile."""
_LATEST: Final = 20
"""Looks that count for what a look costs, and for how much the processes wait."""
_START_SECONDS: Final = 20.0
_END_SECONDS: Final = 20.0
_NUMBERS: Final = struct.Struct("4q")

RUNS: Final = "running"
_CALLS: Final[dict[str, dict[str, str]]] = {
    "x86_64": {
        **dict.fromkeys(("7", "23", "232", "270", "271", "281", "441"), "poll"),
        **dict.fromkeys(("35", "230"), "sleep"),
        **dict.fromkeys(("74", "75", "17", "18", "1", "0", "20", "76", "77", "72"), "file"),
        "202": "futex",
    },
    "aarch64": {
        **dict.fromkeys(("22", "72", "73", "441"), "poll"),
        **dict.fromkeys(("101", "115"), "sleep"),
        **dict.fromkeys(("82", "83", "67", "68", "64", "63", "66", "45", "46", "25"), "file"),
        "98": "futex",
    },
}
"""System calls by their numbers: those that wait for events, for a time, for a file, for a lock."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One look at one process. Times in nanoseconds."""

    pid: int
    at: int
    cpu: int
    """The main thread's time on a processor so far."""
    delay: int
    """The main thread's time so far in which it could have run, and no processor was free."""
    gauge: tuple[int, int, int, int]
    main: str
    """What the main thread does: "running", "poll", "sleep", "file", "lock" (a lock waited for without end), "gil" (a
    lock waited for in turns, as for the interpreter), or "other"."""
    others: dict[int, str]
    """The other threads that run or wait for the interpreter or a file, by their ids."""
    children: int
    """How many processes that descend from it run."""


def classify(text: str, calls: dict[str, str]) -> str:
    """Return what a thread does, given the text of its ``/proc/…/syscall``.

    CPython waits for the interpreter 5 ms at a time, and for other locks as long as it takes: the fourth argument of
    the futex call is where that time stands.

    >>> calls = {"202": "futex", "232": "poll"}
    >>> [classify(each, calls) for each in ("running", "232 0x3 0x7f", "202 0x7f 0x189 0x0 0x7c 0x0 0x0")]
    ['running', 'poll', 'gil']
    """
    number, *args = text.split()
    if number == "running":
        return RUNS
    kind = calls.get(number, "other")
    if kind != "futex":
        return kind
    return "gil" if len(args) > 3 and args[3] != "0x0" else "lock"


class _Process:
    """What is looked at of one process."""

    def __init__(self, pid: int, gauge: Path, calls: dict[str, str]) -> None:
        self._pid, self._calls = pid, calls
        self._threads: dict[int, int] = {}
        self._children: list[int] = []
        self._times = os.open(f"/proc/{pid}/task/{pid}/schedstat", os.O_RDONLY)
        self._gauge = os.open(gauge, os.O_RDONLY)
        self.look_around()

    def look_around(self) -> None:
        """Find threads and child processes that are new."""
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{self._pid}/task").iterdir():
                if int(task.name) not in self._threads:
                    self._threads[int(task.name)] = os.open(task / "syscall", os.O_RDONLY)
        if not self._children:
            for pid in _descendants(self._pid):
                with contextlib.suppress(OSError):
                    self._children.append(os.open(f"/proc/{pid}/task/{pid}/syscall", os.O_RDONLY))

    def look(self) -> Sample:
        """Return what it does now. Raises `OSError` when it is gone."""
        at = time.monotonic_ns()
        main = self._state(self._threads[self._pid])  # this first: see above what the time until then does
        gauge = cast("tuple[int, int, int, int]", _NUMBERS.unpack(os.pread(self._gauge, _NUMBERS.size, 0)))
        cpu, delay, _ = os.pread(self._times, 100, 0).split()
        others: dict[int, str] = {}
        for thread, file in list(self._threads.items()):
            if thread == self._pid:
                continue
            try:
                state = self._state(file)
            except OSError:
                os.close(self._threads.pop(thread))
                continue
            if state in (RUNS, "gil", "file"):
                others[thread] = state
        children = sum(self._runs(file) for file in self._children)
        return Sample(self._pid, at, int(cpu), int(delay), gauge, main, others, children)

    def _state(self, file: int) -> str:
        return classify(os.pread(file, 200, 0).decode(), self._calls)

    def _runs(self, file: int) -> bool:
        try:
            return self._state(file) == RUNS
        except OSError:
            return False


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found[1:]


def _go_first() -> None:
    """Have this process run as soon as it is to, where that is allowed.

    On a machine that is all taken, it would otherwise run when a processor becomes free, which is when the worker goes
    to sleep: then samples would find workers idle more often than they are.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.nice(-10)


def pause(cost: float, waits: float) -> float:
    """Return the seconds from one look to the next, by those a look takes and by the share of time the processes wait.

    Looks divide the time of those who wait. Where that is all of it, few looks make for a large error; where it is
    little, few are enough, and more would cost throughput.

    >>> [round(pause(0.0003, waits), 4) for waits in (0, 0.2, 0.5, 1)]
    [0.03, 0.0278, 0.02, 0.01]
    """
    return max(INTERVAL, cost / (SHARE + _MORE * waits**2))


class _Pace:
    """How long to pause, as looks go on."""

    def __init__(self) -> None:
        self._turns = 0
        self._cost, self._waits = 0.0, 1.0
        self._spent = time.thread_time()
        self._last: dict[int, Sample] = {}

    def after(self, looks: Iterable[Sample]) -> float:
        """Return the seconds until the looks that follow these, the latest ones."""
        self._turns += 1
        weight = 1 / min(self._turns, _LATEST)  # else a single dear look would be followed by a fifth of a second
        before, self._spent = self._spent, time.thread_time()
        self._cost += weight * (self._spent - before - self._cost)
        shares: list[float] = []
        for look in looks:
            if (last := self._last.get(look.pid)) is not None:
                busy = (look.cpu + look.delay - last.cpu - last.delay) / (look.at - last.at)
                shares.append(min(1.0, max(0.0, 1.0 - busy)))
            self._last[look.pid] = look
        if shares:
            self._waits += weight * (sum(shares) / len(shares) - self._waits)
        return pause(self._cost, self._waits)


def _move_to(processor: int) -> None:
    """Have the next look come from there, if it can."""
    with contextlib.suppress(OSError):  # it was taken from us meanwhile, or may not be chosen here
        os.sched_setaffinity(0, [processor])


def main(arguments: Sequence[str]) -> None:
    """Sample the processes PID… with their gauges in DIRECTORY until stdin ends, and write the samples to OUTPUT."""
    directory, output, *pids = arguments
    calls = _CALLS[platform.machine()]
    _go_first()
    processes = [_Process(int(pid), Path(directory, f"{pid}.gauge"), calls) for pid in pids]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    samples: list[Sample] = []
    processors = itertools.cycle(os.sched_getaffinity(0))
    for process in processes:
        with contextlib.suppress(OSError, ValueError):  # one that is gone is left out below
            process.look()  # a first look costs more than those that follow
    pace, seconds = _Pace(), INTERVAL
    for turn in itertools.count(1):
        _move_to(next(processors))
        if select.select([sys.stdin], [], [], seconds * random.uniform(0.5, 1.5))[0]:  # noqa: S311 - as it happens
            break
        seen = len(samples)
        for process in list(processes):
            try:
                samples.append(process.look())
                if turn % 10 == 0:
                    process.look_around()
            except (OSError, ValueError):
                processes.remove(process)
        seconds = pace.after(samples[seen:])
    Path(output).write_bytes(msgspec.msgpack.encode(samples))


class Sampler:
    """The sampler, as whoever wants its samples sees it. A context manager, which leaves no process behind.

    Raises `ProfileError` on entry if the processes cannot be read.
    """

    def __init__(self, pids: Iterable[int], directory: Path) -> None:
        self._pids = list(pids)
        self._directory = directory
        self._output = directory / "samples"
        self._process: subprocess.Popen[str] | None = None

    @staticmethod
    def missing() -> str:
        """Say why there can be no samples here, or nothing."""
        if sys.platform != "linux" or platform.machine() not in _CALLS:
            return f"{platform.system()} on {platform.machine()} does not tell what threads wait for"
        for name in ("syscall", "schedstat"):
            try:
                Path("/proc/self/task", str(os.getpid()), name).read_text()
            except OSError as error:
                return f"this kernel does not tell what threads wait for: {error}"
        return ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-P", "-c", f"import sys; from {__name__} import main; main(sys.argv[1:])"]
        self._process = subprocess.Popen(
            [*command, str(self._directory), str(self._output), *map(str, self._pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # a Ctrl-C is for us, who then end it in order
        )
        if self._process.stdout is None or not self._process.stdout.readline():
            _, said = self._process.communicate()
            reason = (said.strip().splitlines() or ["it says nothing"])[-1]
            raise ProfileError(f"what the workers wait for cannot be seen: {reason}")
        return self

    def stop(self) -> list[Sample]:
        """End, and return the samples. Raises `ProfileError`."""
        if self._process is None:
            raise ProfileError("nothing is being sampled")
        _, said = self._process.communicate(timeout=_END_SECONDS)
        if self._process.returncode:
            raise ProfileError(f"sampling failed: {said.strip()[-500:]}")
        return msgspec.msgpack.decode(self._output.read_bytes(), type=list[Sample])

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
