"""The catalogue of tasks: what workers say of the tasks they know, for those who have the store and not the code.

Each task is a document of kind ``task``, a `TaskRow`. Workers write it when they start, where it differs from what is
there, and nobody removes it: jobs of a task outlive its workers, and what is redacted is to stay so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from spool import opaque
from spool.broker import Broker, Document, Load, Store
from spool.errors import StoreCorrupt
from spool.job import MAIN, PROCESS, Snapshot, encode_record, read_arguments, read_record
from spool.report import ParameterKind, TaskParameter, TaskRow, encode_task_row, read_task_row
from spool.settings import check_priority
from spool.task import Task
from spool.view import Job

KIND: Final = "task"
REDACTED: Final = "[redacted]"
"""What is shown in place of a value."""
MAX_SCHEMA: Final = 64 * 1024
"""Bytes of a schema; a larger one is left out."""
_STEP: Final = 200

_KINDS: Final[dict[str, ParameterKind]] = {
    "POSITIONAL_ONLY": "positional_only",
    "POSITIONAL_OR_KEYWORD": "positional_or_keyword",
    "VAR_POSITIONAL": "var_positional",
    "KEYWORD_ONLY": "keyword_only",
    "VAR_KEYWORD": "var_keyword",
}


def describe(task: Task[..., Any]) -> TaskRow:
    """Return the row of a task. Raises `ConfigError` if its annotations cannot be used."""
    settings = task.settings
    parameters = [
        TaskParameter(each.name, each.default is each.empty and not each.kind.name.startswith("VAR_"), kind)
        for each, _ in task.signature.declared
        for kind in (_KINDS[each.kind.name],)
    ]
    return TaskRow(
        task=settings.name,
        queue=settings.queue,
        priority=check_priority(settings.priority),
        lane=PROCESS if settings.kind == "process" else MAIN,
        max_crashes=settings.max_crashes,
        parameters=parameters,
        schema=_schema(task, parameters),
        redact=list(settings.redact),
    )


def _schema(task: Task[..., Any], parameters: list[TaskParameter]) -> dict[str, Any] | None:
    wanted = [annotation for _, annotation in task.signature.declared]
    try:
        schemas, definitions = msgspec.json.schema_components(wanted, ref_template="#/$defs/{name}")
    except Exception:  # noqa: BLE001 - a type of anybody's making; then there is no schema, and that is all
        return None
    schema: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    for parameter, part in zip(parameters, schemas, strict=True):
        if parameter.kind == "var_keyword":
            schema["additionalProperties"] = part
        elif parameter.kind == "var_positional":
            schema["properties"][parameter.name] = {"type": "array", "items": part}
        else:
            schema["properties"][parameter.name] = part
    if required := [each.name for each in parameters if each.required]:
        schema["required"] = required
    if definitions:
        schema["$defs"] = definitions
    try:
        return schema if len(msgspec.json.encode(schema)) <= MAX_SCHEMA else None
    except (TypeError, msgspec.MsgspecError):  # a default of a struct's field that is no JSON
        return None


async def publish(tasks: Iterable[Task[..., Any]], broker: Broker) -> int:
    """Store the rows of these tasks where they differ from what is there; return how many. Raises as brokers do.

    Safe to be called again, and by many at once: of two that differ, the last one written stays.
    """
    there = {document.key: document.body for document in await _load(broker)}
    rows = {task.settings.name: encode_task_row(describe(task)) for task in tasks}
    changed = [(name, row) for name, row in rows.items() if there.get(name) != row]
    for start in range(0, len(changed), _STEP):
        (name, row), *others = changed[start : start + _STEP]
        await broker.acall(Store(KIND, name, row, others=dict(others)))
    return len(changed)


class Catalogue:
    """The rows that were there when it was read: ``tasks`` by name. Those that cannot be read are in ``damaged``."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.tasks: dict[str, TaskRow] = {}
        self.damaged: set[str] = set()
        for document in documents:
            try:
                self.tasks[document.key] = read_task_row(document.body)
            except StoreCorrupt:
                self.damaged.add(document.key)

    @classmethod
    def load(cls, broker: Broker) -> Catalogue:
        """Read the catalogue from a store. Raises as `Broker.call`."""
        documents: list[Document] = []
        cursor = ""
        while True:
            page = broker.call(Load(KIND, cursor))
            documents += page.documents
            cursor = page.cursor
            if not cursor:
                return cls(documents)

    @classmethod
    async def aload(cls, broker: Broker) -> Catalogue:
        """As `load`, in the running event loop."""
        return cls(await _load(broker))

    def redacted(self, job: Job) -> Job:
        """Return a job as people may see it: with `REDACTED` for the arguments that its task says to hide.

        Of a task whose row cannot be read all are hidden. What a task writes into errors, results and log lines is its
        own affair.
        """
        shown = None if job.arguments is None else self._shown(job.task, *job.arguments)
        return job if shown is None else replace(job, arguments=shown)

    def veiled(self, snapshot: Snapshot) -> Snapshot:
        """As `redacted`, of a job as the store holds it. Also without its fingerprint, by which one could guess.

        What is encrypted stays as it is: who has no key sees nothing of it.
        """
        if snapshot.record is None or not (self.damaged or any(row.redact for row in self.tasks.values())):
            return snapshot
        try:
            record = read_record(snapshot.record)
            if opaque.unwrap(record.payload) is not None:
                return snapshot
            shown = self._shown(record.task, *read_arguments(record))
        except StoreCorrupt:  # whatever may be in it
            return replace(snapshot, record=b"")
        if shown is None:
            return snapshot
        record = replace(record, fingerprint="", payload=msgspec.Raw(msgspec.msgpack.encode(shown)))
        return replace(snapshot, record=encode_record(record))

    def _shown(self, task: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]] | None:
        """Return what may be shown of a call; None for all of it."""
        row = self.tasks.get(task)
        if row is None:
            return _all_hidden(args, kwargs) if task in self.damaged else None
        return _hidden(row, args, kwargs) if row.redact else None


async def _load(broker: Broker) -> list[Document]:
    documents: list[Document] = []
    cursor = ""
    while True:
        page = await broker.acall(Load(KIND, cursor))
        documents += page.documents
        cursor = page.cursor
        if not cursor:
            return documents


def _all_hidden(args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [REDACTED] * len(args), dict.fromkeys(kwargs, REDACTED)


def _hidden(row: TaskRow, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    hide, names = set(row.redact), {each.name for each in row.parameters}
    # An argument too many for the row is of a call that another version of the task was made for: better hidden.
    free = next((each.name in hide for each in row.parameters if each.kind == "var_keyword"), True)
    return (
        [REDACTED if name in hide else value for name, value in zip(_positions(row), args, strict=False)],
        {name: REDACTED if name in hide or (name not in names and free) else value for name, value in kwargs.items()},
    )


def _positions(row: TaskRow) -> Iterator[str]:
    """Yield the parameter of each positional argument, without end."""
    yield from (each.name for each in row.parameters if each.kind in ("positional_only", "positional_or_keyword"))
    rest = next((each.name for each in row.parameters if each.kind == "var_positional"), None)
    while True:
        yield rest if rest is not None else next(iter(row.redact))
