"""Queues, dead letters, workers, tokens, audit: route by route, on a real server."""

import threading
import uuid

import httpx
import msgspec
import pytest

from spool import Spool
from spool.broker import Beat, Claim, Enqueue, Heartbeat, Load, NewJob, Stats, Store
from spool.job import VERSION, Record, encode_record, new_id
from spool.report import WorkerRow, encode_row
from spool.telemetry import recent
from tests.eventually import eventually
from tests.server.served import Served, serving
from tests.server.test_http_broker import at

app = Spool("sqlite://:memory:")


@app.task(queue="mail", retries=0)
def send(user: int) -> None:
    raise LookupError(f"user {user} not found")


@app.task(queue="reports", retries=0)
def report() -> None:
    raise ValueError("no data")


def bury(served: Served, mails: int = 5, reports: int = 2) -> None:
    """Leave that many dead jobs."""
    with app.using(served.broker):
        app.enqueue_many(send.call(number) for number in range(mails))
        app.enqueue_many(report.call() for _ in range(reports))
    served.run_all(app)


def add_worker(served: Served, queue: str = "mail") -> str:
    """Register a worker as the store sees one, with one running job if there is one to claim."""
    name = uuid.uuid4().hex
    served.broker.call(Beat(queue, [Heartbeat(name, 60_000, tasks=("send", "report"))]))
    served.broker.call(Claim(queue, name, 1, (1, 0)))
    row = WorkerRow(name, "w1", "host", 17, "", "", 0, 1000, [queue], 10, 0, 60_000, 1, False, "0.1", "cpython 3.11")
    served.broker.call(Store("worker", name, encode_row(row), 60_000))
    return name


def test_health_needs_no_token(served):
    client = served.anonymous()

    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").json()["status"] == "ok"


def test_a_store_that_is_gone_is_told(redis_server, tmp_path):
    from tests.redis_server import RedisServer

    with RedisServer() as store, serving(store.url) as served:
        store.kill()
        client = served.client_of(served.serving.first_token)

        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        answer = client.post("/login", json={"token": served.serving.first_token})
        assert answer.status_code == 503
        assert answer.json()["error"] == "BrokerUnavailable"
        store.start()
        eventually(lambda: client.get("/readyz").status_code == 200)


def test_queues_are_counted(served):
    bury(served)
    client = served.client("operate")
    for priority, delay in (("high", None), ("high", None), ("low", None), (None, 60)):
        call = {"task": "send", "queue": "mail", "priority": priority, "delay": delay}
        assert client.post("/api/v1/jobs", json=call).status_code == 201

    queues = {queue["queue"]: queue for queue in client.get("/api/v1/queues").json()["items"]}

    assert set(queues) == {"mail", "reports"}
    mail = eventually(lambda: (each := client.get("/api/v1/queues/mail").json())["oldest"] and each)
    assert mail["ready"] == {"critical": 0, "high": 2, "normal": 0, "low": 1, "background": 0}
    assert (mail["scheduled"], mail["dead"], mail["paused"], mail["totals"]["dead"]) == (1, 5, False, 5)
    assert 0 <= mail["now"] - mail["oldest"] < 60_000
    assert queues["reports"]["oldest"] is None
    assert client.get("/api/v1/queues/nothing").status_code == 404


def test_the_oldest_ready_job_is_the_one_that_has_waited_longest(served):
    client = served.client("operate")
    client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "priority": "low"})

    def mail() -> dict:
        return client.get("/api/v1/queues/mail").json()

    def looked_at() -> bool:
        since = mail()["oldest"]
        return since is not None and mail()["oldest"] == since and mail()["now"] - since > 1000

    eventually(looked_at)
    low = mail()["oldest"]
    # Created long ago by its producer's clock, and ready as of now by the store's.
    record = Record(VERSION, "send", 0, 0, 3, "", 1_000_000, msgspec.Raw(b"\x92\x90\x80"))
    served.broker.call(Enqueue("mail", [NewJob(new_id(), encode_record(record), priority=0)]))

    assert mail()["ready"]["critical"] == 1
    assert mail()["oldest"] == low
    shown = served.broker.call(Stats("mail")).now - low
    assert shown / 1000 == pytest.approx(client.get("/api/v1/metrics/summary").json()["oldest"], abs=1)
    (line,) = (each for each in client.get("/metrics").text.splitlines() if each.startswith("spool_queue_oldest_sec"))
    assert shown / 1000 == pytest.approx(float(line.split()[1]), abs=1)
    client.post("/api/v1/queues/mail/purge", json={})
    assert mail()["oldest"] is None


