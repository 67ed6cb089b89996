"""When a failed task runs again (P6)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq import Backoff
from streamq.errors import ConfigurationError
from streamq.retry import RetryPolicy


@given(st.integers(1, 5000), st.floats(0, 1e6), st.floats(1, 100), st.floats(0, 1e6), st.integers())
def test_full_jitter_stays_within_the_exponential_and_the_cap(attempt, base, factor, cap, seed):
    """The delay before attempt n + 1 is uniform in [0, min(cap, base * factor ** (n - 1))]."""
    backoff = Backoff(base, factor, cap)
    assert 0 <= backoff.delay(attempt, random.Random(seed)) <= backoff.ceiling(attempt) <= cap
    assert backoff.ceiling(attempt) <= backoff.ceiling(attempt + 1)


def test_the_ceilings_double_and_end_at_the_cap():
    """By default 1, 2, 4, ... 300 s."""
    assert [Backoff().ceiling(n) for n in (1, 2, 3, 9, 10, 10_000)] == [1, 2, 4, 256, 300, 300]
    assert Backoff(jitter=False).delay(3, random.Random(1)) == 4


def test_jitter_is_full_and_comes_from_the_randomness_passed_in():
    """The same seed gives the same delay, and delays fill the whole interval."""
    draw = [Backoff().delay(4, random.Random(seed)) for seed in range(300)]
    assert draw == [Backoff().delay(4, random.Random(seed)) for seed in range(300)]
    assert min(draw) < 0.5
    assert max(draw) > 7.5


@pytest.mark.parametrize(
    "bad",
    [
        {"base": -1},
        {"cap": -1},
        {"factor": 0.5},
        {"base": float("nan")},
        {"cap": float("inf")},
        {"factor": float("nan")},
    ],
)
def test_a_backoff_that_cannot_be_used_is_refused(bad):
    """Negative, shrinking and endless ones are mistakes."""
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Backoff(**bad)


@pytest.mark.parametrize("retries", [-1, 1.5, "3", None, True])
def test_retries_are_a_whole_number(retries):
    """Anything else is refused where it is written."""
    with pytest.raises(ConfigurationError, match="retries"):
        RetryPolicy(retries)


def test_every_exception_is_retried_unless_told_otherwise():
    """P6: every Exception by default; give_up_on wins over retry_on."""
    assert RetryPolicy().retryable(ValueError())
    assert RetryPolicy().retryable(SystemExit())
    policy = RetryPolicy(retry_on=(OSError,), give_up_on=(FileNotFoundError,))
    assert policy.retryable(ConnectionError())
    assert not policy.retryable(FileNotFoundError())
    assert not policy.retryable(ValueError())


def test_a_policy_of_ones_own_is_asked_with_attempt_and_error():
    """`backoff` may be a function of the attempt, from 1, and the exception."""
    error = ValueError()
    seen = []
    policy = RetryPolicy(backoff=lambda *what: seen.append(what) or 7)
    assert policy.delay(2, error, random.Random()) == 7.0
    assert seen == [(2, error)]
    assert RetryPolicy(backoff=lambda a, e: -5).delay(1, error, random.Random()) == 0.0


@pytest.mark.parametrize(
    "broken", [lambda a, e: 1 / 0, lambda a, e: None, lambda a, e: float("inf"), lambda a, e: float("nan"), lambda: 1]
)
def test_a_broken_policy_falls_back_to_the_default(broken, caplog):
    """A mistake in a user's backoff must cost neither the task nor the worker; it is named in the log."""
    assert 0 <= RetryPolicy(backoff=broken).delay(1, ValueError(), random.Random()) <= 1.0
    assert "cannot be used" in caplog.text
