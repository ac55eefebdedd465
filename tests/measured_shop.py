"""Tasks that the tests measure as a user would measure their own."""

import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from spool import Spool, current_job
from spool.retry import Backoff

# A broker that cannot be reached: what is measured never runs on the user's own.
app = Spool("redis://127.0.0.1:1/0")
opened: list[bool] = []
placed: list[bool] = []


@app.lifespan
@asynccontextmanager
async def opening(_: Spool) -> AsyncGenerator[None]:
    opened.append(True)
    yield


@app.task
async def add(a: int, b: int = 1) -> int:
    assert opened, "the lifespan did not run"
    return a + b


@app.task
def in_thread(seconds: float) -> None:
    time.sleep(seconds)


@app.task(process=True)
def in_process(text: str) -> str:
    return text.upper()


@app.task(retries=2, backoff=Backoff(base=0.01, cap=0.02))
async def third_time_lucky() -> int:
    attempt = current_job().attempt
    if attempt < 3:
        raise ValueError(attempt)
    return attempt


@app.task(retries=1, backoff=Backoff(base=0.01, cap=0.02))
def refusing() -> None:
    raise ValueError


not_a_task = 7


@app.task(process=True)
def in_process_for(seconds: float) -> None:
    time.sleep(seconds)


@app.task
async def blocking(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - the mistake that the breakdown is to find


@app.task
async def apart() -> None:
    """Put the event loop on one processor, and the other threads of its process on another."""
    if not placed:
        placed.append(True)
        place()


def place() -> None:
    processors = sorted(os.sched_getaffinity(0))
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), [processors[0 if int(task.name) == os.getpid() else -1]])
