"""Where tasks run that are not for the event loop: a thread pool and a process pool of our own.

Of our own, because a timeout must be able to reach into them: into one thread, or to one process that is then replaced
alone. And because they end with the worker, whatever they are doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from time import monotonic_ns
from typing import Any, Final, NamedTuple

import msgspec

from spool.broker import connect
from spool.errors import Cancel, ConfigError, Release
from spool.executor.attempt import Failure, Recipe, Run, current_run, describe, judge
from spool.job import read_record
from spool.nursery import (
    Exited,
    Failed,
    Frames,
    Gone,
    Nursery,
    Ready,
    Started,
    describe_exit,
    load_app,
    pack_frame,
    read_frame,
    send_frame,
)

logger = logging.getLogger("spool.worker")

# Threads


class Threads:
    """A pool of up to ``size`` daemon threads, started as they are needed. To be used from its loop's thread."""

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self._size = size
        self._loop = loop
        self._calls: SimpleQueue[_ThreadCall | None] = SimpleQueue()
        self._ended: deque[_ThreadCall] = deque()
        self._told = False
        self._threads = 0
        self._busy = 0

    async def run(self, run: Run, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``fn`` in a thread, with this context's variables. Returns only when the thread is through with it."""
        call = _ThreadCall(run, fn, args, kwargs, self._loop.create_future())
        self._busy += 1
        if self._busy > self._threads and self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._work, name=f"spool-{self._threads}", daemon=True).start()
        self._calls.put(call)
        run.inner = call
        try:
            await call.future
        finally:
            run.inner = None
        if call.error is not None:
            try:
                raise call.error
            finally:
                call.error = None  # its traceback holds the call
        return call.value

    def close(self) -> None:
        """Let threads that are idle end, and the others when their calls return. Waits for none."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            self._ended.append(call)
            del call
            if not self._told:  # one wake-up of the loop for as many as have ended by then
                self._told = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:  # the loop is closed
                    return

    def _collect(self) -> None:
        self._told = False
        while self._ended:
            call = self._ended.popleft()
            self._busy -= 1
            if not call.future.done():
                call.future.set_result(None)


class _ThreadCall:
    __slots__ = (
        "_args",
        "_context",
        "_fn",
        "_kwargs",
        "_lock",
        "_run",
        "_stopped",
        "_thread",
        "error",
        "future",
        "value",
    )

    def __init__(
        self,
        run: Run,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        future: asyncio.Future[None],
    ) -> None:
        self._run, self._fn, self._args, self._kwargs = run, fn, args, kwargs
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._stopped = False
        self.future = future
        self.value: Any = None
        self.error: BaseException | None = None

    def stop(self) -> None:
        """Raise CancelledError in the thread, as soon as it runs Python again. Whether it obeys is up to it."""
        with self._lock:
            self._stopped = True
            if self._thread is not None:
                _raise_in(self._thread, asyncio.CancelledError)

    def run(self) -> None:
        """Make the call; in the thread."""
        # `stop` may strike at any line from where the thread is known to where it is not any more.
        try:
            self._call()
        except asyncio.CancelledError as error:
            self.error = error
        self._leave()

    def _call(self) -> None:
        with self._lock:
            self._thread = None if self._stopped else threading.get_ident()
        if self._thread is None:
            self.error = asyncio.CancelledError()
            return
        try:
            self._run.check_lease()  # the process may have been stopped on the way from the loop to here
            self.value = self._context.run(self._fn, *self._args, **self._kwargs)
        except BaseException as error:  # noqa: BLE001 - it is the task's, and the loop's thread will judge it
            self.error = error

    def _leave(self) -> None:
        while True:
            try:
                with self._lock:
                    if self._stopped and self._thread is not None:
                        _raise_in(self._thread, None)
                    self._thread = None
                return
            except asyncio.CancelledError:
                continue


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have the thread raise this at its next bytecode; None takes back what has not been raised yet."""
    import ctypes

    told = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), told)


# Processes


class ProcessDied(Exception):
    """The process that ran the task died, and not because we wanted it to."""


