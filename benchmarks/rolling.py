"""Rolling restarts under load: what is lost, what counts as an attempt, and how long jobs wait to start.

```sh
python -m benchmarks.rolling
```

Two supervisors of two processes each work on a Redis of its own; one after the other is replaced, new before old, while
jobs of 50 ms are enqueued at a steady rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque

from spool import Spool, current_job
from spool.broker import QueueStats, Stats
from tests.redis_server import RedisServer

app = Spool()


@app.task
async def step(number: int, sent: float, milliseconds: float) -> tuple[float, int]:
    """Return how late it started, in milliseconds by the machine's clock, and which attempt it is."""
    late = (time.monotonic() - sent) * 1000
    await asyncio.sleep(milliseconds / 1000)
    return late, current_job().attempt


def start_supervisor(url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "spool", "worker", "benchmarks.rolling:app", "--url", url, "--processes", "2"]
    return subprocess.Popen([*command, "--log-level", "error"])


async def produce(rate: float, running: asyncio.Event, sent: deque[str]) -> None:
    began, number = time.perf_counter(), 0
    while running.is_set():
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        handle = await step.aenqueue(number, time.monotonic(), 50.0)
        sent.append(handle.id)
        number += 1


async def stats() -> QueueStats:
    return await app.broker.acall(Stats("default"))


async def ready(workers: int) -> None:
    while (await stats()).workers < workers:  # noqa: ASYNC110 - the event is in the store
        await asyncio.sleep(0.05)


async def roll(url: str, restarts: int, rate: float) -> dict[str, object]:
    fleet = deque(start_supervisor(url) for _ in range(2))
    await ready(4)
    running, sent = asyncio.Event(), deque[str]()
    running.set()
    producing = asyncio.create_task(produce(rate, running, sent))
    for _ in range(restarts):
        await asyncio.sleep(1.0)
        fleet.append(start_supervisor(url))
        await ready(6)
        old = fleet.popleft()
        old.send_signal(signal.SIGTERM)
        await asyncio.to_thread(old.wait)
    await asyncio.sleep(1.0)
    running.clear()
    await producing
    results = [await app.broker.aended("default", id, 60) for id in sent]
    found = await stats()
    for each in fleet:
        each.send_signal(signal.SIGTERM)
        await asyncio.to_thread(each.wait)
    late, attempts = [], Counter[int]()
    for job in [await app.ajob(f"default/{id}") for id, ended in zip(sent, results, strict=True) if ended is not None]:
        delay, attempt = job.result
        late.append(delay)
        attempts[attempt] += 1
    late.sort()
    await app.aclose()
    return {
        "restarts": restarts,
        "jobs": len(sent),
        "lost": len(sent) - len(late),
        "attempts": dict(attempts),
        "totals": found.totals,
        "start_ms": {name: round(late[int(q * (len(late) - 1))], 1) for name, q in (("p50", 0.5), ("p99", 0.99))}
        | {"max": round(late[-1], 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--rate", type=float, default=500)
    arguments = parser.parse_args()
    with RedisServer(None) as server:
        os.environ["SPOOL_URL"] = server.url
        print(json.dumps(asyncio.run(roll(server.url, arguments.restarts, arguments.rate)), indent=2))


if __name__ == "__main__":
    main()
