"""The workers of a run: real ``spool worker`` processes, kept up as a service manager would, and killed on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from spool.chaos.handlers import QUEUES
from spool.chaos.journal import Event
from spool.chaos.plan import Plan
from spool.chaos.processes import Process, below, end, find_faketime, group, send, send_group, spawn

Record = Callable[[Event], None]

LEAVING: Final = 8.0
"""Seconds, beyond its grace and three leases, after which a worker that was told to stop is taken for disobedient.

It waits that long for a store that does not answer, and for jobs that do not end.
"""
BOOT: Final = 3.0
"""Seconds in which a new supervisor may not listen to SIGTERM yet, and so end by it."""
VANISH: Final = 5.0
"""Seconds for which the end of a dead worker's processes is watched for."""
HOUR: Final = 3600

# libfaketime fakes clock_nanosleep such that Python's time.sleep fails with EINVAL, which is no fault of a clock.
_SLEEP: Final = """
import threading, time
time.sleep = lambda seconds: None if threading.Event().wait(seconds) else None
"""


class Toll(NamedTuple):
    """Who died of a kill, and when.

    ``at`` is the last moment before the signal: to find the victims among all processes takes long enough for another
    job to begin in one of them, which would seem to have died for no reason.
    """

    at: int
    pids: list[int]


class Worker:
    """One supervisor, from its start to its end."""

    def __init__(self, slot: int, name: str) -> None:
        self.slot = slot
        self.name = name
        self.since = time.monotonic_ns()
        self.told = 0
        """When it was told to stop."""
        self.killed = 0
        self.stopped = False


