"""Jobs in the store behind a server (``spool server``): each verb is one request.

Threads use connections of the standard library, one each while a request is under way, and need nothing installed.
Event loops use aiohttp (extra ``http``): measured on one request after the other, a request costs the client 110 µs of
processor time with the former and 160 µs with the latter, 210 µs with urllib3, and 400 to 790 µs with httpx.

Connections belong to one process and, for the async ones, to one loop: both are looked up at every call. Nothing is
sent twice: only a caller knows whether a verb may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
import weakref
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from spool.broker import Claim, Enqueue, Enqueued, NewJob, Verb
from spool.broker.http.address import parse
from spool.broker.http.ends import PATIENCE, PAUSE, Ends, Stream
from spool.broker.http.line import BlockingLine, Session, mapped
from spool.broker.http.wire import (
    BRIEF,
    MAX_WAIT,
    ROUTES,
    SMALL,
    Answer,
    Ended,
    EndsWait,
    Frames,
    OrdersWait,
    TooLarge,
    Word,
    WorkWait,
    blocked,
    check,
    encode,
    read,
    too_large,
)
from spool.errors import BrokerError, BrokerUnavailable, EnqueueInterrupted, NotDurable, PayloadError, SpoolError
from spool.job import LANES, Snapshot

R = TypeVar("R")

#: Bytes that a request leaves below a server's limit when it is one of several.
_MARGIN: Final = 4096
#: Bytes of an encoded job beside its record, at most, but for its id.
_JOB: Final = 128
#: How many of a server's listeners for orders are remembered.
_LISTENERS: Final = 64


class HttpBroker:
    """The broker for ``http://`` and ``https://`` URLs. No connection is made before the first call.

    >>> HttpBroker("https://:spool_1_secret@jobs.example").url
    'https://jobs.example'
    """

    def __init__(self, url: str) -> None:
        self._address = parse(url)
        self.url = self._address.url
        self._limit = 0
        """Bytes that the server takes in one request; 0 until it has said so."""
        self._said = 0
        """The same, as it was said: what a proxy takes, which says nothing, is a guess."""
        self._closed = False
        self._inherited: list[object] = []
        self._reset()
        # A child of a fork must neither use nor close its parent's connections: it keeps them, and leaves them alone.
        os.register_at_fork(after_in_child=_Forget(self))

    def _reset(self) -> None:
        self._idle: list[BlockingLine] = []
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._seen: dict[tuple[str, ...], dict[str, int]] = {}
        self._patient: set[BlockingLine] = set()
        """Connections on which threads wait for long."""

    # Threads

    def call(self, verb: Verb[R]) -> R:
        """Carry out a verb; see `Broker.call`."""
        asked: Any = verb
        if isinstance(verb, Enqueue):
            reply: Any = self._enqueue(verb)
        elif isinstance(verb, Claim) and verb.wait:
            reply = self._ask(replace(asked, wait=0.0))
        else:
            reply = self._ask(verb)
        answer: R = reply
        return answer

    def _ask(self, request: object, wait: float = 0.0) -> Any:
        path, body = ROUTES[type(request)].path, _encoded(request)
        with mapped(self.url, closed=lambda: self._closed), self._borrowed(patient=wait > 0) as line:
            answer = line.ask(path, body, wait)
        return self._read(request, answer, len(body))

    @contextlib.contextmanager
    def _borrowed(self, *, patient: bool = False) -> Generator[BlockingLine]:
        """Give a connection that no other thread uses."""
        line = self._take()
        if patient:
            self._patient.add(line)
            if self._closed:  # before it could be found there
                line.interrupt()
        try:
            yield line
        except BaseException:  # it may still get the answer that we do not wait for
            line.close()
            raise
        finally:
            self._patient.discard(line)
        if line.reusable and not self._closed:
            self._idle.append(line)
        else:
            line.close()

    def _take(self) -> BlockingLine:
        if self._closed:
            raise BrokerUnavailable(f"the broker {self.url} was closed")
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was quicker
                line = self._idle.pop()
                if not line.stale:
                    return line
                line.close()
        return BlockingLine(self._address)

    def _read(self, request: object, answer: Answer, size: int) -> Any:
        if answer.limit is not None and answer.limit.isdigit():
            self._limit = self._said = int(answer.limit)
        try:
            return read(self.url, request, answer)
        except TooLarge as error:
            if isinstance(request, BRIEF):
                raise blocked(self.url, error) from error
            self._limit, self._said = min(error.limit or SMALL, size - 1), error.limit or 0
            if isinstance(request, Enqueue) and len(request.jobs) > 1:
                raise
            raise too_large(self.url, _named(request), size, error.limit) from error

    # Enqueues

    def _enqueue(self, verb: Enqueue) -> Enqueued:
        if not self._limit and _size(verb.jobs) > SMALL:
            self._ask(replace(verb, jobs=[]))  # of no jobs: the answer says how many bytes it takes at once
        sent = _Parts(verb, self.url)
        for _ in range(3):
            try:
                for part in sent.left(self._limit, self._said):
                    sent.add(part, self._ask(part))
                return sent.reply
            except TooLarge:  # the limit is another one now; nothing of this part was stored
                continue
            except SpoolError as error:
                raise sent.failed(error) from error
        raise sent.refused(self._limit)

    async def _aenqueue(self, verb: Enqueue) -> Enqueued:
        if not self._limit and _size(verb.jobs) > SMALL:
            await self._aask(replace(verb, jobs=[]))
        sent = _Parts(verb, self.url)
        for _ in range(3):
            try:
                for part in sent.left(self._limit, self._said):
                    sent.add(part, await self._aask(part))
                return sent.reply
            except TooLarge:
                continue
            except SpoolError as error:
                raise sent.failed(error) from error
        raise sent.refused(self._limit)

    # Event loops

    def _here(self) -> _Loop:
        if self._closed:
            raise BrokerUnavailable(f"the broker {self.url} was closed")
        running = asyncio.get_running_loop()
        mine = self._loops.get(running)
        if mine is None:
            self._sweep()
            session = Session(self._address)
            stream = _streamer(session, self.url)
            mine = self._loops[running] = _Loop(session, stream, Ends(stream, self.url))
        return mine

    def _sweep(self) -> None:
        """Forget loops that ended without `aclose`."""
        for loop in [loop for loop in list(self._loops) if loop.is_closed()]:
            mine = self._loops.pop(loop, None)
            if mine is not None:
                mine.session.abandon()

    async def acall(self, verb: Verb[R]) -> R:
        """Carry out a verb; see `Broker.acall`."""
        if isinstance(verb, Enqueue):
            reply: Any = await self._aenqueue(verb)
        else:
            reply = await self._aask(verb, verb.wait if isinstance(verb, Claim) else 0.0)
        answer: R = reply
        return answer

    async def _aask(self, request: object, wait: float = 0.0) -> Any:
        session, body = self._here().session, _encoded(request)
        answer = await session.ask(ROUTES[type(request)].path, body, wait)
        return self._read(request, answer, len(body))

    # Waits

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """Wait for a job's end; see `Broker.ended`."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        failing = 0.0
        while True:
            begin = time.monotonic()
            left = max(0.0, deadline - begin)
            try:
                found = self._hear(EndsWait([(queue, id)], min(left, MAX_WAIT)))
            except BrokerUnavailable:
                failing = failing or time.monotonic()
                if self._closed or time.monotonic() + PAUSE > min(deadline, failing + PATIENCE):
                    raise
                time.sleep(PAUSE)
                continue
            failing = 0.0
            if found:
                return found[0].snapshot
            now = time.monotonic()
            if now >= deadline:
                return None
            if now - begin < min(left, PAUSE):
                time.sleep(min(PAUSE, deadline - now))  # something cuts our requests short

    def _hear(self, request: EndsWait) -> list[Ended]:
        """Return what the whole stream brings."""
        path, body, frames = ROUTES[EndsWait].path, _encoded(request), Frames(self.url)
        with mapped(self.url, closed=lambda: self._closed), self._borrowed(patient=True) as line:
            pieces = line.stream(path, body, request.timeout)
            found: list[Ended] = []
            for piece in pieces:
                if isinstance(piece, Answer):
                    check(self.url, piece)
                else:
                    found += frames.feed(piece)
        return found

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """Wait for a job's end; see `Broker.aended`."""
        here = self._here()
        if timeout is None or timeout > 0:
            return await here.ends.wait(queue, id, timeout)
        async with contextlib.aclosing(here.stream(EndsWait([(queue, id)], 0.0))) as found:
            return await anext((ended.snapshot async for ended in found), None)

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        """Wait for work; see `Broker.await_work`."""
        if timeout > 0:
            timeout = min(timeout, MAX_WAIT)
            await self._aask(WorkWait(tuple(queues), timeout, tuple(lanes)), timeout)

    def await_orders(self, queues: Sequence[str], timeout: float) -> None:
        """Wait for word of a cancellation; see `Broker.await_orders`."""
        deadline = time.monotonic() + timeout
        seen = self._seen.setdefault(tuple(queues), {})
        while True:
            left = max(0.0, deadline - time.monotonic())
            wait = min(left, MAX_WAIT)
            word: Word = self._ask(OrdersWait(tuple(queues), wait, dict(seen)), max(wait, 0.001))
            for mark in word.marks:
                seen.pop(mark, None)  # so that the latest ones come last
            seen.update(word.marks)
            for mark in list(seen)[:-_LISTENERS]:
                del seen[mark]
            if word.news or left <= MAX_WAIT:
                return

    # The end

    def close(self) -> None:
        """Close what belongs to threads; loops close their own (`aclose`)."""
        self._closed = True
        for line in list(self._patient):
            line.interrupt()
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()
        self._sweep()

    async def aclose(self) -> None:
        """Close this loop's connections, and those of threads."""
        mine = self._loops.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine.ends.close()
            await mine.session.close()
        self.close()

    def after_fork_in_child(self) -> None:
        """Forget the parent's connections."""
        self._inherited += [self._idle, self._patient, self._loops]
        self._reset()


