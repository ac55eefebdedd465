"""The SQLite broker's file: where it is, whether it may be used, and what its errors mean."""

from __future__ import annotations

import functools
import os
import re
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from spool.broker.sqlite.store import SCHEMA
from spool.broker.url import hidden, split, unknown
from spool.errors import BrokerError, BrokerFull, BrokerRefused, BrokerUnavailable, ConfigError, StoreCorrupt

MEMORY: Final = ":memory:"
APPLICATION: Final = 0x53706F6C
LAYOUT: Final = 1
"""The layout that this release reads and writes; `PRAGMA user_version` of the file."""
OLDEST: Final = (3, 35, 0)
"""The first SQLite with RETURNING."""
LOG: Final = 4 * 2**20
"""Bytes to which the write-ahead log is cut back: as long as it gets in SQLite before it is written to the file.

Less would only have it cut and grown again all the time, more would stay for good after a rush or a slow reader.
"""
MOUNTS: Final = Path("/proc/self/mountinfo")

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
    }
    | {"smb3", "smbfs", "davfs2", "gcsfuse", "rclone", "s3fs", "sshfs"}
)
"""As the kernel names them, without the prefix of those that run as programs ("fuse.")."""


class Location(msgspec.Struct, frozen=True):
    """What a URL says. ``path`` is absolute, so that a change of directory changes nothing; or `MEMORY`."""

    url: str
    path: str
    synchronous: str = "FULL"

    @property
    def memory(self) -> bool:
        return self.path == MEMORY


def parse(url: str) -> Location:
    """Read ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``sqlite://:memory:``. Raises `ConfigError`."""
    parts, shown = split(url), hidden(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full").upper()
    if options:
        raise ConfigError(f"{shown!r}: unknown option {unknown(options, url)}; SQLite knows only synchronous")
    if synchronous not in ("FULL", "NORMAL"):
        raise ConfigError(f"{shown!r}: synchronous must be full or normal")
    if parts.netloc == MEMORY and parts.path in ("", "/"):
        return Location(url, MEMORY, synchronous)
    path = unquote(parts.path[1:])
    if parts.netloc or not path or "\0" in path:
        raise ConfigError(
            f"cannot use the broker URL {shown!r}: a file is named by sqlite:///relative.db or sqlite:////absolute.db"
        )
    return Location(url, str(Path(path).absolute()), synchronous)


def file_system(path: str, mounts: str) -> str:
    """Return the type of the file system that a path is on, given the text of ``/proc/self/mountinfo``."""
    best, found = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # a later mount on the same point hides the earlier one
            best, found = mount, right.split(" ")[0]
    return found


def _check_place(path: Path) -> None:
    """Raise `ConfigError` where no store can be: better said here than by SQLite in the middle of something."""
    if not os.path.isdir(path.parent):  # noqa: PTH112 - unlike Path.is_dir it is silent where we may not look
        raise ConfigError(f"cannot open {path}: there is no directory {path.parent}")
    # SQLite keeps its log beside the file, so the directory must be writable too.
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        read_only = _is_read_only(path.parent) or _is_read_only(path)
        reason = "the file system is read-only" if read_only else "no permission to write there"
        raise ConfigError(f"cannot open {path}: {reason}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"cannot open {path}: it is not a file")
    try:
        mounts = MOUNTS.read_text(errors="replace")
    except OSError:
        return
    kind = file_system(str(path.parent.resolve()), mounts)
    if kind.removeprefix("fuse.") in NETWORK_FILE_SYSTEMS:
        raise ConfigError(
            f"cannot use {path}: it is on a network file system ({kind}), where SQLite's locks do not hold; "
            "use a local disk, or Redis"
        )


def _is_read_only(path: Path) -> bool:
    """Whether it is mounted so, which keeps root from writing, too."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except (OSError, AttributeError):  # not every system has it
        return False


def connect(location: Location) -> sqlite3.Connection:
    """Open the file and make it a store if it is new. Raises our errors, and `sqlite3.Error` when it is locked."""
    if sqlite3.sqlite_version_info < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ConfigError(f"this Python has SQLite {sqlite3.sqlite_version}; Spool needs {needed} or newer")
    if not location.memory:
        _check_place(Path(location.path))
    db = sqlite3.connect(location.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256)
    # A damaged tally is the trouble of one job, which is told so; by default it would keep all others from being read.
    db.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
    try:
        if not _is_store(db, location):
            _create(db, location)
        elif not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'note_gone'").fetchone():
            _complete(db)
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(f"PRAGMA journal_size_limit = {LOG}")
        db.execute("PRAGMA cache_size = -8000")
    except BaseException:
        db.close()
        raise
    return db


def _is_store(db: sqlite3.Connection, location: Location) -> bool:
    """Return whether the file is a store already. Raises `StoreCorrupt` when it is something else."""
    # One statement, so that another process cannot create the store between two looks at it.
    application, layout, tables = db.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application == APPLICATION:
        if layout > LAYOUT:
            raise StoreCorrupt(f"{location.path} has layout {layout}; this release knows up to {LAYOUT}")
        return True
    if application or layout or tables:
        raise StoreCorrupt(f"{location.path} is a SQLite database, but not one of Spool's")
    return False


def _create(db: sqlite3.Connection, location: Location) -> None:
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal" and not location.memory:
        raise ConfigError(f"cannot use {location.path}: SQLite can keep no write-ahead log there")
    db.execute("BEGIN IMMEDIATE")
    if not _is_store(db, location):  # another process may have been faster
        for statement in SCHEMA:
            db.execute(statement)
    db.execute("COMMIT")


def _complete(db: sqlite3.Connection) -> None:
    """Add the tables which files of this layout had not at first."""
    db.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA:
        if "IF NOT EXISTS" in statement:
            db.execute(statement)
    db.execute("COMMIT")


def busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds a lock, so that it is worth trying again."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def full(error: sqlite3.Error) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL or getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMSIZE"


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def explain(error: sqlite3.Error, location: Location) -> BrokerError:
    """Return what an error of SQLite means to a caller."""
    path, code = location.path, _code(error)
    if busy(error):
        return BrokerUnavailable(f"{path} stayed locked by another process")
    if full(error):
        return BrokerFull(f"no room left for {path}")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreCorrupt(f"{path} is damaged or not a SQLite database: {error}")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return BrokerRefused(f"{path} cannot be written: {error}")
    return BrokerUnavailable(f"{path}: {error}")
