"""Who waits on a SQLite file: for the end of jobs, for work, or for orders.

Costs a look at a counter when nothing has changed.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from spool.broker import Get
from spool.broker.sqlite.jobs import get
from spool.broker.sqlite.store import Transaction, to_json
from spool.job import Snapshot

SHORTEST: Final = 0.001
LONGEST: Final = 0.02
"""Seconds from one look for changes by other processes to the next: a tenth of the wait so far, within these."""
ORDERS: Final = 0.05
"""The same while all that is waited for are orders, which are good for some time."""


class Ended(NamedTuple):
    """Wait for the end of a job."""

    queue: str
    id: str
    timeout: float | None


class AwaitWork(NamedTuple):
    """Wait for work in one of the lanes of one of the queues."""

    queues: tuple[str, ...]
    timeout: float
    lanes: tuple[int, ...]


class AwaitOrders(NamedTuple):
    """Wait for a running job of the queues that is to be cancelled."""

    queues: tuple[str, ...]
    timeout: float


class Ticket:
    """A request, and where its answer goes: to a thread that blocks, or into a future of a running loop."""

    __slots__ = ("_answered", "future", "given_up", "reply", "request")

    def __init__(self, request: object, future: asyncio.Future[Any] | None = None) -> None:
        self.request = request
        self.future = future
        self.reply: Any = None
        self.given_up = False
        self._answered = threading.Lock()
        self._answered.acquire()

    def wait(self) -> Any:
        """Block until there is an answer, and return or raise it."""
        try:
            self._answered.acquire()
        except BaseException:  # Ctrl-C
            self.given_up = True
            raise
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    @property
    def answered(self) -> bool:
        return not self._answered.locked()

    @property
    def vain(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self.given_up or (self.future is not None and self.future.done())

    def answer(self, reply: object) -> None:
        self.reply = reply
        self._answered.release()


def deliver(answers: Iterable[tuple[Ticket, object]]) -> None:
    """Hand out answers; each loop is woken once for all of its own."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], object]]] = {}
    for ticket, reply in answers:
        ticket.answer(reply)
        if ticket.future is not None:
            loops.setdefault(ticket.future.get_loop(), []).append((ticket.future, reply))
    for loop, replies in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, replies)
        except RuntimeError:  # the loop was closed meanwhile
            continue


def _resolve(replies: list[tuple[asyncio.Future[Any], object]]) -> None:
    for future, reply in replies:
        if future.done():
            continue
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)


@dataclass
class _Idler:
    """Somebody who waits for work."""

    ticket: Ticket
    queues: tuple[str, ...]
    lanes: tuple[int, ...]
    deadline: float
    news: bool
    """Whether there may be work that the last claim did not see."""
    looked: bool = False
    due: int | None = None
    """When the first scheduled job of its queues is due."""


@dataclass
class _Listener:
    """Somebody who waits for orders."""

    ticket: Ticket
    queues: tuple[str, ...]
    deadline: float
    look_at: float = 0.0
    """When to look whether there are any."""
    looked: float = -math.inf


