"""Two sides in one run, in turns: another installed version of Spool, or another broker, against this one.

The sides take turns as A B, B A, A B, and so on, each run in processes of its own that are started alike. Runs of a
pair are neighbours in time, and so have the same weather; and since the order within pairs alternates, neither what a
first run leaves behind nor a machine that steadily becomes slower favours a side.

Pairs come first that do not count: they warm caches up, compile what was just installed, and find how many jobs it
takes for a run of either side to last. Then come as many pairs as asked for. If these leave the headline open, or a
limit, as many follow again, up to a bound. Who looks more often is wrong more often: so of the one percent by which the
interval may miss, each look gets its share (Bonferroni), and all looks together are right with 99 % confidence.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from spool.bench.calibrate import UNCALIBRATED
from spool.bench.compare import CONFIDENCE, Change, Comparison, check_installed, compare
from spool.bench.limit import Limit
from spool.bench.plan import Plan
from spool.bench.result import BenchResult
from spool.errors import BenchError, ConfigError

SECONDS: Final = 1.0
"""How long the drain of a run takes by default, on the side where it takes less."""
LOOKS: Final = 3
"""By default there are so many times the pairs asked for at most."""
_FIRST_JOBS: Final = 200
_MOST_JOBS: Final = 500_000
_WARM_UPS: Final = 4
_LONG_ENOUGH: Final = 0.8
_TAIL_LINES: Final = 15
_STOP_SECONDS: Final = 30.0

Name = Literal["base", "this"]
OnRun = Callable[[Name, int], None]
"""Told whose run begins, and of which pair, from 1; 0 is one that does not count."""


class Side(msgspec.Struct, frozen=True):
    """What is measured: the Spool of an environment, or this one, on a broker. See `side`."""

    name: Name
    python: str
    env: str | None = None
    """Path of the virtual environment; None: this one."""
    url: str | None = None


def side(name: Name, env: str | None = None, url: str | None = None) -> Side:
    """Return a side of the comparison. Raises `ConfigError` for an environment without a Python."""
    if env is None:
        return Side(name, sys.executable, None, url)
    python = Path(env).absolute() / "bin" / "python"  # not resolved: it is the link that makes the environment
    if not os.access(python, os.X_OK):
        raise ConfigError(f"{env} is no virtual environment: there is no {python}")
    return Side(name, str(python), env, url)


class AbResult(msgspec.Struct, frozen=True, kw_only=True):
    """The document that ``spool bench ab --json`` writes."""

    schema: Literal[1] = 1
    kind: Literal["spool-bench-ab"] = "spool-bench-ab"
    sides: tuple[Side, Side]
    pairs: int
    headline: Change
    """Of the drain, or with a rate the latency to the start; more pairs were run until it could be told."""
    comparison: Comparison
    base: BenchResult
    """The base's runs, in their order."""
    this: BenchResult


def interleave(
    base: Side,
    this: Side,
    options: Sequence[str] = (),
    *,
    jobs: int | None = None,
    seconds: float = SECONDS,
    pairs: int = 10,
    most: int | None = None,
    limits: Sequence[Limit] = (),
    on_run: OnRun = lambda _, __: None,
) -> AbResult:
    """Run both sides in turns, ``pairs`` times, and compare; again and again while the headline or a limit is open.

    There are ``most`` pairs at most, by default three times ``pairs``. ``options`` are those of ``spool bench custom``,
    but for its jobs: without ``jobs`` there are as many as the faster side drains in about ``seconds``.

    Raises `ConfigError` without SciPy, before anything runs, and `BenchError` if a run fails: it names the side, and
    its note has the end of what that said.
    """
    check_installed()
    sides = base, this
    most = max(pairs, LOOKS * pairs if most is None else most)
    confidence = 1 - (1 - CONFIDENCE) / math.ceil(most / pairs)

    def measure(index: int, pair: int, count: int) -> BenchResult:
        on_run(sides[index].name, pair)
        return _measure(sides[index], options, count)

    def warm_up(count: int) -> list[BenchResult]:
        return [measure(index, 0, count) for index in (0, 1)]

    if jobs is None:
        count = jobs_for(seconds, warm_up)
    else:
        warm_up(count := jobs)
    found: tuple[list[BenchResult], list[BenchResult]] = [], []
    while True:
        for pair in range(len(found[0]) + 1, min(len(found[0]) + pairs, most) + 1):
            for index in (0, 1) if pair % 2 else (1, 0):
                found[index].append(measure(index, pair, count))
        result = _judge(sides, *found, confidence)
        if len(found[0]) >= most or not is_open(result, limits):
            return result


