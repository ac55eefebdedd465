"""Since when a job has been waiting: what `spool.broker.QueueStats` says of sequences, with times."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Final

MOST: Final = 1024


class Marks:
    """Where the sequence of a queue was at which time (ms), coarser the longer ago.

    >>> marks = Marks([(1000, 5), (2000, 9)])
    >>> marks.since(6)
    2000
    """

    def __init__(self, seen: Iterable[tuple[int, int]] = ()) -> None:
        self._times: list[int] = []
        self._sequences: list[int] = []
        for at, sequence in sorted(seen):
            self.note(at, sequence)

    def note(self, at: int, sequence: int) -> None:
        """Take note that it was at ``sequence``. What contradicts, since the clock was set back, is forgotten."""
        times, sequences = self._times, self._sequences
        while times and (times[-1] > at or sequences[-1] > sequence):
            times.pop()
            sequences.pop()
        if sequences and sequences[-1] == sequence:
            return  # nothing joined since then
        times.append(at)
        sequences.append(sequence)
        if len(times) > MOST:
            del times[1 : MOST // 2 : 2], sequences[1 : MOST // 2 : 2]

    def since(self, sequence: int) -> int | None:
        """Return a time by which what got this sequence had joined: the first noted then; None if none was."""
        found = bisect.bisect_left(self._sequences, sequence)
        return self._times[found] if found < len(self._times) else None
