"""The worker, as its lives see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from spool.app import Spool
from spool.executor.attempt import Run
from spool.report import Rates, WorkerRow


class Owner(Protocol):
    """What a life needs of its worker."""

    app: Spool
    name: str
    queues: list[str]
    lease: float
    unroutable_after: float | None
    stopping: bool
    quiet: bool
    trial: bool
    condemned: bool
    budget: float

    def registered(self, incarnation: str) -> None:
        """Take note that the incarnation holds its leases."""
        ...

    def describe(self, incarnation: str, running: int, ended: dict[str, int], rates: Rates) -> WorkerRow:
        """Return the worker's row; called from a thread."""
        ...

    def put_on_trial(self, queue: str, id: str) -> None:
        """Take note of the suspect that is about to start."""
        ...

    def drain(self, reason: str) -> None:
        """Have the worker end when its jobs have."""
        ...

    def be_quiet(self) -> None:
        """Have the worker claim no more."""
        ...

    def stop(self) -> None:
        """Have the worker stop in order."""
        ...

    def overrun(self, runs: Sequence[Run]) -> None:
        """Take note of jobs that do not end although the worker does."""
        ...
