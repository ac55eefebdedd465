"""The chaos harness: real processes, faults from a schedule that a seed decides, and an audit of every job afterwards.

>>> from spool.chaos import Plan, Script, chaos, schedule
>>> plan = Plan(seconds=20, seed=7, faults=("kill-child", "redis-kill"))
>>> chaos(Script(plan, schedule(plan))).audit.ok  # doctest: +SKIP
True
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from spool import __version__
from spool.chaos.audit import Audit, Counts, Verdict, audit
from spool.chaos.journal import Event
from spool.chaos.plan import FAULTS, Fault, Plan, Script, Strike, default_faults, dump_script, load_script, schedule
from spool.chaos.processes import find_faketime, look
from spool.chaos.runner import run
from spool.errors import ConfigError

__all__ = [
    "FAULTS",
    "Audit",
    "Counts",
    "Fault",
    "Outcome",
    "Plan",
    "Script",
    "Strike",
    "Verdict",
    "chaos",
    "default_faults",
    "dump_script",
    "load_script",
    "schedule",
]

SCHEMA: Final = 1


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The document that ``--json`` writes. It is a script as well: ``--schedule`` runs it again."""

    schema: Literal[1] = SCHEMA
    kind: Literal["spool-chaos"] = "spool-chaos"
    version: str
    plan: Plan
    strikes: list[Strike]
    left_out: dict[str, str]
    """Faults that could not strike here, and why."""
    struck: list[Event]
    recovered_after: float | None
    """Seconds until nothing waited or ran, after everything was healed; None when something still does."""
    fresh_within: float | None
    ok: bool
    audit: Audit


def chaos(script: Script, keep: Path | None = None, on_stage: Callable[[str], None] = lambda _: None) -> Outcome:
    """Carry out a script and audit it. The logs go to ``keep``, a directory that must not be there yet, if given.

    From the main thread only, since processes are tied to it. Raises `ConfigError` for what cannot be done here.
    """
    if look(os.getpid()) is None:
        raise ConfigError("spool chaos finds the processes of a worker in /proc, which this system has not: use Linux")
    left_out = missing(script)
    script = msgspec.structs.replace(script, strikes=[each for each in script.strikes if each.fault not in left_out])
    directory = _make(keep)
    try:
        evidence = run(script, directory, on_stage)
        found = audit(evidence)
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    return Outcome(
        version=__version__,
        plan=script.plan,
        strikes=script.strikes,
        left_out=left_out,
        struck=[event for event in evidence.events if event.kind not in ("up", "note")],
        recovered_after=evidence.quiet,
        fresh_within=evidence.fresh,
        ok=found.ok,
        audit=found,
    )


def missing(script: Script) -> dict[str, str]:
    """Return the faults of a script that cannot strike on this machine, and why."""
    asked = {*script.plan.faults, *(strike.fault for strike in script.strikes)}
    if "clock" in asked and find_faketime() is None:
        return {"clock": "libfaketime is not installed (Debian, Ubuntu: faketime), nor named by FAKETIME_LIBRARY"}
    return {}


def _make(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="spool-chaos-"))
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot keep the logs in {keep}: {error}") from error
    return keep.resolve()
