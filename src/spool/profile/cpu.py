"""CPU profiles of running processes, by py-spy.

py-spy reads the stacks out of the memory of another process: nothing runs inside of it, no thread escapes, and the
stack of a thread with an event loop is that of the task that runs. (What a waiting task waits for is on no stack, for
any profiler.) Profilers that run inside the process, as pyinstrument does, see one thread, and cost the most when there
is most to see.

py-spy tells which threads run or which are there, but not both at once, so that there are two of it for each process.

The one that looks at threads that run has the process pause meanwhile. It first asks the system which of them run, and
reads the stacks thereafter, up to half a millisecond later. A worker of short jobs that goes on meanwhile is asleep by
then in every third look, or its coroutine has returned: 3 % of such a worker's time was in encoding results, where a
timer around the function has 16 %, and looks at a worker that pauses 13 %. A pause takes 0.7 ms for a worker with a
handful of threads. With a hundred it takes 7, of a worker that hands its jobs to threads and so does fewer: that one
does not pause.

The one that looks at all threads never has them pause, since what waits does not change. Where a process is not paused,
a coroutine may return while its callers are being looked up, which are then missing: see `mend`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from spool.errors import ConfigError, ProfileError
from spool.profile.model import CPU_TYPES, Frame, Profile, Sample, merge

RATE: Final = 30
"""Looks in a second at threads that run, and at all: pauses take 2 % of a worker's time, py-spy 4 % of a processor."""
LIMIT: Final = 3600
"""Seconds after which a recording ends by itself, if whoever began it is gone."""

_MOST_PAUSED: Final = 16
"""A process with more threads is not paused."""
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 30.0
_BUSY: Final = b"Sampling process"
_FRAME: Final = re.compile(r"(.*) \((.*?)(?::(\d+))?\)", re.DOTALL)
_THREAD: Final = re.compile(r"thread \((\w+)\)(?:: (.*))?", re.DOTALL)

_MAIN: Final = "MainThread"
UNKNOWN: Final = Frame("[unknown]", "", 0)
"""In place of a stack of which nothing could be read."""

Place = tuple[str, str]
"""A function and its file."""
Stacks = Counter[tuple[str, tuple[Frame, ...]]]
"""How often each stack of each thread was seen. Threads are named as py-spy does, with a number: names repeat."""


class CpuRecorder:
    """Records where the threads of processes spend their time.

    ```python
    recorder = CpuRecorder(pids)
    recorder.start()
    ...
    profile = recorder.stop()
    ```

    Of this user's processes those may be recorded that the system lets us read; root may record any. As a context
    manager it leaves no process behind. ``pause=False`` is for processes that are about to start many threads; those
    that have many are not paused anyway.
    """

    def __init__(self, pids: Sequence[int], rate: int = RATE, *, pause: bool = True) -> None:
        if not pids:
            raise ConfigError("there is no process to record")
        if not 1 <= rate <= 1000:
            raise ConfigError(f"the rate must be 1 to 1,000 samples a second, not {rate}")
        self._pids = tuple(pids)
        self._rate = rate
        self._pause = pause
        self._spies: list[_Spy] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def start(self) -> None:
        """Begin; returns when all processes are being recorded, within a second as a rule.

        A process that ended meanwhile is left out. Raises `ConfigError` if py-spy is not installed, and `ProfileError`
        if it may not read a process or there is none any more.
        """
        program = find_spy()
        self._folder = tempfile.TemporaryDirectory(prefix="spool-profile-")
        folder = Path(self._folder.name)
        try:
            for pid in self._pids:
                pause = self._pause and _may_pause(pid)
                self._spies.append(_Spy(program, pid, self._rate, folder, idle=False, pause=pause))
                self._spies.append(_Spy(program, pid, self._rate, folder, idle=True, pause=False))
            self._spies = [spy for spy in self._spies if spy.wait_until_busy()]
        except BaseException:
            self._clear()
            raise
        if not self._spies:
            self._clear()
            raise ProfileError(f"no process to record is there: {', '.join(map(str, self._pids))}")

    def stop(self) -> Profile:
        """End, and return what was recorded. Raises `ProfileError` if there is nothing to end, or it does not."""
        if not self._spies:
            raise ProfileError("nothing is being recorded")
        try:
            for spy in self._spies:
                spy.ask_to_stop()
            for spy in self._spies:
                spy.wait()
            return merge(self._profile_of(pid) for pid in dict.fromkeys(spy.pid for spy in self._spies))
        finally:
            self._clear()

    def _profile_of(self, pid: int) -> Profile:
        period = 1_000_000_000 // self._rate
        spies = [spy for spy in self._spies if spy.pid == pid]
        running, present = mend(
            *(sum((spy.stacks() for spy in spies if spy.idle is idle), Stacks()) for idle in (False, True))
        )
        elapsed = max(spy.elapsed for spy in spies)
        wall = _wall_period(present, elapsed, period) if all(spy.lasted for spy in spies) else period
        spent = _spent(running, next((spy.processor for spy in spies if not spy.idle), None))
        samples = [
            Sample(
                stack,
                (
                    running[thread, stack],
                    round(running[thread, stack] * spent(thread, period)),
                    present[thread, stack] * wall,
                ),
                {"thread": _name(thread), "pid": str(pid)},
            )
            for thread, stack in dict.fromkeys((*present, *running))
        ]
        return Profile("cpu", CPU_TYPES, samples, period, elapsed, min(spy.began for spy in spies))

    def _clear(self) -> None:
        for spy in self._spies:
            spy.kill()
        self._spies = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def find_spy() -> str:
    """Return the path of py-spy's program. Raises `ConfigError` if it is not installed."""
    found = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if found is None:
        raise ConfigError("CPU profiles need py-spy: pip install 'spool-queue[profile]'")
    return found


