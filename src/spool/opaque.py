"""Values that a process cannot, or must not, read: encrypted ones, and those whose signature is wrong.

In a payload or a result an encrypted value is a msgpack extension of a type of its own, at the top, where arguments and
results are otherwise lists and plain values. In a text it is base64 behind a prefix. So every process can tell it apart
and say so, also one without any key.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from spool.errors import BadSignature, ProtectionError, Undecryptable, Unsigned

ENCRYPTED: Final = "[encrypted]"
"""What is shown in place of a value that is encrypted."""
TEXT: Final = "$spool-encrypted$"
"""How an encrypted text begins."""

UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding raises: the last two for data that none of our clients wrote."""

_ENCRYPTED: Final = 83
_DOUBTFUL: Final = 85
#: The first bytes of msgpack's extensions.
_EXTENSIONS: Final = frozenset(bytes((each,)) for each in (*range(0xC7, 0xCA), *range(0xD4, 0xD9)))
_KINDS: Final[dict[str, type[ProtectionError]]] = {each.__name__: each for each in (Unsigned, BadSignature)}

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode
_doubt: Final = msgspec.msgpack.Decoder(tuple[str, str]).decode


class Refused(bytes):
    """Stands in for the record of a job that is not to be run: it cannot be decoded, and ``error`` says why.

    Only within a process: the record in the store stays as it is.
    """

    error: ProtectionError

    @classmethod
    def because(cls, error: ProtectionError) -> Refused:
        """Return one."""
        refused = cls(b"\xc1")  # the one byte that msgpack never uses
        refused.error = error
        return refused


def wrap(data: bytes) -> msgspec.Raw:
    """Return what is encrypted as it lies in the place of a payload or result."""
    return msgspec.Raw(_encode(msgspec.msgpack.Ext(_ENCRYPTED, data)))


def unwrap(raw: msgspec.Raw | bytes) -> bytes | None:
    """Return what `wrap` was given; None for a value that is not encrypted."""
    found = _extension(raw)
    return bytes(found.data) if found is not None and found.code == _ENCRYPTED else None


def doubt(error: ProtectionError) -> msgspec.Raw:
    """Return what stands in for a result that is not to be believed. Only within a process, as `Refused`."""
    return msgspec.Raw(_encode(msgspec.msgpack.Ext(_DOUBTFUL, _encode((type(error).__name__, str(error))))))


def problem(raw: msgspec.Raw | bytes, what: str) -> ProtectionError | None:
    """Return why a value cannot be read, None if it can; ``what`` names it."""
    found = _extension(raw)
    if found is None:
        return None
    if found.code == _ENCRYPTED:
        return Undecryptable(f"{what} encrypted, and this process has no key for that")
    try:
        name, message = _doubt(found.data)
    except UNREADABLE:  # no process of ours made it
        return ProtectionError(f"{what} of no kind that is known here")
    return _KINDS.get(name, ProtectionError)(message)


def shown(value: Any) -> Any:
    """Return a decoded value as people see it: `ENCRYPTED` for one that is, the reason for one that is refused."""
    if not isinstance(value, msgspec.msgpack.Ext):
        return value
    return f"[refused: {_doubt(value.data)[1]}]" if value.code == _DOUBTFUL else ENCRYPTED


def shown_text(text: str) -> str:
    """Return a text as people see it: `ENCRYPTED` for one that is."""
    return ENCRYPTED if text.startswith(TEXT) else text


def _extension(raw: msgspec.Raw | bytes) -> msgspec.msgpack.Ext | None:
    if memoryview(raw)[:1].tobytes() not in _EXTENSIONS:
        return None
    try:
        value = _decode(raw)
    except UNREADABLE:
        return None
    known = isinstance(value, msgspec.msgpack.Ext) and value.code in (_ENCRYPTED, _DOUBTFUL)
    return value if known else None
