import sys
from pathlib import Path

import msgspec
import pytest

from spool.bench import BenchResult, Plan, run
from spool.bench.ab import AbResult, interleave, is_open, jobs_for, side
from spool.bench.compare import Change, Comparison
from spool.bench.limit import limit
from spool.cli import main
from spool.errors import BenchError, ConfigError

HERE = str(Path(sys.executable).parent.parent)


def test_sides_take_turns_after_a_pair_that_does_not_count(redis_url):
    turns: list[tuple[str, int]] = []
    found = interleave(
        side("base", HERE, redis_url),
        side("this", None, redis_url),
        ["--prefill"],
        jobs=50,
        pairs=2,
        most=2,
        on_run=lambda name, pair: turns.append((name, pair)),
    )
    assert turns == [("base", 0), ("this", 0), ("base", 1), ("this", 1), ("this", 2), ("base", 2)]
    for document in (found.base, found.this):
        assert [run.done for run in document.runs] == [50, 50]
        assert document.config.prefill
        assert document.calibrations == []
    assert found.pairs == 2
    assert found.headline.metric == "drain"
    assert found.comparison.differences == []


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
    # The first run lasted for half a second: there was no need to ask again.
    assert turns == [("base", 0), ("this", 0), ("base", 1), ("this", 1)]


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

    jobs = jobs_for(1.0, warm_up)
    assert 0.8 <= 0.02 + jobs * 1e-5 <= 1.05  # the faster side: the other runs for longer
    assert counts == sorted(counts)
    assert len(counts) == 3


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