def test_queues_have_rates(served):
    client = served.client("operate")
    eventually(lambda: client.get("/api/v1/metrics/summary").json()["troubles"] == [])
    call = {"task": "send", "queue": "mail"}
    client.post("/api/v1/jobs/batch", json={"jobs": [call] * 30})

    def rates() -> dict:
        return (client.get("/api/v1/queues/mail").json()["rates"] or {}).get("minute", {})

    eventually(lambda: rates() == {"enqueued": 0.5})
    with at(served) as broker:
        assert recent(broker).rates("mail").minute == {"enqueued": 0.5}, "as through the server"


def test_a_queue_is_paused_resumed_and_purged(served):
    bury(served)
    client = served.client("operate")
    client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "delay": 60})
    client.post("/api/v1/jobs", json={"task": "send", "queue": "mail"})

    def act(action: str, **body) -> dict:
        answer = client.post(f"/api/v1/queues/mail/{action}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert act("pause") == {"queue": "mail", "paused": True}
    assert client.get("/api/v1/queues/mail").json()["paused"] is True
    assert act("resume") == {"queue": "mail", "paused": False}
    assert client.get("/api/v1/queues/mail").json()["paused"] is False
    assert act("purge") == {"changed": 2}
    assert act("purge") == {"changed": 0}
    assert act("purge", dead=True) == {"changed": 5}
    assert client.post("/api/v1/queues/nothing/pause", json={}).status_code == 404


def test_dead_jobs_are_listed_and_grouped(served):
    bury(served)
    client = served.client("read")

    assert len(client.get("/api/v1/dead").json()["items"]) == 7
    assert len(client.get("/api/v1/dead", params={"queue": "mail", "error": "user 3"}).json()["items"]) == 1
    groups = client.get("/api/v1/dead/groups").json()
    assert groups["total"] == 7
    assert [(each["count"], each["message"]) for each in groups["top"]] == [(5, "user <n> not found"), (2, "no data")]
    assert client.get("/api/v1/dead/groups", params={"limit": 1}).json()["others"] == 2


def test_dead_jobs_are_replayed_and_deleted_by_what_they_are(served):
    bury(served)
    client = served.client("operate")

    assert client.post("/api/v1/dead/replay", json={}).status_code == 422, "all of them has to be said"
    replayed = client.post("/api/v1/dead/replay", json={"queue": ["mail"], "error": "user 3"})
    assert replayed.status_code == 200
    assert (replayed.json()["state"], replayed.json()["found"], replayed.json()["replayed"]) == ("done", 1, 1)
    assert client.post("/api/v1/dead/delete", json={"task": "report"}).json() == {"changed": 2}
    assert client.post("/api/v1/dead/replay", json={"everything": True}).json()["replayed"] == 4
    assert client.get("/api/v1/queues/mail").json()["ready"]["normal"] == 5
    assert client.get("/api/v1/dead").json()["items"] == []


@pytest.mark.parametrize("by", ["queue", "id", "task", "error", "since"])
def test_whoever_asks_for_dead_jobs_chooses_them_alike(served, by):
    bury(served, mails=2, reports=1)
    client = served.client("operate")
    one = next(job for job in client.get("/api/v1/dead").json()["items"] if job["queue"] == "reports")
    chosen = {"queue": ["reports"], "id": [one["id"]], "task": "report", "error": "no data", "since": one["finished"]}
    given = {by: chosen[by]}
    # The one that died last may have died in the same millisecond as others.
    expected = [job["id"] for job in client.get("/api/v1/dead", params=given).json()["items"]]
    assert one["id"] in expected
    assert by == "since" or len(expected) == 1

    assert client.get("/api/v1/dead/groups", params=given).json()["total"] == len(expected)
    assert client.post("/api/v1/dead/replay", json=given).json()["replayed"] == len(expected)
    served.run_all(app)
    assert client.post("/api/v1/dead/delete", json=given).json() == {"changed": len(expected)}
    assert len(client.get("/api/v1/dead").json()["items"]) == 3 - len(expected)


def test_a_paced_replay_goes_on_by_itself_and_can_be_stopped_from_another_server(served):
    bury(served, mails=60)
    client = served.client("operate")

    begun = client.post("/api/v1/dead/replay", json={"queue": ["mail"], "rate": 2, "wait": 0.1})

    assert begun.status_code == 202
    assert begun.json()["state"] == "running"
    with serving(served.store_url) as other:
        elsewhere = other.client("operate")
        (shown,) = elsewhere.get("/api/v1/dead/replays").json()["items"]
        assert (shown["id"], shown["rate"]) == (begun.json()["id"], 2)
        stopped = elsewhere.post(f"/api/v1/dead/replays/{shown['id']}/stop", json={})
        assert stopped.json()["state"] == "stopped"
    running = served.serving.app.services.replays._running
    eventually(lambda: not running)
    assert client.get("/api/v1/dead/replays").json()["items"][0]["state"] == "stopped"
    assert client.get("/api/v1/queues/mail").json()["dead"] > 40
    assert client.post("/api/v1/dead/replays/nothing/stop", json={}).status_code == 404


def test_workers_are_shown_with_what_they_run(served):
    client = served.client("operate")
    id = client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "args": [1]}).json()["id"]
    name = add_worker(served)

    (worker,) = client.get("/api/v1/workers").json()["items"]
    assert (worker["row"]["incarnation"], worker["state"], worker["ordered"]) == (name, "running", None)
    shown = client.get(f"/api/v1/workers/{name}").json()
    assert [(job["id"], job["task"]) for job in shown["jobs"]] == [(id, "send")]
    assert client.get("/api/v1/workers/nobody").status_code == 404


