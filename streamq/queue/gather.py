"""Waiting for many tasks at once: one command looks, one subscribes, one looks again, however many they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal, TypeVar, overload

import anyio

from streamq.errors import ConfigurationError, ResultTimeoutError, TaskFailedError
from streamq.queue.results import Handle, decode_result

R = TypeVar("R")


@overload
async def gather(
    *handles: Handle[R],
    timeout: float | None = None,  # noqa: ASYNC109
    return_exceptions: Literal[False] = False,
) -> list[R]: ...
@overload
async def gather(
    *handles: Handle[R],
    timeout: float | None = None,  # noqa: ASYNC109
    return_exceptions: bool,
) -> list[R | TaskFailedError]: ...
async def gather(*handles: Handle[Any], timeout: float | None = None, return_exceptions: bool = False) -> list[Any]:  # noqa: ASYNC109
    """Wait for all these tasks and return their results, in the order of the handles.

    The first that failed is raised at once, as TaskFailedError; the others run on, and their
    results stay where they are. With `return_exceptions` all are waited for, and the error stands
    in the place of the result. `timeout` is in seconds, for all together. Raises ResultTimeoutError
    after it, which names what is missing, ResultNotKeptError at once if a task keeps none, and
    ConfigurationError if the handles are of several brokers.
    """
    found: list[Any] = [None] * len(handles)
    missing = set(range(len(handles)))
    with anyio.move_on_after(timeout):
        async with aclosing(_arrivals(handles)) as arrivals:
            async for place, payload in arrivals:
                try:
                    found[place] = decode_result(handles[place].task_id, payload)
                except TaskFailedError as error:
                    if not return_exceptions:
                        raise
                    found[place] = error
                missing.discard(place)
    if missing:
        raise _late(handles, missing, timeout)
    return found


async def as_completed(*handles: Handle[R], timeout: float | None = None) -> AsyncGenerator[Handle[R], None]:  # noqa: ASYNC109
    """Yield the handles of these tasks as they end, each with its result at hand: `await handle.result()`.

    `timeout` is in seconds, for all together. Raises what `gather` raises, but for TaskFailedError,
    which is for `result()` to say. Leave it early by way of `contextlib.aclosing`.
    """
    deadline = None if timeout is None else anyio.current_time() + timeout
    missing = set(range(len(handles)))
    async with aclosing(_arrivals(handles)) as arrivals:
        while missing:
            arrived = None
            # No scope may be open while this yields: each wait has its own.
            with anyio.move_on_after(None if deadline is None else deadline - anyio.current_time()):
                arrived = await anext(arrivals)
            if arrived is None:
                raise _late(handles, missing, timeout)
            place, payload = arrived
            missing.discard(place)
            yield handles[place].with_result(payload)


async def _arrivals(handles: Sequence[Handle[Any]]) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the place of each handle, and its result as it lies in Redis, as they come."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, handle in enumerate(handles):
        places[handle.result_key].append(place)
    if not handles:
        return
    waiters = handles[0].waiters
    if any(handle.waiters is not waiters for handle in handles):
        raise ConfigurationError("the handles are of several brokers: wait for those of each by themselves")
    found = await waiters.look(places)  # what is there already needs no subscription
    with waiters.ear(places.keys() - {key for key, _ in found}) as ear:
        if ear.keys:
            await waiters.listen(ear)
        while True:
            for key, payload in found:
                ear.open.discard(key)
                for place in places.pop(key, ()):
                    yield place, payload
            if not ear.open:
                return
            found = await waiters.arrived(ear)


def _late(handles: Sequence[Handle[Any]], missing: set[int], timeout: float | None) -> ResultTimeoutError:
    ids = [handles[place].task_id for place in sorted(missing)]
    return ResultTimeoutError(ids[0], timeout or 0.0, missing=ids, of=len(handles))
