"""A broker that counts its errors."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from spool.broker import Around, Broker, Verb
from spool.errors import BrokerError, LeaseLost, VersionConflict
from spool.job import LANES, Snapshot

R = TypeVar("R")


class Counted(Around):
    """A broker as it is, and how often it failed: `errors`.

    What says no by right is not counted: `VersionConflict` and `LeaseLost`.

    >>> from spool.broker import connect
    >>> Counted(connect("sqlite://:memory:")).errors()
    {}
    """

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self._errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    def errors(self) -> dict[str, int]:
        """Return how often each kind of `BrokerError` was raised so far, by name."""
        with self._lock:
            return dict(self._errors)

    def _count(self, error: BrokerError) -> None:
        if not isinstance(error, VersionConflict | LeaseLost):
            with self._lock:
                self._errors[type(error).__name__] += 1

    def call(self, verb: Verb[R]) -> R:
        """See `Broker.call`."""
        try:
            return self._broker.call(verb)
        except BrokerError as error:
            self._count(error)
            raise

    async def acall(self, verb: Verb[R]) -> R:
        """See `Broker.acall`."""
        try:
            return await self._broker.acall(verb)
        except BrokerError as error:
            self._count(error)
            raise

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """See `Broker.ended`."""
        try:
            return self._broker.ended(queue, id, timeout)
        except BrokerError as error:
            self._count(error)
            raise

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """See `Broker.aended`."""
        try:
            return await self._broker.aended(queue, id, timeout)
        except BrokerError as error:
            self._count(error)
            raise

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        """See `Broker.await_work`."""
        try:
            await self._broker.await_work(queues, timeout, lanes)
        except BrokerError as error:
            self._count(error)
            raise

    def await_orders(self, queues: Sequence[str], timeout: float) -> None:
        """See `Broker.await_orders`."""
        try:
            self._broker.await_orders(queues, timeout)
        except BrokerError as error:
            self._count(error)
            raise
