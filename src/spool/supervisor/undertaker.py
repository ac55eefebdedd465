"""Hand back at once what dead worker processes held, instead of waiting for their leases to run out."""

from __future__ import annotations

import logging
import queue as queues
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from spool.broker import Broker, Load, Reason, Retire, Settle, Settlement, Store
from spool.errors import SpoolError, StoreCorrupt
from spool.nursery import describe_exit
from spool.report import WorkerRow, read_row
from spool.supervisor.children import Child, is_gone
from spool.worker.heartbeat import Machine

logger = logging.getLogger("spool.supervisor")

SURVEYS: Final = (0.0, 0.5, 1.0, 3.0)
"""Seconds after our start at which we look for what others left behind; some may still be about to die."""


class Dead(msgspec.Struct, frozen=True):
    """An incarnation whose process is gone. ``blamed`` and ``late`` (queue, …) as `Retire` and `Settle` take them."""

    incarnation: str
    queues: Sequence[str]
    reason: Reason
    detail: str
    blamed: tuple[str, str] | None = None
    """With reason "crashed": queue and id of the one job that is to blame; ids "" if none is. None: all are."""
    late: Sequence[tuple[str, int, Settlement]] = ()


class Undertaker:
    """A thread that retires incarnations; again and again for a lease's time, after which the store does it.

    ``is_ours`` tells the incarnations whose end will be told to `bury`, with what they died of. From any thread.
    """

    def __init__(self, broker: Broker, lease: float, is_ours: Callable[[str], bool]) -> None:
        self._broker = broker
        self._lease = lease
        self._is_ours = is_ours
        self._work: queues.SimpleQueue[Callable[[], None] | None] = queues.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-undertaker", daemon=True)
        self._surveyor = threading.Thread(target=self._survey_often, name="spool-survey", daemon=True)
        self._thread.start()
        self._surveyor.start()

    def bury(self, dead: Dead) -> None:
        """Hand back what an incarnation held. From any thread; returns at once."""
        self._work.put(lambda: self._bury(dead, time.monotonic() + self._lease))

    def close(self) -> None:
        """Finish what is under way, within a lease's time."""
        self._closing.set()
        end = time.monotonic() + self._lease
        # First whoever gives work: what is put behind the end would not be done.
        self._surveyor.join(self._lease)
        self._work.put(None)
        self._thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                logger.exception("jobs of a dead process are not handed back before their lease runs out")

    def _bury(self, dead: Dead, end: float) -> None:
        try:
            for (name, seq), late in _by_settle(dead.late).items():
                self._broker.call(Settle(name, dead.incarnation, seq, late))
            for name in dead.queues:
                self._retire(name, dead)
            self._broker.call(Store("worker", dead.incarnation, None))
        except SpoolError as error:
            logger.debug("the jobs of incarnation %s were not handed back: %s", dead.incarnation, error)
            if time.monotonic() < end:
                timer = threading.Timer(0.5, lambda: self._work.put(lambda: self._bury(dead, end)))
                timer.daemon = True
                timer.start()

    def _retire(self, name: str, dead: Dead) -> None:
        blamed = None
        if dead.blamed is not None:
            blamed = (dead.blamed[1],) if dead.blamed[0] == name else ()
        while self._broker.call(Retire(name, dead.incarnation, dead.reason, dead.detail, blamed)).remaining:
            pass

    def _survey_often(self) -> None:
        began = time.monotonic()
        for after in SURVEYS:
            if self._closing.wait(max(0.0, began + after - time.monotonic())):
                return
            try:
                self._survey(Machine())
            except SpoolError as error:  # a store that cannot be opened is told by the beats
                logger.debug("could not look for what others left behind: %s", error)

    def _survey(self, here: Machine) -> None:
        """Retire the incarnations of this machine, but for our own, whose processes are certainly gone."""
        if not here.boot or not here.namespace:
            return
        cursor = ""
        while True:
            loaded = self._broker.call(Load("worker", cursor))
            for document in loaded.documents:
                try:
                    row = read_row(document.body)
                except StoreCorrupt:
                    continue
                if _is_of(here, row) and is_gone(row.pid, row.born) and not self._is_ours(row.incarnation):
                    logger.info("process %d of this machine is gone: its jobs are handed back", row.pid)
                    self.bury(Dead(row.incarnation, row.queues, "lost", f"process {row.pid} was gone"))
            cursor = loaded.cursor
            if not cursor:
                return


def inquest(child: Child, code: int) -> Dead:
    """Find out what a child died of, and who is to blame."""
    life, how = child.lives[-1], describe_exit(code)
    detail = f"process {child.pid} {child.killed or f'ended with {how}'}"
    if child.late is not None:
        return Dead(life.incarnation, life.queues, "stopped", detail, late=child.late)
    if code == 0 or child.fatal:
        return Dead(life.incarnation, life.queues, "stopped", detail)
    if child.killed in {"was stopped", "died with its parent"}:
        return Dead(life.incarnation, life.queues, "lost", detail)
    blamed = None
    if child.role == "trial":
        blamed = (child.on_trial.queue, child.on_trial.id) if child.on_trial else ("", "")
    return Dead(life.incarnation, life.queues, "crashed", detail, blamed)


def _by_settle(late: Sequence[tuple[str, int, Settlement]]) -> dict[tuple[str, int], list[Settlement]]:
    settles: dict[tuple[str, int], list[Settlement]] = {}
    for name, seq, settlement in late:
        settles.setdefault((name, seq), []).append(settlement)
    return settles


def _is_of(here: Machine, row: WorkerRow) -> bool:
    return (row.boot, row.namespace) == (here.boot, here.namespace)
