"""Who ends with whom: ties between a process and its parent or children that hold whatever either of them does."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys


def end_with(control: socket.socket) -> None:
    """End this process when the other end is gone, also in the middle of an import that takes long.

    A signal tells, since a thread would forbid to fork, and the kernel's own word of a parent's death comes from the
    thread that started us, which may end before its process.
    """
    ends = select.poll()
    ends.register(control, 0)  # for the end alone, which is told also while there is more to read

    def look(_signum: int, _frame: object) -> None:
        if ends.poll(0):
            os._exit(1)

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, fcntl.fcntl(control, fcntl.F_GETFL) | os.O_ASYNC)
    look(signal.SIGIO, None)  # it may be gone already


def outlive(control: socket.socket) -> None:
    """Take `end_with` back: from now on the end is read, and children get to end in order."""
    fcntl.fcntl(control, fcntl.F_SETFL, fcntl.fcntl(control, fcntl.F_GETFL) & ~os.O_ASYNC)
    signal.signal(signal.SIGIO, signal.SIG_DFL)


def adopt_orphans() -> None:
    """Have the kernel give us the processes that a killed child leaves behind, so that they are reaped.

    Else they are given to PID 1, which in a container is the supervisor, or another program that does not expect them.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, where there is such a kernel."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
