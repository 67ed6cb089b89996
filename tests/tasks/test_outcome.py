"""What becomes of a run: decided by a pure function."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from streamq import Reject, RetryLater, RetryOutcome
from streamq import Retry as RetryRequest
from streamq.errors import ArgumentsError, UndecodableError
from streamq.tasks.outcome import DeadLetter, Postpone, Reason, Retry, decide, failure_of
from streamq.tasks.retry_policy import Backoff, RetryPolicy

POLICY = RetryPolicy(retries=2, backoff=Backoff(base=4, jitter=False), give_up_on=(KeyError,))


def decided(error, attempt=1, retries=None):
    return decide(POLICY, attempt=attempt, retries=retries, error=error, random=random.Random(1))


def of_message(error):
    """Return an error as streamq raises it about a message, and not a handler."""
    try:
        exec("raise error", {"__name__": "streamq.consumer.of_a_test", "error": error})
    except type(error) as raised:
        raised.__traceback__ = raised.__traceback__.tb_next
        return raised


@pytest.mark.parametrize(("attempt", "delay"), [(1, 4), (2, 8)])
def test_a_failure_is_retried_with_backoff_while_the_budget_lasts(attempt, delay):
    """`retries` counts runs after the first."""
    outcome = decided(ValueError("no"), attempt)
    assert isinstance(outcome, Retry)
    assert outcome.delay == delay
    assert outcome.failure.error == "no"


@pytest.mark.parametrize("after", [2.5, timedelta(seconds=2.5), 0, 1e6])
def test_a_retry_may_choose_its_delay_and_spends_an_attempt(after):
    """`Retry(after=...)`: not bounded by the policy, whatever that retries, and dead with the last attempt."""
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    strict = RetryPolicy(retries=2, retry_on=(KeyError,), give_up_on=(RetryRequest,), backoff=0.5, max_backoff=1)
    error = RetryRequest("busy", after=after)
    outcome = decide(strict, attempt=1, retries=None, error=error, random=random.Random(1))
    assert isinstance(outcome, RetryOutcome)
    assert (outcome.delay, outcome.failure.error) == (seconds, "busy")
    last = decided(RetryRequest(after=after), 3)
    assert isinstance(last, DeadLetter)
    assert last.reason is Reason.RETRIES_EXHAUSTED
    assert isinstance(decided(RetryRequest(after=after), retries=0), DeadLetter)


@pytest.mark.parametrize("after", [float("nan"), float("inf"), -1, "soon", None, 2e10, [1]])
def test_a_delay_that_cannot_be_used_becomes_the_backoff(after, caplog):
    """The run has failed all the same, and the log says why."""
    outcome = decided(RetryRequest(after=after))
    assert isinstance(outcome, RetryOutcome)
    assert outcome.delay == 4
    assert "cannot be used, the task's backoff is used in its place" in caplog.text


def test_a_spent_budget_is_retries_exhausted():
    """The last failure is what the dead letter says."""
    outcome = decided(ValueError("no"), 3)
    assert isinstance(outcome, DeadLetter)
    assert outcome.reason is Reason.RETRIES_EXHAUSTED
    assert outcome.failure.error_type == "ValueError"


def test_the_retries_of_the_sender_win():
    """In both directions, zero included."""
    assert isinstance(decided(ValueError(), 3, retries=5), Retry)
    assert isinstance(decided(ValueError(), 1, retries=0), DeadLetter)


def test_each_exception_may_have_a_budget_of_its_own():
    """Of one count of attempts; the sender's number is for all."""
    policy = RetryPolicy(retries={TimeoutError: 5, OSError: 0})

    def ended(error, attempt, retries=None):
        return decide(policy, attempt=attempt, retries=retries, error=error, random=random.Random(1))

    assert isinstance(ended(TimeoutError(), 5), Retry)
    assert isinstance(ended(TimeoutError(), 6), DeadLetter)
    assert isinstance(ended(ConnectionError(), 1), DeadLetter)
    assert isinstance(ended(ConnectionError(), 1, retries=1), Retry)
    assert isinstance(ended(ValueError(), 3), Retry)
    assert isinstance(ended(ValueError(), 4), DeadLetter)


@pytest.mark.parametrize("error", [Reject("no"), KeyError("x"), of_message(ArgumentsError("t", "x"))])
def test_what_repeating_cannot_cure_is_rejected(error):
    """Reject, give_up_on and wrong arguments go straight to the dead letters."""
    outcome = decided(error)
    assert isinstance(outcome, DeadLetter)
    assert outcome.reason is Reason.REJECTED


def test_an_entry_that_cannot_be_decoded_is_undecodable():
    """It has a reason of its own."""
    outcome = decided(of_message(UndecodableError("x")))
    assert isinstance(outcome, DeadLetter)
    assert outcome.reason is Reason.UNDECODABLE


def test_retry_later_spends_no_attempt():
    """However often: RetryLater is no failure."""
    outcome = decided(RetryLater("busy", after=2.5, headers={"seen": 1}), attempt=99)
    assert outcome == Postpone(2.5, "busy", headers={"seen": 1})
    assert decided(RetryLater(after=-3)) == Postpone(0.0, "again in -3 s")


