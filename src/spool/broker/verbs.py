"""The verbs of the broker protocol as data: what is asked, what is atomic, and what comes back. See `spool.broker`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, Literal, TypeVar

import msgspec

from spool.errors import ConfigError
from spool.job import LANES, PRIORITIES, Number, Snapshot, State

R_co = TypeVar("R_co", covariant=True)


class Verb(msgspec.Struct, Generic[R_co], frozen=True):
    """What is asked of a broker; `R_co` is the type of the reply."""


class NewJob(msgspec.Struct, frozen=True, gc=False):
    """A job to store. ``record`` is an encoded `Record` whose priority, lane and fingerprint are repeated here."""

    id: str
    record: bytes
    priority: int = 2
    lane: int = 0
    delay: Number = 0
    """Milliseconds from now by the store's clock; 0 is ready at once."""
    due: Number = 0
    """Or the wall-clock time, which counts if both are given; a past one is ready at once. 0 is none."""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        # A place that no claim looks at would lose the job; here, since every producer comes through here.
        if not 0 <= self.priority < len(PRIORITIES) or self.lane not in LANES:
            raise ConfigError(
                f"job {self.id}: priority {self.priority} and lane {self.lane} are not usable: "
                f"0 to {len(PRIORITIES) - 1}, and one of {LANES}"
            )


class Enqueued(msgspec.Struct, frozen=True):
    """Reply of `Enqueue`: which ids were there already (the same job), and which are taken by another job."""

    now: int
    existing: list[str] = []
    conflicts: list[str] = []


class Enqueue(Verb[Enqueued], frozen=True):
    """Store jobs, all in one step: ready at the tail of their priority, in the order given, or scheduled.

    A job with a fingerprint (its id was given by the caller) is stored only if the queue does not know the id: as a job
    of any state, dead included, or as the ending of one that is still remembered. Otherwise it is named in ``existing``
    (one fingerprint begins with the other: they are equal, or one of them says less, or nothing) or in ``conflicts``,
    and nothing about it changes. Jobs without a fingerprint carry fresh ids and are not looked up, unless ``resend``
    says that this call was made before and its reply was lost: then those which are known are named in ``existing``.
    Repeats within one call: the first one counts.

    With ``durable`` it is answered only when the jobs, those in ``existing`` too, are on the store's disk; a store in
    memory has none, and answers as ever. Raises `BrokerRefused`, and then nothing was stored, if the store cannot tell
    (Redis: older than 7.2, or without AOF), and `NotDurable` if the jobs are stored, but it does not tell in time.

    Raises `BrokerFull`, and then nothing was stored.
    """

    queue: str
    jobs: Sequence[NewJob]
    resend: bool = False
    durable: bool = False


class Get(Verb[Snapshot | None], frozen=True):
    """Return one job as it stands, or None if it is not known (any more). Changes nothing."""

    queue: str
    id: str


class Found(msgspec.Struct, frozen=True):
    """Reply of `Find`. ``cursor`` goes into the next call; empty when there is no more."""

    now: int
    jobs: list[Snapshot]
    cursor: str = ""


class Find(Verb[Found], frozen=True):
    """List jobs of one state, at most ``limit`` (1 to 1,000) a call.

    Order: ready and suspect as they would be claimed; scheduled by due time; running by incarnation, then id; parked by
    task; dead, done and cancelled with the latest first. Jobs of done and cancelled come from the index of the most
    recent 10,000 endings of the queue. A page reads at most 1,000 records, so it may hold fewer jobs than ``limit``
    (even none) with a cursor. While jobs move, one that stays put is listed exactly once; one that moves may be missed
    or listed twice.
    """

    queue: str
    state: State
    cursor: str = ""
    limit: Number = 100


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """End jobs that have not started (scheduled, ready, parked, suspect) as cancelled; ``ttl`` as in `Done`.

    For a running job the wish is noted and given to its worker as an order with the next `Beat`; it counts as changed.
    The first wish stays, with its reason, also when the job comes to another worker.
    Terminal jobs are left as they are.
    """

    reason: str = ""
    ttl: Number = 3_600_000


