import asyncio
import contextlib
import datetime as dt
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from spool import Backoff, Spool, __version__
from spool.broker import Beat, Broker, Claim, Died, Heartbeat, JobNote, Note, Settle, Stats, Store, connect
from spool.catalogue import publish
from spool.cli import main
from spool.cli.output import printable
from spool.cli.run import worker
from spool.errors import BrokerUnavailable, ConfigError
from spool.job import PRIORITIES, Attempt, LogLine, Progress, State, Tally, encode_line, encode_progress, new_id
from spool.report import WorkerRow, encode_row
from spool.supervisor import WorkerOptions
from tests.eventually import eventually
from tests.faulty import FaultyBroker
from tests.tallies import write_tally


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys) -> Run:
    def invoke(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as stopped:
            main([str(each) for each in arguments])
        captured = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return Ran(code, captured.out, captured.err)

    return invoke


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path, monkeypatch) -> str:
    url = f"sqlite:///{tmp_path}/spool.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    monkeypatch.setenv("SPOOL_URL", url)
    return url


@pytest.fixture
def broker(url) -> Iterator[Broker]:
    broker = connect(url)
    yield broker
    broker.close()


@pytest.fixture
def app(broker) -> Spool:
    app = Spool(broker)

    @app.task(queue="mail", backoff=Backoff(base=0))
    def send(to: str, body: str = "") -> str:
        return to

    @app.task(queue="files")
    def shrink(path: str) -> None: ...

    return app


def let_die(broker: Broker, queue: str, error: str = "ValueError: no", *, count: int = 1) -> list[str]:
    """Claim jobs as a worker would, and settle them as dead."""
    incarnation = new_id()
    broker.call(Beat(queue, [Heartbeat(incarnation, tasks=("send", "shrink", "login"))]))
    claimed = broker.call(Claim(queue, incarnation, 1, (count, 0)))
    kind, _, message = error.partition(": ")
    tally = write_tally(
        Tally(attempts=1, failures=1), [Attempt(1, "died", 1000, 2000, "w", kind, message, f"Traceback\n  {error}\n")]
    )
    settled = [Died(id, 1, tally) for id, _ in claimed.jobs]
    broker.call(Settle(queue, incarnation, 1, settled))
    return [id for id, _ in claimed.jobs]


def state(app: Spool, job: str) -> State:
    return app.job(job).state


# Usage


def test_help_and_version(run):
    assert __version__ in run("--version").out
    helped = run("--help")
    assert helped.code == 0
    for command in ("worker", "enqueue", "jobs", "queues", "workers", "dead", "demo", "bench"):
        assert f"  {command} " in helped.out


def test_every_command_has_help(run):
    for command in (
        ["worker"],
        ["enqueue"],
        ["workers"],
        ["demo"],
        *(["jobs", each] for each in ("list", "show", "cancel", "replay", "delete")),
        *(["dead", each] for each in ("list", "groups", "show", "replay", "retry", "delete")),
        *(["queues", each] for each in ("list", "pause", "resume", "purge")),
        *(["bench", each] for each in ("quick", "custom")),
    ):
        helped = run(*command, "--help")
        assert helped.code == 0
        assert "Usage: spool" in helped.out


