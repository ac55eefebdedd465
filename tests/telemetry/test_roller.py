"""Rolling up: every blob once, whoever does it and whatever happens meanwhile."""

import zlib

import msgspec
import pytest

from spool.broker import Cancel, Load, Pause, Stats, Store
from spool.errors import BrokerUnavailable, StoreCorrupt
from spool.report import MOST_COUNTED
from spool.telemetry import Roller, ledger, roller
from spool.telemetry.bucket import KIND, TIERS
from spool.telemetry.ledger import SUMS, read_sums
from spool.telemetry.roller import LEAD, ROLLER, SILENT, TTL, read_progress
from tests.contract.driver import Driver, job
from tests.eventually import eventually
from tests.telemetry.conftest import blob

SECOND, TEN, MINUTE = TIERS


def liar(count):
    """A blob that no meter made."""
    report = ["t", {"done": count}, [10, count], [20, count], 2**64 - 1, 2**64 - 1]
    return msgspec.msgpack.encode([1, report])


def settle(q, *blobs):
    q.beat("w")
    for each in blobs:
        q.settle("w", metrics=each)


def test_blobs_are_counted_once_in_every_tier(q, roll, board):
    settle(q, blob(done=3), blob(done=2, died=1))
    roll()
    roll(1000)
    settle(q, blob("u", done=4))
    roll(1000)
    attempts = board.sums.attempts["q"]
    assert (attempts["t"].outcomes, attempts["u"].outcomes) == ({"done": 5, "died": 1}, {"done": 4})
    assert (attempts["t"].waits, attempts["t"].runs) == ({10: 6}, {20: 6})
    assert (attempts["t"].waited, attempts["t"].ran) == (6.0, pytest.approx(0.006))
    assert board.total(lambda line: sum(line.attempts.outcomes.values())) == [10, 10, 10]


def test_a_blob_is_counted_when_its_settle_was(q, roll, board, clock):
    roll()
    settle(q, blob(done=1))
    then = clock.wall
    roll(45_000)
    assert [at for at, line in board.lines(SECOND).items() if line.attempts.outcomes] == [then - then % 1000]
    assert [at for at, line in board.lines(MINUTE).items() if line.attempts.outcomes] == [then - then % 60_000]


def test_what_was_before_a_tier_reaches_is_in_those_that_do(q, roll, board):
    roll()
    settle(q, blob(done=1))
    roll(2 * 3_600_000)
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0)) == [0, 0, 1]
    assert board.done() == 1


def test_more_blobs_than_a_step_reads_are_read_at_once(q, roll, board, monkeypatch):
    monkeypatch.setattr(roller, "PAGE", 10)
    settle(q, *[blob(done=1)] * 25)
    roll()
    assert board.done() == 25


def test_one_leads_and_another_takes_over_when_it_is_silent(q, broker, board, clock):
    one, two = Roller(broker), Roller(broker)
    settle(q, blob(done=1))
    one.roll()
    settle(q, blob(done=1))
    two.roll()
    assert (board.done(), one.leads, two.leads) == (1, True, False)
    clock.advance(LEAD + 1)
    two.roll()
    assert (board.done(), two.leads) == (2, True)
    settle(q, blob(done=1))
    one.roll()  # it believes that it leads
    assert (board.done(), one.leads) == (2, False)
    one.roll()
    two.roll()
    assert board.done() == 3
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0)) == [3, 3, 3]


def test_one_that_ends_in_order_lets_another_lead_at_once(q, broker, board):
    one, two = Roller(broker), Roller(broker)
    one.start()
    settle(q, blob(done=1))
    eventually(lambda: board.done() == 1)
    one.close()
    settle(q, blob(done=1))
    two.roll()
    assert (board.done(), two.leads) == (2, True)


class Torn:
    """A broker that loses a `Store`, or its reply."""

    def __init__(self, broker, *, reply):
        self.broker, self.reply, self.torn = broker, reply, 0

    def call(self, verb):
        if isinstance(verb, Store) and not self.torn:
            self.torn += 1
            if self.reply:
                self.broker.call(verb)
            raise BrokerUnavailable("cut off")
        return self.broker.call(verb)


@pytest.mark.parametrize("reply", [True, False])
def test_a_lost_write_or_reply_counts_nothing_twice(q, broker, board, reply):
    settle(q, blob(done=2))
    torn = Roller(Torn(broker, reply=reply))
    with pytest.raises(BrokerUnavailable):
        torn.roll()
    assert board.done() == (2 if reply else 0)
    settle(q, blob(done=1))
    torn.roll()
    torn.roll()
    assert board.done() == 3
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0)) == [3, 3, 3]


