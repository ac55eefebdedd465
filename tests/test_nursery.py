import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spool import ConfigError
from spool.chaos.processes import look
from spool.nursery import (
    Exited,
    Failed,
    Frames,
    Gone,
    Nursery,
    Ready,
    Started,
    describe_exit,
    load_app,
    pack_frame,
    read_frame,
    send_frame,
)
from spool.supervisor.children import is_gone
from tests import shop
from tests.eventually import eventually


def child(sock: socket.socket) -> int:
    """What the children of these tests do: as they are told."""
    match read_frame(sock):
        case "echo":
            send_frame(sock, [os.getpid(), os.getppid(), threading.active_count(), "tests.shop" in sys.modules])
            return read_frame(sock)
        case "exit":
            raise SystemExit(5)
        case "raise":
            raise ValueError("as told")
        case "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            send_frame(sock, "deaf")
            time.sleep(60)
        case "newborn":
            ctypes.CDLL(None).prctl(1, 0)  # it has not asked for word of its parent's death yet
            send_frame(sock, "stopping")
            signal.raise_signal(signal.SIGSTOP)
        case "trip":
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            sys.stdout = SimpleNamespace(flush=lambda: signal.raise_signal(signal.SIGTERM))  # its last step
            return 3
    return 0


class Parent:
    def __init__(self, app: str = "tests.shop:app", **settings: Any) -> None:
        self.nursery = Nursery("tests.test_nursery:child", app, **settings)
        self.events: list[Any] = []

    def wait_for(self, wanted: Callable[[Any], bool]) -> Any:
        end = time.monotonic() + 20
        while not (found := [event for event in self.events if wanted(event)]):
            assert time.monotonic() < end, self.events
            if select.select([self.nursery], [], [], 0.1)[0]:
                self.events += self.nursery.read()
        return found[0]

    def start(self, order: Any) -> tuple[int, socket.socket, int]:
        number, sock = self.nursery.start(order)
        sock.settimeout(10)
        started = self.wait_for(lambda event: isinstance(event, Started) and event.number == number)
        return number, sock, started.pid

    def exit_of(self, number: int) -> int:
        return self.wait_for(lambda event: isinstance(event, Exited) and event.number == number).code


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    yield parent
    parent.nursery.close()


def test_children_are_forked_with_the_app_imported(parent):
    number, sock, pid = parent.start("echo")
    assert parent.events[0] == Ready(forks=True, url="sqlite:///spool.db")
    assert read_frame(sock) == [pid, parent.nursery.pid, 1, True]
    send_frame(sock, 3)
    assert parent.exit_of(number) == 3
    with pytest.raises(EOFError):
        read_frame(sock)
    sock.close()


def test_how_a_child_ended_is_told(parent):
    for order, code in (("exit", 5), ("raise", 70)):
        number, sock, _ = parent.start(order)
        assert parent.exit_of(number) == code
        sock.close()
    number, sock, _ = parent.start("echo")
    parent.nursery.signal(number, signal.SIGKILL)
    assert parent.exit_of(number) == -signal.SIGKILL
    parent.nursery.signal(number, signal.SIGKILL)  # nobody is hit
    sock.close()


def test_a_signal_at_the_very_end_does_not_make_a_child_go_on_as_the_nursery(parent):
    number, sock, _ = parent.start("trip")
    assert parent.exit_of(number) == 3
    sock.close()


def test_one_that_was_stopped_as_it_was_forked_is_killed_as_well():
    parent = Parent()
    _, sock, pid = parent.start("newborn")
    assert read_frame(sock) == "stopping"
    eventually(lambda: "\nState:\tT" in Path(f"/proc/{pid}/status").read_text())
    parent.nursery.kill()
    assert not Path(f"/proc/{pid}").exists()
    sock.close()


def test_a_child_has_default_signals_and_the_nursery_none(parent):
    number, sock, _ = parent.start("echo")
    read_frame(sock)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(parent.nursery.pid, signum)
    parent.nursery.signal(number, signal.SIGTERM)
    assert parent.exit_of(number) == -signal.SIGTERM
    sock.close()


