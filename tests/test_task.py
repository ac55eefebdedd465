import asyncio
import datetime as dt
import inspect
import threading
import time
import uuid
from zoneinfo import ZoneInfo

import msgspec
import pytest

from spool import (
    ArgumentError,
    ConfigError,
    Handle,
    JobCancelled,
    JobConflict,
    JobFailed,
    JobNotFound,
    PayloadError,
    PayloadTooLarge,
    ResultTimeout,
    Spool,
    State,
    SyncInLoop,
    Task,
)
from spool.broker import Act, Beat, Cancel, Cancelled, Claim, Died, Done, Get, Heartbeat, Settle
from spool.job import (
    MAIN,
    NIL,
    PROCESS,
    VERSION,
    Attempt,
    Ending,
    Options,
    Tally,
    encode_ending,
    new_id,
    read_record,
)
from tests.faulty import FaultyBroker
from tests.model import ModelBroker
from tests.tallies import write_tally


@pytest.fixture
def model():
    return ModelBroker()


@pytest.fixture
def broker(model):
    return FaultyBroker(model)


@pytest.fixture
def app(broker):
    return Spool(broker, enqueue_timeout=0)


@pytest.fixture
def send(app):
    @app.task(queue="mail")
    async def send(to: str, body: str = "") -> uuid.UUID:
        """Send a mail."""
        return uuid.UUID(int=len(to + body))

    return send


def settle(broker, handle, settlement):
    """Do what a worker does with one job."""
    me = new_id()
    broker.call(Beat(handle.queue, [Heartbeat(me, tasks=("send",))]))
    assert broker.call(Claim(handle.queue, me, 1, (1, 1))).jobs[0][0] == handle.id
    assert broker.call(Settle(handle.queue, me, 1, [settlement])).accepted == 1


def done(handle, result=NIL):
    ending = Ending(VERSION, "done", "send", "", 1, 2, 3, 1, msgspec.Raw(result))
    return Done(handle.id, 1, encode_ending(ending))


def record_of(broker, handle):
    return read_record(broker.call(Get(handle.queue, handle.id)).record)


class TestTask:
    def test_calling_it_runs_the_function(self, app, send):
        @app.task
        def add(a: int, b: int) -> int:
            return a + b

        assert add(1, b=2) == 3
        assert asyncio.run(send("x")) == uuid.UUID(int=1)

    def test_it_looks_like_the_function(self, send):
        assert isinstance(send, Task)
        assert (send.name, send.__name__, send.__doc__) == ("send", "send", "Send a mail.")
        assert send.__module__ == __name__
        assert list(inspect.signature(send).parameters) == ["to", "body"]
        assert repr(send) == "<Task send>"

    def test_its_parameters_can_be_left_out_of_annotations(self):
        assert Task[[int], str] is not None
        assert Handle[int] is not None

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"retries": -1}, "retries must be an integer, 0 or more, not -1"),
            ({"retries": 1.5}, "retries must be an integer"),
            ({"retries": True}, "retries must be an integer"),
            (
                {"timeout": -1},
                "timeout must be a number of seconds, more than 0 and at most 100 years, or None, not -1",
            ),
            ({"timeout": 0}, "timeout must be a number of seconds, more than 0 and at most 100 years, or None, not 0"),
            ({"timeout": float("nan")}, "timeout must be a number of seconds, more than 0 and .*, or None, not nan"),
            ({"timeout": "5"}, "timeout must be a number of seconds, more than 0"),
            ({"timeout": True}, "timeout must be a number of seconds, more than 0"),
            ({"result_ttl": -0.5}, "result_ttl must be a number of seconds"),
            ({"result_ttl": float("inf")}, "result_ttl must be a number of seconds"),
            ({"priority": "urgent"}, "priority 'urgent' is not one of critical, high, normal, low, background"),
            ({"queue": "a b"}, "queue 'a b' is not usable"),
            ({"queue": ""}, "queue '' is not usable"),
            ({"on_disconnect": "pause"}, "^on_disconnect must be 'stop' or 'continue', not 'pause'$"),
            ({"on_disconnect": True}, "^on_disconnect must be 'stop' or 'continue', not True$"),
            ({"on_disconnect": ["stop"]}, "^on_disconnect must be 'stop' or 'continue', not \\['stop'\\]$"),
        ],
    )
    def test_settings_that_cannot_be_used(self, app, send, setting, message):
        with pytest.raises(ConfigError, match=message):
            app.task(name="other", **setting)(lambda: None)
        with pytest.raises(ConfigError, match=message):
            send.options(**setting)

    def test_arguments_and_results_for_the_worker(self, app, send):
        payload = msgspec.msgpack.encode([["x"], {"body": "y"}])
        assert send.read_arguments(payload) == (["x"], {"body": "y"})
        assert send.encode_result(uuid.UUID(int=1)) == msgspec.msgpack.encode(str(uuid.UUID(int=1)))
        with pytest.raises(PayloadError, match="task 'send', result"):
            send.encode_result(object())
        app.max_payload = 10
        with pytest.raises(PayloadTooLarge, match="limit of 10 "):
            send.encode_result("x" * 11)


