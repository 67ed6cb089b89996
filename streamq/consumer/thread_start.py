"""Calls in threads, where the system may have none left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio.to_thread

from streamq.consumer.shortage import NotStartedError
from streamq.errors.readable import readable


class Raised:
    """What a function in a thread raised: event loops look at the attributes of an exception, and these may raise."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error = [error]

    def taken(self) -> BaseException:
        """Return the exception, once: the frames of its traceback have this object, which must not have it then."""
        return self._error.pop()


class Boxed:
    """What a function in a thread returned and what a backend might look at: trio refuses a coroutine."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def returned(outcome: Any) -> Any:
    """Return what a function in a thread returned, or raise what it raised."""
    if type(outcome) is Raised:
        raise outcome.taken()
    return outcome.value if type(outcome) is Boxed else outcome


async def call_in_thread(call: Callable[[], Any], limiter: anyio.CapacityLimiter) -> Any:
    """Call a function in a thread. A cancellation does not wait for it.

    Raises NotStartedError if the system has no thread for it.
    """
    begun = False

    def begin() -> Any:
        nonlocal begun
        begun = True
        try:
            return Boxed(call())
        except BaseException as error:  # noqa: BLE001 - raised again by `returned`
            return Raised(readable(error))

    try:
        outcome = await anyio.to_thread.run_sync(begin, limiter=limiter, abandon_on_cancel=True)
    except RuntimeError as error:
        if begun or not says_no_thread(error):
            raise
        raise NotStartedError(str(error)) from error
    return returned(outcome)


def says_no_thread(error: RuntimeError) -> bool:
    """Return whether an error is that of a system without another thread."""
    return "start new thread" in str(error)  # CPython has no class for it
