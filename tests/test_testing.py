import asyncio
import datetime as dt
import threading
import uuid
from typing import Any, ClassVar

import pytest

from spool import (
    Backoff,
    Cancel,
    ConfigError,
    JobCancelled,
    JobFailed,
    PayloadError,
    Release,
    ResultTimeout,
    Retry,
    Spool,
    State,
    SyncInLoop,
    current_job,
    testing,
)
from spool.broker import Around, Beat, Heartbeat, connect
from spool.testing import EnqueuedJob


@pytest.fixture
def app():
    return Spool("redis://nowhere.invalid")


@pytest.fixture
def tasks(app):
    """What was called, in order, by tasks of every kind."""

    class Tasks:
        called: ClassVar = []

        @staticmethod
        @app.task(queue="mail")
        async def send(to: str, when: dt.date | None = None) -> uuid.UUID:
            Tasks.called.append(("send", to, when))
            return uuid.UUID(int=len(to))

        @staticmethod
        @app.task
        def add(a: int, b: int) -> int:
            Tasks.called.append(("add", a, b))
            return a + b

        @staticmethod
        @app.task(process=True)
        def crunch(n: int) -> int:
            Tasks.called.append(("crunch", n))
            return n * n

        @staticmethod
        @app.task(retries=2, backoff=Backoff(base=100, jitter=False))
        def fail() -> None:
            Tasks.called.append(("fail", current_job().attempt))
            raise ValueError("no")

    return Tasks


class TestIsolated:
    def test_nothing_runs_by_itself(self, app, tasks):
        with testing.isolated(app):
            handle = tasks.add.enqueue(1, 2)
            assert handle.status() is State.READY
            with pytest.raises(ResultTimeout, match=r"default/\w+ is ready, and nothing runs it here by itself"):
                handle.result()
        assert not tasks.called

    def test_run_until_idle(self, app, tasks):
        with testing.isolated(app):
            handles = [tasks.add.enqueue(1, 2), tasks.send.enqueue("ada", dt.date(2024, 1, 1)), tasks.crunch.enqueue(3)]
            assert testing.run_until_idle(app) == 3
            assert [handle.result() for handle in handles] == [3, uuid.UUID(int=3), 9]
            assert testing.run_until_idle(app) == 0
        assert sorted(tasks.called) == [("add", 1, 2), ("crunch", 3), ("send", "ada", dt.date(2024, 1, 1))]

    async def test_in_a_loop(self, app, tasks):
        with testing.isolated(app):
            handle = await tasks.send.aenqueue("ada")
            with pytest.raises(ResultTimeout):
                await handle.aresult()
            assert await testing.arun_until_idle(app) == 1
            assert await handle.aresult() == uuid.UUID(int=3)
            with pytest.raises(SyncInLoop, match="arun_until_idle"):
                testing.run_until_idle(app)

    def test_the_store_is_empty_at_first_and_gone_afterwards(self, app, tasks):
        for _ in range(2):
            with testing.isolated(app):
                assert testing.enqueued(app) == []
                tasks.add.enqueue(1, 2)
        with pytest.raises(ConfigError, match="only inside of"):
            testing.enqueued(app)

    def test_what_jobs_enqueue_runs_too(self, app):
        seen = []

        @app.task
        def countdown(n: int) -> None:
            seen.append(n)
            if n:
                countdown.enqueue(n - 1)

        with testing.isolated(app):
            countdown.enqueue(3)
            assert testing.run_until_idle(app) == 4
        assert seen == [3, 2, 1, 0]

    def test_jobs_may_wait_for_each_other(self, app, tasks):
        @app.task
        async def outer() -> int:
            return await (await tasks.add.aenqueue(1, 2)).aresult()

        with testing.isolated(app):
            handle = outer.enqueue()
            assert testing.run_until_idle(app) == 2
            assert handle.result() == 3

    def test_a_running_job_can_be_cancelled(self, app):
        @app.task
        async def forever() -> None:
            await asyncio.Event().wait()

        @app.task
        async def cancel(id: str) -> bool:
            return await forever.handle(id).acancel()

        with testing.isolated(app):
            handle = forever.enqueue()
            cancelled = cancel.enqueue(handle.id)
            testing.run_until_idle(app)
            assert cancelled.result() is True
            with pytest.raises(JobCancelled):
                handle.result()

    def test_many(self, app, tasks):
        with testing.isolated(app):
            app.enqueue_many(tasks.add.options(queue=f"q{n % 3}").call(n, n) for n in range(500))
            assert testing.run_until_idle(app) == 500
        assert len(tasks.called) == 500