class TestEnqueue:
    def test_a_job_is_stored(self, broker, send):
        handle = send.enqueue("a@b.c", body="hi")
        record = record_of(broker, handle)
        assert handle.created
        assert (handle.queue, len(handle.id)) == ("mail", 32)
        assert str(handle) == f"mail/{handle.id}"
        assert repr(handle) == f"<Handle mail/{handle.id}>"
        assert msgspec.msgpack.decode(record.payload) == [["a@b.c", "hi"], {}]
        assert (record.version, record.task, record.priority, record.lane) == (VERSION, "send", 2, MAIN)
        assert (record.max_crashes, record.fingerprint, record.options, record.headers) == (3, "", None, None)
        assert abs(record.created - time.time() * 1000) < 60_000

    def test_parameters_may_have_any_name(self, app, broker):
        @app.task
        def odd(self: int, args: int, kwargs: int, task: int) -> int:
            return self + args + kwargs + task

        handle = odd.enqueue(self=1, args=2, kwargs=3, task=4)
        assert msgspec.msgpack.decode(record_of(broker, handle).payload) == [[1, 2, 3, 4], {}]
        assert odd(self=1, args=2, kwargs=3, task=4) == 10

    async def test_or_in_a_loop(self, broker, send):
        handle = await send.aenqueue("a@b.c")
        assert handle.created
        assert record_of(broker, handle).task == "send"

    def test_as_declared(self, app, broker):
        @app.task(name="cpu.bound", queue="slow", priority="background", max_crashes=1, process=True)
        def work() -> None: ...

        record = record_of(broker, work.enqueue())
        assert (record.task, record.priority, record.lane, record.max_crashes) == ("cpu.bound", 4, PROCESS, 1)
        assert broker.asked[0].queue == "slow"
        assert (broker.asked[0].jobs[0].priority, broker.asked[0].jobs[0].lane) == (4, PROCESS)

    def test_wrong_arguments_reach_no_store(self, broker, send):
        for args in [(), (1,), ("x", "y", "z")]:
            with pytest.raises(ArgumentError, match="task 'send'"):
                send.enqueue(*args)
        with pytest.raises(ArgumentError, match="has no parameter 'boddy'"):
            send.enqueue("x", boddy="y")
        assert not broker.asked

    async def test_wrong_arguments_in_a_loop(self, broker, send):
        with pytest.raises(ArgumentError, match="parameter 'to'"):
            await send.aenqueue(5)
        assert not broker.asked

    def test_the_limit_of_the_app(self, broker):
        app = Spool(broker, max_payload=100)
        send = app.task(name="send")(lambda text: text)
        assert send.enqueue("x" * 50)
        with pytest.raises(PayloadTooLarge, match=r"limit of 100 .*'text'"):
            send.enqueue("x" * 150)

    async def test_a_sync_call_in_a_loop_names_its_twin(self, broker, send):
        handle = await send.aenqueue("x")
        calls = [
            (lambda: send.enqueue("x"), "enqueue", "aenqueue"),
            (lambda: send.options(delay=1).enqueue("x"), "enqueue", "aenqueue"),
            (handle.result, "result", "aresult"),
            (handle.status, "status", "astatus"),
            (handle.job, "job", "ajob"),
            (handle.cancel, "cancel", "acancel"),
        ]
        for call, name, twin in calls:
            with pytest.raises(SyncInLoop, match=rf"{name}\(\) would block .* await {twin}\(\)"):
                call()
        assert len(broker.asked) == 1

    async def test_a_sync_call_in_a_thread_beside_a_loop(self, send):
        handle = await asyncio.to_thread(send.enqueue, "x")
        assert await handle.astatus() is State.READY


