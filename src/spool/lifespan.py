"""What surrounds the life of a worker process, as an app declares it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import Any, cast

from spool.errors import ConfigError

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


def checked_lifespan(fn: Any) -> Lifespan:
    """Return what makes the context manager. Raises `ConfigError` for a function that cannot; else it does, if called.

    What a plain function returns is known only then.
    """
    if inspect.isasyncgenfunction(fn):
        return asynccontextmanager(fn)
    if not callable(fn) or inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn):
        raise ConfigError(
            "a lifespan is a function that returns an async context manager, "
            f"or an async generator function that yields once, not {fn!r}"
        )

    call = cast("Lifespan", fn)

    @wraps(call)
    def make(app: Any) -> AbstractAsyncContextManager[Any]:
        made = call(app)
        if not hasattr(type(made), "__aenter__") or not hasattr(type(made), "__aexit__"):
            raise ConfigError(
                f"the lifespan {lifespan_name(fn)} returned {made!r}; a lifespan returns an async context manager, "
                "or is an async generator function that yields once"
            )
        return made

    return make


def lifespan_name(lifespan: Any) -> str:
    """Return the name by which its author knows it."""
    name = getattr(lifespan, "__qualname__", None)
    return f"{lifespan.__module__}.{name}" if name else repr(lifespan)
