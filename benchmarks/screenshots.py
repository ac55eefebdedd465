"""Take the pictures of the dashboard that the documentation shows: every page, light and dark, on a laptop and a phone.

    python -m benchmarks.screenshots [FOLDER] [--size laptop …] [--theme light …] [--page overview …] [--seconds 130]

A server, two workers and a producer (`benchmarks.pictured_shop`) run for a while on a Redis of their own first, so that
there is something to see. Default folder: docs/images. The sizes tablet and wall are there to be looked at.
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import msgspec
from playwright.sync_api import Page

from spool.bench import Plan, run
from tests.browser import open_page
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
SIZES = {"laptop": (1440, 900), "phone": (390, 844), "tablet": (820, 1180), "wall": (2560, 1440)}
PAGES = {
    "queues": "/queues",
    "jobs": "/jobs?state=dead",
    "job": "",
    "dead": "/dead",
    "workers": "/workers",
    "benchmarks": "/benchmarks",
    "overview": "/",
}
"""The overview last: its charts are the fuller for it."""
PLAN = Plan(jobs=900, workers=2, rate=300)
SHOP = "benchmarks.pictured_shop:app"


@contextmanager
def shop() -> Iterator[str]:
    """Run all of it, and give the server's address."""
    with RedisServer() as redis:
        os.environ["SPOOL_URL"] = redis.url
        spool = [sys.executable, "-m", "spool"]
        serve = [*spool, "server", "--port", "0", "--no-auth"]
        server = subprocess.Popen(serve, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        workers = [
            subprocess.Popen(
                [*spool, "worker", SHOP, "--processes", processes, "--concurrency", "8"],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
            )
            for processes in ("2", "1")
        ]
        from benchmarks.pictured_shop import produce

        stop = threading.Event()
        producer = threading.Thread(target=produce, args=(stop,))
        try:
            url = (server.stderr.readline() if server.stderr else "").split()[1]
            prepare(url)
            producer.start()
            yield url
        finally:
            stop.set()
            if producer.ident:
                producer.join()
            for process in (server, *workers):
                process.terminate()
                process.wait()


def prepare(url: str) -> None:
    """Pause a queue, and enqueue jobs of a task that no worker knows."""
    with httpx.Client(base_url=f"{url}/api/v1") as api:
        for _ in range(6):
            api.post("/jobs", json={"task": "transcode_video", "queue": "images"}).raise_for_status()
        api.post("/jobs", json={"task": "charge", "queue": "billing", "args": [36, 1999]}).raise_for_status()
        api.post("/queues/billing/pause", json={}).raise_for_status()


def dress(folder: Path) -> None:
    """Let the browser have the font that the style sheet asks for first, if ``pip install fontpkg-inter`` was run."""
    if found := find_spec("fontpkg_inter"):
        fonts = folder / "fonts"
        fonts.mkdir()
        for file in Path(str(found.origin)).parent.glob("files/*.ttf"):
            (fonts / file.name).symlink_to(file)
        os.environ["XDG_DATA_HOME"] = str(folder)


def results(folder: Path) -> list[Path]:
    """Measure something twice, for the page of benchmarks."""
    paths = [folder / "before.json", folder / "after.json"]
    for path in paths:
        path.write_bytes(msgspec.json.encode(run(PLAN)))
    return paths


def take(page: Page, path: Path) -> None:
    """Take one picture: WebP, a fifth of what PNG takes."""
    session: Any = page.context.new_cdp_session(page)
    shot = session.send("Page.captureScreenshot", {"format": "webp", "quality": 90})
    path.write_bytes(base64.b64decode(shot["data"]))
    session.detach()


def visit(page: Page, url: str, name: str, files: list[Path]) -> None:
    """Open a page, and wait until there is something on it."""
    address = PAGES[name]
    if name == "job":
        found = httpx.get(f"{url}/api/v1/jobs", params={"state": "running", "queue": "reports"}).json()["items"]
        address = f"/jobs/reports/{found[-1]['id']}"
    page.goto(url + address)
    page.locator("#link[data-link=up]").wait_for()
    if name == "benchmarks":
        page.locator("input[type=file]").set_input_files([str(each) for each in files])
        page.locator("#comparison").wait_for()
    page.locator("main .card:visible").first.wait_for()
    if name == "workers":
        page.locator("summary").first.click()
    page.wait_for_timeout(1000)  # for the first deltas


def main() -> None:
    """Run everything, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=IMAGES)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["laptop", "phone"])
    parser.add_argument("--theme", nargs="+", choices=["light", "dark"], default=["light", "dark"])
    parser.add_argument("--page", nargs="+", choices=PAGES, default=list(PAGES))
    parser.add_argument("--seconds", type=float, default=130, help="how long it runs before the overview is taken")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        dress(Path(folder))
        files = results(Path(folder))
        with shop() as url, open_page() as page:
            # It is time itself that is waited for: the charts show minutes of it.
            time.sleep(max(20.0, given.seconds / 2))
            for name in [each for each in PAGES if each in given.page]:
                if name == "overview":
                    time.sleep(max(0.0, begun + given.seconds - time.monotonic()))
                for size in given.size:
                    width, height = SIZES[size]
                    page.set_viewport_size({"width": width, "height": height})
                    for theme in given.theme:
                        page.emulate_media(color_scheme=theme)
                        visit(page, url, name, files)
                        suffix = "" if size == "laptop" else f"-{size}"
                        take(page, given.folder / f"dashboard-{name}-{theme}{suffix}.webp")


if __name__ == "__main__":
    main()
