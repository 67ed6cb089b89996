"""Sends calls through middleware without an event loop. Middleware that awaits `send_next` alone works as it is.

Middleware that waits for something else cannot go on. Before its call was sent that is an error, and nothing is sent.
Afterwards it is a warning in the log, and the caller gets the handle: the task is accepted.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from types import coroutine
from typing import Any

from redis.exceptions import RedisError

from streamq.client.resp_codec import pack_texts
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import SyncCallError
from streamq.middleware.enqueue_many import CombinedEnqueue, SendAll, check_handle
from streamq.middleware.producer import Producer
from streamq.queue.enqueue_requests import EnqueueReply
from streamq.queue.results import Handle
from streamq.queue.server_errors import translated
from streamq.sync.drive import asks_for_loop, needs_loop, run_now
from streamq.tasks.task import Call

log = SafeLog("streamq")

_WHO = "a middleware around enqueues"
_ASKED = object()  # what a chain yields when it waits for the others


class SyncProducer(Producer):
    """A `Producer` whose coroutines never suspend."""

    def __init__(self, *arguments: Any, exchange: Callable[[bytes, int], list[Any]]) -> None:
        super().__init__(*arguments)
        self._exchange = exchange
        self.combine = CombinedSyncEnqueue
        self._sending = threading.local()

    async def send(self, call: Call[Any]) -> Handle[Any]:
        handle = await super().send(call)
        if (accepted := getattr(self._sending, "accepted", None)) is not None:
            accepted.append(handle)
        return handle

    def send_now(self, call: Call[Any]) -> Handle[Any]:
        """Send one call of a task without options past all middleware: the steps of `send`, and no coroutine."""
        store = self._store
        if store.clock.outdated:
            return run_now(self.send(call))
        message = self._builder.prepare(store, call)
        command = message.command
        try:
            (reply,) = self._exchange(command if isinstance(command, bytes) else pack_texts([command]), 1)
        except RedisError as error:
            raise translated(error) from error
        if reply.__class__ is not bytes:  # refused
            (accepted,) = run_now(store.all_accepted((command,), [reply]))
            return self._handle(message, accepted)
        return self._handle(message, EnqueueReply("", reply.decode()))

    async def send_through(self, call: Call[Any]) -> Handle[Any]:
        before = getattr(self._sending, "accepted", None)
        accepted = self._sending.accepted = list[Handle[Any]]()
        try:
            return check_handle(run_now(_coroutine(self._chain(call)[2](call))))
        except Exception as error:
            if not (isinstance(error, SyncCallError) or asks_for_loop(error)):
                raise
            if accepted:
                return _left_off(accepted[-1], error)
            raise needs_loop(_WHO) from error
        finally:
            self._sending.accepted = before


class CombinedSyncEnqueue(CombinedEnqueue):
    """Many enqueues, each through its own chain, in one round trip: the chains run one after the other.

    Each runs until it asks for its call to be sent. When all have asked, the calls go together, and each chain goes on.
    Each has a context of its own, as it would have in a task: what one sets, the current span say, is set for no other.
    """

    def __init__(self, send_all: SendAll, count: int) -> None:
        self._send_all = send_all
        self._count = count
        self._asked: dict[int, Call[Any]] = {}
        self._handles: dict[int, Handle[Any]] = {}
        self._failed: Exception | None = None
        self._is_sent = False

    def __repr__(self) -> str:
        return f"<CombinedSyncEnqueue {len(self._asked)} of {self._count} asked>"

    async def send(self, index: int, call: Call[Any]) -> Handle[Any]:
        if self._is_sent or index in self._asked:  # a chain that sends more than once
            return (await self._send_all([call]))[0]
        self._asked[index] = call
        await _wait_for_others()
        if self._failed is not None:
            raise self._failed
        return self._handles[index]

    async def run(self, chains: Sequence[Callable[[], Awaitable[Handle[Any]]]]) -> list[Handle[Any]]:
        results: list[Any] = [None] * len(chains)
        waiting: dict[int, tuple[Context, Coroutine[Any, Any, Handle[Any]]]] = {}
        try:
            for index, chain in enumerate(chains):
                context = copy_context()
                started = context.run(_begun, chain)
                ended, results[index] = context.run(_step, started)
                if ended:
                    check_handle(results[index])  # nothing is sent for it: it must have a handle from elsewhere
                else:
                    waiting[index] = context, started
            await self._send_asked()
            self._is_sent = True
            errors = [
                error for index in sorted(waiting) if (error := self._finish(index, *waiting.pop(index), results))
            ]
        finally:
            for context, left in waiting.values():
                context.run(left.close)
        if errors:
            raise errors[0]
        return [self._handle(index, returned) for index, returned in enumerate(results)]

    def _finish(
        self, index: int, context: Context, chain: Coroutine[Any, Any, Handle[Any]], results: list[Any]
    ) -> Exception | None:
        """Run a chain to its end. Return its error."""
        try:
            results[index] = context.run(run_now, chain)
        except Exception as error:  # noqa: BLE001 - raised by `run`, when the other chains have ended
            if index not in self._handles or not (isinstance(error, SyncCallError) or asks_for_loop(error)):
                return error
            results[index] = _left_off(self._handles[index], error)
        return None


@coroutine
def _wait_for_others() -> Generator[Any, None, None]:
    yield _ASKED


def _step(chain: Coroutine[Any, Any, Handle[Any]]) -> tuple[bool, Any]:
    """Run a chain until it asks for its call to be sent, or to its end. Return whether it has ended, and its result.

    Raises SyncCallError if it waits for something else.
    """
    try:
        asked = chain.send(None)
    except StopIteration as end:
        return True, end.value
    except RuntimeError as error:
        if asks_for_loop(error):
            raise needs_loop(_WHO) from error
        raise
    if asked is not _ASKED:
        chain.close()
        raise needs_loop(_WHO)
    return False, None


def _left_off(handle: Handle[Any], error: BaseException) -> Handle[Any]:
    log.warning(
        "a middleware around enqueues was left off after the task %s was accepted: %s", handle.task_id, error,
        event="middleware_left_off",
    )  # fmt: skip
    return handle


async def _awaited(one: Awaitable[Handle[Any]]) -> Handle[Any]:
    return await one


def _begun(chain: Callable[[], Awaitable[Handle[Any]]]) -> Coroutine[Any, Any, Handle[Any]]:
    return _coroutine(chain())


def _coroutine(one: Awaitable[Handle[Any]]) -> Coroutine[Any, Any, Handle[Any]]:
    return one if isinstance(one, Coroutine) else _awaited(one)
