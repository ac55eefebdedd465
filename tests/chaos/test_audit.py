"""The audit finds each violation in a history that contains it, and nothing in one that does not."""

import pytest

from spool.chaos.audit import Audit, audit
from spool.chaos.journal import Life
from spool.chaos.times import FROM_START, Spread, spread
from spool.job import State
from tests.chaos.histories import CHILD, OTHER, SECOND, Story


@pytest.fixture
def story() -> Story:
    story = Story()
    for number in range(3):
        story.done(f"fine-{number}", at=float(number))
    return story


def broken(found: Audit) -> set[str]:
    return {verdict.promise for verdict in found.verdicts if not verdict.ok}


def of(story: Story) -> set[str]:
    return broken(audit(story.evidence()))


LOST = "no acknowledged job is lost"
REFUSED = "a refused enqueue leaves nothing behind"
CONFLICT = "the same call under the same id is the same job"
STRANGER = "there is no job that nobody enqueued"
COUNTED = "what is counted is what is there"
TWICE = "no job is completed twice"
TO_ITS_END = "what is done was run to its end"
FENCED = "a worker that lost its lease changes nothing"
UPWARDS = "attempts are numbered upwards"
REASON = "every further attempt has a reason"
OVERLAP = "attempts overlap only when the lease was lost"
CONDEMNED = "only what fails or kills its process is dead"
SURVIVES = "what always fails or kills its process is dead"
BLOCKED = "a job that blocks its loop is run once"
TIMEOUT = "a timeout ends the job"
FAILURES = "only failures are counted as failures"
DAMAGED = "damaged records are dead or repaired"
STAY = "supervisors stay until told to stop"
ORPHANS = "no process outlives its supervisor"
STUCK = "nothing is stuck"
FRESH = "the fleet serves fresh jobs by itself"
STORE = "the store keeps its own promise"
FILE = "the file is sound"
REDELIVERY = "jobs of a dead worker run again in time"
RESUME = "workers claim again within 5 s of the store's return"


def test_every_promise_is_tested_here():
    named = {value for name, value in globals().items() if name.isupper() and isinstance(value, str)} - {FROM_START}
    assert named == {verdict.promise for verdict in audit(Story().evidence()).verdicts}


def test_a_good_run_is_good(story):
    found = audit(story.evidence())
    assert found.ok
    counts = found.counts
    assert (counts.enqueued, counts.acknowledged, counts.completed) == (3, 3, 3)
    assert (counts.lost, counts.forgotten, counts.recovered, counts.completed_twice) == (0, 0, 0, 0)
    assert counts.reruns == {}


# Lost, forgotten, recovered


def test_an_acknowledged_job_that_is_gone_is_lost(story):
    story.enqueued("gone")
    found = audit(story.evidence())
    assert broken(found) == {LOST}
    assert found.counts.lost == 1
    assert "gone" in found.verdicts[0].examples[0]


def test_a_job_that_was_found_existing_is_acknowledged(story):
    story.enqueued("gone", answer="unknown")
    story.enqueued("gone", at=2.0, answer="existing")
    assert of(story) == {LOST}


def test_what_the_store_forgot_is_not_lost(story):
    story.enqueued("gone", at=5.0)
    story.event("forget", 4.0, 6.0, fault="power-loss")
    found = audit(story.evidence())
    assert broken(found) == {STORE}  # always had promised to keep it
    assert (found.counts.lost, found.counts.forgotten) == (0, 1)


@pytest.mark.parametrize("at", [3.0, 7.0], ids=["before", "after"])
def test_only_what_was_acknowledged_in_its_time_is_forgotten(at):
    story = Story(durability="everysec")
    story.enqueued("gone", at=at)
    story.event("forget", 4.0, 6.0, fault="power-loss")
    assert of(story) == {LOST}


def test_a_store_may_forget_what_it_never_promised(story):
    story = Story(durability="everysec")
    story.enqueued("gone", at=5.0)
    story.event("forget", 4.0, 6.0, fault="power-loss")
    assert of(story) == set()


def test_an_operator_may_flush(story):
    story.enqueued("gone", at=5.0)
    story.event("forget", 0.0, 6.0, fault="flushall")
    assert of(story) == set()


