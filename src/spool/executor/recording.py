"""Log lines of jobs: a handler for Python's logging that gives each line to the job in whose context it was written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from spool.broker import JobNote
from spool.executor.attempt import MESSAGE_LIMIT, Run, bounded, current_run
from spool.executor.journal import Part
from spool.job import LogLine, Progress, encode_line, encode_progress

LEVEL: Final = logging.INFO
"""Lines of this level and above are recorded."""
NAME_LIMIT: Final = 128
"""Bytes that are kept of the names of a logger and of a level."""

_tracebacks: Final = logging.Formatter()


class JobHandler(logging.Handler):
    """Writes each line to the journal of the job that is being run, if it is one whose lines are recorded.

    By the context: in the task itself, in its asyncio tasks, and in threads started by `asyncio.to_thread`; a thread
    that a task starts in another way has no context, and no job.
    """

    def __init__(self) -> None:
        super().__init__(LEVEL)

    def emit(self, record: logging.LogRecord) -> None:
        run = current_run.get(None)
        if run is None or not run.recipe.record_logs:
            return
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + _tracebacks.formatException(record.exc_info)
            run.write(record.levelname, record.name, bounded(text, MESSAGE_LIMIT))
        except Exception:  # noqa: BLE001 - logging never raises in who logs
            self.handleError(record)


class _AsBefore(logging.Filter):
    """Lets through what was to be seen before the root logger's level was lowered."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or record.name.partition(".")[0] == "spool"


def record(*, ours: bool) -> Callable[[], None]:
    """Record the log lines of jobs in this process from now on; returns what ends that.

    ``ours``: the process is a worker's own. Then the root logger lets lines from `LEVEL` on come to pass, and its other
    handlers show what they did before. In a program of somebody else its level is left as it is.
    """
    root = logging.getLogger()
    added: list[logging.Handler] = [JobHandler()]
    if not root.handlers and logging.lastResort is not None:
        added.append(logging.lastResort)  # which is used only where there is no other
    if ours and root.level > LEVEL:
        for other in root.handlers:
            other.addFilter(_AsBefore(root.level))
        root.setLevel(LEVEL)
    for handler in added:
        root.addHandler(handler)

    def end() -> None:
        for handler in added:
            root.removeHandler(handler)

    return end


@contextmanager
def recording(*, wanted: bool) -> Generator[None]:
    """As `record`, in the ``with`` block, in a program of somebody else; if it is ``wanted``."""
    end = record(ours=False) if wanted else None
    try:
        yield
    finally:
        if end is not None:
            end()


def note_of(run: Run, part: Part) -> JobNote:
    """Return the note that tells the store what an attempt has said."""
    attempt = run.attempt
    progress = b""
    if part.report is not None:
        progress = encode_progress(Progress(*part.report, attempt=attempt))
    lines = [
        encode_line(LogLine(at, attempt, bounded(level, NAME_LIMIT), bounded(logger, NAME_LIMIT), message))
        for at, level, logger, message in part.lines
    ]
    return JobNote(run.id, run.fence, part.first, lines, part.step, progress)
