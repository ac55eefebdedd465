"""What the demo finds out about files: plain functions, no queue in sight."""

from __future__ import annotations

import ast
import bisect
import hashlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Final

import msgspec

SKIPPED: Final = frozenset({b"__pycache__", b"site-packages"})
"""Directories left out: compiled copies, and what was installed beside the standard library."""

# CPython 3.11 counts the depth of syntax trees in one place for all threads: two that parse at once get a SystemError.
_parser = threading.Lock()

_CHUNK: Final = 1 << 20
_TOP: Final = 5
_SHOWN_FAILURES: Final = 20


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What is known about one file. ``path`` is bytes: a file name need not be text. Sizes in bytes."""

    path: bytes
    size: int
    sha256: bytes
    lines: int
    words: int
    functions: int = 0
    classes: int = 0
    longest: tuple[int, str] | None = None
    """Lines and name of the longest function."""


class Failure(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A file that could not be analysed."""

    path: bytes
    error: str
    message: str


class Place(msgspec.Struct, frozen=True):
    """An entry of a list of the best: the figure, and whose it is."""

    figure: int
    path: bytes
    name: str = ""


class Totals(msgspec.Struct):
    """The sum over many files, in whatever order they come. Bounded, however many they are."""

    files: int = 0
    size: int = 0
    lines: int = 0
    words: int = 0
    functions: int = 0
    classes: int = 0
    digest: int = 0
    """Sum of a hash of every file's path and content, so that two equal totals mean the same files."""
    largest: list[Place] = []
    """By size, the five largest; equal ones by path."""
    longest: list[Place] = []
    """By lines."""
    longest_functions: list[Place] = []
    """By lines, with the function's name."""
    failed: dict[str, int] = {}
    """How many files failed, by the name of the exception."""
    failures: list[Failure] = []
    """The first 20 of them by path."""

    def add(self, facts: Facts) -> None:
        self.files += 1
        self.size += facts.size
        self.lines += facts.lines
        self.words += facts.words
        self.functions += facts.functions
        self.classes += facts.classes
        mark = hashlib.blake2b(facts.path + b"\0" + facts.sha256, digest_size=8).digest()
        self.digest = self.digest + int.from_bytes(mark) & 0xFFFF_FFFF_FFFF_FFFF
        _keep_top(self.largest, Place(facts.size, facts.path))
        _keep_top(self.longest, Place(facts.lines, facts.path))
        if facts.longest is not None:
            lines, name = facts.longest
            _keep_top(self.longest_functions, Place(lines, facts.path, name))

    def fail(self, failure: Failure) -> None:
        self.failed[failure.error] = self.failed.get(failure.error, 0) + 1
        bisect.insort(self.failures, failure)
        del self.failures[_SHOWN_FAILURES:]


def analyse(path: bytes) -> Facts:
    """Read one file. Lines and words are those of ``wc``; functions and classes are counted in ``.py`` files only.

    Raises `OSError` if it cannot be read, and what `ast.parse` raises if it is no valid Python of this version.
    """
    digest = hashlib.sha256()
    is_python = path.endswith(b".py")
    source: list[bytes] = []
    size = lines = words = 0
    in_word = False
    with open(path, "rb") as file:  # noqa: PTH123 - a bytes path: pathlib knows only text
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
            # A word that spans two chunks is one word.
            words += len(chunk.split()) - (in_word and not chunk[:1].isspace())
            in_word = not chunk[-1:].isspace()
            if is_python:
                source.append(chunk)
    functions, classes, longest = _count_definitions(b"".join(source)) if is_python else (0, 0, None)
    return Facts(path, size, digest.digest(), lines, words, functions, classes, longest)


def walk(directory: bytes, unreadable: list[bytes]) -> Iterator[bytes]:
    """Yield the regular files below a directory, sorted within each; links are not followed.

    Directories named in `SKIPPED` are left out; those that cannot be listed are appended to ``unreadable``.
    """
    pending = [directory]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            unreadable.append(current)
            continue
        for entry in found:
            if entry.is_file(follow_symlinks=False):
                yield entry.path
        pending += [
            entry.path for entry in reversed(found) if entry.name not in SKIPPED and entry.is_dir(follow_symlinks=False)
        ]


def plain_loop(directory: str) -> Totals:
    """Return the totals of a directory from one process and no queue: what the demo must arrive at.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as empty:
    ...     plain_loop(empty).files
    0
    """
    totals = Totals()
    with quiet_parser():
        for path in walk(os.fsencode(directory), []):
            try:
                totals.add(analyse(path))
            except Exception as error:  # noqa: BLE001 - as in a worker, whatever it is
                totals.fail(Failure(path, type(error).__name__, str(error)))
    return totals


def quiet_parser() -> warnings.catch_warnings[None]:
    """Silence what `ast.parse` warns about in other people's code: in the whole process, not just in this thread."""
    return warnings.catch_warnings(action="ignore", category=Warning)


def _count_definitions(source: bytes) -> tuple[int, int, tuple[int, str] | None]:
    functions = classes = 0
    longest: tuple[int, str] | None = None
    with _parser:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if longest is None or lines > longest[0]:
                longest = (lines, node.name)
        elif isinstance(node, ast.ClassDef):
            classes += 1
    return functions, classes, longest


def _keep_top(best: list[Place], place: Place) -> None:
    bisect.insort(best, place, key=lambda each: (-each.figure, each.path, each.name))
    del best[_TOP:]
