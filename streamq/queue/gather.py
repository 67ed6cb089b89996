"""Waiting for many tasks at once. Three commands for any number: read the results, subscribe, read again.

For a type checker up to six handles that are given one by one have a type each, as those of `asyncio.gather`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

from streamq.diagnostics.unawaited import name_remedy
from streamq.errors import ConfigurationError, ResultTimeoutError, TaskFailedError
from streamq.queue.results import Handle
from streamq.queue.waiters import longest_wait
from streamq.wire.argument_types import check_type

R = TypeVar("R")
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
R5 = TypeVar("R5")
R6 = TypeVar("R6")


@overload
async def gather(
    one: Handle[R1],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> tuple[R1]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> tuple[R1, R2]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> tuple[R1, R2, R3]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    four: Handle[R4],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> tuple[R1, R2, R3, R4]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    four: Handle[R4],
    five: Handle[R5],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> tuple[R1, R2, R3, R4, R5]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    four: Handle[R4],
    five: Handle[R5],
    six: Handle[R6],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> tuple[R1, R2, R3, R4, R5, R6]: ...
@overload
async def gather(
    *handles: Handle[R],
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> tuple[R, ...]: ...
@overload
async def gather(
    one: Handle[R1],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> tuple[R1 | TaskFailedError]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> tuple[R1 | TaskFailedError, R2 | TaskFailedError]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> tuple[R1 | TaskFailedError, R2 | TaskFailedError, R3 | TaskFailedError]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    four: Handle[R4],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> tuple[R1 | TaskFailedError, R2 | TaskFailedError, R3 | TaskFailedError, R4 | TaskFailedError]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    four: Handle[R4],
    five: Handle[R5],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> tuple[
    R1 | TaskFailedError, R2 | TaskFailedError, R3 | TaskFailedError, R4 | TaskFailedError, R5 | TaskFailedError
]: ...
@overload
async def gather(
    one: Handle[R1],
    two: Handle[R2],
    three: Handle[R3],
    four: Handle[R4],
    five: Handle[R5],
    six: Handle[R6],
    /,
    *,
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> tuple[
    R1 | TaskFailedError,
    R2 | TaskFailedError,
    R3 | TaskFailedError,
    R4 | TaskFailedError,
    R5 | TaskFailedError,
    R6 | TaskFailedError,
]: ...
@overload
async def gather(
    *handles: Handle[R],
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> tuple[R | TaskFailedError, ...]: ...
async def gather(
    *handles: Handle[Any],
    timeout: float | timedelta | None = None,  # noqa: ASYNC109
    return_exceptions: bool = False,
) -> tuple[Any, ...]:
    """Wait for all these tasks, and return their results, a tuple in the order of the handles.

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
    return tuple(found)


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


name_remedy(gather, "gather(...)")
