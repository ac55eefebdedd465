"""The broker protocol: where jobs live, behind a dozen verbs or so.

A verb is data (a frozen struct that says what is asked), and a broker executes it: `Broker.call` in the calling thread,
`Broker.acall` in the running loop. Every verb is **one atomic step** on **one queue**, judged by the **store's clock**.

**When a reply is lost** (`BrokerUnavailable`), the caller does not know whether the verb was carried out. Every verb
may be sent again, as it was, until it is answered, and then has the effect of having been carried out once: `Enqueue`
by its ids (set ``resend``), `Claim` and `Settle` by their sequence numbers, the others because they are idempotent.

**Incarnations.** One life of a worker process is an incarnation, named by a fresh `new_id`. Only `Beat` creates its
lease, and a retired incarnation is never alive again: its tombstone is kept for at least an hour.

**The clock.** `Beat` and `Claim` store when they last saw the store's clock. If it has since jumped, back or forward
(or stood still, which looks the same), by more than lease/3, nothing is reaped until now + lease (the amnesty), and
deadlines beyond now + lease are clamped to it. So an outage of the store, or a clock set wrong, takes no lease away
before its holder had the time to beat again. The lease meant is that of the incarnation which beats (the first of a
`Beat` that is not refused) or claims. A lease holds while now < its end.

All times are in milliseconds; ``now`` in a reply is the store's wall clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from spool.broker.around import Around
from spool.broker.documents import Document, Load, Loaded, Store, Stored
from spool.broker.notes import MAX_LINES, MAX_LOG, MAX_PROGRESS, JobNote, Note, Noted
from spool.broker.url import hidden, split
from spool.broker.verbs import (
    Act,
    Acted,
    Action,
    Beat,
    Beaten,
    Blob,
    Cancel,
    Cancelled,
    Claim,
    Claimed,
    Delete,
    Died,
    Done,
    Enqueue,
    Enqueued,
    Find,
    Found,
    Get,
    Heartbeat,
    NewJob,
    Orders,
    Pause,
    QueueStats,
    Reason,
    Released,
    Replay,
    Resume,
    Retire,
    Retired,
    Retried,
    Settle,
    Settled,
    Settlement,
    Stats,
    Verb,
    Watch,
    Watched,
    cancellation,
)
from spool.errors import ConfigError
from spool.job import LANES, Snapshot

__all__ = [
    "MAX_LINES",
    "MAX_LOG",
    "MAX_PROGRESS",
    "Act",
    "Acted",
    "Action",
    "Around",
    "Beat",
    "Beaten",
    "Blob",
    "Broker",
    "Cancel",
    "Cancelled",
    "Claim",
    "Claimed",
    "Delete",
    "Died",
    "Document",
    "Done",
    "Enqueue",
    "Enqueued",
    "Find",
    "Found",
    "Get",
    "Heartbeat",
    "JobNote",
    "Load",
    "Loaded",
    "NewJob",
    "Note",
    "Noted",
    "Orders",
    "Pause",
    "QueueStats",
    "Reason",
    "Released",
    "Replay",
    "Resume",
    "Retire",
    "Retired",
    "Retried",
    "Settle",
    "Settled",
    "Settlement",
    "Stats",
    "Store",
    "Stored",
    "Verb",
    "Watch",
    "Watched",
    "cancellation",
    "connect",
]

R = TypeVar("R")


class Broker(Protocol):
    """Where jobs live. Implementations are safe to share between threads, and right in several loops and after a fork.

    Every method raises `BrokerUnavailable` within a bounded time when the store cannot be reached, and never an error
    of the library below.
    """

    @property
    def url(self) -> str:
        """The URL without its password, for messages."""
        ...

    def call(self, verb: Verb[R]) -> R:
        """Carry out a verb and return its reply; blocks the calling thread."""
        ...

    async def acall(self, verb: Verb[R]) -> R:
        """Carry out a verb and return its reply. Cancelled, it may or may not have been carried out."""
        ...

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """Block until the job is done, dead or cancelled and return it; None after ``timeout`` seconds.

        Returns None at once for a job that is not known. Costs the store O(1) a second, however many wait.
        """
        ...

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """As `ended`, in the running loop."""
        ...

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        """Return when one of the queues may have work in one of the lanes, or after ``timeout`` seconds.

        A wait of less than 0.5 s is over within milliseconds of its timeout, a longer one within 0.1 s.
        A hint, wrong now and then. It may be given to one of those who wait and to no other: ask for none that cannot
        be followed.
        """
        ...

    def await_orders(self, queues: Sequence[str], timeout: float) -> None:
        """Block until a running job of one of the queues is to be cancelled, or for ``timeout`` seconds.

        A hint, wrong now and then: what is to be cancelled is said in the orders of a `Beat`. For one thread which
        calls it again and again, with the same queues: of a `Cancel` between two calls the second one knows at once.
        Raises `BrokerUnavailable` where word may have been lost, and when the broker is closed meanwhile. Costs the
        store O(1) a minute.
        """
        ...

    def close(self) -> None:
        """Give connections and threads back. Calls after it raise `BrokerUnavailable`."""
        ...

    async def aclose(self) -> None:
        """As `close`, waiting for this loop's connections to be closed."""
        ...


_SCHEMES: dict[str, str] = {
    "sqlite": "sqlite",
    "redis": "redis",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "unix": "redis",
    "http": "http",
    "https": "http",
}


def connect(url: str) -> Broker:
    """Return the broker that a URL names; no connection is made yet.

    ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://:memory:``;
    ``redis://[user:password@]host:port/db``, ``rediss://`` (TLS), ``valkey://``, ``valkeys://``, ``unix:///path.sock``;
    ``http://[:token@]host:port``, ``https://`` (a Spool server; the token may be in ``SPOOL_TOKEN`` instead).
    Options in the query: ``prefix`` (Redis; the first part of every key, default ``spool``), ``synchronous`` (SQLite;
    FULL, the default, or NORMAL), ``socket_timeout``, ``socket_connect_timeout`` (Redis and HTTP, s), ``ssl_…`` (TLS).

    Raises `ConfigError` for an unknown scheme or option.

    >>> connect("sqlite://:memory:").url
    'sqlite://:memory:'
    """
    scheme = split(url).scheme if "://" in url else ""
    match _SCHEMES.get(scheme):
        case "sqlite":
            from spool.broker.sqlite import SqliteBroker

            return SqliteBroker(url)
        case "redis":
            from spool.broker.redis import RedisBroker

            return RedisBroker(url)
        case "http":
            from spool.broker.http import HttpBroker

            return HttpBroker(url)
        case _:
            shown = f"{scheme}://…" if scheme else hidden(url).partition(":")[0]  # what follows may hold a password
            allowed = ", ".join(f"{each}://" for each in _SCHEMES)
            raise ConfigError(f"cannot use the broker URL {shown!r}: it must begin with {allowed}")
