import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["sqlite", "redis"])
def environment(request, tmp_path) -> dict[str, str]:
    url = f"sqlite:///{tmp_path}/spool.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    return os.environ | {"SPOOL_URL": url}


@contextmanager
def worker(app: str, environment: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "spool", "worker", app, "--log-level", "error"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        yield
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def run(module: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mail(environment):
    with worker("examples.mail:app", environment):
        lines = run("examples.mail", environment, "ada@example.org", "grace@example.org").splitlines()
        assert lines == [
            "ada@example.org: 8 bytes sent, after 2 attempts",
            "grace@example.org: 8 bytes sent, after 2 attempts",
        ]
        # The ids are taken: nobody is welcomed twice.
        assert run("examples.mail", environment, "ada@example.org").splitlines() == lines[:1]


def test_words(environment, tmp_path):
    text = tmp_path / "text"
    text.write_text("the cat and the dog.\n" * 120 + "The end\n")
    with worker("examples.words:app", environment):
        first, second, *_ = run("examples.words", environment, str(text)).splitlines()
    assert first.split() == ["241", "the"]
    assert second.split()[0] == "120"
