"""What a command line names: an app or a task of a module that the user wrote."""

from __future__ import annotations

import contextlib
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
from spool.errors import ConfigError, PayloadError, SpoolError, TaskUnknown
from spool.nursery import load_app, load_module
from spool.task import Task

_OURS = frozenset((__file__, nursery.__file__, contextlib.__file__))

AnyTask = Task[..., Any]


def find_here() -> None:
    """Let modules of the current directory be imported, as ``python -m`` does; a console script doesn't."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def load_task(target: str) -> tuple[Spool | None, AnyTask]:
    """Return the task that ``module:task`` or ``module:app:task`` names, and its app if that can be told."""
    module, _, rest = target.partition(":")
    app_name, colon, name = rest.rpartition(":")
    if not module or not name:
        raise ConfigError(f"a task is named as module:task or module:app:task, not {target!r}")
    if colon:
        with importing(module):
            app = load_app(f"{module}:{app_name}")
        if name not in app.tasks:
            raise TaskUnknown(f"{module}:{app_name} has no task {name!r}; it has {', '.join(app.tasks) or 'none'}")
        return app, app.tasks[name]
    with importing(module):
        names = vars(load_module(module, target))
    if not isinstance(names.get(name), Task):
        what = f"no task {name!r} but a {type(names[name]).__name__}" if name in names else f"no attribute {name!r}"
        raise ConfigError(f"module {module!r} has {what}; name one as module:task or module:app:task")
    task: AnyTask = names[name]
    apps = [each for each in names.values() if isinstance(each, Spool) and task in each.tasks.values()]
    return (apps[0] if apps else None), task


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
