"""Every error that Spool raises, as one tree.

```
SpoolError
├── ConfigError              a setting, URL or option that cannot be used
├── SyncInLoop               a sync method was called inside a running event loop
├── TaskError
│   ├── TaskExists           two functions declared under one task name
│   ├── TaskUnknown          no task of that name is declared in this app
│   └── ArgumentError        a call that does not fit the task's signature or types
├── PayloadError             arguments or a result that cannot be stored
│   └── PayloadTooLarge      …because of their size
├── ProtectionError          what is signed or encrypted cannot be made, believed or read
│   ├── Unsigned             …it has no signature
│   ├── BadSignature         …its signature is another's, or by no key that is known here
│   └── Undecryptable        …it was changed, or there is no key for it
├── JobConflict              the id is taken by a job with other arguments
├── JobNotFound              no such job, or it is no longer remembered
├── EnqueueInterrupted       a bulk enqueue stopped part of the way
├── NotDurable               a job is stored, but not confirmed to be on the disk
├── BrokerError
│   ├── BrokerUnavailable    the store cannot be reached, is loading, or does not answer in time
│   ├── BrokerFull           the store has no room (maxmemory, disk full)
│   ├── BrokerRefused        the store answers, but will not serve us (password, replica, eviction policy)
│   ├── StoreCorrupt         the store's data is not ours, damaged, or of a newer layout
│   ├── VersionConflict      a document was changed by somebody else in between
│   └── LeaseLost            this incarnation holds no lease; what it did not settle is no longer its own
├── BenchError               a benchmark could not be carried out
├── ProfileError             a process could not be profiled
└── ResultError
    ├── JobFailed            the job is dead: its attempts are spent
    ├── JobCancelled         the job was cancelled
    └── ResultTimeout        the job has not ended in the time given

Directive                    what a task raises to say how its attempt is to end; not an error
├── Retry                    try again later; counts as a failed attempt
├── Cancel                   end the job as cancelled
└── Release                  hand the job back; counts as nothing
```

Errors of the libraries below (redis, sqlite3, msgspec) are mapped at the broker's edge and never reach a caller; they
stay readable as ``__cause__``.
"""

from __future__ import annotations

import datetime as dt
import math


class SpoolError(Exception):
    """Base of all errors."""


class ConfigError(SpoolError):
    """A setting, URL or option that cannot be used; says which, and what is allowed."""


class SyncInLoop(SpoolError):
    """A sync method was called inside a running event loop, which it would have blocked; names its async twin."""


class TaskError(SpoolError):
    """Something is wrong with a task's declaration or with a call of it."""


class TaskExists(TaskError):
    """Two functions were declared under one task name."""


class TaskUnknown(TaskError):
    """No task of that name is declared in this app."""


class ArgumentError(TaskError):
    """A call does not fit the task's signature or annotated types; names the parameter."""


class PayloadError(SpoolError):
    """Arguments or a result cannot be stored: not serialisable, not finite, or nested too deep."""


class PayloadTooLarge(PayloadError):
    """Arguments or a result are larger than the limit, which the message names."""


class ProtectionError(SpoolError):
    """Something could not be signed or encrypted, or what is signed or encrypted is not to be believed, or read."""


class Unsigned(ProtectionError):
    """A job or result has no signature, where only signed ones are taken."""


class BadSignature(ProtectionError):
    """A signature is not that of this job or result, or it was made with a key that is not known here."""


class Undecryptable(ProtectionError):
    """What is encrypted was changed, belongs to another job, or was encrypted with a key that is not known here."""


class JobConflict(SpoolError):
    """The id given by the caller is taken by a job with another task or other arguments."""


class JobNotFound(SpoolError):
    """No such job, or it ended so long ago that it is no longer remembered."""


class EnqueueInterrupted(SpoolError):
    """A bulk enqueue stopped part of the way; ``acknowledged`` jobs are stored for good. The cause is chained."""

    def __init__(self, message: str, acknowledged: int) -> None:
        super().__init__(message)
        self.acknowledged = acknowledged


class NotDurable(SpoolError):
    """A job is stored, but the store did not confirm in time that it is on the disk, as ``durability="fsync"`` asks.

    It will run unless the store's machine fails first. The same call again, under an id of yours, stores nothing twice
    and waits for the disk once more.
    """


class BrokerError(SpoolError):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """The store cannot be reached, is loading, or does not answer in time.

    The call may or may not have been carried out. So it is too for an enqueue without a reply that was refused when it
    was sent again: then the refusal (`BrokerFull`, `BrokerRefused`) is the ``__cause__``.

    ``answered`` is True when the store said itself that it cannot serve now (loading, busy): then it is there, and has
    not given anybody's lease away. ``silent`` is True when a server between us and the store cannot be reached: the
    store may be well, serve others, and give leases away.
    """

    answered = False
    silent = False

    def __init__(self, message: str, *, answered: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.answered = answered
        self.silent = silent


class BrokerFull(BrokerError):
    """The store has no room for more (Redis maxmemory, disk full). Nothing was stored."""


class BrokerRefused(BrokerError):
    """The store answers but will not serve us: wrong password, no permission, read-only replica, unsafe eviction."""


class StoreCorrupt(BrokerError):
    """What lies in the store is not ours, is damaged, or has a newer layout than this version knows."""


class VersionConflict(BrokerError):
    """A document was changed by somebody else since it was loaded."""


class LeaseLost(BrokerError):
    """This incarnation holds no lease: it never beat, its lease ran out, or it was retired."""


class BenchError(SpoolError):
    """A benchmark could not be carried out."""


class ProfileError(SpoolError):
    """A process could not be profiled: the system forbids it, it is gone, or it is being profiled already."""


class ResultError(SpoolError):
    """A job has no result to give."""


class JobFailed(ResultError):
    """The job is dead. ``error_type`` and ``traceback`` are those of its last attempt."""

    def __init__(self, message: str, error_type: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.traceback = traceback


class JobCancelled(ResultError):
    """The job was cancelled."""


class ResultTimeout(ResultError, TimeoutError):
    """The job has not ended in the time given. It goes on by itself."""


class Directive(Exception):
    """What a task raises to say how its attempt is to end."""


def _seconds(name: str, delay: object) -> float:
    if isinstance(delay, dt.timedelta):
        delay = delay.total_seconds()
    if isinstance(delay, bool) or not isinstance(delay, int | float) or not 0 <= delay < math.inf:
        raise ConfigError(f"{name}(delay={delay!r}): a delay is a number of seconds, 0 or more, or a timedelta")
    return float(delay)


class Retry(Directive):
    """Try again after ``delay`` seconds or a timedelta (default: the task's backoff). Counts as a failed attempt.

    >>> raise Retry("rate limited", delay=30)
    Traceback (most recent call last):
    spool.errors.Retry: rate limited
    """

    def __init__(self, reason: str = "", *, delay: float | dt.timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = None if delay is None else _seconds("Retry", delay)


class Cancel(Directive):
    """End the job as cancelled; ``result()`` raises `JobCancelled` with the reason."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Release(Directive):
    """Hand the job back, to start again after ``delay`` (seconds or a timedelta, default 0.1 s). No failure."""

    def __init__(self, reason: str = "", *, delay: float | dt.timedelta = 0.1) -> None:
        super().__init__(reason)
        self.reason, self.delay = reason, _seconds("Release", delay)
