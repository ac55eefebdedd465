"""How a route is declared. A module of routes has ``ROUTES``, a sequence of `Operation`; `spool.server.app` names it.

```python
class Greeting(msgspec.Struct, frozen=True):
    text: str


class Whom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = "world"


async def greet(ask: Ask[Whom, None]) -> Greeting:
    return Greeting(f"Hello {ask.query.name}")


ROUTES = (Operation("GET", "/api/v1/greeting", greet, "read", "Greet somebody", query=Whom, response=Greeting),)
```

A **handler** is ``async (ask) -> answer``. By the time it runs, the host, the caller's token or session, its scope and
queues, the origin, the rate, the size and type of the body have been checked, and query and body are decoded: it only
calls the broker and answers. An answer is

* a struct, list or dict: encoded as JSON, with the operation's ``status``;
* a `Reply`, for another status, further headers or bytes of another type;
* any ASGI application, as Starlette's ``StreamingResponse``; the security headers are added to what it sends.

Raise `spool.server.problems.Refused` or any `SpoolError` to answer with a problem document.

A **WebSocket** is an operation with the method ``"WEBSOCKET"``. Origin, host and rights are checked before its handler
runs; the handler accepts (or closes) itself: ``websocket = WebSocket(*ask.asgi)``. While it is open, ask
``await ask.still_allowed()`` now and then: False once token or session have expired or been revoked.

**Queues.** A token may be restricted to some queues. Where the path has ``{queue}`` that is checked for you; with
``queues=True`` the handler promises to look itself: `Ask.check_queue` for a name, `Ask.sees` for what it lists. Other
operations are refused to such tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from spool.job import NAME
from spool.server.problems import Refused

if TYPE_CHECKING:
    from spool.server.auth import Principal
    from spool.server.services import Services

Q = TypeVar("Q")
B = TypeVar("B")

Name = Annotated[str, Meta(pattern=f"^{NAME.pattern}$")]
"""Of a queue, a task or a job, in a query or a body."""

Whole = Annotated[float, Meta(ge=0, le=2**53, multiple_of=1)]
"""A whole number in a body. 3.0 is one in JSON, which knows numbers alone."""

Scope = Literal["read", "enqueue", "work", "operate", "admin"]
Method = Literal["GET", "POST", "PUT", "DELETE", "WEBSOCKET"]
Asgi = tuple[Any, Any, Any]
"""An ASGI application's arguments: scope, receive, send."""


class Reply(msgspec.Struct, frozen=True):
    """An answer with a status of its own (0: the operation's), headers, or bytes of another type.

    ``content`` is encoded as JSON unless it is bytes.
    """

    content: Any
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    media: str = "application/json"


class Ask(Generic[Q, B]):
    """What is asked: by whom, where, with which query and body (None where the operation has none).

    ``body`` is bytes for an operation that takes another type than JSON. ``path`` holds the variables of the path.
    """

    __slots__ = ("asgi", "body", "headers", "operation", "path", "principal", "query", "services")

    def __init__(  # noqa: PLR0917 - made in one place, for every request
        self,
        services: Services,
        operation: Operation,
        principal: Principal,
        path: Mapping[str, str],
        headers: Mapping[bytes, bytes],
        query: Q,
        body: B,
        asgi: Asgi,
    ) -> None:
        self.services = services
        self.operation = operation
        self.principal = principal
        self.path = path
        self.headers = headers
        self.query = query
        self.body = body
        self.asgi = asgi

    def sees(self, queue: str) -> bool:
        """Whether the caller may know of this queue."""
        queues = self.principal.queues
        return queues is None or queue in queues

    def check_queue(self, queue: str) -> None:
        """Refuse (403) a queue that is not the caller's."""
        if not self.sees(queue):
            raise Refused(403, f"this token is not for the queue {queue!r}")

    async def still_allowed(self) -> bool:
        """Whether the caller still has the rights with which it came."""
        found = await self.services.doors.authenticate(self.headers)
        return found is not None and self.operation.scope in found.scopes

    @property
    def client(self) -> str:
        """The address from which it came, empty where there is none."""
        return (self.asgi[0].get("client") or ("",))[0]


Handler = Callable[[Any], Awaitable[Any]]


class Operation(msgspec.Struct, frozen=True):
    """One method of one path.

    ``scope`` None is for anybody: health, the login page and its files, nothing else. ``query`` is a struct of the
    query's parameters, each of which may be a list; ``request`` one of the JSON body (``shown_request`` is documented
    instead), ``response`` what comes back with ``status``. ``media`` is the type of the request's body where it is not
    JSON: then the handler gets bytes.
    ``max_body`` overrides `Limits.body`. ``answers`` describes further statuses, for the documentation.

    ``mutates`` (default: every method but GET) is refused in read-only mode. ``audit``: "each" call is written into the
    audit log, or their "sum" per minute (default: "each" of what mutates, except that the scopes enqueue and work have
    "sum" and "none").
    """

    method: Method
    path: str
    handler: Handler
    scope: Scope | None
    summary: str
    query: type[msgspec.Struct] | None = None
    request: Any = None
    shown_request: Any = None
    response: Any = None
    status: int = 200
    description: str = ""
    answers: dict[int, str] = {}
    media: str = "application/json"
    produces: str = "application/json"
    max_body: int = 0
    queues: bool = False
    mutates: bool | None = None
    audit: Literal["each", "sum", "none"] | None = None
    documented: bool = True

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return self.method not in ("GET", "WEBSOCKET") if self.mutates is None else self.mutates

    @property
    def audited(self) -> Literal["each", "sum", "none"]:
        """How its calls come into the audit log."""
        if self.audit is not None:
            return self.audit
        if not self.changes or self.scope in ("work", None):
            return "none"
        return "sum" if self.scope == "enqueue" else "each"
