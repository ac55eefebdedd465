"""Metrics from end to end: whether the counters equal the log of the jobs, also in a real Prometheus.

```sh
python -m benchmarks.metrics                    # 100,000 jobs; needs `prometheus` and `promtool` on PATH
python -m benchmarks.metrics --without-prometheus
```

It starts a Redis of its own (the one on PATH, or what SPOOL_TEST_REDIS names), worker processes and two servers, one of
which is killed on the way and replaced. The jobs write a log; at the end each counter of both scrapes has to equal it.
Then `promtool check metrics` has to pass, and a Prometheus that scrapes one of them has to say the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from spool import Backoff, Retry, Spool, current_job
from spool.broker import Broker, Load, QueueStats, Stats, connect
from spool.server.auth import new_token, storing
from spool.supervisor import Fleet, WorkerOptions
from tests.redis_server import RedisServer

app = Spool()
SOON = Backoff(base=0.01, cap=0.05)


def note(outcome: str) -> None:
    with Path(os.environ["SPOOL_LOG"], str(os.getpid())).open("a") as file:
        file.write(f"{current_job().queue} {outcome}\n")


@app.task(queue="work", retries=1, backoff=SOON)
async def work(number: int) -> int:
    if number % 100 == 0:
        note("died" if current_job().failures else "retried")
        raise ValueError(f"number {number} is round")
    if number % 100 == 1 and not current_job().failures:
        note("retried")
        raise Retry("once more", delay=0.01)
    note("done")
    return number


@app.task(queue="mail")
def send(number: int) -> int:
    note("done")
    return number


def until(reached: Callable[[], bool], within: float, what: str) -> None:
    end = time.monotonic() + within
    while not reached():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {within:g} s")
        time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def fetch(url: str, token: str = "") -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own server
        text: str = answer.read().decode()
        return text


class Server:
    """A server process, and what it exposes."""

    def __init__(self, url: str, token: str) -> None:
        self.token = token
        self.port = free_port()
        command = [sys.executable, "-m", "spool", "server", "--url", url, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(self.serves, 30, "a server that serves")

    def serves(self) -> bool:
        try:
            return "ok" in fetch(f"http://127.0.0.1:{self.port}/readyz")
        except OSError:
            return False

    def scrape(self) -> str:
        return fetch(f"http://127.0.0.1:{self.port}/metrics", self.token)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def counters(text: str) -> dict[str, float]:
    """Return what is counted, of all queues: outcomes of attempts, ends of jobs, and histograms."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in ("spool_attempts_total", "spool_jobs_ended_total"):
                found[sample.labels.get("outcome") or f"jobs {sample.labels['state']}"] += sample.value
            elif sample.name.endswith(("_seconds_count", "_retries_total", "_enqueued_total", "_missed_total")):
                found[sample.name] += sample.value
    return dict(found)


def expected(log: Path, jobs: int) -> dict[str, float]:
    """Return what the counters have to be, by the log of the jobs."""
    lines = Counter(line.split()[1] for file in log.iterdir() for line in file.read_text().splitlines())
    attempts = lines.total()
    return {
        **lines,
        "jobs done": lines["done"],
        "jobs dead": lines["died"],
        "jobs cancelled": 0,
        "spool_jobs_enqueued_total": jobs,
        "spool_retries_total": lines["retried"],
        "spool_run_seconds_count": attempts,
        "spool_wait_seconds_count": jobs,
        "spool_metrics_missed_total": 0,
    }


def idle(broker: Broker) -> bool:
    found: list[QueueStats] = [broker.call(Stats(queue)) for queue in ("work", "mail")]
    return not any(sum(each.ready) + each.scheduled + each.running for each in found)


