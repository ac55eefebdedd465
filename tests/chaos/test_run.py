"""Short runs with real processes. Each is told its seed, and says how to have it again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spool.chaos import FAULTS, Outcome, Plan, default_faults, dump_script, load_script, missing
from spool.chaos.audit import Audit, Verdict
from spool.chaos.processes import look
from spool.cli import main
from tests.eventually import eventually
from tests.redis_server import find_redis

REDIS = (
    "kill-child,kill-supervisor,kill-all,stop-worker,deploy,redis-kill,power-loss,cut,reply-lost,maxmemory,corrupt,"
    "segfault,block-loop"
)
SQLITE = "kill-child,kill-supervisor,kill-all,deploy,kill-producer,disk-full,corrupt,exit,recursion,memory,stubborn"


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spool", "chaos", *arguments],
        env=os.environ | {"SPOOL_CHAOS_REDIS": str(find_redis())},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


def outcome(file: Path) -> Outcome:
    return msgspec.json.decode(file.read_bytes(), type=Outcome)


@pytest.mark.parametrize(("broker", "faults", "seed"), [("redis", REDIS, "8"), ("sqlite", SQLITE, "5")])
def test_a_durable_store_loses_nothing(tmp_path, broker, faults, seed):
    file = tmp_path / "result.json"
    options = ("--seconds", "9", "--lease", "1", "--rate", "60", "--workers", "2", "--every", "0.5")
    ran = chaos("--broker", broker, "--faults", faults, "--seed", seed, *options, "--json", str(file))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = outcome(file)
    counts = result.audit.counts
    assert result.ok
    assert {strike.fault for strike in result.strikes} == set(faults.split(","))
    assert counts.acknowledged > 100
    assert counts.completed > 0.8 * counts.acknowledged
    assert (counts.lost, counts.forgotten, counts.waiting, counts.completed_twice) == (0, 0, 0, 0)
    assert {"lost lease", "crashed"} & counts.reruns.keys()


def test_a_store_that_forgets_is_told_from_one_that_loses(tmp_path):
    file, kept = tmp_path / "result.json", tmp_path / "kept"
    options = ("--seconds", "5", "--lease", "1", "--workers", "2", "--processes", "1", "--seed", "1")
    ran = chaos("--durability", "none", "--faults", "redis-kill", *options, "--json", str(file), "--keep", str(kept))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counts = outcome(file).audit.counts
    assert counts.forgotten > 0
    assert counts.lost == 0
    assert "forgotten" in ran.stdout
    assert "again: spool chaos --seed 1 --seconds 5 --broker redis --durability none" in ran.stdout
    assert (kept / "harness.log").stat().st_size > 0
    assert load_script(file).plan == outcome(file).plan


def test_nothing_is_left_of_a_run_that_is_interrupted(tmp_path):
    kept = tmp_path / "kept"
    process = subprocess.Popen(
        [sys.executable, "-m", "spool", "chaos", "--broker", "sqlite", "--no-faults", "--keep", str(kept)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        marks = eventually(lambda: kept.exists() and list((kept / "lives").glob("*")), 30)
    finally:
        process.terminate()
        assert process.wait(30) == 130
    for mark in marks:
        eventually(lambda pid=int(mark.name): (found := look(pid)) is None or found.state in "ZX")


# The command


@pytest.fixture
def run(capsys):
    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["chaos", *arguments])
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, captured.out, captured.err

    return invoke


def test_faults_are_listed(run):
    code, out, _ = run("--list-faults")
    assert code == 0
    assert all(fault in out for fault in FAULTS)


def test_a_printed_schedule_can_be_run_again(run, tmp_path):
    code, out, _ = run("--print-schedule", "--seed", "4", "--seconds", "30")
    assert code == 0
    file = tmp_path / "script.json"
    file.write_text(out)
    assert run("--print-schedule", "--schedule", str(file))[1] == out
    plan = load_script(file).plan
    assert (plan.seed, plan.seconds, plan.faults) == (4, 30.0, default_faults("redis"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--faults", "earthquake"], "earthquake"),
        (["--faults", "disk-full"], "disk-full"),
        (["--workers", "0"], "workers"),
        (["--broker", "sqlite", "--durability", "none"], "durability"),
        (["--schedule", "nowhere.json"], "nowhere.json"),
        (["--json", "nowhere/result.json"], "nowhere"),
    ],
)
def test_wrong_usage_is_2(run, arguments, said):
    code, _, err = run("--seconds", "1", *arguments)
    assert code == 2
    assert said in err


def test_a_directory_that_is_there_already_is_not_written_to(run, tmp_path):
    code, _, err = run("--keep", str(tmp_path), "--no-faults")
    assert code == 2
    assert str(tmp_path) in err


def test_a_system_without_proc_is_told_so(run, monkeypatch):
    monkeypatch.setattr("spool.chaos.look", lambda _: None)
    code, _, err = run("--no-faults")
    assert code == 2
    assert "/proc" in err


def a_result(**more: Any) -> Outcome:
    from spool.chaos.audit import audit
    from tests.chaos.histories import Story

    story = Story()
    story.done("fine")
    story.enqueued("gone")
    found = audit(story.evidence())
    rest: dict[str, Any] = {"recovered_after": 1.0, "fresh_within": 0.1, "left_out": {}, "ok": found.ok, "audit": found}
    return Outcome(version="0", plan=Plan(), strikes=[], struck=[], **rest | more)


def test_a_broken_promise_is_1_and_told_with_examples(run, monkeypatch):
    monkeypatch.setattr("spool.chaos.chaos", lambda *_: a_result())
    code, out, _ = run("--no-faults", "--seed", "9")
    assert code == 1
    assert "BROKEN: no acknowledged job is lost (1)" in out
    assert "gone (quick) was acknowledged and is gone" in out
    assert "again: spool chaos --seed 9" in out


def test_a_kept_promise_is_0_and_json_is_all_there_is(run, monkeypatch):
    good = a_result(ok=True)
    audit = Audit(counts=good.audit.counts, verdicts=[Verdict("a promise", 0)], times=good.audit.times)
    monkeypatch.setattr("spool.chaos.chaos", lambda *_: msgspec.structs.replace(good, audit=audit))
    code, out, _ = run("--no-faults", "--seed", "9", "--json", "-")
    assert code == 0
    assert json.loads(out)["kind"] == "spool-chaos"


def test_what_cannot_strike_here_is_said(run, monkeypatch):
    monkeypatch.setattr("spool.chaos.find_faketime", lambda: None)
    from spool.chaos import Script, schedule

    plan = Plan(faults=("clock", "kill-child"))
    left_out = missing(Script(plan, schedule(plan)))
    assert set(left_out) == {"clock"}
    monkeypatch.setattr("spool.chaos.chaos", lambda *_: a_result(left_out=left_out))
    assert "clock left out: libfaketime is not installed" in run("--no-faults")[1]
    assert dump_script(Script(plan, [])).startswith("{")
