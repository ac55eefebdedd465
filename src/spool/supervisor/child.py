"""What a worker process runs: a worker, and a thread that keeps in touch with the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from spool.app import Spool
from spool.broker import Settlement, connect
from spool.errors import ConfigError, SpoolError
from spool.executor.attempt import Run
from spool.log import configure
from spool.nursery import Frames, leave, load_app, pack_frame, read_frame, send_frame
from spool.supervisor import tracing
from spool.supervisor.messages import (
    PULSE,
    Born,
    Condemned,
    Draining,
    Due,
    Fatal,
    FromChild,
    Go,
    Kick,
    OnTrial,
    Over,
    Pulse,
    Quiet,
    Registered,
    Reported,
    Stop,
    ToChild,
    Trace,
    Untrace,
)
from spool.supervisor.options import Assignment
from spool.worker import Worker
from spool.worker.heartbeat import Heard, Holder, resident
from spool.worker.life import HURRY, STUCK
from spool.worker.lifespans import place_of

if TYPE_CHECKING:
    from asyncio import new_event_loop as _new_loop
else:
    try:
        from uvloop import new_event_loop as _new_loop
    except ImportError:  # not on every platform
        from asyncio import new_event_loop as _new_loop

logger = logging.getLogger("spool.worker")

Stopper = Callable[..., object]

LEFT: Final = 1.0
"""Seconds that tasks and threads get to end in which a worker's jobs have left behind, as asyncio.to_thread does."""


def work(sock: socket.socket) -> int:
    """Be a worker process, told what to do through this socket."""
    assignment = msgspec.convert(read_frame(sock), Assignment)
    options = assignment.options
    configure(options.log_level, options.log_format)
    # A Ctrl-C reaches the whole group: what it means is the supervisor's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if options.profile is not None:
        tracing.prepare(assignment.supervisor)
    app = load_app(options.app)
    # A batch of jobs is a thousand objects and more, all of which are gone when it is: looking for cycles among them
    # every 700 of them, the default, finds nothing and takes some 5 % of a busy worker's time.
    gc.set_threshold(10_000, 20, 50)
    runner, code = asyncio.Runner(loop_factory=_new_loop), 0
    try:
        with app.using(connect(options.url)) if options.url else contextlib.nullcontext():
            _refuse_memory(app.broker.url)
            runner.run(_work(app, assignment, sock))
    except SpoolError as error:
        with contextlib.suppress(OSError):  # nobody is there any more, and that comes to our ears elsewhere
            send_frame(sock, Fatal(type(error).__name__, str(error)))
        code = 1
    except BaseException as error:
        # A lifespan may raise anything, and only the log can tell of it.
        where, what = place_of(error) or "at its work", f"{type(error).__name__}: {error}"
        logger.exception("the worker process failed %s: %s", where, what)
        code = 70
    # Not as the runner does it, which waits for them without end, while others run the jobs that they belong to.
    if not runner.run(_clear_up()):
        logger.warning("tasks or threads that jobs have left behind do not end: the process ends without them")
        leave(code)
    runner.close()
    return code


def _refuse_memory(url: str) -> None:
    if url.startswith("sqlite://:memory:"):
        raise ConfigError(
            "sqlite://:memory: is a store of one process, which no client of a worker process can reach; "
            "use a file (sqlite:///jobs.db) or Redis"
        )


