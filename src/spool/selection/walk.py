"""The way through a store to the jobs that are chosen.

What is to be asked is written once, as generators that yield verbs and pauses and are sent the replies; `run` and
`arun` carry them out, in the calling thread or in the running loop.
"""

from __future__ import annotations

import base64
import datetime as dt
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from spool.broker import Broker, Find, Get, Load, Loaded, Verb
from spool.errors import ConfigError, JobNotFound
from spool.job import State, is_text
from spool.selection.criteria import Criteria
from spool.view import Job, view

T = TypeVar("T")

PAGE: Final = 250
READS: Final = 20
"""Pages of the store that are read for one page of a selection: where few jobs match, a page may be short."""
_NAMED: Final = 10
"""Jobs of one id that an error lists."""

Steps = Generator[Verb[Any] | float | list[Job], Any, T]
"""Verbs to carry out, seconds to wait, and, from a listing only, jobs to hand out."""
Visit = Callable[[str, State, list[Job]], Steps[int]]


def run(broker: Broker, steps: Steps[T]) -> T:
    """Carry out what is asked, in the calling thread."""
    reply = None
    try:
        while True:
            step = steps.send(reply)
            reply = broker.call(step) if isinstance(step, Verb) else None
            if isinstance(step, float):
                time.sleep(step)
    except StopIteration as end:
        result: T = end.value
        return result


async def arun(broker: Broker, steps: Steps[T]) -> T:
    """As `run`, in the running event loop."""
    reply = None
    try:
        while True:
            step = steps.send(reply)
            reply = await broker.acall(step) if isinstance(step, Verb) else None
            if isinstance(step, float):
                await _asleep(step)
    except StopIteration as end:
        result: T = end.value
        return result


async def _asleep(seconds: float) -> None:
    import asyncio  # who has a loop has it; others are spared the import

    await asyncio.sleep(seconds)


def look_up(id: str, queues: Sequence[str] | None = None, others: Iterable[str] = ()) -> Steps[Job]:
    """Find one job by ``queue/id``, or by its id in ``queues``.

    None is every queue; in ``others`` it is looked for if it is in none that the store lists. Raises `JobNotFound`, and
    `ConfigError` for an id that several queues have: which one is meant, nobody can tell.
    """
    queue, slash, id = id.rpartition("/")
    if slash:
        queues = (queue,)
    if not all(map(is_text, (id, *(queues or ())))):  # no store could be asked
        raise _unknown(id, queues)
    found = yield from _having(id, (yield from _known_queues((yield Load("queue")))) if queues is None else queues)
    if not found and queues is None:
        found = yield from _having(id, others)
    if len(found) > 1:
        raise ConfigError(f"the id {id!r} is that of {_listed(found)}: name the queue, as {found[0]}")
    if found:
        return found[0]
    raise _unknown(id, queues)


def _unknown(id: str, queues: Sequence[str] | None) -> JobNotFound:
    where = "in any queue" if queues is None else f"in queue {', '.join(map(repr, queues))}"
    return JobNotFound(f"no job {id!r} is known {where} (any more)")


def _having(id: str, queues: Iterable[str]) -> Steps[list[Job]]:
    found: list[Job] = []
    for queue in sorted(set(queues)):
        if snapshot := (yield Get(queue, id)):
            found.append(view(snapshot))  # noqa: PERF401 - a comprehension cannot yield
    return found


def _listed(jobs: Sequence[Job]) -> str:
    if len(jobs) > _NAMED:
        return f"{', '.join(map(str, jobs[:_NAMED]))} and {len(jobs) - _NAMED} more"
    return f"{', '.join(map(str, jobs[:-1]))} and {jobs[-1]}"


def _known_queues(page: Loaded) -> Steps[list[str]]:
    names = [document.key for document in page.documents]
    while page.cursor:
        page = yield Load("queue", page.cursor)
        names += [document.key for document in page.documents]
    return sorted(names)


