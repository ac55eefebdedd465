"""A profile in the browser: speedscope, which comes with Spool, on a server that only this machine reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Final
from urllib.parse import quote, urlsplit

from spool.errors import ConfigError

HOST: Final = "127.0.0.1"

_PROFILE: Final = "/profile.speedscope.json"
_KINDS: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
}
# speedscope writes the styles of what it draws into the page, and decodes the names of C++ by WebAssembly.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Pages = Mapping[str, tuple[str, bytes]]
"""Content type and body by path: what is not in here is not served."""


class Viewer:
    """Serves speedscope with one profile, in speedscope's own format. ``port`` 0 takes a free one.

    Raises `ConfigError` for a port that cannot be used.
    """

    def __init__(self, profile: bytes, port: int = 0) -> None:
        pages = dict(_assets()) | {_PROFILE: (_KINDS["json"], profile)}
        try:
            self._server = ThreadingHTTPServer((HOST, port), partial(_Handler, pages))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used: {error.strerror or error}") from error
        self._server.daemon_threads = True
        self.port = self._server.server_port

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.port}/"

    def serve(self) -> None:
        """Answer until another thread calls `close`, or a signal raises."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """End `serve`, which has to run in another thread or to have ended."""
        self._server.shutdown()
        self._server.server_close()


def _assets() -> Iterator[tuple[str, tuple[str, bytes]]]:
    for file in (files("spool") / "assets" / "speedscope").iterdir():
        kind = _KINDS.get(file.name.rpartition(".")[2])
        if kind is not None:
            yield f"/{file.name}", (kind, file.read_bytes())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def __init__(self, pages: Pages, *given: Any) -> None:
        self._pages = pages
        super().__init__(*given)  # which answers the request

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        _, port = self.connection.getsockname()[:2]
        host = self.headers.get("Host", "")
        if host not in {f"{HOST}:{port}", f"localhost:{port}"}:
            # Another site whose name was made to lead here would read the profile.
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"not the name of this server\n")
            return
        path = urlsplit(self.path).path
        if path == "/":
            where = f"/index.html#profileURL={quote(f'http://{host}{_PROFILE}', safe='')}&view=left-heavy"
            self._send(HTTPStatus.FOUND, "text/plain", b"", Location=where)
        elif path in self._pages:
            self._send(HTTPStatus.OK, *self._pages[path])
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page\n")

    def _send(self, status: HTTPStatus, kind: str, body: bytes, **more: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in (headers | more).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its signature
        pass
