"""Whether the verdicts of `spool bench ab` and `compare` are true: a build against itself, and against a slower one.

```sh
python -m benchmarks.ab_truth redis://127.0.0.1:6379/15 --tries 10 --log redis.jsonl
python -m benchmarks.ab_truth none --log sqlite.jsonl  # on SQLite
```

The builds are copies of the installed package, in environments of their own. The worker of the slower one waits,
busily, before each attempt: 10 % of the time that a job takes, adjusted until runs in turns show that jobs take 10 %
longer. The pairs of all tries together then say, to a fraction of a percent, how much it was.

A try is four things: `ab` of the build against itself, which is to find no difference; `ab` against the slower one,
which is to be found slower; and `compare` of separate runs, with the slower build and with the same, which may tell
nothing but is not to be wrong. Each makes a line of JSON, printed and added to the log, from which the program goes on
where it was stopped. The machine should do nothing else. Exits with 1 if a verdict was not as often true as promised.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

import spool
from spool.bench import BenchResult
from spool.bench.ab import AbResult, interleave
from spool.bench.compare import Comparison, Verdict, compare, midmean
from spool.bench.sides import side

LOAD = ["--prefill"]
REPEAT = 5
MORE = 0.10
"""How much longer a job of the slower build takes."""
ROUNDS = 3
PAIRS = 4
"""Of a round."""
CLOSE = 0.15
SLOWER = """

def _slowed(attempt, nanoseconds):
    async def slowed(self, run):
        end = monotonic_ns() + nanoseconds
        while monotonic_ns() < end:
            pass
        await attempt(self, run)

    return slowed


Executor.attempt = _slowed(Executor.attempt, {nanoseconds})
"""

Build = Literal["same", "slow"]
What = Literal["ab, itself", "ab, slower", "apart, itself", "apart, slower"]
TRUE: dict[What, Verdict] = {"ab, itself": "no difference", "ab, slower": "slower"}
WRONG: dict[What, set[Verdict]] = {
    "ab, itself": {"faster", "slower"},
    "ab, slower": {"faster", "no difference"},
    "apart, itself": {"faster", "slower"},
    "apart, slower": {"faster", "no difference"},
}


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """What the lines of one log have in common."""

    url: str
    pairs: int
    seconds: float
    jobs: int
    """Of each side in a pair."""
    turns: int
    wait_ns: int
    longer: float
    """By this the wait made jobs longer, in the runs that it was found with."""


class Try(msgspec.Struct, frozen=True, tag="try"):
    what: What
    number: int
    verdict: Verdict
    change: float | None
    low: float | None
    high: float | None
    took: float
    """Seconds, with all runs."""
    others: list[str] = []
    """Metrics other than the drain that are said to differ, though the builds don't."""
    base: list[float] = []
    this: list[float] = []
    """Drain rates, run by run."""


class Apart(msgspec.Struct, frozen=True, tag="run"):
    """One result of a separate run; of the same build there is one before the first try."""

    build: Build
    number: int
    took: float
    document: BenchResult


Line: TypeAlias = Setup | Try | Apart


