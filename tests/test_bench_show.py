"""How the benchmark looks: its progress, its tables, its plots and its report."""

import difflib
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
from rich.console import Console

from spool.bench import BenchResult, Plan, run
from spool.bench.account import Percentiles
from spool.bench.report import store_name
from spool.cli.bench import head, show_summary
from spool.cli.progress import bar

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def document(redis_server) -> BenchResult:
    return run(Plan(jobs=300, workers=2, producers=5), redis_server.url)


def changed(document: BenchResult, **fields: object) -> BenchResult:
    return msgspec.structs.replace(document, result=msgspec.structs.replace(document.result, **fields))


# Progress


def test_a_bar_of_several_runs():
    out = io.StringIO()
    with bar(Console(file=out, force_terminal=True, width=120), 2) as listener:
        listen = listener(1000)
        for ended in (100, 400):
            for stage in ("starting workers", "enqueueing", "draining"):
                listen(stage, ended)
            listen("closing the books", 1000)
    drawn = re.split(r"[\r\n]+", ESCAPES.sub("", out.getvalue()))
    assert any(re.fullmatch(r"run 1 of 2, draining\W+100 of 1,000 jobs .*/s ETA .*", each.strip()) for each in drawn)
    assert any(re.fullmatch(r"run 2 of 2, draining\W+400 of 1,000 jobs .*/s ETA .*", each.strip()) for each in drawn)
    assert not any("run 3" in each for each in drawn)


def test_a_bar_is_drawn_only_now_and_then():
    out = io.StringIO()
    with bar(Console(file=out, force_terminal=True, width=120)) as listener:
        listen = listener(10_000)
        listen("draining", 0)
        size = len(out.getvalue())
        for ended in range(1000):
            listen("draining", ended)
    assert out.getvalue().count("draining") < 20
    assert size > 0


def read_all(terminal: int) -> Iterator[bytes]:
    with suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(terminal, 4096):
            yield chunk


@pytest.mark.parametrize(
    "load", [["--rate", "400"], ["--producers", "2"], ["--prefill"]], ids=["rate", "callers", "prefill"]
)
def test_progress_is_for_a_terminal_alone(redis_url, load):
    command = [sys.executable, "-m", "spool", "bench", "custom", "--jobs", "300", "--url", redis_url, *load]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"COLUMNS": "120"}) as shown:
        os.close(theirs)
        drawn = b"".join(read_all(ours))
        out, _ = shown.communicate()
    os.close(ours)
    assert shown.returncode == 0
    text = ESCAPES.sub("", drawn.decode())
    assert re.search(r"draining\W+[\d,]+ of 300 jobs", text)
    assert "ETA" in text
    assert b"\x1b" not in out
    silent = subprocess.run(command, capture_output=True, check=True)
    assert silent.stderr == b""


# Plain text


def printed(capsys, document: BenchResult) -> list[str]:
    head(document)
    show_summary(document)
    return capsys.readouterr().out.splitlines()


def test_the_same_result_reads_the_same(capsys, document):
    first = printed(capsys, document)
    assert first == printed(capsys, document)
    assert not any("\x1b" in line for line in first)


def test_other_figures_change_their_own_lines_alone(capsys, document):
    before = printed(capsys, document)
    wide = Percentiles(300, 123456.78, 234567.89, 345678.9, 1234567.89)
    other = changed(
        document,
        drain_per_s=12_345_678.9,
        latency_ms=msgspec.structs.replace(document.result.latency_ms, start=wide),
    )
    after = printed(capsys, other)
    assert len(before) == len(after)
    different = [line[2:].split()[0] for line in difflib.ndiff(before, after) if line[0] == "+"]
    assert different == ["drain", "start"]


def test_the_name_of_a_store_of_its_own_is_not_shown(document, redis_server):
    assert store_name(document) == redis_server.url.split("?")[0]
    other = msgspec.structs.replace(document.broker, kind="sqlite", url="sqlite:////tmp/spool-bench-1x_z/spool.db")
    assert store_name(msgspec.structs.replace(document, broker=other)) == "a temporary SQLite file"
    mine = msgspec.structs.replace(document.broker, url="redis://h/1?prefix=mine")
    assert store_name(msgspec.structs.replace(document, broker=mine)) == "redis://h/1?prefix=mine"
