"""An app whose keys, as its broker, are the environment's."""

import logging

from spool import Cancel, Spool, current_job

app = Spool(record_logs=True)
logger = logging.getLogger("shop")


@app.task
async def add(a: int, b: int) -> int:
    return a + b


@app.task(process=True)
def add_later(a: int, b: int) -> str:
    """Enqueue from within a process of the pool."""
    return add.enqueue(a, b).id


@app.task(retries=0)
async def tell(word: str) -> str:
    job = current_job()
    logger.info("log %s", word)
    job.progress(1, 2, f"progress {word}")
    return f"result {word}"


@app.task(retries=0)
def fail(word: str) -> None:
    raise ValueError(f"message {word}")


@app.task(process=True, retries=0)
def fail_apart(word: str) -> None:
    raise ValueError(f"message {word}")


@app.task
async def give_up(word: str) -> None:
    raise Cancel(f"reason {word}")
