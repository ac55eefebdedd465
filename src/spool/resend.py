"""Sending an enqueue again when its reply was lost: how long to wait, and what to say in the end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Final

from spool.errors import BrokerError, BrokerUnavailable
from spool.retry import Backoff, delay

_RESEND: Final = Backoff(base=0.05, cap=1.0)


def pauses(timeout: float) -> Iterator[float]:
    """Yield the seconds to wait before each new try, with full jitter, until the time is over."""
    end = time.monotonic() + timeout
    failures = 1
    while (left := end - time.monotonic()) > 0:
        yield min(left, delay(_RESEND, failures, random.random()))  # noqa: S311 - jitter
        failures += 1


def graver(one: BrokerUnavailable, other: BrokerUnavailable) -> BrokerUnavailable:
    """Return the one after which it is not known what was carried out; of two such ones the first."""
    return other if one.answered else one


def refused_again(lost: BrokerUnavailable, refusal: BrokerError) -> BrokerError:
    """Return what to raise when a call that may have been carried out is refused the second time.

    The refusal says that nothing was stored, and speaks for itself alone: a job that has ended since, and was not to be
    remembered, or one of many, is new to the store, which has no room for it any more.
    """
    if lost.answered:
        return refusal
    return BrokerUnavailable(
        f"whether anything was stored is not known: {lost}; sent again, it was refused and stored nothing: {refusal}"
    )