class Page(msgspec.Struct, frozen=True):
    """Some of the jobs of a selection; ``cursor`` is for the next page, empty on the last one.

    A page before the last may hold fewer jobs than were asked for, even none.
    """

    jobs: list[Job]
    cursor: str


class Walk:
    """The way through a selection: queue by queue, state by state, page by page; or straight to the jobs named."""

    def __init__(self, chosen: Criteria, states: tuple[State, ...]) -> None:
        self.states = states
        self._chosen = chosen
        self._start: int | None = None
        self._since: int | None = None
        self._until: int | None = None
        self._named: dict[str, list[Job]] = {}
        """By queue, the jobs that are known by their ids: those asked for, or found by what is searched."""

    def all(self, visit: Visit) -> Steps[int]:
        """Visit each page; return the sum of what the visits return."""
        total = 0
        for queue in (yield from self.queues()):
            for state in self.states:
                total += yield from self.jobs(queue, state, visit)
        return total

    def queues(self) -> Steps[list[str]]:
        """Begin, by the store's clock, and return the queues to go through."""
        loaded = yield Load("queue")
        if self._start is None:  # a second round has the bounds of the first
            self._start = loaded.now
            self._since, self._until = (_moment(at, loaded.now) for at in (self._chosen.since, self._chosen.until))
        queues = self._chosen.queues
        self._named = {}
        if self._chosen.ids is None:
            known = (yield from _known_queues(loaded)) if queues is None else list(queues)
            yield from self._search(known)
            return known
        for id in self._chosen.ids:
            job = yield from look_up(id, queues)
            if queues is None or job.queue in queues:
                self._named.setdefault(job.queue, []).append(job)
        return list(self._named)

    def _search(self, queues: Sequence[str]) -> Steps[None]:
        """Look for the job whose id is searched: at once, where going through all of them takes its time."""
        if self._chosen.search is None:
            return
        named, slash, id = self._chosen.search.rpartition("/")
        if not is_text(id):
            return
        for queue in queues:
            if (queue == named or not slash) and (snapshot := (yield Get(queue, id))):
                self._named[queue] = [view(snapshot)]

    def jobs(self, queue: str, state: State, visit: Visit) -> Steps[int]:
        """Visit the jobs of one queue and state, page by page; return the sum of what the visits return."""
        named = [job for job in self._named.get(queue, ()) if job.state is state and self._matches(job)]
        total, cursor = (yield from self._visit(queue, state, named, visit)), ""
        if self._chosen.ids is not None:
            return total
        while True:
            found = yield Find(queue, state, cursor, PAGE)
            jobs = [view(each) for each in found.jobs]
            total += yield from self._visit(queue, state, [job for job in jobs if self._comes_by(job)], visit)
            cursor = found.cursor
            if not cursor or (jobs and self._past(jobs[-1])):
                return total

    def page(self, cursor: str, limit: int) -> Steps[Page]:
        """Return at most ``limit`` jobs, and where to go on. Asks for no more than `READS` pages of the store.

        Raises `ConfigError` for a cursor that is none.
        """
        queues = sorted((yield from self.queues()))
        places = [(queue, state) for queue in queues for state in self.states]
        jobs, inner = self._named_after(places, cursor, limit)
        if inner or self._chosen.ids is not None:
            return Page(jobs, inner)
        at, inner = self._place(places, cursor)
        reads = 0
        while at < len(places):
            if len(jobs) >= limit or reads == READS:
                return Page(jobs, _cursor(*places[at], inner))
            queue, state = places[at]
            found = yield Find(queue, state, inner, min(limit - len(jobs), PAGE))
            seen = [view(each) for each in found.jobs]
            jobs += [job for job in seen if self._comes_by(job)]
            reads += 1
            inner = found.cursor
            if not inner or (seen and self._past(seen[-1])):
                at, inner = at + 1, ""
        return Page(jobs, "")

    def _named_after(self, places: list[tuple[str, State]], cursor: str, limit: int) -> tuple[list[Job], str]:
        """Return at most ``limit`` of the jobs that are known by their ids, and the cursor of those that are left."""
        after = ("", -1, -1)
        if cursor:
            queue, state, inner = _read_cursor(cursor)
            if isinstance(inner, str):  # among those that the store lists, which come after them
                return [], ""
            after = (queue, self.states.index(state) if state in self.states else len(self.states), inner)
        left = [
            (place, number, job)
            for place in places
            for number, job in enumerate(self._named.get(place[0], ()))
            if job.state is place[1]
            and self._matches(job)
            and (job.queue, self.states.index(job.state), number) > after
        ]
        jobs = [job for _, _, job in left[:limit]]
        if len(left) <= limit:
            return jobs, ""
        (queue, state), number, _ = left[limit - 1]
        return jobs, _cursor(queue, state, number)

    def _place(self, places: list[tuple[str, State]], cursor: str) -> tuple[int, str]:
        """Return where a cursor points: an index of ``places``, or of the queue after one that is gone."""
        if not cursor:
            return 0, ""
        queue, state, inner = _read_cursor(cursor)
        if not isinstance(inner, str):  # the last of those that are known by their ids
            return 0, ""
        for index, place in enumerate(places):
            if place == (queue, state):
                return index, inner
            if place[0] > queue:
                return index, ""
        return len(places), ""

    def dead_ids(self, queue: str) -> Steps[list[str]]:
        """Return the ids of the jobs that were dead when this walk began, the latest first."""
        ids: list[str] = []
        start = self._start or 0

        def collect(_queue: str, _state: State, jobs: list[Job]) -> Steps[int]:
            yield from ()
            ids.extend(job.id for job in jobs if _when(job) <= start)
            return 0

        self._named.get(queue, []).sort(key=lambda job: (_when(job), job.id), reverse=True)
        for state in self.states:
            yield from self.jobs(queue, state, collect)
        return ids

    def _visit(self, queue: str, state: State, jobs: list[Job], visit: Visit) -> Steps[int]:
        total = 0
        for first in range(0, len(jobs), PAGE):
            total += yield from visit(queue, state, jobs[first : first + PAGE])
        return total

    def _comes_by(self, job: Job) -> bool:
        """Whether a job that the store has listed is one of these, and not known by its id already."""
        search = self._chosen.search
        if search is not None and (search not in (job.task, job.key) or search in (job.id, str(job))):
            return False
        return self._matches(job)

    def _matches(self, job: Job) -> bool:
        task, key, error = self._chosen.task, self._chosen.key, self._chosen.error
        if (task is not None and job.task != task) or (key is not None and job.key != key):
            return False
        if error is not None and error not in job.error:
            return False
        when = _when(job)
        return (self._since is None or when >= self._since) and (self._until is None or when < self._until)

    def _past(self, job: Job) -> bool:
        """Whether those listed after this one are too old: dead jobs come with the latest first."""
        return job.state is State.DEAD and self._since is not None and _when(job) < self._since


def _moment(bound: dt.datetime | float | None, now: int) -> int | None:
    if bound is None:
        return None
    return round(bound.timestamp() * 1000) if isinstance(bound, dt.datetime) else round(now - bound * 1000)


def _when(job: Job) -> int:
    return (job.finished or 0) if job.state.terminal else job.created


def _cursor(queue: str, state: State, inner: str | int) -> str:
    """Return a cursor: ``inner`` is the store's, or the number of the last job listed of those known by their ids."""
    return base64.urlsafe_b64encode(msgspec.json.encode((queue, state, inner))).decode()


def _read_cursor(cursor: str) -> tuple[str, State, str | int]:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode("ascii")), type=tuple[str, State, str | int])
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{cursor[:100]!r} is not the cursor of a page") from error
