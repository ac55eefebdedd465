"""What it costs Redis that many idle worker processes live.

```sh
python -m benchmarks.beats redis://127.0.0.1:6379/15 --group 10
```

Says which part of one core the server takes for the beats of 1,000 worker processes under supervisors of ``--group``
each, and with their rows on top, over what it takes when nobody asks it anything. A beat is one command for each
supervisor and second, a writing of rows one for each supervisor and `ROW_EVERY` seconds; they are spread evenly, as
those of many machines are. The database is emptied.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import redis

from spool.broker import Beat, Heartbeat, Store, connect
from spool.job import new_id
from spool.worker.heartbeat import ROW_EVERY

WORKERS = 1000
SECONDS = 20
ROW = b"x" * 400


def share(client: redis.Redis, each_second: list[Callable[[], object]]) -> float:
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
        calls: list[Callable[[], object]] = [lambda beat=beat: broker.call(beat) for beat in beats]
        some = round(len(rows) / ROW_EVERY)  # as many as are due in one second
        idle = share(client, [])
        print(f"idle:                {idle:.2f} % of a core")
        print(f"beats:               {share(client, calls) - idle:.2f} % more")
        calls += [lambda row=row: broker.call(row) for row in rows[:some]]
        print(f"beats and rows:      {share(client, calls) - idle:.2f} % more")
        client.flushdb()
    broker.close()


if __name__ == "__main__":
    main()
