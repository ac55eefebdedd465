import io
import logging
import sys

import msgspec
import pytest

from spool.log import Human, Json, configure


def record(message: str, *arguments: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("spool.worker", level, __file__, 1, message, arguments, None)
    made.__dict__ |= extra
    return made


def test_people_get_one_line():
    line = Human().format(record("mail/%s failed: %s", 1, "two\nlines \x1b[31mred\x1b[0m é"))
    moment, rest = line.split(" ", 1)
    assert len(moment) == len("12:30:01.250")
    assert rest == r"WARNING mail/1 failed: two\nlines \x1b[31mred\x1b[0m é"


def test_colour_is_for_terminals():
    assert "\x1b[" not in Human().format(record("x"))
    assert Human(colour=True).format(record("x")).startswith("\x1b[33m")
    assert "\x1b[" not in Human(colour=True).format(record("x", level=logging.INFO))


def test_machines_get_json_with_the_records_own_fields():
    line = Json().format(record("mail/%s failed\n", 1, spool={"job": "1", "odd": object}))
    assert "\n" not in line
    found = msgspec.json.decode(line)
    assert (found["level"], found["logger"], found["message"]) == ("warning", "spool.worker", "mail/1 failed\n")
    assert (found["job"], found["odd"]) == ("1", "<class 'object'>")
    assert found["time"].endswith("Z")


def test_exceptions_are_shown():
    try:
        int("here")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    assert Human().format(made).endswith("literal for int() with base 10: 'here'")
    assert msgspec.json.decode(Json().format(made))["exception"].endswith("literal for int() with base 10: 'here'")


@pytest.fixture
def restored():
    root, ours = logging.getLogger(), logging.getLogger("spool")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])


@pytest.mark.parametrize(("style", "first"), [("auto", "{"), ("json", "{"), ("human", "0123456789")])
def test_what_is_no_terminal_gets_json_unless_told_otherwise(restored, monkeypatch, style, first):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    configure("info", style)
    logging.getLogger("spool.worker").info("yes")
    logging.getLogger("spool.worker").debug("no")
    logging.getLogger("other").info("yes")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0][0] in first


def test_debug_is_for_spool_alone(restored, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    configure("debug", "json")
    logging.getLogger("spool.worker").debug("yes")
    logging.getLogger("other").info("no")
    assert len(stream.getvalue().splitlines()) == 1
