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
    kill_after: float = 5.0
    """What an attempt on the loop or in a thread gets to end in after its timeout; then its process is killed, and the
    other jobs there are handed back, uncounted."""
    max_jobs: int | None = None
    """Replace a process after so many jobs, a tenth less at random; its jobs end first, however long they take."""
    max_memory: float | None = None
    """Likewise when it takes more megabytes (resident)."""
    max_age: float | None = None
    """Likewise after so many seconds, a tenth less at random."""
    spare: int = 0
    """Processes that wait, with the app imported, to take the place of one that ends."""
    unroutable_after: float | None = None
    """When jobs that are parked, since no worker knows their task, go to the dead letter queue; None: never."""
    profile: str | None = None
    """Where profiles go that are recorded on demand (`Profiler`); None: none are, and nobody may read the processes."""
    profile_seconds: float = 30.0
    """How long such a recording takes."""
    record_logs: bool = False
    """Keep the log lines of jobs whose task does not say otherwise."""
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
        if not 0 <= self.spare <= 1000:
            raise ConfigError(f"spare must be 0 to 1,000, not {self.spare}")
        if not 0.1 <= self.kill_after <= 3600:
            raise ConfigError(f"kill_after must be 0.1 to 3,600 seconds, not {self.kill_after}")
        if not 0 < self.profile_seconds <= 3500:
            raise ConfigError(f"profile_seconds must be more than 0 and at most 3,500, not {self.profile_seconds}")
        for name in ("max_jobs", "max_memory", "max_age"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ConfigError(f"{name} must be more than 0, not {limit}")


Role = Literal["worker", "spare", "trial"]
"""What a worker process is for: jobs; nothing yet; or suspects, one at a time."""


class Assignment(msgspec.Struct, frozen=True):
    """The first thing that a worker process is told."""

    role: Role
    options: WorkerOptions
    supervisor: int = 0
    """Its process id."""
