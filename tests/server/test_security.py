"""One test or more for each requirement on the security of an HTTP API that changes things.

Who may (1), from where (2, 3), by WebSocket (4), what is shown (5, 6, 9), how much (7), by which names (8), and a crawl
of all that there is (11). There are no webhooks, so no requests to addresses that somebody else names (10).
"""

import html
import re
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import msgspec
import pytest
import websockets.sync.client
from msgspec.structs import replace
from websockets.exceptions import InvalidStatus

from spool.broker import Enqueue, Load, NewJob, Store, connect
from spool.errors import ConfigError, SpoolError
from spool.report import Rates, WorkerRow, read_row
from spool.server import Limits, ServerSettings, session
from spool.server import app as server_app
from spool.server.auth import digest
from spool.server.pages import OPEN
from spool.server.problems import STATUS, problem_of
from spool.server.routes import Operation
from tests.contract.driver import Driver, jobs
from tests.eventually import eventually
from tests.model_state import Clock
from tests.server.served import Served, serving

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
JOB = {"task": "send", "queue": "mail"}


def store(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/spool.db"


def filled(path: str) -> str:
    return re.sub(r"\{\w+(:\w+)?\}", "x", path)


# 11. A crawl of every route and method, as nobody and with a token that is for something else


def routes(served: Served) -> list[Operation]:
    return list(served.serving.app.operations)


def test_nobody_gets_anywhere_but_to_health_and_login(sqlite_served):
    client = sqlite_served.anonymous()
    opened = {("/healthz", "GET"), ("/readyz", "GET"), ("/login", "GET"), ("/login", "POST"), ("/logout", "POST")}
    files = {f"/static/{name}" for name in OPEN}
    opened |= {(path, "GET") for path in files}
    operations = routes(sqlite_served)
    assert {(each.path, each.method) for each in operations if each.scope is None} == opened

    crawled = 0
    for path in {filled(each.path) for each in operations} | {"/", "/nothing", "/api/v1/nothing", "/api/v1"}:
        for method in METHODS:
            if path in {"/healthz", "/readyz", "/login", "/logout", *files}:
                continue
            answer = client.request(method, path, json={})
            assert answer.status_code in (401, 403), f"{method} {path}: {answer.status_code}"
            crawled += 1
    assert crawled > 150


def test_a_wrong_token_gets_nowhere(sqlite_served):
    right = sqlite_served.token("admin")
    _, id, secret = right.split("_", 2)
    for wrong in ("", "x", "spool_", f"spool_{id}", f"spool_{id}_", f"spool_{id}_{secret[:-1]}", f"spool_x_{secret}"):
        for header in (f"Bearer {wrong}", wrong, f"Basic {wrong}", f"bearer  {wrong}x"):
            answer = sqlite_served.anonymous(headers={"Authorization": header.strip()}).get("/api/v1/queues")
            assert answer.status_code == 401, header


def test_every_operation_asks_for_its_scope(sqlite_served):
    included = {"operate": {"read", "enqueue", "operate"}, "admin": {"read", "enqueue", "work", "operate", "admin"}}
    for scope in ("read", "enqueue", "work", "operate"):
        client = sqlite_served.client(scope)
        may = included.get(scope, {scope})
        for each in routes(sqlite_served):
            if each.scope is None or each.method == "WEBSOCKET" or not may.isdisjoint({each.scope, *each.also}):
                continue
            answer = client.request(each.method, filled(each.path), json={})
            assert answer.status_code == 403, f"{scope}: {each.method} {each.path}: {answer.status_code}"


# 1. Who may


def test_an_open_door_that_nobody_asked_for_stays_shut():
    for given in ({"host": "0.0.0.0"}, {"host": "192.168.1.1"}, {"host": "::"}, {"host": "spool.example.org"}):
        with pytest.raises(ConfigError, match="--insecure"):
            ServerSettings(**given)
        ServerSettings(**given, insecure=True)
    with pytest.raises(ConfigError, match="log in"):
        ServerSettings(host="0.0.0.0", auth=False, certificate="c.pem", key="k.pem")
    with pytest.raises(ConfigError, match="both"):
        ServerSettings(certificate="c.pem")
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        ServerSettings(host=host, auth=False)


def test_the_first_start_makes_a_token_and_the_second_does_not(store_url):
    with serving(store_url) as served:
        token = served.serving.first_token
        assert served.client_of(token).get("/api/v1/tokens").json()["items"][0]["scopes"] == ["admin"]
        for document in served.broker.call(Load("token")).documents:
            assert digest(token.split("_", 2)[2]).encode() in document.body
            assert token.split("_", 2)[2].encode() not in document.body
    with serving(store_url) as served:
        assert served.serving.first_token is None


def test_a_token_expires(sqlite_served):
    client = sqlite_served.client_of(sqlite_served.token("read", expires_in=0.5))

    eventually(lambda: client.get("/api/v1/queues").status_code == 401)


def test_a_session_is_a_strict_cookie_and_ends(sqlite_served):
    browser = sqlite_served.anonymous(headers={"Origin": sqlite_served.url, "Sec-Fetch-Site": "same-origin"})
    token = sqlite_served.token("operate")

    answer = browser.post("/login", data={"token": token, "next": "/jobs"})

    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="))
    value = browser.cookies["spool_session"]
    assert value not in str(sqlite_served.broker.call(Load("session")).documents), "the store must not have it"
    assert browser.post("/api/v1/queues/mail/pause", json={}).status_code == 404
    assert browser.post("/logout").status_code == 303
    assert sqlite_served.anonymous(cookies={"spool_session": value}).get("/api/v1/me").status_code == 401


def test_a_session_ends_with_its_token(sqlite_served):
    admin = sqlite_served.client("admin")
    made = admin.post("/api/v1/tokens", json={"name": "x", "scopes": ["read"]}).json()
    browser = sqlite_served.anonymous(headers={"Origin": sqlite_served.url})
    assert browser.post("/login", json={"token": made["token"]}).status_code == 200
    assert browser.get("/api/v1/me").status_code == 200

    admin.delete(f"/api/v1/tokens/{made['id']}")

    assert browser.get("/api/v1/me").status_code == 401


def test_behind_tls_the_cookie_is_secure(tmp_path):
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(f"{tmp_path}/key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(f"{tmp_path}/cert.pem", append=True)
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")

    with serving(store(tmp_path), certificate=f"{tmp_path}/cert.pem", key=f"{tmp_path}/key.pem") as served:
        url = f"https://localhost:{served.serving.port}"
        with httpx.Client(
            base_url=url, verify=ssl.create_default_context(cafile=f"{tmp_path}/ca.pem"), headers={"Origin": url}
        ) as browser:
            cookie = browser.post("/login", json={"token": served.serving.first_token}).headers["set-cookie"]
            assert cookie.startswith("__Host-spool_session=")
            assert "; Secure" in cookie
            assert browser.get("/api/v1/me").status_code == 200


def test_guessing_is_slowed_down(sqlite_served):
    client = sqlite_served.anonymous()
    token = sqlite_served.token("read")

    statuses = [client.post("/login", json={"token": f"spool_{n}_x"}).status_code for n in range(12)]

    assert statuses[:10] == [401] * 10
    assert statuses[-1] == 429
    answer = client.post("/login", json={"token": token})
    assert answer.status_code == 429, "else one could tell a right one"
    assert int(answer.headers["retry-after"]) > 0


def test_guessing_at_once_is_slowed_down_as_well(sqlite_served):
    def guess(number: int) -> int:
        return sqlite_served.anonymous().post("/login", json={"token": f"spool_{number}_x"}).status_code

    with ThreadPoolExecutor(30) as pool:
        statuses = list(pool.map(guess, range(30)))

    assert statuses.count(401) <= 12
    assert set(statuses) == {401, 429}


def test_who_logs_in_again_and_again_is_not_slowed_down(sqlite_served):
    browser, token = sqlite_served.anonymous(), sqlite_served.token("read")
    assert [browser.post("/login", json={"token": token}).status_code for _ in range(15)] == [200] * 15


def test_a_token_has_so_many_sessions(sqlite_served, monkeypatch):
    monkeypatch.setattr(session, "MOST", 3)
    other, token = sqlite_served.session("read"), sqlite_served.token("read")
    browsers = [sqlite_served.anonymous() for _ in range(5)]
    for browser in browsers:
        assert browser.post("/login", json={"token": token}).status_code == 200

    statuses = [browser.get("/api/v1/me").status_code for browser in browsers]
    assert sorted(statuses) == [200] * 3 + [401] * 2
    assert statuses[-1] == 200
    assert other.get("/api/v1/me").status_code == 200, "that of another token"


@pytest.mark.parametrize("other", ['theme={"a": [1, 2]}', "a b=c", "=", "x[y]=1;;", 'q="un', "é=1"])
def test_cookies_of_others_on_the_same_host_do_no_harm(sqlite_served, other):
    value = sqlite_served.session("read").cookies["spool_session"]
    for cookies in (f"{other}; spool_session={value}", f"spool_session={value}; {other}"):
        answer = sqlite_served.anonymous().get("/api/v1/me", headers={"Cookie": cookies.encode()})
        assert answer.status_code == 200, cookies


def test_what_anybody_may_send_is_short(sqlite_served):
    for path in ("/login", "/logout"):
        assert sqlite_served.anonymous().post(path, content=b"x" * 20_000).status_code == 413


def test_what_fails_in_the_middle_is_in_the_audit_log(sqlite_served, monkeypatch):
    async def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(sqlite_served.serving.app.services.replays, "stop", fail)
    admin = sqlite_served.client("admin")

    assert admin.post("/api/v1/dead/replays/x/stop", json={}).status_code == 500

    (entry,) = admin.get("/api/v1/audit").json()["items"]
    assert (entry["action"], entry["status"]) == ("POST /api/v1/dead/replays/{replay}/stop", 500)


def test_replays_that_begin_at_once_are_bounded_too(sqlite_served):
    # Each replays one at once, and waits a long time for its next one.
    many = jobs(200)
    sqlite_served.broker.call(Enqueue("mail", many))
    admin = sqlite_served.client("admin")
    driver = Driver(sqlite_served.broker, Clock(), "mail")
    driver.beat("w")
    driver.take("w", 200)
    driver.settle("w", *(driver.died(each.id) for each in many))

    def replay(_: int) -> int:
        asked = {"everything": True, "rate": 0.001, "wait": 0}
        return admin.post("/api/v1/dead/replay", json=asked).status_code

    with ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(replay, range(80)))
    assert statuses.count(202) <= 20
    assert statuses.count(503) >= 60


def test_a_failed_login_by_form_shows_the_page_again(sqlite_served):
    answer = sqlite_served.anonymous().post("/login", data={"token": "wrong", "next": '"><script>alert(1)</script>'})

    assert answer.status_code == 401
    assert "not valid" in answer.text
    assert "<script>" not in answer.text


def test_who_opens_a_page_without_a_session_is_shown_the_login_and_comes_back(sqlite_served):
    browser = sqlite_served.anonymous(headers={"Accept": "text/html,*/*;q=0.8", "Origin": sqlite_served.url})

    answer = browser.get("/jobs?state=dead&x=%22%3E")

    assert answer.status_code == 401
    assert 'action="/login"' in answer.text
    onward = html.unescape(re.search(r'name="next" value="([^"]*)"', answer.text)[1])
    assert onward == "/jobs?state=dead&x=%22%3E"
    logged_in = browser.post("/login", data={"token": sqlite_served.token("read"), "next": onward})
    assert logged_in.headers["location"] == onward
    assert browser.get("/api/v1/queues").status_code == 200
    for path in ("//evil.example", "https://evil.example", "/\\evil.example"):
        away = browser.post("/login", data={"token": sqlite_served.token("read"), "next": path})
        assert away.headers["location"] == "/"


def test_read_only_changes_nothing(tmp_path):
    with serving(store(tmp_path), read_only=True) as served:
        client = served.client("admin")
        for each in routes(served):
            if each.changes:
                answer = client.request(each.method, filled(each.path), json={})
                assert (answer.status_code, answer.json()["detail"]) == (403, "this server is read-only")
        assert client.get("/api/v1/queues").status_code == 200
        assert served.session("read").get("/api/v1/me").json()["read_only"] is True


def test_a_token_for_one_queue_learns_nothing_of_another(sqlite_served):
    row = WorkerRow("w", "n", "h", 1, "", "", 0, 0, ["mail", "secret"], 1, 0, 10_000, 7, False, "1", "3")
    row = replace(row, ended={"done": 3}, rates=Rates({"done": 0.3}, {"done": 0.05}))
    sqlite_served.broker.call(Store("worker", "w", msgspec.json.encode(row)))
    sqlite_served.broker.call(Enqueue("secret", [NewJob("there", b"")]))
    token = sqlite_served.token("operate", "work", queues=["mail"])
    client = sqlite_served.client_of(token)
    eventually(lambda: client.get("/api/v1/me").status_code == 200)

    seen = msgspec.to_builtins(replace(row, queues=["mail"], running=None, ended={}, rates=None))
    (worker,) = client.get("/api/v1/workers").json()["items"]
    assert worker["row"] == seen
    assert client.get("/api/v1/workers/w").json()["worker"]["row"] == seen
    (whole,) = sqlite_served.client("read").get("/api/v1/workers").json()["items"]
    assert whole["row"] == msgspec.to_builtins(row)
    with client.stream("GET", "/api/v1/live/events") as answer:
        snapshot = next(line for line in answer.iter_lines() if line.startswith("data: "))
    assert "secret" not in snapshot
    broker = connect(sqlite_served.url.replace("://", f"://:{token}@"))
    (document,) = broker.call(Load("worker")).documents
    assert msgspec.to_builtins(read_row(document.body)) == seen
    broker.close()
    for id in ("there", "not-there"):
        asked = {"id": [f"secret/{id}"]}
        answers = [client.get(f"/api/v1/{path}", params=asked) for path in ("jobs", "dead")]
        answers += [client.post(f"/api/v1/dead/{path}", json=asked) for path in ("delete", "replay")]
        assert [answer.status_code for answer in answers] == [403] * 4, "whether there is such a job or not"
        assert client.get("/api/v1/jobs", params={"search": f"secret/{id}"}).json()["items"] == []


# 2. From where: pages of another origin


FOREIGN = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "none", "Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_session_acts_for_its_own_pages_alone(sqlite_served, headers):
    browser = sqlite_served.session("admin")
    for name in ("Origin", "Sec-Fetch-Site"):
        del browser.headers[name]

    for each in routes(sqlite_served):
        if each.scope is not None and each.method in ("POST", "PUT", "DELETE"):
            answer = browser.request(each.method, filled(each.path), json={}, headers=headers)
            assert answer.status_code == 403, f"{each.method} {each.path}"
    assert browser.post("/logout", headers=headers | {"Origin": "https://evil.example"}).status_code == 403


def test_a_foreign_page_cannot_log_somebody_in(sqlite_served):
    answer = sqlite_served.anonymous().post(
        "/login", data={"token": sqlite_served.token("read")}, headers={"Sec-Fetch-Site": "cross-site"}
    )

    assert answer.status_code == 403


@pytest.mark.parametrize("headers", [each for each in FOREIGN if each], ids=str)
def test_without_authentication_pages_of_another_origin_are_kept_out(tmp_path, headers):
    with serving(store(tmp_path), auth=False) as served:
        client = served.anonymous()
        assert client.post("/api/v1/jobs", json=JOB).status_code == 201
        assert client.post("/api/v1/jobs", json=JOB, headers=headers).status_code == 403
        assert client.delete("/api/v1/jobs/mail/x", headers=headers).status_code == 403


def test_json_has_to_say_that_it_is(sqlite_served):
    client = sqlite_served.client("admin")

    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client.post("/api/v1/jobs", content=b'{"task":"a","queue":"q"}', headers={"Content-Type": media})
        assert answer.status_code == 415, media
    answer = client.delete("/api/v1/jobs/q/x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 404, "no body, no type"


def test_a_path_says_what_may_be_done_there(sqlite_served):
    client = sqlite_served.client("admin")

    for path, allowed in (
        ("/api/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("/api/v1/jobs/batch", "OPTIONS, POST"),
        ("/api/v1/live", "GET, HEAD, OPTIONS"),  # a WebSocket begins with a GET
        ("/healthz", "GET, HEAD, OPTIONS"),
    ):
        answers = [client.options(path), client.request("PATCH", path)]
        assert [answer.status_code for answer in answers] == [204, 405]
        assert [answer.headers["allow"] for answer in answers] == [allowed] * 2
        assert "content-length" not in answers[0].headers


def test_a_file_is_known_again_also_through_a_proxy_that_compresses(sqlite_served):
    client = sqlite_served.anonymous()
    etag = client.get("/static/style.css").headers["etag"]

    for known in (etag, f"W/{etag}", f'"other", W/{etag}'):
        assert client.get("/static/style.css", headers={"If-None-Match": known}).status_code == 304
    assert client.get("/static/style.css", headers={"If-None-Match": '"other"'}).status_code == 200


def test_no_other_origin_is_let_read(sqlite_served):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    client = sqlite_served.client("admin")

    for answer in (client.options("/api/v1/jobs", headers=headers), client.get("/api/v1/jobs", headers=headers)):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_reading_changes_nothing(sqlite_served):
    client = sqlite_served.client("admin")
    client.post("/api/v1/jobs", json=JOB)
    before = client.get("/api/v1/queues").json()["items"][0]["totals"]

    for each in routes(sqlite_served):
        if each.method == "GET":
            with client.stream("GET", filled(each.path)) as answer:  # the live stream has no end
                next(answer.iter_bytes(), b"")

    assert client.get("/api/v1/queues").json()["items"][0]["totals"] == before
    assert client.get("/api/v1/audit").json()["items"] == []


# 3. By which name: DNS rebinding


def test_a_name_that_is_not_ours_is_refused(sqlite_served):
    client = sqlite_served.client("admin")
    port = sqlite_served.serving.port

    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "",
        "[::1",
    ):
        for path in ("/api/v1/queues", "/healthz", "/login", "/nothing"):
            assert client.get(path, headers={"Host": host}).status_code == 421, host
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]", "LOCALHOST:1"):
        assert client.get("/api/v1/queues", headers={"Host": host}).status_code == 200, host


def test_further_names_can_be_allowed(tmp_path):
    with serving(store(tmp_path), allowed_hosts=("spool.example.org",)) as served:
        answer = served.client("read").get("/api/v1/queues", headers={"Host": "spool.example.org:8443"})

    assert answer.status_code == 200


def test_two_hosts_are_one_too_many(sqlite_served):
    request = (
        f"GET /api/v1/queues HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"
        f"Authorization: Bearer {sqlite_served.token('read')}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", sqlite_served.serving.port), timeout=10) as sock:
        sock.sendall(request.encode())
        assert b" 400 " in sock.recv(1000)