@pytest.mark.parametrize(
    "request_of",
    [
        RetryLater("x", after=float("inf")),
        RetryLater("x", after=float("nan")),
        RetryLater("x", after="soon"),
        RetryLater("x", after=1, headers={"a": object()}),
        RetryLater("x", after=1, headers={"a": float("nan")}),
        RetryLater("x", after=1, headers=5),
    ],
)
def test_a_retry_later_that_cannot_be_carried_out_is_a_failure_like_any_other(request_of):
    """The mistake is the handler's and must not end the worker."""
    assert isinstance(decided(request_of), Retry)
    assert isinstance(decided(request_of, attempt=3), DeadLetter)


def test_a_failure_is_words_and_survives_broken_exceptions():
    """Type with module, message, traceback; a __str__ that raises costs nothing."""

    class Odd(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    try:
        raise Odd  # noqa: TRY301
    except Odd as error:
        failure = failure_of(error)
    assert failure.error_type == f"{Odd.__module__}.{Odd.__qualname__}"
    assert "RuntimeError" in failure.error
    assert "test_outcome.py" in failure.traceback


def test_a_failure_can_be_sent_whatever_is_in_its_message():
    """Lone surrogates, as names of files have, and messages without end are made fit for the wire."""
    failure = failure_of(OSError("caf\udce9"))
    failure.error.encode()
    failure.traceback.encode()
    assert "\\udce9" in failure.error
    assert len(failure_of(ValueError("x" * 10_000_000)).error) <= 8_000


# --- exception groups: what a task group raises -------------------------------------------------------------


def group(*errors):
    return ExceptionGroup("unhandled errors in a TaskGroup", list(errors))


@pytest.mark.parametrize("wrapped", [group, lambda error: group(group(group(error)))])
def test_a_group_of_one_counts_as_its_exception(wrapped):
    """As if the task group were not there, however deep."""
    assert decided(wrapped(RetryLater("429", after=7, headers={"a": 1}))) == Postpone(7.0, "429", headers={"a": 1})
    assert decided(wrapped(Reject("410"))).reason is Reason.REJECTED
    assert decided(wrapped(KeyError("x"))).reason is Reason.REJECTED
    failed = decided(wrapped(ValueError("no")), 2)
    assert isinstance(failed, Retry)
    assert failed.delay == 8
    assert (failed.failure.error_type, failed.failure.error) == ("ValueError", "no")


def test_the_retries_and_backoff_of_a_class_hold_in_a_group():
    """`retry_on`, `retries={...}` and `backoff={...}` see the exception, not its group."""
    policy = RetryPolicy(
        retries={ConnectionError: 5, Exception: 0}, backoff={ConnectionError: 3.0}, retry_on=(OSError,)
    )

    def ended(error, attempt=1):
        return decide(policy, attempt=attempt, retries=None, error=error, random=random.Random(1))

    assert ended(group(ConnectionError()), 5).delay == 3
    assert ended(group(ConnectionError()), 6).reason is Reason.RETRIES_EXHAUSTED
    assert ended(group(OSError()), 1).reason is Reason.RETRIES_EXHAUSTED
    assert ended(group(ValueError()), 1).reason is Reason.REJECTED


@pytest.mark.parametrize(
    ("errors", "decides"),
    [
        ([RetryLater(after=1), ValueError("f"), KeyError("g"), Reject("r")], "r"),
        ([RetryLater(after=1), ValueError("f"), group(KeyError("g"))], "'g'"),
        ([RetryLater(after=1), group(group(ValueError("f"))), RetryLater(after=2)], "f"),
        ([ValueError("first"), ValueError("second")], "first"),
    ],
)
def test_of_several_the_strictest_decides(errors, decides):
    """Wherever it stands: Reject, what is given up on, a failure, RetryLater. The traceback shows the whole group."""
    for order in (errors, errors[::-1] if decides != "first" else errors):
        outcome = decided(group(*order))
        assert outcome.failure.error == decides
        assert "RetryLater" in outcome.failure.traceback or decides == "first"


def test_of_several_failures_that_with_the_fewest_retries_decides():
    """The strictest of the classes' budgets."""
    policy = RetryPolicy(retries={TimeoutError: 5, ValueError: 1})
    both = group(TimeoutError(), ValueError())
    ended = decide(policy, attempt=2, retries=None, error=both, random=random.Random(1))
    assert ended.reason is Reason.RETRIES_EXHAUSTED
    assert ended.failure.error_type == "ValueError"


def test_if_all_ask_for_another_time_it_is_the_latest():
    """Each of them was promised not to be asked before its time. One that cannot be used is a failure."""
    asked = [RetryLater(after=1), RetryLater("longest", after=9), RetryLater(after=3)]
    assert decided(group(*asked)) == Postpone(9.0, "longest")
    unusable = RetryLater("x", after=1)
    unusable.after = "soon"
    assert isinstance(decided(group(*asked, unusable)), Retry)


def test_a_class_of_groups_that_the_policy_names_is_taken_as_it_is():
    """Who writes `give_up_on=ExceptionGroup` means groups."""
    policy = RetryPolicy(give_up_on=(ExceptionGroup,))
    ended = decide(policy, attempt=1, retries=None, error=group(ValueError()), random=random.Random(1))
    assert ended.reason is Reason.REJECTED
    assert ended.failure.error_type == "ExceptionGroup"
