"""The SQLite broker: one file, any number of processes, no service.

A thread of its own owns the connection. It takes whatever verbs have been handed to it meanwhile, carries them out in
one transaction, commits, and answers: the more callers, the fewer commits. While somebody waits for a job's end or for
work, it looks every 1 to 20 ms whether another process has changed the file, and every 50 ms while somebody waits for
orders alone; what happens through the same broker object is noticed at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from spool.broker import Claim, Verb
from spool.broker.sqlite.file import parse
from spool.broker.sqlite.thread import Clock, Stop, StoreThread, read_clock
from spool.broker.sqlite.waiting import AwaitOrders, AwaitWork, Ended, Ticket
from spool.errors import BrokerUnavailable, ConfigError
from spool.job import LANES, Snapshot

R = TypeVar("R")


class SqliteBroker:
    """A broker on a SQLite file; `spool.broker.connect` lists its URLs. Nothing is opened before the first call.

    ``clock`` is for tests: it returns the wall clock and the time since the machine's boot, in milliseconds.

    >>> SqliteBroker("sqlite:///spool.db").url
    'sqlite:///spool.db'
    """

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._location = parse(url)
        self._clock = clock or read_clock
        self._lock = threading.RLock()
        self._thread: StoreThread | None = None
        self._finalizer: weakref.finalize[..., SqliteBroker] | None = None
        self._refusal: Exception | None = None
        """Why nothing is carried out any more."""
        _brokers.add(self)

    @property
    def url(self) -> str:
        return self._location.url

    @property
    def commits(self) -> int:
        """How often this process has committed since it opened the file."""
        return self._thread.commits if self._thread else 0

    def call(self, verb: Verb[R]) -> R:
        return cast("R", self._ask(verb))

    async def acall(self, verb: Verb[R]) -> R:
        if isinstance(verb, Claim) and verb.wait:
            await self.await_work([verb.queue], verb.wait, verb.lanes)
        return cast("R", await self._aask(verb))

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        return cast("Snapshot | None", self._ask(Ended(queue, id, timeout)))

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        return cast("Snapshot | None", await self._aask(Ended(queue, id, timeout)))

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        await self._aask(AwaitWork(tuple(queues), timeout, tuple(lanes)))

    def await_orders(self, queues: Sequence[str], timeout: float) -> None:
        self._ask(AwaitOrders(tuple(queues), timeout))

    def close(self) -> None:
        if thread := self._detach():
            thread.stop()

    async def aclose(self) -> None:
        if thread := self._detach():
            closed = asyncio.get_running_loop().create_future()
            thread.submit(Ticket(Stop(), closed))
            await closed

    def _ask(self, request: object) -> Any:
        ticket = Ticket(request)
        self._submit(ticket)
        return ticket.wait()

    async def _aask(self, request: object) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._submit(Ticket(request, future))
        return await future

    def _submit(self, ticket: Ticket) -> None:
        with self._lock:
            if self._refusal is not None:
                raise type(self._refusal)(*self._refusal.args)
            if self._thread is None:
                self._thread = StoreThread(self._location, self._clock)
                self._finalizer = weakref.finalize(self, self._thread.stop)
            self._thread.submit(ticket)

    def _detach(self) -> StoreThread | None:
        with self._lock:
            thread, self._thread = self._thread, None
            self._refusal = self._refusal or BrokerUnavailable(f"the broker on {self._location.path} is closed")
            if self._finalizer is not None:
                self._finalizer.detach()
        return thread

    def before_fork(self) -> None:
        self._lock.acquire()
        if self._thread is not None:
            self._thread.freeze()

    def after_fork(self) -> None:
        if self._thread is not None:
            self._thread.thaw()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        if self._thread is not None and self._location.memory:
            self._refusal = ConfigError(f"{self.url} is private to the process that first used it; use a file instead")
        if self._finalizer is not None:
            self._finalizer.detach()
        self._thread = self._finalizer = None


_brokers: weakref.WeakSet[SqliteBroker] = weakref.WeakSet()
_fork = threading.RLock()
"""One fork at a time, so that two of them cannot hold each other up."""
_forking: list[SqliteBroker] = []


def _before_fork() -> None:
    _fork.acquire()
    _forking[:] = _brokers
    for broker in _forking:
        broker.before_fork()


def _after_fork() -> None:
    for broker in _forking:
        broker.after_fork()
    _forking.clear()
    _fork.release()


def _after_fork_in_child() -> None:
    for broker in _forking:
        broker.after_fork_in_child()
    _forking.clear()
    _fork.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
