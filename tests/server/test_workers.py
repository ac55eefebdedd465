"""Orders to workers: from the server through the store to a real worker process, and back."""

import pytest

from spool.supervisor import Fleet, WorkerOptions
from tests.eventually import eventually
from tests.server.served import Served


def workers(client) -> list[dict]:
    return client.get("/api/v1/workers").json()["items"]


def started(client, count: int) -> list[str]:
    rows = eventually(lambda: (rows := workers(client)) and len(rows) == count and rows, 30)
    return [row["row"]["incarnation"] for row in rows]


@pytest.mark.parametrize("store_url", ["redis"], indirect=True)  # processes take their time, and both keep documents
def test_a_worker_is_quieted_and_another_is_stopped_for_good(served: Served):
    client = served.client("operate")
    options = WorkerOptions(app="tests.shop:app", url=served.store_url, queues=("mail",), processes=2, lease=2.0)
    with Fleet(options) as fleet:
        fleet.wait_ready()
        first, second = started(client, 2)
        assert all(row["row"]["memory"] > 1_000_000 for row in workers(client))

        client.post(f"/api/v1/workers/{first}/quiet", json={})
        eventually(lambda: [row["state"] for row in workers(client)].count("quiet") == 1, 20)
        client.post(f"/api/v1/workers/{second}/stop", json={})

        eventually(lambda: len(fleet.pids) == 1, 20)
        assert started(client, 1) == [first]
        stored = client.post("/api/v1/jobs", json={"task": "nobody", "queue": "mail"})
        assert client.get(stored.headers["location"]).json()["state"] == "ready", "a quiet worker claims nothing"
        client.post(f"/api/v1/workers/{first}/stop", json={})
        assert fleet.join(20), "without workers there is nothing left to supervise"


@pytest.mark.parametrize("store_url", ["redis"], indirect=True)
def test_a_worker_tells_what_it_has_done_and_how_fast(served: Served):
    client = served.client("operate")
    with Fleet(WorkerOptions(app="tests.shop:app", url=served.store_url, processes=1, lease=2.0)) as fleet:
        fleet.wait_ready()
        for call in ([1, 2], [3, 4], ["one", {}]):  # the last of them has arguments that the task refuses
            answer = client.post("/api/v1/jobs", json={"task": "add", "args": call, "queue": "default"})
            assert answer.status_code == 201, answer.text

        def row() -> dict:
            return next((each["row"] for each in workers(client)), {"ended": {}})

        found = eventually(lambda: (each := row())["ended"] == {"done": 2, "died": 1} and each, 20)
        assert found["rates"]["minute"]["done"] == pytest.approx(2 * found["rates"]["minute"]["died"], rel=0.01)
        assert 0 < found["rates"]["minute"]["done"] <= 2
