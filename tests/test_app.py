import asyncio
import contextlib
import functools
import gc
import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings

import pytest

from spool import (
    ArgumentError,
    Backoff,
    BrokerFull,
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    EnqueueInterrupted,
    JobConflict,
    JobNotFound,
    Spool,
    State,
    SyncInLoop,
    TaskExists,
)
from spool.broker import Enqueue, Enqueued, Stats
from spool.bulk import CHUNK_BYTES, CHUNK_JOBS, CHUNK_TOTAL
from spool.retry import RetryPolicy
from tests.faulty import FaultyBroker
from tests.model import ModelBroker


def store_data(data: bytes) -> int:
    return len(data)


def abs_of(number: int) -> int:
    return abs(number)


@pytest.fixture
def model():
    return ModelBroker()


@pytest.fixture
def broker(model):
    return FaultyBroker(model)


@pytest.fixture
def app(broker):
    return Spool(broker, enqueue_timeout=5)


@pytest.fixture
def square(app):
    @app.task
    def square(number: int) -> int:
        return number * number

    return square


class TestDeclaring:
    def test_the_defaults(self, square):
        settings = square.settings
        assert (settings.name, settings.queue, settings.priority, settings.kind) == (
            "square",
            "default",
            "normal",
            "thread",
        )
        assert (settings.timeout, settings.result_ttl, settings.max_crashes) == (None, 3600, 3)
        assert settings.on_disconnect == "stop"
        assert settings.retry == RetryPolicy(retries=3, backoff=Backoff(base=1, cap=300, factor=2, jitter=True))

    def test_settings(self, app):
        @app.task(
            name="mail.send",
            queue="mail",
            priority="high",
            retries=5,
            backoff=Backoff(base=2),
            retry_on=OSError,
            no_retry_on=(FileNotFoundError, PermissionError),
            timeout=30,
            result_ttl=0,
            max_crashes=1,
            on_disconnect="continue",
        )
        async def send(): ...

        settings = send.settings
        assert app.tasks == {"mail.send": send}
        assert (settings.queue, settings.priority, settings.kind, settings.timeout) == ("mail", "high", "async", 30)
        assert (settings.result_ttl, settings.max_crashes, settings.on_disconnect) == (0, 1, "continue")
        assert settings.retry == RetryPolicy(5, Backoff(base=2), (OSError,), (FileNotFoundError, PermissionError))

    def test_brackets_without_settings(self, app):
        assert app.task()(len).settings.name == "len"

    def test_a_process_task(self, app):
        assert app.task(process=True)(len).settings.kind == "process"

    def test_a_name_taken_twice(self, app, square):
        with pytest.raises(TaskExists, match=r"the task name 'square' is taken by tests.test_app.*name="):

            @app.task
            def square(): ...  # the same name again

        assert app.tasks["square"].fn(3) == 9

    def test_the_tasks_are_for_reading(self, app):
        with pytest.raises(TypeError):
            app.tasks["x"] = None

    def test_what_is_no_task(self, app, square):
        async def agen():
            yield

        def gen():
            yield

        async def coro(): ...

        for wrong in (5, "x", agen, gen, square):
            with pytest.raises(ConfigError):
                app.task()(wrong)
        with pytest.raises(ConfigError, match="process=True is for def"):
            app.task(process=True)(coro)

    def test_a_function_without_a_usable_name_needs_one(self, app):
        for nameless in (lambda: 1, functools.partial(len, "x")):
            with pytest.raises(ConfigError, match=r"task .* is not usable"):
                app.task(nameless)
            app.task(name=f"task{len(app.tasks)}")(nameless)

    def test_exceptions_to_retry_on_are_classes(self, app):
        for wrong in (ValueError(), "ValueError", (ValueError, 5)):
            with pytest.raises(ConfigError, match="retry_on takes an exception class or a tuple"):
                app.task(retry_on=wrong)

    @pytest.mark.parametrize(
        "settings", [{"max_payload": 0}, {"max_payload": 1.5}, {"dedupe_window": -1}, {"enqueue_timeout": -1}]
    )
    def test_settings_of_the_app_that_cannot_be_used(self, settings):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            Spool(**settings)

    def test_lifespans(self, app):
        events = []

        @app.lifespan
        async def one(given):
            events.append(given)
            yield
            events.append("left")

        @app.lifespan
        @contextlib.asynccontextmanager
        async def two(given):
            yield

        async def live():
            for factory in app.lifespans:
                async with factory(app):
                    pass

        asyncio.run(live())
        assert events == [app, "left"]
        with pytest.raises(ConfigError, match="a lifespan is a function"):
            app.lifespan(5)

    def test_lifespans_that_cannot_be_entered(self, app):
        async def once(_): ...

        def plain(_):
            yield

        for fn in (once, plain):
            with pytest.raises(ConfigError, match="a lifespan is a function"):
                app.lifespan(fn)
        assert app.lifespans == []
        app.lifespan(contextlib.contextmanager(plain))
        with pytest.raises(ConfigError, match=r"the lifespan tests\.test_app\..*plain returned <contextlib"):
            app.lifespans[0](app)

    def test_middlewares(self, app):
        @app.middleware
        async def one(context, call_next):
            return await call_next()

        class Two:
            async def __call__(self, context, call_next):
                return context, await call_next()

        two = app.middleware(Two())
        assert app.middlewares == [one, two]
        with pytest.raises(ConfigError, match="a middleware is an async function"):
            app.middleware(print)


