"""The floor: how fast a bare Python loop can enqueue and drain jobs on one store, with fence and results.

A yardstick, not a design. It does what any reliable queue must do for each job and nothing else: store the body, move
it to a worker's in-flight hash, decode, call, encode, store the result with a TTL, check that the worker still owns the
job, count it. No leases, retries, timeouts, events or typing. Claim, run and settle are overlapped in one process.

```sh
python benchmarks/floor.py --redis redis://127.0.0.1:6379/15 --jobs 200000 --batch 100 --payload 1024
python benchmarks/floor.py --redis redis://127.0.0.1:6379/15 --latency --rate 500 --seconds 8
python benchmarks/floor.py --sqlite new.db --jobs 50000 --batch 100
```

It empties the database that the URL names, and prints one JSON object. Drain: enqueue_per_s, drain_per_s, worker_us
(CPU of this process per drained job), redis_us (time in Lua per job, both ways). Latency: a producer paced at `rate`
and one idle worker in a process of its own that blocks on a wake-up key; ms from the call of enqueue to the start of
the job. SQLite: WAL, synchronous FULL, one process, one transaction per batch.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio as redis
import uvloop

ENQUEUE = """
local ids, bodies = {}, {}
for i = 1, #ARGV, 2 do
  ids[#ids + 1] = ARGV[i]
  bodies[i], bodies[i + 1] = ARGV[i], ARGV[i + 1]
end
redis.call('HSET', KEYS[1] .. 'jobs', unpack(bodies))
redis.call('RPUSH', KEYS[1] .. 'ready', unpack(ids))
"""
CLAIM = """
local ids = redis.call('LPOP', KEYS[1] .. 'ready', ARGV[1])
if not ids then return {} end
local owned = {}
for i = 1, #ids do owned[2 * i - 1], owned[2 * i] = ids[i], '1' end
redis.call('HSET', KEYS[1] .. 'run:' .. ARGV[2], unpack(owned))
return redis.call('HMGET', KEYS[1] .. 'jobs', unpack(ids))
"""
SETTLE = """
local run, ids, mine = KEYS[1] .. 'run:' .. ARGV[1], {}, {}
for i = 2, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local attempts = redis.call('HMGET', run, unpack(ids))
for i = 1, #ids do
  if attempts[i] == '1' then
    mine[#mine + 1] = ids[i]
    redis.call('SET', KEYS[1] .. 'result:' .. ids[i], ARGV[1 + 2 * i], 'EX', 3600)
  end
end
redis.call('HDEL', run, unpack(mine))
redis.call('HDEL', KEYS[1] .. 'jobs', unpack(mine))
redis.call('HINCRBY', KEYS[1] .. 'stats', 'done', #mine)
return #mine
"""


class Job(msgspec.Struct, array_like=True):
    id: str
    task: str
    args: tuple
    kwargs: dict
    created_at: float


async def noop(data: str, task_id: int) -> dict:
    return {"processed": True}


async def lua_us(client: redis.Redis) -> float:
    stats = await client.info("commandstats")
    return sum(v["usec"] for k, v in stats.items() if k in ("cmdstat_evalsha", "cmdstat_eval"))


async def main(url: str, jobs: int, batch: int, payload: int) -> None:
    client = redis.Redis.from_url(url)
    enqueue, claim, settle = (client.register_script(s) for s in (ENQUEUE, CLAIM, SETTLE))
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Job).decode
    keys, data = ["{floor}:"], "x" * payload
    await client.flushdb()
    await client.config_resetstat()

    began = time.perf_counter()
    for start in range(0, jobs, batch):
        args = []
        for n in range(start, min(start + batch, jobs)):
            id = os.urandom(16).hex()
            args += (id, encode(Job(id, "noop", (), {"data": data, "task_id": n}, time.time())))
        await enqueue(keys=keys, args=args)
    enqueue_s = time.perf_counter() - began
    enqueue_us = await lua_us(client) / jobs

    await client.config_resetstat()
    claimed, finished = asyncio.Queue(4), asyncio.Queue(8)
    done = 0

    async def fetch() -> None:
        while bodies := await claim(keys=keys, args=[batch, "worker"]):
            await claimed.put(bodies)
        await claimed.put(None)

    async def record() -> int:
        count = 0
        while args := await finished.get():
            count += await settle(keys=keys, args=args)
        return count

    cpu, began = time.process_time(), time.perf_counter()
    fetching, recording = asyncio.create_task(fetch()), asyncio.create_task(record())
    while bodies := await claimed.get():
        args = ["worker"]
        for body in bodies:
            job = decode(body)
            args += (job.id, encode(await noop(*job.args, **job.kwargs)))
        await finished.put(args)
    await finished.put(None)
    done = await recording
    await fetching
    drain_s = time.perf_counter() - began
    cpu = time.process_time() - cpu
    if done != jobs:
        raise SystemExit(f"settled {done} of {jobs}")
    print(
        json.dumps(
            {
                "jobs": jobs,
                "batch": batch,
                "payload": payload,
                "enqueue_per_s": round(jobs / enqueue_s),
                "drain_per_s": round(jobs / drain_s),
                "worker_us": round(cpu / jobs * 1e6, 2),
                "redis_us": {"enqueue": round(enqueue_us, 2), "drain": round(await lua_us(client) / jobs, 2)},
            }
        )
    )
    await client.flushdb()
    await client.aclose()


async def latency(url: str, rate: int, seconds: float, payload: int) -> None:
    client, jobs = redis.Redis.from_url(url), int(rate * seconds)
    await client.flushdb()
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--redis",
        url,
        "--latency-worker",
        "--jobs",
        str(jobs),
        stdout=asyncio.subprocess.PIPE,
    )
    enqueue, keys = client.register_script(ENQUEUE), ["{floor}:"]
    encode, data = msgspec.msgpack.Encoder().encode, "x" * payload
    await asyncio.sleep(1)
    began = time.perf_counter()
    for n in range(jobs):
        if (pause := began + n / rate - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        id = os.urandom(16).hex()
        pipe = client.pipeline(transaction=False)
        pipe.evalsha(enqueue.sha, 1, *keys, id, encode(Job(id, "noop", (), {"data": data, "task_id": n}, time.time())))
        pipe.rpush("{floor}:wake", 1)
        await (pipe.execute() if n else load_first(client, enqueue, pipe))
    out, _ = await worker.communicate()
    print(out.decode().strip())
    await client.flushdb()
    await client.aclose()


async def load_first(client: redis.Redis, enqueue: Any, pipe: Any) -> None:
    await client.script_load(enqueue.script)
    await pipe.execute()


async def latency_worker(url: str, jobs: int) -> None:
    client = redis.Redis.from_url(url)
    claim, settle = client.register_script(CLAIM), client.register_script(SETTLE)
    encode, decode, keys = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Job).decode, ["{floor}:"]
    waits: list[float] = []
    while len(waits) < jobs:
        bodies = await claim(keys=keys, args=[100, "worker"])
        if not bodies:
            await client.blpop(["{floor}:wake"], timeout=5)
            continue
        args = ["worker"]
        for body in bodies:
            job = decode(body)
            waits.append((time.time() - job.created_at) * 1e3)
            args += (job.id, encode(await noop(*job.args, **job.kwargs)))
        await settle(keys=keys, args=args)
    waits.sort()
    at = lambda q: round(waits[min(len(waits) - 1, int(q * len(waits)))], 3)  # noqa: E731
    print(json.dumps({"jobs": jobs, "start_ms": {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1)}}))
    await client.aclose()


def sqlite(path: str, jobs: int, batch: int, payload: int) -> None:
    if Path(path).exists():
        raise SystemExit(f"{path} exists")
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("""
        PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
        CREATE TABLE job (id TEXT PRIMARY KEY, priority INT, state INT, worker TEXT, body BLOB) WITHOUT ROWID;
        CREATE INDEX ready ON job (priority, id) WHERE state = 0;
        CREATE TABLE result (id TEXT PRIMARY KEY, body BLOB, expires REAL) WITHOUT ROWID;""")
    encode, decode, data = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Job).decode, "x" * payload
    began = time.perf_counter()
    for start in range(0, jobs, batch):
        rows = []
        for n in range(start, min(start + batch, jobs)):
            id = f"{time.time_ns():016x}{n:08x}"
            rows.append((id, 2, 0, None, encode(Job(id, "noop", (), {"data": data, "task_id": n}, time.time()))))
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO job VALUES (?, ?, ?, ?, ?)", rows)
        db.execute("COMMIT")
    enqueue_s, began, done = time.perf_counter() - began, time.perf_counter(), 0
    while True:
        db.execute("BEGIN IMMEDIATE")
        bodies = db.execute(
            "UPDATE job SET state = 1, worker = 'w' WHERE id IN (SELECT id FROM job WHERE state = 0"
            " ORDER BY priority, id LIMIT ?) RETURNING body",
            (batch,),
        ).fetchall()
        db.execute("COMMIT")
        if not bodies:
            break
        finished = []
        for (body,) in bodies:
            job = decode(body)
            finished.append((job.id, encode({"processed": True}), time.time() + 3600))
        db.execute("BEGIN IMMEDIATE")
        done += db.executemany(
            "DELETE FROM job WHERE id = ? AND state = 1 AND worker = 'w'", [f[:1] for f in finished]
        ).rowcount
        db.executemany("INSERT INTO result VALUES (?, ?, ?)", finished)
        db.execute("COMMIT")
    drain_s = time.perf_counter() - began
    if done != jobs:
        raise SystemExit(f"settled {done} of {jobs}")
    print(
        json.dumps(
            {
                "jobs": jobs,
                "batch": batch,
                "sqlite": sqlite3.sqlite_version,
                "enqueue_per_s": round(jobs / enqueue_s),
                "drain_per_s": round(jobs / drain_s),
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/15")
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--payload", type=int, default=1024)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--sqlite", metavar="NEW_FILE")
    parser.add_argument("--latency-worker", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.sqlite:
        sqlite(a.sqlite, a.jobs, a.batch, a.payload)
    elif a.latency_worker:
        uvloop.run(latency_worker(a.redis, a.jobs))
    elif a.latency:
        uvloop.run(latency(a.redis, a.rate, a.seconds, a.payload))
    else:
        uvloop.run(main(a.redis, a.jobs, a.batch, a.payload))
