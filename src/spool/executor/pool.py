"""Where ``process=True`` tasks run: a process pool of our own, as the worker sees it.

Of our own, because a timeout must be able to reach one process, which is then replaced alone. And because they end with
the worker, whatever they are doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from spool.errors import Cancel, ConfigError, Release
from spool.executor.attempt import Failure, Run
from spool.executor.journal import Part
from spool.executor.process import LATE, SAID, STOP, Request
from spool.nursery import (
    Exited,
    Failed,
    Frames,
    Gone,
    Nursery,
    Ready,
    Started,
    describe_exit,
    pack_frame,
)

logger = logging.getLogger("spool.worker")

LONGEST_PAUSE: Final = 30.0
"""Seconds between two starts of a process that does not come to its first job."""


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
    between SIGTERM and SIGKILL, in seconds. ``lifeline`` as for a `Nursery`. A process is given tasks when it has
    entered the app's lifespans. One that cannot is started again, after half a second at first, and less and less
    often.
    """

    def __init__(
        self, app: str, size: int, *, url: str | None = None, grace: float = 2.0, lifeline: int | None = None
    ) -> None:
        self.size = size
        self._app = app
        self._url = url
        self._grace = grace
        self._lifeline = lifeline
        self._loop = asyncio.get_running_loop()
        self._nursery: Nursery | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._members: dict[int, _Member] = {}
        self._idle: deque[_Member] = deque()
        self._waiting: deque[asyncio.Future[_Member]] = deque()
        self._welcomes: set[asyncio.Task[None]] = set()
        self._falls = 0
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the members that run."""
        return [member.pid for member in self._members.values() if member.pid]

    async def start(self) -> None:
        """Start the processes; returns when the first is ready.

        Raises `ConfigError` if the app cannot be imported, and `RuntimeError` if its lifespans cannot be entered.
        """
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
                recipe = run.recipe
                request = Request(
                    run.id, run.queue, body, run.tally, recipe.worker, run.offset, until, recipe.record_logs
                )
                reply = await member.ask(request, run.merge)
                if reply != LATE:
                    return _open_reply(reply)
        finally:
            run.inner = None
            self._give(member)

    async def aclose(self, grace: float) -> None:
        """Let the processes leave their lifespans and end, for ``grace`` seconds at most; then as `close`."""
        self._closed = True
        try:
            for member in self._members.values():
                member.dismiss()
            if self._members:
                await asyncio.wait([member.exit for member in self._members.values()], timeout=grace)
        finally:
            self.close()

    def close(self) -> None:
        """Kill the processes and end."""
        self._closed = True
        if self._nursery is not None:
            self._loop.remove_reader(self._nursery.fileno())
            self._nursery.kill()
            self._nursery = None
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
            welcome = self._loop.create_task(self._welcome(member))
            self._welcomes.add(welcome)
            welcome.add_done_callback(self._welcomes.discard)

    async def _welcome(self, member: _Member) -> None:
        """Give it tasks when it is ready. Should it die before, no job is there to be harmed."""
        match await member.hear():
            case ["ready"]:
                self._falls = 0
                if not self._ready.done():
                    self._ready.set_result(None)
                self._give(member)
            case ["unfit", reason, _, True] if not self._ready.done():
                self._ready.set_exception(ConfigError(reason))
            case ["unfit", reason, trace, _]:
                logger.error("a process of the pool could not enter a lifespan: %s\n%s", reason, trace.rstrip())
                if not self._ready.done():
                    self._ready.set_exception(RuntimeError(f"a lifespan failed in a process of the pool: {reason}"))
            case _ if not self._closed:
                if member.usable:
                    member.stop()
                how = describe_exit(await member.exit)
                logger.error("a process of the pool ended with %s before it was ready", how)
            case _:
                pass

    # The nursery

    def _open(self) -> None:
        if self._closed:
            return
        self._nursery = Nursery("spool.executor.process:serve", self._app, self._url, lifeline=self._lifeline)
        self._loop.add_reader(self._nursery.fileno(), self._listen, self._nursery)
        for _ in range(self.size):
            self._start_member()

    def _listen(self, nursery: Nursery) -> None:
        for event in nursery.read():
            match event:
                case Ready():
                    pass
                case Started(number, pid):
                    self._members[number].pid = pid
                case Exited(number, code):
                    member = self._members.pop(number)
                    member.end(code)
                    self._loop.call_later(self._pause(member), self._start_member)
                case Failed(reason):
                    self._fail(reason)
                case Gone():
                    self._lose(nursery)

    def _pause(self, ended: _Member) -> float:
        """Return how long to wait with the next: one that dies before its first job is likely to do so again."""
        if ended.used:
            return 0.0
        self._falls += 1
        return min(LONGEST_PAUSE, 0.25 * 2.0 ** min(self._falls, 10))

    def _fail(self, reason: str) -> None:
        problem = f"the process pool cannot begin: {reason}"
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
        self.exit: asyncio.Future[int] = loop.create_future()
        self._stopped = False
        self._hearing = False
        self.pid = 0
        self.used = False

    @property
    def usable(self) -> bool:
        return not self._stopped and not self.exit.done()

    async def ask(self, request: object, note: Callable[[Part], None]) -> Any:
        """Send a request and wait for the reply; ``note`` is told what the task says meanwhile.

        Raises `ProcessDied`.
        """
        self.used = True
        reply = await self.hear(request, note)
        if reply is not None:
            return reply
        if self.usable:  # it lives, but has closed the line: it is of no use any more
            self.stop()
        raise ProcessDied(f"its process ended with {describe_exit(await self.exit)}")

    async def hear(self, request: object = None, note: Callable[[Part], None] = lambda _: None) -> Any:
        """Wait for what it says, to this request if there is one. None: it says nothing more."""
        self._hearing = True
        try:
            with contextlib.suppress(OSError):
                if request is not None:
                    await self._loop.sock_sendall(self._sock, pack_frame(request))
                while data := await self._loop.sock_recv(self._sock, 1 << 18):
                    for reply in self._frames.feed(data):
                        if reply[0] != SAID:
                            return reply
                        note(msgspec.convert(reply[1], Part))
            return None
        finally:
            self._hearing = False
            if self.exit.done():
                self._sock.close()

    def stop(self) -> None:
        """Make it end its task, and itself. The message tells it that the signal is meant for it."""
        if not self._stopped:
            self._stopped = True
            with contextlib.suppress(OSError):
                self._sock.send(pack_frame(STOP))
            self._pool.stop_member(self._number)

    def dismiss(self) -> None:
        """Have it end when it is through with its task."""
        with contextlib.suppress(OSError):
            self._sock.send(pack_frame(STOP))

    def end(self, code: int) -> None:
        """Take note that it has ended."""
        if not self.exit.done():
            self.exit.set_result(code)
        if self._hearing:
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
