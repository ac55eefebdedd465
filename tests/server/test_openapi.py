"""The OpenAPI document: complete, true, and written of in the guide."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spool.server import Limits
from tests.server.flat_openapi import flat
from tests.server.served import serving

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "server.md"
RUN = ("--max-examples", "2", "--phases", "coverage,fuzzing", "--seed", "1", "--no-color", "--workers", "2")
#: What is right by its form may be refused for what it means (422), and a batch answers for what is wrong in it.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 422, 429]

[phases.coverage]
unexpected-methods = ["PATCH"]

[[operations]]
include-path = "/api/v1/jobs/batch"
checks.negative_data_rejection.enabled = false
"""


def test_every_operation_is_in_the_document(sqlite_served):
    document = sqlite_served.client("read").get("/api/v1/openapi.json").json()

    operations = [each for each in sqlite_served.serving.app.operations if each.documented]
    assert document["openapi"] == "3.1.0"
    assert len(operations) > 25
    ids = set()
    for each in operations:
        shown = document["paths"][each.path][each.method.lower()]
        assert shown["summary"]
        assert shown["description"]
        assert str(each.status) in shown["responses"]
        ids.add(shown["operationId"])
    assert len(ids) == len(operations)


def test_every_reference_in_the_document_leads_somewhere(sqlite_served):
    text = sqlite_served.client("read").get("/api/v1/openapi.json").text
    schemas = sqlite_served.client("read").get("/api/v1/openapi.json").json()["components"]["schemas"]

    found = set(re.findall(r'"#/components/schemas/([^"]+)"', text))

    assert found
    assert found <= set(schemas)


def test_the_guide_names_every_path(sqlite_served):
    text = GUIDE.read_text()
    for each in sqlite_served.serving.app.operations:
        if not each.path.startswith("/api/"):
            continue  # the dashboard's own pages and files
        path = each.path.removeprefix("/api/v1")
        last = path[path.rindex("/") :]
        assert f"`{path}`" in text or (f"`{last}`" in text and path[: path.rindex("/")] in text) or path == "/logout", (
            path
        )


@pytest.mark.timeout(180)
def test_what_the_document_says_is_so(tmp_path):
    """Let schemathesis make requests of all kinds from the document, right ones and wrong ones."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with serving(f"sqlite:///{tmp_path}/spool.db", limits=Limits(rate=0)) as served:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"),
            *("run", f"{served.url}/api/v1/openapi.json"),
            *("-H", f"Authorization: Bearer {served.token('admin')}"),
            *RUN,
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False)

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_scanners_get_it_without_references_and_unions(sqlite_served):
    document = sqlite_served.client("read").get("/api/v1/openapi.json").json()

    flattened = flat(document, sqlite_served.url, {"queue": "mail"})

    assert not any(word in json.dumps(flattened) for word in ("$ref", "anyOf", "{queue}"))
    assert [len(each) for each in flattened["paths"].values()] == [len(each) for each in document["paths"].values()]
    job = flattened["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert job["properties"]["delay"] == {"type": "number"}
    assert job["properties"]["priority"] == {"type": "string", "enum": ["background"]}
