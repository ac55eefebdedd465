"""Brokers with a clock that stands still, and a queue whose settles carry blobs."""

from collections.abc import Callable
from typing import Any

import pytest

from spool.broker import Broker
from spool.report import Meter, pack
from spool.telemetry import Roller
from spool.telemetry.bucket import TIERS, Line, Tier, read_tier
from spool.telemetry.ledger import Sums, read_sums
from tests.contract.conftest import ModelStore, RedisStore, SqliteStore, broker, clock, q

__all__ = ["Board", "blob", "broker", "clock", "q"]


@pytest.fixture(params=["model", "sqlite", "redis"])
def store(request, clock, tmp_path):
    match request.param:
        case "model":
            store = ModelStore(clock)
        case "sqlite":
            store = SqliteStore(f"sqlite:///{tmp_path}/spool.db", clock)
        case _:
            store = RedisStore(request.getfixturevalue("redis_url"), clock)
    yield store
    store.broker.close()


def blob(task: str = "t", **outcomes: int) -> bytes:
    """A blob of a task: each attempt waited for 1 s and ran for 1 ms."""
    meter = Meter(task)
    count = sum(outcomes.values())
    meter.waits[10], meter.waited = count, 1000 * count
    meter.runs[20], meter.ran = count, 1_000_000 * count
    meter.others = {name: n for name, n in outcomes.items() if name != "done"}
    return pack([meter])


class Board:
    """What the rollers left in a broker."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    @property
    def sums(self) -> Sums:
        return read_sums(self.broker)

    def done(self, task: str = "t", queue: str = "q") -> int:
        attempts = self.sums.attempts.get(queue, {}).get(task)
        return attempts.outcomes.get("done", 0) if attempts else 0

    def lines(self, tier: Tier, queue: str = "q") -> dict[int, Line]:
        return {each.start: each.lines[queue] for each in read_tier(self.broker, tier) if queue in each.lines}

    def total(self, what: Callable[[Line], int], queue: str = "q") -> list[int]:
        """The sum over all buckets, of each tier."""
        return [sum(map(what, self.lines(tier, queue).values())) for tier in TIERS]


@pytest.fixture
def board(broker) -> Board:
    return Board(broker)


@pytest.fixture
def roll(broker, clock) -> Callable[..., Any]:
    """Let a roller, the same one each time, count all there is."""
    roller = Roller(broker)

    def roll(advance: int = 0) -> Roller:
        clock.advance(advance)
        while roller.roll():
            pass
        return roller

    return roll
