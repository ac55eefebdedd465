"""``spool jobs``: look at jobs, cancel, retry and delete them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click

from spool.cli.output import console, moment, print_json, print_table, printable
from spool.cli.store import (
    Choice,
    act_on_chosen,
    act_on_named,
    choice_options,
    get_job,
    json_option,
    opened,
    url_option,
)
from spool.job import Job, State

if TYPE_CHECKING:
    from spool.broker import Action

# Cancelling goes along a job's way, so that one which moves on meanwhile is met again.
_CANCELLABLE = (State.SCHEDULED, State.PARKED, State.READY, State.SUSPECT, State.RUNNING)
_DELETABLE = (State.SCHEDULED, State.PARKED, State.READY, State.SUSPECT, State.DEAD, State.CANCELLED, State.DONE)

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def jobs() -> None:
    """Look at jobs; cancel, retry or delete them.

    A job is named QUEUE/ID, or by its ID alone.
    """


@jobs.command("list")
@url_option
@choice_options
@click.option("--state", type=click.Choice([each.value for each in State]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@json_option
def list_jobs(
    *, url: str | None, queue: str | None, task: str | None, state: str | None, limit: int, as_json: bool
) -> None:
    """List jobs, those that run first."""
    choice = Choice(queue=queue, task=task, states=[State(state)] if state else ())
    with opened(url) as broker:
        show_list(choice.find(broker), limit, as_json=as_json)


@jobs.command()
@url_option
@click.argument("job")
@click.option("--queue", help="Queue, where JOB is only an id.")
@json_option
def show(*, url: str | None, job: str, queue: str | None, as_json: bool) -> None:
    """Show everything known about one job."""
    with opened(url) as broker:
        show_job(get_job(broker, job, queue), as_json=as_json)


def acting(name: str, what: str, states: tuple[State, ...]) -> Callable[[Callable[[], Action]], click.Command]:
    """Make a command that acts on jobs named, or on all that the options choose, out of what gives the action."""

    def make(action: Callable[[], Action]) -> click.Command:
        @click.command(name, help=f"{what}\n\nName them, or choose them with options.")
        @url_option
        @click.argument("job", nargs=-1)
        @choice_options
        @click.option("--state", type=click.Choice([each.value for each in states]), help="Only jobs in this state.")
        @click.option("--all", "everything", is_flag=True, help="All there are.")
        def command(
            *,
            url: str | None,
            job: Sequence[str],
            queue: str | None,
            task: str | None,
            state: str | None,
            everything: bool,
        ) -> None:
            choice = Choice(queue=queue, task=task, states=[State(state)] if state else states)
            act(url, action(), job, choice, everything=everything, stated=state is not None)

        return command

    return make


def act(
    url: str | None, action: Action, named: Sequence[str], choice: Choice, *, everything: bool, stated: bool = False
) -> None:
    """Act on the jobs named, else on those chosen, and say how many changed."""
    narrowed = stated or not choice.everything
    if named and (everything or choice.task or choice.error or stated):
        raise click.UsageError("either name jobs or choose them with options, not both", click.get_current_context())
    if not named and not narrowed and not everything:
        raise click.UsageError("name the jobs, choose them with options, or say --all", click.get_current_context())
    with opened(url) as broker:
        changed = act_on_named(broker, action, named, choice.queue) if named else act_on_chosen(broker, action, choice)
    click.echo(f"{changed} {'job' if changed == 1 else 'jobs'} changed")


@jobs.add_command
@acting("cancel", "Cancel jobs. Running ones are asked to stop.", _CANCELLABLE)
def cancel_action() -> Action:
    from spool.broker import Cancel

    return Cancel("cancelled from the command line")


@jobs.add_command
@acting("retry", "Put dead jobs back into their queue, with fresh attempts.", (State.DEAD,))
def retry_action() -> Action:
    from spool.broker import Replay

    return Replay()


@jobs.add_command
@acting("delete", "Forget jobs that do not run.", _DELETABLE)
def delete_action() -> Action:
    from spool.broker import Delete

    return Delete()


def show_list(found: Iterable[Job], limit: int, *, as_json: bool) -> None:
    """Print at most ``limit`` jobs, and say on stderr when there are more."""
    shown = list(islice(found, limit + 1))
    if as_json:
        print_json(shown[:limit])
    else:
        rows = [
            (job, job.state, job.task, job.priority, job.attempts, moment(_when(job)), _first_line(job.error))
            for job in shown[:limit]
        ]
        print_table(("job", "state", "task", "priority", "attempts", "since", "error"), rows, numeric=("attempts",))
    if len(shown) > limit:
        click.echo(f"there are more than these {limit}: see --limit", err=True)


def show_job(job: Job, *, as_json: bool) -> None:
    """Print one job in full."""
    if as_json:
        print_json(job)
        return
    fields = [
        ("job", job),
        ("state", job.state),
        ("task", job.task),
        ("priority", job.priority),
        ("created", moment(job.created)),
        ("due", moment(job.due)),
        ("started", moment(job.started)),
        ("finished", moment(job.finished)),
        ("attempts", f"{job.attempts} (failures {job.failures}, crashes {job.crashes}, losses {job.losses})"),
        ("worker", job.worker),
        ("arguments", "" if job.arguments is None else _call(job.arguments)),
        ("result", repr(job.result) if job.state is State.DONE else ""),
        ("error", job.error),
    ]
    out = console()
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        if value != "":
            out.print(f"{name:<{width}}  {printable(value)}", soft_wrap=True)
    if job.history:
        out.print("")
        rows = [
            (each.number, each.outcome, moment(each.started), moment(each.ended), each.worker) for each in job.history
        ]
        print_table(("attempt", "outcome", "started", "ended", "worker"), rows, numeric=("attempt",))
    if job.traceback:
        out.print("\n" + printable(job.traceback.rstrip(), lines=True), soft_wrap=True)


def _when(job: Job) -> int | None:
    if job.state is State.SCHEDULED:
        return job.due
    if job.state.terminal:
        return job.finished
    return job.started if job.state is State.RUNNING else job.created


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:100]


def _call(arguments: tuple[list[Any], dict[str, Any]]) -> str:
    args, kwargs = arguments
    return ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
