"""`once`: an effect that happens once per key. Every later run gets its result.

Theory. The record of a key is one hash with a TTL. A run that begins the effect writes a lease into it, and gets a
fencing token: the server's time in ms, and at least one more than the last token. So tokens grow even after the record
has expired. Only the holder of the last token can renew, record or release, each in one step on the server; a stalled
run that was overtaken can do none of them. Such a run can still make the effect itself. To prevent that too, guard the
effect by the token where it takes place (`UPDATE ... WHERE fence < token`).
Cost: two round trips, and one more every third of the lease.

The begin names its run. A run that has no answer to it, because it was cancelled or the connection was lost, may have
the lease and not know its token: it withdraws by that name, with a command that follows the begin.

A rival comes back after as long as the effect has been in progress by then (the token is when it began), and at the end
of its lease at the latest. So it comes at most twice as late as the effect ends, and its tries are few: each is twice
as late as the one before.

This module knows no worker and no middleware. It uses the store of the given broker, or that of the running handler.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import anyio
import orjson
import redis.exceptions

from streamq.client import Command
from streamq.diagnostics.safe_text import str_of
from streamq.errors import (
    BrokerError,
    ConfigurationError,
    EffectInProgressError,
    EffectLostError,
    EffectNotBegunError,
    OutcomeUnknownError,
    UnrecordableError,
)
from streamq.errors.readable import readable
from streamq.handlers.context import current_store, delivery_var
from streamq.queue.server_errors import translated
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.exception_groups import only_leaf
from streamq.wire import bounds
from streamq.wire.message import MAX_PAYLOAD, dumps
from streamq.wire.names import check_name, qualified

TTL: Final = 86_400.0  # seconds that a record is kept
LEASE: Final = 30.0  # seconds after the last renewal until another run can take the effect over
_SHORTEST: Final = 0.1  # seconds
_PAUSES: Final = (0.05, 1.0)  # seconds between two tries to record an effect: the first pause, and the longest
_POLL_EVERY: Final = 1.0  # seconds between two tries of a run that waits and may not subscribe
_FIRST_AGAIN: Final = 0.5  # seconds after which a rival comes back, at least
_SERVER_AGAIN: Final = 1.0  # seconds, up to twice that, that a task waits if the server could not be used
_BEGINNING: Final = "beginning an effect"
_WAIT: Final = "its tasks wait, and everything else goes on"
_RELEASE_WITHIN: Final = 2.0  # seconds that a cancelled run has to release or withdraw its effect


class HasStore(Protocol):
    """An object with the commands of a queue: a broker, or the context of a run."""

    @property
    def store(self) -> Store: ...


class Effect:
    """One effect, inside `async with once(key) as effect:`.

    `done`: an earlier run recorded it. Do not repeat it; `result` is what was recorded. `token` is the fencing token
    of the run that recorded it, or of this run. A run that sets `abandoned` and then fails does not release the effect:
    other runs wait until its lease is over. (A thread of it may still be working.)
    """

    __slots__ = ("_payload", "abandoned", "done", "key", "token")

    def __init__(self, key: str, token: int, payload: bytes | None = None) -> None:
        self.key = key
        self.token = token
        self.done = payload is not None
        self.abandoned = False
        self._payload = payload

    def __repr__(self) -> str:
        return f"<Effect {self.key} {'done' if self.done else 'in progress'} token={self.token}>"

    @property
    def result(self) -> Any:
        """The recorded value, decoded from JSON. None if nothing was recorded yet.

        Raises UnrecordableError if the value could not be recorded.
        """
        return orjson.loads(self.result_json)

    @property
    def result_json(self) -> bytes:
        """The recorded value as JSON. Raises UnrecordableError if the value could not be recorded."""
        try:
            value = orjson.loads(self.payload)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise UnrecordableError(self.key, f"streamq did not write what is there: {self.payload[:80]!r}")
        if "ok" not in value:
            raise UnrecordableError(self.key, str(value.get("error", "")))
        return orjson.dumps(value["ok"])

    @property
    def payload(self) -> bytes:
        """The record as it is kept in Redis."""
        return self._payload or b'{"ok":null}'

    def record(self, value: Any, encode: Callable[[Any], bytes] = dumps) -> None:
        """Set the value that is recorded when the block ends. `encode` writes it as JSON.

        Raises UnrecordableError if the value is not JSON, or takes more than 1 MiB. The effect still counts as done,
        even if that error ends the block. Raises ConfigurationError if the effect was recorded before.
        """
        if self.done:
            raise ConfigurationError(f"the effect {self.key!r} was recorded before: look at effect.done first")
        try:
            packed = b'{"ok":%b}' % encode(value)
            why = f"it takes {len(packed)} bytes and the limit is {MAX_PAYLOAD}" if len(packed) > MAX_PAYLOAD else ""
        except (TypeError, RecursionError) as error:
            packed, why = b"", f"it is not JSON: {str_of(error)}"
        self._payload = dumps({"error": why}) if why else packed
        if why:
            raise UnrecordableError(self.key, why)


def once(
    key: str, *, ttl: float = TTL, lease: float = LEASE, wait: float = 0.0, broker: HasStore | None = None
) -> AbstractAsyncContextManager[Effect]:
    """Make the effect of the block once per key: the first run records its result, and later runs get it.

    The end of the block records the result. An exception releases the effect, so that a retry can begin it at once. The
    record is kept for `ttl` seconds. The effect in progress has a lease of `lease` seconds, which is renewed while the
    block runs: if the process dies, another run takes over after that time. If another run has the effect, this one
    waits up to `wait` seconds for its end. Without a `broker` the queue is that of the running worker.

    Raises EffectInProgressError if another run has the effect; EffectLostError if another run has taken it over, in
    which case the block was cancelled or its result was not recorded; EffectNotBegunError if the server cannot be asked
    in a run of a task. These are RetryLater. Raises BrokerError if the server cannot be used otherwise, LookupError
    without broker and worker, ConfigurationError for a value that cannot be used.
    """
    return once_for("", key, ttl=ttl, lease=lease, wait=wait, broker=broker)


@asynccontextmanager
async def once_for(
    owner: str, key: str, *, ttl: float, lease: float, wait: float, broker: HasStore | None
) -> AsyncGenerator[Effect, None]:
    """Do as `once`, with a key that belongs to an owner: no other owner has its record."""
    check_name("key", key)
    ttl = bounds.EFFECT_TTL.check(ttl)
    lease = bounds.EFFECT_LEASE.check(lease)
    wait = bounds.EFFECT_WAIT.check(wait)
    record = _EffectRecord(current_store() if broker is None else broker.store, owner, key, ttl, lease)
    try:
        effect = await record.begin(wait)
    except BrokerError as error:
        # What is in the key of a type that is not ours stays there, so waiting does not help.
        if delivery_var.get() is None or error.code == "WRONGTYPE":
            raise
        after = random.uniform(_SERVER_AGAIN, 2 * _SERVER_AGAIN)
        raise EffectNotBegunError(key, str(error), code=error.code, after=after) from error
    if effect.done:
        yield effect
        return
    failed: BaseException | None = None
    happened = False
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(record.renew_forever, effect.token, group.cancel_scope)
            try:
                yield effect
                happened = True
            except BaseException as error:  # raised below: a task group would wrap it
                if isinstance(readable(error), anyio.get_cancelled_exc_class()):
                    raise
                failed = readable(error)
                happened = _was_recorded(failed, key)
            group.cancel_scope.cancel()
    except anyio.get_cancelled_exc_class():
        await record.finish(effect, happened=happened)
        raise
    recorded = await record.finish(effect, happened=happened)
    if failed is not None:
        try:
            raise failed
        finally:  # its traceback has this frame, which must not have it
            del failed
    if not recorded:
        raise EffectLostError(key, effect.token, after=lease)


def _was_recorded(error: BaseException, key: str) -> bool:
    """Has the effect happened, and is this the error of a result that cannot be recorded?"""
    why = only_leaf(error)
    return isinstance(why, UnrecordableError) and why.key == key


@dataclass(frozen=True, slots=True)
class _Taken:
    """Another run has the effect: for how long (s) its lease is valid, and since when (s) the effect is in progress."""

    lease_left: float
    age: float

    @property
    def again_after(self) -> float:
        """When (s) a rival is to come back."""
        return min(self.lease_left, max(_FIRST_AGAIN, self.age))


class _EffectRecord:
    """The record of one key, for the run that wants to make its effect."""

    __slots__ = ("_key", "_keys", "_lease", "_lease_ends", "_may_have_begun", "_run", "_store", "_ttl")

    def __init__(self, store: Store, owner: str, key: str, ttl: float, lease: float) -> None:
        self._store = store
        self._key = key
        self._keys = [store.keys.once(qualified(owner, key))]
        self._ttl = ttl
        self._lease = lease
        self._lease_ends = 0.0  # in seconds of the store's clock
        self._run = secrets.token_hex(8)
        self._may_have_begun = False

    def __repr__(self) -> str:
        return f"<_EffectRecord {self._keys[0]}>"

    async def begin(self, wait: float) -> Effect:
        """Return the effect: begun, or done before. Raises EffectInProgressError after `wait` seconds.

        If this raises, also for a cancellation, this run has not begun the effect. If the server does not hear that
        within `_RELEASE_WITHIN`, the end of the lease does it.
        """
        try:
            return await self._begin(wait)
        except BaseException:
            if self._may_have_begun:
                await self._withdraw()
            raise

    async def _begin(self, wait: float) -> Effect:
        now = self._store.clock.elapsed
        end = now() + wait
        found = await self._try_begin()
        if isinstance(found, Effect):
            return found
        if not wait:
            raise EffectInProgressError(self._key, after=found.again_after)
        try:
            async with self._store.client.subscriber() as subscriber:
                await subscriber.subscribe(*self._keys)
                # From here on no message is missed. A run that died sends none: the wait also ends with its lease.
                while not isinstance(found := await self._try_begin(), Effect):
                    left = end - now()
                    if left <= 0:
                        raise EffectInProgressError(self._key, after=found.again_after)
                    with anyio.move_on_after(min(left, found.lease_left)):
                        await subscriber.receive()
        except redis.exceptions.RedisError as error:
            problem = translated(error)
            if problem.code != "NOPERM":
                raise problem from error
            return await self._poll(end)
        return found

    async def _poll(self, end: float) -> Effect:
        """Wait as `begin` does, for a user that may not subscribe: ask every second."""
        now = self._store.clock.elapsed
        while not isinstance(found := await self._try_begin(), Effect):
            left = end - now()
            if left <= 0:
                raise EffectInProgressError(self._key, after=found.again_after)
            await anyio.sleep(min(left, found.lease_left, _POLL_EVERY))
        return found

    async def _try_begin(self) -> Effect | _Taken:
        """Return the effect, or what is known of the run that has it."""
        asked_at = self._store.clock.elapsed()
        command = step("once_begin")(self._keys, self._ms(self._lease), self._record_ttl_ms, self._run)
        self._may_have_begun = True
        try:
            state, token, *rest = await self._ask(_BEGINNING, command)
        except BrokerError as error:
            self._may_have_begun = isinstance(error, OutcomeUnknownError)
            raise
        self._may_have_begun = state == b"begun"
        if state == b"taken":
            return _Taken(float(rest[0]) / 1000, float(rest[1]) / 1000)
        self._lease_ends = asked_at + self._lease
        return Effect(self._key, int(token), rest[0] if rest else None)

    async def _withdraw(self) -> None:
        with suppress(BrokerError), anyio.move_on_after(_RELEASE_WITHIN, shield=True):
            await self._ask("releasing an effect", step("once_withdraw")(self._keys, self._run, self._ms(self._ttl)))

    async def renew_forever(self, token: int, scope: anyio.CancelScope) -> None:
        """Renew the lease until cancelled. If it is lost, cancel the block."""
        now = self._store.clock.elapsed
        pause = self._lease / 3
        while True:
            await anyio.sleep(pause)
            asked_at, renewed = now(), None
            try:
                with anyio.move_on_after(max(pause, self._lease_ends - asked_at)):
                    renewed = await self._ask(
                        "renewing an effect",
                        step("once_renew")(self._keys, token, self._ms(self._lease), self._record_ttl_ms),
                    )
            except BrokerError:
                pass  # the server may be back before the lease is over
            if renewed:
                self._lease_ends = asked_at + self._lease
            elif renewed == 0 or now() >= self._lease_ends:
                scope.cancel()
                return

    async def finish(self, effect: Effect, *, happened: bool) -> bool:
        """Record an effect that happened, and return whether it is recorded. Release one that did not happen.

        Tries until the lease is over. Raises BrokerError if the server could not be used in all that time.
        """
        if not happened:
            await self._release(effect)
            return False
        pause, longest = _PAUSES
        while True:
            try:
                # The effect has happened: a cancellation waits for the answer.
                with anyio.CancelScope(shield=True):
                    return bool(await self._ask(
                        "recording an effect",
                        step("once_end")(self._keys, effect.token, self._ms(self._ttl), effect.payload),
                    ))  # fmt: skip
            except BrokerError:
                if self._store.clock.elapsed() + pause >= self._lease_ends:
                    raise
            await anyio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _release(self, effect: Effect) -> None:
        """Let another run begin the effect at once. If the server cannot be reached, the end of the lease does that."""
        if effect.abandoned:
            return
        with suppress(BrokerError), anyio.move_on_after(_RELEASE_WITHIN, shield=True):
            await self._ask("releasing an effect", step("once_end")(self._keys, effect.token, self._ms(self._ttl)))

    async def _ask(self, what: str, command: Command) -> Any:
        """Carry out a step. A refusal is named in the health of the worker, too. Raises BrokerError."""
        refusals = self._store.refusals
        try:
            reply = await self._store.one(command)
        except BrokerError as error:
            if what == _BEGINNING and error.code != "WRONGTYPE":
                refusals.note_failed(what, error, then=_WAIT)
            elif error.code == "NOPERM":  # another refusal is about this key, and the error of the run says it
                refusals.note_refused(what, error)
            raise
        if refusals:
            refusals.note_accepted(what)
        return reply

    @property
    def _record_ttl_ms(self) -> int:
        """How long (ms) the record is kept while the effect is in progress."""
        return self._ms(max(self._ttl, self._lease))

    def _ms(self, seconds: float) -> int:
        return max(1, round(seconds * 1000))