# 4. By WebSocket


@pytest.fixture
def echoing(tmp_path, monkeypatch):
    """Give a server with one WebSocket more, which says whether its caller is still allowed."""

    async def echo(ask) -> None:
        from starlette.websockets import WebSocket

        websocket = WebSocket(*ask.asgi)
        await websocket.accept()
        async for _ in websocket.iter_text():
            await websocket.send_text(str(await ask.still_allowed()))

    class Module:
        ROUTES = (Operation("WEBSOCKET", "/echo", echo, "read", "Echo", queues=True),)

    monkeypatch.setattr(server_app, "MODULES", (*server_app.MODULES, Module))
    with serving(store(tmp_path)) as served:
        yield served


def dial(served: Served, **given) -> websockets.sync.client.ClientConnection:
    return websockets.sync.client.connect(f"{served.url.replace('http', 'ws')}/echo", **given)


def test_a_websocket_is_opened_with_a_token_or_a_session_of_the_same_origin(echoing):
    cookie = f"spool_session={echoing.session('read').cookies['spool_session']}"

    for headers, origin in (
        ({"Authorization": f"Bearer {echoing.token('read')}"}, None),
        ({"Cookie": cookie}, echoing.url),
    ):
        with dial(echoing, additional_headers=headers, origin=origin) as websocket:
            websocket.send("hello")
            assert websocket.recv() == "True"


