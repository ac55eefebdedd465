"""What went wrong, as RFC 9457 has it: ``application/problem+json`` with a type, a title, a status and a detail.

``type`` is ``urn:spool:`` and the name of the error in lower case with dashes, as ``urn:spool:job-conflict``; ``error``
is that of its class in `spool.errors`, so that a client can raise the same. Every `SpoolError` is mapped once, below;
a subclass that is not named has the status of its base.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from spool import errors
from spool.broker.silence import is_silence
from spool.errors import SpoolError

STATUS: Final[dict[type[SpoolError], int]] = {
    errors.SpoolError: 500,
    errors.ConfigError: 422,
    errors.SyncInLoop: 500,
    errors.TaskError: 422,
    errors.PayloadError: 422,
    errors.PayloadTooLarge: 413,
    errors.ProtectionError: 500,
    errors.JobConflict: 409,
    errors.JobNotFound: 404,
    errors.EnqueueInterrupted: 503,
    errors.NotDurable: 503,
    errors.BrokerError: 503,
    errors.BrokerFull: 507,
    errors.StoreCorrupt: 500,
    errors.VersionConflict: 409,
    errors.LeaseLost: 409,
    errors.BenchError: 500,
    errors.ProfileError: 500,
    errors.ResultError: 409,
    errors.ResultTimeout: 504,
}

TITLES: Final = {
    400: "The request cannot be understood",
    401: "Say who you are",
    403: "Not allowed",
    404: "Not found",
    405: "No such method here",
    408: "The request took too long",
    409: "It conflicts with what is there",
    413: "Too large",
    415: "JSON is expected",
    421: "Not a name of this server",
    422: "It cannot be carried out as it is",
    429: "Too many requests",
    431: "The headers are too large",
    500: "The server failed",
    503: "The store cannot serve now",
    504: "It took too long",
    507: "The store is full",
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem document. ``error`` is empty where it is none of `spool.errors`.

    ``answered`` is as in `spool.errors.BrokerUnavailable`, ``silent`` as `spool.broker.silence.is_silence` has it;
    ``limit`` is how many bytes a body may have.
    """

    title: str
    status: int
    detail: str = ""
    type: str = "about:blank"
    error: str = ""
    instance: str = ""
    answered: bool = False
    silent: bool = False
    limit: int | None = None


class Refused(Exception):
    """What a handler, or a guard before it, raises to answer with a problem. ``headers`` go with the answer."""

    def __init__(
        self, status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = (), *, limit: int | None = None
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(TITLES.get(status, "Error"), status, detail, limit=limit)
        self.headers = headers


def problem_of(error: SpoolError) -> Problem:
    """Return the document of an error.

    >>> problem_of(errors.JobConflict("mail/1 is taken")).type
    'urn:spool:job-conflict'
    """
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    name = type(error).__name__
    dashed = re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
    answered = isinstance(error, errors.BrokerUnavailable) and error.answered
    return Problem(
        TITLES[status], status, str(error), f"urn:spool:{dashed}", name, answered=answered, silent=is_silence(error)
    )
