"""Worker processes: start them, restart the ones that die, stop them in order.

`run_workers` is what ``spool worker`` runs; `Fleet` does the same from within another program.

A single process is a child under a supervisor, too. Running it in the supervisor's own process would save some 30 MB,
but nobody would be there to hand its jobs back and to start it again when a job takes it down: that would cost a
lease's time, and the deployment a restart. The supervisor itself runs no code of the tasks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from spool.broker import Broker, Retire, Store, connect
from spool.errors import BrokerError, ConfigError, SpoolError
from spool.log import configure
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
)
from spool.supervisor.options import WorkerOptions

__all__ = ["Fleet", "WorkerOptions", "run_workers"]

logger = logging.getLogger("spool.supervisor")

STEADY: Final = 10.0
"""Seconds after which a child counts as running well: when it dies then, its successor starts at once."""
LONGEST_PAUSE: Final = 30.0


def run_workers(options: WorkerOptions) -> int:
    """Run worker processes until they are told to stop, and return the exit code: 0 after an orderly stop.

    Blocks; from the main thread only. SIGTERM, SIGINT or SIGHUP stops gracefully (no more claims, running jobs get
    ``grace`` seconds, what is left is handed back), a second one at once. A process that dies is started again, with a
    backoff. Raises `ConfigError` for an app that cannot be loaded or options that cannot be used.
    """
    configure(options.log_level, options.log_format)
    fleet = Fleet(options)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {signum: signal.signal(signum, lambda _signum, _frame: fleet.ask_to_stop()) for signum in signals}
    try:
        fleet.start()
        fleet.join()
    finally:
        fleet.kill()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 0


class _Child:
    """A worker process."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.frames = Frames()
        self.pid = 0
        self.since = time.monotonic()
        self.ready = False
        self.incarnation = ""
        self.queues: list[str] = []


