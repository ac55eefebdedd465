"""Keys: checked, and read from the environment. What is wrong with one is said without showing it."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from spool.errors import ConfigError

LEAST: Final = 32
"""Bytes of a key."""
MOST: Final = 1024
_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")

Keys = Mapping[str, bytes | str]
"""Keys by id, the one in use first: bytes, or text in base64."""


def checked(what: str, keys: Mapping[Any, Any], *, most: int = MOST) -> dict[str, bytes]:
    """Return keys as bytes. Raises `ConfigError` unless each has an id, and 32 bytes or more, up to ``most``."""
    if not isinstance(cast("object", keys), Mapping) or not keys:
        raise ConfigError(f"{what} takes keys by id, the one in use first, as {{'2026-02': …}}: at least one")
    return {_id(what, number, id): _key(what, id, key, most) for number, (id, key) in enumerate(keys.items(), 1)}


def _id(what: str, number: int, id: Any) -> str:
    if not isinstance(id, str) or not _ID.fullmatch(id):
        # Which it is, is not said: somebody may have put the key in its place.
        raise ConfigError(
            f"{what}: the id of key {number} is not usable: allowed are 1 to 32 of the characters A-Z a-z 0-9 _ . -"
        )
    return id


def _key(what: str, id: str, key: Any, most: int) -> bytes:
    if isinstance(key, str):
        try:
            # Both alphabets, and with or without padding: as other programs print it.
            plain = key.strip().rstrip("=").translate(str.maketrans("-_", "+/"))
            key = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError(f"{what}: the key {id!r} is not base64") from None
    if not isinstance(key, bytes):
        raise ConfigError(f"{what}: the key {id!r} must be bytes, or text in base64, not {type(key).__name__}")
    if not LEAST <= len(key) <= most:
        wanted = f"{LEAST}" if most == LEAST else f"{LEAST} to {most:,}"
        raise ConfigError(f"{what}: the key {id!r} must have {wanted} bytes, not {len(key)}: openssl rand -base64 32")
    return key


def from_environment(name: str) -> dict[str, str] | None:
    """Return the keys in a variable, or in the file that ``…_FILE`` names; None for none. Raises `ConfigError`.

    They are written as ``id=base64``, the one in use first, with commas or white space between them.
    """
    text, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if text and file:
        raise ConfigError(f"give {name} or {name}_FILE, not both")
    if file:
        from pathlib import Path  # who has no keys is spared the import

        name = f"{name}_FILE"
        try:
            text = Path(file).read_text(encoding="ascii")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise ConfigError(f"{name}: {file} cannot be read: {reason}") from None
        if not text.strip():
            raise ConfigError(f"{name}: {file} is empty")
    if not text or not text.strip():
        return None
    keys: dict[str, str] = {}
    for number, entry in enumerate(text.replace(",", " ").split(), 1):
        id, equals, key = entry.partition("=")
        if not equals or not _ID.fullmatch(id):
            raise ConfigError(f"{name}: entry {number} is not of the form id=base64, as 2026-02=…")
        if id in keys:
            raise ConfigError(f"{name}: the id {id!r} is there twice")
        keys[id] = key
    return keys


def switch(name: str) -> bool:
    """Return whether a variable says yes. Raises `ConfigError` unless it is 1, true, yes, 0, false, no or empty."""
    word = os.environ.get(name, "").strip().lower()
    if word not in {"", "0", "false", "no", "1", "true", "yes"}:
        raise ConfigError(f"{name} must be 1 or 0, not {word[:20]!r}")
    return word in {"1", "true", "yes"}
