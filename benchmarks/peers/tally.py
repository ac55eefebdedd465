"""What a peer's handlers and its producer note: a time for each job's number, in memory that all processes share.

The handler's share is one store of eight bytes, so it slows no peer down and no two disagree. ``starts`` holds when
each job last began to run, ``sent`` when the call that enqueued it began; nanoseconds of the machine's monotonic clock,
0 for never. What the few jobs of the kill test do is a line in a file each.
"""

import mmap
import os
import time
from pathlib import Path

PLACE = "PEERS_TALLY"
"""The environment variable that names the directory; made by `create`, inherited by every process of a run."""
SPARE = 1_000
"""Numbers beyond those of the measured jobs, for warming up."""


def create(place: Path, jobs: int) -> None:
    for name in ("starts", "sent"):
        (place / name).write_bytes(bytes(8 * (jobs + SPARE)))
    (place / "held").touch()


def open_times(place: Path, name: str) -> memoryview:
    with (place / name).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


class Tally:
    """The notes of the run that this process belongs to."""

    def __init__(self, place: Path) -> None:
        self.starts = open_times(place, "starts")
        self.sent = open_times(place, "sent")
        self._held = os.open(place / "held", os.O_WRONLY | os.O_APPEND)

    def hold(self, what: str, number: int) -> None:
        os.write(self._held, f"{what} {number} {time.monotonic_ns()}\n".encode())


def here() -> Tally:
    return Tally(Path(os.environ[PLACE]))


def read_held(place: Path) -> list[tuple[str, int, int]]:
    """Return what `Tally.hold` noted: begin or end, the job's number, when."""
    lines = [line.split() for line in (place / "held").read_text().splitlines()]
    return [(what, int(number), int(at)) for what, number, at in lines]
