def test_a_job_is_enqueued_and_found(served):
    client = served.client("enqueue", "read")

    stored = client.post("/api/v1/jobs", json={"task": "send", "queue": "mail", "args": ["a@b.c"], "kwargs": {"n": 1}})

    assert stored.status_code == 201
    at = f"/api/v1/jobs/mail/{stored.json()['id']}"
    assert stored.headers["location"] == at
    job = client.get(at).json()
    assert (job["state"], job["task"], job["arguments"]) == ("ready", "send", [["a@b.c"], {"n": 1}])
