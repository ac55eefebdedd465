"""What is special to the SQLite broker: files that fail, processes that share one, forks, crashes, and group commit."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spool import errors
from spool.broker import (
    Beat,
    Blob,
    Cancel,
    Claim,
    Delete,
    Enqueue,
    Get,
    Heartbeat,
    Load,
    NewJob,
    Settle,
    Stats,
    Store,
    Watch,
    connect,
)
from spool.broker.sqlite import SqliteBroker, file, leases, thread
from spool.broker.sqlite import jobs as sqlite_jobs
from spool.broker.sqlite import store as sqlite_store
from spool.broker.sqlite.store import RUNNING, STATES
from spool.job import State
from spool.view import view
from tests.contract.driver import CORRUPT, LEASE, Driver, job, jobs, record, until
from tests.model_state import Clock

SOON = 5.0
"""Seconds that a wait may take before a test fails."""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_broker(path, clock):
    """Open brokers on the test's file; without ``clock=None`` they share a clock that stands still."""
    with contextlib.ExitStack() as stack:

        def opened(url=f"sqlite:///{path}", **options):
            options = {"clock": lambda: (clock.wall, clock.boot)} | options
            return stack.enter_context(contextlib.closing(SqliteBroker(url, **options)))

        yield opened


@pytest.fixture
def broker(open_broker):
    return open_broker()


@pytest.fixture
def q(broker, clock) -> Driver:
    return Driver(broker, clock)


@contextlib.contextmanager
def raw(path):
    """The file as SQLite sees it."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


def audit(path) -> None:
    """Everything in the file has an owner, and the counters are the sizes of what they count."""
    with raw(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for id, text in db.execute("SELECT id, state FROM queue").fetchall():
            state = json.loads(text)
            counted = Counter({STATES.index(name): state[name] for name in ("scheduled", "suspect", "running", "dead")})
            counted[0] = sum(map(sum, state["ready"]))
            counted[2] = sum(state["parked"].values())
            found = dict(db.execute("SELECT state, count(*) FROM job WHERE queue = ? GROUP BY state", (id,)).fetchall())
            assert +counted == found
            live = "SELECT count(*) FROM note WHERE queue = ? AND expires IS NULL"
            assert db.execute(live, (id,)).fetchone()[0] == state["noted"]
        assert (
            db.execute("SELECT count(*) FROM job LEFT JOIN record ON key = record WHERE key IS NULL").fetchone()[0] == 0
        )
        assert db.execute("SELECT count(*) FROM record WHERE key NOT IN (SELECT record FROM job)").fetchone()[0] == 0
        strays = "SELECT count(*) FROM note LEFT JOIN job USING (queue, id) WHERE expires IS NULL AND job.id IS NULL"
        assert db.execute(strays).fetchone()[0] == 0
        lines = "SELECT count(*) FROM line LEFT JOIN note USING (queue, id) WHERE number NOT BETWEEN low AND high - 1"
        assert db.execute(f"{lines} OR note.id IS NULL").fetchone()[0] == 0
        holders = "SELECT count(*) FROM job WHERE state = ? AND holder NOT IN (SELECT key FROM incarnation)"
        assert db.execute(holders, (RUNNING,)).fetchone()[0] == 0


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    head = "import os, sys\nfrom spool.broker import *\nfrom spool.job import *\n"
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", head + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (0, "")
    return out.split()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://spool.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://:memory:/x",
        "sqlite:///a%00b",
        "sqlite:///spool.db?synchronous=off",
        "sqlite:///spool.db?timeout=5",
    ],
)
def test_a_url_that_names_no_file_or_an_unknown_option(url):
    with pytest.raises(errors.ConfigError, match="sqlite"):
        connect(url)


@pytest.mark.parametrize("url", ["sqlite://:memory:", "sqlite:///a%20b.db", "sqlite:////tmp/x.db?synchronous=normal"])
def test_the_url_is_shown_as_it_was_given(url):
    assert connect(url).url == url


def test_a_relative_path_means_the_directory_where_the_broker_was_made(tmp_path, monkeypatch, open_broker):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    broker = open_broker("sqlite:///the%20store.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    broker.call(Enqueue("q", jobs(1)))
    assert (tmp_path / "the store.db").exists()


def refused(broker, path, error) -> str:
    for _ in range(2):
        with pytest.raises(error, match=str(path)) as caught:
            broker.call(Enqueue("q", jobs(1)))
    return str(caught.value)


def test_an_old_sqlite(path, broker, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(errors.ConfigError, match=r"3\.35"):
        broker.call(Stats("q"))


def test_a_missing_directory(tmp_path, open_broker):
    path = tmp_path / "missing" / "spool.db"
    broker = open_broker(f"sqlite:///{path}")
    refused(broker, path, errors.ConfigError)
    path.parent.mkdir()
    broker.call(Enqueue("q", jobs(1)))


def test_a_directory_in_place_of_a_file(tmp_path, open_broker):
    refused(open_broker(f"sqlite:///{tmp_path}"), tmp_path, errors.ConfigError)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_no_permission_to_write(path, broker, monkeypatch, what):
    path.touch()
    forbidden = path if what == "file" else path.parent
    monkeypatch.setattr(os, "access", lambda asked, _mode: asked != forbidden)  # root may write anything
    assert "permission" in refused(broker, path, errors.ConfigError)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_file_system_that_is_read_only(path, broker, monkeypatch, what):
    path.touch()
    mounted = path if what == "file" else path.parent
    monkeypatch.setattr(os, "access", lambda asked, _mode: asked != mounted)
    flags = {mounted: os.ST_RDONLY}
    monkeypatch.setattr(os, "statvfs", lambda asked: types.SimpleNamespace(f_flag=flags.get(asked, 0)))
    assert "the file system is read-only" in refused(broker, path, errors.ConfigError)


@pytest.mark.parametrize("content", [b"hello", b"x" * 10_000])
def test_a_file_that_is_no_database(path, broker, content):
    path.write_bytes(content)
    refused(broker, path, errors.StoreCorrupt)
    assert path.read_bytes() == content


def test_a_database_of_somebody_else_is_left_alone(path, broker):
    with raw(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    refused(broker, path, errors.StoreCorrupt)
    assert path.read_bytes() == before


def test_a_newer_layout(path, broker):
    broker.call(Enqueue("q", jobs(1)))
    broker.close()
    with raw(path) as db:
        db.execute("PRAGMA user_version = 2")
    with contextlib.closing(SqliteBroker(broker.url)) as again:
        assert "layout 2" in refused(again, path, errors.StoreCorrupt)


def test_a_file_of_the_first_releases_gets_what_it_lacks(path, broker, q):
    broker.call(Enqueue("q", jobs(1)))
    broker.close()
    with raw(path) as db:
        db.executescript("DROP TABLE note; DROP TABLE line")
        assert "noted" in db.execute("SELECT state FROM queue").fetchone()[0]
        db.execute("UPDATE queue SET state = json_remove(state, '$.noted')")
    with contextlib.closing(SqliteBroker(broker.url)) as again:
        later = Driver(again, q.clock)
        later.beat("w")
        (id,) = later.take("w")
        assert later.note("w", later.says(id, b"x")) == []
        assert later.log(id) == (b"x",)
    audit(path)


def test_what_jobs_noted_goes_with_them(path, broker, q):
    """Each way out, with notes, and then the endings' own time."""
    q.worker("w", "a", "b", "c", "d", "e", "f")
    q.note("w", *(q.says(id, b"x" * 1000, b"y") for id in "abcdef"))
    q.settle("w", q.done("a", ttl=50), q.cancelled("b", ttl=0), q.died("c"))
    q.settle("w", q.retried("d", delay=1000), q.released("e"))
    audit(path)
    q.act(Cancel(), "d")
    q.act(Delete(), "c", "e")
    audit(path)
    q.clock.advance(100)
    q.beat("w")
    broker.close()
    audit(path)
    with raw(path) as db:
        assert db.execute("SELECT id FROM note ORDER BY id").fetchall() == [("d",), ("f",)]
        assert db.execute("SELECT count(*) FROM line").fetchone()[0] == 4


