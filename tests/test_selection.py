import asyncio
import datetime as dt
import re
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import pytest

from spool import Backoff, ConfigError, JobNotFound, Spool, SyncInLoop
from spool.broker import (
    Act,
    Beat,
    Broker,
    Claim,
    Died,
    Done,
    Find,
    Heartbeat,
    Replay,
    Retire,
    Retried,
    Settle,
    Stats,
    connect,
)
from spool.broker.sqlite import leases
from spool.job import Attempt, Ending, State, Tally, encode_ending, new_id
from spool.selection import MAX_DEAD, MAX_DEAD_DAYS, Selection
from spool.selection.pace import Pace
from spool.selection.walk import PAGE
from spool.view import Job
from tests.eventually import eventually
from tests.faulty import FaultyBroker
from tests.tallies import write_tally

TASKS = ("send", "shrink")


class Meddling(FaultyBroker):
    """A broker with which somebody interferes: ``before`` is called with each verb that is to be carried out."""

    before: Callable[[Any], None] | None = None

    def call(self, verb: Any) -> Any:
        meddle, self.before = self.before, None  # what it does is not meddled with
        if meddle is not None:
            meddle(verb)
        self.before = meddle
        return super().call(verb)


class Worker:
    """Claims and settles as a worker would, one incarnation."""

    def __init__(self, broker: Broker, queue: str = "mail", tasks: tuple[str, ...] = TASKS) -> None:
        self.broker, self.queue, self.name = broker, queue, new_id()
        self.seq = 0
        broker.call(Beat(queue, [Heartbeat(self.name, tasks=tasks)]))

    def claim(self, count: int = 1, *, trial: bool = False) -> list[str]:
        self.seq += 1
        claimed = self.broker.call(Claim(self.queue, self.name, self.seq, (count, 0), trial=trial))
        return [id for id, _ in claimed.jobs]

    def settle(self, settlement: Any) -> None:
        settled = self.broker.call(Settle(self.queue, self.name, self.seq, [settlement]))
        assert settled.accepted == 1

    def let_die(self, error: str = "ValueError: no", *, generation: int = 0) -> str:
        (id,) = self.claim()
        self.settle(Died(id, self.seq, failed(error, generation=generation)))
        return id

    def finish(self, key: str | None = None) -> str:
        (id,) = self.claim()
        now = store_time(self.broker)
        ending = Ending(1, "done", "send", "", now, now, now, 1, key=key)
        self.settle(Done(id, self.seq, encode_ending(ending)))
        return id

    def crash(self) -> None:
        self.broker.call(Retire(self.queue, self.name, "crashed"))


def failed(error: str = "ValueError: no", *, generation: int = 0) -> str:
    kind, _, message = error.partition(": ")
    attempts = [Attempt(1, "died", 1000, 2000, "w", kind, message, "Traceback")]
    return write_tally(Tally(attempts=1, failures=1, generation=generation), attempts)


@pytest.fixture(params=["sqlite", "redis"])
def broker(request, tmp_path) -> Iterator[Meddling]:
    url = f"sqlite:///{tmp_path}/spool.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    broker = Meddling(connect(url))
    yield broker
    broker.close()


@pytest.fixture
def app(broker) -> Spool:
    app = Spool(broker)

    @app.task(queue="mail", backoff=Backoff(base=0))
    def send(number: int) -> int:
        return number

    @app.task(queue="files")
    def shrink(path: str) -> None: ...

    return app


@pytest.fixture
def send(app):
    return app.tasks["send"]


def store_time(broker: Broker) -> int:
    return broker.call(Stats("mail")).now


def ids(jobs) -> list[str]:
    return [job.id for job in jobs]


def enqueue(task, count: int) -> list[str]:
    return [task.enqueue(number).id for number in range(count)]


def job_in(app: Spool, state: State, task: str = "send") -> Job:
    (job,) = app.jobs(state=state, task=task)
    return job


def kill(app: Spool, count: int, error: str = "ValueError: no") -> list[str]:
    """Enqueue jobs and let them die, one after the other."""
    enqueue(app.tasks["send"], count)
    worker = Worker(app.broker)
    return [worker.let_die(error) for _ in range(count)]


def suspect(app: Spool) -> str:
    """Enqueue a job that was there when two workers crashed."""
    handle = app.tasks["send"].options(priority="critical").enqueue(0)
    for _ in range(2):
        worker = Worker(app.broker)
        assert worker.claim() == [handle.id]
        worker.crash()
    assert handle.status() is State.SUSPECT
    return handle.id


