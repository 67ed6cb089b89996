"""When a failed task runs again (P6)."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamq import Backoff, Delays, Fixed, Linear, task
from streamq.errors import ConfigurationError
from streamq.tasks.retry_policy import DEFAULT_RETRIES, LONGEST, BackoffStrategy, RetryPolicy

SECONDS = st.floats(0, LONGEST)
ATTEMPTS = st.integers(1, 5000)


class Most:
    """A randomness that always draws the most, and remembers between what."""

    def __init__(self):
        self.drawn = []

    def uniform(self, a, b):
        self.drawn.append((a, b))
        return b


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
    assert RetryPolicy(backoff=lambda a, e: timedelta(minutes=1)).delay(1, error, random.Random()) == 60.0


NO_DELAYS = (None, float("inf"), float("nan"), -5, -1e-9, timedelta(seconds=-1), timedelta.max, 1e11, True, "soon", [1])


@pytest.mark.parametrize(
    "broken",
    [lambda a, e: 1 / 0, lambda: 1, *(lambda a, e, value=value: value for value in NO_DELAYS)],
    ids=["raises", "takes none", *map(str, NO_DELAYS)],
)
def test_a_broken_policy_falls_back_to_the_default(broken, caplog):
    """A mistake in a user's backoff must cost neither the task nor the worker; it is named in the log."""
    assert RetryPolicy(backoff=broken).delay(1, ValueError(), Most()) == 1.0
    assert "cannot be used" in caplog.text


# --- the formula of each ---------------------------------------------------------------------------


@example(513, 0.0, 4.0, 1.0)
@given(ATTEMPTS, SECONDS, st.floats(1, 4), SECONDS)
def test_exponential(attempt, base, factor, cap):
    """Backoff: min(cap, base * factor ** (n - 1)), and with jitter uniform from 0 to that."""
    try:
        grown = base * factor ** (attempt - 1)
    except OverflowError:
        grown = 0.0 if base == 0 else float("inf")
    assert Backoff(base, factor, cap, jitter=False).delay(attempt, random.Random(1)) == min(cap, grown)
    assert_jittered(Backoff(base, factor, cap), attempt, min(cap, grown))


@pytest.mark.slow
@given(ATTEMPTS, SECONDS, SECONDS, SECONDS)
def test_linear(attempt, step, base, cap):
    """Linear: min(cap, base + step * n); exact unless jitter is asked for."""
    assert Linear(step, base, cap).delay(attempt, random.Random(1)) == min(cap, base + step * attempt)
    assert_jittered(Linear(step, base, cap, jitter=True), attempt, min(cap, base + step * attempt))


@given(ATTEMPTS, SECONDS)
def test_fixed(attempt, seconds):
    """Fixed: the same after each attempt; exact unless jitter is asked for."""
    assert Fixed(seconds).delay(attempt, random.Random(1)) == seconds
    assert_jittered(Fixed(seconds, jitter=True), attempt, seconds)


@given(ATTEMPTS, st.lists(SECONDS, min_size=1, max_size=8))
def test_a_list(attempt, delays):
    """Delays: the n-th, and the last for ever after; exact unless jitter is asked for."""
    wanted = (delays + [delays[-1]] * attempt)[attempt - 1]
    assert Delays(delays).delay(attempt, random.Random(1)) == wanted
    assert_jittered(Delays(delays, jitter=True), attempt, wanted)


def assert_jittered(schedule, attempt, ceiling):
    """Full jitter is one draw between 0 and the delay itself."""
    most = Most()
    assert schedule.delay(attempt, most) == ceiling
    assert most.drawn == [(0.0, ceiling)]


def test_some_schedules_in_numbers():
    """What the page says of them."""
    never = random.Random(1)
    assert [Linear(5).delay(n, never) for n in (1, 2, 3, 60, 61)] == [5, 10, 15, 300, 300]
    assert [Linear(5, base=60, cap=70).delay(n, never) for n in (1, 2, 3)] == [65, 70, 70]
    assert [Delays([1, 5, 30]).delay(n, never) for n in (1, 2, 3, 4, 99)] == [1, 5, 30, 30, 30]
    assert [Fixed(2.5).delay(n, never) for n in (1, 9)] == [2.5, 2.5]