@contextmanager
def prometheus(folder: Path, server: Server) -> Iterator[str]:
    """Run a Prometheus that scrapes a server each second; give its address."""
    (folder / "token").write_text(server.token)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: spool\n"
        f"    authorization: {{credentials_file: {folder}/token}}\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{server.port}']}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(shutil.which("prometheus")),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
    ]
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def ask(address: str, expression: str) -> float:
    """Return what Prometheus says; -1 while it says nothing."""
    try:
        answer = json.loads(fetch(f"{address}/api/v1/query?query={urllib.parse.quote(expression)}"))
    except OSError:
        return -1.0
    result = answer["data"]["result"]
    return float(result[0]["value"][1]) if result else -1.0


def compare(what: str, found: dict[str, float], wanted: dict[str, float]) -> None:
    differing = {name: (found.get(name, 0), count) for name, count in wanted.items() if found.get(name, 0) != count}
    if differing:
        raise SystemExit(f"{what} differs from the log (found, wanted): {differing}")
    print(f"{what}: equal to the log of the jobs: {wanted}")


def check_with_prometheus(server: Server, wanted: dict[str, float]) -> None:
    checked = subprocess.run(
        [str(shutil.which("promtool")), "check", "metrics"],
        input=server.scrape(),
        text=True,
        capture_output=True,
        check=False,
    )
    if checked.returncode or checked.stderr:
        raise SystemExit(f"promtool check metrics: {checked.returncode}\n{checked.stdout}{checked.stderr}")
    print("promtool check metrics: nothing to complain of")
    with tempfile.TemporaryDirectory() as folder, prometheus(Path(folder), server) as address:
        until(lambda: ask(address, 'up{job="spool"}') == 1, 60, "a scrape by Prometheus")
        found = {
            "jobs done": ask(address, 'sum(spool_jobs_ended_total{state="done"})'),
            "jobs dead": ask(address, 'sum(spool_jobs_ended_total{state="dead"})'),
            "retried": ask(address, 'sum(spool_attempts_total{outcome="retried"})'),
            "spool_run_seconds_count": ask(address, "sum(spool_run_seconds_count)"),
            "spool_wait_seconds_count": ask(address, "sum(spool_wait_seconds_count)"),
        }
        compare("Prometheus", found, {name: wanted[name] for name in found})
        p99 = ask(address, "histogram_quantile(0.99, sum by (le) (spool_run_seconds_bucket))")
        print(f"its p99 of a run: {p99 * 1000:.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--without-prometheus", action="store_true")
    arguments = parser.parse_args()
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing and not arguments.without_prometheus:
        raise SystemExit(f"not on PATH: {' and '.join(missing)}; install them, or say --without-prometheus")
    with tempfile.TemporaryDirectory() as log, RedisServer() as redis:
        os.environ["SPOOL_URL"], os.environ["SPOOL_LOG"] = redis.url, log
        broker = connect(redis.url)
        id_, token, row = new_token("benchmark", ["read"], broker.call(Load("server")).now)
        broker.call(storing(id_, row))
        servers = [Server(redis.url, token) for _ in range(2)]
        try:
            with Fleet(WorkerOptions(app="benchmarks.metrics:app", processes=2, log_level="critical")) as fleet:
                fleet.wait_ready()
                for start in range(0, arguments.jobs, 10_000):
                    numbers = range(start, min(start + 10_000, arguments.jobs))
                    app.enqueue_many((send if number % 20 == 0 else work).call(number) for number in numbers)
                    if start == 30_000:
                        servers.pop(0).kill()
                        servers.append(Server(redis.url, token))
                until(lambda: idle(broker), 300, "an end of all jobs")
            wanted = expected(Path(log), arguments.jobs)
            until(
                lambda: (
                    counters(servers[0].scrape()).get("spool_run_seconds_count") == wanted["spool_run_seconds_count"]
                ),
                15,
                "counters that have caught up",
            )
            for server in servers:
                compare(f"the server on port {server.port}", counters(server.scrape()), wanted)
            if not arguments.without_prometheus:
                check_with_prometheus(servers[0], wanted)
        finally:
            for server in servers:
                server.kill()
            broker.close()


if __name__ == "__main__":
    main()
