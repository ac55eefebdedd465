"""What becomes of those who wait at a server that is told to end."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from spool.broker.http import HttpBroker
from spool.broker.http.wire import WorkWait
from spool.server import Limits
from tests.eventually import eventually
from tests.server.served import serving


def test_who_waits_keeps_nobody_out(tmp_path):
    with (
        serving(f"sqlite:///{tmp_path}/spool.db", limits=Limits(requests=3)) as served,
        ThreadPoolExecutor(6) as pool,
        ExitStack() as streams,
    ):
        token = served.token()
        client, services = served.client_of(token), served.serving.app.services
        client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "id": "one"})
        broker = HttpBroker(served.url.replace("://", f"://:{token}@"))
        for _ in range(2):
            pool.submit(client.get, "/api/v1/jobs/mail/one/result", params={"wait": 60})
            pool.submit(broker._ask, WorkWait(["none"], 20.0), 20.0)
            pool.submit(broker.ended, "mail", "one")
            streams.enter_context(served.client_of(token).stream("GET", "/api/v1/live/events"))
        eventually(lambda: (services.waits, services.verbs.ends, services.hub.clients) == (2, 2, 2))
        eventually(lambda: len(services.verbs._work._ears) == 2)

        assert client.get("/api/v1/queues").status_code == 200
        assert services.under_way == 0
        served.serving.stop()
        broker.close()


def test_who_waits_is_answered_and_streams_end(tmp_path, caplog):
    with serving(f"sqlite:///{tmp_path}/spool.db") as served, ThreadPoolExecutor() as pool:
        client, services = served.client("operate"), served.serving.app.services
        client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "id": "one"})

        lines: list[str] = []

        def follow() -> None:
            with served.client("read").stream("GET", "/api/v1/live/events") as answer:
                lines.extend(answer.iter_lines())

        result = pool.submit(client.get, "/api/v1/jobs/mail/one/result", params={"wait": 60})
        stream = pool.submit(follow)
        eventually(lambda: services.waits == 1 and lines)
        served.serving.stop()

        assert (result.result().status_code, result.result().json()["state"]) == (202, "ready")
        stream.result()
        assert lines[0].startswith("data: ")
        assert "event: over" not in lines, "it is to come back"
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []
