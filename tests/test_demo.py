import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import redis

from spool.cli import main
from spool.demo import Totals, plain_loop, run
from spool.demo.files import Facts, Failure, analyse, walk
from spool.demo.indexer import Progress
from spool.demo.show import shown
from spool.errors import BrokerUnavailable, ConfigError
from tests.redis_server import RedisServer

SOURCE = b"""
class Shop:
    def sell(self):
        def inner(): ...
        return inner

async def longest():
    a = 1
    b = 2
    c = 3
    return a + b + c
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    """Give a directory with everything that goes wrong in directories."""
    root = tmp_path / "tree"
    (root / "package" / "__pycache__").mkdir(parents=True)
    (root / "site-packages").mkdir()
    (root / "empty").mkdir()
    (root / "package" / "good.py").write_bytes(SOURCE)
    (root / "package" / "bad.py").write_bytes(b"def (:\n")
    (root / "package" / "nul.py").write_bytes(b"a = 1\0\n")
    (root / "package" / "coding.py").write_bytes(b"# coding: no-such-codec\n")
    (root / "package" / "latin.py").write_bytes(b"# coding: latin-1\nname = '\xe9'\n")
    (root / "package" / "warns.py").write_bytes(b"'\\d' is 1\n")
    (root / "package" / "__pycache__" / "good.pyc").write_bytes(b"skipped")
    (root / "site-packages" / "other.py").write_bytes(b"skipped")
    (root / "words.txt").write_bytes(b"one two\nthree\x0bfour  five")
    (root / "binary").write_bytes(bytes(range(256)) * 20)
    (root / "nothing").touch()
    (root / "loop").symlink_to(root)
    (root / "linked.txt").symlink_to(root / "words.txt")
    (root / "dangling").symlink_to(root / "missing")
    os.mkfifo(root / "pipe")
    for number in range(60):
        (root / "package" / f"module_{number}.py").write_bytes(SOURCE * number)
    for name in (b"\xff\xfe.txt", "naïve 世界.txt".encode(), b"new\nline\x1b[31m.txt", b"[bold]brackets.txt"):
        (Path(os.fsdecode(os.fsencode(root) + b"/" + name))).write_bytes(b"name\n")
    return root


# What is found out about a file


def test_facts_of_python_source(tree):
    facts = analyse(os.fsencode(tree / "package" / "good.py"))
    assert facts.size == len(SOURCE)
    assert facts.sha256 == hashlib.sha256(SOURCE).digest()
    assert (facts.functions, facts.classes, facts.longest) == (3, 1, (5, "longest"))


def test_lines_and_words_are_those_of_wc(tree):
    for name in ("words.txt", "binary", "nothing", "package/good.py"):
        counted = subprocess.run(["wc", "-l", tree / name], capture_output=True, check=True).stdout.split()
        assert analyse(os.fsencode(tree / name)).lines == int(counted[0])
    assert analyse(os.fsencode(tree / "words.txt")).words == 5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_words_across_chunks(tree, monkeypatch, size):
    monkeypatch.setattr("spool.demo.files._CHUNK", size)
    assert analyse(os.fsencode(tree / "words.txt")).words == 5
    assert analyse(os.fsencode(tree / "package" / "good.py")).words == len(SOURCE.split())


def test_what_cannot_be_parsed_or_read_raises(tree):
    for name in ("bad", "coding"):
        with pytest.raises(SyntaxError):
            analyse(os.fsencode(tree / "package" / f"{name}.py"))
    with pytest.raises((SyntaxError, ValueError)):
        analyse(os.fsencode(tree / "package" / "nul.py"))
    with pytest.raises(FileNotFoundError):
        analyse(os.fsencode(tree / "missing"))
    assert analyse(os.fsencode(tree / "package" / "latin.py")).lines == 2


def test_walk_follows_no_links_and_skips_what_is_not_source(tree):
    found = [os.path.relpath(path, os.fsencode(tree)) for path in walk(os.fsencode(tree), [])]
    assert len(found) == len(set(found)) == 60 + 6 + 3 + 4
    assert b"words.txt" in found
    assert b"\xff\xfe.txt" in found
    assert not any(name in path for path in found for name in (b"__pycache__", b"site-packages", b"loop", b"pipe"))
    assert found == [os.path.relpath(path, os.fsencode(tree)) for path in walk(os.fsencode(tree), [])]


def test_walk_names_directories_that_cannot_be_listed(tree, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if path.endswith(b"/package"):
            raise PermissionError(13, "no", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    unreadable: list[bytes] = []
    assert len(list(walk(os.fsencode(tree), unreadable))) == 7
    assert unreadable == [os.fsencode(tree / "package")]


def test_totals_do_not_depend_on_the_order():
    facts = [Facts(b"%d" % each, each % 7, bytes([each]), each % 5, 1, 1, 0, (each % 3, "f")) for each in range(100)]
    failures = [Failure(b"%d" % each, ("A", "B")[each % 2], "no") for each in range(50)]
    forwards, backwards = Totals(), Totals()
    for each in facts:
        forwards.add(each)
    for each in reversed(facts):
        backwards.add(each)
    for each in failures:
        forwards.fail(each)
    for each in reversed(failures):
        backwards.fail(each)
    assert forwards == backwards
    assert forwards.failed == {"A": 25, "B": 25}
    assert len(forwards.failures) == 20
    assert [place.figure for place in forwards.largest] == [6] * 5
    backwards.add(facts[0])
    assert forwards.digest != backwards.digest


def test_digest_tells_contents_apart():
    first, second = Totals(), Totals()
    first.add(Facts(b"a", 1, b"1" * 32, 1, 1))
    second.add(Facts(b"a", 1, b"2" * 32, 1, 1))
    assert first.digest != second.digest


# The whole


@pytest.fixture(params=["sqlite", "redis"])
def url(request) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("redis_url")


def keys(url: str) -> list[bytes]:
    with redis.Redis.from_url(url) as client:
        return list(client.scan_iter())


def test_totals_equal_the_plain_loop(tree, url, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told: list[Progress] = []
    report = run(str(tree), url, 2, on_progress=told.append)
    expected = plain_loop(str(tree))
    assert report.totals == expected
    assert expected.files == 70
    assert sum(expected.failed.values()) == 3
    assert {each.path.rpartition(b"/")[2] for each in expected.failures} == {b"bad.py", b"nul.py", b"coding.py"}
    assert report.jobs == 73
    assert report.processes == 2
    last = told[-1]
    assert (last.found, last.indexed, last.failed, last.waiting, last.listed) == (73, 70, 3, 0, True)
    assert sorted(tmp_path.iterdir()) == [tree]
    if url:
        assert keys(url) == []


def test_a_window_bounds_what_is_in_the_store(tree, url, monkeypatch):
    monkeypatch.setattr("spool.demo.indexer._WINDOW", 8)
    monkeypatch.setattr("spool.demo.indexer._CHUNK", 3)
    told: list[Progress] = []
    report = run(str(tree), url, 1, on_progress=told.append)
    assert report.totals == plain_loop(str(tree))
    assert max(each.found - each.indexed - each.failed for each in told) <= 8


def test_an_empty_directory(tmp_path, url):
    report = run(str(tmp_path), url, 1)
    assert (report.jobs, report.totals) == (0, Totals())


def test_no_directory(tmp_path):
    with pytest.raises(ConfigError, match="no directory"):
        run(str(tmp_path / "missing"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no directory"):
        run(str(tmp_path / "file"))


def test_a_sqlite_file_that_is_there_is_left_alone(tree, tmp_path):
    file = tmp_path / "mine.db"
    file.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="there already"):
        run(str(tree), f"sqlite:///{file}")
    assert file.read_bytes() == b"precious"


def test_a_broker_that_is_down(tree):
    with pytest.raises(BrokerUnavailable):
        run(str(tree), "redis://127.0.0.1:1/0")


# The command


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "spool", "demo", *map(str, arguments)]


def test_output_without_a_terminal_is_plain_text(tree):
    ran = subprocess.run(command(tree, "--processes", "1"), capture_output=True, text=True, timeout=50, check=True)
    for text in (ran.stdout, ran.stderr):
        assert all(each.isprintable() or each == "\n" for each in text)
    assert "70" in ran.stdout
    assert "[bold]brackets.txt" not in ran.stderr
    assert "bad.py" in ran.stdout
    assert "SyntaxError" in ran.stdout
    assert "jobs/s" in ran.stdout


def test_output_as_json(tree, redis_url, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", str(tree), "--url", redis_url, "--processes", "1", "--json"])
    assert stopped.value.code == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert document["totals"]["files"] == 70
    assert sum(document["totals"]["dead"].values()) == 3
    assert document["jobs"] == 73
    assert keys(redis_url) == []


def test_keep_leaves_the_dead_to_look_at(tree, redis_url, capsys):
    with pytest.raises(SystemExit):
        main(["demo", str(tree), "--url", redis_url, "--processes", "1", "--keep"])
    kept = capsys.readouterr().err.rpartition("--url ")[2].strip().strip("'")
    with pytest.raises(SystemExit):
        main(["dead", "list", "--url", kept, "--json"])
    dead = msgspec.json.decode(capsys.readouterr().out)
    assert {job["failures"] for job in dead} == {2}
    assert len(dead) == 3


def living(group: int) -> list[str]:
    """Return the processes of a group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = stat.read_text().rpartition(")")
            state, _, of_group, *_ = fields.split()
            if int(of_group) == group and state not in "ZX":
                found.append(name)
    return found


def test_ctrl_c_stops_cleanly(tmp_path, redis_url):
    """However many files there are: Ctrl-C is one line, and nothing is left, neither keys nor processes."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(500):
        (root / f"{number}.py").write_bytes(SOURCE * 200)
    process = subprocess.Popen(
        command(root, "--processes", "1", "--url", redis_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert "ready" in process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in errors
    assert keys(redis_url) == []
    deadline = time.monotonic() + 5
    while alive := living(process.pid):
        assert time.monotonic() < deadline, f"still there: {alive}"


def test_a_broker_that_goes_away_is_one_line(tree):
    with RedisServer() as server:
        for number in range(500):
            (tree / f"more_{number}.py").write_bytes(SOURCE * 100)
        process = subprocess.Popen(
            command(tree, "--processes", "1", "--url", server.url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "ready" in process.stderr.readline()
        server.kill()
        _, errors = process.communicate(timeout=50)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("spool: ")


def test_paths_are_shown_as_text():
    assert shown(b"/a/b", b"/a") == "b"
    assert shown(b"/ab/c", b"/a") == "/ab/c"
    assert shown(b"\xff\x1b") == r"\xff\x1b"
    assert shown("世界".encode()) == "世界"