@pytest.mark.parametrize("schedule", [Backoff(), Linear(), Fixed(1), Delays([1])])
def test_each_is_a_schedule_and_knows_its_longest(schedule):
    """`delay(attempt, random)` is all that a schedule needs."""
    assert isinstance(schedule, BackoffStrategy)
    assert max(schedule.delay(n, Most()) for n in range(1, 400)) == schedule.longest


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(-1), lambda: Linear(NAN), lambda: Linear(base=-1), lambda: Linear(cap=INF), lambda: Fixed(-1),
        lambda: Fixed(INF), lambda: Fixed(NAN), lambda: Fixed("5"), lambda: Fixed(True), lambda: Delays([]),
        lambda: Delays([1, -1]), lambda: Delays([1, NAN]), lambda: Delays("15"), lambda: Delays(5),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_used_is_refused(make):
    """Where it is written, by its name."""
    with pytest.raises(ConfigurationError, match="cannot be used"):
        make()


# --- what a policy makes of them -------------------------------------------------------------------


class Fibonacci:
    """A schedule of one's own."""

    def delay(self, attempt, random):
        a, b = 0, 1
        for _ in range(attempt):
            a, b = b, a + b
        return a


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (7, [7, 7, 7]),
        (0.5, [0.5, 0.5, 0.5]),
        ([1, 5], [1, 5, 5]),
        ((1, 5, 30), [1, 5, 30]),
        (Linear(2), [2, 4, 6]),
        (lambda attempt, error: attempt * len(str(error)), [3, 6, 9]),
        (Fibonacci(), [1, 1, 2]),
    ],
)
def test_whatever_says_when_may_be_given(backoff, delays):
    """A schedule, a number, a list, a function, an object with `delay`."""
    policy = RetryPolicy(backoff=backoff)
    assert [policy.delay(n, ValueError("abc"), random.Random(1)) for n in (1, 2, 3)] == delays


def test_each_exception_may_have_its_own():
    """The first class that fits, in the order they are written; none: the default."""
    policy = RetryPolicy(
        backoff={TimeoutError: Fixed(1), ConnectionError: [2, 3], OSError: lambda attempt, error: 10 * attempt}
    )
    most = Most()
    assert policy.delay(2, TimeoutError(), most) == 1
    assert policy.delay(2, ConnectionResetError(), most) == 3
    assert policy.delay(2, FileNotFoundError(), most) == 20
    assert most.drawn == []
    assert policy.delay(2, ValueError(), most) == 2
    assert most.drawn == [(0.0, 2.0)]


def test_each_exception_may_have_its_own_retries():
    """As for `backoff`; all of them share one count of attempts."""
    policy = RetryPolicy(retries={TimeoutError: 10, OSError: 0})
    assert [policy.max_retries(error) for error in (TimeoutError(), ConnectionError(), ValueError())] == [
        10, 0, DEFAULT_RETRIES,
    ]  # fmt: skip
    assert RetryPolicy(5).max_retries(ValueError()) == 5


@pytest.mark.parametrize("what", ["backoff", "retries"])
def test_an_entry_that_nothing_reaches_is_refused(what):
    """A class behind one of its bases is a mistake in the order."""
    with pytest.raises(ConfigurationError, match="TimeoutError is never reached, OSError before it"):
        RetryPolicy(**{what: {OSError: 1, TimeoutError: 2}})
    with pytest.raises(ConfigurationError, match="name one exception class"):
        RetryPolicy(**{what: {}})
    with pytest.raises(ConfigurationError, match="is no exception class"):
        RetryPolicy(**{what: {"TimeoutError": 1}})


