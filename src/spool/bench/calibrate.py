"""How fast the machine is just now: two fixed loops, whose drift says how far the figures of two runs may be apart."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from spool.broker import Broker, Store

SECONDS: Final = 0.15
UNCALIBRATED: Final = "SPOOL_BENCH_UNCALIBRATED"
"""Variable of the environment by which runs in turns save the time; what has no calibration is never told apart."""
_BLOCK: Final = bytes(4096)


class Calibration(msgspec.Struct, frozen=True):
    """Turns of each loop per second."""

    cpu: float
    """Hashing 4 KiB with SHA-256, in one thread."""
    store: float
    """Writing the same small document, one call after the other: on SQLite each is a commit, which the disk decides."""


def calibrate(broker: Broker) -> list[Calibration]:
    """Take `SECONDS` for each loop and return how often it turned; nothing if `UNCALIBRATED` is set."""
    if os.environ.get(UNCALIBRATED):
        return []
    kind = "calibration"
    cpu = _turns(lambda: hashlib.sha256(_BLOCK).digest())
    store = _turns(lambda: broker.call(Store(kind, kind, _BLOCK[:1024])))
    broker.call(Store(kind, kind, None))
    return [Calibration(cpu, store)]


def _turns(loop: Callable[[], object]) -> float:
    loop()
    began, turns = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < SECONDS:
        loop()
        turns += 1
    return round(turns / taken, 1)


def drift(before: Sequence[Calibration], after: Sequence[Calibration]) -> float | None:
    """Return how far apart the machine was in two runs, as a ratio of at least 1: of the loop that differs more.

    None if it was not looked at in both.

    The spread within each run counts as well: a machine that changes while it is measured may have done so in between.

    >>> round(drift([Calibration(100, 50)], [Calibration(90, 50)]), 3)
    1.111
    """
    if not before or not after:
        return None
    widest = 1.0
    for loop in ("cpu", "store"):
        sides = [[getattr(each, loop) for each in side] for side in (before, after)]
        if not all(sides) or min(map(min, sides)) <= 0:
            continue
        middles = [statistics.median(side) for side in sides]
        within = max(max(side) / min(side) for side in sides) ** 0.5
        widest = max(widest, max(middles) / min(middles) * (within if len(before) + len(after) > 2 else 1.0))
    return widest
