"""``spool queues``: how deep each is; pause, resume and purge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from spool.cli.output import print_json, print_table
from spool.cli.store import client, json_option, opened, queue_names, url_option
from spool.job import PRIORITIES, State

if TYPE_CHECKING:
    from spool.broker import Action

_WAITING = (State.SCHEDULED, State.PARKED, State.READY, State.SUSPECT)


@click.group(invoke_without_command=True)
@url_option
@json_option
@click.pass_context
def queues(context: click.Context, *, url: str | None, as_json: bool) -> None:
    """Show how deep each queue is; pause, resume or purge queues."""
    if context.invoked_subcommand is None:
        _list(url, as_json=as_json)
    else:
        context.obj = url


@queues.command("list")
@url_option
@json_option
@click.pass_context
def list_queues(context: click.Context, *, url: str | None, as_json: bool) -> None:
    """Show how deep each queue is, per priority."""
    _list(url or context.obj, as_json=as_json)


@queues.command()
@url_option
@click.argument("queue", nargs=-1, required=True)
@click.pass_context
def pause(context: click.Context, *, url: str | None, queue: Sequence[str]) -> None:
    """Hand out no more jobs of these queues. What runs goes on."""
    from spool.broker import Pause

    _switch(url or context.obj, Pause(), queue, "paused")


@queues.command()
@url_option
@click.argument("queue", nargs=-1, required=True)
@click.pass_context
def resume(context: click.Context, *, url: str | None, queue: Sequence[str]) -> None:
    """Hand out jobs of these queues again."""
    from spool.broker import Resume

    _switch(url or context.obj, Resume(), queue, "resumed")


@queues.command()
@url_option
@click.argument("queue")
@click.option("--dead", is_flag=True, help="Delete its dead jobs too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def purge(context: click.Context, *, url: str | None, queue: str, dead: bool, yes: bool) -> None:
    """Delete the jobs of a queue that have not started. What runs goes on."""
    states = (*_WAITING, State.DEAD) if dead else _WAITING
    with client(url or context.obj) as app:
        if not yes:
            try:
                click.confirm(f"Delete every waiting job of {queue!r} on {app.broker.url}?", abort=True, err=True)
            except click.Abort:  # a no, Ctrl-C, or nobody is there to answer
                click.echo("\nnothing is deleted; --yes answers beforehand", err=True)
                raise
        changed = app.jobs(queue=queue, state=states).delete()
    click.echo(f"{changed} {'job' if changed == 1 else 'jobs'} deleted")


def _switch(url: str | None, action: Action, names: Sequence[str], done: str) -> None:
    from spool.broker import Act

    with opened(url) as broker:
        known = queue_names(broker)
        for name in names:
            broker.call(Act(name, action))
            click.echo(f"{name} {done}")
            if name not in known:
                click.echo(f"{name} is new to this store; it knows {', '.join(known) or 'no queue'}", err=True)


def _list(url: str | None, *, as_json: bool) -> None:
    from spool.broker import Stats

    with opened(url) as broker:
        stats = {name: broker.call(Stats(name)) for name in queue_names(broker)}
    if as_json:
        print_json(
            [
                {
                    "queue": name,
                    "ready": dict(zip(PRIORITIES, each.ready, strict=False)),
                    "scheduled": each.scheduled,
                    "parked": each.parked,
                    "suspect": each.suspect,
                    "running": each.running,
                    "dead": each.dead,
                    "workers": each.workers,
                    "paused": each.paused,
                    "totals": each.totals,
                }
                for name, each in stats.items()
            ]
        )
        return
    after = ("scheduled", "parked", "running", "dead", "pruned", "workers", "done")
    rows = [
        (
            name + (" (paused)" if each.paused else ""),
            *each.ready,
            each.scheduled,
            sum(each.parked.values()),
            each.running,
            each.dead,
            each.totals.get("pruned", 0),
            each.workers,
            each.totals.get("done", 0),
        )
        for name, each in stats.items()
    ]
    print_table(("queue", *PRIORITIES, *after), rows, numeric=(*PRIORITIES, *after))
