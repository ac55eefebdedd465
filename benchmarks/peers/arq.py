"""arq: asyncio, one poll of a sorted set after the other."""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker, slots

PACKAGE = "arq"
GUARANTEE = "at least once; redelivered after the job's timeout (300 s)"
SHARE = 0.05

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # its worker takes the policy that it finds
logging.getLogger("arq.worker").setLevel(logging.WARNING)  # it has two lines for each job otherwise
notes = tally.here()
starts = notes.starts


async def noop(context: dict[str, Any], data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


async def hold(context: dict[str, Any], data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    await asyncio.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


class WorkerSettings:
    functions = (noop, hold)
    redis_settings = RedisSettings.from_dsn(os.environ["PEERS_REDIS"])
    max_jobs = slots(10)
    poll_delay = 0.01 if slots(10) == 10 else 0.5  # the default in the kill test
    keep_result = 3600


_WORKER = ["-m", "arq", "benchmarks.peers.arq.WorkerSettings"]
WORKERS = {"": Worker("10 jobs at once, poll every 10 ms, uvloop", _WORKER)}
KILLED = Worker("4 jobs at once", _WORKER, slots=4)

pool: ArqRedis


async def connect() -> None:
    global pool  # noqa: PLW0603 - it can't be made before there is a loop
    pool = await create_pool(WorkerSettings.redis_settings)


async def send(number: int, *, held: bool = False) -> Job:
    job = await pool.enqueue_job("hold" if held else "noop", DATA, number)
    assert job is not None
    return job


async def stored(ids: Sequence[Job]) -> int:
    return await pool.exists(*(f"arq:result:{job.job_id}" for job in ids))


async def read(id: Job) -> object:
    return await id.result(timeout=1)