class TestConnecting:
    def test_nothing_is_connected_before_use(self, tmp_path):
        app = Spool(f"sqlite:///{tmp_path}/none/at/all.db")
        app.task(len)
        app.close()

    @pytest.mark.parametrize("url", ["amqp://localhost", "spool.db", "://", "http//x"])
    def test_an_unknown_scheme(self, url):
        with pytest.raises(ConfigError, match="must begin with sqlite://, redis://"):
            Spool(url).broker  # noqa: B018

    def test_the_environment_names_the_store(self, monkeypatch):
        monkeypatch.setenv("SPOOL_URL", "nothing://here")
        with pytest.raises(ConfigError, match="nothing://"):
            Spool().broker  # noqa: B018

    def test_else_a_file_beside_the_program(self, monkeypatch, tmp_path):
        monkeypatch.delenv("SPOOL_URL", raising=False)
        monkeypatch.chdir(tmp_path)
        with Spool() as app:
            assert app.broker.url == "sqlite:///spool.db"

    def test_another_broker_for_a_while(self, app, broker, square):
        other = ModelBroker()
        with app.using(other):
            handle = square.enqueue(1)
            assert app.broker is other
            assert handle.status() is State.READY
        assert app.broker is broker
        with pytest.raises(JobNotFound):
            handle.status()

    def test_closing(self, app, broker):
        app.close()
        assert broker.closed == 0
        with app:
            assert app.broker is broker
        assert broker.closed == 1

    def test_using_it_again_connects_again(self):
        app = Spool("sqlite://:memory:")
        first = app.broker
        app.close()
        assert app.broker is not first
        app.close()

    async def test_closing_in_a_loop(self, app, broker):
        async with app:
            assert app.broker is broker
        assert broker.closed == 1
        with pytest.raises(SyncInLoop, match=r"close\(\) .* aclose\(\)"):
            app.close()

    def test_threads_share_one_broker(self):
        app, made, start = Spool("sqlite://:memory:"), [], threading.Barrier(8)

        def use():
            start.wait()
            made.append(app.broker)

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, made))) == 1
        app.close()


