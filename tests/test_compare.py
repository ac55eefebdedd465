"""`spool bench compare`: what is said of two results."""

import math
import random
import sys
from typing import Any

import msgspec
import pytest

from spool.bench import BenchResult, Plan, run
from spool.bench.calibrate import Calibration, drift
from spool.bench.compare import CONFIDENCE, METRICS, UNSEEN, Change, Comparison, change, compare
from spool.bench.limit import limit
from spool.cli import main
from spool.errors import ConfigError

THROUGHPUT = next(metric for metric in METRICS if metric.name == "throughput")
LATENCY = next(metric for metric in METRICS if metric.name == "start p99")


def noisy(dice: random.Random, middle: float, count: int, spread: float = 0.03) -> list[float]:
    return [middle * dice.lognormvariate(0, spread) for _ in range(count)]


def verdicts(ratio: float, *, paired: bool) -> list[str]:
    dice, count = random.Random(7), 14 if paired else 10
    found = []
    for _ in range(200):
        weather = noisy(dice, 1.0, count, 0.2) if paired else [1.0] * count
        before = [value * each for value, each in zip(noisy(dice, 1000, count), weather, strict=True)]
        after = [value * each for value, each in zip(noisy(dice, 1000 * ratio, count), weather, strict=True)]
        found.append(change(THROUGHPUT, before, after, paired=paired).verdict)
    return found


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_the_same_is_called_the_same(paired):
    found = verdicts(1.0, paired=paired)
    assert found.count("no difference") > 180
    assert found.count("faster") + found.count("slower") <= 2  # of 200, with 99 % confidence


@pytest.mark.parametrize("paired", [True, False])
def test_a_tenth_less_is_found(paired):
    found = verdicts(0.9, paired=paired)
    assert found.count("slower") > 180
    assert "faster" not in found


def test_less_than_a_tenth_is_found_where_it_is_known_well():
    """5 % less, give or take nothing, is less, and 2 % are too little to be called anything."""
    before = [1000.0 + each for each in range(-5, 5)]
    assert change(THROUGHPUT, before, [950.0] * 10, paired=True).verdict == "slower"
    assert change(THROUGHPUT, before, [980.0] * 10, paired=True).verdict == "no difference"


@pytest.mark.parametrize("weather", ["calm", "spikes", "walk"])
def test_the_interval_of_pairs_has_what_is_true_as_often_as_it_says(weather):
    """However often it is looked at: as `spool bench ab` does, until it is sure."""
    dice, looks, tries = random.Random(11), (10, 20, 30), 400
    missed = wrong = 0
    for _ in range(tries):
        state, sides = 0.0, ([], [])
        while len(sides[0]) < looks[-1]:
            for side in (0, 1) if len(sides[0]) % 2 == 0 else (1, 0):
                state += dice.gauss(0, 0.025) if weather == "walk" else 0.0
                spoiled = abs(dice.gauss(0, 0.4)) if weather == "spikes" and dice.random() < 0.07 else 0.0
                sides[side].append(1000 * math.exp(state + dice.gauss(0, 0.05) - spoiled))
            if len(sides[0]) in looks:
                found = change(THROUGHPUT, *sides, paired=True, confidence=1 - (1 - CONFIDENCE) / len(looks))
                if found.verdict != "cannot tell":
                    break
        missed += not found.low <= 0 <= found.high
        wrong += found.verdict in ("faster", "slower")
    assert missed <= 10  # 4 are to be expected of 400; with 99 % confidence in each of six looks it were 12
    assert wrong <= missed


@pytest.mark.parametrize("turns", [8, 1], ids=["pairs", "turns taken for pairs"])
def test_the_interval_has_what_lives_of_processes_differ_by(turns):
    """Eight turns of one life have its luck in common: who takes them for eight pairs is wrong far too often."""
    dice, tries, missed = random.Random(7), 300, 0
    for _ in range(tries):
        sides = [], []
        for _ in range(10):
            lives = dice.gauss(0, 0.02), dice.gauss(0, 0.02)
            for side, life in zip(sides, lives, strict=True):
                side += [1000 * math.exp(life + dice.gauss(0, 0.03)) for _ in range(8)]
        found = change(THROUGHPUT, *sides, paired=True, turns=turns)
        missed += not found.low <= 0 <= found.high
    if turns == 8:
        assert missed <= 8  # 3 are to be expected of 300; more than 8 come once in 300 times
    else:
        assert missed > 15


