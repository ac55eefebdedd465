"""What limits a run, by where its time goes: a pure function, and its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from spool.bench.breakdown import Bottleneck, Sum, TaskKind

GUIDE: Final = "docs/guides/find-a-bottleneck.md"
_BUSY: Final = 0.5
"""From this share on, a store that is waited for is at work rather than far away."""


class _Words(msgspec.Struct, frozen=True):
    reason: str
    advice: str
    section: str


_WORDS: Final = {
    "handler": _Words(
        "the handler computes", "more worker processes, or process=True for this task", "the-handler-computes"
    ),
    "waits": _Words("the handlers wait, with all slots taken", "more --concurrency", "the-handlers-wait"),
    "pool": _Words(
        "jobs wait in threads or pool processes, with all slots taken",
        "more --concurrency for threads, more pool processes, or async def",
        "a-pool-is-too-small",
    ),
    "blocked": _Words(
        "a handler on the event loop waits in a blocking call",
        "def in place of async def, or a library that awaits",
        "a-handler-blocks-the-loop",
    ),
    "round trips": _Words(
        "the worker waits for the broker's replies, while the store has little to do",
        "larger batches (more --concurrency), fewer queues, a store that is nearer",
        "round-trips",
    ),
    "store": _Words(
        "the store works, and the worker waits for it",
        "smaller payloads and results, larger batches, another durability, or another store",
        "the-store",
    ),
    "interpreter": _Words(
        "threads wait for each other's interpreter", "more worker processes with fewer threads", "the-interpreter"
    ),
    "processor": _Words(
        "threads could run, and no processor is free", "fewer processes, or more cores", "no-processor-is-free"
    ),
    "worker": _Words(
        "the worker's own work for each job", "more worker processes; larger jobs in place of many", "the-worker-itself"
    ),
    "producer": _Words(
        "the workers have nothing to do", "enqueue_many, or more callers at once", "the-workers-have-nothing-to-do"
    ),
}


def bottleneck(worker: Sum, store_busy: float | None, kind: TaskKind, *, sqlite: bool) -> Bottleneck:
    """Name what takes most of the workers' time, of what one could do something about.

    Handlers count as one, wherever they compute, and so does waiting for the interpreter while they hold it. Waiting
    for a store counts as one as well: ``store_busy``, the share of the time in which it worked, tells whether it is
    slow or far away. SQLite is never far away.

    >>> from spool.bench.breakdown import WORKER_ROWS, summed
    >>> parts = {"handler": 100.0, "handler_elsewhere": 500.0, "broker": 300.0}
    >>> found = bottleneck(summed(WORKER_ROWS, parts, 1000.0, 1), 0.1, "thread", sqlite=False)
    >>> found.kind, found.share
    ('handler', 0.6)
    """
    groups: Mapping[str, tuple[str, ...]] = {
        "handler": ("handler", "handler_elsewhere", "handler_gil"),
        "waits" if kind == "async" else "pool": ("slots",),
        "blocked": ("blocked",),
        "store" if sqlite or (store_busy or 0.0) >= _BUSY else "round trips": ("broker",),
        "interpreter": ("gil",),
        "processor": ("processor",),
        "worker": ("decode", "encode", "protocol", "loop", "threads"),
        "producer": ("nothing",),
    }
    largest = max(groups, key=lambda name: worker.us(*groups[name]))
    share = worker.us(*groups[largest]) / worker.clock_us if worker.clock_us else 0.0
    words = _WORDS[largest]
    return Bottleneck(largest, round(share, 4), words.reason, words.advice, words.section)


def line(found: Bottleneck) -> str:
    """Return the one line that names it."""
    return f"Bottleneck: {found.reason} ({found.share:.0%} of the workers' time). Turn: {found.advice}."
