"""What a task is declared with and a call may override: the checks of each value, with errors that name it."""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from spool.errors import ConfigError
from spool.job import PRIORITIES, Options, Priority, check_name
from spool.retry import RetryPolicy

TaskKind = Literal["async", "thread", "process"]

Durability = Literal["fsync"] | None
"""When an enqueue is acknowledged: "fsync" is on the disk, None as the store is set up."""

OnDisconnect = Literal["stop", "continue"]
"""What becomes of a running job when its worker cannot reach the store."""

#: No one plans further ahead, and the milliseconds stay exact in every store.
MAX_SECONDS: Final = 100 * 366 * 86_400


MAX_HEADERS: Final = 8 * 1024
"""Bytes of names and values together."""


class TaskSettings(msgspec.Struct, frozen=True):
    """A task as declared. Times are in seconds."""

    name: str
    kind: TaskKind
    queue: str = "default"
    priority: Priority = "normal"
    retry: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    result_ttl: float = 3600.0
    max_crashes: int = 3
    on_disconnect: OnDisconnect = "stop"
    redact: tuple[str, ...] = ()
    record_logs: bool | None = None

    def __post_init__(self) -> None:
        check_name("task", self.name)
        check_name("queue", self.queue)
        check_priority(self.priority)
        check_count("retries", self.retry.retries)
        check_count("max_crashes", self.max_crashes, least=1)
        if self.timeout is not None:
            attempt_timeout(self.timeout)
        seconds("result_ttl", self.result_ttl)
        check_on_disconnect(self.on_disconnect)
        check_record_logs(self.record_logs)


def check_priority(priority: object) -> int:
    """Return the rank of a priority, 0 for the most urgent. Raises `ConfigError`."""
    if priority not in PRIORITIES:
        raise ConfigError(f"priority {priority!r} is not one of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(priority)


def check_count(name: str, value: object, least: int = 0) -> None:
    """Raise `ConfigError` unless the value is an integer from ``least`` up to what fits into 31 bits."""
    if type(value) is not int or not least <= value < 2**31:
        raise ConfigError(f"{name} must be an integer, {least} or more, not {value!r}")


def seconds(name: str, value: object) -> float:
    """Return a duration, a number of seconds or a timedelta, as seconds. Raises `ConfigError` if it is negative."""
    number = _duration(value)
    if number is None:
        raise ConfigError(f"{name} must be a number of seconds, 0 or more and at most 100 years, not {value!r}")
    return number


def _duration(value: object) -> float | None:
    number = value.total_seconds() if isinstance(value, dt.timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_SECONDS:
        return None
    return number


def attempt_timeout(value: object) -> float:
    """Return the timeout of an attempt in seconds. Raises `ConfigError`."""
    timeout = _duration(value)
    if not timeout:
        raise ConfigError(
            f"timeout must be a number of seconds, more than 0 and at most 100 years, or None, not {value!r}"
        )
    return timeout


def check_on_disconnect(value: object) -> str:
    """Return it as it is. Raises `ConfigError`."""
    if not isinstance(value, str) or value not in ("stop", "continue"):
        raise ConfigError(f"on_disconnect must be 'stop' or 'continue', not {value!r}")
    return value


def check_record_logs(value: object) -> None:
    """Raise `ConfigError` unless it is True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"record_logs must be True, False or None, not {value!r}")


def checked_redact(redact: object, fn: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of parameters to hide, each once. Raises `ConfigError` for one that the function has not.

    A function with ``**kwargs`` may be given any name.
    """
    try:
        names = sorted(msgspec.convert(redact, set[str]))
    except msgspec.ValidationError as error:
        raise ConfigError(f"redact must be the names of parameters, as redact=('password',), not {redact!r}") from error
    if not names:  # some builtin functions have no signature, and need none for that
        return ()
    named = inspect.signature(fn).parameters
    free = any(each.kind is each.VAR_KEYWORD for each in named.values())
    for name in names:
        if name not in named and not free:
            has = ", ".join(named) or "none"
            raise ConfigError(f"redact names {name!r}, which is no parameter of {fn.__qualname__}; it has {has}")
    return tuple(names)


def check_durability(durability: object) -> bool:
    """Return whether an enqueue is to be on the disk. Raises `ConfigError`."""
    if durability not in ("fsync", None):
        raise ConfigError(f"durability must be 'fsync' or None, not {durability!r}")
    return durability is not None


def overrides(
    retries: int | None,
    timeout: float | dt.timedelta | None,
    result_ttl: float | dt.timedelta | None,
    on_disconnect: OnDisconnect | None,
) -> Options | None:
    """Return what a call overrides, None for nothing. Raises `ConfigError`."""
    if retries is not None:
        check_count("retries", retries)
    options = Options(
        retries,
        None if timeout is None else attempt_timeout(timeout),
        None if result_ttl is None else seconds("result_ttl", result_ttl),
        None if on_disconnect is None else check_on_disconnect(on_disconnect),
    )
    return None if options == Options() else options


def due_time(at: object, delay: object) -> int:
    """Return the time ``at`` in milliseconds since 1970, 0 for none. Raises `ConfigError`."""
    if at is None:
        return 0
    if delay is not None:
        raise ConfigError("give delay= or at=, not both")
    if not isinstance(at, dt.datetime):
        raise ConfigError(f"at must be a datetime with a time zone, not {at!r}")
    if at.utcoffset() is None:
        raise ConfigError(f"at={at!r} has no time zone: which moment it names depends on the machine; give it a tzinfo")
    return max(1, round(at.timestamp() * 1000))


def checked_headers(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return headers as they are stored, None for none. Raises `ConfigError`."""
    try:
        checked = msgspec.convert(headers or {}, dict[str, str])
        size = sum(len(name.encode()) + len(value.encode()) for name, value in checked.items())
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise ConfigError(f"headers must be text by text: {error}") from error
    if size > MAX_HEADERS:
        raise ConfigError(f"headers take {size:,} bytes, more than the limit of {MAX_HEADERS:,}")
    return checked or None
