"""Who waits at a server for work and for orders: however many they are, a queue is listened to once for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from time import monotonic
from typing import Final

from spool.broker import Broker
from spool.broker.http.wire import Word
from spool.errors import BrokerError, SpoolError
from spool.job import new_id
from spool.server.problems import Refused

LISTEN: Final = 10.0
"""Seconds for which a queue is listened to at a time. At the end, too, one of those who wait is told: word may have
come just then, and a claim in vain every so often costs nothing."""
LINGER: Final = 0.1
"""Seconds for which a queue is listened to when nobody waits any more: most of them are back at once."""
ATTENTION: Final = 60.0
"""Seconds for which orders are listened to after the last one who waited for them."""

MOST: Final = 1000
"""Lanes of queues that are listened to for work at once, and queues for orders: each costs a connection or a thread,
and there need not be such a queue, so that anybody who may work could have any number."""

Told = asyncio.Future["_Ear"]


def _check_room(listened: Sized) -> None:
    if len(listened) >= MOST:
        raise Refused(503, f"this server listens to {MOST:,} queues already", ((b"retry-after", b"5"),))


class WorkWaits:
    """Who waits for work, at one server. Belongs to one event loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._ears: dict[tuple[str, int], _Ear] = {}

    async def wait(self, queues: Sequence[str], lanes: Sequence[int], timeout: float) -> None:
        """As `Broker.await_work`: of those who wait for a queue and lane, one is told of each word, the first first."""
        ears: list[_Ear] = []
        told: Told = asyncio.get_running_loop().create_future()
        try:
            for queue, lane in itertools.product(dict.fromkeys(queues), dict.fromkeys(lanes)):
                ears.append(self._ear(queue, lane))
            for ear in ears:
                if not told.done():
                    ear.join(told)
            await asyncio.wait([told], timeout=timeout)
            if told.done():
                told.result()
        except asyncio.CancelledError:
            if told.done() and told.exception() is None:
                told.result().tell()  # the word is for somebody who can follow it
            raise
        finally:
            told.cancel()
            for ear in ears:
                ear.leave(told)

    def _ear(self, queue: str, lane: int) -> _Ear:
        key = (queue, lane)
        if key not in self._ears:
            _check_room(self._ears)
            self._ears[key] = _Ear(self._broker, queue, lane, lambda: self._ears.pop(key, None))
        return self._ears[key]

    async def close(self) -> None:
        """Listen no more."""
        tasks = [task for ear in list(self._ears.values()) if (task := ear.stop()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)


class _Ear:
    """Listens to one lane of one queue while somebody waits for it."""

    def __init__(self, broker: Broker, queue: str, lane: int, gone: Callable[[], object]) -> None:
        self._broker, self._queue, self._lane = broker, queue, lane
        self._gone = gone
        self._waiting: deque[Told] = deque()
        self._heard = False
        """Whether there is word that nobody has been told of."""
        self._task: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None

    def join(self, told: Told) -> None:
        """Wait to be told."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self._waiting.append(told)
        if self._heard:
            self._heard = False
            self.tell()
        elif self._task is None:
            self._task = asyncio.create_task(self._listen(), name="spool-ear")

    def leave(self, told: Told) -> None:
        """Wait no more."""
        if told in self._waiting:
            self._waiting.remove(told)
        if not self._waiting and self._end is None:
            self._end = asyncio.get_running_loop().call_later(LINGER, self.stop)

    def tell(self) -> None:
        """Tell the first of those who wait, or keep the word for the next one."""
        while self._waiting:
            told = self._waiting.popleft()
            if not told.done():
                told.set_result(self)
                return
        self._heard = True

    async def _listen(self) -> None:
        try:
            while not self._heard:
                await self._broker.await_work([self._queue], LISTEN, [self._lane])
                self.tell()
        except SpoolError as error:
            while self._waiting:
                told = self._waiting.popleft()
                if not told.done():
                    told.set_exception(error)
        finally:
            self._task = None

    def stop(self) -> asyncio.Task[None] | None:
        """Listen no more; returns what is still to end."""
        task = self._task
        if self._end is not None:
            self._end.cancel()
        if task is not None:
            task.cancel()
        self._gone()
        return task


class OrderWaits:
    """Who waits for orders, at one server. Belongs to one event loop; a thread listens to each queue."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._listeners: dict[str, _Listener] = {}

    async def wait(self, queues: Sequence[str], seen: Mapping[str, int], timeout: float) -> Word:
        """As `Broker.await_orders`; ``seen`` tells what the caller knows of already.

        Who comes from another server, or from the time before a restart, may have missed word: for it there is news.
        """
        listeners = [self._listener(queue) for queue in dict.fromkeys(queues)]
        told = asyncio.Event()
        for each in listeners:
            each.waiting.add(told)
        try:
            await asyncio.gather(*(each.ready() for each in listeners))
            marks = {each.mark: seen.get(each.mark, -1 if seen else each.heard) for each in listeners}

            def news() -> bool:
                return any(marks[each.mark] != each.heard for each in listeners)

            if not news():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await told.wait()
            for each in listeners:
                each.check()
            return Word(news(), {each.mark: each.heard for each in listeners})
        finally:
            for each in listeners:
                each.waiting.discard(told)
                each.used = monotonic()

    def _listener(self, queue: str) -> _Listener:
        found = self._listeners.get(queue)
        if found is None or found.over:
            self._listeners = {name: each for name, each in self._listeners.items() if not each.over}
            _check_room(self._listeners)
            found = self._listeners[queue] = _Listener(self._broker, queue)
        return found


class _Listener:
    """A thread that listens for orders of one queue, and those whom it tells. ``heard`` counts what it heard."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self.mark = new_id()
        self.heard = 0
        self.used = monotonic()
        self.waiting: set[asyncio.Event] = set()
        self.over = False
        self._broker, self._queue = broker, queue
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._error: BrokerError | None = None
        threading.Thread(target=self._run, name="spool-orders", daemon=True).start()

    async def ready(self) -> None:
        """Return when it hears all that is said from now on. Raises what the broker does."""
        await asyncio.wait([self._started])
        self.check()

    def check(self) -> None:
        """Raise why it hears no more, if so."""
        if self._error is not None:
            raise type(self._error)(*self._error.args)

    def _run(self) -> None:
        error = None
        try:
            self._broker.await_orders([self._queue], 0.0)
            self._post(self._start)
            while not self.over:
                self._broker.await_orders([self._queue], LISTEN)
                self._post(self._hear)
        except BrokerError as raised:
            error = raised
        self._post(self._finish, error)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed
            self.over = True

    def _start(self) -> None:
        if not self._started.done():
            self._started.set_result(None)

    def _hear(self) -> None:
        self.heard += 1
        self._tell()
        if not self.waiting and monotonic() - self.used > ATTENTION:
            self.over = True

    def _tell(self) -> None:
        for told in self.waiting:
            told.set()

    def _finish(self, error: BrokerError | None) -> None:
        self.over, self._error = True, error
        self._start()
        self._tell()
