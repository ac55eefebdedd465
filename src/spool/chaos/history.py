"""The evidence of a run, put in order: what happened to each job, by whom, and what was done to them meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from spool.chaos.journal import Answer, Answered, Asked, Ended, Ending, Event, Life, Line, Started, Wished, only
from spool.chaos.plan import Plan
from spool.chaos.survey import Survey

SECOND: Final = 1_000_000_000


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that was seen in a run. ``loaded`` is when the load ended, in ns; ``quiet`` and ``fresh`` are in seconds."""

    plan: Plan
    produced: Sequence[Line]
    handled: Sequence[Line]
    events: Sequence[Event]
    survey: Survey
    quiet: float | None
    fresh: float | None
    loaded: int
    store_check: str = "ok"


class Attempt(msgspec.Struct, frozen=True):
    """One entry into a handler. ``ended`` is None when its process ended first."""

    id: str
    number: int
    task: str
    worker: str
    pid: int
    started: int
    ended: int | None = None
    how: Ending | None = None


class Call(msgspec.Struct):
    """What a producer knows of one id."""

    id: str
    queue: str
    task: str
    asked: list[int]
    answers: list[Answered]
    wished: bool = False

    @property
    def acknowledged(self) -> bool:
        return any(each.answer in _YES for each in self.answers)

    @property
    def only_refused(self) -> bool:
        """Whether every call was answered with: nothing was stored."""
        return len(self.answers) == len(self.asked) and all(each.answer == "refused" for each in self.answers)


_YES: Final[tuple[Answer, ...]] = ("acknowledged", "existing")


class History:
    """The evidence, indexed."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.plan = evidence.plan
        self.lease = int(evidence.plan.lease * SECOND)
        self.jobs = evidence.survey.jobs
        self.calls = _calls(evidence.produced)
        self.attempts = _attempts(evidence.handled)
        self.lives = {life.pid: life for life in only(Life, evidence.handled)}
        self.events = sorted(evidence.events, key=lambda event: event.at)
        self.forgets = self.of("forget")
        self.damaged = {id for event in self.of("damage") for id in event.ids}
        self.poisons = {id: event.fault for event in self.of("poison") for id in event.ids}
        self.seen: dict[int, int] = {}
        """By pid, the last sign of life of a process that runs handlers."""
        for line in evidence.handled:
            if isinstance(line, Life | Started | Ended):
                self.seen[line.pid] = max(line.at, self.seen.get(line.pid, 0))
        self._kills: dict[int, list[Event]] = defaultdict(list)
        for event in self.of("kill", "stop"):
            for pid in event.pids:
                self._kills[pid].append(event)

    def of(self, *kinds: str) -> list[Event]:
        """Return the events of these kinds."""
        return [event for event in self.events if event.kind in kinds]

    def forgot(self, since: int, until: int) -> bool:
        """Whether the store lost a state that it had in that time, and so may have told things anew."""
        return any(event.at <= until and event.until >= since for event in self.forgets)

    def forgot_ever(self, attempts: Iterable[Attempt]) -> bool:
        """Whether the store forgot anything after the first of these began."""
        first = min((each.started for each in attempts), default=0)
        return any(event.until >= first for event in self.forgets)

    def harm(self, attempt: Attempt, *kinds: str) -> Event | None:
        """Return what was first done to the process of an attempt, or to one that it depends on, while it ran."""
        life = self.lives.get(attempt.pid)
        until = attempt.ended if attempt.ended is not None else 2**63
        done = [
            event
            for pid in (attempt.pid, *(life.family if life else ()))
            for event in self._kills.get(pid, ())
            # Who dies of a kill is named; an ancestor's death after its own is nothing to it.
            if (event.kind == "stop" or pid == attempt.pid)
            and event.kind in (kinds or ("kill", "stop"))
            and _reaches(event, attempt.started)
            and event.at <= until
        ]
        return min(done, key=lambda event: event.at, default=None)

    def death(self, attempt: Attempt) -> int | None:
        """Return when the process of an attempt was killed in the middle of it; None if it was not, by us."""
        event = self.harm(attempt, "kill") if attempt.ended is None else None
        return event.at if event else None

    def served(self, since: int) -> int:
        """Return when, from then on, there first was a worker process that nobody had told to stop, killed or stopped.

        ``since`` if there never was one again.
        """
        names = {pid: event.worker for event in self.of("up") for pid in event.pids}
        told = {event.worker: event.at for event in self.of("term")}
        ready: list[int] = []
        for life in self.lives.values():
            at = max(life.at, since)
            worker = next((names[pid] for pid in life.family if pid in names), "")
            ends = [event.at for pid in (life.pid, *life.family) for event in self._kills.get(pid, ())]
            ends += [told[worker]] if worker in told else []
            if life.role == "worker" and all(at < end for end in ends):
                ready.append(at)
        return min(ready, default=since)

    def disturbances(self, since: int, until: int, but: Event | None = None) -> list[Event]:
        """Return what else was done to anybody in that time."""
        return [
            event
            for event in self.events
            if event is not but
            and event.kind not in ("up", "exit", "gone", "note")
            and event.at <= until
            and max(event.at, event.until) >= since
        ]


def _reaches(event: Event, since: int) -> bool:
    return (event.until if event.kind == "stop" else event.at) >= since


def _calls(lines: Sequence[Line]) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for line in lines:
        match line:
            case Asked():
                call = calls.setdefault(line.id, Call(line.id, line.queue, line.task, [], []))
                call.asked.append(line.at)
            case Answered():
                calls[line.id].answers.append(line)
            case Wished():
                calls[line.id].wished = True
            case _:
                continue
    return calls


def _attempts(lines: Sequence[Line]) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = defaultdict(list)
    running: dict[tuple[str, int, int], Started] = {}
    for line in lines:
        match line:
            case Started():
                running[line.id, line.attempt, line.pid] = line
            case Ended():
                begun = running.pop((line.id, line.attempt, line.pid), None)
                if begun is not None:
                    found[line.id].append(_attempt(begun, line))
            case _:
                continue
    for begun in running.values():
        found[begun.id].append(_attempt(begun, None))
    for attempts in found.values():
        attempts.sort(key=lambda attempt: attempt.started)
    return dict(found)


def _attempt(begun: Started, over: Ended | None) -> Attempt:
    ended, how = (over.at, over.how) if over else (None, None)
    return Attempt(begun.id, begun.attempt, begun.task, begun.worker, begun.pid, begun.at, ended, how)
