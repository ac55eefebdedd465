"""An app whose tasks say something while they run. Its broker is the environment's SPOOL_URL."""

import asyncio
import contextvars
import logging
import os
import threading
import time
from pathlib import Path

from spool import Backoff, Spool, current_job

app = Spool()
logger = logging.getLogger("shop")

SOON = Backoff(base=0.01, cap=0.05)


def _say(name: str) -> None:
    job = current_job()
    logger.debug("not recorded")
    logger.info("hello %s", name)
    job.progress(1, 3, "began")
    logger.warning("attempt %d", job.attempt)


@app.task(record_logs=True)
async def in_loop(name: str, gate: str = "") -> None:
    _say(name)
    while gate and not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - the test opens it
        await asyncio.sleep(0.01)
    current_job().progress(3, 3, "done")


@app.task(record_logs=True)
def in_thread(name: str, gate: str = "") -> None:
    _say(name)
    _wait(gate)
    current_job().progress(3, 3, "done")


@app.task(record_logs=True, process=True)
def in_process(name: str, gate: str = "") -> None:
    _say(name)
    _wait(gate)
    current_job().progress(3, 3, "done")


@app.task(record_logs=True, process=True)
def leaves(gate: str, passed: str) -> None:
    """Leave a thread behind that says something when the gate opens, in this job's context."""

    def later() -> None:
        _wait(gate)
        logger.info("left behind")
        current_job().progress(99)
        Path(passed).touch()

    threading.Thread(target=contextvars.copy_context().run, args=(later,), daemon=True).start()


def _wait(gate: str) -> None:
    while gate and not Path(gate).exists():
        time.sleep(0.01)


@app.task(record_logs=True, backoff=SOON, retries=1)
async def fails(name: str) -> None:
    logger.info("trying %s", name)
    try:
        int(name)
    except ValueError:
        logger.exception("no luck")
    raise ValueError(name)


@app.task
async def quiet(name: str) -> None:
    logger.warning("unheard %s", name)


@app.task(record_logs=True)
async def chatty(lines: int) -> int:
    for number in range(lines):
        logger.info("line %d of a job that has much to say", number)
        if number % 100 == 0:
            await asyncio.sleep(0)
    return os.getpid()


@app.task
async def neighbour() -> float:
    return time.time()
