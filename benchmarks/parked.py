"""What parked jobs cost the others: the drain rate with and without them, in alternating runs.

```sh
python benchmarks/parked.py redis://127.0.0.1:6379/15
```

Jobs of a task that no worker knows are parked first; then one worker in this process drains jobs of another task of the
same queue. The database that the URL names is emptied.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable

import redis

from spool import Spool
from spool.broker import QueueStats, Stats
from spool.worker import Worker


async def until(app: Spool, reached: Callable[[QueueStats], bool]) -> None:
    while not reached(await app.broker.acall(Stats("default"))):  # noqa: ASYNC110 - the event is in the store
        await asyncio.sleep(0.02)


async def drain(url: str, jobs: int, parked: int) -> float:
    app, elsewhere = Spool(url), Spool(url)

    @app.task
    async def noop(data: str, number: int) -> dict[str, bool]:
        return {"processed": True}

    @elsewhere.task
    async def unknown(data: str) -> None: ...

    with redis.Redis.from_url(url) as client:
        client.flushdb()
    worker = Worker(app, concurrency=400)
    running = asyncio.create_task(worker.run())
    await elsewhere.aenqueue_many(unknown.call("x" * 200) for _ in range(parked))
    await until(app, lambda stats: sum(stats.parked.values()) == parked)
    worker.stop()
    await running

    await app.aenqueue_many(noop.call("x" * 1024, number) for number in range(jobs))
    worker = Worker(app, concurrency=400)
    began = time.perf_counter()
    running = asyncio.create_task(worker.run())
    await until(app, lambda stats: stats.totals.get("done", 0) == jobs)
    seconds = time.perf_counter() - began
    worker.stop()
    await running
    await app.aclose()
    await elsewhere.aclose()
    return jobs / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--parked", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    without, beside = [], []
    for _ in range(arguments.pairs):
        without.append(asyncio.run(drain(arguments.url, arguments.jobs, 0)))
        beside.append(asyncio.run(drain(arguments.url, arguments.jobs, arguments.parked)))
    ratio = statistics.median(beside) / statistics.median(without)
    result = {"drain_per_s": {"without": without, "beside": beside}, "ratio": round(ratio, 3)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