def test_help_loads_little():
    """What only some commands need is not imported for all of them."""
    code = (
        "import sys; from spool.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'asyncio', 'redis', 'rich', 'sqlite3', 'uvloop'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert printed.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nope"], "No such option"),
        (["frob"], "No such command"),
        (["jobs", "list", "--limit", "0"], "--limit"),
        (["jobs", "list", "--state", "asleep"], "asleep"),
        (["jobs", "cancel"], "--all"),
        (["jobs", "cancel", "mail/1", "--all"], "not both"),
        (["dead", "retry"], "--all"),
        (["dead", "replay"], "--all"),
        (["dead", "delete"], "--all"),
        (["dead", "delete", "mail/1", "--since", "2h"], "not both"),
        (["dead", "list", "--since", "yesterday"], "yesterday"),
        (["dead", "list", "--since", "2026-02-03T10:00"], "time zone"),
        (["dead", "list", "--until", "9999999999999d"], "too long ago"),
        (["dead", "replay", "--all", "--rate", "0"], "--rate"),
        (["jobs", "list", "--url", "gopher://x"], "gopher"),
        (["jobs", "list", "--url", "sqlite:///nowhere/at/all.db"], "nowhere/at/all.db"),
        (["worker", "no_such_module:app", "--log-format", "human"], "no_such_module"),
        (["worker"], "MODULE:APP"),
        (["worker", "os:path", "--queues", ","], "--queues"),
        (["worker", "os:path", "--unroutable-after", "0"], "--unroutable-after"),
        (["enqueue", "no_such_module:task"], "no_such_module"),
        (["enqueue", "justaname"], "module:task"),
        (["enqueue", "os:path"], "no task"),
        (["enqueue", "os:nothing"], "nothing"),
        (["demo", "/no/such/directory"], "/no/such/directory"),
        (["bench", "custom", "--rate", "5", "--prefill"], "rate"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run, arguments, said):
    ran = run(*arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.startswith("spool")
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have a device that is full")
@pytest.mark.parametrize("arguments", [["queues"], ["jobs", "list"], ["jobs", "list", "--json"], ["--help"]])
def test_a_stdout_that_is_full_is_one_line_and_code_1(app, url, arguments):
    app.enqueue_many(app.tasks["send"].call("x") for _ in range(50))
    command = [sys.executable, "-m", "spool", *arguments]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "spool: cannot write to stdout: No space left on device\n")


def test_a_stdout_that_nobody_reads_is_no_word(app, url):
    app.tasks["send"].enqueue("x")  # too little to be written before the end
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "spool", "jobs", "list", "--json"]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_a_stdout_that_is_closed_is_as_one_thrown_away(app, url):
    app.tasks["send"].enqueue("x")
    for arguments in (["jobs", "list", "--json"], ["queues"]):
        command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "spool", *arguments]
        ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("command", [["jobs", "list"], ["queues"], ["workers"], ["dead", "list"], ["bench", "quick"]])
def test_a_broker_that_is_down_is_one_line_and_code_1(run, command):
    ran = run(*command, "--url", "redis://:secret@127.0.0.1:1/0")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert "127.0.0.1:1" in ran.err
    assert "secret" not in ran.err


def test_a_missing_sqlite_file_is_not_created(run, tmp_path):
    assert run("jobs", "list", "--url", f"sqlite:///{tmp_path}/spool.db").code == 2
    assert list(tmp_path.iterdir()) == []


# Jobs


def test_jobs_show_has_progress_and_log_lines(run, app, broker):
    job = app.tasks["send"].enqueue("a@b.c")
    broker.call(Beat("mail", [Heartbeat("w", tasks=("send",))]))
    broker.call(Claim("mail", "w", 1, (1, 0)))
    lines = [
        LogLine(1_700_000_000_000, 1, "INFO", "shop", "first \x1b[31m\u202e"),
        LogLine(1_700_000_001_000, 1, "ERROR", "shop", "Traceback\n2026-01-01 00:00:00 1 INFO    shop: forged"),
    ]
    progress = encode_progress(Progress(1500, 3000, "half\x1b[2J", 1_700_000_002_000, 1))
    broker.call(Note("mail", "w", [JobNote(job.id, 1, 7, [encode_line(each) for each in lines], 1, progress)]))
    shown = run("jobs", "show", job)
    assert "1,500 of 3,000 (50%): half\\x1b[2J, attempt 1" in shown.out
    assert "after 7 earlier ones" in shown.out
    assert "1 INFO    shop: first \\x1b[31m\\u202e" in shown.out
    assert "\x1b" not in shown.out
    assert next(line for line in shown.out.splitlines() if "forged" in line).startswith("    2026")
    as_json = run("jobs", "show", job, "--json").json
    assert (as_json["progress"]["done"], as_json["progress"]["message"]) == (1500, "half\x1b[2J")
    assert [line["message"] for line in as_json["log"]] == [line.message for line in lines]
    assert app.job(job.id).log == lines


async def announce(app: Spool, url: str) -> None:
    """Write the catalogue of tasks, as a worker does."""
    broker = connect(url)
    await publish(app.tasks.values(), broker)
    await broker.aclose()


