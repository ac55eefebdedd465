"""A worker process that is being profiled: its side of it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from spool.errors import SpoolError
from spool.supervisor.messages import Traced

_PR_SET_PTRACER: Final = 0x59616D61  # linux/prctl.h


def let_read(pid: int) -> None:
    """Let a process and its descendants read this process, where Linux forbids it to all but its ancestors (Yama)."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # without Yama it is not needed
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


def prepare(supervisor: int) -> None:
    """Make this process ready for profiles, before it has any threads.

    To load memray takes some hundred turns at the interpreter, and with 50 threads that compute each waits for 0.25 s.
    """
    let_read(supervisor)
    from spool.profile.memory import has_memray

    has_memray()


class Tracing:
    """Records this process's memory when it is told to, one recording at a time, and says what came of it.

    In a thread of its own: where all others compute it takes seconds until it begins, and whoever hears that the
    leases are kept must not wait for that.
    """

    def __init__(self, tell: Callable[[Traced], None]) -> None:
        self._tell = tell
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, base: Path) -> None:
        before, self._ended = self._thread, threading.Event()
        self._thread = threading.Thread(
            target=self._record, args=(base, before, self._ended), name="spool-tracing", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is None or not self._thread.is_alive():
            self._tell(Traced("", "it was not recording"))

    def _record(self, base: Path, before: threading.Thread | None, ended: threading.Event) -> None:
        from spool.profile import MemoryRecorder

        if before is not None:
            before.join()
        recorder = MemoryRecorder()
        try:
            with _often_asked():
                recorder.start(base)
            self._tell(Traced("", ""))
            ended.wait()
            self._tell(Traced(str(recorder.stop()), ""))
        except (SpoolError, OSError) as error:
            self._tell(Traced("", str(error)))


@contextlib.contextmanager
def _often_asked() -> Generator[None]:
    """Have threads that compute give way 50 times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 50)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