def park(app: Spool) -> str:
    """Enqueue a job of a task that a worker does not know."""
    handle = app.tasks["send"].options(priority="critical").enqueue(0)
    assert Worker(app.broker, tasks=("other",)).claim() == []
    assert handle.status() is State.PARKED
    return handle.id


class TestChoosing:
    def test_by_queue_state_and_task(self, app, send):
        first, second = enqueue(send, 2)
        later = send.options(delay=60).enqueue(3).id
        elsewhere = app.tasks["shrink"].enqueue("x").id
        assert set(ids(app.jobs())) == {first, second, later, elsewhere}
        assert ids(app.jobs(queue="files")) == [elsewhere]
        assert set(ids(app.jobs(queue=["files", "mail"]))) == {first, second, later, elsewhere}
        assert ids(app.jobs(state="ready", queue="mail")) == [first, second]
        assert ids(app.jobs(state=[State.SCHEDULED, "ready"], task="send")) == [later, first, second]
        assert ids(app.jobs(task=app.tasks["shrink"])) == [elsewhere]
        assert ids(app.jobs(queue=[])) == ids(app.jobs(state=())) == ids(app.jobs(id=[])) == []
        assert ids(app.jobs(queue="nowhere")) == []

    def test_by_key_in_every_state(self, app, send):
        chosen = send.options(key="order-17")
        made = [chosen.enqueue(number).id for number in range(3)]
        worker = Worker(app.broker)
        dead, done, running = worker.let_die(), worker.finish(key="order-17"), worker.claim()[0]
        assert made == [dead, done, running]
        later = send.options(key="order-17", delay=60).enqueue(3).id
        cancelled = chosen.enqueue(4)
        cancelled.cancel()
        ready = chosen.enqueue(5).id
        send.options(key="order-18").enqueue(6)
        send.enqueue(7)

        found = {job.id: job for job in app.jobs(key="order-17")}

        assert set(found) == {*made, later, cancelled.id, ready}
        assert {str(job.state) for job in found.values()} == {
            *("dead", "done", "running", "scheduled", "cancelled", "ready")
        }
        assert {job.key for job in found.values()} == {"order-17"}
        assert app.jobs(key="order-17", state="ready").count() == 1
        assert app.jobs(key="order-17").delete() == 5, "all but the running one"

    def test_by_what_is_an_id_a_task_or_a_key(self, app, send):
        by_id = send.options(id="order-17").enqueue(1)
        elsewhere = app.tasks["shrink"].options(id="order-17").enqueue("x")
        by_key = send.options(key="order-17").enqueue(2)
        both = send.options(id="both", key="both").enqueue(3)
        assert set(map(str, app.jobs(search="order-17"))) == {str(by_id), str(elsewhere), str(by_key)}
        assert ids(app.jobs(search="mail/order-17")) == ["order-17"]
        assert set(map(str, app.jobs(search="shrink"))) == {str(elsewhere)}
        assert ids(app.jobs(search="both")) == [both.id], "once"
        assert ids(app.jobs(search="order-17", queue="files")) == ["order-17"]
        assert ids(app.jobs(search="order-17", state="dead")) == []
        assert ids(app.jobs(search="nothing")) == ids(app.jobs(search="/")) == ids(app.jobs(search="a/b/c")) == []

    def test_an_id_is_found_before_all_others_are_looked_at(self, app, send):
        enqueue(send, 60)
        wanted = send.options(id="wanted").enqueue(1)
        send.options(key="wanted").enqueue(2)
        first = app.jobs(search="wanted").page(limit=1)
        assert ids(first.jobs) == [wanted.id]
        found, cursor = list(first.jobs), first.cursor
        while cursor:
            page = app.jobs(search="wanted").page(cursor, 1)
            found, cursor = [*found, *page.jobs], page.cursor
        assert [job.key for job in found] == [None, "wanted"]

    def test_by_error(self, app):
        (timeout,) = kill(app, 1, "TimeoutError: after 30 s")
        (value,) = kill(app, 1, "ValueError: Timeout is no number")
        assert set(ids(app.jobs(error="Timeout"))) == {timeout, value}
        assert ids(app.jobs(error="TimeoutError")) == [timeout]
        assert ids(app.jobs(error="ValueError: Timeout")) == [value]
        assert ids(app.jobs(error="timeout")) == []

    def test_by_the_time_of_death(self, app, broker):
        (early,) = kill(app, 1)
        died = app.job(early).finished
        eventually(lambda: store_time(broker) > died)
        (late,) = kill(app, 1)
        between = dt.datetime.fromtimestamp((died + 1) / 1000, dt.UTC)
        assert ids(app.jobs(state="dead", since=between)) == [late]
        assert ids(app.jobs(state="dead", until=between)) == [early]
        assert ids(app.jobs(state="dead", since=3600)) == [late, early]
        assert ids(app.jobs(state="dead", since=dt.timedelta(hours=2), until=dt.timedelta(hours=1))) == []
        assert ids(app.jobs(state="dead", until=3600)) == []

    def test_dead_jobs_that_are_too_old_are_not_read(self, app, broker):
        kill(app, PAGE + 1)
        broker.asked.clear()
        assert app.jobs(state="dead", since=dt.datetime(2100, 1, 1, tzinfo=dt.UTC)).count() == 0
        assert len([verb for verb in broker.asked if isinstance(verb, Find)]) == 1

    def test_waiting_jobs_by_the_time_of_creation(self, app, send):
        job = send.enqueue(1).job()
        created = dt.datetime.fromtimestamp(job.created / 1000, dt.UTC)
        assert ids(app.jobs(since=created)) == [job.id]
        assert ids(app.jobs(until=created)) == []

    @pytest.mark.parametrize("among", [None, ["mail", "files"]])
    def test_an_id_of_several_queues_names_none(self, app, send, among):
        send.options(id="order-17").enqueue(1)
        app.tasks["shrink"].options(id="order-17").enqueue("x")
        chosen = app.jobs(id=["mail/order-17", "order-17"], queue=among)
        for act in (list, Selection.count, Selection.page, Selection.cancel, Selection.delete):
            with pytest.raises(ConfigError, match="'order-17' is that of files/order-17 and mail/order-17: name the"):
                act(chosen)
        assert app.jobs(state="ready").count() == 2
        assert app.jobs(id="order-17", queue="files").cancel() == 1
        assert app.jobs(id="mail/order-17").cancel() == 1

    def test_by_id(self, app, send):
        first, second, third = enqueue(send, 3)
        assert ids(app.jobs(id=f"mail/{first}")) == [first]
        assert ids(app.jobs(id=[third, f"mail/{first}", third])) == [third, first]
        assert ids(app.jobs(id=second, state="dead")) == []
        assert ids(app.jobs(id=f"mail/{second}", queue="files")) == []
        with pytest.raises(JobNotFound, match="'nothing'"):
            list(app.jobs(id=[first, "nothing"]))

    def test_each_job_is_listed_once_page_by_page(self, app, broker, send):
        app.enqueue_many(send.call(number) for number in range(2 * PAGE + 1))
        assert len(set(ids(app.jobs(queue="mail")))) == 2 * PAGE + 1
        assert all(verb.limit <= PAGE for verb in broker.asked if isinstance(verb, Find))

    async def test_in_a_loop(self, app, send):
        first, second = [(await send.aenqueue(number)).id for number in range(2)]
        chosen = app.jobs(queue="mail")
        assert [job.id async for job in chosen] == [first, second]
        assert await chosen.acount() == 2
        assert await app.jobs(id=first).acancel("enough") == 1
        assert (await app.ajob(first)).error == "enough"
        assert await chosen.adelete() == 2
        assert (await chosen.agroups()).total == await chosen.areplay() == 0
        await app.aclose()

    async def test_sync_methods_refuse_to_block_a_loop(self, app):
        chosen = app.jobs(queue="mail")
        with pytest.raises(SyncInLoop, match="async for"):
            list(chosen)
        for method in ("count", "groups", "cancel", "replay", "delete"):
            with pytest.raises(SyncInLoop, match=f"a{method}"):
                getattr(chosen, method)()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"state": "asleep"}, "asleep.*scheduled, ready"),
            ({"state": 3}, "state"),
            ({"queue": "no such queue!"}, "no such queue!"),
            ({"queue": ["mail", 3]}, "queue"),
            ({"task": len}, "task"),
            ({"error": ""}, "error"),
            ({"error": ValueError}, "error"),
            ({"id": 17}, "id"),
            ({"since": "2h"}, "since"),
            ({"until": -1}, "until"),
            ({"since": dt.datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001 - that is the point
        ],
    )
    def test_what_cannot_choose(self, given, said):
        with pytest.raises(ConfigError, match=said):
            Spool("sqlite://:memory:").jobs(**given)

    def test_it_shows_what_it_chooses(self):
        app = Spool("sqlite://:memory:")
        assert repr(app.jobs(state="dead", error="x")) == "<Selection states=(<State.DEAD: 'dead'>,), error='x'>"
        assert repr(app.jobs()) == "<Selection of all jobs>"


