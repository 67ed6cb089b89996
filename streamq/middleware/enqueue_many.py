"""Many enqueues, each through its own chain, in one round trip.

Every chain runs as a task of its own until it asks for its call to be sent. When all have asked, or have ended without
asking, the calls go together. So `enqueue_many` costs one round trip with middleware as well, and nothing is sent if
one chain refuses its call: whatever it raises, a cancellation that is not the caller's included.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.queue.results import Handle
from streamq.tasks.task import Call

SendAll = Callable[[Sequence[Call[Any]]], Awaitable[list[Handle[Any]]]]


class CombinedEnqueue:
    """One batch of enqueues. `send_all` sends calls in one round trip; `count` chains take part."""

    def __init__(self, send_all: SendAll, count: int) -> None:
        self._send_all = send_all
        self._count = count
        self._asked: dict[int, Call[Any]] = {}  # by the index of the chain
        self._ended = 0
        self._all_asked = anyio.Event()
        self._sent = anyio.Event()
        self._handles: dict[int, Handle[Any]] = {}
        self._failed: Exception | None = None

    def __repr__(self) -> str:
        return f"<CombinedEnqueue {len(self._asked)} of {self._count} asked, {self._ended} ended>"

    async def send(self, index: int, call: Call[Any]) -> Handle[Any]:
        """Send a call together with the others: the innermost link of the chain with this index calls it."""
        if self._all_asked.is_set() or index in self._asked:  # a chain that sends more than once
            return (await self._send_all([call]))[0]
        self._asked[index] = call
        self._check_all_asked()
        await self._sent.wait()
        if self._failed is not None:
            raise self._failed
        return self._handles[index]

    async def run(self, chains: Sequence[Callable[[], Awaitable[Handle[Any]]]]) -> list[Handle[Any]]:
        """Run every chain and return their handles in order. Raises the first error of any chain."""
        results: list[Any] = [None] * len(chains)
        errors: list[BaseException] = []

        async def run_chain(index: int) -> None:
            try:
                results[index] = await chains[index]()
                if index not in self._asked:  # nothing is sent for it: it must have a handle from elsewhere
                    check_handle(results[index])
            except BaseException as error:
                # Not of an error: a task group swallows a cancellation, and SystemExit in a task ends the loop.
                if not isinstance(error, Exception) and _cancelled():
                    raise
                errors.append(error)  # raised below, and not as one of a group
                if not self._all_asked.is_set():
                    group.cancel_scope.cancel()
            finally:
                self._ended += not self._all_asked.is_set()
                self._check_all_asked()

        self._check_all_asked()  # there may be no chain
        async with anyio.create_task_group() as group:
            for index in range(len(chains)):
                group.start_soon(run_chain, index)
            await self._all_asked.wait()
            if errors:
                group.cancel_scope.cancel()
            else:
                await self._send_asked()
                self._sent.set()
        if errors:
            raise errors[0]
        if not self._sent.is_set():
            raise RuntimeError(
                "enqueue_many was cancelled, and not by its caller: does a middleware around enqueues cancel a task or "
                "a scope that is not its own?"
            )
        return [self._handle(index, returned) for index, returned in enumerate(results)]

    async def _send_asked(self) -> None:
        order = sorted(self._asked)  # calls are sent in the order in which they were given
        try:
            handles = await self._send_all([self._asked[index] for index in order])
            self._handles = dict(zip(order, handles, strict=True))
        except Exception as error:  # noqa: BLE001 - every chain raises it, and so does `run`
            self._failed = error

    def _handle(self, index: int, returned: Any) -> Handle[Any]:
        """Return the handle of a call that was sent, whatever its chain has returned."""
        if isinstance(returned, Handle):
            return returned
        if self._failed is not None:  # the chain has swallowed it
            raise self._failed
        return self._handles[index]

    def _check_all_asked(self) -> None:
        if len(self._asked) + self._ended >= self._count:
            self._all_asked.set()


def check_handle(returned: Any) -> Handle[Any]:
    """Return what a middleware around enqueues has returned. Raises ConfigurationError if it is no handle."""
    if not isinstance(returned, Handle):
        raise ConfigurationError(
            f"a middleware around enqueues returned {repr_of(returned)} and no handle: its 'enqueue' must return what "
            "send_next(call) returned, or raise to refuse the call (a call that it gave to send_next was sent)"
        )
    return returned


def _cancelled() -> bool:
    """Was a scope around us cancelled?"""
    return anyio.current_effective_deadline() == float("-inf")