async def _clear_up() -> bool:
    """End the tasks and threads that jobs and lifespans have left on the loop. Return whether all ended in time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LEFT
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    closing = [loop.create_task(each) for each in (loop.shutdown_asyncgens(), loop.shutdown_default_executor())]
    for each in (left, *({task} for task in closing)):
        if each and (await asyncio.wait(each, timeout=max(0.0, end - loop.time())))[1]:
            return False
    return True


async def _work(app: Spool, assignment: Assignment, sock: socket.socket) -> None:
    options = assignment.options
    link = SupervisorLink(sock, options.lease)
    worker = Worker(
        app,
        options.queues,
        concurrency=options.concurrency,
        pool_size=_pool_size(assignment),
        lease=options.lease,
        grace=options.grace,
        unroutable_after=options.unroutable_after,
        name=options.name,
        target=options.app,
        url=options.url,
        max_jobs=_spread(options.max_jobs),
        kill_after=options.kill_after,
        link=link,
        trial=assignment.role == "trial",
        on_life=link.registered,
        record_logs=options.record_logs,
    )
    asked = False

    def ask_to_stop() -> None:
        # From a service manager, which may send it to every process: the supervisor's word comes as well, and only
        # that may mean "at once".
        nonlocal asked
        if not asked:
            asked = True
            worker.stop()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ask_to_stop)
    link.start(worker, ask_to_stop, Limits(options.max_memory, options.max_age), go=assignment.role != "spare")
    await link.until_told()
    if not asked:
        await worker.run()


def _pool_size(assignment: Assignment) -> int:
    options = assignment.options
    if assignment.role == "trial":
        return 1
    if options.pool_size is not None:
        return options.pool_size
    return max(1, (os.cpu_count() or 1) // options.processes)


def _spread(limit: int | None) -> int | None:
    """Return a limit less up to a tenth, so that processes which began together do not end together."""
    return None if limit is None else max(1, round(limit * random.uniform(0.9, 1.0)))  # noqa: S311 - jitter


class Limits:
    """When a process is to be replaced: megabytes of memory, and seconds since now; None for no limit."""

    def __init__(self, memory: float | None, age: float | None) -> None:
        self._memory = memory
        self._until = None if age is None else time.monotonic() + age * random.uniform(0.9, 1.0)  # noqa: S311 - jitter

    def exceeded(self) -> str:
        """Say which one is exceeded, or nothing."""
        if self._until is not None and time.monotonic() > self._until:
            return "it has reached its age"
        if self._memory is not None and (taken := resident() / (1 << 20)) > self._memory:
            return f"it takes {taken:.0f} MB of memory, more than {self._memory:g}"
        return ""


class SupervisorLink:
    """The way to the supervisor, which keeps the leases: a `spool.worker.Link` with a thread that listens and pulses.

    A thread, so that neither a blocked event loop keeps word from coming in, nor signs of life from going out.
    """

    def __init__(self, sock: socket.socket, lease: float) -> None:
        self._sock = sock
        self.lifeline = sock.fileno()
        self._pulse = min(PULSE, lease / 10)
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()
        self._holder: Holder | None = None
        self._worker: Worker | None = None
        self._seen = time.monotonic()
        self._draining = self._dying = False
        self._end_by = math.inf
        """When the jobs must have ended (monotonic): a loop that is blocked then does not come to ending them."""
        self._tracing = tracing.Tracing(self._tell)

    def start(self, worker: Worker, ask_to_stop: Stopper, limits: Limits, *, go: bool) -> None:
        """Begin to listen. Without ``go``, work begins when the supervisor says so."""
        self._worker, self._ask_to_stop, self._limits = worker, ask_to_stop, limits
        if go:
            self._told.set()
        threading.Thread(target=self._run, name="spool-link", daemon=True).start()

    async def until_told(self) -> None:
        """Wait until there is something to do: work, or an end."""
        await self._told.wait()

    # To the supervisor

    def add(self, holder: Holder) -> None:
        self._holder = holder
        self._tell(Born(holder.incarnation, list(holder.queues), list(holder.tasks), holder.row()))

    def registered(self, incarnation: str) -> None:
        """Say that an incarnation holds its leases."""
        self._tell(Registered(incarnation))

    def remove(self, incarnation: str) -> None:
        self._tell(Over(incarnation))

    def report(self, incarnation: str, queue: str, claim_seq: int, ids: tuple[str, ...]) -> None:
        self._tell(Reported(incarnation, queue, claim_seq, list(ids)))

    def kick(self) -> None:
        self._tell(Kick())

    def put_on_trial(self, queue: str, id: str) -> None:
        self._tell(OnTrial(queue, id))

    def due(self, at: float) -> None:
        """Say when the next timeout is."""
        self._tell(Due(at))

    def drain(self, reason: str) -> None:
        if not self._draining:
            self._draining = True
            self._tell(Draining(reason))

    async def die(self, late: Sequence[tuple[str, int, Settlement]]) -> None:
        self._die(late)
        await asyncio.sleep(10)

    def _die(self, late: Sequence[tuple[str, int, Settlement]]) -> None:
        if not self._dying:
            self._dying = True
            self._tell(Condemned(list(late)))

    def _tell(self, message: FromChild) -> None:
        with self._lock, contextlib.suppress(OSError):  # nobody is there any more: the thread finds out
            self._sock.sendall(pack_frame(message))

    # The thread

    def _run(self) -> None:
        frames = Frames()
        due = 0.0
        while True:
            left = due - time.monotonic()
            if left <= 0:
                due = time.monotonic() + self._pulse
                self._beat()
                continue
            if not select.select([self._sock], [], [], left)[0]:
                continue
            try:
                data = self._sock.recv(65536)
            except OSError:
                data = b""
            if not data:  # the supervisor is gone
                self._post(self._end)
                return
            for message in frames.feed(data):
                self._hear(msgspec.convert(message, ToChild))

    def _hear(self, message: ToChild) -> None:
        match message:
            case Heard():
                if self._holder is not None:
                    self._holder.hear(message)
            case Stop(now):
                if self._worker is not None:
                    takes = HURRY if now else self._worker.grace + STUCK
                    self._end_by = min(self._end_by, time.monotonic() + takes)
                self._post(self._stop, now)
            case Go():
                self._post(self._told.set)
            case Quiet():
                if self._worker is not None:
                    self._worker.be_quiet()
            case Trace(base):
                self._tracing.start(Path(base))
            case Untrace():
                self._tracing.stop()

    def _post(self, call: Stopper, *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *args)

    def _stop(self, now: bool) -> None:  # noqa: FBT001 - as it comes
        self._ask_to_stop()
        if now and self._worker is not None:
            self._worker.stop()
        self._told.set()

    def _end(self) -> None:
        self._stop(now=True)

    def _beat(self) -> None:
        holder, worker = self._holder, self._worker
        row = holder.row() if holder is not None else b""
        self._tell(Pulse(row, worker.due if worker is not None else 0.0))
        if worker is None:
            return
        if not self._draining and (reason := self._limits.exceeded()):
            worker.drain(reason)
        if time.monotonic() - self._seen > 2 * self._pulse and not self._dying:
            self._look_into(worker)
        self._post(self._see)

    def _look_into(self, worker: Worker) -> None:
        """Ask for the end of the process if what blocks its loop should be over."""
        run = worker.blocked_by()
        late = run is not None and _is_late(run, worker)
        if not late and time.monotonic() < self._end_by:
            return
        if run is None:
            logger.error("the event loop is blocked, and the worker does not end: killed")
        else:
            logger.error("%s/%s %s blocks the event loop and does not end: killed", run.queue, run.id, run.record.task)
            if late:
                run.stop = run.stop or "timeout"
        self._die(worker.late())

    def _see(self) -> None:
        self._seen = time.monotonic()


def _is_late(run: Run, worker: Worker) -> bool:
    timeout = run.recipe.timeout
    return timeout is not None and time.monotonic() > run.began / 1e9 + timeout + worker.kill_after
