"""Errors that are the same but for a number: counted together, as one line of a table."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from spool.job import State
from spool.view import Job

CAPACITY: Final = 10_000
"""How many different errors are told apart; beyond it the rarest are counted without a name."""

_READ: Final = 500
_SHOWN: Final = 200

#: What makes two messages of one cause differ. The look-behind keeps a long word from being tried at each letter.
_VARYING: Final = re.compile(
    r"""
      (?P<email> (?<![\w.+-]) [\w.+-]+ @ [\w-]+ (?:\.[\w-]+)+ )
    | (?P<id>    \b [0-9a-fA-F]{8} - (?:[0-9a-fA-F]{4}-){3} [0-9a-fA-F]{12} \b )
    | (?P<hex>   \b 0[xX] [0-9a-fA-F]+ \b
               | \b (?=[a-fA-F]*[0-9]) (?=[0-9]*[a-fA-F]) [0-9a-fA-F]{8,} \b )
    | (?P<token> \b (?=[A-Za-z_]*[0-9]) (?=[0-9]*[A-Za-z_]) \w{20,} \b )
    | (?P<n>     [0-9]+ (?:[.,][0-9]+)* (?:[eE][+-]?[0-9]+)? )
    """,
    re.VERBOSE,
)


class ErrorGroup(msgspec.Struct, frozen=True):
    """Jobs of one task that failed with one error.

    ``message`` is the error's first line with what varies replaced (see `pattern`). ``first`` and ``last`` are when the
    earliest and the latest of these jobs failed, in milliseconds since the epoch; ``sample`` names the latest as
    ``queue/id``.
    """

    task: str
    error_type: str
    message: str
    count: int
    first: int
    last: int
    sample: str


class ErrorGroups(msgspec.Struct, frozen=True):
    """Jobs by their error: the ``top`` groups, the largest first; ``others`` counts the jobs of all other groups."""

    total: int
    top: list[ErrorGroup]
    others: int


def pattern(message: str) -> str:
    """Return the first line of a message with its numbers, hex digits, ids and email addresses replaced.

    >>> pattern("user 17 not found"), pattern("<Client object at 0x7f3a> gave up after 1.5 s")
    ('user <n> not found', '<Client object at <hex>> gave up after <n> s')
    """
    line = message.strip().partition("\n")[0][:_READ]
    return _VARYING.sub(lambda found: f"<{found.lastgroup}>", line)[:_SHOWN]


class Grouping:
    """Counts jobs by task and error, in bounded memory.

    With more than `CAPACITY` different errors the rarest give way, so a group that is as rare as they are may be
    counted too low, or not be shown; what is missing is in ``others``.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._groups: dict[tuple[str, str, str], ErrorGroup] = {}
        self._total = 0

    def add(self, job: Job) -> None:
        """Count a job that is dead or whose last attempt failed; others are passed over."""
        last = job.history[-1] if job.history else None
        failed = last is not None and bool(last.error_type)
        if not failed and job.state is not State.DEAD:
            return
        kind, message = (last.error_type, last.message) if last and failed else ("", job.error)
        key = (job.task, kind, pattern(message))
        when = job.finished or (last.ended if last else job.created)
        group = self._groups.get(key)
        if group is None:
            self._make_room()
            self._groups[key] = ErrorGroup(*key, 1, when, when, str(job))
        else:
            newer = when > group.last
            self._groups[key] = ErrorGroup(
                *key,
                group.count + 1,
                min(group.first, when),
                when if newer else group.last,
                str(job) if newer else group.sample,
            )
        self._total += 1

    def top(self, limit: int) -> ErrorGroups:
        """Return the largest groups."""
        top = self._ranked()[:limit]
        return ErrorGroups(self._total, top, self._total - sum(group.count for group in top))

    def _ranked(self) -> list[ErrorGroup]:
        return sorted(self._groups.values(), key=lambda group: (-group.count, -group.last))

    def _make_room(self) -> None:
        if len(self._groups) >= self._capacity:
            kept = self._ranked()[: self._capacity // 2]
            self._groups = {(group.task, group.error_type, group.message): group for group in kept}
