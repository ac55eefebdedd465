"""Routes for the dead letter queue: list, group, replay at a rate, delete."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from spool.grouping import ErrorGroups
from spool.job import State
from spool.server.chosen import Chosen, select
from spool.server.jobs import Jobs, Nothing, find
from spool.server.problems import Refused
from spool.server.queues import Changed
from spool.server.replays import Replay
from spool.server.routes import Ask, Operation, Reply

_DEAD_ONES: Final = (State.DEAD,)


class DeadQuery(Chosen, frozen=True):
    """Which dead jobs; at most ``limit`` of them, after ``cursor``."""

    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class GroupsQuery(Chosen, frozen=True):
    """Which dead jobs; at most ``limit`` groups, the largest."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 20


class DeadRequest(Chosen, frozen=True):
    """Which dead jobs: all that meet every one of these; those of all queues only with ``everything``.

    Times in ms since the epoch, when they died.
    """

    everything: bool = False


class ReplayRequest(DeadRequest, frozen=True):
    """As `DeadRequest`. ``rate``: jobs a second, evenly; null is as fast as it goes.

    ``wait``: seconds that the answer may take; a replay that takes longer goes on, see ``/api/v1/dead/replays``.
    """

    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    wait: Annotated[float, Meta(ge=0, le=60)] = 10.0


class ReplayList(msgspec.Struct, frozen=True):
    """Replays of the last day, the latest first. ``cursor`` is always empty: there are no pages."""

    items: list[Replay]
    cursor: str = ""


async def list_dead(ask: Ask[DeadQuery, None]) -> Jobs:
    """List dead jobs, those of each queue with the latest first."""
    return await find(ask, _DEAD_ONES)


async def groups(ask: Ask[GroupsQuery, None]) -> ErrorGroups:
    """Count dead jobs by task and error, the most frequent first."""
    return await select(ask, ask.query, _DEAD_ONES).agroups(ask.query.limit)


async def replay(ask: Ask[None, ReplayRequest]) -> Reply:
    """Put dead jobs back, those that died first before."""
    request, replays = ask.body, ask.services.replays
    _check_meant(request)
    if replays.busy:
        raise Refused(503, "too many replays are under way here: stop one, or wait")
    chosen = select(ask, request, _DEAD_ONES)
    found = await replays.start(chosen, request.rate, ask.principal.name, request.wait)
    return Reply(found, 202 if found.state == "running" else 200)


async def delete(ask: Ask[None, DeadRequest]) -> Changed:
    """Forget dead jobs for good."""
    _check_meant(ask.body)
    return Changed(await select(ask, ask.body, _DEAD_ONES).adelete(everything=True))


def _check_meant(request: DeadRequest) -> None:
    # A restricted token's own queues narrow nothing that its holder has said.
    if not request.narrowed and not request.everything:
        raise Refused(422, "that would be every dead job of every queue: say which, or everything: true")


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
