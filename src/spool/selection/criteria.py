"""What the jobs of a selection have in common."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from spool.errors import ConfigError
from spool.job import State, check_name
from spool.settings import seconds
from spool.task import Task

StateName = State | Literal["scheduled", "ready", "parked", "suspect", "running", "done", "dead", "cancelled"]
When = dt.datetime | dt.timedelta | float
"""A moment: with a time zone, or so long before now, by the store's clock, a timedelta or in seconds."""


class Criteria(msgspec.Struct, frozen=True):
    """What the jobs of a selection have in common; None is anything. Times: absolute, or seconds before now."""

    ids: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    states: tuple[State, ...] | None = None
    task: str | None = None
    error: str | None = None
    since: dt.datetime | float | None = None
    until: dt.datetime | float | None = None
    key: str | None = None
    search: str | None = None
    """The job's id, ``queue/id``, task or key."""

    @property
    def narrowed(self) -> bool:
        """Whether there are jobs that are not chosen."""
        return self != Criteria()

    @property
    def sized(self) -> bool:
        """Whether queues and states are all that is asked for, so that the store knows how many there are."""
        return self == Criteria(queues=self.queues, states=self.states)

    @property
    def fleeting(self) -> bool:
        """Whether a job may be chosen in one state and not in the next, as its error and its time change."""
        return self.error is not None or self.since is not None or self.until is not None


def criteria(
    *,
    id: str | Iterable[str] | None = None,
    queue: str | Iterable[str] | None = None,
    state: StateName | Iterable[StateName] | None = None,
    task: str | Task[..., Any] | None = None,
    error: str | None = None,
    since: When | None = None,
    until: When | None = None,
    key: str | None = None,
    search: str | None = None,
) -> Criteria:
    """Check what was given. Raises `ConfigError`."""
    queues = _several("queue", queue)
    return Criteria(
        ids=_several("id", id),
        queues=None if queues is None else tuple(check_name("queue", each) for each in queues),
        states=_states(_several("state", state)),
        task=None if task is None else check_name("task", task.name if isinstance(task, Task) else task),
        error=_text("error", error, "some text that the error contains"),
        since=_time("since", since),
        until=_time("until", until),
        key=None if key is None else check_name("key", key),
        search=_text("search", search, "an id, a task or a key"),
    )


def _several(name: str, given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    try:
        listed = msgspec.convert([given] if isinstance(given, str) else list(given), list[str])
    except (msgspec.ValidationError, TypeError):
        raise ConfigError(f"{name} must be text or several texts, not {given!r:.100}") from None
    return tuple(dict.fromkeys(listed))


def _text(name: str, given: object, wanted: str) -> str | None:
    # Every error contains the empty text, which would choose all jobs and look as if it did not.
    if given is not None and (not isinstance(given, str) or not given):
        raise ConfigError(f"{name} must be {wanted}, not {given!r:.100}")
    return given


def _states(given: tuple[str, ...] | None) -> tuple[State, ...] | None:
    try:
        return None if given is None else tuple(State(each) for each in given)
    except ValueError as error:
        raise ConfigError(f"{error}: states are {', '.join(State)}") from None


def _time(name: str, given: When | None) -> dt.datetime | float | None:
    if given is None:
        return None
    if not isinstance(given, dt.datetime):
        return seconds(name, given)
    if given.utcoffset() is None:
        raise ConfigError(
            f"{name}={given!r} has no time zone: which moment it names depends on the machine; give it a tzinfo"
        )
    return given
