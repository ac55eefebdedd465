"""Hand-made histories: what a run would have left behind. Times are in seconds, and become nanoseconds."""

from collections import Counter
from typing import Any

import msgspec

from spool.broker import QueueStats
from spool.chaos.history import Evidence
from spool.chaos.journal import Answer, Answered, Asked, Ended, Ending, Event, EventKind, Life, Line, Started
from spool.chaos.plan import Plan
from spool.chaos.survey import Found, Survey
from spool.job import State

SECOND = 10**9
CHILD, OTHER = 101, 202
"""Worker processes of w0.1 and w1.2."""


class Story:
    """A run of two workers, to which things happen."""

    def __init__(self, **plan: Any) -> None:
        self.plan = Plan(**{"lease": 2.0, "seconds": 60.0, **plan})
        self.produced: list[Line] = []
        self.handled: list[Line] = [Life(CHILD, "worker", [100], 0), Life(OTHER, "worker", [200], 0)]
        self.events: list[Event] = []
        self.jobs: dict[str, Found] = {}
        self.totals: Counter[str] = Counter()
        self.listed: Counter[str] = Counter()
        self.quiet: float | None = 1.0
        self.fresh: float | None = 0.1
        self.store_check = "ok"
        self.event("up", 0, worker="w0.1", pids=[100])
        self.event("up", 0, worker="w1.2", pids=[200])

    def enqueued(self, id: str, at: float = 1.0, answer: Answer | None = "acknowledged", task: str = "quick") -> None:
        """Let a producer enqueue; without an answer it was killed meanwhile."""
        self.produced.append(Asked(id, "chaos", task, _ns(at)))
        if answer is not None:
            self.produced.append(Answered(id, answer, _ns(at + 0.01)))

    def ran(
        self,
        id: str,
        started: float,
        ended: float | None = None,
        *,
        number: int = 1,
        how: Ending = "ok",
        pid: int = CHILD,
        task: str = "quick",
    ) -> None:
        """Let a handler run; without an end its process went first."""
        worker = {CHILD: "w0.1", OTHER: "w1.2"}.get(pid, "w9.9")
        self.handled.append(Started(id, number, task, worker, pid, _ns(started)))
        if ended is not None:
            self.handled.append(Ended(id, number, pid, _ns(ended), how))

    def event(self, kind: EventKind, at: float, until: float = 0.0, **more: Any) -> None:
        self.events.append(Event(kind, _ns(at), until=_ns(until), **more))

    def found(self, id: str, state: State = State.DONE, task: str = "quick", **more: Any) -> None:
        """Let the store say of a job where it is."""
        more.setdefault("accepted", 1 if state is State.DONE else None)
        self.jobs[id] = Found("chaos", state, task, **more)
        self.totals["enqueued"] += 1
        if state in (State.DONE, State.CANCELLED):
            self.totals[state] += 1
        else:
            self.listed[state] += 1

    def done(self, id: str, at: float = 1.0, task: str = "quick") -> None:
        """Let all be as it should be with a job."""
        self.enqueued(id, at, task=task)
        self.ran(id, at + 0.1, at + 0.2, task=task)
        self.found(id, task=task)

    def evidence(self) -> Evidence:
        stats = QueueStats(
            now=0,
            ready=[self.listed[State.READY]],
            scheduled=self.listed[State.SCHEDULED],
            parked={},
            suspect=self.listed[State.SUSPECT],
            running=self.listed[State.RUNNING],
            dead=self.listed[State.DEAD],
            workers=2,
            paused=False,
            totals=dict(self.totals),
        )
        return Evidence(
            plan=self.plan,
            produced=self.produced,
            handled=self.handled,
            events=self.events,
            survey=Survey(dict(self.jobs), {"chaos": stats}, {"chaos": dict(self.listed)}),
            quiet=self.quiet,
            fresh=self.fresh,
            loaded=_ns(self.plan.seconds),
            store_check=self.store_check,
        )

    def skew(self, **stats: Any) -> Evidence:
        """Return the evidence with other counts than belong to it."""
        evidence = self.evidence()
        survey = evidence.survey
        skewed = msgspec.structs.replace(survey.stats["chaos"], **stats)
        return msgspec.structs.replace(evidence, survey=msgspec.structs.replace(survey, stats={"chaos": skewed}))


def _ns(seconds: float) -> int:
    return round(seconds * SECOND)
