"""Compare Spool with a yardstick, in alternating runs on one store, and print medians and ratios.

```sh
python benchmarks/against_floor.py benchmarks/floor.py --url redis://127.0.0.1:6379/15 --concurrency 400
python benchmarks/against_floor.py benchmarks/floor.py --url redis://127.0.0.1:6379/15 --rate 500
python benchmarks/against_floor.py benchmarks/floor.py --jobs 50000
```

The yardstick is a program that prints one JSON object. It is called with ``--redis URL`` (or ``--sqlite NEW_FILE`` when
no --url is given), ``--jobs`` and ``--payload``, and prints ``enqueue_per_s`` and ``drain_per_s``; with ``--rate`` it
is called with ``--latency --rate --seconds`` and prints ``start_ms``. It may empty the database that the URL names:
give it one of its own.

Ratios of rates are Spool over yardstick (more is better), ratios of latencies too (less is better). Absolute figures
move with the machine; the ratio of medians of alternating runs moves less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Figures = dict[str, float]


def main() -> None:
    arguments = parse()
    floor: list[Figures] = []
    spool: list[Figures] = []
    for pair in range(arguments.pairs):
        floor.append(run_floor(arguments))
        spool.append(run_spool(arguments))
        print(f"pair {pair + 1}: floor {shown(floor[-1])} | spool {shown(spool[-1])}", file=sys.stderr)
    result = {name: compared(floor, spool, name) for name in floor[0]}
    cost = {name: statistics.median(each[name] for each in spool) for name in spool[0] if name not in floor[0]}
    print(json.dumps({"pairs": arguments.pairs, "jobs": arguments.jobs, **result, "spool": cost}, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("floor", help="the yardstick's program")
    parser.add_argument("--url", help="a Redis database of its own; it is emptied. Default: SQLite files")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--payload", type=int, default=1024)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=int, help="compare latency under a paced load instead")
    parser.add_argument("--seconds", type=float, default=8.0, help="of paced load")
    arguments = parser.parse_args()
    if arguments.rate:
        arguments.jobs = int(arguments.rate * arguments.seconds)
    return arguments


def run_floor(arguments: argparse.Namespace) -> Figures:
    command = [sys.executable, arguments.floor, "--payload", str(arguments.payload)]
    with tempfile.TemporaryDirectory() as directory:
        command += ["--redis", arguments.url] if arguments.url else ["--sqlite", str(Path(directory, "floor.db"))]
        if arguments.rate:
            command += ["--latency", "--rate", str(arguments.rate), "--seconds", str(arguments.seconds)]
        else:
            command += ["--jobs", str(arguments.jobs)]
        found = run(command)
    if arguments.rate:
        return {name: found["start_ms"][name] for name in ("p50", "p99")}
    return {name: found[name] for name in ("enqueue_per_s", "drain_per_s")}


def run_spool(arguments: argparse.Namespace) -> Figures:
    command = [sys.executable, "-m", "spool", "bench", "custom", "--json", "-"]
    command += ["--jobs", str(arguments.jobs), "--payload", str(arguments.payload)]
    command += ["--workers", str(arguments.workers), "--concurrency", str(arguments.concurrency)]
    command += ["--rate", str(arguments.rate), "--arrivals", "even"] if arguments.rate else ["--prefill"]
    if arguments.url:
        command += ["--url", arguments.url]
    result = run(command)["result"]
    if result["lost"] or result["duplicated"] or result["done"] != arguments.jobs:
        raise SystemExit(f"this run does not count: {result}")
    memory = {"pss_mb": result["memory_mb"]["pss"], "worker_cpu_us": result["worker_cpu_us"]}
    if arguments.rate:
        # From the call as it was made, as the yardstick has it.
        latency = result["latency_ms"]
        start = latency["start_after_call"]
        return {"p50": start["p50"], "p99": start["p99"], "p99_since_due": latency["start"]["p99"], **memory}
    return {"enqueue_per_s": result["enqueue_per_s"], "drain_per_s": result["drain_per_s"], **memory}


def run(command: list[str]) -> Any:
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def compared(floor: list[Figures], spool: list[Figures], name: str) -> dict[str, float]:
    theirs = statistics.median(each[name] for each in floor)
    ours = statistics.median(each[name] for each in spool)
    return {"floor": theirs, "spool": ours, "ratio": round(ours / theirs, 3)}


def shown(figures: Figures) -> str:
    return ", ".join(
        f"{name} {value:,.2f}" if value < 100 else f"{name} {value:,.0f}" for name, value in figures.items()
    )


if __name__ == "__main__":
    main()
