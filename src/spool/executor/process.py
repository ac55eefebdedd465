"""What a process of the pool does: run one attempt after the other, with the app's lifespans around them all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from time import monotonic_ns, sleep
from typing import Any, Final, NamedTuple

import msgspec

from spool.app import Spool
from spool.broker import connect
from spool.errors import Cancel, ConfigError, Release
from spool.executor.attempt import Recipe, Run, current_run, describe, judge
from spool.executor.recording import record
from spool.job import read_record
from spool.nursery import load_app, read_frame, send_frame

logger = logging.getLogger("spool.worker")

READY: Final = ["ready"]
STOP: Final = ["stop"]
SAID: Final = "said"
"""With a `Part`: what the task says while it runs."""
SAY_EVERY: Final = 0.5
"""Seconds between two of these."""
LATE: Final = ["late"]
"""The reply to a request that came when its lease had run out. It may have been renewed since: the worker knows."""


def _ignore(_: Run) -> None:
    """Do nothing: in a process nobody waits for the run."""


_inside = False


def is_pool_process() -> bool:
    """Whether this is a process of a pool: its lifespans may do other things there."""
    return _inside


def serve(sock: socket.socket) -> int:
    """Run the attempts that come through this socket, one after the other, until it is closed."""
    global _inside  # noqa: PLW0603 - it is a fact about the process
    _inside = True
    target, url = read_frame(sock)
    app = load_app(target)
    tasks = {
        name: Recipe.of(task, "", "", _ignore, window=app.dedupe_window, plain=True)
        for name, task in app.tasks.items()
        if task.settings.kind == "process"
    }
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _signum, _frame: _end_task(sock))
    with app.using(connect(url)) if url else contextlib.nullcontext(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_surrounded(app))
        except BaseException as error:  # noqa: BLE001 - a lifespan may raise anything; the worker is told
            wrong = isinstance(error, ConfigError)
            reason = str(error) if wrong else f"{type(error).__name__}: {error}"
            send_frame(sock, ["unfit", reason, traceback.format_exc(), wrong])
            return 1
        try:
            voice = Voice(sock)
            send_frame(sock, READY)
            while (request := read_frame(sock)) != STOP:
                voice.answer(_attempt(tasks, Request(*request), voice))
        except (EOFError, OSError, asyncio.CancelledError):
            pass  # the worker is gone, or has told us to end between two tasks
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it must not keep us from leaving in order
    return 0


@contextlib.contextmanager
def _surrounded(app: Spool) -> Generator[None]:
    """Enter the app's lifespans, and leave them in the end, on an event loop that runs in a thread meanwhile."""
    if not app.lifespans:
        yield
        return
    entered: Future[Callable[[], object]] = Future()

    def run() -> None:
        try:
            asyncio.run(_stay(app, entered))
        except BaseException as error:
            if entered.done():
                logger.exception("a lifespan failed when a process of the pool ended")
            else:
                entered.set_exception(error)

    thread = threading.Thread(target=run, name="spool-lifespans", daemon=True)
    thread.start()
    leave = entered.result()
    try:
        yield
    finally:
        leave()
        thread.join()


async def _stay(app: Spool, entered: Future[Callable[[], object]]) -> None:
    # All in one task, since task groups and the like must be left where they were entered.
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        for lifespan in app.lifespans:
            await stack.enter_async_context(lifespan(app))
        entered.set_result(lambda: loop.call_soon_threadsafe(end.set))
        await end.wait()


def _end_task(sock: socket.socket) -> None:
    # SIGTERM alone may be a service manager's, sent to every process there is; the worker's comes with a message.
    if select.select([sock], [], [], 0)[0]:
        raise asyncio.CancelledError


class Request(NamedTuple):
    id: str
    queue: str
    body: bytes
    tally: str
    worker: str
    offset: int
    until: int
    record_logs: bool


class Voice:
    """The way to the worker: replies, and before them what the task says, which a thread of its own sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._run: Run | None = None
        self._records = False

    def record(self) -> None:
        """Take log lines of jobs from now on."""
        if not self._records:
            self._records = True
            record(ours=True)

    def note(self, run: Run) -> None:
        """Send what the run says, in a while."""
        if run.ended:  # a thread that it left behind, while the next job runs
            return
        self._run = run
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._speak, name="spool-voice", daemon=True)
            self._thread.start()

    def answer(self, reply: object) -> None:
        """Send what is left to say, and the reply."""
        with self._sending:
            if self._run is not None:
                self._send(self._run)
                self._run = None
            send_frame(self._sock, reply)

    def _speak(self) -> None:
        with contextlib.suppress(OSError):  # the worker is gone, and the task's own thread finds out
            while self._wanted.wait():
                sleep(SAY_EVERY)
                self._wanted.clear()
                with self._sending:
                    if self._run is not None:
                        self._send(self._run)

    def _send(self, run: Run) -> None:
        if run.journal is not None and run.journal.waiting:
            part = run.journal.unsent()
            send_frame(self._sock, [SAID, part])
            run.journal.sent(part)


def _attempt(tasks: Mapping[str, Recipe], of: Request, voice: Voice) -> list[Any]:
    if monotonic_ns() > of.until:
        return LATE
    if of.record_logs:
        voice.record()
    job = read_record(of.body)
    recipe = msgspec.structs.replace(
        tasks[job.task], queue=of.queue, worker=of.worker, record_logs=of.record_logs, note=voice.note
    )
    if job.options is not None:
        recipe = recipe.overridden(job.options)
    run = Run(recipe, of.id, 0, job, of.tally, of.offset, began=monotonic_ns())
    current_run.set(run)
    called = returned = False
    try:
        args, kwargs = recipe.read(job.payload)
        called = True
        result = recipe.fn(*args, **kwargs)
        returned = True
        return ["done", recipe.encode(result)]
    except Cancel as directive:
        return ["cancel", directive.reason]
    except Release as directive:
        return ["release", directive.reason, directive.delay]
    except BaseException as error:  # noqa: BLE001 - a task may raise anything
        failures = run.read_tally()[0].failures + 1
        again = called and not returned
        return ["failed", judge(error, recipe.policy, failures) if again else describe(error)]
    finally:
        run.ended = monotonic_ns()
