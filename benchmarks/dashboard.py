"""What the dashboard costs: a server's CPU with many who look, how soon they see, and what a page left open holds.

    python -m benchmarks.dashboard clients [--clients 200] [--seconds 20]
    python -m benchmarks.dashboard heap [--minutes 5]

Both run a server, a worker and a producer of about 1,000 jobs a second (``--rate``) on a Redis of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from websockets.asyncio.client import connect

from spool import Spool
from tests.browser import open_page
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
APP = """
from spool import Spool
app = Spool()

@app.task(queue="load", retries=0, result_ttl=10)
async def work(n: int) -> int:
    if n % 500 == 499:
        raise ValueError(f"{n} is no good")
    return n

@app.task(queue="probe", retries=0)
async def probe(n: int) -> int:
    return n
"""


class Site:
    """The parts that are measured."""

    def __init__(self, store: str, server: subprocess.Popen[str], url: str) -> None:
        self.store = store
        self.server = server
        self.url = url

    def cpu(self) -> float:
        """Return the CPU seconds that the server has used."""
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def running(rate: float) -> Iterator[Site]:
    """Start all of it."""
    with RedisServer() as redis, tempfile.TemporaryDirectory() as folder:
        Path(folder, "load_app.py").write_text(APP)
        env = os.environ | {"SPOOL_URL": redis.url, "PYTHONPATH": folder}
        spool = [sys.executable, "-m", "spool"]
        worker = subprocess.Popen(
            [*spool, "worker", "load_app:app", "--processes", "1"], env=env, stderr=subprocess.DEVNULL
        )
        serve = [*spool, "server", "--port", "0", "--no-auth"]
        server = subprocess.Popen(serve, env=env, stderr=subprocess.PIPE, text=True)
        stop = threading.Event()
        producer = threading.Thread(target=produce, args=(redis.url, rate, stop))
        producer.start()
        try:
            line = server.stderr.readline() if server.stderr else ""
            yield Site(redis.url, server, line.split()[1])
        finally:
            stop.set()
            producer.join()
            for process in (server, worker):
                process.terminate()
                process.wait()


def produce(url: str, rate: float, stop: threading.Event) -> None:
    """Enqueue at a rate, in batches of a tenth of a second."""
    app = Spool(url)

    @app.task(queue="load", name="work", retries=0, result_ttl=10)
    async def work(n: int) -> int:
        return n

    number, due = 0, time.monotonic()
    while not stop.is_set():
        batch = round(rate / 10)
        if batch:
            app.enqueue_many(work.call(number + each) for each in range(batch))
        number += batch
        due += 0.1
        stop.wait(max(0.0, due - time.monotonic()))
    app.close()


def done(url: str) -> int:
    """Return how many jobs are done."""
    queues = httpx.get(f"{url}/api/v1/queues").json()["items"]
    return sum(queue["totals"].get("done", 0) for queue in queues)


async def listen(url: str, counted: list[int]) -> None:
    """Take what comes, and count messages and bytes."""
    async with connect(f"ws{url.removeprefix('http')}/api/v1/live", compression=None, max_size=None) as connection:
        async for message in connection:
            counted[0] += 1
            counted[1] += len(message)


async def seen_after(url: str) -> float:
    """Return the seconds from an enqueue until a client has heard of it."""
    async with (
        connect(f"ws{url.removeprefix('http')}/api/v1/live", compression=None) as connection,
        httpx.AsyncClient() as client,
    ):
        await connection.recv()
        begun = time.monotonic()
        await client.post(f"{url}/api/v1/jobs", json={"task": "nobody", "queue": f"probe-{time.time_ns()}"})
        async for message in connection:
            if any(name.startswith("probe-") for name in json.loads(message).get("patch", {}).get("queues", {})):
                return time.monotonic() - begun
    raise RuntimeError("the server went away")


async def measure_clients(site: Site, clients: int, seconds: float) -> None:
    """Print the server's CPU without and with clients."""
    await asyncio.sleep(5)
    begun, cpu = time.monotonic(), site.cpu()
    await asyncio.sleep(seconds)
    idle = (site.cpu() - cpu) / (time.monotonic() - begun)
    counted = [0, 0]
    tasks = [asyncio.create_task(listen(site.url, counted)) for _ in range(clients)]
    await asyncio.sleep(5)
    before, jobs = list(counted), done(site.url)
    begun, cpu = time.monotonic(), site.cpu()
    await asyncio.sleep(seconds)
    span, jobs = time.monotonic() - begun, done(site.url) - jobs
    busy = (site.cpu() - cpu) / span
    after = [now - then for now, then in zip(counted, before, strict=True)]
    delays = sorted([await seen_after(site.url) for _ in range(9)])
    print(f"jobs done               {jobs / span:6.0f} /s")
    print(f"server without clients  {100 * idle:6.1f} % of a core")
    print(f"with {clients} clients        {100 * busy:6.1f} % of a core, so {100 * (busy - idle):.1f} % for them")
    each, size = after[0] / span / clients, after[1] / span / clients / 1000
    print(f"messages                {each:6.2f} /s and {size:.1f} kB/s for each")
    print(f"seen after              {statistics.median(delays):6.2f} s (median of 9), {delays[-1]:.2f} s at most")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def measure_heap(url: str, minutes: float) -> None:
    """Print what the overview holds after garbage collections, and how that goes on over an hour."""
    with open_page() as page:
        page.goto(url)
        session = page.context.new_cdp_session(page)
        # The charts' five minutes fill up first; what is there then has to stay.
        times: list[float] = []
        sizes: list[float] = []
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < minutes * 60:
            page.wait_for_timeout(10_000)
            session.send("HeapProfiler.collectGarbage")
            used = session.send("Runtime.getHeapUsage")["usedSize"] / 1e6
            nodes = page.evaluate("document.querySelectorAll('*').length")
            times.append(now)
            sizes.append(used)
            print(f"{now:5.0f} s  {used:6.2f} MB  {nodes} elements", flush=True)
    half = len(times) // 2
    slope = statistics.linear_regression(times[half:], sizes[half:]).slope
    print(f"second half: {slope * 3600:+.1f} MB an hour if it goes on like that")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clients", "heap"])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rate", type=float, default=1000)
    given = parser.parse_args()
    with running(given.rate) as site:
        if given.what == "clients":
            asyncio.run(measure_clients(site, given.clients, given.seconds))
        else:
            measure_heap(site.url, given.minutes)


if __name__ == "__main__":
    main()
