"""Workers that are profiled while they work, and what shows the profiles."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from memray import FileReader

from spool import State
from spool.broker import connect
from spool.errors import ProfileError
from spool.profile import CPU_TYPES, CpuRecorder, Frame, Profile, Sample, merge, read, write
from spool.profile.table import top, total
from spool.profile.view import Viewer
from spool.supervisor import Fleet, WorkerOptions
from tests import hot_shop
from tests.eventually import eventually

ROOT = Path(__file__).parent.parent
SPOOL = [sys.executable, "-m", "spool"]


def spool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SPOOL, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


class Log:
    """The lines of a process's log, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(process.stderr,))
        self._thread.start()

    def _read(self, stream) -> None:
        self.lines += iter(stream.readline, "")

    def wait_for(self, pattern: str) -> re.Match[str]:
        return eventually(lambda: next(filter(None, (re.search(pattern, each) for each in self.lines)), None), 30)

    def close(self) -> None:
        self._thread.join()


@contextmanager
def worker(url: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], Log]]:
    command = [*SPOOL, "worker", "tests.hot_shop:app", "--log-format", "human", *map(str, arguments)]
    env = os.environ | {"SPOOL_URL": url}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env) as process:
        log = Log(process)
        try:
            yield process, log
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            log.close()


@contextmanager
def client(url: str | None) -> Iterator[None]:
    assert url is not None
    broker = connect(url)
    with hot_shop.app.using(broker):
        yield
    broker.close()


class Recorded(NamedTuple):
    cpu: Path
    memory: Path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recorded:
    """Two profiles of a worker that was told to record by a signal, while all its threads compute."""
    folder = tmp_path_factory.mktemp("profiles")
    url = f"sqlite:///{folder}/spool.db"
    end = folder / "end"
    with client(url), worker(url, "--profile", folder, "--profile-seconds", 1) as (process, log):
        jobs = [hot_shop.toil.enqueue(str(end)) for _ in range(30)]
        eventually(lambda: all(job.status() is State.RUNNING for job in jobs))
        process.send_signal(signal.SIGUSR2)
        log.wait_for("recording the CPU profile of 1 processes for 1 s")
        process.send_signal(signal.SIGUSR2)
        log.wait_for("no profile is recorded: another one is under way")
        files = [log.wait_for(rf"wrote the profile (.*/{kind}-[\d-]+\.prof)")[1] for kind in ("cpu", "mem")]
        assert {job.status() for job in jobs} == {State.RUNNING}
        end.touch()
        assert all(job.result(timeout=30) >= 0 for job in jobs)
        assert [job.job().attempts for job in jobs] == [1] * 30
        assert not [line for line in log.lines if re.search("WARNING (?!no profile)|ERROR|ended with", line)]
    assert sorted(map(str, folder.glob("*.prof"))) == sorted(files)
    assert not list(folder.glob(".mem-*"))
    return Recorded(*map(Path, files))


def test_a_worker_records_itself(recorded):
    cpu, memory = read(recorded.cpu), read(recorded.memory)
    assert top(cpu)[0].function in {"grind", "grind.<locals>.<genexpr>"}
    (grind,) = (row for row in top(cpu) if row.function == "grind")
    assert grind.cumulative > 0.5 * total(cpu)
    assert min(cpu.duration, memory.duration) > 0.9e9
    assert top(memory)[0].function == "hoard"
    assert {each.labels["pid"] for each in cpu.samples} == {each.labels["pid"] for each in memory.samples}


def test_top(recorded):
    table = spool("profile", "top", recorded.memory, "--limit", 3)
    assert table.returncode == 0, table.stderr
    head, _, columns, first, *_ = map(str.strip, table.stdout.splitlines())
    assert re.fullmatch(r"alloc_space: [\d.]+ [MG]iB of 1 process in [\d.]+ s", head)
    assert re.split("  +", columns) == ["Self", "%", "Cumulative", "%", "Function", "Where"]
    assert re.search(r" hoard +tests/hot_shop\.py$", first)
    lines = spool("profile", "top", recorded.memory, "--lines", "--json").stdout
    assert json.loads(lines)[0]["line"] == hot_shop.hoard.__code__.co_firstlineno + 1
    wrong = spool("profile", "top", recorded.memory, "--value", "cpu")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "it has alloc_objects, alloc_space, inuse_objects, inuse_space" in wrong.stderr


