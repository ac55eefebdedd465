"""What the live stream says, as types: what the document of the API shows, and what every message can be read as.

The hub makes messages of plain trees, since it patches them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from spool.report import Rates, WorkerRow


class Event(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Something that happened: a job died, a queue was paused, a worker came or went, jobs were counted as ``kind``."""

    id: int
    at: int
    kind: str
    queue: str = ""
    job: str = ""
    task: str = ""
    worker: str = ""
    count: int = 0
    text: str = ""


class LiveStore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the store answers the server, and if not, why."""

    up: bool
    trouble: str


class LiveQueue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A queue, as ``/api/v1/queues`` has it, but ``ready`` is a list (critical first) and ``parked`` a sum."""

    ready: list[int]
    scheduled: int
    parked: int
    suspect: int
    running: int
    dead: int
    workers: int
    paused: bool
    totals: dict[str, int]
    oldest: int | None = None
    rates: Rates | None = None


class LiveRow(WorkerRow, frozen=True, kw_only=True):
    """The row of a worker. ``running`` is missing where it is null, as to a token for some of its queues."""

    running: int | None = None


class LiveWorker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worker, as ``/api/v1/workers`` has it."""

    row: LiveRow
    state: Literal["running", "quiet", "stopping"]
    ordered: Literal["quiet", "stop"] | None = None


class LiveState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How all stands. What would be null is left out.

    ``queues`` by name, ``workers`` by incarnation. ``summary`` is that of ``/api/v1/metrics/summary`` without ``now``,
    ``tail`` the last steps of the series of ``/api/v1/metrics/history``; a token for several queues gets no ``tail``.
    """

    version: str
    store: LiveStore
    queues: dict[str, LiveQueue]
    workers: dict[str, LiveWorker]
    summary: dict[str, Any] = {}
    tail: dict[str, Any] = {}


class LiveSnapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="snapshot"):
    """The whole state, with the last events. ``now`` is the store's clock (ms)."""

    seq: int
    now: int
    state: LiveState
    events: list[Event]


class LiveDelta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="delta"):
    """What changed: ``patch`` is a JSON merge patch (RFC 7396) to the state, ``seq`` one more than before."""

    seq: int
    now: int
    patch: dict[str, Any]
    events: list[Event] = []


class LiveBeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="beat"):
    """Nothing changed for a while."""

    seq: int
    now: int


class LiveResync(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="resync"):
    """What a client says who missed a ``seq``: it gets a snapshot."""


LiveMessage = LiveSnapshot | LiveDelta | LiveBeat
