"""What a command line names: an app or a task of a module that the user wrote."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from spool.app import Spool
from spool.broker import connect
from spool.errors import ConfigError, PayloadError, TaskUnknown
from spool.nursery import load_app
from spool.task import Task

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
        app = load_app(f"{module}:{app_name}")
        if name not in app.tasks:
            raise TaskUnknown(f"{module}:{app_name} has no task {name!r}; it has {', '.join(app.tasks) or 'none'}")
        return app, app.tasks[name]
    names = vars(_imported(module, target))
    if not isinstance(names.get(name), Task):
        what = f"no task {name!r} but a {type(names[name]).__name__}" if name in names else f"no attribute {name!r}"
        raise ConfigError(f"module {module!r} has {what}; name one as module:task or module:app:task")
    task: AnyTask = names[name]
    apps = [each for each in names.values() if isinstance(each, Spool) and task in each.tasks.values()]
    return (apps[0] if apps else None), task


def _imported(module: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise ConfigError(f"there is no module {error.name!r} (looked for {target} from {Path.cwd()})") from None


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
