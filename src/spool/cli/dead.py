"""``spool dead``: the dead letter queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from spool.catalogue import Catalogue
from spool.cli.jobs import act, acting, hidden, replay, show_job, show_list
from spool.cli.output import moment, print_json, print_table
from spool.cli.store import client, filtered, json_option, queue_names, url_option
from spool.errors import JobNotFound
from spool.job import State
from spool.selection import MAX_DEAD, MAX_DEAD_DAYS, Selection

if TYPE_CHECKING:
    from spool.broker import Broker


@click.group()
def dead() -> None:
    """Look after the dead letter queue: jobs whose attempts are spent.

    A job is named QUEUE/ID, or by its ID alone where no other queue has it.
    """


@dead.command("list")
@url_option
@filtered
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@json_option
def list_dead(*, url: str | None, filters: Mapping[str, Any], limit: int, as_json: bool) -> None:
    """List dead jobs, those of each queue with the latest first."""
    with client(url) as app:
        show_list(app.jobs(**filters, state=State.DEAD), limit, app.broker if as_json else None)
        if not as_json:
            _show_bounds(app.broker, filters.get("queue"))


@dead.command()
@url_option
@filtered
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many groups at most.")
@json_option
def groups(*, url: str | None, filters: Mapping[str, Any], limit: int, as_json: bool) -> None:
    """Count dead jobs by task and error, the most frequent first.

    Errors are the same if their type is, and their message once numbers, ids and addresses are left out.
    """
    with client(url) as app:
        found = app.jobs(**filters, state=State.DEAD).groups(limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("jobs", "task", "error", "first", "last", "sample"),
        [
            (
                each.count,
                each.task,
                f"{each.error_type}: {each.message}" if each.error_type else each.message,
                moment(each.first),
                moment(each.last),
                each.sample,
            )
            for each in found.top
        ],
        numeric=("jobs",),
    )
    if found.others:
        click.echo(f"{found.others:,} of {found.total:,} jobs are in other groups: see --limit", err=True)


@dead.command()
@url_option
@click.argument("job")
@click.option("--queue", help="Queue, where JOB is only an id.")
@json_option
def show(*, url: str | None, job: str, queue: str | None, as_json: bool) -> None:
    """Show one dead job with its error, traceback and attempts."""
    with client(url) as app:
        found = app.job(job, queue)
        if found.state is not State.DEAD:
            raise JobNotFound(f"job {found} is not dead but {found.state}")
        show_job(Catalogue.load(app.broker).redacted(found), as_json=as_json)


@dead.command()
@acting
def delete(*, url: str | None, job: Sequence[str], filters: Mapping[str, Any], everything: bool) -> None:
    """Forget dead jobs for good.

    Name them, or choose them with options.
    """
    act(url, job, filters, Selection.delete, everything=everything, among=(State.DEAD,), done="deleted")


dead.add_command(replay)
dead.add_command(hidden(replay, "retry"))


def _show_bounds(broker: Broker, queues: Sequence[str] | None) -> None:
    from spool.broker import Stats

    stats = [broker.call(Stats(name)) for name in queues or queue_names(broker)]
    held, pruned = sum(each.dead for each in stats), sum(each.totals.get("pruned", 0) for each in stats)
    click.echo(
        f"{held:,} dead; each queue keeps {MAX_DEAD:,} for {MAX_DEAD_DAYS} days, {pruned:,} pruned so far", err=True
    )