def test_workers_are_given_orders(served):
    client = served.client("operate")
    name = add_worker(served)

    assert client.post(f"/api/v1/workers/{name}/quiet", json={}).json() == {"incarnation": name, "order": "quiet"}
    assert client.get(f"/api/v1/workers/{name}").json()["worker"]["ordered"] == "quiet"
    assert client.post(f"/api/v1/workers/{name}/stop", json={}).json()["order"] == "stop"
    (document,) = served.broker.call(Load("order")).documents
    assert document.key == name
    assert client.post("/api/v1/workers/nobody/stop", json={}).status_code == 404


def test_tokens_are_made_used_and_revoked(served):
    admin = served.client("admin")

    made = admin.post("/api/v1/tokens", json={"name": "ci", "scopes": ["enqueue"], "queues": ["mail"]})

    assert made.status_code == 201
    client = served.client_of(made.json()["token"])
    assert client.post("/api/v1/jobs", json={"task": "a", "queue": "mail"}).status_code == 201
    assert client.post("/api/v1/jobs", json={"task": "a", "queue": "other"}).status_code == 403
    listed = {row["id"]: row for row in admin.get("/api/v1/tokens").json()["items"]}
    assert listed[made.json()["id"]]["queues"] == ["mail"]
    assert made.json()["token"].split("_", 2)[2] not in str(listed)
    assert admin.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 200
    assert client.post("/api/v1/jobs", json={"task": "a", "queue": "mail"}).status_code == 401
    assert admin.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 404
    assert admin.post("/api/v1/tokens", json={"name": "x", "scopes": []}).status_code == 400
    assert admin.post("/api/v1/tokens", json={"name": "x", "scopes": ["root"]}).status_code == 400


def test_a_token_for_no_queue_is_not_one_for_all(sqlite_served):
    admin = sqlite_served.client("admin")

    refused = admin.post("/api/v1/tokens", json={"name": "x", "scopes": ["read"], "queues": []})

    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "queues: name one or more, or leave them out (null): all of them",
    )
    assert "x" not in {row["name"] for row in admin.get("/api/v1/tokens").json()["items"]}
    for given in ({"queues": None}, {}):
        made = admin.post("/api/v1/tokens", json={"name": "all", "scopes": ["read"]} | given)
        assert made.status_code == 201
    assert [row["queues"] for row in admin.get("/api/v1/tokens").json()["items"] if row["name"] == "all"] == [
        None,
        None,
    ]