class TestOptions:
    def test_they_override_the_declaration(self, broker, send):
        handle = send.options(
            queue="other",
            priority="critical",
            retries=0,
            timeout=1.5,
            result_ttl=0,
            on_disconnect="continue",
            headers={"trace": "1"},
        ).enqueue("x")
        record = record_of(broker, handle)
        assert handle.queue == "other"
        assert record.priority == 0
        assert record.options == Options(0, 1.5, 0, "continue")
        assert record.headers == {"trace": "1"}

    def test_they_are_for_that_call_only(self, broker, send):
        send.options(priority="critical", delay=5)
        assert record_of(broker, send.enqueue("x")).priority == 2

    @pytest.mark.parametrize("delay", [60, 60.0, dt.timedelta(minutes=1)])
    def test_a_delay(self, model, broker, send, delay):
        handle = send.options(delay=delay).enqueue("x")
        assert broker.asked[0].jobs[0].delay == 60_000
        assert handle.status() is State.SCHEDULED
        assert handle.job().due == model.now + 60_000

    def test_a_time_with_a_zone(self, send):
        at = dt.datetime(2040, 7, 1, 12, 0, tzinfo=ZoneInfo("America/New_York"))
        handle = send.options(at=at).enqueue("x")
        assert handle.job().due == dt.datetime(2040, 7, 1, 16, tzinfo=dt.UTC).timestamp() * 1000

    @pytest.mark.parametrize("year", [1, 1969, 2001])
    def test_a_time_that_is_past_is_now(self, send, year):
        assert send.options(at=dt.datetime(year, 1, 1, tzinfo=dt.UTC)).enqueue("x").status() is State.READY

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"at": dt.datetime(2040, 1, 1)}, r"at=datetime.datetime\(2040, 1, 1, 0, 0\) has no time zone"),  # noqa: DTZ001 - that is the point
            ({"at": 5}, "at must be a datetime with a time zone, not 5"),
            ({"at": dt.datetime(2040, 1, 1, tzinfo=dt.UTC), "delay": 5}, "delay= or at=, not both"),
            ({"delay": -1}, "delay must be a number of seconds, 0 or more"),
            ({"delay": dt.timedelta(seconds=-1)}, "delay must be a number of seconds, 0 or more"),
            ({"delay": 1e12}, "at most 100 years"),
            ({"delay": 10**400}, "at most 100 years"),
            ({"delay": float("nan")}, "delay must be"),
            ({"delay": True}, "delay must be"),
            ({"id": ""}, "job id '' is not usable"),
            ({"id": "a/b"}, "job id 'a/b' is not usable"),
            ({"id": 5}, "job id 5 is not usable"),
            ({"headers": {"a": 1}}, "headers must be text by text"),
            ({"headers": "a"}, "headers must be text by text"),
            ({"headers": {"a": "\ud800"}}, "headers must be text by text"),
            ({"headers": {"a": "x" * 8192}}, "headers take 8,193 bytes, more than the limit of 8,192"),
        ],
    )
    def test_options_that_cannot_be_used(self, send, options, message):
        with pytest.raises(ConfigError, match=message):
            send.options(**options)

    def test_calls(self, broker, send):
        call = send.options(delay=5, id="x").call("x")
        assert (call.queue, call.job.id, call.job.delay) == ("mail", "x", 5000)
        assert not broker.asked


class TestIdempotence:
    def test_the_same_call_again(self, send):
        once = send.options(id="one")
        assert once.enqueue("x", "y").created
        again = once.enqueue(body="y", to="x")
        assert not again.created
        assert again.id == "one"

    def test_also_when_it_has_ended(self, model, send):
        once = send.options(id="one")
        handle = once.enqueue("x")
        settle(model, handle, done(handle))
        assert not once.enqueue("x").created

    def test_other_arguments(self, app, send):
        @app.task(queue="mail")
        def other(to: str) -> None: ...

        send.options(id="one").enqueue("x")
        for conflicting in (send, other):
            with pytest.raises(JobConflict, match="mail/one is taken by a job with another task or other arguments"):
                conflicting.options(id="one").enqueue("z" if conflicting is send else "x")

    async def test_in_a_loop(self, send):
        assert (await send.options(id="one").aenqueue("x")).created
        assert not (await send.options(id="one").aenqueue("x")).created
        with pytest.raises(JobConflict):
            await send.options(id="one").aenqueue("y")

    def test_ids_are_of_a_queue(self, send):
        assert send.options(id="one").enqueue("x").created
        assert send.options(id="one", queue="other").enqueue("y").created


