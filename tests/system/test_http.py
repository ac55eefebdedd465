"""Real workers behind a real server, which is killed and started again."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from spool.broker import Stats, connect
from spool.chaos.redis_store import free_port
from spool.errors import BrokerError
from spool.supervisor import Fleet, WorkerOptions
from tests import shop
from tests.eventually import eventually

LEASE = 2.0


class Server:
    """``spool server`` in a process of its own."""

    def __init__(self, store: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "spool", "server", "--url", store, "--no-auth", "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        broker = connect(self.url)
        eventually(lambda: answers(broker), 20)
        broker.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def answers(broker) -> bool:
    try:
        broker.call(Stats("default"))
    except BrokerError:
        return False
    return True


@contextmanager
def before(store: str) -> Iterator[Server]:
    server = Server(store)
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_workers_outlast_a_server_that_is_killed_and_lose_nothing(request, tmp_path, kind):
    store = request.getfixturevalue("redis_url") if kind == "redis" else f"sqlite:///{tmp_path}/spool.db"
    log = tmp_path / "log"
    direct = connect(store)

    def done() -> int:
        return direct.call(Stats("default")).totals.get("done", 0)

    with before(store) as server, shop.app.using(connect(server.url)) as broker:
        options = WorkerOptions(app="tests.shop:app", url=server.url, lease=LEASE, processes=2, log_level="error")
        with Fleet(options) as fleet:
            fleet.wait_ready()
            shop.app.enqueue_many(shop.note.call(str(log), 0.05) for _ in range(1000))
            for _ in range(2):
                before_kill = done()
                eventually(lambda: done() > before_kill + 100, 20)  # noqa: B023 - called at once
                server.kill()
                server.start()
            assert shop.add.enqueue(1, 2).result(20) == 3
            eventually(lambda: done() == 1001, 30)
        broker.close()
    totals = direct.call(Stats("default")).totals
    assert (totals["enqueued"], totals.get("dead"), totals.get("crashed")) == (1001, None, None)
    assert len(shop.lines(log, "end")) >= 1000
    direct.close()
