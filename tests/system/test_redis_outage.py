"""What real workers do while Redis is away, hangs, or is full."""

import time

import pytest
import redis

from spool.broker import Stats
from spool.supervisor import Fleet, WorkerOptions
from tests import shop
from tests.eventually import eventually

LEASE = 1.0


def workers(url: str, processes: int = 2) -> Fleet:
    return Fleet(WorkerOptions(app="tests.shop:app", url=url, lease=LEASE, processes=processes, log_level="error"))


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_running_jobs_outlast_a_redis_that_is_down_for_three_leases(durable, broker, tmp_path, how):
    log = tmp_path / "log"
    with workers(durable.url) as fleet:
        fleet.wait_ready()
        shop.app.enqueue_many(shop.note.call(str(log), 5 * LEASE) for _ in range(100))
        eventually(lambda: len(shop.lines(log, "start")) == 100)
        getattr(durable, how)()
        time.sleep(3 * LEASE)
        durable.start()
        restarted = time.monotonic()
        late = shop.add.enqueue(1, 2)
        assert late.result(10) == 3
        assert time.monotonic() - restarted < 5
        eventually(lambda: broker.call(Stats("default")).totals.get("done") == 101, 20)
    assert len(shop.lines(log, "start")) == len(shop.lines(log, "end")) == 100
    assert broker.call(Stats("default")).totals == {"enqueued": 101, "done": 101}


def test_a_redis_that_hangs_for_less_than_the_lease_is_not_noticed(durable, broker, tmp_path):
    log = tmp_path / "log"
    with workers(durable.url) as fleet:
        fleet.wait_ready()
        handles = [shop.note.enqueue(str(log), 1.5 * LEASE) for _ in range(20)]
        eventually(lambda: len(shop.lines(log, "start")) == 20)
        durable.pause()
        time.sleep(0.5 * LEASE)
        durable.resume()
        for handle in handles:
            handle.result(10)
    assert len(shop.lines(log, "start")) == 20


def test_jobs_are_stopped_before_a_silent_redis_gives_them_away(durable, broker, tmp_path):
    log = tmp_path / "log"
    with workers(durable.url) as fleet:
        fleet.wait_ready()
        shop.app.enqueue_many(shop.note.call(str(log), 3 * LEASE) for _ in range(20))
        eventually(lambda: len(shop.lines(log, "start")) == 20)
        durable.pause()
        time.sleep(2 * LEASE)
        durable.resume()
        eventually(lambda: broker.call(Stats("default")).totals.get("done") == 20, 20)
    assert len(shop.lines(log, "end")) == 20  # each was stopped once, and ended once
    assert len(shop.lines(log, "start")) == 40
    totals = broker.call(Stats("default")).totals
    assert "crashed" not in totals
    assert "retried" not in totals


def test_at_maxmemory_running_work_settles_and_nothing_is_reaped(durable, broker, tmp_path):
    log = tmp_path / "log"
    with workers(durable.url) as fleet, redis.Redis.from_url(durable.url) as client:
        fleet.wait_ready()
        handles = [shop.note.enqueue(str(log), 4 * LEASE) for _ in range(20)]
        handles += [shop.note.enqueue(str(log), 2 * LEASE) for _ in range(20)]
        eventually(lambda: len(shop.lines(log, "start")) == 40)
        client.config_set("maxmemory", 1)
        time.sleep(3 * LEASE)
        assert len(shop.lines(log, "end")) == 20
        assert broker.call(Stats("default")).totals["done"] == 20
        eventually(lambda: broker.call(Stats("default")).totals["done"] == 40)
        client.config_set("maxmemory", 0)
        for handle in handles:
            handle.result(10)
    assert len(shop.lines(log, "start")) == 40
    assert broker.call(Stats("default")).totals == {"enqueued": 40, "done": 40}
