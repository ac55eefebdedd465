"""``durability="fsync"``: acknowledged only when it is on the disk, refused where nobody can tell."""

import asyncio
import contextlib
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import redis

from spool import BrokerRefused, BrokerUnavailable, ConfigError, EnqueueInterrupted, NotDurable, Spool, testing
from spool.broker import Enqueue, Get, Stats
from spool.broker.redis import RedisBroker
from spool.broker.redis.durable import Disk
from spool.broker.redis.line import Address
from spool.broker.redis.wire import ServerError
from spool.broker.sqlite import SqliteBroker
from spool.chaos.redis_store import server_version
from spool.cli import main
from tests.contract.driver import job, jobs
from tests.eventually import aeventually
from tests.faulty import FaultyBroker
from tests.model import ModelBroker
from tests.redis_server import RedisServer, find_redis

AOF = ("--appendonly", "yes")


def able() -> Path:
    """A server with WAITAOF."""
    found = find_redis()
    return found if _tells(found) else find_redis("8.2")


def unable() -> Path:
    """A server without WAITAOF."""
    found = find_redis()
    return find_redis("6.2") if _tells(found) else found


def _tells(binary: Path) -> bool:
    return tuple(map(int, server_version(binary).split(".")[:2])) >= (7, 2)


def durable(*ids: str, resend: bool = False) -> Enqueue:
    return Enqueue("q", [job(id, fingerprint="f") for id in ids], resend, durable=True)


@contextlib.contextmanager
def server(binary, *arguments):
    with RedisServer(binary, *arguments) as server, redis.Redis.from_url(server.url) as client:
        yield server, client


@contextlib.contextmanager
def broker_of(server, query="", how="blocking"):
    """Yield a broker of a server and a function that carries out a verb, blocking or in a loop."""
    broker = RedisBroker(server.url + query)
    if how == "blocking":
        with contextlib.closing(broker):
            yield broker, broker.call
    else:
        with asyncio.Runner() as runner:
            try:
                yield broker, lambda verb: runner.run(broker.acall(verb))
            finally:
                runner.run(broker.aclose())


def without(client, up, command):
    """The server as a user sees it who may not use this command."""
    client.execute_command("ACL", "SETUSER", "mute", "on", "nopass", "~*", "&*", "+@all", f"-{command}")
    return SimpleNamespace(url=up.url.replace("//", "//mute:x@"))


def calls(client, command):
    return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


both = pytest.mark.parametrize("how", ["blocking", "in a loop"])


