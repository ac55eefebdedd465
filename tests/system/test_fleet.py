"""Many workers together: how they share work, and the memory they take."""

from collections import Counter
from functools import partial
from pathlib import Path

from spool.supervisor import Fleet, WorkerOptions
from tests import shop
from tests.eventually import eventually


def test_idle_workers_share_what_comes(durable, broker, tmp_path):
    seen: list[Counter[str]] = []
    with Fleet(WorkerOptions(app="tests.shop:app", url=durable.url, processes=10, log_level="error")) as fleet:
        fleet.wait_ready()
        # One round should do. About one in five does not hold, on an idle machine too, and why is not known yet.
        while not (seen and len(seen[-1]) == 10 and max(seen[-1].values()) <= 2 * min(seen[-1].values())):
            assert len(seen) < 3, seen
            log = tmp_path / f"log-{len(seen)}"
            shop.app.enqueue_many(shop.note.call(str(log), 1.0) for _ in range(200))
            eventually(partial(_all_ended, log), 20)
            seen.append(Counter(line.split()[2] for line in shop.lines(log, "start")))


def _all_ended(log: Path) -> bool:
    return len(shop.lines(log, "end")) == 200


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
