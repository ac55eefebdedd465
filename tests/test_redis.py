"""What is special to the Redis broker: servers that fail or refuse, connections, waiting, and where keys lie."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import takewhile

import msgspec
import pytest
import redis

from spool import Spool, errors
from spool.broker import (
    Act,
    Beat,
    Cancel,
    Claim,
    Delete,
    Died,
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
    Released,
    Replay,
    Resume,
    Retire,
    Retried,
    Settle,
    Stats,
    Store,
    Watch,
    connect,
)
from spool.broker.redis import RedisBroker, orders, waits
from spool.chaos import proxy
from spool.job import (
    NIL,
    Attempt,
    Ending,
    Record,
    State,
    Tally,
    encode_ending,
    encode_record,
    new_id,
)
from tests.contract.driver import Driver, job
from tests.eventually import aeventually
from tests.model_state import Clock
from tests.redis_server import RedisServer
from tests.tallies import write_tally

EMPTY = msgspec.Raw(msgspec.msgpack.encode([[], {}]))


def new_job(task: str = "task", payload: msgspec.Raw = EMPTY, **where: int) -> NewJob:
    record = Record(1, task, where.get("priority", 2), where.get("lane", 0), 3, "", 0, payload)
    return NewJob(new_id(), encode_record(record), **where)


def done(id_: str, fence: int) -> Done:
    return Done(id_, fence, encode_ending(Ending(1, "done", "task", "", 0, 0, 0, 1, NIL)))


def nothing() -> None:
    """Do nothing."""


def until(condition, seconds: float = 10.0) -> None:
    """Wait for what another process does; fails after a time no machine needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.001)


