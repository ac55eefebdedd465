"""ArdiQ: the worker's loop and its round trips in Rust, handlers in asyncio."""

import asyncio
import os
import time
from collections.abc import Sequence

import redis.asyncio as redis
import uvloop
from ardiq import Ardiq

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker, slots

PACKAGE = "ardiq"
GUARANTEE = "at least once; redelivered after 60 s"
SHARE = 0.25

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # its worker takes the policy that it finds
app = Ardiq(os.environ["PEERS_REDIS"], "bench", concurrency=slots(100))
store = redis.Redis.from_url(os.environ["PEERS_REDIS"])
notes = tally.here()
starts = notes.starts


@app.task(name="noop")
async def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@app.task(name="hold")
async def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    await asyncio.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


_WORKER = ["-m", "ardiq", "run", "benchmarks.peers.ardiq:app", "--quiet"]
WORKERS = {"": Worker("100 slots, prefetch 200, uvloop", _WORKER)}
KILLED = Worker("4 slots", _WORKER, slots=4)


async def send(number: int, *, held: bool = False) -> str:
    return (await (hold if held else noop).enqueue(DATA, number)).id


async def send_many(numbers: Sequence[int]) -> Sequence[str]:
    return [job.id for job in await app.enqueue_many([noop.prepare(DATA, number) for number in numbers])]


async def stored(ids: Sequence[str]) -> int:
    return await store.exists(*(f"ardiq:bench:task:results:{id}" for id in ids))


async def read(id: str) -> object:
    return (await app.result(id)).value
