"""What every process of a run saw, line by line, in a file of its own: the harness's evidence.

A line is one write to a file opened with O_APPEND. A process that is killed in the middle of everything leaves whole
lines behind, and at most a torn last one. Times are nanoseconds of CLOCK_MONOTONIC, which all processes share and which
no clock fault moves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

Answer = Literal["acknowledged", "existing", "refused", "unknown", "conflict"]


class Asked(msgspec.Struct, frozen=True, tag="asked"):
    """A producer is about to call enqueue."""

    id: str
    queue: str
    task: str
    at: int


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """How that ended.

    ``unknown`` is an error after which the job may or may not be there, ``refused`` one that says it is not.
    """

    id: str
    answer: Answer
    at: int
    error: str = ""


class Wished(msgspec.Struct, frozen=True, tag="wished"):
    """A producer is about to ask for a job's cancellation."""

    id: str
    at: int


class Life(msgspec.Struct, frozen=True, tag="life"):
    """A process that runs handlers has begun. ``family`` are its ancestors, the nearest first."""

    pid: int
    role: Literal["worker", "pool"]
    family: list[int]
    at: int


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A handler was entered. ``worker`` is the name of its supervisor."""

    id: str
    attempt: int
    task: str
    worker: str
    pid: int
    at: int


Ending = Literal["ok", "failed", "cancelled"]


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A handler was left."""

    id: str
    attempt: int
    pid: int
    at: int
    how: Ending


EventKind = Literal[
    "kill", "stop", "term", "up", "exit", "gone", "outage", "cut", "full", "forget", "clock", "damage", "poison", "note"
]


class Event(msgspec.Struct, frozen=True, tag="event"):
    """Something that the harness did or saw.

    kill, stop, term: what became of ``pids`` (of ``worker``, "" for several); stop lasts to ``until``.
    up, exit: a supervisor was started, or has ended with ``code``; ``wanted`` says whether we had asked for that.
    gone: the last process of a dead worker had ended at ``until``; ``wanted`` says whether all of them did.
    outage, cut, full: the store did not answer, the way to it was cut for ``worker`` ("": for all), it had no room.
    forget: what the store had acknowledged after ``at`` and carried out before ``until`` may be forgotten.
    damage, poison: ``ids`` are the jobs whose records were overwritten, or which are the fault.
    """

    kind: EventKind
    at: int
    fault: str = ""
    until: int = 0
    worker: str = ""
    pids: list[int] = []
    ids: list[str] = []
    code: int | None = None
    wanted: bool = True
    note: str = ""


Line = Asked | Answered | Wished | Life | Started | Ended | Event
L = TypeVar("L", bound=Line)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class Journal:
    """One process's file, to be appended to."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(self, line: Line) -> None:
        os.write(self._fd, _encode(line) + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def read(directory: Path, pattern: str) -> list[Line]:
    """Return the lines of all files of that pattern, in the order of their files."""
    found: list[Line] = []
    for path in sorted(directory.glob(pattern)):
        found += [_decode(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return found


def only(kind: type[L], lines: Iterable[Line]) -> list[L]:
    """Return the lines of one kind."""
    return [line for line in lines if type(line) is kind]
