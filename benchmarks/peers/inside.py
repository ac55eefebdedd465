"""The producer: it runs in a peer's environment, does what the driver asks for line by line, and answers in JSON.

```sh
python -m benchmarks.peers.inside mayu
```

It is there for one step of one run; while the worker drains it is idle, but for the questions after the last result.
"""

import asyncio
import importlib
import inspect
import json
import platform
import sys
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any

from benchmarks.peers import tally

_GATHERED = 50
_CHUNK = 1_000


class Producer:
    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.ids: dict[int, Any] = {}
        self.sent = tally.here().sent
        self.waits = inspect.iscoroutinefunction(peer.send)

    async def describe(self, variant: str) -> dict[str, Any]:
        peer = self.peer
        return {
            "version": version(peer.PACKAGE),
            "python": platform.python_version(),
            "guarantee": peer.GUARANTEE,
            "share": peer.SHARE,
            "bulk": "" if hasattr(peer, "send_many") else "gathered" if self.waits else "none",
            "worker": peer.WORKERS[variant],
            "killed": peer.KILLED,
        }

    async def one(self, first: int, count: int, *, held: bool = False) -> float:
        """Enqueue one by one, each awaited, and return how long it took."""
        ids, send, began = self.ids, self.peer.send, time.perf_counter()
        if self.waits:
            for number in range(first, first + count):
                ids[number] = await send(number, held=held)
        else:
            for number in range(first, first + count):
                ids[number] = send(number, held=held)
        return time.perf_counter() - began

    async def many(self, first: int, count: int) -> float:
        """Enqueue as fast as the peer's interface allows, and return how long it took."""
        if not hasattr(self.peer, "send_many"):
            return await (self._gather(first, count) if self.waits else self.one(first, count))
        began = time.perf_counter()
        for start in range(first, first + count, _CHUNK):
            numbers = range(start, min(start + _CHUNK, first + count))
            self.ids.update(zip(numbers, await _value(self.peer.send_many(numbers)), strict=True))
        return time.perf_counter() - began

    async def _gather(self, first: int, count: int) -> float:
        began = time.perf_counter()
        for start in range(first, first + count, _GATHERED):
            numbers = range(start, min(start + _GATHERED, first + count))
            self.ids.update(zip(numbers, await asyncio.gather(*map(self.peer.send, numbers)), strict=True))
        return time.perf_counter() - began

    async def paced(self, first: int, count: int, rate: float) -> float:
        """Enqueue at an even rate, noting when each call began; return how late the last one was."""
        ids, send, sent, late = self.ids, self.peer.send, self.sent, 0.0
        began = time.perf_counter()
        for number in range(first, first + count):
            if (pause := began + (number - first) / rate - time.perf_counter()) > 0:
                await (asyncio.sleep(pause) if self.waits else _sleep(pause))
            late = -pause
            sent[number] = time.monotonic_ns()
            ids[number] = await send(number) if self.waits else send(number)
        return max(0.0, late)

    async def settled(self, numbers: list[int]) -> bool:
        """Return whether these jobs, those that were begun last, have their results stored."""
        if hasattr(self.peer, "results"):
            return await _value(self.peer.results()) >= len(self.ids)
        return await _value(self.peer.stored([self.ids[number] for number in numbers])) == len(numbers)

    async def results(self) -> int:
        """Return how many of all jobs have a result in the store."""
        if hasattr(self.peer, "results"):
            return await _value(self.peer.results())
        ids, found = list(self.ids.values()), 0
        for start in range(0, len(ids), _CHUNK):
            found += await _value(self.peer.stored(ids[start : start + _CHUNK]))
        return found

    async def read(self, numbers: list[int]) -> int:
        """Return how many results are what the handler returned, read by the call of a user."""
        good = 0
        for number in numbers:
            good += await _value(self.peer.read(self.ids[number])) == {"processed": True}
        return good


async def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - of a peer without a loop


async def _value(found: Any) -> Any:
    return await found if inspect.isawaitable(found) else found


def runner(peer: Any) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Return what carries a coroutine out: a loop, or nothing but a call for a peer whose functions are plain ones."""
    if not inspect.iscoroutinefunction(peer.send):
        return _at_once
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop().run_until_complete
    return uvloop.new_event_loop().run_until_complete


def _at_once(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    raise RuntimeError("a plain function waited")


def main() -> None:
    out = sys.stdout
    sys.stdout = sys.stderr  # peers print
    peer = importlib.import_module(f"benchmarks.peers.{sys.argv[1]}")
    run = runner(peer)
    if hasattr(peer, "connect"):
        run(peer.connect())
    producer = Producer(peer)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"answer": run(getattr(producer, name)(**arguments))}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises belongs in the table
            answer = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
