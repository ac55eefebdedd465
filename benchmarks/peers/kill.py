"""The kill test: 20 jobs of 2 s on 4 slots; in the middle the whole worker is killed, and a new one started at once.

Workers are started, killed and started again one peer after the other, so that no start waits for the processor. What
comes then takes its time, but no processor: that time runs for all at once.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import msgspec
import redis

from benchmarks.peers import tally
from benchmarks.peers.measure import Described
from benchmarks.peers.peer import HELD_SECONDS
from benchmarks.peers.processes import Bench, Failed, Worker, bench, until
from tests.redis_server import RedisServer

JOBS = 20
_SECOND_WAVE = 8
_LAST_RESULTS = 1.0
_RESTART_SECONDS = 5.0
_START_SECONDS = 60.0


class Killed(msgspec.Struct, frozen=True):
    interrupted: int
    """Jobs that ran when the worker was killed."""
    done: int
    """Jobs that ended within the bound, and their results are stored."""
    rerun: float | None
    """Seconds from the kill until all of those that ran had begun again; None: not within the bound."""
    all_done: float | None
    """Seconds from the kill until all were done."""
    twice: int
    """Jobs that ran to their end more than once."""

    @property
    def missing(self) -> int:
        return JOBS - self.done


def kill_all(peers: dict[str, Described], wait: float) -> dict[str, Killed | str]:
    """Kill the workers of all peers, each on a Redis server of its own, and see what becomes of their jobs."""
    turn = threading.Lock()
    with ExitStack() as stack, ThreadPoolExecutor(len(peers) or 1) as pool:
        # From this thread, the main one: the servers die with the thread that started them.
        servers = {name: stack.enter_context(RedisServer()) for name in peers}
        runs = {name: pool.submit(_kill, each, servers[name].url, wait, turn) for name, each in peers.items()}
        return {name: run.result() for name, run in runs.items()}


def _kill(peer: Described, url: str, wait: float, turn: threading.Lock) -> Killed | str:
    try:
        with ExitStack() as stack:
            here = stack.enter_context(bench(peer.module, url))
            tally.create(here.place, JOBS)
            with turn:
                producer = stack.enter_context(here.producer())
                producer.ask("one", first=0, count=JOBS, held=True)
                killed = _interrupt(peer, here)
                running = _began(here) - _ended(here)
                second = stack.enter_context(here.worker(peer.killed.command, peer.killed.slots))
                _wait(lambda: len(_after(here, killed)) > 0, second, _RESTART_SECONDS)
            _wait(lambda: len(_ended(here)) == JOBS, second, wait - (time.monotonic_ns() - killed) / 1e9)
            time.sleep(_LAST_RESULTS)
            return _judged(here, producer.ask("results"), running, killed)
    except (Failed, redis.RedisError, OSError) as error:
        return str(error)


def _interrupt(peer: Described, here: Bench) -> int:
    """Start a worker, kill it in the middle of its second jobs, and return when that was."""
    with here.worker(peer.killed.command, peer.killed.slots) as first:
        until(lambda: len(_began(here)) >= _SECOND_WAVE, _START_SECONDS, "the second wave", first, pause=0.02)
        time.sleep(HELD_SECONDS / 2)
        first.kill()
        return time.monotonic_ns()


def _judged(here: Bench, results: int, running: set[int], killed: int) -> Killed:
    notes = tally.read_held(here.place)
    after = _after(here, killed)
    again = {number: at for what, number, at in reversed(after) if what == "begin" and number in running}
    ends = [number for what, number, _ in notes if what == "end"]
    done = min(len(set(ends)), results)
    last = max((at for what, _, at in after if what == "end"), default=killed)
    return Killed(
        interrupted=len(running),
        done=done,
        rerun=_seconds(max(again.values(), default=killed) - killed) if len(again) == len(running) else None,
        all_done=_seconds(last - killed) if done == JOBS else None,
        twice=len(ends) - len(set(ends)),
    )


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e9, 1)


def _wait(condition: Callable[[], bool], worker: Worker, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        worker.check()
        time.sleep(0.05)


def _after(here: Bench, killed: int) -> list[tuple[str, int, int]]:
    return [note for note in tally.read_held(here.place) if note[2] > killed]


def _began(here: Bench) -> set[int]:
    return {number for what, number, _ in tally.read_held(here.place) if what == "begin"}


def _ended(here: Bench) -> set[int]:
    return {number for what, number, _ in tally.read_held(here.place) if what == "end"}
