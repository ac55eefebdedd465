"""What goes into the store signed and encrypted, and how it is opened again: pure functions of records and texts.

Records and endings are taken apart into their elements and put together again as they lie there, so that nothing of
what another release wrote is lost or changed.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from spool.broker import Cancelled, Died, Done, JobNote, NewJob, Released, Retried, Settlement
from spool.errors import ProtectionError, StoreCorrupt, Undecryptable, Unsigned
from spool.job import NIL, Snapshot, State, fitting, read_ending, read_record, task_fingerprint
from spool.opaque import TEXT, UNREADABLE, Refused, doubt, unwrap, wrap
from spool.protection.encryption import Encryption
from spool.protection.signing import Kind, Signing

# Elements of a record,
JOB_TASK: Final = 1
FINGERPRINT: Final = 5
PAYLOAD: Final = 7
# and of an ending.
TASK: Final = 2
RESULT: Final = 8
REASON: Final = 9
TALLY: Final = 11
SIGNATURE: Final[dict[Kind, int]] = {"job": 14, "result": 13}
"""Behind the elements that the first release that signs had; what was appended later comes behind the signature."""

OURS: Final = frozenset(
    {"Undecodable", "Unroutable", "WorkerCrashed", "Unsigned", "BadSignature", "Undecryptable", "ProtectionError"}
)
"""Types of errors whose messages say nothing of what a job is about, and are needed by those who have no key.

