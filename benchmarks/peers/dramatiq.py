"""Dramatiq, with Redis as broker and as result backend."""

import os
import time
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker

PACKAGE = "dramatiq"
GUARANTEE = "at least once; what a dead worker held comes back by chance (1 in 1,000 calls looks after it)"
SHARE = 0.05

broker = RedisBroker(url=os.environ["PEERS_REDIS"])
backend = RedisBackend(url=os.environ["PEERS_REDIS"])
broker.add_middleware(Results(backend=backend))
dramatiq.set_broker(broker)
notes = tally.here()
starts = notes.starts


@dramatiq.actor(store_results=True)
def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


@dramatiq.actor(store_results=True)
def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    time.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


def _worker(threads: int) -> list[str]:
    return ["-m", "dramatiq", "benchmarks.peers.dramatiq", "-p", "1", "-t", str(threads)]


WORKERS = {"": Worker("1 process, 32 threads", _worker(32))}
KILLED = Worker("1 process, 4 threads", _worker(4))


def send(number: int, *, held: bool = False) -> dramatiq.Message:
    return (hold if held else noop).send(DATA, number)


def stored(ids: Sequence[dramatiq.Message]) -> int:
    return backend.client.exists(*(backend.build_message_key(message) for message in ids))


def read(id: dramatiq.Message) -> object:
    return id.get_result(backend=backend, block=False)