def test_what_a_task_redacts_is_shown_nowhere(run, app, broker, url):
    @app.task(queue="auth", redact=("password",))
    def login(user: str, password: str) -> None: ...

    asyncio.run(announce(app, url))
    dead = login.enqueue("bob", "hunter2")
    let_die(broker, "auth", count=1)
    job = login.enqueue("ann", password="hunter2")
    for command in (
        ["jobs", "show", job],
        ["jobs", "show", job, "--json"],
        ["jobs", "list", "--json"],
        ["dead", "list", "--json"],
        ["dead", "show", dead],
        ["dead", "show", dead, "--json"],
    ):
        ran = run(*command)
        assert ran.code == 0
        assert "hunter2" not in ran.out
        assert "[redacted]" in ran.out


def test_jobs_list(run, app):
    first = app.tasks["send"].enqueue("a@b.c")
    second = app.tasks["send"].options(delay=3600).enqueue("d@e.f")
    third = app.tasks["shrink"].options(priority="high").enqueue("x")
    listed = run("jobs", "list")
    assert listed.code == 0
    assert all(str(each) in listed.out for each in (first, second, third))
    assert [job["id"] for job in run("jobs", "list", "--queue", "files", "--json").json] == [third.id]
    assert [job["id"] for job in run("jobs", "list", "--state", "scheduled", "--json").json] == [second.id]
    (job,) = run("jobs", "list", "--task", "send", "--state", "ready", "--json").json
    assert (job["queue"], job["task"], job["state"], job["priority"]) == ("mail", "send", "ready", "normal")
    assert job["arguments"] == [["a@b.c"], {}]


def test_jobs_are_listed_and_shown_by_key(run, app):
    keyed = app.tasks["send"].options(key="order-17").enqueue("a@b.c")
    app.tasks["send"].enqueue("d@e.f")
    assert [(job["id"], job["key"]) for job in run("jobs", "list", "--key", "order-17", "--json").json] == [
        (keyed.id, "order-17")
    ]
    assert ["key", "order-17"] in [line.split() for line in run("jobs", "show", keyed.id).out.splitlines()]
    assert run("jobs", "list", "--key", "no key").code == 2
    assert run("jobs", "cancel", "--key", "order-17").out == "1 job changed\n"


def test_jobs_list_says_when_there_is_more(run, app):
    app.enqueue_many(app.tasks["send"].call("a") for _ in range(5))
    listed = run("jobs", "list", "--limit", "3", "--json")
    assert len(listed.json) == 3
    assert "more" in listed.err
    assert run("jobs", "list", "--limit", "5").err == ""


def test_jobs_show(run, app):
    handle = app.tasks["send"].enqueue("a@b.c", body="hi")
    for name in (str(handle), handle.id):
        shown = run("jobs", "show", name).out
        assert "a@b.c" in shown
        assert "send" in shown
    assert run("jobs", "show", handle.id, "--queue", "mail", "--json").json["id"] == handle.id
    missing = run("jobs", "show", "mail/nothing")
    assert missing.code == 1
    assert "no job 'nothing' is known in queue 'mail'" in missing.err


def test_jobs_cancel_by_name_and_by_choice(run, app):
    handles = [app.tasks["send"].enqueue(str(number)) for number in range(3)]
    other = app.tasks["shrink"].enqueue("x")
    assert run("jobs", "cancel", handles[0]).out == "1 job changed\n"
    assert handles[0].status() is State.CANCELLED
    assert run("jobs", "cancel", "--queue", "mail").out == "2 jobs changed\n"
    assert {each.status() for each in handles} == {State.CANCELLED}
    assert other.status() is State.READY
    assert run("jobs", "cancel", "--all").out == "1 job changed\n"
    assert run("jobs", "cancel", "--all").out == "0 jobs changed\n"


def test_naming_an_unknown_job_changes_nothing(run, app):
    handle = app.tasks["send"].enqueue("a")
    ran = run("jobs", "cancel", handle, "mail/unknown")
    assert ran.code == 1
    assert handle.status() is State.READY


@pytest.mark.parametrize("command", ["show", "cancel", "delete", "replay"])
def test_an_id_of_several_queues_names_no_job(run, app, command):
    send = app.tasks["send"]
    handles = [send.options(queue=queue, id="order-7", delay=500).enqueue("a") for queue in ("zzz", "aaa")]
    ran = run("jobs", command, "order-7")
    assert (ran.code, ran.out) == (2, "")
    assert "id 'order-7' is that of aaa/order-7 and zzz/order-7: name the queue, as aaa/order-7" in ran.err
    assert [handle.status() for handle in handles] == [State.SCHEDULED] * 2
    if command in ("cancel", "delete"):
        assert run("jobs", command, "order-7", "--queue", "aaa").code == 0
        assert handles[0].status() is State.SCHEDULED


