"""Tasks whose errors, results and arguments are hostile. The broker is the environment's SPOOL_URL."""

import asyncio

from spool import Spool
from tests.hostile import CORPUS

app = Spool()


@app.task(queue="hostile", retries=0)
async def echo(text: str) -> str:
    return text


@app.task(queue="hostile", retries=0)
async def fail(index: int) -> None:
    raise ValueError(CORPUS[index])


@app.task(queue="slow", retries=0)
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)
