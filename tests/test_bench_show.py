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
from spool.bench.plot import plot
from spool.bench.report import store_name
from spool.bench.scale import Axis, Law, Scaling
from spool.cli import main
from spool.cli.bench import head, show_summary
from spool.cli.progress import bar
from spool.cli.scaling import show_scaling

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


# Scalings


LAW = Law(100.0, 0.05, 0.01)


def scaling(document: BenchResult, axis: Axis = "workers", law: Law | None = LAW) -> Scaling:
    return Scaling(axis, [1, 2, 4, 8], [document] * 4, law)


def test_a_scaling_reads_the_same_and_other_figures_change_their_own_lines(capsys, document):
    found = scaling(document)
    show_scaling(found)
    before = capsys.readouterr().out.splitlines()
    show_scaling(found)
    assert before == capsys.readouterr().out.splitlines()
    faster = changed(document, drain_per_s=1_234_567_890.0)
    show_scaling(Scaling("workers", found.values, [*found.results[:3], faster], LAW))
    after = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in difflib.ndiff(before, after) if line[0] == "+"] == ["8"]


def test_a_plot_has_what_was_measured_and_the_law(document):
    rates = (100.0, 180.0, 310.0, 450.0)
    found = Scaling("workers", [1, 2, 4, 8], [changed(document, drain_per_s=rate) for rate in rates], LAW)
    rows = plot(found, 80).splitlines()
    assert max(map(len, rows)) <= 80
    assert not any("\x1b" in row for row in rows)
    drawn = [row[row.index("│") :] for row in rows if "│" in row]
    assert sum(row.count("●") for row in drawn) == 4 + 1  # and once in the legend
    assert any(0x2800 < ord(each) < 0x2900 for row in drawn for each in row)
    assert rows[-2].split() == ["1", "2", "4", "8"]
    assert rows[2].startswith("600┤")
    wide = Scaling("payload", [10, 1000, 100_000, 1_000_000], found.results, None)
    assert sum(row.count("●") for row in plot(wide, 80).splitlines()) == 4


def test_a_plot_is_for_a_terminal_or_on_demand(capsys, document, tmp_path, monkeypatch):
    file = tmp_path / "scaling.json"
    file.write_bytes(msgspec.json.encode(scaling(document)))
    assert "●" not in command(capsys, "report", file)[1]
    assert "●" in command(capsys, "report", file, "--plot")[1]
    monkeypatch.setitem(sys.modules, "plotext", None)
    code, out, errors = command(capsys, "report", file, "--plot")
    assert code == 0
    assert "universal scalability law" in out
    assert "spool-queue[bench]" in errors


# Stored results


def command(capsys, *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *map(str, arguments)])
    return stopped.value.code, *capsys.readouterr()


def test_a_stored_result_is_shown_again_as_it_was(capsys, tmp_path, redis_url):
    file, html, again = (tmp_path / name for name in ("result.json", "one.html", "two.html"))
    code, first, _ = command(capsys, "custom", "--jobs", 30, "--url", redis_url, "--json", file, "--html", html)
    assert code == 0
    assert command(capsys, "report", file) == (0, first, "")
    assert command(capsys, "report", file, "--html", again) == (0, "", "")
    assert html.read_text() == again.read_text()
    assert "<noscript>" in again.read_text()


def test_a_stored_scaling_is_shown_again(capsys, tmp_path, document):
    file = tmp_path / "scaling.json"
    file.write_bytes(msgspec.json.encode(scaling(document)))
    code, out, _ = command(capsys, "report", file)
    assert code == 0
    assert "universal scalability law" in out
    assert command(capsys, "report", file)[1] == out


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "spool-bench-ab"}', '{"kind": 1}', '{"kind": "spool-bench"}']
)
def test_a_file_that_is_no_result_is_refused(capsys, tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    code, out, errors = command(capsys, "report", file)
    assert (code, out) == (2, "")
    assert "is no result of spool bench" in errors


def test_a_report_that_cannot_be_written_is_said_before_the_run(capsys, tmp_path):
    assert command(capsys, "quick", "--html", tmp_path / "missing" / "report.html")[0] == 2
