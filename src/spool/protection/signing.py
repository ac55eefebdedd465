"""Signatures: who made a job, and that nobody has changed it since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from spool.errors import BadSignature, Unsigned
from spool.job import NIL
from spool.opaque import UNREADABLE
from spool.protection.keys import Keys, checked

Kind = Literal["job", "result"]

_PREFIX: Final = b"spool signature 1\0"
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


class Signing:
    """Keys with which jobs and results are signed (HMAC-SHA-256), and by which they are known.

    ``keys`` are by id, each 32 bytes or more, or as many in base64; the first one signs, all of them are accepted.
    With ``accept_unsigned`` what has no signature is accepted too, and a warning logged once for each queue and task:
    for the time in which not everybody signs yet. Raises `ConfigError` for keys that cannot be used.

    >>> Signing({"2026-02": b"s" * 32, "2025-11": b"o" * 32})
    <Signing 2026-02, 2025-11>
    """

    def __init__(self, keys: Keys, *, accept_unsigned: bool = False) -> None:
        import hmac  # for those who sign: it loads a library of 5 MB

        self._keys = checked("Signing", keys)
        self._id = next(iter(self._keys))
        self._digest, self._equal = hmac.digest, hmac.compare_digest
        self._warned: set[tuple[Kind, str, str]] = set()
        self.accept_unsigned = accept_unsigned

    def __repr__(self) -> str:
        return f"<Signing {', '.join(self._keys)}>"

    def sign(self, kind: Kind, queue: str, id: str, elements: Sequence[msgspec.Raw]) -> msgspec.Raw:
        """Return the signature of these elements of a record or ending: all but the signature itself."""
        return msgspec.Raw(_encode((self._id, self._mac(self._id, kind, queue, id, elements))))

    def check(self, kind: Kind, queue: str, id: str, elements: Sequence[msgspec.Raw], at: int) -> None:
        """Raise `Unsigned` or `BadSignature` unless the element ``at`` is the signature of all the others.

        All: so a release that knows nothing of an element which a later one appends checks that as well.
        """
        # In an ending what comes behind the signature may be there without one. Nobody writes such a record.
        if len(elements) <= at or (kind == "result" and elements[at] == NIL):
            raise Unsigned(f"the {kind} is not signed, and only signed ones are accepted here")
        try:
            name, mac = _decode(elements[at])
        except UNREADABLE:
            raise BadSignature(f"what should be the signature of the {kind} is none") from None
        if name not in self._keys:
            known = ", ".join(self._keys)
            raise BadSignature(f"the {kind} is signed with the key {name[:32]!r}; known here: {known}")
        others = [*elements[:at], *elements[at + 1 :]]
        if not self._equal(mac, self._mac(name, kind, queue, id, others)):
            raise BadSignature(f"the signature is not that of this {kind}: something in it was changed, or its place")

    def accepts(self, kind: Kind, queue: str, id: str, task: str) -> bool:
        """Whether one without a signature is accepted; the first one of a queue and task is logged."""
        if self.accept_unsigned and (kind, queue, task) not in self._warned:
            if len(self._warned) < 10_000:
                self._warned.add((kind, queue, task))
            import logging

            logging.getLogger("spool.protection").warning(
                "the %s of %s/%s (%s) is not signed; it is accepted as long as unsigned ones are",
                kind, queue, id, task,
            )  # fmt: skip
        return self.accept_unsigned

    def _mac(self, name: str, kind: Kind, queue: str, id: str, elements: Sequence[msgspec.Raw]) -> bytes:
        # msgpack says of each part how long it is: no two different ones make the same bytes.
        place = _encode((kind, queue, id, len(elements)))
        return self._digest(self._keys[name], b"".join((_PREFIX, place, *map(bytes, elements))), "sha256")
