"""The live stream, as a program sees it."""

import asyncio
import json
from collections.abc import Callable

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from spool import Spool
from spool.broker import Act, Enqueue, Pause, Stats, Store
from spool.broker import connect as broker_at
from spool.report import OrderRow, Rates, WorkerRow, encode_row
from spool.server import documents, hub, live, watching
from spool.server.auth import split_token
from spool.server.messages import LiveMessage, LiveSnapshot, LiveState
from spool.telemetry import History
from tests.eventually import aeventually, eventually
from tests.redis_server import RedisServer
from tests.server.served import Served, serving

FAR = 20.0


def listen(served: Served, *scopes: str, queues: list[str] | None = None, **headers: str) -> ClientConnection:
    token = served.token(*(scopes or ("read",)), queues=queues)
    bearer = {"Authorization": f"Bearer {token}"}
    # A server that has just looked for tokens looks for a new one only after a moment.
    eventually(lambda: served.anonymous(headers=bearer).get("/api/v1/me").status_code in {200, 403})
    return connect(address(served), additional_headers=bearer | headers)


def address(served: Served) -> str:
    return f"ws{served.url.removeprefix('http')}/api/v1/live"


def to_the_end(connection: ClientConnection, between: Callable[[], object] = lambda: None) -> None:
    while True:
        connection.recv(FAR)
        between()


class Follower:
    """Keeps the state that the messages describe, as the dashboard does."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.state: dict = {}
        self.events: list[dict] = []
        self.seq = -1

    def step(self) -> dict:
        text = self.connection.recv(FAR)
        msgspec.json.decode(text, type=LiveMessage)  # it is what the document of the API says
        message = json.loads(text)
        if message["type"] == "snapshot":
            self.state, self.events = message["state"], message["events"]
        elif message["type"] == "delta":
            assert message["seq"] == self.seq + 1
            self.state = merged(self.state, message["patch"])
            msgspec.convert(self.state, LiveState)
            self.events += message.get("events", [])
        self.seq = message["seq"]
        return message

    def until(self, probe):
        while not (found := probe(self)):
            self.step()
        return found


def merged(target, patch):
    """Apply a JSON merge patch, as RFC 7396 writes it."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"a": {"b": [1, 2]}}),
        ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": 2, "e": {}}),
        ({"a": 1}, {"a": {"b": {"c": 0}}}),
        ({"a": {}}, {"a": {}}),
    ],
)
def test_a_patch_makes_one_state_of_the_other(before, after):
    assert merged(before, hub.patch(before, after)) == after
    assert hub.patch(after, after) == {}


def test_a_snapshot_comes_first_and_then_what_changes(served):
    enqueue(served, "mail", 3)
    with listen(served) as connection:
        follower = Follower(connection)
        assert follower.step()["type"] == "snapshot"
        assert sum(follower.state["queues"]["mail"]["ready"]) == 3

        enqueue(served, "mail", 2)
        follower.until(lambda it: sum(it.state["queues"]["mail"]["ready"]) == 5)
        served.broker.call(Act("mail", Pause()))
        follower.until(lambda it: any(event["kind"] == "paused" for event in it.events))

        assert follower.state["queues"]["mail"]["paused"]
        assert follower.state["summary"]["status"] in ("bad", "warning")
        assert follower.state["store"] == {"up": True, "trouble": ""}
        assert len(follower.state["tail"]["times"]) > 0


def test_workers_and_rates_are_in_the_stream_as_in_the_api(served):
    row = WorkerRow("w", "n", "h", 1, "", "", 0, 1, ["mail"], 9, 0, 9000, 1, False, "0", "3", ended={"done": 3})
    row = msgspec.structs.replace(row, rates=Rates({"done": 0.3}, {"done": 0.05}))
    served.broker.call(Store("worker", "w", encode_row(row), 60_000))
    served.broker.call(Store("order", "w", msgspec.json.encode(OrderRow("quiet", 1, "me")), 60_000))
    client = served.client("read")
    eventually(lambda: client.get("/api/v1/metrics/summary").json()["troubles"] == [])
    with listen(served) as connection:
        follower = Follower(connection)
        follower.step()
        enqueue(served, "mail", 3)
        follower.until(lambda it: "enqueued" in it.state["queues"].get("mail", {}).get("rates", {}).get("minute", {}))
        follower.until(lambda it: "oldest" in it.state["queues"]["mail"])
        state = msgspec.convert(follower.state, LiveState)

    assert msgspec.to_builtins(state.workers["w"].row) == msgspec.to_builtins(row)
    assert state.workers["w"].ordered == "quiet"
    (listed,) = client.get("/api/v1/workers").json()["items"]
    assert listed["row"]["rates"] == follower.state["workers"]["w"]["row"]["rates"]


