import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import msgspec
import pytest
import redis

import spool
from spool.bench import BenchResult, Plan, run
from spool.bench.ab import AbResult, interleave, is_open, jobs_for, turns_for
from spool.bench.compare import Change, Comparison
from spool.bench.limit import limit
from spool.bench.sides import Couple, side
from spool.cli import main
from spool.errors import BenchError, ConfigError

HERE = str(Path(sys.executable).parent.parent)


def test_sides_take_turns_after_runs_that_do_not_count(redis_url):
    turns: list[tuple[str, int]] = []
    found = interleave(
        side("base", HERE, redis_url),
        side("this", None, redis_url),
        ["--prefill"],
        jobs=50,
        turns=2,
        pairs=2,
        most=2,
        on_run=lambda name, pair: turns.append((name, pair)),
    )
    assert turns == [
        *[("base", 0), ("this", 0)],
        *[("this", 0), ("base", 0), ("base", 1), ("this", 1), ("this", 1), ("base", 1)],
        *[("base", 0), ("this", 0), ("this", 2), ("base", 2), ("base", 2), ("this", 2)],
    ]
    for document in (found.base, found.this):
        assert [run.done for run in document.runs] == [25, 25, 25, 25]
        assert document.config.prefill
        assert document.calibrations == []
    assert (found.pairs, found.turns, found.old) == (2, 2, [])
    assert found.headline.metric == "drain"
    assert found.comparison.differences == []


OPTIONS = ["--prefill", "--kind", "io", "--work-ms", "200", "--concurrency", "10"]


def test_workers_live_on_and_wait_for_their_turn(tmp_path):
    url = f"sqlite:///{tmp_path}/new.db"
    with Couple((side("base", None, url), side("this", None, url)), OPTIONS, 5) as couple:
        workers: list[list[int]] = []
        for jobs in (5, 3):
            began = time.monotonic()
            couple.fill(jobs)
            couple.go(0)
            couple.go(1)
            took = time.monotonic() - began
            base, this = couple.close()
            for found in (base, this):
                assert (found.result.done, found.result.store["done"], found.result.duplicated) == (jobs, jobs, 0)
                assert found.result.latency_ms.start.count == jobs
            workers.append([share.process for found in (base, this) for share in found.series.workers])
            # What it waited for while the other one ran is none of its time.
            assert base.result.drain_seconds + this.result.seconds <= took
        assert workers[0] == workers[1]
        assert len(workers[0]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "load",
    [
        ["--producers", "5", "--workers", "2"],
        ["--rate", "500"],
        ["--task", "tests.measured_shop:add", "--args", "[1, 2]"],
    ],
)
def test_any_load_is_carried_again_and_again(load, redis_url):
    with Couple((side("base", None, redis_url), side("this", None, redis_url)), load, 20) as couple:
        for _ in range(2):
            couple.fill(20)
            couple.go(1)
            couple.go(0)
            for found in couple.close():
                assert (found.result.done, found.result.store["done"], found.result.extra_starts) == (20, 20, 0)
                assert found.result.latency_ms.start.count == 20
                assert found.result.drain_per_s


def test_a_job_that_is_not_done_in_time_is_told(tmp_path):
    options = [*OPTIONS, "--work-ms", "60000", "--max-seconds", "0.1"]
    with pytest.raises(BenchError, match="of 2 jobs 0 failed, 0 lost, 2 unfinished, 0 run twice"):
        interleave(side("base"), side("this"), options, jobs=2, pairs=1)


def test_a_side_ends_when_nobody_gives_orders_any_more(redis_url):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [
            sys.executable,
            "-m",
            "spool",
            "bench",
            "custom",
            "--url",
            redis_url,
            "--turns",
            str(theirs.fileno()),
        ]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        with ours.makefile("rb") as file:
            assert file.readline() == b'{"type":"done"}\n'
    with process:
        _, err = process.communicate(timeout=30)
    assert b"whoever gave the orders is gone" in err
    assert process.returncode == 1
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []


def test_a_version_that_cannot_take_turns_has_processes_for_each_run(tmp_path, redis_url, capsys):
    venv.EnvBuilder(symlinks=True).create(tmp_path / "old")
    (packages,) = (tmp_path / "old").glob("lib/python*/site-packages")
    shutil.copytree(Path(spool.__file__).parent, packages / "spool")
    (packages / "spool" / "bench" / "turns.py").unlink()
    (packages / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    file = tmp_path / "ab.json"
    options = ["--base-env", str(tmp_path / "old"), "--base-url", redis_url, "--jobs", "30", "--json", str(file)]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "ab", *options, "--pairs", "2", "--max-pairs", "2"])
    assert ended.value.code == 0
    assert "the base side is too old to take turns" in capsys.readouterr().err
    found = msgspec.json.decode(file.read_bytes(), type=AbResult)
    assert (found.pairs, found.turns, found.old) == (2, 1, ["base"])
    assert [run.done for run in (*found.base.runs, *found.this.runs)] == [30] * 4