def test_an_app_that_starts_threads_gets_fresh_interpreters():
    parent = Parent("tests.threaded_shop:app")
    number, sock, pid = parent.start("echo")
    assert parent.events[0] == Ready(forks=False, url="sqlite:///spool.db")
    assert read_frame(sock) == [pid, parent.nursery.pid, 2, True]
    send_frame(sock, 0)
    assert parent.exit_of(number) == 0
    sock.close()
    parent.nursery.close()


def test_a_parent_that_dies_during_the_import_takes_the_nursery_with_it(tmp_path):
    (tmp_path / "slow_app.py").write_text("import time, pathlib\npathlib.Path('began').touch()\ntime.sleep(60)\n")
    code = "import time; from spool.nursery import Nursery; it = Nursery('os:abort', 'slow_app:app'); it.start(0)"
    command = [sys.executable, "-c", f"{code}; print(it.pid, flush=True); time.sleep(60)"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            nursery = look(int(parent.stdout.readline()))
            eventually((tmp_path / "began").exists)
        finally:
            parent.kill()
    assert nursery is not None
    eventually(lambda: is_gone(nursery.pid, nursery.born))


@pytest.mark.parametrize(
    ("app", "url", "reason"),
    [
        ("tests.broken_shop:app", None, "cannot be imported: RuntimeError: the configuration is missing"),
        ("tests.no_shop:app", None, "cannot be imported: there is no module 'tests.no_shop'"),
        ("tests.shop:nothing", None, "cannot be imported: module 'tests.shop' has no attribute 'nothing'"),
        ("tests.shop:add", None, "cannot be imported: tests.shop:add is no Spool app but a Task"),
        ("tests.shop:app", "ftp://x", "cannot use the broker URL 'ftp://…': it must begin with sqlite://"),
    ],
)
def test_an_app_that_cannot_be_used_is_told(app, url, reason):
    parent = Parent(app, url=url)
    failed = parent.wait_for(lambda event: isinstance(event, Failed))
    assert failed.reason.startswith(reason if url else f"{app} {reason}")
    parent.wait_for(lambda event: event == Gone())
    _, sock = parent.nursery.start("echo")  # and asking it does no harm
    sock.close()
    parent.nursery.close()


def test_keys_that_are_no_use_are_told(monkeypatch):
    monkeypatch.setenv("SPOOL_SIGNING_KEYS", "no-key")
    parent = Parent("tests.shop:app")
    failed = parent.wait_for(lambda event: isinstance(event, Failed))
    assert failed.reason.startswith("SPOOL_SIGNING_KEYS: entry 1 is not of the form")
    parent.nursery.close()


def test_the_end_of_the_parent_ends_children_that_ignore_sigterm(parent):
    _, deaf, deaf_pid = parent.start("ignore")
    assert read_frame(deaf) == "deaf"
    _, sock, pid = parent.start("echo")
    began = time.monotonic()
    parent.nursery.close()
    assert time.monotonic() - began < 2
    for each in (pid, deaf_pid):
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)
    for each in (sock, deaf):
        each.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of it")
@pytest.mark.parametrize("app", ["tests.shop:app", "tests.threaded_shop:app"])
def test_the_end_of_the_nursery_ends_its_children(app):
    parent = Parent(app)
    _, sock, pid = parent.start("ignore")
    assert read_frame(sock) == "deaf"
    os.kill(parent.nursery.pid, signal.SIGKILL)
    parent.wait_for(lambda event: event == Gone())
    eventually(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())
    sock.close()
    parent.nursery.close()


def test_frames_come_together_from_pieces():
    stream = b"".join(pack_frame(message) for message in ("a", ["b" * 300], {"c": 1}))
    for size in (1, 3, 7, 1000):
        frames = Frames()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [message for piece in pieces for message in frames.feed(piece)] == ["a", ["b" * 300], {"c": 1}]


def test_an_app_is_found_by_its_name():
    assert load_app("tests.shop:app") is shop.app
    for wrong in ("tests.shop", ":app", "tests.shop:", "tests.shop:app.nothing"):
        with pytest.raises(ConfigError):
            load_app(wrong)


def test_a_missing_import_inside_of_the_app_is_not_taken_for_a_missing_app(tmp_path, monkeypatch):
    (tmp_path / "half_shop.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        load_app("half_shop:app")


def test_exits_are_described():
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "SIGKILL"
    assert describe_exit(-250) == "signal 250"
