"""An app whose time and memory go to places that a profile has to find. Its broker is the environment's SPOOL_URL."""

import time
from collections.abc import Callable
from pathlib import Path

from spool import Spool

app = Spool()


def grind() -> int:
    return sum(number * number for number in range(2000))


def hoard(kept: list[bytearray]) -> None:
    kept.append(bytearray(50_000))
    if len(kept) > 100:
        kept.clear()


@app.task
def work(seconds: float) -> int:
    """Take the processor and memory, in a thread, for a while."""
    end = time.monotonic() + seconds
    return _work(lambda _: time.monotonic() < end)


@app.task
def toil(until: str) -> int:
    """Take the processor and memory, in a thread, until a file is there."""
    # Looking gives way to other threads: seldom, for what only computes never does so.
    return _work(lambda rounds: rounds % 200 > 0 or not Path(until).exists())


@app.task
def flood(until: str) -> int:
    """Allocate as often as Python can, in a thread, until a file is there."""
    while not Path(until).exists():
        for _ in range(10_000):
            bytearray(2000)
    return 0


@app.task(timeout=0.1, retries=0)
def tarry() -> None:
    """Take longer, in a thread, than is allowed."""
    while True:
        grind()


def _work(goes_on: Callable[[int], bool]) -> int:
    kept: list[bytearray] = []
    rounds = 0
    while goes_on(rounds):
        grind()
        hoard(kept)
        rounds += 1
    return rounds
