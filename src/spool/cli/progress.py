"""How far a run is, as a bar on stderr; nothing where that is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from spool.cli.measure import stoppable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from spool.bench.runner import OnStage, Stage

_SECONDS: Final = 0.25
"""The bar is drawn anew no more often: while it is, the producer has to wait for the interpreter."""
_LAST: Final = "closing the books"


class Listener(Protocol):
    """Makes the listener for runs of so many jobs each; ``what`` says what is special about them."""

    def __call__(self, jobs: int, what: str = "", /) -> OnStage: ...


@contextmanager
def staged(runs: int = 1) -> Generator[Listener | None]:
    """Let Ctrl-C and SIGTERM end a run in order, and show how far it is, if stderr is a terminal.

    Gives what makes the listener for runs of so many jobs each. ``runs`` is how many runs there are in all, whether
    each gets a listener of its own or several share one.
    """
    from rich.console import Console

    with stoppable():
        if not sys.stderr.isatty():
            yield None
            return
        with bar(Console(stderr=True, highlight=False, markup=False, emoji=False), runs) as listener:
            yield listener


@contextmanager
def bar(console: Console, runs: int = 1) -> Generator[Listener]:
    """Draw a bar on a console, and remove it at the end. No thread draws it: whoever reports progress does."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} jobs"),
        TextColumn("{task.fields[rate]}", justify="right"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True) as progress:
        shown = progress.add_task("", total=1, rate="–/s", visible=False)
        stages = Stages(progress, shown, runs)
        yield stages.of


class Stages:
    """Shows the stages of one run after the other in one bar."""

    def __init__(self, progress: Progress, shown: TaskID, runs: int) -> None:
        self._progress, self._shown, self._runs = progress, shown, runs
        self._run = 0
        self._what = ""
        self._stage: str = _LAST
        self._drawn = 0.0

    def of(self, jobs: int, what: str = "", /) -> OnStage:
        """Return the listener for runs of so many jobs each."""

        def listen(stage: Stage, ended: int) -> None:
            now = time.monotonic()
            if stage != self._stage:
                first, self._stage = self._stage == _LAST, stage
                if first:
                    self._what = what
                    self._begin(jobs)
            elif now - self._drawn < _SECONDS:
                return
            self._drawn = now
            self._draw(ended)

        return listen

    def _begin(self, jobs: int) -> None:
        self._run += 1
        self._progress.reset(self._shown, total=jobs, visible=True, description=self._said(), rate="–/s")

    def _said(self) -> str:
        of = f"run {self._run} of {self._runs}, " if self._runs > 1 else ""
        return of + (f"{self._what}: " if self._what else "") + self._stage

    def _draw(self, ended: int) -> None:
        progress = self._progress
        progress.update(self._shown, completed=ended, description=self._said())
        speed = progress.tasks[0].speed
        progress.update(self._shown, rate="–/s" if speed is None else f"{speed:,.0f}/s")
        progress.refresh()