class TestRedis:
    @both
    @pytest.mark.parametrize("fsync", ["always", "everysec"])
    def test_it_is_answered_when_the_disk_has_it(self, how, fsync):
        with server(able(), *AOF, "--appendfsync", fsync) as (up, client), broker_of(up, how=how) as (_, call):
            assert call(durable("a")).existing == []
            assert calls(client, "waitaof") == 2  # whether it can, and whether it has
            assert call(durable("a")).existing == ["a"]
            call(Enqueue("q", [job("b")]))
            assert calls(client, "waitaof") == 4
            up.kill()
            up.restart()
            with contextlib.closing(RedisBroker(up.url)) as later:
                assert later.call(Stats("q")).ready[2] == 2

    @both
    def test_what_is_not_confirmed_is_stored_and_said(self, how):
        query = "?socket_timeout=0.4"
        with server(able(), *AOF, "--appendfsync", "no") as (up, client), broker_of(up, query, how) as (broker, call):
            with pytest.raises(NotDurable, match=r"stored it, but did not confirm within 0\.2 s"):
                call(durable("a"))
            assert broker.call(Get("q", "a")) is not None
            for again in (durable("a"), durable("a", resend=True), durable("a", "a")):
                with pytest.raises(NotDurable):  # it is there, but by a write that no connection of now has made
                    call(again)
            client.config_set("appendfsync", "always")
            assert call(durable("a", resend=True)).existing == ["a"]

    @both
    @pytest.mark.parametrize(
        ("binary", "arguments"),
        [(able, ()), (unable, ()), (unable, AOF), (unable, ("--appendfsync", "always"))],
        ids=["no AOF", "too old", "too old, everysec", "too old, no AOF"],
    )
    def test_a_server_that_cannot_tell_is_refused_before_anything_is_stored(self, how, binary, arguments):
        with server(binary(), *arguments) as (up, _), broker_of(up, how=how) as (broker, call):
            with pytest.raises(BrokerRefused, match=r"nothing was stored: .* Redis 7\.2 or newer with appendonly yes"):
                call(durable("a"))
            assert broker.call(Get("q", "a")) is None
            assert call(Enqueue("q", [job("b")])).existing == []

    @both
    def test_an_old_server_that_syncs_always_needs_not_be_asked(self, how):
        with server(unable(), *AOF, "--appendfsync", "always") as (up, client), broker_of(up, how=how) as (_, call):
            assert call(durable("a")).existing == []
            mute = without(client, up, "config")
            with broker_of(mute, how=how) as (_, ask), pytest.raises(BrokerRefused, match="CONFIG GET"):
                ask(durable("b"))

    @both
    def test_a_user_that_may_not_ask_is_refused(self, how):
        with (
            server(able(), *AOF) as (up, client),
            broker_of(without(client, up, "waitaof"), how=how) as (broker, call),
        ):
            with pytest.raises(BrokerRefused, match="NOPERM"):
                call(durable("a"))
            assert broker.call(Get("q", "a")) is None

    async def test_those_of_a_loop_share_a_sync(self):
        with server(able(), *AOF) as (up, client):
            broker = RedisBroker(up.url)
            replies = await asyncio.gather(*(broker.acall(durable(f"j{n}")) for n in range(100)))
            assert {len(reply.existing) for reply in replies} == {0}
            assert (await broker.acall(Stats("q"))).ready[2] == 100
            assert calls(client, "waitaof") <= 6
            await broker.aclose()

    async def test_others_in_the_loop_are_not_held_up(self):
        with server(able(), *AOF, "--appendfsync", "no") as (up, client):
            broker = RedisBroker(up.url + "?socket_timeout=1")
            waiting = asyncio.create_task(broker.acall(durable("a")))
            await aeventually(lambda: client.info("clients")["blocked_clients"])
            await broker.acall(Enqueue("q", [job("b")]))
            assert not waiting.done()
            with pytest.raises(NotDurable):
                await waiting
            await broker.aclose()

    async def test_each_of_a_group_gets_its_own_error(self):
        with server(able(), *AOF, "--appendfsync", "always") as (up, _):
            broker = RedisBroker(up.url)
            bad = msgspec.structs.replace(durable("a"), jobs=[job("a", delay="soon")])
            good, wrong = await asyncio.gather(broker.acall(durable("b")), broker.acall(bad), return_exceptions=True)
            assert good.existing == []
            assert isinstance(wrong, Exception)
            assert await broker.acall(Get("q", "a")) is None
            await broker.aclose()

    @pytest.mark.parametrize("how", ["the connection is lost", "the broker is closed"])
    async def test_a_sync_that_is_broken_off(self, how):
        with server(able(), *AOF, "--appendfsync", "no") as (up, client):
            broker = RedisBroker(up.url + "?socket_timeout=30")
            waits = [asyncio.create_task(broker.acall(durable(id))) for id in "ab"]
            await aeventually(lambda: client.info("clients")["blocked_clients"])
            waits.append(asyncio.create_task(broker.acall(durable("c"))))
            await asyncio.sleep(0)
            if how == "the broker is closed":
                await broker.aclose()
            else:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for each in await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 10):
                assert isinstance(each, BrokerUnavailable)
            await broker.aclose()

    async def test_a_sync_on_another_connection_than_the_write_proves_nothing(self):
        with server(able(), *AOF, "--appendfsync", "always") as (up, _):
            broker = RedisBroker(up.url)
            await broker.acall(durable("a"))
            line = broker._here().durable.line
            run = line.run

            async def lost_after(call):
                reply = await run(call)
                await line.reset()
                return reply

            line.run = lost_after
            with pytest.raises(BrokerUnavailable, match="lost meanwhile"):
                await broker.acall(durable("b"))
            await broker.aclose()

    @pytest.mark.parametrize("says", ["ERR WAITAOF cannot be used when … appendonly is disabled.", "OOM command not …"])
    def test_a_server_that_changes_its_mind_after_the_write(self, says):
        steps = Disk(Address(), "redis://h").confirm("spool:{q}:")
        assert next(steps)[:2] == ("HSET", "spool:{q}:meta")
        if says.startswith("ERR"):
            assert steps.send(0) == ("WAITAOF", 1, 0, 4000)
        with pytest.raises(NotDurable, match="redis://h stored it, but cannot confirm"):
            steps.send(ServerError(says))


