"""Whether what the benchmark says is so, where it can be known beforehand. See also `test_bench`."""

import asyncio
import json
import re

import pytest
import redis

from spool import Spool
from spool.bench import Plan, run
from spool.bench.plan import TaskCall
from spool.broker import Stats
from spool.cli import main
from spool.worker import Worker
from tests.eventually import aeventually

EARLIER = 50_000


@pytest.fixture(params=["sqlite", "redis"])
def url(request) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("redis_url")


def test_the_error_rate_that_is_printed_is_the_share_of_jobs_that_fail(url, capsys):
    options = ["--kind", "failing", "--failing", "5", "--jobs", "400", "--producers", "20"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "custom", *options, *(["--url", url] if url else [])])
    assert ended.value.code == 0
    (printed,) = re.findall(r"^error\w*\s+([\d.]+)\s?%", capsys.readouterr().out, re.MULTILINE)
    assert float(printed) == pytest.approx(5, abs=0.26)  # spread evenly, so a job more or less at most


def test_no_job_of_ten_milliseconds_is_done_in_less(url, tmp_path):
    task = TaskCall("tests.measured_shop:in_thread", [0.01])
    with (tmp_path / "raw").open("w+b") as raw:
        plan = Plan(jobs=40, workers=1, kind="task", task=task, producers=4, concurrency=4)
        latency = run(plan, url, raw=raw).result.latency_ms
        raw.seek(0)
        log = [json.loads(line) for line in raw]
    assert len(log) == latency.done.count == 40
    assert min(each["ended"] - each["started"] for each in log) >= 10_000_000
    assert min(each["ended"] - each["called"] for each in log) >= 10_000_000
    assert latency.done.p50 >= 10


async def finish(url: str, jobs: int) -> None:
    """Run so many jobs, of the name and in the queue that those of the benchmark have."""
    app = Spool(url)

    @app.task(queue="bench", name="bench.noop")
    async def noop(data: str, number: int) -> None: ...

    await app.aenqueue_many(noop.call("", number) for number in range(jobs))
    worker = Worker(app, queues=("bench",), concurrency=400)
    running = asyncio.create_task(worker.run())

    async def done() -> bool:
        return (await app.broker.acall(Stats("bench"))).totals.get("done", 0) == jobs

    await aeventually(done, timeout=50)
    worker.stop()
    await running
    await app.aclose()


def test_finished_jobs_of_an_earlier_run_count_nowhere(redis_url, tmp_path):
    """Neither in the books nor in a percentile, and they are left alone."""
    asyncio.run(finish(redis_url, EARLIER))
    with redis.Redis.from_url(redis_url) as client:
        before = set(client.scan_iter(count=10_000))
        with (tmp_path / "raw").open("w+b") as raw:
            result = run(Plan(jobs=300, workers=1, producers=20, warmup=30), redis_url, raw=raw).result
            raw.seek(0)
            log = [json.loads(line) for line in raw]
        assert set(client.scan_iter(count=10_000)) <= before
    with Spool(redis_url) as app:
        assert app.broker.call(Stats("bench")).totals == {"enqueued": EARLIER, "done": EARLIER}
    assert (result.jobs, result.done, result.failed, result.lost, result.duplicated) == (300, 300, 0, 0, 0)
    assert (result.store["enqueued"], result.store["done"]) == (300, 300)
    assert [each["number"] for each in log] == list(range(300))
    assert {each["starts"] for each in log} == {1}
    for latency in (result.latency_ms.start, result.latency_ms.start_after_call, result.latency_ms.done):
        assert latency.count == 300
    assert result.latency_ms.done.max <= result.seconds * 1000
