"""How long an idle worker takes from the call of `aenqueue` to the result in hand, one job after the other.

```sh
python -m benchmarks.results redis://127.0.0.1:6379/15
```
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

from spool import Spool
from spool.supervisor import Fleet, WorkerOptions

app = Spool()


@app.task
async def noop(data: str, number: int) -> dict[str, bool]:
    return {"processed": True}


async def measure(jobs: int) -> list[float]:
    await (await noop.aenqueue("", 0)).aresult(timeout=10)
    taken: list[float] = []
    for number in range(jobs):
        await asyncio.sleep(0.003)  # so that the worker is idle again
        began = time.perf_counter()
        await (await noop.aenqueue("x" * 1024, number)).aresult(timeout=10)
        taken.append((time.perf_counter() - began) * 1000)
    await app.aclose()
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--jobs", type=int, default=2_000)
    arguments = parser.parse_args()
    os.environ["SPOOL_URL"] = arguments.url
    with Fleet(WorkerOptions(app="benchmarks.results:app", log_level="warning")) as fleet:
        fleet.wait_ready()
        taken = asyncio.run(measure(arguments.jobs))
    at = {
        name: round(taken[int(share * (len(taken) - 1))], 3)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
    }
    print(json.dumps({"jobs": len(taken), "result_ms": at}))


if __name__ == "__main__":
    main()
