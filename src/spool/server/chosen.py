"""Which jobs a request is about: the filters that all routes of jobs and of dead letters take, in a query or a body."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from spool.job import State
from spool.selection import Selection
from spool.server.problems import Refused
from spool.server.routes import Ask, Name, Whole


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs that meet every one of these; what is left out is any.

    ``search``: the job's id, ``queue/id``, task or key. ``error``: some text of the last error. ``since`` and
    ``until``: ms since the epoch, when they ended, else were created.
    """

    queue: list[Name] = []
    id: list[str] = []
    task: Name | None = None
    error: Annotated[str, Meta(min_length=1)] | None = None
    since: Whole | None = None
    until: Whole | None = None
    key: Name | None = None
    search: Annotated[str, Meta(min_length=1)] | None = None

    @property
    def narrowed(self) -> bool:
        """Whether there are jobs that are not chosen."""
        return any(given for name, given in msgspec.structs.asdict(self).items() if name in Chosen.__struct_fields__)


def select(ask: Ask[Any, Any], by: Chosen, states: Sequence[State] | None) -> Selection:
    """Return these jobs, in these states (none: in any), of the queues that the caller may see.

    Refuses (403) a queue that is not the caller's, and (422) a time that no calendar has. Raises `ConfigError`.
    """
    for queue in (*by.queue, *_queues_of(by.id)):
        ask.check_queue(queue)
    own = ask.principal.queues
    return ask.services.app.jobs(
        id=by.id or None,
        queue=by.queue or (None if own is None else sorted(own)),
        state=states or None,
        task=by.task,
        error=by.error,
        since=_moment(by.since),
        until=_moment(by.until),
        key=by.key,
        search=by.search,
    )


def _queues_of(ids: list[str]) -> list[str]:
    """Return the queues that ids name, as ``queue/id``."""
    return [queue for queue, slash, _ in (id.rpartition("/") for id in ids) if slash]


def _moment(at: float | None) -> dt.datetime | None:
    try:
        return None if at is None else dt.datetime.fromtimestamp(at / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise Refused(422, f"{at:.0f} ms after 1970 is beyond any calendar") from error
