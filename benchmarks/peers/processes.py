"""A peer's producer and its worker, as processes that end when they are told to."""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import ROOT, python_of
from benchmarks.peers.peer import URL
from benchmarks.peers.tally import PLACE
from spool.bench.machine import family

_ANSWER_SECONDS = 60.0


class Failed(Exception):
    """What went wrong in a run of a peer; it belongs in the table."""


class Bench:
    """Where one step of one run happens: a peer's Python, a Redis database, and a directory of notes."""

    def __init__(self, module: str, url: str, place: Path) -> None:
        self.module = module
        self.place = place
        self._url = url
        self._python = str(python_of(module))
        self._environment = os.environ | {
            "PEERS_REDIS": url,
            PLACE: str(place),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
        }

    @contextmanager
    def producer(self) -> Generator["Producer"]:
        command = [self._python, "-m", "benchmarks.peers.inside", self.module]
        with (self.place / "producer.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=self._environment,
                start_new_session=True,
            )
        try:
            yield Producer(process, self.place / "producer.log")
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def worker(self, command: Sequence[str], slots: int = 0) -> Generator["Worker"]:
        with (self.place / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [self._python, *(self._url if part == URL else part for part in command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self._environment | {"PEERS_SLOTS": str(slots) if slots else ""},
                start_new_session=True,
            )
        worker = Worker(process, self.place / "worker.log")
        try:
            yield worker
        finally:
            worker.kill()  # the store is emptied before the next one comes: nothing to put in order


class Producer:
    """Calls go to `benchmarks.peers.inside`: ``producer.many(first=0, count=10)``."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def ask(self, verb: str, timeout: float = _ANSWER_SECONDS, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([verb, arguments]) + "\n")
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else None
        if line is None:
            raise Failed(f"{verb}: no answer in {timeout:.0f} s")
        if not line:
            raise Failed(f"the producer ended: {last_line(self._log)}")
        answer: Mapping[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{verb}: {answer['error']}")
        return answer["answer"]


class Worker:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._killed = False

    def pids(self) -> list[int]:
        return family([self._process.pid])

    def check(self) -> None:
        """Raise `Failed` if it has ended by itself."""
        if self._process.poll() is not None and not self._killed:
            raise Failed(f"the worker ended with {self._process.returncode}: {last_line(self._log)}")

    def kill(self) -> None:
        """Kill it and all its processes at once, as the loss of the machine would. Again, it does nothing."""
        if self._killed:
            return
        self._killed = True
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # orphans, if it had died by itself
        self._process.wait()


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


@contextmanager
def bench(module: str, url: str) -> Generator[Bench]:
    with tempfile.TemporaryDirectory(prefix="peers-") as place:
        yield Bench(module, url, Path(place))


def until(condition: Any, seconds: float, what: str, worker: Worker, pause: float = 0.002) -> None:
    """Wait until a condition holds. Raises `Failed` when it takes too long or the worker ends."""
    deadline = time.monotonic() + seconds
    while not condition():
        worker.check()
        if time.monotonic() > deadline:
            raise Failed(f"{what} took more than {seconds:.0f} s")
        time.sleep(pause)
