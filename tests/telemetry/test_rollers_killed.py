"""Several rollers as real processes, killed at any moment: what they counted is each blob once."""

import random
import subprocess
import sys

import pytest
import redis

from spool.broker import connect
from spool.telemetry import Roller, roller
from spool.telemetry.ledger import read_sums
from tests.contract.driver import Driver
from tests.model_state import Clock
from tests.telemetry.conftest import Board, blob

# Rolls without a pause, and never believes that another leads: so every write is one that another may be about to make.
CHILD = """
import sys
from spool.broker import connect
from spool.errors import BrokerError
from spool.telemetry import Roller, roller
roller.LEAD = -1
one = Roller(connect(sys.argv[1]))
while True:
    try:
        one.roll()
    except BrokerError:
        continue
    if one.leads:
        print("wrote", flush=True)
"""


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/spool.db"
    return request.getfixturevalue("redis_url")


class Rollers:
    def __init__(self, url):
        self.url = url
        self.processes = []

    def start(self):
        process = subprocess.Popen([sys.executable, "-c", CHILD, self.url], stdout=subprocess.PIPE, text=True)
        self.processes.append(process)

    def kill(self, index=0):
        process = self.processes.pop(index)
        assert process.stdout.readline() == "wrote\n"  # it had its part
        process.kill()
        process.wait()
        process.stdout.close()


def test_rollers_that_are_killed_lose_and_double_nothing(url, monkeypatch):
    monkeypatch.setattr(roller, "LEAD", -1)
    rollers, chance, broker = Rollers(url), random.Random(5), connect(url)
    q = Driver(broker, Clock())
    q.beat("w", lease=600_000)
    settled = 0
    try:
        for _ in range(3):
            rollers.start()
        for _ in range(6):
            for _ in range(chance.randrange(20, 120)):
                q.settle("w", metrics=blob(done=1))
                settled += 1
            rollers.kill(chance.randrange(len(rollers.processes)))
            rollers.start()
    finally:
        while rollers.processes:
            rollers.kill()
    last = Roller(broker)
    while last.roll() or not last.leads:
        pass
    board = Board(broker)
    assert (board.done(), board.sums.missed, board.sums.damaged) == (settled, {}, {})
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0)) == [settled] * 3
    assert board.total(lambda line: line.attempts.runs.get(20, 0)) == [settled] * 3
    broker.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_stream_that_was_trimmed_leaves_a_gap_that_is_told(kind, request, tmp_path, monkeypatch):
    from spool.broker.sqlite import leases

    url = f"sqlite:///{tmp_path}/spool.db" if kind == "sqlite" else request.getfixturevalue("redis_url")
    broker = connect(url)
    q = Driver(broker, Clock())
    q.beat("w", lease=600_000)
    one = Roller(broker)
    for _ in range(5):
        q.settle("w", metrics=blob(done=1))
    one.roll()
    monkeypatch.setattr(leases, "RECENT", 10)
    for _ in range(40):
        q.settle("w", metrics=blob(done=1))
    if kind == "redis":
        with redis.Redis.from_url(url) as client:
            client.xtrim("spool:{q}:metrics", maxlen=10, approximate=False)
    one.roll()
    board = Board(broker)
    assert (board.done(), read_sums(broker).missed) == (15, {"q": 30})
    assert board.total(lambda line: line.missed) == [30, 30, 30]
    one.roll()
    assert board.sums.missed == {"q": 30}
    broker.close()