class TestHandle:
    def test_a_result_of_the_annotated_type(self, model, send):
        handle = send.enqueue("x")
        settle(model, handle, done(handle, send.encode_result(uuid.UUID(int=7))))
        assert handle.result() == uuid.UUID(int=7)
        assert handle.result(timeout=0) == uuid.UUID(int=7)
        assert handle.status() is State.DONE

    async def test_a_result_in_a_loop(self, model, send):
        handle = await send.aenqueue("x")
        waiting = asyncio.create_task(handle.aresult(timeout=10))
        await asyncio.sleep(0)
        settle(model, handle, done(handle, send.encode_result(uuid.UUID(int=7))))
        assert await waiting == uuid.UUID(int=7)
        assert await handle.astatus() is State.DONE
        assert (await handle.ajob()).result == str(uuid.UUID(int=7))

    def test_waiting_in_a_thread(self, model, send):
        handle, results = send.enqueue("x"), []
        waiter = threading.Thread(target=lambda: results.append(handle.result(timeout=10)))
        waiter.start()
        settle(model, handle, done(handle, send.encode_result(uuid.UUID(int=7))))
        waiter.join()
        assert results == [uuid.UUID(int=7)]

    def test_a_result_that_was_not_kept(self, model, send):
        handle = send.enqueue("x")
        settle(model, handle, done(handle))
        assert handle.result() is None

    def test_a_result_of_another_type(self, model, send):
        handle = send.enqueue("x")
        settle(model, handle, done(handle, b"\xa1x"))
        with pytest.raises(PayloadError, match="task 'send': the result is not of its return type"):
            handle.result()
        assert handle.job().result == "x"

    def test_a_dead_job(self, model, send):
        handle = send.enqueue("x")
        attempt = Attempt(1, "died", 1, 2, "me", "ValueError", "no such address", "Traceback…\nValueError")
        settle(model, handle, Died(handle.id, 1, write_tally(Tally(attempts=1, failures=1), [attempt])))
        with pytest.raises(
            JobFailed, match=rf"mail/{handle.id} \(send\) is dead: ValueError: no such address"
        ) as caught:
            handle.result()
        assert caught.value.error_type == "ValueError"
        assert caught.value.traceback == "Traceback…\nValueError"
        assert handle.status() is State.DEAD

    def test_a_job_that_cancelled_itself(self, model, send):
        handle = send.enqueue("x")
        ending = Ending(VERSION, "cancelled", "send", "", 1, 2, 3, 1, reason="unsubscribed")
        settle(model, handle, Cancelled(handle.id, 1, encode_ending(ending)))
        with pytest.raises(JobCancelled, match=r"was cancelled: unsubscribed"):
            handle.result()

    def test_cancel(self, broker, send):
        handle = send.options(delay=5).enqueue("x")
        assert handle.cancel("changed my mind") is True
        assert handle.cancel() is False
        assert handle.status() is State.CANCELLED
        assert broker.asked[1] == Act("mail", Cancel("changed my mind", 3_600_000), (handle.id,))
        with pytest.raises(JobCancelled, match="changed my mind"):
            handle.result()

    def test_a_reason_is_bounded(self, broker, send):
        send.enqueue("x").cancel("\ud800" + "ä" * 10_000)
        assert broker.asked[1].action.reason == "?" + "ä" * 2047

    async def test_cancel_in_a_loop(self, send):
        handle = await send.aenqueue("x")
        assert await handle.acancel() is True
        with pytest.raises(JobCancelled):
            await handle.aresult()

    def test_how_long_a_cancelled_job_is_remembered(self, broker):
        app = Spool(broker, dedupe_window=7200)
        task = app.task(name="send", result_ttl=10)(lambda: None)
        task.enqueue().cancel()
        assert broker.asked[1].action.ttl == 7_200_000

    def test_a_time_limit(self, send):
        handle = send.enqueue("x")
        with pytest.raises(ResultTimeout, match="has not ended in the time given; it is ready"):
            handle.result(timeout=0)
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.01)
        with pytest.raises(ConfigError, match="timeout must be a number of seconds"):
            handle.result(timeout=-1)

    async def test_a_time_limit_in_a_loop(self, send):
        handle = await send.aenqueue("x")
        with pytest.raises(ResultTimeout):
            await handle.aresult(timeout=0.01)

    async def test_a_job_that_is_not_known(self, send):
        handle = send.handle("nowhere")
        for call in (handle.aresult, handle.astatus, handle.ajob):
            with pytest.raises(JobNotFound, match=r"mail/nowhere is not known \(any more\)"):
                await call()
        assert await handle.acancel() is False

    def test_a_job_that_is_not_known_without_a_loop(self, send):
        handle = send.handle("nowhere")
        for call in (handle.result, handle.status, handle.job):
            with pytest.raises(JobNotFound):
                call()

    def test_a_handle_on_a_job_from_elsewhere(self, model, send):
        first = send.options(id="one", queue="other").enqueue("x")
        settle(model, first, done(first, send.encode_result(uuid.UUID(int=7))))
        assert send.handle("one", queue="other").result() == uuid.UUID(int=7)
        assert not send.handle("one").created

    def test_what_is_known_of_a_job(self, send):
        job = send.enqueue("x", "y").job()
        assert (job.task, job.state, job.priority, job.arguments) == ("send", State.READY, "normal", (["x", "y"], {}))
