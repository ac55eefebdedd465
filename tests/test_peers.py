"""The benchmark of the peers: that its own figures are what they say. Of the peers only Spool itself is run."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import table
from benchmarks.peers.kill import Killed
from benchmarks.peers.measure import Described, Drain, Latency, Run, Sizes
from benchmarks.peers.peer import Worker

ROOT = Path(__file__).parent.parent


QUICK = Latency(0.2, 0.3, 0.4, 12.0, 30.4, 0.0)


def described(module, share=1.0, bulk=""):
    worker = Worker("2 threads", ["-m", "worker"])
    return Described(
        module, "1.2", "3.11.7", "at least once", share, bulk, worker, Worker("4 threads", ["-m", "worker"])
    )


def run_of(rate, stored=1000, latency=QUICK):
    drain = Drain(1000, 0.5, 1000 / rate, stored, readable=True, worker_us=9.9, redis_us=8.0, commands=4.0, memory=31)
    return Run(2000.0, 30000.0, drain, latency)


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_fastest_comes_first_and_each_is_told_beside_spool():
    peers = {name: described(name) for name in ("spool", "slow", "fast")}
    runs = {"spool": [run_of(100), run_of(300), run_of(200)], "slow": [run_of(50)], "fast": [run_of(400)]}
    head, _, *rows = cells(table.speed(peers, runs, {}, 500))
    assert [row[:3] for row in rows] == [
        ["fast", "400", "2.00"],
        ["spool", "200 (100–300)", "1.00"],
        ["slow", "50", "0.25"],
    ]
    assert all(len(row) == len(head) for row in rows)
    assert rows[0][3:] == ["2,000", "30,000", "0.20 / 0.30 / 0.40 / 12", "30 / 31", "9.9 / 8.0", "4.0"]


def test_the_examples_hold():
    found = doctest.testmod(table)
    assert found.attempted
    assert not found.failed


def test_what_went_wrong_is_told_in_the_row():
    peers = {name: described(name) for name in ("spool", "short", "late", "broken")}
    runs = {"spool": [run_of(100)], "short": [run_of(90, stored=998)], "late": [run_of(80, latency=None)]}
    _, _, *rows = cells(table.speed(peers, runs, {"broken": "the worker ended with 1: no such option"}, 500))
    assert rows[1][1] == "90; only 998 results of 1,000"
    assert rows[2][5] == "cannot keep up"
    assert rows[3] == ["broken", "the worker ended with 1: no such option", *["–"] * 7]


def test_a_peer_without_a_call_for_many_is_told_apart():
    peers = {"gathers": described("gathers", bulk="gathered"), "lacks": described("lacks", bulk="none")}
    _, _, *rows = cells(table.speed(peers, {"gathers": [run_of(2)], "lacks": [run_of(1)]}, {}, 500))
    assert [row[4] for row in rows] == ["30,000 (50 calls gathered)", "no such call"]


def test_what_a_kill_cost_is_told():
    peers = {name: described(name) for name in ("back", "lost", "broken")}
    killed = {"back": Killed(4, 20, 1.5, 9.04, 1), "lost": Killed(4, 16, None, None, 0), "broken": "no answer"}
    _, _, *rows = cells(table.kills(peers, killed, 120))
    assert rows == [
        ["back", "4 threads", "20", "1.5 s", "9.0 s", "1"],
        ["lost", "4 threads", "16: 4 missing", "not within 120 s", "not within 120 s", "0"],
        ["broken", "4 threads", "no answer", "–", "–", "–"],
    ]


def test_slower_peers_get_fewer_jobs_but_enough():
    sizes = Sizes(jobs=10_000)
    assert [sizes.jobs_of(described("x", share)) for share in (1.0, 0.25, 0.001)] == [10_000, 2_500, 500]


@pytest.mark.timeout(120)
def test_a_run_of_spool_alone(tmp_path):
    file = tmp_path / "result.json"
    options = ["--only", "spool", "--rounds", "1", "--jobs", "600", "--seconds", "0.2", "--kill-wait", "20"]
    command = [sys.executable, "-m", "benchmarks.peers", *options, "--json", str(file)]
    environment = os.environ | {"PEERS_HELD": "0.3"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_bytes())
    assert not found["failures"]
    (run,) = found["runs"]["spool"]
    assert run["drain"]["stored"] == run["drain"]["jobs"] == 600
    assert run["drain"]["readable"]
    assert run["one"] > 0
    assert run["many"] > 0
    assert 0 < run["latency"]["p50"] <= run["latency"]["p99"] <= run["latency"]["max"]
    assert run["drain"]["memory"] > 5
    assert found["killed"]["spool"]["interrupted"] == 4
    assert found["killed"]["spool"]["done"] == 20
    assert "| spool |" in done.stdout