@pytest.mark.parametrize("bad", ["30", True, Fixed, None, object(), {1, 2}, {ValueError: {OSError: 1}}, b"1"])
def test_what_says_nothing_of_when_is_refused(bad):
    """With what can be given instead."""
    with pytest.raises(ConfigurationError, match="give a Backoff, seconds, a list of them, or a function"):
        RetryPolicy(backoff=bad)


def test_no_delay_is_longer_than_the_cap_over_everything():
    """A day, unless `max_backoff` says otherwise; what states a longer one is refused, not shortened."""
    error = ValueError()
    assert RetryPolicy(backoff=lambda a, e: 1e9).delay(1, error, random.Random()) == LONGEST == 86_400
    assert RetryPolicy(backoff=lambda a, e: 1e9, max_backoff=60).delay(1, error, random.Random()) == 60
    assert RetryPolicy(backoff=lambda a, e: 1e9, max_backoff=1e10).delay(1, error, random.Random()) == 1e9
    assert RetryPolicy(backoff=7 * LONGEST, max_backoff=7 * LONGEST).delay(1, error, random.Random()) == 7 * LONGEST
    assert RetryPolicy(max_backoff=0.5).delay(9, error, random.Random()) == 0.5  # the default is cut short
    for long in (7 * LONGEST, [1, 7 * LONGEST], Backoff(cap=7 * LONGEST), {OSError: Linear(cap=7 * LONGEST)}):
        with pytest.raises(ConfigurationError, match="waits longer than max_backoff"):
            RetryPolicy(backoff=long)
    with pytest.raises(ConfigurationError, match="max_backoff"):
        RetryPolicy(max_backoff=-1)


def test_a_broken_schedule_of_ones_own_falls_back_to_the_default(caplog):
    """As a broken function does."""

    class Broken:
        def delay(self, attempt, random):
            raise ZeroDivisionError

    assert 0 <= RetryPolicy(backoff={ValueError: Broken()}).delay(1, ValueError(), random.Random()) <= 1.0
    assert "cannot be used" in caplog.text


def test_a_task_takes_all_of_it():
    """`@task(retries=..., backoff=..., max_backoff=...)`."""

    @task(retries={OSError: 7}, backoff=[1, 2], max_backoff=5)
    async def fetch() -> None: ...

    assert fetch.policy.max_retries(OSError()) == 7
    assert fetch.policy.delay(9, OSError(), random.Random()) == 2
    assert fetch.policy.max_backoff == 5


HUGE = 1 << 32  # what a message may say at most (docs/bounds.md)


@pytest.mark.parametrize("backoff", [Backoff(factor=2, jitter=False), Backoff(base=5, factor=1_000_000, jitter=False)])
def test_a_huge_attempt_is_the_cap_at_once(backoff):
    """P13: no power of whole numbers, which would take the memory and the time of the worker."""
    assert backoff.ceiling(HUGE) == backoff.cap
    assert RetryPolicy(backoff=backoff).delay(HUGE, ValueError(), Most()) == backoff.cap


@pytest.mark.parametrize(
    ("backoff", "delay"),
    [
        (Linear(0.001, cap=30), 30.0), (Linear(1, cap=30), 30.0), (Fixed(7), 7.0), (Delays([1, 2]), 2.0),
        (Backoff(factor=1, jitter=False), 1.0), (Backoff(base=0, jitter=False), 0.0),
    ],
)  # fmt: skip
def test_every_backoff_of_ours_takes_a_huge_attempt(backoff, delay):
    assert RetryPolicy(backoff=backoff).delay(HUGE, ValueError(), Most()) == delay


def test_a_function_is_told_of_a_bounded_number_of_attempts():
    """P13: a message may say that it is the billionth attempt; `2**n` of that would end the worker."""
    told = []
    policy = RetryPolicy(backoff=lambda n, error: told.append(n) or 2**n, max_backoff=60)
    assert policy.delay(HUGE, ValueError(), Most()) <= 60
    assert policy.delay(9_999, ValueError(), Most()) <= 60
    assert told == [10_000, 9_999]
