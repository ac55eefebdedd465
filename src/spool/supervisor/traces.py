"""The memory of a fleet's worker processes, recorded while they work: the supervisor's side of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from spool.errors import ProfileError
from spool.supervisor.children import Child
from spool.supervisor.messages import Trace, Traced, Untrace

SLACK: Final = 5.0
"""Seconds that a memory profile may come later than its recording was to end."""
_READ: Final = 1_000_000
"""Bytes of a recording that are read in a second, some 400,000 allocations, where two processes compute beside."""
_LOOK: Final = 0.1
_STEP: Final = 65_536


class MemoryTraces:
    """Has worker processes record what they allocate (see `spool.profile.MemoryRecorder`): `Fleet.memory`.

    ```python
    fleet.memory.start(folder / "mem")
    ...
    profile = merge(map(read, fleet.memory.stop()))
    ```

    ``lock`` guards ``running``, which gives the processes that there are, and is told of each that ends.
    """

    def __init__(self, lock: threading.Condition, running: Callable[[], Iterable[Child]]) -> None:
        self._lock = lock
        self._running = running
        self._said: dict[Child, Traced | None] = {}

    def start(self, base: Path, timeout: float = 30.0) -> None:
        """Begin, in the processes that run now; returns when all do. The names of the files begin as ``base`` does.

        A busy process takes some seconds to load memray. Raises `ProfileError` as `stop` does.
        """
        with self._lock:
            self._said = dict.fromkeys(self._running())
            for child in self._said:
                child.tell(Trace(f"{base}-{child.pid}"))
            try:
                self._wait(timeout)
            except ProfileError:
                for child in self._said:
                    child.tell(Untrace())
                self._said = {}
                raise

    def stop(self, timeout: float = 30.0) -> list[Path]:
        """End, and return the files, once they are complete. A process that ended meanwhile leaves none.

        Raises `ProfileError` if a process could not record, or does not answer within ``timeout`` seconds.
        """
        with self._lock:
            self._said = dict.fromkeys(self._said)
            for child in self._said:
                child.tell(Untrace())
            try:
                return [Path(path) for path in self._wait(timeout)]
            finally:
                self._said = {}

    def record(self, base: Path, seconds: float, ended: threading.Event) -> tuple[list[Path], float]:
        """Record for so many seconds, or until ``ended`` is set; return the files, and for how long it was.

        Processes that allocate millions of times a second are recorded for less: reading takes longer than recording
        then, and what can be read by `SLACK` seconds after the end is enough. Raises `ProfileError` as `stop` does.
        """
        self.start(base)
        began = time.monotonic()
        sizes = {Path(f"{base}-{child.pid}.bin"): 0 for child in self._said}
        lasted = 0.0
        while lasted < seconds and lasted + sum(sizes.values()) / _READ < seconds + SLACK:
            if ended.wait(min(_LOOK, seconds - lasted)):
                break
            sizes = {path: _written(path, size) for path, size in sizes.items()}
            lasted = time.monotonic() - began
        return self.stop(), time.monotonic() - began

    def note(self, child: Child, said: Traced) -> None:
        """Take down what a process says."""
        with self._lock:
            if child in self._said:
                self._said[child] = said
                self._lock.notify_all()

    def _wait(self, timeout: float) -> list[str]:
        done = self._lock.wait_for(self._complete, timeout)
        said = [each for each in self._said.values() if each is not None]
        if not done:
            raise ProfileError(f"not all worker processes answered within {timeout:g} s")
        for each in said:
            if each.error:
                raise ProfileError(each.error)
        return [each.path for each in said]

    def _complete(self) -> bool:
        running = set(self._running())
        return all(said is not None or child not in running for child, said in self._said.items())


def _written(path: Path, known: int) -> int:
    """Return about how much memray has written into a file, which it makes longer beforehand: what follows is zeros."""
    try:
        with path.open("rb") as file:
            while any(os.pread(file.fileno(), 64, known)):
                known += _STEP
    except OSError:  # of a process that could not write it, or of tracemalloc
        pass
    return known
