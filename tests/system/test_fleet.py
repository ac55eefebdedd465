"""Many workers together: how they share work, and the memory they take."""

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from spool.broker import connect
from spool.supervisor import Fleet, WorkerOptions
from tests import shop
from tests.eventually import eventually


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_idle_workers_share_what_comes(durable, tmp_path, kind):
    url = durable.url if kind == "redis" else f"sqlite:///{tmp_path}/spool.db"
    broker, log = connect(url), tmp_path / "log"
    with (
        closing(broker),
        shop.app.using(broker),
        Fleet(WorkerOptions(app="tests.shop:app", url=url, processes=10, log_level="error")) as fleet,
    ):
        fleet.wait_ready()
        shop.app.enqueue_many(shop.note.call(str(log), 1.0) for _ in range(200))
        eventually(lambda: len(shop.lines(log, "end")) == 200, 20)
    shares = Counter(line.split()[2] for line in shop.lines(log, "start"))
    assert len(shares) == 10
    assert max(shares.values()) <= 2 * min(shares.values()), shares


def test_idle_workers_are_small(durable, broker):
    with Fleet(
        WorkerOptions(app="tests.shop:app", url=durable.url, processes=4, pool_size=0, log_level="error")
    ) as fleet:
        fleet.wait_ready()
        assert [shop.add.enqueue(number, 1).result(10) for number in range(20)] == list(range(1, 21))
        pids = fleet.pids
        assert max(_memory(pid, "status", "VmRSS") for pid in pids) < 45
        assert sum(_memory(pid, "smaps_rollup", "Pss") for pid in pids) < 140


def _memory(pid: int, file: str, field: str) -> float:
    """Megabytes of one kind that a process takes."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"/proc/{pid}/{file} has no {field}")
