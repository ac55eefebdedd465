"""An app with a lifespan that makes trouble: SPOOL_TEST_TROUBLE says which, SPOOL_TEST_LOG where it tells of it."""

import asyncio
import os
import time
from pathlib import Path

from spool import Spool

app = Spool()
TROUBLE = os.environ.get("SPOOL_TEST_TROUBLE", "")


def note(word: str) -> None:
    with Path(os.environ["SPOOL_TEST_LOG"]).open("a") as file:
        file.write(f"{word} {os.getpid()} {time.monotonic()}\n")


@app.lifespan
async def outer(_: Spool):
    yield
    note("out")


if TROUBLE == "misfit":

    @app.lifespan
    def misfit(_: Spool):
        return 1

else:

    @app.lifespan
    async def troubled(_: Spool):
        note("try")
        if TROUBLE == "raise":
            raise OSError("no database")
        if TROUBLE == "enter":
            await asyncio.sleep(1000)
        yield
        note("leave")
        if TROUBLE == "leave":
            await asyncio.sleep(1000)
        if TROUBLE == "deafly":
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    note("told")
        if TROUBLE == "raise at the end":
            raise OSError("no goodbye")


@app.task
async def work() -> None:
    note("work")
