"""What it costs Redis that many idle worker processes live.

```sh
python -m benchmarks.beats redis://127.0.0.1:6379/15 --group 10
```

Says which part of one core the server takes for the beats of 1,000 worker processes under supervisors of ``--group``
each, and with their rows on top. A beat is one command for each supervisor and second, a writing of rows one for each
supervisor and `ROW_EVERY` seconds; they are spread evenly, as those of many machines are.

Twice: for a server that is asked nothing else, where most of it is that it wakes up (what as many PINGs take is said as
well), and for one that carries `LOAD` jobs a second, as it would with so many workers. Each figure is the median of
pairs of some seconds without and with. The database is emptied.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

import redis

from spool.broker import Beat, Claim, Done, Enqueue, Heartbeat, NewJob, Settle, Store, connect
from spool.job import new_id
from spool.worker.heartbeat import ROW_EVERY

WORKERS = 1000
PAIRS = 5
SECONDS = 5
ROW = b"x" * 400
LOAD = 2000
"""Jobs a second, enqueued one by one, and claimed and settled in tens."""
Calls = list[Callable[[], object]]


def share(client: redis.Redis, each_second: Calls) -> float:
    """Return the percentage of a core that the server takes for these calls, made once a second each."""

    def used() -> float:
        times = client.info("cpu")
        return times["used_cpu_sys"] + times["used_cpu_user"]

    began, before = time.monotonic(), used()
    for second in range(SECONDS):
        for place, call in enumerate(each_second):
            time.sleep(max(0.0, began + second + place / len(each_second) - time.monotonic()))
            call()
    time.sleep(max(0.0, began + SECONDS - time.monotonic()))
    return 100 * (used() - before) / (time.monotonic() - began)


def cost(client: redis.Redis, each_second: Calls) -> str:
    """Return what they take over what it takes without them: the median of pairs, and its range."""
    found = [-share(client, []) + share(client, each_second) for _ in range(PAIRS)]
    return f"{statistics.median(found):.2f} % of a core ({min(found):.2f} to {max(found):.2f})"


def work(url: str, begun: Event) -> None:
    """Carry `LOAD` jobs a second, for ever."""
    broker = connect(url)
    incarnation, record, began = new_id(), b"x" * 300, time.monotonic()
    for turn in range(1 << 62):
        if turn % LOAD == 0:
            broker.call(Beat("busy", [Heartbeat(incarnation, tasks=("a",))]))
        broker.call(Enqueue("busy", [NewJob(new_id(), record)]))
        if turn % 10 == 9:
            jobs = broker.call(Claim("busy", incarnation, seq=turn // 10 + 1, slots=(100, 0))).jobs
            done = [Done(id, turn // 10 + 1, b"", ttl=0) for id, _ in jobs]
            broker.call(Settle("busy", incarnation, turn // 10 + 1, done))
            begun.set()
        time.sleep(max(0.0, began + turn / LOAD - time.monotonic()))


@contextmanager
def at_work(url: str) -> Generator[None]:
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=work, args=(url, begun), daemon=True)
    process.start()
    try:
        if not begun.wait(20):
            raise SystemExit("the load did not start")
        yield
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--group", type=int, default=10, help="worker processes of each supervisor")
    arguments = parser.parse_args()
    incarnations = [new_id() for _ in range(WORKERS)]
    groups = [incarnations[first : first + arguments.group] for first in range(0, WORKERS, arguments.group)]
    broker = connect(arguments.url)
    with redis.Redis.from_url(arguments.url) as client:
        client.flushdb()
        for group in groups:
            broker.call(Beat("default", [Heartbeat(each, tasks=("a", "b", "c")) for each in group]))
        beats = [Beat("default", [Heartbeat(each) for each in group]) for group in groups]
        rows = [Store("worker", group[0], ROW, 30_000, others=dict.fromkeys(group[1:], ROW)) for group in groups]
        calls: Calls = [lambda beat=beat: broker.call(beat) for beat in beats]
        some = round(len(rows) / ROW_EVERY)  # as many as are due in one second
        both: Calls = [*calls, *(lambda row=row: broker.call(row) for row in rows[:some])]
        print(f"asked nothing else: beats {cost(client, calls)}, with rows {cost(client, both)}")
        print(f"as many PINGs: {cost(client, [client.ping] * len(calls))}")
        with at_work(arguments.url):
            print(f"at work ({share(client, []):.0f} % of a core): beats {cost(client, calls)}", end="")
            print(f", with rows {cost(client, both)}")
        client.flushdb()
    broker.close()


if __name__ == "__main__":
    main()
