"""What a supervisor and its worker processes tell each other, as frames on a socket (see `spool.nursery`)."""

from __future__ import annotations

from typing import Final

import msgspec

from spool.broker import Settlement
from spool.worker.heartbeat import Heard

# From the child


class Born(msgspec.Struct, frozen=True, tag=True):
    """An incarnation begins: beat for it. ``row`` as in `Pulse`."""

    incarnation: str
    queues: list[str]
    tasks: list[str]
    row: bytes


class Registered(msgspec.Struct, frozen=True, tag=True):
    """It holds its leases, and claims."""

    incarnation: str


class Over(msgspec.Struct, frozen=True, tag=True):
    """An incarnation ends: beat for it no more."""

    incarnation: str


class Reported(msgspec.Struct, frozen=True, tag=True):
    """The jobs held, to be compared by id with the next beat."""

    incarnation: str
    queue: str
    claim_seq: int
    ids: list[str]


class Kick(msgspec.Struct, frozen=True, tag=True):
    """Beat now."""


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """A sign of life, with the incarnation's row (empty for none) and what `Due` says."""

    row: bytes
    due: float


class Due(msgspec.Struct, frozen=True, tag=True):
    """When the next timeout is (monotonic, 0: none): with no sign of life beyond that, the process is killed."""

    at: float


class OnTrial(msgspec.Struct, frozen=True, tag=True):
    """The suspect that is about to start."""

    queue: str
    id: str


class Draining(msgspec.Struct, frozen=True, tag=True):
    """It claims no more, and ends when its jobs have: its successor may start."""

    reason: str


class Condemned(msgspec.Struct, frozen=True, tag=True):
    """Kill me, and make these settlements (queue, seq, settlement) when I am gone."""

    late: list[tuple[str, int, Settlement]]


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """What keeps it from beginning: the name of a `SpoolError`, and its text."""

    error: str
    reason: str


class Traced(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Trace` and to `Untrace`: an error, or, after the latter, the file's path."""

    path: str
    error: str


FromChild = Born | Registered | Over | Reported | Kick | Pulse | Due | OnTrial | Draining | Condemned | Fatal | Traced

# To the child; the first frame of all is its Assignment


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Stop: in order, or at once."""

    now: bool


class Quiet(msgspec.Struct, frozen=True, tag=True):
    """Claim no more."""


class Go(msgspec.Struct, frozen=True, tag=True):
    """Begin to work: for a spare."""


class Trace(msgspec.Struct, frozen=True, tag=True):
    """Record what you allocate, into a file of this path and a suffix."""

    base: str


class Untrace(msgspec.Struct, frozen=True, tag=True):
    """End the recording."""


ToChild = Stop | Quiet | Go | Heard | Trace | Untrace

PULSE: Final = 1.0
"""Seconds between two pulses, unless a tenth of the lease is less."""
