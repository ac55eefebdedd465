"""Celery, with Redis as broker and as result backend."""

import os
import time
from collections.abc import Sequence

import redis
from celery import Celery
from celery.result import AsyncResult

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, Worker

PACKAGE = "celery"
GUARANTEE = "at least once (acks_late), redelivered after 1 h of visibility timeout"
SHARE = 0.02

app = Celery("bench", broker=os.environ["PEERS_REDIS"], backend=os.environ["PEERS_REDIS"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
app.conf.update(task_serializer="json", result_serializer="json", result_expires=3600, worker_hijack_root_logger=False)
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


def _worker(processes: int, prefetch: int) -> list[str]:
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    options += ["--prefetch-multiplier", str(prefetch)]
    return [
        "-m",
        "celery",
        "-A",
        "benchmarks.peers.celery:app",
        "worker",
        "-P",
        "prefork",
        "-c",
        str(processes),
        *options,
    ]


WORKERS = {"": Worker("prefork, 1 process, acks_late, prefetch ×64", _worker(1, 64))}
KILLED = Worker("prefork, 4 processes, acks_late, prefetch ×1", _worker(4, 1))


def send(number: int, *, held: bool = False) -> str:
    return (hold if held else noop).delay(DATA, number).id


def stored(ids: Sequence[str]) -> int:
    return store.exists(*(f"celery-task-meta-{id}" for id in ids))


def read(id: str) -> object:
    return AsyncResult(id, app=app).get(timeout=1)
