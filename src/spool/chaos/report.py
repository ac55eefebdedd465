"""What is said about a run: pure functions from its outcome to the rows of tables."""

from __future__ import annotations

from collections import Counter

from spool.chaos import Outcome
from spool.chaos.times import Spread

Row = tuple[str, str, str]


def counts(outcome: Outcome) -> list[Row]:
    """Return (class, jobs, what it is)."""
    found = outcome.audit.counts
    rows = [
        ("enqueued", found.enqueued, "ids for which enqueue was called"),
        ("acknowledged", found.acknowledged, "enqueue returned"),
        ("completed", found.completed, "done, once each"),
        ("cancelled", found.cancelled, "by a producer"),
        ("dead", found.dead, "failed for good, or took its process down again and again"),
        ("still waiting", found.waiting, "after everything was healed and given time"),
        ("lost", found.lost, "acknowledged and gone, and nothing explains it"),
        ("forgotten", found.forgotten, "acknowledged and gone, since the store itself forgot"),
        ("damaged", found.damaged, "their records were overwritten by the harness"),
        ("recovered", found.recovered, "unacknowledged, but there"),
        ("vanished", found.vanished, "unacknowledged, and not there"),
        ("refused", found.refused, "the store said that it had no room, and stored nothing"),
        ("completed again", found.completed_again, "after the store had forgotten it"),
        ("completed twice", found.completed_twice, "more outcomes accepted than jobs"),
    ]
    rows += [(f"run again: {reason}", number, _REASONS.get(reason, "")) for reason, number in found.reruns.items()]
    return [(name, f"{number:,}", what) for name, number, what in rows]


_REASONS = {
    "crashed": "attempts whose process was killed or took itself down",
    "lost lease": "attempts whose worker was not heard of",
    "stopped": "attempts handed back by a worker that was told to stop",
    "retried": "attempts that failed",
    "released": "attempts handed back",
    "rollback": "attempts that the store had forgotten",
    "unexplained": "attempts of which the store tells nothing",
}


def promises(outcome: Outcome) -> list[Row]:
    """Return (promise, ok or BROKEN, examples)."""
    return [
        (verdict.promise, "ok" if verdict.ok else f"BROKEN {verdict.broken}×", "\n".join(verdict.examples))
        for verdict in outcome.audit.verdicts
    ]


def durations(outcome: Outcome) -> list[tuple[str, ...]]:
    """Return (what, count, p50, p99, max) in seconds."""
    times = outcome.audit.times
    rows = [(f"{fault}: to the next start of a job it hit", spread) for fault, spread in times.redelivery.items()]
    rows += [(f"{fault}: from its end to each worker's next start", spread) for fault, spread in times.resumed.items()]
    return [(what, f"{spread.count:,}", *_figures(spread)) for what, spread in rows]


def _figures(spread: Spread) -> tuple[str, str, str]:
    p50, p99, top = ("–" if value is None else f"{value:.2f}" for value in (spread.p50, spread.p99, spread.max))
    return p50, p99, top


def strikes(outcome: Outcome) -> str:
    """Say how often which fault struck."""
    struck = Counter(strike.fault for strike in outcome.strikes)
    parts = [f"{fault} {number}×" for fault, number in sorted(struck.items())]
    parts += [f"{fault} left out: {why}" for fault, why in outcome.left_out.items()]
    return ", ".join(parts) or "none"