class TestCounting:
    def test_every_state(self, app, send):
        kill(app, 2)
        suspect(app)
        enqueue(send, 2)
        worker = Worker(app.broker)
        worker.finish()
        worker.claim()
        park(app)
        enqueue(send, 3)
        send.options(delay=60).enqueue(1)
        send.options(delay=60).enqueue(2).cancel()
        counts = {state: app.jobs(state=state).count() for state in State}
        assert counts == {state: len(list(app.jobs(state=state))) for state in State}
        assert counts[State.DEAD] == 2
        assert all(counts.values())
        assert app.jobs().count() == app.jobs(since=3600).count() == sum(counts.values())

    def test_where_the_store_knows_the_number_no_job_is_read(self, app, broker, send):
        enqueue(send, 3)
        broker.asked.clear()
        assert app.jobs(queue="mail", state=["ready", "dead"]).count() == 3
        assert not any(isinstance(verb, Find) for verb in broker.asked)
        assert app.jobs(queue="mail", task="send").count() == 3

    def test_groups(self, app, send):
        enqueue(send, 6)
        worker = Worker(app.broker)
        last = [worker.let_die(f"LookupError: user {number} not found") for number in range(4)][-1]
        worker.let_die("OSError: disk full")
        (id,) = worker.claim()
        worker.settle(Retried(id, worker.seq, failed("OSError: disk full"), 60_000))
        assert [(each.count, each.message) for each in app.jobs(state="dead").groups().top] == [
            (4, "user <n> not found"),
            (1, "disk full"),
        ]
        found = app.jobs(task="send").groups(limit=1)
        assert (found.total, found.others) == (6, 2)
        assert app.jobs(state="dead", error="LookupError").groups().top[0].count == 4
        assert app.job(found.top[0].sample).task == "send"
        assert last
        with pytest.raises(ConfigError, match="limit"):
            app.jobs().groups(0)


