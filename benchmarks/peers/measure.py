"""One run of one peer: enqueue, drain, latency. What is measured and how is in the package's docstring."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import msgspec
import redis

from benchmarks.peers import peer, tally
from benchmarks.peers.processes import Bench, Failed, Producer, Worker, bench, until
from spool.bench.machine import cpu_seconds, memory_of

_READY_SECONDS = 30.0
_TAIL = 500
"""Of so many jobs, those that began last, the results are waited for; then all are counted."""
_LAST_SECONDS = 5.0
_READ = 50
_WARM = 20
_FIRST = 200
_LEAST = 500


class Sizes(msgspec.Struct, frozen=True):
    """How much work: ``jobs`` for a peer whose share is 1."""

    jobs: int = 200_000
    one: int = 2_000
    rate: float = 500.0
    seconds: float = 4.0
    drain_seconds: float = 90.0

    def jobs_of(self, each: "Described") -> int:
        return max(_LEAST, int(self.jobs * each.share))


class Drain(msgspec.Struct, frozen=True):
    jobs: int
    startup: float
    """Seconds from the start of the worker's process to the first job; no part of the drain."""
    seconds: float
    stored: int
    readable: bool
    """Whether those results that were read by the peer's own call were what the handler returned."""
    worker_us: float
    """CPU of all of the worker's processes per job; what of it falls into the drain."""
    redis_us: float
    """CPU of the Redis server per job."""
    commands: float
    """Redis commands per job, those within scripts included."""
    memory: float
    """Megabytes (PSS, over all of the worker's processes) at the end."""

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from the call of enqueue to the first line of the handler."""

    p50: float
    p95: float
    p99: float
    max: float
    memory: float
    """Megabytes (PSS, over all of the worker's processes) of the idle worker before."""
    late: float
    """Seconds that the producer was behind at the end: it could not keep up with the rate."""


class Run(msgspec.Struct, frozen=True):
    one: float
    """Jobs enqueued per second, one call after the other."""
    many: float
    drain: Drain
    latency: Latency | None
    """None when the worker cannot keep up with the rate, or for the ``trouble`` that there was."""
    trouble: str = ""


class Described(msgspec.Struct, frozen=True):
    """What a peer's module says of itself, in its own environment; and its variant that is measured."""

    module: str
    version: str
    python: str
    guarantee: str
    share: float
    bulk: str
    """"" for a call of its own, "gathered" for many single calls at once, "none"."""
    worker: peer.Worker
    killed: peer.Worker


class Store:
    """The Redis server that the peers share in turns."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = redis.Redis.from_url(url)

    def empty(self) -> None:
        self._client.flushall()
        self._client.script_flush()
        self._client.config_resetstat()

    def used(self) -> tuple[float, int]:
        """Return the server's CPU seconds and how many commands it has carried out."""
        cpu = self._client.info("cpu")
        calls = sum(each["calls"] for each in self._client.info("commandstats").values())
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"], calls

    @contextmanager
    def step(self, module: str, jobs: int) -> Generator[Bench]:
        self.empty()
        with bench(module, self.url) as made:
            tally.create(made.place, jobs)
            yield made


def describe(name: str, store: Store) -> Described:
    """Ask for ``MODULE`` or ``MODULE:VARIANT``. Raises `Unavailable` and `Failed`."""
    module, _, variant = name.partition(":")
    with store.step(module, 0) as here, here.producer() as producer:
        return msgspec.convert(producer.ask("describe", variant=variant) | {"module": module}, Described)


def run(each: Described, store: Store, sizes: Sizes) -> Run:
    """Measure a peer once. Raises `Failed`, but for the latency alone, which leaves the rest as it is."""
    one = enqueue(each.module, store, sizes)
    many, drained = drain(each, store, sizes)
    try:
        return Run(one, many, drained, latency(each, store, sizes))
    except Failed as error:
        return Run(one, many, drained, None, str(error))


def enqueue(module: str, store: Store, sizes: Sizes) -> float:
    """Return how many jobs a second are enqueued one by one, after a few that open the connection."""
    with store.step(module, sizes.one) as here, here.producer() as producer:
        producer.ask("one", first=sizes.one, count=_WARM)
        return sizes.one / producer.ask("one", first=0, count=sizes.one)


def drain(each: Described, store: Store, sizes: Sizes) -> tuple[float, Drain]:
    """Return how many jobs a second were enqueued in bulk, and how they were drained."""
    jobs = sizes.jobs_of(each)
    with store.step(each.module, jobs) as here, here.producer() as producer:
        producer.ask("one", first=jobs, count=1)  # opens the connection; it is drained with the others
        many = jobs / producer.ask("many", first=0, count=jobs, timeout=sizes.drain_seconds)
        starts = tally.open_times(here.place, "starts")
        spawned = time.monotonic_ns()
        with here.worker(each.worker.command, each.worker.slots) as worker:
            until(lambda: any(starts[:_FIRST]), _READY_SECONDS, "the first start", worker)
            used, (redis_cpu, calls) = cpu_seconds(worker.pids()), store.used()
            ended = _finish(producer, worker, starts, jobs, sizes)
            used = cpu_seconds(worker.pids()) - used
            redis_after, calls_after = store.used()
            memory = memory_of(worker.pids()).pss or 0.0
        # The worker is gone; what is stored now is all that there will be.
        began, step = min(starts[:jobs]), max(1, jobs // _READ)
        sample = list(range(0, jobs, step))
        return many, Drain(
            jobs=jobs,
            startup=(began - spawned) / 1e9,
            seconds=(ended - began) / 1e9,
            stored=producer.ask("results") - 1,
            readable=producer.ask("read", numbers=sample) == len(sample),
            worker_us=used / jobs * 1e6,
            redis_us=(redis_after - redis_cpu) / jobs * 1e6,
            commands=(calls_after - calls) / jobs,
            memory=memory,
        )


def _finish(producer: Producer, worker: Worker, starts: memoryview, jobs: int, sizes: Sizes) -> int:
    """Wait until every job has begun, looking at memory alone, then until the last ones' results are stored.

    Returns when that was; where results never come, when the last job began. How many there are is counted later.
    """
    seen = 0

    def all_begun() -> bool:
        nonlocal seen
        while seen < jobs and starts[seen]:
            seen += 1
        return seen == jobs

    until(all_begun, sizes.drain_seconds, "the drain", worker, pause=0.005)
    tail = sorted(range(jobs), key=starts.__getitem__)[-_TAIL:]
    deadline = time.monotonic() + _LAST_SECONDS
    while not producer.ask("settled", numbers=tail):
        if time.monotonic() > deadline:
            return max(starts[:jobs])
        time.sleep(0.001)
    return time.monotonic_ns()


def latency(each: Described, store: Store, sizes: Sizes) -> Latency | None:
    """Return how late jobs start on an idle, warm worker when they come at an even rate."""
    jobs = int(sizes.rate * sizes.seconds)
    with (
        store.step(each.module, jobs) as here,
        here.worker(each.worker.command, each.worker.slots) as worker,
        here.producer() as producer,
    ):
        starts, sent = tally.open_times(here.place, "starts"), tally.open_times(here.place, "sent")
        for warm in range(_WARM):
            producer.ask("one", first=jobs + warm, count=1)
            until(lambda warm=warm: starts[jobs + warm], _READY_SECONDS, "the first start", worker)
        memory = memory_of(worker.pids()).pss or 0.0
        late = producer.ask("paced", first=0, count=jobs, rate=sizes.rate, timeout=10 * sizes.seconds + 10)
        if not _begun_within(starts, jobs, sizes.seconds):
            worker.check()
            return None
        waits = sorted((starts[number] - sent[number]) / 1e6 for number in range(jobs))
        at = {name: round(waits[int(share * (jobs - 1))], 3) for name, share in _SHARES.items()}
        return Latency(**at, memory=memory, late=round(late, 3))


def _begun_within(starts: memoryview, jobs: int, seconds: float) -> bool:
    """Wait until all have begun, but no longer than the load took: what is behind by then can't keep up."""
    deadline = time.monotonic() + seconds
    while not all(starts[:jobs]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
