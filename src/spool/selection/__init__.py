"""These jobs: chosen by what they are, then listed, counted, grouped, cancelled, replayed or deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import msgspec

from spool.broker import Act, Delete, QueueStats, Replay, Stats, Verb, cancellation
from spool.errors import ConfigError, SyncInLoop
from spool.grouping import ErrorGroups, Grouping
from spool.job import State
from spool.selection.criteria import Criteria
from spool.selection.pace import Pace
from spool.selection.walk import Page, Steps, Walk, arun, run
from spool.settings import check_count
from spool.task import Client
from spool.view import Job

OnProgress = Callable[[int, int], None]

MAX_DEAD: Final = 100_000
"""Dead jobs that a queue keeps. The brokers prune the oldest beyond that, and count them as ``pruned``."""
MAX_DEAD_DAYS: Final = 30
"""Days that a dead job is kept."""

CANCELLABLE: Final = (State.SCHEDULED, State.PARKED, State.READY, State.SUSPECT, State.RUNNING)
"""Along a job's way, so that one which moves on meanwhile is met again."""
DELETABLE: Final = (State.SCHEDULED, State.PARKED, State.READY, State.SUSPECT, State.DEAD, State.CANCELLED, State.DONE)
REPLAYABLE: Final = (State.DEAD,)
_FAILED: Final = (State.DEAD, State.SUSPECT, State.SCHEDULED, State.READY, State.PARKED, State.RUNNING)
_LISTED: Final = (
    State.RUNNING,
    State.READY,
    State.SUSPECT,
    State.SCHEDULED,
    State.PARKED,
    State.DEAD,
    State.CANCELLED,
    State.DONE,
)

_ROUNDS: Final = 20


