"""An app whose time and memory go to places that a profile has to find. Its broker is the environment's SPOOL_URL."""

import time

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
    kept: list[bytearray] = []
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        grind()
        hoard(kept)
        rounds += 1
    return rounds
