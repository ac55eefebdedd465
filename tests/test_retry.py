import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import Backoff, ConfigError, Retry
from spool.retry import RetryPolicy, decide, delay

PLAIN = Backoff(jitter=False)


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (PLAIN, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
        (Backoff(base=0.5, cap=3, jitter=False), [0.5, 1, 2, 3]),
        (Backoff(base=7, factor=1, jitter=False), [7, 7, 7]),
        (Backoff(base=10, cap=5, jitter=False), [5, 5]),
        (Backoff(base=0, jitter=False), [0, 0]),
    ],
)
def test_backoff_grows_up_to_its_cap(backoff, waits):
    assert [delay(backoff, failures, 0.9) for failures in range(1, len(waits) + 1)] == waits


backoffs = st.builds(
    Backoff,
    base=st.floats(0, 1e6),
    cap=st.floats(0, 1e9),
    factor=st.floats(1, 1e6),
    jitter=st.booleans(),
)


@given(backoffs, st.integers(1, 10**12), st.floats(0, 1, exclude_max=True))
def test_no_number_of_failures_overflows(backoff, failures, jitter):
    assert 0 <= delay(backoff, failures, jitter) <= backoff.cap


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True))
def test_full_jitter_takes_any_part_of_the_wait(failures, jitter):
    assert delay(Backoff(), failures, jitter) == delay(PLAIN, failures, 0) * jitter


@pytest.mark.parametrize(
    "numbers",
    [{"base": -1}, {"cap": -0.1}, {"factor": 0.5}, {"base": float("nan")}, {"cap": float("inf")}, {"base": "1"}],
)
def test_a_backoff_of_senseless_numbers_is_refused(numbers):
    with pytest.raises(ConfigError, match=rf"Backoff\({next(iter(numbers))}="):
        Backoff(**numbers)


def test_attempts_are_limited():
    policy = RetryPolicy(retries=2, backoff=PLAIN)
    assert [decide(policy, failures, OSError(), 0) for failures in (1, 2, 3)] == [1, 2, None]


def test_without_retries_the_first_failure_is_the_last():
    assert decide(RetryPolicy(retries=0), 1, OSError(), 0.5) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionError(), True),
        (FileNotFoundError(), False),  # in retry_on by its base, but no_retry_on wins
        (ValueError(), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_exceptions_decide(error, again):
    policy = RetryPolicy(retry_on=(OSError,), no_retry_on=(FileNotFoundError,))
    assert (decide(policy, 1, error, 0.5) is not None) is again


def test_by_default_every_exception_is_retried_but_no_other_end_of_the_program():
    assert decide(RetryPolicy(), 1, ZeroDivisionError(), 0.5) is not None
    assert decide(RetryPolicy(), 1, SystemExit(), 0.5) is None


def test_retry_names_its_own_delay():
    assert decide(RetryPolicy(backoff=PLAIN), 1, Retry(delay=30), 0.9) == 30
    assert decide(RetryPolicy(backoff=PLAIN), 1, Retry(delay=0), 0.9) == 0


def test_retry_without_a_delay_takes_the_backoff():
    assert decide(RetryPolicy(backoff=PLAIN), 3, Retry("busy"), 0.9) == 4


def test_retry_is_for_any_policy_of_exceptions():
    policy = RetryPolicy(retry_on=(OSError,), no_retry_on=(Exception,))
    assert decide(policy, 1, Retry(delay=1), 0) == 1


def test_retry_counts_against_the_retries():
    assert decide(RetryPolicy(retries=1), 2, Retry(delay=1), 0) is None