class TestCancelling:
    def test_every_state_that_has_not_ended(self, app, send):
        dead, suspected = kill(app, 1), suspect(app)
        done, running = enqueue(send, 2)
        worker = Worker(app.broker)
        assert worker.finish() == done
        assert worker.claim() == [running]
        parked = park(app)
        (ready,) = enqueue(send, 1)
        scheduled = send.options(delay=60).enqueue(1).id
        elsewhere = app.tasks["shrink"].enqueue("x").id

        assert app.jobs(queue="mail").cancel("enough") == 5
        cancelled = {job.id: job.error for job in app.jobs(state="cancelled")}
        assert cancelled == dict.fromkeys((parked, suspected, ready, scheduled), "enough")
        orders = app.broker.call(Beat("mail", [Heartbeat(worker.name)])).orders[0]
        assert orders.cancel == {running: "enough"}
        assert app.job(done).state is State.DONE
        assert ids(app.jobs(state="dead")) == dead
        assert app.job(elsewhere).state is State.READY
        assert app.jobs(queue="mail").cancel() == 0

    def test_a_job_that_goes_back_meanwhile(self, app, broker, send):
        """It runs while the waiting ones are looked at, and waits for its retry when the running ones are."""
        (id,) = enqueue(send, 1)
        worker = Worker(broker)
        assert worker.claim() == [id]

        def fail(verb):
            if isinstance(verb, Find) and verb.state is State.RUNNING and app.job(id).state is State.RUNNING:
                worker.settle(Retried(id, worker.seq, failed(), 60_000))

        broker.before = fail
        assert app.jobs(task=send).cancel() == 1
        assert app.job(id).state is State.CANCELLED

    def test_a_job_that_is_parked_meanwhile(self, app, broker, send):
        (id,) = enqueue(send, 1)
        worker = Worker(broker, tasks=("other",))

        def claim(verb):
            if isinstance(verb, Find) and verb.state is State.READY and app.job(id).state is State.READY:
                assert worker.claim() == []

        broker.before = claim
        assert app.jobs(queue="mail").cancel() == 1
        assert app.job(id).state is State.CANCELLED

    def test_one_that_was_told_to_stop_and_goes_back_counts_once(self, app, broker, send):
        (id,) = enqueue(send, 1)
        worker = Worker(broker)
        assert worker.claim() == [id]

        def fail(verb):
            if isinstance(verb, Find) and verb.state is State.SCHEDULED and told == [id]:
                told.append("and went back")
                worker.settle(Retried(id, worker.seq, failed(), 60_000))
            if isinstance(verb, Act):
                told.append(id)

        told: list[str] = []
        broker.before = fail
        assert app.jobs(queue="mail").cancel() == 1
        assert "and went back" in told
        assert app.job(id).state is State.CANCELLED

    def test_more_than_a_page(self, app, send):
        app.enqueue_many(send.call(number) for number in range(2 * PAGE + 1))
        assert app.jobs(queue="mail").cancel() == 2 * PAGE + 1
        assert app.jobs(state="ready").count() == 0

    def test_producers_that_go_on_do_not_keep_it_for_ever(self, app, broker, send):
        def produce(verb):
            if isinstance(verb, Find) and verb.state is State.READY:
                send.enqueue(0)

        broker.before = produce
        assert app.jobs(queue="mail").cancel() == 20

    def test_later_rounds_have_the_time_bounds_of_the_first(self, app, broker, send):
        (old,) = enqueue(send, 1)
        eventually(lambda: store_time(broker) > app.job(old).created)
        new = []

        def produce(verb):
            if isinstance(verb, Find) and verb.state is State.READY:
                new.append(send.enqueue(0).id)
                eventually(lambda: store_time(broker) > app.job(new[-1]).created)

        broker.before = produce
        assert app.jobs(queue="mail", until=0).cancel() == 1
        assert ids(app.jobs(state="cancelled")) == [old]
        assert ids(app.jobs(state="ready"))[: len(new)] == new

    def test_by_id_whatever_becomes_of_the_job(self, app, broker, send):
        (id,) = enqueue(send, 1)
        worker = Worker(broker)
        broker.before = lambda verb: worker.claim() if isinstance(verb, Act) else None
        assert app.jobs(id=id).cancel("enough") == 1
        assert broker.call(Beat("mail", [Heartbeat(worker.name)])).orders[0].cancel == {id: "enough"}

    def test_an_unknown_id_changes_nothing(self, app, send):
        (id,) = enqueue(send, 1)
        with pytest.raises(JobNotFound):
            app.jobs(id=[id, "mail/unknown"]).cancel()
        assert app.job(id).state is State.READY

    def test_a_job_that_leaves_the_states_chosen_is_not_followed(self, app, broker, send):
        first, second = enqueue(send, 2)
        worker, claimed = Worker(broker), []

        def claim(verb):
            if isinstance(verb, Act) and not claimed:
                claimed.extend(worker.claim())

        broker.before = claim
        assert app.jobs(queue="mail", state=["ready", "scheduled"]).cancel() == 1
        assert broker.call(Beat("mail", [Heartbeat(worker.name)])).orders[0].cancel == {}
        assert (claimed, ids(app.jobs(state="cancelled"))) == ([first], [second])

    def test_a_long_reason_is_cut(self, app, send):
        (id,) = enqueue(send, 1)
        app.jobs(id=id).cancel("é" * 10_000)
        assert len(app.job(id).error.encode()) == 4096

    def test_it_is_remembered_as_long_as_the_results(self, broker):
        app = Spool(broker, dedupe_window=60)
        app.task(queue="mail", result_ttl=7200)(len)
        app.tasks["len"].enqueue("x")
        app.jobs(queue="mail").cancel()
        (act,) = [verb for verb in broker.asked if isinstance(verb, Act)]
        assert act.action.ttl == 7_200_000


