"""What jobs say, from the task to the store: log lines and progress."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from spool import BrokerUnavailable, ConfigError, Handle, Job, PayloadTooLarge, Spool, State, current_job, testing
from spool.broker import MAX_LINES, Note, Settle, connect
from spool.errors import BrokerError
from spool.executor.attempt import MESSAGE_LIMIT
from spool.executor.recording import record
from spool.worker import notes
from tests.eventually import aeventually
from tests.test_worker import Wire, done, running

logger = logging.getLogger("shop")


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    broker = connect("sqlite://:memory:")
    yield Wire(broker)
    await broker.aclose()


@pytest.fixture
def app(wire) -> Spool:
    return Spool(wire)


@pytest.fixture(autouse=True)
def heard(caplog) -> None:
    """Let the root logger pass on what is recorded."""
    caplog.set_level(logging.INFO)


def said(job: Job) -> list[str]:
    return [line.message for line in job.log]


async def logged(handle: Handle[Any], count: int) -> Job:
    async def there() -> bool:
        return len((await handle.ajob()).log) >= count

    await aeventually(there)
    return await handle.ajob()


async def test_lines_come_with_all_that_is_known_of_them(app):
    @app.task(record_logs=True)
    async def talk() -> None:
        logger.debug("too quiet")
        logger.info("hello %s", "world")
        logging.getLogger("other").error("bad\x1b[31m")

    async with running(app):
        handle = await talk.aenqueue()
        await handle.aresult(10)
        job = await handle.ajob()
    assert [(line.level, line.logger, line.message, line.attempt) for line in job.log] == [
        ("INFO", "shop", "hello world", 1),
        ("ERROR", "other", "bad\x1b[31m", 1),
    ]
    assert job.started <= job.log[0].at <= job.log[1].at <= job.finished
    assert job.log_dropped == 0


async def test_they_show_while_the_job_runs(app):
    gate = asyncio.Event()

    @app.task(record_logs=True)
    async def talk() -> None:
        logger.info("one")
        current_job().progress(1, 2, "half")
        await gate.wait()
        current_job().progress(2, 2)

    async with running(app):
        handle = await talk.aenqueue()
        job = await logged(handle, 1)
        assert (job.state, said(job)) == (State.RUNNING, ["one"])
        assert (job.progress.done, job.progress.total, job.progress.message, job.progress.attempt) == (1, 2, "half", 1)
        gate.set()
        await handle.aresult(10)
        progress = await handle.aprogress()
    assert (progress.done, progress.total, progress.message) == (2, 2, "")


async def test_no_line_is_kept_unless_it_is_asked_for(app, wire):
    @app.task
    async def talk() -> None:
        logger.warning("unheard")

    async with running(app):
        handle = await talk.aenqueue()
        await handle.aresult(10)
        assert (await handle.ajob()).log == []
    assert wire.all(Note) == []


@pytest.mark.parametrize("task", [None, True, False])
@pytest.mark.parametrize("where", ["worker", "app", "nowhere"])
async def test_the_task_has_the_last_word(wire, where, task):
    app = Spool(wire, record_logs=where == "app")

    @app.task(record_logs=task)
    async def talk() -> None:
        logger.info("heard")

    async with running(app, record_logs=where == "worker"):
        handle = await talk.aenqueue()
        await handle.aresult(10)
        assert said(await handle.ajob()) == (["heard"] if (where != "nowhere" if task is None else task) else [])


def test_it_is_true_or_false():
    with pytest.raises(ConfigError, match="record_logs"):
        Spool().task(name="talk", record_logs="INFO")(lambda: None)


async def test_progress_needs_no_recording_and_is_checked(app):
    @app.task(retries=0)
    async def work(done: Any) -> None:
        current_job().progress(5, None, "x" * 1000)
        current_job().progress(float(done))

    async with running(app):
        handle = await work.aenqueue("nan")

        async def dead() -> bool:
            return await handle.astatus() is State.DEAD

        await aeventually(dead)
        job = await handle.ajob()
    assert "finite" in job.error
    assert job.progress.done == 5
    assert len(job.progress.message) < 600


async def test_progress_of_an_earlier_attempt_is_not_that_of_this_one(app):
    gate, began = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> None:
        if current_job().failures:
            began.set()
            await gate.wait()
            return
        current_job().progress(9, 10)
        raise ValueError

    async with running(app):
        handle = await work.options(retries=1).aenqueue()
        await asyncio.wait_for(began.wait(), 20)
        assert (await handle.ajob()).progress is None
        gate.set()
        await handle.aresult(10)
        assert (await handle.ajob()).progress.attempt == 1


async def test_lines_of_a_failed_attempt_stay_with_its_traceback(app):
    @app.task(record_logs=True, retries=0)
    async def fail() -> None:
        try:
            {}["x"]
        except KeyError:
            logger.exception("no luck")
        raise ValueError("y")

    async with running(app):
        handle = await fail.aenqueue()

        async def dead() -> bool:
            return await handle.astatus() is State.DEAD

        await aeventually(dead)
        (line,) = (await handle.ajob()).log
    assert line.message.startswith("no luck\nTraceback")
    assert line.message.endswith("KeyError: 'x'")


async def test_lines_are_cut_and_can_be_stored(app):
    @app.task(record_logs=True)
    async def talk() -> None:
        logger.info("x" * 100_000)
        logger.info("\ud800 broken")

    async with running(app):
        handle = await talk.aenqueue()
        await handle.aresult(10)
        first, second = (await handle.ajob()).log
    assert len(first.message.encode()) <= MESSAGE_LIMIT
    assert second.message == "? broken"


async def test_threads_of_the_context_count_and_others_do_not(app):
    @app.task(record_logs=True)
    def talk() -> None:
        logger.info("in the task's thread")
        other = threading.Thread(target=lambda: logger.info("in one that it started"))
        other.start()
        other.join()

    @app.task(record_logs=True)
    async def call() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(logger.info, "in a thread of the loop"))

    async with running(app):
        one, two = await talk.aenqueue(), await call.aenqueue()
        await one.aresult(10)
        await two.aresult(10)
        assert said(await one.ajob()) == ["in the task's thread"]
        assert said(await two.ajob()) == ["in a thread of the loop"]


async def test_what_is_said_after_the_end_is_nobodys(app, wire):
    later: list[asyncio.Task[None]] = []

    @app.task(record_logs=True)
    async def talk(gate: str) -> None:
        job = current_job()

        async def after() -> None:
            await ended.wait()
            logger.info("too late")
            job.progress(9)

        later.append(asyncio.create_task(after()))

    ended = asyncio.Event()
    async with running(app):
        handle = await talk.aenqueue("")
        await handle.aresult(10)
        ended.set()
        await asyncio.gather(*later)
        assert (await handle.ajob()).log == []
    assert wire.all(Note) == []


async def test_a_job_is_settled_when_its_last_words_are_there_and_others_before(app, wire):
    @app.task(record_logs=True)
    async def talk() -> None:
        logger.info("last words")

    @app.task
    async def other() -> None: ...

    def hold(verb: Any) -> None:
        if isinstance(verb, Note):
            raise BrokerUnavailable("not now")

    wire.before = hold
    async with running(app):
        spoken = await talk.aenqueue()
        silent = [await other.aenqueue() for _ in range(5)]
        await asyncio.gather(*(each.aresult(10) for each in silent))
        assert await spoken.astatus() is State.RUNNING
        wire.before = lambda _: None
        await spoken.aresult(10)
        assert said(await spoken.ajob()) == ["last words"]


@pytest.mark.parametrize(
    "error",
    [BrokerUnavailable("gone"), BrokerError("unknown verb"), ConfigError("unknown name"), PayloadTooLarge("limit")],
)
async def test_a_store_that_takes_no_notes_does_not_keep_jobs_from_ending(app, wire, error, monkeypatch):
    monkeypatch.setattr(notes, "TRIES", 2)

    @app.task(record_logs=True)
    async def talk() -> str:
        logger.info("unheard")
        return "done"

    def refuse(verb: Any) -> None:
        if isinstance(verb, Note):
            raise error

    wire.before = refuse
    async with running(app):
        handles = [await talk.aenqueue() for _ in range(5)]
        assert [await each.aresult(20) for each in handles] == ["done"] * 5
        assert (await handles[0].ajob()).log == []


def lines_of(verb: Any) -> int:
    return sum(len(note.lines) for note in verb.notes) if isinstance(verb, Note) else 0


@pytest.mark.parametrize("last", [True, False])
async def test_a_note_that_is_too_large_goes_in_several(app, wire, last):
    gate = asyncio.Event()

    @app.task(record_logs=True)
    async def talk() -> None:
        for number in range(10):
            logger.info("line %d", number)
        if not last:
            await gate.wait()

    def refuse(verb: Any) -> None:
        if lines_of(verb) > 20:
            raise PayloadTooLarge("it takes 20 lines a request")

    await app.aenqueue_many(talk.call() for _ in range(20))
    wire.before = refuse
    async with running(app, concurrency=20):

        async def heard() -> bool:
            return sum(len(note.lines) for verb in wire.all(Note) if lines_of(verb) <= 20 for note in verb.notes) == 200

        await aeventually(heard)
        gate.set()
        await done(app, 20)
    assert max(map(lines_of, wire.all(Note))) > 20
    async for job in app.jobs(state="done"):
        assert len(said(await app.ajob(str(job)))) == 10


async def test_of_a_job_whose_lines_are_too_large_the_last_are_kept(app, wire, caplog):
    @app.task(record_logs=True)
    async def talk() -> str:
        for number in range(100):
            logger.info("line %d", number)
        current_job().progress(1, 2)
        return "done"

    def refuse(verb: Any) -> None:
        if lines_of(verb) > 30:
            raise PayloadTooLarge("it takes 30 lines a request")

    wire.before = refuse
    async with running(app):
        handle = await talk.aenqueue()
        assert await handle.aresult(20) == "done"
        job = await handle.ajob()
    assert said(job) == [f"line {number}" for number in range(75, 100)]
    assert job.log_dropped == 75
    assert job.progress.total == 2
    (warning,) = [each.message for each in caplog.records if "too large" in each.message]
    assert f"{job.queue}/{job.id}" in warning
    assert "it takes 30 lines a request" in warning


async def test_short_lines_count_for_what_they_take_on_the_way(app, wire):
    @app.task(record_logs=True)
    async def talk() -> None:
        for _ in range(199):
            logger.info("x")

    await app.aenqueue_many(talk.call() for _ in range(60))
    async with running(app, concurrency=100):
        await done(app, 60)
    assert max(map(lines_of, wire.all(Note))) * 120 < 1 << 20, "which sealed ones have, and a proxy takes"


async def test_a_lost_reply_doubles_no_line(app, wire):
    lost: list[Note] = []
    gate = asyncio.Event()

    @app.task(record_logs=True)
    async def talk() -> None:
        for number in range(3):
            logger.info("line %d", number)
            current_job().progress(number)
        await gate.wait()
        logger.info("end")

    def lose(verb: Any, reply: Any) -> Any:
        if isinstance(verb, Note) and len(lost) < 2:
            lost.append(verb)
            raise BrokerUnavailable("the reply was lost")
        return reply

    wire.after = lose
    async with running(app):
        handle = await talk.aenqueue()
        await logged(handle, 3)
        gate.set()
        await handle.aresult(20)
        assert said(await handle.ajob()) == ["line 0", "line 1", "line 2", "end"]
    assert len(lost) == 2


async def test_much_is_bounded_on_the_way_and_in_the_store(app, wire):
    @app.task(record_logs=True)
    async def talk() -> None:
        for number in range(5000):
            logger.info("line %d", number)

    async with running(app):
        handle = await talk.aenqueue()
        await handle.aresult(20)
        job = await handle.ajob()
    assert said(job) == [f"line {number}" for number in range(5000 - MAX_LINES, 5000)]
    assert job.log_dropped == 5000 - MAX_LINES
    assert max(len(note.lines) for verb in wire.all(Note) for note in verb.notes) <= MAX_LINES


async def test_short_jobs_that_end_together_share_a_note(app, wire):
    @app.task(record_logs=True)
    async def talk(number: int) -> None:
        logger.info("job %d", number)

    await app.aenqueue_many(talk.call(number) for number in range(300))
    async with running(app, concurrency=100):

        async def done() -> bool:
            return sum(len(each.settlements) for each in wire.all(Settle)) == 300

        await aeventually(done)
        jobs = [job async for job in app.jobs(state="done")]
        assert len(jobs) == 300
        assert said(await app.ajob(str(jobs[0])))[0].startswith("job ")
    assert len(wire.all(Note)) < 50


async def test_a_stopped_job_hands_its_words_on(app):
    @app.task(record_logs=True)
    async def talk() -> None:
        logger.info("began")
        await asyncio.Event().wait()

    async with running(app, grace=0.0):
        handle = await talk.aenqueue()
        await logged(handle, 1)
    job = await handle.ajob()
    assert (job.state, said(job)) == (State.READY, ["began"])


async def test_words_are_sent_while_others_end_all_the_time(app, wire):
    gate = asyncio.Event()

    @app.task(record_logs=True)
    async def talk() -> None:
        logger.info("still here")
        await gate.wait()

    @app.task(record_logs=True)
    async def short() -> None:
        logger.info("and gone")
        if not gate.is_set():
            await short.aenqueue()

    async with running(app):
        handle = await talk.aenqueue()
        await short.aenqueue()
        assert said(await logged(handle, 1)) == ["still here"]
        gate.set()


def test_in_memory_it_works_as_in_a_worker():
    app = Spool()

    @app.task(record_logs=True)
    def talk() -> None:
        logger.info("hello")
        current_job().progress(1, 2)

    @app.task(process=True)
    def count() -> None:
        current_job().progress(3)

    with testing.inline(app):
        handle = talk.enqueue()
        assert said(handle.job()) == ["hello"]
        assert handle.progress().done == 1
        assert count.enqueue().progress().done == 3


# Logging itself


@contextlib.contextmanager
def fresh_root() -> Iterator[logging.Logger]:
    """The root logger as it is before a program sets it up."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers[:] = before
        root.setLevel(level)


class Shown(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_what_was_shown_before_is_shown_and_no_more():
    with fresh_root() as root:
        root.addHandler(shown := Shown())
        end = record(ours=True)
        logger.info("no")
        logger.warning("yes")
        logging.getLogger("spool.worker").info("spool's own")
        end()
        assert shown.messages == ["yes", "spool's own"]
        assert root.handlers == [shown]


def test_a_program_that_set_up_nothing_sees_its_warnings(capsys):
    with fresh_root() as root:
        end = record(ours=False)
        assert logging.lastResort in root.handlers
        assert root.level == logging.WARNING
        logger.warning("look")
        end()
        assert root.handlers == []
    assert "look" in capsys.readouterr().err