def test_a_websocket_of_another_origin_name_or_nobody_is_refused(echoing):
    cookie = {"Cookie": f"spool_session={echoing.session('read').cookies['spool_session']}"}
    token = {"Authorization": f"Bearer {echoing.token('read')}"}

    for headers, origin, status in (
        ({}, None, 401),
        (cookie, None, 403),
        (cookie, "https://evil.example", 403),
        (cookie, "null", 403),
        (token, "https://evil.example", 403),
        ({"Authorization": f"Bearer {echoing.token('enqueue')}"}, None, 403),
    ):
        with pytest.raises(InvalidStatus) as refused:
            dial(echoing, additional_headers=headers, origin=origin)
        assert refused.value.response.status_code == status
    with socket.create_connection(("127.0.0.1", echoing.serving.port), timeout=10) as sock:
        lines = [
            "GET /echo HTTP/1.1",
            "Host: evil.example",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Authorization: {token['Authorization']}",
        ]
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert b" 421 " in sock.recv(1000)


def test_a_websocket_learns_that_its_token_was_revoked(echoing):
    made = echoing.client("admin").post("/api/v1/tokens", json={"name": "x", "scopes": ["read"]}).json()
    with dial(echoing, additional_headers={"Authorization": f"Bearer {made['token']}"}) as websocket:
        echoing.client("admin").delete(f"/api/v1/tokens/{made['id']}")
        websocket.send("hello")
        assert websocket.recv() == "False"


def test_a_message_that_is_too_large_ends_a_websocket(echoing):
    from websockets.exceptions import ConnectionClosed

    headers = {"Authorization": f"Bearer {echoing.token('read')}"}
    with dial(echoing, additional_headers=headers) as websocket:
        websocket.send("x" * 100_000)
        with pytest.raises(ConnectionClosed):
            websocket.recv(timeout=10)


def test_a_refused_websocket_is_no_error_of_the_server(echoing, caplog):
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(InvalidStatus):
            dial(echoing, additional_headers=headers)

    eventually(lambda: not echoing.serving._server.server_state.tasks)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_a_websocket_whose_client_does_not_read_ends(tmp_path, monkeypatch):
    async def flood(ask) -> None:
        from starlette.websockets import WebSocket

        websocket = WebSocket(*ask.asgi)
        await websocket.accept()
        while True:
            await websocket.send_text("x" * 1_000_000)

    class Module:
        ROUTES = (Operation("WEBSOCKET", "/flood", flood, "read", "Flood", queues=True),)

    monkeypatch.setattr(server_app, "MODULES", (*server_app.MODULES, Module))
    with serving(store(tmp_path), limits=Limits(write=0.3)) as served:
        headers = {"Authorization": f"Bearer {served.token('read')}"}
        url = f"{served.url.replace('http', 'ws')}/flood"
        with websockets.sync.client.connect(url, additional_headers=headers, ping_interval=None):
            eventually(lambda: served.serving._server.server_state.connections)
            eventually(lambda: not served.serving._server.server_state.connections)


