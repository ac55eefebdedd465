import pytest

from spool.grouping import Grouping, pattern
from spool.job import Attempt, Record, Snapshot, State, Tally, encode_record
from spool.view import view
from tests.tallies import write_tally


def failed(number: int, message: str, *, task: str = "send", kind: str = "LookupError", at: int = 1000):
    record = Record(1, task, 2, 0, 3, "", 1, b"\x92\x90\x80")
    tally = write_tally(Tally(attempts=1, failures=1), [Attempt(1, "died", 1, at, "w", kind, message, "")])
    return view(Snapshot("mail", str(number), State.DEAD, encode_record(record), tally, finished=at))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user 17 not found", "user 123456789 not found"),
        ("user17 not found", "user18 not found"),
        ("took 1.5 s", "took 2e-05 s"),
        ("job 0197b2c4d5e67f8091a2b3c4d5e6f708 is gone", "job 0197b2c4d5e67aaabbbbccccddddeeee is gone"),
        ("job 0197b2c4-d5e6-7f80-91a2-b3c4d5e6f708 is gone", "job 0197b2c4-d5e6-7aaa-bbbb-ccccddddeeee is gone"),
        ("<Client object at 0x7f3a2b> failed", "<Client object at 0xDEADBEEF00> failed"),
        ("commit 3f2a9c1b missing", "commit deadbee7cafe missing"),
        ("cannot reach 10.0.0.1:6379", "cannot reach 192.168.17.254:80"),
        ("no mailbox ada@example.org", "no mailbox grace.h+x@mail.example.com"),
        ("token sk_live_4eC39HqLyjWDarjtT1zdp7dc refused", "token sk_test_BQokikJOvBiI2HlWgH4olfQ2 refused"),
        ("late\n  at line 3", "late\n  at another place"),
        ("at 2026-02-03T10:00:00", "at 2025-12-31T23:59:59"),
    ],
)
def test_what_varies_is_left_out(one, other):
    assert one != other
    assert pattern(one) == pattern(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no such user", "no such group"),
        ("'name'", "'address'"),
        ("the facade is down", "the decade is over"),
        ("timeout of the defaced endpoint", "timeout of the effaced endpoint"),
    ],
)
def test_what_tells_causes_apart_stays(one, other):
    assert pattern(one) != pattern(other)


def test_a_message_of_any_length_is_short():
    assert len(pattern("x" * 100_000)) == 200
    assert len(pattern("a1" * 100_000)) <= 200


def test_groups_are_by_task_type_and_pattern():
    grouping = Grouping()
    for number in range(5):
        grouping.add(failed(number, f"user {number} not found", at=1000 + number))
    grouping.add(failed(5, "user 5 not found", task="shrink"))
    grouping.add(failed(6, "user 6 not found", kind="KeyError"))
    found = grouping.top(1)
    (top,) = found.top
    assert (found.total, found.others) == (7, 2)
    assert (top.task, top.error_type, top.message, top.count) == ("send", "LookupError", "user <n> not found", 5)
    assert (top.first, top.last, top.sample) == (1000, 1004, "mail/4")
    assert {(each.task, each.error_type, each.count) for each in grouping.top(9).top[1:]} == {
        ("shrink", "LookupError", 1),
        ("send", "KeyError", 1),
    }


def test_the_order_of_arrival_does_not_matter():
    up, down = Grouping(), Grouping()
    jobs = [failed(number, "no", at=1000 + number) for number in range(4)]
    for job in jobs:
        up.add(job)
    for job in reversed(jobs):
        down.add(job)
    assert up.top(5) == down.top(5)


def test_memory_is_bounded_and_no_job_is_uncounted():
    grouping = Grouping(capacity=10)
    for number in range(200):
        grouping.add(failed(number, "often"))
        grouping.add(failed(number, f"cause {chr(ord('a') + number % 26)}{'x' * number}"))
        assert len(grouping._groups) <= 10
    found = grouping.top(3)
    assert (found.top[0].message, found.top[0].count) == ("often", 200)
    assert found.total == 400
    assert found.others == 400 - sum(group.count for group in found.top)


def test_a_dead_job_without_an_error_is_counted():
    grouping = Grouping()
    grouping.add(view(Snapshot("mail", "1", State.DEAD, b"\xff", finished=5)))
    (group,) = grouping.top(5).top
    assert group.error_type == ""
    assert "decoded" in group.message


def test_a_job_that_has_not_failed_is_not():
    grouping = Grouping()
    grouping.add(view(Snapshot("mail", "1", State.READY, failed(1, "x") and b"\x91\x01")))
    assert grouping.top(5).total == 0
