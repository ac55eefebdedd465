"""`spool bench scalability`: the same load with more and more workers, and the law of their rates."""

import json
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool.bench import Plan
from spool.bench.scale import Law, fit, scale
from spool.cli import main
from spool.errors import ConfigError


@given(
    st.floats(10, 1e5),
    st.floats(0, 0.5),
    st.floats(0, 0.05),
    st.sampled_from([(1, 2, 4, 8, 16), (1, 2, 3, 4), (2, 5, 9, 20)]),
)
def test_a_law_is_found_again(rate, contention, coherence, workers):
    found = fit(workers, [Law(rate, contention, coherence)(n) for n in workers])
    for n in workers:
        assert found(n) == pytest.approx(Law(rate, contention, coherence)(n), rel=0.01)


def test_a_law_is_found_in_noise():
    dice = random.Random(3)
    true = Law(1000.0, 0.05, 0.002)
    found = fit([1, 2, 4, 8, 16], [true(n) * dice.lognormvariate(0, 0.02) for n in (1, 2, 4, 8, 16)])
    assert found.rate == pytest.approx(1000, rel=0.05)
    assert found.contention == pytest.approx(0.05, abs=0.03)
    assert found.coherence == pytest.approx(0.002, abs=0.002)


def test_the_peak_is_where_more_workers_are_less():
    law = Law(100.0, 0.1, 0.01)
    assert law.peak == pytest.approx(9.49, abs=0.01)
    assert law(9) > law(8)
    assert law(11) < law(10)
    assert Law(100.0, 0.1, 0.0).peak is None


@pytest.mark.parametrize("values", [[], [0, 1], [2, 1], [1, 1], [-1]])
def test_values_that_make_no_sense(values):
    with pytest.raises(ConfigError, match="each more than the one before"):
        scale(Plan(), "workers", values)


def test_each_number_of_workers_has_a_run_with_as_much_for_each(redis_url):
    found = scale(Plan(jobs=40, kind="io", work_ms=50, concurrency=2), "workers", [1, 2], redis_url)
    assert [each.config.jobs for each in found.results] == [40, 80]
    assert [each.config.workers for each in found.results] == [1, 2]
    assert all(each.result.done == each.config.jobs for each in found.results)
    rates = [each.result.drain_per_s for each in found.results]
    assert found.speed_up(1) == pytest.approx(rates[1] / rates[0])
    assert found.efficiency(1) == pytest.approx(found.speed_up(1) / 2)
    assert found.law is None  # of two points


def command(capsys, *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "scalability", *map(str, arguments)])
    return stopped.value.code, *capsys.readouterr()


def test_a_table_of_workers_with_a_law(capsys, tmp_path):
    file = tmp_path / "scaling.json"
    code, out, _ = command(
        capsys, "--workers-list", "1,2,3,4", "--jobs", 30, "--kind", "io", "--work-ms", 5, "--json", file
    )
    assert code == 0
    head, *lines = out[out.index("Workers") :].splitlines()
    assert head.split() == ["Workers", "Drain", "Speed-up", "Efficiency", "Start", "p50", "Start", "p99", "Memory"]
    assert [line.split()[0] for line in lines[:4]] == ["1", "2", "3", "4"]
    assert "universal scalability law" in out
    written = json.loads(file.read_bytes())
    assert (written["kind"], written["axis"], written["values"]) == ("spool-bench-scaling", "workers", [1, 2, 3, 4])
    assert [each["result"]["done"] for each in written["results"]] == [30, 60, 90, 120]
    assert written["law"]["rate"] > 0


def test_without_scipy_there_is_a_table_and_no_law(capsys, monkeypatch, redis_url):
    monkeypatch.setitem(sys.modules, "scipy", None)
    code, out, err = command(capsys, "--workers-list", "1,2,3,4", "--jobs", 10, "--url", redis_url)
    assert code == 0
    assert len(out[out.index("Workers") :].splitlines()) == 5
    assert "spool-queue[bench]" in err


@pytest.mark.parametrize(
    ("option", "head", "rows"), [("--payloads", "Payload", ["10", "1,000"]), ("--depths", "Depth", ["10", "1,000"])]
)
def test_other_things_are_varied(capsys, option, head, rows):
    code, out, _ = command(capsys, option, "10,1k", "--jobs", 20)
    assert code == 0
    lines = out[out.index(f"{head} ") :].splitlines()[1:]
    assert [line.split()[0] for line in lines] == rows


@pytest.mark.parametrize(
    "wrong", [["--workers-list", "1,x"], ["--workers-list", "2,1"], ["--payloads", "1", "--depths", "1"]]
)
def test_what_makes_no_sense_is_said_before_the_run(capsys, wrong):
    code, out, err = command(capsys, *wrong)
    assert (code, out) == (2, "")
    assert err
