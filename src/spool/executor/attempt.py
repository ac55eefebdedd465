"""One attempt at a job: what is known of it while it runs, and how its end becomes a settlement."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

import msgspec

from spool.broker import Cancelled, Died, Done, Released, Retried, Settlement
from spool.errors import StoreCorrupt
from spool.executor.journal import Journal, Part
from spool.job import (
    NIL,
    NO_TALLY,
    VERSION,
    Attempt,
    Ending,
    Options,
    Record,
    Tally,
    encode_ending,
    encode_fields,
    extend_tally,
    read_tally,
)
from spool.report import Meter
from spool.retry import RetryPolicy, decide, delay
from spool.settings import TaskKind
from spool.task import Task

MESSAGE_LIMIT: Final = 4 * 1024
"""Bytes of an exception's message that are kept."""
TRACEBACK_LIMIT: Final = 16 * 1024
"""Bytes of a traceback that are kept, its first and its last half."""

MAX_DELAY: Final = 10 * 365 * 86_400_000
"""Milliseconds that a delay is cut to; stores compute with 53 bits."""

StopReason = Literal["timeout", "cancelled", "stopped", "lost"]
"""Why an attempt was told to stop: time is up, the job was cancelled, the worker stops, or the lease is lost."""


class Lease:
    """The right to run the jobs of a queue until a time, which whoever keeps it moves on. From any thread.

    ``until`` is in nanoseconds of the monotonic clock. An attempt that would begin later does not: its job may be
    another worker's by then, as after this process was stopped, or its interpreter held, for longer than the lease.
    """

    __slots__ = ("until",)

    def __init__(self, until: int) -> None:
        self.until = until


FOREVER: Final = Lease(2**63 - 1)


def unheard(_: Run) -> None:
    """Do nothing about what a job says: nobody is to be told."""


class Recipe(msgspec.Struct, frozen=True, eq=False):
    """What is to be known to run the jobs of one task from one queue, worked out once.

    ``timeout`` is in seconds, ``ttl`` in milliseconds. ``plain`` says that ``fn`` may be awaited as it is: an async
    task with no middleware around it. ``finish`` is told of each attempt that has ended, ``note`` of each that has
    something to say: in its own thread, and once until that was taken from its journal.
    """

    queue: str
    worker: str
    finish: Callable[[Run], None]
    task: str
    kind: TaskKind
    plain: bool
    fn: Callable[..., Any]
    read: Callable[[msgspec.Raw | bytes], tuple[Sequence[Any], Mapping[str, Any]]]
    encode: Callable[[Any], bytes]
    policy: RetryPolicy
    timeout: float | None
    keep: bool
    window: float
    ttl: int
    meter: Meter
    runs_on: bool
    """Whether it goes on when the store is silent, or the lease lost."""
    lease: Lease = FOREVER
    record_logs: bool = False
    note: Callable[[Run], None] = unheard

    @classmethod
    def of(
        cls,
        task: Task[..., Any],
        queue: str,
        worker: str,
        finish: Callable[[Run], None],
        *,
        window: float,
        plain: bool,
        lease: Lease = FOREVER,
        record_logs: bool = False,
        note: Callable[[Run], None] = unheard,
    ) -> Self:
        """Work it out. Raises `ConfigError` for annotations that cannot be used."""
        settings = task.settings
        return cls(
            queue,
            worker,
            finish,
            settings.name,
            settings.kind,
            plain,
            task.fn,
            task.signature.read,
            task.encode_result,
            settings.retry,
            settings.timeout,
            settings.result_ttl > 0,
            window,
            milliseconds(max(settings.result_ttl, window)),
            Meter(settings.name),
            settings.on_disconnect == "continue",
            lease,
            settings.record_logs if settings.record_logs is not None else record_logs,
            note,
        )

    def overridden(self, options: Options) -> Recipe:
        """Return this recipe with what one call asked for."""
        policy, keep, ttl = self.policy, self.keep, self.ttl
        if options.retries is not None:
            policy = msgspec.structs.replace(policy, retries=options.retries)
        if options.result_ttl is not None:
            keep, ttl = options.result_ttl > 0, milliseconds(max(options.result_ttl, self.window))
        timeout = self.timeout if options.timeout is None else options.timeout
        runs_on = self.runs_on if options.on_disconnect is None else options.on_disconnect == "continue"
        return msgspec.structs.replace(self, policy=policy, timeout=timeout, keep=keep, ttl=ttl, runs_on=runs_on)


class Interruptible(Protocol):
    """Work outside the event loop that can be told to end."""

    def stop(self) -> None:
        """Make it end; whoever awaits it learns of that when it has."""
        ...


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """An attempt that failed. ``delay`` is in seconds; None: the job is dead."""

    error_type: str
    message: str
    traceback: str
    delay: float | None