class TestReplaying:
    def test_a_new_generation_oldest_first(self, app):
        dead = kill(app, 5)
        assert app.jobs(state="dead").replay() == 5
        jobs = list(app.jobs(state="ready"))
        assert ids(jobs) == dead
        assert {(job.generation, job.failures, job.attempts) for job in jobs} == {(1, 0, 1)}
        assert app.broker.call(Find("mail", State.DEAD)).jobs == []

    def test_only_what_is_chosen(self, app, send):
        kept, chosen = kill(app, 2, "ValueError: no"), kill(app, 2, "TimeoutError: slow")
        waiting = send.options(delay=60).enqueue(0).id
        assert app.jobs(error="TimeoutError").replay() == 2
        assert ids(app.jobs(state="ready")) == chosen
        assert set(ids(app.jobs(state="dead"))) == set(kept)
        assert ids(app.jobs(state="scheduled")) == [waiting]

    def test_by_id(self, app):
        first, second, third = kill(app, 3)
        assert app.jobs(id=[first, third]).replay() == 2
        assert ids(app.jobs(state="ready")) == [first, third]
        assert ids(app.jobs(state="dead")) == [second]

    def test_paced_in_order_each_once_though_they_die_again(self, app, broker):
        """A worker is at it all the while, and every job dies again at once."""
        count = 2 * PAGE + 7
        dead = kill(app, count)
        worker, again, progress = Worker(broker), [], []

        def let_die_again(verb):
            while broker.call(Find("mail", State.READY, "", 1)).jobs:
                again.append(worker.let_die(generation=1))

        broker.before = let_die_again
        broker.asked.clear()
        replayed = app.jobs(state="dead").replay(rate=2000, on_progress=lambda *now: progress.append(now))
        let_die_again(None)
        assert replayed == count
        assert again == dead
        steps = [len(verb.ids) for verb in broker.asked if isinstance(verb, Act)]
        assert steps == [100] * 5 + [7]
        assert progress == [(done, count) for done in (100, 200, 300, 400, 500, 507)]
        assert app.jobs(state="dead").count() == count
        assert app.broker.call(Find("mail", State.DEAD, "", 1)).jobs[0].tally.startswith("[1,1,1,0,0,1]")

    def test_jobs_that_die_after_it_began_stay(self, app, broker, send):
        """By the store's time: one that dies while the dead ones are looked at is not of this replay."""
        kill(app, 1)
        enqueue(send, 1)
        worker, late = Worker(broker), []

        def die(verb):
            if isinstance(verb, Find) and not late:
                began = store_time(broker)
                eventually(lambda: store_time(broker) > began)
                late.append(worker.let_die())

        broker.before = die
        chosen = app.jobs(state="dead")
        assert chosen.replay() == 1
        assert ids(chosen) == late

    def test_several_queues(self, app, broker):
        kill(app, 2)
        app.tasks["shrink"].enqueue("x")
        Worker(broker, "files").let_die()
        progress = []
        assert app.jobs(state="dead").replay(on_progress=lambda *now: progress.append(now)) == 3
        assert progress == [(1, 1), (3, 3)]
        assert app.jobs(state="dead").count() == 0

    def test_a_job_that_is_gone_is_passed_over(self, app, broker):
        first, second = kill(app, 2)

        def delete(verb):
            if isinstance(verb, Act) and isinstance(verb.action, Replay):
                app.jobs(id=first).delete()

        broker.before = delete
        assert app.jobs(state="dead").replay() == 1
        assert ids(app.jobs(state="ready")) == [second]

    async def test_in_a_loop_it_sleeps_with_asyncio(self, app, monkeypatch):
        await asyncio.to_thread(kill, app, 3)
        pauses = []
        own, sleep = asyncio.get_running_loop(), asyncio.sleep

        async def note(seconds):
            if asyncio.get_running_loop() is own:  # a server in another thread sleeps too
                pauses.append(seconds)
            else:
                await sleep(seconds)

        with monkeypatch.context() as patched:
            patched.setattr("asyncio.sleep", note)
            assert await app.jobs(state="dead").areplay(rate=0.1) == 3
        await app.aclose()
        assert len(pauses) == 2
        assert all(0 < pause <= 10 for pause in pauses)

    @pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "fast", True])
    def test_a_rate_is_a_number(self, rate):
        with pytest.raises(ConfigError, match="rate"):
            Spool("sqlite://:memory:").jobs(state="dead").replay(rate)