def test_damaged_blobs_are_counted_as_such(q, roll, board):
    settle(q, blob(done=1), b"\xc1 damaged", blob("no task!", done=1), blob(done=1))
    roll()
    assert (board.done(), board.sums.damaged, board.sums.missed) == (2, {"q": 2}, {})
    assert board.total(lambda line: line.damaged) == [2, 2, 2]


@pytest.mark.parametrize("bad", [b"\x92\x01" + b"\x91" * 20_000 + b"\xc0", liar(2**63 - 1)], ids=["deep", "huge"])
def test_a_poisoned_blob_holds_up_no_queue(q, roll, board, bad):
    settle(q, blob(done=1), *[bad] * 4, blob(done=1))
    roll()
    roll(1000)
    assert (board.done(), board.sums.damaged) == (2, {"q": 4})


def test_sums_of_large_counts_do_not_overflow(q, roll, board):
    settle(q, *[liar(MOST_COUNTED)] * 2)
    roll()
    for bucket in (attempts := board.sums.attempts["q"]["t"]).outcomes, attempts.waits, attempts.runs:
        assert set(bucket.values()) == {MOST_COUNTED}
    assert (attempts.waited, attempts.ran) == (pytest.approx(2**65 / 1e3), pytest.approx(2**65 / 1e9))
    settle(q, blob("u", done=1))
    roll(1000)
    assert board.done("u") == 1


def test_the_history_adds_up_to_the_totals(q, roll, board):
    roll()
    for number in range(30):
        q.enqueue(job(f"a{number}"), job(f"b{number}"), job(f"c{number}", delay=10**9))
        roll(700)
        q.worker("w")
        q.settle("w", q.done(f"a{number}"), q.died(f"b{number}"), metrics=blob(done=1, died=1))
        roll(900)
    roll(1000)
    totals = q.totals()
    assert totals["enqueued"] == 90
    for event, count in totals.items():
        assert board.total(lambda line, event=event: line.counts.get(event, 0)) == [count] * 3, event


def test_what_was_counted_before_there_were_metrics_is_at_no_time(q, roll, board):
    q.enqueue("a")
    roll()
    assert board.total(lambda line: line.counts.get("enqueued", 0)) == [0, 0, 0]
    q.enqueue("b", "c")
    roll(1000)
    assert board.total(lambda line: line.counts.get("enqueued", 0)) == [2, 2, 2]


def test_what_happened_while_nobody_looked_is_spread_over_that_time(q, roll, board, clock):
    q.enqueue("first")
    roll()
    q.enqueue(*(f"j{number}" for number in range(200)))
    roll(100_000)
    counts = [line.counts.get("enqueued", 0) for line in board.lines(SECOND).values()]
    assert sum(counts) == 200
    assert max(counts) <= 3


def test_gauges_are_means_of_what_was_seen(q, roll, board):
    q.enqueue("a", job("p", priority=0), job("s", delay=10**9))
    roll(60_000)
    q.enqueue("b", "c")
    roll(1000)
    ((_, line),) = board.lines(MINUTE).items()
    assert line.samples == 2
    assert [total / line.samples for total in line.sums] == [1, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0]


def test_workers_are_counted_once_however_many_queues_they_serve(q, roll, board, broker):
    for name in ("w", "v"):
        broker.call(Store("worker", name, b"{}"))
    roll()
    (line,) = board.lines(SECOND, "").values()
    assert line.sums[-1] / line.samples == 2


def waited(broker):
    """For how long the oldest ready job has been waiting, by what the rollers left."""
    stats = broker.call(Stats("q"))
    since = read_progress(broker)[0].ready_since("q", stats)
    return 0 if since is None else stats.now - since


def test_the_oldest_ready_job_is_known_by_the_stores_clock(q, roll, board, broker):
    def oldest():
        return waited(broker)

    roll()
    q.enqueue("a", job("later", delay=5000), job("low", priority=4))
    roll(1000)
    roll(9000)
    assert oldest() == 9000
    q.act(Cancel(), "a", "low")
    q.beat("w")
    q.act(Pause())
    q.claim("w")  # promotes the one that was delayed
    roll(1000)
    assert oldest() == 0
    roll(4000)
    assert oldest() == 4000
    assert max(line.oldest for line in board.lines(MINUTE).values()) == 9000
    q.act(Cancel(), "later")
    roll(1000)
    assert oldest() == 0


def test_a_roller_that_takes_over_knows_how_long_jobs_have_waited(q, broker, roll, clock):
    roll()
    q.enqueue("a")
    roll(1000)
    roll(50_000)
    clock.advance(LEAD + 1)
    Roller(broker).roll()
    oldest = waited(broker)
    assert 50_000 <= oldest <= 51_000 + LEAD + 1


def test_the_job_that_has_waited_longest_need_not_be_the_next_to_start(q, broker, roll, clock):
    roll()
    q.enqueue(job("low", priority=4))
    roll(1000)
    low = clock.wall
    roll(5000)
    q.enqueue(job("critical", priority=0))
    roll(1000)
    since = read_progress(broker)[0].ready_since("q", broker.call(Stats("q")))
    assert since == low


