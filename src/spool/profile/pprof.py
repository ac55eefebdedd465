"""Profiles as pprof's file format, which ``go tool pprof`` and many other tools read.

A message of Protocol Buffers, compressed with gzip. The schema, whose field numbers are used here, is
https://github.com/google/pprof/blob/main/proto/profile.proto.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from spool.errors import ConfigError
from spool.profile.model import Frame, Kind, Profile, Sample

GZIP: Final = b"\x1f\x8b"

_WORD: Final = 1 << 64
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

Value = int | bytes
Message = dict[int, list[Value]]


def encode(profile: Profile) -> bytes:
    """Return a profile as the bytes of a file."""
    tables = _Tables()
    out = [_bytes(1, tables.pair(name, unit)) for name, unit in profile.types]
    out += [_bytes(2, tables.sample(sample)) for sample in profile.samples]
    out += [_bytes(4, each) for each in tables.locations.values()]
    out += [_bytes(5, each) for each in tables.functions.values()]
    period = tables.pair("wall", "nanoseconds") if profile.kind == "cpu" else tables.pair("space", "bytes")
    default = tables.text(profile.default)
    out += [_bytes(6, text.encode("utf-8", "surrogateescape")) for text in tables.texts]
    out += [_int(9, profile.started), _int(10, profile.duration), _bytes(11, period)]
    out += [_int(12, profile.period), _int(14, default)]
    return gzip.compress(b"".join(out), compresslevel=6, mtime=0)


def decode(data: bytes) -> Profile:
    """Return the profile in the bytes of a file, compressed or not. Raises `ConfigError` if there is none."""
    try:
        plain = gzip.decompress(data) if data.startswith(GZIP) else data
        return _profile(_message(plain))
    except (EOFError, IndexError, KeyError, OSError, TypeError, ValueError, zlib.error) as error:
        raise ConfigError(f"this is no pprof file: {error}") from error


class _Tables:
    """What the samples of a file share: each string, function and place is in it once, and named by a number."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {"": 0}
        self.functions: dict[tuple[str, str], bytes] = {}
        self.locations: dict[Frame, bytes] = {}
        self._places: dict[Frame, int] = {}
        self._names: dict[tuple[str, str], int] = {}

    def text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def pair(self, name: str, unit: str) -> bytes:
        return _int(1, self.text(name)) + _int(2, self.text(unit))

    def sample(self, sample: Sample) -> bytes:
        places = _packed(1, map(self._place, reversed(sample.stack)))
        labels = [_bytes(3, self.pair(key, value)) for key, value in sample.labels.items()]
        return b"".join((places, _packed(2, sample.values), *labels))

    def _place(self, frame: Frame) -> int:
        number = self._places.get(frame)
        if number is None:
            number = self._places[frame] = len(self._places) + 1
            line = _int(1, self._function(frame.function, frame.file)) + _int(2, frame.line)
            self.locations[frame] = _int(1, number) + _bytes(4, line)
        return number

    def _function(self, function: str, file: str) -> int:
        key = (function, file)
        number = self._names.get(key)
        if number is None:
            number = self._names[key] = len(self._names) + 1
            name = self.text(function)
            self.functions[key] = b"".join((_int(1, number), _int(2, name), _int(3, name), _int(4, self.text(file))))
        return number


def _varint(value: int) -> bytes:
    value %= _WORD
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value) if value else b""


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH) + _varint(len(data)) + data


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _bytes(field, b"".join(map(_varint, values)))


def _profile(message: Message) -> Profile:
    texts = [each.decode("utf-8", "surrogateescape") for each in _parts(message, 6)]
    types = tuple((texts[_number(each, 1)], texts[_number(each, 2)]) for each in _messages(message, 1))
    if not types:
        raise ValueError("it says not what it counts")
    functions = {_number(each, 1): (texts[_number(each, 2)], texts[_number(each, 4)]) for each in _messages(message, 5)}
    places = {
        _number(each, 1): [Frame(*functions[_number(line, 1)], line=_number(line, 2)) for line in _messages(each, 4)]
        for each in _messages(message, 4)
    }
    kind: Kind = "memory" if any(unit == "bytes" for _, unit in types) else "cpu"
    return Profile(
        kind=kind,
        types=types,
        samples=[_sample(each, len(types), places, texts) for each in _messages(message, 2)],
        period=_number(message, 12),
        duration=_number(message, 10),
        started=_number(message, 9),
    )


def _sample(message: Message, width: int, places: dict[int, list[Frame]], texts: list[str]) -> Sample:
    # The file has the leaf first, and within a place the innermost of inlined calls.
    leaf_first = [frame for number in _numbers(message, 1) for frame in places[number]]
    values = tuple(map(_signed, _numbers(message, 2)))
    if len(values) != width:
        raise ValueError(f"a sample has {len(values)} values instead of {width}")
    labels = {
        texts[_number(each, 1)]: str(_number(each, 3)) if 3 in each else texts[_number(each, 2)]
        for each in _messages(message, 3)
    }
    return Sample(tuple(reversed(leaf_first)), values, labels)


def _message(data: bytes) -> Message:
    """Return the values of each field, in order: numbers, or bytes that may be a message, a text or packed numbers."""
    found: Message = {}
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        field, wire = key >> 3, key & 7
        value: Value
        if wire == _VARINT:
            value, at = _read_varint(data, at)
        elif wire == _LENGTH:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at > len(data):
            raise EOFError("it ends in the middle")
        found.setdefault(field, []).append(value)
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value % _WORD, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number without an end at byte {at}")


def _parts(message: Message, field: int) -> Iterator[bytes]:
    for value in message.get(field, ()):
        if isinstance(value, int):
            raise TypeError(f"field {field} is a number")
        yield value


def _messages(message: Message, field: int) -> Iterator[Message]:
    return map(_message, _parts(message, field))


def _numbers(message: Message, field: int) -> Iterator[int]:
    for value in message.get(field, ()):
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            number, at = _read_varint(value, at)
            yield number


def _number(message: Message, field: int) -> int:
    value = message.get(field, (0,))[-1]
    if not isinstance(value, int):
        raise TypeError(f"field {field} is no number")
    return _signed(value)


def _signed(value: int) -> int:
    return value - _WORD if value >= _WORD >> 1 else value