class TestPace:
    def run(self, pace: Pace, steps: int, *, takes: int = 0, now: int = 1_000_000) -> list[int]:
        """Return when each step went, in a time in which nothing else happens."""
        went = []
        for _ in range(steps):
            now += round(pace.owed * 1000)
            went.append(now - 1_000_000)
            now += takes
            pace.went(pace.step, now)
        return went

    @pytest.mark.parametrize(("rate", "step"), [(0.5, 1), (10, 1), (100, 5), (2000, 100), (1e9, PAGE), (None, PAGE)])
    def test_steps_are_small(self, rate, step):
        assert Pace(rate).step == step

    @pytest.mark.parametrize(("rate", "span"), [(0.5, 2000), (10, 100), (100, 50)])
    def test_it_is_even_however_long_a_step_takes(self, rate, span):
        assert self.run(Pace(rate), 4) == [0, span, 2 * span, 3 * span]
        assert self.run(Pace(rate), 4, takes=20) == [0, span + 20, 2 * span + 20, 3 * span + 20]

    def test_a_store_that_stood_still_gets_no_burst(self):
        pace = Pace(100)
        self.run(pace, 3)
        pace.went(5, 1_010_000)
        assert pace.owed == 0  # the one step that it is behind
        assert self.run(pace, 4, now=1_010_000) == [10_000, 10_050, 10_100, 10_150]

    def test_a_clock_that_jumps_back_stops_nothing(self):
        pace = Pace(100)
        self.run(pace, 3)
        pace.went(5, 1)
        assert pace.owed == 0.05

    def test_what_changed_nothing_costs_no_time(self):
        pace = Pace(1)
        pace.went(0, 1_000_000)
        assert pace.owed == 0

    def test_without_a_rate_there_is_nothing_to_wait_for(self):
        assert self.run(Pace(None), 3) == [0, 0, 0]


