"""docket (pydocket): asyncio on Redis streams."""

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import timedelta

import redis.asyncio as redis
import uvloop
from docket import Docket
from docket import worker as docket_worker
from docket.execution import Execution

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, URL, Worker

PACKAGE = "pydocket"
GUARANTEE = "at least once; redelivered after 5 min"
SHARE = 0.03

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # its worker takes the policy that it finds
_URL = os.environ["PEERS_REDIS"] + "?max_connections=1000"  # its default, 100, is too few for 100 slots
docket = Docket("bench", _URL, execution_ttl=timedelta(hours=1))
store = redis.Redis.from_url(os.environ["PEERS_REDIS"])
notes = tally.here()
starts = notes.starts


async def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


async def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    await asyncio.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


tasks = [noop, hold]


_PLACE = ["--tasks", "benchmarks.peers.pydocket:tasks", "--docket", "bench", "--url", URL]
WORKERS = {
    "": Worker("100 slots, check every 5 ms, uvloop", ["-m", "benchmarks.peers.pydocket"]),
}
KILLED = Worker("4 slots", ["-m", "docket", "worker", *_PLACE, "--logging-level", "ERROR", "--concurrency", "4"])


async def work() -> None:
    """Run the worker from code: its command takes whole seconds for the interval."""
    async with docket:
        for task in tasks:
            docket.register(task)
        async with docket_worker.Worker(
            docket, concurrency=100, minimum_check_interval=timedelta(milliseconds=5)
        ) as worker:
            await worker.run_forever()


async def connect() -> None:
    await docket.__aenter__()


async def send(number: int, *, held: bool = False) -> Execution:
    return await docket.add(hold if held else noop)(DATA, number)


async def send_many(numbers: Sequence[int]) -> Sequence[Execution]:
    return await docket.add_many(docket.call(noop)(DATA, number) for number in numbers)


async def stored(ids: Sequence[Execution]) -> int:
    return await store.exists(*(f"{docket.results_collection}::{execution.key}:1" for execution in ids))


async def read(id: Execution) -> object:
    return await id.get_result(timeout=timedelta(seconds=1))


if __name__ == "__main__":
    asyncio.run(work())
