"""Which load a benchmark is to carry: the options that its commands share, and the plan that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from spool.cli.measure import check_file
from spool.job import PRIORITIES, Priority

if TYPE_CHECKING:
    from spool.bench import Plan
    from spool.bench.plan import Arrivals, Kind, TaskCall
    from spool.bench.usertask import UserTask

F = TypeVar("F", bound=Callable[..., Any])

_KINDS = ("noop", "cpu", "io", "mixed", "failing")
WORK_MS = {"cpu": 1.0, "io": 10.0, "mixed": 10.0}
_PERCENT = 100
_OF_THE_KIND = ("payload", "kind", "work_ms", "failing")
"""What jobs of a task of the user's do not have."""

url_option = click.option("--url", help="Broker; default a temporary SQLite file.")
json_option = click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, writable=True),
    callback=check_file,
    help="Write the result here; - is stdout only.",
)
html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False, writable=True),
    callback=check_file,
    help="Write a report here: one page, with plots, that needs nothing else.",
)
kind_option = click.option(
    "--kind", type=click.Choice(_KINDS), default="noop", show_default=True, help="What a job does."
)
work_option = click.option(
    "--work-ms", type=click.FloatRange(0), help="How long, for cpu (default 1), io and mixed (default 10)."
)
_OPTIONS = (
    click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes."),
    click.option("--concurrency", type=click.IntRange(1), default=100, show_default=True, help="Jobs at once in each."),
    click.option(
        "--payload", type=click.IntRange(0), default=1024, show_default=True, help="Bytes of text for each job."
    ),
    kind_option,
    work_option,
    click.option(
        "--failing", type=click.FloatRange(0, 100), default=5, show_default=True, help="Percent of kind failing."
    ),
    click.option("--task", metavar="MODULE:TASK", help="Measure a task of yours; or MODULE:APP:TASK."),
    click.option("--args", "args", default="[]", metavar="JSON", help="Its positional arguments, a JSON array."),
    click.option("--kwargs", "kwargs", default="{}", metavar="JSON", help="Its named arguments, a JSON object."),
    click.option("--priority", type=click.Choice(PRIORITIES), help="Default normal, or as the task declares."),
    click.option(
        "--rate", type=click.FloatRange(0), default=0.0, help="Enqueue so many a second, whatever happens (open loop)."
    ),
    click.option(
        "--arrivals",
        type=click.Choice(["poisson", "even"]),
        default="poisson",
        show_default=True,
        help="How jobs come with --rate: as from many independent callers, or all as far apart.",
    ),
    click.option(
        "--warmup",
        type=click.IntRange(0),
        help="Jobs before those that count; default 100 a worker, as far as they take a second.",
    ),
    click.option(
        "--producers", type=click.IntRange(0), default=0, help="Enqueue one by one from so many callers at once."
    ),
    click.option("--prefill", is_flag=True, help="Enqueue everything before the workers start."),
    click.option(
        "--max-seconds", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="Stop after."
    ),
)


def load_options(command: F) -> F:
    """Add the options of a load to a command, which gives them to `make_plan`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_plan(
    jobs: int,
    *,
    workers: int,
    concurrency: int,
    payload: int,
    kind: Kind,
    work_ms: float | None,
    failing: float,
    task: str | None,
    args: str,
    kwargs: str,
    priority: Priority | None,
    rate: float,
    arrivals: Arrivals,
    warmup: int | None,
    producers: int,
    prefill: bool,
    max_seconds: float,
) -> Plan:
    """Return the plan that the options make. A user's task is looked up, and its arguments checked, here and now."""
    from spool.bench import Plan
    from spool.bench.plan import warmup_for

    call, found = _look_up(task, args, kwargs)
    if found is not None:
        kind, payload, priority = "task", found.size, priority or found.settings.priority
    work = WORK_MS.get(kind, 0.0) if work_ms is None else work_ms
    return Plan(
        jobs=jobs,
        workers=workers,
        concurrency=concurrency,
        payload=payload,
        kind=kind,
        task=call,
        work_ms=work,
        failing=failing / _PERCENT,
        priority=priority or "normal",
        rate=rate,
        arrivals=arrivals,
        warmup=warmup_for(jobs, workers, concurrency, work, prefill=prefill) if warmup is None else warmup,
        producers=producers,
        prefill=prefill,
        max_seconds=max_seconds,
    )


def given_options() -> list[str]:
    """Return the options of a load that are on the command line, to be given to another."""
    context = click.get_current_context()
    names = {each.name for each in _parameters()}
    found: list[str] = []
    for parameter in context.command.params:
        if parameter.name in names and _is_given(context, parameter.name):
            value = context.params[parameter.name]
            found += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return found


def _parameters() -> list[click.Parameter]:
    @load_options
    @click.command()
    def command() -> None:
        pass

    return command.params


def _is_given(context: click.Context, name: str | None) -> bool:
    return name is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _look_up(task: str | None, args: str, kwargs: str) -> tuple[TaskCall | None, UserTask | None]:
    context = click.get_current_context()
    if task is None:
        for name in ("args", "kwargs"):
            if _is_given(context, name):
                raise click.UsageError(f"--{name} is of --task, and there is none", context)
        return None, None
    for name in _OF_THE_KIND:
        if _is_given(context, name):
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --task", context)
    from spool.bench.plan import TaskCall
    from spool.bench.usertask import UserTask
    from spool.cli.target import find_here, importing, parsed

    call = TaskCall(task, parsed("--args", args, list), parsed("--kwargs", kwargs, dict))
    find_here()
    with importing(task.partition(":")[0]):
        return call, UserTask(call)