CHOSEN_DEAD: list[dict[str, Any]] = [
    {"state": "dead"},
    {"error": "ValueError"},
    {"state": ["dead", "done"], "error": "ValueError"},
]


class TestDeleting:
    def test_everything_but_what_runs(self, app, send):
        kill(app, 1)
        suspect(app)
        done, running = enqueue(send, 2)
        worker = Worker(app.broker)
        assert worker.finish() == done
        assert worker.claim() == [running]
        park(app)
        enqueue(send, 1)
        send.options(delay=60).enqueue(1)
        send.options(delay=60).enqueue(1).cancel()
        assert app.jobs(queue="mail").delete() == 7
        assert ids(app.jobs()) == [running]

    def test_by_error(self, app):
        kept, gone = kill(app, 2), kill(app, 2, "TimeoutError: slow")
        assert app.jobs(state="dead", error="TimeoutError").delete() == 2
        assert set(ids(app.jobs(state="dead"))) == set(kept)
        with pytest.raises(JobNotFound):
            app.job(gone[0])

    @pytest.mark.parametrize("chosen", CHOSEN_DEAD)
    @pytest.mark.parametrize("by_id", [False, True])
    def test_a_dead_job_that_somebody_replays_meanwhile(self, app, broker, chosen, by_id):
        replayed, done, dead = killed = kill(app, 3)

        def replay(verb):
            if isinstance(verb, Act) and app.job(done).state is State.DEAD:
                assert broker.call(Act("mail", Replay(), [done])).changed
                assert Worker(broker).finish() == done
                assert broker.call(Act("mail", Replay(), [replayed])).changed

        broker.before = replay
        assert app.jobs(id=killed if by_id else None, **chosen).delete() == 1
        assert (app.job(replayed).state, app.job(done).state) == (State.READY, State.DONE)
        with pytest.raises(JobNotFound):
            app.job(dead)

    def test_by_id_whatever_becomes_of_the_job(self, app, broker):
        (id,) = kill(app, 1)
        broker.before = lambda verb: broker.call(Act("mail", Replay(), [id])) if isinstance(verb, Act) else None
        assert app.jobs(id=id).delete() == 1
        with pytest.raises(JobNotFound):
            app.job(id)


class TestNotByAccident:
    @pytest.mark.parametrize("method", ["cancel", "replay", "delete"])
    def test_all_jobs_have_to_be_meant(self, app, send, method):
        dead, ready = kill(app, 1)[0], send.enqueue(1).id
        with pytest.raises(ConfigError, match="everything=True"):
            getattr(app.jobs(), method)()
        assert set(ids(app.jobs())) == {dead, ready}
        assert app.job(dead).state is State.DEAD
        changed = getattr(app.jobs(), method)(everything=True)
        assert changed == (2 if method == "delete" else 1)

    @pytest.mark.parametrize(
        ("method", "state"),
        [("cancel", "dead"), ("cancel", ["done", "dead"]), ("replay", "ready"), ("delete", "running")],
    )
    def test_states_to_which_it_does_not_apply(self, method, state):
        with pytest.raises(ConfigError, match=f"cannot {method}"):
            getattr(Spool("sqlite://:memory:").jobs(state=state), method)()


