"""The verbs of documents, small things that span queues, see `spool.broker.verbs`."""

from __future__ import annotations

import msgspec

from spool.broker.verbs import Verb
from spool.job import Number


class Document(msgspec.Struct, frozen=True):
    """A small thing that spans queues: a worker's row, a schedule, a token. ``version`` counts its writes from 1."""

    key: str
    version: int
    body: bytes


class Loaded(msgspec.Struct, frozen=True):
    """Reply of `Load`."""

    now: int
    documents: list[Document]
    cursor: str = ""


class Load(Verb[Loaded], frozen=True):
    """List the documents of a kind, by key, from after ``cursor``; kind "queue" the queues known, without bodies."""

    kind: str
    cursor: str = ""
    """A key: the list begins with the next one."""
    limit: Number = 1000


class Stored(msgspec.Struct, frozen=True):
    """Reply of `Store`: the document's version now; 0 once removed."""

    now: int
    version: int


class Store(Verb[Stored], frozen=True):
    """Write a document (``body`` None removes it), for ``ttl`` milliseconds if that is not 0.

    With ``if_version`` only if the present version is that (0: not there); otherwise raises `VersionConflict`.
    ``others``: further documents of that kind to be written for as long, by key, whatever their versions are.
    """

    kind: str
    key: str
    body: bytes | None
    ttl: Number = 0
    if_version: Number | None = None
    others: dict[str, bytes] = msgspec.field(default_factory=dict[str, bytes])
