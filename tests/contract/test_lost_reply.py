"""Every verb may be sent again when its reply was lost; none does anything once its incarnation is retired."""

import contextlib
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from spool.broker import (
    Act,
    Beat,
    Cancel,
    Claim,
    Delete,
    Enqueue,
    Find,
    Get,
    Heartbeat,
    Load,
    Note,
    Pause,
    Replay,
    Resume,
    Retire,
    Stats,
    Store,
    Verb,
    Watch,
)
from spool.errors import LeaseLost, VersionConflict
from spool.job import State
from tests.contract.driver import LEASE, job
from tests.contract.test_claim import make_suspect


@dataclass
class Lost:
    """The first call is carried out and its reply dropped; then the caller sends it again."""

    first: Verb[Any]
    again: Verb[Any]


def setting(q):
    """A job in every state: s suspect, a-e running under w, r ready, d1 dead, e1 done, l scheduled, p parked."""
    make_suspect(q, "s")
    q.worker("w", "d1", "e1", job("p", "unknown"))
    q.settle("w", q.died("d1"), q.done("e1"), metrics=b"first")
    q.worker("w", "a", "b", "c", "d", "e")
    q.note("w", q.says("a", b"1", b"2", step=1, progress=b"old"))
    q.enqueue("r", job("l", delay=60_000))
    q.call(Store("doc", "k", b"1"))


def settle_all(q):
    settlements = (q.done("a"), q.retried("b", delay=50), q.released("c"), q.died("d"), q.cancelled("e"))
    return q.settle_verb("w", *settlements, metrics=b"blob")


VERBS = {
    "enqueue": lambda q: Enqueue(q.queue, [job("x"), job("y", delay=50), job("z", fingerprint="f")]),
    "get": lambda q: Get(q.queue, "a"),
    "find": lambda q: Find(q.queue, State.RUNNING),
    "stats": lambda q: Stats(q.queue),
    "watch": lambda q: Watch(q.queue),
    "cancel": lambda q: Act(q.queue, Cancel(), ["r", "s", "l", "p", "a"]),
    "replay": lambda q: Act(q.queue, Replay(), ["d1"]),
    "delete": lambda q: Act(q.queue, Delete(), ["r", "s", "l", "p", "d1", "e1"]),
    "pause": lambda q: Act(q.queue, Pause()),
    "resume": lambda q: Act(q.queue, Resume()),
    "first beat": lambda q: Beat(q.queue, [Heartbeat("v", LEASE, ("t",))]),
    "beat": lambda q: Beat(q.queue, [Heartbeat("w", LEASE)]),
    "reconcile": lambda q: Beat(q.queue, [Heartbeat("w", LEASE, claim_seq=100, held_ids=("a", "never"))]),
    "claim": lambda q: Claim(q.queue, "w", 100, (5, 5)),
    "trial": lambda q: Claim(q.queue, "w", 100, trial=True),
    "settle": settle_all,
    "note": lambda q: Note(
        q.queue, "w", [q.says("a", b"2", b"3", first=1, step=2, progress=b"new"), q.says("b", b"x")]
    ),
    "retire stopped": lambda q: Retire(q.queue, "w", "stopped"),
    "retire crashed": lambda q: Retire(q.queue, "w", "crashed", "signal 9"),
    "retire lost": lambda q: Retire(q.queue, "w", "lost"),
    "store": lambda _: Store("doc", "k", b"2"),
    "store if": lambda _: Store("doc", "k", b"2", if_version=1),
    "remove": lambda _: Store("doc", "k", None),
    "load": lambda _: Load("doc"),
}
SAME_REPLY = {
    "get",
    "find",
    "stats",
    "watch",
    "pause",
    "resume",
    "first beat",
    "beat",
    "claim",
    "trial",
    "settle",
    "note",
    "load",
}


def everything(q) -> dict[str, Any]:
    documents = [(each.key, each.body) for each in q.call(Load("doc")).documents]
    notes = {id: (found.progress, found.log, found.log_dropped) for id in "abcde" if (found := q.get(id))}
    return q.dump() | {
        "notes": notes,
        "documents": documents,
        "blobs": q.call(Watch(q.queue)).blobs,
        "orders": q.beat("w"),
    }


