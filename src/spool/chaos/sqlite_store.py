"""A SQLite file of the run's own, on a disk that can be filled."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from spool.chaos.redis_store import garbage

DISK: Final = 256 * 2**20
"""Bytes of the small disk, where we may mount one."""


class SqliteStore:
    """A file. ``pids`` returns the processes that use it: where no disk can be mounted, their quota stands in."""

    kind: Final = "sqlite"

    def __init__(self, directory: Path, *, synchronous: str, fillable: bool, pids: Callable[[], Iterable[int]]) -> None:
        self._directory = directory / "disk"
        self._directory.mkdir()
        self._pids = pids
        self._limited: list[int] = []
        self.mounted = fillable and _mount(self._directory)
        self._file = self._directory / "spool.db"
        self.url = f"sqlite:///{quote(str(self._file))}?synchronous={synchronous}"
        self.version = sqlite3.sqlite_version

    @property
    def way_to_fill(self) -> str:
        """How `fill` does it."""
        return "a tmpfs that is filled up" if self.mounted else "RLIMIT_FSIZE of the processes"

    def fill(self) -> None:
        """Leave no room: nothing can be written beyond what the files have."""
        if self.mounted:
            with contextlib.suppress(OSError), (self._directory / "filler").open("wb", buffering=0) as filler:
                chunk = bytes(2**20)
                while chunk:  # down to the last page
                    try:
                        filler.write(chunk)
                    except OSError:
                        chunk = chunk[: len(chunk) // 2]
            return
        wal = self._file.with_name(self._file.name + "-wal")
        size = max((path.stat().st_size for path in (self._file, wal) if path.exists()), default=0)
        self._limited = list(self._pids())
        for pid in self._limited:
            _limit(pid, size)

    def drain(self) -> None:
        (self._directory / "filler").unlink(missing_ok=True)
        for pid in self._limited:
            _limit(pid, resource.RLIM_INFINITY)
        self._limited = []

    def corrupt(self, queues: Sequence[str], pick: float) -> list[str]:
        """Overwrite the records of a few jobs with garbage; return their ids."""
        dice = random.Random(pick)  # noqa: S311 - to be repeated, not to be secret
        damaged: list[str] = []
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(self._file, timeout=2.0)) as db, db:
            db.execute("BEGIN IMMEDIATE")
            rows: list[tuple[str, int, bytes]] = db.execute(
                "SELECT job.id, record.key, record.body FROM job JOIN record ON record.key = job.record"
                " WHERE job.state < 5 ORDER BY random() LIMIT ?",
                (3 * len(queues),),
            ).fetchall()
            for id, key, body in rows:
                db.execute("UPDATE record SET body = ? WHERE key = ?", (garbage(dice, body), key))
                damaged.append(id)
        return damaged

    def check(self) -> str:
        """Return what SQLite's own check says of the file: "ok" if all is well."""
        try:
            with contextlib.closing(sqlite3.connect(self._file, timeout=5.0)) as db:
                return str(db.execute("PRAGMA integrity_check").fetchone()[0])
        except sqlite3.Error as error:
            return str(error)

    def start(self) -> None:
        """There is nothing to start."""

    def tend(self) -> None:
        """There is nothing to look after."""

    def heal(self) -> None:
        self.drain()

    def close(self) -> None:
        if self.mounted:
            _run("umount", "-l", str(self._directory))


def _mount(directory: Path) -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    return _run("mount", "-t", "tmpfs", "-o", f"size={DISK}", "spool-chaos", str(directory))


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:  # a small system has no such program
        return False


def _limit(pid: int, size: int) -> None:
    if hasattr(resource, "prlimit"):
        with contextlib.suppress(OSError, ValueError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
