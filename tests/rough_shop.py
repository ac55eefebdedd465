"""An app of tasks that do their worker harm. Its broker is the environment's SPOOL_URL."""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from spool import Spool, current_job
from spool.retry import Backoff

app = Spool()
pooled = Spool()
"""An app that has its worker keep a process pool as well."""

SOON = Backoff(base=0.01, cap=0.05)


def write(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line} {current_job().id} {os.getpid()} {time.monotonic_ns()}\n")


@app.task(backoff=SOON)
async def nap(path: str, seconds: float) -> int:
    write(path, "start")
    await asyncio.sleep(seconds)
    write(path, "end")
    return os.getpid()


@app.task(backoff=SOON, priority="critical")
async def faint(path: str) -> None:
    """Have the whole process stopped where it stands, once: what was claimed along with this has yet to begin."""
    if current_job().attempt == 1:
        write(path, "faint")
        stop_calmly(app.broker.url)


def stop_calmly(url: str) -> None:
    """Stop this process when it does not write to its SQLite file: who is stopped meanwhile holds up all others.

    Somebody else has to hold the lock until it has stopped: once it is free, a thread of this process may take it.
    """
    if url.startswith("sqlite"):
        subprocess.run([sys.executable, "-c", STOP, url.removeprefix("sqlite:///"), str(os.getpid())], check=True)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)


STOP = """
import os, pathlib, signal, sqlite3, sys, time
path, pid = sys.argv[1:]
file = sqlite3.connect(path, isolation_level=None, timeout=30)
file.execute("BEGIN IMMEDIATE")
os.kill(int(pid), signal.SIGSTOP)
stats = list(pathlib.Path("/proc", pid, "task").glob("*/stat"))
while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in stats):
    time.sleep(0.001)
file.execute("ROLLBACK")
"""


@app.task(backoff=SOON)
async def linger(path: str) -> int:
    """Take a minute if it is not interrupted, and no time when it runs again."""
    write(path, "start")
    await asyncio.sleep(60 if current_job().attempt == 1 else 0)
    write(path, "end")
    return os.getpid()


@pooled.task(process=True, backoff=SOON)
def linger_apart(path: str) -> int:
    """Go on for ever, whatever it is told, and take no time when it runs again."""
    write(path, "start")
    while current_job().attempt == 1:
        with suppress(asyncio.CancelledError):
            time.sleep(60)
    write(path, "end")
    return os.getpid()


pooled.task(backoff=SOON)(linger.fn)


@app.task(backoff=SOON)
async def ruin(path: str, how: str) -> None:
    """Take the worker process down."""
    write(path, "ruin")
    match how:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "memory":
            # What a limit of the container does: the kernel kills who takes too much.
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            hoard = []
            try:
                while True:
                    hoard.append(bytearray(1 << 24))
            except MemoryError:
                os.kill(os.getpid(), signal.SIGKILL)
        case "recursion":
            sys.setrecursionlimit(10**9)

            def deeper(n: int) -> int:
                return sum(map(deeper, [n + 1]))

            deeper(0)
        case _:
            raise ValueError(how)


@app.task(backoff=SOON)
async def block(path: str, seconds: float) -> int:
    """Block the event loop."""
    write(path, "start")
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point
    write(path, "end")
    return os.getpid()


@app.task(backoff=SOON)
async def hold(path: str, seconds: float) -> None:
    """Hold the interpreter, as some C extensions do, busy or not."""
    write(path, "start")
    end = time.monotonic() + seconds
    libc = ctypes.PyDLL(None)
    while time.monotonic() < end:
        libc.usleep(10_000)
        libc.qsort(ctypes.create_string_buffer(1 << 20), 1 << 20, 1, libc.strcmp)
    write(path, "end")


@app.task(timeout=0.5, retries=0)
async def stubborn(path: str) -> None:
    write(path, "start")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            write(path, "told")


@app.task(timeout=0.5, retries=0)
async def stuck(path: str) -> None:
    write(path, "start")
    time.sleep(60)  # noqa: ASYNC251 - that is the point


@app.task(timeout=0.5, retries=0)
def stuck_thread(path: str) -> None:
    write(path, "start")
    time.sleep(60)


@app.task(timeout=0.5, retries=0, max_crashes=1)
async def seize(path: str) -> None:
    """Hold the interpreter and never give it back."""
    write(path, "start")
    ctypes.PyDLL(None).sleep(60)


@app.task
async def wait_for_word(path: str) -> str:
    write(path, "start")
    try:
        await asyncio.sleep(60)
    finally:
        write(path, "told")
    return "never told"


@app.task
def look_for_word(path: str) -> None:
    write(path, "start")
    try:
        while not current_job().cancelled:
            time.sleep(0.001)
    finally:
        write(path, "told")


@app.task
async def delegate(path: str) -> None:
    """Wait for a thread that is not the worker's, and cannot be ended."""
    write(path, "start")
    await asyncio.to_thread(time.sleep, 60)