def level(broker) -> int:
    return broker._thread._db.execute("PRAGMA synchronous").fetchone()[0]


class TestSqlite:
    @pytest.mark.parametrize(("option", "usual"), [("", 2), ("?synchronous=normal", 1)])
    def test_a_durable_enqueue_waits_for_the_disk_and_the_next_one_does_not(self, tmp_path, option, usual):
        with contextlib.closing(SqliteBroker(f"sqlite:///{tmp_path}/spool.db{option}")) as broker:
            broker.call(Enqueue("q", jobs(1)))
            assert level(broker) == usual
            assert broker.call(durable("a")).existing == []
            assert level(broker) == 2
            broker.call(Enqueue("q", jobs(1, "k")))
            assert level(broker) == usual
            assert broker.call(Stats("q")).ready[2] == 3

    async def test_a_whole_group_waits_for_the_disk(self, tmp_path):
        broker = SqliteBroker(f"sqlite:///{tmp_path}/spool.db?synchronous=normal")
        await broker.acall(Stats("q"))
        before = broker.commits
        verbs = [Enqueue("q", jobs(1)), durable("a"), Enqueue("q", jobs(1, "k"))]
        broker._thread._gate.acquire()
        waits = [asyncio.create_task(broker.acall(verb)) for verb in [Stats("q"), *verbs]]
        await asyncio.sleep(0)
        broker._thread._gate.release()
        await asyncio.gather(*waits)
        assert broker.commits - before <= 2
        assert (await broker.acall(Stats("q"))).ready[2] == 3
        await broker.aclose()

    def test_what_is_there_already_is_synced_too(self, tmp_path):
        path = tmp_path / "spool.db"
        broker = SqliteBroker(f"sqlite:///{path}?synchronous=normal", clock=lambda: (1_800_000_000_000, 50_000))
        with contextlib.closing(broker):
            plain = msgspec.structs.replace(durable("a"), durable=False)
            for _ in range(2):
                broker.call(plain)
            written = path.with_name("spool.db-wal").stat().st_size
            broker.call(plain)
            assert path.with_name("spool.db-wal").stat().st_size == written  # nothing to write, nothing to sync
            assert broker.call(durable("a")).existing == ["a"]
            assert path.with_name("spool.db-wal").stat().st_size > written

    def test_a_store_in_memory_has_no_disk(self):
        with contextlib.closing(SqliteBroker("sqlite://:memory:")) as broker:
            assert broker.call(durable("a")).existing == []


@pytest.fixture
def broker():
    return FaultyBroker(ModelBroker())


@pytest.fixture
def app(broker):
    return Spool(broker)


@pytest.fixture
def square(app):
    return app.task(name="square")(abs_of)


def abs_of(number: int) -> int:
    return abs(number)


