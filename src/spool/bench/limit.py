"""Limits for a change, such as ``throughput<-5%``, by which a comparison fails."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from spool.bench.compare import METRICS, Comparison
from spool.errors import ConfigError

Held = Literal["kept", "broken", "cannot tell"]

_LIMIT: Final = re.compile(r"\s*([a-zA-Z][\w ]*?)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*")


class Limit(msgspec.Struct, frozen=True):
    """Broken by a change of ``metric`` that is less (``<``) or more (``>``) than ``share``. See `limit`."""

    text: str
    metric: str
    side: Literal["<", ">"]
    share: float

    def judge(self, found: Comparison) -> Held:
        """Say whether the whole interval is beyond the limit, or within it; if neither, it cannot be told.

        >>> from spool.bench.compare import Change
        >>> slower = Comparison([Change("drain", "/s", 100.0, 80.0, -0.2, -0.22, -0.18, "slower")], [], 0.0)
        >>> [limit(f"drain<{percent}%").judge(slower) for percent in (-5, -20, -25)]
        ['broken', 'cannot tell', 'kept']
        """
        each = next((each for each in found.changes if each.metric == self.metric), None)
        if each is None or each.low is None or each.high is None:
            return "cannot tell"
        broken, kept = each.high < self.share, each.low >= self.share
        if self.side == ">":
            broken, kept = each.low > self.share, each.high <= self.share
        return "broken" if broken else "kept" if kept else "cannot tell"


def limit(text: str) -> Limit:
    """Return the limit of a text such as ``throughput<-5%`` or ``start p99>10%``. Raises `ConfigError`.

    >>> limit("start p99 > 10 %").share
    0.1
    """
    match = _LIMIT.fullmatch(text)
    names = [metric.name for metric in METRICS]
    if match is None or match[1] not in names:
        raise ConfigError(f"{text!r} is no limit: METRIC<-5% or METRIC>5%, with a metric of {', '.join(names)}")
    return Limit(text.strip(), match[1], "<" if match[2] == "<" else ">", float(match[3]) / 100)
