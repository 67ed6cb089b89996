"""Many enqueues, each through its own chain, in one round trip.

Every chain runs as a task of its own until it asks for its call to be sent; when all have asked,
or ended without, what was asked for goes together. So `enqueue_many` costs one round trip with
middleware as well, and nothing is sent if one chain refuses its call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from streamq.queue.results import Handle
from streamq.tasks.task import Call

SendAll = Callable[[Sequence[Call[Any]]], Awaitable[list[Handle[Any]]]]


class Together:
    """One batch of enqueues. `send_all` sends calls in one round trip; `count` chains take part."""

    def __init__(self, send_all: SendAll, count: int) -> None:
        self._send_all = send_all
        self._count = count
        self._asked: dict[int, Call[Any]] = {}  # by the place of its chain
        self._ended = 0
        self._all_asked = anyio.Event()
        self._sent = anyio.Event()
        self._handles: dict[int, Handle[Any]] = {}
        self._failed: Exception | None = None

    def __repr__(self) -> str:
        return f"<Together {len(self._asked)} of {self._count} asked, {self._ended} ended>"

    async def send(self, place: int, call: Call[Any]) -> Handle[Any]:
        """Send a call with the others: what the innermost link of the chain at this place does."""
        if self._all_asked.is_set() or place in self._asked:  # a chain that sends more than once
            return (await self._send_all([call]))[0]
        self._asked[place] = call
        self._look()
        await self._sent.wait()
        if self._failed is not None:
            raise self._failed
        return self._handles[place]

    async def run(self, chains: Sequence[Callable[[], Awaitable[Handle[Any]]]]) -> list[Handle[Any]]:
        """Run every chain and return their handles in order; raises the first error of any."""
        found: list[Handle[Any] | None] = [None] * len(chains)
        errors: list[Exception] = []

        async def one(place: int) -> None:
            try:
                found[place] = await chains[place]()
            except Exception as error:  # noqa: BLE001 - raised below, and not as one of a group
                errors.append(error)
                if not self._all_asked.is_set():
                    group.cancel_scope.cancel()
            finally:
                self._ended += not self._all_asked.is_set()
                self._look()

        self._look()  # there may be none
        async with anyio.create_task_group() as group:
            for place in range(len(chains)):
                group.start_soon(one, place)
            await self._all_asked.wait()
            try:
                places = sorted(self._asked)  # they are sent in the order they were given in
                handles = await self._send_all([self._asked[place] for place in places])
                self._handles = dict(zip(places, handles, strict=True))
            except Exception as error:  # noqa: BLE001 - every chain hears of it, and the caller
                self._failed = error
            self._sent.set()
        if errors:
            raise errors[0]
        return [handle for handle in found if handle is not None]

    def _look(self) -> None:
        if len(self._asked) + self._ended >= self._count:
            self._all_asked.set()
