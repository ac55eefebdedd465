"""Spool: a distributed task queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spool.app import Spool
from spool.errors import (
    ArgumentError,
    BadSignature,
    BenchError,
    BrokerError,
    BrokerFull,
    BrokerRefused,
    BrokerUnavailable,
    Cancel,
    ConfigError,
    Directive,
    EnqueueInterrupted,
    JobCancelled,
    JobConflict,
    JobFailed,
    JobNotFound,
    LeaseLost,
    NotDurable,
    PayloadError,
    PayloadTooLarge,
    ProfileError,
    ProtectionError,
    Release,
    ResultError,
    ResultTimeout,
    Retry,
    SpoolError,
    StoreCorrupt,
    SyncInLoop,
    TaskError,
    TaskExists,
    TaskUnknown,
    Undecryptable,
    Unsigned,
    VersionConflict,
)
from spool.grouping import ErrorGroup, ErrorGroups
from spool.job import LogLine, Progress, State
from spool.protection import AesGcm, Encryption, Signing
from spool.release import __version__
from spool.retry import Backoff
from spool.selection import Selection
from spool.task import Call, Handle, Task
from spool.view import Job

if TYPE_CHECKING:
    from spool.executor import current_job as current_job

__all__ = [
    "AesGcm",
    "ArgumentError",
    "Backoff",
    "BadSignature",
    "BenchError",
    "BrokerError",
    "BrokerFull",
    "BrokerRefused",
    "BrokerUnavailable",
    "Call",
    "Cancel",
    "ConfigError",
    "Directive",
    "Encryption",
    "EnqueueInterrupted",
    "ErrorGroup",
    "ErrorGroups",
    "Handle",
    "Job",
    "JobCancelled",
    "JobConflict",
    "JobFailed",
    "JobNotFound",
    "LeaseLost",
    "LogLine",
    "NotDurable",
    "PayloadError",
    "PayloadTooLarge",
    "ProfileError",
    "Progress",
    "ProtectionError",
    "Release",
    "ResultError",
    "ResultTimeout",
    "Retry",
    "Selection",
    "Signing",
    "Spool",
    "SpoolError",
    "State",
    "StoreCorrupt",
    "SyncInLoop",
    "Task",
    "TaskError",
    "TaskExists",
    "TaskUnknown",
    "Undecryptable",
    "Unsigned",
    "VersionConflict",
    "__version__",
    "current_job",
]


def __getattr__(name: str) -> Any:
    if name == "current_job":  # its module brings asyncio, which those who only enqueue can do without
        from spool.executor import current_job

        return current_job
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