class _Spy:
    """One py-spy: it records the threads of a process that run, or, ``idle``, all of them."""

    def __init__(self, program: str, pid: int, rate: int, folder: Path, *, idle: bool, pause: bool) -> None:
        self.pid, self.idle = pid, idle
        self.began = self.elapsed = 0
        self.lasted = False
        """Whether the process was there to the end."""
        self.processor: tuple[int, int] | None = None
        """How long its main thread was on a processor meanwhile, and how long all others were, where that is known."""
        self._since = 0
        self._before: tuple[int, int] | None = None
        self._output = folder / f"{pid}-{idle:d}.txt"
        self._log = folder / f"{pid}-{idle:d}.log"
        command = [program, "record", "--pid", str(pid), "--rate", str(rate), "--duration", str(LIMIT)]
        command += ["--format", "raw", "--output", str(self._output)]
        command += ["--threads", "--full-filenames", *(["--idle"] if idle else [])]
        command += [] if pause else ["--nonblocking"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith("RUST_")},
                process_group=0,  # a Ctrl-C is for us, who then end it in order
            )

    def wait_until_busy(self) -> bool:
        """Wait until it records; False if the process is gone. Raises `ProfileError`."""
        deadline = time.monotonic() + _START_SECONDS
        while _BUSY not in self._log.read_bytes():
            if self._process.poll() is not None:
                if _is_gone(self.pid):
                    return False
                raise ProfileError(_explain(self.pid, self._log.read_text(errors="replace")))
            if time.monotonic() > deadline:
                raise ProfileError(f"py-spy did not begin to record process {self.pid} within {_START_SECONDS:g} s")
            time.sleep(0.01)
        self.began, self._since, self._before = time.time_ns(), time.monotonic_ns(), _processor_time(self.pid)
        return True

    def ask_to_stop(self) -> None:
        self.elapsed = time.monotonic_ns() - self._since
        self.lasted = self._process.poll() is None
        if self.lasted:
            self._process.send_signal(signal.SIGINT)
        if self._before and (after := _processor_time(self.pid)):
            self.processor = (after[0] - self._before[0], after[1] - self._before[1])

    def wait(self) -> None:
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ProfileError(f"py-spy did not write what it recorded of process {self.pid}") from None

    def stacks(self) -> Stacks:
        """Return what it wrote: nothing if the process ended before there was a sample."""
        found = Stacks()
        with contextlib.suppress(FileNotFoundError):
            for thread, stack, count in parse(self._output.read_text("utf-8", "surrogateescape")):
                found[thread, stack] += count
        return found

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def parse(text: str) -> Iterator[tuple[str, tuple[Frame, ...], int]]:
    """Yield thread, stack and count of each line of py-spy's raw format.

    >>> list(parse("thread (7): MainThread;<module> (/app/shop.py:3);sell (/app/shop.py:9) 12"))[0][1][1]
    Frame(function='sell', file='/app/shop.py', line=9)
    """
    frames: dict[str, Frame] = {}
    for line in text.splitlines():
        head, _, count = line.rpartition(" ")
        thread, *stack = head.split(";")
        for part in stack:
            if part not in frames:
                frames[part] = _frame(part)
        yield thread, tuple(frames[part] for part in stack), int(count)


