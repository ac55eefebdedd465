"""The audit: a pure function from what was seen to what became of every job, and to whether each promise was kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Final

import msgspec

from spool.chaos import times
from spool.chaos.history import Attempt, Call, Evidence, History
from spool.chaos.times import Times
from spool.job import State

EXAMPLES: Final = 5


class Verdict(msgspec.Struct, frozen=True):
    """Whether a promise was kept. ``examples`` are some of the ``broken`` cases, in words."""

    promise: str
    broken: int
    examples: list[str] = []

    @property
    def ok(self) -> bool:
        return not self.broken


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the jobs, by their ids."""

    enqueued: int
    """Ids for which enqueue was called."""
    acknowledged: int
    completed: int
    cancelled: int
    dead: int
    waiting: int
    lost: int
    """Acknowledged and gone, with nothing to explain it."""
    forgotten: int
    """Acknowledged and gone, since the store itself forgot: its rollback was seen, or its promise ends there."""
    damaged: int
    """Records that the harness overwrote, wherever these jobs ended."""
    recovered: int
    """Not acknowledged, and there."""
    vanished: int
    """Not acknowledged, and not there."""
    refused: int
    """Enqueues that were refused, and left nothing."""
    reruns: dict[str, int]
    """Attempts beyond the first of a job, by how the one before ended."""
    completed_again: int
    """Run to the end, and once more after the store had forgotten it."""
    completed_twice: int
    """Outcomes accepted beyond one per job."""


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an audit."""

    counts: Counts
    verdicts: list[Verdict]
    times: Times

    @property
    def ok(self) -> bool:
        return all(verdict.ok for verdict in self.verdicts)


def audit(evidence: Evidence) -> Audit:
    """Audit a run."""
    history = History(evidence)
    measured = times.measure(history)
    verdicts = [_verdict(promise, find(history)) for promise, find in _PROMISES]
    verdicts += [_verdict(promise, found) for promise, found in measured.late.items()]
    return Audit(counts=count(history), verdicts=verdicts, times=measured)


def _verdict(promise: str, found: Iterable[str]) -> Verdict:
    cases = list(found)
    return Verdict(promise, len(cases), cases[:EXAMPLES])


# What became of the jobs


def count(history: History) -> Counts:
    """Count the jobs by what became of them."""
    calls, jobs = history.calls.values(), history.jobs
    acknowledged = [call for call in calls if call.acknowledged]
    others = [call for call in calls if not call.acknowledged]
    states = Counter(jobs[call.id].state for call in acknowledged if call.id in jobs)
    gone = [call for call in acknowledged if call.id not in jobs]
    lost = sum(is_lost(history, call) for call in gone)
    ended = states[State.DONE] + states[State.CANCELLED] + states[State.DEAD]
    return Counts(
        enqueued=len(history.calls),
        acknowledged=len(acknowledged),
        completed=states[State.DONE],
        cancelled=states[State.CANCELLED],
        dead=states[State.DEAD],
        waiting=states.total() - ended,
        lost=lost,
        forgotten=sum(call.id not in history.damaged for call in gone) - lost,
        damaged=len(history.damaged),
        recovered=sum(call.id in jobs for call in others),
        vanished=sum(call.id not in jobs and not call.only_refused for call in others),
        refused=sum(call.id not in jobs and call.only_refused for call in others),
        reruns=dict(sorted(Counter(reason for _, reason in reruns(history)).items())),
        completed_again=sum(_completed_again(history, attempts) for attempts in history.attempts.values()),
        completed_twice=sum(max(0, done - known) for _, done, known in _done(history)),
    )


def is_lost(history: History, call: Call) -> bool:
    """Whether an acknowledged job is gone, and neither the store's forgetting nor a damaged record explains it."""
    if call.id in history.jobs or call.id in history.damaged:
        return False
    acknowledged = max(each.at for each in call.answers)
    return not any(event.at <= acknowledged and event.until >= min(call.asked) for event in history.forgets)