def test_jobs_delete_by_state(run, app):
    kept = app.tasks["send"].enqueue("a")
    gone = app.tasks["send"].options(delay=60).enqueue("b")
    assert run("jobs", "delete", "--state", "scheduled").out == "1 job deleted\n"
    listed = [job["id"] for job in run("jobs", "list", "--json").json]
    assert kept.id in listed
    assert gone.id not in listed


# Dead


def test_dead_list_show_replay_delete(run, app, broker):
    app.enqueue_many(app.tasks["send"].call(str(number)) for number in range(3))
    ids = let_die(broker, "mail", "ValueError: no such address", count=3)
    app.tasks["shrink"].enqueue("x")
    let_die(broker, "files", "OSError: disk full")

    assert {job["id"] for job in run("dead", "list", "--queue", "mail", "--json").json} == set(ids)
    assert len(run("dead", "list", "--json").json) == 4
    assert [job["task"] for job in run("dead", "list", "--error", "disk full", "--json").json] == ["shrink"]
    assert len(run("dead", "list", "--task", "send", "--json").json) == 3
    assert "OSError: disk full" in run("dead", "list").out

    shown = run("dead", "show", f"mail/{ids[0]}").out
    assert "no such address" in shown
    assert "Traceback" in shown
    assert "died" in shown

    assert run("dead", "replay", f"mail/{ids[0]}").out == "1 job replayed\n"
    assert state(app, f"mail/{ids[0]}") is State.READY
    assert run("dead", "show", f"mail/{ids[0]}").code == 1
    assert run("dead", "replay", "--error", "no such address").out == "2 jobs replayed\n"
    assert run("dead", "delete", "--all").out == "1 job deleted\n"
    assert run("dead", "list", "--json").json == []


def test_dead_filters(run, app, broker):
    app.enqueue_many(app.tasks["send"].call(str(number)) for number in range(3))
    (first,) = let_die(broker, "mail", "TimeoutError: after 30 s")
    died = app.job(first).finished
    eventually(lambda: broker.call(Stats("mail")).now > died)
    (second,) = let_die(broker, "mail", "ValueError: no")
    app.tasks["shrink"].enqueue("x")
    (third,) = let_die(broker, "files", "TimeoutError: after 5 s")
    between = dt.datetime.fromtimestamp((died + 1) / 1000, dt.timezone(dt.timedelta(hours=2))).isoformat()

    def listed(*options: str) -> set[str]:
        return {job["id"] for job in run("dead", "list", "--json", *options).json}

    assert listed("--queue", "mail") == {first, second}
    assert listed("--queue", "mail", "--queue", "files") == {first, second, third}
    assert listed("--error", "TimeoutError") == {first, third}
    assert listed("--error", "TimeoutError", "--task", "shrink") == {third}
    assert listed("--since", between) == {second, third}
    assert listed("--until", between) == {first}
    assert listed("--since", "1.5h") == listed("--since", "90s", "--until", "0s") == {first, second, third}
    assert listed("--until", "30m") == listed("--until", "7d") == set()
    assert run("dead", "list", "--error", "").code == 2
    assert run("dead", "delete", "--until", "2h").out == "0 jobs deleted\n"
    assert run("dead", "delete", "--until", between).out == "1 job deleted\n"
    assert listed() == {second, third}


def test_dead_groups(run, app, broker):
    app.enqueue_many(app.tasks["send"].call(str(number)) for number in range(4))
    ids = [let_die(broker, "mail", f"LookupError: user {number} not found")[0] for number in range(3)]
    (other,) = let_die(broker, "mail", "ValueError: \x1b[2J")
    found = run("dead", "groups", "--json").json
    assert (found["total"], found["others"]) == (4, 0)
    assert [(each["count"], each["message"]) for each in found["top"]] == [(3, "user <n> not found"), (1, "\x1b[<n>J")]
    assert found["top"][0]["sample"].removeprefix("mail/") in ids
    table = run("dead", "groups")
    assert "3  send  LookupError: user <n> not found" in table.out
    assert f"mail/{other}" in table.out
    assert "\x1b" not in table.out
    assert table.err == ""
    assert "1 of 4 jobs are in other groups" in run("dead", "groups", "--limit", "1").err
    assert run("dead", "groups", "--error", "ValueError", "--json").json["total"] == 1


