"""What is special to the HTTP broker: servers that are not there or are none, tokens, sizes, lost replies, restarts."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
import redis
import trustme

from spool import Spool, errors
from spool.broker import (
    Act,
    Beat,
    Cancel,
    Claim,
    Done,
    Enqueue,
    Find,
    Get,
    Heartbeat,
    JobNote,
    Load,
    NewJob,
    Note,
    Pause,
    Retire,
    Retried,
    Settle,
    Stats,
    Store,
    Watch,
    connect,
    http,
)
from spool.broker.http import HttpBroker, ends, wire
from spool.broker.http.wire import EndsWait, OrdersWait, WorkWait
from spool.broker.silence import is_silence
from spool.broker.sqlite import SqliteBroker
from spool.chaos import proxy
from spool.cli import main
from spool.job import VERSION, Record, State, encode_record, read_record
from spool.server import verbs as server_verbs
from spool.server import waits
from spool.view import view
from tests.contract.driver import LEASE, Driver, job, jobs
from tests.contract.test_lost_reply import STALE, VERBS, everything, setting
from tests.eventually import aeventually, eventually
from tests.model_state import Clock
from tests.server.front import Front
from tests.server.served import Served, serving

PROMPT = 2.0


@contextmanager
def at(served: Served, *scopes: str, queues: list[str] | None = None, options: str = "") -> Iterator[HttpBroker]:
    """Give a broker that asks a server, with a token of its own (default: that may do all)."""
    token = served.token(*scopes, queues=queues)
    broker = HttpBroker(served.url.replace("://", f"://:{token}@") + options)
    yield broker
    broker.close()


@pytest.fixture
def broker(served) -> Iterator[HttpBroker]:
    with at(served) as broker:
        yield broker


@contextmanager
def stranger(status: int, body: bytes = b"", **headers: str) -> Iterator[str]:
    """Give the URL of a server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestUrls:
    @pytest.mark.parametrize(
        "url", ["http://:secret@h:1/", "http://secret@h:1", "https://x:secret@h:1?socket_timeout=1"]
    )
    def test_the_token_is_not_shown(self, url):
        broker = connect(url)
        assert "secret" not in broker.url
        assert broker.url.endswith("://h:1")

    def test_the_token_of_the_url_comes_before_that_of_the_environment(self, served, monkeypatch):
        monkeypatch.setenv("SPOOL_TOKEN", served.token("read"))
        for url, answered in ((served.url, True), (served.url.replace("://", "://:wrong@"), False)):
            with suppress(errors.BrokerRefused):
                assert connect(url).call(Stats("q")).running == 0
                assert answered

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("http://h?prefix=x", "unknown option prefix; allowed are socket_connect_timeout"),
            ("http://h:port", "cannot use the broker URL http://h:port"),
            ("http://", "names no host"),
            ("http://h?socket_timeout=0", "socket_timeout is a number of seconds"),
            ("http://:bad%20token@h", "the token has characters"),
            ("https://h?ssl_ca_certs=/nowhere", "cannot use the broker URL https://h"),
        ],
    )
    def test_what_cannot_be_used(self, url, said):
        with pytest.raises(errors.ConfigError, match=said):
            connect(url)

    def test_a_server_may_live_below_a_path(self):
        with stranger(404) as url, pytest.raises(errors.BrokerRefused, match=f"{url}/jobs is no Spool server"):
            connect(f"{url}/jobs/").call(Stats("q"))


