"""Documents as a server keeps them, and the audit log's sums: what is read and written while other things happen."""

import asyncio
from contextlib import suppress

import msgspec
import pytest

from spool.broker import Load, Store, connect
from spool.errors import BrokerUnavailable
from spool.report import OrderRow, WorkerRow
from spool.server.audit import Audit, Entry
from spool.server.auth import ANYBODY, TokenRow
from spool.server.documents import Documents
from spool.server.replays import Replay
from spool.server.session import SessionRow


class Held:
    """A broker whose replies wait, from what was there when they were asked for."""

    def __init__(self, kind=Load) -> None:
        self.kind = kind
        self.broker = connect("sqlite://:memory:")
        self.asked, self.passable = asyncio.Event(), asyncio.Event()

    async def acall(self, verb):
        reply = await self.broker.acall(verb)
        if isinstance(verb, self.kind):
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
    store = audit._store

    async def fail(key, entry) -> None:
        if entry.target == "b":
            raise BrokerUnavailable("the store is away")
        await store(key, entry)

    monkeypatch.setattr(audit, "_store", fail)
    with suppress(BrokerUnavailable):
        await audit.flush()
    audit.count(ANYBODY, "enqueue", "b", 5)
    monkeypatch.undo()
    await audit.flush()

    entries, _ = await audit.page("", 100)
    assert sorted((entry.target, entry.count) for entry in entries) == [("a", 1), ("b", 2), ("b", 5), ("c", 3)]
    await audit.flush()
    assert len((await audit.page("", 100))[0]) == 4
    await broker.aclose()


async def test_a_sum_whose_writing_is_cut_short_is_counted_once():
    held = Held(Store)
    audit = Audit(held, 30)
    async with audit.running():
        audit.count(ANYBODY, "enqueue", "mail", 3)
        audit.count(ANYBODY, "enqueue", "reports", 2)
        flushing = asyncio.create_task(audit.flush())
        await held.asked.wait()
        flushing.cancel()
        await asyncio.wait([flushing])
        audit.count(ANYBODY, "enqueue", "mail", 1)
        held.passable.set()

    entries, _ = await audit.page("", 100)
    assert sorted((entry.target, entry.count) for entry in entries) == [("mail", 1), ("mail", 3), ("reports", 2)]
    await held.broker.aclose()


async def test_entries_of_one_millisecond_are_listed_latest_first():
    broker = connect("sqlite://:memory:")
    audit = Audit(broker, 30)
    for count in range(12):
        await audit._write(Entry(1_700_000_000_000, "me", "", "", "pause", "mail", 200, count=count))

    entries, _ = await audit.page("", 100)
    assert [entry.count for entry in entries] == list(reversed(range(12)))
    await broker.aclose()


ROW = WorkerRow("w", "n", "h", 1, "", "", 0, 0, ["mail", "reports"], 1, 0, 9000, 0, False, "1", "3")
READABLE = {
    "worker": ROW,
    "order": OrderRow("stop", 1, "w"),
    "audit": Entry(1, "w", "t", "", "a", "t", 200),
    "replay": Replay("w", "done", "w", None, 1, 1),
    "token": TokenRow("w", "", ["read"], 1),
    "session": SessionRow("w", 1, 1),
}


def beyond_utf8(body: bytes) -> bytes:
    return body.replace(b'"w"', b'"\xe9"')


def beyond_depth(body: bytes) -> bytes:
    return b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"," + body[1:]


def beyond_float(body: bytes) -> bytes:
    return b'{"x":1e999,' + body[1:]


@pytest.mark.parametrize("damage", [beyond_utf8, beyond_depth])
def test_documents_that_cannot_be_read_fail_no_list(sqlite_served, damage):
    client = sqlite_served.client()
    for kind, row in READABLE.items():
        sqlite_served.broker.call(Store(kind, "0-damaged", damage(msgspec.json.encode(row)), 60_000))
        sqlite_served.broker.call(Store(kind, "w", msgspec.json.encode(row), 60_000))

    (worker,) = client.get("/api/v1/workers").json()["items"]
    assert (worker["row"]["incarnation"], worker["ordered"]) == ("w", "stop")
    assert [entry["who"] for entry in client.get("/api/v1/audit").json()["items"]] == ["w"]
    assert [replay["id"] for replay in client.get("/api/v1/dead/replays").json()["items"]] == ["w"]
    assert client.post("/api/v1/dead/replays/0-damaged/stop", json={}).status_code == 404
    assert {token["name"] for token in client.get("/api/v1/tokens").json()["items"]} == {"w", "first", "test"}
    with client.stream("GET", "/api/v1/live/events") as answer:
        line = next(line for line in answer.iter_lines() if line.startswith("data: "))
    assert list(msgspec.json.decode(line.removeprefix("data: "))["state"]["workers"]) == ["w"]
    assert sqlite_served.session("read").get("/api/v1/me").status_code == 200


@pytest.mark.parametrize("damage", [beyond_utf8, beyond_depth, beyond_float])
def test_rows_that_cannot_be_read_fail_no_broker_of_some_queues(sqlite_served, damage):
    sqlite_served.broker.call(Store("worker", "0-damaged", damage(msgspec.json.encode(ROW)), 60_000))
    sqlite_served.broker.call(Store("worker", "w", msgspec.json.encode(ROW), 60_000))
    broker = connect(sqlite_served.url.replace("://", f"://:{sqlite_served.token('work', queues=['mail'])}@"))
    assert [document.key for document in broker.call(Load("worker")).documents] == ["w"]
    broker.close()