def test_a_pair_is_the_middle_of_its_turns():
    before, after = [100.0] * 8, [110.0, 110.0, 110.0, 110.0, 300.0, 20.0, 110.0, 110.0]
    assert change(THROUGHPUT, before * 2, after * 2, paired=True, turns=8).change == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="15 runs are not pairs of 8 turns"):
        change(THROUGHPUT, [1.0] * 15, [1.0] * 15, paired=True, turns=8)


def test_one_pair_that_the_machine_spoiled_does_not_count():
    before, after = [1000.0 + each for each in range(10)], [1003.0 - each for each in range(10)]
    assert change(THROUGHPUT, before, after, paired=True).verdict == "no difference"
    assert change(THROUGHPUT, before, [500.0, *after[1:]], paired=True).verdict == "no difference"
    assert change(THROUGHPUT, before, [500.0, 500.0, *after[2:]], paired=True).verdict == "cannot tell"


def test_a_pair_of_which_one_side_was_not_measured_is_left_out(results):
    before, after = (
        msgspec.structs.replace(
            each,
            runs=[msgspec.structs.replace(run, worker_cpu_us=cpu) for run, cpu in zip(each.runs, cpus, strict=True)],
        )
        for each, cpus in zip(results, ([1.0, 2.0, 3.0], [10.0, None, 30.0]), strict=True)
    )
    found = {each.metric: each for each in compare(before, after, paired=True).changes}
    assert found["throughput"].verdict == "slower"
    assert (found["worker CPU"].before, found["worker CPU"].after) == (2.0, 20.0)
    with pytest.raises(ConfigError, match="3 and 2"):
        compare(before, msgspec.structs.replace(after, runs=after.runs[:2]), paired=True)


def test_more_latency_is_slower():
    assert change(LATENCY, [1.0, 1.01, 0.99], [2.0, 2.02, 1.98]).verdict == "slower"
    assert change(LATENCY, [2.0, 2.02, 1.98], [1.0, 1.01, 0.99]).verdict == "faster"


def test_one_run_of_each_tells_nothing():
    found = change(THROUGHPUT, [100.0], [50.0])
    assert (found.change, found.low, found.high, found.verdict) == (-0.5, None, None, "cannot tell")


def test_a_machine_that_drifted_as_far_explains_it():
    before, after = [100.0, 101.0, 99.0], [80.0, 81.0, 79.0]
    assert change(THROUGHPUT, before, after, apart=0.1).verdict == "slower"
    assert change(THROUGHPUT, before, after, apart=0.25).verdict == "cannot tell"


def test_separate_runs_are_apart_by_more_than_their_calibrations_see(results):
    """The weather of a whole run is in no repetition's spread, and not all of it is in the calibrations."""
    before, after = results  # with calibrations that are all the same

    def compared(per_s: float) -> Change:
        runs = [msgspec.structs.replace(each, per_s=per_s) for each in after.runs]
        return compare(before, msgspec.structs.replace(after, runs=runs)).changes[0]

    assert compared(985.0).low < 0 < compared(985.0).high
    assert compared(900.0).verdict == "slower"
    assert compared(900.0).high == pytest.approx(0.9 * math.exp(UNSEEN) - 1, abs=1e-4)


def test_nothing_measured_is_nothing_to_compare():
    assert change(THROUGHPUT, [], [1.0]) == Change("throughput", "/s", None, 1.0)
    assert change(LATENCY, [0.0, 0.0], [1.0, 1.0]).verdict == "cannot tell"


def test_pairs_are_pairs():
    with pytest.raises(ConfigError, match="2 and 1"):
        change(THROUGHPUT, [1.0, 2.0], [1.0], paired=True)


def test_drift_is_that_of_the_loop_which_drifted_more():
    calm = [Calibration(100, 100), Calibration(100, 100)]
    assert drift(calm, calm) == 1
    assert drift(calm, [Calibration(100, 50), Calibration(100, 50)]) == 2
    assert drift([Calibration(100, 100), Calibration(64, 100)], calm) == pytest.approx(100 / 82 * 1.25)
    assert drift([], calm) is None


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("throughput<-5%", "broken"),
        ("throughput < -18 %", "broken"),
        ("throughput<-19%", "cannot tell"),
        ("throughput<-22%", "kept"),
        ("throughput>5%", "kept"),
        ("throughput>-20%", "cannot tell"),
        ("throughput>-23%", "broken"),
        ("memory>5%", "cannot tell"),
    ],
)
def test_a_limit_is_broken_or_kept_by_the_whole_interval(text, held):
    found = Comparison([Change("throughput", "/s", 100.0, 80.0, -0.2, -0.22, -0.181, "slower")], [], 0.0)
    assert limit(text).judge(found) == held