def reruns(history: History) -> Iterator[tuple[Attempt, str]]:
    """Yield each attempt beyond a job's first, and the reason for it: how the store says that the one before ended."""
    for id, attempts in history.attempts.items():
        found = history.jobs.get(id)
        outcomes = found.outcomes if found else {}
        for before, attempt in pairwise(attempts):
            if attempt.number > before.number and before.number in outcomes:
                reason = _REASONS.get(outcomes[before.number], outcomes[before.number])
            elif _is_stale(history, before, attempt):
                reason = "stale"
            elif history.forgot(before.started, attempt.started) or (found is None and history.forgot_ever(attempts)):
                reason = "rollback"
            else:
                reason = "damaged" if id in history.damaged else "unexplained"
            yield attempt, reason


_REASONS: Final = {"lost": "lost lease", "died": "replayed"}


def _is_stale(history: History, before: Attempt, attempt: Attempt) -> bool:
    """Whether an attempt began after its lease was lost and the next one, ``before``, had begun: frozen until then."""
    found = history.jobs.get(attempt.id)
    return found is not None and attempt.number < before.number and found.outcomes.get(attempt.number) == "lost"


def _completed_again(history: History, attempts: list[Attempt]) -> bool:
    ends = [attempt for attempt in attempts if attempt.how == "ok"]
    return any(history.forgot(one.ended or 0, other.started) for one, other in pairwise(ends))


def _done(history: History) -> Iterator[tuple[str, int, int]]:
    """Yield per queue how many outcomes "done" the store has accepted, and how many jobs are done."""
    for queue, stats in history.evidence.survey.stats.items():
        known = sum(job.queue == queue and job.state is State.DONE for job in history.jobs.values())
        yield queue, stats.totals.get("done", 0), known


# What was promised: each finds the cases in which it was broken


def _lost(history: History) -> Iterator[str]:
    for call in history.calls.values():
        if call.acknowledged and is_lost(history, call):
            yield f"{call.id} ({call.task}) was acknowledged and is gone; {_story(history, call.id)}"


def _refused_but_there(history: History) -> Iterator[str]:
    for call in history.calls.values():
        if call.only_refused and call.id in history.jobs:
            yield f"{call.id} ({call.task}) was refused ({call.answers[0].error}) and is {history.jobs[call.id].state}"


def _conflicts(history: History) -> Iterator[str]:
    for call in history.calls.values():
        for each in call.answers:
            if each.answer == "conflict":
                yield f"{call.id}: {each.error}"


def _strangers(history: History) -> Iterator[str]:
    for id, job in history.jobs.items():
        if id not in history.calls:
            yield f"{id} ({job.task}) is {job.state}, and nobody enqueued it"


def _uneven(history: History) -> Iterator[str]:
    for queue, stats in history.evidence.survey.stats.items():
        listed = history.evidence.survey.listed[queue]
        counted = {
            State.READY: sum(stats.ready),
            State.SCHEDULED: stats.scheduled,
            State.PARKED: sum(stats.parked.values()),
            State.SUSPECT: stats.suspect,
            State.RUNNING: stats.running,
            State.DEAD: stats.dead,
        }
        for state, number in counted.items():
            if listed.get(state, 0) != number:
                yield f"{queue}: stats say {number} {state}, and {listed.get(state, 0)} are listed"
        totals = Counter(stats.totals)
        there = sum(counted.values()) + totals["done"] + totals["cancelled"] + totals["deleted"] + totals["pruned"]
        if totals["enqueued"] != there + totals["repairs"]:
            yield f"{queue}: {totals['enqueued']} were enqueued, and {there} are accounted for ({dict(totals)})"


def _done_twice(history: History) -> Iterator[str]:
    for queue, done, known in _done(history):
        if done != known:
            yield f"{queue}: {done} outcomes were accepted as done, of {known} jobs"


def _done_without_end(history: History) -> Iterator[str]:
    for id, job in history.jobs.items():
        if job.state is State.DONE and not any(each.how == "ok" for each in history.attempts.get(id, ())):
            yield f"{id} is done, and no handler came to its end; {_story(history, id)}"


def _stale_accepted(history: History) -> Iterator[str]:
    for id, attempts in history.attempts.items():
        job = history.jobs.get(id)
        if job is None or job.state is not State.DONE or job.accepted is None or history.forgot_ever(attempts):
            continue
        latest = max(attempt.number for attempt in attempts)
        if job.accepted != latest:
            what = f"the outcome of attempt {job.accepted} was accepted after {latest} had started"
            yield f"{id}: {what}; {_story(history, id)}"