MAX_REASON: Final = 4 * 1024
"""Bytes of a reason that are kept."""


def cancellation(reason: str, ttl: float) -> Cancel:
    """Return the action that cancels, and remembers for ``ttl`` seconds; a longer reason than `MAX_REASON` is cut."""
    return Cancel(reason.encode(errors="replace")[:MAX_REASON].decode(errors="ignore"), round(ttl * 1000))


class Replay(msgspec.Struct, frozen=True, tag=True):
    """Put dead jobs back: ready at the tail of their priority, a new generation, failures and crashes at 0."""


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Forget jobs: dead ones, endings, and jobs that have not started. Running ones are left."""


class Pause(msgspec.Struct, frozen=True, tag=True):
    """Stop handing out jobs of this queue (ids are ignored). What runs goes on."""


class Resume(msgspec.Struct, frozen=True, tag=True):
    """Hand out jobs again (ids are ignored)."""


Action = Cancel | Replay | Delete | Pause | Resume


class Acted(msgspec.Struct, frozen=True):
    """Reply of `Act`: the ids that the action changed, in the order given."""

    now: int
    changed: list[str] = []


MAX_ACT: Final = 1000
"""Jobs that one `Act` may name."""


class Act(Verb[Acted], frozen=True):
    """Do something to the named jobs, at most 1,000 a call; those it does not apply to are passed over.

    Filters are a `Find` whose ids go into `Act`, with ``states``: a job that has moved on since to a state that is not
    meant is left alone. Sent twice it does nothing twice, but the second reply names no ids.
    """

    queue: str
    action: Action
    ids: Sequence[str] = ()
    states: Sequence[State] = ()
    """Only jobs that are in one of these now; none named: in any."""

    def __post_init__(self) -> None:
        # Here, and not in each store: on Redis a few thousand are more than a script can move in one step.
        if len(self.ids) > MAX_ACT:
            raise ConfigError(f"{len(self.ids):,} jobs are too many to be acted on at once: at most {MAX_ACT:,}")


class Heartbeat(msgspec.Struct, frozen=True):
    """One incarnation's sign of life on one queue."""

    incarnation: str
    lease: Number = 10_000
    tasks: tuple[str, ...] | None = None
    """The names it can run: given in the first beat, and again when they change or the reply asks for them."""
    claim_seq: Number = 0
    held_ids: tuple[str, ...] | None = None
    """With ``claim_seq`` (of the last answered claim), asks to reconcile by id."""


class Orders(msgspec.Struct, frozen=True):
    """What the store tells one incarnation.

    ``lost``: it is retired or its tombstone stands; it must stop its jobs and come back as a new incarnation.
    ``cancel``: running jobs that somebody wants cancelled, by id, with the reason given; repeated until they are
    settled. ``held``: how many jobs the store counts as its own. ``unknown``: of ``held_ids``, those which are not its
    own (any more). ``tasks``: the store does not know its task names.
    """

    lost: bool = False
    cancel: dict[str, str] = {}
    held: int = 0
    unknown: list[str] = []
    tasks: bool = False


class Beaten(msgspec.Struct, frozen=True):
    """Reply of `Beat`: the orders, in the order of the heartbeats.

    ``suspects``: how many suspects the queue has now, to be claimed with ``trial``.
    """

    now: int
    orders: list[Orders]
    suspects: int = 0


class Beat(Verb[Beaten], frozen=True):
    """Register incarnations and renew their leases until now + lease.

    The first beat of an incarnation creates its lease. A lease that ran out but was not reaped yet is renewed like any
    other. A retired incarnation gets ``lost`` and no lease.

    With ``held_ids`` the store hands back, uncounted and in its old place, every job of this incarnation that was
    claimed with a sequence number ≤ ``claim_seq`` and is not in the list: the worker has forgotten it. The hand-back is
    a line "released" in the tally. ``unknown`` is the other side of it.
    """

    queue: str
    beats: Sequence[Heartbeat]