_beginning: Final = threading.Lock()
"""Held while an attempt gets its journal: threads of one may speak at once."""


class Run(msgspec.Struct, eq=False):
    """One attempt, from the claim to its settlement. ``began`` and ``ended`` are in nanoseconds of the monotonic clock.

    ``offset`` plus milliseconds of the monotonic clock is the store's time: clocks of clients decide nothing.
    """

    recipe: Recipe
    id: str
    fence: int
    record: Record
    tally: str
    offset: int
    began: int = 0
    ended: int = 0
    at: int = 0
    """`started`, once it is done: worked out once, since each attempt needs it twice."""
    stop: StopReason | None = None
    inner: Interruptible | None = None
    task: asyncio.Task[None] | None = None
    failure: Failure | None = None
    reason: str = ""
    """Why it was cancelled, in the words of who did it."""
    settlement: Settlement | None = None
    """None with ``ended`` set: the job is not ours any more, and nothing is to be told to the store."""
    journal: Journal | None = None
    """What it has said; None if nothing."""

    @property
    def queue(self) -> str:
        """The queue that it was claimed from."""
        return self.recipe.queue

    @property
    def started(self) -> int:
        """When the attempt began, or would have, in milliseconds of the store's clock."""
        return self.offset + (self.began or monotonic_ns()) // 1_000_000

    @property
    def finished(self) -> int:
        """When it ended, in milliseconds of the store's clock."""
        return self.offset + (self.ended or monotonic_ns()) // 1_000_000

    @property
    def attempt(self) -> int:
        """Its number, from 1. Hand-backs have numbers too: it tells attempts apart, and does not count failures."""
        return self.read_tally()[0].attempts + 1

    def write(self, level: str, logger: str, message: str) -> None:
        """Keep a log line. From any thread; what comes after its end is not kept."""
        if not self.ended and self._journal().write((self._now(), level, logger, message)):
            self.recipe.note(self)

    def report(self, done: float, total: float | None, message: str) -> None:
        """Keep how far it is, as `write`."""
        if not self.ended and self._journal().report((done, total, message, self._now())):
            self.recipe.note(self)

    def merge(self, part: Part) -> None:
        """Keep what it said in a process of the pool."""
        if not self.ended and self._journal().merge(part):
            self.recipe.note(self)

    def _journal(self) -> Journal:
        journal = self.journal
        if journal is None:
            with _beginning:
                journal = self.journal = self.journal or Journal()
        return journal

    def _now(self) -> int:
        return self.offset + monotonic_ns() // 1_000_000

    def check_lease(self) -> None:
        """Raise `asyncio.CancelledError` if the lease has run out. The attempt ends as lost then. From any thread."""
        if monotonic_ns() > self.recipe.lease.until:
            self.stop = "lost"
            raise asyncio.CancelledError

    def read_tally(self) -> tuple[Tally, list[Attempt]]:
        """Return what happened before; one that cannot be read counts as none, since the job's next end rewrites it."""
        try:
            return read_tally(self.tally)
        except StoreCorrupt:
            return NO_TALLY, []


# How an attempt ends


def done(run: Run, result: bytes) -> Done:
    """Settle as done; ``result`` is msgpack."""
    recipe, record, offset = run.recipe, run.record, run.offset
    run.at = started = offset + run.began // 1_000_000
    # The fields of an `Ending`, as a tuple: this is made for each job, and a tuple is made and encoded sooner.
    ending: tuple[object, ...] = (
        VERSION,
        "done",
        record.task,
        record.fingerprint,
        record.created,
        started,
        offset + run.ended // 1_000_000,
        run.read_tally()[0].attempts + 1 if run.tally else 1,
        msgspec.Raw(result) if recipe.keep else NIL,
        "",
        recipe.worker,
        run.tally,
        record.priority,
    )
    if record.key is not None:
        ending = (*ending, None, record.key)  # behind the signature, which comes later
    return Done(run.id, run.fence, encode_fields(ending), recipe.ttl)


def cancelled(run: Run, reason: str) -> Cancelled:
    """Settle as cancelled."""
    record = run.record
    ending = Ending(
        VERSION,
        "cancelled",
        record.task,
        record.fingerprint,
        record.created,
        run.started,
        run.finished,
        run.read_tally()[0].attempts + (run.began > 0),
        reason=bounded(reason, MESSAGE_LIMIT),
        worker=run.recipe.worker,
        tally=run.tally,
        priority=record.priority,
        key=record.key,
    )
    return Cancelled(run.id, run.fence, encode_ending(ending), run.recipe.ttl)