def test_the_bounds_are_those_of_the_brokers():
    day = 86_400_000
    assert leases.MAX_DEAD == MAX_DEAD
    assert MAX_DEAD_DAYS * day == leases.DEAD_FOR
    lua = (resources.files("spool.broker.redis") / "lua" / "_end.lua").read_text()
    assert re.search(rf"now - {MAX_DEAD_DAYS} \* DAY", lua)
    assert re.search(rf"- {MAX_DEAD}\b", lua)


def test_pages_lead_through_all_of_them(app):
    app.enqueue_many(app.tasks["send"].call(number) for number in range(7))
    app.enqueue_many(app.tasks["shrink"].options(delay=60).call(str(number)) for number in range(5))

    def pages(limit: int, **filters: Any) -> list[list[str]]:
        found, cursor = [], ""
        while True:
            page = app.jobs(**filters).page(cursor, limit)
            found.append([job.id for job in page.jobs])
            cursor = page.cursor
            if not cursor:
                return found

    for queue in ("a", "b", "c"):  # and those that are known by their ids
        app.tasks["send"].options(id="daily", queue=queue).enqueue(1)
    app.tasks["send"].options(id="other", key="daily", queue="a").enqueue(1)
    names = [*(f"{queue}/daily" for queue in "cba"), *(f"mail/{job.id}" for job in app.jobs(queue="mail"))]
    for limit in (1, 2, 3, 4, 12, 100):
        for filters in ({}, {"id": names}, {"id": names, "queue": ["a", "mail"]}, {"search": "daily"}):
            found = pages(limit, **filters)
            assert all(len(page) <= limit for page in found)
            assert sorted(id for page in found for id in page) == sorted(job.id for job in app.jobs(**filters))
    assert sum(map(len, pages(2, queue="files", state=["ready", "scheduled"]))) == 5
    assert pages(10, task="nothing", queue="mail") == [[]]


def test_a_cursor_of_a_queue_that_is_gone_leads_on(app):
    app.enqueue_many(app.tasks["send"].call(number) for number in range(3))
    app.enqueue_many(app.tasks["shrink"].call(str(number)) for number in range(3))
    first = app.jobs(state="ready").page("", 2)

    rest = app.jobs(state="ready", queue="mail").page(first.cursor, 10)

    assert [job.queue for job in first.jobs] == ["files", "files"]
    assert [job.queue for job in rest.jobs] == ["mail", "mail", "mail"]


def test_a_cursor_among_named_jobs_leads_on_when_they_move(app):
    for queue in ("a", "b", "c"):
        app.tasks["send"].options(id="daily", queue=queue).enqueue(1)
    first = app.jobs(search="daily").page("", 1)
    assert [job.queue for job in first.jobs] == ["a"]
    app.jobs(id=["a/daily", "b/daily"]).delete()
    assert [job.queue for job in app.jobs(search="daily").page(first.cursor, 5).jobs] == ["c"]


@pytest.mark.parametrize("name", ["\udcff", "mail/\udcff", "\ud800/x"])
def test_an_id_that_no_job_can_have_is_not_known(app, send, name):
    send.enqueue(1)
    for ask in (app.job, lambda name: list(app.jobs(id=name)), lambda name: app.jobs(id=[name]).cancel()):
        with pytest.raises(JobNotFound, match=r"no job .* is known"):
            ask(name)
    with pytest.raises(JobNotFound, match="no job 'x' is known"):
        app.job("x", queue="\ud800")
    assert (list(app.jobs(search=name)), list(app.jobs(error=name))) == ([], [])
    with pytest.raises(ConfigError, match="not text"):
        send.handle(name)
    with pytest.raises(ConfigError, match="not text"):
        send.handle("x", queue=name)


@pytest.mark.parametrize("cursor", ["x", "é", "bm8=", "W10="])
def test_what_is_no_cursor_is_refused(app, cursor):
    with pytest.raises(ConfigError, match="cursor"):
        app.jobs().page(cursor)


async def test_a_page_in_an_event_loop(app):
    await app.tasks["send"].aenqueue(1)

    with pytest.raises(SyncInLoop, match="apage"):
        app.jobs().page()
    assert len((await app.jobs().apage()).jobs) == 1
    await app.aclose()