def comparable(reply: Any) -> Any:
    fields = msgspec.structs.asdict(reply) if reply is not None else {}
    return {name: value for name, value in fields.items() if name not in ("now", "next_at")}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_sent_again_has_the_effect_of_one(q, name):
    setting(q)
    verb = VERBS[name](q)
    first = q.call(verb)
    once = everything(q)
    if isinstance(verb, Enqueue):
        verb = Enqueue(q.queue, verb.jobs, resend=True)
    with contextlib.suppress(VersionConflict):
        again = q.call(verb)
        if name in SAME_REPLY:
            assert comparable(again) == comparable(first)
    assert everything(q) == once


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_sent_again_later_has_the_effect_of_one(q, name):
    """Time goes by and others work meanwhile; what is sent again finds what it did, not what is new."""
    setting(q)
    q.beat("other")
    verb = VERBS[name](q)
    q.call(verb)
    q.march(LEASE // 2, "other", *([] if name.startswith("retire") else ["w"]))
    q.take("other", 1)
    once = everything(q)
    if isinstance(verb, Enqueue):
        verb = Enqueue(q.queue, verb.jobs, resend=True)
    with contextlib.suppress(VersionConflict):
        q.call(verb)
    after = everything(q)
    if name not in ("replay", "delete"):
        assert after == once


STALE = {
    "beat": VERBS["beat"],
    "beat with tasks": lambda q: Beat(q.queue, [Heartbeat("w", LEASE, ("t", "unknown"))]),
    "reconcile": VERBS["reconcile"],
    "claim": VERBS["claim"],
    "claim again": lambda q: q.last_claim("w"),
    "trial": VERBS["trial"],
    "settle": VERBS["settle"],
    "note": VERBS["note"],
    "settle nothing": lambda q: q.settle_verb("w", metrics=b"blob"),
    "retire stopped": VERBS["retire stopped"],
    "retire crashed": VERBS["retire crashed"],
    "retire lost": VERBS["retire lost"],
}


@pytest.mark.parametrize("name", STALE)
@pytest.mark.parametrize("reason", ["stopped", "crashed", "lost"])
def test_a_verb_that_arrives_after_its_incarnation_was_retired_changes_nothing(q, name, reason):
    setting(q)
    verb = STALE[name](q)
    q.retire("w", reason)
    before = everything(q)
    with contextlib.suppress(LeaseLost):
        q.call(verb)
    assert everything(q) == before


@pytest.mark.parametrize("name", STALE)
def test_a_verb_that_arrives_after_the_job_went_to_another_changes_nothing(q, name):
    setting(q)
    verb = STALE[name](q)
    q.retire("w")
    q.beat("other")
    assert {"a", "b", "c", "d", "e"} <= set(q.take("other"))
    before = everything(q)
    with contextlib.suppress(LeaseLost):
        q.call(verb)
    assert everything(q) == before
    settled = q.settle("other", q.done("a"), q.done("b"))
    assert settled.accepted == 2


@pytest.mark.parametrize("name", STALE)
def test_a_verb_of_an_incarnation_that_was_reaped_changes_nothing(q, name):
    setting(q)
    q.beat("other")
    verb = STALE[name](q)
    q.lose("w", "other")
    assert q.state("a") == State.READY
    before = everything(q)
    with contextlib.suppress(LeaseLost):
        q.call(verb)
    assert everything(q) == before


def test_a_lost_claim_of_a_worker_that_dies_strands_nothing(q):
    q.beat("w")
    q.enqueue("a", "b")
    q.call(Claim(q.queue, "w", 1, (2, 0)))
    q.retire("w", "crashed")
    assert q.ids(State.READY) == ["a", "b"]


def test_a_lost_settle_of_a_worker_that_is_then_retired_counts(q):
    q.worker("w", "a", "b")
    q.call(q.settle_verb("w", q.done("a")))
    assert q.retire("w").handed_back == 1
    assert (q.state("a"), q.state("b")) == (State.DONE, State.READY)


def test_an_enqueue_sent_again_after_its_jobs_were_claimed(q):
    verb = Enqueue(q.queue, [job("a"), job("b"), job("c")])
    q.call(verb)
    q.beat("w")
    assert q.take("w", 1) == ["a"]
    assert q.call(Enqueue(q.queue, verb.jobs, resend=True)).existing == ["a", "b", "c"]
    assert q.take("w") == ["b", "c"]