class TestOutage:
    @pytest.mark.parametrize("fault", ["request", "reply"])
    @pytest.mark.parametrize("times", [1, 3])
    def test_an_enqueue_is_sent_again_and_stored_once(self, model, broker, square, fault, times):
        broker.faults = [fault] * times
        handle = square.enqueue(3)
        assert handle.created
        assert [verb.resend for verb in broker.asked] == [False] + [True] * times
        assert model.call(Stats("default")).ready == [0, 0, 1, 0, 0]

    @pytest.mark.parametrize("fault", ["request", "reply"])
    async def test_in_a_loop_too(self, model, broker, square, fault):
        broker.faults = [fault, fault]
        assert (await square.aenqueue(3)).created
        assert model.call(Stats("default")).ready == [0, 0, 1, 0, 0]

    def test_for_a_bounded_time(self, model):
        broker = FaultyBroker(model)
        broker.faults = ["request"] * 10_000
        app = Spool(broker, enqueue_timeout=0.05)
        with pytest.raises(BrokerUnavailable, match="the request was lost"):
            app.task(name="nothing")(lambda: None).enqueue()
        assert 1 < len(broker.asked) < 1000

    async def test_for_a_bounded_time_in_a_loop(self, model):
        broker = FaultyBroker(model)
        broker.faults = ["request"] * 10_000
        app = Spool(broker, enqueue_timeout=0.05)
        with pytest.raises(BrokerUnavailable):
            await app.task(name="nothing")(lambda: None).aenqueue()

    def test_or_not_at_all(self, model):
        broker = FaultyBroker(model)
        broker.faults = ["request"]
        with pytest.raises(BrokerUnavailable):
            Spool(broker, enqueue_timeout=0).task(name="nothing")(lambda: None).enqueue()
        assert len(broker.asked) == 1

    def test_a_refusal_is_final(self, broker, square):
        broker.faults = [BrokerFull("no room")]
        with pytest.raises(BrokerFull):
            square.enqueue(3)
        assert len(broker.asked) == 1

    @pytest.mark.parametrize("refusal", [BrokerFull("no room"), BrokerRefused("no disk, so nothing was stored")])
    def test_a_refusal_of_the_second_call_does_not_speak_for_the_first(self, model, broker, square, refusal):
        broker.faults = ["reply", refusal]
        with pytest.raises(BrokerUnavailable, match=r"not known: the reply was lost; .* refused .*: no ") as caught:
            square.enqueue(3)
        assert caught.value.__cause__ is refusal
        assert not caught.value.answered
        assert model.call(Stats("default")).ready[2] == 1

    async def test_nor_in_a_loop(self, model, broker, square):
        broker.faults = ["reply", BrokerUnavailable("loading", answered=True), BrokerFull("no room")]
        with pytest.raises(BrokerUnavailable, match=r"not known: the reply was lost; .* refused .*: no room"):
            await square.aenqueue(3)
        assert model.call(Stats("default")).ready[2] == 1

    def test_a_refusal_is_final_when_the_first_call_was_answered_with_a_no(self, broker, square):
        broker.faults = [BrokerUnavailable("loading", answered=True), BrokerFull("no room")]
        with pytest.raises(BrokerFull):
            square.enqueue(3)

    async def test_a_loss_is_not_forgotten_over_an_answer_before_it(self, broker, square):
        broker.faults = [BrokerUnavailable("loading", answered=True), "reply", BrokerFull("no room")]
        with pytest.raises(BrokerUnavailable, match="not known: the reply was lost"):
            await square.aenqueue(3)


