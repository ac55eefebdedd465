"""BlitzQ: asyncio on Redis streams; batches of claims, and results and acknowledgements committed in groups."""

import asyncio
import os
import time
from collections.abc import Sequence

import redis.asyncio as redis
import uvloop
from blitzq import Queue

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker

PACKAGE = "blitzq"
GUARANTEE = "at least once, no fence; redelivered after 60 s"
SHARE = 0.4

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # its worker takes the policy that it finds
queue = Queue("default", redis_url=os.environ["PEERS_REDIS"], mode="reliable")
store = redis.Redis.from_url(os.environ["PEERS_REDIS"])
notes = tally.here()
starts = notes.starts


@queue.task(name="noop")
async def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@queue.task(name="hold")
async def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    await asyncio.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


def _worker(slots: int) -> list[str]:
    return ["-m", "blitzq", "worker", "benchmarks.peers.blitzq:queue", "--log-level", "ERROR", "-c", str(slots)]


WORKERS = {"": Worker("reliable, 200 slots, uvloop", _worker(200))}
KILLED = Worker("reliable, 4 slots", _worker(4))


async def send(number: int, *, held: bool = False) -> str:
    return (await (hold if held else noop).enqueue(DATA, number)).id


async def send_many(numbers: Sequence[int]) -> Sequence[str]:
    return [handle.id for handle in await noop.enqueue_many([(DATA, number) for number in numbers])]


async def stored(ids: Sequence[str]) -> int:
    return await store.exists(*(f"blitzq:t:{id}" for id in ids))


async def read(id: str) -> object:
    return await queue.get_result(id, timeout=1)
