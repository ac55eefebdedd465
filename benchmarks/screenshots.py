"""Take the pictures of the dashboard that the guide shows: ``python -m benchmarks.screenshots [FOLDER]``.

A server, a worker and a producer run for a while on a Redis of their own, so that there is something to see.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page

from spool import Spool
from tests.browser import open_page
from tests.redis_server import RedisServer

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WARM_UP = 75.0
SHAPES = {"light": (1280, 900), "dark": (1280, 900), "phone": (390, 844)}
PAGES = {"overview": "/", "queues": "/queues", "jobs": "/jobs?state=dead", "dead": "/dead", "workers": "/workers"}
APP = """
import asyncio, logging, random
from spool import Spool, current_job

app = Spool()
log = logging.getLogger("shop")

@app.task(queue="mail", retries=1)
async def send(to: str, number: int) -> dict[str, str]:
    await asyncio.sleep(random.expovariate(40))
    if random.random() < 0.05:
        raise ConnectionError(f"mailbox {number} is full")
    return {"to": to}

@app.task(queue="images", retries=0)
async def resize(path: str, width: int) -> int:
    await asyncio.sleep(random.expovariate(12))
    return width

@app.task(queue="reports", retries=0, record_logs=True)
async def report(month: str) -> int:
    for page in range(40):
        log.info("page %s of %s", page + 1, month)
        current_job().progress(page, 40, "pages written")
        await asyncio.sleep(1)
    return 40
"""


def produce(url: str, stop: threading.Event) -> None:
    """Enqueue some of everything, in waves."""
    app = Spool(url)

    @app.task(queue="mail", name="send", retries=1)
    async def send(to: str, number: int) -> dict[str, str]: ...

    @app.task(queue="images", name="resize", retries=0)
    async def resize(path: str, width: int) -> int: ...

    @app.task(queue="reports", name="report", retries=0)
    async def report(month: str) -> int: ...

    turn = 0
    while not stop.is_set():
        turn += 1
        priority = ("critical", "high", "normal", "low", "background")[turn % 5]
        many = 14 + 12 * (turn // 60 % 2)
        app.enqueue_many(send.options(priority=priority).call(f"user{n}@example.org", n) for n in range(many))
        app.enqueue_many(resize.options(priority=priority).call(f"/pictures/{n}.jpg", 640) for n in range(6))
        if turn % 50 == 1:
            report.enqueue("October")
        stop.wait(0.2)
    app.close()


def take(page: Page, url: str, folder: Path) -> None:
    """Take all pictures."""
    jobs = httpx.get(f"{url}/api/v1/jobs", params={"state": "running", "queue": "reports"}).json()["items"]
    paths = PAGES | {"job": f"/jobs/reports/{jobs[0]['id']}"}
    for shape, (width, height) in SHAPES.items():
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme="dark" if shape == "dark" else "light")
        for name, path in paths.items():
            if shape == "light" or name in {"overview", "job"}:
                page.goto(url + path)
                page.locator("#link[data-link=up]").wait_for()
                page.locator("main .card:visible").first.wait_for()
                page.wait_for_timeout(1500)  # for the first deltas
                page.screenshot(path=folder / f"dashboard-{name}-{shape}.png")


def main() -> None:
    """Run everything, and take the pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    with RedisServer() as redis, tempfile.TemporaryDirectory() as place:
        Path(place, "shop_app.py").write_text(APP)
        env = os.environ | {"SPOOL_URL": redis.url, "PYTHONPATH": place}
        spool = [sys.executable, "-m", "spool"]
        options = ["--processes", "2", "--concurrency", "8"]
        worker = subprocess.Popen([*spool, "worker", "shop_app:app", *options], env=env, stderr=subprocess.DEVNULL)
        serve = [*spool, "server", "--port", "0", "--no-auth"]
        server = subprocess.Popen(serve, env=env, stderr=subprocess.PIPE, text=True)
        stop = threading.Event()
        producer = threading.Thread(target=produce, args=(redis.url, stop))
        producer.start()
        try:
            url = (server.stderr.readline() if server.stderr else "").split()[1]
            time.sleep(WARM_UP)
            with open_page() as page:
                take(page, url, folder)
        finally:
            stop.set()
            producer.join()
            for process in (server, worker):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