@pytest.mark.parametrize("text", ["", "throughput", "speed<-5%", "throughput<-5", "throughput=5%"])
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="is no limit"):
        limit(text)


@pytest.fixture(scope="module")
def results() -> tuple[BenchResult, BenchResult]:
    """A result, and the same with half of the throughput, to the last repetition."""
    one = run(Plan(jobs=30, workers=1), repeat=3)
    before = msgspec.structs.replace(one, runs=[msgspec.structs.replace(each, per_s=1000.0) for each in one.runs])
    after = msgspec.structs.replace(one, runs=[msgspec.structs.replace(each, per_s=500.0) for each in one.runs])
    calm = [Calibration(100.0, 100.0)] * 6
    return (
        msgspec.structs.replace(before, calibrations=calm),
        msgspec.structs.replace(after, calibrations=calm, config=Plan(jobs=30, workers=1, payload=9)),
    )


def test_each_repetition_is_kept_and_calibrated():
    document = run(Plan(jobs=20, workers=1), repeat=2)
    assert len(document.runs) == 2
    assert document.result in document.runs
    assert len(document.calibrations) == 4
    assert all(each.cpu > 0 and each.store > 0 for each in document.calibrations)


@pytest.fixture
def compared(results, tmp_path, capsys):
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, result in zip(paths, results, strict=True):
        path.write_bytes(msgspec.json.encode(result))

    def compared(*options: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["bench", "compare", *map(str, paths), *options])
        return stopped.value.code, *capsys.readouterr()

    return compared


def test_results_are_compared_on_the_command_line(compared):
    code, out, _ = compared()
    assert code == 0
    assert "not the same: payload: 1024, then 9" in out
    assert "-50.0%" in next(line for line in out.splitlines() if line.startswith("throughput"))
    assert "slower" in out


def test_a_broken_limit_exits_with_1(compared):
    assert compared("--fail-if", "throughput<-5%")[::2] == (1, "broken: throughput<-5%\n")
    assert compared("--fail-if", "throughput<-52%")[0] == 0
    assert compared("--fail-if", "speed<5%")[0] == 2


def test_a_limit_that_cannot_be_told_exits_with_3(compared, results, tmp_path):
    for name, document in zip(("before", "after"), results, strict=True):
        once = msgspec.structs.replace(document, runs=document.runs[:1])
        (tmp_path / f"{name}.json").write_bytes(msgspec.json.encode(once))
    code, _, err = compared("--fail-if", "throughput<-5%")
    assert code == 3
    assert err.startswith("cannot tell: throughput<-5%")
    # A limit that is broken says more than one that cannot be told.
    (tmp_path / "after.json").write_bytes(msgspec.json.encode(results[1]))
    (tmp_path / "before.json").write_bytes(msgspec.json.encode(results[0]))
    assert compared("--fail-if", "throughput<-5%", "--fail-if", "throughput<-50%")[0] == 1


def test_without_scipy_it_is_said_at_once(compared, monkeypatch):
    for name in ("scipy", "scipy.special"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, err = compared()
    assert (code, out) == (2, "")
    assert "pip install 'spool-queue[bench]'" in err


def test_a_comparison_for_a_pull_request_and_for_programs(compared):
    assert "| throughput | 1,000 /s | 500.00 /s | -50.0% |" in compared("--markdown")[1]
    (found,) = msgspec.json.decode(compared("--json")[1], type=list[dict[str, Any]])
    assert msgspec.convert(found["comparison"], Comparison).changes[0].verdict == "slower"


def test_what_is_no_result_is_said(compared, tmp_path):
    (tmp_path / "after.json").write_text("{}")
    code, _, err = compared()
    assert code == 2
    assert "after.json is no result of spool bench" in err


def test_a_comparison_is_json():
    found = Comparison([change(THROUGHPUT, [100.0, 101.0], [100.0, 101.0])], ["payload: 1, then 2"], 0.0)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found