@contextmanager
def viewed(file: Path) -> Iterator[str]:
    command = [*SPOOL, "profile", "view", str(file), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


@pytest.mark.timeout(180)  # the first time, a browser is fetched
@pytest.mark.parametrize("kind", ["cpu", "memory"])
def test_the_browser_shows_the_hot_function(kind, recorded, page):
    file = getattr(recorded, kind)
    with viewed(file) as url:
        page.goto(url)
        page.get_by_text(re.compile(r"all threads \(1/")).wait_for()
        page.keyboard.press("3")  # the table
        rows = page.locator("tr").filter(has_text="%")
        rows.first.wait_for()
        assert rows.first.inner_text().split()[-1] == top(read(file))[0].function
        assert page.title() == f"{file.name} - speedscope"
        assert {urlsplit(each["name"]).netloc for each in loaded(page)} <= {urlsplit(url).netloc, ""}


def loaded(page) -> list[dict[str, str]]:
    return page.evaluate("performance.getEntriesByType('resource').map(each => ({name: each.name}))")


@pytest.mark.parametrize(("kind", "option"), [("cpu", "-sample_index=cpu"), ("memory", "-alloc_space")])
def test_go_shows_the_hot_function(kind, option, recorded):
    command = ["go", "tool", "pprof", "-top", option, str(getattr(recorded, kind))]
    env = os.environ | {
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTELEMETRY": "off",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    rows = done.stdout.splitlines()
    first = rows[next(number for number, line in enumerate(rows) if "flat%" in line) + 1]
    assert first.split()[5] == top(read(getattr(recorded, kind)))[0].function


def test_convert(recorded, tmp_path):
    for to, name in (("pstats", "x.pstats"), ("speedscope", "x.speedscope.json"), ("pprof", "x.prof")):
        done = spool("profile", "convert", recorded.cpu, "--to", to, "--output", tmp_path / name)
        assert (done.returncode, done.stdout) == (0, f"{tmp_path / name}\n")
    assert read(tmp_path / "x.prof") == read(recorded.cpu)
    twice = spool("profile", "convert", recorded.cpu, tmp_path / "x.prof", "--to", "pprof", "--output", tmp_path / "2")
    assert twice.returncode == 0
    assert top(read(tmp_path / "2"))[0].own == 2 * top(read(recorded.cpu))[0].own
    refused = spool("profile", "convert", tmp_path / "x.prof", "--to", "pprof")
    assert (refused.returncode, "would be overwritten" in refused.stderr) == (2, True)


def test_record(tmp_path):
    spin = [sys.executable, "-c", "print('ready', flush=True)\nwhile True: sum(range(1000))"]
    with subprocess.Popen(spin, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            file = tmp_path / "cpu.prof"
            done = spool("profile", "record", "--pid", process.pid, "--seconds", 0.5, "--output", file)
        finally:
            process.kill()
    assert (done.returncode, done.stdout) == (0, f"{file}\n"), done.stderr
    assert top(read(file))[0].function == "<module>"
    gone = spool("profile", "record", "--pid", process.pid, "--output", file)
    assert (gone.returncode, gone.stderr) == (1, f"spool: no process to record is there: {process.pid}\n")


def test_without_a_directory_the_signal_does_nothing(tmp_path):
    with worker(f"sqlite:///{tmp_path}/spool.db") as (process, log):
        eventually(lambda: Path(tmp_path, "spool.db").exists())
        process.send_signal(signal.SIGUSR2)
        log.wait_for("no profile is recorded: the worker was not started with --profile DIR")


def test_a_recording_that_is_not_allowed_is_one_line(tmp_path, monkeypatch):
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\necho 'Permission Denied' >&2\nexit 1\n")
    program.chmod(0o755)
    # The stand-in is found where scripts are: what the processes are started with is not.
    (tmp_path / "sitecustomize.py").write_text(
        f"import sysconfig\nsysconfig.get_path = lambda name, *given, real=sysconfig.get_path: "
        f"{str(tmp_path)!r} if name == 'scripts' else real(name, *given)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    url = f"sqlite:///{tmp_path}/spool.db"
    with client(url), worker(url, "--profile", tmp_path, "--profile-seconds", 0.2) as (process, log):
        assert hot_shop.work.enqueue(0.0).result(timeout=30) >= 0
        process.send_signal(signal.SIGUSR2)
        log.wait_for(r"no profile was recorded: .*py-spy is not allowed to read process \d+: .*ptrace_scope=0")
        assert hot_shop.work.enqueue(0.0).result(timeout=30) >= 0


def test_memory_of_a_fleet(tmp_path):
    options = WorkerOptions(
        app="tests.hot_shop:app", url=f"sqlite:///{tmp_path}/spool.db", processes=2, log_level="error"
    )
    with Fleet(options) as fleet, client(options.url):
        fleet.wait_ready()
        fleet.memory.start(tmp_path / "mem")
        jobs = [hot_shop.work.enqueue(0.1) for _ in range(4)]
        assert all(job.result(timeout=30) for job in jobs)
        files = fleet.memory.stop()
        assert len(files) == 2
        assert top(merge(map(read, files)))[0].function == "hoard"
        assert fleet.memory.stop() == []

        # A process that is killed meanwhile is not waited for, and its successor records nothing.
        fleet.memory.start(tmp_path / "again")
        before = set(fleet.pids)
        fleet.kill(fleet.pids[0])
        eventually(lambda: len(set(fleet.pids)) == 2 and set(fleet.pids) != before)
        assert len(fleet.memory.stop()) == 1

        with pytest.raises(ProfileError, match="memray cannot record the memory of process"):
            fleet.memory.start(tmp_path / "none" / "mem")


def test_what_is_allocated_too_fast_to_be_read_is_recorded_for_less(tmp_path):
    options = WorkerOptions(app="tests.hot_shop:app", url=f"sqlite:///{tmp_path}/spool.db", log_level="error")
    end = tmp_path / "end"
    with Fleet(options) as fleet, client(options.url):
        fleet.wait_ready()
        job = hot_shop.flood.enqueue(str(end))
        eventually(lambda: job.status() is State.RUNNING)
        files, lasted = fleet.memory.record(tmp_path / "mem", 25.0, threading.Event())
        end.touch()
        assert job.result(timeout=30) == 0
    # 30 s are for recording and reading, and one second of this takes some five to read.
    assert lasted < 25
    with FileReader(files[0]) as reader:
        about = reader.metadata
    assert (about.end_time - about.start_time).total_seconds() == pytest.approx(lasted, abs=5)
    assert about.total_allocations > 1_000_000


def test_memory_of_a_process_that_stopped_a_thread(tmp_path):
    options = WorkerOptions(app="tests.hot_shop:app", url=f"sqlite:///{tmp_path}/spool.db", log_level="error")
    with Fleet(options) as fleet, client(options.url):
        fleet.wait_ready()
        late = hot_shop.tarry.enqueue()
        eventually(lambda: late.status() is State.DEAD)
        fleet.memory.start(tmp_path / "mem")
        assert hot_shop.work.enqueue(0.1).result(timeout=30) > 0
        assert top(merge(map(read, fleet.memory.stop())))[0].function == "hoard"


def test_the_processes_of_a_fleet(tmp_path):
    options = WorkerOptions(
        app="tests.hot_shop:app", url=f"sqlite:///{tmp_path}/spool.db", processes=2, log_level="error"
    )
    with Fleet(options) as fleet, client(options.url):
        fleet.wait_ready()
        jobs = [hot_shop.work.enqueue(0.5) for _ in range(4)]
        with CpuRecorder(fleet.pids) as recorder:
            assert all(job.result(timeout=30) for job in jobs)
            profile = recorder.stop()
        assert {each.labels["pid"] for each in profile.samples} == set(map(str, fleet.pids))
        assert {"MainThread", "spool-link"} < {each.labels["thread"] for each in profile.samples}


# The server of the page


PROFILE = Profile("cpu", CPU_TYPES, [Sample((Frame("main", "app.py", 1),), (1, 10, 10))], 10, 10, 0)


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    viewer = Viewer(b'{"profiles": []}')
    thread = threading.Thread(target=viewer.serve)
    thread.start()
    yield viewer
    viewer.close()
    thread.join()


def ask(viewer: Viewer, path: str, host: str | None = None, method: str = "GET") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{viewer.port}", "Connection": "close"})
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def test_the_server_gives_what_it_has(viewer):
    for host in (f"127.0.0.1:{viewer.port}", f"localhost:{viewer.port}"):
        profile = ask(viewer, "/profile.speedscope.json", host)
        assert (profile.status, profile.body) == (200, b'{"profiles": []}')
    index = ask(viewer, "/index.html")
    assert "default-src 'none'" in index.headers["Content-Security-Policy"]
    assert index.headers["X-Content-Type-Options"] == "nosniff"
    for name in re.findall(rb'(?:src|href)="([^"]+)"', index.body):
        assert ask(viewer, f"/{name.decode()}").status == 200, name
    assert ask(viewer, "/index.html", method="HEAD").body == b""


@pytest.mark.parametrize("path", ["/none", "/../errors.py", "/%2e%2e/__init__.py", "/assets/", "//index.html/..", "*"])
def test_the_server_gives_nothing_else(path, viewer):
    assert ask(viewer, path).status in {400, 404}


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "127.0.0.1:1", ""])
def test_the_server_has_no_other_name(host, viewer):
    answer = ask(viewer, "/profile.speedscope.json", host or " ")
    assert (answer.status, b"profiles" in answer.body) == (421, False)


def test_the_server_is_on_loopback_only(viewer):
    assert viewer.url == f"http://127.0.0.1:{viewer.port}/"
    with pytest.raises(ConnectionRefusedError):  # which one on all addresses would accept
        socket.create_connection(("127.0.0.2", viewer.port), 2)


def test_a_port_that_is_taken(viewer, tmp_path):
    write(tmp_path / "cpu.prof", PROFILE)
    refused = spool("profile", "view", tmp_path / "cpu.prof", "--no-open", "--port", viewer.port)
    assert (refused.returncode, "cannot be used" in refused.stderr) == (2, True)