def test_a_damaged_file(path, broker):
    broker.call(Enqueue("q", [job("a", payload="x" * 100_000)]))
    broker.close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with contextlib.closing(SqliteBroker(broker.url)) as again:
        refused(again, path, errors.StoreCorrupt)


@pytest.mark.parametrize("value", ["'☃ text'", "''", "5", "1.5"])
def test_a_body_that_is_no_blob_is_damaged_like_any_other(path, broker, q, value):
    q.worker("w", job("a", fingerprint="f"), "b")
    q.settle("w", q.done("a"), q.done("b"), metrics=b"blob")
    q.enqueue("c", job("d", priority=0), "e")
    broker.call(Store("kind", "key", b"body"))
    with raw(path) as db:
        for table, where in (("ending", "id = 'a'"), ("metrics", "1"), ("document", "1")):
            db.execute(f"UPDATE {table} SET body = {value} WHERE {where}")
        db.execute(f"UPDATE record SET body = {value} WHERE key = (SELECT record FROM job WHERE id = 'd')")
        data = db.execute(f"SELECT CAST({value} AS BLOB)").fetchone()[0]
    found = {each.id: each for each in q.snapshots(State.DONE)}
    assert found["a"].ending == data == q.get("a").ending == broker.ended("q", "a").ending
    assert "cannot be decoded" in view(found["a"]).error
    assert view(found["b"]).error == ""
    assert q.enqueue(job("a", fingerprint="f")).existing == ["a"]
    assert broker.call(Watch("q")).blobs == [Blob("1", q.clock.wall, data)]
    assert broker.call(Load("kind")).documents[0].body == data
    ready = [(each.id, each.record) for each in q.snapshots(State.READY)]
    assert ready == [("d", data), ("c", record()), ("e", record())]
    assert q.claim("w").jobs == ready
    q.beat("v")
    q.retire("w", "crashed")
    assert q.claim("v").jobs == ready


@pytest.mark.parametrize("value", ["x'5b31ff'", "7", "1.5"])
def test_a_tally_that_is_no_text_is_the_trouble_of_its_job_alone(path, q, value):
    q.worker("w", "a", "b")
    q.settle("w", q.released("a"), q.released("b"))
    with raw(path) as db:
        db.execute(f"UPDATE job SET tally = {value} WHERE id = 'a'")
    errors_shown = [view(each).error for each in q.snapshots(State.READY)]
    assert "tally cannot be read" in errors_shown[0]
    assert errors_shown[1].startswith("ValueError")
    assert q.take("w") == ["a", "b"]
    q.retire("w")
    assert q.tally("a").attempts == 1


