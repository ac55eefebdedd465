"""What happened lately in each queue, as the rollers left it: rates, and since when jobs have been ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from spool.broker import Broker, Load, QueueStats
from spool.report import SPANS, Rates
from spool.telemetry.bucket import TIERS, Lines, read_span
from spool.telemetry.roller import SILENT, Progress, read_progress

_SECONDS: Final = TIERS[0]


class Recent:
    """The last minute of all queues. Made by `recent`."""

    def __init__(self, progress: Progress, lines: Sequence[Lines], now: int) -> None:
        self._progress = progress
        self._lines = lines
        self._now = now

    def ready_since(self, queue: str, stats: QueueStats) -> int | None:
        """See `spool.telemetry.roller.Progress.ready_since`."""
        return self._progress.ready_since(queue, stats)

    def rates(self, queue: str) -> Rates | None:
        """Return how many there were in a second of each event (`spool.broker.QueueStats.totals`).

        Over the last ten and sixty whole seconds that were counted. None where nobody has looked at the queue lately.
        """
        seen = self._progress.queues.get(queue)
        if seen is None or self._progress.silent(self._now):
            return None
        end = seen.at - seen.at % 1000
        return Rates(*(self._per_second(queue, end, span) for span in SPANS))

    def _per_second(self, queue: str, end: int, span: int) -> dict[str, float]:
        counts: Counter[str] = Counter()
        for each in self._lines:
            if queue in each.lines and end - 1000 * span <= each.start < end:
                counts.update(each.lines[queue].counts)
        return {event: round(count / span, 3) for event, count in counts.items()}


def recent(broker: Broker) -> Recent:
    """Read what the rollers left of the last minute. Raises `BrokerError`.

    >>> from spool.broker import connect
    >>> recent(connect("sqlite://:memory:")).rates("mail") is None
    True
    """
    progress = read_progress(broker)[0] or Progress()
    now = broker.call(Load("queue", "", 1)).now
    lines: list[Lines] = []
    if not progress.silent(now):
        # Of many queues, some were looked at a while ago: their minute ended then.
        lines = read_span(broker, _SECONDS, min(now, progress.at) - 1000 * max(SPANS) - SILENT, now)
    return Recent(progress, lines, now)
