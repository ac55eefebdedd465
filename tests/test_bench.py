import json
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from array import array
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from spool import Spool
from spool.bench import QUICK, BenchResult, Plan, run
from spool.bench.account import Books, Claims, Percentiles, Settles, account, percentiles
from spool.bench.load import Load, Noted, Notes, Reader, Run, WatchedBroker, prepare
from spool.bench.machine import cpu_seconds, machine, memory_of, versions
from spool.bench.report import TARGETS, error_rate, summary, targets
from spool.broker import Claim, Claimed, Died, Done, Settle, Settled, Stats
from spool.cli import main
from spool.errors import BrokerUnavailable, ConfigError
from spool.job import State
from spool.nursery import load_app

DOCUMENT = Path(__file__).parent.parent / "docs" / "reference" / "bench-result.md"
MS = 1_000_000


# Percentiles


def test_percentiles_by_nearest_rank():
    found = percentiles(range(MS, 101 * MS, MS))
    assert found == Percentiles(100, 50.0, 95.0, 99.0, 100.0)
    assert percentiles([7 * MS]) == Percentiles(1, 7.0, 7.0, 7.0, 7.0)
    assert percentiles([]) == Percentiles(0)
    assert percentiles([2 * MS, MS]).p50 == 1.0


@given(st.lists(st.integers(0, 10**12), min_size=1), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(values, q):
    found = getattr(percentiles(values), f"p{q}")
    rounded = sorted(round(value / 1e6, 4) for value in values)
    assert found in rounded
    assert sum(value <= found for value in rounded) * 100 >= q * len(values)
    assert sum(value < found for value in rounded) * 100 < q * len(values)


# The books


def books(
    count: int = 3,
    starts: list[tuple[int, int]] | None = None,
    notes: list[Claims | Settles] | None = None,
    found: dict[str, State] | None = None,
) -> Books:
    started = [(number, 10 * MS + number) for number in range(count)] if starts is None else starts
    flat = array("q", [value for pair in started for value in pair])
    ended = [Settles(20 * MS, [f"j{number}" for number in range(count)])] if notes is None else notes
    return Books([f"j{n}" for n in range(count)], [0] * count, [0] * count, [flat], ended, found or {}, 3)


def test_all_done():
    closed = account(
        books(
            notes=[Claims(5, 6), Claims(3, 4), Claims(1, 2), Settles(20 * MS, ["j0", "j1"]), Settles(30 * MS, ["j2"])]
        )
    )
    assert (closed.jobs, closed.done, closed.failed, closed.lost, closed.unfinished) == (3, 3, 0, 0, 0)
    assert (closed.duplicated, closed.extra_starts, closed.refused) == (0, 0, 0)
    assert (closed.first_claim, closed.last_settle) == (3, 30 * MS)
    assert closed.start == Percentiles(3, 10.0, 10.0, 10.0, 10.0)
    assert closed.completion == Percentiles(3, 20.0, 30.0, 30.0, 30.0)


def test_a_job_that_nobody_knows_is_lost():
    closed = account(books(notes=[Settles(1, ["j0", "j2"])]))
    assert (closed.done, closed.lost) == (2, 1)


def test_a_job_that_ran_but_whose_outcome_never_came_is_lost_all_the_same():
    assert account(books(notes=[])).lost == 3


def test_what_the_store_says_counts_where_no_worker_noted_the_end():
    found = {"j0": State.DONE, "j1": State.READY, "j2": State.DEAD}
    closed = account(books(notes=[], found=found))
    assert (closed.done, closed.unfinished, closed.dead, closed.failed, closed.lost) == (1, 1, 1, 1, 0)


def test_a_job_started_twice_is_duplicated_in_one_process_or_two():
    twice = books(starts=[(0, 10), (1, 10), (2, 10), (1, 20), (1, 30)])
    closed = account(twice)
    assert (closed.duplicated, closed.extra_starts) == (1, 2)
    other = array("q", [0, 5])
    closed = account(msgspec.structs.replace(twice, starts=[*twice.starts, other]))
    assert (closed.duplicated, closed.extra_starts) == (2, 3)
    assert closed.start.count == 3


def test_latency_counts_to_the_first_start():
    closed = account(books(1, starts=[(0, 9 * MS), (0, 4 * MS)]))
    assert closed.start.max == 4.0


def test_an_open_loop_counts_from_when_the_call_was_due():
    late = msgspec.structs.replace(books(1, starts=[(0, 9 * MS)]), due=[2 * MS], called=[5 * MS])
    closed = account(late)
    assert (closed.behind.max, closed.start.max, closed.start_after_call.max) == (3.0, 7.0, 4.0)
    assert closed.completion.max == 18.0


def test_outcomes_other_than_done():
    notes: list[Claims | Settles] = [
        Settles(1, [], [("j0", "Died"), ("j1", "Cancelled"), ("j2", "Retried")], refused=2)
    ]
    closed = account(books(notes=notes))
    assert (closed.done, closed.failed, closed.dead, closed.lost, closed.refused) == (0, 2, 1, 1, 2)


def test_a_refused_settle_is_not_the_end():
    closed = account(books(notes=[Settles(5, ["j0", "j1", "j2"]), Settles(9, [], refused=1)]))
    assert (closed.last_settle, closed.refused) == (5, 1)


def test_jobs_beyond_the_acknowledged_ones_and_warm_up_count_nowhere():
    closed = account(books(2, starts=[(0, 1), (1, 1), (2, 1), (-1, 1)], notes=[Settles(1, ["j0", "j1", "j2"])]))
    assert (closed.jobs, closed.done, closed.start.count) == (2, 2, 2)


@given(st.data())
def test_the_books_balance(data):
    """Whatever happened, each job is in exactly one column."""
    count = data.draw(st.integers(0, 20))
    ids = [f"j{number}" for number in range(count)]
    some = st.lists(st.sampled_from(ids), max_size=20) if ids else st.just([])
    notes: list[Claims | Settles] = [
        Settles(1, data.draw(some), [(id, "Died") for id in data.draw(some)]),
        Settles(2, data.draw(some), [(id, "Retried") for id in data.draw(some)]),
    ]
    found = {id: data.draw(st.sampled_from(State)) for id in data.draw(some)}
    starts = [(data.draw(st.integers(0, 25)), 1) for _ in range(data.draw(st.integers(0, 30)))]
    closed = account(books(count, starts, notes, found))
    assert closed.done + closed.failed + closed.lost + closed.unfinished == closed.jobs == count
    assert closed.extra_starts >= closed.duplicated


# What workers note


def settled(*ids: str, refused: list[str] | None = None) -> tuple[Settle, Settled]:
    verb = Settle("bench", "i", 1, [Done(id, 1, b"") for id in ids])
    return verb, Settled(0, len(ids) - len(refused or []), refused or [])


class Scripted:
    """A broker that gives the replies it was told to."""

    url = "scripted://"

    def __init__(self, *replies: object) -> None:
        self.replies = list(replies)

    async def acall(self, _: object) -> object:
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


async def test_the_first_claim_with_jobs_and_accepted_outcomes_are_noted():
    notes = Notes()
    verb, reply = settled("a", "b", refused=["b"])
    died = Settle("bench", "i", 2, [Died("c", 1, ""), Done("d", 1, b"")])
    claim = Claim("bench", "i", 1)
    jobs = Claimed(0, [("a", b"")])
    watched = WatchedBroker(
        Scripted(Claimed(0, []), BrokerUnavailable("gone"), jobs, jobs, reply, Settled(0, 2)), notes
    )
    await watched.acall(claim)
    with pytest.raises(BrokerUnavailable):
        await watched.acall(claim)
    assert notes.others == []
    for each in (claim, claim, verb, died):
        await watched.acall(each)
    first, second, third = notes.others
    assert isinstance(first, Claims)
    assert (second.done, second.other, second.refused) == (["a"], [], 1)
    assert (third.done, third.other) == (["d"], [("c", "Died")])
    assert first.at < second.at < third.at


def test_notes_survive_their_files(tmp_path):
    notes = Notes()
    for turn in range(3):
        notes.starts.extend((turn, turn + 100))
        notes.others += [Claims(turn, turn), Settles(turn, ["a"], [("b", "Died")], 1)]
        notes.flush(tmp_path)
    (starts,) = Reader(tmp_path).starts()
    assert starts.tolist() == [0, 100, 1, 101, 2, 102]
    (noted,) = Reader(tmp_path).notes().values()
    assert noted[-1] == Settles(2, ["a"], [("b", "Died")], 1)
    assert len(noted) == 6
    assert not notes.starts
    assert not notes.others


def test_each_note_is_read_once(tmp_path):
    notes, reader = Notes(), Reader(tmp_path)
    assert reader.read() == Noted([], {})
    for turn in range(2):
        notes.starts.extend((turn, 7))
        notes.named.append((f"job {turn}", 8))
        notes.others.append(Claims(turn, turn))
        notes.flush(tmp_path)
        found = reader.read([f"job {turn}"])
        assert [starts.tolist() for starts in found.starts] == [[turn, 7], [0, 8]]
        assert found.notes == {os.getpid(): [Claims(turn, turn)]}


def test_whose_end_is_read_has_its_start_read_as_well(tmp_path, monkeypatch):
    notes, reader = Notes(), Reader(tmp_path)
    notes.flush(tmp_path)
    look, seen = Reader._new, []

    def between(self, path, whole):
        found = look(self, path, whole)
        if not seen:  # the worker writes while files are read, after the first of them
            seen.append(path)
            notes.starts.extend((0, 7))
            notes.others.append(Settles(8, ["a"]))
            notes.flush(tmp_path)
        return found

    monkeypatch.setattr(Reader, "_new", between)
    found: list[Noted] = []
    while not any(each.notes[os.getpid()] for each in found):
        found.append(reader.read())
    assert [start for each in found for starts in each.starts for start in starts] == [0, 7]


def test_a_killed_process_leaves_half_a_note(tmp_path):
    notes = Notes()
    notes.starts.extend((1, 2))
    notes.others.append(Claims(7, 8))
    notes.flush(tmp_path)
    for name in (f"{os.getpid()}.starts", f"{os.getpid()}.notes"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"type":')
    assert Reader(tmp_path).starts()[0].tolist() == [1, 2]
    assert Reader(tmp_path).notes() == {os.getpid(): [Claims(7, 8)]}


def test_the_target_names_its_directory(tmp_path):
    directory = tmp_path / "a b:c'é"
    directory.mkdir()
    app = load_app(prepare(directory, Run("sqlite://:memory:", Load())))
    assert isinstance(app, Spool)
    assert list(app.tasks) == ["bench.noop"]
    assert app is load_app(prepare(directory, Run("sqlite://:memory:", Load())))


# The machine


def test_memory_and_cpu_of_this_process():
    mine = memory_of([os.getpid()])
    assert mine.processes == 1
    assert 5 < mine.pss <= mine.rss <= mine.rss_peak < 2000
    both = memory_of([os.getpid(), os.getpid()])
    assert both.rss == pytest.approx(2 * mine.rss, rel=0.1)
    assert cpu_seconds([os.getpid()]) > 0
    assert memory_of([2**22 + 1]).rss is None
    assert machine().cores >= 1
    assert {"python", "msgspec"} <= set(versions())


# Plans


@pytest.mark.parametrize(
    "wrong",
    [
        {"jobs": 0},
        {"workers": 0},
        {"concurrency": 0},
        {"payload": -1},
        {"rate": -1.0},
        {"rate": float("inf")},
        {"work_ms": float("nan")},
        {"max_seconds": 0.0},
        {"priority": "urgent"},
        {"rate": 1.0, "prefill": True},
        {"rate": 1.0, "producers": 1},
        {"failing": 1.1},
        {"warmup": -1},
        {"warmup": 1, "prefill": True},
    ],
)
def test_plans_that_make_no_sense(wrong):
    with pytest.raises(ConfigError):
        Plan(**wrong)


# Runs


@pytest.fixture(params=["sqlite", "redis"])
def url(request) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("redis_url")


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def keys(url: str) -> list[bytes]:
    with redis.Redis.from_url(url) as client:
        return list(client.scan_iter())


def assert_sound(document: BenchResult, jobs: int) -> None:
    result = document.result
    assert result.complete
    assert (result.jobs, result.done) == (jobs, jobs)
    assert (result.failed, result.lost, result.unfinished, result.duplicated, result.refused) == (0, 0, 0, 0, 0)
    assert (result.store["enqueued"], result.store["done"]) == (jobs, jobs)
    for latency in (result.latency_ms.start, result.latency_ms.done):
        assert latency.count == jobs
        assert 0 < latency.p50 <= latency.p95 <= latency.p99 <= latency.max < 60_000
    assert result.latency_ms.start.p50 < result.latency_ms.done.p50
    assert 0 < result.drain_seconds <= result.seconds
    assert result.enqueue_seconds > 0
    assert result.per_s == pytest.approx(jobs / result.seconds, rel=0.01)
    assert result.drain_per_s == pytest.approx(jobs / result.drain_seconds, rel=0.01)
    assert result.memory_mb.processes == document.config.workers
    assert 5 < result.memory_mb.pss <= result.memory_mb.rss <= result.memory_mb.rss_peak


@pytest.mark.parametrize(
    "plan",
    [
        Plan(jobs=300, workers=2),
        Plan(jobs=300, workers=2, prefill=True),
        Plan(jobs=200, workers=1, producers=20),
        Plan(jobs=100, workers=1, rate=1000),
        Plan(jobs=20, workers=1, kind="cpu", work_ms=1, priority="high"),
        Plan(jobs=20, workers=1, kind="io", work_ms=5, concurrency=5),
        Plan(jobs=40, workers=1, kind="mixed", work_ms=5),
        Plan(jobs=100, workers=2, warmup=50),
    ],
    ids=["bulk", "prefill", "producers", "rate", "cpu", "io", "mixed", "warmup"],
)
def test_a_run_accounts_for_every_job_and_leaves_nothing(plan, url, temporary):
    document = run(plan, url)
    assert_sound(document, plan.jobs)
    assert list(temporary.iterdir()) == []
    if url:
        assert keys(url) == []
    assert document.config == plan
    assert msgspec.json.decode(msgspec.json.encode(document), type=BenchResult) == document


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_error_rate_is_the_share_of_jobs_that_fail(share, url, temporary):
    result = run(Plan(jobs=400, workers=1, kind="failing", failing=share, producers=20, warmup=30), url).result
    assert result.complete
    assert result.failed == result.dead == pytest.approx(share * 400, abs=1)
    assert error_rate(result) == pytest.approx(share, abs=0.0026)
    assert result.store["dead"] == result.dead
    assert result.store["enqueued"] == 400


def test_a_worker_killed_in_mid_run_is_accounted_for(url, temporary):
    """What it had done counts once, what it had begun runs elsewhere and is said to have run twice."""
    killed: list[int] = []

    def strike(stage, _ended):
        for file in [] if killed or stage != "draining" else temporary.glob("spool-bench-*/*.starts"):
            if file.stat().st_size > 5 * 16:  # the second round has begun, and is written down
                killed.append(int(file.stem))
                os.kill(killed[0], signal.SIGKILL)
                return

    result = run(Plan(jobs=40, workers=2, kind="io", work_ms=700, concurrency=5), url, strike).result
    assert len(killed) == 1
    assert result.complete
    assert (result.jobs, result.done, result.failed, result.lost, result.unfinished) == (40, 40, 0, 0, 0)
    assert result.store["done"] == 40
    assert 1 <= result.duplicated <= 5
    assert error_rate(result) == result.duplicated / 40


def test_jobs_of_others_in_the_same_redis_count_nowhere(redis_url):
    app = Spool(redis_url)

    @app.task(queue="bench", name="bench.noop")
    async def noop(data: str, number: int) -> None: ...

    app.enqueue_many(noop.call("", number) for number in range(2000))
    assert_sound(run(Plan(jobs=100, workers=1), redis_url), 100)
    assert app.broker.call(Stats("bench")).totals["enqueued"] == 2000
    app.close()


def test_a_handler_that_takes_a_while_is_seen_in_the_latency(url, temporary):
    latency = run(Plan(jobs=40, workers=1, kind="io", work_ms=10, producers=4), url).result.latency_ms
    assert latency.done.p50 >= 10
    assert latency.done.p50 - latency.start.p50 >= 9.9


def test_the_raw_log_gives_the_same_figures(url, temporary, tmp_path):
    with (tmp_path / "raw").open("w+b") as raw:
        result = run(Plan(jobs=300, workers=2, rate=2000, kind="failing", failing=0.1), url, raw=raw).result
        raw.seek(0)
        log = [json.loads(line) for line in raw]
    assert [each["number"] for each in log] == list(range(300))
    ended = [each for each in log if each["outcome"] == "done"]
    assert len(ended) == result.done == 270
    assert {each["outcome"] for each in log} == {"done", "dead"}
    for measured, until, since in (
        (result.latency_ms.start, "started", "due"),
        (result.latency_ms.start_after_call, "started", "called"),
        (result.latency_ms.done, "ended", "due"),
    ):
        waits = sorted((each[until] - each[since]) / 1e6 for each in log if each.get(until))
        assert measured.count == len(waits)
        for percent in (50, 95, 99, 100):
            # The value that percent of the waits do not exceed, counted and not interpolated.
            wanted = next(wait for wait in waits if 100 * sum(w <= wait for w in waits) >= percent * len(waits))
            got = measured.max if percent == 100 else getattr(measured, f"p{percent}")
            assert got == pytest.approx(wanted, abs=0.0001)


def test_jobs_of_an_open_loop_come_as_those_of_many_callers(temporary, tmp_path):
    gaps = {}
    for arrivals in ("poisson", "even"):
        with (tmp_path / arrivals).open("w+b") as raw:
            run(Plan(jobs=400, workers=1, rate=2000, arrivals=arrivals), raw=raw)
            raw.seek(0)
            due = [json.loads(line)["due"] for line in raw]
        gaps[arrivals] = [(after - before) / 1e6 for before, after in pairwise(due)]
    for found in gaps.values():
        assert statistics.mean(found) == pytest.approx(0.5, rel=0.2)
    assert statistics.stdev(gaps["poisson"]) == pytest.approx(0.5, rel=0.25)  # of an exponential law it is the mean
    assert statistics.stdev(gaps["even"]) < 0.001


def test_latency_of_a_prefill_contains_the_wait(redis_url):
    result = run(Plan(jobs=50, workers=1, prefill=True), redis_url).result
    assert result.seconds > result.enqueue_seconds + result.drain_seconds
    # The last job to be enqueued waited until the first claim at least.
    assert result.latency_ms.start.p50 / 1000 > result.seconds - result.enqueue_seconds - result.drain_seconds - 0.01


def test_io_takes_its_time(redis_url):
    result = run(Plan(jobs=10, workers=1, kind="io", work_ms=100, concurrency=5), redis_url).result
    # Two rounds of five; a loop's timer counts whole milliseconds and may fire within the last of each.
    assert result.drain_seconds >= 0.198
    assert result.latency_ms.done.p50 - result.latency_ms.start.p50 >= 99


def test_an_open_loop_keeps_its_pace(redis_url):
    result = run(Plan(jobs=60, workers=1, rate=200, arrivals="even"), redis_url).result
    assert result.enqueue_seconds >= 59 / 200
    latency = result.latency_ms
    assert latency.behind.max > 0
    assert latency.start_after_call.p50 < latency.start.p50


@pytest.mark.parametrize("kind", [{}, {"producers": 3}, {"rate": 100_000.0}])
def test_time_that_is_up_is_accounted_for(redis_url, kind):
    """A run that is stopped says what did not happen, and still loses nothing."""
    plan = Plan(jobs=400_000, workers=1, payload=10, kind="io", work_ms=500, concurrency=10, max_seconds=1, **kind)
    result = run(plan, redis_url).result
    assert not result.complete
    assert 0 < result.jobs <= plan.jobs
    assert result.unfinished > 0
    assert (result.lost, result.duplicated) == (0, 0)
    assert result.jobs == result.done + result.unfinished
    assert result.store["enqueued"] == result.jobs
    assert keys(redis_url) == []


@pytest.mark.damages_store
def test_a_prefix_with_data_is_refused_and_left_alone(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.set("mine:{x}:key", "precious")
        with pytest.raises(ConfigError, match="mine"):
            run(Plan(jobs=1), f"{redis_url}?prefix=mine")
        assert client.get("mine:{x}:key") == b"precious"


@pytest.mark.damages_store
def test_a_prefix_of_ones_own_is_used_and_others_are_left_alone(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.set("spool:{bench}:jobs", "precious")
        client.set("m*ne:{bench}:jobs", "precious")
        assert_sound(run(Plan(jobs=10, workers=1), f"{redis_url}?prefix=mine"), 10)
        assert sorted(client.scan_iter()) == [b"m*ne:{bench}:jobs", b"spool:{bench}:jobs"]


def test_a_sqlite_file_of_ones_own(tmp_path):
    file = tmp_path / "bench.db"
    assert_sound(run(Plan(jobs=10, workers=1), f"sqlite:///{file}"), 10)
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(file).close()
    file.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="there already"):
        run(Plan(jobs=1), f"sqlite:///{file}")
    with pytest.raises(ConfigError):
        run(Plan(jobs=1), "sqlite://:memory:")


# What is said about it


@pytest.fixture(scope="module")
def document(redis_server) -> BenchResult:
    return run(Plan(jobs=50, workers=1, producers=5), redis_server.url)


def leaves(value: object, path: str = "") -> list[str]:
    if not isinstance(value, dict) or path in ("versions", "result.store"):
        return [path]
    return [leaf for name, each in value.items() for leaf in leaves(each, f"{path}.{name}" if path else name)]


def test_each_field_is_documented(document):
    text = DOCUMENT.read_text()
    fields = {part for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for part in re.findall(r"`(.*?)`", row)}
    for name in (".p95", ".p99", ".max"):
        fields |= {each.rpartition(".")[0] + name for each in fields if each.startswith("result.latency_ms.")}
    fields = {each for each in fields if not each.startswith(".")}
    assert set(leaves(msgspec.to_builtins(document))) == {each for each in fields if not each.startswith("breakdown.")}


def test_the_version_is_in_the_document(document):
    written = json.loads(msgspec.json.encode(document))
    assert (written["schema"], written["kind"]) == (1, "spool-bench")


def changed(document: BenchResult, **fields: object) -> BenchResult:
    return msgspec.structs.replace(document, result=msgspec.structs.replace(document.result, **fields))


def test_targets(document):
    start = Percentiles(50, 1.0, 2.0, 49.9, 60.0)
    good = changed(document, per_s=2500.0, latency_ms=msgspec.structs.replace(document.result.latency_ms, start=start))
    assert [line.metric for line in targets(good)] == ["throughput", "error rate", "p99 latency", "memory"]
    assert [line.met for line in targets(good)] == [True] * 4

    def missed(**fields: object) -> list[str]:
        return [line.metric for line in targets(changed(good, **fields)) if not line.met]

    assert missed(per_s=2499.9) == ["throughput"]
    assert missed(per_s=None) == ["throughput"]
    for bad in ("failed", "lost"):
        assert missed(**{bad: 1}, done=49) == ["error rate"]
    assert missed(duplicated=1) == ["error rate"]
    assert missed(complete=False, unfinished=1, done=49) == ["error rate"]
    slow = msgspec.structs.replace(good.result.latency_ms, start=Percentiles(50, 1.0, 2.0, 50.0, 60.0))
    assert missed(latency_ms=slow) == ["p99 latency"]
    large = msgspec.structs.replace(good.result.memory_mb, rss_peak=500.0)
    assert missed(memory_mb=large) == ["memory"]
    assert missed(memory_mb=msgspec.structs.replace(large, rss_peak=None)) == ["memory"]


def test_the_summary_names_what_went_wrong(document):
    assert "0 lost" in {name: figure for name, figure, _ in summary(document)}["jobs"]
    bad = changed(document, lost=2, duplicated=3, refused=4, unfinished=5, drain_per_s=None)
    lines = {name: figure for name, figure, _ in summary(bad)}
    for said in ("2 lost", "3 run twice", "4 outcomes refused", "5 unfinished"):
        assert said in lines["jobs"]
    assert lines["drain"] == "–"


# The command


def command(capsys, *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *map(str, arguments)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, capsys.readouterr().out


def test_quick(capsys, url, temporary):
    options = ["--url", url] if url else []
    code, out = command(capsys, "quick", *options, "--json", temporary / "result.json")
    assert code == 0
    lines = out.splitlines()
    assert next(line for line in lines if line.startswith("Metric")).split() == [
        "Metric", "Result", "Target", "Status", "Measured",
    ]  # fmt: skip
    for metric in ("throughput", "error rate", "p99 latency", "memory"):
        assert any(line.startswith(metric) for line in lines)
    written = msgspec.json.decode((temporary / "result.json").read_bytes(), type=BenchResult)
    assert written.config == QUICK
    assert_sound(written, 1000)
    assert [each.name for each in temporary.iterdir()] == ["result.json"]


def test_check_exits_with_1_on_a_missed_target(capsys, redis_url, monkeypatch):
    monkeypatch.setitem(TARGETS, "throughput", 1e9)
    code, out = command(capsys, "quick", "--url", redis_url, "--check")
    assert code == 1
    assert "missed" in out
    assert command(capsys, "quick", "--url", redis_url)[0] == 0


def test_custom(capsys, redis_url):
    code, out = command(capsys, "custom", "--tasks", 50, "--payload", 10, "--url", redis_url, "--prefill")
    assert code == 0
    assert "50 done, 0 failed, 0 lost, 0 run twice" in out
    assert "before the workers started" in out
    code, out = command(capsys, "custom", "--jobs", 20, "--rate", 500, "--url", redis_url, "--json", "-")
    assert code == 0
    assert msgspec.json.decode(out, type=BenchResult).result.done == 20


def test_custom_exits_with_1_when_jobs_did_not_end(capsys, redis_url):
    options = ["--kind", "io", "--work-ms", 10_000, "--max-seconds", 1, "--concurrency", 1]
    code, out = command(capsys, "custom", "--jobs", 5, "--url", redis_url, *options)
    assert code == 1
    assert "5 unfinished" in out


def test_targets_of_your_own(capsys):
    options = ("quick", "--check", "--target", "p99=60000", "--target", "memory=9999")
    assert "< 60000 ms" in command(capsys, *options, "--target", "throughput=1")[1]
    code, out = command(capsys, *options, "--target", "throughput=10000000")
    assert code == 1
    assert "≥ 10,000,000/s  missed" in out


@pytest.mark.parametrize("wrong", ["throughput", "speed=1", "p99=fast", "p99=-1", "memory=inf", "p99=nan", "=1", ""])
def test_a_target_that_is_none_is_said_before_the_run(capsys, wrong):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "quick", "--target", wrong])
    assert "is no target" in capsys.readouterr().err


def test_a_result_file_that_cannot_be_written_is_said_before_the_run(capsys, tmp_path):
    assert command(capsys, "quick", "--json", tmp_path / "missing" / "result.json")[0] == 2
    assert command(capsys, "quick", "--json", tmp_path)[0] == 2


@pytest.mark.parametrize("ignored", [False, True], ids=["", "background"])  # scripts start it so with &
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [["--rate", "100"], ["--producers", "2"], []], ids=["rate", "producers", "bulk"])
def test_a_run_that_is_interrupted_leaves_nothing(redis_url, tmp_path, signum, options, ignored):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-m", "spool", "bench", "custom", "--jobs", "1000000", "--url", redis_url, *options],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 20
    while not any(b":{bench}:totals" in key for key in keys(redis_url)):
        assert time.monotonic() < deadline
    process.send_signal(signum)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in errors
    assert keys(redis_url) == []
    assert list(tmp_path.iterdir()) == []