def test_dead_list_says_what_is_kept(run, app, broker):
    app.tasks["send"].enqueue("a")
    let_die(broker, "mail")
    assert "1 dead; each queue keeps 100,000 for 30 days, 0 pruned so far" in run("dead", "list").err
    assert run("dead", "list", "--json").err == ""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # how many Redis keeps is written into its scripts
def test_pruned_dead_jobs_are_counted(run, app, broker, monkeypatch):
    monkeypatch.setattr("spool.broker.sqlite.leases.MAX_DEAD", 1)
    app.enqueue_many(app.tasks["send"].call(str(number)) for number in range(3))
    for _ in range(3):
        let_die(broker, "mail")
    let_die(broker, "mail")  # finds nothing to claim, but keeps house
    assert "2 pruned" in run("dead", "list", "--queue", "mail").err
    assert "0 pruned" in run("dead", "list", "--queue", "files").err
    heads, mail = (line.split() for line in run("queues").out.splitlines())
    assert mail[heads.index("pruned")] == "2"


@pytest.mark.parametrize("command", [["dead", "replay"], ["dead", "retry"], ["jobs", "replay"], ["jobs", "retry"]])
def test_replay_by_any_name(run, app, broker, command):
    app.enqueue_many(app.tasks["send"].call(str(number)) for number in range(3))
    ids = let_die(broker, "mail", count=3)
    waiting = app.tasks["send"].enqueue("x")
    assert run(*command, f"mail/{ids[0]}", ids[1], "--rate", "1000").out == "2 jobs replayed\n"
    assert run(*command, "--queue", "mail").out == "1 job replayed\n"
    assert {job["generation"] for job in run("jobs", "list", "--state", "ready", "--json").json} == {0, 1}
    assert waiting.status() is State.READY


def test_a_replay_that_stops_says_where(run, app, broker, monkeypatch):
    app.enqueue_many(app.tasks["send"].call(str(number)) for number in range(3))
    let_die(broker, "mail", count=3)
    faulty = FaultyBroker(broker)
    monkeypatch.setattr("spool.broker.connect", lambda _: faulty)
    monkeypatch.setattr(faulty, "close", lambda: None)
    faulty.faults = [None, None, None, BrokerUnavailable("gone")]  # the queues, the dead ones, the first of them
    stopped = run("dead", "replay", "--all", "--rate", "20")
    assert stopped.code == 1
    assert stopped.err == "stopped part of the way; 1 job is replayed\nspool: gone\n"

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    stopped = run("dead", "replay", "--all", "--rate", "20")
    assert stopped.code == 130
    assert "1 job is replayed" in stopped.err
    assert app.jobs(state="dead").count() == 1


def test_a_paced_replay_shows_how_far_it_is_on_a_terminal(app, broker):
    app.enqueue_many(app.tasks["send"].call(str(number)) for number in range(5))
    let_die(broker, "mail", count=5)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "spool", "dead", "replay", "--all", "--rate", "20"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(ours, 4096):
                shown += more
        os.close(ours)
        assert process.communicate(timeout=20)[0] == b"5 jobs replayed\n"
    assert b"5 of 5 replayed" in shown


def test_cancel_says_why(run, app):
    handle = app.tasks["send"].enqueue("a")
    assert run("jobs", "cancel", handle, "--reason", "not wanted").out == "1 job changed\n"
    assert handle.job().error == "not wanted"


def test_text_from_the_store_is_no_terminal_code(run, app, broker):
    app.tasks["send"].enqueue("\x1b]0;owned\x07")
    (id,) = let_die(broker, "mail", "ValueError: \x1b[2J")
    for printed in (run("dead", "list").out, run("dead", "show", id).out, run("jobs", "show", id).out):
        assert "\x1b" not in printed
        assert r"\x1b" in printed


def test_printable_keeps_text():
    assert printable("naïve – 世界 🎉") == "naïve – 世界 🎉"
    assert printable("a\nb\t\x00") == r"a\nb\t\x00"
    assert printable("a\nb\x00", lines=True) == "a\nb\\x00"


# Queues and workers


