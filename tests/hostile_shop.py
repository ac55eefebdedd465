"""Tasks whose arguments, results, errors and log lines are hostile. The broker is the environment's SPOOL_URL."""

import asyncio
import logging

from spool import Spool, current_job
from tests.hostile import CORPUS

app = Spool()


@app.task(queue="hostile", retries=0, record_logs=True)
async def echo(text: str) -> str:
    logging.getLogger("hostile").warning("%s", text[:5000])
    current_job().progress(1, 2, text[:200])
    return text


@app.task(queue="hostile", retries=0)
async def fail(index: int) -> None:
    raise ValueError(CORPUS[index])


@app.task(queue="slow", retries=0)
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)
