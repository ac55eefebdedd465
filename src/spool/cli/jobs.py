"""``spool jobs``: look at jobs, cancel, replay and delete them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from spool.catalogue import Catalogue
from spool.cli.output import console, moment, print_json, print_table, printable
from spool.cli.store import client, filtered, json_option, url_option
from spool.job import State
from spool.selection import CANCELLABLE, DELETABLE, Selection
from spool.selection.criteria import StateName
from spool.view import Job

if TYPE_CHECKING:
    from rich.progress import Progress

    from spool.broker import Broker
    from spool.job import Progress as JobProgress
    from spool.selection import OnProgress

Acting = Callable[[Selection], int]


@click.group()
def jobs() -> None:
    """Look at jobs; cancel, replay or delete them.

    A job is named QUEUE/ID, or by its ID alone where no other queue has it.
    """


@jobs.command("list")
@url_option
@filtered
@click.option("--state", type=click.Choice([each.value for each in State]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@json_option
def list_jobs(
    *, url: str | None, filters: Mapping[str, Any], state: StateName | None, limit: int, as_json: bool
) -> None:
    """List jobs, those that run first."""
    with client(url) as app:
        show_list(app.jobs(**filters, state=state), limit, app.broker if as_json else None)


@jobs.command()
@url_option
@click.argument("job")
@click.option("--queue", help="Queue, where JOB is only an id.")
@json_option
def show(*, url: str | None, job: str, queue: str | None, as_json: bool) -> None:
    """Show everything known about one job."""
    with client(url) as app:
        show_job(Catalogue.load(app.broker).redacted(app.job(job, queue)), as_json=as_json)


def acting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what chooses the jobs to act on: names, filters, or --all."""
    everything = click.option("--all", "everything", is_flag=True, help="All there are.")
    return url_option(click.argument("job", nargs=-1)(filtered(everything(command))))


def act(
    url: str | None,
    named: Sequence[str],
    filters: Mapping[str, Any],
    action: Acting,
    *,
    everything: bool,
    state: StateName | None = None,
    among: Sequence[State] = (),
    done: str = "changed",
) -> None:
    """Act on the jobs named, else on those chosen, and say how many changed.

    ``state`` is what the user asked for, ``among`` what the command is about.
    """
    narrowed = state is not None or bool(filters)
    if named and (everything or state is not None or filters.keys() - {"queue"}):
        raise click.UsageError("either name jobs or choose them with options, not both", click.get_current_context())
    if not named and not narrowed and not everything:
        raise click.UsageError("name the jobs, choose them with options, or say --all", click.get_current_context())
    with client(url) as app:
        changed = action(app.jobs(**filters, id=named or None, state=state or among or None))
    click.echo(f"{changed} {'job' if changed == 1 else 'jobs'} {done}")


@jobs.command()
@acting
@click.option("--state", type=click.Choice([each.value for each in CANCELLABLE]), help="Only jobs in this state.")
@click.option("--reason", default="cancelled from the command line", show_default=True, help="What the job will say.")
def cancel(
    *,
    url: str | None,
    job: Sequence[str],
    filters: Mapping[str, Any],
    everything: bool,
    state: StateName | None,
    reason: str,
) -> None:
    """Cancel jobs. Running ones are asked to stop.

    Name them, or choose them with options.
    """

    def action(chosen: Selection) -> int:
        return chosen.cancel(reason, everything=everything)

    act(url, job, filters, action, everything=everything, state=state)


@jobs.command()
@acting
@click.option("--state", type=click.Choice([each.value for each in DELETABLE]), help="Only jobs in this state.")
def delete(
    *, url: str | None, job: Sequence[str], filters: Mapping[str, Any], everything: bool, state: StateName | None
) -> None:
    """Forget jobs that do not run.

    Name them, or choose them with options.
    """

    def action(chosen: Selection) -> int:
        return chosen.delete(everything=everything)

    act(url, job, filters, action, everything=everything, state=state, done="deleted")


