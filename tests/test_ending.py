"""A worker ends when it is told to, whatever its jobs and lifespans do; on both brokers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spool import State
from spool.broker import Broker, Stats, connect
from tests import rough_shop, troubled_shop
from tests.eventually import eventually

whatever_the_store = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
"""Of tests of what no store has a part in: they take seconds, and one store is enough."""


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url: str = request.getfixturevalue("redis_url") if request.param == "redis" else f"sqlite:///{tmp_path}/jobs.db"
    return url


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = connect(url)
    with rough_shop.app.using(broker), troubled_shop.app.using(broker):
        yield broker
    broker.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


def said(log: Path, word: str) -> list[list[str]]:
    """The fields of the lines that begin with a word."""
    return [line.split() for line in log.read_text().splitlines() if line.startswith(f"{word} ")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def worker(url: str, app: str, *arguments: str, log: Path, trouble: str = "") -> Iterator[Any]:
    """``spool worker``, with JSON lines in a file: ``process.lines()``."""
    command = [sys.executable, "-m", "spool", "worker", app, "--url", url, *arguments]
    env = os.environ | {"SPOOL_URL": url, "SPOOL_TEST_TROUBLE": trouble, "SPOOL_TEST_LOG": str(log)}
    errors = log.with_name("errors")
    with errors.open("wb") as stderr:
        process: Any = subprocess.Popen(command, start_new_session=True, stderr=stderr, env=env)
    process.lines = lambda: [msgspec.json.decode(line) for line in errors.read_bytes().split(b"\n")[:-1]]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: Any) -> None:
    """Wait for its end, in order: most take a second, and what has no bound a minute or more."""
    assert process.wait(10) == 0


def is_ready(process: Any) -> bool:
    return any("is ready for" in line["message"] for line in process.lines())


def of_level(process: Any, level: str) -> list[Any]:
    return [line for line in process.lines() if line["level"] == level]


# Jobs

ENDLESS = ["stubborn", "stuck", "stuck_thread"]
"""Tasks that swallow their cancellation, block the loop, and wait in C."""


@pytest.mark.parametrize("task", ENDLESS)
def test_a_job_that_does_not_end_is_handed_back_when_its_process_is_dead(broker, url, log, task):
    with worker(url, "tests.rough_shop:app", "--grace", "0.1", log=log) as process:
        handle = getattr(rough_shop, task).options(timeout=600).enqueue(str(log))
        ((_, _, pid, _),) = eventually(lambda: said(log, "start"))
        process.terminate()
        eventually(lambda: handle.status() is State.READY, 20)
        assert not alive(int(pid))
        ended(process)
    job = handle.job()
    assert (job.attempts, job.failures, job.crashes, job.losses) == (1, 0, 0, 0)
    assert job.history[0].outcome == "stopped"
    assert "crashed" not in broker.call(Stats("default")).totals


@pytest.mark.parametrize("task", [*ENDLESS, "delegate"])
@whatever_the_store
def test_a_second_signal_ends_a_worker_whose_job_does_not(broker, url, log, task):
    with worker(url, "tests.rough_shop:app", "--grace", "60", log=log) as process:
        handle = getattr(rough_shop, task).options(timeout=600).enqueue(str(log))
        ((_, _, pid, _),) = eventually(lambda: said(log, "start"))
        process.send_signal(signal.SIGINT)
        process.terminate()  # of another kind: two of one that follow closely are one to the kernel
        ended(process)
        assert not alive(int(pid))
    job = handle.job()
    assert (job.state, job.attempts, job.failures, job.crashes, job.losses) == (State.READY, 1, 0, 0, 0)


def test_a_thread_that_a_job_has_left_behind_does_not_keep_the_process(broker, url, log):
    with worker(url, "tests.rough_shop:app", "--grace", "0.1", log=log) as process:
        handle = rough_shop.delegate.enqueue(str(log))
        eventually(lambda: said(log, "start"))
        process.terminate()
        ended(process)
        assert "left behind" in process.lines()[-1]["message"]
    assert handle.status() is State.READY


# Lifespans


@whatever_the_store
def test_a_lifespan_that_hangs_at_the_start_is_cancelled_by_the_first_signal(broker, url, log):
    with worker(url, "tests.troubled_shop:app", log=log, trouble="enter") as process:
        eventually(lambda: said(log, "try"))
        process.terminate()
        ended(process)
    assert said(log, "out")
    assert not said(log, "leave")


@whatever_the_store
def test_a_lifespan_that_hangs_at_the_end_is_cancelled(broker, url, log):
    with worker(url, "tests.troubled_shop:app", "--grace", "0.1", log=log, trouble="leave") as process:
        eventually(lambda: is_ready(process))
        process.terminate()
        ended(process)
        assert "lifespan tests.troubled_shop.troubled took too long to leave" in process.lines()[-1]["message"]
    assert said(log, "out")


@pytest.mark.parametrize("trouble", ["leave", "deafly"])
@whatever_the_store
def test_a_second_signal_ends_a_worker_whose_lifespan_hangs_at_the_end(broker, url, log, trouble):
    with worker(url, "tests.troubled_shop:app", "--grace", "60", log=log, trouble=trouble) as process:
        eventually(lambda: is_ready(process))
        process.terminate()
        eventually(lambda: said(log, "leave"))
        process.terminate()
        ended(process)


@whatever_the_store
def test_a_lifespan_that_fails_is_named_in_one_line_and_tried_less_and_less_often(broker, url, log):
    with worker(url, "tests.troubled_shop:app", log=log, trouble="raise") as process:
        errors = eventually(lambda: len(found := of_level(process, "error")) >= 4 and found, 20)
        process.terminate()
        ended(process)
    times = [float(at) for _, _, at in said(log, "try")]
    assert times[2] - times[1] >= 0.5
    assert times[3] - times[2] >= 1.0
    assert len(errors) == 4
    told = "failed in the lifespan tests.troubled_shop.troubled, when it was entered: OSError: no database"
    assert told in errors[0]["message"]
    assert errors[0]["exception"].startswith("Traceback")
    assert all("ended with exit code" in line["message"] for line in of_level(process, "warning"))
    assert not of_level(process, "info")


@whatever_the_store
def test_a_lifespan_that_fails_at_the_end_is_named_in_one_line(broker, url, log):
    with worker(url, "tests.troubled_shop:app", log=log, trouble="raise at the end") as process:
        eventually(lambda: is_ready(process))
        process.terminate()
        ended(process)
        line = process.lines()[-1]
    assert line["level"] == "error"
    assert "in the lifespan tests.troubled_shop.troubled, when it was left: OSError: no goodbye" in line["message"]


@whatever_the_store
def test_a_lifespan_that_is_none_ends_the_worker(url, log):
    with worker(url, "tests.troubled_shop:app", log=log, trouble="misfit") as process:
        assert process.wait(20) == 2
        last = log.with_name("errors").read_text().splitlines()[-1]
    assert last.startswith("spool: the lifespan tests.troubled_shop.misfit returned 1; a lifespan returns")


# The store


@pytest.mark.parametrize("style", ["human", "json"])
def test_a_store_that_cannot_be_opened_is_told_in_one_line(tmp_path, log, style):
    url = f"sqlite:///{tmp_path}/nowhere/jobs.db"
    with worker(url, "tests.troubled_shop:app", "--log-format", style, log=log) as process:
        assert process.wait(20) == 2
    (line,) = log.with_name("errors").read_text().splitlines()
    assert line == f"spool: cannot open {tmp_path}/nowhere/jobs.db: there is no directory {tmp_path}/nowhere"