class _Loop(NamedTuple):
    """What belongs to one event loop: its connections, and who waits for results."""

    session: Session
    stream: Stream
    ends: Ends


def _streamer(session: Session, url: str) -> Stream:
    async def stream(request: EndsWait) -> AsyncGenerator[Ended]:
        frames = Frames(url)
        pieces = session.stream(ROUTES[EndsWait].path, _encoded(request), request.timeout)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, Answer):
                    check(url, piece)
                    continue
                for ended in frames.feed(piece):
                    yield ended

    return stream


class _Parts:
    """An enqueue on its way: in one request if the server takes it so, else in as few as it does."""

    def __init__(self, verb: Enqueue, url: str) -> None:
        self._verb, self._url = verb, url
        self._left = list(verb.jobs)
        self._parts = 0
        self._stored = 0
        self.reply = Enqueued(0)

    def left(self, limit: int, said: int) -> Sequence[Enqueue]:
        """Return what is to be sent. Raises `PayloadTooLarge` for a job that is over the limit which the server said.

        All are stored or none, as far as can be told: so it is found out before the others are sent.
        """
        most = limit - _MARGIN if limit else 0
        parts = [replace(self._verb, jobs=jobs) for jobs in _parted(self._left, most)]
        self._parts = len(parts)
        for part in parts if said and len(parts) > 1 else ():
            if len(part.jobs) == 1 and _size(part.jobs) > most and (size := len(_encoded(part))) > said:
                raise too_large(self._url, _named(part), size, said)
        return parts

    def add(self, part: Enqueue, reply: Enqueued) -> None:
        """Take note that a part is stored."""
        self._parts -= 1
        self._stored += len(part.jobs) - len(reply.conflicts)
        del self._left[: len(part.jobs)]
        existing, conflicts = self.reply.existing + reply.existing, self.reply.conflicts + reply.conflicts
        self.reply = Enqueued(reply.now, existing, conflicts)

    def failed(self, error: SpoolError) -> SpoolError:
        """Return what to raise: of a part it must not be said that nothing was stored, or that all was."""
        # One that is not durable is stored: with the last one all are.
        halfway = self._parts > 1 if isinstance(error, NotDurable) else len(self._left) < len(self._verb.jobs)
        if not halfway or isinstance(error, BrokerUnavailable):
            return error
        said = f"of {len(self._verb.jobs):,} jobs {self._stored:,} are stored: {error}"
        return BrokerUnavailable(said) if isinstance(error, BrokerError) else EnqueueInterrupted(said, self._stored)

    def refused(self, limit: int) -> SpoolError:
        """Return what to raise for a server whose limit is another one each time."""
        size = _size(self._left)
        return self.failed(
            BrokerUnavailable(f"{self._url} refuses an enqueue of {size:,} bytes; its limit is {limit:,}")
        )


