"""What a command line names: an app or a task of a module that the user wrote."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from spool import nursery
from spool.app import Spool
from spool.broker import connect
from spool.cli.output import printable
from spool.errors import ConfigError, PayloadError, SpoolError
from spool.task import Task

_OURS = frozenset((__file__, nursery.__file__, contextlib.__file__))

AnyTask = Task[..., Any]


def find_here() -> None:
    """Let modules of the current directory be imported, as ``python -m`` does; a console script doesn't."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def load_task(target: str) -> tuple[Spool | None, AnyTask]:
    """As `spool.nursery.load_task`, and show where the user's own module failed."""
    with importing(target.partition(":")[0]):
        return nursery.load_task(target)


def parsed(option: str, text: str, wanted: type) -> Any:
    """Return what an option has as JSON: a list or a dict, as wanted. Raises `click.UsageError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{option} is no JSON: {error}", click.get_current_context()) from error
    if not isinstance(value, wanted):
        kind = "an array" if wanted is list else "an object"
        raise click.UsageError(f"{option} must be {kind}, not {text:.50}", click.get_current_context())
    return value


@contextmanager
def importing(module: str) -> Generator[None]:
    """Show where the user's own code failed, without our frames, and raise `ConfigError`."""
    try:
        yield
    except SpoolError:
        raise
    except (Exception, SystemExit) as error:
        trace = error.__traceback__
        while trace and _is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        shown = "".join(traceback.format_exception(error.with_traceback(trace)))
        click.echo(printable(shown, lines=True), err=True, nl=False)
        raise ConfigError(f"module {module!r} cannot be imported: {type(error).__name__}: {error}") from error


def _is_ours(file: str) -> bool:
    return file in _OURS or "importlib" in file


@contextmanager
def using(app: Spool | None, url: str | None) -> Generator[None]:
    """Let the app use another broker, if one is given."""
    if url is None:
        yield
    elif app is None:
        raise ConfigError("--url needs to know the task's app: name the task as module:app:task")
    else:
        broker = connect(url)
        try:
            with app.using(broker):
                yield
        finally:
            broker.close()


def typed(task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return arguments given as JSON as values of the annotated types: text becomes a date where one is wanted."""
    try:
        payload = msgspec.msgpack.encode([args, kwargs])
    except (OverflowError, RecursionError) as error:
        raise PayloadError(f"task {task.name!r}: the arguments cannot be stored: {error}") from error
    return task.read_arguments(payload)
