"""Servers and commands beside signed and encrypted jobs: with the keys, and without."""

import base64
import json

import pytest
from playwright.sync_api import expect

from spool import AesGcm, Signing, Spool
from spool.cli import main
from tests.browser import open_page
from tests.server.served import serving
from tests.stored import Store

WORD = "xyzzyplugh"
KEY = b"k" * 32
KEYS = f"new={base64.b64encode(KEY).decode()}"


def shop(store_url: str) -> Spool:
    """Return an app that has the keys, whatever the environment has."""
    app = Spool(store_url, signing=Signing({"new": KEY}), encryption=AesGcm({"new": KEY}), record_logs=True)

    @app.task(queue="mail", retries=0, redact=("pin",))
    async def send(to: str, pin: str = "", *, ok: bool = True) -> str:
        if not ok:
            raise ValueError(f"message {to}")
        return f"result {to}"

    return app


@pytest.fixture
def ended(store_url):
    """Give an app, and jobs of it that are done and dead."""
    app = shop(store_url)
    send = app.tasks["send"]
    return app, send.enqueue(WORD), send.enqueue(WORD, pin="hunter2", ok=False)


PATHS = (
    "jobs",
    "jobs/mail/{done}",
    "jobs/mail/{done}/result",
    "jobs/mail/{dead}",
    "jobs/mail/{dead}/result",
    "jobs/mail/{dead}/progress",
    "dead",
    "dead/groups",
    "metrics/summary",
)


def test_a_server_without_keys_shows_what_it_can_and_fails_at_nothing(store_url, ended):
    app, done, dead = ended
    with serving(store_url) as served:
        served.declare(app)
        served.run_all(app)
        client = served.client("operate")
        answers = {path: client.get("/api/v1/" + path.format(done=done.id, dead=dead.id)) for path in PATHS}

        assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(PATHS, 200)
        assert not any(secret in answer.text for answer in answers.values() for secret in (WORD, "hunter2"))
        job = answers["jobs/mail/{dead}"].json()
        assert job["encrypted"] is True
        assert job["arguments"] == [["[encrypted]"], {}]
        assert (job["error"], job["traceback"]) == ("ValueError: [encrypted]", "[encrypted]")
        assert answers["jobs/mail/{done}/result"].json()["result"] == "[encrypted]"
        assert answers["dead/groups"].json()["top"][0]["error_type"] == "ValueError"

        assert client.post(f"/api/v1/jobs/mail/{dead.id}/retry", json={}).json()["changed"] is True
        served.run_all(app)
        assert dead.job().generation == 1  # so its signature still held
        assert dead.job().error == f"ValueError: message {WORD}"

        id = client.post("/api/v1/jobs", json={"task": "send", "args": ["eve"]}).json()["id"]
        served.run_all(app)
        refused = client.get(f"/api/v1/jobs/mail/{id}").json()
        assert refused["error"].startswith("Unsigned: ")
        assert refused["arguments"] == [["eve"], {}]
    app.close()


def test_the_dashboard_says_what_it_cannot_show(tmp_path):
    url = f"sqlite:///{tmp_path}/spool.db"
    app = shop(url)
    dead = app.tasks["send"].enqueue(WORD, ok=False)
    with serving(url) as served:
        served.run_all(app)
        token = served.token("read")
        with open_page("401 (Unauthorized)") as page:
            page.goto(f"{served.url}/jobs/{dead}")
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Log in").click()
            main_part = page.get_by_role("main")
            expect(main_part).to_contain_text("which this server has not")
            expect(main_part).to_contain_text("ValueError: [encrypted]")
            expect(main_part).not_to_contain_text(WORD)
    app.close()


def test_a_server_with_the_keys_shows_and_signs(store_url, ended, monkeypatch):
    app, done, dead = ended
    monkeypatch.setenv("SPOOL_SIGNING_KEYS", KEYS)
    monkeypatch.setenv("SPOOL_ENCRYPTION_KEYS", KEYS)
    with serving(store_url) as served:
        served.declare(app)
        served.run_all(app)
        client = served.client("operate")

        job = client.get(f"/api/v1/jobs/mail/{dead.id}").json()
        assert job["arguments"] == [[WORD, "[redacted]"], {"ok": False}]
        assert (job["error"], job["encrypted"]) == (f"ValueError: message {WORD}", False)
        assert client.get(f"/api/v1/jobs/mail/{done.id}/result").json()["result"] == f"result {WORD}"
        assert client.get("/api/v1/dead/groups").json()["top"][0]["message"] == f"message {WORD}"
        assert len(client.get("/api/v1/dead", params={"error": WORD}).json()["items"]) == 1

        id = client.post("/api/v1/jobs", json={"task": "send", "args": [WORD]}).json()["id"]
        served.run_all(app)
        assert client.get(f"/api/v1/jobs/mail/{id}/result").json()["result"] == f"result {WORD}"
        assert client.get("/metrics").status_code == 200

        # What a client behind http:// has signed is not signed again, by keys that may be others.
        direct = Spool(served.url.replace("://", f"://:{served.token()}@"), signing=Signing({"x": KEY * 2}))
        other = direct.task(queue="else", name="other")(lambda: None)
        handle = other.enqueue()
        served.run_all(direct)
        assert handle.result(5) is None
        direct.close()
    assert WORD.encode() not in Store(store_url).everything()
    app.close()


def test_commands_show_what_their_keys_allow(store_url, ended, monkeypatch, capsys):
    app, done, dead = ended

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--url", store_url])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    with serving(store_url) as served:
        served.declare(app)
        served.run_all(app)
    shown = [run("jobs", "show", str(dead)), run("dead", "show", str(dead), "--json"), run("jobs", "show", str(done))]
    shown += [run("jobs", "list"), run("jobs", "list", "--json"), run("dead", "list"), run("dead", "groups")]
    assert not any(WORD in each or "hunter2" in each for each in shown)
    assert "arguments  '[encrypted]'" in shown[0]
    assert "error      ValueError: [encrypted]" in shown[0]
    assert json.loads(shown[1])["encrypted"] is True
    assert "result     '[encrypted]'" in shown[2]

    monkeypatch.setenv("SPOOL_ENCRYPTION_KEYS", KEYS)
    assert f"error      ValueError: message {WORD}" in run("jobs", "show", str(dead))
    assert f"result     'result {WORD}'" in run("jobs", "show", str(done))
    assert "[redacted]" in run("dead", "show", str(dead))
    app.close()
