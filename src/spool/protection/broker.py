"""A broker that signs and encrypts what is given to the broker within, and checks and decrypts what comes from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from spool.broker import Around, Broker, Claim, Claimed, Enqueue, Find, Found, Get, Note, Settle, Verb
from spool.job import Snapshot
from spool.protection.envelope import Envelope

R = TypeVar("R")


class Protected(Around):
    """A broker whose store sees no more than it has to, and is believed no more than it has to be.

    It speaks the protocol as the one within does, so whoever uses it does not know of it. Without signing and
    encryption there is none, which is why they cost nothing then.
    """

    def __init__(self, broker: Broker, envelope: Envelope) -> None:
        super().__init__(broker)
        self._envelope = envelope
        self._seal: Mapping[type, Callable[[Any], Any]] = {
            Enqueue: self._seal_enqueue,
            Settle: self._seal_settle,
            Note: self._seal_note,
        }
        self._open: Mapping[type, Callable[[Any, Any], Any]] = {
            Claim: self._open_claimed,
            Get: self._open_got,
            Find: self._open_found,
        }

    def call(self, verb: Verb[R]) -> R:
        """See `Broker.call`. Raises `ProtectionError`, and sends nothing, for what cannot be encrypted."""
        return self._opened(verb, self._broker.call(self._sealed(verb)))

    async def acall(self, verb: Verb[R]) -> R:
        """As `call`, in the running loop."""
        return self._opened(verb, await self._broker.acall(self._sealed(verb)))

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """See `Broker.ended`."""
        return self._open_placed(queue, id, self._broker.ended(queue, id, timeout))

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """See `Broker.aended`."""
        return self._open_placed(queue, id, await self._broker.aended(queue, id, timeout))

    # On the way there

    def _sealed(self, verb: Verb[R]) -> Verb[R]:
        seal = self._seal.get(type(verb))
        sealed: Verb[R] = verb if seal is None else seal(verb)
        return sealed

    def _seal_enqueue(self, verb: Enqueue) -> Enqueue:
        return replace(verb, jobs=[self._envelope.seal_job(verb.queue, job) for job in verb.jobs])

    def _seal_settle(self, verb: Settle) -> Settle:
        seal = self._envelope.seal_settlement
        return replace(verb, settlements=[seal(verb.queue, each) for each in verb.settlements])

    def _seal_note(self, verb: Note) -> Note:
        return replace(verb, notes=[self._envelope.seal_note(verb.queue, each) for each in verb.notes])

    # And back

    def _opened(self, verb: Verb[R], reply: R) -> R:
        opening = self._open.get(type(verb))
        opened: R = reply if opening is None else opening(verb, reply)
        return opened

    def _open_claimed(self, verb: Claim, reply: Claimed) -> Claimed:
        opening = self._envelope.open_job
        return replace(reply, jobs=[(id, opening(verb.queue, id, body)) for id, body in reply.jobs])

    def _open_got(self, verb: Get, reply: Snapshot | None) -> Snapshot | None:
        return self._open_placed(verb.queue, verb.id, reply)

    def _open_placed(self, queue: str, id: str, reply: Snapshot | None) -> Snapshot | None:
        # Of the job that was asked for, whatever the reply says that it is: another's result is signed as well.
        return reply and self._envelope.open(replace(reply, queue=queue, id=id))

    def _open_found(self, _: Find, reply: Found) -> Found:
        return replace(reply, jobs=[self._envelope.open(each) for each in reply.jobs])
