"""Profiles of a fleet's worker processes on demand, while they work."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from spool.errors import ConfigError, SpoolError
from spool.supervisor.fleet import Fleet

logger = logging.getLogger("spool.supervisor")

_END_SECONDS: Final = 10.0


class Profiler:
    """Records a fleet's CPU profile, then its memory profile where memray is installed, one pair at a time.

    They become ``cpu-TIME.prof`` and ``mem-TIME.prof`` in the folder that the fleet's options name. Reading what was
    recorded takes a processor for a while, so that processes of their own do it: this one keeps the leases.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._folder = fleet.options.profile
        self._seconds = fleet.options.profile_seconds
        self._asked = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        if self._folder is not None and not Path(self._folder).is_dir():
            raise ConfigError(f"profiles cannot go to {self._folder}: there is no such directory")

    def ask(self) -> None:
        """Ask for a recording: for signal handlers."""
        self._asked = True

    def poll(self) -> None:
        """Begin what was asked for. Returns at once."""
        if not self._asked:
            return
        self._asked = False
        if self._folder is None:
            logger.warning("no profile is recorded: the worker was not started with --profile DIR")
        elif self._thread is not None and self._thread.is_alive():
            logger.warning("no profile is recorded: another one is under way")
        else:
            self._thread = threading.Thread(
                target=self._run, args=(Path(self._folder),), name="spool-profiler", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """End a recording that is under way, early; what there is of it is kept, if that takes no longer than 10 s."""
        self._ended.set()
        if self._process is not None:
            self._process.terminate()  # it writes what it has, and is nothing if it has ended
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def _run(self, folder: Path) -> None:
        when = time.strftime("%Y%m%d-%H%M%S")
        try:
            self._record_cpu(folder / f"cpu-{when}.prof")
            if not self._ended.is_set():
                self._record_memory(folder / f"mem-{when}.prof")
        except (SpoolError, OSError) as error:
            logger.error("no profile was recorded: %s", error)  # noqa: TRY400 - it says all there is to know
        except Exception:
            logger.exception("recording a profile failed")

    def _record_cpu(self, file: Path) -> None:
        pids = self._fleet.pids
        logger.info("recording the CPU profile of %d processes for %g s", len(pids), self._seconds)
        options = [option for pid in pids for option in ("--pid", str(pid))]
        self._call("record", *options, "--seconds", str(self._seconds), "--output", str(file))

    def _record_memory(self, file: Path) -> None:
        from spool.profile.memory import has_memray

        if not has_memray():
            return
        with tempfile.TemporaryDirectory(prefix=".mem-", dir=file.parent) as folder:
            logger.info("recording the memory profile of the same for %g s", self._seconds)
            files, lasted = self._fleet.memory.record(Path(folder, "mem"), self._seconds, self._ended)
            if lasted < self._seconds and not self._ended.is_set():
                logger.info("recorded memory for %.2g s only: it is allocated faster than it can be read", lasted)
            if files:
                self._call("convert", *map(str, files), "--to", "pprof", "--output", str(file))

    def _call(self, *arguments: str) -> None:
        """Run a command of ``spool profile``, and say what it wrote or what was wrong."""
        # -P: what lies in the working directory is the tasks' code.
        command: Sequence[str] = (sys.executable, "-P", "-m", "spool", "profile", *arguments)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as self._process:
            said, _ = self._process.communicate()
        if self._process.returncode == 0:
            logger.info("wrote the profile %s", said.strip())
        else:
            reason = said.strip().splitlines()[-1:] or [f"exit code {self._process.returncode}"]
            logger.error("no profile was recorded: %s", reason[0])
