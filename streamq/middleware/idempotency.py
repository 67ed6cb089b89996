"""`Idempotency`: a task that succeeded is not run again; later runs of its key return the recorded result.

`queue/once` keeps the record. This module puts it around whole runs.
"""

from __future__ import annotations

from typing import Any

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import TaskTimeoutError, UnrecordableError
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.limit_key import Key, check_key, resolve_key
from streamq.queue.once import LEASE, TTL, Effect, once_for
from streamq.tasks.json_type import UnfitError
from streamq.wire import bounds

log = SafeLog("streamq")


class Idempotency:
    """Run a task once per key: a success is recorded for `ttl` seconds, and later runs return its result.

    `key` is a format string over the task's arguments ("payment:{payment_id}"), or a function of the context. Without
    one it is the group and the task's id, so that a task that is delivered twice runs once. A run that fails is not
    recorded. A run in progress is leased for `lease` seconds and renewed. Another run of the key waits up to `wait`
    seconds for its end, in its slot, and then goes to the delayed set for as long as the run has taken by then.

    Raises ConfigurationError for a value that cannot be used.
    """

    def __init__(self, key: Key = None, *, ttl: float = TTL, lease: float = LEASE, wait: float = 0.0) -> None:
        self._key = check_key(key)
        self._ttl = bounds.EFFECT_TTL.check(ttl)
        self._lease = bounds.EFFECT_LEASE.check(lease)
        self._wait = bounds.EFFECT_WAIT.check(wait)

    def __repr__(self) -> str:
        return f"<Idempotency key={self._key or 'task_id'} ttl={self._ttl:g} lease={self._lease:g}>"

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task, or return the recorded result. Raises what `once` raises."""
        owner, key = self._owner_and_key(context)
        async with once_for(owner, key, ttl=self._ttl, lease=self._lease, wait=self._wait, broker=context) as effect:
            if effect.done:
                return _recorded(effect, context)
            try:
                result = await call_next(context)
            except (TaskTimeoutError, anyio.get_cancelled_exc_class()):
                # A thread cannot be ended: it may still run. Others begin when the lease is over.
                effect.abandoned = context.task.run_in == "thread"
                raise
            _record(effect, result, context)
            return result

    def _owner_and_key(self, context: Context) -> tuple[str, str]:
        if self._key is None:
            return context.store.keys.group, context.delivery.task_id  # each group runs each task once
        return "", resolve_key(self._key, context)


def _recorded(effect: Effect, context: Context) -> Any:
    """Return the recorded result as its run returned it. Raises UnrecordableError if it is not of the task's type."""
    try:
        return context.task.arguments.result_type.decode(effect.result_json)
    except UnfitError as error:
        raise UnrecordableError(effect.key, f"it is not what task {context.task.name!r} returns: {error}") from error


def _record(effect: Effect, result: Any, context: Context) -> None:
    """Record a result. One that is not JSON does not fail this run, but every later run that asks for it."""
    try:
        effect.record(result, context.task.arguments.result_type.encode)
    except UnrecordableError as error:
        task, of = context.task, context.delivery
        log.error("task %s %s: %s", task.name, of.task_id, error, event="result_lost", of=of)  # noqa: TRY400
