"""`/metrics`, `/api/v1/metrics/history` and `/api/v1/metrics/summary`, over real HTTP."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from spool.broker import Act, Beat, Enqueue, Heartbeat, Pause
from spool.report import Meter, pack
from tests.contract.driver import Driver, job
from tests.eventually import eventually
from tests.model_state import Clock
from tests.server.served import serving
from tests.telemetry.conftest import blob


@pytest.fixture
def q(served):
    return Driver(served.broker, Clock())


def work(q, done=3, died=1) -> None:
    """Run some jobs as a worker would, with a blob."""
    ids = [f"{q.queue}-{number}" for number in range(done + died)]
    q.worker("w", *ids)
    meter = Meter("t")
    meter.runs[20], meter.waits[10], meter.others = done + died, done + died, {"died": died} if died else {}
    q.settle("w", *(q.done(id) for id in ids[:done]), *(q.died(id) for id in ids[done:]), metrics=pack([meter]))


def samples(text, parse):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def test_prometheus_scrapes_in_either_format(served, q):
    work(q)
    client = served.client("read")
    eventually(lambda: "spool_run_seconds_count" in client.get("/metrics").text)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    accept = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"}
    open_metrics = client.get("/metrics", headers=accept)
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert open_metrics.text.endswith("# EOF\n")
    for found in (samples(answer.text, parse_text), samples(open_metrics.text, parse_openmetrics)):
        assert found["spool_broker_up",] == 1
        assert found["spool_jobs_ended_total", ("queue", "q"), ("state", "done")] == 3
        assert found["spool_jobs", ("queue", "q"), ("state", "dead")] == 1
        assert found["spool_attempts_total", ("outcome", "died"), ("queue", "q"), ("task", "t")] == 1
        assert found["spool_run_seconds_count", ("queue", "q"), ("task", "t")] == 4
        assert found["process_cpu_seconds_total",] > 0


def test_history_comes_as_series_of_equal_length(served, q):
    client = served.client("read")
    assert client.get("/api/v1/metrics/history").json()["step"] == 1000
    eventually(lambda: "spool_metrics_age_seconds" in client.get("/metrics").text)
    work(q)

    def seen():
        course = client.get("/api/v1/metrics/history", params={"range": 60, "queue": "q"}).json()
        return course if sum(course["counts"]["done"]) == 3 and sum(course["run"]["count"]) == 4 else None

    course = eventually(seen)
    assert len(course["times"]) == 60
    assert {len(series) for series in (*course["counts"].values(), *course["states"].values())} == {60}
    assert sum(course["outcomes"]["died"]) == sum(course["counts"]["dead"]) == 1
    assert [value for value in course["run"]["p95"] if value] == [pytest.approx(2**19 * 1.95e-9)]
    task = client.get("/api/v1/metrics/history", params={"range": 86400, "task": "t"}).json()
    assert (task["step"], len(task["times"]), sum(task["outcomes"]["done"])) == (60_000, 1440, 3)


@pytest.mark.parametrize("query", ["range=59", "range=86401", "range=x", "range=nan", "queues=q"])
def test_what_history_cannot_show_is_refused(sqlite_served, query):
    assert sqlite_served.client("read").get(f"/api/v1/metrics/history?{query}").status_code == 400


def test_the_summary_names_queue_and_error(served, q):
    client = served.client("read")

    def troubles():
        return {each["kind"]: each for each in client.get("/api/v1/metrics/summary").json()["troubles"]}

    eventually(lambda: not troubles())
    work(q)
    other = Driver(served.broker, Clock(), "mail")
    other.enqueue("a", "b")
    served.broker.call(Enqueue("held", [job("c")]))
    served.broker.call(Beat("held", [Heartbeat("v", 60_000, ("t",))]))
    served.broker.call(Act("held", Pause()))
    found = eventually(lambda: len(each := troubles()) == 3 and each)
    assert found["no_workers"]["queue"] == "mail"
    assert found["no_workers"]["count"] == 2
    assert found["paused"]["queue"] == "held"
    assert found["failing"]["queue"] == "q"
    assert (found["failing"]["error"]["task"], found["failing"]["error"]["error_type"]) == ("t", "ValueError")
    summary = client.get("/api/v1/metrics/summary").json()
    assert (summary["status"], summary["ready"], summary["dead"]) == ("bad", 3, 1)


def test_a_token_for_one_queue_sees_that_one(served, q):
    work(q)
    Driver(served.broker, Clock(), "mail").enqueue("a")
    client = served.client("read", queues=["mail"])
    assert client.get("/metrics").status_code == 403
    assert client.get("/api/v1/metrics/history").status_code == 403
    assert client.get("/api/v1/metrics/history?queue=q").status_code == 403
    assert client.get("/api/v1/metrics/history?queue=mail").status_code == 200
    summary = client.get("/api/v1/metrics/summary").json()
    assert {each["queue"] for each in summary["troubles"]} - {""} == {"mail"}
    assert summary["dead"] == 0


def test_two_servers_show_the_same_and_one_goes_on_alone(store_url):
    with serving(store_url) as one:
        with serving(store_url) as two:
            clients = [each.client("read") for each in (one, two)]
            for client in clients:
                eventually(lambda client=client: "spool_metrics_age_seconds" in client.get("/metrics").text)
            q = Driver(one.broker, Clock())
            work(q)
            for client in clients:
                eventually(lambda client=client: attempts(client) == 4)
            # The last steps may have been read at different moments.
            shown = [client.get("/api/v1/metrics/history?range=60").json() for client in clients]
            times = sorted(set(shown[0]["times"][:-2]) & set(shown[1]["times"][:-2]))
            assert len(times) > 50
            first, second = (dict(zip(each["times"], each["run"]["count"], strict=True)) for each in shown)
            assert [first[at] for at in times] == [second[at] for at in times]
        q.settle("w", metrics=blob(done=2))
        eventually(lambda: attempts(clients[0]) == 6)
    with serving(store_url) as again:
        assert attempts(again.client("read")) == 6


def attempts(client):
    return sum(client.get("/api/v1/metrics/history?range=3600").json()["run"]["count"])


def test_without_the_store_errors_are_what_is_left(served, q, monkeypatch):
    from spool.errors import BrokerUnavailable
    from spool.server.services import Services

    services: Services = served.serving.app.services
    client = served.client("read")
    assert client.get("/metrics").status_code == 200
    inner = services.broker._broker

    def fail(verb):
        raise BrokerUnavailable("gone")

    monkeypatch.setattr(inner, "call", fail)
    found = samples(client.get("/metrics").text, parse_text)
    assert found["spool_broker_up",] == 0
    assert found["spool_broker_errors_total", ("error", "BrokerUnavailable")] >= 1
    assert not any(name.startswith("spool_jobs") for name, *_ in found)


def test_an_accept_header_that_means_nothing_gets_text(sqlite_served):
    client = sqlite_served.client("read")
    for accept in ("application/openmetrics-text; version=x.y", "text/plain; version=", ";;=,"):
        answer = client.get("/metrics", headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain"), accept
