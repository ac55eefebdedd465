"""What a task sees of the job that it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from spool.executor.attempt import Run, bounded, current_run

PROGRESS_LIMIT: Final = 512
"""Bytes of a message of progress that are kept."""


class JobContext:
    """The job that is being run, as `current_job` returns it."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    def __repr__(self) -> str:
        return f"<JobContext {self.queue}/{self.id} {self.task} attempt {self.attempt}>"

    @property
    def id(self) -> str:
        """The job's id; with the queue it names the job: ``queue/id``."""
        return self._run.id

    @property
    def queue(self) -> str:
        """The queue that it was claimed from."""
        return self._run.queue

    @property
    def task(self) -> str:
        """The name of its task."""
        return self._run.record.task

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1. Hand-backs have numbers too: it does not count failures."""
        return self._run.attempt

    @property
    def failures(self) -> int:
        """How many attempts failed before this one."""
        return self._run.read_tally()[0].failures

    @property
    def headers(self) -> Mapping[str, str]:
        """What the caller sent along."""
        return self._run.record.headers or {}

    @property
    def worker(self) -> str:
        """The name of the worker that runs it."""
        return self._run.recipe.worker

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is to end: the job was cancelled, time is up, the lease is lost or the worker stops.

        For ``def`` tasks in threads to look at, who cannot be stopped from outside while they wait in C code.
        """
        return self._run.stop is not None

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the job is: ``done`` of ``total``, in units of its own, with a word for people (512 bytes).

        `Handle.progress` returns it, and ``spool jobs show`` shows it. As often as you like, from any thread: it waits
        for nothing, and the last word is sent every half second. Raises `ValueError` for what is no finite number.
        """
        of = None if total is None else _number("total", total)
        self._run.report(_number("done", done), of, bounded(str(message), PROGRESS_LIMIT))

    @property
    def deadline(self) -> float | None:
        """When its timeout is, by `time.monotonic`; None without one."""
        timeout = self._run.recipe.timeout
        return None if timeout is None else self._run.began / 1e9 + timeout


def _number(name: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return value if isinstance(value, int) and abs(value) < 2**53 else number


def current_job() -> JobContext:
    """Return the job that is being run. Raises `RuntimeError` outside of a task.

    ```python
    @app.task
    def export(rows: int) -> None:
        job = current_job()
        for row in range(rows):
            if job.cancelled:
                return
            job.progress(row, rows)
            ...
    ```
    """
    run = current_run.get(None)
    if run is None:
        raise RuntimeError("no job is being run here: current_job() is for tasks and what they call")
    return JobContext(run)