class Log:
    """What is known so far: lines of a file, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        decode = msgspec.json.Decoder(Line).decode
        text = path.read_bytes() if path and path.exists() else b""
        self.lines: list[Line] = [decode(line) for line in text.splitlines()]

    def add(self, line: Line) -> None:
        self.lines.append(line)
        if self._path:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
        if isinstance(line, Try):
            shown = msgspec.structs.replace(line, base=[], this=[])
            print(msgspec.json.encode(shown).decode(), flush=True)
        elif isinstance(line, Setup):
            print(msgspec.json.encode(line).decode(), flush=True)

    @property
    def setup(self) -> Setup | None:
        return next((line for line in self.lines if isinstance(line, Setup)), None)

    def tries(self, what: What) -> list[Try]:
        return [line for line in self.lines if isinstance(line, Try) and line.what == what]

    def has(self, what: What, number: int) -> bool:
        return any(line.number == number for line in self.tries(what))

    def apart(self, build: Build) -> list[Apart]:
        return [line for line in self.lines if isinstance(line, Apart) and line.build == build]


class Truth:
    """Three environments, and the experiments with them."""

    def __init__(self, directory: Path, log: Log, url: str, pairs: int, seconds: float) -> None:
        self.directory, self.log = directory, log
        self.url, self.pairs, self.seconds = None if url == "none" else url, pairs, seconds
        self.same, self.other, self.slow = (environment(directory / name) for name in ("same", "other", "slow"))
        self.attempts = next(self.slow.glob("lib/python*/site-packages/spool/executor/__init__.py"))
        self.plain = self.attempts.read_text()
        setup = log.setup
        if setup is None:
            setup = self.find_wait(url)
            log.add(setup)
        elif (setup.url, setup.pairs, setup.seconds) != (url, pairs, seconds):
            sys.exit(f"the log is of another experiment: {setup}")
        self.setup = setup
        self.wait(setup.wait_ns)

    def ab(
        self, env: Path, pairs: int, most: int | None = None, jobs: int | None = None, turns: int | None = None
    ) -> AbResult:
        base, this = side("base", str(self.same), self.url), side("this", str(env), self.url)
        return interleave(base, this, LOAD, jobs=jobs, turns=turns, seconds=self.seconds, pairs=pairs, most=most)

    def wait(self, nanoseconds: int) -> None:
        self.attempts.write_text(self.plain + SLOWER.format(nanoseconds=nanoseconds))

    def find_wait(self, url: str) -> Setup:
        """Find the wait that makes jobs take so much longer, and the number of jobs of each run."""
        found = self.ab(self.other, 1, 1)
        turns, jobs = found.turns, found.turns * found.base.config.jobs
        rate = statistics.median(run.drain_per_s or 1.0 for run in (*found.base.runs, *found.this.runs))
        wait = MORE * 1e9 / rate
        waits: list[float] = []
        longer: list[float] = []
        while len(waits) < ROUNDS:
            self.wait(round(wait))
            waits.append(wait)
            longer.append(longer_by(*rates(self.ab(self.slow, PAIRS, PAIRS, jobs, turns)), turns)[0])
            print(f"a wait of {wait:.0f} ns before each attempt makes jobs {longer[-1]:.1%} longer", flush=True)
            # All rounds together, since a single one may be off by percents: a line through 0.
            slope = sum(w * share for w, share in zip(waits, longer, strict=True)) / sum(w * w for w in waits)
            before, wait = wait, min(2 * wait, max(wait / 2, MORE / max(slope, 1e-9)))
            if len(waits) > 1 and abs(wait / before - 1) < CLOSE:
                break
        return Setup(url, self.pairs, self.seconds, jobs, turns, round(wait), round(wait * slope, 4))

    def tries(self, number: int, *, apart: bool) -> list[Callable[[], None]]:
        """Return what there is left to do with a number."""
        found = [
            partial(self.try_ab, what, env, number)
            for what, env in (("ab, itself", self.other), ("ab, slower", self.slow))
            if not self.log.has(what, number)
        ]
        return [*found, partial(self.try_apart, number)] if apart else [*found]

    def try_ab(self, what: What, env: Path, number: int) -> None:
        began = time.monotonic()
        found = self.ab(env, self.pairs, jobs=self.setup.jobs, turns=self.setup.turns)
        self.log.add(judged(what, number, began, found.comparison, rates(found)))

    def try_apart(self, number: int) -> None:
        """Compare separate runs: of the same build with the one before it, and with one of the slower build."""
        if not self.log.apart("same"):
            self.measure("same", 0)
        before = self.log.apart("same")[-1]
        for what, build in (("apart, slower", "slow"), ("apart, itself", "same")):
            if not self.log.has(what, number):
                began = time.monotonic()
                after = self.measure(build, number)
                self.log.add(judged(what, number, began, compare(before.document, after.document)))

    def measure(self, build: Build, number: int) -> Apart:
        """Run one build alone, as `spool bench custom --repeat 5 --json FILE` does."""
        began, file = time.monotonic(), self.directory / "result.json"
        python = (self.same if build == "same" else self.slow) / "bin" / "python"
        command = [str(python), "-P", "-m", "spool", "bench", "custom", *LOAD, "--jobs", str(self.setup.jobs)]
        command += ["--repeat", str(REPEAT), "--json", str(file), *(["--url", self.url] if self.url else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        document = msgspec.json.decode(file.read_bytes(), type=BenchResult)
        found = Apart(build, number, round(time.monotonic() - began, 1), document)
        self.log.add(found)
        return found


def environment(path: Path) -> Path:
    """Make an environment with a copy of the installed package, and with all else that is installed here."""
    venv.EnvBuilder(symlinks=True).create(path)
    (packages,) = path.glob("lib/python*/site-packages")
    shutil.copytree(Path(spool.__file__).parent, packages / "spool", ignore=shutil.ignore_patterns("__pycache__"))
    here = sysconfig.get_paths()["purelib"]
    (packages / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return path


def rates(found: AbResult) -> tuple[list[float], list[float]]:
    base, this = ([run.drain_per_s or 0.0 for run in each.runs] for each in (found.base, found.this))
    return base, this


def judged(
    what: What,
    number: int,
    began: float,
    comparison: Comparison,
    drained: tuple[list[float], list[float]] = ([], []),
) -> Try:
    drain = next(each for each in comparison.changes if each.metric == "drain")
    others = [
        f"{each.metric} {each.verdict}"
        for each in comparison.changes
        if what.endswith("itself") and each.metric != "drain" and each.verdict in ("faster", "slower")
    ]
    took = round(time.monotonic() - began, 1)
    interval = drain.verdict, drain.change, drain.low, drain.high
    return Try(what, number, *interval, took, others, *drained)


def changes(base: list[float], this: list[float]) -> list[float]:
    """Return by how much jobs of this side take longer, run by run, as logarithms."""
    return [math.log(b / a) for b, a in zip(base, this, strict=True)]


def by_pair(changes: list[float], turns: int) -> list[float]:
    return [midmean(changes[begin : begin + turns]) for begin in range(0, len(changes), turns)]


def longer_by(base: list[float], this: list[float], turns: int) -> tuple[float, float]:
    """Return by how much jobs of this side take longer, by the median of the pairs, and its standard error."""
    logs = by_pair(changes(base, this), turns)
    spread = statistics.stdev(logs) if len(logs) > 1 else math.inf
    return math.expm1(statistics.median(logs)), 1.25 * spread / len(logs) ** 0.5


def spreads(found: list[Try], turns: int) -> str:
    """Return the standard deviations of runs, turns and pairs, each within the tries."""
    runs = [[math.log(rate) for rate in side] for each in found for side in (each.base, each.this)]
    ratios = [changes(each.base, each.this) for each in found]
    kinds = {"run": runs, f"turn, of which {turns} are a pair": ratios, "pair": [by_pair(r, turns) for r in ratios]}
    shares = {kind: statistics.mean(map(statistics.variance, tries)) ** 0.5 for kind, tries in kinds.items()}
    return ", ".join(f"{share:.1%} of a {kind}" for kind, share in shares.items())


def report(log: Log, setup: Setup) -> bool:
    """Print what came out, and return whether it is as promised."""
    good = True
    for what in ("ab, itself", "ab, slower", "apart, itself", "apart, slower"):
        found = log.tries(what)
        if not found and what not in TRUE:
            continue
        counts = Counter(each.verdict for each in found)
        right = counts[TRUE[what]] >= 0.9 * len(found) if what in TRUE else not any(counts[v] for v in WRONG[what])
        good = good and right and bool(found)
        pairs = f", {sum(len(each.base) for each in found) // setup.turns} pairs" if what in TRUE else ""
        others = Counter(other for each in found for other in each.others)
        took = sum(each.took for each in found)
        print(f"{what}: {dict(counts)}, {took:.0f} s{pairs}" + (f", and wrongly {dict(others)}" if others else ""))
    slower = log.tries("ab, slower")
    if not slower:
        return False
    base, this = [rate for each in slower for rate in each.base], [rate for each in slower for rate in each.this]
    longer, error = longer_by(base, this, setup.turns)
    print(f"standard deviation: {spreads(log.tries('ab, itself') + slower, setup.turns)}")
    print(f"jobs of the slower build took {longer:.1%} longer, give or take {2 * error:.1%}; wait {setup.wait_ns} ns")
    same, slow = log.apart("same"), log.apart("slow")
    for what, couples in (
        ("apart, itself", itertools.combinations(same, 2)),
        ("apart, slower", itertools.product(same, slow)),
    ):
        verdicts = Counter(drain_of(compare(one.document, other.document)) for one, other in couples)
        print(f"{what}, each with each: {dict(verdicts)}")
    return good and 0.08 < longer < 0.12


def drain_of(comparison: Comparison) -> Verdict:
    return next(each.verdict for each in comparison.changes if each.metric == "drain")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a Redis, or none")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each side in a pair")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no try that would end later, and stop")
    parser.add_argument("--no-apart", action="store_true", help="leave the separate runs out")
    parser.add_argument("--log", type=Path, help="where to note each try, and to go on from")
    arguments = parser.parse_args()
    began, log = time.monotonic(), Log(arguments.log)
    known = len(log.lines)
    with tempfile.TemporaryDirectory(prefix="spool-truth-") as directory:
        truth = Truth(Path(directory), log, arguments.url, arguments.pairs, arguments.seconds)
        for number in range(1, arguments.tries + 1):
            for attempt in truth.tries(number, apart=not arguments.no_apart):
                longest = max((line.took for line in log.lines if isinstance(line, Try)), default=0.0)
                # The longest so far, since to leave out the long ones were to leave out those that cannot tell.
                if time.monotonic() - began + longest > 60 * arguments.minutes:
                    break
                attempt()
    before = sum(line.took for line in log.lines[:known] if isinstance(line, Try))
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes, and tries of earlier calls {before / 60:.1f}")
    setup = log.setup
    return int(setup is None or not report(log, setup))


if __name__ == "__main__":
    sys.exit(main())