@pytest.mark.parametrize("answer", ["unknown", None], ids=["unknown", "killed"])
def test_unacknowledged_jobs_may_be_there_or_not(story, answer):
    story.enqueued("there", answer=answer)
    story.ran("there", 2.0, 2.1)
    story.found("there")
    story.enqueued("not", answer=answer)
    found = audit(story.evidence())
    assert found.ok
    assert (found.counts.recovered, found.counts.vanished) == (1, 1)


def test_a_refused_job_must_not_be_there(story):
    story.enqueued("absent", answer="refused")
    assert audit(story.evidence()).counts.refused == 1
    story.enqueued("present", answer="refused")
    story.ran("present", 2.0, 2.1)
    story.found("present")
    assert of(story) == {REFUSED}


def test_a_refusal_after_an_unknown_end_says_nothing(story):
    story.enqueued("present", answer="unknown")
    story.enqueued("present", at=1.5, answer="refused")
    story.ran("present", 2.0, 2.1)
    story.found("present")
    assert of(story) == set()


def test_a_conflict_of_the_same_call_is_found(story):
    story.done("same")
    story.enqueued("same", at=2.0, answer="conflict")
    assert of(story) == {CONFLICT}


def test_a_job_out_of_nowhere_is_found(story):
    story.ran("ghost", 2.0, 2.1)
    story.found("ghost")
    assert of(story) == {STRANGER}


def test_damaged_jobs_are_dead_or_repaired(story):
    for id in ("dead", "gone"):
        story.enqueued(id)
    story.event("damage", 1.5, ids=["dead", "gone"])
    story.found("dead", State.DEAD, error="Undecodable")
    story.totals["enqueued"] += 1
    story.totals["repairs"] = 1
    assert of(story) == set()
    story.totals["repairs"] = 0
    assert of(story) == {DAMAGED, COUNTED}


# Counts


def test_counts_have_to_equal_the_sets(story):
    assert broken(audit(story.skew(scheduled=1))) == {COUNTED}
    assert broken(audit(story.skew(totals={"enqueued": 4, "done": 3}))) == {COUNTED}


def test_two_completions_of_one_job_are_found(story):
    story.totals["done"] += 1
    story.totals["enqueued"] += 1
    found = audit(story.evidence())
    assert broken(found) == {TWICE}
    assert found.counts.completed_twice == 1


def test_done_without_an_end_is_found(story):
    story.enqueued("skipped")
    story.found("skipped")
    assert of(story) == {TO_ITS_END}


# Attempts


def killed(story: Story, *, outcome: str = "crashed", again: float = 10.5) -> None:
    """A job whose process is killed at 10, and which another one runs again."""
    story.enqueued("job", at=9.0)
    story.ran("job", 9.1)
    story.event("kill", 10.0, 10.0, fault="kill-child", worker="w0.1", pids=[CHILD])
    story.ran("job", again, again + 0.1, number=2, pid=OTHER)
    story.found("job", accepted=2, attempts=2, outcomes={1: outcome})


def test_a_killed_process_is_a_reason(story):
    killed(story)
    found = audit(story.evidence())
    assert found.ok
    assert found.counts.reruns == {"crashed": 1}
    assert found.times.redelivery == {"kill-child": Spread(1, 0.5, 0.5, 0.5)}


def test_jobs_that_ended_in_order_with_their_supervisor_count_from_its_death(story):
    story.enqueued("job", at=9.0)
    story.ran("job", 9.1, 10.2, how="cancelled")
    story.event("kill", 10.0, 14.0, fault="kill-supervisor", worker="w0.1", pids=[100, CHILD])
    story.ran("job", 10.5, 11.0, number=2, pid=OTHER)
    story.found("job", accepted=2, outcomes={1: "stopped"})
    assert audit(story.evidence()).times.redelivery == {"kill-supervisor": Spread(1, 0.5, 0.5, 0.5)}


