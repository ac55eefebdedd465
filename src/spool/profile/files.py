"""Profiles in files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from spool.errors import ConfigError
from spool.profile.model import Profile
from spool.profile.pprof import decode, encode

_MEMRAY: Final = b"memray"


def read(path: Path) -> Profile:
    """Read a profile: a pprof file (`write` makes one), or one that memray wrote.

    Raises `ConfigError` if it cannot be read or is something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path}: {error.strerror or error}") from error
    if data.startswith(_MEMRAY):
        from spool.profile.memory import convert_memray

        return convert_memray(path)
    try:
        return decode(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write(path: Path, profile: Profile) -> None:
    """Write a profile as a pprof file. Raises `ConfigError` if it cannot be written."""
    write_bytes(path, encode(profile))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file. Raises `ConfigError` if it cannot be written."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
