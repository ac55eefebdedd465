"""A fleet of worker processes: start them, keep their leases, restart the ones that die, stop them in order."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from spool.broker import Broker, connect
from spool.errors import ConfigError, SpoolError
from spool.nursery import ORPHANED, Exited, Failed, Gone, Nursery, Ready, Started, describe_exit, load_app
from spool.supervisor.children import Child, Incarnation
from spool.supervisor.failures import error_of, is_of_the_app, pause_after
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
    Traced,
)
from spool.supervisor.options import Assignment, Role, WorkerOptions
from spool.supervisor.traces import MemoryTraces
from spool.supervisor.undertaker import Undertaker, inquest
from spool.worker.heartbeat import Heart, is_fatal

logger = logging.getLogger("spool.supervisor")

STEADY: Final = 10.0
"""Seconds after which a child counts as running well: when it dies then, its successor starts at once."""
HASTE: Final = 2.0
"""Seconds that children get to end in when they are to stop at once; then they are killed."""
OVERTIME: Final = 10.0
"""The same when they stop in order, beyond their grace and what they wait for a store that does not answer."""
FAMILY: Final = ORPHANED + 0.6
"""Seconds after which the processes of a dead child's pool are taken for gone: what the tasks left behind may stay."""


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
        self._children: dict[int, Child] = {}
        self._bereaved: set[Child] = set()
        """Dead children whose jobs are not handed back yet."""
        self._wanted = 0
        self._stops = self._told = 0
        self._falls = self._stillborn = 0
        self._fills_at = 0.0
        """When the next worker may start (monotonic): those before it did not come to registering themselves."""
        self._failure: SpoolError | None = None
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._nursery: Nursery | None = None
        self._selector = selectors.DefaultSelector()
        self._broker: Broker | None = None
        self._heart: Heart | None = None
        self._undertaker: Undertaker | None = None
        self.memory = MemoryTraces(self._lock, self._running)
        self._suspects: dict[str, int] = {}
        self._tried = 0.0
        self._outage = False
        self._tick_every = min(PULSE, options.lease / 10)
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
        """Process ids of the worker processes that run now (not of spares and helpers)."""
        with self._lock:
            return [child.pid for child in self._running()]

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
        workers = self._workers()
        return len(workers) >= self._wanted and all(child.ready for child in workers)

    def _workers(self) -> list[Child]:
        return [child for child in self._children.values() if child.role == "worker" and not child.draining]

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

    def _running(self) -> list[Child]:
        return [child for child in self._children.values() if child.pid and child.role != "spare"]

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b".")

    # The watching thread

    def _watch(self) -> None:
        try:
            self._selector.register(self._wake, selectors.EVENT_READ, self._drain)
            self._open()
            self._after(self._tick_every, self._tick)
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
        return bool(self._stops) and not self._children and not self._bereaved

    def _drain(self) -> None:
        self._wake.recv(4096)
        if not self._stops:
            self._fill()
        elif self._told != self._stops:
            self._told = self._stops
            for child in self._children.values():
                child.tell(Stop(self._stops > 1))
            in_order = self.options.grace + 2 * self.options.lease + OVERTIME
            self._after(HASTE if self._stops > 1 else in_order, self._cut_short)

    def _cut_short(self) -> None:
        """Kill those that do not end; and if even that is not heard, end without them."""
        for child in self._children.values():
            logger.warning("worker process %d does not end: killed", child.pid)
            child.killed, child.late = "did not end", child.late or []
            self._execute(child)
        self._after(HASTE, self._give_up)

    def _give_up(self) -> None:
        self._stops = max(3, self._stops)

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
        """Start what is missing: workers, spares, and one child for suspects."""
        if self._stops or self._nursery is None:
            return
        held_up = time.monotonic() < self._fills_at
        for _ in range(0 if held_up else self._wanted - len(self._workers())):
            spare = next((child for child in self._children.values() if child.role == "spare" and child.pid), None)
            if spare is None:
                self._start("worker")
            else:
                with self._lock:
                    spare.role, spare.since = "worker", time.monotonic()
                spare.tell(Go())
        roles = [child.role for child in self._children.values()]
        for _ in range(0 if held_up else self.options.spare - roles.count("spare")):
            self._start("spare")
        # No more than one a second, should it end at once.
        if any(self._suspects.values()) and "trial" not in roles and time.monotonic() > self._tried + 1:
            self._tried = time.monotonic()
            self._suspects.clear()  # the next beats tell whether there are more
            self._start("trial")

    def _start(self, role: Role) -> None:
        if self._nursery is None:
            return
        number, sock = self._nursery.start(msgspec.to_builtins(Assignment(role, self.options, os.getpid())))
        child = Child(number, sock, role)
        self._selector.register(sock, selectors.EVENT_READ, partial(self._hear, child))
        with self._lock:
            self._children[number] = child

    def _listen(self, nursery: Nursery) -> None:
        for event in nursery.read():
            match event:
                case Ready(forks, url):
                    if not forks:
                        logger.info("importing %s starts threads: its workers share no memory", self.options.app)
                    self._connect(url)
                case Started(number, pid):
                    with self._lock:
                        self._children[number].pid = pid
                case Failed(reason, traceback):
                    logger.log(logging.ERROR if is_of_the_app(traceback) else logging.DEBUG, "%s", traceback.rstrip())
                    self._fail(ConfigError(reason))
                case Exited(number, code):
                    self._bury(self._children[number], code)
                case Gone():
                    self._reopen(nursery)

    def _connect(self, url: str) -> None:
        if self._broker is None:
            # An app that was given a broker, and no URL, is the one case that has us import it.
            self._broker = connect(url) if url else load_app(self.options.app).broker
            self._heart = Heart(self._broker, self.options.lease, self._note_suspects)
            self._undertaker = Undertaker(self._broker, self.options.lease, self._is_ours)

    def _is_ours(self, incarnation: str) -> bool:
        """Whether it is one of a child that was not buried yet, dead or alive."""
        with self._lock:
            ours = (*self._children.values(), *self._bereaved)
            return any(life.incarnation == incarnation for child in ours for life in child.lives)

    # Children

    def _hear(self, child: Child) -> None:
        messages = child.read()
        if messages is None:
            # That it has ended is told by the nursery, and may have been in this same round.
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(child.sock)
            return
        for message in messages:
            self._obey(child, message)

    def _obey(self, child: Child, message: FromChild) -> None:  # noqa: C901, PLR0912 - one case for each message
        match message:
            case Pulse(row, due):
                child.silent, child.due = 0, due
                if child.lives:
                    child.lives[-1].latest_row = row
            case Due(at):
                child.due = at
            case Born(incarnation, queues, tasks, row):
                life = Incarnation(child, incarnation, queues, tasks, missed=self._note_miss, ordered=self._order)
                life.latest_row = row
                child.lives.append(life)
                if self._heart is not None:
                    self._heart.add(life)
            case Registered():
                with self._lock:
                    child.ready, self._outage, self._stillborn = True, False, 0
                    self._lock.notify_all()
            case Over(incarnation):
                if self._heart is not None:
                    self._heart.remove(incarnation)
            case Reported(incarnation, queue, claim_seq, ids):
                if self._heart is not None:
                    self._heart.report(incarnation, queue, claim_seq, tuple(ids))
            case Kick():
                if self._heart is not None:
                    self._heart.kick()
            case OnTrial():
                child.on_trial = message
            case Draining(reason):
                with self._lock:
                    child.draining = True
                logger.info("worker process %d is replaced: %s", child.pid, reason)
                self._fill()
            case Condemned(late):
                child.late = late
                self._execute(child)
            case Traced():
                self.memory.note(child, message)
            case Fatal(error, reason):
                child.fatal = True
                self._fail(error_of(error, reason))

    def _execute(self, child: Child) -> None:
        if self._nursery is not None:
            self._nursery.signal(child.number, signal.SIGKILL)

    def _tick(self) -> None:
        """Look for children that give no sign of life any more."""
        self._after(self._tick_every, self._tick)
        for child in self._children.values():
            if not child.ready or child.killed or child.late is not None:
                continue
            child.tick()
            silence = child.silent * self._tick_every
            if silence > 2 * PULSE and 0 < child.due < time.monotonic() - self.options.kill_after:
                child.killed = "held the interpreter beyond a timeout"
            elif min(silence, child.still * self._tick_every) > self.options.lease:
                child.killed = "was stopped" if child.stopped else "came to a standstill"
            if child.killed:
                logger.warning("worker process %d %s for %.3g s: killed", child.pid, child.killed, silence)
                self._execute(child)
        self._fill()

    def _bury(self, child: Child, code: int) -> None:
        """Hand back the jobs of a child that has ended, and start another."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.sock)
        # Its end may be told before its last words: whom it had put on trial, what is to be settled after it.
        for message in child.last_words():
            self._obey(child, message)
        with self._lock:
            del self._children[child.number]
            self._bereaved.add(child)
            self._lock.notify_all()
        if child.family_gone:
            self._hand_back(child, code)
        else:  # else a job of its pool would run here and elsewhere
            self._selector.register(child.sock, selectors.EVENT_READ, partial(self._watch_family, child, code))
            self._after(FAMILY, partial(self._hand_back, child, code))
        if self._stops:
            return
        if code or not (child.draining or child.role == "trial"):
            logger.warning("worker process %d ended with %s", child.pid, describe_exit(code))
            self._falls = 0 if time.monotonic() - child.since > STEADY else self._falls + 1
            # Those that were started together fail together, which counts as once.
            if not (child.ready or child.killed) and child.since >= self._fills_at:
                self._stillborn += 1
                self._fills_at = time.monotonic() + pause_after(self._stillborn)
        self._after(max(pause_after(self._falls) if code else 0.0, self._fills_at - time.monotonic()), self._fill)

    def _watch_family(self, child: Child, code: int) -> None:
        if child.read() is None:
            self._hand_back(child, code)

    def _hand_back(self, child: Child, code: int) -> None:
        """Hand back what a child held, once."""
        if child not in self._bereaved:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.sock)
        child.sock.close()
        # First to be buried, then no longer ours: nobody else may say what it died of.
        if self._undertaker is not None and child.lives:
            self._undertaker.bury(inquest(child, code))
        with self._lock:
            self._bereaved.discard(child)
        for life in child.lives:
            if self._heart is not None:
                self._heart.remove(life.incarnation)

    def _reopen(self, nursery: Nursery) -> None:
        """Begin anew after the nursery has died, and its children with it."""
        self._selector.unregister(nursery)
        nursery.close()
        self._nursery = None
        for child in list(self._children.values()):
            child.killed = "died with its parent"
            self._bury(child, -signal.SIGKILL)
        self._after(0.5, self._open)

    # Told by the heart's thread

    def _note_suspects(self, queue: str, count: int) -> None:
        if count != self._suspects.get(queue, 0):
            self._suspects[queue] = count
            self._poke()

    def _note_miss(self, error: Exception, heard: bool) -> None:  # noqa: FBT001 - see `Incarnation`
        if not isinstance(error, SpoolError) or (not heard and is_fatal(error)):
            self._fail(error if isinstance(error, SpoolError) else SpoolError(f"beats cannot go on: {error!r}"))
            self._poke()
        elif not self._outage:
            self._outage = True
            logger.warning("the store takes no beats: %s", error)

    # The end

    def _order(self, child: Child, order: Literal["quiet", "stop"]) -> None:
        """Have one child claim no more, or end without a successor; in the heart's thread."""
        if order == "quiet":
            child.tell(Quiet())
            return
        with self._lock:
            if child.dismissed:
                return
            if child.role == "worker" and not child.draining:
                self._wanted -= 1
            child.dismissed = child.draining = True
            if not self._wanted:
                self._stops = max(1, self._stops)  # there is nothing left to watch over
        logger.info("worker process %d is told to stop, and not replaced", child.pid)
        child.tell(Stop(now=False))
        self._poke()

    def _fail(self, error: SpoolError) -> None:
        with self._lock:
            self._failure = self._failure or error
            self._lock.notify_all()

    def _close(self) -> None:
        if self._nursery is not None:
            self._nursery.kill() if self._stops >= 3 else self._nursery.close()
        for child in (*self._children.values(), *self._bereaved):
            child.sock.close()
        with self._lock:
            self._children.clear()
            self._lock.notify_all()
        self._selector.close()
        self._wake.close()
        self._waker.close()
        if self._heart is not None:
            self._heart.stop()
        if self._undertaker is not None:
            self._undertaker.close()
        if self._broker is not None:
            self._broker.close()
