"""All of this type-checks, and the types are the ones asserted."""

import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, assert_type

from spool import Backoff, ErrorGroup, Handle, Job, Selection, Spool, State, Task
from spool.task import Call, Configured

app = Spool("sqlite://:memory:")


def use(*values: object) -> None: ...


@app.task
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return url.encode() * tries


@app.task
def add(a: int, b: int = 2) -> int:
    return a + b


@app.task(queue="mail", retries=5, timeout=30, priority="high", backoff=Backoff(base=2), retry_on=OSError)
async def send(to: str, body: str) -> dict[str, int]:
    return {to: len(body)}


@app.task(process=True, no_retry_on=(ValueError, TypeError), on_disconnect="continue")
def count(text: str, /) -> None:
    use(text)


@app.task()
def free(*numbers: int, **names: str) -> list[str]:
    return [*names] * len(numbers)


def plain() -> None:
    assert_type(add(1), int)
    assert_type(add(1, b=3), int)
    use(assert_type(fetch("x"), Coroutine[Any, Any, bytes]))
    use(assert_type(send("x", "y"), Coroutine[Any, Any, dict[str, int]]))
    assert_type(free(1, 2, a="x"), list[str])


async def awaited() -> None:
    assert_type(await fetch("x", tries=2), bytes)
    assert_type(await fetch.aenqueue("x"), Handle[bytes])
    assert_type(await (await fetch.aenqueue("x", tries=2)).aresult(timeout=1), bytes)
    assert_type(await (await add.aenqueue(1)).aresult(), int)
    assert_type(await send.options(delay=1).aenqueue("x", body="y"), Handle[dict[str, int]])
    handle = await add.aenqueue(a=1, b=2)
    assert_type(await handle.astatus(), State)
    assert_type(await handle.ajob(), Job)
    assert_type(await handle.acancel("why"), bool)
    assert_type(await app.aenqueue_many(add.call(number) for number in range(3)), int)
    assert_type(await app.aenqueue_many(calls()), int)
    assert_type(await app.ajob("id"), Job)
    async with app:
        await app.aclose()


async def calls() -> AsyncIterator[Call]:
    yield add.call(1)


def blocking() -> None:
    assert_type(fetch.enqueue("x"), Handle[bytes])
    assert_type(fetch.enqueue("x").result(), bytes)
    assert_type(add.enqueue(1).result(timeout=0.5), int)
    assert_type(count.enqueue("x").result(), None)
    assert_type(send.call("x", "y"), Call)
    later: Configured[[str, str], dict[str, int]] = send.options(at=dt.datetime.now(dt.UTC), id="x", headers={"a": "b"})
    assert_type(later.enqueue("x", "y"), Handle[dict[str, int]])
    assert_type(add.options(delay=dt.timedelta(1), queue="q", priority="low", retries=0).enqueue(1, 2).result(), int)
    assert_type(add.options(timeout=1, result_ttl=0, on_disconnect="stop").call(1), Call)
    assert_type(add.options(durability="fsync").enqueue(1), Handle[int])
    assert_type(app.enqueue_many([add.call(1)], durability="fsync"), int)
    assert_type(add.handle("id").result(), int)
    assert_type(app.enqueue_many([add.call(1), send.call("x", "y")]), int)
    assert_type(app.job("queue/id"), Job)
    handle = add.enqueue(1)
    assert_type((handle.queue, handle.id, handle.created), tuple[str, str, bool])
    assert_type(handle.status(), State)
    assert_type(handle.cancel(), bool)
    with app as same:
        assert_type(same, Spool)


def together() -> None:
    jobs = assert_type(
        app.jobs(queue="mail", state="dead", task=send, error="Timeout", since=dt.timedelta(1)), Selection
    )
    app.jobs(state=[State.DEAD, "ready"], task="send", since=3600, until=dt.datetime.now(dt.UTC), id=("a", "b"))
    for job in jobs:
        assert_type(job, Job)
    assert_type(jobs.count(), int)
    assert_type(jobs.cancel("why"), int)
    assert_type(jobs.replay(rate=10, on_progress=lambda replayed, found: use(replayed + found)), int)
    assert_type(jobs.delete(everything=True), int)
    assert_type(jobs.groups(5).top, list[ErrorGroup])


async def together_in_a_loop() -> None:
    jobs = app.jobs(state="dead")
    async for job in jobs:
        assert_type(job, Job)
    assert_type(await jobs.acount(), int)
    assert_type(await jobs.acancel("why"), int)
    assert_type(await jobs.areplay(0.5), int)
    assert_type(await jobs.adelete(), int)
    assert_type((await jobs.agroups()).others, int)


# A task may be passed on by what callers need to know of it.
one: Task[[str, str], dict[str, int]] = send
many: list[Task[..., Any]] = [fetch, add, send, count, free]
wide: Handle[object] = add.enqueue(1)
function: Callable[[int, int], int] = add


@app.lifespan
async def simple(app: Spool) -> AsyncIterator[None]:
    yield


@app.lifespan
@asynccontextmanager
async def managed(app: Spool) -> AsyncGenerator[int]:
    yield 1


@app.lifespan
def factory(app: Spool) -> AbstractAsyncContextManager[int]:
    return managed(app)


@app.middleware
async def passing(context: object, call_next: Callable[[], Awaitable[Any]]) -> Any:
    return await call_next()