def test_a_restart_of_all_is_counted_from_its_end_as_well(story):
    story.enqueued("job", at=9.0)
    story.ran("job", 9.1)
    story.event("kill", 10.0, 13.0, fault="kill-all", pids=[100, CHILD, 200, OTHER])
    story.ran("job", 13.5, 14.0, number=2, pid=303)
    story.found("job", accepted=2, outcomes={1: "lost"})
    assert audit(story.evidence()).times.redelivery == {
        "kill-all": Spread(1, 3.5, 3.5, 3.5),
        FROM_START: Spread(1, 0.5, 0.5, 0.5),
    }


def test_a_late_redelivery_is_found(story):
    killed(story, again=12.0)
    assert of(story) == {REDELIVERY}


@pytest.mark.parametrize(("until", "found"), [(19.9, set()), (9.9, {REDELIVERY})])
def test_a_job_that_blocks_the_loop_of_its_new_process_excuses_a_late_redelivery(story, until, found):
    story.enqueued("poison", at=1.0, task="block-loop")
    story.event("poison", 1.0, fault="block-loop", ids=["poison"])
    story.ran("poison", until - 9.0, until, pid=OTHER, task="block-loop")
    story.found("poison", task="block-loop")
    killed(story, again=20.0)
    assert of(story) == found


def test_another_fault_excuses_a_late_redelivery(story):
    killed(story, again=12.0)
    story.event("outage", 10.1, 11.5, fault="redis-kill")
    assert of(story) == set()


def deployed(story: Story, *, again: float, pid: int = 303) -> None:
    """A job that outlives the grace time of its worker in a deploy, whose replacement serves from 15 on."""
    for at, name in ((10.0, "w0.1"), (10.5, "w1.2")):
        story.event("term", at, worker=name)
    story.event("up", 10.0, worker="w0.3", pids=[300])
    story.handled.append(Life(303, "worker", [300], 15 * SECOND))
    story.enqueued("job", at=9.0)
    story.ran("job", 9.1, 12.0, how="cancelled")
    story.ran("job", again, again + 0.1, number=2, pid=pid)
    story.found("job", accepted=2, outcomes={1: "stopped"})


@pytest.mark.parametrize(("again", "found"), [(16.0, set()), (17.0, {REDELIVERY})])
def test_a_deploy_is_counted_from_when_there_is_who_takes_over(story, again, found):
    deployed(story, again=again)
    assert of(story) == found


def test_a_deploy_with_somebody_to_take_over_is_counted_from_the_hand_back(story):
    story.event("up", 0.0, worker="w2.4", pids=[400])
    story.handled.append(Life(404, "worker", [400], 0))
    deployed(story, again=14.0)
    assert of(story) == {REDELIVERY}


def test_who_was_killed_or_told_to_stop_takes_nothing_over(story):
    story.event("up", 0.0, worker="w2.4", pids=[400])
    story.handled.append(Life(404, "worker", [400], 0))
    story.event("kill", 1.0, 1.0, fault="kill-child", worker="w2.4", pids=[404])
    deployed(story, again=16.0)
    assert of(story) == set()


def test_an_attempt_of_which_the_store_knows_nothing_is_found(story):
    story.done("job")
    story.ran("job", 5.0, 5.1, number=2, pid=OTHER)
    assert of(story) == {REASON, FENCED}


def test_a_number_used_twice_is_found(story):
    story.done("job")
    story.ran("job", 5.0, 5.1, number=1, pid=OTHER)
    assert of(story) == {REASON, UPWARDS}


def test_after_a_rollback_jobs_run_and_complete_again():
    story = Story(durability="everysec")
    story.done("job", at=5.0)
    story.event("forget", 4.9, 6.0, fault="power-loss")
    story.ran("job", 7.0, 7.1, pid=OTHER)
    found = audit(story.evidence())
    assert found.ok
    assert found.counts.reruns == {"rollback": 1}
    assert found.counts.completed_again == 1


def stale(story: Story, *, accepted: int) -> None:
    """A worker stopped past its lease, whose job ran elsewhere meanwhile; both come to their end."""
    story.enqueued("job", at=9.0)
    story.event("stop", 10.0, 15.0, fault="stop-worker", worker="w0.1", pids=[100, CHILD])
    story.ran("job", 9.9, 15.1)
    story.ran("job", 12.5, 16.0, number=2, pid=OTHER)
    story.found("job", accepted=accepted, attempts=2, outcomes={1: "lost"})


