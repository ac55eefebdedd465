"""Where processes come from: a single-threaded process that has the app imported and forks children from itself.

A worker has threads and an event loop, so it must not fork; and children that were forked after the import share its
memory. So a nursery is a fresh interpreter that imports the app once and then does nothing but fork, reap and report.
Where forking is unsafe (not Linux, or the app's import started threads) it starts a fresh interpreter for each child
instead.

A child gets one end of a socket pair from whoever asked for it, and reads its first frame there: what it is to do.

No child outlives its parent. The end of the nursery's control socket means that its parent is gone: it sends SIGTERM to
its children, SIGKILL `ORPHANED` seconds later, and ends; during the import it ends at once. If the nursery itself is
killed, the kernel kills its children (Linux); elsewhere they see the end of their own sockets.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final, NoReturn

import msgspec

from spool.app import Spool
from spool.broker import connect
from spool.errors import ConfigError, TaskUnknown
from spool.lineage import adopt_orphans, die_with, end_with, outlive
from spool.task import Task

ORPHANED: Final = 0.4
"""Seconds that children get to end in order when their parent is gone."""

Entry = Callable[[socket.socket], int]
"""What a child runs: takes its socket, returns its exit code."""

_HEADER: Final = struct.Struct("!I")
_encode = msgspec.msgpack.Encoder().encode


def load_app(target: str) -> Spool:
    """Import the app that ``module:attribute`` names. Raises `ConfigError` that says what is wrong with it.

    >>> load_app("os:path")
    Traceback (most recent call last):
    spool.errors.ConfigError: os:path is no Spool app but a module
    """
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise ConfigError(f"an app is named as module:attribute, not {target!r}")
    found: Any = load_module(module, target)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"module {module!r} has no attribute {attribute!r}")
        found = getattr(found, name)
    if not isinstance(found, Spool):
        raise ConfigError(f"{target} is no Spool app but a {type(found).__name__}")
    return found


def load_task(target: str) -> tuple[Spool | None, Task[..., Any]]:
    """Return the task that ``module:task`` or ``module:app:task`` names, and its app if that can be told.

    Raises `ConfigError` or `TaskUnknown` if there is none, and what the module raises.
    """
    module, _, rest = target.partition(":")
    app_name, colon, name = rest.rpartition(":")
    if not module or not name:
        raise ConfigError(f"a task is named as module:task or module:app:task, not {target!r}")
    if colon:
        app = load_app(f"{module}:{app_name}")
        if name not in app.tasks:
            raise TaskUnknown(f"{module}:{app_name} has no task {name!r}; it has {', '.join(app.tasks) or 'none'}")
        return app, app.tasks[name]
    names = vars(load_module(module, target))
    if not isinstance(names.get(name), Task):
        what = f"no task {name!r} but a {type(names[name]).__name__}" if name in names else f"no attribute {name!r}"
        raise ConfigError(f"module {module!r} has {what}; name one as module:task or module:app:task")
    task: Task[..., Any] = names[name]
    apps = [each for each in names.values() if isinstance(each, Spool) and task in each.tasks.values()]
    return (apps[0] if apps else None), task


def load_module(module: str, target: str) -> ModuleType:
    """Import a module that a target names. Raises `ConfigError` if there is none, and what the module raises."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise ConfigError(f"there is no module {error.name!r} (looked for {target} from {os.getcwd()})") from None  # noqa: PTH109


def describe_exit(code: int) -> str:
    """Say how a process ended, from its exit code (negative: the signal that killed it).

    >>> describe_exit(3), describe_exit(-9)
    ('exit code 3', 'SIGKILL')
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# Frames: a length and a body. Both ends of every socket here speak them.


def pack_frame(message: object) -> bytes:
    """Return a message as a frame."""
    body = _encode(message)
    return _HEADER.pack(len(body)) + body


def send_frame(to: socket.socket, message: object, *fds: int) -> None:
    """Send a message, and file descriptors with it. Blocks while the socket is full."""
    frame = pack_frame(message)
    if fds:
        # They come with the first byte, which the other side reads together with the header.
        socket.send_fds(to, [frame[: _HEADER.size]], fds)
        frame = frame[_HEADER.size :]
    to.sendall(frame)


def read_frame(of: socket.socket) -> Any:
    """Read one message; blocks. Raises `EOFError` when the other end is closed."""
    return msgspec.msgpack.decode(_read_exactly(of, _HEADER.unpack(_read_exactly(of, _HEADER.size))[0]))


def _read_exactly(of: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = of.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


class Frames:
    """Takes bytes as they come and gives the messages that are complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        self._bytes += data
        while len(self._bytes) >= _HEADER.size:
            end = _HEADER.size + _HEADER.unpack_from(self._bytes)[0]
            if len(self._bytes) < end:
                return
            message = msgspec.msgpack.decode(bytes(self._bytes[_HEADER.size : end]))
            del self._bytes[:end]
            yield message


