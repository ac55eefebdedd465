"""Health at a glance: what is wrong now, in which queue, with which error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from spool.broker import Broker, Find, Load, QueueStats, Stats
from spool.grouping import ErrorGroup, Grouping
from spool.job import State
from spool.telemetry.bucket import EVERYWHERE, TIERS, Lines, read_tier
from spool.telemetry.roller import Progress, read_progress
from spool.view import view

WINDOW: Final = 300_000
"""What is recent (ms)."""
BEHIND: Final = 60_000
"""A queue whose oldest ready job has been waiting for longer (ms) is behind."""
LOOKED_AT: Final = 100
"""Jobs of a queue, the latest, that are looked at for their errors."""

Status = Literal["ok", "warning", "bad"]
Kind = Literal["no_workers", "behind", "failing", "crashing", "lost", "parked", "paused", "unmeasured"]
_BAD: Final = frozenset({"no_workers", "crashing", "failing"})


class Trouble(msgspec.Struct, frozen=True):
    """One thing that is wrong. ``queue`` is empty for what belongs to none; ``error`` is the commonest, if any.

    ``no_workers``: jobs are ready and nobody serves the queue. ``behind``: a ready job has been waiting for more than a
    minute. ``failing``, ``crashing``, ``lost``: jobs that died, or were handed back after a crash or with a lease, in
    the last five minutes. ``parked``: no worker knows the task. ``paused``: and jobs are ready. ``unmeasured``: metrics
    are missing or late.
    """

    kind: Kind
    status: Status
    queue: str
    count: int
    message: str
    error: ErrorGroup | None = None


class Summary(msgspec.Struct, frozen=True):
    """How the whole stands: ``bad`` if any trouble is, else ``warning`` if there is one.

    ``throughput``: jobs that ended per second, over the last minute. ``oldest``: seconds that the oldest ready job has
    been waiting. ``troubles``: the worst first.
    """

    now: int
    status: Status
    ready: int
    running: int
    scheduled: int
    dead: int
    workers: int
    throughput: float
    oldest: float
    troubles: list[Trouble]


def survey(broker: Broker, only: frozenset[str] | None = None) -> Summary:
    """Look at every queue, or at ``only`` some, and at what happened in the last five minutes. Raises `BrokerError`.

    >>> from spool.broker import connect
    >>> survey(connect("sqlite://:memory:")).status
    'ok'
    """
    names = [name for name in _queues(broker) if only is None or name in only]
    stats = {name: broker.call(Stats(name)) for name in names}
    progress = read_progress(broker)[0] or Progress()
    now = broker.call(Load("queue", "", 1)).now
    lines = [each for each in read_tier(broker, TIERS[0]) if now - WINDOW <= each.start <= now]
    troubles = [trouble for name in names for trouble in _of_queue(broker, name, stats[name], lines, progress)]
    troubles += _of_metrics(names, lines, progress, now)
    troubles.sort(key=lambda trouble: (trouble.status != "bad", -trouble.count))
    statuses = {trouble.status for trouble in troubles}
    minute = [each for each in lines if each.start >= now - 60_000]
    ended = sum(sum(_recent(minute, name)[event] for event in ("done", "dead", "cancelled")) for name in names)
    return Summary(
        now=now,
        status="bad" if "bad" in statuses else "warning" if statuses else "ok",
        ready=sum(sum(each.ready) for each in stats.values()),
        running=sum(each.running for each in stats.values()),
        scheduled=sum(each.scheduled for each in stats.values()),
        dead=sum(each.dead for each in stats.values()),
        workers=_workers(lines),
        throughput=ended / 60,
        oldest=max((_waited(name, each, progress) for name, each in stats.items()), default=0) / 1000,
        troubles=troubles,
    )


def _queues(broker: Broker) -> list[str]:
    names: list[str] = []
    cursor = ""
    while True:
        loaded = broker.call(Load("queue", cursor))
        names += [document.key for document in loaded.documents]
        if not (cursor := loaded.cursor):
            return names


def _recent(lines: list[Lines], queue: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for each in lines:
        line = each.lines.get(queue)
        if line is not None:
            counts.update(line.counts)
    return counts


def _workers(lines: list[Lines]) -> int:
    last = next((each.lines[EVERYWHERE] for each in reversed(lines) if EVERYWHERE in each.lines), None)
    return round(last.sums[-1] / last.samples) if last is not None and last.samples else 0


def _of_queue(
    broker: Broker, queue: str, stats: QueueStats, lines: list[Lines], progress: Progress
) -> Iterator[Trouble]:
    ready, recent = sum(stats.ready), _recent(lines, queue)
    oldest = _waited(queue, stats, progress)
    if ready and not stats.workers:
        yield _trouble("no_workers", queue, ready, f"{ready} jobs are ready and no worker serves the queue")
    elif ready and stats.paused:
        yield _trouble("paused", queue, ready, f"the queue is paused with {ready} jobs ready")
    elif ready and oldest > BEHIND:
        yield _trouble("behind", queue, ready, f"a job has been ready for {oldest / 1000:.0f} s, with {ready} in line")
    if recent["dead"]:
        error = _commonest(broker, queue, stats.now)
        what = f", most often of {error.error_type}: {error.message}" if error else ""
        yield _trouble("failing", queue, recent["dead"], f"{recent['dead']} jobs died in 5 minutes{what}", error)
    if recent["crashed"]:
        yield _trouble("crashing", queue, recent["crashed"], f"{recent['crashed']} jobs lost their worker to a crash")
    if recent["lost"]:
        yield _trouble("lost", queue, recent["lost"], f"{recent['lost']} jobs lost their worker's lease")
    if stats.parked:
        tasks = ", ".join(sorted(stats.parked)[:3])
        parked = sum(stats.parked.values())
        yield _trouble("parked", queue, parked, f"{parked} jobs wait for a worker that knows their task: {tasks}")


def _waited(queue: str, stats: QueueStats, progress: Progress) -> int:
    """Return for how long (ms) the oldest ready job has been waiting, as far as is known."""
    since = progress.ready_since(queue, stats)
    return 0 if since is None else max(0, stats.now - since)


def _of_metrics(names: list[str], lines: list[Lines], progress: Progress, now: int) -> Iterator[Trouble]:
    if progress.silent(now):
        yield _trouble("unmeasured", "", 0, "no server has rolled metrics up for a while")
    for queue in names:
        missed = sum(each.lines[queue].missed + each.lines[queue].damaged for each in lines if queue in each.lines)
        if missed:
            message = f"the counts of {missed} settles were gone or damaged before they were read"
            yield _trouble("unmeasured", queue, missed, message)


def _trouble(kind: Kind, queue: str, count: int, message: str, error: ErrorGroup | None = None) -> Trouble:
    return Trouble(kind, "bad" if kind in _BAD else "warning", queue, count, message, error)


def _commonest(broker: Broker, queue: str, now: int) -> ErrorGroup | None:
    """Return the error that most of the latest dead jobs died of."""
    grouping = Grouping()
    for snapshot in broker.call(Find(queue, State.DEAD, limit=LOOKED_AT)).jobs:
        if (snapshot.finished or 0) >= now - WINDOW:
            grouping.add(view(snapshot))
    top = grouping.top(1).top
    return top[0] if top else None
