import threading

import httpx
import pytest

from spool import Spool
from spool.broker import Act, Beat, Claim, Heartbeat, Pause
from spool.broker.notes import JobNote, Note
from spool.job import LogLine, Progress, encode_line, encode_progress
from tests.eventually import eventually

app = Spool("sqlite://:memory:")


@app.task(queue="mail", priority="high", retries=0, redact=("password",))
def send(to: str, body: str = "", *, password: str = "") -> int:
    if not body:
        raise LookupError(f"no body for {to}")
    return len(body)


def error_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    return answer.status_code, problem.get("error", "")


def test_a_job_of_a_declared_task_takes_its_settings(served):
    served.declare(app)
    client = served.client("enqueue", "read")

    stored = client.post("/api/v1/jobs", json={"task": "send", "kwargs": {"body": "hi", "to": "a@b.c"}})

    assert stored.status_code == 201
    at = f"/api/v1/jobs/mail/{stored.json()['id']}"
    assert stored.headers["location"] == at
    job = client.get(at).json()
    assert (job["state"], job["task"], job["priority"]) == ("ready", "send", "high")
    assert job["arguments"] == [["a@b.c", "hi"], {}], "as the task itself would have stored it"


def test_a_job_runs_like_any_other(served):
    served.declare(app)
    client = served.client("operate")
    id = client.post("/api/v1/jobs", json={"task": "send", "args": ["a", "hello"]}).json()["id"]

    assert client.get(f"/api/v1/jobs/mail/{id}/result").status_code == 202
    served.run_all(app)
    answer = client.get(f"/api/v1/jobs/mail/{id}/result")

    assert (answer.status_code, answer.json()["state"], answer.json()["result"]) == (200, "done", 5)


def test_a_result_is_waited_for(served):
    served.declare(app)
    client = served.client("operate")
    id = client.post("/api/v1/jobs", json={"task": "send", "args": ["a", "hello"]}).json()["id"]
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(client.get(f"/api/v1/jobs/mail/{id}/result", params={"wait": 30}))
    )
    thread.start()
    services = served.serving.app.services
    eventually(lambda: services.waits == 1)

    served.run_all(app)
    thread.join()

    assert (answers[0].status_code, answers[0].json()["result"]) == (200, 5)
    assert services.waits == 0


def test_a_wait_ends_with_its_client(served):
    served.declare(app)
    client = served.client("operate")
    id = client.post("/api/v1/jobs", json={"task": "send", "args": ["a", "hello"]}).json()["id"]
    services = served.serving.app.services

    with pytest.raises(httpx.ReadTimeout):
        client.get(f"/api/v1/jobs/mail/{id}/result", params={"wait": 60}, timeout=httpx.Timeout(10, read=0.3))

    eventually(lambda: services.waits == 0)


def test_all_options_are_stored(served):
    client = served.client("enqueue", "read")
    options = {
        "queue": "other",
        "id": "one",
        "delay": 60,
        "priority": "low",
        "retries": 7,
        "timeout": 2.5,
        "result_ttl": 9,
        "on_disconnect": "continue",
        "headers": {"trace": "abc"},
        "key": "order-17",
    }

    assert client.post("/api/v1/jobs", json={"task": "unknown"} | options).status_code == 201

    job = client.get("/api/v1/jobs/other/one").json()
    assert (job["state"], job["priority"], job["key"]) == ("scheduled", "low", "order-17")
    assert job["due"] - job["created"] >= 59_000
    at = client.post("/api/v1/jobs", json={"task": "unknown", "queue": "other", "at": job["due"] + 1000}).json()["id"]
    assert client.get(f"/api/v1/jobs/other/{at}").json()["due"] == job["due"] + 1000


