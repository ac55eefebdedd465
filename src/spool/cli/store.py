"""What the commands that look into a store share: which broker, which queues, which jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import click

from spool.errors import ConfigError, JobNotFound
from spool.job import Job, State, view

if TYPE_CHECKING:
    from spool.broker import Action, Broker

DEFAULT_URL = "sqlite:///spool.db"
_PAGE = 1000
_SHOWN_FIRST = (
    State.RUNNING,
    State.READY,
    State.SUSPECT,
    State.SCHEDULED,
    State.PARKED,
    State.DEAD,
    State.CANCELLED,
    State.DONE,
)

Command = TypeVar("Command", bound=Callable[..., Any])


def url_option(command: Command) -> Command:
    return click.option("--url", help=f"Broker; default $SPOOL_URL, else {DEFAULT_URL}.")(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def choice_options(command: Command) -> Command:
    """Add the options that choose jobs by what they are."""
    for option in (
        click.option("--task", help="Only jobs of this task."),
        click.option("--queue", help="Only this queue; default all."),
    ):
        command = option(command)
    return command


@contextmanager
def opened(url: str | None) -> Generator[Broker]:
    """Connect to a store in order to look into it; a SQLite file that is not there is an error, not created."""
    from spool.broker import connect

    url = url or os.environ.get("SPOOL_URL") or DEFAULT_URL
    if url.startswith("sqlite:///") and not Path(path := unquote(urlsplit(url).path)[1:]).exists():
        raise ConfigError(f"there is no SQLite file {path!r} (from {url}); --url or SPOOL_URL name another store")
    broker = connect(url)
    try:
        yield broker
    finally:
        broker.close()


def queue_names(broker: Broker, queue: str | None) -> list[str]:
    """Return the queue asked for, or all that are known."""
    from spool.broker import Load

    if queue is not None:
        return [queue]
    names: list[str] = []
    cursor = ""
    while True:
        loaded = broker.call(Load("queue", cursor))
        names += [document.key for document in loaded.documents]
        cursor = loaded.cursor
        if not cursor:
            return sorted(names)


class Choice:
    """Which jobs a command is about."""

    def __init__(
        self,
        *,
        queue: str | None = None,
        states: Iterable[State] = (),
        task: str | None = None,
        error: str | None = None,
    ) -> None:
        self.queue, self.task, self.error = queue, task, error
        self.states = tuple(states) or _SHOWN_FIRST

    @property
    def everything(self) -> bool:
        """Whether nothing but the states narrows the choice."""
        return self.queue is None and self.task is None and self.error is None

    def matches(self, job: Job) -> bool:
        return (self.task is None or job.task == self.task) and (self.error is None or self.error in job.error)

    def find(self, broker: Broker) -> Iterator[Job]:
        """Yield the jobs, page by page."""
        for queue in queue_names(broker, self.queue):
            for state in self.states:
                for page in self.pages(broker, queue, state):
                    yield from page

    def pages(self, broker: Broker, queue: str, state: State) -> Iterator[list[Job]]:
        from spool.broker import Find

        cursor = ""
        while True:
            found = broker.call(Find(queue, state, cursor, _PAGE))
            yield [job for job in map(view, found.jobs) if self.matches(job)]
            cursor = found.cursor
            if not cursor:
                return


def get_job(broker: Broker, reference: str, queue: str | None) -> Job:
    """Return the job named ``queue/id``, or by its id in ``queue`` or in whichever queue knows it."""
    from spool.broker import Get

    named, slash, id = reference.rpartition("/")
    for name in [named] if slash else queue_names(broker, queue):
        snapshot = broker.call(Get(name, id))
        if snapshot is not None:
            return view(snapshot)
    raise JobNotFound(f"no job {reference!r} is known to {broker.url}")


def act_on_named(broker: Broker, action: Action, references: Sequence[str], queue: str | None) -> int:
    """Act on jobs given by name and return how many changed. An unknown one stops it before anything is changed."""
    from spool.broker import Act

    by_queue: dict[str, list[str]] = {}
    for reference in references:
        job = get_job(broker, reference, queue)
        by_queue.setdefault(job.queue, []).append(job.id)
    return sum(
        len(broker.call(Act(name, action, ids[start : start + _PAGE])).changed)
        for name, ids in by_queue.items()
        for start in range(0, len(ids), _PAGE)
    )


def act_on_chosen(broker: Broker, action: Action, choice: Choice) -> int:
    """Act on the jobs of a choice, page by page, and return how many changed."""
    from spool.broker import Act

    changed = 0
    for queue in queue_names(broker, choice.queue):
        for state in choice.states:
            for page in choice.pages(broker, queue, state):
                if page:
                    changed += len(broker.call(Act(queue, action, [job.id for job in page])).changed)
    return changed
