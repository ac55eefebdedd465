"""Wait for what has to become true."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T], timeout: float = 10.0) -> T:
    """Call ``probe`` until it returns something true, and return that."""
    end = time.monotonic() + timeout
    while not (found := probe()):
        assert time.monotonic() < end, f"did not come true within {timeout} s; last seen: {found!r}"
        time.sleep(0.005)
    return found


async def aeventually(probe: Callable[[], Any], timeout: float = 10.0) -> Any:
    """As `eventually`, in the running loop; ``probe`` may return something to await."""
    end = time.monotonic() + timeout
    while True:
        found = probe()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, f"did not come true within {timeout} s; last seen: {found!r}"
        await asyncio.sleep(0.002)
