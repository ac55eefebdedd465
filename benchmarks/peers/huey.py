"""Huey on Redis. It has no acknowledgement: a job leaves the store before it runs."""

import os
import time

from huey import RedisHuey

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker

PACKAGE = "huey"
GUARANTEE = "at most once"
SHARE = 0.06

huey = RedisHuey("bench", url=os.environ["PEERS_REDIS"], blocking=True)
notes = tally.here()
starts = notes.starts


@huey.task(name="noop")
def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@huey.task(name="hold")
def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    time.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


_WORKER = ["-m", "huey.bin.huey_consumer", "benchmarks.peers.huey.huey", "-k", "thread", "-w", "4", "-q"]
WORKERS = {"": Worker("4 threads, blocking pop", _WORKER)}
KILLED = Worker("4 threads", _WORKER)


def send(number: int, *, held: bool = False) -> str:
    return (hold if held else noop)(DATA, number).id


def results() -> int:
    return huey.storage.result_store_size()


def read(id: str) -> object:
    return huey.result(id, preserve=True)
