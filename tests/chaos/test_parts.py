"""The parts of the harness: its journal, its network, its stores, its processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import redis

from spool import Spool
from spool.broker import Stats
from spool.chaos import processes
from spool.chaos.journal import Asked, Ended, Journal, Started, only, read
from spool.chaos.produce import jobs, rest
from spool.chaos.proxy import Network
from spool.chaos.redis_store import RedisStore, forgotten
from spool.chaos.sqlite_store import SqliteStore
from spool.errors import BrokerFull
from spool.task import Task
from tests.eventually import eventually
from tests.redis_server import find_redis

# Producers


def test_a_producer_that_was_killed_goes_on_with_the_job_whose_answer_it_may_not_know():
    whole = [job.id for job in islice(jobs(7, 1, 2.0), 9)]
    # The one that it sent last had been sent before: an unknown answer, asked for once more.
    asked = [Asked(id, "chaos", "quick", 1) for id in ("p1-1", "p1-2", "p1-3", "p1-2")]
    assert [job.id for job in islice(rest(jobs(7, 1, 2.0), asked), 7)] == whole[2:]
    assert [job.id for job in islice(rest(jobs(7, 1, 2.0), []), 9)] == whole


# The journal


def test_a_torn_last_line_is_left_out(tmp_path):
    journal = Journal(tmp_path / "producer-1.log")
    lines = [Asked("a", "chaos", "quick", 1), Started("a", 1, "quick", "w", 2, 3), Ended("a", 1, 2, 4, "ok")]
    for line in lines:
        journal.note(line)
    journal.close()
    with (tmp_path / "producer-1.log").open("ab") as file:
        file.write(b'{"type":"asked","id":"b"')
    assert read(tmp_path, "producer-*.log") == lines
    assert only(Started, lines) == lines[1:2]


# The network


@pytest.fixture
def server() -> Iterator[int]:
    """A server that answers each line with itself; gives its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    heard.append(data)
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    heard.clear()
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


heard: list[bytes] = []


@pytest.fixture
def network(server) -> Iterator[Network]:
    network = Network(server)
    yield network
    network.close()


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5.0)


