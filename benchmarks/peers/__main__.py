"""See the package's docstring, or --help."""

import argparse
import contextlib
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import peers
from benchmarks.peers import table
from benchmarks.peers.environment import Unavailable
from benchmarks.peers.kill import Killed, kill_all
from benchmarks.peers.measure import Described, Run, Sizes, Store, describe, run
from benchmarks.peers.processes import Failed
from spool.bench.machine import machine, versions
from tests.redis_server import RedisServer

NAMES = (
    "spool",
    "spool:100",
    "mayu",
    "blitzq",
    "ardiq",
    "huey",
    "arq",
    "saq",
    "dramatiq",
    "taskiq",
    "pydocket",
    "streaq",
    "celery",
    "rq",
)


class Results:
    """What a run found so far."""

    def __init__(self) -> None:
        self.peers: dict[str, Described] = {}
        self.left_out: dict[str, str] = {}
        self.runs: dict[str, list[Run]] = {}
        self.failures: dict[str, str] = {}
        self.killed: dict[str, Killed | str] = {}

    def as_json(self, options: argparse.Namespace, redis: str) -> bytes:
        found: dict[str, Any] = {
            "options": {name: value for name, value in vars(options).items() if name != "json"},
            "machine": machine(),
            "versions": versions() | {"redis-server": redis},
        }
        return msgspec.json.format(msgspec.json.encode(found | vars(self)), indent=2)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=peers.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=f"of {', '.join(NAMES)}")
    add("--rounds", type=int, default=3)
    add("--jobs", type=int, default=200_000, help="to drain, for the fastest; the others in proportion to their speed")
    add("--rate", type=float, default=500.0, help="of the paced load, jobs a second")
    add("--seconds", type=float, default=4.0, help="of paced load")
    add("--kill-wait", type=float, default=120.0, help="seconds that a new worker gets after the kill; 0: no kill test")
    add("--quick", action="store_true", help="one round, a fifth of the jobs, half the load, 30 s after the kill")
    add("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.jobs, options.seconds = 1, options.jobs // 5, options.seconds / 2
        options.kill_wait = min(options.kill_wait, 30.0)
    return options


def main() -> None:
    options = parse()
    results = Results()
    with RedisServer() as server:
        store = Store(server.url)
        meet(results, options.only, store)
        sizes = Sizes(jobs=options.jobs, rate=options.rate, seconds=options.seconds)
        try:
            measure(results, options.rounds, store, sizes)
            if options.kill_wait:
                said(f"killing the workers of all; at most {options.kill_wait:.0f} s after that")
                alone = {name: each for name, each in results.peers.items() if ":" not in name}
                results.killed = kill_all(alone, options.kill_wait)
        except KeyboardInterrupt:
            said("stopped; the tables show what there is")
        if options.json:
            options.json.write_bytes(results.as_json(options, server.version))
        report(results, options, sizes, server.version)


def said(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def meet(results: Results, names: list[str], store: Store) -> None:
    """Ask each peer for what it says of itself; those that can't run here are left out."""
    for name in names:
        try:
            results.peers[name] = describe(name, store)
        except (Unavailable, Failed) as error:
            results.left_out[name] = str(error)
            said(f"{name} is left out: {error}")


def measure(results: Results, rounds: int, store: Store, sizes: Sizes) -> None:
    for turn in range(rounds):
        # Another order in each round, so that nobody always comes after the same one.
        names = list(results.peers)
        random.Random(turn).shuffle(names)  # noqa: S311 - no secret
        for name in names:
            try:
                found = run(results.peers[name], store, sizes)
            except Failed as error:
                results.failures[name] = f"round {turn + 1}: {error}"
                said(f"{turn + 1}/{rounds} {name}: {error}")
                continue
            results.runs.setdefault(name, []).append(found)
            said(f"{turn + 1}/{rounds} {name}: {found.drain.rate:,.0f} jobs/s")


def report(results: Results, options: argparse.Namespace, sizes: Sizes, redis: str) -> None:
    here = machine()
    print(f"{here.cores} cores of {here.processor}, Redis {redis} without persistence, {options.rounds} rounds\n")
    print(table.speed(results.peers, results.runs, results.failures, sizes.rate), end="\n\n")
    print(table.settings(results.peers, {name: sizes.jobs_of(each) for name, each in results.peers.items()}))
    if results.killed:
        print("\n" + table.kills(results.peers, results.killed, options.kill_wait))
    if results.left_out:
        print("\nLeft out: " + "; ".join(f"{name} ({why})" for name, why in results.left_out.items()))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