class Fleet:
    """Worker processes that another program starts and stops. Safe in a program with threads and event loops.

    ```python
    with Fleet(WorkerOptions(app="shop.tasks:app", url="redis://localhost", processes=2)) as fleet:
        fleet.wait_ready()
        ...
    ```

    Leaving the block stops them gracefully. A thread watches over them: a child that dies is started again, and the
    jobs that it held are handed back at once. Methods may be called from any thread.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._lock = threading.Condition()
        self._children: dict[int, _Child] = {}
        self._wanted = 0
        self._stops = 0
        self._falls = 0
        self._failure: SpoolError | None = None
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._nursery: Nursery | None = None
        self._selector = selectors.DefaultSelector()
        self._broker: Broker | None = None
        self._wake, self._waker = socket.socketpair()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Process ids of the worker processes that run now (not of helpers)."""
        with self._lock:
            return [child.pid for child in self._children.values() if child.pid]

    def start(self, processes: int | None = None) -> None:
        """Start that many worker processes more; default ``options.processes``. Returns at once."""
        with self._lock:
            self._wanted += self.options.processes if processes is None else processes
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="spool-fleet", daemon=True)
                self._thread.start()
        self._poke()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Block until each process has registered itself with the broker.

        Raises `TimeoutError`, and `ConfigError` or `BrokerRefused` if they cannot begin.
        """
        with self._lock:
            done = self._lock.wait_for(lambda: self._failure is not None or self._all_ready(), timeout)
        if self._failure is not None:
            raise self._failure
        if not done:
            raise TimeoutError(f"the workers were not ready within {timeout:g} s")

    def _all_ready(self) -> bool:
        return len(self._children) >= self._wanted and all(child.ready for child in self._children.values())

    def ask_to_stop(self) -> None:
        """Ask them to stop: in order the first time, at once the second. Returns at once; also for signal handlers."""
        self._stops += 1
        self._poke()

    def join(self, timeout: float | None = None) -> bool:
        """Block until all have ended. False after ``timeout`` seconds. Raises what kept them from beginning."""
        if self._thread is None:
            self._close()
        else:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
        if self._failure is not None:
            raise self._failure
        return True

    def stop(self, timeout: float | None = None) -> None:
        """Stop in order, and at once after ``timeout`` seconds (default: the grace and 10); returns when all ended."""
        self.ask_to_stop()
        if not self.join(self.options.grace + 10 if timeout is None else timeout):
            self.ask_to_stop()
            if not self.join(15):
                self.kill()

    def kill(self, pid: int | None = None) -> None:
        """Kill one worker process, or, without ``pid``, all of them and the fleet: then nothing is started again."""
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            return
        self._stops += 3
        self._poke()
        if self._thread is not None:
            self._thread.join()
        else:
            self._close()

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b".")

    # The watching thread

    def _watch(self) -> None:
        try:
            self._selector.register(self._wake, selectors.EVENT_READ, self._drain)
            self._open()
            while not self._over():
                timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
                for key, _ in self._selector.select(timeout):
                    key.data()
                while self._timers and self._timers[0][0] <= time.monotonic():
                    self._timers.pop(0)[1]()
        except Exception as error:
            logger.exception("the fleet's thread failed")
            self._failure = SpoolError(f"the fleet failed: {error!r}")
        finally:
            self._close()

    def _over(self) -> bool:
        if self._failure is not None or self._stops >= 3:
            return True
        return bool(self._stops) and not self._children

    def _drain(self) -> None:
        self._wake.recv(4096)
        if self._stops:
            for child in self._children.values():
                self._tell_to_stop(child)
        else:
            self._fill()

    def _tell_to_stop(self, child: _Child) -> None:
        with contextlib.suppress(OSError):
            child.sock.send(pack_frame(["stop", self._stops > 1]))

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, call))
        self._timers.sort(key=lambda timer: timer[0])

    def _open(self) -> None:
        if self._stops:
            return
        self._nursery = Nursery("spool.supervisor.child:work", self.options.app, self.options.url)
        self._selector.register(self._nursery, selectors.EVENT_READ, partial(self._listen, self._nursery))
        self._fill()

    def _fill(self) -> None:
        while self._nursery is not None and not self._stops and len(self._children) < self._wanted:
            options = msgspec.to_builtins(self.options)
            number, sock = self._nursery.start(options)
            child = _Child(number, sock)
            sock.setblocking(False)  # noqa: FBT003 - its signature
            self._selector.register(sock, selectors.EVENT_READ, partial(self._hear, child))
            with self._lock:
                self._children[number] = child

    def _listen(self, nursery: Nursery) -> None:
        for event in nursery.read():
            match event:
                case Ready(forks):
                    if not forks:
                        logger.info("importing %s starts threads: its workers share no memory", self.options.app)
                case Started(number, pid):
                    with self._lock:
                        self._children[number].pid = pid
                case Failed(reason, traceback):
                    logger.log(logging.ERROR if _is_of_the_app(traceback) else logging.DEBUG, "%s", traceback.rstrip())
                    self._fail(ConfigError(f"{self.options.app} cannot be imported: {reason}"))
                case Exited(number, code):
                    self._bury(self._children[number], code)
                case Gone():
                    self._reopen(nursery)

    def _hear(self, child: _Child) -> None:
        """Hear what a child says."""
        try:
            data = child.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # That it has ended is told by the nursery, and may have been in this same round.
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(child.sock)
            return
        for message in child.frames.feed(data):
            match message:
                case ["life", incarnation, queues]:
                    with self._lock:
                        child.incarnation, child.queues, child.ready = incarnation, queues, True
                        self._lock.notify_all()
                case ["fatal", kind, reason]:
                    self._fail(_error(kind, reason))
                case _:
                    raise AssertionError(f"a worker does not say {message!r}")

    def _bury(self, child: _Child, code: int) -> None:
        """Hand back the jobs of a child that has ended, and start another."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.sock)
        child.sock.close()
        with self._lock:
            del self._children[child.number]
        if self._stops:
            if code:
                self._retire(child)
            return
        logger.warning("worker process %d ended with %s", child.pid, describe_exit(code))
        self._falls = 0 if time.monotonic() - child.since > STEADY else self._falls + 1
        self._after(self._pause(), self._fill)
        self._retire(child)

    def _pause(self) -> float:
        """Return how long to wait before the next child: not at all once, then longer and longer."""
        if self._falls <= 1:
            return 0.0
        longest: float = min(LONGEST_PAUSE, 0.25 * 2.0 ** min(self._falls, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def _retire(self, child: _Child, attempt: int = 0) -> None:
        """Hand back what a dead child held; again and again for a lease's time, after which the store does it."""
        if not child.incarnation:
            return
        try:
            broker = self._connect()
            for queue in child.queues:
                while broker.call(Retire(queue, child.incarnation, "lost", f"process {child.pid} died")).remaining:
                    pass
            broker.call(Store("worker", child.incarnation, None))
        except BrokerError as error:
            logger.debug("the jobs of process %d were not handed back: %s", child.pid, error)
            if attempt < self.options.lease:
                self._after(1.0, lambda: self._retire(child, attempt + 1))
        except Exception:  # the app's import may raise anything, here as there
            logger.exception("the jobs of process %d are not handed back before their lease runs out", child.pid)

    def _connect(self) -> Broker:
        if self._broker is None:
            url = self.options.url
            self._broker = connect(url) if url else load_app(self.options.app).broker
        return self._broker

    def _reopen(self, nursery: Nursery) -> None:
        """Begin anew after the nursery has died, and its children with it."""
        self._selector.unregister(nursery)
        nursery.close()
        self._nursery = None
        for child in list(self._children.values()):
            self._bury(child, -signal.SIGKILL)
        self._after(0.5, self._open)

    def _fail(self, error: SpoolError) -> None:
        with self._lock:
            self._failure = self._failure or error
            self._lock.notify_all()

    def _close(self) -> None:
        if self._nursery is not None:
            self._nursery.kill() if self._stops >= 3 else self._nursery.close()
        for child in self._children.values():
            child.sock.close()
        with self._lock:
            self._children.clear()
            self._lock.notify_all()
        self._selector.close()
        self._wake.close()
        self._waker.close()
        if self._broker is not None and self.options.url:
            self._broker.close()


def _error(kind: str, reason: str) -> SpoolError:
    import spool.errors

    found = getattr(spool.errors, kind, SpoolError)
    return found(reason) if isinstance(found, type) and issubclass(found, SpoolError) else SpoolError(reason)


_OURS: Final = str(Path(__file__).parent.parent)


def _is_of_the_app(traceback: str) -> bool:
    """Whether a traceback leads into the app's own code, and not just to an import that found nothing."""
    places = [line for line in traceback.splitlines() if line.lstrip().startswith('File "')]
    return any(_OURS not in line and "importlib" not in line for line in places)
