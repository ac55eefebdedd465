"""How fast a replay goes."""

from __future__ import annotations

import math
from typing import Final

from spool.errors import ConfigError

_LARGEST: Final = 250
_STEP_SECONDS: Final = 0.05


class Pace:
    """So many a second, in steps of a twentieth of a second or of one job, by the store's clock.

    A step that comes late is made up for, but no more than one: a store that stood still gets no burst afterwards.
    """

    def __init__(self, rate: float | None) -> None:
        _check(rate)
        self._rate = rate
        self._due: float | None = None
        self.step = _LARGEST if rate is None else max(1, min(_LARGEST, int(rate * _STEP_SECONDS)))
        self.owed = 0.0
        """Seconds to wait before the next step."""

    def went(self, count: int, now: int) -> None:
        """Note a step, and what the store's clock shows after it."""
        if self._rate is None:
            return
        span = count * 1000 / self._rate
        due = now if self._due is None else max(self._due, now - span)
        self._due = due + span
        self.owed = max(0.0, min(self._due - now, span)) / 1000


def _check(rate: object) -> None:
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ConfigError(f"rate must be a number of jobs a second, more than 0, not {rate!r}")
