"""How much one server process takes in, and whether it still serves when somebody is in its way.

```sh
python -m benchmarks.server
```

It starts a Redis of its own and ``spool server`` on it, has wrk post single jobs over 32 connections and batches of 100
over 8, and then asks for ``/healthz`` and posts jobs while 500 clients send a byte of a head now and then, while 8 send
bodies of 100 MB, and while 10,000 connections lie idle. Exits with 1 if what is promised is not reached.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from spool.broker import Load, connect
from spool.report import TaskParameter, TaskRow, encode_task_row
from spool.server.auth import new_token, storing
from tests.redis_server import RedisServer

SINGLE_PER_S = 5_000
BATCH_PER_S = 30_000
BATCH = 100
SECONDS = 8
IDLE = 10_000
SLOW = 500
LARGE = 100 * 1024 * 1024
CALL = {"task": "send", "args": ["ada@example.org", "Hello"]}


@contextmanager
def running(url: str) -> Generator[tuple[str, int]]:
    """Run a server; yield its address and process id."""
    command = [sys.executable, "-m", "spool", "server", "--url", url, "--port", "0", "--rate", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield address, process.pid
        finally:
            process.terminate()


def prepared(url: str) -> str:
    """Store what a worker would say of its task; return a token."""
    from spool.broker import Store

    broker = connect(url)
    parameters = [TaskParameter(name, True, "positional_or_keyword") for name in ("to", "body")]  # noqa: FBT003
    broker.call(Store("task", "send", encode_task_row(TaskRow("send", "mail", 2, 0, 3, parameters))))
    id, token, row = new_token("benchmark", ["admin"], broker.call(Load("server")).now)
    broker.call(storing(id, row))
    broker.close()
    return token


def load(address: str, path: str, body: str, token: str, connections: int) -> tuple[float, str]:
    """Return the requests a second that are answered with 2xx, and wrk's own words."""
    script = (
        f"wrk.method = 'POST'\nwrk.body = [[{body}]]\nwrk.headers['Content-Type'] = 'application/json'\n"
        f"wrk.headers['Authorization'] = 'Bearer {token}'\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}", "-s", file.name, "--latency", address + path]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    total = int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index] # it says so
    rate = float(re.search(r"Requests/sec: +([\d.]+)", said)[1])  # type: ignore[index]
    latency = re.search(r"50%.*?\n.*?\n.*?90%.*?\n.*?99% +(\S+)", said)
    return rate * (1 - (int(wrong[1]) if wrong else 0) / total), latency[1] if latency else "?"


def served(address: str, token: str) -> tuple[float, float, int]:
    """Ask for health and post jobs for some seconds; return p50 and p99 in ms, and how many went wrong."""
    times: list[float] = []
    wrong = 0
    end = time.monotonic() + SECONDS
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=10) as client:
        while time.monotonic() < end:
            for ask in (lambda: client.get("/healthz"), lambda: client.post("/api/v1/jobs", json=CALL)):
                began = time.perf_counter()
                try:
                    wrong += ask().status_code >= 300
                except httpx.HTTPError:
                    wrong += 1
                times.append(1000 * (time.perf_counter() - began))
    ranks = statistics.quantiles(times, n=100)
    return ranks[49], ranks[98], wrong


def dialled(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


@contextmanager
def idle(address: str) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(dialled(address))
        yield


@contextmanager
def slow(address: str) -> Iterator[None]:
    """Hold connections that send a byte of a head now and then, and open another for each that is ended."""
    over = threading.Event()

    def drip() -> None:
        socks: list[socket.socket] = []
        while not over.wait(0.5):
            for sock in socks:
                try:
                    sock.send(b"X")
                except OSError:
                    socks.remove(sock)
                    sock.close()
            while len(socks) < SLOW:
                socks.append(dialled(address))
                socks[-1].send(b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nX: ")
        for sock in socks:
            sock.close()

    yield from _beside(drip, 1, over)


@contextmanager
def large(address: str, token: str) -> Iterator[None]:
    """Send bodies of 100 MB, one after the other."""
    over = threading.Event()
    head = (
        f"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    def pour() -> None:
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        while not over.wait(0.05):
            with dialled(address) as sock, contextlib.suppress(OSError):
                sock.sendall(head.encode())
                for _ in range(LARGE // 0x10000):
                    sock.sendall(chunk)

    yield from _beside(pour, 8, over)


def _beside(what: object, count: int, over: threading.Event) -> Iterator[None]:
    threads = [threading.Thread(target=what, daemon=True) for _ in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def memory(pid: int) -> float:
    """Return the megabytes that a process takes."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 1e6


def main() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("this needs wrk: apt-get install wrk")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    good = True
    with RedisServer() as store:
        token = prepared(store.url)
        with running(store.url) as (address, pid):
            rate, p99 = load(address, "/api/v1/jobs", json.dumps(CALL), token, 32)
            print(f"POST /api/v1/jobs, 32 connections:   {rate:10,.0f} jobs/s   p99 {p99}")
            good &= rate >= SINGLE_PER_S
            batch = json.dumps({"jobs": [CALL] * BATCH})
            rate, p99 = load(address, "/api/v1/jobs/batch", batch, token, 8)
            print(f"batches of {BATCH}, 8 connections:        {rate * BATCH:10,.0f} jobs/s   p99 {p99}")
            good &= rate * BATCH >= BATCH_PER_S
            print(f"memory of the server:                {memory(pid):10,.1f} MB")
            conditions = {
                "nothing in its way": contextlib.nullcontext(),
                f"{SLOW} clients that drip": slow(address),
                "8 bodies of 100 MB": large(address, token),
                f"{IDLE:,} idle connections": idle(address),
            }
            for name, condition in conditions.items():
                with condition:
                    half, most_, wrong = served(address, token)
                    print(
                        f"{name:<28} p50 {half:6.2f} ms   p99 {most_:7.2f} ms   {wrong} wrong   {memory(pid):6.1f} MB"
                    )
                good &= not wrong
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
