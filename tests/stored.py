"""A store for tests that look at, or change, what lies in it, past every broker."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import redis

from tests.server.front import Front


class Store:
    """Records and endings as bytes. ``url`` is for apps: the store's own, or that of a server in front of it."""

    def __init__(self, direct: str, front: Front | None = None) -> None:
        self.direct = direct
        self.url = front.url if front is not None else direct

    def record(self, queue: str, id: str) -> bytes:
        return self._read(queue, id, "record")

    def ending(self, queue: str, id: str) -> bytes:
        return self._read(queue, id, "ending")

    def put_record(self, queue: str, id: str, body: bytes) -> None:
        self._write(queue, id, "record", body)

    def put_ending(self, queue: str, id: str, body: bytes) -> None:
        self._write(queue, id, "ending", body)

    def everything(self) -> bytes:
        """Return all bytes of the store."""
        if self.direct.startswith("redis"):
            with redis.Redis.from_url(self.direct) as client:
                return b"".join(_values(client, key) for key in client.scan_iter(count=1000))
        path = self._path
        return b"".join(each.read_bytes() for each in (path, path.with_name(path.name + "-wal")) if each.exists())

    @property
    def _path(self) -> Path:
        return Path(self.direct.removeprefix("sqlite:///"))

    def _read(self, queue: str, id: str, what: str) -> bytes:
        if self.direct.startswith("redis"):
            with redis.Redis.from_url(self.direct) as client:
                return client.hget(_hash(client, queue, id, what), id)
        with closing(sqlite3.connect(self._path)) as db:
            return bytes(db.execute(f"SELECT body FROM {_ROWS[what]}", (queue, id)).fetchone()[0])

    def _write(self, queue: str, id: str, what: str, body: bytes) -> None:
        if self.direct.startswith("redis"):
            with redis.Redis.from_url(self.direct) as client:
                client.hset(_hash(client, queue, id, what), id, body)
            return
        with closing(sqlite3.connect(self._path)) as db, db:
            assert db.execute(f"UPDATE {_UPDATED[what]}", (body, queue, id)).rowcount == 1


_QUEUE = "queue = (SELECT id FROM queue WHERE name = ?) AND id = ?"
_ROWS = {
    "record": f"record WHERE key = (SELECT record FROM job WHERE {_QUEUE})",
    "ending": f"ending WHERE {_QUEUE}",
}
_UPDATED = {what: rows.replace(" WHERE", " SET body = ? WHERE", 1) for what, rows in _ROWS.items()}


def _hash(client: redis.Redis, queue: str, id: str, what: str) -> str:
    if what == "record":
        return f"spool:{{{queue}}}:jobs"
    return next(key for key in client.scan_iter(f"spool:{{{queue}}}:ends:*") if client.hexists(key, id))


def _values(client: redis.Redis, key: bytes) -> bytes:
    match client.type(key):
        case b"hash":
            return b"\n".join([part for pair in client.hgetall(key).items() for part in pair])
        case b"stream":
            return repr(client.xrange(key)).encode()
        case b"zset":
            return b"\n".join(client.zrange(key, 0, -1))
        case b"set":
            return b"\n".join(client.smembers(key))
        case b"list":
            return b"\n".join(client.lrange(key, 0, -1))
        case b"string":
            return client.get(key)
        case kind:
            raise AssertionError(f"{key} is a {kind}")


def elements(body: bytes) -> list[Any]:
    """Return what a record or ending consists of, each part encoded."""
    return msgspec.msgpack.decode(body, type=list[msgspec.Raw])


def joined(parts: list[Any]) -> bytes:
    return msgspec.msgpack.encode(parts)
