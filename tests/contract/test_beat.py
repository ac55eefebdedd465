"""`Beat`: leases, tombstones, orders, and the reconciliation of what is held."""

import pytest

from spool.broker import Beat, Cancel, Heartbeat, Orders
from spool.errors import LeaseLost
from spool.job import State
from tests.contract.driver import LEASE, job, jobs

STEP = LEASE // 4
"""Milliseconds that may pass at once without an amnesty."""


def test_the_first_beat_creates_a_lease(q):
    assert q.heartbeat("w", tasks=("t",)) == Orders()
    q.enqueue("a")
    assert q.take("w") == ["a"]


def test_a_beat_renews_the_lease_from_now(q):
    q.beat("w", "other")
    for _ in range(4):
        q.march(LEASE // 2, "other")
        q.beat("w")
    q.enqueue("a")
    assert q.take("w") == ["a"]


def test_a_lease_lasts_as_long_as_the_heartbeat_says(q):
    q.beat("short", lease=LEASE)
    q.beat("long", lease=3 * LEASE)
    q.beat("other")
    q.march(LEASE + 100, "other")
    q.promote("other")
    q.enqueue("a")
    with pytest.raises(LeaseLost):
        q.take("short")
    assert q.take("long") == ["a"]


def test_a_lease_that_ran_out_but_was_not_reaped_is_renewed(q):
    q.beat("w", "other")
    q.enqueue("a")
    q.take("w")
    q.march(LEASE + 1, "other")
    assert q.beat("w") == [Orders(held=1)]
    assert q.settle("w", q.done("a")).accepted == 1


def test_a_reaped_incarnation_has_lost_and_gets_no_lease(q):
    q.beat("w", "other")
    q.lose("w", "other")
    assert q.beat("w")[0].lost
    with pytest.raises(LeaseLost):
        q.take("w")


def test_a_retired_incarnation_has_lost_and_gets_no_lease(q):
    q.beat("w")
    q.retire("w")
    for _ in range(2):
        assert q.beat("w")[0].lost
    with pytest.raises(LeaseLost):
        q.take("w")
    assert q.stats().workers == 0


def test_a_tombstone_stands_for_at_least_an_hour(q):
    q.beat("w", "other")
    q.retire("w")
    for _ in range(3_600_000 // STEP):
        q.clock.advance(STEP)
        q.beat("other")
        q.promote("other")
    assert q.beat("w")[0].lost


def test_the_orders_come_in_the_order_of_the_heartbeats(q):
    q.beat("a", "b", "c")
    q.enqueue("x", "y")
    q.take("c", 1)
    q.retire("b")
    orders = q.beat("a", "b", "c", "d")
    assert [(each.lost, each.held) for each in orders] == [(False, 0), (True, 0), (False, 1), (False, 0)]


def test_held_is_what_the_store_counts(q):
    q.beat("w")
    q.enqueue("a", "b", "c")
    q.take("w", 2)
    q.take("w", 1)
    assert q.heartbeat("w").held == 3
    q.settle("w", q.done("a"), q.released("b"))
    assert q.heartbeat("w").held == 1


def test_the_store_asks_for_task_names_it_does_not_know(q):
    assert q.heartbeat("w").tasks
    assert q.heartbeat("w").tasks
    assert not q.heartbeat("w", tasks=("t",)).tasks
    assert not q.heartbeat("w").tasks


def test_no_tasks_are_known_tasks_too(q):
    assert not q.heartbeat("w", tasks=()).tasks
    assert not q.heartbeat("w").tasks


def test_task_names_belong_to_one_incarnation(q):
    q.heartbeat("a", tasks=("t",))
    assert q.heartbeat("b").tasks


def test_a_wanted_cancellation_is_an_order_until_the_job_is_settled(q):
    q.beat("w", "other")
    q.enqueue("a", "b", "c")
    q.take("w")
    q.take("w")
    assert q.act(Cancel("why ☃"), "a", "b") == ["a", "b"]
    assert q.beat("w")[0].cancel == {"a": "why ☃", "b": "why ☃"}
    assert q.beat("w")[0].cancel == {"a": "why ☃", "b": "why ☃"}
    assert q.beat("other")[0].cancel == {}
    q.settle("w", q.cancelled("a"))
    assert q.beat("w")[0].cancel == {"b": "why ☃"}
    q.settle("w", q.done("b"))
    assert q.beat("w")[0].cancel == {}


def test_a_wanted_cancellation_follows_the_job_to_its_next_worker(q):
    q.beat("w", "other")
    q.enqueue("a")
    q.take("w")
    q.act(Cancel("first"), "a")
    assert q.act(Cancel("second"), "a") == []
    q.retire("w", "crashed")
    assert q.take("other") == ["a"]
    assert q.beat("other")[0].cancel == {"a": "first"}


def test_a_cancellation_may_have_no_reason(q):
    q.worker("w", "a")
    q.act(Cancel(), "a")
    assert q.beat("w")[0].cancel == {"a": ""}


def test_a_cancellation_that_came_too_late_is_forgotten(q):
    q.beat("w")
    q.enqueue(job("a", fingerprint="f"))
    q.take("w")
    q.act(Cancel(), "a")
    q.settle("w", q.done("a", ttl=1))
    q.clock.advance(2)
    assert q.beat("w")[0].cancel == {}


def test_what_the_worker_has_forgotten_is_handed_back_in_its_old_place(q, clock):
    q.beat("w")
    q.enqueue("a", "b", "c", "d", "e")
    q.take("w", 3)
    started = clock.wall
    clock.advance(50)
    orders = q.heartbeat("w", claim_seq=1, held_ids=("b",))
    assert (orders.held, orders.unknown) == (1, [])
    assert q.ids(State.READY) == ["a", "c", "d", "e"]
    assert q.ids(State.RUNNING) == ["b"]
    numbers, lines = q.history("a")
    assert (numbers.failures, numbers.crashes, numbers.losses) == (0, 0, 0)
    assert [(each.outcome, each.worker, each.started, each.ended) for each in lines] == [
        ("released", "w", started, clock.wall)
    ]


def test_a_forgotten_job_that_is_held_after_all_cannot_be_settled(q):
    q.beat("w")
    q.enqueue("a")
    q.take("w")
    q.heartbeat("w", claim_seq=1, held_ids=())
    assert q.settle("w", q.done("a")).refused == ["a"]


def test_a_claim_whose_answer_is_still_on_its_way_is_not_handed_back(q):
    q.beat("w")
    q.enqueue("a", "b")
    q.take("w", 1)
    q.take("w", 1)
    orders = q.heartbeat("w", claim_seq=1, held_ids=("a",))
    assert (orders.held, orders.unknown) == (2, [])
    assert q.ids(State.RUNNING) == ["a", "b"]


def test_without_a_list_nothing_is_handed_back(q):
    q.beat("w")
    q.enqueue("a")
    q.take("w")
    assert q.heartbeat("w", claim_seq=9).held == 1
    assert q.state("a") == State.RUNNING


def test_an_empty_list_hands_back_everything(q):
    q.beat("w")
    q.enqueue(*jobs(3))
    q.take("w")
    assert q.heartbeat("w", claim_seq=1, held_ids=()).held == 0
    assert q.ids(State.READY) == ["j00000", "j00001", "j00002"]


def test_what_is_not_the_workers_own_is_unknown_to_the_store(q):
    q.beat("w", "other")
    q.enqueue("a", "b", "c", "d", "e")
    q.take("w")
    q.take("other", 1)
    q.settle("w", q.done("a"))
    orders = q.heartbeat("w", claim_seq=1, held_ids=("a", "b", "c", "d", "never"))
    assert sorted(orders.unknown) == ["a", "d", "never"]
    assert q.get("d").incarnation == "other"


def test_reconciling_twice_is_reconciling_once(q):
    q.beat("w")
    q.enqueue("a", "b")
    q.take("w")
    first = q.heartbeat("w", claim_seq=1, held_ids=("a",))
    before = q.dump()
    assert q.heartbeat("w", claim_seq=1, held_ids=("a",)) == first
    assert q.dump() == before


def test_the_hand_back_counts_as_released(q):
    q.beat("w")
    q.enqueue("a")
    q.take("w")
    q.heartbeat("w", claim_seq=1, held_ids=())
    assert q.totals() == {"enqueued": 1, "released": 1}


def test_many_ids_are_reconciled(q):
    q.beat("w")
    q.enqueue(*jobs(2000))
    held = [id for _ in range(20) for id in q.take("w")]
    assert len(held) == 2000
    kept = tuple(held[::2])
    orders = q.heartbeat("w", claim_seq=20, held_ids=kept)
    assert (orders.held, orders.unknown) == (1000, [])
    assert q.ids(State.READY) == held[1::2]


def test_a_beat_for_many_incarnations_is_one_step(q):
    names = [f"w{number}" for number in range(300)]
    assert len(q.beat(*names)) == 300
    assert q.stats().workers == 300


def test_the_reply_says_how_many_suspects_there_are(q, broker):
    def suspects():
        return broker.call(Beat(q.queue, [Heartbeat("w", LEASE, ("t",))])).suspects

    assert suspects() == 0
    q.enqueue("a", "b", "c")
    for incarnation in ("x", "y"):
        q.beat(incarnation)
        q.take(incarnation, 2)
        q.retire(incarnation, "crashed")
    assert (q.ids(State.SUSPECT), suspects()) == (["a", "b"], 2)
    assert q.take("w", trial=True) == ["a"]
    assert suspects() == 1
    assert broker.call(Beat(q.queue, [])).suspects == 1
    assert broker.call(Beat("elsewhere", [Heartbeat("w", LEASE, ("t",))])).suspects == 0


def test_a_suspect_that_the_same_beat_hands_back_is_counted(q, broker):
    q.enqueue("a")
    for incarnation in ("x", "y"):
        q.beat(incarnation)
        q.take(incarnation)
        q.retire(incarnation, "crashed")
    q.beat("w")
    assert q.take("w", trial=True) == ["a"]
    forgotten = Heartbeat("w", LEASE, claim_seq=9, held_ids=())
    assert broker.call(Beat(q.queue, [forgotten])).suspects == 1


def test_a_beat_of_nobody_is_answered(q):
    assert q.call(Beat(q.queue, [])).orders == []


def test_a_lease_of_one_queue_is_none_of_another(q, broker):
    broker.call(Beat("elsewhere", [Heartbeat("w", LEASE, ("t",))]))
    with pytest.raises(LeaseLost):
        q.take("w")
