"""What the workers of a benchmark run: ordinary tasks in an ordinary app, and notes of what happened when.

Two things are noted, by code that a user could have written. The handler notes its job's number and the time, as the
first thing it does. The app's broker is wrapped (`WatchedBroker`), so that the replies to the worker's own claims and
settles are seen: which jobs' outcomes were accepted, and when the worker knew. Both go to files of the process, some
times a second; the broker and the worker do nothing that they would not do otherwise.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

import msgspec

from spool.app import Spool
from spool.bench.account import Claims, Outcome, Settles
from spool.bench.plan import Kind, TaskCall
from spool.bench.timing import TIMED, Timing
from spool.bench.usertask import UserTask
from spool.broker import Around, Broker, Claim, Claimed, Done, Settle, Settled, Verb, connect
from spool.task import Task

R = TypeVar("R")

QUEUE: Final = "bench"
FLUSH_SECONDS: Final = 0.2
PAUSE_NS: Final = 20_000_000
"""Nanoseconds without jobs after which a claim is noted: of a load, and of its warm-up, only the first ones matter."""
_MIXED: Final = ("noop", "io", "noop", "noop", "io", "noop", "cpu", "noop", "io", "noop")
_GOLDEN: Final = 0.6180339887498949
_encode_note = msgspec.json.Encoder().encode


class Notes:
    """What one worker process saw, on its way to its two files in the directory of the run."""

    def __init__(self) -> None:
        self.starts = array("q")
        self.others: list[Claims | Settles] = []
        self.named: list[tuple[str, int]] = []
        """Starts of a user's task, which is told no number: ids and times."""

    def flush(self, directory: Path) -> None:
        # Handlers in threads may append meanwhile: take what is there by length, never by swapping, and no end without
        # its start.
        others, count = len(self.others), len(self.starts)
        with (directory / f"{os.getpid()}.starts").open("ab") as file:
            self.starts[:count].tofile(file)
        del self.starts[:count]
        if count := len(self.named):
            with (directory / f"{os.getpid()}.named").open("ab") as file:
                file.writelines(_encode_note(start) + b"\n" for start in self.named[:count])
            del self.named[:count]
        with (directory / f"{os.getpid()}.notes").open("ab") as file:
            file.writelines(_encode_note(note) + b"\n" for note in self.others[:others])
        del self.others[:others]


class Noted(msgspec.Struct, frozen=True):
    """What the worker processes of a run noted."""

    starts: list[array[int]]
    """Of each file: number, time, number, time, and so on."""
    notes: dict[int, list[Claims | Settles]]
    """Claims and settles, by process id."""