def mend(*recordings: Stacks) -> list[Stacks]:
    """Give stacks whose callers are missing those that the same function has most often in the same thread.

    A stack is whole if it begins where most of its thread's do.
    """
    roots: dict[str, Counter[Place]] = defaultdict(Counter)
    for thread, stack, count in _each(recordings):
        roots[thread][_place(stack[0])] += count
    whole = {thread: max(counts, key=counts.__getitem__) for thread, counts in roots.items()}
    callers: dict[tuple[str, Place], Counter[tuple[Frame, ...]]] = defaultdict(Counter)
    for thread, stack, count in _each(recordings):
        if _place(stack[0]) == whole[thread]:
            for depth, frame in enumerate(stack):
                callers[thread, _place(frame)][stack[:depth]] += count
    return [_mended(each, whole, callers) for each in recordings]


def _mended(
    found: Stacks, whole: dict[str, Place], callers: dict[tuple[str, Place], Counter[tuple[Frame, ...]]]
) -> Stacks:
    mended = Stacks()
    for (thread, stack), count in found.items():
        full = stack or (UNKNOWN,)
        if stack and _place(stack[0]) != whole[thread] and (known := callers.get((thread, _place(stack[0])))):
            full = max(known, key=known.__getitem__) + stack
        mended[thread, full] += count
    return mended


def _each(recordings: Sequence[Stacks]) -> Iterator[tuple[str, tuple[Frame, ...], int]]:
    return ((thread, stack, count) for found in recordings for (thread, stack), count in found.items() if stack)


def _place(frame: Frame) -> Place:
    return frame.function, frame.file


def _frame(text: str) -> Frame:
    found = _FRAME.fullmatch(text)
    return Frame(found[1], found[2], int(found[3] or 0)) if found else Frame(text, "", 0)


def _name(thread: str) -> str:
    found = _THREAD.fullmatch(thread)
    return (found[2] or f"thread {found[1]}") if found else thread


def _wall_period(present: Stacks, elapsed: int, nominal: int) -> int:
    """Return the nanoseconds that a sample of a thread that is there stands for.

    py-spy takes its samples at random times, and fails to take some. A process has at least one thread that is there
    from start to end, which tells how many there were.
    """
    threads: Counter[str] = Counter()
    for (thread, _), count in present.items():
        threads[thread] += count
    most = max(threads.values(), default=0)
    return elapsed // most if most >= 10 else nominal


def _spent(running: Stacks, known: tuple[int, int] | None) -> Callable[[str, int], float]:
    """Return what tells how many nanoseconds a sample of a thread stands for, given the nominal ones.

    The kernel knows how long the main thread was on a processor, and how long all others were. Samples only divide it:
    they come at random times, py-spy takes who waits for a processor for one that has it, and of who has just been
    woken up by a pause it finds one in a hundred.
    """
    counts: Counter[bool] = Counter()
    for (thread, _), count in running.items():
        counts[_name(thread) == _MAIN] += count
    if known is None or not counts[True]:
        return lambda _, nominal: nominal
    each = {main: time / counts[main] if counts[main] else 0.0 for main, time in zip((True, False), known, strict=True)}
    return lambda thread, _: each[_name(thread) == _MAIN]


def _processor_time(pid: int) -> tuple[int, int] | None:
    """Return how many nanoseconds a process's main thread has had a processor, and all others; None if none knows."""
    try:
        main = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])
        fields = _stat(pid)
    except OSError:
        return None
    every = (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return main, max(0, every - main)


def _may_pause(pid: int) -> bool:
    """Return whether a pause of the process is short, and not one within another: py-spy fails at a stopped process."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        state = _stat(pid)[0]
    except OSError:  # gone, or a system that pauses all threads at once
        return True
    return len(tasks) <= _MOST_PAUSED and state not in {"T", "t"}


def _stat(pid: int) -> list[str]:
    # The program's name, in parentheses, may hold anything, also what is no UTF-8.
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _explain(pid: int, log: str) -> str:
    lowered = log.lower()
    if "permission denied" in lowered or "not permitted" in lowered:
        return (
            f"py-spy is not allowed to read process {pid}: run it as root, give it the capability CAP_SYS_PTRACE "
            "(docker run --cap-add SYS_PTRACE), or allow it for one user's processes with the sysctl "
            "kernel.yama.ptrace_scope=0"
        )
    if "requires root" in lowered:
        return f"py-spy cannot read process {pid}: on macOS it has to run as root"
    reason = next((line for line in reversed(log.splitlines()) if line.strip()), "it says nothing")
    return f"py-spy cannot record process {pid}: {reason.strip()}"
