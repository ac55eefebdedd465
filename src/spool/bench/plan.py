"""What a benchmark is to do."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from spool.errors import ConfigError
from spool.job import PRIORITIES, Priority

Kind = Literal["noop", "cpu", "io", "mixed", "failing", "task"]
Arrivals = Literal["poisson", "even"]


class TaskCall(msgspec.Struct, frozen=True):
    """A call of a task of the user's: what each job of kind task is. Arguments as in JSON."""

    target: str
    """``module:task``, or ``module:app:task`` by its name in an app."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The load and who carries it. Goes into the result as it is.

    Jobs are enqueued in one of three ways: by ``producers`` callers at once, each awaiting one ``aenqueue`` before its
    next; by an open loop at ``rate`` per second; or, when both are 0, by one ``enqueue_many``.

    >>> Plan(jobs=10).kind
    'noop'
    """

    jobs: int = 1000
    workers: int = 4
    """Worker processes."""
    concurrency: int = 100
    """Jobs that one worker process runs at once."""
    payload: int = 1024
    """Characters (ASCII, so bytes) of text given to each job; of kind task the bytes of its arguments."""
    kind: Kind = "noop"
    """noop returns at once; cpu computes in a thread; io sleeps on the event loop; of ten mixed jobs six are noop,
    three io and one cpu; failing is noop, but for those that raise; task is one of the user's own."""
    task: TaskCall | None = None
    """Of kind task, and no other: which one. It runs with the retries, timeout and so on that it is declared with."""
    work_ms: float = 0.0
    """How long a job of kind cpu or io is busy; of mixed jobs those of kind io, those of kind cpu a tenth of it."""
    failing: float = 0.05
    """The share of jobs of kind failing that raise, evenly spread; they are not tried again."""
    priority: Priority = "normal"
    rate: float = 0.0
    """Jobs per second of the open loop; 0 is no pace."""
    arrivals: Arrivals = "poisson"
    """How the open loop's jobs come: as those of many independent callers do, or all as far apart."""
    warmup: int = 0
    """Jobs run before the first one that counts. With ``prefill`` there are no workers yet, and so none."""
    producers: int = 0
    prefill: bool = False
    """Enqueue everything before the first worker starts."""
    max_seconds: float = 300.0
    """The run is stopped, and accounted for, after this time."""

    def __post_init__(self) -> None:
        for name in ("jobs", "workers", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("payload", "work_ms", "rate", "producers", "warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not self.max_seconds > 0:
            raise ConfigError(f"max_seconds must be more than 0, not {self.max_seconds}")
        if self.priority not in PRIORITIES:
            raise ConfigError(f"priority must be one of {', '.join(PRIORITIES)}, not {self.priority!r}")
        if not 0 <= self.failing <= 1:
            raise ConfigError(f"failing must be a share from 0 to 1, not {self.failing}")
        self._check_together()

    def _check_together(self) -> None:
        if (self.kind == "task") != (self.task is not None):
            raise ConfigError("a plan has a task if its kind is task, and otherwise none")
        if self.warmup and self.prefill:
            raise ConfigError("warmup needs workers before the first job is enqueued: it does not go with prefill")
        if self.rate and (self.prefill or self.producers):
            raise ConfigError("rate is a pace of its own: it goes with neither prefill nor producers")


def warmup_for(jobs: int, workers: int, concurrency: int, work_ms: float, *, prefill: bool = False) -> int:
    """Return how many jobs warm workers up in about a second: 100 for each, but no more than are measured.

    >>> warmup_for(1000, 4, 100, 0.0), warmup_for(1000, 1, 10, 500.0), warmup_for(5, 1, 1, 10_000.0)
    (400, 20, 0)
    """
    if prefill:
        return 0
    each = min(100.0, 1000 / work_ms * concurrency) if work_ms else 100.0
    return min(jobs, int(each) * workers)


QUICK = Plan(jobs=1000, workers=4, payload=1024, producers=100, warmup=400)
"""The project's measure from its beginning: 1,000 jobs enqueued one by one from 100 callers, drained at once."""
