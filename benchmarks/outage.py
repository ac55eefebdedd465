"""An outage of Redis of three leases under running jobs: how many of them start a second time. None should.

```sh
python -m benchmarks.outage
```

It starts a Redis of its own (the one on PATH, or what SPOOL_TEST_REDIS names) that syncs each write to disk, and two
worker processes. The jobs of a minute all run when the server is shut down; it comes back with its data.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from spool import Spool
from spool.broker import Stats
from spool.supervisor import Fleet, WorkerOptions
from tests.redis_server import RedisServer

LEASE_SECONDS = 10

app = Spool()


@app.task
async def long(number: int, seconds: float, log: str) -> int:
    with Path(log).open("a") as file:  # noqa: ASYNC230 - one short line, and the order of starts is the point
        file.write(f"{number}\n")
    await asyncio.sleep(seconds)
    return number


def until(reached: Callable[[], bool], within: float) -> None:
    end = time.monotonic() + within
    while not reached():
        if time.monotonic() > end:
            raise SystemExit(f"not reached within {within:g} s")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60, help="how long each job runs")
    parser.add_argument("--outage", type=float, default=3 * LEASE_SECONDS + 1, help="seconds without the server")
    arguments = parser.parse_args()
    options = WorkerOptions(
        app="benchmarks.outage:app",
        processes=2,
        concurrency=arguments.jobs // 2,
        lease=LEASE_SECONDS,
        log_level="error",
    )
    with (
        tempfile.NamedTemporaryFile() as log,
        RedisServer(None, "--appendonly", "yes", "--appendfsync", "always") as server,
    ):
        os.environ["SPOOL_URL"] = server.url
        starts = Path(log.name)
        app.enqueue_many(long.call(number, arguments.seconds, log.name) for number in range(arguments.jobs))
        with Fleet(options) as fleet:
            fleet.wait_ready()
            until(lambda: len(starts.read_text().split()) >= arguments.jobs, 30)
            server.stop()
            time.sleep(arguments.outage)
            server.restart()
            until(
                lambda: app.broker.call(Stats("default")).totals.get("done", 0) == arguments.jobs,
                2 * arguments.seconds + 30,
            )
        counted = Counter(starts.read_text().split())
        app.close()
    restarted = sum(count - 1 for count in counted.values())
    print(json.dumps({"jobs": len(counted), "starts": counted.total(), "restarted": restarted}))


if __name__ == "__main__":
    main()