def say(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(4096)


def is_refused(gate: int) -> bool:
    try:
        with dial(gate) as client:
            return say(client, b"hello") == b""
    except ConnectionError:
        return True


def test_an_open_gate_passes_everything(network):
    with dial(network.gate()) as client:
        assert say(client, b"hello") == b"hello"
        assert say(client, b"again") == b"again"


def test_a_cut_gate_ends_connections_and_refuses_new_ones(network):
    gate, other = network.gate(), network.gate()
    with dial(gate) as client, dial(other) as neighbour:
        assert say(client, b"hello") == b"hello"
        assert say(neighbour, b"hello") == b"hello"
        network.set(0, "cut")
        with pytest.raises(ConnectionResetError):
            client.recv(4096)
        assert say(neighbour, b"again") == b"again"
    assert is_refused(gate)
    network.heal()
    with dial(gate) as client:
        assert say(client, b"hello") == b"hello"


def test_a_half_open_gate_keeps_what_it_is_given(network):
    with dial(network.gate()) as client:
        assert say(client, b"hello") == b"hello"
        network.set(0, "half-open")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            say(client, b"later")
        network.heal()
        client.settimeout(5.0)
        assert client.recv(4096) == b"later"


def test_a_lost_reply_was_carried_out(network):
    gate = network.gate()
    network.set(0, "reply-lost")
    sent = 0

    def lose() -> bool:
        nonlocal sent
        with dial(gate) as client:
            try:
                while True:
                    sent += 1
                    if not say(client, b"%d\n" % sent):
                        return True
            except ConnectionError:
                return True

    assert lose()
    eventually(lambda: b"".join(heard).endswith(b"%d\n" % sent))


# Redis


@pytest.fixture
def store(request, tmp_path, monkeypatch) -> Iterator[RedisStore]:
    monkeypatch.setenv("SPOOL_CHAOS_REDIS", str(find_redis()))
    store = RedisStore(tmp_path, getattr(request, "param", "always"))
    store.start()
    yield store
    store.close()


def client(store: RedisStore) -> redis.Redis:
    return redis.Redis(port=store.port, socket_timeout=5)


def test_a_store_that_keeps_its_promise_forgot_nothing(store):
    with client(store) as asking:
        asking.set("kept", 1)
        eventually(lambda: asking.get("chaos-canary"))
        assert store.revive(store.kill()) is None
        assert asking.get("kept") == b"1"


@pytest.mark.parametrize("store", ["none"], indirect=True)
def test_the_canary_tells_that_everything_is_gone(store):
    with client(store) as asking:
        eventually(lambda: asking.get("chaos-canary"))
        killed = store.kill()
        lost = store.revive(killed)
        assert lost is not None
        assert lost.forgot
        assert (lost.since, lost.until) == (0, killed)
        event = forgotten(lost, "redis-kill")
        assert (event.kind, event.at, event.until, event.wanted) == ("forget", 0, killed, True)


@pytest.mark.parametrize("store", ["everysec"], indirect=True)
def test_a_loss_of_power_takes_what_fsync_had_not_secured(store):
    with client(store) as asking:
        for number in range(20):
            store.tend()
            asking.rpush("numbers", number)
            seen = asking.get("chaos-canary")
            eventually(lambda seen=seen: asking.get("chaos-canary") != seen)
        began = time.monotonic_ns()
        lost = store.revive(store.lose_power(0.1))
        assert lost is not None
        assert lost.forgot
        assert began - 2 * 10**9 < lost.since < lost.until
        left = asking.lrange("numbers", 0, -1)
        assert left == [b"%d" % number for number in range(len(left))]
        assert len(left) < 20


def test_a_full_redis_refuses_and_recovers(store):
    with Spool(store.url, enqueue_timeout=0) as app:
        task = app.task(name="quick")(lambda: None)
        task.enqueue()
        store.fill()
        with pytest.raises(BrokerFull):
            task.enqueue()
        store.drain()
        task.enqueue()


def test_records_are_overwritten_and_never_added(store):
    with Spool(store.url) as app, client(store) as asking:
        task = app.task(name="quick")(lambda: None)
        ids = {task.enqueue().id for _ in range(3)}
        before = asking.hgetall("spool:{default}:jobs")
        damaged = store.corrupt(["default", "empty"], 0.5)
        after = asking.hgetall("spool:{default}:jobs")
    assert set(damaged) == ids
    assert before.keys() == after.keys()
    assert all(before[id.encode()] != after[id.encode()] for id in damaged)


def test_a_server_that_is_killed_with_the_harness(tmp_path):
    """Nothing is left of a run whose harness was killed."""
    if sys.platform != "linux":
        pytest.skip("the kernel has no such signal")
    code = f"""
import os, sys
from pathlib import Path
from spool.chaos.processes import spawn
print(spawn([sys.executable, "-c", "import time; time.sleep(60)"], Path({str(tmp_path / "log")!r})).pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    eventually(lambda: (found := processes.look(pid)) is None or found.state in "ZX")


# SQLite


@pytest.fixture
def file(tmp_path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path, synchronous="full", fillable=False, pids=list)
    yield store
    store.close()


def test_rows_are_overwritten(file):
    with Spool(file.url) as app:
        task = app.task(name="quick")(lambda: None)
        ids = {task.enqueue().id for _ in range(3)}
        damaged = file.corrupt(["default"], 0.5)
    assert set(damaged) == ids
    assert file.check() == "ok"


def test_a_broken_file_is_noticed(file):
    with Spool(file.url) as app:
        app.broker.call(Stats("chaos"))
    path = Path(file.url.removeprefix("sqlite:///").partition("?")[0])
    body = bytearray(path.read_bytes())
    body[4096:8192] = os.urandom(4096)
    path.write_bytes(bytes(body))
    assert file.check() != "ok"


def take(data: str) -> None:
    """Take what it is given."""


def fill_up(task: Task[[str], None]) -> None:
    for _ in range(100):
        task.enqueue("x" * 10_000)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_refuses_and_recovers(tmp_path):
    store = SqliteStore(tmp_path, synchronous="full", fillable=True, pids=list)
    if not store.mounted:
        pytest.skip("nothing may be mounted here")
    try:
        with Spool(store.url, enqueue_timeout=0) as app:
            task = app.task(name="quick")(take)
            task.enqueue("x")
            store.fill()
            with pytest.raises(BrokerFull):
                fill_up(task)
            store.drain()
            task.enqueue("x")
            assert store.check() == "ok"
    finally:
        store.close()
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_a_quota_stands_in_for_a_full_disk(tmp_path):
    """In another process, since the quota holds for every file of whoever has it."""
    store = SqliteStore(tmp_path, synchronous="full", fillable=False, pids=lambda: [process.pid])
    code = f"""
import sys, time
from spool import Spool
from spool.errors import BrokerError
app = Spool({store.url!r}, enqueue_timeout=0)
task = app.task(name="quick")(lambda data: None)
task.enqueue("x")
for line in sys.stdin:
    try:
        for _ in range(100):
            task.enqueue("x" * 10_000)
        print("stored", flush=True)
    except BrokerError as error:
        print("refused", error, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask() -> str:
        process.stdin.write("go\n")
        return process.stdout.readline()

    try:
        assert ask() == "stored\n"
        store.fill()
        assert ask().startswith("refused")
        store.drain()
        assert ask() == "stored\n"
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
        store.close()


# Processes


def test_a_group_is_found_with_all_its_members(tmp_path):
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    child += "time.sleep(60)"
    process = processes.spawn([sys.executable, "-c", child], tmp_path / "log")
    try:
        members = eventually(lambda: len(found := processes.group(process.pid)) == 2 and found)
        assert processes.below(process.pid, members)[0] == process.pid
        assert {each.pid for each in members} == set(processes.below(process.pid, members))
        assert processes.send_group(process.pid, signal.SIGKILL)
        eventually(lambda: processes.group(process.pid) == [])
    finally:
        process.wait()