def test_queues_show_depth_per_priority(run, app):
    for priority in PRIORITIES:
        app.tasks["send"].options(priority=priority).enqueue("a")
    app.tasks["send"].options(priority="low").enqueue("a")
    app.tasks["shrink"].options(delay=60).enqueue("x")
    listed = {each["queue"]: each for each in run("queues", "--json").json}
    assert listed["mail"]["ready"] == {"critical": 1, "high": 1, "normal": 1, "low": 2, "background": 1}
    assert listed["files"]["scheduled"] == 1
    assert run("queues", "list", "--json").json == run("queues", "--json").json
    table = run("queues").out.splitlines()
    assert table[0].split()[:6] == ["queue", *PRIORITIES]
    assert next(line for line in table if line.startswith("mail")).split()[1:6] == ["1", "1", "1", "2", "1"]


def test_queues_pause_and_resume(run, app, broker):
    app.tasks["send"].enqueue("a")
    assert run("queues", "pause", "mail").code == 0
    assert run("queues", "--json").json[0]["paused"] is True
    assert "(paused)" in run("queues").out
    assert let_die(broker, "mail") == []
    assert run("queues", "resume", "mail").code == 0
    assert len(let_die(broker, "mail")) == 1


def test_queues_purge(run, app, broker):
    app.tasks["send"].enqueue("a")
    let_die(broker, "mail")
    app.tasks["send"].enqueue("b")
    app.tasks["send"].options(delay=60).enqueue("c")
    other = app.tasks["shrink"].enqueue("x")
    assert run("queues", "purge", "mail", "--yes").out == "2 jobs deleted\n"
    assert len(run("dead", "list", "--json").json) == 1
    assert run("queues", "purge", "mail", "--dead", "--yes").out == "1 job deleted\n"
    assert other.status() is State.READY


def test_queues_purge_asks(run, app, monkeypatch):
    handle = app.tasks["send"].enqueue("a")
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert run("queues", "purge", "mail").code == 130
    assert handle.status() is State.READY


def test_explicit_url_wins_over_the_environment(run, app, tmp_path, monkeypatch):
    app.tasks["send"].enqueue("a")
    url = f"sqlite:///{tmp_path}/other.db"
    with Spool(url) as other:
        other.broker.call(Beat("elsewhere", [Heartbeat(new_id())]))
    assert [each["queue"] for each in run("queues", "--json", "--url", url).json] == ["elsewhere"]
    assert [each["queue"] for each in run("queues", "--url", url, "list", "--json").json] == ["elsewhere"]


def test_workers_of_an_empty_store(run, app):
    app.tasks["send"].enqueue("a")
    assert run("workers", "--json").json == []
    assert run("workers").code == 0


def test_an_argument_that_is_not_utf8_is_told_in_one_line(run, app):
    app.tasks["send"].enqueue("a")
    for command in (("jobs", "show"), ("jobs", "cancel"), ("dead", "show"), ("dead", "replay")):
        ran = run(*command, "mail/\udcff")
        assert ran.code == 1
        assert "no job '\\udcff' is known" in ran.err
        assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("body", [b"{}", b'{"x":' + b"[" * 3000 + b"]" * 3000 + b"}"], ids=["empty", "deep"])
def test_a_row_that_cannot_be_read_hides_no_worker(run, broker, body):
    row = WorkerRow("w", "n", "h", 1, "", "", 0, 0, ["mail"], 1, 0, 9000, 0, False, "1", "3")
    for key, each in (("a", body), ("w", encode_row(row))):
        broker.call(Store("worker", key, each))
    assert [each["incarnation"] for each in run("workers", "--json").json] == ["w"]


# Enqueue and worker

