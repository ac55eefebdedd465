"""Spool, through its public interface."""

import os
import time
from collections.abc import Sequence

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker
from spool import Spool
from spool.broker import Stats

PACKAGE = "spool-queue"
GUARANTEE = "at least once, fenced: one outcome per attempt; at once on the same machine, else after 10 s"
SHARE = 1.0

app = Spool(os.environ["PEERS_REDIS"])
notes = tally.here()
starts = notes.starts


@app.task
async def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@app.task
def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    time.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


def _worker(slots: int) -> list[str]:
    return ["-m", "spool", "worker", "benchmarks.peers.spool:app", "--log-level", "error", "--concurrency", str(slots)]


WORKERS = {"": Worker("400 slots", _worker(400)), "100": Worker("100 slots, the default", _worker(100))}
KILLED = Worker("4 slots", _worker(4))


def send(number: int, *, held: bool = False) -> str:
    return (hold if held else noop).enqueue(DATA, number).id


def send_many(numbers: Sequence[int]) -> Sequence[str]:
    calls = [noop.call(DATA, number) for number in numbers]
    app.enqueue_many(calls)
    return [call.job.id for call in calls]


def results() -> int:
    return app.broker.call(Stats("default")).totals.get("done", 0)


def read(id: str) -> object:
    return app.job(id, "default").result
