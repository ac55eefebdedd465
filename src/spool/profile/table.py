"""A profile as a table: how much each function took by itself, and with all that it called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from spool.profile.model import Frame, Profile

Sort = Literal["self", "cumulative"]


class Row(msgspec.Struct, frozen=True):
    """A function, or one line of it; ``line`` is 0 for a whole function. Values are in the type's unit."""

    function: str
    file: str
    line: int
    own: int
    cumulative: int


def top(profile: Profile, value: str | None = None, *, lines: bool = False, sort: Sort = "self") -> list[Row]:
    """Return a row for each function or each line, the largest first; ``value`` is one of the profile's types.

    A function that is on a stack more than once counts once. Raises `ConfigError` for a type that it does not have.

    >>> root, leaf = Frame("main", "app.py", 9), Frame("hash", "app.py", 3)
    >>> from spool.profile.model import CPU_TYPES, Sample
    >>> samples = [Sample((root, leaf), (2, 20, 20)), Sample((root,), (1, 10, 10))]
    >>> [(row.function, row.own, row.cumulative) for row in top(Profile("cpu", CPU_TYPES, samples, 10, 30, 0))]
    [('hash', 20, 20), ('main', 10, 30)]
    """
    column = profile.column(value)
    key = _line if lines else _function
    own: dict[Frame, int] = {}
    cumulative: dict[Frame, int] = {}
    for sample in profile.samples:
        amount = sample.values[column]
        if not amount or not sample.stack:
            continue
        leaf = key(sample.stack[-1])
        own[leaf] = own.get(leaf, 0) + amount
        for each in set(map(key, sample.stack)):
            cumulative[each] = cumulative.get(each, 0) + amount
    rows = [Row(each.function, each.file, each.line, own.get(each, 0), total) for each, total in cumulative.items()]
    order: Callable[[Row], tuple[int, int]] = (
        (lambda row: (row.own, row.cumulative)) if sort == "self" else (lambda row: (row.cumulative, row.own))
    )
    return sorted(rows, key=order, reverse=True)


def total(profile: Profile, value: str | None = None) -> int:
    """Return the sum of a type over all stacks."""
    column = profile.column(value)
    return sum(sample.values[column] for sample in profile.samples)


def shown(amount: int, unit: str) -> str:
    """Return an amount for people.

    >>> shown(1_234_567_890, "nanoseconds"), shown(3 << 20, "bytes"), shown(1234, "count")
    ('1.23 s', '3.0 MiB', '1,234')
    """
    if unit == "nanoseconds":
        return f"{amount / 1e9:.2f} s" if amount >= 10**9 else f"{amount / 1e6:.1f} ms"
    if unit == "bytes":
        for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if amount >= 1 << power:
                return f"{amount / (1 << power):.1f} {name}"
        return f"{amount} B"
    return f"{amount:,}"


def _function(frame: Frame) -> Frame:
    return Frame(frame.function, frame.file, 0)


def _line(frame: Frame) -> Frame:
    return frame