class TestBadServers:
    def test_nobody_listens(self):
        broker = connect("http://:secret@127.0.0.1:1")
        began = time.monotonic()
        with pytest.raises(errors.BrokerUnavailable, match=r"cannot reach http://127\.0\.0\.1:1") as caught:
            broker.call(Stats("q"))
        with pytest.raises(errors.BrokerUnavailable):
            broker.ended("q", "a", 0.1)
        assert time.monotonic() - began < PROMPT
        assert is_silence(caught.value)  # the store behind it may be well, and give our leases away

    async def test_nobody_listens_in_a_loop(self):
        async with aclosing(connect("http://127.0.0.1:1")) as broker:
            with pytest.raises(errors.BrokerUnavailable, match=r"cannot reach http://127\.0\.0\.1:1") as caught:
                await broker.acall(Stats("q"))
            assert is_silence(caught.value)

    async def test_who_listens_and_says_nothing_is_given_up(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}?socket_timeout=0.1"
            async with aclosing(connect(url)) as broker:
                with pytest.raises(errors.BrokerUnavailable, match="no answer in time"):
                    await broker.acall(Stats("q"))
                with pytest.raises(errors.BrokerUnavailable, match="no answer in time"):
                    await asyncio.to_thread(broker.call, Stats("q"))

    @pytest.mark.parametrize(
        ("status", "kind", "said"),
        [
            (200, errors.BrokerRefused, "no Spool server"),
            (302, errors.BrokerRefused, "elsewhere"),
            (403, errors.BrokerRefused, "status 403"),
            (404, errors.BrokerRefused, "no Spool server"),
            (429, errors.BrokerUnavailable, "too often"),
            (500, errors.BrokerError, "status 500"),
            (502, errors.BrokerUnavailable, "cannot serve now"),
        ],
    )
    async def test_what_is_no_answer_of_ours(self, status, kind, said):
        with stranger(status, b"<html>") as url:
            async with aclosing(connect(url)) as broker:
                for call in (broker.acall(Stats("q")), asyncio.to_thread(broker.call, Stats("q"))):
                    with pytest.raises(errors.BrokerError, match=said) as caught:
                        await call
                    assert type(caught.value) is kind

    @pytest.mark.parametrize(
        ("status", "body", "headers", "said"),
        [
            (502, b'{"detail":"passerelle ind\xe9finie"}', {}, "cannot serve now: passerelle ind\ufffdfinie"),
            (200, b"\x81\xa6cursor\xa1\xe9", {"spool_protocol": wire.SPOKEN}, "cannot read"),
        ],
    )
    async def test_what_is_no_utf_8_is_an_error_as_any_other(self, status, body, headers, said):
        with stranger(status, body, **headers) as url:
            async with aclosing(connect(url)) as broker:
                for call in (broker.acall(Load("task")), asyncio.to_thread(broker.call, Load("task"))):
                    with pytest.raises(errors.BrokerError, match=said):
                        await call

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (502, b'{"detail":"ind\xe9finie"}', errors.BrokerUnavailable),
            (200, b"\0\0\0\4\x93\xa1\xe9\x90", errors.BrokerError),  # a frame with a queue that is no text
        ],
    )
    async def test_who_waits_hears_of_what_is_no_utf_8(self, status, body, kind, monkeypatch):
        monkeypatch.setattr(ends, "PATIENCE", 0.0)
        with stranger(status, body, spool_protocol=wire.SPOKEN) as url:
            async with aclosing(connect(url)) as broker:
                with pytest.raises(kind):
                    await asyncio.wait_for(broker.aended("q", "a"), 10)

    async def test_whatever_goes_wrong_with_a_wait_its_waiters_are_told(self):
        async def stream(_: EndsWait):
            raise RuntimeError("a bug")
            yield

        waits = ends.Ends(stream, "http://h")
        for _ in range(2):  # and who comes later is asked for anew
            with pytest.raises(RuntimeError, match="a bug"):
                await asyncio.wait_for(waits.wait("q", "a", None), 10)
        assert not waits._polls

    @pytest.mark.parametrize(
        "asked", [Beat("q", []), Claim("q", "w", 1), Retire("q", "w"), WorkWait(["q"], 0.0), OrdersWait(["q"], 0.0)]
    )
    def test_what_is_small_is_too_large_for_no_server(self, asked):
        with stranger(413, b"<html>") as url, pytest.raises(errors.BrokerUnavailable, match="status 413") as caught:
            HttpBroker(url)._ask(asked)
        assert caught.value.silent  # as when the server behind it cannot be reached

    @pytest.mark.parametrize(
        ("status", "name"),
        [(500, "ConfigError"), (409, "JobFailed"), (503, "EnqueueInterrupted"), (500, "Cancel"), (500, "SyncInLoop")],
    )
    def test_errors_that_no_broker_raises(self, status, name):
        body = b'{"error": "%s", "detail": "what"}' % name.encode()
        with stranger(status, body) as url, pytest.raises(errors.BrokerError, match="what") as caught:
            connect(url).call(Beat("q", []))
        assert type(caught.value) is errors.BrokerError

    def test_a_server_of_another_protocol(self):
        said = r"runs Spool 7.5.3 and speaks protocol 9.*same release"
        with stranger(200, b"\x90", spool_protocol="9/7.5.3") as url, pytest.raises(errors.BrokerRefused, match=said):
            connect(url).call(Stats("q"))

    def test_a_client_of_another_protocol(self, sqlite_served):
        client = sqlite_served.client()
        headers = {"content-type": wire.MEDIA, "spool-protocol": "9/7.5.3"}
        answer = client.post("/api/v1/verbs/stats", content=wire.encode(Stats("q")), headers=headers)
        assert answer.json()["error"] == "BrokerRefused"
        assert "the client speaks 9 (release 7.5.3): install the same release" in answer.json()["detail"]

    def test_a_reply_that_cannot_be_read(self):
        with stranger(200, b"\xc1", spool_protocol=wire.SPOKEN) as url, pytest.raises(errors.BrokerError, match="read"):
            connect(url).call(Stats("q"))

    @pytest.mark.parametrize(
        "body", [b"", b"\xc1", wire.encode(Get("q", "a")), wire.encode(Stats("a{b")), b"\x91" * 20_000]
    )
    def test_requests_that_cannot_be_read(self, sqlite_served, body):
        headers = {"content-type": wire.MEDIA, "spool-protocol": wire.SPOKEN}
        answer = sqlite_served.client().post("/api/v1/verbs/find", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (422, "ConfigError")

    def test_more_jobs_than_one_request_may_act_on(self, sqlite_served):
        headers = {"content-type": wire.MEDIA, "spool-protocol": wire.SPOKEN}
        body = wire.encode({"queue": "q", "action": {"type": "Replay"}, "ids": ["a"] * 1001})
        answer = sqlite_served.client().post("/api/v1/verbs/act", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (422, "ConfigError")
        assert "at most 1,000" in answer.json()["detail"]

    def test_names_that_would_become_part_of_others_keys_are_refused(self, sqlite_served):
        with at(sqlite_served) as broker:
            for verb in (Enqueue("q}", []), Enqueue("q", [NewJob("a\nb", b"")]), Retire("q", "a b"), Load("a:{b}")):
                with pytest.raises(errors.ConfigError, match="is not usable"):
                    broker.call(verb)

    @pytest.mark.parametrize("number", [-1, 2**53 + 1, 2**64 - 1])
    def test_numbers_that_no_store_can_hold_are_refused(self, served, number):
        with at(served) as broker:
            broker.call(Enqueue("q", [job("a")]))
            for verb in (
                Enqueue("q", [NewJob("b", b"", delay=number)]),
                Enqueue("q", [NewJob("b", b"", due=number)]),
                Act("q", Cancel(ttl=number), ["a"]),
                Beat("q", [Heartbeat("w", number)]),
                Claim("q", "w", number),
                Claim("q", "w", 1, (number, 0)),
                Settle("q", "w", 1, [Done("a", 1, b"", number)]),
                Settle("q", "w", 1, [Retried("a", 1, "", number)]),
                Note("q", "w", [JobNote("a", number)]),
                Find("q", State.READY, limit=number),
                Store("worker", "w", b"{}", number),
            ):
                with pytest.raises(errors.ConfigError, match="int"):
                    broker.call(verb)
            assert broker.call(Get("q", "a")).state is State.READY

    def test_without_its_library_threads_work_and_loops_say_what_is_missing(self, sqlite_served, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
        with at(sqlite_served) as broker:
            assert broker.call(Stats("q")).running == 0
            with pytest.raises(errors.ConfigError, match=r"pip install 'spool-queue\[http\]'"):
                asyncio.run(broker.acall(Stats("q")))


ASKED = {
    "work": [
        Beat("q", [Heartbeat("w", LEASE, ())]),
        Claim("q", "w", 1),
        Settle("q", "w", 1, []),
        Retire("q", "w"),
        WorkWait(["q"], 0.001),
        OrdersWait(["q"], 0.0),
        Store("worker", "w", b"{}"),
        Store("task", "t", b"{}"),
    ],
    "enqueue": [Enqueue("q", [])],
    "read": [
        Get("q", "a"),
        EndsWait([("q", "a")], 0.0),
        Find("q", State.READY),
        Stats("q"),
        Watch("q"),
    ],
    "read or work": [Load("queue"), Load("worker"), Load("order")],
    "read, enqueue or work": [Load("task")],
    "operate": [Act("q", Pause())],
    "admin": [Load("token"), Store("token", "t", b"{}"), Load("session"), Store("any", "k", b"")],
}


def refusal(broker: HttpBroker, asked: object) -> str:
    """Return why it is refused, empty if it is not."""
    try:
        broker._hear(asked) if isinstance(asked, EndsWait) else broker._ask(asked)
    except errors.LeaseLost:
        return ""
    except errors.BrokerRefused as error:
        return str(error)
    return ""


class TestTokens:
    @pytest.mark.parametrize("scope", ["read", "enqueue", "work", "operate", "admin"])
    def test_each_verb_needs_its_scope(self, sqlite_served, scope):
        includes = {"operate": {"read", "enqueue", "operate"}, "admin": {"read", "enqueue", "work", "operate", "admin"}}
        mine = includes.get(scope, {scope})
        with at(sqlite_served, scope) as broker:
            for scopes, asked in ASKED.items():
                wanted = set(scopes.replace(",", "").replace(" or", "").split())
                for each in asked:
                    said = refusal(broker, each)
                    named = {"work"} if isinstance(each, Store) and "work" not in mine else wanted
                    assert bool(said) == mine.isdisjoint(wanted), each
                    assert not said or any(name in said for name in named), said

    def test_no_token_and_a_wrong_one(self, served):
        for url in (served.url, served.url.replace("://", "://:spool_1_wrong@")):
            with pytest.raises(errors.BrokerRefused, match="needs a token") as caught:
                connect(url).call(Stats("q"))
            assert "wrong" not in str(caught.value)

    def test_a_token_for_one_queue_is_for_that_alone(self, sqlite_served):
        with at(sqlite_served, "operate", "work", queues=["mine"]) as broker:
            broker.call(Enqueue("mine", [job("a")]))
            sqlite_served.broker.call(Enqueue("other", [job("a")]))
            assert broker.ended("mine", "never") is None
            for verb in (
                Enqueue("other", []),
                Get("other", "a"),
                Act("other", Cancel(), ["a"]),
                Beat("other", [Heartbeat("w")]),
                Stats("other"),
                Store("worker", "w", b'{"queues": ["mine", "other"]}'),
                Store("task", "t", b'{"queue": "mine"}', others={"u": b'{"queue": "other"}'}),
            ):
                with pytest.raises(errors.BrokerRefused, match="not for the queue 'other'"):
                    broker.call(verb)
            with pytest.raises(errors.BrokerRefused, match="'other'"):
                broker.ended("other", "a", 1)
            with pytest.raises(errors.BrokerRefused, match="'other'"):
                broker.await_orders(["mine", "other"], 1)
            assert [each.key for each in broker.call(Load("queue")).documents] == ["mine"]

    def test_a_token_for_one_queue_takes_nothing_from_another(self, served):
        theirs = b'{"queue": "other"}'
        for kind in ("task", "worker"):
            served.broker.call(Store(kind, "theirs", theirs))
            served.broker.call(Store(kind, "unreadable", b"?"))
        mine = b'{"queue": "mine"}'
        with at(served, "work", queues=["mine"]) as broker:
            for kind in ("task", "worker"):
                for verb in (
                    Store(kind, "theirs", mine),
                    Store(kind, "theirs", None),
                    Store(kind, "own", mine, others={"theirs": mine}),
                    Store(kind, "own", b"{}"),
                    Store(kind, "own", b"?"),
                    Store(kind, "unreadable", mine),
                ):
                    with pytest.raises(errors.BrokerRefused, match="token"):
                        broker.call(verb)
                broker.call(Store(kind, "own", mine, others={"own2": mine}))
                broker.call(Store(kind, "own", None))
                there = {each.key: each.body for each in served.broker.call(Load(kind)).documents}
                assert there == {"own2": mine, "theirs": theirs, "unreadable": b"?"}

    def test_of_other_queues_workers_and_tasks_it_sees_none(self, sqlite_served):
        for queue in ("mine", "other"):
            sqlite_served.broker.call(Store("worker", queue, msgspec.json.encode({"queues": [queue]})))
            sqlite_served.broker.call(Store("task", queue, msgspec.json.encode({"queue": queue})))
        with at(sqlite_served, "admin", queues=["mine"]) as broker:
            for kind in ("worker", "task"):
                assert [each.key for each in broker.call(Load(kind)).documents] == ["mine"]
            with pytest.raises(errors.BrokerRefused, match="kind 'token'"):
                broker.call(Load("token"))

    def test_what_a_task_hides_is_hidden_from_who_asks_for_verbs(self, served):
        app = Spool(served.broker)

        @app.task(queue="q", redact=("password",))
        def login(user: str, password: str) -> None: ...

        served.declare(app)
        login.options(id="a").enqueue("ada", "hunter2")
        login.options(id="dead").enqueue("ada", password="hunter2")
        served.broker.call(Enqueue("q", [NewJob("damaged", b"hunter2")]))
        driver = Driver(served.broker, Clock(), "q")
        driver.beat("w", tasks=("login",))
        driver.take("w", 2)
        driver.settle("w", driver.died("dead"))
        with at(served, "read") as broker:
            found = [broker.call(Get("q", "a")), broker.ended("q", "dead"), *broker.call(Find("q", State.RUNNING)).jobs]
            assert [view(each).arguments for each in found] == [(["ada", "[redacted]"], {})] * 3
            assert view(found[0]).task == "login"
            found.append(broker.call(Get("q", "damaged")))
        assert all(b"hunter2" not in each.record for each in found)
        assert all(read_record(each.record).fingerprint == "" for each in found[:3]), "it could be guessed from"

    def test_arguments_that_are_none_are_the_trouble_of_their_job_alone(self, served):
        app = Spool(served.broker)

        @app.task(queue="q", redact=("password",))
        def login(user: str, password: str) -> None: ...

        served.declare(app)
        bodies = {"a": [1, 2], "b": [[], []], "c": [], "d": 7, "e": [[], {1: 2}]}
        with at(served, "enqueue") as broker:
            for id, body in bodies.items():
                record = Record(VERSION, "login", 2, 0, 3, "", 0, msgspec.Raw(msgspec.msgpack.encode(body)))
                broker.call(Enqueue("q", [NewJob(id, encode_record(record))]))
        answer = served.client("read").get("/api/v1/jobs")
        assert answer.status_code == 200
        assert [each["arguments"] for each in answer.json()["items"]] == [None] * len(bodies)
        assert all("cannot be decoded" in each["error"] for each in answer.json()["items"])

    def test_queues_that_are_listened_to_are_bounded(self, sqlite_served, monkeypatch):
        monkeypatch.setattr(waits, "MOST", 3)
        with at(sqlite_served, "work") as broker:
            broker._ask(OrdersWait(["a", "b", "c"], 0.0))
            broker._ask(WorkWait(["a"], 0.001))
            for asked in (
                OrdersWait(["a", "d"], 0.0),
                WorkWait(["a", "b"], 0.001),
                Claim("d", "w", 1, (1, 1), wait=0.1),
            ):
                with pytest.raises(errors.BrokerUnavailable, match="listens to 3 queues already"):
                    broker._ask(asked)
            broker._ask(OrdersWait(["a", "b", "c"], 0.0))
        eventually(lambda: not sqlite_served.serving.app.services.verbs._work._ears)

    def test_ends_that_are_waited_for_are_bounded(self, sqlite_served, monkeypatch):
        monkeypatch.setattr(server_verbs, "MOST_ENDS", 2)
        with at(sqlite_served, "read") as broker:
            for _ in range(3):
                assert len(broker._hear(EndsWait([("q", "a"), ("q", "b")], 5.0))) == 2, "which are not known"
            with pytest.raises(errors.BrokerUnavailable, match="too many ends"):
                broker._hear(EndsWait([("q", "a"), ("q", "b"), ("q", "c")], 0.001))

    def test_what_was_not_enqueued_is_not_in_the_audit_log(self, sqlite_served):
        with at(sqlite_served) as broker:
            broker.call(Enqueue("q", [job("a", fingerprint="one")]))
            broker.call(Enqueue("q", [job("a", fingerprint="another"), job("b", fingerprint="one")]))
        assert list(sqlite_served.serving.app.services.audit._sums.values()) == [2]

    def test_a_server_that_is_read_only_answers_what_changes_nothing(self, tmp_path):
        with serving(f"sqlite:///{tmp_path}/spool.db", read_only=True) as served, at(served) as broker:
            assert broker.call(Stats("q")).running == 0
            assert broker.ended("q", "a") is None
            for verb in (Enqueue("q", []), Act("q", Pause()), Beat("q", [])):
                with pytest.raises(errors.BrokerRefused, match="read-only"):
                    broker.call(verb)

    def test_what_is_done_to_jobs_is_in_the_audit_log(self, sqlite_served):
        with at(sqlite_served) as broker:
            broker.call(Enqueue("q", jobs(12)))
            broker.call(Act("q", Cancel(), [each.id for each in jobs(12)]))
            broker.call(Act("q", Pause()))
            token = broker._address.token
        client = sqlite_served.anonymous(headers={"Authorization": f"Bearer {token}"})
        entries = client.get("/api/v1/audit").json()["items"]
        said = [(each["action"], each["target"], each["detail"][-10:], each["status"]) for each in entries]
        assert sorted(said) == [("cancel", "q", "and 2 more", 200), ("pause", "q", "", 200)]


@pytest.fixture
def q(front: Front) -> Iterator[Driver]:
    """Give a queue in a store of our own, with the server before it."""
    clock = Clock()
    store = SqliteBroker("sqlite://:memory:", clock=lambda: (clock.wall, clock.boot))
    front.put_before(store)
    yield Driver(store, clock)
    front.take_away()
    store.close()


@pytest.fixture(scope="module")
def network(front: Front) -> Iterator[proxy.Network]:
    network = proxy.Network(int(front.url.rpartition(":")[2]))
    network.url = f"http://127.0.0.1:{network.gate()}"
    yield network
    network.close()


class TestLostReplies:
    @pytest.mark.parametrize("name", VERBS)
    def test_a_verb_sent_again_after_its_reply_was_lost_has_the_effect_of_one(self, q, network, monkeypatch, name):
        monkeypatch.setattr(proxy, "LOSSES", 1.0)
        setting(q)
        verb = VERBS[name](q)
        broker = connect(network.url)
        network.set(0, "reply-lost")
        with pytest.raises(errors.BrokerUnavailable):
            broker.call(verb)
        network.set(0, "open")
        once = everything(q)
        if isinstance(verb, Enqueue):
            verb = Enqueue(q.queue, verb.jobs, resend=True)
        with suppress(errors.VersionConflict):
            broker.call(verb)
        assert everything(q) == once
        broker.close()

    @pytest.mark.parametrize("name", STALE)
    def test_a_verb_that_is_carried_out_after_the_retirement_changes_nothing(self, q, front, name):
        setting(q)
        verb = STALE[name](q)
        broker = connect(front.url + "?socket_timeout=0.05")
        with front.held():
            with pytest.raises(errors.BrokerUnavailable, match="no answer in time"):
                broker.call(verb)
            q.retire("w")
            before = everything(q)
        eventually(lambda: not front.under_way)
        assert front.carried_out == 1
        assert everything(q) == before
        broker.close()

    @pytest.mark.usefixtures("q")
    async def test_in_a_loop_a_lost_reply_is_no_less_an_error(self, network, monkeypatch):
        monkeypatch.setattr(proxy, "LOSSES", 1.0)
        async with aclosing(connect(network.url)) as broker:
            network.set(0, "reply-lost")
            with pytest.raises(errors.BrokerUnavailable, match="cannot reach"):
                await broker.acall(Enqueue("q", [job("a")]))
            network.set(0, "open")
            assert (await broker.acall(Enqueue("q", [job("a")], resend=True))).existing == ["a"]


class TestSizes:
    @pytest.fixture
    def small(self, q, front) -> Iterator[HttpBroker]:  # noqa: ARG002 - q puts the server before its store
        """Give a broker whose server takes less than it says it does, as behind a proxy."""
        front.limit(200_000)
        broker = connect(front.url)
        yield broker
        broker.close()

    def test_an_enqueue_that_is_too_large_goes_in_several(self, q, small):
        many = [job(f"j{number:05}", payload="x" * 1000) for number in range(1000)]
        q.enqueue(*[msgspec.structs.replace(each, fingerprint="f") for each in many[::100]])
        reply = small.call(Enqueue("q", many, resend=True))
        assert reply.existing == [each.id for each in many[::100]]
        assert q.totals() == {"enqueued": 1000}
        ids = [each.id for each in many]
        assert q.ids(State.READY, 1000) == ids[::100] + [id for id in ids if not id.endswith("00")]

    async def test_an_enqueue_in_a_loop_that_is_too_large_goes_in_several(self, q, front):
        front.limit(200_000)
        async with aclosing(connect(front.url)) as broker:
            await asyncio.to_thread(self.learn, broker)
            await broker.acall(Enqueue("q", [job(f"j{number:05}", payload="x" * 1000) for number in range(1000)]))
        assert q.totals() == {"enqueued": 1000}

    LARGE = job("large", payload="x" * 200_000)

    def learn(self, broker: HttpBroker) -> None:
        with pytest.raises(errors.PayloadTooLarge):
            broker.call(Enqueue("q", [job("a", payload="x" * 200_000)]))

    def test_what_cannot_be_made_smaller_is_refused_with_the_limit(self, small):
        for verb in (
            Enqueue("q", [job("a", payload="x" * 200_000)]),
            Store("doc", "k", bytes(200_001)),
        ):
            with pytest.raises(
                errors.PayloadTooLarge, match=r"has 2\d\d,\d\d\d bytes; .* takes at most 200,000 a request"
            ):
                small.call(verb)

    def test_the_limit_is_asked_for_before_much_is_sent(self, sqlite_served):
        many = [
            job(f"j{number:05}", payload="x" * 100_000) for number in range(400)
        ]  # more than a server takes at once
        with at(sqlite_served) as broker:
            assert broker.call(Enqueue("q", many)).existing == []
            assert sqlite_served.broker.call(Stats("q")).totals == {"enqueued": 400}

    async def test_results_of_more_than_a_server_takes(self, sqlite_served):
        token = sqlite_served.token()
        url = sqlite_served.url.replace("://", f"://:{token}@")
        async with Spool(url, max_payload=40 << 20) as app:

            @app.task
            async def make(size: int) -> bytes:
                return bytes(size << 20)

            sizes = [7, 7, 7, 33, 7, 7]  # 35 MiB and more: a server takes 32 at once
            handles = [await make.aenqueue(size) for size in sizes]
            stop = asyncio.Event()
            working = asyncio.create_task(app.run_worker(concurrency=6, stop=stop))
            for size, handle in zip(sizes, handles, strict=True):
                if size < 32:
                    assert len(await handle.aresult(30)) == size << 20
                else:
                    with pytest.raises(errors.JobFailed, match=r"takes at most 33,554,432 a request"):
                        await handle.aresult(30)
            stop.set()
            await working
        totals = sqlite_served.broker.call(Stats("default")).totals
        assert (totals["done"], totals["dead"]) == (5, 1)

    def test_when_a_later_part_fails_it_is_not_said_that_nothing_was_stored(self, q, small, monkeypatch):
        self.learn(small)
        store, calls = q.broker.acall, []

        async def full(verb):
            calls.append(verb)
            if len(calls) == 2:
                raise errors.BrokerFull("no room")
            return await store(verb)

        monkeypatch.setattr(q.broker, "acall", full)
        with pytest.raises(errors.BrokerUnavailable, match=r"of 300 jobs .* are stored: .*no room"):
            small.call(Enqueue("q", [job(f"j{number:05}", payload="x" * 1000) for number in range(300)]))

    async def test_nothing_is_stored_with_a_job_that_is_too_large(self, q, small):
        many = [*(job(f"j{number:05}", payload="x" * 1000) for number in range(300)), self.LARGE, job("z")]
        for call in (asyncio.to_thread(small.call, Enqueue("q", many)), small.acall(Enqueue("q", many))):
            with pytest.raises(errors.PayloadTooLarge, match="takes at most 200,000 a request"):
                await call
            assert q.totals() == {}
        await small.aclose()

    async def test_a_limit_that_is_not_known_for_certain_refuses_nothing(self, q, small, monkeypatch):
        def read(*given):
            try:
                return wire.read(*given)
            except wire.TooLarge as error:
                raise wire.TooLarge(str(error), None) from error  # as a proxy would

        monkeypatch.setattr(http, "read", read)
        monkeypatch.setattr(http, "SMALL", 100_000)
        many = [job(f"j{number:05}", payload="x" * 1000) for number in range(300)]
        larger = job("larger", payload="x" * 150_000)
        await small.acall(Enqueue("q", [*many, larger]))
        assert q.totals() == {"enqueued": 301}
        await asyncio.to_thread(small.call, Enqueue("other", [*many, larger]))
        with pytest.raises(errors.EnqueueInterrupted, match=r"of 303 jobs 301 are stored: .* has 2") as caught:
            await small.acall(Enqueue("more", [*many, larger, self.LARGE, job("z")]))
        assert caught.value.acknowledged == 301
        assert isinstance(caught.value.__cause__, errors.PayloadTooLarge)
        await small.aclose()

    @pytest.mark.parametrize("kind", [errors.PayloadError, errors.NotDurable])
    async def test_an_enqueue_that_ends_halfway_says_what_is_stored(self, q, small, monkeypatch, kind):
        many, store, sizes = [job(f"j{number:05}", payload="x" * 1000) for number in range(400)], q.broker.acall, []

        async def picky(verb):
            sizes.append(len(verb.jobs))
            if kind is errors.NotDurable:
                await store(verb)
            if len(sizes) == failing:
                raise kind("not this one")
            return await store(verb)

        monkeypatch.setattr(q.broker, "acall", picky)
        for failing in (1, 2, 3):
            for twin in (small.acall, lambda verb: asyncio.to_thread(small.call, verb)):
                small._limit = 200_000
                sizes.clear()
                error: type[errors.SpoolError] = errors.EnqueueInterrupted
                if failing == (3 if kind is errors.NotDurable else 1):  # all is stored, or nothing
                    error = kind
                with pytest.raises(error, match="not this one") as caught:
                    await twin(Enqueue(f"q{failing}", many, resend=True))
                assert len(sizes) == failing
                if error is not kind:
                    assert caught.value.acknowledged == sum(sizes[:-1])
                    assert f"of 400 jobs {sum(sizes[:-1])} are stored" in str(caught.value)
        await small.aclose()


class TestConnections:
    def test_a_forked_child_has_its_own_connections(self, broker):
        broker.call(Enqueue("q", [job("a")]))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            broker.call(Enqueue("q", jobs(5)))
            os.write(writing, b"%d" % sum(broker.call(Stats("q")).ready))
            os._exit(0)
        assert os.read(reading, 10) == b"6"
        os.waitpid(child, 0)
        assert sum(broker.call(Stats("q")).ready) == 6
        os.close(reading)
        os.close(writing)

    async def test_tls(self, tmp_path):
        authority = trustme.CA()
        for name, certificate in (
            ("trusted", authority.issue_cert("127.0.0.1")),
            ("other", trustme.CA().issue_cert("h")),
        ):
            certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        pem = str(tmp_path / "trusted.pem")
        with serving(f"sqlite:///{tmp_path}/spool.db", certificate=pem, key=pem) as served:
            with at(served, options=f"?ssl_ca_certs={tmp_path}/ca.pem") as broker:
                async with aclosing(broker):
                    assert (await broker.acall(Stats("q"))).running == 0
                    assert (await asyncio.to_thread(broker.call, Stats("q"))).running == 0
            with at(served) as broker:
                async with aclosing(broker):
                    with pytest.raises(errors.BrokerUnavailable, match="certificate"):
                        await broker.acall(Stats("q"))
                    with pytest.raises(errors.BrokerUnavailable, match="certificate"):
                        await asyncio.to_thread(broker.call, Stats("q"))

    async def test_clients_outlast_a_restart_of_the_server(self, tmp_path):
        q = Driver(SqliteBroker(f"sqlite:///{tmp_path}/spool.db"), Clock())
        q.worker("w", "a", "b")
        with serving(f"sqlite:///{tmp_path}/spool.db", auth=False) as served:
            port = served.serving.port
            broker = connect(served.url)
            assert (await broker.acall(Stats("q"))).running == 2
            assert (await asyncio.to_thread(broker.call, Stats("q"))).running == 2
            waits = [
                asyncio.create_task(broker.aended("q", "a", 30)),
                asyncio.create_task(asyncio.to_thread(broker.ended, "q", "b", 30)),
            ]
            await asyncio.to_thread(broker.await_orders, ["q"], 0.0)
            began = time.monotonic()
        assert time.monotonic() - began < PROMPT + 1  # who waits does not hold it up
        with pytest.raises(errors.BrokerUnavailable):
            await broker.acall(Stats("q"))
        with pytest.raises(errors.BrokerUnavailable):
            await asyncio.to_thread(broker.call, Stats("q"))
        with serving(f"sqlite:///{tmp_path}/spool.db", auth=False, port=port):
            async with aclosing(broker):
                assert (await broker.acall(Stats("q"))).running == 2
                assert (await asyncio.to_thread(broker.call, Stats("q"))).running == 2
                q.settle("w", q.done("a"), q.done("b"))
                assert [(await each).state for each in waits] == [State.DONE] * 2
                began = time.monotonic()
                await asyncio.to_thread(broker.await_orders, ["q"], 20.0)  # word may have been lost meanwhile
                assert time.monotonic() - began < PROMPT
        q.broker.close()


class TestWaiting:
    async def test_a_wait_of_a_few_seconds_outlasts_a_restart(self, tmp_path):
        q = Driver(SqliteBroker(f"sqlite:///{tmp_path}/spool.db"), Clock())
        q.worker("w", "a", "b")
        with serving(f"sqlite:///{tmp_path}/spool.db", auth=False) as served:
            port, waiting = served.serving.port, served.serving.app.services.verbs
            broker = connect(served.url)
            waits = [
                asyncio.create_task(broker.aended("q", "a", 10)),
                asyncio.create_task(asyncio.to_thread(broker.ended, "q", "b", 10)),
            ]
            await aeventually(lambda: waiting.ends == 2)
        with serving(f"sqlite:///{tmp_path}/spool.db", auth=False, port=port):
            async with aclosing(broker):
                assert not [each for each in waits if each.done()]
                q.settle("w", q.done("a"), q.done("b"))
                assert [(await each).state for each in waits] == [State.DONE] * 2
        q.broker.close()

    def test_a_wait_that_something_cuts_short_goes_on_until_its_time_is_over(self, monkeypatch):
        with stranger(200, spool_protocol=wire.SPOKEN) as url:
            broker, asked = HttpBroker(url), []
            hear = broker._hear
            monkeypatch.setattr(broker, "_hear", lambda request: asked.append(request) or hear(request))
            began = time.monotonic()
            assert broker.ended("q", "a", 0.5) is None
            assert time.monotonic() - began >= 0.5
            assert 2 <= len(asked) <= 4  # and it takes a breath in between
            broker.close()

    async def test_a_thousand_waiters_cost_the_store_a_few_commands(self, redis_url, front):
        store = connect(redis_url)
        front.put_before(store)
        q = Driver(store, Clock())
        many = jobs(1000)
        async with aclosing(connect(front.url)) as broker:
            with redis.Redis.from_url(redis_url) as client:
                await asyncio.to_thread(q.worker, "w", *many)
                client.config_resetstat()
                waiting = asyncio.gather(*(broker.aended("q", each.id, 30) for each in many))
                await aeventually(lambda: client.hlen("spool:{q}:waiters") == 1000)
                assert front.connections <= 2
                assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 4
                await asyncio.to_thread(q.settle, "w", *(q.done(each.id) for each in many))
                assert {each.state for each in await waiting} == {State.DONE}
        front.take_away()
        store.close()

    async def test_more_waiters_than_one_request_takes_are_all_told(self, q, front, monkeypatch):
        monkeypatch.setattr(ends, "MAX_ENDS", 2)
        many = jobs(5)
        q.worker("w", *many)
        async with aclosing(connect(front.url)) as broker:
            waiting = {each.id: asyncio.create_task(broker.aended("q", each.id, 30)) for each in many}
            await aeventually(lambda: front.under_way == 3)
            for id, told in waiting.items():
                await asyncio.to_thread(q.settle, "w", q.done(id))
                assert (await asyncio.wait_for(told, 10)).state is State.DONE

    async def test_many_workers_that_wait_are_one_to_the_store(self, redis_url, front):
        store = connect(redis_url)
        app = front.put_before(store)
        q = Driver(store, Clock())
        async with aclosing(connect(front.url)) as broker:
            with redis.Redis.from_url(redis_url) as client:
                names = [f"w{number:02}" for number in range(20)]
                await asyncio.to_thread(q.beat, *names)
                claims = [asyncio.create_task(broker.acall(Claim("q", name, 1, wait=20))) for name in names]
                await aeventually(lambda: client.info("clients")["blocked_clients"] == 1)
                await aeventually(lambda: front.under_way == 20)
                await asyncio.to_thread(q.enqueue, "a", "b", "c")
                done = await aeventually(lambda: [each for each in claims if each.done()])
                await aeventually(lambda: sum(bool(each.result().jobs) for each in claims if each.done()) == 3)
                assert len(done) < 10
                for each in claims:
                    each.cancel()
                await aeventually(lambda: front.under_way == 0)
                await aeventually(lambda: client.info("clients")["blocked_clients"] == 0)
                assert not app.services.verbs._work._ears
        front.take_away()
        store.close()

    async def test_the_wait_of_one_queue_does_not_hold_up_that_of_another(self, redis_url):
        q = Driver(store := connect(redis_url), Clock())
        async with aclosing(store):
            first = asyncio.create_task(store.await_work(["other"], 10))
            second = asyncio.create_task(store.await_work(["q"], 10))
            with redis.Redis.from_url(redis_url) as client:
                await aeventually(lambda: client.info("clients")["blocked_clients"] == 2)
            await asyncio.to_thread(q.enqueue, "a")
            await asyncio.wait_for(second, PROMPT)
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            assert (await store.acall(Stats("q"))).ready[2] == 1

    def test_threads_wait_side_by_side(self, q, front):
        q.worker("w", *jobs(8))
        broker = connect(front.url)
        with ThreadPoolExecutor(8) as pool:
            waits = [pool.submit(broker.ended, "q", each.id, 30) for each in jobs(8)]
            eventually(lambda: front.under_way == 8)
            q.settle("w", *(q.done(each.id) for each in jobs(8)))
            assert [each.result(PROMPT).id for each in waits] == [each.id for each in jobs(8)]
        broker.close()

    async def test_who_comes_one_by_one_needs_few_requests(self, q, front):
        many = jobs(100)
        await asyncio.to_thread(q.worker, "w", *many)
        async with aclosing(connect(front.url)) as broker:
            waits = []
            for each in many:
                waits.append(asyncio.create_task(broker.aended("q", each.id, 30)))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            await aeventually(lambda: front.under_way)
            assert front.under_way <= 8
            await asyncio.to_thread(q.settle, "w", *(q.done(each.id) for each in many))
            assert [(await each).id for each in waits] == [each.id for each in many]


def echo(text: str) -> str:
    return text


def test_an_app_and_the_command_line_work_through_a_server(served, capsys):
    given = [served.token(*scopes) for scopes in (["work", "read"], ["enqueue", "read"], ["read"])]
    worker, sender, reader = (served.url.replace("://", f"://:{token}@") for token in given)
    stop = threading.Event()

    async def work() -> None:
        async with Spool(worker) as app:
            app.task(queue="mail")(echo)
            done = asyncio.Event()
            working = asyncio.create_task(app.run_worker(stop=done))
            await asyncio.to_thread(stop.wait)
            done.set()
            await working

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    try:
        with Spool(sender) as producer:
            send = producer.task(queue="mail")(echo)
            assert send.enqueue("hi").result(10) == "hi"
            assert producer.enqueue_many(send.call(str(n)) for n in range(100)) == 100
        eventually(lambda: served.broker.call(Stats("mail")).totals.get("done") == 101)
    finally:
        stop.set()
        thread.join()
    with pytest.raises(SystemExit, match="0"):
        main(["queues", "--url", reader])
    assert "mail" in capsys.readouterr().out
