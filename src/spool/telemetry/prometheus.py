"""The state and the totals of a broker in the formats of Prometheus and OpenMetrics.

Needs ``prometheus_client``, which the extra ``server`` installs; only this module does. What each metric means is in
its help text, and in ``docs/guides/monitoring.md``.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from spool.broker import Broker, Load, QueueStats, Stats
from spool.errors import BrokerError
from spool.job import PRIORITIES
from spool.telemetry.counted import Counted
from spool.telemetry.ledger import Sums, read_sums
from spool.telemetry.roller import Progress, read_progress

WAITS: Final = range(0, 29, 2)
"""Exponents of the buckets of waits: 1 ms to 3 days, each four times the one before."""
RUNS: Final = range(10, 43, 2)
"""Exponents of the buckets of runs: 1 µs to 73 minutes, each four times the one before."""

_TOTALS: Final = {
    "enqueued": ("spool_jobs_enqueued", "Jobs stored"),
    "retried": ("spool_retries", "Attempts that failed, and after which the job is to run again"),
    "released": ("spool_releases", "Jobs that were handed back by their attempt, no failure counted"),
    "stopped": ("spool_stops", "Jobs that were handed back since their worker stopped"),
    "crashed": ("spool_crashes", "Jobs that were handed back since their worker crashed"),
    "lost": ("spool_leases_lost", "Jobs that were handed back since the lease of their worker ran out"),
    "replayed": ("spool_jobs_replayed", "Dead jobs that were put back"),
    "deleted": ("spool_jobs_deleted", "Jobs that were deleted"),
    "pruned": ("spool_jobs_pruned", "Dead jobs that were dropped for age or number"),
    "repairs": ("spool_repairs", "Entries of queues without a job that were dropped: damage of the store"),
}
_ENDS: Final = ("done", "dead", "cancelled")


class Exposition:
    """What Prometheus scrapes.

    Counters and histograms are the store's: the same from every server of one broker, and they go on after a restart.
    Only ``spool_broker_errors_total`` and ``process_*`` are those of this process. ``process`` False leaves the latter
    out. Without a store the answer holds ``spool_broker_up 0`` and those.
    """

    def __init__(self, broker: Counted, *, process: bool = True) -> None:
        self._broker = broker
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(broker))
        if process:
            ProcessCollector(registry=self._registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return body and content type, in the format that an ``Accept`` header asks for: OpenMetrics or text.

        Reads the store: a few round trips, and one for each queue.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type


class _Collector:
    """Reads the store anew for each scrape."""

    def __init__(self, broker: Counted) -> None:
        self._broker = broker

    def collect(self) -> Iterator[Metric]:
        up = True
        try:
            found = _read(self._broker)
        except BrokerError:
            up, found = False, None
        yield InfoMetricFamily(
            "spool_build", "This server", {"version": version("spool-queue"), "python": platform.python_version()}
        )
        yield GaugeMetricFamily("spool_broker_up", "Whether the store answered this scrape", float(up))
        errors = CounterMetricFamily(
            "spool_broker_errors", "Calls of this server's process that the store failed", labels=["error"]
        )
        for error, count in sorted(self._broker.errors().items()):
            errors.add_metric([error], count)
        yield errors
        if found is not None:
            yield from found


def _read(broker: Broker) -> list[Metric]:
    """Return all metrics of the store. Raises `BrokerError`."""
    names: list[str] = []
    cursor = ""
    while True:
        loaded = broker.call(Load("queue", cursor))
        names += [document.key for document in loaded.documents]
        if not (cursor := loaded.cursor):
            break
    progress, _ = read_progress(broker)
    sums = read_sums(broker)
    workers = _count_workers(broker)
    queues = {name: broker.call(Stats(name)) for name in names}
    return [
        *_states(queues, progress or Progress(), workers),
        *_totals(queues),
        *_rolled(sums),
        *_about_metrics(sums, progress or Progress(), loaded.now),
    ]


def _count_workers(broker: Broker) -> int:
    workers, cursor = 0, ""
    while True:
        loaded = broker.call(Load("worker", cursor))
        workers, cursor = workers + len(loaded.documents), loaded.cursor
        if not cursor:
            return workers


def _states(queues: Mapping[str, QueueStats], progress: Progress, workers: int) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("spool_jobs", "Jobs that are not done or cancelled, by state", labels=["queue", "state"])
    depth = GaugeMetricFamily("spool_queue_depth", "Ready jobs, by priority", labels=["queue", "priority"])
    oldest = GaugeMetricFamily(
        "spool_queue_oldest_seconds", "For how long the oldest ready job has been waiting", labels=["queue"]
    )
    paused = GaugeMetricFamily("spool_queue_paused", "1 while a queue is paused", labels=["queue"])
    alive = GaugeMetricFamily("spool_queue_workers", "Workers that hold a lease of a queue", labels=["queue"])
    for queue, stats in queues.items():
        for state, count in _by_state(stats):
            jobs.add_metric([queue, state], count)
        for priority, count in zip(PRIORITIES, stats.ready, strict=True):
            depth.add_metric([queue, priority], count)
        since = progress.ready_since(queue, stats)
        if since is not None or not any(stats.ready):
            oldest.add_metric([queue], 0 if since is None else max(0, stats.now - since) / 1000)
        paused.add_metric([queue], float(stats.paused))
        alive.add_metric([queue], stats.workers)
    everywhere = GaugeMetricFamily("spool_workers", "Workers, each counted once however many queues it serves", workers)
    yield from (jobs, depth, oldest, paused, alive, everywhere)


def _by_state(stats: QueueStats) -> Iterable[tuple[str, int]]:
    return (
        ("scheduled", stats.scheduled),
        ("ready", sum(stats.ready)),
        ("parked", sum(stats.parked.values())),
        ("suspect", stats.suspect),
        ("running", stats.running),
        ("dead", stats.dead),
    )


def _totals(queues: Mapping[str, QueueStats]) -> Iterator[Metric]:
    ended = CounterMetricFamily("spool_jobs_ended", "Jobs that ended, by how", labels=["queue", "state"])
    for queue, stats in queues.items():
        for end in _ENDS:
            ended.add_metric([queue, end], stats.totals.get(end, 0))
    yield ended
    for total, (name, about) in _TOTALS.items():
        family = CounterMetricFamily(name, about, labels=["queue"])
        for queue, stats in queues.items():
            family.add_metric([queue], stats.totals.get(total, 0))
        yield family


def _rolled(sums: Sums) -> Iterator[Metric]:
    labels = ["queue", "task"]
    outcomes = CounterMetricFamily("spool_attempts", "Attempts, by how they ended", labels=[*labels, "outcome"])
    wait = HistogramMetricFamily(
        "spool_wait_seconds", "Time from the call of enqueue to the start of the first attempt", labels=labels
    )
    run = HistogramMetricFamily("spool_run_seconds", "Time from the start of an attempt to its end", labels=labels)
    for queue, tasks in sorted(sums.attempts.items()):
        for task, attempts in sorted(tasks.items()):
            for outcome, count in sorted(attempts.outcomes.items()):
                outcomes.add_metric([queue, task, outcome], count)
            wait.add_metric([queue, task], _buckets(attempts.waits, WAITS, 1e-3), attempts.waited)
            run.add_metric([queue, task], _buckets(attempts.runs, RUNS, 1e-9), attempts.ran)
    yield from (outcomes, wait, run)


def _buckets(histogram: Mapping[int, int], exponents: Iterable[int], unit: float) -> list[tuple[str, float]]:
    """Return (upper bound in seconds, values up to it) for powers of two of a unit."""
    edges = [
        (repr(2.0**exponent * unit), float(sum(n for bucket, n in histogram.items() if bucket <= exponent)))
        for exponent in exponents
    ]
    return [*edges, ("+Inf", float(sum(histogram.values())))]


def _about_metrics(sums: Sums, progress: Progress, now: int) -> Iterator[Metric]:
    missed = CounterMetricFamily(
        "spool_metrics_missed", "Settles whose counts were gone before a server read them", labels=["queue"]
    )
    damaged = CounterMetricFamily("spool_metrics_damaged", "Settles whose counts could not be read", labels=["queue"])
    for queue in progress.queues:
        missed.add_metric([queue], sums.missed.get(queue, 0))
        damaged.add_metric([queue], sums.damaged.get(queue, 0))
    yield from (missed, damaged)
    if progress.at:
        age = max(0, now - progress.at) / 1000
        yield GaugeMetricFamily("spool_metrics_age_seconds", "Time since a server rolled metrics up", age)
