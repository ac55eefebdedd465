"""Documents as a server keeps them, and the audit log's sums: what is read and written while other things happen."""

import asyncio
from contextlib import suppress

from spool.broker import Load, Store, connect
from spool.errors import BrokerUnavailable
from spool.server.audit import Audit
from spool.server.auth import ANYBODY
from spool.server.documents import Documents


class Held:
    """A broker whose replies wait, from what was there when they were asked for."""

    def __init__(self) -> None:
        self.broker = connect("sqlite://:memory:")
        self.asked, self.passable = asyncio.Event(), asyncio.Event()

    async def acall(self, verb):
        reply = await self.broker.acall(verb)
        if isinstance(verb, Load):
            self.asked.set()
            await self.passable.wait()
        return reply


async def test_a_refresh_sees_what_was_written_before_it():
    held = Held()
    documents = Documents(held, "token", bytes)
    first = asyncio.create_task(documents.refresh())
    await held.asked.wait()
    await held.broker.acall(Store("token", "a", b"x"))
    second = asyncio.create_task(documents.refresh())
    await asyncio.sleep(0)
    held.passable.set()
    await asyncio.gather(first, second)

    assert documents.held("a") == b"x"
    await held.broker.aclose()
