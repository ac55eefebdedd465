"""The brokers under test, each with a clock that stands still, and a way to damage its store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import redis

from spool.broker import Broker
from tests.contract.driver import Driver
from tests.model import ModelBroker
from tests.model_state import Clock
from tests.server.front import Front

BROKERS = ("model", "sqlite-memory", "sqlite-file", "redis", "http-sqlite-memory", "http-redis")


class Store(Protocol):
    """A broker and what a test may do behind its back."""

    broker: Broker

    def lose_record(self, queue: str, id: str) -> bool:
        """Take the record of a ready job away; returns False where a job is one row and this can't happen."""
        ...


class ModelStore:
    def __init__(self, clock: Clock) -> None:
        self.broker = ModelBroker(clock)

    def lose_record(self, queue: str, id: str) -> bool:
        self.broker.queue(queue).entries[id].dangling = True
        return True


class SqliteStore:
    def __init__(self, url: str, clock: Clock) -> None:
        from spool.broker.sqlite import SqliteBroker

        self.broker = SqliteBroker(url, clock=lambda: (clock.wall, clock.boot))

    def lose_record(self, queue: str, id: str) -> bool:  # noqa: ARG002 - nothing to do
        return False


class RedisStore:
    def __init__(self, url: str, clock: Clock) -> None:
        from spool.broker.redis import RedisBroker

        self.broker = RedisBroker(url, clock=clock)
        self._url = url

    def lose_record(self, queue: str, id: str) -> bool:
        with redis.Redis.from_url(self._url) as client:
            assert client.hdel(f"spool:{{{queue}}}:jobs", id) == 1
        return True


class HttpStore:
    """A broker that asks a server in front of another store."""

    def __init__(self, front: Front, behind: Store) -> None:
        from spool.broker.http import HttpBroker

        front.put_before(behind.broker)
        self.broker = HttpBroker(front.url)
        self.lose_record = behind.lose_record


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _made(kind: str, request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Store:
    match kind:
        case "model":
            return ModelStore(clock)
        case "sqlite-memory":
            return SqliteStore("sqlite://:memory:", clock)
        case "sqlite-file":
            return SqliteStore(f"sqlite:///{tmp_path}/spool.db", clock)
        case _:
            return RedisStore(request.getfixturevalue("redis_url"), clock)


@pytest.fixture(params=BROKERS)
def store(request, clock, tmp_path) -> Iterator[Store]:
    over_http = request.param.startswith("http-")
    behind = _made(request.param.removeprefix("http-"), request, clock, tmp_path)
    if over_http:
        front: Front = request.getfixturevalue("front")
        store: Store = HttpStore(front, behind)
        yield store
        store.broker.close()
        front.take_away()
    else:
        yield behind
    behind.broker.close()


@pytest.fixture
def broker(store) -> Broker:
    return store.broker


@pytest.fixture
def q(broker, clock) -> Driver:
    return Driver(broker, clock)