class Fleet:
    """``plan.workers`` supervisors, one per slot. From the main thread only, since a death is tied to its parent's."""

    def __init__(self, plan: Plan, target: str, urls: Sequence[str], directory: Path, record: Record) -> None:
        self._plan, self._target, self._urls, self._directory = plan, target, urls, directory
        self._record = record
        self._faketime = find_faketime() if "clock" in plan.faults else None
        self._generation = 0
        self._processes: dict[str, _Running] = {}
        self._slots: dict[int, Worker] = {}
        self._leaving: list[Worker] = []
        self._dying: list[Worker] = []

    # Who is there

    @property
    def workers(self) -> list[Worker]:
        """Those who serve now, by slot."""
        return [self._slots[slot] for slot in sorted(self._slots)]

    def pick(self, dice: float) -> Worker | None:
        """Return one of those who serve and were not hit already; None when there are none."""
        able = [worker for worker in self.workers if not worker.killed and not worker.stopped]
        return able[int(dice * len(able))] if able else None

    def processes(self, worker: Worker) -> list[Process]:
        """Return all living processes of a worker, helpers included."""
        return group(self._processes[worker.name].pid)

    def children(self, worker: Worker) -> list[int]:
        """Return its worker processes: those that said so in the journal."""
        found: list[int] = []
        for process in self.processes(worker):
            mark = self._directory / "lives" / str(process.pid)
            if mark.exists() and mark.read_text() == str(process.born):
                found.append(process.pid)
        return found

    def pids(self) -> list[int]:
        """Return every living process of every worker."""
        return [each.pid for worker in [*self.workers, *self._leaving] for each in self.processes(worker)]

    # Starting

    def start(self) -> None:
        for slot in range(self._plan.workers):
            self.launch(slot)

    def launch(self, slot: int) -> Worker:
        """Start a supervisor in a slot."""
        self._generation += 1
        worker = Worker(slot, f"w{slot}.{self._generation}")
        plan = self._plan
        command = [sys.executable, "-m", "spool", "worker", self._target, "--url", self._urls[slot]]
        command += [
            "--queues",
            ",".join(QUEUES),
            "--name",
            worker.name,
            "--processes",
            str(plan.processes),
            "--lease",
            f"{plan.lease:g}",
        ]
        command += ["--concurrency", str(plan.concurrency), "--grace", f"{plan.grace:g}", "--log-format", "human"]
        log = self._directory / f"{worker.name}.log"
        process = spawn(command, log, cwd=self._directory, environment=self._environment(slot))
        self._processes[worker.name] = _Running(process)
        self._slots[slot] = worker
        self._record(Event("up", worker.since, worker=worker.name, pids=[process.pid]))
        return worker

    @property
    def clocks_can_be_wrong(self) -> bool:
        return self._faketime is not None

    def _clock_file(self, slot: int) -> Path:
        return self._directory / f"clock-{slot}"

    def _environment(self, slot: int) -> dict[str, str]:
        # One worker's clock will be wrong, and the others stay as users have them.
        if self._faketime is None or slot != self._plan.workers - 1:
            return {}
        patch = self._directory / "patch"
        if not patch.exists():
            self._clock_file(slot).write_text("+0")
            patch.mkdir()
            (patch / "sitecustomize.py").write_text(_SLEEP)
        return {
            "PYTHONPATH": os.pathsep.join([str(patch), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "LD_PRELOAD": str(self._faketime),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file(slot)),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    # Faults

    def kill_child(self, worker: Worker, pick: float) -> Toll:
        """SIGKILL one of its worker processes."""
        children = self.children(worker)
        child = children[int(pick * len(children))] if children else 0
        with_it = below(child, self.processes(worker)) if child else []
        at = time.monotonic_ns()
        return Toll(at, with_it if child and send(child, signal.SIGKILL) else [])

    def stop_child(self, worker: Worker, pick: float) -> list[int]:
        """SIGSTOP one of its worker processes; return its pid."""
        children = self.children(worker)
        child = children[int(pick * len(children))] if children else 0
        return [child] if child and send(child, signal.SIGSTOP) else []

    def kill_supervisor(self, worker: Worker) -> Toll:
        """SIGKILL the supervisor alone; all its processes have to end with it."""
        found = [each.pid for each in self.processes(worker)]
        worker.killed = time.monotonic_ns()
        send(self._processes[worker.name].pid, signal.SIGKILL)
        self._dying.append(worker)
        return Toll(worker.killed, found)

    def kill(self, worker: Worker) -> Toll:
        """SIGKILL the supervisor and every process of it at once."""
        found = [each.pid for each in self.processes(worker)]
        worker.killed = time.monotonic_ns()
        send_group(self._processes[worker.name].pid, signal.SIGKILL)
        return Toll(worker.killed, found)

    def stop(self, worker: Worker) -> list[int]:
        """SIGSTOP all its processes; return them."""
        worker.stopped = True
        send_group(self._processes[worker.name].pid, signal.SIGSTOP)
        return [each.pid for each in self.processes(worker)]

    def resume(self, worker: Worker) -> None:
        worker.stopped = False
        send_group(self._processes[worker.name].pid, signal.SIGCONT)

    def replace(self, worker: Worker) -> None:
        """SIGTERM it, and start another in its place."""
        if self._slots.get(worker.slot) is not worker or worker.killed:
            return
        self._tell(worker)
        self._leaving.append(worker)
        self.launch(worker.slot)

    def revive(self, worker: Worker) -> None:
        """Start another in the place of one that was killed."""
        if self._slots.get(worker.slot) is worker:
            self.launch(worker.slot)

    def set_clock(self, seconds: int) -> str:
        """Move the clock of the one worker whose clock can be moved; return its name."""
        slot = self._plan.workers - 1
        self._clock_file(slot).write_text(f"{seconds:+d}")
        return self._slots[slot].name

    def _tell(self, worker: Worker) -> None:
        worker.told = time.monotonic_ns()
        self._record(Event("term", worker.told, worker=worker.name, pids=[p.pid for p in self.processes(worker)]))
        send(self._processes[worker.name].pid, signal.SIGTERM)

    # Looking after

    def tend(self) -> None:
        """Start those again that have ended by themselves, see off those who leave, and see the dead vanish."""
        for worker in self.workers:
            code = self._processes[worker.name].code
            if code is not None and not worker.killed:
                self._record(Event("exit", time.monotonic_ns(), worker=worker.name, code=code, wanted=False))
                self.launch(worker.slot)
        for worker in list(self._leaving):
            if self._gone(worker):
                self._leaving.remove(worker)
        for worker in list(self._dying):
            now, left = time.monotonic_ns(), self.processes(worker)
            if not left or now - worker.killed > VANISH * 1e9:
                self._dying.remove(worker)
                names = ", ".join(f"{each.pid} ({each.state})" for each in left)
                self._record(Event("gone", worker.killed, "", now, worker.name, wanted=not left, note=names))
                send_group(self._processes[worker.name].pid, signal.SIGKILL)

    def _gone(self, worker: Worker) -> bool:
        """Whether a worker that was told to stop is gone; one that does not obey is killed, and that noted."""
        now, code = time.monotonic_ns(), self._processes[worker.name].code
        late = now - worker.told > (self._plan.grace + 3 * self._plan.lease + LEAVING) * 1e9
        if code is None and not late:
            return False
        note = "" if code is not None else "did not stop when told to"
        booting = code == -signal.SIGTERM and worker.told - worker.since < BOOT * 1e9
        wanted = code == 0 or booting or bool(worker.killed)
        self._record(Event("exit", now, worker=worker.name, code=code, wanted=wanted, note=note))
        left = [each.pid for each in self.processes(worker)]
        if code is None:
            self._record(Event("kill", now, "disobedient", worker=worker.name, pids=left))
        elif left:
            names = ", ".join(map(str, left))
            self._record(Event("gone", now, "", now, worker.name, wanted=False, note=names))
        send_group(self._processes[worker.name].pid, signal.SIGKILL)
        return True

    def heal(self) -> None:
        """Let everybody run that was stopped, set clocks right, and start what is missing."""
        for worker in [*self.workers, *self._leaving]:
            self.resume(worker)
        if self._faketime is not None:
            self.set_clock(0)
        for worker in self.workers:
            if worker.killed:
                self.launch(worker.slot)

    def shut_down(self) -> None:
        """SIGTERM all, and wait until they are gone."""
        for worker in self.workers:
            self._tell(worker)
            self._leaving.append(worker)
        self._slots.clear()
        while self._leaving or self._dying:
            self.tend()
            time.sleep(0.02)

    def close(self) -> None:
        """Kill whatever is left."""
        for running in self._processes.values():
            send_group(running.pid, signal.SIGKILL)
            end(running.process, 1.0)


class _Running:
    """A supervisor's process; its group has its pid."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    @property
    def code(self) -> int | None:
        return self.process.poll()
