"""taskiq with taskiq-redis: a stream for the jobs, so that they are acknowledged, and a key for each result."""

import asyncio
import os
import time
from collections.abc import Sequence

import redis.asyncio as redis
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker

PACKAGE = "taskiq"
GUARANTEE = "at least once; redelivered when idle for 10 min, and only if new jobs come"
SHARE = 0.04

backend: RedisAsyncResultBackend = RedisAsyncResultBackend(
    os.environ["PEERS_REDIS"], result_ex_time=3600, prefix_str="r"
)
broker = RedisStreamBroker(os.environ["PEERS_REDIS"]).with_result_backend(backend)
store = redis.Redis.from_url(os.environ["PEERS_REDIS"])
notes = tally.here()
starts = notes.starts


@broker.task("noop")
async def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@broker.task("hold")
async def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    await asyncio.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


def _worker(slots: int) -> list[str]:
    place = ["-m", "taskiq", "worker", "benchmarks.peers.taskiq:broker", "--log-level", "ERROR"]
    return [*place, "--workers", "1", "--max-async-tasks", str(slots)]


WORKERS = {"": Worker("stream broker, 1 process, 10 slots", _worker(10))}
KILLED = Worker("stream broker, 4 slots", _worker(4))


async def connect() -> None:
    await broker.startup()


async def send(number: int, *, held: bool = False) -> str:
    return (await (hold if held else noop).kiq(DATA, number)).task_id


async def stored(ids: Sequence[str]) -> int:
    return await store.exists(*(f"r:{id}" for id in ids))


async def read(id: str) -> object:
    return (await backend.get_result(id)).return_value