def test_server_sent_events_say_the_same(sqlite_served):
    enqueue(sqlite_served, "mail", 1)
    with sqlite_served.client("read").stream("GET", "/api/v1/live/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        line = next(line for line in answer.iter_lines() if line.startswith("data: "))
    assert isinstance(msgspec.json.decode(line.removeprefix("data: "), type=LiveMessage), LiveSnapshot)
    message = json.loads(line.removeprefix("data: "))
    assert message["type"] == "snapshot"
    assert sum(message["state"]["queues"]["mail"]["ready"]) == 1


def test_who_lost_count_gets_another_snapshot(sqlite_served):
    with listen(sqlite_served) as connection:
        follower = Follower(connection)
        follower.step()
        connection.send('{"type": "resync"}')
        while (message := follower.step())["type"] != "snapshot":
            pass
        assert message["state"]["store"]["up"]


def test_a_token_for_some_queues_sees_those(sqlite_served):
    enqueue(sqlite_served, "mail", 1)
    enqueue(sqlite_served, "secret", 1)
    with listen(sqlite_served, queues=["mail"]) as connection, listen(sqlite_served) as other:
        mine, whole = Follower(connection), Follower(other)
        mine.step()
        whole.step()
        sqlite_served.broker.call(Act("secret", Pause()))
        whole.until(lambda it: it.events)
        sqlite_served.broker.call(Act("mail", Pause()))
        mine.until(lambda it: it.events)
        assert set(mine.state["queues"]) == {"mail"}
        assert [event["queue"] for event in mine.events] == ["mail"]
        assert set(whole.state["queues"]) == {"mail", "secret"}


def test_a_token_for_some_queues_is_not_told_what_a_worker_does_for_others(sqlite_served):
    row = WorkerRow("w", "n", "h", 1, "", "", 0, 1, ["mail"], 9, 0, 9000, 7, False, "0", "3", ended={"done": 3})
    row = msgspec.structs.replace(row, rates=Rates({"done": 0.3}, {"done": 0.05}))
    other = msgspec.structs.replace(row, incarnation="o", queues=["mail", "secret"])
    for each in (row, other):
        sqlite_served.broker.call(Store("worker", each.incarnation, encode_row(each), 60_000))
    with listen(sqlite_served, queues=["mail"]) as connection:
        follower = Follower(connection)
        follower.step()
        mine = msgspec.convert(follower.state, LiveState).workers["w"].row
        shared = msgspec.convert(follower.state, LiveState).workers["o"].row

    assert (mine.queues, mine.running, mine.ended, mine.rates) == (["mail"], 7, row.ended, row.rates)
    assert (shared.queues, shared.running, shared.ended, shared.rates) == (["mail"], None, {}, None)


def test_a_page_of_another_origin_is_refused(sqlite_served):
    cookie = sqlite_served.session("read").cookies["spool_session"]
    eventually(lambda: sqlite_served.anonymous(cookies={"spool_session": cookie}).get("/api/v1/me").status_code == 200)
    for origin in (
        "https://evil.example",
        "null",
        sqlite_served.url.replace("http:", "https:"),
        sqlite_served.url + "1",
    ):
        with pytest.raises(InvalidStatus) as refused:
            connect(address(sqlite_served), additional_headers={"Cookie": f"spool_session={cookie}", "Origin": origin})
        assert refused.value.response.status_code == 403
    headers = {"Cookie": f"spool_session={cookie}", "Origin": sqlite_served.url}
    with connect(address(sqlite_served), additional_headers=headers) as it:
        assert json.loads(it.recv(FAR))["type"] == "snapshot"


def test_nobody_and_who_may_not_read_are_refused(sqlite_served):
    for headers, status in ({}, 401), ({"Authorization": f"Bearer {sqlite_served.token('enqueue')}"}, 403):
        with pytest.raises(InvalidStatus) as refused:
            connect(address(sqlite_served), additional_headers=headers)
        assert refused.value.response.status_code == status


@pytest.mark.parametrize("said", ['{"type": "resync", "more": 1}', "x" * 100_000, "[" * 1000, b"\x00"])
def test_who_says_something_else_is_let_go(sqlite_served, said):
    with listen(sqlite_served) as connection:
        connection.send(said)
        with pytest.raises(ConnectionClosed) as closed:
            to_the_end(connection)
    assert closed.value.rcvd.code in (1008, 1009)


def test_who_asks_for_snapshots_again_and_again_is_let_go(sqlite_served):
    def ask() -> None:
        connection.send('{"type":"resync"}')

    with listen(sqlite_served) as connection, pytest.raises(ConnectionClosed) as closed:
        to_the_end(connection, ask)
    assert closed.value.rcvd.code == 1008


def test_a_revoked_token_hears_no_more(sqlite_served, monkeypatch):
    monkeypatch.setattr(live, "RECHECK", 0.0)
    token = sqlite_served.token("read")
    with connect(address(sqlite_served), additional_headers={"Authorization": f"Bearer {token}"}) as connection:
        connection.recv(FAR)
        sqlite_served.broker.call(Store("token", split_token(token)[0], None))
        enqueue(sqlite_served, "mail", 1)
        with pytest.raises(ConnectionClosed) as closed:
            to_the_end(connection, lambda: enqueue(sqlite_served, "mail", 1))
    assert closed.value.rcvd.code == live.OVER


async def test_who_does_not_keep_up_gets_a_snapshot_in_place_of_all_that_waits():
    sight = hub.Sight(None)
    client = hub.Client(sight)
    sight.ready = True
    assert '"snapshot"' in await client.take()
    for number in range(hub.BOUND):
        client.push(str(number))
    client.push("one too many")
    client.push("lost anyway")
    assert '"snapshot"' in await client.take()
    client.push("next")
    assert await client.take() == "next"


def test_nothing_is_read_while_nobody_listens(sqlite_served):
    room = sqlite_served.serving.app.services.hub
    with listen(sqlite_served) as connection:
        connection.recv(FAR)
        assert (room.clients, room._task.done()) == (1, False)
    eventually(lambda: room._task.done() and room.clients == 0)


def test_a_store_that_is_gone_is_told_and_so_is_its_return(tmp_path):
    with RedisServer() as redis, serving(redis.url) as served, listen(served) as connection:
        follower = Follower(connection)
        follower.step()
        assert follower.state["store"]["up"]
        redis.kill()
        follower.until(lambda it: not it.state["store"]["up"])
        assert follower.state["store"]["trouble"]
        redis.start()
        follower.until(lambda it: it.state["store"]["up"])


def test_an_outage_of_the_store_ends_no_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "RECHECK", 0.0)
    monkeypatch.setattr(documents, "FRESH", 0.0)
    monkeypatch.setattr(hub, "BEAT", 0.1)
    with RedisServer() as redis, serving(redis.url) as served, listen(served) as connection:
        follower = Follower(connection)
        follower.step()
        redis.kill()
        follower.until(lambda it: not it.state["store"]["up"])
        for _ in range(3):  # nobody can say by now whether its token is good
            assert follower.step()["type"] == "beat"


