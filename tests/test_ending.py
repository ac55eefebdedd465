"""A worker ends when it is told to, whatever its jobs and lifespans do; on both brokers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


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


# The store


@pytest.mark.parametrize("style", ["human", "json"])
def test_a_store_that_cannot_be_opened_is_told_in_one_line(tmp_path, log, style):
    url = f"sqlite:///{tmp_path}/nowhere/jobs.db"
    with worker(url, "tests.troubled_shop:app", "--log-format", style, log=log) as process:
        assert process.wait(20) == 2
    (line,) = log.with_name("errors").read_text().splitlines()
    assert line == f"spool: cannot open {tmp_path}/nowhere/jobs.db: there is no directory {tmp_path}/nowhere"
