"""What a peer's module says and does. The driver never imports one: each runs in its peer's own environment."""

import os
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, Protocol

DATA = "x" * 1024
"""What each job carries; beside it its number."""
HELD_SECONDS = float(os.environ.get("PEERS_HELD", "2"))
"""How long the jobs of the kill test take; less in our own tests."""

URL = "{url}"
"""Stands for the store's URL in a worker's command; each step and each kill test has a store of its own."""


class Worker(NamedTuple):
    """How one worker process is started, and what is to be told of its settings."""

    setting: str
    command: Sequence[str]
    """Arguments for the Python of the peer's environment."""
    slots: int = 0
    """For peers that take it from their code and not from the command: what `slots` returns in the worker."""


def slots(usual: int) -> int:
    return int(os.environ.get("PEERS_SLOTS") or usual)


class Peer(Protocol):
    """A module of this package. Its ``noop`` and ``hold`` tasks take DATA and a number and return a small dict.

    Functions may be coroutines: then all are called on one event loop, and a peer without ``send_many`` has 50 calls of
    ``send`` gathered at a time where another has bulk.
    """

    PACKAGE: str
    """The distribution whose version is told."""
    GUARANTEE: str
    """What happens to a running job whose worker is killed, in a few words."""
    SHARE: float
    """Its jobs for each of the fastest peer's, so that each one's drain takes a few seconds."""
    WORKERS: dict[str, Worker]
    """By name of the variant, "" for the usual one."""
    KILLED: Worker
    """The one of the kill test: four slots, at least once if the peer has that, everything else at its default."""

    def send(self, number: int, *, held: bool = False) -> Awaitable[Any] | Any:
        """Enqueue one job, by the peer's usual call, and return what `stored` and `read` know it by."""

    def send_many(self, numbers: Sequence[int]) -> Awaitable[Sequence[Any]] | Sequence[Any]:
        """Enqueue jobs by the peer's call for many. Left out where there is none."""

    def stored(self, ids: Sequence[Any]) -> Awaitable[int] | int:
        """Return how many of these jobs have a result in the store; cheap enough to be asked every millisecond."""

    def results(self) -> Awaitable[int] | int:
        """Return how many results there are in all. In place of `stored`, where that is the cheap question."""

    def read(self, id: Any) -> Awaitable[Any] | Any:
        """Return a job's result by the call of a user."""
