"""What becomes of those who wait at a server that is told to end."""

from concurrent.futures import ThreadPoolExecutor

from tests.eventually import eventually
from tests.server.served import serving


def test_who_waits_is_answered_and_streams_end(tmp_path, caplog):
    with serving(f"sqlite:///{tmp_path}/spool.db") as served, ThreadPoolExecutor() as pool:
        client, services = served.client("operate"), served.serving.app.services
        client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "id": "one"})

        def follow() -> list[str]:
            with served.client("read").stream("GET", "/api/v1/live/events") as answer:
                return list(answer.iter_lines())

        result = pool.submit(client.get, "/api/v1/jobs/mail/one/result", params={"wait": 60})
        stream = pool.submit(follow)
        eventually(lambda: services.waits == services.hub.clients == 1)
        served.serving.stop()

        assert (result.result().status_code, result.result().json()["state"]) == (202, "ready")
        assert stream.result()[0].startswith("data: ")
        assert "event: over" not in stream.result(), "it is to come back"
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []
