"""Encryption: what it takes to be one, and a ready one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from spool.errors import ConfigError, Undecryptable
from spool.protection.keys import LEAST, Keys, checked

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT: Final = b"\x01"
_SALT: Final = 16
_NONCE: Final = 12
_LABEL: Final = b"spool aes-256-gcm 1\0"


class Encryption(Protocol):
    """Encrypts and decrypts values: `AesGcm`, or one of your own.

    ``context`` is not secret and not kept with the value. It says what the value is and where it belongs, and has to be
    authenticated with it (as associated data): what was encrypted in one context must not be decrypted in another.

    Both are called once or more for each job, in an event loop too, and from several threads at a time: they must not
    wait for anything, so keys have to be at hand. What they raise does not reach the log or the store but for the name
    of its type.
    """

    def encrypt(self, data: bytes, context: bytes) -> bytes:
        """Return the data encrypted."""
        ...

    def decrypt(self, data: bytes, context: bytes) -> bytes:
        """Return what `encrypt` was given. Raises any `Exception` if it was changed or the key is not known."""
        ...


class AesGcm:
    """AES-256-GCM from the package ``cryptography`` (extra ``crypto``).

    ``keys`` are by id, each 32 bytes, or as many in base64; the first one encrypts, all of them decrypt. Each value is
    encrypted with a key of its own, derived from the one given and 16 random bytes, and a random nonce: a key may serve
    for as many values as you like. Raises `ConfigError` for keys that cannot be used, or without the package.

    >>> secret = AesGcm({"2026-02": b"k" * 32})
    >>> secret
    <AesGcm 2026-02>
    >>> secret.decrypt(secret.encrypt(b"4711", b"here"), b"here")
    b'4711'
    """

    def __init__(self, keys: Keys) -> None:
        import hmac

        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigError("encryption needs the extra 'crypto': pip install 'spool-queue[crypto]'") from error
        self._keys = checked("AesGcm", keys, most=LEAST)
        self._id = next(iter(self._keys))
        self._digest = hmac.digest
        self._cipher, self._invalid = AESGCM, InvalidTag

    def __repr__(self) -> str:
        return f"<AesGcm {', '.join(self._keys)}>"

    def encrypt(self, data: bytes, context: bytes) -> bytes:
        """See `Encryption.encrypt`. Adds 45 bytes and the key's id."""
        id = self._id.encode()
        random = os.urandom(_SALT + _NONCE)
        head = b"%b%c%b%b" % (_FORMAT, len(id), id, random)
        return head + self._derived(self._id, random[:_SALT]).encrypt(random[_SALT:], data, head + context)

    def decrypt(self, data: bytes, context: bytes) -> bytes:
        """See `Encryption.decrypt`. Raises `Undecryptable`."""
        end = 2 + (data[1] if len(data) > 1 else 0)
        start = end + _SALT + _NONCE
        if data[:1] != _FORMAT or len(data) < start:
            raise Undecryptable("it is of no format that is known here")
        name = data[2:end].decode("ascii", errors="replace")
        if name not in self._keys:
            raise Undecryptable(f"it was encrypted with the key {name[:32]!r}; known here: {', '.join(self._keys)}")
        head = data[:start]
        try:
            return self._derived(name, data[end : end + _SALT]).decrypt(
                data[end + _SALT : start], data[start:], head + context
            )
        except self._invalid:
            raise Undecryptable("it was changed, or belongs to another job") from None

    def _derived(self, name: str, salt: bytes) -> AESGCM:
        # One step of HKDF-Expand. Random nonces alone would do for 2^32 values of one key, which a busy store writes
        # within days.
        return self._cipher(self._digest(self._keys[name], _LABEL + salt + b"\x01", "sha256"))