def test_since_when_a_job_has_been_ready_is_not_guessed(q, broker, roll, clock):
    def since():
        return read_progress(broker)[0].ready_since("q", broker.call(Stats("q")))

    q.enqueue(job("scheduled", delay=10**9))
    roll(1000)
    assert since() is None, "none is ready"
    q.enqueue("a")
    clock.advance(700)
    assert since() == clock.wall, "it is newer than the last look"
    roll(300)
    assert since() == clock.wall
    clock.advance(SILENT + 1)
    assert since() is None, "nobody looks"


@pytest.mark.parametrize(
    "jumps",
    [
        [3_600_000] * 30,
        [-3_600_000] * 5,
        [400 * 86_400_000, 1000, -400 * 86_400_000, 1000, 1000],
        [10_000, -9_000] * 20,
        [-30_000, -30_000, 60_000, 1000],
    ],
)
def test_a_clock_that_steps_loses_and_doubles_nothing(q, broker, board, clock, jumps):
    one = Roller(broker)
    one.roll()
    for jump in jumps:
        clock.wall += jump
        clock.boot += 1000
        settle(q, blob(done=1))
        one.roll()
    one.roll()
    expired = any(jump > TTL for jump in jumps)
    documents = broker.call(Load(KIND)).documents
    assert len(documents) <= sum(tier.pages for tier in TIERS) + 2
    if not expired:
        assert board.done() == len(jumps)
    # What the documents that went with their time had counted is gone with them; nothing is there twice.
    assert 0 < board.done() <= len(jumps)
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0))[2] <= len(jumps)


def test_buckets_are_bounded_in_number(q, broker, roll):
    for _ in range(160):  # a day and three hours, a page of minutes each
        settle(q, blob(done=1))
        roll(610_000)
    documents = broker.call(Load(KIND)).documents
    assert len(documents) <= sum(tier.pages for tier in TIERS) + 2
    assert [tier.span for tier in TIERS] == [300_000, 3_600_000, 86_400_000]


def test_tasks_are_bounded_and_the_rest_is_other(q, roll, board, monkeypatch):
    assert ledger.SERIES == 1000
    monkeypatch.setattr(ledger, "SERIES", 50)
    settle(q, *(blob(f"t{number}", done=1) for number in range(60)))
    roll()
    settle(q, blob("t5", done=1), blob("t59", done=1))
    for number in range(60):
        settle(Driver(q.broker, q.clock, f"q{number:02}"), blob(done=1))
    roll(1000)
    attempts = board.sums.attempts
    assert len(attempts["q"]) == 51
    assert attempts["q"]["other"].outcomes == {"done": 11}
    assert attempts["q"]["t5"].outcomes == {"done": 2}
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0)) == [62] * 3
    # Of the queues, 49 had room for their others; these, and what is beyond, are bounded as well.
    assert board.sums.size() == 101
    assert attempts["other"]["other"].outcomes == {"done": 11}
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0), "q59") == [1] * 3


@pytest.mark.parametrize("key", [ROLLER, SUMS])
def test_a_later_layout_is_left_alone(q, roll, broker, clock, key):
    settle(q, blob(done=1))
    roll()
    body = zlib.compress(msgspec.msgpack.encode([9]))
    broker.call(Store(KIND, key, body))
    clock.advance(LEAD + 1)
    with pytest.raises(StoreCorrupt, match="layout 9"):
        Roller(broker).roll()
    found = {each.key: each.body for each in broker.call(Load(KIND)).documents}
    assert found[key] == body


def test_a_damaged_page_is_begun_anew(q, roll, broker, board, clock):
    settle(q, blob(done=1))
    roll()
    for tier in TIERS:
        broker.call(Store(KIND, tier.key(tier.page(clock.wall)), b"damaged"))
    clock.advance(LEAD + 1)
    settle(q, blob(done=1))
    Roller(broker).roll()
    assert board.done() == 2
    assert board.total(lambda line: line.attempts.outcomes.get("done", 0))[2] == 1


def test_documents_go_when_nobody_rolls_for_long(q, roll, broker, clock):
    settle(q, blob(done=1))
    roll()
    clock.advance(TTL + 1)
    assert broker.call(Load(KIND)).documents == []


def test_queues_are_taken_in_turns_when_there_are_many(broker, roll, clock, monkeypatch):
    monkeypatch.setattr(roller, "MOST_QUEUES", 3)
    for number in range(8):
        driver = Driver(broker, clock, f"q{number}")
        settle(driver, blob(done=1))
    for _ in range(3):
        roll(1000)
    assert sorted(read_sums(broker).attempts) == [f"q{number}" for number in range(8)]
