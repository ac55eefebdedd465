"""Which part of a worker a stack belongs to, by the functions that are on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final, Literal

from spool.profile import Frame, Profile

Part = Literal["decode", "handler", "encode", "protocol", "loop"]

_SPOOL: Final = str(PurePath(__file__).parent.parent) + "/"
_READING: Final = frozenset({"read", "_read", "_value", "read_record", "read_arguments", "_split", "_from_builtin"})
_WRITING: Final = frozenset({"done", "encode_result", "write_result", "encode_ending", "_to_builtin", "_problem"})
_WORKER: Final = ("executor/", "payload.py", "task.py", "job.py", "worker/", "report.py", "retry.py", "app.py")
"""What runs within an attempt and is not the handler."""
_ELSEWHERE: Final = ("executor/pool.py", "executor/threads.py")
"""What hands a call to a process or a thread; the libraries that it uses are no handlers."""
_ASKING: Final = ("broker/", "bench/load.py", "bench/timing.py")


def part_of(stack: Sequence[Frame]) -> Part:
    """Return what a stack of an event loop's thread, root first, works on.

    >>> attempt = Frame("Executor.attempt", _SPOOL + "executor/__init__.py", 200)
    >>> part_of([attempt, Frame("send", "/app/shop.py", 3), Frame("encode", "/usr/lib/json.py", 9)])
    'handler'
    >>> part_of([attempt, Frame("read", _SPOOL + "payload.py", 231)]), part_of([attempt])
    ('decode', 'loop')
    """
    names = [(_bare(frame.function), _within(frame.file)) for frame in stack]
    attempt = next((at for at, name in enumerate(names) if name == ("attempt", "executor/__init__.py")), None)
    if attempt is None:
        return _outside(names)
    inner = names[attempt + 1 :]
    if any(file in _ELSEWHERE for _, file in inner):
        return "loop"
    if any(_is_handler(function, file) for function, file in inner):
        return "handler"
    functions = {function for function, _ in inner}
    if functions & _WRITING:
        return "encode"
    return "decode" if functions & _READING else "loop"


def shares(profile: Profile, thread: str = "MainThread") -> dict[str, float]:
    """Return how the processor's time of a thread, in all processes, is divided; the shares add up to 1, or to 0."""
    column = profile.column("samples")
    found: dict[str, int] = dict.fromkeys(("decode", "handler", "encode", "protocol", "loop"), 0)
    for sample in profile.samples:
        if sample.labels.get("thread") == thread:
            found[part_of(sample.stack)] += sample.values[column]
    whole = sum(found.values()) or 1
    return {part: count / whole for part, count in found.items()}


def in_handlers(profile: Profile) -> float:
    """Return which share of the time of the threads that run handlers is the handlers' own; 1 if they have had none.

    The rest is what it takes to hand calls over: a hundred threads that sleep have to be woken, too.
    """
    column = profile.column("samples")
    own = whole = 0
    for sample in profile.samples:
        names = [(_bare(frame.function), _within(frame.file)) for frame in sample.stack]
        call = next((at for at, name in enumerate(names) if name == ("_call", "executor/threads.py")), len(names))
        if any(file == "executor/threads.py" for _, file in names):
            whole += sample.values[column]
            own += sample.values[column] * any(_is_handler(*name) for name in names[call + 1 :])
    return own / whole if whole else 1.0


def _outside(names: Sequence[tuple[str, str | None]]) -> Part:
    if any(function == "read_record" for function, _ in names):
        return "decode"
    if any(file is not None and file.startswith(_ASKING) for _, file in names):
        return "protocol"
    asking = {"_settle", "_claim", "ask"}
    starting = any(file is not None and file.startswith("executor/") for _, file in names)
    return "protocol" if not starting and any(function in asking for function, _ in names) else "loop"


def _is_handler(function: str, file: str | None) -> bool:
    if file is None:
        return True
    if file.startswith("bench/"):  # the benchmark's own handlers; what surrounds them is no work of theirs
        return not function.startswith(("noting", "noting_async"))
    return not file.startswith(_WORKER)


def _bare(function: str) -> str:
    """Return a function's name without its class's, which py-spy has for some versions of Python."""
    return function.rpartition(".")[2]


def _within(file: str) -> str | None:
    """Return a file's path within the package; None for any other."""
    return file.removeprefix(_SPOOL) if file.startswith(_SPOOL) else None