def test_jobs_are_found_by_key_and_by_what_is_searched(served):
    client = served.client("operate")
    call = {"task": "send", "queue": "mail"}
    keyed = client.post("/api/v1/jobs", json=call | {"key": "order-17"}).json()["id"]
    named = client.post("/api/v1/jobs", json=call | {"id": "order-17"}).json()["id"]
    other = client.post("/api/v1/jobs", json=call | {"key": "order-18", "task": "other"}).json()["id"]

    def found(**query: str) -> set[str]:
        answer = client.get("/api/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return {job["id"] for job in answer.json()["items"]}

    assert found(key="order-17") == {keyed}
    assert found(search="order-17") == {keyed, named}
    assert found(search="other") == {other}
    assert found(search="mail/order-17") == {named}
    assert found(search="nothing/at/all") == set()
    assert client.post("/api/v1/jobs", json=call | {"key": "no key"}).status_code == 400
    assert client.get("/api/v1/jobs", params={"search": ""}).status_code == 400
    client.post("/api/v1/jobs/mail/order-17/cancel", json={})
    assert client.post(f"/api/v1/jobs/mail/{keyed}/cancel", json={}).json()["state"] == "cancelled"
    assert found(search="order-17", state="cancelled") == {keyed, named}


def test_an_id_makes_a_call_idempotent(served):
    served.declare(app)
    client = served.client("enqueue")
    call = {"task": "send", "args": ["a", "b"], "id": "order-17"}

    first, again = client.post("/api/v1/jobs", json=call), client.post("/api/v1/jobs", json=call)
    same = client.post("/api/v1/jobs", json=call | {"args": [], "kwargs": {"to": "a", "body": "b"}})
    other = client.post("/api/v1/jobs", json=call | {"args": ["a", "c"]})

    assert (first.status_code, first.json()["created"]) == (201, True)
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert same.status_code == 200, "however the call is written"
    assert error_of(other) == (409, "JobConflict")


def test_the_same_id_in_python_and_over_http_is_one_job(served):
    served.declare(app)
    with app.using(served.broker):
        assert send.options(id="x").enqueue("a", body="b").created

    answer = served.client("enqueue").post("/api/v1/jobs", json={"task": "send", "args": ["a", "b"], "id": "x"})

    assert answer.json()["created"] is False


def test_what_cannot_be_stored_is_refused_by_name(served):
    served.declare(app)
    client = served.client("enqueue")

    def refused(**call) -> tuple[int, str, str]:
        answer = client.post("/api/v1/jobs", json={"task": "send"} | call)
        return (*error_of(answer), answer.json()["detail"])

    status, error, detail = refused(task="sned")
    assert (status, error) == (422, "TaskUnknown")
    assert "send" in detail
    assert refused()[:2] == (422, "ArgumentError")
    assert "'nonsense'" in refused(args=["a"], kwargs={"nonsense": 1})[2]
    deep: list = []
    for _ in range(100):
        deep = [deep]
    assert refused(args=[deep])[:2] == (422, "PayloadError")
    assert refused(args=[2**70])[:2] == (422, "PayloadError")
    assert refused(args=["a"], queue="no such{name}")[0] == 400
    assert refused(args=["a"], id="spaces are not allowed")[0] == 400
    assert refused(args=["a"], delay=1, at=1)[:2] == (422, "ConfigError")
    assert refused(args=["a"], headers={"big": "x" * 9000})[:2] == (422, "ConfigError")
    assert refused(args=["a"], delay=-1)[0] == 400
    assert refused(args=["a"], at=253_402_300_800_000)[0] == 400, "no browser could show it"
    assert refused(args=["a"], priority="urgent")[0] == 400
    assert refused(args=["a"], colour="red")[0] == 400
    assert refused(args=["x" * 1024 * 1024])[0] == 413


def test_a_batch_of_unknown_tasks_reads_them_once(sqlite_served, monkeypatch):
    sqlite_served.declare(app)
    tasks = sqlite_served.serving.app.services.intake._tasks
    read, readings = tasks._refresh, []

    async def counted() -> None:
        readings.append(1)
        await read()

    monkeypatch.setattr(tasks, "_refresh", counted)
    calls = [{"task": f"sned{n}"} for n in range(50)]

    answer = sqlite_served.client("enqueue").post("/api/v1/jobs/batch", json={"jobs": calls})

    errors = [item["error"] for item in answer.json()["items"]]
    assert {error["error"] for error in errors} == {"TaskUnknown"}
    assert "send" in errors[0]["detail"]
    assert "send" not in errors[-1]["detail"], "to find what may be meant takes time"
    assert len(readings) <= 2


def test_a_batch_answers_for_each_of_its_jobs(served):
    served.declare(app)
    client = served.client("enqueue", "read")
    calls = [
        {"task": "send", "args": ["a", "b"]},
        {"task": "send"},
        {"task": "send", "args": ["a", "b"], "id": "x"},
        {"task": "send", "args": ["a", "b"], "id": "x"},
        {"task": "send", "args": ["a", "c"], "id": "x"},
        {"task": "send", "args": ["a"], "delay": "soon"},
        7,
        {"task": "nobody", "queue": "elsewhere"},
    ]

    answer = client.post("/api/v1/jobs/batch", json={"jobs": calls})

    assert answer.status_code == 200
    items = answer.json()["items"]
    assert [item.get("error", {}).get("status") for item in items] == [None, 422, None, None, 409, 400, 400, None]
    assert [item.get("created") for item in items] == [True, None, True, False, None, None, None, True]
    schema = client.get("/api/v1/openapi.json").json()["components"]["schemas"]["BatchItem"]
    assert schema["properties"]["created"] == {"type": "boolean"}
    assert (answer.json()["stored"], answer.json()["failed"]) == (4, 4)
    assert len(client.get("/api/v1/jobs").json()["items"]) == 3


def test_a_batch_too_long_is_refused(served):
    answer = served.client("enqueue").post("/api/v1/jobs/batch", json={"jobs": [{}] * 1001})

    assert error_of(answer)[0] == 413


def test_enqueues_at_once_go_out_together_and_each_gets_its_answer(served):
    served.declare(app)
    token = served.token("enqueue")
    answers: list[httpx.Response] = []

    def post(number: int) -> None:
        with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {token}"}) as client:
            call = {"task": "send", "args": [str(number), "b"], "id": f"id-{number % 8}"}
            answers.append(client.post("/api/v1/jobs", json=call))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [201] * 8 + [409] * 8


def test_jobs_are_listed_by_page_and_by_what_they_are(served):
    served.declare(app)
    client = served.client("operate")
    for number in range(7):
        client.post("/api/v1/jobs", json={"task": "send", "args": [f"user-{number}", ""]})
        client.post("/api/v1/jobs", json={"task": "send", "args": ["b", "c"], "queue": "later", "delay": 60})
    served.run_all(app)

    def ids(**query) -> list[str]:
        found, cursor = [], ""
        while True:
            page = client.get("/api/v1/jobs", params=query | {"cursor": cursor, "limit": 3}).json()
            assert len(page["items"]) <= 3
            found += [job["id"] for job in page["items"]]
            cursor = page["cursor"]
            if not cursor:
                return found

    assert len(ids()) == len(set(ids())) == 14
    assert len(ids(state="dead")) == len(ids(queue="mail")) == len(ids(error="LookupError")) == 7
    assert len(ids(state=["dead", "scheduled"])) == 14
    assert len(ids(error="user-3")) == 1
    assert len(ids(task="send")) == 14
    assert ids(task="other") == []
    one = ids(state="dead")[0]
    assert ids(id=f"mail/{one}") == [one]
    finished = client.get(f"/api/v1/jobs/mail/{one}").json()["finished"]
    assert one in ids(state="dead", since=finished)
    assert one not in ids(state="dead", until=finished)
    assert error_of(client.get("/api/v1/jobs", params={"cursor": "nonsense"}))[0] == 422
    assert error_of(client.get("/api/v1/jobs", params={"limit": 1001}))[0] == 400
    assert error_of(client.get("/api/v1/jobs", params={"nonsense": 1}))[0] == 400


def test_a_job_is_cancelled_retried_and_deleted(served):
    served.declare(app)
    client = served.client("operate")
    id = client.post("/api/v1/jobs", json={"task": "send", "args": ["a", ""]}).json()["id"]
    at = f"/api/v1/jobs/mail/{id}"
    served.run_all(app)

    assert client.get(at).json()["error"] == "LookupError: no body for a"
    assert client.post(f"{at}/cancel", json={}).json() == {"changed": False, "state": "dead"}
    assert client.post(f"{at}/retry", json={}).json() == {"changed": True, "state": "ready"}
    assert client.post(f"{at}/retry", json={}).json() == {"changed": False, "state": "ready"}
    assert client.post(f"{at}/cancel", json={"reason": "not needed"}).json() == {"changed": True, "state": "cancelled"}
    assert client.get(at).json()["error"] == "not needed"
    assert client.post(f"{at}/delete", json={}).json() == {"changed": True, "state": None}
    assert error_of(client.get(at)) == (404, "JobNotFound")
    assert error_of(client.post(f"{at}/cancel", json={})) == (404, "JobNotFound")


def test_a_job_is_deleted_by_method(served):
    client = served.client("operate")
    id = client.post("/api/v1/jobs", json={"task": "send", "queue": "mail"}).json()["id"]

    assert client.delete(f"/api/v1/jobs/mail/{id}").json()["changed"] is True
    assert client.delete(f"/api/v1/jobs/mail/{id}").status_code == 404


def test_what_is_to_be_redacted_is_not_shown(served):
    served.declare(app)
    client = served.client("operate")
    call = {"task": "send", "args": ["a", ""], "kwargs": {"password": "hunter2"}}
    id = client.post("/api/v1/jobs", json=call).json()["id"]

    shown = [client.get(path).text for path in (f"/api/v1/jobs/mail/{id}", "/api/v1/jobs")]
    served.run_all(app)
    shown += [client.get(path).text for path in (f"/api/v1/jobs/mail/{id}", "/api/v1/jobs", "/api/v1/dead")]

    assert not any("hunter2" in text for text in shown)
    assert all("[redacted]" in text for text in shown)


def test_results_that_json_has_no_words_for_are_shown_all_the_same(served):
    strange = Spool(served.store_url)

    @strange.task(queue="strange")
    def odd() -> dict:
        return {1: b"bytes", (2, 3): {"four": {5, 6}}}

    handle = odd.enqueue()
    served.run_all(strange)
    strange.close()

    answer = served.client("read").get(f"/api/v1/jobs/strange/{handle.id}/result")

    assert answer.status_code == 200
    assert "Ynl0ZXM=" in answer.text


def test_an_enqueue_is_durable_or_refused(served):
    client = served.client("enqueue")

    answer = client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "durability": "fsync"})

    if served.store_url.startswith("sqlite"):
        assert answer.status_code == 201
    else:  # the tests' Redis keeps nothing
        assert error_of(answer) == (503, "BrokerRefused")


