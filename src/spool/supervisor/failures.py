"""What becomes of worker processes that fail: what is told of it, and when the next one starts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import spool.errors
from spool.errors import SpoolError

LONGEST_PAUSE: Final = 30.0


def error_of(kind: str, reason: str) -> SpoolError:
    """Return the error of that name."""
    found = getattr(spool.errors, kind, SpoolError)
    return found(reason) if isinstance(found, type) and issubclass(found, SpoolError) else SpoolError(reason)


_OURS: Final = str(Path(__file__).parent.parent)


def is_of_the_app(traceback: str) -> bool:
    """Whether a traceback leads into the app's own code, and not just to an import that found nothing."""
    places = [line for line in traceback.splitlines() if line.lstrip().startswith('File "')]
    return any(_OURS not in line and "importlib" not in line for line in places)


def pause_after(falls: int) -> float:
    """Return how long to wait before the next child: not at all once, then longer and longer."""
    if falls <= 1:
        return 0.0
    longest: float = min(LONGEST_PAUSE, 0.25 * 2.0 ** min(falls, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