@jobs.command()
@acting
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Jobs a second, evenly; default at once.")
def replay(
    *, url: str | None, job: Sequence[str], filters: Mapping[str, Any], everything: bool, rate: float | None
) -> None:
    """Put dead jobs back into their queue: a new generation with all its retries.

    Name them, or choose them with options. Those that died first go first. A job that dies again meanwhile stays dead.
    """

    def action(chosen: Selection) -> int:
        with _paced(rate) as update:
            return chosen.replay(rate, on_progress=update)

    act(url, job, filters, action, everything=everything, among=(State.DEAD,), done="replayed")


@contextmanager
def _paced(rate: float | None) -> Generator[OnProgress]:
    """Yield what notes how far a replay is: on a terminal a paced one has a bar. If it stops on the way, say where."""
    so_far = 0

    def note(replayed: int, found: int) -> None:
        nonlocal so_far
        so_far = replayed
        if bar is not None:
            bar.update(bar.task_ids[0], completed=replayed, total=found)

    bar = _bar() if rate is not None and sys.stderr.isatty() else None
    try:
        with bar or nullcontext():
            yield note
    except BaseException as error:
        if so_far:
            line = "\n" if isinstance(error, KeyboardInterrupt) else ""  # after the terminal's ^C
            many = "1 job is" if so_far == 1 else f"{so_far:,} jobs are"
            click.echo(f"{line}stopped part of the way; {many} replayed", err=True)
        raise


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    figures = TextColumn("{task.completed:,.0f} of {task.total:,.0f} replayed")
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    bar = Progress(BarColumn(None), figures, TimeRemainingColumn(), console=console, transient=True, expand=True)
    bar.add_task("", total=0)
    return bar


def hidden(command: click.Command, name: str) -> click.Command:
    """Return the command under a name that it once had."""
    return click.Command(
        name,
        params=command.params,
        callback=command.callback,
        help=command.help,
        hidden=True,
    )


jobs.add_command(hidden(replay, "retry"))


def show_list(found: Iterable[Job], limit: int, as_json: Broker | None) -> None:
    """Print at most ``limit`` jobs, as JSON if the broker is given, and say on stderr when there are more."""
    shown = list(islice(found, limit + 1))
    if as_json is not None:  # the table shows no arguments
        catalogue = Catalogue.load(as_json)
        print_json([catalogue.redacted(job) for job in shown[:limit]])
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
        ("key", job.key or ""),
        ("priority", job.priority),
        ("created", moment(job.created)),
        ("due", moment(job.due)),
        ("started", moment(job.started)),
        ("finished", moment(job.finished)),
        ("attempts", f"{job.attempts} (failures {job.failures}, crashes {job.crashes}, losses {job.losses})"),
        ("worker", job.worker),
        ("progress", _progress_of(job.progress)),
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
    if job.log or job.log_dropped:
        _show_log(job)
    if job.traceback:
        out.print("\n" + printable(job.traceback.rstrip(), lines=True), soft_wrap=True)


def _show_log(job: Job) -> None:
    out = console()
    out.print("")
    if job.log_dropped:
        out.print(f"log lines, after {job.log_dropped:,} earlier ones that are not kept", soft_wrap=True)
    for line in job.log:
        head = printable(f"{moment(line.at)} {line.attempt} {line.level:<7} {line.logger}")
        # Further lines of a message are indented, so that none of them passes for a line of the log.
        message = printable(line.message, lines=True).replace("\n", "\n    ")
        out.print(f"{head}: {message}", soft_wrap=True)


def _progress_of(progress: JobProgress | None) -> str:
    if progress is None:
        return ""
    total = "" if progress.total is None else f" of {progress.total:,}"
    part = f" ({progress.done / progress.total:.0%})" if progress.total else ""
    said = f": {progress.message}" if progress.message else ""
    return f"{progress.done:,}{total}{part}{said}, attempt {progress.attempt}, {moment(progress.at)}"


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
