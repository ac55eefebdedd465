"""The sides of runs in turns: how the processes of each are started, told what to do, and asked what came out.

A side is ``spool bench custom`` of its environment. Both are started alike: by a `Couple` once for several runs, or by
`measure` for each run anew, which any version of Spool can do.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec

from spool.bench.calibrate import UNCALIBRATED
from spool.bench.result import BenchResult, went_wrong
from spool.bench.turns import Answer, Close, Closed, Done, End, Fill, Go, Life, Order
from spool.broker.url import hidden, split
from spool.errors import BenchError, ConfigError

_TAIL_LINES: Final = 15
_STOP_SECONDS: Final = 30.0
_HAS_TURNS: Final = "import sys, importlib.util as util; sys.exit(util.find_spec('spool.bench.turns') is None)"

Name = Literal["base", "this"]
Index = Literal[0, 1]
_A = TypeVar("_A", Done, Closed, Life)


class Side(msgspec.Struct, frozen=True):
    """What is measured: the Spool of an environment, or this one, on a broker. See `side`."""

    name: Name
    python: str
    env: str | None = None
    """Path of the virtual environment; None: this one."""
    url: str | None = None


def side(name: Name, env: str | None = None, url: str | None = None) -> Side:
    """Return a side of the comparison. Raises `ConfigError` for an environment without a Python."""
    if env is None:
        return Side(name, sys.executable, None, url)
    python = Path(env).absolute() / "bin" / "python"  # not resolved: it is the link that makes the environment
    if not os.access(python, os.X_OK):
        raise ConfigError(f"{env} is no virtual environment: there is no {python}")
    return Side(name, str(python), env, url)


def has_turns(side: Side) -> bool:
    """Return whether the Spool of a side can live on from run to run: the first versions could not."""
    command = [side.python, "-c", _HAS_TURNS]
    return not subprocess.run(command, env=_environment(side), capture_output=True, check=False).returncode


class Couple:
    """Both sides as processes that live on from run to run, of which one is idle while the other runs.

    Raises `BenchError` if one fails: it names the side, and its note has the end of what that said.
    """

    def __init__(self, sides: tuple[Side, Side], options: Sequence[str], jobs: int, first: Index = 0) -> None:
        """``first``: the side whose process is started first, as one of them has to be."""
        self._sides, self._options, self._jobs, self._first = sides, options, jobs, first
        self._lives: list[_Living] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            sides, order = _apart(self._sides), (self._first, 1 - self._first)
            self._lives = [stack.enter_context(_Living(sides[i], self._options, self._jobs)) for i in order]
            self._lives = [self._lives[i] for i in order]  # as the sides are
            for life in self._lives:
                life.hear(Done)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._end()

    def fill(self, jobs: int) -> None:
        """Have both sides get ready for a run of so many jobs."""
        self._ask(Fill(jobs), Done)

    def go(self, index: Index) -> None:
        """Have one side run, and wait until it is idle again."""
        self._lives[index].tell(Go())
        self._lives[index].hear(Done)

    def close(self) -> tuple[BenchResult, BenchResult]:
        """Return what came out of the run of either side."""
        base, this = self._ask(Close(), Closed)
        for life, found in zip(self._lives, (base, this), strict=True):
            life.check(found.result)
        return base.result, this.result

    def _end(self) -> None:
        for life, found in zip(self._lives, self._ask(End(), Life), strict=True):
            if found.lost or found.duplicated:
                raise life.failed(f"of {found.jobs} jobs of all runs {found.lost} lost, {found.duplicated} run twice")

    def _ask(self, order: Order, kind: type[_A]) -> list[_A]:
        for life in self._lives:
            life.tell(order)
        return [life.hear(kind) for life in self._lives]


class _Living:
    """The process of one side."""

    def __init__(self, side: Side, options: Sequence[str], jobs: int) -> None:
        self._side = side
        self._command = _command(side, options, jobs)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self._process = _start([*self._command, "--turns", str(descriptor)], side, self._err.fileno(), descriptor)
        self._line = ours
        self._file = ours.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._err, self._line, self._file:
            if kind is not None:
                self._process.send_signal(signal.SIGTERM)
                _await_end(self._process)
            elif _await_end(self._process):
                raise self._failed_alone()

    def tell(self, order: Order) -> None:
        try:
            self._line.sendall(msgspec.json.encode(order) + b"\n")
        except OSError as error:
            raise self._failed_alone() from error

    def hear(self, kind: type[_A]) -> _A:
        text = self._file.readline()
        if not text.endswith(b"\n"):
            raise self._failed_alone()
        answer = msgspec.json.decode(text, type=Answer)
        if not isinstance(answer, kind):
            raise self.failed(f"it answered {type(answer).__name__}, not {kind.__name__}")
        return answer

    def check(self, found: BenchResult) -> None:
        """Raise if a job is not accounted for."""
        if went_wrong(found.result, found.config.kind):
            raise self.failed(_what_of(found), 1)

    def _failed_alone(self) -> BenchError:
        code = _await_end(self._process)
        self._err.seek(0)
        return self.failed(self._err.read().decode(errors="replace"), code)

    def failed(self, said: str, code: int = 0) -> BenchError:
        return _failed(self._side, self._command, code, said)


def _apart(sides: tuple[Side, Side]) -> tuple[Side, Side]:
    """Give each side a store of its own, where both were given the same one by its name: they live side by side."""
    url = sides[0].url
    if url is None or url != sides[1].url:
        return sides
    base, this = (msgspec.structs.replace(each, url=_named(url, each.name)) for each in sides)
    return base, this


def _named(url: str, name: str) -> str:
    """Name the store of a side.

    >>> _named("sqlite:////tmp/new.db?synchronous=full", "base"), _named("redis://localhost/3?prefix=ab", "this")
    ('sqlite:////tmp/new-base.db?synchronous=full', 'redis://localhost/3?prefix=ab-this')
    """
    place, mark, text = url.partition("?")
    query = dict(parse_qsl(text))
    if split(url).scheme == "sqlite":
        suffix = PurePosixPath(place).suffix
        return f"{place.removesuffix(suffix)}-{name}{suffix}{mark}{text}"
    if "prefix" not in query:
        return url  # each will make up its own
    return f"{place}?{urlencode(query | {'prefix': query['prefix'] + '-' + name})}"


def measure(side: Side, options: Sequence[str], jobs: int) -> BenchResult:
    """Run one side in processes of its own, which end with it."""
    command = _command(side, options, jobs)
    with tempfile.TemporaryDirectory(prefix="spool-ab-") as directory, tempfile.TemporaryFile() as err:
        file = Path(directory) / "result.json"  # not stdout, where a user's task may print
        process = _start([*command, "--json", str(file)], side, err.fileno())
        try:
            process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            _await_end(process)
            raise
        code = process.returncode
        err.seek(0)
        said = err.read().decode(errors="replace")
        written = file.read_bytes() if file.exists() else b""
    try:
        document = msgspec.json.decode(written, type=BenchResult)
    except (msgspec.MsgspecError, ConfigError) as error:
        raise _failed(side, command, code, said or f"what it wrote is no result: {error}") from error
    if code:
        raise _failed(side, command, code, f"{said}\n{_what_of(document)}")
    return document


def _command(side: Side, options: Sequence[str], jobs: int) -> list[str]:
    url = [] if side.url is None else ["--url", side.url]
    return [side.python, "-m", "spool", "bench", "custom", "--jobs", str(jobs), *options, *url]


def _environment(side: Side) -> dict[str, str]:
    """Return the environment of a side: another one must find its own Spool, and nothing of ours before it."""
    common = dict(os.environ) | {UNCALIBRATED: "1"}  # a quarter of a run, and pairs need none
    if side.env is None:
        return common
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP", "PYTHONSAFEPATH")
    # Else a directory called spool, where the command is given, would be taken for the one that is installed.
    return {name: value for name, value in common.items() if name not in ours} | {"PYTHONSAFEPATH": "1"}


def _start(command: Sequence[str], side: Side, err: int, *descriptors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=_environment(side),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=err,
        pass_fds=descriptors,
        process_group=0,  # so that a Ctrl-C reaches it through us, and once: it has a store to remove
    )


def _await_end(process: subprocess.Popen[bytes]) -> int:
    """Return its exit code when it has ended in order, or was killed because it would not."""
    try:
        return process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _what_of(found: BenchResult) -> str:
    run = found.result
    what = f"{run.failed} failed, {run.lost} lost, {run.unfinished} unfinished, {run.duplicated} run twice"
    return f"of {run.jobs} jobs {what}"


def _failed(side: Side, command: Sequence[str], code: int, said: str) -> BenchError:
    lines = said.strip().splitlines() or ["it said nothing"]
    where = f" ({side.env})" if side.env else ""
    error = BenchError(f"the {side.name} side{where} failed with exit code {code}: {lines[-1]}")
    shown = shlex.join(hidden(each) if "://" in each else each for each in command)
    error.add_note("\n".join([f"$ {shown}", *lines[-_TAIL_LINES:]]))
    return error
