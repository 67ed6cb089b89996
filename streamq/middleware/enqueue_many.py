"""Many enqueues, each through its own chain, in one round trip.

Every chain runs as a task of its own until it asks for its call to be sent. When all have asked, or have ended without
asking, the calls go together. So `enqueue_many` costs one round trip with middleware as well, and nothing is sent if
one chain refuses its call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

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
        results: list[Handle[Any] | None] = [None] * len(chains)
        errors: list[Exception] = []

        async def run_chain(index: int) -> None:
            try:
                results[index] = await chains[index]()
            except Exception as error:  # noqa: BLE001 - raised below, and not as one of a group
                errors.append(error)
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
            try:
                order = sorted(self._asked)  # calls are sent in the order in which they were given
                handles = await self._send_all([self._asked[index] for index in order])
                self._handles = dict(zip(order, handles, strict=True))
            except Exception as error:  # noqa: BLE001 - every chain raises it, and so does `run`
                self._failed = error
            self._sent.set()
        if errors:
            raise errors[0]
        return [handle for handle in results if handle is not None]

    def _check_all_asked(self) -> None:
        if len(self._asked) + self._ended >= self._count:
            self._all_asked.set()