def released(run: Run, outcome: Literal["released", "stopped"], seconds: float) -> Released:
    """Hand the job back. An attempt that never began leaves no trace."""
    tally = _add(run, outcome) if run.began else run.tally
    return Released(run.id, run.fence, tally, milliseconds(seconds))


def failed(run: Run, failure: Failure) -> Retried | Died:
    """Settle as failed: the job runs again, or is dead."""
    run.failure = failure
    if failure.delay is None:
        return Died(run.id, run.fence, _add(run, "died", failure, failures=1))
    return Retried(run.id, run.fence, _add(run, "retried", failure, failures=1), milliseconds(failure.delay))


def crashed(run: Run, detail: str) -> Retried | Died:
    """Settle an attempt whose process died: no failure of the task, but dead after ``max_crashes`` of them."""
    crashes = run.read_tally()[0].crashes + 1
    dead = crashes >= run.record.max_crashes
    wait = delay(run.recipe.policy.backoff, crashes, random.random())  # noqa: S311 - jitter is no secret
    failure = run.failure = Failure("WorkerCrashed", detail, "", None if dead else wait)
    tally = _add(run, "crashed", failure, crashes=1)
    return Died(run.id, run.fence, tally) if dead else Retried(run.id, run.fence, tally, milliseconds(wait))


def _add(run: Run, outcome: str, failure: Failure | None = None, *, failures: int = 0, crashes: int = 0) -> str:
    told = (failure.error_type, failure.message, failure.traceback) if failure else ()
    number = run.read_tally()[0].attempts + 1
    attempt = Attempt(number, outcome, run.started, run.finished, run.recipe.worker, *told)
    return extend_tally(run.tally, attempt, failures=failures, crashes=crashes)


# Errors


def judge(error: BaseException, policy: RetryPolicy, failures: int) -> Failure:
    """Describe an exception and decide when the job is tried again; ``failures`` counts this one."""
    jitter = random.random()  # noqa: S311 - jitter is no secret
    # SystemExit and the like are failures as any other, unless the policy names them.
    named = isinstance(error, (Exception, *policy.retry_on, *policy.no_retry_on))
    try:
        wait = decide(policy, failures, error if named else Exception(), jitter)
    except Exception as problem:  # noqa: BLE001 - a policy that cannot decide must not take the worker down
        problem.add_note(f"while deciding whether to retry after {type(error).__name__}")
        error, wait = problem, delay(policy.backoff, failures, jitter) if failures <= policy.retries else None
    return describe(error, wait)


def describe(error: BaseException, wait: float | None = None) -> Failure:
    """Describe an exception within the limits, without Spool's own frames around the task's."""
    return Failure(
        type_name(error), bounded(_text(error), MESSAGE_LIMIT), bounded(_trace(error), TRACEBACK_LIMIT), wait
    )


def type_name(error: BaseException) -> str:
    """Return the name of an exception's type: short for Python's and Spool's own, else with its module."""
    kind = type(error)
    known = kind.__module__ in {"builtins", "asyncio.exceptions", "spool.errors"}
    return kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"


def bounded(text: str, limit: int) -> str:
    """Return text that can be stored and takes at most ``limit`` bytes: without its middle, if need be."""
    body = text.encode(errors="replace")
    if len(body) > limit:
        half = (limit - 40) // 2
        body = b"%b\n[%d bytes left out]\n%b" % (body[:half], len(body) - 2 * half, body[-half:])
    return body.decode(errors="ignore")


def milliseconds(seconds: float) -> int:
    """Return a delay as the stores take it: whole, not negative, and no further than they can compute."""
    if not seconds > 0:  # NaN too
        return 0
    return MAX_DELAY if math.isinf(seconds) else min(round(seconds * 1000), MAX_DELAY)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # noqa: BLE001 - a task's own __str__ may do anything
        return f"(no message: its __str__ raised {type(problem).__name__})"


_OURS: Final = tuple(str(Path(__file__).with_name(f"{name}.py")) for name in ("__init__", "threads", "process"))
"""The files whose frames lie between the worker and a task."""


def _trace(error: BaseException) -> str:
    try:
        frames = _outside(error.__traceback__)
        return "".join(traceback.format_exception(type(error), error, frames, limit=-100))
    except Exception as problem:  # noqa: BLE001 - as above
        return f"(no traceback: formatting it raised {type(problem).__name__})"


def _outside(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_code.co_filename in _OURS:
        frames = frames.tb_next
    return frames


current_run: ContextVar[Run] = ContextVar("spool.run")
"""The attempt that is being made in this context."""
