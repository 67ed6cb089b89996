"""Exception groups: which exception of a group decides. Pure.

A task group wraps what its tasks raise, in a group of one as well. A group of one counts as its exception. Of several
the strictest decides: see `deciding`. A group counts as itself where somebody names a class of groups (`retry_on=
ExceptionGroup`), or if its own class is a request, such as a subclass of `Reject`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf, isnan

from streamq.diagnostics.safe_text import frames_of
from streamq.errors import ArgumentsError, Reject, RetryLater, UndecodableError
from streamq.tasks.retry_policy import RetryPolicy

_STOPPED = ("coroutine raised StopIteration",)  # the arguments of Python's RuntimeError (PEP 479)
_REQUESTS = (RetryLater, Reject, ArgumentsError, UndecodableError)


def leaves(error: BaseException, named: Iterable[type[BaseException]] = ()) -> Iterator[BaseException]:
    """Yield the exceptions of a group, nested ones too, in order; an exception that is no group is its own leaf.

    `named` are the classes that somebody asks for: a group of one of these classes of groups is a leaf.
    """
    whole = (*_REQUESTS, *(kind for kind in named if issubclass(kind, BaseExceptionGroup)))
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseExceptionGroup) and not isinstance(one, whole):
            waiting += reversed(one.exceptions)
        else:
            yield one


def is_of_message(error: BaseException) -> bool:
    """Did streamq raise this about the message of the run? Not if code of the user raised it, or called what did.

    The call of a handler may go through middleware of the user's, but ends in `streamq.consumer`: an error about the
    message has a frame of that inside of all frames of the user. What the process of a handler raised has
    the frames of the user that it had there.
    """
    traceback = frames_of(error)
    ours = traceback is not None
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__"))
        if not name.startswith("streamq."):
            ours = False
        elif name.startswith("streamq.consumer."):
            ours = True
        traceback = traceback.tb_next
    return ours


def only_leaf(error: BaseException) -> BaseException:
    """Return the exception in a group of one, nested too; anything else as it is."""
    found = leaves(error)
    first = next(found)
    return first if next(found, None) is None else error


def deciding(error: BaseException, policy: RetryPolicy) -> BaseException:
    """Return the exception that decides about a failed run.

    Of several, in this order: what rejects the task at once (`Reject`, arguments that do not fit); what the policy
    does not retry; a failure, that with the fewest retries first; and if all ask for another time, the latest of them.
    The first one where two are equal.
    """
    if not isinstance(error, BaseExceptionGroup):
        return _as_raised(error, policy)
    found = (_as_raised(one, policy) for one in leaves(error, policy.named))
    return min(found, key=lambda one: _strictness(one, policy))


def _as_raised(error: BaseException, policy: RetryPolicy) -> BaseException:
    """Return the StopIteration that a handler raised, if its policy names that. Python makes a RuntimeError of it."""
    if type(error) is not RuntimeError or error.args != _STOPPED or not isinstance(error.__cause__, StopIteration):
        return error
    cause = error.__cause__
    named = any(isinstance(cause, kind) and not isinstance(error, kind) for kind in policy.named)
    return cause if named else error


def _strictness(error: BaseException, policy: RetryPolicy) -> tuple[int, float]:
    """Return what sorts an exception before all that are less strict."""
    match error:
        case RetryLater():
            return 3, -_seconds(error)
        case Reject():
            return 0, 0.0
        case ArgumentsError() | UndecodableError() if is_of_message(error):
            return 0, 0.0
        case _ if not policy.retryable(error):
            return 1, 0.0
        case _:
            return 2, policy.max_retries(error)


def _seconds(request: RetryLater) -> float:
    """Return the time (s) that a handler asked for. One that cannot be used comes first: it is a failure."""
    try:
        after = float(request.after)
    except (TypeError, ValueError, OverflowError):
        return inf
    return inf if isnan(after) else after
