"""The OpenAPI 3.1 document, made of the same table as the routes: what it says is what they take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from spool import __version__
from spool.job import NAME
from spool.server.problems import TITLES, Problem
from spool.server.routes import Ask, Operation, Reply

_REF: Final = "#/components/schemas/{name}"
_VARIABLE: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_NAMES: Final = {"type": "string", "pattern": f"^{NAME.pattern}$"}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document of these operations; those that are not documented are left out.

    A WebSocket is shown as the GET that it begins with, and what the two sides say then under ``x-websocket``.
    """
    shown = [each for each in operations if each.documented]
    wanted = [kind for each in shown for kind in _structs(each)]
    _, components = msgspec.json.schema_components([*wanted, Problem], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for each in shown:
        method = "get" if each.method == "WEBSOCKET" else each.method.lower()
        paths.setdefault(_VARIABLE.sub(r"{\1}", each.path), {})[method] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spool",
            "version": __version__,
            "description": "The HTTP face of a Spool broker. Errors are problem documents (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "spool token create"},
            },
        },
        "security": [{"token": []}],
    }


def _structs(operation: Operation) -> list[Any]:
    given = (operation.query, operation.shown_request or operation.request, operation.response)
    return [kind for kind in given if kind is not None]


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return schema


def _operation(operation: Operation) -> dict[str, Any]:
    lines = (operation.handler.__doc__ or "").strip()
    needs = "Needs no token." if operation.scope is None else f"Needs the scope `{operation.scope}`."
    shown: dict[str, Any] = {
        "operationId": f"{operation.handler.__module__.rpartition('.')[2]}_{operation.handler.__name__}"
        + ("_method" if operation.method == "DELETE" else ""),
        "summary": operation.summary,
        "description": " ".join([operation.description or lines, needs]),
        "parameters": [*_in_path(operation), *_in_query(operation)],
        "responses": _responses(operation),
    }
    if operation.scope is None:
        shown["security"] = []
    request = operation.shown_request or operation.request
    if operation.method == "WEBSOCKET":
        shown["x-websocket"] = {"sends": _schema(operation.response), "takes": _schema(request)}
    elif request is not None:
        media = operation.media.replace("*/*", "application/json")
        schema = {media: {"schema": _schema(request)}}
        shown["requestBody"] = {"required": _has_required(request), "content": schema}
    elif operation.media not in ("application/json", "*/*"):
        binary = {"schema": {"type": "string", "format": "binary"}}
        shown["requestBody"] = {"required": True, "content": {operation.media: binary}}
    return shown


def _has_required(struct: Any) -> bool:
    return any(field.required for field in msgspec.structs.fields(struct))


def _in_path(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _NAMES} for name in _VARIABLE.findall(operation.path)
    ]


def _in_query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    (_,), components = msgspec.json.schema_components([operation.query], ref_template=_REF)
    own = components[operation.query.__name__]
    return [
        {"name": name, "in": "query", "required": name in own.get("required", ()), "schema": _without_null(schema)}
        for name, schema in own["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that may be left out; it cannot be null."""
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    if "anyOf" in schema:
        (rest,) = (part for part in schema["anyOf"] if part.get("type") != "null")
    elif schema.get("default") is not None:
        rest["default"] = schema["default"]
    return rest


def _responses(operation: Operation) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}}
    responses: dict[str, Any] = {str(operation.status): {"description": operation.summary}}
    if operation.response is not None and operation.method != "WEBSOCKET":
        content = {operation.produces.partition(";")[0]: {"schema": _schema(operation.response)}}
        responses[str(operation.status)]["content"] = content
        for status, text in operation.answers.items():
            responses[str(status)] = {"description": text, "content": content if status < 400 else problem}
    for status in _problems(operation):
        responses.setdefault(str(status), {"description": TITLES[status], "content": problem})
    return responses


def _problems(operation: Operation) -> list[int]:
    found = [400, 421, 429, 500, 503]
    if operation.scope is not None:
        found += [401, 403]
    if "{" in operation.path:
        found += [404]
    if operation.method == "WEBSOCKET":
        found += [426]
    if operation.query is not None:
        found += [404, 422]
    if operation.path == "/login":
        found += [401]
    if operation.method not in ("GET", "WEBSOCKET"):
        found += [403, 404, 409, 413, 415, 422, 507]
    return sorted(set(found))


def routes(operations: Sequence[Operation]) -> list[Operation]:
    """Return the operation that serves the document of these."""
    encoded = msgspec.json.encode(document(operations))

    async def show(_ask: Ask[None, None]) -> Reply:
        """Return this document."""
        return Reply(encoded)

    return [
        Operation("GET", "/api/v1/openapi.json", show, "read", "The OpenAPI document", documented=False, queues=True)
    ]