def is_open(result: AbResult, limits: Sequence[Limit]) -> bool:
    """Whether the headline, or one of the limits, cannot be told yet."""
    verdicts = [result.headline.verdict, *(each.judge(result.comparison) for each in limits)]
    return "cannot tell" in verdicts


def _judge(
    sides: tuple[Side, Side], base: Sequence[BenchResult], this: Sequence[BenchResult], confidence: float
) -> AbResult:
    before, after = _joined(base), _joined(this)
    comparison = compare(before, after, paired=True, confidence=confidence)
    name = headline(before.config)
    change = next((each for each in comparison.changes if each.metric == name), Change(name, "", None, None))
    return AbResult(sides=sides, pairs=len(base), headline=change, comparison=comparison, base=before, this=after)


def headline(plan: Plan) -> str:
    """Return the metric that the verdict is about: an open loop carries what it is given, only later."""
    return "start p50" if plan.rate else "drain"


def _joined(documents: Sequence[BenchResult]) -> BenchResult:
    median = sorted(documents, key=lambda each: each.result.drain_per_s or 0.0)[len(documents) // 2]
    return msgspec.structs.replace(
        documents[0],
        result=median.result,
        series=median.series,
        spread=median.spread,
        runs=[each.result for each in documents],
        calibrations=[],  # an older Spool takes them all the same
    )


def jobs_for(seconds: float, warm_up: Callable[[int], Sequence[BenchResult]]) -> int:
    """Return how many jobs take either side so long, by as few runs as it takes to know.

    A short run is mostly start and end, which says little of how many jobs a longer one has time for.
    """
    count = _FIRST_JOBS
    for _ in range(_WARM_UPS):
        warm = warm_up(count)
        taken = [each.result.enqueue_seconds if each.config.rate else each.result.drain_seconds for each in warm]
        rates = [rate for each in warm if (rate := each.config.rate or each.result.drain_per_s)]
        enough = count >= _MOST_JOBS or min(taken) >= _LONG_ENOUGH * seconds
        if rates:
            wanted = min(_MOST_JOBS, max(100.0, max(rates) * seconds))
            count = int(float(f"{wanted:.1e}"))  # two digits, so that it looks like a choice
        if enough:
            break
    return count


# One run


def _measure(side: Side, options: Sequence[str], jobs: int) -> BenchResult:
    command = [side.python, "-m", "spool", "bench", "custom", "--jobs", str(jobs), *options]
    if side.url is not None:
        command += ["--url", side.url]
    with tempfile.TemporaryDirectory(prefix="spool-ab-") as directory:
        file = Path(directory) / "result.json"  # not stdout, where a user's task may print
        code, err = _run([*command, "--json", str(file)], _environment(side))
        written = file.read_bytes() if file.exists() else b""
    try:
        document = msgspec.json.decode(written, type=BenchResult)
    except (msgspec.MsgspecError, ConfigError) as error:
        raise _failed(side, command, code, err or f"what it wrote is no result: {error}") from error
    if code:
        run = document.result
        what = f"{run.failed} failed, {run.lost} lost, {run.unfinished} unfinished, {run.duplicated} run twice"
        raise _failed(side, command, code, f"{err}\nof {run.jobs} jobs {what}")
    return document


def _environment(side: Side) -> dict[str, str]:
    """Return the environment of a side: another one must find its own Spool, and nothing of ours before it."""
    common = dict(os.environ) | {UNCALIBRATED: "1"}  # a quarter of a run, and pairs need none
    if side.env is None:
        return common
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP", "PYTHONSAFEPATH")
    # Else a directory called spool, where the command is given, would be taken for the one that is installed.
    return {name: value for name, value in common.items() if name not in ours} | {"PYTHONSAFEPATH": "1"}


def _run(command: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command and return its exit code and its stderr. If we are to end, it ends in order as well."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        process_group=0,  # so that a Ctrl-C reaches it through us, and once: it has a store to remove
    )
    with process:
        try:
            _, err = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return process.returncode, err.decode(errors="replace")


def _failed(side: Side, command: Sequence[str], code: int, said: str) -> BenchError:
    lines = said.strip().splitlines() or ["it said nothing"]
    where = f" ({side.env})" if side.env else ""
    error = BenchError(f"the {side.name} side{where} failed with exit code {code}: {lines[-1]}")
    error.add_note("\n".join([f"$ {shlex.join(command)}", *lines[-_TAIL_LINES:]]))
    return error
