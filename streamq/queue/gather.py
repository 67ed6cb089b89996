"""Waiting for many tasks at once. Three commands for any number: read the results, subscribe, read again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

from streamq.errors import ConfigurationError, ResultTimeoutError, TaskFailedError
from streamq.queue.results import Handle
from streamq.queue.waiters import longest_wait
from streamq.wire.argument_types import check_type

R = TypeVar("R")


@overload
async def gather(
    *handles: Handle[R],
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> list[R]: ...
@overload
async def gather(
    *handles: Handle[R],
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> list[R | TaskFailedError]: ...
async def gather(
    *handles: Handle[Any],
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool = False,
) -> list[Any]:
    """Wait for all these tasks, and return their results in the order of the handles.

    The first failure is raised at once, as TaskFailedError. The other tasks run on, and their results are kept. With
    `return_exceptions` it waits for all tasks, and puts the error in the place of the result. `timeout` is in seconds,
    for all tasks together.

    Raises ResultTimeoutError after the timeout, which names the missing tasks; ResultNotKeptError at once if a task
    keeps no result; ConfigurationError for what is no handle, and if the handles are from several brokers.
    """
    found: list[Any] = [None] * len(handles)
    missing = set(range(len(handles)))
    async with aclosing(_arrivals(handles, longest_wait(timeout))) as arrivals:
        async for place, payload in arrivals:
            try:
                found[place] = handles[place].decoded(payload)
            except TaskFailedError as error:
                if not return_exceptions:
                    raise
                found[place] = error
            missing.discard(place)
    if missing:
        raise _timeout_error(handles, missing, timeout)
    return found


async def as_completed(
    *handles: Handle[R],
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
) -> AsyncGenerator[Handle[R], None]:
    """Yield the handles of these tasks as the tasks end. `await handle.result()` then needs no round trip.

    `timeout` is in seconds, for all tasks together. To leave the loop early, use `contextlib.aclosing`.

    Raises what `gather` raises, except TaskFailedError: `result()` raises that.
    """
    missing = set(range(len(handles)))
    async with aclosing(_arrivals(handles, longest_wait(timeout))) as arrivals:
        async for place, payload in arrivals:
            missing.discard(place)
            yield handles[place].with_result(payload)
    if missing:
        raise _timeout_error(handles, missing, timeout)


async def _arrivals(handles: Sequence[Handle[Any]], limit: float) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the place of each handle and its encoded result, as the results arrive, for `limit` seconds.

    Results that are there are yielded though that time is over.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, handle in enumerate(handles):
        check_type("a handle", handle, Handle, "what enqueue returned, each by itself: gather(*handles)")
        places[handle.result_key].append(place)
    if not handles:
        return
    waiters = handles[0].waiters
    deadline = waiters.now() + limit
    if any(handle.waiters is not waiters for handle in handles):
        raise ConfigurationError("the handles are of several brokers: wait for those of each broker separately")
    found = await waiters.read_now(places, deadline)  # results that are there already need no subscription
    with waiters.waiting_for(places.keys() - {key for key, _ in found}) as waiter:
        while True:
            for key, payload in found:
                waiter.open.discard(key)
                for place in places.pop(key, ()):
                    yield place, payload
            if not waiter.open:
                return
            found = await waiters.news(waiter, deadline)
            if not found:
                return


def _timeout_error(
    handles: Sequence[Handle[Any]], missing: set[int], timeout: float | timedelta | None
) -> ResultTimeoutError:
    ids = [handles[place].task_id for place in sorted(missing)]
    return ResultTimeoutError(ids[0], timeout or 0.0, missing=ids, of=len(handles))
