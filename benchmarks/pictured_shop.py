"""What runs while the pictures of the dashboard are taken: a shop with its everyday troubles.

Workers serve ``benchmarks.pictured_shop:app``; `produce` enqueues. The broker is the environment's SPOOL_URL.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading

from spool import Spool, current_job

app = Spool()
log = logging.getLogger("shop.reports")
dice = random.Random()  # noqa: S311 - nobody's secret


@app.task(queue="mail", retries=1)
async def send_receipt(to: str, order: int) -> dict[str, str]:
    """Fail now and then, and seldom twice."""
    await asyncio.sleep(dice.expovariate(40))
    if dice.random() < 0.06:
        raise ConnectionError(f"mailbox {order} is full")
    return {"to": to}


@app.task(queue="images", retries=0, timeout=60)
async def resize(path: str, width: int) -> int:
    """Take a moment."""
    await asyncio.sleep(dice.expovariate(12))
    return width


@app.task(queue="warehouse-sync-eu-central-1", retries=0)
async def reserve_stock(order: int, article: str) -> str:
    """Fail in three ways."""
    await asyncio.sleep(dice.uniform(0.1, 0.4))
    chance = dice.random()
    if chance < 0.02:
        raise TimeoutError(f"no answer from 10.0.3.{order % 200} after 5 s")
    if chance < 0.03:
        raise ValueError(f"order {order} has no address")
    if chance < 0.034:
        raise LookupError(f"no article {article!r} in the catalogue of the warehouse")
    return article


@app.task(queue="reports", retries=0, record_logs=True)
async def monthly_report(month: str, pages: int) -> int:
    """Say how far it is."""
    for page in range(pages):
        level = logging.WARNING if page % 9 == 5 else logging.INFO
        log.log(level, "page %s of %s: %s", page + 1, month, "an image is missing" if page % 9 == 5 else "written")
        current_job().progress(page + 1, pages, "pages written")
        await asyncio.sleep(1)
    return pages


@app.task(queue="billing", retries=5)
async def charge(order: int, cents: int) -> int:
    """Wait: its queue is paused."""
    return cents


@app.task(queue="newsletter", retries=3)
async def send_newsletter(number: int) -> int:
    """Be scheduled."""
    return number


@app.task(queue="search", retries=2)
async def index_article(article: str) -> str:
    """Be quick."""
    await asyncio.sleep(dice.expovariate(200))
    return article


def produce(stop: threading.Event) -> None:
    """Enqueue some of everything in waves until told to stop."""
    app.enqueue_many(charge.call(order, 1999) for order in range(37))
    app.enqueue_many(send_newsletter.options(delay=3600, priority="low").call(number) for number in range(240))
    turn = 0
    while not stop.is_set():
        turn += 1
        priority = ("critical", "high", "normal", "low", "background")[turn % 5]
        many = 8 + 8 * (turn // 75 % 2) + turn % 3
        app.enqueue_many(send_receipt.options(priority=priority).call(f"user{n}@example.org", n) for n in range(many))
        app.enqueue_many(resize.options(priority=priority).call(f"/pictures/{n}.jpg", 640) for n in range(6))
        app.enqueue_many(reserve_stock.call(4000 + turn * 3 + n, "SKU-2031-B") for n in range(3))
        app.enqueue_many(index_article.call(f"article-{turn}-{n}") for n in range(2))
        if turn % 60 == 1:
            monthly_report.enqueue("October 2026", 40)
        stop.wait(0.2)
    app.close()
