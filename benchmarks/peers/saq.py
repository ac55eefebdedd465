"""SAQ: asyncio on Redis lists.

Its worker looks for stuck jobs as it starts, and one that it has just taken itself looks like one: it runs, but its
result is not stored. So we have it look before it begins; it does so again a minute later, which no run here reaches.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

import uvloop
from saq import Queue

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker, slots

PACKAGE = "saq"
GUARANTEE = "at least once with retries=2, as in the kill test (by default it is given up); looks every 60 s"
SHARE = 0.05

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # its worker takes the policy that it finds
queue = Queue.from_url(os.environ["PEERS_REDIS"], name="bench")
notes = tally.here()
starts = notes.starts


async def noop(context: dict[str, Any], *, data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


async def hold(context: dict[str, Any], *, data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    await asyncio.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


async def look(context: dict[str, Any]) -> None:
    await queue.sweep()


settings = {"queue": queue, "functions": [noop, hold], "concurrency": slots(50), "startup": look}
_WORKER = ["-m", "saq", "benchmarks.peers.saq.settings", "--quiet"]
WORKERS = {"": Worker("50 slots, uvloop", _WORKER)}
KILLED = Worker("4 slots", _WORKER, slots=4)


async def connect() -> None:
    await queue.connect()


async def send(number: int, *, held: bool = False) -> str:
    job = await queue.enqueue("hold" if held else "noop", data=DATA, number=number, ttl=3600, retries=2 if held else 1)
    assert job is not None
    return job.key


async def stored(ids: Sequence[str]) -> int:
    return sum(job is not None and job.status == "complete" for job in await queue.jobs(ids))


async def read(id: str) -> object:
    job = await queue.job(id)
    return job and job.result
