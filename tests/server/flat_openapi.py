"""Print a server's OpenAPI document as scanners read it that know neither references nor unions.

``python -m tests.server.flat_openapi http://127.0.0.1:8080 TOKEN > flat.json``: what may be null is what it is
otherwise, an enum its first word, and the parameters of paths are those of a job and a worker that are there.
"""

import json
import sys
from typing import Any

import httpx


def flat(document: dict[str, Any], url: str, names: dict[str, str]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, operations in document["paths"].items():
        for name, value in names.items():
            path = path.replace(f"{{{name}}}", value)  # noqa: PLW2901
        paths[path] = {method: _operation(document, each) for method, each in operations.items()}
    return {"openapi": "3.0.0", "info": document["info"], "servers": [{"url": url}], "paths": paths}


def _operation(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    parameters = []
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "query":
            schema = _schema(document, parameter["schema"])
            parameters.append({"name": parameter["name"], "in": "query", "schema": schema.get("items", schema)})
    found: dict[str, Any] = {"parameters": parameters, "responses": {"200": {"description": "as documented"}}}
    if body := operation.get("requestBody"):
        content = {media: {"schema": _schema(document, each["schema"])} for media, each in body["content"].items()}
        found["requestBody"] = {"content": content}
    return found


def _schema(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for choice in schema.get("anyOf", ()):
        if choice.get("type") != "null":
            return _schema(document, choice)
    if "enum" in schema:
        return {"type": "string", "enum": schema["enum"][:1]}
    match schema.get("type"):
        case "array":
            return {"type": "array", "items": _schema(document, schema.get("items", {}))}
        case "object":
            parts = schema.get("properties", {})
            return {"type": "object", "properties": {name: _schema(document, each) for name, each in parts.items()}}
        case kind:
            return {"type": kind or "string"}


def main(url: str, token: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        document = client.get("/api/v1/openapi.json").json()
        job = client.get("/api/v1/jobs").json()["items"][0]
        worker = client.get("/api/v1/workers").json()["items"][0]["row"]["incarnation"]
    names = {"queue": job["queue"], "id": job["id"], "incarnation": worker, "replay": worker, "token": "none"}
    json.dump(flat(document, url, names), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
