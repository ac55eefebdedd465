"""What people get wrong on their first day, and what they are told."""

import datetime as dt
import enum
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import pydantic
import pytest

from spool import ArgumentError, Backoff, BrokerRefused, ConfigError, Release, Retry, Spool, testing
from spool.broker import Stats
from spool.cli import main

SHOP = """\
import pydantic
from spool import Spool

class User(pydantic.BaseModel):
    name: str

app = Spool()

@app.task
def older(user: User) -> User:
    return user
"""


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    (tmp_path / "shop_of_a_newcomer.py").write_text(SHOP)
    (tmp_path / "broken_module.py").write_text("def set_up():\n    return nonsense\n\nset_up()\n")
    (tmp_path / "unparsable_module.py").write_text("def broken(:\n")
    (tmp_path / "leaving_module.py").write_text("import sys\nsys.exit('no settings')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPOOL_URL", f"sqlite:///{tmp_path}/spool.db")
    return tmp_path


def spool(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "spool", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, **options)


# The command


@pytest.mark.parametrize("group", [[], ["jobs"], ["dead"], ["bench"]])
def test_a_group_without_a_command_shows_its_help(capsys, group):
    with pytest.raises(SystemExit):
        main(group)
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    assert lines[0].startswith(" ".join(["Usage: spool", *group]))
    assert "Commands:" in lines


def test_short_helps_are_whole(capsys):
    for group in ("--help",), ("bench", "--help"):
        with pytest.raises(SystemExit):
            main(group)
        assert "..." not in capsys.readouterr().out.replace("[ARGS]...", "")


@pytest.mark.parametrize("queues", [(), ("--queues", "default")])
def test_a_worker_goes_by_its_name(shop, queues):
    command = [sys.executable, "-m", "spool", "worker", "shop_of_a_newcomer:app", "--name", "ada", *queues]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        assert "worker ada is ready for default" in worker.stderr.readline()
        rows = json.loads(spool("workers", "--json").stdout)
        worker.send_signal(signal.SIGTERM)
    assert [row["name"] for row in rows] == ["ada"]


def test_a_model_as_a_result_is_printed_as_json(shop):
    command = [sys.executable, "-m", "spool", "worker", "shop_of_a_newcomer:app"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
        ran = spool("enqueue", "shop_of_a_newcomer:older", "--args", '[{"name": "Ada"}]', "--wait", "--timeout", "30")
        worker.send_signal(signal.SIGTERM)
    assert json.loads(ran.stdout) == {"name": "Ada"}


@pytest.mark.parametrize("target", ["broken_module:task", "broken_module:app:task"])
def test_where_an_import_fails_is_shown_without_our_frames(shop, target):
    ran = spool("enqueue", target)
    assert ran.returncode == 2
    assert 'broken_module.py", line 2, in set_up' in ran.stderr
    assert ran.stderr.splitlines()[-1] == (
        "spool: module 'broken_module' cannot be imported: NameError: name 'nonsense' is not defined"
    )
    assert f"{os.sep}spool{os.sep}" not in ran.stderr
    assert "importlib" not in ran.stderr


def test_an_import_that_cannot_be_parsed_or_leaves(shop):
    unparsable = spool("enqueue", "unparsable_module:task")
    assert 'unparsable_module.py", line 1' in unparsable.stderr
    assert "frozen" not in unparsable.stderr
    leaving = spool("enqueue", "leaving_module:task")
    assert "module 'leaving_module' cannot be imported: SystemExit: no settings" in leaving.stderr
    assert (unparsable.returncode, leaving.returncode) == (2, 2)


def test_pausing_a_queue_that_is_not_known_says_so(shop):
    spool("enqueue", "shop_of_a_newcomer:older", "--args", '[{"name": "Ada"}]')
    ran = spool("queues", "pause", "defualt")
    assert ran.stdout == "defualt paused\n"
    assert ran.stderr == "defualt is new to this store; it knows default\n"
    assert spool("queues", "pause", "default").stderr == ""


def test_a_purge_that_nobody_confirms_names_the_way(shop):
    spool("enqueue", "shop_of_a_newcomer:older", "--args", '[{"name": "Ada"}]')
    ran = spool("queues", "purge", "default", stdin=subprocess.DEVNULL)
    assert ran.returncode == 130
    assert "nothing is deleted; --yes answers beforehand" in ran.stderr


def test_a_file_that_is_not_there_is_told_with_the_way_to_another(tmp_path):
    ran = spool("queues", "--url", f"sqlite:///{tmp_path}/nothing.db")
    assert "; --url or SPOOL_URL name another store" in ran.stderr


# Declaring and calling


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@pytest.fixture
def app() -> Spool:
    return Spool("sqlite://:memory:")


def test_times_may_be_timedeltas(app):
    @app.task(timeout=dt.timedelta(seconds=20), result_ttl=dt.timedelta(minutes=1))
    def declared() -> int:
        return 1

    assert (declared.settings.timeout, declared.settings.result_ttl) == (20, 60)
    with testing.inline(app):
        called = declared.options(timeout=dt.timedelta(seconds=5), result_ttl=dt.timedelta(seconds=9)).enqueue()
        assert called.result() == 1

    with pytest.raises(ConfigError, match="timeout must be a number of seconds, more than 0"):
        declared.options(timeout=dt.timedelta())
    with pytest.raises(ConfigError, match="result_ttl must be a number of seconds, 0 or more"):
        declared.options(result_ttl=dt.timedelta(seconds=-1))


def test_wrong_choices_are_told_the_right_ones(app):
    @app.task
    def paint(color: Color, how: Literal["thin", "thick"] = "thin") -> None: ...

    with pytest.raises(ArgumentError, match=r"'color': invalid enum value 'green'; allowed: 'red', 'blue'$"):
        paint.enqueue("green")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"'how': invalid enum value 'fast'; allowed: 'thin', 'thick'$"):
        paint.enqueue(Color.RED, "fast")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"has no parameter 'colour'; it has color, how$"):
        paint.enqueue(colour="red")  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match=r"'color': invalid enum value 'green'; allowed: 'red', 'blue'$"):
        paint.read_arguments(msgspec.msgpack.encode([["green"], {}]))


