"""What the live stream shows, read from the broker: one `Watch` for all who look."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from spool.broker import Broker, Find, QueueStats, Stats
from spool.errors import BrokerError
from spool.job import State
from spool.server.documents import load
from spool.server.messages import Event
from spool.server.workers import reported
from spool.telemetry import History, Recent, recent, survey
from spool.telemetry.roller import Progress
from spool.view import view

EVENTS: Final = 50
"""Events that are kept."""
AT_ONCE: Final = 10
"""Dead jobs of a queue that are named in one turn; the others are in its counts."""
TOGETHER: Final = 50
"""Queues that are asked for at once: of a thousand the answers, which come together, would hold up all else."""
TEXT: Final = 300
"""Characters of an error that an event quotes."""
STEPS: Final = 4
"""Seconds of the history, the latest, that go with the stream: what was there before is asked for once."""
COUNTED: Final = ("crashed", "lost", "replayed", "deleted")

Tree = dict[str, Any]


def plain(value: Any) -> Any:
    """Return a struct as JSON has it, without the keys whose value is null: in a patch that means to delete."""
    return _without_null(msgspec.to_builtins(value))


def _without_null(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    tree = cast("Tree", value)
    return {key: _without_null(each) for key, each in tree.items() if each is not None}


class Watch:
    """Looks at the broker in turns, and remembers what changed in between."""

    def __init__(self, broker: Broker, history: History) -> None:
        self._broker = broker
        self._history = history
        self._stats: dict[str, QueueStats] = {}
        self._recent = Recent(Progress(), (), 0)
        self._workers: dict[str, Tree] = {}
        self._died: dict[str, int] = {}
        self._number = 0
        self._first = True
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.now = 0
        self.queues: dict[str, Tree] = {}
        self.trouble = ""

    def forget(self) -> None:
        """Begin anew: nobody has looked for a while, so what is there is no news."""
        self._stats, self._died, self._workers, self.queues = {}, {}, {}, {}
        self.events.clear()
        self._first = True

    async def look(self, *, more: bool) -> list[Event]:
        """Read all queues, and if asked to workers and rates, too; return what happened since the last time."""
        before = self._number
        try:
            names = sorted([document.key async for document, _ in load(self._broker, "queue")])
            stats: dict[str, QueueStats] = {}
            for start in range(0, len(names), TOGETHER):
                some = names[start : start + TOGETHER]
                found = await asyncio.gather(*(self._broker.acall(Stats(name)) for name in some))
                stats |= zip(some, found, strict=True)
            await self._died_since(stats)
            if more or self._first:
                self._recent = await asyncio.to_thread(recent, self._broker)
                self._meet({each.row.incarnation: plain(each) for each in await reported(self._broker)})
        except BrokerError as error:
            self.trouble = str(error) or type(error).__name__
            return []
        self.trouble = ""
        self._note_queues(stats)
        self._stats = stats
        self.queues = {name: _queue(name, each, self._recent) for name, each in stats.items()}
        self._first = False
        return [event for event in self.events if event.id > before]

    @property
    def workers(self) -> Mapping[str, Tree]:
        """The workers' rows, by incarnation."""
        return self._workers

    async def summary(self, only: frozenset[str] | None) -> Tree:
        """Return how all stands (`spool.telemetry.survey`), for who sees all queues or only some."""
        found: Tree = plain(await asyncio.to_thread(survey, self._broker, only))
        return {name: value for name, value in found.items() if name != "now"}

    async def tail(self, queue: str) -> Tree:
        """Return the last seconds of the history, of one queue or all ("")."""
        course = await asyncio.to_thread(self._history.course, 60, queue)
        return {
            name: _last(value) for name, value in msgspec.to_builtins(course).items() if isinstance(value, dict | list)
        }

    def _note_queues(self, stats: Mapping[str, QueueStats]) -> None:
        for name, each in stats.items():
            self.now = max(self.now, each.now)
            before = self._stats.get(name)
            if before is None:
                continue
            if each.paused != before.paused:
                self._event(each.now, "paused" if each.paused else "resumed", queue=name)
            for kind in COUNTED:
                more = each.totals.get(kind, 0) - before.totals.get(kind, 0)
                if more > 0:
                    self._event(each.now, kind, queue=name, count=more)

    async def _died_since(self, stats: Mapping[str, QueueStats]) -> None:
        """Name the jobs that have died; at the first look, the latest that are there."""
        for name, each in stats.items():
            before = self._stats.get(name)
            if not each.dead or (before and each.totals.get("dead", 0) == before.totals.get("dead", 0)):
                continue
            since = self._died.get(name, 0)
            found = await self._broker.acall(Find(name, State.DEAD, limit=AT_ONCE))
            for snapshot in reversed(found.jobs):
                at = snapshot.finished or 0
                if at > since:
                    job = view(snapshot)
                    self._event(at, "dead", queue=name, job=job.id, task=job.task, text=job.error[:TEXT])
            self._died[name] = max((snapshot.finished or 0 for snapshot in found.jobs), default=since)

    def _meet(self, workers: dict[str, Tree]) -> None:
        if not self._first:
            for incarnation in workers.keys() - self._workers.keys():
                self._person("worker_came", workers[incarnation])
            for incarnation in self._workers.keys() - workers.keys():
                self._person("worker_went", self._workers[incarnation])
        self._workers = workers

    def _person(self, kind: str, worker: Tree) -> None:
        row = worker["row"]
        where = f"{row['name']} on {row['host']}, process {row['pid']}"
        self._event(worker["now"], kind, worker=row["incarnation"], text=where)

    def _event(self, at: int, kind: str, **more: Any) -> None:
        self._number += 1
        self.events.append(Event(self._number, at, kind, **more))


def _queue(name: str, stats: QueueStats, found: Recent) -> Tree:
    """Return a queue as the stream shows it: with totals and rates as in `spool.server.queues.Queue`."""
    more = plain({"oldest": found.ready_since(name, stats), "rates": found.rates(name)})
    return {
        "ready": stats.ready,
        "scheduled": stats.scheduled,
        "parked": sum(stats.parked.values()),
        "suspect": stats.suspect,
        "running": stats.running,
        "dead": stats.dead,
        "workers": stats.workers,
        "paused": stats.paused,
        "totals": stats.totals,
        **more,
    }


def _last(value: Any) -> Any:
    if isinstance(value, dict):
        tree = cast("Tree", value)
        return {key: _last(each) for key, each in tree.items()}
    return value[-STEPS:]
