"""The demo's app: one job per file."""

from __future__ import annotations

from collections.abc import AsyncIterator

from spool import Backoff, Spool
from spool.demo.files import Facts, analyse, quiet_parser

QUEUE = "demo"

app = Spool("sqlite://:memory:")


@app.task(name="demo.analyse", queue=QUEUE, retries=1, backoff=Backoff(base=0.2))
def analyse_file(path: bytes) -> Facts:
    """Read one file. One that does not parse fails, is tried once more and then lies in the dead letter queue."""
    return analyse(path)


@app.lifespan
async def without_warnings(_: Spool) -> AsyncIterator[None]:
    with quiet_parser():
        yield