def test_a_run_is_as_long_as_asked_for(redis_url):
    turns: list[tuple[str, int]] = []
    found = interleave(
        side("base", None, redis_url),
        side("this", None, redis_url),
        ["--kind", "io", "--work-ms", "50", "--concurrency", "20"],  # 400 jobs/s, at least nearly, on any machine
        seconds=0.3,
        pairs=1,
        most=1,
        on_run=lambda name, pair: turns.append((name, pair)),
    )
    jobs = found.base.config.jobs
    assert jobs == found.this.config.jobs
    assert 100 <= jobs <= 120
    # The first run lasted for half a second: there was no need to ask again. Of so few jobs there is one turn only.
    assert turns == [("base", 0), ("this", 0), ("this", 0), ("base", 0), ("base", 1), ("this", 1)]
    assert found.turns == 1


@pytest.fixture(scope="module")
def one() -> BenchResult:
    return run(Plan(jobs=1, workers=1))


def test_runs_that_do_not_count_grow_until_they_are_long_enough(one):
    counts: list[int] = []

    def warm_up(count: int) -> list[BenchResult]:
        """As a side that takes 20 ms for start and end, and 10 µs for each job, and one that is half as fast."""
        counts.append(count)
        found = [
            msgspec.structs.replace(one.result, drain_seconds=taken, drain_per_s=count / taken)
            for taken in (0.02 + count * 1e-5, 0.02 + count * 2e-5)
        ]
        return [msgspec.structs.replace(one, result=each) for each in found]

    jobs, warm = jobs_for(1.0, warm_up)
    assert warm[1].result.drain_seconds > 0.8
    assert 0.8 <= 0.02 + jobs * 1e-5 <= 1.05  # the faster side: the other runs for longer
    assert counts == sorted(counts)
    assert len(counts) == 3


@pytest.mark.parametrize(
    ("jobs", "seconds", "turns"),
    [(80_000, 0.5, 8), (80_000, 0.2, 4), (80_000, 0.05, 1), (7_000, 1.0, 4), (100, 30.0, 1)],
)
def test_a_pair_has_as_many_turns_as_are_long_enough(one, jobs, seconds, turns):
    """Of 0.05 s at least, and ten times as many jobs as the 100 slots of one worker."""
    plan = Plan(jobs=jobs // 10, workers=1)
    warm = [
        msgspec.structs.replace(one, config=plan, result=msgspec.structs.replace(one.result, drain_seconds=taken / 10))
        for taken in (seconds, 3 * seconds)
    ]
    assert turns_for(jobs, warm) == turns


def test_a_limit_that_cannot_be_told_is_open(one):
    drain = Change("drain", "/s", 1.0, 1.0, 0.0, -0.06, 0.06, "no difference")
    sides = side("base"), side("this")
    found = AbResult(sides=sides, pairs=2, headline=drain, comparison=Comparison([drain], [], None), base=one, this=one)
    assert not is_open(found, [limit("drain<-7%")])
    assert is_open(found, [limit("drain<-7%"), limit("drain<-5%")])
    assert is_open(msgspec.structs.replace(found, headline=Change("drain", "/s", None, None)), [])


def test_without_scipy_nothing_runs(monkeypatch, capsys):
    for name in ("scipy", "scipy.special"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "ab", "--base-url", "redis://127.0.0.1:1/0", "--jobs", "1"])
    assert ended.value.code == 2
    assert "pip install 'spool-queue[bench]'" in capsys.readouterr().err


def test_the_command(tmp_path, capsys, redis_url):
    file = tmp_path / "ab.json"
    options = ["--base-url", redis_url, "--jobs", "30", "--pairs", "2", "--max-pairs", "2", "--payload", "10"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "ab", "--base-env", HERE, *options, "--json", str(file)])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "2 pairs of 30 jobs" in out
    assert out.splitlines()[-1].startswith("drain: ")
    found = msgspec.json.decode(file.read_bytes(), type=AbResult)
    assert (found.sides[0].env, found.sides[1].env) == (HERE, None)
    assert found.base.config.payload == found.this.config.payload == 10


def test_a_side_that_fails_is_named(tmp_path):
    with pytest.raises(BenchError, match="the base side failed with exit code 1") as failed:
        interleave(side("base", None, "redis://127.0.0.1:1/0"), side("this"), jobs=10, pairs=2)
    (note,) = failed.value.__notes__
    assert "spool bench custom --jobs 10 --url redis://127.0.0.1:1/0" in note


def test_a_path_that_is_no_environment(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no virtual environment"):
        side("base", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["bench", "ab", "--base-env", str(tmp_path)])
    assert ended.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