def test_a_backoff_that_is_none_is_refused_at_once(app):
    with pytest.raises(ConfigError, match=r"backoff must be a Backoff, as Backoff\(base=1, cap=300\), not 3"):
        app.task(backoff=3)
    assert app.task(backoff=Backoff(base=3))(time.monotonic_ns).settings.retry.backoff.base == 3


def test_a_url_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"a broker is named by a URL, as redis://localhost or sqlite:///jobs.db"):
        _ = Spool(5).broker  # type: ignore[arg-type]


def test_models_in_results_keep_their_aliases():
    from spool.cli.output import _plain

    class Aliased(pydantic.BaseModel):
        first: int = pydantic.Field(alias="firstOne")

    assert _plain(Aliased(firstOne=1)) == {"firstOne": 1}
    assert _plain(3j) == "3j"


@pytest.mark.parametrize("url", ["sqlite:jobs.db", "sqlite://jobs.db", "redis:localhost"])
def test_a_url_without_its_slashes_is_no_url(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot use the broker URL"):
        _ = Spool(url).broker
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_does_not_share_the_default_prefix():
    with pytest.raises(ConfigError, match="unknown option prefx; allowed are prefix, db"):
        _ = Spool("redis://localhost?prefx=shop").broker


def test_a_database_that_is_not_there(redis_url):
    with pytest.raises(BrokerRefused, match="DB index"):
        Spool(redis_url.rpartition("/")[0] + "/9999").broker.call(Stats("q"))


@pytest.mark.parametrize("delay", [-1, "5", float("nan"), float("inf"), True])
@pytest.mark.parametrize("kind", [Retry, Release])
def test_a_delay_that_is_none(kind, delay):
    with pytest.raises(ConfigError, match="a delay is a number of seconds"):
        kind(delay=delay)


@pytest.mark.parametrize("kind", [Retry, Release])
def test_a_delay_may_be_a_timedelta(kind):
    assert kind(delay=dt.timedelta(minutes=1)).delay == 60


def test_a_worker_shows_where_an_import_failed(shop):
    told = spool("worker", "broken_module:app", "--log-format", "human", cwd=shop)
    assert told.returncode == 2
    assert "in set_up" in told.stderr
    assert "NameError" in told.stderr


def test_a_worker_on_a_store_of_one_process_is_refused(shop):
    told = spool("worker", "shop_of_a_newcomer:app", "--url", "sqlite://:memory:", cwd=shop)
    assert told.returncode != 0
    assert "no client of a worker process can reach" in told.stderr