def test_a_stopped_worker_may_overlap_and_is_refused(story):
    stale(story, accepted=2)
    found = audit(story.evidence())
    assert found.ok
    assert found.counts.reruns == {"lost lease": 1}
    assert found.times.redelivery == {"stop-worker": Spread(1, 2.5, 2.5, 2.5)}


def test_the_outcome_of_a_stale_worker_is_found(story):
    stale(story, accepted=1)
    assert of(story) == {FENCED}


def test_a_frozen_worker_may_begin_late_and_is_refused(story):
    story.enqueued("job", at=9.0)
    story.ran("job", 12.5, 12.6, number=2, pid=OTHER)
    story.ran("job", 15.0, 15.1)
    story.found("job", accepted=2, attempts=2, outcomes={1: "lost"})
    found = audit(story.evidence())
    assert found.ok
    assert found.counts.reruns == {"stale": 1}


def test_an_overlap_without_a_lost_lease_is_found(story):
    story.enqueued("job")
    story.ran("job", 5.0, 6.0, how="cancelled")
    story.ran("job", 5.5, 6.5, number=2, pid=OTHER)
    story.found("job", accepted=2, outcomes={1: "stopped"})
    assert of(story) == {OVERLAP}


def crashed(story: Story) -> None:
    """A process that takes itself down in the middle of a job, and whose supervisor is killed much later."""
    story.enqueued("job")
    story.ran("job", 5.0)
    story.ran("job", 5.5, 6.5, number=2, pid=OTHER)
    story.found("job", accepted=2, outcomes={1: "crashed"})
    story.event("kill", 30.0, 30.0, fault="kill-supervisor", worker="w0.1", pids=[100, 303])


def test_a_process_that_was_dead_is_not_killed_again(story):
    crashed(story)
    found = audit(story.evidence())
    assert found.ok
    assert found.times.redelivery == {}


def test_a_dead_process_that_shows_signs_of_life_is_found(story):
    crashed(story)
    story.enqueued("other")
    story.ran("other", 7.0, 7.1)
    story.found("other")
    assert of(story) == {OVERLAP}


# How jobs may end


def test_an_innocent_dead_job_is_found(story):
    story.enqueued("innocent")
    story.ran("innocent", 5.0, 5.1, how="failed")
    story.found("innocent", State.DEAD, error="ConnectionError", failures=1)
    assert of(story) == {CONDEMNED}


def test_jobs_that_always_fail_may_die(story):
    story.enqueued("hopeless", task="doomed")
    story.ran("hopeless", 5.0, 5.1, how="failed", task="doomed")
    story.found("hopeless", State.DEAD, task="doomed", error="ConnectionError", failures=1)
    assert of(story) == set()


@pytest.mark.parametrize("by_us", [True, False])
def test_a_neighbour_condemned_with_a_poison_job_is_found(story, by_us):
    story.event("kill", 30.0, 30.0, fault="kill-supervisor", worker="w0.1", pids=[100])
    story.enqueued("neighbour", at=9.0)
    story.ran("neighbour", 9.5, number=1)
    story.found("neighbour", State.DEAD, error="WorkerCrashed", crashes=3, outcomes={1: "crashed"})
    if by_us:
        story.event("kill", 10.0, 10.0, fault="kill-child", worker="w0.1", pids=[CHILD])
    assert of(story) == (set() if by_us else {CONDEMNED})


def poison(story: Story, fault: str, state: State, *spans: tuple[float, float | None]) -> None:
    story.enqueued("poison", at=9.0, task=fault)
    story.event("poison", 9.0, fault=fault, ids=["poison"])
    for number, (started, ended) in enumerate(spans, 1):
        story.ran("poison", started, ended, number=number, task=fault, pid=300 + number)
    outcomes = dict.fromkeys(range(1, len(spans) + (state is not State.DONE)), "crashed")
    story.found("poison", state, task=fault, outcomes=outcomes, accepted=len(spans) if state is State.DONE else None)


