"""What it costs a benchmark to look at the workers' memory: drains with and without, in turns.

```sh
python benchmarks/looks.py redis://127.0.0.1:6379/15
python benchmarks/looks.py --times 50 --jobs 200000 --pairs 4 redis://127.0.0.1:6379/15
```

With ``--times`` each look is taken so often: what it costs then, divided by that, stands out of the noise. The URL
names a database of its own, which is emptied; without one it is an SQLite file.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable

from spool.bench import Plan, run
from spool.bench.machine import MemoryTrace

Look = Callable[[MemoryTrace, Iterable[int]], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--jobs", type=int, default=250_000)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--times", type=int, default=1)
    arguments = parser.parse_args()
    plan = Plan(jobs=arguments.jobs, workers=1, prefill=True)
    looks = {True: repeated(arguments.times), False: lambda _trace, _pids: None}

    def drain(*, looking: bool) -> float:
        MemoryTrace.look = looks[looking]
        return run(plan, arguments.url).result.drain_per_s or 0.0

    drain(looking=True)  # to warm up
    gains: list[float] = []
    for pair in range(arguments.pairs):
        rate = {looking: drain(looking=looking) for looking in (pair % 2 == 0, pair % 2 == 1)}
        gains.append(math.log(rate[True] / rate[False]))
        print(f"without {rate[False]:,.0f} with {rate[True]:,.0f} {math.expm1(gains[-1]):+.2%}", flush=True)
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    print(
        f"mean {math.expm1(statistics.mean(gains)):+.2%}, standard error {error:.2%}, {arguments.times} times each look"
    )


def repeated(times: int) -> Look:
    real = MemoryTrace.look

    def look(trace: MemoryTrace, pids: Iterable[int]) -> None:
        pids, before = list(pids), len(trace.at)
        real(trace, pids)
        if len(trace.at) != before:
            for _ in range(times - 1):
                real(MemoryTrace(), pids)  # a new one's first look is the dearest: for descendants, too

    return look


if __name__ == "__main__":
    main()