class RemoteFailure(Exception):
    """The task raised in its process, where its error was described and judged."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Processes:
    """A pool of ``size`` warm processes with the app ``module:attribute`` imported. To be used from its loop's thread.

    ``url`` is the broker that tasks there use to enqueue, if not the app's own. ``grace`` is what a process gets
    between SIGTERM and SIGKILL, in seconds.
    """

    def __init__(self, app: str, size: int, *, url: str | None = None, grace: float = 2.0) -> None:
        self.size = size
        self._app = app
        self._url = url
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._nursery: Nursery | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._members: dict[int, _Member] = {}
        self._idle: deque[_Member] = deque()
        self._waiting: deque[asyncio.Future[_Member]] = deque()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the members that run."""
        return [member.pid for member in self._members.values() if member.pid]

    async def start(self) -> None:
        """Start the processes; returns when the app is imported. Raises `ConfigError` if it can't be."""
        self._open()
        await self._ready

    async def run(self, run: Run, body: bytes) -> msgspec.Raw:
        """Run a whole attempt in a process and return the encoded result. Raises what ended it.

        Comes back only when the task has ended, or its process has.
        """
        member = await self._take()
        run.inner = member
        try:
            while True:
                run.check_lease()
                until = run.recipe.lease.until
                reply = await member.ask(
                    _Request(run.id, run.queue, body, run.tally, run.recipe.worker, run.offset, until)
                )
                if reply != _LATE:
                    return _open_reply(reply)
        finally:
            run.inner = None
            self._give(member)

    def close(self) -> None:
        """Kill the processes and end."""
        self._closed = True
        if self._nursery is not None:
            self._loop.remove_reader(self._nursery.fileno())
            self._nursery.kill()
        for member in self._members.values():
            member.end(-signal.SIGKILL)
        self._members.clear()

    def stop_member(self, number: int) -> None:
        """SIGTERM now, SIGKILL after the grace, to a member that is still there."""
        self._signal(number, signal.SIGTERM)
        self._loop.call_later(self._grace, self._signal, number, signal.SIGKILL)

    # Members: an idle one is given to the next who waits

    async def _take(self) -> _Member:
        while self._idle:
            member = self._idle.popleft()
            if member.usable:
                return member
        waiting: asyncio.Future[_Member] = self._loop.create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self._give(waiting.result())
            raise

    def _give(self, member: _Member) -> None:
        if not member.usable:
            return  # its successor comes when it has ended
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(member)
                return
        self._idle.append(member)

    def _start_member(self) -> None:
        if self._nursery is not None and not self._closed:
            number, sock = self._nursery.start([self._app, self._url])
            member = self._members[number] = _Member(self, number, sock, self._loop)
            self._give(member)

    # The nursery

    def _open(self) -> None:
        if self._closed:
            return
        self._nursery = Nursery("spool.executor.pool:serve", self._app, self._url)
        self._loop.add_reader(self._nursery.fileno(), self._listen, self._nursery)
        for _ in range(self.size):
            self._start_member()

    def _listen(self, nursery: Nursery) -> None:
        for event in nursery.read():
            match event:
                case Ready():
                    if not self._ready.done():
                        self._ready.set_result(None)
                case Started(number, pid):
                    self._members[number].pid = pid
                case Exited(number, code):
                    member = self._members.pop(number)
                    member.end(code)
                    # One that dies before its first job will do so again: no faster than this.
                    self._loop.call_later(0.0 if member.used else 0.5, self._start_member)
                case Failed(reason):
                    self._fail(reason)
                case Gone():
                    self._lose(nursery)

    def _fail(self, reason: str) -> None:
        problem = f"the process pool cannot import {self._app}: {reason}"
        if self._ready.done():
            logger.error(problem)
        else:
            self._ready.set_exception(ConfigError(problem))

    def _lose(self, nursery: Nursery) -> None:
        """Begin anew after the nursery has died, and all its children with it."""
        self._loop.remove_reader(nursery.fileno())
        self._nursery = None
        nursery.close()
        members, self._members = self._members, {}
        for member in members.values():
            member.end(-signal.SIGKILL)
        self._loop.call_later(0.5, self._open)

    def _signal(self, number: int, signum: int) -> None:
        if self._nursery is not None and number in self._members:
            self._nursery.signal(number, signum)