def _repeated(history: History) -> Iterator[str]:
    for id, attempts in history.attempts.items():
        for before, attempt in pairwise(attempts):
            if attempt.number > before.number or _is_stale(history, before, attempt) or id in history.damaged:
                continue
            if not history.forgot(before.started, attempt.started):
                yield f"{id}: attempt {attempt.number} began after {before.number}; {_story(history, id)}"


def _unexplained(history: History) -> Iterator[str]:
    for attempt, reason in reruns(history):
        if reason == "unexplained":
            yield f"{attempt.id}: nothing tells why attempt {attempt.number} was made; {_story(history, attempt.id)}"


def _overlaps(history: History) -> Iterator[str]:
    for id, attempts in history.attempts.items():
        found = history.jobs.get(id)
        for before, attempt in pairwise(attempts) if id not in history.damaged else ():
            end = before.ended if before.ended is not None else history.death(before)
            # One whose process ended by itself ran until then, of which the last line is the only sign.
            end = history.seen[before.pid] if end is None else end
            if attempt.started >= end or history.forgot(before.started, attempt.started):
                continue
            if found is None or found.outcomes.get(before.number) != "lost":
                over = (end - attempt.started) / 1e6
                what = f"attempts {before.number} and {attempt.number} overlap by {over:.1f} ms"
                yield f"{id}: {what}; {_story(history, id)}"


def _condemned(history: History) -> Iterator[str]:
    """Innocent jobs that are dead: only what fails, what takes its process down and what we damaged may die."""
    for id, job in history.jobs.items():
        if job.state is not State.DEAD or job.task in _MAY_DIE or id in history.poisons or id in history.damaged:
            continue
        attempts = history.attempts.get(id, [])
        if job.error == "WorkerCrashed" and attempts and history.harm(attempts[-1]):
            continue  # the harness killed its process as often as jobs may lose theirs
        yield f"{id} ({job.task}) is dead: {job.error}; {_story(history, id)}"


_MAY_DIE: Final = frozenset({"doomed"})


def _survivors(history: History) -> Iterator[str]:
    """Poison jobs that did not end dead, and those that should end well and did not."""
    for id, fault in history.poisons.items():
        job = history.jobs.get(id)
        if job is None or id in history.damaged:
            continue
        if fault == "block-loop":
            if job.state is not State.DONE:
                yield f"{id} blocks its loop and is {job.state}; {_story(history, id)}"
        elif job.state is not State.DEAD:
            yield f"{id} ({job.task}) is {job.state}; {_story(history, id)}"


def _blocked_twice(history: History) -> Iterator[str]:
    for id, fault in history.poisons.items():
        attempts = history.attempts.get(id, [])
        for before in attempts[:-1] if fault == "block-loop" else ():
            around = history.disturbances(before.started - history.lease, attempts[-1].started)
            if not [event for event in around if event.kind not in ("poison", "damage")]:
                yield f"{id} blocked its loop and was run again; {_story(history, id)}"


def _outlived(history: History) -> Iterator[str]:
    limit = history.lease + TIMEOUT_GRACE
    for id, fault in history.poisons.items():
        for attempt in history.attempts.get(id, ()) if fault == "stubborn" else ():
            if attempt.ended is not None and attempt.ended - attempt.started > limit and not history.harm(attempt):
                lived = (attempt.ended - attempt.started) / 1e9
                yield f"{id} ({attempt.task}) ran for {lived:.1f} s with a timeout of {history.plan.lease:g} s"


TIMEOUT_GRACE: Final = 15_000_000_000
"""Nanoseconds beyond its timeout that an attempt may take to be ended: its grace, and a loop that others block."""


def _miscounted(history: History) -> Iterator[str]:
    """Failures that no handler had: a shutdown, a lost lease and an outage spend none."""
    for id, job in history.jobs.items():
        if job.state is State.DONE or id in history.damaged or id in history.poisons:
            continue  # what is done tells no counts
        failed = sum(each.how == "failed" or each.ended is None for each in history.attempts.get(id, ()))
        if job.failures > failed:
            yield f"{id} ({job.task}) has {job.failures} failures, and its handler failed {failed} times"


