"""Whether the verdicts of `spool bench ab` and `compare` are true: a build against itself, and against a slower one.

```sh
python -m benchmarks.ab_truth redis://127.0.0.1:6379/15 --tries 10 --pairs 10
python -m benchmarks.ab_truth none  # on SQLite
```

Both builds are copies of the installed package, in environments of their own. The worker of the slower one waits,
busily, before each attempt: 10 % of the time that a job takes, adjusted until runs in turns show that jobs take 10 %
longer.

Three experiments: `ab` of the build against itself, as often as --tries says, which is to find no difference; `ab`
against the slower one, which is to be found slower; and `compare` of separate runs, half of them of the same build and
half with the slower one, which may tell nothing but is not to be wrong. With the defaults it takes about 20 minutes of
a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter
from pathlib import Path

import msgspec

import spool
from spool.bench import BenchResult
from spool.bench.ab import AbResult, Side, interleave, side
from spool.bench.compare import Change, compare

LOAD = ["--prefill"]
MORE = 0.10
"""How much longer a job of the slower build takes."""
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


class Truth:
    """Two environments, and the experiments with them."""

    def __init__(self, directory: Path, url: str | None, pairs: int, seconds: float) -> None:
        self.url, self.pairs, self.seconds, self.directory = url, pairs, seconds, directory
        self.same, self.other, self.slow = (environment(directory / name) for name in ("same", "other", "slow"))
        self.attempts = next(self.slow.glob("lib/python*/site-packages/spool/executor/__init__.py"))
        self.plain = self.attempts.read_text()

    def ab(self, env: Path, pairs: int, most: int | None = None) -> AbResult:
        base, this = self.side("base", self.same), self.side("this", env)
        return interleave(base, this, LOAD, seconds=self.seconds, pairs=pairs, most=most)

    def side(self, name: str, env: Path) -> Side:
        return side("base" if name == "base" else "this", str(env), self.url)

    def slow_down(self) -> None:
        """Find the wait that makes jobs take so much longer."""
        found = self.ab(self.other, 3, 3)
        rate = statistics.median(run.drain_per_s or 1.0 for run in (*found.base.runs, *found.this.runs))
        nanoseconds = MORE * 1e9 / rate
        print(f"{rate:,.0f} jobs/s in runs of {found.base.config.jobs:,} jobs", flush=True)
        for _ in range(3):
            self.attempts.write_text(self.plain + SLOWER.format(nanoseconds=round(nanoseconds)))
            change = self.ab(self.slow, 8, 8).headline.change or 0.0
            print(f"a wait of {nanoseconds / 1000:.2f} µs before each attempt: {change:+.1%}", flush=True)
            longer = 1 / (1 + change) - 1
            if 0.09 < longer < 0.11:
                return
            nanoseconds *= min(2.0, max(0.5, MORE / max(longer, 0.01)))
        self.attempts.write_text(self.plain + SLOWER.format(nanoseconds=round(nanoseconds)))

    def measure(self, env: Path, jobs: int) -> BenchResult:
        """Run one side alone, as `spool bench custom --repeat 5 --json FILE` does."""
        file = self.directory / "result.json"
        command = [str(env / "bin" / "python"), "-P", "-m", "spool", "bench", "custom", *LOAD, "--jobs", str(jobs)]
        command += ["--repeat", "5", "--json", str(file), *(["--url", self.url] if self.url else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return msgspec.json.decode(file.read_bytes(), type=BenchResult)


def environment(path: Path) -> Path:
    """Make an environment with a copy of the installed package, and with all else that is installed here."""
    venv.EnvBuilder(symlinks=True).create(path)
    (packages,) = path.glob("lib/python*/site-packages")
    shutil.copytree(Path(spool.__file__).parent, packages / "spool", ignore=shutil.ignore_patterns("__pycache__"))
    here = sysconfig.get_paths()["purelib"]
    (packages / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return path


def tries(truth: Truth, env: Path, count: int) -> Counter[str]:
    verdicts = Counter[str]()
    for number in range(1, count + 1):
        found = truth.ab(env, truth.pairs)
        show(f"  try {number}, {found.pairs} pairs", found.headline)
        verdicts[found.headline.verdict] += 1
    return verdicts


def separate(truth: Truth, count: int, jobs: int) -> tuple[Counter[str], Counter[str]]:
    """Compare separate runs: each of the same build with the one before it, and with one of the slower build."""
    same, slower = Counter[str](), Counter[str]()
    before = truth.measure(truth.same, jobs)
    for number in range(1, count // 2 + 1):
        slow, after = truth.measure(truth.slow, jobs), truth.measure(truth.same, jobs)
        for what, verdicts, other in (("slower", slower, slow), ("itself", same, after)):
            found = next(each for each in compare(before, other).changes if each.metric == "drain")
            show(f"  {number}, {what}", found)
            verdicts[found.verdict] += 1
        before = after
    return same, slower


def show(what: str, found: Change) -> None:
    print(f"{what}: {found.change:+.1%} ({found.low:+.1%} to {found.high:+.1%}), {found.verdict}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a Redis, or none")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--compares", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="spool-truth-") as directory:
        url = None if arguments.url == "none" else arguments.url
        truth = Truth(Path(directory), url, arguments.pairs, arguments.seconds)
        truth.slow_down()
        print("ab against itself")
        itself = tries(truth, truth.other, arguments.tries)
        print("ab against the slower build")
        slower = tries(truth, truth.slow, arguments.tries)
        print("compare of separate runs")
        jobs = truth.ab(truth.other, 2, 2).base.config.jobs
        apart_same, apart_slower = separate(truth, arguments.compares, jobs)
    wrong = apart_same["faster"] + apart_same["slower"] + apart_slower["faster"] + apart_slower["no difference"]
    print(f"\nab against itself: {dict(itself)}")
    print(f"ab against the slower build: {dict(slower)}")
    print(f"compare with itself: {dict(apart_same)}, with the slower build: {dict(apart_slower)}; wrong: {wrong}")
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    enough = 0.9 * arguments.tries
    return int(itself["no difference"] < enough or slower["slower"] < enough or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
