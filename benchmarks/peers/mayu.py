"""mayu: a Rust core fetches and acknowledges off the GIL; handlers run in threads of the worker."""

import os
import time
from collections.abc import Sequence

import redis
from mayu import App

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker

PACKAGE = "mayu"
GUARANTEE = "at least once, no fence; redelivered after 30 s"
SHARE = 1.0

app = App(broker=os.environ["PEERS_REDIS"], result_ttl=3600)
store = redis.Redis.from_url(os.environ["PEERS_REDIS"])
notes = tally.here()
starts = notes.starts


@app.task(name="noop")
def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@app.task(name="hold")
def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    time.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


def _worker(*options: str) -> list[str]:
    return ["-m", "mayu", "worker", "benchmarks.peers.mayu:app", "--mode", "thread", "--log-level", "ERROR", *options]


WORKERS = {
    "": Worker("thread mode, 2 threads, prefetch ×128", _worker("--threads", "2", "--prefetch-multiplier", "128")),
}
KILLED = Worker("4 threads", _worker("--threads", "4"))


def send(number: int, *, held: bool = False) -> str:
    return (hold if held else noop).send(DATA, number).id


def stored(ids: Sequence[str]) -> int:
    return store.exists(*(f"mayu:result:{id}" for id in ids))


def read(id: str) -> object:
    from mayu.handle import TaskHandle

    return TaskHandle(app, id).result(timeout=1)
