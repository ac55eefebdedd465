"""Processes of a run: started so that they end with it, and found by what the system says of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

_PROC: Final = Path("/proc")

# Dies with its parent even when that is killed: set in a fresh interpreter that then becomes the program, since a
# preexec_fn runs Python in a fork of a process that has threads. Kept across exec by the kernel.
_LEASH: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent died first")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def spawn(
    command: Sequence[str], log: Path, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in a session, and so a process group, of its own; what it prints is appended to ``log``.

    From the main thread of Linux it is killed when this process ends, however that ends.
    """
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        command = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command]
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


class Process(msgspec.Struct, frozen=True):
    """A process as /proc shows it. ``born`` is in the kernel's ticks since boot, and with the pid names it for good."""

    pid: int
    parent: int
    group: int
    state: str
    born: int


def look(pid: int) -> Process | None:
    """Return what there is to know of a process; None when it is gone, or where there is no /proc."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The program's name, in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    return Process(pid, int(fields[1]), int(fields[2]), fields[0], int(fields[19]))


def group(pgid: int) -> list[Process]:
    """Return the living processes of a group; zombies are none."""
    found: list[Process] = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            process = look(int(entry.name))
            if process is not None and process.group == pgid and process.state not in "ZX":
                found.append(process)
    return found


def below(pid: int, processes: Sequence[Process]) -> list[int]:
    """Return a process and its descendants among ``processes``."""
    found = [pid]
    for one in found:
        found += [each.pid for each in processes if each.parent == one]
    return found


def ancestors(most: int = 8) -> list[int]:
    """Return the pids of this process's ancestors, the nearest first."""
    found = [os.getppid()]
    while len(found) < most and (process := look(found[-1])) is not None and process.parent > 1:
        found.append(process.parent)
    return found


def send(pid: int, signum: int) -> bool:
    """Send a signal to a process; False when there is none."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def send_group(pgid: int, signum: int) -> bool:
    """Send a signal to a group; False when there is none."""
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end(process: subprocess.Popen[bytes], timeout: float) -> int:
    """Ask a process to end, wait, and kill its group when it has not; return its exit code."""
    send(process.pid, signal.SIGTERM)
    send_group(process.pid, signal.SIGCONT)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        code = None
    send_group(process.pid, signal.SIGKILL)
    return process.wait() if code is None else code


def find_faketime() -> Path | None:
    """Return libfaketime, if it is installed: from FAKETIME_LIBRARY, or where distributions put it."""
    with contextlib.suppress(OSError):
        if (given := os.environ.get("FAKETIME_LIBRARY")) and Path(given).exists():
            return Path(given)
        roots = [Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib")]
        if program := shutil.which("faketime"):
            roots.append(Path(program).parent.parent / "lib")
        for root in roots:
            for pattern in ("faketime/libfaketimeMT.so.1", "*/faketime/libfaketimeMT.so.1"):
                if found := sorted(root.glob(pattern)):
                    return found[0]
    return None
