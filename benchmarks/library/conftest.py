"""What the library benchmarks run on, and the table that they end with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.library.measure import Measure, Row
from benchmarks.library.tasks import app
from spool import Spool
from spool.broker import Broker, connect
from tests.redis_server import RedisServer

ROWS = pytest.StashKey[list[Row]]()
PAYLOADS = {"100B": 100, "1KiB": 1024, "10KiB": 10 * 1024}


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Measure:
    return Measure(benchmark, request.config, request.config.stash.setdefault(ROWS, []))


@pytest.fixture(params=PAYLOADS.values(), ids=PAYLOADS.keys())
def data(request: pytest.FixtureRequest) -> str:
    """Give text of each size: what a job carries."""
    return "x" * int(request.param)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Start one server for all, without persistence."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """Give each a store of its own: a SQLite file with synchronous=FULL, or a key prefix of Redis."""
    if request.param == "sqlite":
        broker = connect(f"sqlite:///{tmp_path}/spool.db")
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        broker = connect(f"{server.url}?prefix={tmp_path.name.replace('_', '-')}")
    yield broker
    broker.close()


@pytest.fixture
def spool(broker: Broker) -> Iterator[Spool]:
    """Give the app of the tasks, on that store."""
    with app.using(broker):
        yield app


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    """Give an event loop of the kind that workers have."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what Go's benchmarks print: pytest-benchmark's own table has no column for allocations."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    width = max(len(row.name) for row in rows)
    terminalreporter.section("per operation")
    terminalreporter.line(f"{'':{width}} {'µs/op':>11} {'ops/s':>11} {'B/op':>9} {'allocs/op':>9}")
    for row in rows:
        bytes_, count = (f"{each:,.0f}" for each in row.allocations) if row.allocations else ("–", "–")
        terminalreporter.line(
            f"{row.name:{width}} {row.seconds * 1e6:>11,.2f} {1 / row.seconds:>11,.0f} {bytes_:>9} {count:>9}"
        )
