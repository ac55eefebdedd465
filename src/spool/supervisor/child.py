"""What a worker process runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from typing import TYPE_CHECKING

import msgspec

from spool.app import Spool
from spool.broker import connect
from spool.errors import ConfigError, SpoolError
from spool.log import configure
from spool.nursery import Frames, load_app, read_frame, send_frame
from spool.supervisor.options import WorkerOptions
from spool.worker import Worker

if TYPE_CHECKING:
    from asyncio import new_event_loop as _new_loop
else:
    try:
        from uvloop import new_event_loop as _new_loop
    except ImportError:  # not on every platform
        from asyncio import new_event_loop as _new_loop


def work(sock: socket.socket) -> int:
    """Be a worker process, told what to do through this socket."""
    options = msgspec.convert(read_frame(sock), WorkerOptions)
    configure(options.log_level, options.log_format)
    # A Ctrl-C reaches the whole group: what it means is the supervisor's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    app = load_app(options.app)
    # A batch of jobs is a thousand objects and more, all of which are gone when it is: looking for cycles among them
    # every 700 of them, the default, finds nothing and takes some 5 % of a busy worker's time.
    gc.set_threshold(10_000, 20, 50)
    with app.using(connect(options.url)) if options.url else contextlib.nullcontext():
        try:
            if app.broker.url.startswith("sqlite://:memory:"):
                raise ConfigError(
                    "sqlite://:memory: is a store of one process, which no client of a worker process can reach; "
                    "use a file (sqlite:///jobs.db) or Redis"
                )
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(_work(app, options, sock))
        except SpoolError as error:
            _tell(sock, ["fatal", type(error).__name__, str(error)])
            return 1
    return 0


async def _work(app: Spool, options: WorkerOptions, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    worker = Worker(
        app,
        options.queues,
        concurrency=options.concurrency,
        pool_size=_pool_size(options),
        lease=options.lease,
        grace=options.grace,
        unroutable_after=options.unroutable_after,
        name=options.name,
        target=options.app,
        url=options.url,
        on_life=lambda incarnation: _tell(sock, ["life", incarnation, worker.queues]),
    )
    frames = Frames()
    asked = False

    def ask_to_stop() -> None:
        # From a service manager, which may send it to every process: the supervisor's word comes as well, and only
        # that may mean "at once".
        nonlocal asked
        if not asked:
            asked = True
            worker.stop()

    def listen() -> None:
        try:
            data = sock.recv(4096)
        except OSError:
            data = b""
        if not data:  # the supervisor is gone
            loop.remove_reader(sock.fileno())
            ask_to_stop()
            worker.stop()
        for message in frames.feed(data):
            ask_to_stop()
            if message == ["stop", True]:
                worker.stop()

    loop.add_signal_handler(signal.SIGTERM, ask_to_stop)
    loop.add_reader(sock.fileno(), listen)
    await worker.run()


def _pool_size(options: WorkerOptions) -> int:
    if options.pool_size is not None:
        return options.pool_size
    return max(1, (os.cpu_count() or 1) // options.processes)


def _tell(sock: socket.socket, message: object) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more, and that comes to our ears elsewhere
        send_frame(sock, message)
