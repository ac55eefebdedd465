"""Spool's log lines: for people on a terminal, as JSON for machines. Only the standard library's logging underneath.

A record may carry fields of its own: ``logger.warning("…", extra={"spool": {"job": "mail/1"}})``. JSON lines show them;
the text for people says in its message what matters.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Literal

import msgspec

_encode = msgspec.json.Encoder(enc_hook=repr).encode
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}


class Human(logging.Formatter):
    """``12:30:01.250 WARNING message``, with colour on a terminal that shows it."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment}.{int(record.msecs):03d} {record.levelname:7} {_one_line(record.getMessage())}"
        if self._colour and (code := _COLOURS.get(record.levelname)):
            line = f"\x1b[{code}m{line}\x1b[0m"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class Json(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **getattr(record, "spool", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line).decode()


def configure(level: str = "info", style: Literal["auto", "human", "json"] = "auto") -> None:
    """Send the log lines of everything in this process to stderr, in this style and from this level on."""
    terminal = sys.stderr.isatty()
    handler = logging.StreamHandler()
    human = style == "human" or (style == "auto" and terminal)
    handler.setFormatter(Human(colour=terminal) if human else Json())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if level == "debug" else level.upper())
    logging.getLogger("spool").setLevel(level.upper())


def _one_line(text: str) -> str:
    """Escape what would let a message pass for several lines, or for colours."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