class Claimed(msgspec.Struct, frozen=True):
    """Reply of `Claim`.

    ``jobs`` are (id, record) in the order in which they are to start; ``tallies`` holds the tally of each that has one.
    ``cut``: a fair share was less than the slots and what is ready. ``next_at`` is the store's time at which it is
    worth coming again: when jobs are left in a lane asked for, now, or 50 ms later if the claim was cut (for others to
    take theirs); otherwise the first due time or the end of the first foreign lease, not before the end of an amnesty;
    None when there is neither.
    """

    now: int
    jobs: list[tuple[str, bytes]]
    tallies: dict[str, str] = {}
    next_at: int | None = None
    cut: bool = False


class Claim(Verb[Claimed], frozen=True):
    """Take jobs to run, at most ``slots[lane]`` of each lane, and keep house on the way.

    In this order, each part bounded per call:

    1. Refused with `LeaseLost` if the incarnation has no lease.
    2. The clock (see `spool.broker`); then refused likewise if the lease ran out.
    3. A ``seq`` equal to the last one answers again with the jobs of that claim which are still unsettled, and does
      nothing else; a smaller one answers with no jobs. Seqs begin at 1.
    4. Expired incarnations are reaped (as `Retire` with reason "lost"), none during an amnesty.
    5. Due jobs join the tail of their priority, in due order.
    6. Parked jobs whose task this incarnation knows go back to their old place.
    7. Jobs that have been parked for longer than ``unroutable_after`` ms without a break, by the store's clock, die, at
      most 100 a call: the tally gets a line "died" with the number of the attempts so far, from parking to now, with
      ``error_type`` "Unroutable", and its numbers stay. 0: they wait for ever. None dies while there are parked jobs
      left whose task this incarnation knows.
    8. Nothing is taken from a paused queue.
    9. From each lane at most a fair share is taken, best priority first and FIFO within one: running under the fence
      (incarnation, seq).

    The share is max(1, ceil(ready in the lane / live)), where live counts the incarnations of the queue whose lease
    holds; in the main lane, if that is more, ceil((ready in the lane + held by all live incarnations) / live) - held by
    this one. (Redis leaves the second part out above 64 live incarnations, where counting would cost more than it evens
    out.) With ``even`` the share is the second part alone, and may be 0, unless there is one live incarnation (on
    Redis, or more than 64): for a claim that follows one that was cut before the others have had the time for theirs.

    A job whose task the incarnation does not know is parked instead, no attempt spent. A ready id without a record is
    dropped and counted in ``repairs``. A record whose task cannot be read is handed out like any other, and so is a job
    with a noted cancellation (see `Cancel`), whose order is repeated.

    ``trial`` claims one job from the suspects, and nothing else.

    With a claim that leaves ready jobs in the lanes it asked for, another waiting worker is woken.

    ``wait``: with `Broker.acall`, it is carried out when there is word of work for its slots, or after so many seconds
    (as `Broker.await_work`); on Redis without a further round trip. `Broker.call` does not wait.
    """

    queue: str
    incarnation: str
    seq: Number
    slots: tuple[Number, Number] = (1, 0)
    trial: bool = False
    unroutable_after: Number = 0
    even: bool = False
    wait: float = 0.0

    @property
    def lanes(self) -> list[int]:
        """The lanes from which it could take a job."""
        return [lane for lane in LANES if self.slots[lane]]


