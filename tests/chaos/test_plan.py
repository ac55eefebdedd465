import doctest
import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool.chaos import FAULTS, Plan, Script, default_faults, dump_script, load_script, schedule, times
from spool.chaos import plan as plan_module
from spool.chaos.produce import jobs
from spool.errors import ConfigError

plans = st.builds(
    lambda broker, faults, **rest: Plan(
        broker=broker, faults=tuple(name for name in faults if broker in FAULTS[name].brokers), **rest
    ),
    broker=st.sampled_from(["redis", "sqlite"]),
    faults=st.lists(st.sampled_from(list(FAULTS)), unique=True),
    seed=st.integers(0, 1000),
    seconds=st.floats(1.0, 300.0),
    lease=st.floats(0.5, 10.0),
    every=st.sampled_from([0.0, 0.3, 4.0]),
    singly=st.booleans(),
)


@given(plans)
def test_a_schedule_follows_from_the_plan_alone(plan):
    strikes = schedule(plan)
    random.seed(1)
    assert schedule(msgspec.structs.replace(plan)) == strikes
    assert [strike.number for strike in strikes] == list(range(len(strikes)))
    assert strikes == sorted(strikes, key=lambda strike: strike.at)
    for strike in strikes:
        fault = FAULTS[strike.fault]
        assert strike.fault in plan.faults
        assert strike.at >= 0
        assert strike.at + strike.seconds <= plan.seconds + 0.002
        assert fault.shortest * plan.lease - 0.001 <= strike.seconds <= fault.longest * plan.lease + 0.001
        assert 0 <= strike.pick < 1
        assert 0 <= strike.pick2 < 1


def overlap(one, other) -> bool:
    first, second = sorted((one, other), key=lambda strike: strike.at)
    return first.at + first.seconds > second.at + 0.002


@given(plans)
def test_faults_of_the_store_or_the_network_come_one_after_the_other(plan):
    strikes = schedule(plan)
    for lane in ("store", "network"):
        mine = [strike for strike in strikes if FAULTS[strike.fault].subject == lane]
        assert not any(overlap(one, other) for one, other in pairwise(mine))


@given(plans)
def test_singly_means_one_at_a_time(plan):
    strikes = schedule(msgspec.structs.replace(plan, singly=True))
    assert all(other.at >= one.at + one.seconds + plan.lease for one, other in pairwise(strikes))


@pytest.mark.parametrize("broker", ["redis", "sqlite"])
def test_every_fault_strikes_in_an_ordinary_run(broker):
    plan = Plan(broker=broker, faults=default_faults(broker), seconds=300, seed=1)
    struck = {strike.fault for strike in schedule(plan)}
    assert struck == set(plan.faults)


def test_faults_are_combined():
    strikes = schedule(Plan(faults=default_faults("redis"), seconds=120, seed=1))
    assert any(overlap(one, other) for one, other in pairwise(strikes))


def test_another_seed_is_another_schedule():
    faults = default_faults("redis")
    assert schedule(Plan(seed=1, faults=faults)) != schedule(Plan(seed=2, faults=faults))


@pytest.mark.parametrize("module", [plan_module, times])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_no_faults_is_no_strikes():
    assert schedule(Plan()) == []


def test_a_script_survives_its_file(tmp_path):
    plan = Plan(seed=3, faults=("kill-child", "redis-kill"))
    script = Script(plan, schedule(plan))
    file = tmp_path / "script.json"
    file.write_text(dump_script(script))
    assert load_script(file) == script


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "{}",
        '{"plan": {"seconds": -1}, "strikes": []}',
        '{"plan": {"faults": ["earthquake"]}, "strikes": []}',
        '{"plan": {}, "strikes": [{"number": 0, "at": 1, "fault": "disk-full", "seconds": 1, "pick": 0, "pick2": 0}]}',
    ],
)
def test_a_file_that_is_no_script_is_refused(tmp_path, text):
    file = tmp_path / "script.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"script\.json"):
        load_script(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"rate": 0}, "rate"),
        ({"lease": float("inf")}, "lease"),
        ({"grace": -1}, "grace"),
        ({"faults": ("earthquake",)}, "earthquake"),
        ({"broker": "sqlite", "faults": ("redis-kill",)}, "redis-kill"),
        ({"broker": "sqlite", "durability": "none"}, "durability"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Plan(**options)


def test_the_command_says_what_is_not_as_usual():
    assert Plan(seed=5, faults=default_faults("redis")).command == "spool chaos --seed 5 --seconds 60 --broker redis"
    plan = Plan(seed=5, broker="sqlite", lease=1.5, every=2, singly=True, faults=("deploy", "kill-all"))
    assert plan.command == (
        "spool chaos --seed 5 --seconds 60 --broker sqlite --lease 1.5 --every 2 --singly --faults deploy,kill-all"
    )
    assert Plan(seed=5).command.endswith("--no-faults")


def test_what_is_enqueued_follows_from_the_seed():
    def first(seed: int, number: int) -> list:
        return [job for job, _ in zip(jobs(seed, number, 2.0), range(500), strict=False)]

    assert first(1, 1) == first(1, 1)
    assert first(1, 1) != first(2, 1)
    assert len({job.id for job in [*first(1, 1), *first(1, 2)]}) == 1000
    assert {job.task for job in first(1, 1)} == {"quick", "slow", "threaded", "pooled", "flaky", "doomed"}
