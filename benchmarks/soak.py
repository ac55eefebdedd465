"""An hour of steady load: whether memory, file descriptors, threads, keys or files grow.

```sh
python -m benchmarks.soak redis
python -m benchmarks.soak sqlite
```

On a Redis or a file of its own, with results that are kept for 5 s. It begins with a burst that fills every slot: a
worker's memory is that of the most jobs that it has had at once, and what it takes for them it takes once. Samples are
taken every half minute; the slope of the memory is fitted over the last two thirds. In the end everything is left alone
for a while, and counted once more.

What a worker gains after that is Python's own, and ends: before 3.12.5 each tuple of twenty (a command of that many
words) that is no longer needed stays in a free list, until 2,000 of them take 0.4 MB
(https://github.com/python/cpython/issues/121439).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import redis

from spool import Call, Spool, current_job
from spool.broker import Stats
from spool.supervisor import Fleet, WorkerOptions
from tests.redis_server import RedisServer

app = Spool(dedupe_window=5)


@app.task(result_ttl=5)
async def quick(data: str) -> int:
    return len(data)


@app.task(result_ttl=5)
def in_thread(data: str) -> int:
    return len(data)


@app.task(result_ttl=5, retries=2)
async def flaky(data: str) -> int:
    if not current_job().failures:
        raise ConnectionError("again")
    return len(data)


@contextmanager
def store(kind: str) -> Iterator[str]:
    if kind == "redis":
        with RedisServer(None) as server:
            yield server.url
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/jobs.db"


def size(url: str) -> dict[str, int]:
    """Count what the store holds: keys, or bytes of the file and of its log."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            return {"keys": client.dbsize(), "bytes": client.info("memory")["used_memory"]}
    path = Path(url.removeprefix("sqlite:///"))
    files = {"file": path, "wal": path.with_name(path.name + "-wal")}
    return {name: file.stat().st_size if file.exists() else 0 for name, file in files.items()}


def process(pid: int) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "rss_mb": round(int(status["VmRSS"].split()[0]) / 1024, 2),
        "threads": int(status["Threads"]),
        "fds": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


class Sample(msgspec.Struct, frozen=True):
    """What is there after ``at`` seconds; ``processes`` are named by their pids, ours "own"."""

    at: int
    processes: dict[str, dict[str, float]]
    store: dict[str, int]


def slope(samples: list[Sample], name: str) -> float:
    """Return megabytes an hour over the last two thirds."""
    late = [(each.at, each.processes[name]["rss_mb"]) for each in samples if name in each.processes]
    late = late[len(late) // 3 :]
    return round(statistics.linear_regression(*zip(*late, strict=True)).slope * 3600, 3) if len(late) > 1 else 0.0


BURST = 20_000


def calls(count: int) -> Iterator[Call]:
    kinds = (quick, quick, quick, in_thread, flaky)
    return (kinds[n % 5].call("x" * 200 + str(n)) for n in range(count))


def burst() -> None:
    """Have more jobs at once than there are slots, and wait until they have ended."""
    app.enqueue_many(calls(BURST))
    while app.broker.call(Stats("default")).totals.get("done", 0) < BURST:
        time.sleep(0.1)


def load(rate: float, seconds: float, fleet: Fleet, url: str) -> list[Sample]:
    """Enqueue at the rate, in steps of a tenth of a second, and sample."""
    samples: list[Sample] = []
    began, sent, due = time.monotonic(), 0, 0.0
    while (now := time.monotonic() - began) < seconds:
        step = int(now * rate) - sent
        sent += app.enqueue_many(calls(step))
        if now >= due:
            due += 30
            processes = {"own": process(os.getpid())} | {str(pid): process(pid) for pid in fleet.pids}
            samples.append(Sample(round(now), processes, size(url)))
            print(json.dumps(msgspec.to_builtins(samples[-1])), flush=True)
        time.sleep(max(0.0, 0.1 - (time.monotonic() - began - now)))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("broker", choices=["redis", "sqlite"])
    parser.add_argument("--seconds", type=float, default=3660)
    parser.add_argument("--rate", type=float, default=560)
    arguments = parser.parse_args()
    with store(arguments.broker) as url:
        os.environ["SPOOL_URL"] = url
        before = size(url)
        with Fleet(WorkerOptions(app="benchmarks.soak:app", processes=2, log_level="error")) as fleet:
            fleet.wait_ready()
            burst()
            samples = load(arguments.rate, arguments.seconds, fleet, url)
            time.sleep(30)  # what is to expire expires, and a few claims sweep it up
            after, totals = size(url), app.broker.call(Stats("default")).totals
            rest = {str(pid): process(pid) for pid in fleet.pids}
        app.close()
    slopes = {pid: slope(samples, pid) for pid in samples[0].processes}
    result = {"rss_mb_per_hour": slopes, "before": before, "after": after, "totals": totals}
    first, last = msgspec.to_builtins((samples[0], samples[-1]))
    print(json.dumps(result | {"first": first, "last": last, "rest": rest}, indent=2))


if __name__ == "__main__":
    main()