class TestTime:
    def test_delayed_jobs_run_when_their_time_has_come(self, app, tasks):
        with testing.isolated(app):
            late = tasks.add.options(delay=100).enqueue(1, 1)
            early = tasks.add.options(at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=50)).enqueue(2, 2)
            assert testing.run_until_idle(app) == 0
            assert testing.run_until_idle(app, advance=60) == 1
            assert (early.status(), late.status()) == (State.DONE, State.SCHEDULED)
            assert testing.run_until_idle(app, advance=dt.timedelta(seconds=60)) == 1
            assert late.result() == 2
        assert [a for _, a, _ in tasks.called] == [2, 1]

    def test_in_order(self, app, tasks):
        with testing.isolated(app):
            for delay in (30, 10, 20, 86_400 * 30):
                tasks.add.options(delay=delay).enqueue(delay, 0)
            assert testing.run_until_idle(app, advance=dt.timedelta(days=31)) == 4
        assert [a for _, a, _ in tasks.called] == [10, 20, 30, 86_400 * 30]

    def test_retries(self, app, tasks):
        with testing.isolated(app):
            handle = tasks.fail.enqueue()
            assert testing.run_until_idle(app) == 1
            assert testing.run_until_idle(app, advance=99) == 0
            assert testing.run_until_idle(app, advance=1) == 1
            assert testing.run_until_idle(app, advance=200) == 1
            with pytest.raises(JobFailed, match="ValueError: no"):
                handle.result()
        assert [attempt for _, attempt in tasks.called] == [1, 2, 3]

    def test_a_task_that_enqueues_itself_for_later(self, app):
        times = []

        @app.task
        def tick() -> None:
            times.append(1)
            tick.options(delay=60).enqueue()

        with testing.isolated(app):
            tick.enqueue()
            assert testing.run_until_idle(app, advance=599) == 10
        assert len(times) == 10

    def test_only_in_isolation(self, app):
        with pytest.raises(ConfigError, match="only inside of"):
            testing.run_until_idle(app, advance=5)
        with pytest.raises(ConfigError, match="advance must be"), testing.isolated(app):
            testing.run_until_idle(app, advance=-5)


class TestInline:
    def test_jobs_run_as_they_are_enqueued(self, app, tasks):
        with testing.inline(app):
            assert tasks.add.enqueue(1, 2).result() == 3
            assert tasks.send.enqueue("ada").result() == uuid.UUID(int=3)
            assert tasks.crunch.enqueue(3).status() is State.DONE
            assert app.enqueue_many(tasks.add.call(n, n) for n in range(3)) == 3
        assert len(tasks.called) == 6

    async def test_in_a_loop(self, app, tasks):
        with testing.inline(app):
            assert await (await tasks.add.aenqueue(1, 2)).aresult() == 3
            assert await (await tasks.send.aenqueue("ada")).aresult(timeout=5) == uuid.UUID(int=3)

    def test_failures_are_retried_at_once(self, app, tasks):
        with testing.inline(app):
            handle = tasks.fail.enqueue()
            with pytest.raises(JobFailed, match="ValueError: no"):
                handle.result()
            assert handle.job().failures == 3

    def test_directives(self, app):
        @app.task
        def choose(what: str) -> None:
            raise {"cancel": Cancel("no need"), "release": Release(delay=5), "retry": Retry("busy", delay=500)}[what]

        with testing.inline(app):
            with pytest.raises(JobCancelled, match="no need"):
                choose.enqueue("cancel").result()
            with pytest.raises(JobFailed, match="Retry: busy"):
                choose.enqueue("retry").result()
            released = choose.enqueue("release")
            assert released.status() is State.SCHEDULED
            with pytest.raises(ResultTimeout):
                released.result()

    @pytest.mark.parametrize("outer_is_async", [True, False])
    @pytest.mark.parametrize("inner_is_async", [True, False])
    def test_jobs_within_jobs(self, app, outer_is_async, inner_is_async, tasks):
        inner = tasks.send if inner_is_async else tasks.fail

        async def run_async() -> str:
            handle = await (inner.aenqueue("x") if inner_is_async else inner.aenqueue())
            return (await handle.astatus()).value

        def run_sync() -> str:
            handle = inner.enqueue("x") if inner_is_async else inner.enqueue()
            return handle.status().value

        outer = app.task(name="outer")(run_async if outer_is_async else run_sync)
        with testing.inline(app):
            assert outer.enqueue().result() == ("done" if inner_is_async else "dead")

    def test_jobs_for_later_wait(self, app, tasks):
        with testing.inline(app):
            handle = tasks.add.options(delay=10).enqueue(1, 2)
            assert handle.status() is State.SCHEDULED
            testing.run_until_idle(app, advance=10)
            assert handle.result() == 3

    def test_values_take_the_same_way_as_ever(self, app):
        @app.task
        def echo(value: list[int]) -> object:
            return object() if value == [1] else tuple(value)

        with testing.inline(app):
            given = [1, 2]
            assert echo.enqueue(given).result() == [1, 2]
            with pytest.raises(JobFailed, match="PayloadError"):
                echo.enqueue([1]).result()

    def test_idempotent_calls_run_once(self, app, tasks):
        with testing.inline(app):
            once = tasks.add.options(id="one")
            assert [once.enqueue(1, 2).created, once.enqueue(1, 2).created] == [True, False]
            assert len(testing.enqueued(app)) == 1
        assert len(tasks.called) == 1

    def test_wrong_calls_are_refused_as_ever(self, app, tasks):
        with testing.inline(app), pytest.raises(PayloadError, match="parameter 'a'"):
            tasks.add.enqueue(2**70, 1)


