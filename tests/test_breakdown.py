"""Where the time goes: the sums, what is named as the bottleneck, and whether it is what was put there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from spool.bench import BenchResult, Plan, run
from spool.bench.account import Settles
from spool.bench.bottleneck import _WORDS, GUIDE, bottleneck, line
from spool.bench.breakdown import (
    JOB_ROWS,
    WORKER_ROWS,
    Breakdown,
    Sum,
    Window,
    cost_of,
    job_sum,
    journeys,
    sqlite_rows,
    summed,
    worker_sum,
)
from spool.bench.plan import TaskCall
from spool.bench.profiled import Looker, breakdown_of, task_kind
from spool.bench.sampler import Sample, Sampler, _descendants, _Pace
from spool.bench.stacks import in_handlers, part_of, shares
from spool.bench.storeload import load_of
from spool.bench.timing import Gauge, Ran, Trip
from spool.chaos.proxy import Network
from spool.errors import ProfileError
from spool.profile import CPU_TYPES, Frame, Profile, read
from spool.profile import Sample as Stack
from spool.profile.table import top
from tests.eventually import eventually
from tests.redis_server import RedisServer

ROOT = Path(__file__).parent.parent
needs_linux = pytest.mark.skipif(bool(Sampler.missing()), reason=Sampler.missing())
SPOOL = str(ROOT / "src" / "spool") + "/"


# The job's sum


def test_the_parts_of_a_job_follow_each_other_without_a_gap():
    trips = [
        Trip("enqueue", 110, 150, ["a", "b"]),
        Trip("claim", 170, 200, ["a"]),
        Trip("claim", 120, 140, ["b"]),  # claimed before its enqueue was acknowledged
    ]
    settles = [Settles(300, ["a"], [("b", "Died")], sent=260)]
    parts = journeys({"a": 100, "b": 100}, trips, [Ran("a", 210, 240), Ran("b", 145, 250)], settles)
    assert parts == [[50, 20, 30, 10, 30, 20, 40], [40, 0, 0, 5, 105, 10, 40]]
    assert [sum(each) for each in parts] == [200, 200]


def test_a_job_that_was_claimed_twice_or_not_settled_tells_nothing():
    trips = [Trip("enqueue", 1, 2, ["a", "b"]), Trip("claim", 3, 4, ["a", "b"])]
    settles = [Settles(9, ["a"], sent=8)]
    again = Trip("claim", 5, 6, ["a"])
    runs = [Ran("a", 6, 7), Ran("b", 6, 7), Ran("warm-up", 6, 7)]
    assert journeys({"a": 0, "b": 0}, [*trips, again], runs, settles) == []


def test_what_the_clock_has_beyond_the_parts_is_a_row_of_its_own():
    found = job_sum([[1000] * 7, [3000] * 7], 20_000.0)
    assert [row.us for row in found.rows] == [2.0] * len(JOB_ROWS)
    assert (found.unaccounted_us, found.clock_us, found.samples) == (6.0, 20.0, 2)


# The worker's sum


def look(
    at: int, main: str = "poll", *, gauge=(0, 0, 0, 0), others=None, cpu: int = 0, delay: int = 0, children: int = 0
):
    return Sample(1, at, cpu, delay, gauge, main, others or {}, children)


def window(*samples: Sample, end: int = 100) -> Window:
    return Window(1, 0, end, samples, {1: "MainThread", 2: "spool-1", 3: "spool-sqlite"})


def waits(*samples: Sample, kind="async") -> dict[str, float]:
    found = worker_sum([window(*samples)], {}, 1, kind)
    return {row.key: round(row.us * 1000) for row in found.rows if row.us}


@pytest.mark.parametrize(
    ("sample", "key"),
    [
        (look(100, "gil"), "gil"),
        (look(100, "lock"), "gil"),
        (look(100, "gil", others={3: "running"}), "gil"),
        (look(100, "gil", others={2: "running"}), "handler_gil"),
        (look(100, others={2: "running"}, gauge=(1, 0, 0, 9)), "handler_elsewhere"),
        (look(100, children=1), "handler_elsewhere"),
        (look(100, "sleep"), "blocked"),
        (look(100, gauge=(1, 0, 0, 9)), "broker"),
        (look(100, gauge=(0, 1, 0, 0)), "broker"),
        (look(100, gauge=(0, 1, 0, 9)), "slots"),
        (look(100, gauge=(0, 0, 1, 9)), "nothing"),
        (look(100, gauge=(0, 1, 1, 0)), "nothing"),
        (look(100, gauge=(0, 0, 5, 1)), "broker"),  # it listens, and there are jobs: it has yet to hear of them
        (look(100), "nothing"),
    ],
)
def test_what_a_loop_waits_for(sample, key):
    assert waits(look(0), sample) == {key: 100}


def test_a_full_pool_of_processes_is_no_lack_of_work():
    assert waits(look(0), look(100, gauge=(0, 0, 5, 4)), kind="process") == {"slots": 100}
    assert waits(look(0), look(100, gauge=(0, 0, 3, 4)), kind="process") == {"nothing": 100}


def test_each_look_stands_for_the_time_since_the_one_before_within_the_window():
    samples = look(-50), look(40, "sleep"), look(60, "running"), look(500)
    assert waits(*samples) == {"blocked": 40, "nothing": 40}


def test_time_on_a_processor_is_the_kernels_and_not_what_samples_say():
    samples = [look(0, cpu=0), look(50, cpu=30, delay=5), look(150, "running", cpu=50, delay=25)]
    found = worker_sum([window(*samples)], {"handler": 0.75, "loop": 0.25}, 1, "async")
    # Until 50 the clock has 35 and the sample says idle for 50; of the 100 thereafter half lie in the window.
    assert (found.us("handler") * 1000, found.us("loop") * 1000, found.us("processor") * 1000) == (30, 10, 15)
    assert found.us("nothing") * 1000 == 50
    assert found.unaccounted_us * 1000 == pytest.approx(100 - 30 - 10 - 15 - 50)
    assert found.clock_us * 1000 == 100


def test_time_of_which_no_stack_was_seen_is_not_lost():
    samples = [look(0), look(100, "running", cpu=100)]
    found = worker_sum([window(*samples)], {"handler": 0.0, "loop": 0.0}, 1, "async")
    assert (found.us("loop") * 1000, found.unaccounted_us) == (100, 0)


def test_windows_of_several_processes_are_one_sum():
    one = window(look(0), look(100))
    found = worker_sum([one, one], {}, 4, "async")
    assert (found.clock_us, found.us("nothing"), found.samples) == (0.05, 0.05, 2)


def test_sqlites_thread_works_beside_the_loop():
    rows, busy = sqlite_rows(
        [window(look(0), look(60, others={3: "running"}), look(90, others={3: "file"}), look(100, others={3: "gil"}))],
        10,
    )
    assert (rows, busy) == ({"cpu": 6.0, "disk": 3.0, "gil": 1.0}, 0.9)


# Stacks


ATTEMPT = Frame("Executor.attempt", SPOOL + "executor/__init__.py", 1)


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        ([ATTEMPT], "loop"),
        ([ATTEMPT, Frame("Signature.read", SPOOL + "payload.py", 1)], "decode"),
        ([ATTEMPT, Frame("done", SPOOL + "executor/attempt.py", 1)], "encode"),
        ([ATTEMPT, Frame("Task.encode_result", SPOOL + "task.py", 1)], "encode"),
        ([ATTEMPT, Frame("noting_async", SPOOL + "bench/usertask.py", 1)], "loop"),
        ([ATTEMPT, Frame("make.<locals>.noop", SPOOL + "bench/load.py", 1)], "handler"),
        ([ATTEMPT, Frame("Executor._invoke", SPOOL + "executor/__init__.py", 1), Frame("f", "a.py", 1)], "handler"),
        ([ATTEMPT, Frame("f", "a.py", 1), Frame("Task.aenqueue", SPOOL + "task.py", 1)], "handler"),
        ([ATTEMPT, Frame("_Member.hear", SPOOL + "executor/pool.py", 1), Frame("f", "sockets.py", 1)], "loop"),
        ([Frame("Claims._claim", SPOOL + "worker/claims.py", 1)], "protocol"),
        ([Frame("Wire.data_received", SPOOL + "broker/redis/line.py", 1)], "protocol"),
        ([Frame("Claims._claim", SPOOL + "worker/claims.py", 1), Frame("Intake.start", ATTEMPT.file, 1)], "loop"),
        ([Frame("Claims._claim", SPOOL + "worker/claims.py", 1), Frame("read_record", SPOOL + "job.py", 1)], "decode"),
        ([Frame("Runner.run", "/usr/lib/python3/asyncio/runners.py", 1)], "loop"),
    ],
)
def test_the_part_that_a_stack_belongs_to(stack, part):
    assert part_of([Frame("work", SPOOL + "supervisor/child.py", 1), *stack]) == part


def test_only_the_loops_thread_is_divided():
    samples = [
        Stack((ATTEMPT,), (3, 30, 30), {"thread": "MainThread"}),
        Stack((ATTEMPT, Frame("f", "a.py", 1)), (1, 10, 10), {"thread": "MainThread"}),
        Stack((Frame("f", "a.py", 1),), (9, 90, 90), {"thread": "spool-1"}),
    ]
    found = shares(Profile("cpu", CPU_TYPES, samples, 10, 30, 0))
    assert (found["loop"], found["handler"], sum(found.values())) == (0.75, 0.25, 1.0)
    assert set(shares(Profile("cpu", CPU_TYPES, [], 10, 30, 0)).values()) == {0}


def test_what_it_takes_to_call_a_handler_in_a_thread_is_not_the_handlers():
    own = Frame("f", "a.py", 1)
    work, call, ours = (Frame(name, SPOOL + "executor/threads.py", 1) for name in ("_work", "_ThreadCall._call", "x"))
    threading = Frame("Thread.run", "/usr/lib/python3/threading.py", 1)

    def stack(*frames: Frame, times: int) -> Stack:
        return Stack((threading, *frames), (times, times, times), {"thread": "spool-1"})

    samples = [stack(work, times=2), stack(work, call, times=1), stack(work, call, own, times=9)]
    assert in_handlers(Profile("cpu", CPU_TYPES, samples, 10, 30, 0)) == 0.75
    assert in_handlers(Profile("cpu", CPU_TYPES, [stack(ours, times=1)], 10, 30, 0)) == 0.0
    assert in_handlers(Profile("cpu", CPU_TYPES, [stack(own, times=5)], 10, 30, 0)) == 1.0
    found = worker_sum([window(look(0), look(100, children=1))], {}, 1, "thread", own=0.75)
    assert (found.us("handler_elsewhere") * 1000, found.us("threads") * 1000) == (75, 25)


# The bottleneck


@pytest.mark.parametrize(
    ("parts", "busy", "kind", "named"),
    [
        ({"handler": 40, "loop": 30, "broker": 30}, 0.9, "async", "handler"),
        ({"handler_gil": 30, "handler_elsewhere": 30, "slots": 35}, 0.0, "thread", "handler"),
        ({"slots": 60, "broker": 40}, 0.0, "async", "waits"),
        ({"slots": 60, "broker": 40}, 0.0, "thread", "pool"),
        ({"slots": 60, "broker": 40}, 0.0, "process", "pool"),
        ({"blocked": 60, "broker": 40}, 0.0, "async", "blocked"),
        ({"broker": 60, "loop": 40}, 0.1, "async", "round trips"),
        ({"broker": 60, "loop": 40}, None, "async", "round trips"),
        ({"broker": 60, "loop": 40}, 0.7, "async", "store"),
        ({"gil": 60, "loop": 40}, 0.7, "async", "interpreter"),
        ({"processor": 60, "loop": 40}, 0.7, "async", "processor"),
        ({"decode": 20, "encode": 20, "protocol": 20, "broker": 40}, 0.7, "async", "worker"),
        ({"nothing": 60, "loop": 40}, 0.7, "async", "producer"),
    ],
)
def test_the_largest_part_is_named(parts, busy, kind, named):
    found = bottleneck(summed(WORKER_ROWS, parts, 100.0, 1), busy, kind, sqlite=False)
    assert found.kind == named
    assert f"({found.share:.0%} of the workers' time)" in line(found)


def test_sqlite_is_never_far_away():
    parts = summed(WORKER_ROWS, {"broker": 60.0}, 100.0, 1)
    assert bottleneck(parts, 0.0, "async", sqlite=True).kind == "store"


def test_each_section_that_is_named_is_in_the_guide():
    titles = [each.lstrip("# ") for each in (ROOT / GUIDE).read_text().splitlines() if each.startswith("## ")]
    anchors = {title.lower().replace(" ", "-").replace("`", "").replace(",", "") for title in titles}
    assert {words.section for words in _WORDS.values()} <= anchors


# The cost


def test_the_cost_of_looking_is_that_of_pairs():
    assert cost_of([]).pairs == 0
    assert msgspec.structs.astuple(cost_of([(100.0, 90.0)])) == (10.0, None, 1)
    found = cost_of([(100.0, 99.0), (100.0, 97.0), (100.0, 98.0)])
    assert (found.percent, found.plus_minus) == (2.0, 2.48)  # 4.30 · 1/√3
    assert cost_of([(100.0, 99.0)] * 20).plus_minus == 0.0


# The truth


def looked(plan: Plan, url: str | None = None) -> tuple[Breakdown, Looker]:
    """Return what is found, with the bottleneck named as if there were processors for all: this is a busy machine."""
    looker = Looker(plan, "worker")
    document = run(plan, url, observer=looker)
    result = document.result
    assert (result.done, result.lost, result.duplicated) == (plan.jobs, 0, 0)
    sqlite = document.broker.kind == "sqlite"
    found = breakdown_of(plan, [looker], [], sqlite=sqlite)
    assert found.worker is not None
    alone = msgspec.structs.replace(found.worker, rows=[row for row in found.worker.rows if row.key != "processor"])
    named = bottleneck(alone, found.store_busy, task_kind(plan), sqlite=sqlite)
    return msgspec.structs.replace(found, bottleneck=named), looker


def adds_up(found: Sum) -> None:
    assert abs(found.unaccounted_us) < 0.1 * found.clock_us, found
    assert sum(row.us for row in found.rows) + found.unaccounted_us == pytest.approx(found.clock_us, abs=0.1)


def own(task: str, seconds: float, **more: object) -> Plan:
    call = TaskCall(f"tests.measured_shop:{task}", [seconds])
    return Plan(workers=1, kind="task", task=call, prefill=True, **more)


# Multiples of seven: then the middle one of each seven stands for them all, where they have waited ever longer. Two
# seconds and more, for on a busy machine there are some fifty samples in one, which is too few for a sum within 10 %.
LOADS = {
    "handler": Plan(workers=1, jobs=588, kind="cpu", work_ms=5.0, concurrency=4, prefill=True),
    "waits": Plan(workers=1, jobs=140, kind="io", work_ms=150.0, concurrency=10, prefill=True),
    "pool": own("in_thread", 0.1, jobs=42, concurrency=2),
    "a pool of processes": own("in_process_for", 0.1, jobs=56),
    "blocked": own("blocking", 0.03, jobs=70),
}


@needs_linux
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("name", "on_redis"),
    [
        *((name, False) for name in LOADS),
        *((name, True) for name in ("handler", "waits", "pool", "a pool of processes")),
    ],
)
def test_what_was_put_there_is_named_and_the_sums_add_up(name, on_redis, request):
    url = request.getfixturevalue("redis_url") if on_redis else None
    found, looker = looked(LOADS[name], url)
    assert found.worker is not None
    assert found.bottleneck is not None
    assert found.bottleneck.kind == {"a pool of processes": "pool"}.get(name, name), found
    adds_up(found.worker)
    adds_up(found.job)
    assert found.job.samples >= LOADS[name].jobs // 8
    if name == "handler":
        assert top(of_handlers(looker.profile))[0].function == "_compute"
    if name == "waits":
        assert found.job.us("handler") >= 149_000  # the loop's timers go by its own time, in whole milliseconds


def of_handlers(profile: Profile | None) -> Profile:
    """Leave out the threads that on a busy machine run as often, if only to see that it is not their turn."""
    assert profile is not None
    handlers = [each for each in profile.samples if re.fullmatch(r"spool-\d+", each.labels["thread"])]
    return msgspec.structs.replace(profile, samples=handlers)


@needs_linux
@pytest.mark.timeout(180)
def test_a_store_that_is_far_away_is_told_from_one_that_works():
    plan = Plan(workers=1, jobs=3000, prefill=True)
    with RedisServer() as server:
        network = Network(server.port)
        try:
            gate = network.gate()
            network.set(0, "delay", 0.015)
            found, _ = looked(plan, f"redis://127.0.0.1:{gate}/0")
        finally:
            network.close()
    assert found.worker is not None
    assert found.bottleneck is not None
    assert found.bottleneck.kind == "round trips", found
    adds_up(found.worker)
    adds_up(found.job)
    assert {row.key for row in found.store} == {"scripts", "processor"}
    assert found.job.us("settle") >= 15_000


@needs_linux
@pytest.mark.timeout(180)
def test_a_commit_for_each_job_is_the_stores_time():
    found, _ = looked(Plan(workers=1, jobs=8000, concurrency=1, prefill=True))
    assert found.worker is not None
    assert found.bottleneck is not None
    assert found.bottleneck.kind == "store", found
    adds_up(found.worker)
    assert {row.key for row in found.store} == {"cpu", "disk", "gil"}


@needs_linux
@pytest.mark.timeout(180)
def test_the_sum_adds_up_where_loop_and_store_take_turns_on_two_processors():
    call = TaskCall("tests.measured_shop:apart", [])
    found, _ = looked(Plan(workers=1, jobs=8000, concurrency=1, kind="task", task=call, prefill=True))
    assert found.worker is not None
    adds_up(found.worker)


@pytest.mark.parametrize("waits", [True, False])
def test_who_waits_is_looked_at_more_often_than_who_works(waits, monkeypatch):
    spent = iter(range(0, 10**9, 300_000))  # a look takes 0.3 ms
    monkeypatch.setattr("spool.bench.sampler.time.thread_time", lambda: next(spent) / 1e9)
    pace, ms = _Pace(), 1_000_000
    pauses = [pace.after([look(at * ms, cpu=0 if waits else at * ms)]) for at in range(1, 100)]
    assert pauses[-1] == pytest.approx(0.01 if waits else 0.03, rel=0.05)


@needs_linux
def test_looks_come_from_each_processor_in_turn(tmp_path):
    Gauge().open(tmp_path)
    seen: set[int] = set()

    def seen_all() -> bool:
        if len(now := os.sched_getaffinity(sampler)) == 1:
            seen.update(now)
        return seen == os.sched_getaffinity(0)

    before = set(_descendants(os.getpid()))
    with Sampler([os.getpid()], tmp_path) as looks:
        (sampler,) = set(_descendants(os.getpid())) - before
        assert eventually(seen_all)
        assert looks.stop()


@needs_linux
@pytest.mark.timeout(180)
def test_workers_without_work_wait_for_the_producer():
    found, _ = looked(Plan(workers=1, jobs=120, rate=100.0))
    assert found.worker is not None
    assert found.bottleneck is not None
    assert found.bottleneck.kind == "producer", found
    adds_up(found.worker)


def test_a_process_that_is_gone_is_said_to_be(tmp_path):
    with pytest.raises(ProfileError, match="what the workers wait for cannot be seen"), Sampler([2**22 + 1], tmp_path):
        pass


def test_a_server_that_does_not_tell_is_no_error():
    assert load_of("redis://127.0.0.1:1/0") == {}
    assert load_of("sqlite:///x.db") == {}


@pytest.mark.timeout(180)
def test_the_producers_profile_is_of_its_enqueues():
    plan = Plan(workers=1, jobs=20_000)
    looker = Looker(plan, "producer")
    assert run(plan, observer=looker).result.done == plan.jobs
    assert looker.producer is not None
    assert {each.labels["pid"] for each in looker.producer.samples} == {str(os.getpid())}
    found = {row.function.rpartition(".")[2]: row.cumulative for row in top(looker.producer)}
    assert found["enqueue_many"] > 0


@pytest.mark.timeout(180)
def test_the_command_writes_profiles_of_both_sides(tmp_path):
    command = [sys.executable, "-m", "spool", "bench", "profiled", "--task", "tests.hot_shop:work", "--args", "[0.02]"]
    command += [
        "--concurrency",
        "2",
        "--jobs",
        "40",
        "--seconds",
        "0",
        "--pairs",
        "1",
        "--side",
        "both",
        "--producers",
        "2",
    ]
    command += ["--output", str(tmp_path), "--json", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    assert top(of_handlers(read(tmp_path / "cpu.prof")))[0].function in {"grind", "grind.<locals>.<genexpr>"}
    assert top(read(tmp_path / "mem.prof"))[0].function == "hoard"
    for kind in ("cpu", "mem"):
        sides = [read(tmp_path / f"{side}{kind}.prof") for side in ("", "producer-")]
        workers, producers = ({each.labels["pid"] for each in profile.samples} for profile in sides)
        assert workers
        assert producers
        assert not workers & producers
    document = msgspec.json.decode((tmp_path / "result.json").read_bytes(), type=BenchResult)
    assert (document.config.jobs, len(document.runs)) == (40, 1)
    found = document.breakdown
    assert found is not None
    assert found.cost.pairs == 1
    if found.worker is not None:
        assert found.bottleneck is not None
        assert line(found.bottleneck) in done.stdout
        assert found.bottleneck.kind in {"handler", "processor"}  # the latter on a busy machine, which is the truth
    assert "Sampling costs" in done.stdout
    assert documented(found) == leaves(json.loads((tmp_path / "result.json").read_text())["breakdown"], "breakdown")


def leaves(value: object, path: str) -> set[str]:
    if not isinstance(value, dict):
        return {path}
    return {leaf for name, each in value.items() for leaf in leaves(each, f"{path}.{name}")}


def documented(found: Breakdown) -> set[str]:
    text = (ROOT / "docs" / "reference" / "bench-result.md").read_text()
    fields = set(re.findall(r"^\| `(breakdown\..*?)` \|", text, re.MULTILINE))
    for name in ("worker", "bottleneck"):
        if getattr(found, name) is None:
            fields = {each for each in fields if not each.startswith(f"breakdown.{name}.")} | {f"breakdown.{name}"}
    return fields
