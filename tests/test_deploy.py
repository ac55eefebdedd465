"""`deploy/`: what can be told of it without Docker. Every name in it has to be one that exists."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from spool.broker import Stats, connect
from spool.cli import spool as main
from spool.telemetry import Counted, Roller
from spool.telemetry.prometheus import Exposition
from tests.contract.driver import Driver
from tests.model_state import Clock
from tests.telemetry.conftest import blob

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/spool.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
SCRAPE = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(rule["expr"] for rule in RULES),
    *(each["definition"].removeprefix("label_values(") for each in VARIABLES.values() if each["type"] == "query"),
]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """The labels of each sample that a store with some history exposes, by name."""
    broker = connect(f"sqlite:///{tmp_path_factory.mktemp('deploy')}/spool.db")
    counted, q = Counted(broker), Driver(broker, Clock())
    q.beat("w")
    q.settle("w", metrics=blob(done=1))
    Roller(broker).roll()
    counted._errors["BrokerUnavailable"] = 1
    text = Exposition(counted).render()[0].decode()
    broker.call(Stats("q"))
    broker.close()
    labels: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_query_asks_for_metrics_and_labels_that_exist(exposed, expression):
    found = re.findall(r"\b(spool_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert found
    for name, matchers in found:
        assert name in exposed, name
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert used <= exposed[name] | {"job", "instance"}, (name, used)
    known = set().union(*(exposed[name] for name, _ in found)) | {"instance", "job"}
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
    assert grouped <= known


def test_every_metric_of_the_store_is_in_the_dashboard_or_an_alert(exposed):
    named = set(re.findall(r"\bspool_\w+", " ".join(EXPRESSIONS)))
    # What is about the housekeeping of a store, or of the server.
    quiet = {"spool_build_info", "spool_repairs_total", "spool_wait_seconds_bucket", "spool_run_seconds_bucket"}
    quiet |= {f"spool_jobs_{what}_total" for what in ("replayed", "deleted", "pruned")}
    assert {name for name in exposed if name.startswith("spool_")} - named <= quiet


def test_panels_have_ids_titles_and_places_of_their_own():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"]
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_a_dashboards_variables_are_declared():
    text = json.dumps(DASHBOARD["panels"])
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used == set(VARIABLES)


def test_alerts_say_what_is_wrong_and_how_urgent_it_is():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 8
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"].endswith(".")


@pytest.mark.parametrize("service", ["worker", "server"])
def test_a_service_is_started_with_options_that_exist(service):
    name, *arguments = COMPOSE["services"][service]["command"]
    command = main.get_command(click.Context(main), name)
    assert command is not None
    command.make_context(name, arguments)


def test_the_token_service_makes_what_prometheus_reads():
    service = COMPOSE["services"]["token"]
    (script,) = service["command"]
    assert service["entrypoint"] == ["sh", "-c"]
    made = re.search(r"spool (token create .*?) >", script)
    assert made is not None
    token, create, *arguments = shlex.split(made[1])
    group = main.get_command(click.Context(main), token)
    context = group.get_command(click.Context(group), create).make_context(create, arguments)
    assert context.params["scope"] == ("read",)
    assert SCRAPE["authorization"]["credentials_file"] in script
    (volume,) = {each.partition(":")[0] for each in service["volumes"]}
    assert f"{volume}:/tokens:ro" in COMPOSE["services"]["prometheus"]["volumes"]


def test_prometheus_scrapes_the_server_under_a_name_it_answers_to():
    (target,) = SCRAPE["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    command = COMPOSE["services"][host]["command"]
    assert command[command.index("--allowed-host") + 1] == host
    assert [published.rpartition(":")[2] for published in COMPOSE["services"][host]["ports"]] == [port]


def test_everything_is_published_on_loopback_alone_and_every_mount_is_there():
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        for other, condition in dict.fromkeys(service.get("depends_on", ()), {}).items():
            assert other in COMPOSE["services"], condition


def test_redis_keeps_its_data_and_evicts_nothing():
    command = COMPOSE["services"]["redis"]["command"]
    for option, value in (("--appendonly", "yes"), ("--maxmemory-policy", "noeviction")):
        assert command[command.index(option) + 1] == value
    assert "redis:/data" in COMPOSE["services"]["redis"]["volumes"]


def test_grafana_is_provisioned_with_what_is_there():
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert VARIABLES["datasource"]["current"]["value"] == source["uid"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/spool.yaml").read_text())["providers"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/spool.json"
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in COMPOSE["services"]["grafana"]["volumes"]


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied
    for each in copied:
        assert (ROOT / each).exists()
        assert f"!{each}" in ignored
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001:10001"]
    context, dockerfile = COMPOSE["x-spool"]["build"]["context"], COMPOSE["x-spool"]["build"]["dockerfile"]
    assert (DEPLOY / context / dockerfile).samefile(DEPLOY / "Dockerfile")
    for service in ("worker", "server"):
        assert COMPOSE["services"][service]["read_only"]
        assert COMPOSE["services"][service]["cap_drop"] == ["ALL"]
        assert "user" not in COMPOSE["services"][service]