async def auntil(condition, seconds: float = 10.0) -> None:
    """As `until`, letting the loop run."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.001)


@pytest.fixture
def broker(redis_url) -> Iterator[RedisBroker]:
    broker = RedisBroker(redis_url)
    yield broker
    broker.close()


@pytest.fixture
def client(redis_url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def start_worker(broker: RedisBroker, name: str = "w", lease: int = 10_000) -> None:
    broker.call(Beat("q", [Heartbeat(name, lease, tasks=("task",))]))


class TestBadServers:
    def test_nobody_listens(self):
        broker = connect("redis://user:secret@127.0.0.1:1/0")
        began = time.monotonic()
        with pytest.raises(errors.BrokerUnavailable) as caught:
            broker.call(Stats("q"))
        assert time.monotonic() - began < 4
        assert "redis://user:***@127.0.0.1:1/0" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert not caught.value.answered

    async def test_nobody_listens_async(self):
        broker = connect("redis://127.0.0.1:1/0")
        with pytest.raises(errors.BrokerUnavailable, match=r"redis://127\.0\.0\.1:1/0"):
            await broker.acall(Stats("q"))
        await broker.aclose()

    def test_a_server_that_is_silent_is_given_up(self, redis_server):
        broker = RedisBroker(redis_server.url + "?socket_timeout=0.3")
        broker.call(Stats("q"))
        redis_server.pause()
        try:
            with pytest.raises(errors.BrokerUnavailable):
                broker.call(Stats("q"))
        finally:
            redis_server.resume()
        assert broker.call(Stats("q")).running == 0
        broker.close()

    def test_wrong_password(self):
        with RedisServer(None, "--requirepass", "right") as server:
            for url in (server.url, server.url.replace("//", "//:wrong@")):
                broker = connect(url)
                with pytest.raises(errors.BrokerRefused, match="refused") as caught:
                    broker.call(Stats("q"))
                assert "wrong@" not in str(caught.value)
                broker.close()

    def test_read_only_replica(self, redis_server):
        with RedisServer(None, "--replicaof", "127.0.0.1", str(redis_server.port)) as server:
            broker = connect(server.url)
            with pytest.raises(errors.BrokerRefused, match="replica"):
                broker.call(Enqueue("q", [new_job()]))
            broker.close()

    def test_eviction_of_any_key_is_refused(self):
        with RedisServer(None, "--maxmemory-policy", "allkeys-lru") as server:
            broker = connect(server.url)
            with pytest.raises(errors.BrokerRefused, match="allkeys-lru"):
                broker.call(Stats("q"))
            broker.close()

    def test_eviction_of_results_is_warned_about(self):
        with RedisServer(None, "--maxmemory-policy", "volatile-ttl") as server:
            broker = connect(server.url)
            with pytest.warns(RuntimeWarning, match="volatile-ttl"):
                broker.call(Stats("q"))
            broker.close()

    def test_a_newer_layout_is_refused(self, redis_url, client):
        client.set("spool:{spool}:layout", 99)
        broker = connect(redis_url)
        with pytest.raises(errors.StoreCorrupt, match="99"):
            broker.call(Stats("q"))
        broker.close()

    def test_restarted_server_is_found_again(self):
        with RedisServer() as server:
            broker = connect(server.url)
            broker.call(Enqueue("q", [new_job()]))
            server.kill()
            with pytest.raises(errors.BrokerUnavailable):
                broker.call(Stats("q"))
            server.restart()
            assert broker.call(Stats("q")).ready == [0, 0, 0, 0, 0]
            broker.close()

    def test_forgotten_scripts_are_sent_again(self, broker, client):
        broker.call(Stats("q"))
        client.script_flush()
        assert broker.call(Stats("q")).running == 0

    @pytest.mark.parametrize("query", ["?prefix=", "?prefix=a{b}", "?prefix=a b"])
    def test_unusable_prefix(self, query):
        if query == "?prefix=":
            assert RedisBroker("redis://h/0" + query).prefix == "spool"
            return
        with pytest.raises(errors.ConfigError, match="prefix"):
            RedisBroker("redis://h/0" + query)

    @pytest.mark.parametrize("url", ["redis://h:port/0", "redis://h/zero", "redis://h/0?socket_timeout=soon"])
    def test_unusable_url(self, url):
        with pytest.raises(errors.ConfigError):
            RedisBroker(url).call(Stats("q"))


class TestFullMemory:
    def test_enqueue_is_refused_and_running_work_settles(self):
        with RedisServer() as server, redis.Redis.from_url(server.url) as client:
            broker = RedisBroker(server.url)
            start_worker(broker)
            jobs = [new_job() for _ in range(6)]
            broker.call(Enqueue("q", jobs))
            broker.call(Claim("q", "w", 1, (2, 0)))
            client.config_set("maxmemory", 1)
            with pytest.raises(errors.BrokerFull, match="maxmemory"):
                broker.call(Enqueue("q", [new_job()]))
            start_worker(broker)
            claimed = broker.call(Claim("q", "w", 2, (3, 0)))
            assert [id_ for id_, _ in claimed.jobs] == [job.id for job in jobs[2:5]]
            notes = [JobNote(job.id, 1, lines=[b"x" * 1000] * 100) for job in jobs[:2]]
            assert broker.call(Note("q", "w", notes)).refused == []
            tally = write_tally(Tally(attempts=1), [Attempt(1, "died", 1, 2, "w", "E")])
            ends = [done(jobs[0].id, 1), Died(jobs[1].id, 1, tally), Retried(jobs[2].id, 2, tally, 10)]
            assert broker.call(Settle("q", "w", 1, ends, b"metrics")).accepted == 3
            assert broker.call(Retire("q", "w", "crashed", "SIGKILL")).handed_back == 2
            stats = broker.call(Stats("q"))
            assert (sum(stats.ready), stats.scheduled, stats.running, stats.dead) == (3, 1, 0, 1)
            assert stats.totals["done"] == 1
            assert stats.totals["enqueued"] == 6
            assert {len(broker.call(Get("q", job.id)).log) for job in jobs[:2]} == {65}
            broker.close()

    async def test_a_process_that_starts_meanwhile_makes_room(self):
        with RedisServer() as server, redis.Redis.from_url(server.url) as client:
            first, second, third = (RedisBroker(server.url) for _ in range(3))
            jobs = [new_job() for _ in range(3)]
            first.call(Enqueue("q", jobs))
            client.config_set("maxmemory", 1)
            start_worker(second)
            assert second.call(Claim("q", "w", 1, (1, 0))).jobs[0][0] == jobs[0].id
            assert second.call(Settle("q", "w", 1, [done(jobs[0].id, 1)])).accepted == 1
            assert second.call(Act("q", Delete(), [jobs[1].id])).changed == [jobs[1].id]
            await third.acall(Beat("q", [Heartbeat("v", tasks=("task",))]))
            assert (await third.acall(Claim("q", "v", 1, (1, 0)))).jobs[0][0] == jobs[2].id
            with pytest.raises(errors.BrokerFull):
                second.call(Enqueue("another", [new_job()]))
            assert [each.key for each in second.call(Load("queue")).documents] == ["q"]
            await third.aclose()
            first.close()
            second.close()

    def test_a_refusal_does_not_speak_for_a_call_whose_reply_was_lost(self, monkeypatch):
        """The job is stored, done and forgotten before the call is sent again: then it is new to the store."""
        monkeypatch.setattr(proxy, "LOSSES", 1.0)
        with RedisServer() as server, redis.Redis.from_url(server.url) as client, ThreadPoolExecutor(1) as pool:
            network, direct = proxy.Network(server.port), RedisBroker(server.url)
            app = Spool(f"redis://127.0.0.1:{network.gate()}/0", enqueue_timeout=15)
            task = app.task(name="task", queue="q")(nothing)
            task.enqueue()
            start_worker(direct)
            network.set(0, "reply-lost")
            call = pool.submit(task.enqueue)
            until(lambda: direct.call(Stats("q")).totals["enqueued"] == 2)
            client.config_set("maxmemory", 1)
            claimed = direct.call(Claim("q", "w", 1, (2, 0)))
            ends = [msgspec.structs.replace(done(id_, 1), ttl=0) for id_, _ in claimed.jobs]
            assert direct.call(Settle("q", "w", 1, ends)).accepted == 2
            network.set(0, "open")
            with pytest.raises(errors.BrokerUnavailable, match=r"not known: cannot .* refused .*maxmemory") as caught:
                call.result(30)
            assert isinstance(caught.value.__cause__, errors.BrokerFull)
            with pytest.raises(errors.BrokerFull):
                task.enqueue()
            assert direct.call(Stats("q")).totals == {"enqueued": 2, "done": 2}
            app.close()
            direct.close()
            network.close()


class TestConnections:
    def test_unix_socket(self, redis_server, redis_url):  # noqa: ARG002 - the database is emptied with it
        broker = connect(redis_server.unix_url)
        assert broker.call(Stats("q")).dead == 0
        broker.close()

    def test_valkey_scheme(self, redis_url):
        broker = connect(redis_url.replace("redis://", "valkey://"))
        assert broker.call(Stats("q")).dead == 0
        broker.close()

    def test_prefixes_are_apart(self, redis_url):
        one, two = connect(redis_url + "?prefix=one"), connect(redis_url + "?prefix=two")
        one.call(Enqueue("q", [new_job()]))
        assert sum(one.call(Stats("q")).ready) == 1
        assert sum(two.call(Stats("q")).ready) == 0
        one.close()
        two.close()

    def test_threads_share_a_broker(self, broker):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: broker.call(Enqueue("q", [new_job()])), range(200)))
        assert sum(broker.call(Stats("q")).ready) == 200

    def test_a_forked_child_has_its_own_connections(self, broker):
        broker.call(Enqueue("q", [new_job()]))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            broker.call(Enqueue("q", [new_job() for _ in range(5)]))
            os.write(writing, b"%d" % sum(broker.call(Stats("q")).ready))
            os._exit(0)
        assert os.read(reading, 10) == b"6"
        os.waitpid(child, 0)
        assert sum(broker.call(Stats("q")).ready) == 6
        os.close(reading)
        os.close(writing)

    def test_a_closed_broker_says_so(self, redis_url):
        broker = connect(redis_url)
        broker.close()
        with pytest.raises(errors.BrokerUnavailable, match="closed"):
            broker.call(Stats("q"))

    async def test_many_calls_at_once_share_a_connection(self, broker, client):
        await broker.acall(Stats("q"))
        before = client.info("clients")["connected_clients"]
        await asyncio.gather(*(broker.acall(Enqueue("q", [new_job()])) for _ in range(500)))
        assert client.info("clients")["connected_clients"] == before
        assert sum((await broker.acall(Stats("q"))).ready) == 500
        await broker.aclose()

    async def test_who_gives_up_before_sending_takes_nobody_along(self, broker, redis_server):
        await broker.acall(Stats("q"))
        redis_server.pause()
        try:
            calls = [asyncio.create_task(broker.acall(Store("k", f"{n}", bytes(1_000_000)))) for n in range(16)]
            for _ in range(3):
                await asyncio.sleep(0)
            calls[-1].cancel()  # waits, as others do, until the server takes more
            await asyncio.wait([calls[-1]])
        finally:
            redis_server.resume()
        *others, given_up = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        assert isinstance(given_up, asyncio.CancelledError)
        assert [other.version for other in others] == [1] * 15
        await broker.aclose()

    async def test_closing_while_connecting_is_an_error_and_no_cancellation(self, redis_server):
        broker = RedisBroker(redis_server.url.removesuffix("0") + "1")
        await asyncio.to_thread(broker.call, Stats("q"))
        redis_server.pause()  # so that it does not answer SELECT
        try:
            call = asyncio.create_task(broker.acall(Stats("q")))
            await asyncio.sleep(0)
            await broker.aclose()
            with pytest.raises(errors.BrokerUnavailable, match="closed"):
                await call
        finally:
            redis_server.resume()


def finish(broker: RedisBroker, seq: int = 1, name: str = "w") -> list[str]:
    """Run what is ready."""
    claimed = broker.call(Claim("q", name, seq, (1000, 0)))
    broker.call(Settle("q", name, seq, [done(id_, seq) for id_, _ in claimed.jobs]))
    return [id_ for id_, _ in claimed.jobs]


class TestWaiting:
    async def test_a_thousand_waiters_cost_a_few_commands(self, broker, client):
        start_worker(broker)
        jobs = [new_job() for _ in range(1000)]
        await broker.acall(Enqueue("q", jobs))
        client.config_resetstat()
        waiting = asyncio.gather(*(broker.aended("q", job.id, 30) for job in jobs))

        def looks() -> int:
            return client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]

        await auntil(lambda: looks() >= 2)  # the registration, and a look again
        assert client.hlen("spool:{q}:waiters") == 1000
        assert looks() <= 4
        await asyncio.to_thread(finish, broker)
        ended = await waiting
        assert {snapshot.state for snapshot in ended} == {State.DONE}
        assert [snapshot.id for snapshot in ended] == [job.id for job in jobs]
        assert client.exists("spool:{q}:waiters") == 0
        await broker.aclose()

    async def test_a_lost_subscription_is_made_again(self, broker, client):
        start_worker(broker)
        job = new_job()
        await broker.acall(Enqueue("q", [job]))
        waiting = asyncio.create_task(broker.aended("q", job.id, 30))
        await auntil(lambda: client.hlen("spool:{q}:waiters"))
        client.client_kill_filter(_type="pubsub")
        await asyncio.to_thread(finish, broker)
        ended = await waiting
        assert ended is not None
        assert ended.state is State.DONE
        await broker.aclose()

    async def test_waiters_are_told_when_the_store_stays_away(self):
        with RedisServer() as server:
            broker = RedisBroker(server.url)
            job = new_job()
            await broker.acall(Enqueue("q", [job]))
            waiting = asyncio.create_task(broker.aended("q", job.id))
            with redis.Redis.from_url(server.url) as client:
                await auntil(lambda: client.hlen("spool:{q}:waiters"))
            server.kill()
            with pytest.raises(errors.BrokerUnavailable):
                await waiting
            await broker.aclose()

    async def test_a_failure_of_the_waiting_itself_is_told_and_not_the_last_word(self, broker, client, monkeypatch):
        start_worker(broker)
        job = new_job()
        await broker.acall(Enqueue("q", [job]))
        with monkeypatch.context() as patch:
            patch.setattr(waits, "read_waits", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await broker.aended("q", job.id, 10)
        waiting = asyncio.create_task(broker.aended("q", job.id, 10))
        await auntil(lambda: client.hlen("spool:{q}:waiters"))
        await asyncio.to_thread(finish, broker)
        ended = await waiting
        assert ended is not None
        assert ended.state is State.DONE
        await broker.aclose()

    def test_threads_wait_side_by_side(self, broker, client):
        start_worker(broker)
        jobs = [new_job() for _ in range(8)]
        broker.call(Enqueue("q", jobs))
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(broker.ended, "q", job.id, 30) for job in jobs]
            until(lambda: client.hlen("spool:{q}:waiters") == 8)
            finish(broker)
            assert [one.result().id for one in waiting] == [job.id for job in jobs]

    def test_two_clients_wait_for_one_job(self, redis_url, broker, client):
        start_worker(broker)
        job, other = new_job(), RedisBroker(redis_url)
        broker.call(Enqueue("q", [job]))
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(one.ended, "q", job.id, 30) for one in (broker, other)]
            until(lambda: b" " in (client.hget("spool:{q}:waiters", job.id) or b""))
            finish(broker)
            assert [one.result().state for one in waiting] == [State.DONE, State.DONE]
        other.close()

    async def test_an_enqueue_wakes_an_idle_worker(self, broker):
        waiting = asyncio.create_task(broker.await_work(["q", "other"], 30))
        await broker.acall(Stats("q"))
        await broker.acall(Enqueue("other", [new_job()]))
        await asyncio.wait_for(waiting, 10)
        await broker.aclose()


def run_one(broker: RedisBroker, name: str = "w") -> str:
    """Start a job and return its id."""
    start_worker(broker, name)
    job = new_job()
    broker.call(Enqueue("q", [job]))
    broker.call(Claim("q", name, 1, (1, 0)))
    return job.id


class TestOrders:
    def test_waiting_for_orders_costs_the_server_nothing(self, broker, client):
        broker.await_orders(["q", "other"], 0.01)
        client.config_resetstat()
        for _ in range(50):
            broker.await_orders(["q", "other"], 0.002)
        assert set(client.info("commandstats")) <= {"cmdstat_config|resetstat", "cmdstat_config", "cmdstat_info"}
        assert client.pubsub_numsub("spool:{q}:orders")[0][1] == 1

    def test_a_lost_subscription_is_said_and_made_again(self, broker, client):
        id_ = run_one(broker)
        broker.await_orders(["q"], 0.01)
        client.client_kill_filter(_type="pubsub")
        with pytest.raises(errors.BrokerUnavailable):
            broker.await_orders(["q"], 30)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.await_orders, ["q"], 30)
            until(lambda: client.pubsub_numsub("spool:{q}:orders")[0][1] == 1)
            broker.call(Act("q", Cancel(), [id_]))
            waiting.result(10)

    def test_a_subscription_lost_amid_a_wait_is_said_at_once(self, broker, client):
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.await_orders, ["q"], 30)
            until(lambda: client.pubsub_numsub("spool:{q}:orders")[0][1] == 1)
            client.client_kill_filter(_type="pubsub")
            with pytest.raises(errors.BrokerUnavailable):
                waiting.result(10)

    def test_a_server_that_has_gone_silent_is_found_out(self, redis_server, monkeypatch):
        monkeypatch.setattr(orders, "QUIET", 0.05)
        broker = RedisBroker(redis_server.url + "?socket_timeout=0.3")
        for _ in range(3):
            broker.await_orders(["q"], 0.07)  # it is asked, and answers
        redis_server.pause()
        try:
            broker.await_orders(["q"], 0.1)  # no sooner than an answer may take
            with pytest.raises(errors.BrokerUnavailable, match=r"no answer within 0\.3 s"):
                broker.await_orders(["q"], 30)
        finally:
            redis_server.resume()
        broker.await_orders(["q"], 0.01)
        broker.close()

    def test_an_answer_that_came_between_two_waits_counts(self, broker):
        broker.await_orders(["q"], 0)
        (subscription,) = broker._subscriptions.values()
        subscription._line.tell("PING")
        until(lambda: subscription._line._poll.poll(0))
        subscription._answer_by = time.monotonic() - 1  # as after a long pause of this process
        broker.await_orders(["q"], 0.01)

    def test_nobody_listens(self):
        broker = connect("redis://127.0.0.1:1/0")
        with pytest.raises(errors.BrokerUnavailable, match=r"redis://127\.0\.0\.1:1/0"):
            broker.await_orders(["q"], 30)

    def test_of_no_queue_there_are_no_orders(self, broker):
        broker.await_orders([], 0.01)

    def test_a_forked_child_has_its_own_subscription(self, broker):
        id_, second = run_one(broker), new_job()
        broker.call(Enqueue("q", [second]))
        broker.call(Claim("q", "w", 2, (1, 0)))
        broker.await_orders(["q"], 0)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            broker.await_orders(["q"], 0)
            broker.call(Act("q", Cancel(), [id_]))
            broker.await_orders(["q"], 30)
            os.write(writing, b"told")
            broker.close()
            os._exit(0)
        assert os.read(reading, 10) == b"told"
        os.waitpid(child, 0)
        begin = time.monotonic()
        broker.await_orders(["q"], 30)
        broker.call(Act("q", Cancel(), [second.id]))
        broker.await_orders(["q"], 30)
        assert time.monotonic() - begin < 10
        os.close(reading)
        os.close(writing)

    def test_a_closed_broker_leaves_no_connection(self, redis_url, client):
        broker = RedisBroker(redis_url)
        for queues in (["q"], ["q", "other"]):
            broker.await_orders(queues, 0)
        assert client.pubsub_numsub("spool:{q}:orders")[0][1] == 2
        broker.close()
        until(lambda: client.pubsub_numsub("spool:{q}:orders")[0][1] == 0)


class TestDamage:
    @pytest.mark.damages_store
    def test_text_that_is_none_is_the_trouble_of_its_job_alone(self, broker, client):
        start_worker(broker)
        damaged, other, nameless = new_job(), new_job(), new_job("t\0sk")
        nameless = msgspec.structs.replace(nameless, record=nameless.record.replace(b"t\0sk", b"t\xffsk"))
        broker.call(Enqueue("q", [damaged, other, nameless]))
        client.hset("spool:{q}:tally", damaged.id, b"[1,\xff")
        claimed = broker.call(Claim("q", "w", 1, (10, 0)))
        assert [id_ for id_, _ in claimed.jobs] == [damaged.id, other.id]
        assert claimed.tallies == {damaged.id: "[1,\ufffd"}
        assert broker.call(Stats("q")).parked == {"t\ufffdsk": 1}
        assert [job.id for job in broker.call(Find("q", State.PARKED, limit=1)).jobs] == [nameless.id]


class TestKeys:
    def scenario(self, broker: RedisBroker) -> None:
        """Send every verb, and reach every branch of the scripts that has keys of its own."""
        start_worker(broker)
        jobs = [new_job() for _ in range(5)] + [new_job("unknown"), new_job(lane=1), new_job(delay=60_000)]
        broker.call(Enqueue("q", jobs))
        keyed = NewJob("mine", encode_record(Record(1, "task", 2, 0, 3, "f", 0, EMPTY)), fingerprint="f", due=1)
        broker.call(Enqueue("q", [keyed]))
        broker.call(Enqueue("q", [keyed], resend=True))
        ids = [id_ for id_, _ in broker.call(Claim("q", "w", 1, (10, 1))).jobs]
        broker.call(Claim("q", "w", 1, (10, 1)))
        for first in range(0, 300, 150):
            broker.call(Note("q", "w", [JobNote(id_, 1, first, [b"x" * 400] * 150, 1, b"p") for id_ in ids[:5]]))
        tally = write_tally(Tally(attempts=1), [Attempt(1, "died", 1, 2, "w", "E")])
        ends = [done(ids[0], 1), Died(ids[1], 1, tally), Retried(ids[2], 1, tally, 0), Released(ids[3], 1, tally)]
        broker.call(Settle("q", "w", 1, ends, b"m"))
        broker.call(Claim("q", "w", 2, (0, 0), trial=True))
        broker.call(Act("q", Cancel("no"), [ids[4], jobs[-1].id]))
        broker.call(Beat("q", [Heartbeat("w", held_ids=(), claim_seq=9), Heartbeat("v", tasks=("unknown",))]))
        broker.call(Claim("q", "v", 1, (10, 1)))
        broker.call(Retire("q", "v", "crashed"))
        broker.call(Beat("q", [Heartbeat("v")]))
        for state in State:
            broker.call(Find("q", state))
        for id_ in ids:
            broker.call(Get("q", id_))
        broker.call(Act("q", Replay(), ids))
        broker.call(Act("q", Delete(), ids))
        broker.call(Act("q", Pause()))
        broker.call(Act("q", Resume()))
        broker.call(Watch("q"))
        broker.call(Stats("q"))
        broker.ended("q", "nobody", 0)
        for kind in ("worker", "queue"):
            broker.call(Load(kind))
        broker.call(Store("worker", "w", b"row", ttl=1000))
        broker.call(Store("worker", "w", None))

    def test_a_script_touches_the_slot_of_its_queue_alone(self, broker, client):
        self.scenario(broker)  # the server knows the scripts from here on, and monitor shows them by name
        client.flushdb()
        with client.monitor() as monitor:
            self.scenario(broker)
            client.echo("the end")
            tag, touched = None, set()
            for entry in monitor.listen():
                words = entry["command"].split(" ")
                if words[0] == "ECHO":
                    break
                if words[0] == "EVALSHA":
                    tag = words[3].partition("{")[2].partition("}")[0]
                elif entry["client_type"] == "lua" and words[0].upper() not in {"TIME", "PUBLISH"}:
                    key = words[1]
                    assert f":{{{tag}}}:" in key, entry["command"]
                    touched.add(key.partition("}:")[2].split(":")[0])
        assert touched >= {"jobs", "ready", "scheduled", "dead", "parked", "run", "leases", "retiring", "gone", "wake"}
        assert touched >= {"tally", "cancel", "meta", "totals", "ends", "recent", "metrics", "tasks", "inc", "doc"}
        assert touched >= {"unroutable", "noted", "note"}

    async def test_the_server_is_stirred_when_a_short_wait_is_to_end(self, broker, client):
        async def pings() -> int:
            await broker.acall(Stats("q"))  # on the connection of the last one, and so after it
            return client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"]

        async with aclosing(broker):
            before = await pings()
            for _ in range(10):  # now and then the server looks by itself just in time
                await broker.await_work(["q"], 0.05)
            after = await pings()
            assert before + 5 < after <= before + 10
            broker.call(Enqueue("q", [new_job()]))
            await broker.await_work(["q"], 0.4)  # over before its time
            await broker.await_work(["q"], 0.5)
            assert await pings() == after

    def test_with_nothing_parked_a_claim_does_not_look_for_unroutable_jobs(self, broker, client):
        start_worker(broker)
        with client.monitor() as monitor:
            broker.call(Enqueue("q", [new_job()]))
            assert broker.call(Claim("q", "w", 1, (10, 1), unroutable_after=1)).jobs
            client.echo("the end")
            said = [entry["command"] for entry in takewhile(lambda e: "ECHO" not in e["command"], monitor.listen())]
        assert any("q}:jobs" in each for each in said)
        assert not any("}:unroutable" in each for each in said)

    def test_dead_jobs_are_bounded_when_they_die_of_unknown_tasks_alone(self, redis_url):
        clock = Clock()
        broker = RedisBroker(redis_url, clock=clock)
        q = Driver(broker, clock)
        for id_ in ("old", "new"):
            q.beat("w")
            q.enqueue(job(id_, "unknown"))
            q.take("w")
            clock.advance(5000)
            q.claim("w", unroutable_after=1)
            assert q.ids(State.DEAD) == [id_]
            clock.advance(31 * 86_400_000)
        assert q.totals() == {"enqueued": 2, "dead": 2, "pruned": 1}
        broker.close()

    def test_a_queue_at_rest_leaves_only_bounded_keys(self, broker, client):
        start_worker(broker)
        broker.call(Enqueue("q", [new_job() for _ in range(50)]))
        finish(broker)
        broker.call(Retire("q", "w"))
        left = {key.decode().partition("}:")[2] for key in client.keys("spool:*") if client.ttl(key) == -1}
        assert left == {"meta", "totals", "gone", "ends", "wake", "layout", "queues"}

    def test_what_a_job_noted_goes_with_its_ending(self, broker, client):
        start_worker(broker)
        jobs = [new_job() for _ in range(3)]
        broker.call(Enqueue("q", jobs))
        broker.call(Claim("q", "w", 1, (3, 0)))
        broker.call(Note("q", "w", [JobNote(job.id, 1, lines=[b"x"]) for job in jobs]))
        ends = [done(jobs[0].id, 1), msgspec.structs.replace(done(jobs[1].id, 1), ttl=0), Died(jobs[2].id, 1, "")]
        broker.call(Settle("q", "w", 1, ends))
        left = {name: client.pttl(f"spool:{{q}}:note:{job.id}") for name, job in zip("abc", jobs, strict=True)}
        assert left["b"] == -2
        assert left["c"] == -1
        assert client.pttl(client.keys("spool:{q}:ends:*")[0]) - 5000 - 1000 < left["a"] <= 4_600_000
        assert client.smembers("spool:{q}:noted") == {jobs[2].id.encode()}
        broker.call(Act("q", Delete(), [jobs[0].id, jobs[2].id]))
        assert client.keys("spool:{q}:note*") == []

    def test_what_a_pruned_job_noted_is_gone(self, broker, client):
        start_worker(broker)
        jobs = [new_job() for _ in range(2)]
        broker.call(Enqueue("q", jobs))
        broker.call(Claim("q", "w", 1, (2, 0)))
        broker.call(Note("q", "w", [JobNote(job.id, 1, lines=[b"x"]) for job in jobs]))
        broker.call(Settle("q", "w", 1, [Died(jobs[0].id, 1, "")]))
        client.zadd("spool:{q}:dead", {jobs[0].id: 1})  # died long ago
        broker.call(Settle("q", "w", 2, [Died(jobs[1].id, 1, "")]))
        assert client.smembers("spool:{q}:noted") == {jobs[1].id.encode()}
        assert client.keys("spool:{q}:note:*") == [f"spool:{{q}}:note:{jobs[1].id}".encode()]

    def test_the_index_of_endings_is_bounded(self, broker, client):
        start_worker(broker)
        for seq in range(1, 13):
            broker.call(Enqueue("q", [new_job() for _ in range(1000)]))
            finish(broker, seq)
        kept = sum(int(fields[b"n"]) for _, fields in client.xrange("spool:{q}:recent"))
        assert 10_000 <= kept < 12_000
        page = broker.call(Find("q", State.DONE, limit=1000))
        found = [job.id for job in page.jobs]
        while page.cursor:
            page = broker.call(Find("q", State.DONE, cursor=page.cursor, limit=1000))
            found += [job.id for job in page.jobs]
        assert len(found) == len(set(found)) == kept


class TestManyAtOnce:
    def test_claimers_never_share_a_job(self, broker):
        broker.call(Enqueue("q", [new_job() for _ in range(2000)]))
        taken: list[str] = []
        lock = threading.Lock()

        def work(name: str) -> None:
            start_worker(broker, name)
            seq = 0
            while True:
                seq += 1
                claimed = broker.call(Claim("q", name, seq, (17, 0)))
                if not claimed.jobs:
                    return
                with lock:
                    taken.extend(id_ for id_, _ in claimed.jobs)
                broker.call(Settle("q", name, seq, [done(id_, seq) for id_, _ in claimed.jobs]))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, [f"w{n}" for n in range(6)]))
        assert len(taken) == len(set(taken)) == 2000
        assert broker.call(Stats("q")).totals["done"] == 2000


async def test_a_claim_that_waits_goes_on_when_the_server_has_forgotten_the_scripts(redis_url):
    broker = connect(redis_url)
    async with aclosing(broker):
        await broker.acall(Beat("q", [Heartbeat("w", 10_000, ("t",))]))
        claim = asyncio.create_task(broker.acall(Claim("q", "w", 1, (1, 0), wait=10)))
        with redis.Redis.from_url(redis_url) as client:
            await aeventually(lambda: client.info("clients")["blocked_clients"])
            client.script_flush()
        await broker.acall(Enqueue("q", [job("a")]))
        assert [id for id, _ in (await claim).jobs] == ["a"]


def test_a_time_beyond_any_calendar_is_the_trouble_of_its_job_alone(broker):
    broker.call(Enqueue("q", [job("never", due=2**62), job("soon", delay=60_000)]))
    found = broker.call(Find("q", State.SCHEDULED))
    assert [each.id for each in found.jobs] == ["soon", "never"]
    assert broker.call(Get("q", "never")).due == 2**62
