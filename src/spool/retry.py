"""When an attempt that failed is tried again: pure functions over declared policy."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from spool.errors import ConfigError, Retry

Exceptions = type[BaseException] | tuple[type[BaseException], ...]


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait between attempts, in seconds: ``base * factor ** (failures - 1)``, never more than ``cap``.

    With ``jitter`` (the default) the wait is drawn evenly from 0 to that, so that jobs which failed together do not
    come back together. Raises `ConfigError` for numbers that make no sense.

    >>> [delay(Backoff(base=2, cap=10, jitter=False), failures, 0.0) for failures in (1, 2, 3, 4)]
    [2.0, 4.0, 8.0, 10.0]
    """

    base: float = 1.0
    cap: float = 300.0
    factor: float = 2.0
    jitter: bool = True

    def __post_init__(self) -> None:
        _check("base", self.base, 0)
        _check("cap", self.cap, 0)
        _check("factor", self.factor, 1)


def _check(name: str, value: object, least: int) -> None:
    if not isinstance(value, int | float) or not least <= value < math.inf:
        raise ConfigError(f"Backoff({name}={value!r}) is not usable: it must be a number, {least} or more")


DEFAULT_BACKOFF: Final = Backoff()


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often, when and after which exceptions a job is tried again. ``no_retry_on`` wins over ``retry_on``."""

    retries: int = 3
    backoff: Backoff = DEFAULT_BACKOFF
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    no_retry_on: tuple[type[BaseException], ...] = ()


def checked_policy(retries: int, backoff: object, retry_on: Exceptions, no_retry_on: Exceptions) -> RetryPolicy:
    """Return the policy that a declaration asks for. Raises `ConfigError` for what is no backoff or no exception."""
    if not isinstance(backoff, Backoff):
        raise ConfigError(f"backoff must be a Backoff, as Backoff(base=1, cap=300), not {backoff!r}")
    return RetryPolicy(retries, backoff, _listed("retry_on", retry_on), _listed("no_retry_on", no_retry_on))


def _listed(name: str, given: Exceptions) -> tuple[type[BaseException], ...]:
    listed = given if isinstance(given, tuple) else (given,)
    if not all(map(_is_exception, listed)):
        raise ConfigError(f"{name} takes an exception class or a tuple of them, not {given!r}")
    return listed


def _is_exception(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, BaseException)


def delay(backoff: Backoff, failures: int, jitter: float) -> float:
    """Return the seconds to wait after this many failures (1 or more); ``jitter`` is a random number in [0, 1)."""
    try:
        full = min(backoff.cap, backoff.base * backoff.factor ** (failures - 1))
    except OverflowError:  # long past any cap
        full = backoff.cap if backoff.base else 0.0
    return float(full * jitter if backoff.jitter else full)


def decide(policy: RetryPolicy, failures: int, error: BaseException, jitter: float) -> float | None:
    """Return the seconds until the next attempt, or None if the job is dead.

    ``failures`` counts this one. A `Retry` is exempt from ``retry_on`` and ``no_retry_on`` and may name its own delay,
    but its attempts are as limited as any.

    >>> decide(RetryPolicy(retries=1, backoff=Backoff(jitter=False)), 1, OSError(), 0.5)
    1.0
    >>> decide(RetryPolicy(retries=1), 2, OSError(), 0.5) is None
    True
    """
    if failures > policy.retries:
        return None
    if isinstance(error, Retry):
        return delay(policy.backoff, failures, jitter) if error.delay is None else max(0.0, error.delay)
    if isinstance(error, policy.no_retry_on) or not isinstance(error, policy.retry_on):
        return None
    return delay(policy.backoff, failures, jitter)
