"""What is to be said about worker processes before they start."""

from __future__ import annotations

from typing import Literal

import msgspec

from spool.errors import ConfigError
from spool.worker import check_limits


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How worker processes are to run. Times in seconds. Raises `ConfigError` for what cannot be used.

    >>> WorkerOptions(app="shop.tasks:app", queues=("mail", "default"), processes=4).concurrency
    100
    """

    app: str
    """Where the app is: ``module:attribute``."""
    url: str | None = None
    """The broker, instead of the one that the app names."""
    queues: tuple[str, ...] = ()
    """Queues to serve; empty: every queue that the app's tasks are declared for."""
    concurrency: int = 100
    """Jobs that one process runs at a time, on its loop and in threads."""
    processes: int = 1
    pool_size: int | None = None
    """Processes of each worker for ``process=True`` tasks; None: its share of the CPUs, if the app has such tasks."""
    lease: float = 10.0
    grace: float = 30.0
    """What running jobs get to finish in when the worker is asked to stop."""
    unroutable_after: float | None = None
    """When jobs that are parked, since no worker knows their task, go to the dead letter queue; None: never."""
    name: str = ""
    """Shown with what its jobs did; empty: ``host:pid``."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "human", "json"] = "auto"
    """``auto`` is human on a terminal and JSON otherwise. Logs go to stderr."""

    def __post_init__(self) -> None:
        check_limits(
            self.queues,
            self.concurrency,
            self.pool_size,
            self.lease,
            self.grace,
            unroutable_after=self.unroutable_after,
        )
        if self.processes < 1:
            raise ConfigError(f"processes must be 1 or more, not {self.processes}")