class Selection:
    """Jobs chosen by what they are. Made by `Spool.jobs`; asks the store when it is used, and each time anew.

    Iterating, plainly or with ``async for``, yields a `Job` each, state by state (those that run first, the ended ones
    last), in constant memory. While jobs move, one that stays put is listed exactly once; one that moves may be missed
    or listed twice. Done and cancelled jobs are the most recent 10,000 endings of a queue.

    Every method has an async twin, and raises `SyncInLoop` inside a running event loop; all raise `BrokerUnavailable`,
    and, before anything is changed, `JobNotFound` for ids that are not known and `ConfigError` for an id without its
    queue that several queues have. The methods that change jobs refuse with `ConfigError` a selection without any
    criterion, unless ``everything=True`` says that it is meant, and one in whose states there is nothing that they
    could change. A job that has moved on, since it was listed, to a state that is not chosen is left alone. They return
    how many jobs they changed, and may be called again: what was done is not done twice.

    >>> from spool import Spool, testing
    >>> app = Spool()
    >>> @app.task(queue="mail", retries=0)
    ... def send(user: int) -> None:
    ...     raise LookupError(f"user {user} not found")
    >>> with testing.isolated(app):
    ...     app.enqueue_many(send.call(user) for user in range(5))
    ...     testing.run_until_idle(app)
    ...     dead = app.jobs(state="dead", task=send, error="LookupError", since=3600)
    ...     dead.count(), next(iter(dead)).error
    ...     [(group.count, group.message) for group in dead.groups().top]
    ...     dead.replay()
    ...     app.jobs(queue="mail", state="ready").cancel("the users are gone")
    5
    5
    (5, 'LookupError: user 4 not found')
    [(5, 'user <n> not found')]
    5
    5
    """

    def __init__(self, client: Client, chosen: Criteria, remember: float) -> None:
        self._client = client
        self._chosen = chosen
        self._remember = remember

    def __repr__(self) -> str:
        given = {name: value for name, value in msgspec.structs.asdict(self._chosen).items() if value is not None}
        return f"<Selection {', '.join(f'{name}={value!r}' for name, value in given.items()) or 'of all jobs'}>"

    def __iter__(self) -> Iterator[Job]:
        try:
            self._client.check_sync("jobs", "jobs")
        except SyncInLoop:
            raise SyncInLoop("for … in jobs would block the running event loop: use async for … in jobs") from None
        return self._listed()

    def _listed(self) -> Iterator[Job]:
        steps, reply = self._list(), None
        while (step := _next(steps, reply)) is not None:
            reply = self._client.broker.call(step) if isinstance(step, Verb) else None
            if isinstance(step, list):
                yield from step

    async def __aiter__(self) -> AsyncIterator[Job]:
        steps, reply = self._list(), None
        while (step := _next(steps, reply)) is not None:
            reply = await self._client.broker.acall(step) if isinstance(step, Verb) else None
            if isinstance(step, list):
                for job in step:
                    yield job

    def count(self) -> int:
        """Return how many there are; without looking at them where only queues and states are given."""
        self._client.check_sync("count", "acount")
        return run(self._client.broker, self._count())

    async def acount(self) -> int:
        """As `count`, in the running event loop."""
        return await arun(self._client.broker, self._count())

    def page(self, cursor: str = "", limit: int = 100) -> Page:
        """Return some of them, at most ``limit``, and the cursor of the next page. Raises `ConfigError`.

        For a cursor to lead on, the selection has to be the same.
        """
        self._client.check_sync("page", "apage")
        return run(self._client.broker, self._page(cursor, limit))

    async def apage(self, cursor: str = "", limit: int = 100) -> Page:
        """As `page`, in the running event loop."""
        return await arun(self._client.broker, self._page(cursor, limit))

    def groups(self, limit: int = 20) -> ErrorGroups:
        """Count those that are dead, or whose last attempt failed, by task and error; return the largest groups.

        Errors are the same if their type is and their message, once its numbers, ids and addresses are left out.
        """
        self._client.check_sync("groups", "agroups")
        return run(self._client.broker, self._group(limit))

    async def agroups(self, limit: int = 20) -> ErrorGroups:
        """As `groups`, in the running event loop."""
        return await arun(self._client.broker, self._group(limit))

    def cancel(self, reason: str = "", *, everything: bool = False) -> int:
        """Cancel those that have not ended; running ones are asked to stop.

        Jobs that move meanwhile, to another state that is chosen too, are followed: it goes round until it finds no
        more, at least twice and at most 20 times. New jobs that match meanwhile are cancelled as they are met.
        """
        self._client.check_sync("cancel", "acancel")
        return run(self._client.broker, self._cancel(reason, everything=everything))

    async def acancel(self, reason: str = "", *, everything: bool = False) -> int:
        """As `cancel`, in the running event loop."""
        return await arun(self._client.broker, self._cancel(reason, everything=everything))

    def replay(
        self, rate: float | None = None, *, everything: bool = False, on_progress: OnProgress | None = None
    ) -> int:
        """Put dead jobs back: a new generation with all its retries, queue by queue, those that died first before.

        ``rate`` is how many a second, evenly, by the store's clock; None is as fast as it goes. Only jobs that were
        dead when the call began are replayed, each once: one that dies again meanwhile stays. Those of one queue are
        remembered meanwhile by their ids, about 10 MB for the 100,000 that a queue keeps. ``on_progress`` is called
        with the number of jobs replayed and found so far.
        """
        self._client.check_sync("replay", "areplay")
        return run(self._client.broker, self._replay(rate, on_progress, everything=everything))

    async def areplay(
        self, rate: float | None = None, *, everything: bool = False, on_progress: OnProgress | None = None
    ) -> int:
        """As `replay`, in the running event loop."""
        return await arun(self._client.broker, self._replay(rate, on_progress, everything=everything))

    def delete(self, *, everything: bool = False) -> int:
        """Forget those that do not run, for good: dead ones, waiting ones, and what is kept of ended ones.

        Where an error or a time is given, those which are still in the state in which they were found.
        """
        self._client.check_sync("delete", "adelete")
        return run(self._client.broker, self._delete(everything=everything))

    async def adelete(self, *, everything: bool = False) -> int:
        """As `delete`, in the running event loop."""
        return await arun(self._client.broker, self._delete(everything=everything))

    # What each of them asks of the store

    def _list(self) -> Steps[int]:
        def hand_out(_queue: str, _state: State, jobs: list[Job]) -> Steps[int]:
            yield jobs
            return 0

        return Walk(self._chosen, self._listable()).all(hand_out)

    def _count(self) -> Steps[int]:
        def number(_queue: str, _state: State, jobs: list[Job]) -> Steps[int]:
            yield from ()
            return len(jobs)

        walk, total = Walk(self._chosen, self._listable()), 0
        for queue in (yield from walk.queues()):
            sizes = _sizes((yield Stats(queue))) if self._chosen.sized else {}
            for state in walk.states:
                total += sizes[state] if state in sizes else (yield from walk.jobs(queue, state, number))
        return total

    def _page(self, cursor: str, limit: int) -> Steps[Page]:
        check_count("limit", limit, least=1)
        return Walk(self._chosen, self._listable()).page(cursor, limit)

    def _group(self, limit: int) -> Steps[ErrorGroups]:
        check_count("limit", limit, least=1)
        grouping = Grouping()

        def collect(_queue: str, _state: State, jobs: list[Job]) -> Steps[int]:
            yield from ()
            for job in jobs:
                grouping.add(job)
            return 0

        yield from Walk(self._chosen, self._applicable("group", _FAILED)).all(collect)
        return grouping.top(limit)

    def _cancel(self, reason: str, *, everything: bool) -> Steps[int]:
        self._meant(everything=everything)
        action = cancellation(reason, self._remember)
        walk = Walk(self._chosen, self._applicable("cancel", CANCELLABLE))
        ordered: set[tuple[str, str]] = set()  # a running one that was handed back is met again, and counted once

        def cancel(queue: str, state: State, jobs: list[Job]) -> Steps[int]:
            acted = yield Act(queue, action, [job.id for job in jobs], self._chosen.states or ())
            new = {(queue, id) for id in acted.changed} - ordered
            if state is State.RUNNING:
                ordered.update(new)
            return len(new)

        # What goes back (a retry, a hand-back) or is parked slips through a round, and that one finds nothing: so two.
        changed = yield from walk.all(cancel)
        for _ in range(_ROUNDS - 1 if self._chosen.ids is None else 0):
            more = yield from walk.all(cancel)
            changed += more
            if not more:
                break
        return changed

    def _replay(self, rate: float | None, on_progress: OnProgress | None, *, everything: bool) -> Steps[int]:
        self._meant(everything=everything)
        pace = Pace(rate)
        walk = Walk(self._chosen, self._applicable("replay", REPLAYABLE))
        found = replayed = 0
        for queue in (yield from walk.queues()):
            ids = yield from walk.dead_ids(queue)
            found += len(ids)
            while ids:
                if pace.owed:
                    yield pace.owed
                acted = yield Act(queue, Replay(), [ids.pop() for _ in range(min(pace.step, len(ids)))])
                pace.went(len(acted.changed), acted.now)
                replayed += len(acted.changed)
                if on_progress is not None:
                    on_progress(replayed, found)
        return replayed

    def _delete(self, *, everything: bool) -> Steps[int]:
        self._meant(everything=everything)

        def delete(queue: str, state: State, jobs: list[Job]) -> Steps[int]:
            meant = (state,) if self._chosen.fleeting else self._chosen.states or ()
            acted = yield Act(queue, Delete(), [job.id for job in jobs], meant)
            return len(acted.changed)

        return (yield from Walk(self._chosen, self._applicable("delete", DELETABLE)).all(delete))

    def _listable(self) -> tuple[State, ...]:
        return _LISTED if self._chosen.states is None else self._chosen.states

    def _applicable(self, action: str, states: tuple[State, ...]) -> tuple[State, ...]:
        chosen = self._chosen.states
        fitting = states if chosen is None else tuple(state for state in states if state in chosen)
        if chosen and not fitting:
            raise ConfigError(f"cannot {action} jobs that are {' or '.join(chosen)}, only {', '.join(states)}")
        return fitting

    def _meant(self, *, everything: bool) -> None:
        if not everything and not self._chosen.narrowed:
            raise ConfigError("that would be every job of every queue: say which, as jobs(queue=…), or everything=True")


def _sizes(stats: QueueStats) -> dict[State, int]:
    return {
        State.SCHEDULED: stats.scheduled,
        State.READY: sum(stats.ready),
        State.PARKED: sum(stats.parked.values()),
        State.SUSPECT: stats.suspect,
        State.RUNNING: stats.running,
        State.DEAD: stats.dead,
    }


def _next(steps: Steps[int], reply: Any) -> Verb[Any] | float | list[Job] | None:
    try:
        return steps.send(reply)
    except StopIteration:
        return None