class Waiting:
    """The waiters of one broker. All methods are the store thread's own."""

    def __init__(self, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._jobs: dict[tuple[str, str], list[tuple[Ticket, float]]] = {}
        self._news: set[tuple[str, str]] = set()
        """Jobs that may have ended."""
        self._idlers: list[_Idler] = []
        self._listeners: list[_Listener] = []
        self._told: dict[tuple[str, ...], int] = {}
        """Of how many cancellations in these queues who listens was told."""
        self._since = self._sweep_at = self._cost = 0.0
        self._outside = 0
        self._stirs: dict[str, int] = {}
        self._marks: dict[str, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._jobs or self._idlers or self._listeners)

    def add(self, ticket: Ticket) -> None:
        request, now = ticket.request, time.monotonic()
        if isinstance(request, AwaitOrders):
            deadline = now + request.timeout
            self._listeners.append(_Listener(ticket, request.queues, deadline))
            self._sweep_at = min(self._sweep_at, deadline)
            return
        self._since = now
        if isinstance(request, Ended):
            deadline = math.inf if request.timeout is None else now + request.timeout
            self._jobs.setdefault((request.queue, request.id), []).append((ticket, deadline))
            self._news.add((request.queue, request.id))
        elif isinstance(request, AwaitWork):
            deadline = now + request.timeout
            news = any(self._mark(queue) != self._marks.get(queue) for queue in request.queues)
            self._idlers.append(_Idler(ticket, request.queues, request.lanes, deadline, news))
        else:
            raise TypeError(f"{request!r} is no wait")
        self._sweep_at = min(self._sweep_at, deadline)

    def _mark(self, queue: str) -> tuple[int, int]:
        return self._outside, self._stirs.get(queue, 0)

    def claimed(self, queue: str) -> None:
        """Note that a claim is about to look at a queue: what it leaves there is no news to who waits after it."""
        self._marks[queue] = self._mark(queue)

    def stirred(self, queues: set[str]) -> None:
        """Note that queues may have got work through this broker."""
        for queue in queues:
            self._stirs[queue] = self._stirs.get(queue, 0) + 1
        self.left(queues)

    def left(self, queues: set[str]) -> None:
        """Note that work was left in queues: news to who waits already, but not to who left it and waits next."""
        for idler in self._idlers:
            idler.news |= not queues.isdisjoint(idler.queues)

    def changed(self) -> None:
        """Note that another connection has changed the file."""
        self._outside += 1
        self._news.update(self._jobs)
        for idler in self._idlers:
            idler.news = True
        for listener in self._listeners:
            listener.look_at = min(listener.look_at, listener.looked + ORDERS)

    def wished(self, queues: set[str]) -> None:
        """Note that running jobs of queues are to be cancelled."""
        for listener in self._listeners:
            if not queues.isdisjoint(listener.queues):
                listener.look_at = 0.0

    def ended(self, jobs: Iterable[tuple[str, Iterable[str]]]) -> None:
        """Note that jobs, (queue, ids), may have ended through this broker."""
        if self._jobs:
            self._news.update((queue, id) for queue, ids in jobs for id in ids if (queue, id) in self._jobs)

    def pause(self) -> float | None:
        """Return for how many seconds to sleep before the next look; None when nobody waits."""
        if not self:
            return None
        now = time.monotonic()
        pause = min(LONGEST, max(SHORTEST, (now - self._since) / 10, 10 * self._cost))
        pause = pause if self._jobs or self._idlers else ORDERS / 0.75
        pause *= random.uniform(0.75, 1.0)  # noqa: S311 - jitter, so that processes do not look in step
        pause = min([pause, *(listener.look_at - now for listener in self._listeners)])
        due = min((idler.due for idler in self._idlers if idler.due is not None), default=None)
        if due is not None:
            pause = min(pause, (due - self._wall()) / 1000)
        return max(0.0, min(pause, self._sweep_at - now))

    def look(self, begin: Callable[[], Transaction]) -> dict[Ticket, object]:
        """Return the answers that can be given; ``begin`` starts a transaction to read in. An error changes nothing."""
        now, answers = time.monotonic(), dict[Ticket, object]()
        fresh = [idler for idler in self._idlers if idler.news or not idler.looked]
        listeners = [listener for listener in self._listeners if listener.look_at <= now]
        if self._news or fresh or listeners:
            tx = begin()
            over = self._over(tx, [key for key in self._news if key in self._jobs])
            work = {idler.ticket: self._has_work(tx, idler) for idler in fresh}
            for key, snapshot in over.items():
                answers.update((ticket, snapshot) for ticket, _ in self._jobs.pop(key))
            answers.update((ticket, None) for ticket, found in work.items() if found)
            answers.update((each.ticket, None) for each in listeners if self._has_orders(tx, each, now))
            self._news.clear()
            self._cost = time.monotonic() - now
        wall = self._wall() if any(idler.due is not None for idler in self._idlers) else 0
        answers.update((idler.ticket, None) for idler in self._idlers if idler.due is not None and idler.due <= wall)
        if now >= self._sweep_at:
            answers.update(self._sweep(now))
        if answers:
            # Who waits for orders comes back every second, and that is no reason to look more often.
            if not answers.keys() <= {listener.ticket for listener in self._listeners}:
                self._since = now
            self._idlers = [idler for idler in self._idlers if idler.ticket not in answers]
            self._listeners = [each for each in self._listeners if each.ticket not in answers]
        return answers

    def _over(self, tx: Transaction, keys: list[tuple[str, str]]) -> dict[tuple[str, str], Snapshot | None]:
        """Return which jobs have ended, or are not known."""
        queues = {name: tx.find_queue(name) for name in {queue for queue, _ in keys}}
        numbers = {name: queue.id if queue else 0 for name, queue in queues.items()}
        over: list[int] = tx.read("over", to_json([(numbers[queue], id) for queue, id in keys])) if keys else []
        return {keys[n]: get(tx, Get(*keys[n])) for n in over}

    def _has_work(self, tx: Transaction, idler: _Idler) -> bool:
        found, idler.due = False, None
        for name in idler.queues:
            queue = tx.find_queue(name)
            if queue is None or queue.state.paused:
                continue
            found |= any(queue.ready(lane) for lane in idler.lanes)
            if queue.state.scheduled:
                due: int = tx.value("first_due", queue.id)
                idler.due = due if idler.due is None else min(idler.due, due)
        found &= idler.news
        idler.news, idler.looked = False, True
        return found

    def _has_orders(self, tx: Transaction, listener: _Listener, now: float) -> bool:
        listener.look_at, listener.looked = math.inf, now
        queues = [queue for name in listener.queues if (queue := tx.find_queue(name))]
        wishes = sum(queue.state.wishes for queue in queues)
        told = self._told.get(listener.queues, wishes)
        self._told[listener.queues] = wishes
        return wishes != told

    def _sweep(self, now: float) -> dict[Ticket, object]:
        """Answer those whose time is up, and drop those who went away; done at each deadline, and once a second."""
        answers: dict[Ticket, object] = {}
        deadlines = [now + 1]
        waiters = [(ticket, deadline) for each in self._jobs.values() for ticket, deadline in each]
        waiters += [(idler.ticket, idler.deadline) for idler in self._idlers]
        waiters += [(listener.ticket, listener.deadline) for listener in self._listeners]
        for ticket, deadline in waiters:
            if deadline <= now or ticket.vain:
                answers[ticket] = None
            else:
                deadlines.append(deadline)
        self._sweep_at = min(deadlines)
        left = {key: [one for one in each if one[0] not in answers] for key, each in self._jobs.items()}
        self._jobs = {key: each for key, each in left.items() if each}
        return answers

    def give_up(self, error: Callable[[], Exception]) -> dict[Ticket, object]:
        """Return an error for everybody who waits."""
        tickets = [ticket for each in self._jobs.values() for ticket, _ in each]
        tickets += [idler.ticket for idler in self._idlers]
        tickets += [listener.ticket for listener in self._listeners]
        self._jobs, self._idlers, self._listeners = {}, [], []
        self._news.clear()
        return {ticket: error() for ticket in tickets}