class TestBulk:
    @pytest.mark.parametrize("count", [0, 1, CHUNK_JOBS - 1, CHUNK_JOBS, 3 * CHUNK_JOBS + 1])
    def test_all_are_stored_in_chunks(self, app, broker, square, count):
        assert app.enqueue_many(square.call(number) for number in range(count)) == count
        assert [len(verb.jobs) for verb in broker.asked] == chunks(count)

    @pytest.mark.parametrize("count", [0, CHUNK_JOBS, CHUNK_JOBS + 1])
    async def test_in_a_loop(self, app, broker, square, count):
        async def calls():
            for number in range(count):
                yield square.call(number)

        assert await app.aenqueue_many(square.call(number) for number in range(count)) == count
        assert await app.aenqueue_many(calls()) == count
        assert [len(verb.jobs) for verb in broker.asked] == chunks(count) * 2

    def test_jobs_of_a_queue_keep_their_order(self, app, broker, square):
        calls = [square.options(queue=f"q{number % 3}").call(number) for number in range(2000)]
        assert app.enqueue_many(calls) == 2000
        for queue in range(3):
            stored = [job for verb in broker.asked if verb.queue == f"q{queue}" for job in verb.jobs]
            assert stored == [call.job for call in calls if call.queue == f"q{queue}"]

    def test_large_jobs_are_sent_in_smaller_chunks(self, app, broker):
        store = app.task(name="store")(store_data)
        assert app.enqueue_many(store.call(b"x" * 300_000) for _ in range(20)) == 20
        assert max(sum(len(job.record) for job in verb.jobs) for verb in broker.asked) < CHUNK_BYTES + 301_000

    def test_memory_is_constant(self, app):
        class Sink(ModelBroker):
            def call(self, _):
                return Enqueued(0)

        store = app.task(name="store")(store_data)

        def peak(count):
            gc.collect()
            tracemalloc.start()
            calls = (store.options(queue=f"q{number % 100}").call(bytes(20_000)) for number in range(count))
            with app.using(Sink()):
                assert app.enqueue_many(calls) == count
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

        peak(10)
        assert max(peak(1000), peak(3000)) < 2 * CHUNK_TOTAL

    def test_an_error_says_how_many_are_stored(self, model, app, square):
        def calls():
            for number in range(CHUNK_JOBS + 100):
                yield square.call(number)
            yield square.call("x")

        with pytest.raises(
            EnqueueInterrupted, match=f"stopped; {CHUNK_JOBS} jobs are stored: ArgumentError: "
        ) as caught:
            app.enqueue_many(calls())
        assert caught.value.acknowledged == CHUNK_JOBS == model.call(Stats("default")).ready[2]
        assert isinstance(caught.value.__cause__, ArgumentError)

    def test_what_a_chunk_stored_before_it_ended_halfway_is_counted(self, app, broker, square):
        def calls():
            for number in range(CHUNK_JOBS + 1):
                yield square.call(number)
            broker.faults = [EnqueueInterrupted("halfway", 1)]

        with pytest.raises(EnqueueInterrupted, match=rf"; {CHUNK_JOBS + 1} jobs are stored: .*halfway") as caught:
            app.enqueue_many(calls())
        assert caught.value.acknowledged == CHUNK_JOBS + 1

    def test_what_another_bulk_enqueue_stored_is_not_counted(self, app, square):
        def calls():
            yield square.call(1)
            raise EnqueueInterrupted("of another", 5)

        with pytest.raises(EnqueueInterrupted, match="; 0 jobs are stored") as caught:
            app.enqueue_many(calls())
        assert caught.value.acknowledged == 0

    async def test_an_error_in_a_loop(self, app, broker, square):
        broker.faults = [BrokerFull("no room")]
        with pytest.raises(EnqueueInterrupted, match="0 jobs are stored: BrokerFull: no room") as caught:
            await app.aenqueue_many([square.call(1)])
        assert caught.value.acknowledged == 0

    def test_a_chunk_that_may_be_stored_is_not_counted(self, model, app, broker, square):
        def calls():
            for number in range(2 * CHUNK_JOBS):
                if number == CHUNK_JOBS:
                    broker.faults = ["reply", BrokerFull("no room")]
                yield square.call(number)

        with pytest.raises(
            EnqueueInterrupted, match=f"; at least {CHUNK_JOBS} jobs are stored: .* not known"
        ) as caught:
            app.enqueue_many(calls())
        assert caught.value.acknowledged == CHUNK_JOBS
        assert isinstance(caught.value.__cause__, BrokerUnavailable)
        assert model.call(Stats("default")).ready[2] == 2 * CHUNK_JOBS

    def test_lost_replies(self, model, app, broker, square):
        broker.faults = ["reply", "request"]
        assert app.enqueue_many(square.call(number) for number in range(10)) == 10
        assert model.call(Stats("default")).ready[2] == 10

    def test_ids_that_are_there_already_count(self, model, app, square):
        square.options(id="one").enqueue(1)
        assert app.enqueue_many([square.options(id="one").call(1), square.call(2)]) == 2
        assert model.call(Stats("default")).ready[2] == 2

    def test_conflicts(self, app, square):
        square.options(id="one").enqueue(1)
        calls = [square.call(0), square.options(id="one").call(2), square.call(3)]
        with pytest.raises(EnqueueInterrupted) as caught:
            app.enqueue_many(calls)
        assert caught.value.acknowledged == 2
        assert isinstance(caught.value.__cause__, JobConflict)

    def test_what_is_no_call(self, app, square):
        with pytest.raises(EnqueueInterrupted, match=r"takes calls, made by task.call\(…\), not 9"):
            app.enqueue_many([square(3)])

    async def test_not_in_a_loop(self, app):
        with pytest.raises(SyncInLoop, match="aenqueue_many"):
            app.enqueue_many([])


