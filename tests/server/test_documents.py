"""Documents as a server keeps them, and the audit log's sums: what is read and written while other things happen."""

import asyncio
from contextlib import suppress

from spool.broker import Load, Store, connect
from spool.errors import BrokerUnavailable
from spool.server.audit import Audit, Entry
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


async def test_sums_that_were_not_written_stay(monkeypatch):
    broker = connect("sqlite://:memory:")
    audit = Audit(broker, 30)
    for queue, count in (("a", 1), ("b", 2), ("c", 3)):
        audit.count(ANYBODY, "enqueue", queue, count)
    write = audit._write

    async def fail(entry) -> None:
        if entry.target == "b":
            raise BrokerUnavailable("the store is away")
        await write(entry)

    monkeypatch.setattr(audit, "_write", fail)
    with suppress(BrokerUnavailable):
        await audit.flush()
    audit.count(ANYBODY, "enqueue", "b", 5)
    monkeypatch.undo()
    await audit.flush()

    entries, _ = await audit.page("", 100)
    assert sorted((entry.target, entry.count) for entry in entries) == [("a", 1), ("b", 7), ("c", 3)]
    await audit.flush()
    assert len((await audit.page("", 100))[0]) == 3
    await broker.aclose()


async def test_entries_of_one_millisecond_are_listed_latest_first():
    broker = connect("sqlite://:memory:")
    audit = Audit(broker, 30)
    for count in range(12):
        await audit._write(Entry(1_700_000_000_000, "me", "", "", "pause", "mail", 200, count=count))

    entries, _ = await audit.page("", 100)
    assert [entry.count for entry in entries] == list(reversed(range(12)))
    await broker.aclose()
