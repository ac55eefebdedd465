"""Routes for the dead letter queue: list, group, replay at a rate, delete."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from spool.grouping import ErrorGroups
from spool.job import State
from spool.selection import Selection
from spool.server.jobs import Jobs, Nothing, find, moment, queues_of
from spool.server.problems import Refused
from spool.server.queues import Changed
from spool.server.replays import Replay
from spool.server.routes import Ask, Name, Operation, Reply, Whole
from spool.settings import MAX_SECONDS

_Moment = Annotated[int, Meta(ge=0, le=MAX_SECONDS * 1000)]
_Text = Annotated[str, Meta(min_length=1)]


class DeadQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead jobs: all that meet every one of these. Times in ms since the epoch, when they died."""

    queue: list[Name] = []
    id: list[str] = []
    task: Name | None = None
    error: _Text | None = None
    since: _Moment | None = None
    until: _Moment | None = None
    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class GroupsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As `DeadQuery`; ``limit`` groups at most, the largest."""

    queue: list[Name] = []
    task: Name | None = None
    error: _Text | None = None
    since: _Moment | None = None
    until: _Moment | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 20


class DeadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead jobs, as in `DeadQuery`; those of all queues only with ``everything``."""

    queue: list[Name] = []
    id: list[str] = []
    task: Name | None = None
    error: _Text | None = None
    since: Whole | None = None
    until: Whole | None = None
    everything: bool = False


class ReplayRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As `DeadRequest`. ``rate``: jobs a second, evenly; null is as fast as it goes.

    ``wait``: seconds that the answer may take; a replay that takes longer goes on, see ``/api/v1/dead/replays``.
    """

    queue: list[Name] = []
    id: list[str] = []
    task: Name | None = None
    error: _Text | None = None
    since: Whole | None = None
    until: Whole | None = None
    everything: bool = False
    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    wait: Annotated[float, Meta(ge=0, le=60)] = 10.0


class ReplayList(msgspec.Struct, frozen=True):
    """Replays of the last day, the latest first. ``cursor`` is always empty: there are no pages."""

    items: list[Replay]
    cursor: str = ""


async def list_dead(ask: Ask[DeadQuery, None]) -> Jobs:
    """List dead jobs, those of each queue with the latest first."""
    return await find(ask, [State.DEAD])


async def groups(ask: Ask[GroupsQuery, None]) -> ErrorGroups:
    """Count dead jobs by task and error, the most frequent first."""
    query = ask.query
    return await _chosen(ask, query, query.queue, None).agroups(query.limit)


async def replay(ask: Ask[None, ReplayRequest]) -> Reply:
    """Put dead jobs back, those that died first before."""
    request, replays = ask.body, ask.services.replays
    _check_meant(request)
    if replays.busy:
        raise Refused(503, "too many replays are under way here: stop one, or wait")
    chosen = _chosen(ask, request, request.queue, request.id)
    found = await replays.start(chosen, request.rate, ask.principal.name, request.wait)
    return Reply(found, 202 if found.state == "running" else 200)


async def delete(ask: Ask[None, DeadRequest]) -> Changed:
    """Forget dead jobs for good."""
    _check_meant(ask.body)
    return Changed(await _chosen(ask, ask.body, ask.body.queue, ask.body.id).adelete(everything=True))


def _check_meant(request: DeadRequest | ReplayRequest) -> None:
    # A restricted token's own queues narrow nothing that its holder has said.
    narrowed = request.queue or request.id or request.task or request.error or request.since or request.until
    if not narrowed and not request.everything:
        raise Refused(422, "that would be every dead job of every queue: say which, or everything: true")


def _chosen(ask: Ask[Any, Any], by: Any, queues: list[str], ids: list[str] | None) -> Selection:
    for queue in (*queues, *queues_of(ids or [])):
        ask.check_queue(queue)
    own = ask.principal.queues
    return ask.services.app.jobs(
        id=ids or None,
        queue=queues or (None if own is None else sorted(own)),
        state=State.DEAD,
        task=by.task,
        error=by.error,
        since=moment(by.since),
        until=moment(by.until),
    )


async def list_replays(ask: Ask[None, None]) -> ReplayList:
    """List the replays of the last day."""
    return ReplayList(await ask.services.replays.all())


async def stop_replay(ask: Ask[None, Nothing]) -> Replay:
    """Stop a replay; what it has put back stays so."""
    found = await ask.services.replays.stop(ask.path["replay"])
    if found is None:
        raise Refused(404, "there is no such replay")
    return found


_DEAD: Final = "/api/v1/dead"
_LATER: Final = {202: "It goes on"}

ROUTES = (
    Operation("GET", _DEAD, list_dead, "read", "List dead jobs", query=DeadQuery, response=Jobs, queues=True),
    Operation(
        "GET",
        f"{_DEAD}/groups",
        groups,
        "read",
        "Group dead jobs",
        query=GroupsQuery,
        response=ErrorGroups,
        queues=True,
    ),
    Operation(
        "POST",
        f"{_DEAD}/replay",
        replay,
        "operate",
        "Replay dead jobs",
        request=ReplayRequest,
        response=Replay,
        answers=_LATER,
        queues=True,
    ),
    Operation(
        "POST",
        f"{_DEAD}/delete",
        delete,
        "operate",
        "Delete dead jobs",
        request=DeadRequest,
        response=Changed,
        queues=True,
    ),
    Operation("GET", f"{_DEAD}/replays", list_replays, "read", "List replays", response=ReplayList),
    Operation(
        "POST",
        f"{_DEAD}/replays/{{replay}}/stop",
        stop_replay,
        "operate",
        "Stop a replay",
        request=Nothing,
        response=Replay,
    ),
)