# 5. What is shown


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "\u202egnp.exe",
    "=cmd|'/C calc'!A0",
    "\x1b[31m",
    "{{7*7}}",
)


def test_every_answer_forbids_what_it_does_not_need(sqlite_served):
    admin, nobody = sqlite_served.client("admin"), sqlite_served.anonymous()
    answers = [
        nobody.get("/login"),
        nobody.get("/healthz"),
        nobody.get("/x"),
        admin.get("/x"),
        admin.get("/api/v1/jobs"),
    ]
    answers += [admin.put("/api/v1/jobs"), nobody.get("/healthz", headers={"Host": "evil.example"})]

    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_what_jobs_say_comes_out_as_data(sqlite_served):
    client = sqlite_served.client("operate")
    for text in HOSTILE:
        stored = client.post("/api/v1/jobs", json=JOB | {"args": [text], "kwargs": {text: text}})
        answer = client.get(stored.headers["location"])
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["arguments"] == [[text], {text: text}]
    assert client.get("/login", params={"next": "/<script>alert(1)</script>"}).text.count("<script>") == 0


def test_an_answer_does_not_tell_of_the_inside(sqlite_served, monkeypatch):
    async def fail(*_):
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(sqlite_served.serving.app.services.audit, "page", fail)

    answer = sqlite_served.client("admin").get("/api/v1/audit")

    assert answer.status_code == 500
    assert "secret" not in answer.text


