import msgspec
import pytest

from spool.bench import BenchResult, Plan, run
from spool.bench.plan import TaskCall
from spool.bench.report import error_rate
from spool.cli import main
from spool.errors import ArgumentError, ConfigError, SpoolError

SHOP = "tests.measured_shop"


def plan(task: str, *args: object, jobs: int = 20, **more: object) -> Plan:
    return Plan(jobs=jobs, workers=1, kind="task", task=TaskCall(f"{SHOP}:{task}", list(args)), **more)


@pytest.mark.parametrize("on_redis", [False, True], ids=["sqlite", "redis"])
@pytest.mark.parametrize(
    ("task", "args"),
    [("add", [1]), ("in_thread", [0.01]), ("in_process", ["text"])],
    ids=["async", "thread", "process"],
)
def test_a_task_of_ones_own_is_measured_on_a_store_of_the_benchmark(task, args, on_redis, request):
    url = request.getfixturevalue("redis_url") if on_redis else None
    document = run(plan(task, *args, producers=2), url)
    result = document.result
    assert (result.jobs, result.done, result.failed, result.lost, result.duplicated) == (20, 20, 0, 0, 0)
    assert result.latency_ms.start.count == 20
    assert document.config.task == TaskCall(f"{SHOP}:{task}", args)
    if task == "in_thread":
        assert result.latency_ms.done.p50 >= 10


def test_retries_as_declared_are_no_jobs_that_ran_twice():
    result = run(plan("third_time_lucky", jobs=5)).result
    assert (result.done, result.retried, result.duplicated) == (5, 10, 0)
    assert error_rate(result) == 0


def test_attempts_that_are_spent_are_failures():
    result = run(plan("refusing", jobs=3)).result
    assert (result.done, result.dead, result.duplicated) == (0, 3, 0)


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [
        (TaskCall(f"{SHOP}:nothing"), ConfigError, "nothing"),
        (TaskCall(f"{SHOP}:not_a_task"), ConfigError, "not_a_task"),
        (TaskCall("no_such_module:task"), SpoolError, "no_such_module"),
        (TaskCall("without a colon"), ConfigError, "module:task"),
        (TaskCall(f"{SHOP}:add", ["text"]), ArgumentError, "'a'"),
        (TaskCall(f"{SHOP}:add", [1, 2, 3]), ArgumentError, "add"),
        (TaskCall(f"{SHOP}:add", [1], {"c": 1}), ArgumentError, "c"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(task, error, said):
    with pytest.raises(error, match=said):
        run(Plan(jobs=1, workers=1, kind="task", task=task))


def test_the_command(tmp_path, capsys):
    file = tmp_path / "result.json"
    arguments = ["--task", f"{SHOP}:add", "--args", "[1]", "--kwargs", '{"b": 2}', "--jobs", "10", "--json", str(file)]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "custom", *arguments])
    assert ended.value.code == 0
    assert "10 done, 0 failed, 0 lost, 0 run twice" in capsys.readouterr().out
    written = msgspec.json.decode(file.read_bytes(), type=BenchResult)
    assert written.config.task == TaskCall(f"{SHOP}:add", [1], {"b": 2})


@pytest.mark.parametrize("args", ["{}", "[1", "7"])
def test_arguments_that_are_no_json_array(args, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "custom", "--task", f"{SHOP}:add", "--args", args])
    assert ended.value.code == 2
    assert "--args" in capsys.readouterr().err