class Done(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The attempt succeeded: ``ending`` (an encoded `Ending`) is kept for ``ttl`` ms, and everything else goes."""

    id: str
    fence: Number
    ending: bytes
    ttl: Number = 3_600_000


class Cancelled(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The job is cancelled: otherwise as `Done`."""

    id: str
    fence: Number
    ending: bytes
    ttl: Number = 3_600_000


class Retried(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The attempt failed and the job is to run again: scheduled for now + ``delay``, with the tally given."""

    id: str
    fence: Number
    tally: str
    delay: Number


class Released(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The job is handed back, no failure counted: scheduled for now + ``delay``, or at 0 ready in its old place."""

    id: str
    fence: Number
    tally: str
    delay: Number = 0


class Died(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The attempts are spent: dead, with the tally given; the record is kept."""

    id: str
    fence: Number
    tally: str


Settlement = Done | Cancelled | Retried | Released | Died


class Settled(msgspec.Struct, frozen=True):
    """Reply of `Settle`: how many were accepted, and the ids refused: not the incarnation's own (any more)."""

    now: int
    accepted: int
    refused: list[str] = []


class Settle(Verb[Settled], frozen=True):
    """Record how attempts ended, each checked against its fence: held by this incarnation, under this claim seq.

    One settle of a worker and queue is in flight at a time. A ``seq`` equal to the last one gets the reply of that one
    again (``now`` may differ), and nothing changes or is counted; a smaller one is refused as a whole. An accepted
    ``Done`` or ``Cancelled`` is remembered for its ttl, joins the index of recent endings and wakes those who wait for
    it. Works for an expired lease that nobody has reaped, at maxmemory, and while paused.

    ``metrics`` is an opaque blob, appended to the queue's stream (`Watch`) unless the settle is a repeat.
    """

    queue: str
    incarnation: str
    seq: Number
    settlements: Sequence[Settlement]
    metrics: bytes = b""


Reason = Literal["stopped", "crashed", "lost"]


class Retired(msgspec.Struct, frozen=True):
    """Reply of `Retire`: how many jobs this call handed back, and how many are still to be."""

    now: int
    handed_back: int
    remaining: int


class Retire(Verb[Retired], frozen=True):
    """End an incarnation on this queue and hand back what the store says it holds, at most 500 jobs a call.

    From the first call on the incarnation is refused everywhere (a tombstone), known to the queue or not. Call again
    while ``remaining`` is not 0; if the caller dies, the next `Claim` goes on. The reason of the first call stays.

    * "stopped": each job is ready again in its old place; attempts + 1, nothing else is counted.
    * "crashed": also crashes + 1. At ``record.max_crashes`` the job is dead; else at 2 or more it is suspect, in its
      old place among the suspects; else it is ready in its old place.
    * "lost" (the lease ran out): also losses + 1; ready in its old place.

    Each hand-back adds a line to the tally: the attempt with outcome = reason, worker = incarnation, its start and the
    store's now; for a job that dies ``error_type`` is "WorkerCrashed" and ``message`` is ``detail``.

    With "crashed" and ``blamed`` only those of its jobs are handed back as crashed, all of them in the first call; its
    other jobs are handed back as stopped. None blames them all.
    """

    queue: str
    incarnation: str
    reason: Reason = "stopped"
    detail: str = ""
    blamed: tuple[str, ...] | None = None


class QueueStats(msgspec.Struct, frozen=True):
    """Reply of `Stats`. The first part equals the sizes of the sets at that moment; ``totals`` are monotone.

    ``ready`` is by priority, both lanes together. ``totals`` has enqueued, done, cancelled, dead (jobs that died),
    retried, released, stopped, crashed, lost, replayed, deleted, pruned and repairs, where not 0.

    ``sequence`` never falls, and grows with each job that joins the tail of its priority; ``heads`` has, by priority,
    its value when the one did that has waited the longest, 0 where none is ready: who noted when it was where knows
    since when that one has waited, by the store's clock and without the delay that it was to have.
    """

    now: int
    ready: list[int]
    scheduled: int
    parked: dict[str, int]
    suspect: int
    running: int
    dead: int
    workers: int
    paused: bool
    totals: dict[str, int]
    sequence: int = 0
    heads: list[int] = []


class Stats(Verb[QueueStats], frozen=True):
    """Count. O(workers), not O(jobs). Changes nothing."""

    queue: str


class Blob(msgspec.Struct, frozen=True):
    """What a settle left, and when. ``cursor`` goes into the next `Watch`."""

    cursor: str
    at: int
    body: bytes


class Watched(msgspec.Struct, frozen=True):
    """Reply of `Watch`: the blobs, oldest first.

    ``missed``: how many there were between the cursor and the first of them, and are there no more.
    """

    now: int
    blobs: list[Blob]
    missed: int = 0


class Watch(Verb[Watched], frozen=True):
    """Read the blobs that settles left (the last 10,000 or so), after ``cursor``, at most ``limit``."""

    queue: str
    cursor: str = ""
    limit: Number = 1000