def chunks(count):
    return [CHUNK_JOBS] * (count // CHUNK_JOBS) + [count % CHUNK_JOBS] * (count % CHUNK_JOBS > 0)


class TestLookingUp:
    def test_by_reference(self, app, square):
        handle = square.options(queue="other").enqueue(3)
        assert app.job(str(handle)) == app.job(handle.id, "other") == handle.job()

    def test_by_the_id_alone(self, app, square):
        declared, elsewhere = square.enqueue(3), square.options(queue="other").enqueue(3)
        assert app.job(declared.id).queue == "default"
        assert app.job(elsewhere.id).queue == "other"

    def test_by_an_id_of_several_queues(self, app, square):
        queues = ["default", "other", *(f"q{number}" for number in range(9))]
        for queue in queues:
            square.options(queue=queue, id="mine").enqueue(3)
        with pytest.raises(ConfigError, match="'mine' is that of default/mine, other/mine, q0/mine, q1/mine,"):
            app.job("mine")
        with pytest.raises(ConfigError, match="q7/mine and 1 more: name the queue, as default/mine"):
            app.job("mine")
        assert app.job("mine", "other") == app.job("other/mine")

    async def test_in_a_loop(self, app, square):
        declared, elsewhere = await square.aenqueue(3), await square.options(queue="other").aenqueue(3)
        assert (await app.ajob(declared.id)).queue == "default"
        assert (await app.ajob(elsewhere.id)).queue == "other"
        assert (await app.ajob(str(elsewhere))).queue == "other"
        with pytest.raises(JobNotFound, match="no job 'x' is known in any queue"):
            await app.ajob("x")
        with pytest.raises(SyncInLoop, match="ajob"):
            app.job("x")

    def test_a_job_that_is_not_known(self, app, square):
        square.options(queue="other").enqueue(3)
        with pytest.raises(JobNotFound, match="no job 'x' is known in any queue"):
            app.job("x")
        with pytest.raises(JobNotFound, match="no job 'x' is known in queue 'other'"):
            app.job("other/x")


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    return f"sqlite:///{tmp_path}/spool.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")


class TestConcurrency:
    """With the real brokers, since theirs is the duty; the app has no state of a thread, a loop or a process."""

    def test_threads(self, url):
        with Spool(url) as app:
            square = app.task(name="square")(abs_of)
            ids = set()

            def work():
                for number in range(20):
                    ids.add(square.enqueue(number).id)
                ids.update(call.job.id for call in [square.call(1)] if app.enqueue_many([call]))

            threads = [threading.Thread(target=work) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(ids) == 105
            assert app.broker.call(Stats("default")).ready[2] == 105

    def test_several_loops_and_none(self, url):
        app = Spool(url)
        square = app.task(name="square")(abs_of)

        async def work():
            handles = await asyncio.gather(*[square.aenqueue(number) for number in range(10)])
            return await asyncio.gather(*[handle.astatus() for handle in handles])

        with warnings.catch_warnings():
            # A loop that ends takes its connections along, unclosed; aclose() in it would close the app for the others.
            warnings.simplefilter("ignore", ResourceWarning)
            for _ in range(3):
                assert asyncio.run(work()) == [State.READY] * 10
                assert square.enqueue(1).status() is State.READY
            threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert app.broker.call(Stats("default")).ready[2] == 63
            app.close()
            gc.collect()

    def test_a_fork(self, url):
        # As under a web server that loads the app first: used before the fork, then by parent and children at once.
        script = """
            import asyncio, os, sys
            from spool import Spool
            from spool.broker import Stats

            app = Spool(sys.argv[1])
            square = app.task(name="square")(lambda number: None)

            def work(count):
                handles = [square.enqueue(number) for number in range(count)]
                assert [handle.status() for handle in handles] == ["ready"] * count
                async def inside():
                    return await asyncio.gather(*[square.aenqueue(number) for number in range(count)])
                assert len(asyncio.run(inside())) == count

            work(5)
            children = []
            for _ in range(3):
                if not (pid := os.fork()):
                    try:
                        work(10)
                    except BaseException as error:
                        print("child:", repr(error), flush=True)
                        os._exit(1)
                    os._exit(0)
                children.append(pid)
            work(10)
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
            print(app.broker.call(Stats("default")).ready[2])
        """
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), url],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            check=False,
        )
        assert (run.stdout, run.returncode) == ("90\n", 0), run.stderr


def test_an_enqueue_is_a_plain_verb(broker, square):
    """What the benchmark's figure rests on: one verb per call, nothing before it and nothing after."""
    square.enqueue(3)
    assert [type(verb) for verb in broker.asked] == [Enqueue]
