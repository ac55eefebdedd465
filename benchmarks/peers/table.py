"""The table of a run, in Markdown: one row for each peer, medians with the least and the most."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.peers.kill import JOBS, Killed
from benchmarks.peers.measure import Described, Run

_SPEED = (
    "peer",
    "drain, jobs/s",
    "× Spool",
    "enqueue: one by one /s",
    "in bulk /s",
    "at {rate:.0f}/s, enqueue to start: p50 / p95 / p99 / max ms",
    "memory idle / end MB",
    "CPU per job: worker / Redis µs",
    "Redis commands per job",
)
_SETTINGS = ("peer", "version", "Python", "drained with", "jobs", "delivery")
_KILL = (
    "peer",
    "setting",
    "done of {jobs} within {wait:.0f} s",
    "running ones ran again after",
    "all done after",
    "ended twice",
)
_LATE = 0.1
"""Seconds that the producer may be behind its rate without a word."""


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return the median, and where there are several values the least and the most.

    >>> spread([1234.4, 1200, 1300])
    '1,234 (1,200–1,300)'
    >>> spread([0.123], 2)
    '0.12'
    """
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def speed(
    peers: Mapping[str, Described], runs: Mapping[str, Sequence[Run]], failures: Mapping[str, str], rate: float
) -> str:
    """Return the table of what was measured, the fastest first; a failure is told in its row."""
    ours = _median(runs.get("spool", ()), lambda run: run.drain.rate)
    order = sorted(peers, key=lambda name: -(_median(runs.get(name, ()), lambda run: run.drain.rate) or 0))
    rows = [_speed_row(name, peers[name], runs.get(name, ()), failures.get(name), ours) for name in order]
    return _table([name.format(rate=rate) for name in _SPEED], rows)


def _speed_row(name: str, peer: Described, runs: Sequence[Run], failure: str | None, ours: float | None) -> list[str]:
    if not runs:
        return [name, failure or "not run"]
    median = _median(runs, lambda run: run.drain.rate) or 0.0
    drained = spread([run.drain.rate for run in runs])
    short = [run for run in runs if run.drain.stored < run.drain.jobs or not run.drain.readable]
    if short:
        drained += f"; only {min(run.drain.stored for run in short):,} results of {short[0].drain.jobs:,}"
    if failure:
        drained += f"; {failure}"
    memory = [
        _number(runs, lambda run: run.latency.memory if run.latency else None),
        _number(runs, lambda run: run.drain.memory),
    ]
    cpu = [_number(runs, lambda run: run.drain.worker_us, 1), _number(runs, lambda run: run.drain.redis_us, 1)]
    return [
        name,
        drained,
        f"{median / ours:.2f}" if ours else "–",
        spread([run.one for run in runs]),
        _bulk(peer, runs),
        _latency(runs),
        " / ".join(memory),
        " / ".join(cpu),
        _number(runs, lambda run: run.drain.commands, 1),
    ]


def _bulk(peer: Described, runs: Sequence[Run]) -> str:
    if peer.bulk == "none":
        return "no such call"
    return spread([run.many for run in runs]) + (" (50 calls gathered)" if peer.bulk == "gathered" else "")


def _latency(runs: Sequence[Run]) -> str:
    took = [run.latency for run in runs if run.latency is not None]
    if not took:
        return next((run.trouble for run in runs if run.trouble), "cannot keep up")
    parts = [
        [each.p50 for each in took],
        [each.p95 for each in took],
        [each.p99 for each in took],
        [each.max for each in took],
    ]
    text = " / ".join(f"{statistics.median(values):.{2 if values[0] < 10 else 0}f}" for values in parts)
    late = statistics.median(each.late for each in took)
    return text if late < _LATE else f"{text} (enqueueing fell {late:.1f} s behind)"


def settings(peers: Mapping[str, Described], jobs: Mapping[str, int]) -> str:
    rows = [
        [name, each.version, each.python, each.worker.setting, f"{jobs[name]:,}", each.guarantee]
        for name, each in peers.items()
    ]
    return _table(_SETTINGS, rows)


def kills(peers: Mapping[str, Described], killed: Mapping[str, Killed | str], wait: float) -> str:
    rows = [_kill_row(name, peers[name], each, wait) for name, each in killed.items()]
    return _table([name.format(jobs=JOBS, wait=wait) for name in _KILL], rows)


def _kill_row(name: str, peer: Described, killed: Killed | str, wait: float) -> list[str]:
    if isinstance(killed, str):
        return [name, peer.killed.setting, killed]
    done = f"{killed.done}" if not killed.missing else f"{killed.done}: {killed.missing} missing"
    again, last = (
        f"{seconds:.1f} s" if seconds is not None else f"not within {wait:.0f} s"
        for seconds in (killed.rerun, killed.all_done)
    )
    return [name, peer.killed.setting, done, again, last, str(killed.twice)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a row that is too short is filled up."""
    filled = [[*row, *["–"] * (len(head) - len(row))] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *filled))


def _median(runs: Sequence[Run], of: Callable[[Run], float | None]) -> float | None:
    values = [value for run in runs if (value := of(run)) is not None]
    return statistics.median(values) if values else None


def _number(runs: Sequence[Run], of: Callable[[Run], float | None], digits: int = 0) -> str:
    median = _median(runs, of)
    return "–" if median is None else f"{median:.{digits}f}"
