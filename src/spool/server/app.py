"""The ASGI application: from a request, past the guards, to its handler and back.

`create_app` gathers the routes of the modules in `MODULES`: add yours there, and what has to run beside the requests
(a roller, a hub) to `LIFESPANS`, as an async context manager of the `Services`.

In this order: the host, who asks, which operation, whether it is allowed, the origin, the rate, the size of the body;
then query and body are decoded. Nothing is in between but these calls: `POST /api/v1/jobs` takes 45 µs with them, and a
middleware of Starlette's would add a tenth to that for each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import ModuleType
from typing import Any, Final, cast
from urllib.parse import parse_qsl

import msgspec
from starlette.routing import Route, Router

from spool.broker import Broker
from spool.errors import SpoolError
from spool.job import NAME
from spool.server import (
    benchmarks,
    dead,
    health,
    jobs,
    live,
    login,
    metrics,
    openapi,
    pages,
    queues,
    tokens,
    verbs,
    workers,
)
from spool.server.auth import ANYBODY, Principal
from spool.server.guard import SAFE, read_body, single_headers
from spool.server.problems import Problem, Refused, problem_of
from spool.server.routes import Ask, Operation, Reply
from spool.server.services import Services
from spool.server.settings import ServerSettings

logger = logging.getLogger("spool.server")

MODULES: Final[Sequence[ModuleType]] = (
    *(jobs, queues, dead, workers, metrics, live, benchmarks),
    *(tokens, health, login, pages, verbs),
)
"""The modules of routes, each with ``ROUTES``."""
LIFESPANS: Final[Sequence[Callable[[Services], AbstractAsyncContextManager[Any]]]] = (
    lambda services: services.audit.running(),
    lambda services: services.replays.running(),
    metrics.rolling,
    lambda services: services.verbs.running(),
    live.looking,
)
"""What runs beside the requests, from the start of the application to its end."""

Send = Any
Headers = tuple[tuple[bytes, bytes], ...]

API_POLICY: Final = b"default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ALWAYS: Final[Headers] = (
    (b"x-content-type-options", b"nosniff"),
    # Not no-referrer: with that, a browser sends the login form of our own page with the origin "null".
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_DATA: Final[Headers] = (*_ALWAYS, (b"content-security-policy", API_POLICY), (b"cache-control", b"no-store"))
_PAGE: Final[Headers] = (*_ALWAYS, (b"content-security-policy", PAGE_POLICY), (b"cache-control", b"no-store"))
_LOGIN: Final[Headers] = ((b"www-authenticate", b"Bearer"),)

_encode = msgspec.json.Encoder().encode


class App:
    """The ASGI application. Made by `create_app`."""

    def __init__(self, services: Services, operations: Sequence[Operation]) -> None:
        self.services = services
        self.operations = operations
        paths: dict[str, dict[str, _Endpoint]] = {}
        for operation in operations:
            method = paths.setdefault(operation.path, {})
            if operation.method in method:
                raise ValueError(f"{operation.method} {operation.path} is declared twice")
            method[operation.method] = _Endpoint(self, operation)
        self._literal = {path: _Path(self, methods) for path, methods in paths.items() if "{" not in path}
        self._router = Router(
            [Route(path, _Path(self, methods), methods=None) for path, methods in paths.items() if "{" in path],
            redirect_slashes=False,
            default=self._nowhere,
        )
        self._stack: AsyncExitStack | None = None

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Serve one request, WebSocket or lifespan."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Any, receive: Any, send: Send) -> None:
        services = self.services
        # Who asks whether it lives would restart it, and lose what is under way, for being at work.
        if services.under_way >= services.settings.limits.requests and scope["path"] != health.ALIVE:
            await _send_problem(send, Refused(503, "too many requests are under way", ((b"retry-after", b"1"),)))
            return
        services.under_way += 1
        try:
            await self._dispatch(scope, receive, send)
        except Refused as refusal:
            if refusal.problem.status == 401 and _is_for_people(scope):
                await self._show_login(scope, send)
            else:
                await _send_problem(send, refusal)
        except SpoolError as error:
            await _send_problem(send, problem_of(error))
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            await _send_problem(send, Refused(400, str(error) or "it nests too deep"))
        except Exception:
            logger.exception("%s %r failed", scope["method"], scope["path"])
            await _send_problem(send, Refused(500, "the server's log says more"))
        finally:
            services.under_way -= 1
            services.room.give_back(scope)

    async def _show_login(self, scope: Any, send: Send) -> None:
        query = scope.get("query_string", b"").decode("latin-1")
        reply = login.page(scope["path"] + (f"?{query}" if query else ""), status=401)
        await _send(send, 401, reply.content, (), reply.media.encode())

    async def _dispatch(self, scope: Any, receive: Any, send: Send) -> None:
        scope["spool"] = headers = single_headers(scope["headers"])
        self.services.doors.check_host(headers)
        path = self._literal.get(scope["path"])
        if path is not None:
            await path(scope, receive, send)
        else:
            await self._router(scope, receive, send)

    async def known(self, scope: Any) -> Principal:
        """Return who asks, or refuse who did not say (401)."""
        caller = await self.services.doors.authenticate(scope["spool"])
        if caller is None:
            raise Refused(401, "this needs a token, as Authorization: Bearer spool_…, or a login", _LOGIN)
        return caller

    async def _nowhere(self, scope: Any, _receive: Any, _send: Send) -> None:
        await self.known(scope)
        raise Refused(404, "there is nothing at this path")

    async def _websocket(self, scope: Any, receive: Any, send: Send) -> None:
        try:
            await self._dispatch(scope, receive, send)
        except (Refused, SpoolError) as error:
            problem = error.problem if isinstance(error, Refused) else problem_of(error)
            logger.debug("a WebSocket was refused: %s", problem.detail)
            if "websocket.http.response" in scope.get("extensions", {}):
                head = [(b"content-type", b"application/problem+json"), *_DATA]
                await send({"type": "websocket.http.response.start", "status": problem.status, "headers": head})
                await send({"type": "websocket.http.response.body", "body": _encode(problem)})
            else:
                await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, receive: Any, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._stack = AsyncExitStack()
                try:
                    for lifespan in LIFESPANS:
                        await self._stack.enter_async_context(lifespan(self.services))
                except SpoolError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._stack is not None:
                    await self._stack.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


class _Path:
    """The methods of one path, as an ASGI application."""

    def __init__(self, app: App, methods: Mapping[str, _Endpoint]) -> None:
        self._app = app
        self._methods = methods
        allowed = {"GET" if each == "WEBSOCKET" else each for each in methods}
        self._allow = ", ".join(sorted({*allowed, *(("HEAD",) if "GET" in allowed else ()), "OPTIONS"}))
        self._open = any(endpoint.operation.scope is None for endpoint in methods.values())

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        endpoint = self._methods.get("GET" if method == "HEAD" else method)
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        if not self._open:
            await self._app.known(scope)
        if method in SAFE and "WEBSOCKET" in self._methods and method != "OPTIONS":
            raise Refused(426, "this is a WebSocket", ((b"connection", b"upgrade"), (b"upgrade", b"websocket")))
        allow = ((b"allow", self._allow.encode()),)
        if method == "OPTIONS":
            await _send(send, 204, b"", allow, b"")
            return
        raise Refused(405, f"allowed are {self._allow}", allow)


class _Endpoint:
    """One operation, as an ASGI application."""

    def __init__(self, app: App, operation: Operation) -> None:
        self.operation = operation
        self._app = app
        self._services = app.services
        self._handler = operation.handler
        limits = app.services.settings.limits
        self._max_body = operation.max_body or limits.body
        self._takes_json = operation.media == "application/json"
        self._decode = None if operation.request is None else msgspec.json.Decoder(operation.request).decode
        self._query = None if operation.query is None else _QueryReader(operation.query)
        self._refused = app.services.settings.read_only and operation.changes
        self._safe = operation.method in SAFE
        self._rate = app.services.enqueue_rate if operation.scope in ("enqueue", "work") else app.services.rate

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        operation, services = self.operation, self._services
        headers = scope["spool"]
        caller = await self._checked(scope, headers)
        path: dict[str, str] = scope.get("path_params") or {}
        _check_path(path, caller)
        query = None if self._query is None else self._query.read(scope.get("query_string", b""))
        body: Any = None
        if not self._safe and operation.method != "WEBSOCKET":
            body = await self._body(scope, receive)
        ask = Ask(services, operation, caller, path, headers, query, body, (scope, receive, send))
        if operation.method == "WEBSOCKET":
            await self._handler(ask)
            return
        if operation.audited != "each":
            await self._answer(ask, await self._handler(ask), send)
            return
        await self._answer(ask, await self._audited(ask), send)

    async def _checked(self, scope: Any, headers: Mapping[bytes, bytes]) -> Principal:
        """Return who asks, if that one may."""
        operation, services = self.operation, self._services
        caller = ANYBODY
        if operation.scope is not None:
            caller = await self._app.known(scope)
            if operation.scope not in caller.scopes and caller.scopes.isdisjoint(operation.also):
                raise Refused(403, f"this needs a token with the scope {operation.scope!r}")
            self._rate.check(caller.id)
        scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"]) or str(scope["scheme"])
        if operation.method == "WEBSOCKET" or (not self._safe and (caller.cookie or operation.scope is None)):
            services.doors.check_origin(headers, scheme, strict=caller.cookie and services.settings.auth)
        if self._refused:
            raise Refused(403, "this server is read-only")
        if caller.queues is not None and not operation.queues and "{queue}" not in operation.path:
            raise Refused(403, "this token is for some queues only")
        return caller

    async def _body(self, scope: Any, receive: Any) -> Any:
        headers: Mapping[bytes, bytes] = scope["spool"]
        body = await read_body(receive, scope, self._max_body, self._services.room)
        if not self._takes_json:
            if self.operation.media != "*/*":
                _check_type(headers, self.operation.media)
            return body
        # Also where no body is expected: a page of another origin cannot send this type without asking first.
        if body:
            _check_type(headers, "application/json")
        return None if self._decode is None else self._decode(body or b"{}")

    async def _audited(self, ask: Any) -> Any:
        scope = ask.asgi[0]
        action = f"{self.operation.method} {self.operation.path}"
        note = partial(
            self._services.audit.note, ask.principal, client=_client(scope), action=action, target=scope["path"]
        )
        try:
            answer = await self._handler(ask)
        except (Refused, SpoolError) as error:
            problem = error.problem if isinstance(error, Refused) else problem_of(error)
            await note(status=problem.status, detail=problem.detail)
            raise
        except (Exception, asyncio.CancelledError):  # the latter when the server ends: part of it may have been done
            await note(status=500, detail=f"it was cut short: {_detail(ask)}")
            raise
        status = answer.status if isinstance(answer, Reply) else 0
        await note(status=status or self.operation.status, detail=_detail(ask))
        return answer

    async def _answer(self, ask: Any, answer: Any, send: Send) -> None:
        status = self.operation.status
        if isinstance(answer, Reply):
            content = answer.content if isinstance(answer.content, bytes) else _encoded(answer.content)
            await _send(send, answer.status or status, content, answer.headers, answer.media.encode())
        elif callable(answer):
            scope, receive, _ = ask.asgi
            application: Any = answer
            await application(scope, receive, _guarded(send))
        else:
            await _send(send, status, _encoded(answer), (), b"application/json")


def _is_for_people(scope: Any) -> bool:
    """Whether a browser asks for a page, which is no place to show a problem document."""
    accepted = next((value for name, value in scope["headers"] if name == b"accept"), b"")
    return scope["method"] == "GET" and b"text/html" in accepted and not scope["path"].startswith("/api/")


def _client(scope: Any) -> str:
    return (scope.get("client") or ("",))[0]


def _detail(ask: Any) -> str:
    """Return what an entry of the audit log says of a request: its body, in short."""
    if ask.body is None or isinstance(ask.body, bytes):
        return ""
    given = {name: value for name, value in msgspec.to_builtins(ask.body).items() if value is not None}
    return _encode(given).decode()


def _check_path(path: Mapping[str, str], caller: Principal) -> None:
    for name in ("queue", "id"):
        value = path.get(name)
        if value is not None and not NAME.fullmatch(value):
            raise Refused(404, f"there is no {'job' if name == 'id' else name} of such a name")
    queue = path.get("queue")
    if queue is not None and caller.queues is not None and queue not in caller.queues:
        raise Refused(403, f"this token is not for the queue {queue!r}")


def _check_type(headers: Mapping[bytes, bytes], media: str) -> None:
    given = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if given != media:
        raise Refused(415, f"the Content-Type must be {media}")


class _QueryReader:
    """Reads the parameters of a query into a struct."""

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self._struct = struct
        self._lists = _taking(struct, msgspec.inspect.ListType)
        self._texts = _taking(struct, msgspec.inspect.StrType)

    def read(self, query: bytes) -> Any:
        given: dict[str, Any] = {}
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=100, errors="strict")
        except ValueError as error:
            raise Refused(400, f"the query cannot be read: {error}") from error
        for name, value in pairs:
            if name in self._lists:
                given.setdefault(name, []).append(value)
            elif value.lower() == "null" and name not in self._texts:
                raise Refused(400, f"the parameter {name[:50]!r} is left out where it is none")
            elif name in given:
                raise Refused(400, f"the parameter {name[:50]!r} is given twice")
            else:
                given[name] = value
        return msgspec.convert(given, self._struct, strict=False)


def _taking(struct: type[msgspec.Struct], kind: type[msgspec.inspect.Type]) -> set[str]:
    """Return the fields that take what is of this kind."""
    return {
        field.encode_name
        for field in msgspec.structs.fields(struct)
        if any(isinstance(part, kind) for part in _parts(field.type))
    }


def _parts(annotation: Any) -> Sequence[msgspec.inspect.Type]:
    found = msgspec.inspect.type_info(annotation)
    return found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)


# Answers


def _encoded(content: Any) -> bytes:
    try:
        return _encode(content)
    except (TypeError, ValueError, RecursionError):
        return _encode(_plain(content, 0))


def _plain(value: Any, depth: int) -> Any:
    """Return what somebody stored as what JSON can say: keys become text, and what is unknown is described."""
    if depth > 100:
        return "…"
    if isinstance(value, msgspec.Struct):
        value = {field: getattr(value, field) for field in value.__struct_fields__}
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()  # type: ignore[redundant-cast] # pyright knows less of it
        return {key if isinstance(key, str) else repr(key): _plain(each, depth + 1) for key, each in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each, depth + 1) for each in cast("Iterable[Any]", value)]
    try:
        _encode(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value


async def _send(send: Send, status: int, content: bytes, headers: Headers, media: bytes) -> None:
    ours = _PAGE if media.startswith(b"text/html") else _DATA
    head = [*ours, *headers]
    if status != 204:  # which has none, not even one of 0
        head.append((b"content-length", b"%d" % len(content)))
    if media:
        head.append((b"content-type", media))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": content})


async def _send_problem(send: Send, what: Refused | Problem) -> None:
    problem, headers = (what.problem, what.headers) if isinstance(what, Refused) else (what, ())
    if problem.status == 503 and not headers:
        headers = ((b"retry-after", b"1"),)
    await _send(send, problem.status, _encode(problem), headers, b"application/problem+json")


def _guarded(send: Send) -> Send:
    """Wrap what sends, so that the security headers are there whatever a response forgot."""

    async def guarded(message: Any) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            media = next((value for name, value in message.get("headers", ()) if name.lower() == b"content-type"), b"")
            policy = PAGE_POLICY if media.startswith(b"text/html") else API_POLICY
            ours = (*_ALWAYS, (b"content-security-policy", policy), (b"cache-control", b"no-store"))
            more = [pair for pair in ours if pair[0] not in there]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return guarded


def create_app(broker: Broker, settings: ServerSettings | None = None) -> App:
    """Return the ASGI application that serves a broker. It belongs to the event loop it runs in.

    It neither opens nor closes the broker. Runs under any ASGI server; `spool.server.serve` runs it under uvicorn with
    limits on connections that the application cannot see. Default settings: `ServerSettings`.
    """
    services = Services(broker, settings or ServerSettings())
    routes: list[Operation] = [operation for module in MODULES for operation in module.ROUTES]
    return App(services, [*routes, *openapi.routes(routes)])
