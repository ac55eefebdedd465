"""The login page, and how a browser comes to its session and rids itself of it.

The page is a plain form, which works without its style and its script (that only chooses light or dark).
"""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta

from spool.server.problems import Refused
from spool.server.routes import Ask, Operation, Reply

LARGEST: Final = 16 * 1024
"""Bytes of what anybody may send."""
FORM: Final = "application/x-www-form-urlencoded"

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Log in to Spool</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<script src="/static/theme.js"></script>
<link rel="stylesheet" href="/static/style.css">
</head>
<body class="login">
<main>
<form class="card" method="post" action="/login">
<h1><img src="/static/icon.svg" alt="" width="28" height="28"> Spool</h1>
{message}
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus
 aria-describedby="hint">
<input type="hidden" name="next" value="{next}">
<button class="primary">Log in</button>
<p id="hint" class="soft">The server printed one at its first start; <code>spool token create</code> makes more.</p>
</form>
</main>
</body>
</html>
"""


class LoginQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``next``: the page of this server to go to afterwards."""

    next: Annotated[str, Meta(max_length=1000)] = "/"


class LoggedIn(msgspec.Struct, frozen=True):
    """Whose session it is, and what it may do."""

    name: str
    scopes: list[str]
    queues: list[str] | None
    read_only: bool


def local(path: str) -> str:
    r"""Return a path if it leads to this server, else the front page.

    >>> local("/jobs?state=dead"), local("//evil.example"), local("https://evil.example"), local("/\\evil.example")
    ('/jobs?state=dead', '/', '/', '/')
    """
    good = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and path.isascii()
    return path if good else "/"


def page(onward: str, message: str = "", status: int = 200) -> Reply:
    """Return the login page."""
    import html

    shown = f'<p role="alert">{html.escape(message)}</p>' if message else ""
    text = PAGE.replace("{message}", shown).replace("{next}", html.escape(local(onward)))
    return Reply(text.encode(), status, (), "text/html; charset=utf-8")


async def show(ask: Ask[LoginQuery, None]) -> Reply:
    """Return the login page."""
    return page(ask.query.next)


async def log_in(ask: Ask[None, bytes]) -> Reply:
    """Open a session for the holder of a token, sent by a form or as JSON ``{"token": …}``."""
    services = ask.services
    # Counted before it is looked at: many that come at once must not all pass.
    if wait := services.failures.wait(ask.client):
        raise Refused(429, "too many wrong tokens from there", ((b"retry-after", b"%d" % (wait + 1)),))
    form = ask.headers.get(b"content-type", b"").startswith(FORM.encode())
    token, onward = _read_form(ask.body) if form else _read_json(ask.body)
    principal = await services.tokens.verify(token)
    if principal is None:
        if form:
            return page(onward, "This token is not valid.", 401)
        raise Refused(401, "this token is not valid", ((b"www-authenticate", b"Bearer"),))
    services.failures.give_back(ask.client)
    cookie = await services.sessions.open(principal)
    await services.audit.note(principal, client=ask.client, action="POST /login", target="/login", status=200)
    headers = ((b"set-cookie", cookie),)
    if form:
        return Reply(b"", 303, (*headers, (b"location", local(onward).encode())), "text/plain")
    return Reply(await _who(ask, principal), 200, headers)


def _read_form(body: bytes) -> tuple[str, str]:
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=10)
    except ValueError as error:
        raise Refused(400, "the form cannot be read") from error
    return fields.get("token", [""])[0].strip(), fields.get("next", ["/"])[0]


class Login(msgspec.Struct, frozen=True):
    """A token, for which there will be a session. A form may have it as well."""

    token: str


def _read_json(body: bytes) -> tuple[str, str]:
    return msgspec.json.decode(body, type=Login).token.strip(), "/"


async def log_out(ask: Ask[None, None]) -> Reply:
    """End the session; that of nobody ends as well."""
    cookie = await ask.services.sessions.close(ask.headers.get(b"cookie", b"").decode("latin-1"))
    headers = ((b"set-cookie", cookie), (b"location", b"/login"))
    return Reply(b"", 303, headers, "text/plain")


async def who(ask: Ask[None, None]) -> LoggedIn:
    """Return who asks."""
    return await _who(ask, ask.principal)


async def _who(ask: Any, principal: Any) -> LoggedIn:
    queues = None if principal.queues is None else sorted(principal.queues)
    return LoggedIn(principal.name, sorted(principal.scopes), queues, ask.services.settings.read_only)


ROUTES = (
    Operation(
        "GET",
        "/login",
        show,
        None,
        "The login page",
        query=LoginQuery,
        produces="text/html; charset=utf-8",
        response=str,
    ),
    Operation(
        "POST",
        "/login",
        log_in,
        None,
        "Log in",
        media="*/*",
        shown_request=Login,
        response=LoggedIn,
        mutates=False,
        max_body=LARGEST,
    ),
    Operation("POST", "/logout", log_out, None, "Log out", media="*/*", status=303, mutates=False, max_body=LARGEST),
    Operation("GET", "/api/v1/me", who, "read", "Whose token or session this is", response=LoggedIn, queues=True),
)