# 6. What is decoded


def test_a_task_is_a_name_and_never_imported(sqlite_served):
    client = sqlite_served.client("enqueue")

    for name in ("os:system", "os.system", "builtins:eval", "__import__"):
        answer = client.post("/api/v1/jobs", json={"task": name})
        assert (answer.status_code, answer.json()["error"]) == (422, "TaskUnknown")
    for name in ("../x", "a b", "a{b}", "x" * 200, "a\nb", "é"):
        answer = client.post("/api/v1/jobs", json={"task": name, "queue": "mail"})
        assert answer.status_code == 400


# 7. How much


@pytest.fixture
def small(tmp_path):
    """Give a server with narrow limits."""
    limits = Limits(body=4096, begin=0.6, receive=0.6, idle=1, connections=40, rate=5, headers=4096, header_count=20)
    with serving(store(tmp_path), limits=limits) as served:
        yield served


def raw(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.serving.port), timeout=15)


def rest(sock: socket.socket) -> bytes:
    """Return what comes until the server ends the connection."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def test_a_large_body_is_refused_before_it_is_read(small):
    client = small.client("enqueue")

    announced = client.post("/api/v1/jobs", json=JOB | {"args": ["x" * 5000]})
    streamed = client.post(
        "/api/v1/jobs",
        content=(b"x" * 500 for _ in range(1000)),
        headers={"Content-Type": "application/json"},
    )

    assert announced.status_code == streamed.status_code == 413
    assert "4,096" in announced.json()["detail"]


def test_the_bodies_of_all_together_are_bounded(tmp_path):
    with serving(store(tmp_path), limits=Limits(bodies=1_000_000)) as served:
        room, client = served.serving.app.services.room, served.client("enqueue")
        head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: {client.headers['Authorization']}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
        with raw(served) as sock:
            sock.sendall(head.encode() + b" " * 900_000)
            eventually(lambda: room.taken == 900_000)

            refused = client.post("/api/v1/jobs", json=JOB | {"args": ["x" * 500_000]})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert client.post("/api/v1/jobs", json=JOB).status_code == 201, "a small one"
        eventually(lambda: room.taken == 0)
        assert client.post("/api/v1/jobs", json=JOB | {"args": ["x" * 500_000]}).status_code == 201
        assert room.taken == 0


def test_a_compressed_body_is_refused(small):
    answer = small.client("enqueue").post("/api/v1/jobs", content=b"x", headers={"Content-Encoding": "gzip"})

    assert answer.status_code == 415


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 5000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 30,
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["one that never ends", "too many", "a long path"],
)
def test_a_large_head_is_refused(small, head):
    with raw(small) as sock:
        sock.sendall(head)
        assert b" 431 " in rest(sock)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        (b"GET / HT", b" 408 "),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b" 408 "),
        (b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 200 "),
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "a request and then nothing"],
)
def test_who_takes_too_long_is_not_waited_for(small, sent, expected):
    with raw(small) as sock:
        sock.sendall(sent)
        assert expected in rest(sock)


def drips(sock: socket.socket, drip: bytes) -> bytes:
    """Send a little whenever nothing comes, for as long as the server bears it; return what came."""
    found, sent = b"", 0
    sock.settimeout(0.1)
    with suppress(ConnectionResetError, BrokenPipeError):
        while True:
            try:
                if not (data := sock.recv(1_000_000)):
                    break
                found += data
            except TimeoutError:
                assert sent < 50, "it goes on for ever"
                sock.sendall(drip)
                sent += 1
    return found


def test_empty_lines_keep_no_connection(small):
    with raw(small) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in drips(sock, b"\r\n")


def test_a_client_that_reads_at_last_is_timed_as_before(tmp_path):
    limits = Limits(begin=3, idle=1, write=30)
    with serving(store(tmp_path), limits=limits) as served:
        client = served.client("operate")
        for _ in range(16):
            client.post("/api/v1/jobs", json=JOB | {"args": ["x" * 500_000]})
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", served.serving.port))
            bearer = client.headers["Authorization"]
            sock.sendall(f"GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\r\n".encode())
            wardens = served.serving._server.config.http.args[0]
            connection = eventually(lambda: next((each for each in list(wardens.open) if each.flow.write_paused), None))
            sock.sendall(b"GET /healthz HTTP/1.1\r\n")
            eventually(lambda: connection._reading_head)
            drips(sock, b"X: y\r\n")


def test_too_many_connections_cost_those_that_are_idle(small):
    idle = [raw(small) for _ in range(45)]
    try:
        assert small.anonymous().get("/healthz").status_code == 200
    finally:
        for sock in idle:
            sock.close()


def test_a_token_has_so_many_requests_a_second(small):
    client = small.client("read")

    answers = [client.get("/api/v1/queues") for _ in range(30)]

    assert answers[0].status_code == 200
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert int(refused[0].headers["retry-after"]) >= 1
    assert small.client("read").get("/api/v1/queues").status_code == 200, "another token has its own"


def test_so_many_requests_are_under_way_at_once(tmp_path):
    with serving(store(tmp_path), limits=Limits(requests=0)) as served:
        client = served.anonymous()
        answer = client.get("/readyz")
        alive = client.get("/healthz")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert alive.status_code == 200, "or it would be restarted for being at work"


def test_what_is_no_http_is_refused(sqlite_served):
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\0\0\0"):
        with raw(sqlite_served) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            assert b" 200 " not in rest(sock)
    assert sqlite_served.anonymous().get("/healthz").status_code == 200


# 8. By which names


def test_names_in_paths_are_names(sqlite_served):
    client = sqlite_served.client("admin")

    for name in ("a b", "a{b}", "%2e%2e", "a%00b", "x" * 200, "é", "a%0ab"):
        assert client.get(f"/api/v1/queues/{name}").status_code == 404
        assert client.post(f"/api/v1/jobs/{name}/x/cancel", json={}).status_code == 404
        assert client.get(f"/api/v1/jobs/mail/{name}").status_code == 404


def test_a_log_line_is_one_line(sqlite_served, monkeypatch, caplog):
    async def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(sqlite_served.serving.app.services.replays, "stop", fail)

    sqlite_served.client("admin").post("/api/v1/dead/replays/a%0aERROR%20forged/stop", json={})

    assert "forged" in caplog.text
    assert not any(record.getMessage().count("\n") for record in caplog.records)


# Errors


def subclasses(kind: type) -> list[type]:
    return [kind, *(each for sub in kind.__subclasses__() for each in subclasses(sub))]


def test_every_error_of_ours_is_a_problem():
    for kind in subclasses(SpoolError):
        if not kind.__module__.startswith("spool."):
            continue
        error = kind.__new__(kind)
        problem = problem_of(error)
        assert problem.title
        assert problem.error == kind.__name__
        assert problem.type.startswith("urn:spool:")
    assert set(STATUS.values()) <= set(range(400, 600))


# The command


def test_the_command_serves_prints_a_token_once_and_stops_in_order(tmp_path):
    command = [sys.executable, "-m", "spool", "server", "--url", store(tmp_path), "--port", "0"]
    for first in (True, False):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            url = process.stderr.readline().split()[-1]
            if first:
                token = process.stderr.readline().split()[-1]
            answer = httpx.get(f"{url}/api/v1/me", headers={"Authorization": f"Bearer {token}"})
            process.terminate()
            _, said = process.communicate(timeout=20)
        assert answer.json()["name"] == "first"
        assert process.returncode == 0
        assert "spool_" not in said


def test_the_command_refuses_an_open_door(tmp_path):
    command = [sys.executable, "-m", "spool", "server", "--url", store(tmp_path), "--host", "0.0.0.0"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 2
    assert "--insecure" in done.stderr