def _left(history: History) -> Iterator[str]:
    for event in history.of("exit"):
        if not event.wanted:
            yield f"worker {event.worker}: exit code {event.code}; {event.note or 'nobody had told it to stop'}"


def _orphans(history: History) -> Iterator[str]:
    for event in history.of("gone"):
        took = (event.until - event.at) / 1e9
        stopped = history.disturbances(event.at - 1, event.until)
        if event.wanted and took <= ORPHANED:
            continue
        if not any(each.kind == "stop" for each in stopped):
            yield f"worker {event.worker} was gone, and its processes {event.note} were there for {took:.1f} s more"


ORPHANED: Final = 2.0
"""Seconds in which the processes of a dead supervisor have to end; a second is promised, and the machine is busy."""


def _stuck(history: History) -> Iterator[str]:
    if history.evidence.quiet is not None:
        return
    for id, job in history.jobs.items():
        if not job.state.terminal:
            yield f"{id} ({job.task}) is still {job.state}; {_story(history, id)}"


def _not_fresh(history: History) -> Iterator[str]:
    if history.evidence.fresh is None:
        yield "jobs that were enqueued when all was healed were not done in time"


def _broken_file(history: History) -> Iterator[str]:
    if history.evidence.store_check != "ok":
        yield history.evidence.store_check


def _broken_store(history: History) -> Iterator[str]:
    for event in history.forgets:
        if event.wanted and not history.plan.forgetful and event.fault != "flushall":
            yield f"{event.fault}: Redis with appendfsync always forgot what it had acknowledged"


def _damaged(history: History) -> Iterator[str]:
    repairs = sum(stats.totals.get("repairs", 0) for stats in history.evidence.survey.stats.values())
    gone = [id for id in history.damaged if id not in history.jobs and id in history.calls]
    excused = [id for id in gone if history.forgot(0, 2**63)]
    if len(gone) - len(excused) > repairs:
        yield f"{len(gone)} jobs with overwritten records are gone ({', '.join(gone[:3])}), and {repairs} were repaired"


_PROMISES: Final[tuple[tuple[str, Callable[[History], Iterator[str]]], ...]] = (
    ("no acknowledged job is lost", _lost),
    ("a refused enqueue leaves nothing behind", _refused_but_there),
    ("the same call under the same id is the same job", _conflicts),
    ("there is no job that nobody enqueued", _strangers),
    ("what is counted is what is there", _uneven),
    ("no job is completed twice", _done_twice),
    ("what is done was run to its end", _done_without_end),
    ("a worker that lost its lease changes nothing", _stale_accepted),
    ("attempts are numbered upwards", _repeated),
    ("every further attempt has a reason", _unexplained),
    ("attempts overlap only when the lease was lost", _overlaps),
    ("only what fails or kills its process is dead", _condemned),
    ("what always fails or kills its process is dead", _survivors),
    ("a job that blocks its loop is run once", _blocked_twice),
    ("a timeout ends the job", _outlived),
    ("only failures are counted as failures", _miscounted),
    ("damaged records are dead or repaired", _damaged),
    ("supervisors stay until told to stop", _left),
    ("no process outlives its supervisor", _orphans),
    ("nothing is stuck", _stuck),
    ("the fleet serves fresh jobs by itself", _not_fresh),
    ("the store keeps its own promise", _broken_store),
    ("the file is sound", _broken_file),
)


def _story(history: History, id: str) -> str:
    """Tell what is known of a job, in a line."""
    start = history.events[0].at if history.events else 0
    parts: list[str] = []
    for each in history.attempts.get(id, ()):
        end = f"{(each.ended - start) / 1e9:.2f} {each.how}" if each.ended is not None else "no end"
        parts.append(f"#{each.number} {each.worker}/{each.pid} {(each.started - start) / 1e9:.2f}–{end}")
    job = history.jobs.get(id)
    said = f"store: {job.state}, {job.outcomes}" if job else "store: unknown"
    return f"attempts {'; '.join(parts) or 'none'}; {said}"