async def test_a_store_that_does_not_answer_is_asked_again_at_once(monkeypatch):
    monkeypatch.setattr(hub, "SHARE", 1e9)
    monkeypatch.setattr(hub, "PERIOD", 0.001)
    broker = broker_at("http://127.0.0.1:1")
    room = hub.Hub(broker, History(broker))
    client = room.join(None)
    looked: list[int] = []

    async def look(turn: int) -> None:
        await hub.Hub._turn(room, turn)
        looked.append(turn)

    monkeypatch.setattr(room, "_turn", look)
    await aeventually(lambda: len(looked) > 3)
    assert client.sight.ready, "and the trouble is told"
    await room.close()
    await broker.aclose()


async def test_of_many_queues_some_are_asked_for_at_a_time():
    under_way: list[int] = [0, 0]

    class Counting:
        broker = broker_at("sqlite://:memory:")
        call = broker.call

        async def acall(self, verb):
            if not isinstance(verb, Stats):
                return await self.broker.acall(verb)
            under_way[0] += 1
            under_way[1] = max(under_way)
            await asyncio.sleep(0)
            under_way[0] -= 1
            return await self.broker.acall(verb)

    broker = Counting()
    for number in range(2 * watching.TOGETHER):
        await broker.acall(Enqueue(f"q{number}", []))
    watch = watching.Watch(broker, History(broker))
    await watch.look(more=False)
    assert len(watch.queues) == 2 * watching.TOGETHER
    assert under_way == [0, watching.TOGETHER]
    await broker.broker.aclose()


def test_the_head_of_the_stream_has_an_end(sqlite_served):
    client = sqlite_served.client("read")
    assert client.head("/api/v1/live/events").headers["content-type"] == "text/event-stream"
    assert client.get("/api/v1/me").status_code == 200, "on the same connection"
    assert sqlite_served.serving.app.services.hub.clients == 0


def enqueue(served: Served, queue: str, count: int) -> None:
    async def send() -> None: ...

    task = Spool(served.broker).task(queue=queue, name="send")(send)
    for _ in range(count):
        task.enqueue()
