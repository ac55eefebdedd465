from collections.abc import Iterator

import pytest

from spool.broker import Broker, connect
from tests import shop
from tests.redis_server import RedisServer


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    """A Redis of one's own that keeps its data over a restart."""
    with RedisServer(None, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def broker(durable) -> Iterator[Broker]:
    broker = connect(durable.url)
    with shop.app.using(broker):
        yield broker
    broker.close()