def _parted(jobs: list[NewJob], most: int) -> list[list[NewJob]]:
    """Cut jobs, in order, into lists of so many bytes; of one job if it alone has more."""
    if not most or not jobs or _size(jobs) <= most:
        return [jobs]
    parts: list[list[NewJob]] = []
    room = 0
    for job in jobs:
        size = _size([job])
        if size > room:
            parts.append([])
            room = most
        parts[-1].append(job)
        room -= size
    return parts


def _size(jobs: Sequence[NewJob]) -> int:
    """Return how many bytes jobs have, encoded, at most."""
    return sum([len(job.record) + 4 * len(job.id) + 4 * len(job.fingerprint) + _JOB for job in jobs])


def _encoded(request: object) -> bytes:
    try:
        return encode(request)
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError) as error:
        raise PayloadError(f"{_named(request)} cannot be sent: {error}") from error


def _named(request: object) -> str:
    return f"{type(request).__name__} of queue {queue}" if (queue := getattr(request, "queue", "")) else "the request"


class _Forget:
    """What a forked child does with a broker; holds it weakly, since such a hook is never taken off."""

    def __init__(self, broker: HttpBroker) -> None:
        self._broker = weakref.ref(broker)

    def __call__(self) -> None:
        broker = self._broker()
        if broker is not None:
            broker.after_fork_in_child()