class TestEnqueued:
    def test_what_was_enqueued(self, app, tasks):
        with testing.isolated(app):
            one = tasks.send.options(delay=5, priority="high", headers={"trace": "1"}).enqueue(
                "ada", dt.date(2024, 1, 1)
            )
            two = tasks.add.enqueue(b=2, a=1)
            at = tasks.add.options(at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).enqueue(0, 0)
            assert testing.enqueued(app)[:2] == [
                EnqueuedJob(
                    queue="mail",
                    id=one.id,
                    task="send",
                    arguments={"to": "ada", "when": dt.date(2024, 1, 1)},
                    delay=5.0,
                    priority="high",
                    headers={"trace": "1"},
                ),
                EnqueuedJob("default", two.id, "add", {"a": 1, "b": 2}, 0.0, "normal", {}),
            ]
            assert testing.enqueued(app)[2].id == at.id
            assert testing.enqueued(app)[2].delay == pytest.approx(3600, abs=10)

    def test_it_is_kept_when_jobs_have_run(self, app, tasks):
        with testing.inline(app):
            tasks.add.enqueue(1, 2)
            assert [job.task for job in testing.enqueued(app)] == ["add"]


class TestSurroundings:
    def test_lifespans_and_middlewares(self, app, tasks):
        events = []

        @app.lifespan
        async def pool(given):
            events.append("open")
            yield
            events.append("close")

        @app.middleware
        async def log(context, call_next):
            events.append(context.task)
            return await call_next()

        @app.task
        def outer() -> None:
            tasks.add.enqueue(1, 2)

        with testing.isolated(app):
            outer.enqueue()
            testing.run_until_idle(app)
        assert events == ["open", "outer", "add", "close"]
        events.clear()
        with testing.inline(app):
            outer.enqueue()
        assert events == ["open", "outer", "add", "close"]

    def test_any_store_will_do(self, tmp_path):
        with Spool(f"sqlite:///{tmp_path}/spool.db") as app:
            add = app.task(name="add")(lambda a, b: a + b)
            handle = add.options(queue="other").enqueue(1, 2)
            assert testing.run_until_idle(app) == 1
            assert handle.result() == 3

    def test_on_a_store_that_others_use_a_job_is_held_by_an_ordinary_lease(self, tmp_path):
        beats: list[Heartbeat] = []
        beaten = threading.Event()

        class Heard(Around):
            def call(self, verb: Any) -> Any:
                reply = super().call(verb)
                if isinstance(verb, Beat):
                    beats.extend(verb.beats)
                    beaten.set()
                return reply

            async def acall(self, verb: Any) -> Any:
                if isinstance(verb, Beat):
                    beats.extend(verb.beats)
                return await super().acall(verb)

        with Spool(Heard(connect(f"sqlite:///{tmp_path}/spool.db"))) as app:

            @app.task
            async def hold() -> bool:
                return beaten.wait(20)  # and with it the event loop

            handle = hold.enqueue()
            assert testing.run_until_idle(app) == 1
            assert handle.result(1) is True
        assert {beat.lease for beat in beats} == {10_000}

    def test_a_job_of_an_unknown_task_waits(self, app, tasks):
        with testing.isolated(app):
            tasks.add.enqueue(1, 2)
            other = Spool(app.broker)
            assert testing.run_until_idle(other) == 0
            assert testing.run_until_idle(app) == 1

    def test_a_timeout(self, app):
        @app.task(timeout=0.05, retries=0)
        async def forever() -> None:
            await asyncio.Event().wait()

        with testing.inline(app), pytest.raises(JobFailed, match="TimeoutError"):
            forever.enqueue().result()
