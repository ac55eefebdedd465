"""RQ, with the worker that runs jobs in its own process; the one that forks for each job is slower by far."""

import os
import time
from collections.abc import Sequence

import redis
from rq import Queue, Retry
from rq.job import Job

from benchmarks.peers import tally
from benchmarks.peers.peer import DATA, HELD_SECONDS, URL, Worker

PACKAGE = "rq"
GUARANTEE = "at least once with Retry, as in the kill test (by default the job fails); seen by a check every 10 min"
SHARE = 0.008

store = redis.Redis.from_url(os.environ["PEERS_REDIS"])
queue = Queue("bench", connection=store)
notes = tally.here()
starts = notes.starts


def noop(data: str, number: int) -> dict[str, bool]:
    starts[number] = time.monotonic_ns()
    return {"processed": True}


def hold(data: str, number: int) -> dict[str, bool]:
    notes.hold("begin", number)
    time.sleep(HELD_SECONDS)
    notes.hold("end", number)
    return {"processed": True}


_PLACE = ["--url", URL, "--quiet"]
WORKERS = {
    "": Worker("SimpleWorker", ["-m", "rq.cli", "worker", "-w", "rq.worker.SimpleWorker", *_PLACE, "bench"]),
}
KILLED = Worker("pool of 4 workers that fork", ["-m", "rq.cli", "worker-pool", "-n", "4", *_PLACE, "bench"])


def send(number: int, *, held: bool = False) -> str:
    if held:
        return queue.enqueue(hold, DATA, number, result_ttl=3600, retry=Retry(max=1)).id
    return queue.enqueue(noop, DATA, number, result_ttl=3600).id


def send_many(numbers: Sequence[int]) -> Sequence[str]:
    prepared = [Queue.prepare_data(noop, args=(DATA, number), result_ttl=3600) for number in numbers]
    return [job.id for job in queue.enqueue_many(prepared)]


def stored(ids: Sequence[str]) -> int:
    return store.exists(*(f"rq:results:{id}" for id in ids))


def read(id: str) -> object:
    return Job.fetch(id, connection=store).return_value()
