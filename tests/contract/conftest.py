"""The brokers under test, each with a clock that stands still, and a way to damage its store."""

from collections.abc import Iterator
from typing import Protocol

import pytest
import redis

from spool.broker import Broker
from tests.contract.driver import Driver
from tests.model import ModelBroker
from tests.model_state import Clock

BROKERS = ("model", "sqlite-memory", "sqlite-file", "redis")


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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=BROKERS)
def store(request, clock, tmp_path) -> Iterator[Store]:
    match request.param:
        case "model":
            store: Store = ModelStore(clock)
        case "sqlite-memory":
            store = SqliteStore("sqlite://:memory:", clock)
        case "sqlite-file":
            store = SqliteStore(f"sqlite:///{tmp_path}/spool.db", clock)
        case _:
            store = RedisStore(request.getfixturevalue("redis_url"), clock)
    yield store
    store.broker.close()


@pytest.fixture
def broker(store) -> Broker:
    return store.broker


@pytest.fixture
def q(broker, clock) -> Driver:
    return Driver(broker, clock)
