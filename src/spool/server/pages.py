"""The dashboard's files: one page for all its addresses, and the modules, styles and pictures that it loads.

All are read once, at the first request, from what is installed beside this module, and served with an ETag, so that a
browser has the new ones after an upgrade. What the login page needs is for anybody; all else takes a login.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

import msgspec

from spool.server.problems import Refused
from spool.server.routes import Ask, Operation

ADDRESSES: Final = ("/", "/queues", "/jobs", "/jobs/{queue}/{id}", "/dead", "/workers", "/benchmarks")
"""The dashboard's own addresses, which all show its one page."""
OPEN: Final = ("style.css", "theme.js", "icon.svg")
"""What the login page needs."""
_MEDIA: Final = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


class File(msgspec.Struct, frozen=True):
    """A file as it is served."""

    content: bytes
    media: bytes
    etag: bytes


@cache
def static_files() -> dict[str, File]:
    """Return the files by the path under which they are asked for."""
    package = files("spool")
    found = dict(_read(package / "server" / "static", ""))
    found["uplot/uPlot.js"] = _file(package / "assets" / "uplot" / "uPlot.iife.min.js")
    found["uplot/uPlot.css"] = _file(package / "assets" / "uplot" / "uPlot.min.css")
    # What uPlot has to be told before it is loaded is the same here as in the benchmark's page.
    found["uplot/language.js"] = _file(package / "bench" / "page" / "language.js")
    return found


def _read(folder: Traversable, under: str) -> Iterator[tuple[str, File]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _read(each, f"{under}{each.name}/")
        elif each.name.rpartition(".")[2] in _MEDIA:
            yield under + each.name, _file(each)


def _file(path: Traversable) -> File:
    content = path.read_bytes()
    etag = b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
    return File(content, _MEDIA[path.name.rpartition(".")[2]], etag)


def _served(ask: Ask[None, None], path: str) -> Any:
    file = static_files().get(path)
    if file is None:
        raise Refused(404, "there is no such file")
    there = ask.headers.get(b"if-none-match", b"").split(b",")
    known = file.etag in (part.strip().removeprefix(b"W/") for part in there)  # a proxy that compresses weakens it
    body = b"" if known else file.content
    head = [(b"content-type", file.media), (b"etag", file.etag), (b"cache-control", b"no-cache")]
    if not known:
        head.append((b"content-length", b"%d" % len(body)))

    async def answer(scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 304 if known else 200, "headers": head})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return answer


async def page(ask: Ask[None, None]) -> Any:
    """Return the dashboard's page."""
    return _served(ask, "index.html")


async def open_file(ask: Ask[None, None]) -> Any:
    """Return a file that anybody may have."""
    return _served(ask, ask.asgi[0]["path"].removeprefix("/static/"))


async def file(ask: Ask[None, None]) -> Any:
    """Return a file of the dashboard."""
    return _served(ask, ask.path["file"])


ROUTES = (
    *(
        Operation("GET", path, page, "read", "The dashboard", documented=False, queues=True, produces="text/html")
        for path in ADDRESSES
    ),
    *(
        Operation("GET", f"/static/{name}", open_file, None, "A file of the login page", documented=False)
        for name in OPEN
    ),
    Operation("GET", "/static/{file:path}", file, "read", "A file of the dashboard", documented=False, queues=True),
)