class Reader:
    """Reads the files of a directory, again and again, and each note once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._until: dict[Path, int] = {}

    def read(self, ids: Sequence[str] = ()) -> Noted:
        """Return what is new, the start of each job whose end is there included.

        ``ids`` by number, where jobs are told none.
        """
        notes = self.notes()  # first, since starts are written before them
        return Noted(self.starts(ids), notes)

    def starts(self, ids: Sequence[str] = ()) -> list[array[int]]:
        """Return the starts that each process noted: number, time, number, time, and so on. ``ids`` by number."""
        found: list[array[int]] = []
        for path in sorted(self._directory.glob("*.starts")):
            starts = array("q")
            starts.frombytes(self._new(path, lambda new: len(new) // 16 * 16))
            found.append(starts)
        number_of = {id: number for number, id in enumerate(ids)}
        decode = msgspec.json.Decoder(tuple[str, int]).decode
        for path in sorted(self._directory.glob("*.named")):
            named = map(decode, self._lines(path))
            # What has no number is warm-up.
            found.append(array("q", [each for id, at in named if id in number_of for each in (number_of[id], at)]))
        return found

    def notes(self) -> dict[int, list[Claims | Settles]]:
        """Return the claims and settles that each process noted, by its id."""
        decode = msgspec.json.Decoder(Claims | Settles).decode
        return {
            int(path.stem): [decode(line) for line in self._lines(path)]
            for path in sorted(self._directory.glob("*.notes"))
        }

    def _lines(self, path: Path) -> list[bytes]:
        return self._new(path, lambda new: new.rfind(b"\n") + 1).splitlines()

    def _new(self, path: Path, whole: Callable[[bytes], int]) -> bytes:
        """Return what was written since, as far as it is ``whole``: one may be writing, or was killed while it did."""
        begin = self._until.get(path, 0)
        with path.open("rb") as file:
            file.seek(begin)
            new = file.read()
        new = new[: whole(new)]
        self._until[path] = begin + len(new)
        return new


class Load(msgspec.Struct, frozen=True):
    """What jobs do; see `spool.bench.Plan`, which has milliseconds."""

    kind: Kind = "noop"
    seconds: float = 0.0
    failing: float = 0.0


class Run(msgspec.Struct, frozen=True):
    """What the worker processes have to know; a file in the directory of the run."""

    url: str
    load: Load
    task: TaskCall | None = None
    timed: int = 0
    """Of how many jobs the processes note for one where its time goes: see `spool.bench.timing`. 0 is none at all."""
    flush: float = FLUSH_SECONDS
    """How often notes are written, in seconds."""


if TYPE_CHECKING:
    BenchTask: TypeAlias = Task[[str, int], dict[str, bool]]


class BenchFailure(Exception):
    """What a job of kind failing raises."""


def fails(number: int, share: float) -> bool:
    """Return whether the job of this number is one of those that raise: spread evenly, and so many for certain.

    >>> sum(fails(number, 0.05) for number in range(10_000))
    500
    """
    return number * _GOLDEN % 1.0 < share


def make(
    broker: str | Broker, load: Load, notes: Notes, timing: Timing | None = None
) -> tuple[Spool, Sequence[BenchTask]]:
    """Return an app on a broker, and the tasks that its jobs are of in turn. What handlers see goes to ``notes``."""
    app = Spool(broker)
    handlers = _handlers(load, notes, timing)
    names = _MIXED if load.kind == "mixed" else (load.kind,)
    tasks = {name: app.task(name=f"bench.{name}", queue=QUEUE, retries=0)(handlers[name]) for name in set(names)}
    return app, [tasks[name] for name in names]


def _handlers(load: Load, notes: Notes, timing: Timing | None) -> dict[str, Callable[..., Any]]:
    note, now, seconds, share = notes.starts.extend, time.monotonic_ns, load.seconds, load.failing
    cpu_seconds = seconds / 10 if load.kind == "mixed" else seconds
    every, ran = (timing.every, timing.ran) if timing is not None else (1, _ignore)
    timed = TIMED if timing is not None else every  # no remainder is as large

    async def noop(data: str, number: int) -> dict[str, bool]:  # noqa: ARG001 - it is there to be carried
        note((number, began := now()))
        if number % every == timed:
            ran(began)
        return {"processed": True}

    def cpu(data: str, number: int) -> dict[str, bool]:
        note((number, began := now()))
        _compute(data.encode(), cpu_seconds)
        if number % every == timed:
            ran(began)
        return {"processed": True}

    async def io(data: str, number: int) -> dict[str, bool]:  # noqa: ARG001 - it is there to be carried
        note((number, began := now()))
        await asyncio.sleep(seconds)
        if number % every == timed:
            ran(began)
        return {"processed": True}

    async def failing(data: str, number: int) -> dict[str, bool]:  # noqa: ARG001 - it is there to be carried
        note((number, began := now()))
        if number % every == timed:
            ran(began)
        if number >= 0 and fails(number, share):
            raise BenchFailure
        return {"processed": True}

    return {"noop": noop, "cpu": cpu, "io": io, "failing": failing}


def _compute(body: bytes, seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        body = hashlib.sha256(body).digest()


def _ignore(_began: int) -> None:
    pass


class WatchedBroker(Around):
    """A broker that passes everything on, and notes when jobs begin to come and which outcomes were accepted."""

    def __init__(self, broker: Broker, notes: Notes) -> None:
        super().__init__(broker)
        self._notes = notes.others
        self._claimed = -PAUSE_NS

    def call(self, verb: Verb[R]) -> R:
        sent = time.monotonic_ns()
        reply = self._broker.call(verb)
        if isinstance(verb, Claim | Settle):
            self._note(verb, reply, sent)
        return reply

    async def acall(self, verb: Verb[R]) -> R:
        sent = time.monotonic_ns()
        reply = await self._broker.acall(verb)
        if isinstance(verb, Claim) and verb.wait:
            sent = time.monotonic_ns()  # it was carried out when there was work: just now
        if isinstance(verb, Claim | Settle):
            self._note(verb, reply, sent)
        return reply

    def _note(self, verb: Claim | Settle, reply: object, sent: int) -> None:
        if isinstance(verb, Settle):
            self._notes.append(_outcomes(verb, cast("Settled", reply), sent))
        elif cast("Claimed", reply).jobs:
            if sent > self._claimed + PAUSE_NS:
                self._notes.append(Claims(sent, time.monotonic_ns()))
            self._claimed = sent


def _outcomes(verb: Settle, reply: Settled, sent: int) -> Settles:
    at = time.monotonic_ns()
    accepted = verb.settlements
    if reply.refused:
        refused = set(reply.refused)
        accepted = [each for each in accepted if each.id not in refused]
    done = [each.id for each in accepted if type(each) is Done]
    if len(done) == len(accepted):
        return Settles(at, done, refused=len(reply.refused), sent=sent)
    other = [(each.id, type(each).__name__) for each in accepted if type(each) is not Done]
    return Settles(at, done, cast("list[tuple[str, Outcome]]", other), len(reply.refused), sent)


def prepare(directory: Path, run: Run) -> str:
    """Write down what the workers have to know, and return the target that they are to load.

    The target names the directory, so that nothing has to travel in the environment: a forkserver keeps its first one.
    """
    (directory / "run.json").write_bytes(msgspec.json.encode(run))
    return f"{__name__}:run_{os.fsencode(directory).hex()}"


def __getattr__(name: str) -> Any:
    if not name.startswith("run_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _app(Path(os.fsdecode(bytes.fromhex(name.removeprefix("run_")))))


@functools.cache
def _app(directory: Path) -> Spool:
    run = msgspec.json.decode((directory / "run.json").read_bytes(), type=Run)
    notes = Notes()
    timing = Timing(directory, run.timed) if run.timed else None
    broker: Broker = WatchedBroker(connect(run.url), notes)
    if timing is not None:
        broker = timing.broker(broker)
    if run.task is None:
        app, _ = make(broker, run.load, notes, timing)
    else:
        app = UserTask(run.task).carrier(broker, QUEUE, notes.named, timing)

    @app.lifespan
    @asynccontextmanager
    async def noting(_: Spool) -> AsyncGenerator[None]:
        if timing is not None:
            timing.flush()  # so that there is something to look at from the beginning
        flushing = asyncio.create_task(_keep_flushing(run.flush, notes, directory, timing))
        try:
            yield
        finally:
            flushing.cancel()
            _flush(notes, directory, timing)

    return app


async def _keep_flushing(seconds: float, notes: Notes, directory: Path, timing: Timing | None) -> None:
    while True:
        await asyncio.sleep(seconds)
        _flush(notes, directory, timing)


def _flush(notes: Notes, directory: Path, timing: Timing | None) -> None:
    notes.flush(directory)
    if timing is not None:
        timing.flush()