Of ours: they come without a traceback. A task may raise the same types, and say there what it likes.
"""
LOST: Final = "[could not be encrypted]"
"""What is kept of a text then."""

_encode: Final = msgspec.msgpack.Encoder().encode
_split: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode: Final = msgspec.msgpack.Decoder().decode
_text: Final = msgspec.msgpack.Decoder(str).decode
_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder(list[Any]).decode


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))


class Envelope:
    """Seals what is written, and opens what is read, with what there is to sign and to encrypt with."""

    def __init__(self, signing: Signing | None, encryption: Encryption | None) -> None:
        self._signing = signing
        self._encryption = encryption

    # Jobs

    def seal_job(self, queue: str, job: NewJob) -> NewJob:
        """Return a job as it is stored. Raises `ProtectionError`."""
        elements = _split(job.record)
        task, fingerprint = _text(elements[JOB_TASK]), job.fingerprint
        if self._encryption is not None:
            context = _context("arguments", queue, job.id, task)
            elements[PAYLOAD] = wrap(self._encrypt(bytes(elements[PAYLOAD]), context))
            if fingerprint:
                # A hash of the arguments would let readers of the store guess them.
                fingerprint = task_fingerprint(task)
                elements[FINGERPRINT] = _raw(fingerprint)
        if self._signing is not None:
            elements.append(self._signing.sign("job", queue, job.id, elements))
        return replace(job, record=_encode(elements), fingerprint=fingerprint)

    def open_job(self, queue: str, id: str, body: bytes) -> bytes:
        """Return the record of a job that is to be run, `Refused` if it is not."""
        try:
            task = read_record(body).task
        except StoreCorrupt:
            return body  # whoever is to run it finds out as we did
        elements = _split(body)
        try:
            self._check("job", queue, id, task, elements)
            plain = self._opened(elements[PAYLOAD], _context("arguments", queue, id, task))
        except ProtectionError as error:
            return Refused.because(type(error)(f"{queue}/{id}: {error}"))
        if plain is None:
            return body
        elements[PAYLOAD] = msgspec.Raw(plain)
        return _encode(elements)

    def _check(self, kind: Kind, queue: str, id: str, task: str, elements: Sequence[msgspec.Raw]) -> None:
        if self._signing is None:
            return
        try:
            self._signing.check(kind, queue, id, elements, SIGNATURE[kind])
        except Unsigned:
            if not self._signing.accepts(kind, queue, id, task):
                raise

    # What becomes of them

    def seal_settlement(self, queue: str, settled: Settlement) -> Settlement:
        """Return the end of an attempt as it is stored. Raises `ProtectionError` for a result."""
        match settled:
            case Done() | Cancelled():
                return self._seal_ending(queue, settled)
            case Retried() | Died():
                return replace(settled, tally=self._seal_tally(queue, settled.id, settled.tally))
            case Released():  # adds no text: the last line may be one of the store, sealed with a key unknown here
                return settled

    def _seal_ending(self, queue: str, settled: Done | Cancelled) -> Settlement:
        elements = _split(settled.ending)
        task = _text(elements[TASK])
        if self._encryption is not None:
            if elements[RESULT] != NIL:
                context = _context("result", queue, settled.id, task)
                elements[RESULT] = wrap(self._encrypt(bytes(elements[RESULT]), context))
            reason = self._seal_text(_text(elements[REASON]), _context("reason", queue, settled.id))
            elements[REASON] = _raw(reason)
        if self._signing is not None and isinstance(settled, Done):
            at = SIGNATURE["result"]
            others = [*elements[:at], *elements[at + 1 :]]
            elements[at : at + 1] = [self._signing.sign("result", queue, settled.id, others)]
        return replace(settled, ending=_encode(elements))

    def _seal_tally(self, queue: str, id: str, text: str) -> str:
        """Seal the last line of a tally, which this attempt added: those before it came from the store."""
        head, *lines = text.split("\n")
        if self._encryption is None or not lines:
            return text
        lines[-1] = self._line(lines[-1], queue, id, self._seal_text, but=OURS)
        return "\n".join([head, *fitting(lines)])

    def seal_note(self, queue: str, note: JobNote) -> JobNote:
        """Return what a job says as it is stored."""
        if self._encryption is None:
            return note
        lines = [self._said(line, queue, note.id, self._seal_text, "log") for line in note.lines]
        progress = note.progress and self._said(note.progress, queue, note.id, self._seal_text, "progress")
        return replace(note, lines=lines, progress=progress)

    # Looking

    def open(self, snapshot: Snapshot) -> Snapshot:
        """Return a job as whoever has the keys may see it. Never raises: what cannot be opened stays as it is.

        A result that is not signed as it should be is `spool.opaque.doubt`.
        """
        record, ending = snapshot.record, snapshot.ending
        queue, id = snapshot.queue, snapshot.id
        with contextlib.suppress(StoreCorrupt):
            record = record and self._open_record(queue, id, record)
        with contextlib.suppress(StoreCorrupt):  # apart: a record that cannot be read must not spare the result a look
            ending = ending and self._open_ending(snapshot, ending)
        if self._encryption is None:
            return replace(snapshot, record=record, ending=ending)
        said = self._open_said
        return replace(
            snapshot,
            record=record,
            ending=ending,
            tally=self._open_tally(queue, id, snapshot.tally),
            progress=snapshot.progress and said(snapshot.progress, queue, id, "progress"),
            log=tuple(said(line, queue, id, "log") for line in snapshot.log),
        )

    def _open_record(self, queue: str, id: str, body: bytes) -> bytes:
        task = read_record(body).task
        elements = _split(body)
        with contextlib.suppress(ProtectionError):
            plain = self._opened(elements[PAYLOAD], _context("arguments", queue, id, task))
            if plain is not None:
                elements[PAYLOAD] = msgspec.Raw(plain)
        return _encode(elements)

    def _open_ending(self, snapshot: Snapshot, body: bytes) -> bytes:
        queue, id = snapshot.queue, snapshot.id
        ending = read_ending(body)
        elements = _split(body)
        if len(elements) <= TALLY:
            elements = _split(_encode(ending))  # as long as all that we write, so that there is room for a doubt
        try:
            # Three say that there is a result, and whoever forges one of them need not forge the others.
            if State.DONE in (snapshot.state, ending.state) or elements[RESULT] != NIL:
                self._check("result", queue, id, ending.task, elements)
        except ProtectionError as error:
            elements[RESULT] = doubt(error)
        if self._encryption is not None:
            with contextlib.suppress(ProtectionError):
                plain = self._opened(elements[RESULT], _context("result", queue, id, ending.task))
                if plain is not None:
                    elements[RESULT] = msgspec.Raw(plain)
            elements[REASON] = _raw(self._open_text(ending.reason, _context("reason", queue, id)))
            elements[TALLY] = _raw(self._open_tally(queue, id, ending.tally))
        return _encode(elements)

    def _open_tally(self, queue: str, id: str, text: str) -> str:
        if TEXT not in text:
            return text
        head, *lines = text.split("\n")
        return "\n".join([head, *(self._line(line, queue, id, self._open_text) for line in lines)])

    def _open_said(self, body: bytes, queue: str, id: str, what: str) -> bytes:
        return self._said(body, queue, id, self._open_text, what)

    # Parts

    def _line(
        self, line: str, queue: str, id: str, change: Callable[[str, bytes], str], but: Collection[str] = ()
    ) -> str:
        """Return a line of a tally with its texts changed, ``but`` those of errors of these types of ours."""
        try:
            fields = _from_json(line)
            if len(fields) < 8 or (fields[5] in but and not fields[7]):
                return line
            fields[6] = change(fields[6], _context("message", queue, id))
            fields[7] = change(fields[7], _context("traceback", queue, id))
        except (*UNREADABLE, TypeError, AttributeError):  # damaged
            return line
        return _to_json(fields).decode()

    def _said(self, body: bytes, queue: str, id: str, change: Callable[[str, bytes], str], what: str) -> bytes:
        """Return a log line or a report of progress with its message changed."""
        at = 5 if what == "log" else 3
        try:
            fields = _split(body)
            fields[at] = _raw(change(_text(fields[at]), _context(what, queue, id)))
        except (*UNREADABLE, IndexError):  # damaged
            return body
        return _encode(fields)

    def _seal_text(self, text: str, context: bytes) -> str:
        if not text:
            return text
        try:
            sealed = self._encrypt(text.encode(), context)
        except ProtectionError:
            return LOST
        return TEXT + base64.b64encode(sealed).decode()

    def _open_text(self, text: str, context: bytes) -> str:
        if not text.startswith(TEXT):
            return text
        try:
            return self._decrypt(base64.b64decode(text[len(TEXT) :], validate=True), context).decode()
        except (ProtectionError, ValueError):
            return text

    def _opened(self, raw: msgspec.Raw, context: bytes) -> bytes | None:
        """Return a value decrypted, None for one that is not encrypted, or that nobody here could decrypt."""
        sealed = None if self._encryption is None else unwrap(raw)
        return None if sealed is None else self._decrypt(sealed, context)

    def _encrypt(self, data: bytes, context: bytes) -> bytes:
        assert self._encryption is not None  # noqa: S101 - for the type checkers
        try:
            return bytes(self._encryption.encrypt(data, context))
        except Exception as error:
            raise ProtectionError(f"{_named(context)} cannot be encrypted: {_told(error)}") from error

    def _decrypt(self, data: bytes, context: bytes) -> bytes:
        assert self._encryption is not None  # noqa: S101 - for the type checkers
        try:
            return bytes(self._encryption.decrypt(data, context))
        except Exception as error:
            raise Undecryptable(f"{_named(context)} cannot be decrypted: {_told(error)}") from error


def _context(what: str, queue: str, id: str, task: str = "") -> bytes:
    return _encode((what, queue, id, task))


def _named(context: bytes) -> str:
    what: str = _decode(context)[0]
    return f"the {what}"


def _told(error: Exception) -> str:
    # What somebody else's code says of a failure may quote what it was given.
    return str(error) if isinstance(error, ProtectionError) else type(error).__name__
