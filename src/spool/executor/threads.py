"""Where ``def`` tasks run: a thread pool of our own, because a timeout must be able to reach into one thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Final

from spool.executor.attempt import Run

IDLE: Final = 10.0
"""Seconds from one count of the threads that were needed to the next; the others end."""


class Threads:
    """A pool of up to ``size`` daemon threads, which come and go as they are needed. For its loop's thread only."""

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self._size = size
        self._loop = loop
        self._calls: SimpleQueue[_ThreadCall | None] = SimpleQueue()
        self._ended: deque[_ThreadCall] = deque()
        self._told = False
        self._started = 0
        self._threads = 0
        """Those that have not been told to end. As many calls as there are of them are served at once."""
        self._busy = self._peak = 0
        """Calls that are not through; and the most there were since the last count."""
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, run: Run, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``fn`` in a thread, with this context's variables. Returns only when the thread is through with it."""
        call = _ThreadCall(run, fn, args, kwargs, self._loop.create_future())
        if self._busy >= self._threads and self._threads < self._size:
            self._start()
        self._busy += 1
        if self._busy > self._peak:  # noqa: PLR1730 - max() takes twice as long, for each job
            self._peak = self._busy
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end(self._threads)

    def _start(self) -> None:
        # Counted once it is there: where the system has no more threads, nothing must rely on this one.
        threading.Thread(target=self._work, name=f"spool-{self._started + 1}", daemon=True).start()
        self._started += 1
        self._threads += 1
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE, self._count)

    def _count(self) -> None:
        # Counted here and not in the threads, who take turns: each would have had something to do lately.
        self._end(max(0, self._threads - self._peak))
        self._peak = self._busy
        self._timer = self._loop.call_later(IDLE, self._count) if self._threads else None

    def _end(self, threads: int) -> None:
        # Whoever gets a None ends, and calls that come later stand behind it: those who are left do them.
        self._threads -= threads
        for _ in range(threads):
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
                    thread, self._thread = self._thread, None
                    if self._stopped and thread is not None:
                        _raise_in(thread, asyncio.CancelledError)  # it is raised here, if it was raised before or not
                return
            except asyncio.CancelledError:
                continue


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Have the thread raise this at its next bytecode.

    It must come to that. Python 3.11 and 3.12 have all threads look for the error until one has raised it, also when it
    is taken back; and in 3.11 a thread with a profile function, as memray sets them, does nothing else meanwhile.
    """
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