def test_whose_token_it_is_is_told(served):
    told = served.client("operate", queues=["mail"]).get("/api/v1/me").json()

    assert told == {"name": "test", "scopes": ["enqueue", "operate", "read"], "queues": ["mail"], "read_only": False}


def test_a_restricted_token_sees_its_queues_alone(served):
    bury(served)
    client = served.client("operate", queues=["reports"])

    assert [queue["queue"] for queue in client.get("/api/v1/queues").json()["items"]] == ["reports"]
    assert {job["queue"] for job in client.get("/api/v1/jobs").json()["items"]} == {"reports"}
    assert {job["queue"] for job in client.get("/api/v1/dead").json()["items"]} == {"reports"}
    assert client.get("/api/v1/dead/groups").json()["total"] == 2
    (mail,) = served.client("read").get("/api/v1/dead", params={"queue": "mail", "limit": 1}).json()["items"]
    for answer in (
        client.get("/api/v1/jobs", params={"queue": "mail"}),
        client.get(f"/api/v1/jobs/mail/{mail['id']}"),
        client.post(f"/api/v1/jobs/mail/{mail['id']}/retry", json={}),
        client.post("/api/v1/queues/mail/pause", json={}),
        client.post("/api/v1/dead/delete", json={"queue": ["mail"], "everything": True}),
        client.get("/api/v1/audit"),
        client.post("/api/v1/workers/x/stop", json={}),
    ):
        assert answer.status_code == 403, answer.request.url
    assert client.post("/api/v1/dead/delete", json={"everything": True}).json() == {"changed": 2}
    assert len(served.client("read").get("/api/v1/dead").json()["items"]) == 5


def test_what_is_changed_is_written_down(served):
    client = served.client("admin")
    client.post("/api/v1/jobs", json={"task": "a", "queue": "mail"})
    client.post("/api/v1/queues/mail/pause", json={})
    client.post("/api/v1/queues/nothing/pause", json={})
    client.post("/api/v1/dead/delete", json={"task": "send", "error": "multi\nline"})

    log = client.get("/api/v1/audit", params={"limit": 2}).json()

    assert [(entry["action"], entry["status"]) for entry in log["items"]] == [
        ("POST /api/v1/dead/delete", 200),
        ("POST /api/v1/queues/{queue}/pause", 404),
    ]
    assert "multi\\nline" in log["items"][0]["detail"]
    older = client.get("/api/v1/audit", params={"cursor": log["cursor"]}).json()["items"]
    assert [(entry["target"], entry["status"], entry["who"]) for entry in older] == [
        ("/api/v1/queues/mail/pause", 200, "test")
    ]
    assert older[0]["client"] == "127.0.0.1"


def test_enqueues_are_summed_up_in_the_audit_log(store_url):
    with serving(store_url) as served:
        client = served.client("enqueue")
        for _ in range(3):
            client.post("/api/v1/jobs", json={"task": "a", "queue": "mail"})
        client.post("/api/v1/jobs/batch", json={"jobs": [{"task": "a", "queue": "mail"}] * 4})
    with serving(store_url) as served:  # the sums are written when a server ends
        log = served.client("admin").get("/api/v1/audit").json()["items"]

    assert [(entry["action"], entry["target"], entry["count"]) for entry in log] == [("enqueue", "mail", 7)]


def test_two_servers_know_the_same_tokens_and_sessions(served):
    with serving(served.store_url) as other:
        browser = served.session("operate")
        cookie = browser.cookies["spool_session"]

        elsewhere = other.anonymous(cookies={"spool_session": cookie})

        assert elsewhere.get("/api/v1/me").json()["name"] == "test"
        browser.post("/logout")
        eventually(lambda: elsewhere.get("/api/v1/me").status_code == 401)


def test_requests_at_once_are_answered(served):
    token = served.token("read")
    statuses: list[int] = []

    def get() -> None:
        answer = httpx.get(f"{served.url}/api/v1/queues", headers={"Authorization": f"Bearer {token}"})
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=get) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 20