def test_text_that_is_none_is_the_trouble_of_its_job_alone(path, broker, q):
    q.beat("w")
    q.enqueue("a", "b")
    with raw(path) as db:
        db.execute("UPDATE job SET tally = CAST(x'5b312cff' AS TEXT) WHERE id = 'a'")
    claimed = broker.call(Claim(q.queue, "w", 1, (10, 0)))
    assert [id_ for id_, _ in claimed.jobs] == ["a", "b"]
    assert claimed.tallies == {"a": "[1,\ufffd"}
    assert broker.call(Get(q.queue, "a")).state is State.RUNNING


MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /srv/with\\040space rw shared:2 - nfs4 server:/export rw
31 30 0:27 / /srv/with\\040space/local rw - tmpfs tmpfs rw
32 22 0:28 / /home rw - fuse.sshfs host:/ rw
33 22 0:29 / /home rw - xfs /dev/sdb rw
34 22 0:30 / /homes rw - cifs //server/homes rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/srv/with space", "nfs4"),
        ("/srv/with space/a", "nfs4"),
        ("/srv/with space/local/a", "tmpfs"),
        ("/home/me", "xfs"),
        ("/homes/me", "cifs"),
    ],
)
def test_the_file_system_of_a_path(path, kind):
    assert file.file_system(path, MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "fuse.glusterfs", "ceph"])
def test_a_network_file_system(tmp_path, path, broker, monkeypatch, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 254:1 / / rw - ext4 /dev/root rw\n30 22 0:26 / {tmp_path.resolve()} rw - {kind} x rw\n")
    monkeypatch.setattr(file, "MOUNTS", mounts)
    assert kind in refused(broker, path, errors.ConfigError)


def test_a_disk_without_room(path, broker, q):
    q.worker("w", *(job(f"held{number}", payload="x" * 2000) for number in range(100)))
    connection = broker._thread._db
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 10}")
    with pytest.raises(errors.BrokerFull, match=str(path)):
        q.enqueue(*(job(f"new{number}", payload="x" * 10_000) for number in range(100)))
    assert q.settle("w", *(q.done(f"held{number}") for number in range(100))).accepted == 100
    assert (q.stats().ready, q.stats().running, q.totals()["done"]) == ([0] * 5, 0, 100)
    q.enqueue(job("later", payload="x" * 10_000))


async def test_a_mistake_in_a_read_is_its_own(broker, q, monkeypatch):
    q.enqueue("a")

    def fail(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setitem(thread.READS, Watch, fail)
    failed, *others = await asyncio.gather(
        *(broker.acall(verb) for verb in (Watch("q"), Get("q", "a"), Stats("q"))), return_exceptions=True
    )
    assert type(failed) is RuntimeError
    assert [type(each).__name__ for each in others] == ["Snapshot", "QueueStats"]
    monkeypatch.setattr(broker._thread, "_read", fail)
    with pytest.raises(RuntimeError):
        await broker.acall(Get("q", "a"))
    monkeypatch.undo()
    assert (await broker.acall(Get("q", "a"))).state is State.READY, "no transaction is left open"


@pytest.mark.parametrize("limit", [-(2**62), 0, 2**70])
def test_a_limit_beyond_reason_is_brought_back(broker, q, limit):
    q.beat("w")
    q.settle("w", metrics=b"blob")
    assert len(broker.call(Watch("q", limit=limit)).blobs) == 1


def test_in_a_group_only_the_verb_that_finds_no_room_fails(broker, q):
    q.enqueue("a")
    connection = broker._thread._db
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0] + 20}")

    async def main():
        with held(broker):
            large = asyncio.ensure_future(broker.acall(Enqueue("q", jobs(100, "large", payload="x" * 10_000))))
            small = [asyncio.ensure_future(broker.acall(Enqueue("q", jobs(1, prefix)))) for prefix in "bc"]
            await asyncio.sleep(0)
        with pytest.raises(errors.BrokerFull):
            await large
        await asyncio.gather(*small)

    asyncio.run(main())
    assert q.ids(State.READY) == ["a", "b00000", "c00000"]


def test_a_file_that_stays_locked(path, broker, q, monkeypatch):
    monkeypatch.setattr(thread, "PATIENCE", 0.05)
    q.enqueue("a")
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        refused(broker, path, errors.BrokerUnavailable)
        assert q.ids(State.READY) == ["a"]
        other.execute("COMMIT")
    q.enqueue("b")
    assert q.ids(State.READY) == ["a", "b"]


def test_a_lock_that_is_given_back_is_waited_for(path, broker, q):
    q.enqueue("a")
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=q.enqueue, args=("b",))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        other.execute("COMMIT")
        waiting.join(SOON)
    assert q.ids(State.READY) == ["a", "b"]


def test_a_file_that_was_deleted_is_made_anew(path, broker, q):
    q.enqueue("a")
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        name.unlink()
    broker._thread._looked_at_file = 0.0
    assert q.stats().totals == {}
    q.enqueue("b")
    assert path.exists()
    assert q.ids(State.READY) == ["b"]


def test_a_closed_broker(path, broker, q):
    q.enqueue("a")
    broker.close()
    broker.close()
    with pytest.raises(errors.BrokerUnavailable, match=str(path)):
        broker.call(Stats("q"))