MODULE = """
import datetime
from spool import Spool

app = Spool()

@app.task(queue="mail")
def send(to: str, on: datetime.date, copies: int = 1) -> str:
    return f"{to} {on:%d.%m.%Y} {copies}"

@app.task(queue="mail", retries=0)
def fail() -> None:
    raise ValueError("as planned")

@app.task(queue="mail", result_ttl=0)
def forget() -> int:
    return 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch, url) -> str:
    (tmp_path / "shop_tasks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield "shop_tasks"
    sys.modules.pop("shop_tasks", None)


def test_enqueue(run, module, broker):
    ran = run("enqueue", f"{module}:send", "--args", '["a@b.c"]', "--kwargs", '{"on": "2026-02-03"}')
    assert ran.code == 0
    (job,) = run("jobs", "list", "--json").json
    assert ran.out.strip() == f"mail/{job['id']}"
    assert job["state"] == "ready"


def test_enqueue_with_options(run, module, broker):
    options = ["--delay", "60", "--id", "once", "--priority", "high"]
    arguments = [f"{module}:app:send", "--args", '["a@b.c", "2026-02-03", 2]']
    assert run("enqueue", *arguments, *options).out == "mail/once\n"
    assert "already" in run("enqueue", *arguments, *options).err
    (job,) = run("jobs", "list", "--json").json
    assert (job["state"], job["priority"]) == ("scheduled", "high")
    conflict = run("enqueue", f"{module}:app:send", "--args", '["other", "2026-02-03"]', "--id", "once")
    assert conflict.code == 1
    assert "once" in conflict.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--args", "[1"], "JSON"),
        (["--args", "{}"], "array"),
        (["--kwargs", "[]"], "object"),
        (["--args", '["a"]'], "'on'"),
        (["--args", '["a", "not a date"]'], "'on'"),
        (["--args", '["a", "2026-02-03", "three"]'], "'copies'"),
        (["--args", '["a", "2026-02-03"]', "--kwargs", '{"nope": 1}'], "'nope'"),
        (["--args", '["a", "2026-02-03", 99999999999999999999]'], "send"),
        (["--args", "[" * 10_000 + "]" * 10_000], ""),
        (["--id", "not a name", "--args", '["a", "2026-02-03"]'], "not a name"),
    ],
)
def test_enqueue_refuses_what_does_not_fit(run, module, broker, arguments, said):
    ran = run("enqueue", f"{module}:send", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_worker_runs_what_enqueue_waits_for(run, module, url, broker, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "spool", "worker", f"{module}:app", "--log-format", "json", "--concurrency", "5"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        arguments = ["--args", '["a@b.c", "2026-02-03"]', "--wait", "--timeout", "20"]
        ran = run("enqueue", f"{module}:send", *arguments)
        assert (ran.code, ran.out) == (0, '"a@b.c 03.02.2026 1"\n')
        (worker,) = run("workers", "--json").json
        assert worker["concurrency"] == 5
        assert worker["queues"] == ["mail"]
        shown = run("workers").out
        assert worker["host"] in shown
        assert worker["incarnation"] in shown, "a job that runs names its worker by that"

        forgotten = run("enqueue", f"{module}:forget", "--wait", "--timeout", "20")
        assert (forgotten.code, forgotten.out) == (0, "null\n")
        assert "its task keeps no results (result_ttl=0)" in forgotten.err
        failed = run("enqueue", f"{module}:fail", "--wait", "--timeout", "20")
        assert failed.code == 1
        assert "as planned" in failed.err
        assert len(failed.err.splitlines()) == 2  # the job's name, the error
        assert "ValueError: as planned" in run("dead", "list").out
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert all(json.loads(line) for line in errors.splitlines())


def test_worker_hands_its_options_on(run, monkeypatch):
    given = []
    monkeypatch.setattr("spool.supervisor.run_workers", lambda options: given.append(options) or 0)
    assert run("worker", "shop:app").code == 0
    assert run("worker", "shop:app", "--unroutable-after", "1.5").code == 0
    assert [each.unroutable_after for each in given] == [None, 1.5]


@pytest.mark.parametrize(
    "name",
    [
        *("lease", "grace", "unroutable_after", "kill_after", "profile_seconds", "max_memory", "max_age"),
        *("concurrency", "processes", "max_jobs", "spare"),
    ],
)
def test_the_help_of_worker_has_the_limits_that_hold(name):
    (option,) = [each for each in worker.params if each.name == name]
    limits = option.type
    assert isinstance(limits, click.FloatRange | click.IntRange)
    step = 1 if isinstance(limits, click.IntRange) else 0.001
    least, most = limits.min + step * limits.min_open, limits.max
    WorkerOptions(app="shop:app", **{name: least})
    wrong = [least - step]
    if most is not None:
        WorkerOptions(app="shop:app", **{name: most})
        wrong.append(most + step)
    for each in wrong:
        with pytest.raises(ConfigError, match=name):
            WorkerOptions(app="shop:app", **{name: each})


def test_wait_gives_up(run, module, broker):
    began = time.monotonic()
    ran = run("enqueue", f"{module}:send", "--args", '["a", "2026-02-03"]', "--wait", "--timeout", "0.05")
    assert ran.code == 1
    assert "time" in ran.err
    assert time.monotonic() - began < 5
