"""An app for tests that need one which other processes can import. Its broker is the environment's SPOOL_URL."""

import asyncio
import os
import signal
import time
from pathlib import Path

from spool import Spool, current_job
from spool.errors import Cancel, Release, Retry
from spool.retry import Backoff

app = Spool()

SOON = Backoff(base=0.01, cap=0.05)


@app.task
async def add(a: int, b: int) -> int:
    return a + b


@app.task
async def note(path: str, seconds: float = 0.0) -> int:
    """Write a line when started, and another when through."""
    _write(path, f"start {current_job().id} {os.getpid()}")
    await asyncio.sleep(seconds)
    _write(path, f"end {current_job().id} {os.getpid()}")
    return os.getpid()


@app.task
def note_in_thread(path: str, seconds: float) -> None:
    _write(path, f"start {current_job().id} {os.getpid()}")
    time.sleep(seconds)
    _write(path, f"end {current_job().id} {os.getpid()}")


@app.task(backoff=SOON, retries=3)
async def flaky(path: str, failures: int) -> int:
    """Fail that many times, then return the number of the attempt."""
    _write(path, "attempt")
    if current_job().failures < failures:
        raise ConnectionError("not yet")
    return current_job().attempt


@app.task(process=True, backoff=SOON)
def where(say: str = "") -> tuple[int, str, str, int]:
    job = current_job()
    return os.getpid(), say or job.id, job.worker, job.attempt


@app.task(process=True, timeout=0.3, retries=0)
def hang(path: str, *, stubborn: bool) -> None:
    _write(path, f"start {os.getpid()}")
    while True:
        try:
            time.sleep(60)
        except asyncio.CancelledError:
            _write(path, "cancelled")
            if not stubborn:
                raise


@app.task(process=True)
def leave_slowly(path: str) -> None:
    """Note again and again that it is there; once told to end, go on for a while."""
    told = current_job().attempt - 1
    while told < 40:
        _write(path, f"{current_job().attempt} {os.getpid()}")
        try:
            time.sleep(0.005)
            told += bool(told)
        except asyncio.CancelledError:
            told = 1


@app.task(process=True, max_crashes=2, backoff=SOON)
def die(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


@app.task(process=True, retries=2, backoff=SOON, no_retry_on=KeyError)
def misbehave(how: str) -> object:
    match how:
        case "retry":
            raise Retry("later", delay=7)
        case "cancel":
            raise Cancel("enough")
        case "release":
            raise Release(delay=3)
        case "key":
            raise KeyError("k")
        case "value":
            raise ValueError("v" * 10_000)
        case "exit":
            raise SystemExit(4)
        case _:
            return object()


def _write(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(line + "\n")


def lines(path: Path, word: str = "") -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []
