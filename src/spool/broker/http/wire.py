"""What a client and a server of Spool say to each other: verbs and replies as msgpack, errors as problem documents.

Both sides name the protocol in each message (`HEADER`). A request goes to ``/api/v1/`` and its path in `ROUTES`.
Structs travel as maps, so a release may add a field with a default; where an older peer that passes it over would do
harm, or a reply changes its meaning, `PROTOCOL` is raised.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from spool import errors
from spool.broker import (
    Act,
    Acted,
    Beat,
    Beaten,
    Claim,
    Claimed,
    Enqueue,
    Enqueued,
    Find,
    Found,
    Get,
    Load,
    Loaded,
    Note,
    Noted,
    QueueStats,
    Retire,
    Retired,
    Settle,
    Settled,
    Stats,
    Store,
    Stored,
    Watch,
    Watched,
)
from spool.errors import BrokerError, BrokerRefused, BrokerUnavailable, PayloadTooLarge, SpoolError
from spool.job import LANES, Snapshot
from spool.opaque import UNREADABLE
from spool.release import __version__

PROTOCOL: Final = 1
HEADER: Final = "spool-protocol"
"""Of requests and replies: the protocol, and for messages the release: ``1/0.3.0``."""
SPOKEN: Final = f"{PROTOCOL}/{__version__}"
LIMIT_HEADER: Final = "spool-max-body"
"""Of replies: how many bytes a request may have."""
SMALL: Final = 1024 * 1024
"""Bytes that every server takes, whatever its limit is."""

MEDIA: Final = "application/msgpack"
STREAM: Final = "application/vnd.spool.ends"

MAX_WAIT: Final = 20.0
"""Seconds after which a server answers who waits, news or not: what lies between may cut a silent connection."""
MAX_ENDS: Final = 10_000
"""Jobs whose ends one request may wait for."""


class WorkWait(msgspec.Struct, frozen=True):
    """`Broker.await_work`. Answered by an empty body."""

    queues: Sequence[str]
    timeout: float
    lanes: Sequence[int] = LANES


class OrdersWait(msgspec.Struct, frozen=True):
    """`Broker.await_orders`. ``seen`` are the marks of earlier replies, by any server; empty in the first call."""

    queues: Sequence[str]
    timeout: float
    seen: dict[str, int] = {}


class Word(msgspec.Struct, frozen=True):
    """Reply of `OrdersWait`: whether there is news, and how much each of the server's listeners has heard so far."""

    news: bool
    marks: dict[str, int]


class EndsWait(msgspec.Struct, frozen=True):
    """`Broker.ended` of many jobs, (queue, id): answered by a stream of `Ended`, one for each that ends in time."""

    jobs: Sequence[tuple[str, str]]
    timeout: float


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A job that has ended, or is not known (``snapshot`` None); or, with its status, the problem with finding out."""

    queue: str
    id: str
    snapshot: Snapshot | None
    status: int = 200
    problem: bytes = b""


class Route(NamedTuple):
    """Where a request goes, and the type of its reply."""

    path: str
    reply: Any


ROUTES: Final[Mapping[type, Route]] = {
    Beat: Route("work/beat", Beaten),
    Claim: Route("work/claim", Claimed),
    Settle: Route("work/settle", Settled),
    Note: Route("work/note", Noted),
    Retire: Route("work/retire", Retired),
    WorkWait: Route("work/await", None),
    OrdersWait: Route("work/orders", Word),
    Enqueue: Route("verbs/enqueue", Enqueued),
    Get: Route("verbs/get", Snapshot | None),
    EndsWait: Route("verbs/ended", None),
    Find: Route("verbs/find", Found),
    Act: Route("verbs/act", Acted),
    Stats: Route("verbs/stats", QueueStats),
    Watch: Route("verbs/watch", Watched),
    Load: Route("verbs/load", Loaded),
    Store: Route("verbs/store", Stored),
}
"""All there is to ask: the verbs of the broker protocol, and its three waits."""

BRIEF: Final = (Beat, Claim, Retire, WorkWait, OrdersWait)
"""What workers ask with few bytes, whatever their jobs have."""

encode: Final = msgspec.msgpack.Encoder().encode
_readers: Final = {kind: msgspec.msgpack.Decoder(route.reply).decode for kind, route in ROUTES.items()}


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457), as far as it is read. ``error`` names a class of `spool.errors`."""

    title: str = ""
    detail: str = ""
    error: str = ""
    answered: bool = False
    silent: bool = False
    limit: int | None = None
    """Bytes that a request may have, where that is the problem."""


class TooLarge(Exception):
    """A request is larger than ``limit`` bytes, which the server (or a proxy, which doesn't say: None) doesn't take."""

    def __init__(self, message: str, limit: int | None) -> None:
        super().__init__(message)
        self.limit = limit


class Answer(msgspec.Struct, frozen=True):
    """What a server answered."""

    status: int
    spoken: str | None
    """The header `HEADER`."""
    limit: str | None
    """The header `LIMIT_HEADER`."""
    body: bytes


def read(url: str, request: object, answer: Answer) -> Any:
    """Return the reply to a request. Raises the error that it is instead, and `TooLarge`."""
    check(url, answer)
    try:
        return _readers[type(request)](answer.body) if answer.body else None
    except UNREADABLE as error:
        raise BrokerError(f"{url} answered {type(request).__name__} with what {_us()} cannot read: {error}") from error


def check(url: str, answer: Answer) -> None:
    """Raise the error that an answer is, if it is one."""
    if not 200 <= answer.status < 300:
        raise _error(url, answer)
    if answer.spoken is None:
        raise BrokerRefused(f"{url} is no Spool server: it answers requests, but not as one")
    protocol, _, version = answer.spoken.partition("/")
    if protocol != str(PROTOCOL):
        raise BrokerRefused(
            f"{url} runs Spool {version} and speaks protocol {protocol}; {_us()} speaks {PROTOCOL}: install the same "
            "release on both sides"
        )


def _us() -> str:
    return f"this Spool {__version__}"


_OF_REQUESTS: Final = (errors.ConfigError, errors.PayloadError, errors.JobConflict, errors.JobNotFound)
"""What, besides `BrokerError`, a verb may be refused with."""


def _error(url: str, answer: Answer) -> Exception:
    try:
        # What stands between may answer in another encoding.
        problem = msgspec.json.decode(answer.body.decode(errors="replace"), type=Problem)
    except UNREADABLE:
        problem = Problem(detail=f"it answered with HTTP status {answer.status}")
    said = problem.detail or problem.title or f"HTTP status {answer.status}"
    if answer.status == 413 and not problem.error:
        return TooLarge(said, problem.limit)
    kind = getattr(errors, problem.error, None) if problem.error.isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, SpoolError):
        return _revived(kind, url, said, problem, answer.status)
    return _foreign(url, answer.status, said)


def _revived(kind: type[SpoolError], url: str, said: str, problem: Problem, status: int) -> SpoolError:
    if issubclass(kind, BrokerUnavailable):
        return kind(f"{url}: {said}", answered=problem.answered, silent=problem.silent)
    if issubclass(kind, BrokerError):
        return kind(said if issubclass(kind, errors.VersionConflict | errors.LeaseLost) else f"{url}: {said}")
    if issubclass(kind, errors.NotDurable) or (issubclass(kind, _OF_REQUESTS) and status < 500):
        return kind(said)
    return BrokerError(f"{url}: {problem.error}: {said}")  # no broker's to raise


def _foreign(url: str, status: int, said: str) -> BrokerError:
    """Return the error for an answer that names none of ours: of what stands between, or of the server as such."""
    if status == 404:
        return BrokerRefused(f"{url} is no Spool server, or one of another release than {_us()}: {said}")
    if 300 <= status < 400:
        return BrokerRefused(f"{url} sends us elsewhere (HTTP status {status}): give the URL of the server itself")
    if status == 429:
        return BrokerUnavailable(f"{url} is asked too often: {said}", answered=True)
    if status in (408, 502, 503, 504):
        return BrokerUnavailable(f"{url} cannot serve now: {said}", silent=True)
    if 400 <= status < 500:
        return BrokerRefused(f"{url} refused: {said}")
    return BrokerError(f"{url}: {said}")


def blocked(url: str, error: TooLarge) -> BrokerUnavailable:
    """Return the error for a request that is too large for what stands between, though it is a small one."""
    return BrokerUnavailable(f"{url} cannot serve now: {error}", silent=True)


def too_large(url: str, what: str, size: int, limit: int | None) -> PayloadTooLarge:
    """Return the error for a request that cannot be made smaller."""
    most = "takes no request so large" if limit is None else f"takes at most {limit:,} a request"
    return PayloadTooLarge(f"{what} has {size:,} bytes; {url} {most}")


def spoken_here(said: str) -> None:
    """Check what a request says of its protocol. Raises `BrokerRefused`."""
    protocol, _, version = (said or "none/?").partition("/")
    if protocol != str(PROTOCOL):
        raise BrokerRefused(
            f"this server runs Spool {__version__} and speaks protocol {PROTOCOL}; the client speaks {protocol} "
            f"(release {version}): install the same release on both sides"
        )


# A stream of ends: each in a frame, which begins with its length.

_LENGTH: Final = struct.Struct(">I")
_read_ended: Final = msgspec.msgpack.Decoder(Ended).decode


def frame(ended: Ended) -> bytes:
    """Return an end as it stands in a stream."""
    body = encode(ended)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a stream, which comes in pieces, into ends."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Ended]:
        """Take a piece in; yield the ends that are complete. Raises the error that one is instead."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                return
            try:
                ended = _read_ended(buffer[_LENGTH.size : end])
            except UNREADABLE as error:
                raise BrokerError(f"{_us()} cannot read how a job ended: {error}") from error
            del buffer[:end]
            check(self._url, Answer(ended.status, SPOKEN, None, ended.problem))
            yield ended
