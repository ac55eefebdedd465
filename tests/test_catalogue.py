import datetime as dt
import json
from typing import Any, Literal

import msgspec
import pytest

from spool import ConfigError, Spool, StoreCorrupt
from spool.broker import Load, Store, connect
from spool.catalogue import MAX_SCHEMA, REDACTED, Catalogue, describe, publish
from spool.job import PROCESS
from spool.report import TaskParameter, TaskRow, encode_task_row, read_task_row
from tests.eventually import aeventually
from tests.test_worker import running


class Address(msgspec.Struct):
    street: str
    number: int = 1


class Odd:
    """A type without a schema."""

    def __init__(self, value: str) -> None:
        self.value = value

    @classmethod
    def model_validate_json(cls, body: bytes) -> "Odd":
        return cls(body.decode())


@pytest.fixture
def app() -> Spool:
    return Spool("sqlite://:memory:")


def test_a_row_says_what_an_enqueue_needs(app):
    @app.task(queue="mail", priority="high", max_crashes=5)
    def send(to: Address, /, body: str, *extra: int, at: dt.datetime | None = None, **free: float) -> None: ...

    row = describe(send)
    assert (row.task, row.queue, row.priority, row.lane, row.max_crashes) == ("send", "mail", 1, 0, 5)
    assert row.parameters == [
        TaskParameter("to", True, "positional_only"),
        TaskParameter("body", True, "positional_or_keyword"),
        TaskParameter("extra", False, "var_positional"),
        TaskParameter("at", False, "keyword_only"),
        TaskParameter("free", False, "var_keyword"),
    ]
    assert row.redact == []
    assert read_task_row(encode_task_row(row)) == row


def test_a_row_has_the_schema_of_the_arguments(app):
    @app.task(process=True)
    def send(to: Address, kind: Literal["a", "b"] = "a", *extra: int, **free: float) -> None: ...

    row = describe(send)
    assert row.lane == PROCESS
    assert row.schema is not None
    assert row.schema["required"] == ["to"]
    assert row.schema["properties"]["to"] == {"$ref": "#/$defs/Address"}
    assert row.schema["$defs"]["Address"]["required"] == ["street"]
    assert row.schema["properties"]["kind"] == {"enum": ["a", "b"]}
    assert row.schema["properties"]["extra"] == {"type": "array", "items": {"type": "integer"}}
    assert row.schema["additionalProperties"] == {"type": "number"}


def test_without_free_names_others_are_no_arguments(app):
    @app.task
    def send(to: str) -> None: ...

    assert describe(send).schema == {
        "type": "object",
        "properties": {"to": {"type": "string"}},
        "additionalProperties": False,
        "required": ["to"],
    }


def test_a_type_without_schema_leaves_the_row_without_one(app):
    @app.task
    def send(to: Odd) -> None: ...

    assert describe(send).schema is None
    assert [each.name for each in describe(send).parameters] == ["to"]


