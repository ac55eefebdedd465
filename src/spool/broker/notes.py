"""The verb with which workers keep what running jobs say: log lines, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from spool.broker.verbs import Verb
from spool.errors import ConfigError
from spool.job import Number

MAX_LINES: Final = 200
"""Log lines that are kept of a job."""
MAX_LOG: Final = 64 * 1024
"""Bytes that they take together."""
MAX_PROGRESS: Final = 4 * 1024
"""Bytes of a report of progress."""


class JobNote(msgspec.Struct, frozen=True, gc=False):
    """What a running attempt has to say: log lines and how far it is, both opaque to the store.

    ``first`` is how many lines this attempt wrote before these. ``step`` counts its reports of progress, from 1; with
    an empty ``progress`` there is none.
    """

    id: str
    fence: Number
    first: Number = 0
    lines: Sequence[bytes] = ()
    step: Number = 0
    progress: bytes = b""

    def __post_init__(self) -> None:
        # Here, since every writer comes through here, as in `NewJob`.
        if len(self.lines) > MAX_LINES or len(self.progress) > MAX_PROGRESS or self.first < 0:
            raise ConfigError(
                f"a note on job {self.id} has {len(self.lines)} lines and {len(self.progress)} bytes of progress: "
                f"at most {MAX_LINES} and {MAX_PROGRESS:,} at a time"
            )


class Noted(msgspec.Struct, frozen=True):
    """Reply of `Note`: the ids refused: not the incarnation's own (any more)."""

    now: int
    refused: list[str] = []


class Note(Verb[Noted], frozen=True):
    """Keep what running attempts say, each checked against its fence as by `Settle`. Of what is refused nothing stays.

    Of each attempt (incarnation and fence) the store knows how many lines it wrote and its last ``step``. It takes the
    lines beyond that and the progress of a higher step: so a note that comes again, or late, adds nothing. Lines that
    are missing before ``first`` count as dropped.

    Of a job, through all its attempts, the last `MAX_LINES` lines are kept, and of those as many of the last as take no
    more than `MAX_LOG` bytes; the earlier ones are dropped and counted. Lines and the last progress stay with the job
    whatever becomes of it (retried, handed back, dead, replayed) and go with it: deleted, pruned, or with its ending
    after the ttl. `Get` shows them; `Find` and `Broker.ended` don't.

    Works for an expired lease that nobody has reaped, at maxmemory, and while paused. At most 1,000 notes a call.
    """

    queue: str
    incarnation: str
    notes: Sequence[JobNote]