def test_closing_answers_those_who_wait(path, broker, q):
    q.enqueue("a")
    caught = []

    def wait():
        with pytest.raises(errors.BrokerUnavailable) as error:
            broker.ended("q", "a")
        caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: bool(broker._thread._waiting))
    broker.close()
    waiting.join(SOON)
    assert caught


def test_a_program_may_end_without_closing(path):
    script = "print(connect(sys.argv[1]).call(Store('k', 'a', b'x')).version)"
    assert output(child(script, f"sqlite:///{path}")) == ["1"]
    assert not Path(f"{path}-wal").exists()


def test_a_broker_that_is_dropped_gives_its_thread_back(path):
    broker = SqliteBroker(f"sqlite:///{path}")
    broker.call(Stats("q"))
    thread = broker._thread._thread
    del broker
    thread.join(SOON)
    assert not thread.is_alive()


def test_a_job_without_a_record_is_dropped(path, q):
    q.beat("w")
    q.enqueue("a", "b", "c")
    with raw(path) as db:
        db.execute("DELETE FROM record WHERE key = (SELECT record FROM job WHERE id = 'b')")
    assert q.state("b") is None
    assert q.ids(State.READY) == ["a", "c"]
    assert q.take("w") == ["a", "c"]
    assert q.totals() == {"enqueued": 3, "repairs": 1}
    audit(path)


def test_bytes_that_are_no_record_are_handed_out(path, q):
    q.beat("w")
    q.enqueue("a")
    with raw(path) as db:
        db.execute("UPDATE record SET body = ?", (CORRUPT,))
    assert q.claim("w").jobs == [("a", CORRUPT)]


def test_records_that_are_too_large_together(broker, q):
    q.beat("w")
    q.enqueue(*jobs(50, payload="x" * 10_000))
    broker._thread._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 200_000)
    claimed = q.claim("w").jobs
    assert claimed == [(each.id, each.record) for each in jobs(50, payload="x" * 10_000)]


def test_the_log_is_cut_back_once_nobody_reads_its_beginning(path, broker, q):
    def log() -> int:
        return path.with_name(path.name + "-wal").stat().st_size

    q.enqueue(job("a"))
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM job").fetchone()
        q.enqueue(*jobs(12, payload="x" * 1_000_000))
        q.enqueue(job("b"))
        assert log() > 2 * file.LOG
    q.enqueue(job("c"))  # now all of it goes into the file
    q.enqueue(job("d"))  # and now it begins anew
    assert log() == file.LOG


@contextlib.contextmanager
def held(broker):
    """Hold the store's thread up, so that what is asked meanwhile makes one group."""
    broker.call(Stats("q"))
    with broker._thread._gate:
        yield


def test_what_is_asked_at_once_is_committed_at_once(broker, q):
    async def main():
        with held(broker):
            before = broker.commits
            calls = [asyncio.ensure_future(broker.acall(Enqueue("q", [job(f"j{n:03}")]))) for n in range(200)]
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        return broker.commits - before

    assert asyncio.run(main()) <= 2
    assert q.ids(State.READY, 1000) == [f"j{n:03}" for n in range(200)]


def test_a_verb_that_fails_rolls_back_only_itself(broker, q):
    q.call(Store("k", "a", b"1"))

    async def main():
        with held(broker):
            before = broker.commits
            verbs = [
                Enqueue("q", [job("a")]),
                Store("k", "a", b"2", if_version=7),
                Claim("q", "stranger", 1),
                Enqueue("q", [job("b", body=7)]),  # not a record at all: the caller's mistake
                Enqueue("other", [job("c")]),
                Store("k", "a", b"3"),
            ]
            calls = [asyncio.ensure_future(broker.acall(verb)) for verb in verbs]
            await asyncio.sleep(0)
        replies = await asyncio.gather(*calls, return_exceptions=True)
        return replies, broker.commits - before

    replies, commits = asyncio.run(main())
    assert commits <= 3
    assert [isinstance(reply, Exception) for reply in replies] == [False, True, True, False, False, False]
    assert isinstance(replies[1], errors.VersionConflict)
    assert isinstance(replies[2], errors.LeaseLost)
    assert q.call(Load("k")).documents[0].body == b"3"
    assert q.stats().totals == {"enqueued": 2}
    assert q.call(Stats("other")).ready == [0, 0, 1, 0, 0]


def test_a_mistake_of_the_caller_is_raised_and_harms_nobody(broker, q):
    with pytest.raises(TypeError):
        broker.call("no verb")
    with pytest.raises(TypeError):
        q.enqueue(NewJob("a", record(), delay="soon"))
    q.enqueue("b")
    assert q.stats().totals == {"enqueued": 1}