class _Member:
    """One process of a pool."""

    def __init__(self, pool: Processes, number: int, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        sock.setblocking(False)  # noqa: FBT003 - its signature
        self._pool = pool
        self._number = number
        self._loop = loop
        self._sock = sock
        self._frames = Frames()
        self._exit: asyncio.Future[int] = loop.create_future()
        self._stopped = False
        self._asking = False
        self.pid = 0
        self.used = False

    @property
    def usable(self) -> bool:
        return not self._stopped and not self._exit.done()

    async def ask(self, request: object) -> Any:
        """Send a request and wait for the reply. Raises `ProcessDied`."""
        self.used = self._asking = True
        try:
            reply = await self._ask(request)
            if reply is not None:
                return reply
            if self.usable:  # it lives, but has closed the line: it is of no use any more
                self.stop()
            raise ProcessDied(f"its process ended with {describe_exit(await self._exit)}")
        finally:
            self._asking = False
            if self._exit.done():
                self._sock.close()

    async def _ask(self, request: object) -> Any:
        with contextlib.suppress(OSError):
            await self._loop.sock_sendall(self._sock, pack_frame(request))
            while data := await self._loop.sock_recv(self._sock, 1 << 18):
                for reply in self._frames.feed(data):
                    return reply
        return None

    def stop(self) -> None:
        """Make it end its task, and itself. The message tells it that the signal is meant for it."""
        if not self._stopped:
            self._stopped = True
            with contextlib.suppress(OSError):
                self._sock.send(pack_frame(_STOP))
            self._pool.stop_member(self._number)

    def end(self, code: int) -> None:
        """Take note that it has ended."""
        if not self._exit.done():
            self._exit.set_result(code)
        if self._asking:
            with contextlib.suppress(OSError):  # a process that the task left behind may keep the other end open
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._sock.close()


def _open_reply(reply: Any) -> msgspec.Raw:
    match reply:
        case ["done", bytes(result)]:
            return msgspec.Raw(result)
        case ["cancel", reason]:
            raise Cancel(reason)
        case ["release", reason, delay]:
            raise Release(reason, delay=delay)
        case ["failed", failure]:
            raise RemoteFailure(msgspec.convert(failure, Failure))
        case _:
            raise AssertionError(f"a pool process does not say {reply!r}")


def _ignore(_: Run) -> None:
    """Do nothing: in a process nobody waits for the run."""


# In the process

_STOP: Final = ["stop"]
_LATE: Final = ["late"]
"""The reply to a request that came when its lease had run out. It may have been renewed since: the worker knows."""


def serve(sock: socket.socket) -> int:
    """Run the attempts that come through this socket, one after the other, until it is closed."""
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
    with app.using(connect(url)) if url else contextlib.nullcontext():
        try:
            while (request := read_frame(sock)) != _STOP:
                send_frame(sock, _attempt(tasks, _Request(*request)))
        except (EOFError, OSError, asyncio.CancelledError):
            pass  # the worker is gone, or has told us to end between two tasks
    return 0


def _end_task(sock: socket.socket) -> None:
    # SIGTERM alone may be a service manager's, sent to every process there is; the worker's comes with a message.
    if select.select([sock], [], [], 0)[0]:
        raise asyncio.CancelledError


class _Request(NamedTuple):
    id: str
    queue: str
    body: bytes
    tally: str
    worker: str
    offset: int
    until: int


def _attempt(tasks: Mapping[str, Recipe], of: _Request) -> list[Any]:
    if monotonic_ns() > of.until:
        return _LATE
    record = read_record(of.body)
    recipe = msgspec.structs.replace(tasks[record.task], queue=of.queue, worker=of.worker)
    if record.options is not None:
        recipe = recipe.overridden(record.options)
    run = Run(recipe, of.id, 0, record, of.tally, of.offset, began=monotonic_ns())
    current_run.set(run)
    called = returned = False
    try:
        args, kwargs = recipe.read(record.payload)
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
