"""What brokers that stand around another one have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from spool.broker.verbs import Verb
from spool.job import LANES, Snapshot

if TYPE_CHECKING:
    from spool.broker import Broker

R = TypeVar("R")


class Around:
    """A `Broker` that passes everything on to the one within. A class of it has methods for what it does otherwise.

    >>> from spool.broker import connect
    >>> Around(connect("sqlite://:memory:")).url
    'sqlite://:memory:'
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def url(self) -> str:
        """See `Broker.url`."""
        return self._broker.url

    def call(self, verb: Verb[R]) -> R:
        """See `Broker.call`."""
        return self._broker.call(verb)

    async def acall(self, verb: Verb[R]) -> R:
        """See `Broker.acall`."""
        return await self._broker.acall(verb)

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """See `Broker.ended`."""
        return self._broker.ended(queue, id, timeout)

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """See `Broker.aended`."""
        return await self._broker.aended(queue, id, timeout)

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        """See `Broker.await_work`."""
        await self._broker.await_work(queues, timeout, lanes)

    def await_orders(self, queues: Sequence[str], timeout: float) -> None:
        """See `Broker.await_orders`."""
        self._broker.await_orders(queues, timeout)

    def close(self) -> None:
        """See `Broker.close`."""
        self._broker.close()

    async def aclose(self) -> None:
        """See `Broker.aclose`."""
        await self._broker.aclose()