@pytest.mark.parametrize(("option", "level"), [("", 2), ("?synchronous=full", 2), ("?synchronous=NORMAL", 1)])
def test_only_what_must_survive_the_machine_waits_for_the_disk(path, open_broker, option, level):
    broker = open_broker(f"sqlite:///{path}{option}")
    levels = []
    for verb in (
        Enqueue("q", jobs(1)),
        Beat("q", [Heartbeat("w", tasks=("t",))]),
        Claim("q", "w", 1),
        Settle("q", "w", 1, []),
    ):
        broker.call(verb)
        levels.append(broker._thread._db.execute("PRAGMA synchronous").fetchone()[0])
    assert levels == [level, 1, 1, level]
    assert broker._thread._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_idle_worker_does_not_write(broker, q, clock):
    q.beat("w")
    before = broker.commits
    for _ in range(100):
        assert q.take("w") == []
        clock.advance(1)
    assert broker.commits == before
    clock.advance(LEASE // 4)
    q.take("w")
    assert broker.commits == before + 1


def test_time_seen_by_idle_claims_is_no_standstill(q, clock):
    q.beat("a", "b")
    for _ in range(30):
        clock.advance(LEASE // 10)
        q.beat("b")
        q.take("b")
    assert q.stats().workers == 1
    q.enqueue("x")
    assert q.take("b") == ["x"]


def test_a_claim_number_is_used_up_even_by_an_idle_claim(q, broker):
    q.beat("w")
    assert q.take("w") == []
    q.enqueue("a")
    assert broker.call(q.last_claim("w")).jobs == []
    assert q.take("w") == ["a"]


def test_now_never_runs_backwards(open_broker, clock):
    broker = open_broker()
    now = broker.call(Enqueue("q", [job("a"), job("b", delay=10_000)])).now
    clock.wall -= 3_600_000
    assert broker.call(Stats("q")).now == now
    broker.close()
    broker = open_broker()
    assert broker.call(Stats("q")).now == now
    clock.wall += 3_600_000 + 10_000
    assert broker.call(Stats("q")).now == now + 10_000


def test_a_wall_clock_set_back_does_not_stop_time(broker, q, clock):
    q.beat("w")
    now = q.stats().now
    clock.wall -= 3_600_000
    q.enqueue(job("a", delay=1000))
    for _ in range(2000):
        clock.advance(1)
        broker.call(Store("k", "a", b"x"))
    assert q.stats().now == now + 1000
    assert q.take("w") == ["a"]
    for _ in range(3):
        clock.advance(3_600_000)
        broker.call(Store("k", "a", b"x"))
    assert q.stats().now == clock.wall


def test_what_comes_late_and_what_comes_early_after_a_clock_was_ahead(q, clock):
    """As docs/concepts/reliability.md says."""
    minute, ready = 60_000, {}
    q.enqueue("x")
    clock.wall -= 60 * minute
    at = clock.wall + 90 * minute
    q.enqueue(job("in-10", delay=10 * minute), job("in-120", delay=120 * minute), job("at-90", due=at))
    for passed in range(1, 200):
        clock.advance(minute)
        q.beat("w")
        ready |= dict.fromkeys(q.take("w"), passed)
    assert ready == {"x": 1, "in-10": 20, "at-90": 60, "in-120": 180}


def test_a_wall_clock_set_wrong_takes_no_lease_away(q, clock):
    q.worker("a", "x")
    q.beat("b")
    clock.wall += 86_400_000
    assert q.take("b") == []
    assert q.stats().workers == 2
    assert q.settle("a", q.done("x")).accepted == 1


@pytest.mark.parametrize("how", ["the clock begins anew", "another boot id"])
def test_a_reboot_is_an_amnesty(path, open_broker, clock, monkeypatch, how):
    first = Driver(open_broker(), clock)
    first.worker("a", "x")
    first.broker.close()
    clock.wall += 60_000
    if how == "another boot id":
        clock.boot += 60_000
        monkeypatch.setattr(thread, "read_boot_id", lambda: "another")
    else:
        clock.boot = 5_000
    q = Driver(open_broker(), clock)
    q.beat("b")
    q.promote("b")
    assert q.get("x").incarnation == "a"
    q.march(LEASE - 1, "b")
    q.promote("b")
    assert q.get("x").incarnation == "a"
    q.march(1, "b")
    assert q.take("b") == ["x"]
    assert q.tally("x").losses == 1


def test_many_waiters_cost_one_query(path, open_broker):
    waiting, working = open_broker(), Driver(open_broker(), Clock())
    ids = working.worker("w", *jobs(300))
    statements = []

    async def main():
        waits = [asyncio.ensure_future(waiting.aended("q", id)) for id in ids]
        await waiting.acall(Stats("q"))
        waiting._thread._db.set_trace_callback(statements.append)
        await asyncio.to_thread(working.settle, "w", *(working.done(id) for id in ids[:10]))
        done, _ = await asyncio.wait(waits, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
        waiting._thread._db.set_trace_callback(None)
        for each in waits:
            each.cancel()
        return done

    assert len(asyncio.run(main())) == 10
    looks = [each for each in statements if "data_version" not in each]
    assert len(looks) < 60


@pytest.mark.parametrize("how", ["the same broker", "another"])
def test_an_ending_is_noticed(open_broker, clock, how):
    broker = open_broker()
    q = Driver(broker if how == "the same broker" else open_broker(), clock)
    q.worker("w", "a")

    async def main():
        wait = asyncio.ensure_future(broker.aended("q", "a"))
        await broker.acall(Stats("q"))
        await asyncio.to_thread(q.settle, "w", q.done("a"))
        return await asyncio.wait_for(wait, SOON)

    assert asyncio.run(main()).state is State.DONE


def test_an_ending_is_noticed_across_processes(path, open_broker):
    broker = open_broker(clock=thread.read_clock)
    broker.call(Enqueue("q", [job("a")]))
    cancel = "connect(sys.argv[1]).call(Act('q', Cancel(), ['a']))"
    process = child(cancel, broker.url)
    assert broker.ended("q", "a", 30).state is State.CANCELLED
    output(process)


def test_orders_are_noticed_across_brokers(open_broker, clock):
    broker, other = open_broker(), Driver(open_broker(), clock)
    other.worker("w", "a", "b")
    broker.await_orders(["q"], 0)
    for id in ("a", "b"):
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.await_orders, ["q"], 30)
            until(lambda: broker._thread._waiting)
            other.act(Cancel(), id)
            waiting.result(SOON)


def test_orders_are_looked_for_20_times_a_second_at_most(open_broker, clock):
    broker, other = open_broker(), Driver(open_broker(), clock)
    other.worker("w", "a")
    broker.await_orders(["q"], 0)
    statements = []
    broker._thread._db.set_trace_callback(statements.append)
    with ThreadPoolExecutor(1) as pool:
        begin = time.monotonic()
        waiting = pool.submit(broker.await_orders, ["q"], 0.5)
        while not waiting.done():  # the file changes all the time
            other.enqueue("x")
        looks = (time.monotonic() - begin) / 0.05
    broker._thread._db.set_trace_callback(None)
    assert 3 <= sum("data_version" in each for each in statements) <= looks + 3
    assert sum("FROM queue" in each for each in statements) <= looks + 3


def test_who_waits_for_work_is_not_held_up_by_who_waits_for_orders(open_broker, clock):
    broker, other = open_broker(), Driver(open_broker(), clock)
    other.worker("w", "a")
    other.settle("w", other.done("a"))

    async def main():
        listening = asyncio.create_task(asyncio.to_thread(broker.await_orders, ["q"], 0.3))
        statements = []
        wait = asyncio.ensure_future(broker.await_work(["q"], 0.1))
        await broker.acall(Stats("q"))
        broker._thread._db.set_trace_callback(statements.append)
        await wait
        broker._thread._db.set_trace_callback(None)
        await listening
        return sum("data_version" in each for each in statements)

    assert asyncio.run(main()) > 5


def test_a_file_that_cannot_be_read_ends_the_wait_for_orders(path, broker, q):
    q.enqueue("a")
    broker.await_orders(["q"], 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broker.await_orders, ["q"], 30)
        with raw(path) as db:
            db.execute("PRAGMA user_version = 99")
            db.execute("DROP TABLE queue")
        with pytest.raises(errors.BrokerError):
            waiting.result(SOON)


def test_a_forked_child_waits_for_orders_of_its_own(broker, q):
    q.worker("w", "a")
    broker.await_orders(["q"], 0)
    child = os.fork()
    if child == 0:
        broker.await_orders(["q"], 0)
        q.act(Cancel(), "a")
        begin = time.monotonic()
        broker.await_orders(["q"], 30)
        os._exit(0 if time.monotonic() - begin < SOON else 1)
    assert os.waitpid(child, 0)[1] == 0
    begin = time.monotonic()
    broker.await_orders(["q"], 30)
    assert time.monotonic() - begin < SOON


def test_work_is_noticed_across_brokers(open_broker, clock):
    broker, other = open_broker(), Driver(open_broker(), clock)
    q = Driver(broker, clock)
    q.beat("w")

    async def main():
        assert q.take("w") == []
        wait = asyncio.ensure_future(broker.await_work(["nothing", "q"], 30))
        await broker.acall(Stats("q"))
        assert not wait.done()
        await asyncio.to_thread(other.enqueue, "a")
        await asyncio.wait_for(wait, SOON)

    asyncio.run(main())


def test_what_a_claim_left_behind_is_no_news(broker, q):
    q.beat("w")
    q.enqueue(job("p", lane=1))

    async def main():
        assert q.take("w", 5, 0) == []
        begin = time.monotonic()
        await broker.await_work(["q"], 0.1)
        assert time.monotonic() - begin >= 0.1
        wait = asyncio.ensure_future(broker.await_work(["q"], 30))
        await asyncio.to_thread(q.enqueue, "a")
        await asyncio.wait_for(wait, SOON)

    asyncio.run(main())


def test_what_a_claim_left_wakes_others(broker, q):
    q.beat("a", "b")
    q.enqueue(*jobs(4))

    async def main():
        assert len(q.take("b", 1)) == 1
        other = asyncio.ensure_future(broker.await_work(["q"], 30))
        await broker.acall(Stats("q"))
        assert len(q.take("a", 1)) == 1
        await asyncio.wait_for(other, SOON)
        begin = time.monotonic()
        await broker.await_work(["q"], 0.1)
        assert time.monotonic() - begin >= 0.1

    asyncio.run(main())


def test_work_that_falls_due_is_noticed(broker, q, clock):
    q.beat("w")
    q.enqueue(job("a", delay=5000))

    async def main():
        q.take("w")
        wait = asyncio.ensure_future(broker.await_work(["q"], 30))
        await broker.acall(Stats("q"))
        assert not wait.done()
        clock.advance(5000)
        await asyncio.wait_for(wait, SOON)

    asyncio.run(main())


def test_waits_that_are_cancelled_are_forgotten(broker, q):
    q.enqueue("a")

    async def main():
        waits = [asyncio.ensure_future(broker.aended("q", "a")) for _ in range(5)]
        waits.append(asyncio.ensure_future(broker.await_work(["elsewhere"], 60)))
        await broker.acall(Stats("q"))
        for each in waits:
            each.cancel()
        await asyncio.wait(waits)

    asyncio.run(main())
    until(lambda: not broker._thread._waiting)


def test_endings_go_when_they_expire(path, q, clock):
    q.worker("w", *jobs(20))
    q.settle("w", *(q.done(id, ttl=1000) for id in q.ids(State.RUNNING)))
    assert len(q.ids(State.DONE)) == 20
    clock.advance(1000)
    assert q.ids(State.DONE) == []
    q.beat("w")
    with raw(path) as db:
        assert db.execute("SELECT count(*) FROM ending").fetchone() == (0,)


def test_only_recent_endings_are_listed(q, monkeypatch):
    monkeypatch.setattr(sqlite_jobs, "RECENT", 10)
    ids = q.worker("w", *jobs(30))
    for id in ids:
        q.settle("w", q.done(id))
    assert q.ids(State.DONE) == ids[:19:-1]
    assert q.state(ids[0]) is State.DONE


def test_an_ended_job_of_another_kind_may_be_far_down_the_list(q):
    for number in range(3):
        prefix = f"d{number}"
        ids = q.worker("w", *jobs(900, prefix))
        q.settle("w", *(q.cancelled(id) if id == "d000000" else q.done(id) for id in ids))
    assert q.ids(State.CANCELLED) == ["d000000"]


def test_metrics_are_capped(path, q, monkeypatch):
    monkeypatch.setattr(leases, "RECENT", 10)
    q.beat("w")
    for number in range(30):
        q.settle("w", metrics=b"%d" % number)
    watched = q.call(Watch("q"))
    assert [blob.body for blob in watched.blobs] == [b"%d" % number for number in range(20, 30)]
    assert watched.missed == 20


def test_dead_jobs_are_bounded_by_count(path, q, monkeypatch):
    monkeypatch.setattr(leases, "MAX_DEAD", 10)
    ids = q.worker("w", *jobs(30))
    q.settle("w", *(q.died(id) for id in ids))
    assert (q.stats().dead, q.totals()["pruned"]) == (10, 20)
    assert q.ids(State.DEAD) == ids[:19:-1]
    audit(path)


def test_dead_jobs_are_bounded_by_age(path, q, clock):
    q.worker("w", "a", "b")
    q.settle("w", q.died("a"))
    clock.advance(86_400_000 * 29)
    q.beat("w")
    q.settle("w", q.died("b"))
    clock.advance(86_400_000 * 2)
    q.beat("w")
    assert q.ids(State.DEAD) == ["b"]
    assert q.totals()["pruned"] == 1
    audit(path)


def test_tombstones_go_when_they_are_old(path, q, clock):
    for number in range(20):
        q.retire(f"gone{number}")
    clock.advance(3_600_000)
    q.beat("w")
    assert q.beat("gone3")[0].lost
    clock.advance(86_400_000)
    q.beat("w")
    with raw(path) as db:
        assert db.execute("SELECT name FROM incarnation").fetchall() == [("w",)]


def test_expired_documents_go(path, q, clock):
    q.call(Store("k", "a", b"x", ttl=1000))
    clock.advance(1000)
    q.call(Store("k", "b", b"x"))
    with raw(path) as db:
        assert db.execute("SELECT key FROM document").fetchall() == [("b",)]


def test_each_part_of_a_job_goes_with_it(path, q):
    ids = q.worker("w", *jobs(6))
    q.act(Cancel(), ids[0])
    q.settle("w", q.done(ids[0]), q.cancelled(ids[1]), q.died(ids[2]), q.retried(ids[3]), q.released(ids[4]))
    q.retire("w", "crashed")
    q.enqueue(job("late", delay=1000))
    audit(path)
    q.act(Cancel(), ids[3], ids[4], ids[5], "late")
    audit(path)
    with raw(path) as db:
        assert db.execute("SELECT id FROM job").fetchall() == [(ids[2],)]


WORK = """
name, total = sys.argv[2], int(sys.argv[3])
broker = connect(sys.argv[1])
broker.call(Beat("q", [Heartbeat(name, 60_000, ("t",))]))
seq = 0
while broker.call(Stats("q")).totals.get("done", 0) < total:
    seq += 1
    claimed = broker.call(Claim("q", name, seq, (7, 0)))
    ended = [Done(id, seq, encode_ending(Ending(1, "done", "t", "", 1, 2, 3, 1))) for id, _ in claimed.jobs]
    if ended:
        assert broker.call(Settle("q", name, seq, ended)).accepted == len(ended)
    for id, _ in claimed.jobs:
        print(id)
"""

PRODUCE = """
import msgspec
broker = connect(sys.argv[1])
record = encode_record(Record(1, "t", 2, 0, 3, "", 0, msgspec.Raw(msgspec.msgpack.encode([["x" * 500], {}]))))
sent = 0
while sent < int(sys.argv[3]):
    batch = 1 + sent % 5
    assert not broker.call(Enqueue("q", [NewJob(f"{sys.argv[2]}-{sent + n}", record) for n in range(batch)])).existing
    sent += batch
    for n in range(batch):
        print(f"{sys.argv[2]}-{sent - batch + n}", flush=True)
"""


def test_processes_on_one_file_lose_and_double_nothing(path):
    url = f"sqlite:///{path}"
    producers = [child(PRODUCE, url, name, 300) for name in "ab"]
    workers = [child(WORK, url, name, 600) for name in "vw"]
    sent = [id for each in producers for id in output(each)]
    done = [id for each in workers for id in output(each)]
    assert len(done) == len(set(done))
    assert set(sent) == set(done)
    with contextlib.closing(SqliteBroker(url)) as broker:
        stats = broker.call(Stats("q"))
    assert (stats.running, stats.totals) == (0, {"enqueued": len(sent), "done": len(sent)})
    audit(path)


def test_who_opens_a_new_file_at_once_gets_the_same_store(path):
    script = "connect(sys.argv[1]).call(Enqueue('q', [NewJob(sys.argv[2], b'x')]))"
    for each in [child(script, f"sqlite:///{path}", n) for n in range(5)]:
        output(each)
    with contextlib.closing(SqliteBroker(f"sqlite:///{path}")) as broker:
        assert broker.call(Stats("q")).totals == {"enqueued": 5}


def test_a_producer_killed_in_between_loses_nothing_it_was_told(path):
    url, acknowledged = f"sqlite:///{path}", []
    for round_, lines in enumerate((1, 40, 200)):
        process = child(PRODUCE, url, f"r{round_}", 100_000)
        acknowledged += [process.stdout.readline().strip() for _ in range(lines)]
        process.kill()
        rest, _ = process.communicate()
        acknowledged += rest.split("\n")[:-1]  # what follows the last line break may be half an id
        audit(path)
    with contextlib.closing(SqliteBroker(url)) as broker:
        missing = [id for id in acknowledged if broker.call(Get("q", id)) is None]
        assert missing == []
        broker.call(Enqueue("q", [job("after")]))


def test_killed_in_the_middle_of_a_transaction(path, broker):
    broker.call(Enqueue("q", [job("a")]))
    script = (
        "import signal\n"
        "from spool.broker.sqlite.store import Transaction\n"
        "Transaction.flush = lambda tx: os.kill(os.getpid(), signal.SIGKILL)\n"
        "connect(sys.argv[1]).call(Enqueue('q', [NewJob(f'j{n}', b'x' * 100_000) for n in range(100)]))\n"
    )
    process = child(script, broker.url)
    assert process.wait(30) == -signal.SIGKILL
    process.communicate()
    audit(path)
    broker.call(Enqueue("q", [job("b")]))
    assert Driver(broker, Clock()).ids(State.READY) == ["a", "b"]


@contextlib.contextmanager
def forked(work):
    """Fork; the child does the work and must succeed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    yield
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.005)
    if ended == (0, 0):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert ended == (pid, 0)


fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@fork
def test_both_sides_of_a_fork_go_on(path, q):
    q.enqueue("a")
    with forked(lambda: q.enqueue("child")):
        q.enqueue("parent")
    assert sorted(q.ids(State.READY)) == ["a", "child", "parent"]


@fork
def test_a_fork_amid_the_calls_of_other_threads(path, q):
    stop = threading.Event()
    counts = Counter()

    def produce(name):
        while not stop.is_set():
            q.enqueue(f"{name}{counts[name]}")
            counts[name] += 1

    threads = [threading.Thread(target=produce, args=(name,)) for name in "xyz"]
    for each in threads:
        each.start()
    try:
        for number in range(10):
            with forked(lambda number=number: q.enqueue(f"child{number}")):
                pass
    finally:
        stop.set()
        for each in threads:
            each.join()
    assert q.totals() == {"enqueued": sum(counts.values()) + 10}
    audit(path)


@fork
def test_a_child_keeps_its_locks_when_the_parent_closes(path, broker, q):
    """SQLite removes the log when the last connection goes; a child whose locks are not its own would lose it."""
    q.enqueue("a")
    closed, close = os.pipe()

    def work():
        q.enqueue("b")
        os.close(close)
        os.read(closed, 1)
        q.enqueue("c")
        assert q.ids(State.READY) == ["a", "b", "c"]

    with forked(work):
        until(lambda: len(q.ids(State.READY)) == 2)
        broker.close()
        os.close(close)
    os.close(closed)
    audit(path)


@fork
def test_a_store_in_memory_stays_with_its_process(open_broker):
    broker = open_broker("sqlite://:memory:")
    broker.call(Enqueue("q", jobs(1)))

    def work():
        with pytest.raises(errors.ConfigError, match="private"):
            broker.call(Stats("q"))

    with forked(work):
        pass
    assert broker.call(Stats("q")).ready == [0, 0, 1, 0, 0]


def test_a_store_in_memory_is_private_to_its_broker(open_broker):
    one, two = open_broker("sqlite://:memory:"), open_broker("sqlite://:memory:")
    one.call(Enqueue("q", jobs(1)))
    assert two.call(Stats("q")).totals == {}


def test_every_statement_goes_by_an_index(path, q):
    """However many jobs, tombstones and endings there are, no statement reads past those which it is about."""
    q.enqueue("a")
    with raw(path) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'clock'")
        ]
        whole = re.compile(
            rf"SCAN ({'|'.join(tables)})\b|SEARCH (job|incarnation) USING .*(PRIMARY KEY|autoindex\S*) \(queue=\?\)"
        )
        for name, sql in sqlite_store._STATEMENTS.items():
            plan = [step[3] for step in db.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))]
            assert not any(map(whole.match, plan)), (name, plan)
