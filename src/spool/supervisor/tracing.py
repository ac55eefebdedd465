"""A worker process that is being profiled: its side of it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spool.errors import SpoolError

if TYPE_CHECKING:
    from spool.profile import MemoryRecorder

_PR_SET_PTRACER: Final = 0x59616D61  # linux/prctl.h


def let_read(pid: int) -> None:
    """Let a process and its descendants read this process, where Linux forbids it to all but its ancestors (Yama)."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # without Yama it is not needed
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


class Tracing:
    """Records this process's memory when it is told to. From one thread only."""

    def __init__(self) -> None:
        self._recorder: MemoryRecorder | None = None

    def start(self, base: Path) -> str:
        """Begin, and return what went wrong."""
        from spool.profile import MemoryRecorder

        recorder = MemoryRecorder()
        try:
            recorder.start(base)
        except SpoolError as error:
            return str(error)
        self._recorder = recorder
        return ""

    def stop(self) -> tuple[str, str]:
        """End, and return the file's path and what went wrong."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return "", "it was not recording"
        try:
            return str(recorder.stop()), ""
        except (SpoolError, OSError) as error:
            return "", str(error)
