"""streaQ: anyio on Redis streams."""

import json
import os
import time
from collections.abc import Sequence
from datetime import timedelta

import anyio
import streaq

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker, slots

PACKAGE = "streaq"
GUARANTEE = "at least once; redelivered after 60 s"
SHARE = 0.02

worker = streaq.Worker(
    redis_url=os.environ["PEERS_REDIS"],
    queue_name="bench",
    concurrency=slots(100),
    serializer=json.dumps,
    deserializer=json.loads,
    anyio_kwargs={"use_uvloop": True},
)
notes = tally.here()
starts = notes.starts


@worker.task(name="noop", silent=True, ttl=timedelta(hours=1))
async def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@worker.task(name="hold", silent=True, ttl=timedelta(hours=1))
async def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    await anyio.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


_WORKER = ["-m", "streaq", "run", "benchmarks.peers.streaq:worker"]
WORKERS = {"": Worker("100 slots, JSON, uvloop", _WORKER)}
KILLED = Worker("4 slots", _WORKER, slots=4)


async def connect() -> None:
    await worker.__aenter__()


async def send(number: int, *, held: bool = False) -> str:
    return (await (hold if held else noop).enqueue(DATA, number)).id


async def send_many(numbers: Sequence[int]) -> Sequence[str]:
    tasks = [noop.enqueue(DATA, number) for number in numbers]
    await worker.enqueue_many(tasks)
    return [task.id for task in tasks]


async def stored(ids: Sequence[str]) -> int:
    return await worker.redis.exists([f"{worker.results_key}{id}" for id in ids])


async def read(id: str) -> object:
    return (await worker.result_by_id(id, timeout=1)).result
