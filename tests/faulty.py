"""A broker between the client and a real one: keeps what it was asked, and loses requests or replies on demand."""

from typing import Any, Literal

from spool.broker import Around, Broker
from spool.errors import BrokerUnavailable

Fault = Literal["request", "reply"] | Exception


class FaultyBroker(Around):
    """Each of ``faults`` befalls one call, in order; after them all goes well."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.faults: list[Fault] = []
        self.asked: list[Any] = []
        self.closed = 0

    def call(self, verb: Any) -> Any:
        self.asked.append(verb)
        fault = self._before()
        reply = self._broker.call(verb)
        return self._after(fault, reply)

    async def acall(self, verb: Any) -> Any:
        self.asked.append(verb)
        fault = self._before()
        reply = await self._broker.acall(verb)
        return self._after(fault, reply)

    def _before(self) -> Fault | None:
        fault = self.faults.pop(0) if self.faults else None
        if fault == "request":
            raise BrokerUnavailable("the request was lost")
        if isinstance(fault, Exception):
            raise fault
        return fault

    def _after(self, fault: Fault | None, reply: Any) -> Any:
        if fault == "reply":
            raise BrokerUnavailable("the reply was lost")
        return reply

    def close(self) -> None:
        self.closed += 1
        self._broker.close()

    async def aclose(self) -> None:
        self.closed += 1
        await self._broker.aclose()