def test_a_schema_that_is_too_large_is_left_out(app):
    wide = msgspec.defstruct("Wide", [("x" * 100 + str(n), int) for n in range(MAX_SCHEMA // 100)])

    def send(to: Any) -> None: ...

    send.__annotations__["to"] = wide
    assert describe(app.task(send)).schema is None


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b"[1]"])
def test_a_row_that_cannot_be_read_is_told(body):
    with pytest.raises(StoreCorrupt):
        read_task_row(body)


def test_a_row_of_a_newer_layout_is_refused():
    row = TaskRow("t", "q", 2, 0, 3, [], version=2)
    with pytest.raises(StoreCorrupt, match="layout 2"):
        read_task_row(encode_task_row(row))


@pytest.fixture(params=["sqlite", "redis"])
def broker(request, tmp_path):
    url = f"sqlite:///{tmp_path}/spool.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    broker = connect(url)
    yield broker
    broker.close()


async def test_rows_are_written_where_they_differ(broker):
    app = Spool(broker)
    app.task(name="a")(lambda: None)
    app.task(name="b", queue="mail")(lambda: None)
    assert await publish(app.tasks.values(), broker) == 2
    assert await publish(app.tasks.values(), broker) == 0
    before = {each.key: each.version for each in (await broker.acall(Load("task"))).documents}
    other = Spool(broker)
    other.task(name="b", queue="post")(lambda: None)
    assert await publish(other.tasks.values(), broker) == 1
    after = {each.key: each.version for each in (await broker.acall(Load("task"))).documents}
    assert after == {**before, "b": before["b"] + 1}
    catalogue = await Catalogue.aload(broker)
    assert {name: row.queue for name, row in catalogue.tasks.items()} == {"a": "default", "b": "post"}
    assert Catalogue.load(broker).tasks == catalogue.tasks
    await broker.aclose()


async def test_a_worker_writes_them_when_it_starts(broker):
    app = Spool(broker)

    @app.task(redact=("password",))
    async def login(user: str, password: str) -> None: ...

    async with running(app):

        async def written() -> bool:
            return "login" in (await Catalogue.aload(broker)).tasks

        await aeventually(written)
    assert (await Catalogue.aload(broker)).tasks["login"].redact == ["password"]
    await broker.aclose()


# Redaction


@pytest.mark.parametrize("redact", [("word",), "password", 5, (5,), ["user", "pass"]])
def test_names_to_hide_are_checked_when_the_task_is_declared(app, redact):
    with pytest.raises(ConfigError, match="redact"):

        @app.task(redact=redact)
        def login(user: str, password: str) -> None: ...


def test_a_function_that_takes_any_name_may_hide_any(app):
    @app.task(redact=["token"])
    def call(url: str, **options: str) -> None: ...

    assert call.settings.redact == ("token",)


def shown(app: Spool, *args: Any, **kwargs: Any) -> Any:
    """The arguments of a call of the only task, as people may see them."""
    (task,) = app.tasks.values()
    catalogue = Catalogue([])
    catalogue.tasks[task.name] = describe(task)
    return catalogue.redacted(task.enqueue(*args, **kwargs).job()).arguments


def test_what_is_named_is_hidden_by_position_and_by_name(app):
    @app.task(redact=("password", "pin"))
    def login(user: str, password: str, *, pin: int = 0, at: int = 0) -> None: ...

    assert shown(app, "ann", "secret") == (["ann", REDACTED], {})
    assert shown(app, password="secret", user="ann", pin=5, at=6) == (["ann", REDACTED], {"pin": REDACTED, "at": 6})


def test_extra_arguments_are_hidden_by_the_name_of_what_takes_them(app):
    @app.task(redact=("keys", "options"))
    def call(url: str, *keys: str, **options: str) -> None: ...

    assert shown(app, "u", "k1", "k2", token="t") == (["u", REDACTED, REDACTED], {"token": REDACTED})


def test_one_of_the_free_names_can_be_hidden_alone(app):
    @app.task(redact=("token",))
    def call(url: str, *rest: int, **options: str) -> None: ...

    assert shown(app, "u", 1, token="t", mode="m") == (["u", 1], {"token": REDACTED, "mode": "m"})


def test_arguments_of_another_version_of_the_task_are_hidden(app):
    @app.task
    def login(user: str, secret: str, *, pin: int) -> None: ...

    job = login.enqueue("ann", "secret", pin=5).job()
    row = TaskRow("login", "default", 2, 0, 3, [TaskParameter("user", True, "positional_or_keyword")], None, ["user"])
    catalogue = Catalogue([])
    catalogue.tasks["login"] = row
    assert catalogue.redacted(job).arguments == ([REDACTED, REDACTED], {"pin": REDACTED})


def test_a_row_that_cannot_be_read_hides_all(app):
    @app.task
    def login(user: str, *, pin: int) -> None: ...

    app.broker.call(Store("task", "login", b"{}"))
    job = login.enqueue("ann", pin=5).job()
    assert Catalogue.load(app.broker).redacted(job).arguments == ([REDACTED], {"pin": REDACTED})


def test_the_task_gets_what_is_hidden_from_people(app):
    from spool import testing

    got = []

    @app.task(redact=("password",))
    def login(password: str) -> None:
        got.append(password)

    with testing.isolated(app):
        login.enqueue("secret")
        assert testing.run_until_idle(app) == 1
    assert got == ["secret"]


def test_a_schema_is_json(app):
    @app.task
    def send(to: Address, when: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) -> None: ...

    json.dumps(describe(send).schema)
