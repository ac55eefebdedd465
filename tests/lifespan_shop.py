"""An app with a lifespan, for processes of the pool. SPOOL_TEST_LOG names a file; one beside it breaks the lifespan."""

import asyncio
import os
import time
from pathlib import Path

from spool import Spool

app = Spool()
entered: list[str] = []


def is_broken() -> bool:
    return Path(os.environ["SPOOL_TEST_LOG"] + ".broken").exists()


def note(word: str) -> None:
    with Path(os.environ["SPOOL_TEST_LOG"]).open("a") as file:
        file.write(f"{word} {os.getpid()} {time.monotonic():.3f}\n")


@app.lifespan
async def model(_: Spool):
    note("try")
    if is_broken():
        raise OSError("no model")
    async with asyncio.TaskGroup():  # which must be left in the task that has entered it
        entered.append("model")
        note("in")
        yield
        note("out")


@app.task(process=True, retries=0, max_crashes=1)
def use() -> tuple[int, str]:
    return os.getpid(), " ".join(entered)
