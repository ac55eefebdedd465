"""Redis killed and started again under load: how long until every worker process runs jobs again.

```sh
python -m benchmarks.restarts
```

Two supervisors of two processes each, on a Redis of its own that syncs each write to disk; a producer enqueues a batch
now and then. Each time the server is killed with SIGKILL, is away for a moment, and comes back; no worker is restarted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from spool import Spool
from spool.broker import Load, QueueStats, Stats
from spool.errors import BrokerError
from spool.report import read_row
from tests.redis_server import RedisServer

app = Spool()


@app.task
async def stamp(log: str) -> None:
    """Write down who ran it, and when."""
    with Path(log).open("a") as file:  # noqa: ASYNC230 - one short line
        file.write(f"{os.getpid()} {time.monotonic()}\n")
    await asyncio.sleep(0.05)


def until(reached: Callable[[], bool], within: float) -> bool:
    end = time.monotonic() + within
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def stats() -> QueueStats:
    return app.broker.call(Stats("default"))


def workers() -> set[int]:
    return {read_row(row.body).pid for row in app.broker.call(Load("worker")).documents}


def ran_since(log: Path, when: float) -> set[int]:
    lines = [line.split() for line in log.read_text().splitlines()]
    return {int(pid) for pid, at in lines if float(at) > when}


def feed(log: Path) -> int:
    """Enqueue a batch; return how many jobs are stored for sure."""
    try:
        return app.enqueue_many(stamp.call(str(log)) for _ in range(40))
    except BrokerError:
        return 0


def restart(server: RedisServer, log: Path, pids: set[int], away: float) -> tuple[float, int]:
    """Return the seconds from the server's return until all processes have run a job, and how many jobs were fed."""
    server.kill()
    time.sleep(away)
    server.restart()
    back = time.monotonic()
    fed = 0

    def all_back() -> bool:
        nonlocal fed
        fed += feed(log)
        return pids <= ran_since(log, back)

    until(all_back, 30)
    return time.monotonic() - back, fed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--away", type=float, default=1.0, help="seconds without the server")
    arguments = parser.parse_args()
    with (
        tempfile.NamedTemporaryFile() as file,
        RedisServer(None, "--appendonly", "yes", "--appendfsync", "always") as server,
    ):
        os.environ["SPOOL_URL"] = server.url
        log = Path(file.name)
        command = [sys.executable, "-m", "spool", "worker", "benchmarks.restarts:app", "--processes", "2"]
        fleet = [subprocess.Popen([*command, "--concurrency", "5", "--log-level", "error"]) for _ in range(2)]
        until(lambda: len(workers()) == 4, 20)
        pids, fed, taken = workers(), 0, list[float]()
        for _ in range(arguments.restarts):
            seconds, stored = restart(server, log, pids, arguments.away)
            taken.append(round(seconds, 2))
            fed += stored
        until(lambda: not sum(stats().ready) and not stats().running, 30)
        found, same = stats(), workers() == pids
        for each in fleet:
            each.terminate()
            each.wait()
        app.close()
    print(json.dumps({"back_after_s": sorted(taken), "same_processes": same, "fed": fed, "totals": found.totals}))


if __name__ == "__main__":
    main()
