"""``spool dead``: the dead letter queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from spool.cli.jobs import act, show_job, show_list
from spool.cli.store import Choice, choice_options, get_job, json_option, opened, url_option
from spool.errors import JobNotFound
from spool.job import State

Command = TypeVar("Command", bound=Callable[..., Any])


def _dead_options(command: Command) -> Command:
    return choice_options(click.option("--error", help="Only jobs whose last error contains this text.")(command))


def _choice(queue: str | None, task: str | None, error: str | None) -> Choice:
    return Choice(queue=queue, task=task, error=error, states=(State.DEAD,))


@click.group()
def dead() -> None:
    """Look after the dead letter queue: jobs whose attempts are spent."""


@dead.command("list")
@url_option
@_dead_options
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@json_option
def list_dead(
    *, url: str | None, queue: str | None, task: str | None, error: str | None, limit: int, as_json: bool
) -> None:
    """List dead jobs, the latest first."""
    with opened(url) as broker:
        show_list(_choice(queue, task, error).find(broker), limit, as_json=as_json)


@dead.command()
@url_option
@click.argument("job")
@click.option("--queue", help="Queue, where JOB is only an id.")
@json_option
def show(*, url: str | None, job: str, queue: str | None, as_json: bool) -> None:
    """Show one dead job with its error, traceback and attempts."""
    with opened(url) as broker:
        found = get_job(broker, job, queue)
        if found.state is not State.DEAD:
            raise JobNotFound(f"job {found} is not dead but {found.state}")
        show_job(found, as_json=as_json)


@dead.command()
@url_option
@click.argument("job", nargs=-1)
@_dead_options
@click.option("--all", "everything", is_flag=True, help="All there are.")
def retry(
    *, url: str | None, job: Sequence[str], queue: str | None, task: str | None, error: str | None, everything: bool
) -> None:
    """Put dead jobs back into their queue, with fresh attempts."""
    from spool.broker import Replay

    act(url, Replay(), job, _choice(queue, task, error), everything=everything)


@dead.command()
@url_option
@click.argument("job", nargs=-1)
@_dead_options
@click.option("--all", "everything", is_flag=True, help="All there are.")
def delete(
    *, url: str | None, job: Sequence[str], queue: str | None, task: str | None, error: str | None, everything: bool
) -> None:
    """Forget dead jobs for good."""
    from spool.broker import Delete

    act(url, Delete(), job, _choice(queue, task, error), everything=everything)