def test_poison_has_to_end_dead(story):
    poison(story, "segfault", State.DEAD, (9.1, None), (9.3, None), (9.5, None))
    assert of(story) == set()


def test_poison_that_is_done_or_goes_on_is_found(story):
    poison(story, "exit", State.SCHEDULED, (9.1, None), (9.3, None))
    assert of(story) == {SURVIVES}


def test_a_blocked_loop_loses_no_lease(story):
    poison(story, "block-loop", State.DONE, (9.1, 19.1))
    assert of(story) == set()


def test_a_blocked_loop_that_loses_its_lease_is_found(story):
    poison(story, "block-loop", State.DONE, (9.1, None), (12.0, 22.0))
    assert of(story) == {BLOCKED}


def test_a_timeout_that_ends_nothing_is_found(story):
    story.enqueued("poison", at=9.0, task="stubborn")
    story.event("poison", 9.0, fault="stubborn", ids=["poison"])
    story.ran("poison", 9.1, 49.1, task="stubborn")
    story.found("poison", State.DEAD, task="stubborn", error="TimeoutError", failures=1)
    assert of(story) == {TIMEOUT}


def test_a_shutdown_that_spends_an_attempt_is_found(story):
    story.enqueued("job")
    story.ran("job", 5.0, 5.5, how="cancelled")
    story.ran("job", 6.0, 6.5, how="cancelled", number=2)
    story.found("job", State.CANCELLED, failures=1, outcomes={1: "stopped"})
    assert of(story) == {FAILURES}


# The fleet


def test_a_supervisor_that_ends_by_itself_is_found(story):
    story.event("exit", 20.0, worker="w0.1", code=0, wanted=True)
    assert of(story) == set()
    story.event("exit", 20.0, worker="w1.2", code=1, wanted=False)
    assert of(story) == {STAY}


@pytest.mark.parametrize(("until", "all_gone"), [(14.0, True), (15.0, False)], ids=["late", "never"])
def test_processes_that_outlive_their_supervisor_are_found(story, until, all_gone):
    story.event("gone", 10.0, 10.4, worker="w0.1")
    assert of(story) == set()
    story.event("gone", 10.0, until, worker="w0.1", wanted=all_gone)
    assert of(story) == {ORPHANS}


def test_a_job_that_waits_for_ever_is_found(story):
    story.enqueued("forgotten")
    story.found("forgotten", State.READY)
    story.quiet = None
    found = audit(story.evidence())
    assert broken(found) == {STUCK}
    assert found.counts.waiting == 1


def test_a_fleet_that_serves_no_more_is_found(story):
    story.fresh = None
    assert of(story) == {FRESH}


def test_a_broken_file_is_found(story):
    story.store_check = "row 3 missing from index ready"
    assert of(story) == {FILE}


def outage(story: Story, *back: float) -> None:
    """Redis is away from 20 to 22, and the workers start jobs again at these times."""
    story.event("outage", 20.0, 22.0, fault="redis-kill")
    for number, at in enumerate(back):
        story.enqueued(f"after-{number}", at=19.0)
        story.ran(f"after-{number}", at, at + 0.1, pid=(CHILD, OTHER)[number])
        story.found(f"after-{number}")


def test_workers_come_back_after_an_outage(story):
    outage(story, 22.5, 23.0)
    found = audit(story.evidence())
    assert found.ok
    assert found.times.resumed == {"redis-kill": Spread(2, 0.5, 1.0, 1.0)}


@pytest.mark.parametrize("back", [(22.5, 28.0), (22.5,)], ids=["late", "never"])
def test_a_worker_that_does_not_come_back_is_found(story, back):
    outage(story, *back)
    assert of(story) == {RESUME}


def test_a_worker_that_was_killed_need_not_come_back(story):
    outage(story, 22.5)
    story.event("kill", 21.0, 21.0, fault="kill-supervisor", worker="w1.2", pids=[200, OTHER])
    assert of(story) == set()


def test_a_spread_is_by_nearest_rank():
    assert spread([n * 10**9 for n in range(1, 101)]) == Spread(100, 50.0, 99.0, 100.0)
    assert spread([]) == Spread(0)
