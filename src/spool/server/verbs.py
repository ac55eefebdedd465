"""The verbs of the broker protocol over HTTP: what ``http://`` brokers ask, see `spool.broker.http.wire`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec.structs import replace

from spool.broker import (
    Act,
    Beat,
    Broker,
    Claim,
    Document,
    Enqueue,
    Find,
    Found,
    Get,
    Load,
    Loaded,
    Note,
    Retire,
    Settle,
    Stats,
    Store,
    Watch,
)
from spool.broker.http.wire import (
    HEADER,
    LIMIT_HEADER,
    MAX_ENDS,
    MAX_WAIT,
    MEDIA,
    SPOKEN,
    STREAM,
    Ended,
    EndsWait,
    OrdersWait,
    Word,
    WorkWait,
    encode,
    frame,
    spoken_here,
)
from spool.broker.http.wire import ROUTES as PATHS
from spool.catalogue import Catalogue
from spool.errors import ConfigError, SpoolError
from spool.job import Snapshot, State, check_name
from spool.opaque import UNREADABLE
from spool.server.problems import Refused, problem_of
from spool.server.routes import Ask, Operation, Reply, Scope
from spool.server.waits import OrderWaits, WorkWaits
from spool.server.workers import UNTOLD

logger = logging.getLogger("spool.server")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
T = TypeVar("T")

SCOPES: Final[Mapping[type, Scope]] = {
    Beat: "work",
    Claim: "work",
    Settle: "work",
    Note: "work",
    Retire: "work",
    WorkWait: "work",
    OrdersWait: "work",
    Enqueue: "enqueue",
    Get: "read",
    EndsWait: "read",
    Find: "read",
    Stats: "read",
    Watch: "read",
    Load: "read",
    Act: "operate",
    Store: "work",
}
"""What a token must allow for each; for documents of most kinds ``admin``, see below."""
LOADS: Final[Mapping[str, tuple[Scope, ...]]] = {
    "queue": ("read", "work"),
    "worker": ("read", "work"),
    "order": ("read", "work"),
    "task": ("read", "enqueue", "work"),
}
"""Of documents, by kind, what allows to list them: one of these, else ``admin``."""
STORES: Final[Mapping[str, tuple[Scope, ...]]] = {"worker": ("work",), "task": ("work",)}
"""The same for writing them."""
MOST_QUEUES: Final = 100
"""Queues that one request may wait for."""
MOST_ENDS: Final = 100_000
"""Jobs whose ends all requests together may wait for."""
MAX_BODY: Final = 32 * 1024 * 1024
"""Bytes of a request: the ends of 500 jobs, or a bulk enqueue, with room for large results and arguments."""
_HEADERS: Final = ((HEADER.encode(), SPOKEN.encode()), (LIMIT_HEADER.encode(), b"%d" % MAX_BODY))
NOTHING: Final = Catalogue(())
ENDS: Final = (State.DONE, State.CANCELLED, State.DEAD)

_readers: Final[dict[type[Any], Callable[[bytes], Any]]] = {
    kind: msgspec.msgpack.Decoder(kind).decode for kind in PATHS
}


class _Where(msgspec.Struct):
    """Of the body of a document, the queues that it is about."""

    queue: str = ""
    queues: list[str] = []


_where = msgspec.json.Decoder(_Where).decode


class Verbs:
    """Answers what ``http://`` brokers ask, for one broker. Belongs to one event loop."""

    def __init__(
        self, broker: Broker, stopping: asyncio.Event, resting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.broker, self.stopping, self.resting = broker, stopping, resting
        self._work = WorkWaits(broker)
        self._orders = OrderWaits(broker)
        self.ends = 0
        """Jobs whose ends are waited for."""

    async def answer(self, kind: type, ask: Ask[None, bytes]) -> Reply | _Ends:
        """Answer a request of this kind. Raises what the broker does, and `Refused`."""
        spoken_here(ask.headers.get(HEADER.encode(), b"").decode("latin-1"))
        asked = _decoded(kind, ask.body)
        _check_names(asked)
        _permit(asked, ask)
        if isinstance(asked, Store) and ask.principal.queues is not None:
            await self._check_others(asked, ask)
        catalogue = await ask.services.intake.catalogue() if isinstance(asked, Get | Find | EndsWait) else NOTHING
        if isinstance(asked, EndsWait):
            if self.ends + len(asked.jobs) > MOST_ENDS:
                raise Refused(503, "too many ends of jobs are waited for", ((b"retry-after", b"1"),))
            return _Ends(self, asked, catalogue)
        try:
            reply = await _noted(asked, ask, self._carry_out(asked, ask.asgi[1]))
        except _Gone:
            return Reply(b"", 499, media=MEDIA)  # which nobody reads
        if isinstance(asked, Load):
            reply = _visible(asked.kind, reply, ask)
        elif isinstance(reply, Snapshot):
            reply = catalogue.veiled(reply)
        elif isinstance(reply, Found):
            reply = replace(reply, jobs=[catalogue.veiled(each) for each in reply.jobs])
        return Reply(b"" if isinstance(asked, WorkWait) else encode(reply), headers=_HEADERS, media=MEDIA)

    async def _check_others(self, asked: Store, ask: Ask[None, bytes]) -> None:
        """Refuse to write over, or remove, what is about queues that the caller's token is not for."""
        for key in (asked.key, *asked.others):
            check_name("key", key)
            # No name is between this and the key.
            before = f"{key[:-1]}{chr(ord(key[-1]) - 1)}\U0010ffff"
            for there in (await self.broker.acall(Load(asked.kind, before, 1))).documents:
                if there.key == key:
                    _check_about(there.body, ask)

    async def _carry_out(self, asked: Any, receive: Receive) -> Any:
        match asked:
            case WorkWait():
                waiting = self._work.wait(asked.queues, asked.lanes, _bounded(asked.timeout))
                return await self._while_there(receive, waiting)
            case OrdersWait():
                listening = self._orders.wait(asked.queues, asked.seen, _bounded(asked.timeout))
                return await self._while_there(receive, listening) or Word(news=True, marks={})
            case Claim() if asked.wait:
                waiting = self._work.wait([asked.queue], asked.lanes, _bounded(asked.wait))
                await self._while_there(receive, waiting)
                return await self.broker.acall(replace(asked, wait=0.0))
            case _:
                return await self.broker.acall(asked)

    async def _while_there(self, receive: Receive, wait: Coroutine[Any, Any, T]) -> T | None:
        """Wait for as long as the client does, and we are not told to stop: then None. Raises `_Gone`."""
        waiting = asyncio.ensure_future(wait)
        gone, stop = asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self.stopping.wait())
        try:
            with self.resting():
                await asyncio.wait([waiting, gone, stop], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if gone.done():
                raise _Gone
            return None
        finally:
            await _end(waiting, gone, stop)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Listen no more at the end."""
        yield
        await self._work.close()


async def _noted(asked: Any, ask: Ask[None, bytes], work: Coroutine[Any, Any, T]) -> T:
    """Carry out, and write what it changes into the audit log."""
    audit, who = ask.services.audit, ask.principal
    if isinstance(asked, Enqueue):
        enqueued: Any = await work
        if count := len(asked.jobs) - len(enqueued.conflicts):
            audit.count(who, "enqueue", asked.queue, count)
        return cast("T", enqueued)
    if not isinstance(asked, Act | Store) or (isinstance(asked, Store) and asked.kind in STORES):
        return await work
    action, target, detail = _told(asked)
    note = partial(audit.note, who, client=ask.client, action=action, target=target)
    try:
        reply = await work
    except SpoolError as error:
        problem = problem_of(error)
        await note(status=problem.status, detail=problem.detail)
        raise
    await note(status=200, detail=detail)
    return reply


def _told(asked: Act | Store) -> tuple[str, str, str]:
    """Return what the audit log says of it: what was done to what, and the rest."""
    if isinstance(asked, Store):
        return ("store" if asked.body is not None else "remove"), f"{asked.kind}/{asked.key}", ""
    more = f" and {len(asked.ids) - 10} more" if len(asked.ids) > 10 else ""
    return type(asked.action).__name__.lower(), asked.queue, ", ".join(asked.ids[:10]) + more


def _bounded(timeout: float) -> float:
    return max(0.0, min(timeout, MAX_WAIT))


def _decoded(kind: type[Any], body: bytes) -> Any:
    try:
        return _readers[kind](body)
    except UNREADABLE as error:
        raise ConfigError(f"the request is no {kind.__name__} that this release can read: {error}") from error


# What may be asked, and by whom


def _queues(asked: Any) -> Iterable[str]:
    match asked:
        case Load() | Store():
            return ()
        case WorkWait() | OrdersWait():
            return asked.queues
        case EndsWait():
            return {queue for queue, _ in asked.jobs}
        case _:
            queue: str = asked.queue
            return (queue,)


def _check_names(asked: Any) -> None:
    """Refuse what no client of ours sends: names become parts of keys, and numbers the length of lists."""
    for queue in _queues(asked):
        check_name("queue", queue)
    match asked:
        case Enqueue():
            for job in asked.jobs:
                check_name("job id", job.id)
        case Beat():
            for each in asked.beats:
                check_name("incarnation", each.incarnation)
        case Claim() | Settle() | Note() | Retire():
            check_name("incarnation", asked.incarnation)
            _check_size(asked)
        case Load() | Store():
            check_name("kind", asked.kind)
        case _:
            _check_size(asked)


def _check_size(asked: Any) -> None:
    match asked:
        case WorkWait() | OrdersWait() if len(asked.queues) > MOST_QUEUES:
            raise ConfigError(f"at most {MOST_QUEUES} queues can be waited for at once")
        case EndsWait() if len(asked.jobs) > MAX_ENDS:
            raise ConfigError(f"at most {MAX_ENDS:,} jobs can be waited for at once")
        case Note() if len(asked.notes) > 1000:
            raise ConfigError("at most 1,000 notes can be kept at once")
        case _:
            pass


def _permit(asked: Any, ask: Ask[None, bytes]) -> None:
    """Refuse what the caller's token is not for: a kind of document, a queue."""
    queues = ask.principal.queues
    if isinstance(asked, Load | Store):
        table = LOADS if isinstance(asked, Load) else STORES
        scopes = table.get(asked.kind, ("admin",))
        if ask.principal.scopes.isdisjoint(scopes):
            raise Refused(403, f"documents of kind {asked.kind!r} need a token with the scope {' or '.join(scopes)}")
        if queues is not None and asked.kind not in table:
            raise Refused(403, f"a token for some queues is not for documents of kind {asked.kind!r}")
    if queues is None:
        return
    if isinstance(asked, Store):
        for body in (asked.body, *asked.others.values()):
            if body is not None:
                _check_about(body, ask)
    for queue in sorted(set(_queues(asked)) - queues):
        ask.check_queue(queue)


def _check_about(body: bytes, ask: Ask[None, bytes]) -> None:
    about = _about(body)
    if not about:
        raise Refused(403, "a token for some queues is not for documents that name none")
    for queue in sorted(about):
        ask.check_queue(queue)


def _visible(kind: str, loaded: Loaded, ask: Ask[None, bytes]) -> Loaded:
    """Leave out the documents about queues that the caller's token is not for."""
    queues = ask.principal.queues
    if queues is None:
        return loaded

    def shown(document: Document) -> Document | None:
        if kind == "order":  # names an incarnation, and no queue
            return document
        about = {document.key} if kind == "queue" else _about(document.body)
        if queues.isdisjoint(about):
            return None
        if about <= queues:
            return document
        try:
            row = msgspec.json.decode(document.body) | {"queues": sorted(about & queues)} | UNTOLD  # a worker of others
        except UNREADABLE:  # what `_about` has no need of, and passes over
            logger.debug("%s %s cannot be read", kind, document.key)
            return None
        return replace(document, body=msgspec.json.encode(row))

    return replace(loaded, documents=[seen for each in loaded.documents if (seen := shown(each))])


def _about(body: bytes) -> set[str]:
    with contextlib.suppress(*UNREADABLE):
        where = _where(body)
        return {*where.queues, where.queue} - {""}
    return set()


# Waits


class _Gone(Exception):
    """Who asked has gone away."""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Ends:
    """An answer that streams the ends of jobs as they come."""

    def __init__(self, verbs: Verbs, asked: EndsWait, catalogue: Catalogue) -> None:
        self._verbs, self._catalogue = verbs, catalogue
        self._jobs = dict.fromkeys(asked.jobs)
        self._timeout = _bounded(asked.timeout)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Send what ends until all have, the time is over, or nobody listens any more."""
        del scope
        # A proxy is to pass on what comes when it comes.
        headers = [*_HEADERS, (b"content-type", STREAM.encode()), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        told = asyncio.Queue[bytes | None]()
        self._verbs.ends += len(self._jobs)
        tasks = [asyncio.ensure_future(self._tell(queue, id_, told)) for queue, id_ in self._jobs]
        gone = asyncio.ensure_future(_gone(receive))
        stop = asyncio.ensure_future(self._verbs.stopping.wait())
        for over in (gone, stop):
            over.add_done_callback(lambda _: told.put_nowait(None))
        end = asyncio.get_running_loop().call_later(self._timeout, told.put_nowait, None) if self._timeout else None
        left = len(tasks)
        try:
            while left:
                with self._verbs.resting():
                    frames = await _all(told)
                ends = b"".join([each for each in frames if each is not None])
                if ends and not gone.done():
                    await send({"type": "http.response.body", "body": ends, "more_body": True})
                left = 0 if None in frames else left - len(frames)
        finally:
            if end is not None:
                end.cancel()
            self._verbs.ends -= len(self._jobs)
            await _end(gone, stop, *tasks)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, queue: str, id_: str, told: asyncio.Queue[bytes | None]) -> None:
        """Put the frame of a job's end; without a timeout also an empty one, if it has not ended."""
        try:
            if self._timeout:
                found = await self._verbs.broker.aended(queue, id_)
            else:
                found = await self._verbs.broker.acall(Get(queue, id_))
        except SpoolError as error:
            problem = problem_of(error)
            told.put_nowait(frame(Ended(queue, id_, None, problem.status, msgspec.json.encode(problem))))
        else:
            shown = None if found is None else self._catalogue.veiled(found)
            told.put_nowait(frame(Ended(queue, id_, shown)) if shown is None or shown.state in ENDS else b"")


async def _all(told: asyncio.Queue[T]) -> list[T]:
    """Return what there is, and wait for the first."""
    found = [await told.get()]
    while not told.empty():
        found.append(told.get_nowait())
    return found


def _operation(kind: type) -> Operation:
    async def handle(ask: Ask[None, bytes]) -> Reply | _Ends:
        return await ask.services.verbs.answer(kind, ask)

    return Operation(
        "POST",
        f"/api/v1/{PATHS[kind].path}",
        handle,
        SCOPES[kind],
        f"Carry out {kind.__name__} for a broker behind http://",
        media=MEDIA,
        produces=MEDIA,
        max_body=MAX_BODY,
        queues=True,
        also=("enqueue", "work") if kind is Load else (),
        mutates=SCOPES[kind] != "read",
        audit="none",  # written here, where it is known what is done to which queue
        documented=False,
    )


ROUTES: Final = tuple(_operation(kind) for kind in PATHS)
