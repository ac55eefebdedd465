"""``spool worker``, ``spool enqueue`` and ``spool workers``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from spool.cli.output import moment, print_json, print_table
from spool.cli.store import json_option, opened, url_option
from spool.job import PRIORITIES, Priority

if TYPE_CHECKING:
    from spool.broker import Broker
    from spool.report import WorkerRow
    from spool.settings import Durability


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--url", help="Broker, instead of the app's own.")
@click.option("--queues", help="Queues to serve, separated by commas; default those of the app's tasks.")
@click.option(
    "--concurrency", type=click.IntRange(1), default=100, show_default=True, help="Jobs at once, per process."
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--lease",
    type=click.FloatRange(0.5, 3600),
    default=10.0,
    show_default=True,
    help="Seconds until other workers take over the jobs of one that died.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds to finish in when stopped.",
)
@click.option(
    "--unroutable-after",
    type=click.FloatRange(0, 1_000_000_000, min_open=True),
    help="Seconds after which parked jobs, whose task no worker knows, go to the dead letter queue; default never.",
)
@click.option(
    "--kill-after",
    type=click.FloatRange(0.1, 3600),
    default=5.0,
    show_default=True,
    help="Seconds that a job gets to end in after its timeout; then its process is killed and replaced.",
)
@click.option("--max-jobs", type=click.IntRange(1), help="Replace a process after so many jobs.")
@click.option("--max-memory", type=click.FloatRange(0, min_open=True), help="Replace a process that takes more MB.")
@click.option("--max-age", type=click.FloatRange(0, min_open=True), help="Replace a process after so many seconds.")
@click.option("--spare", type=click.IntRange(0, 1000), default=0, help="Warm processes that wait to replace one.")
@click.option(
    "--profile",
    type=click.Path(file_okay=False, exists=True),
    metavar="DIR",
    help="Record profiles into DIR when SIGUSR2 comes.",
)
@click.option(
    "--profile-seconds",
    type=click.FloatRange(0, 3500, min_open=True),
    default=30.0,
    show_default=True,
    help="How long each recording takes.",
)
@click.option(
    "--record-logs",
    is_flag=True,
    help="Keep the last log lines of each job in the store, unless its task says record_logs=False.",
)
@click.option("--name", default="", help="Shown with what its jobs did; default HOST:PID.")
@click.option("--log-format", type=click.Choice(["auto", "human", "json"]), default="auto", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def worker(*, queues: str | None, **given: Any) -> int:
    """Run the jobs of an app until told to stop.

    MODULE:APP names it as in shop.tasks:app, for app = Spool() in shop/tasks.py. The module has to import the modules
    that declare its tasks.

    SIGTERM or Ctrl-C stops gracefully: no new jobs, --grace seconds for those that run, the rest is handed
    back. A second one stops at once. A process that is to be replaced lets its jobs end, however long they take.

    With keys in SPOOL_SIGNING_KEYS it runs signed jobs alone, with keys in SPOOL_ENCRYPTION_KEYS encrypted ones too.

    With --profile, SIGUSR2 records what the processes spend their time on, and then what they allocate, while they
    work: cpu-TIME.prof and mem-TIME.prof. Needs the extra "profile".
    """
    from spool.cli.target import find_here
    from spool.supervisor import WorkerOptions, run_workers

    find_here()
    served = tuple(part.strip() for part in (queues or "").split(",") if part.strip())
    if queues is not None and not served:
        raise click.UsageError("--queues names no queue", click.get_current_context())
    return run_workers(WorkerOptions(queues=served, **given))


@click.command()
@click.argument("task", metavar="MODULE:TASK")
@click.option("--args", "args", default="[]", metavar="JSON", help="Positional arguments, a JSON array.")
@click.option("--kwargs", "kwargs", default="{}", metavar="JSON", help="Named arguments, a JSON object.")
@click.option("--url", help="Broker, instead of the app's own.")
@click.option("--queue", help="Queue, instead of the task's own.")
@click.option("--delay", type=click.FloatRange(0), help="Seconds until it is ready.")
@click.option("--id", "id", help="An id: while it is known, the same call does nothing more.")
@click.option("--key", help="What the job is about: it is found by that.")
@click.option("--priority", type=click.Choice(PRIORITIES))
@click.option("--durability", type=click.Choice(["fsync"]), help="Return when it is on the store's disk.")
@click.option("--wait", is_flag=True, help="Wait for the job to end and print its result as JSON.")
@click.option("--timeout", type=click.FloatRange(0), help="With --wait: seconds at most.")
def enqueue(
    *,
    task: str,
    args: str,
    kwargs: str,
    url: str | None,
    queue: str | None,
    delay: float | None,
    id: str | None,
    key: str | None,
    priority: Priority | None,
    durability: Durability,
    wait: bool,
    timeout: float | None,
) -> None:
    """Store a job and print its name, QUEUE/ID.

    MODULE:TASK is a task, or MODULE:APP:TASK one by its name in an app.
    """
    from spool.cli.target import find_here, load_task, parsed, typed, using

    given = (parsed("--args", args, list), parsed("--kwargs", kwargs, dict))
    find_here()
    app, found = load_task(task)
    positional, named = typed(found, *given)
    with using(app, url):
        chosen = found.options(delay=delay, id=id, key=key, priority=priority, queue=queue, durability=durability)
        handle = chosen.enqueue(*positional, **named)
        if not wait:
            click.echo(str(handle))
            if not handle.created:
                click.echo("it was there already", err=True)
            return
        click.echo(str(handle), err=True)
        print_json(handle.result(timeout))
        if not found.settings.result_ttl:
            click.echo("that is not what it returned: its task keeps no results (result_ttl=0)", err=True)


@click.command()
@url_option
@json_option
def workers(*, url: str | None, as_json: bool) -> None:
    """List the workers that have reported lately."""
    with opened(url) as broker:
        rows = sorted(_worker_rows(broker), key=lambda row: (row.host, row.pid, row.started))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("worker", "host", "pid", "queues", "running", "since", "version", "state", "incarnation"),
        [
            (
                row.name,
                row.host,
                row.pid,
                ", ".join(row.queues),
                f"{'-' if row.running is None else row.running} of {row.concurrency}",
                moment(row.started),
                f"{row.version}, Python {row.python}",
                "stopping" if row.stopping else "quiet" if row.quiet else "running",
                row.incarnation,
            )
            for row in rows
        ],
        numeric=("pid", "running"),
    )


def _worker_rows(broker: Broker) -> list[WorkerRow]:
    from spool.broker import Load
    from spool.errors import StoreCorrupt
    from spool.report import read_row

    rows: list[WorkerRow] = []
    cursor = ""
    while True:
        page = broker.call(Load("worker", cursor))
        for document in page.documents:
            with contextlib.suppress(StoreCorrupt):  # one that cannot be read hides no other
                rows.append(read_row(document.body))
        cursor = page.cursor
        if not cursor:
            return rows