def test_json_that_is_none_is_refused(sqlite_served):
    client = sqlite_served.client("enqueue")

    def post(body: bytes) -> httpx.Response:
        return client.post("/api/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    for body in (b"", b"{", b"[1", b"\xff\xfe", b'{"task":"a","args":[NaN]}', b'{"task":"a","args":[1e999]}', b"null"):
        assert error_of(post(body))[0] == 400, body
    assert error_of(post(b'{"task":"a","queue":"q","args":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))[0] == 400


def test_a_paused_queue_takes_jobs(served):
    served.broker.call(Act("mail", Pause()))

    assert served.client("enqueue").post("/api/v1/jobs", json={"task": "a", "queue": "mail"}).status_code == 201


def test_the_progress_of_a_job_is_shown(served):
    client = served.client("operate")
    id = client.post("/api/v1/jobs", json={"task": "send", "queue": "mail"}).json()["id"]

    at = f"/api/v1/jobs/mail/{id}"
    assert client.get(f"{at}/progress").json() | {"queue": "mail"} == {
        "queue": "mail",
        "id": id,
        "state": "ready",
        "progress": None,
        "log": [],
        "log_dropped": 0,
    }
    served.broker.call(Beat("mail", [Heartbeat("worker", 60_000, tasks=("send",))]))
    served.broker.call(Claim("mail", "worker", 1))
    line = encode_line(LogLine(5, 1, "INFO", "shop", "<b>half of it</b>"))
    said = JobNote(id, 1, 0, (line,), 1, encode_progress(Progress(3, 6, "rows", 5, 1)))
    served.broker.call(Note("mail", "worker", [said]))

    told = client.get(f"{at}/progress").json()

    assert (told["state"], told["progress"]["done"], told["progress"]["total"]) == ("running", 3, 6)
    assert [(each["level"], each["message"]) for each in told["log"]] == [("INFO", "<b>half of it</b>")]
    assert client.get(at).json()["progress"] == told["progress"]