# The parent's side


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The nursery has the app imported. ``forks``: whether its children will share memory.

    ``url``: where its broker is, password and all; empty for an app that was given a broker.
    """

    forks: bool
    url: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The app cannot be imported, or its broker not be made. The nursery has ended."""

    reason: str
    """What cannot be done, and why."""
    traceback: str


class Started(msgspec.Struct, frozen=True, tag=True):
    """A child runs."""

    number: int
    pid: int


class Exited(msgspec.Struct, frozen=True, tag=True):
    """A child has ended; ``code`` is its exit code, negative for the signal that killed it."""

    number: int
    code: int


class Gone(msgspec.Struct, frozen=True, tag=True):
    """The nursery itself has died, and its children with it."""


Event = Ready | Failed | Started | Exited | Gone


class Nursery:
    """A nursery process, as its parent sees it. Not for several threads at a time.

    ``entry`` (``module:function``, an `Entry`) is what children run; ``app`` is imported first, and what the broker at
    ``url`` (else the app's own) needs. Wait until `fileno` is readable, then `read` the events. Starting does not wait
    for the import: children asked for come when they can. ``lifeline`` is a descriptor that the nursery and its
    children keep open, so that whoever has its other end sees when the last of them is gone.
    """

    def __init__(self, entry: str, app: str, url: str | None = None, *, lifeline: int | None = None) -> None:
        self._control, theirs = socket.socketpair()
        self._frames = Frames()
        self._number = 0
        self._serves = False
        with theirs:
            command = [sys.executable, "-c", _BOOT, str(theirs.fileno())]
            fds = [theirs.fileno()] if lifeline is None else [theirs.fileno(), lifeline]
            self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
        # sys.path, since the app may have come from a place that a fresh interpreter does not look at.
        send_frame(self._control, [sys.path, entry, app, url])

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._control.fileno()

    def start(self, argument: object) -> tuple[int, socket.socket]:
        """Ask for a child; return its number and our end of its socket, where ``argument`` is its first message."""
        self._number += 1
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):  # a dead nursery is told by `read`
            send_frame(ours, argument)
            send_frame(self._control, ["start", self._number], theirs.fileno())
        return self._number, ours

    def signal(self, number: int, signum: int) -> None:
        """Send a signal to a child, unless it has ended: the nursery knows, so no stranger with its pid is hit."""
        with contextlib.suppress(OSError):
            send_frame(self._control, ["signal", number, signum])

    def read(self) -> list[Event]:
        """Return what happened since; blocks if `fileno` is not readable."""
        try:
            data = self._control.recv(65536)
        except OSError:
            data = b""
        if not data:
            return [Gone()]
        events = [msgspec.convert(message, Event) for message in self._frames.feed(data)]
        self._serves = self._serves or any(isinstance(event, Ready) for event in events)
        return events

    def close(self) -> None:
        """End the nursery, and with it the children that are left; waits for it."""
        self._control.close()
        try:
            self._process.wait(ORPHANED + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kill it and its children, now."""
        try:
            if self._serves:
                # It knows them all. Were it killed, one that is only just forked might not have heard of its parent's
                # death yet, and if it is stopped, never would.
                send_frame(self._control, _KILL)
                self._process.wait(1.0)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self._process.kill()
        self.close()


# The nursery's side

_BOOT: Final = "import sys; from spool.nursery import main; main(int(sys.argv[1]))"
_BOOT_CHILD: Final = "import sys; from spool.nursery import main_of_child; main_of_child(*sys.argv[1:])"


def main(fd: int) -> NoReturn:
    """Be a nursery, controlled through this socket."""
    control = socket.socket(fileno=fd)
    end_with(control)
    # A Ctrl-C or a service manager signals the whole group: what that means is the parent's business.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    path, entry, app, url = read_frame(control)
    sys.path[:] = path
    failed = f"{app} cannot be imported: "
    try:
        run = _resolve(entry)
        loaded = load_app(app)
        failed = ""  # from here on it is a URL or keys that are no use, and not the app
        # Brokers connect only when they are used: this finds a URL that is no use, and imports what children need.
        _ = connect(url) if url else loaded.broker
        where = url or loaded.location
    except BaseException as error:  # noqa: BLE001 - the import of an app may raise anything; the parent is told
        reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        send_frame(control, msgspec.to_builtins(Failed(failed + reason, traceback.format_exc())))
        os._exit(1)
    forks = _may_fork()
    outlive(control)
    adopt_orphans()
    # What is there now is shared with the children; the collector must not touch it, for that would copy it.
    gc.collect()
    gc.freeze()
    nest = _Nest(control, entry, app, run if forks else None)
    try:
        nest.tell(Ready(forks, where if isinstance(where, str) else ""))
        nest.serve()
    except (EOFError, OSError):
        nest.clear()
    except _Killed:
        nest.clear(grace=0.0)
    os._exit(0)


def main_of_child(fd: str, parent: str, entry: str, app: str) -> NoReturn:
    """Be a child in a fresh interpreter."""
    die_with(int(parent))
    sys.path[:] = msgspec.json.decode(os.environ.pop("SPOOL_CHILD_PATH"))
    load_app(app)
    leave(_resolve(entry)(socket.socket(fileno=int(fd))))


def leave(code: int) -> NoReturn:
    """End a child with what is to be done at its exit, but without waiting for its threads."""
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - os._exit would not run them
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:  # whatever a signal handler of its own raises: it must not go on as its parent's twin
        os._exit(code)


def _resolve(entry: str) -> Entry:
    module, _, name = entry.partition(":")
    found: Entry = getattr(importlib.import_module(module), name)
    return found


def _may_fork() -> bool:
    if sys.platform != "linux":  # system libraries elsewhere do not bear it
        return False
    return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208


_KILL: Final = ["kill"]


class _Killed(Exception):
    """The parent wants no end in order."""


class _Nest:
    """The children of a nursery."""

    def __init__(self, control: socket.socket, entry: str, app: str, run: Entry | None) -> None:
        self._control = control
        self._command = [sys.executable, "-c", _BOOT_CHILD]
        self._names = [str(os.getpid()), entry, app]
        self._run = run
        self._numbers: dict[int, int] = {}
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        self._signals = wake
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def tell(self, event: Event) -> None:
        send_frame(self._control, msgspec.to_builtins(event))

    def serve(self) -> None:
        """Do as told until the parent is gone: raises `EOFError` or `OSError` then."""
        while True:
            readable, _, _ = select.select([self._control.fileno(), self._wake], [], [])
            if self._wake in readable:
                for event in self._reap():
                    self.tell(event)
            if self._control.fileno() in readable:
                self._obey()

    def clear(self, grace: float = ORPHANED) -> None:
        """End the children: SIGTERM, and SIGKILL after the grace."""
        in_order = [(signal.SIGTERM, grace)] if grace else []
        for signum, wait in (*in_order, (signal.SIGKILL, 5.0)):
            for pid in self._numbers:
                os.kill(pid, signum)
            end = time.monotonic() + wait
            while self._numbers and (left := end - time.monotonic()) > 0:
                select.select([self._wake], [], [], left)
                self._reap()

    def _obey(self) -> None:
        head, fds, _, _ = socket.recv_fds(self._control, _HEADER.size, 1)
        if not head:
            raise EOFError
        head += _read_exactly(self._control, _HEADER.size - len(head))
        match msgspec.msgpack.decode(_read_exactly(self._control, _HEADER.unpack(head)[0])):
            case ["start", int(number)]:
                pid = self._fork(fds[0], self._run) if self._run else self._spawn(fds[0])
                os.close(fds[0])
                self._numbers[pid] = number
                self.tell(Started(number, pid))
            case ["signal", int(number), int(signum)]:
                for pid in [pid for pid, known in self._numbers.items() if known == number]:
                    os.kill(pid, signum)
            case ["kill"]:
                raise _Killed
            case other:
                raise AssertionError(f"a nursery does not know {other!r}")

    def _reap(self) -> list[Exited]:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        exits: list[Exited] = []
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                number = self._numbers.pop(reaped[0], None)
                if number is not None:
                    exits.append(Exited(number, os.waitstatus_to_exitcode(reaped[1])))
        return exits

    def _fork(self, fd: int, run: Entry) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            die_with(parent)
            signal.set_wakeup_fd(-1)
            os.close(self._wake)
            os.close(self._signals)
            self._control.close()
            for each in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_DFL)
            code = run(socket.socket(fileno=fd))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # noqa: BLE001 - nothing above may run in the child
            traceback.print_exc()
        finally:
            leave(code)

    def _spawn(self, fd: int) -> int:
        os.set_inheritable(fd, True)  # noqa: FBT003 - its signature
        environment = os.environ | {"SPOOL_CHILD_PATH": msgspec.json.encode(sys.path).decode()}
        # Ignored signals stay ignored in a new program, so they are given back their defaults.
        defaults = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        return os.posix_spawn(sys.executable, [*self._command, str(fd), *self._names], environment, setsigdef=defaults)