class TestApp:
    def test_an_enqueue_asks_for_it(self, broker, square):
        square.options(durability="fsync").enqueue(1)
        square.options(durability=None).enqueue(1)
        square.enqueue(1)
        assert [verb.durable for verb in broker.asked] == [True, False, False]

    async def test_in_a_loop(self, broker, square):
        await square.options(durability="fsync").aenqueue(1)
        assert [verb.durable for verb in broker.asked] == [True]

    def test_a_resend_asks_for_it_too(self, broker, square):
        broker.faults = ["reply"]
        square.options(durability="fsync").enqueue(1)
        assert [(verb.durable, verb.resend) for verb in broker.asked] == [(True, False), (True, True)]

    def test_a_bulk_enqueue_asks_for_it(self, app, broker, square):
        assert app.enqueue_many((square.call(n) for n in range(1200)), durability="fsync") == 1200
        assert [verb.durable for verb in broker.asked] == [True] * 3

    async def test_a_bulk_enqueue_in_a_loop(self, app, broker, square):
        assert await app.aenqueue_many([square.call(1)], durability="fsync") == 1
        assert [verb.durable for verb in broker.asked] == [True]

    def test_a_call_in_a_bulk_enqueue_keeps_what_it_asked_for(self, app, broker, square):
        demanding, plain = square.options(durability="fsync", queue="a"), square.options(queue="b")
        first = [demanding.call(1), plain.call(2), square.options(queue="a").call(3)]
        then = [square.options(queue="a").call(n) for n in range(500)]
        assert app.enqueue_many([*first, *then]) == 503
        assert {(verb.queue, len(verb.jobs)): verb.durable for verb in broker.asked} == {
            ("a", 500): True,
            ("a", 2): False,
            ("b", 1): False,
        }

    def test_a_store_that_does_not_confirm_is_no_reason_to_send_again(self, app, broker, square):
        broker.faults = [NotDurable("not confirmed")]
        with pytest.raises(NotDurable):
            square.options(durability="fsync").enqueue(1)
        assert len(broker.asked) == 1
        broker.faults = [NotDurable("not confirmed")]
        with pytest.raises(EnqueueInterrupted, match="0 jobs are stored: NotDurable") as caught:
            app.enqueue_many([square.call(1)], durability="fsync")
        assert isinstance(caught.value.__cause__, NotDurable)

    @pytest.mark.parametrize("wrong", ["always", True, "", 1])
    def test_what_cannot_be_asked_for(self, app, square, wrong):
        with pytest.raises(ConfigError, match="durability must be 'fsync' or None"):
            square.options(durability=wrong)
        with pytest.raises(ConfigError, match="durability must be 'fsync' or None"):
            app.enqueue_many([], durability=wrong)

    def test_in_a_test_it_changes_nothing(self, app, square):
        with testing.inline(app):
            assert square.options(durability="fsync").enqueue(-3).result() == 3


class TestCommandLine:
    @pytest.fixture
    def enqueue(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "path", sys.path[:])

        def run(url, *options):
            with pytest.raises(SystemExit) as stopped:
                main(["enqueue", "tests.shop:app:add", "--args", "[1, 2]", "--id", "a", "--url", url, *options])
            return stopped.value.code, *capsys.readouterr()

        return run

    @pytest.mark.parametrize(("options", "waited"), [((), 0), (("--durability", "fsync"), 2)])
    def test_it_is_answered_when_the_disk_has_it(self, enqueue, options, waited):
        with server(able(), *AOF) as (up, client):
            assert enqueue(up.url, *options) == (0, "default/a\n", "")
            assert calls(client, "waitaof") == waited

    def test_what_is_not_confirmed_is_said(self, enqueue):
        with server(able(), *AOF, "--appendfsync", "no") as (up, _), broker_of(up) as (broker, _):
            code, out, err = enqueue(f"{up.url}?socket_timeout=0.4", "--durability", "fsync")
            assert (code, out) == (1, "")
            assert re.fullmatch(r"spool: redis:.* stored it, but did not confirm within 0\.2 s that .*\n", err)
            assert broker.call(Get("default", "a")) is not None

    def test_a_server_that_cannot_tell_is_refused(self, enqueue):
        with server(able()) as (up, _), broker_of(up) as (broker, _):
            code, out, err = enqueue(up.url, "--durability", "fsync")
            assert (code, out) == (1, "")
            assert "nothing was stored" in err
            assert broker.call(Get("default", "a")) is None

    def test_what_cannot_be_asked_for(self, enqueue):
        code, _, err = enqueue("sqlite://:memory:", "--durability", "always")
        assert code == 2
        assert "'fsync'" in err


def test_a_durable_enqueue_costs_a_sync_and_no_more(tmp_path):
    with Spool(f"sqlite:///{tmp_path}/spool.db?synchronous=normal") as app:
        task = app.task(name="t")(abs_of)
        begin = time.monotonic()
        for number in range(20):
            task.options(durability="fsync").enqueue(number)
        assert time.monotonic() - begin < 20
        assert app.broker.call(Stats("default")).ready[2] == 20
