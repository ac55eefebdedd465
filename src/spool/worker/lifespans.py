"""The app's lifespans around the life of a worker, none of which can keep it from ending."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final

from spool.app import Spool
from spool.lifespan import lifespan_name
from spool.worker.life import HURRY

logger = logging.getLogger("spool.worker")

LEAVE: Final = 3.0
"""Seconds that there are at least for leaving them when the worker ends in order, if its grace is over by then."""
LAST: Final = 0.1
"""What each gets when others have used up that time."""
_PLACE: Final = "in the lifespan "


class Lifespans:
    """Enters and leaves them, in one task. ``grace`` as the worker's: what leaving may take from its stop on."""

    def __init__(self, app: Spool, grace: float) -> None:
        self._app = app
        self._grace = grace
        self._entering: asyncio.Timeout | None = None
        self._leaving: asyncio.Timeout | None = None
        self._end = 0.0
        self._hurried = self._left = False

    def stop(self) -> None:
        """Cancel what is being entered, and let none take longer than the grace from now on."""
        self._end = asyncio.get_running_loop().time() + self._grace
        _cut(self._entering, 0.0)

    def hurry(self) -> None:
        """Give what is left, or will be, a moment more."""
        self._hurried = True
        self._end = asyncio.get_running_loop().time() + HURRY
        _cut(self._entering, 0.0)
        _cut(self._leaving, self._end)

    @asynccontextmanager
    async def cancelled(self, *, at_once: bool) -> AsyncGenerator[None]:
        """Have what is done in this block cancelled by `stop`, and leave the block then with a `Stopped`."""
        try:
            async with asyncio.timeout(0 if at_once else None) as self._entering:
                yield
        except TimeoutError:
            if self._entering is not None and self._entering.expired():
                raise Stopped from None
            raise

    async def enter(self, stack: AsyncExitStack) -> None:
        """Enter them all, to be left by the stack. Raises what they raise, with a note that `place_of` finds."""
        for lifespan in self._app.lifespans:
            name = lifespan_name(lifespan)
            try:
                manager = lifespan(self._app)
                await manager.__aenter__()
            except BaseException as error:
                error.add_note(f"{_PLACE}{name}, when it was entered")
                raise
            stack.push_async_exit(partial(self._leave, name, manager))

    async def _leave(
        self,
        name: str,
        manager: AbstractAsyncContextManager[Any],
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._leaving = limit = asyncio.timeout_at(self._until())
        try:
            async with limit:
                return await manager.__aexit__(kind, error, trace)
        except BaseException as problem:
            if not (isinstance(problem, TimeoutError) and limit.expired()):
                problem.add_note(f"{_PLACE}{name}, when it was left")
                raise
        logger.error("the lifespan %s took too long to leave, and was cancelled", name)
        return None

    def _until(self) -> float:
        """Return when the next is to be left, on the loop's clock: one time for all of them."""
        now = asyncio.get_running_loop().time()
        if not self._left and not self._hurried:
            self._end = max(self._end or now + self._grace, now + LEAVE)
        self._left = True
        return max(self._end, now + LAST)


class Stopped(Exception):
    """The worker was to stop before it had begun."""


def place_of(error: BaseException) -> str:
    """Return in which lifespan an error was raised, and when; empty for none."""
    return next((note for note in getattr(error, "__notes__", ()) if note.startswith(_PLACE)), "")


def _cut(limit: asyncio.Timeout | None, at: float) -> None:
    if limit is not None:
        with contextlib.suppress(RuntimeError):  # it is over, or was cut before
            limit.reschedule(at)
