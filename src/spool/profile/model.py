"""What a profile is: stacks, and what was counted for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from spool.errors import ConfigError

Kind = Literal["cpu", "memory"]
Types = tuple[tuple[str, str], ...]

CPU_TYPES: Final[Types] = (("samples", "count"), ("cpu", "nanoseconds"), ("wall", "nanoseconds"))
"""What a CPU profile counts: samples on a processor; time on one; time at all, waiting too."""
MEMORY_TYPES: Final[Types] = (
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
)
"""What a memory profile counts: all allocations of the recording, and those that were still there at its end."""

_DEFAULTS: Final[dict[Kind, str]] = {"cpu": "cpu", "memory": "alloc_space"}


class Frame(msgspec.Struct, frozen=True):
    """A call on a stack. ``line`` is the one that was running, 0 if unknown."""

    function: str
    file: str
    line: int


class Sample(msgspec.Struct, frozen=True):
    """A stack, root first, with a value for each of the profile's types."""

    stack: tuple[Frame, ...]
    values: tuple[int, ...]
    labels: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """``thread`` is the thread's name, ``pid`` its process."""


class Profile(msgspec.Struct, frozen=True):
    """What was recorded. ``types`` are pairs of a name and a unit: "count", "nanoseconds" or "bytes".

    ``period`` is the time between two samples, or the bytes (1: each allocation was seen); ``duration`` is in
    nanoseconds; ``started`` in nanoseconds since 1970.
    """

    kind: Kind
    types: Types
    samples: list[Sample]
    period: int
    duration: int
    started: int

    @property
    def default(self) -> str:
        """The type that is shown unless another one is asked for."""
        names = [name for name, _ in self.types]
        preferred = _DEFAULTS[self.kind]
        return preferred if preferred in names else names[-1]

    def column(self, name: str | None = None) -> int:
        """Return the place in `Sample.values` of a type, by default the `default` one. Raises `ConfigError`.

        >>> Profile("cpu", CPU_TYPES, [], 1, 0, 0).column("wall")
        2
        """
        names = [each for each, _ in self.types]
        wanted = self.default if name is None else name
        if wanted not in names:
            raise ConfigError(f"this profile has no {wanted!r}; it has {', '.join(names)}")
        return names.index(wanted)


def merge(profiles: Iterable[Profile]) -> Profile:
    """Add profiles of one kind into one: stacks with the same labels become one sample.

    ``duration`` is the time from the first's start to the last's end. Raises `ConfigError` for none, and for different
    kinds or types.
    """
    given = list(profiles)
    if not given:
        raise ConfigError("there is no profile to merge")
    first = given[0]
    for other in given[1:]:
        if (other.kind, other.types) != (first.kind, first.types):
            raise ConfigError(
                f"a {first.kind} profile of {first.types} does not go with a {other.kind} profile of {other.types}"
            )
    sums: dict[tuple[tuple[Frame, ...], tuple[tuple[str, str], ...]], list[int]] = {}
    for profile in given:
        for sample in profile.samples:
            key = (sample.stack, tuple(sorted(sample.labels.items())))
            found = sums.setdefault(key, [0] * len(first.types))
            for index, value in enumerate(sample.values):
                found[index] += value
    started = min(each.started for each in given)
    return Profile(
        kind=first.kind,
        types=first.types,
        samples=[Sample(stack, tuple(values), dict(labels)) for (stack, labels), values in sums.items()],
        period=first.period,
        duration=max(each.started + each.duration for each in given) - started,
        started=started,
    )
