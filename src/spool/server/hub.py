"""The hub of the live stream: it looks at the broker while somebody listens, and tells everybody what changed.

A **message** is a JSON object. ``snapshot`` carries the whole ``state``; ``delta`` a JSON merge patch (RFC 7396) to it,
``seq`` one more than before; ``beat`` says that nothing changed. ``now`` is the store's clock, ``events`` what happened
since. Who misses a ``seq`` asks for a snapshot.

Who listens shares its encoded messages with all that see the same queues, so that a client costs a write. One that
does not keep up loses what waits for it and gets a snapshot instead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final

import msgspec

from spool import __version__
from spool.broker import Broker
from spool.errors import SpoolError
from spool.server.watching import Tree, Watch, plain
from spool.server.workers import UNTOLD
from spool.telemetry import History

logger = logging.getLogger("spool.server")

PERIOD: Final = 0.5
"""Seconds from one look to the next, at least."""
SHARE: Final = 4
"""A look may take a fifth of the time: after one that took long, the pause is so many times as long."""
BOUND: Final = 8
"""Messages that wait for a client; of more, a snapshot takes the place."""
BEAT: Final = 5.0
"""Seconds without a message after which a beat is sent."""
STUCK: Final = 30.0
"""Seconds that a client may take to read one message."""
MOST: Final = 1000
"""Clients at once."""

_encode = msgspec.json.Encoder().encode


def patch(before: Tree, after: Tree) -> Tree:
    """Return the JSON merge patch (RFC 7396) that makes one tree of the other. Neither has null as a value.

    >>> patch({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}})
    {'a': {'c': 4}, 'd': None}
    """
    found: Tree = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            inner = patch(old, value)  # pyright: ignore[reportUnknownArgumentType]
            if inner:
                found[key] = inner
        elif old != value or key not in before:
            found[key] = value
    found.update(dict.fromkeys(before.keys() - after.keys()))
    return found


class Client:
    """One who listens. ``task`` is what serves it, to be cancelled when it has stopped reading."""

    def __init__(self, sight: Sight) -> None:
        self.sight = sight
        self.task = asyncio.current_task()
        self.sending = 0.0
        """Since when a message is being sent; 0 is not now."""
        self._waiting: deque[str] = deque()
        self._stale = True
        self._news = asyncio.Event()

    def push(self, message: str) -> None:
        """Let a message wait for it."""
        if self._stale:
            return
        if len(self._waiting) >= BOUND:
            self.resync()
        else:
            self._waiting.append(message)
            self._news.set()

    def resync(self) -> None:
        """Send a snapshot next, in place of all that waits."""
        self._waiting.clear()
        self._stale = True
        self._news.set()

    async def take(self) -> str:
        """Return what is to be sent next, as soon as there is something."""
        while True:
            if self._stale and self.sight.ready:
                self._stale = False
                self._waiting.clear()
                return self.sight.snapshot()
            if self._waiting:
                return self._waiting.popleft()
            self._news.clear()
            await self._news.wait()

    def wake(self) -> None:
        """Let it see that there is a state now."""
        if self._stale:
            self._news.set()


class Sight:
    """What those see who may see the same queues (None: all)."""

    def __init__(self, only: frozenset[str] | None) -> None:
        self.only = only
        self.clients: set[Client] = set()
        self.ready = False
        self._state: Tree = {}
        self._slow: Tree = {}
        self._events: deque[dict[str, Any]] = deque()
        self._seq = 0
        self._now = 0
        self._sent = 0.0
        self._snapshot = ""

    def sees(self, queue: str) -> bool:
        """Whether a queue is among them."""
        return self.only is None or queue in self.only

    async def refresh(self, watch: Watch) -> None:
        """Read what takes longer: the summary and the end of the history."""
        slow: Tree = {"summary": await watch.summary(self.only)}
        if self.only is None or len(self.only) == 1:
            slow["tail"] = await watch.tail("" if self.only is None else next(iter(self.only)))
        self._slow = slow

    def update(self, watch: Watch, events: list[dict[str, Any]]) -> None:
        """Tell the clients what changed."""
        state = self._seen(watch)
        mine = [event for event in events if self._concerns(event)]
        self._events = deque(plain([e for e in watch.events if self._concerns(plain(e))]))
        self._now = watch.now
        changed = patch(self._state, state)
        self._state = state
        if not self.ready:
            self.ready = True
            self._snapshot = ""
            for client in self.clients:
                client.wake()
            return
        at = time.monotonic()
        if not changed and not mine:
            if at - self._sent >= BEAT:
                self._tell({"type": "beat", "seq": self._seq, "now": self._now}, at)
            return
        self._seq += 1
        self._snapshot = ""
        message: Tree = {"type": "delta", "seq": self._seq, "now": self._now, "patch": changed}
        if mine:
            message["events"] = mine
        self._tell(message, at)

    def _seen(self, watch: Watch) -> Tree:
        queues = {name: each for name, each in watch.queues.items() if self.sees(name)}
        workers: Tree = {}
        for name, each in watch.workers.items():
            if mine := [queue for queue in each["row"]["queues"] if self.sees(queue)]:
                workers[name] = {key: value for key, value in each.items() if key != "now"}
                if len(mine) < len(each["row"]["queues"]):
                    row = {key: value for key, value in each["row"].items() if key not in UNTOLD}
                    workers[name]["row"] = {**row, "queues": mine}
        store: Tree = {"up": not watch.trouble, "trouble": watch.trouble}
        return {"version": __version__, "store": store, "queues": queues, "workers": workers, **self._slow}

    def _concerns(self, event: dict[str, Any]) -> bool:
        return self.only is None or event.get("queue") in self.only

    def _tell(self, message: Tree, at: float) -> None:
        text = _encode(message).decode()
        self._sent = at
        for client in self.clients:
            client.push(text)

    def snapshot(self) -> str:
        """Return the whole, encoded once for all who ask between two deltas."""
        if not self._snapshot:
            message = {
                "type": "snapshot",
                "seq": self._seq,
                "now": self._now,
                "state": self._state,
                "events": list(self._events),
            }
            self._snapshot = _encode(message).decode()
        return self._snapshot


class Hub:
    """One for each server process. Nothing is read while nobody listens."""

    def __init__(self, broker: Broker, history: History) -> None:
        self._watch = Watch(broker, history)
        self._sights: dict[frozenset[str] | None, Sight] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def clients(self) -> int:
        """How many listen."""
        return sum(len(sight.clients) for sight in self._sights.values())

    @property
    def full(self) -> bool:
        """Whether as many listen as may."""
        return self.clients >= MOST

    def join(self, only: frozenset[str] | None) -> Client:
        """Take in one who sees only some queues, or all."""
        sight = self._sights.get(only)
        if sight is None:
            sight = self._sights[only] = Sight(only)
        client = Client(sight)
        sight.clients.add(client)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="spool-live")
        return client

    def leave(self, client: Client) -> None:
        """Let one go."""
        sight = client.sight
        sight.clients.discard(client)
        if not sight.clients and self._sights.get(sight.only) is sight:
            del self._sights[sight.only]

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        self._watch.forget()
        turn = 0
        while self._sights:
            begun = time.monotonic()
            try:
                await self._turn(turn)
            except Exception:  # whoever looks must go on seeing, and the next turn may go well
                logger.exception("a look at the broker failed")
            turn += 1
            self._drop_stuck()
            took = time.monotonic() - begun
            # To wait for a store that does not answer is no work, and it is to be seen at once when it does.
            await asyncio.sleep(PERIOD if self._watch.trouble else max(PERIOD - took, SHARE * took))

    async def _turn(self, turn: int) -> None:
        events = [plain(event) for event in await self._watch.look(more=turn % 2 == 0)]
        for sight in list(self._sights.values()):
            # Half a turn of the slow parts each second; a sight that is new has all at once.
            if (turn % 2 == 1 or not sight.ready) and not self._watch.trouble:
                with suppress(SpoolError):  # the store's trouble is told by the look
                    await sight.refresh(self._watch)
            sight.update(self._watch, events)

    def _drop_stuck(self) -> None:
        late = time.monotonic() - STUCK
        for sight in self._sights.values():
            for client in sight.clients:
                if client.sending and client.sending < late and client.task is not None:
                    client.task.cancel()
