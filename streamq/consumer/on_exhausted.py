"""What follows when a task is dead: `on_exhausted` is called, or, if it is a task, sent.

A task is sent in the same atomic step as the dead letter is written. A function is called once the server
has confirmed that, beside the runs: it holds no slot, and nothing waits for it. The confirmation may
be lost with its connection, and the worker may die: a function is called at most once.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread

from streamq.errors import ConfigurationError, UndecodableError
from streamq.handlers.context import queue, running
from streamq.queue.sending import new_task_id
from streamq.queue.store import Store
from streamq.tasks.exhausted import Exhausted
from streamq.tasks.outcome import DeadLetter, Reason
from streamq.tasks.task import Task
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import Message
from streamq.wire.side_effects import Consequence, Later, Send
from streamq.wire.tiers import Priority, Tier, pick_tier

log = logging.getLogger("streamq")

LIMIT = 10.0  # seconds for one call
AT_ONCE = 8  # calls at one time
WAITING = 1000  # calls that may wait for their turn; what comes on top is dropped, and named in the log
# A task of the other reasons has no arguments that could be read, or no worker that knows it.
_TOLD = frozenset((Reason.RETRIES_EXHAUSTED, Reason.REJECTED, Reason.CRASH_LOOP, Reason.EXPIRED))


class Aftermath:
    """The calls and the sendings of one worker's tasks. `tiers` and `keys` are those of its broker.

    Raises ConfigurationError or EncodingError for a task that cannot be sent as its options say.
    """

    def __init__(self, tasks: Iterable[Task[Any, Any]], store: Store, *, keys: Keys, tiers: Sequence[Tier]) -> None:
        self._then = {task.name.encode(): task.on_exhausted for task in tasks if task.on_exhausted is not None}
        self._store = store
        self._keys = keys
        self._tiers = tuple(tiers)
        self._waiting: deque[tuple[Callable[[Exhausted], object], Exhausted]] = deque()
        self._some = anyio.Event()
        self._closing = False
        self._over = anyio.Event()
        self._limiter = anyio.CapacityLimiter(AT_ONCE)
        for then in self._then.values():
            if isinstance(then, Task):
                self._sending(then, {})  # what cannot be sent is found out now

    def __repr__(self) -> str:
        return f"<Aftermath of {len(self._then)} tasks, {len(self._waiting)} calls waiting>"

    def __bool__(self) -> bool:
        """Does any task want it?"""
        return bool(self._then)

    # --- what the settler says -----------------------------------------------------------------

    def follow(self, delivery: Delivery, outcome: DeadLetter) -> list[Consequence]:
        """Return what is sent in the same step as the dead letter is written."""
        then = self._of(delivery, outcome)
        if not isinstance(then, Task):
            return []
        try:
            told = Exhausted(delivery, outcome.reason, outcome.failure).as_dict()
        except UndecodableError:  # it took its workers down before anybody read it
            return []
        return [self._sending(then, told)]

    def buried(self, delivery: Delivery, outcome: DeadLetter) -> None:
        """The dead letter is written: have the function called."""
        then = self._of(delivery, outcome)
        if then is None or isinstance(then, Task):
            return
        if len(self._waiting) >= WAITING or self._over.is_set():
            log.error("on_exhausted of %r is not called: %d wait for that", delivery, len(self._waiting))
            return
        self._waiting.append((then, Exhausted(delivery, outcome.reason, outcome.failure)))
        self._some.set()

    def _of(self, delivery: Delivery, outcome: DeadLetter) -> Any:
        if outcome.reason not in _TOLD:
            return None
        return self._then.get(delivery.fields.get(b"task", b""))

    def _sending(self, then: Task[..., Any], told: dict[str, Any]) -> Send | Later:
        options = then.sending
        priority = then.priority if options.priority is None else options.priority
        tier = pick_tier(self._tiers, Priority.NORMAL if priority is None else priority)
        if options.tier is not None:
            names = [tier.name for tier in self._tiers]
            if options.tier not in names:
                raise ConfigurationError(f"on_exhausted {then.name!r}: tier={options.tier!r} is none of {names}")
            tier = names.index(options.tier)
        message = Message(
            task=then.name, args=(told,), kwargs={}, task_id=new_task_id(), priority=priority, retries=options.retries,
            timeout=options.timeout, result_ttl=options.result_ttl, headers=options.headers,
        )  # fmt: skip
        # The dead task's own limit bounds this, too. Other groups have deaths of their own.
        fields = [*message.fields(limit=sys.maxsize), "group", self._keys.group]
        delay = options.delay.total_seconds() if isinstance(options.delay, timedelta) else options.delay
        stream = self._keys.tiers[tier].stream
        return Later(stream, message.task_id, fields, delay) if delay else Send(stream, fields)

    # --- the calls -------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Make the calls, until `finish`ed or cancelled."""
        queue.set(self._store)
        async with anyio.create_task_group() as group:
            for _ in range(AT_ONCE):
                group.start_soon(self._calls)
        self._over.set()

    async def finish(self) -> None:
        """Wait until all calls are made that wait for it."""
        self._closing = True
        self._some.set()
        await self._over.wait()

    async def _calls(self) -> None:
        while True:
            while self._waiting:
                await self._call(*self._waiting.popleft())
            if self._closing:
                return
            if self._some.is_set():
                self._some = anyio.Event()
            await self._some.wait()

    async def _call(self, function: Callable[[Exhausted], object], dead: Exhausted) -> None:
        running.set(dead.delivery)
        try:
            with anyio.fail_after(LIMIT):
                if _is_async(function):
                    returned = function(dead)
                else:
                    returned = await anyio.to_thread.run_sync(
                        function, dead, limiter=self._limiter, abandon_on_cancel=True
                    )
                if isinstance(returned, Awaitable):
                    await returned
        except (Exception, SystemExit):
            log.exception("on_exhausted of %r failed", dead.delivery)


def _is_async(function: Any) -> bool:
    return any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004
