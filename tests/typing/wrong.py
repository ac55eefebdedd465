"""Each line that ends in "# wrong" is refused, and no other."""

from spool import Handle, Spool, Task

app = Spool("sqlite://:memory:")


def use(*values: object) -> None: ...


@app.task
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return url.encode() * tries


@app.task(queue="mail")
def add(a: int, b: int = 2) -> int:
    return a + b


def arguments() -> None:
    add.enqueue()  # wrong
    add.enqueue("1")  # wrong
    add.enqueue(1, 2, 3)  # wrong
    add.enqueue(1, c=3)  # wrong
    add.call(b=1)  # wrong
    add.options(delay=1).enqueue("1")  # wrong
    add.options(delay=1).call()  # wrong
    fetch.enqueue("x", 2)  # wrong
    fetch.enqueue(b"x")  # wrong
    fetch.options(id="x").enqueue("x", tries="2")  # wrong
    add("1")  # wrong
    fetch()  # wrong


async def results() -> None:
    text: str = add.enqueue(1).result()  # wrong
    text = await (await add.aenqueue(1)).aresult()  # wrong
    text = await fetch("x")  # wrong
    text = fetch("x")  # wrong
    handle: Handle[str] = add.enqueue(1)  # wrong
    task: Task[[int, int], str] = add  # wrong
    other: Task[[str], int] = add  # wrong
    await add.aenqueue("1")  # wrong
    await fetch.options(delay=1).aenqueue(1)  # wrong
    use(text, handle, task, other)


def settings() -> None:
    app.task(queu="mail")  # wrong
    app.task(priority="urgent")  # wrong
    app.task(retries="3")  # wrong
    app.task("mail")  # wrong
    app.task(on_disconnect="pause")  # wrong
    app.task(on_disconnect=None)  # wrong
    add.options(on_disconnect="pause")  # wrong
    add.options(delay="1")  # wrong
    add.options(at="2024-01-01")  # wrong
    add.options(priority="urgent")  # wrong
    add.options(dely=1)  # wrong
    add.options(headers={"a": 1})  # wrong
    app.enqueue_many([add])  # wrong
    app.enqueue_many([add.enqueue(1)])  # wrong
    app.enqueue_many(3)  # wrong
    app.enqueue_many([add.call(1)], durability="always")  # wrong
    add.options(durability=True)  # wrong


def together() -> None:
    app.jobs(state="asleep")  # wrong
    app.jobs(state=["dead", "asleep"])  # wrong
    app.jobs(since="2h")  # wrong
    app.jobs(task=len)  # wrong
    app.jobs("dead")  # wrong
    app.jobs(state="dead").replay(rate="10")  # wrong
    app.jobs(state="dead").cancel(5)  # wrong


@app.middleware  # wrong
def sync_middleware(context: object) -> int:
    return 1


@app.lifespan  # wrong
def sync_lifespan(app: Spool) -> int:
    return 1
