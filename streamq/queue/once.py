"""`once`: an effect that happens once per key, and whose result every later run gets.

Theory. The record of a key is one hash with a TTL. Whoever begins the effect writes a lease into it
and is given a fencing token, the server's time in ms and at least one more than the last: tokens grow even
across the end of the record. Only the holder of the last token can renew, record or give up, each in one
step on the server, so a stalled holder that was overtaken can do none of it. What it may still do is the
effect itself: to shut that out too, the effect must be guarded by the token where it takes place
(`UPDATE ... WHERE fence < token`). Cost: two round trips, and one more every third of the lease.

This module knows no worker and no middleware: it is given a store, or takes the one whose handler runs here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol

import anyio
import orjson
import redis.exceptions

from streamq.errors import (
    BrokerError,
    ConfigurationError,
    EffectInProgressError,
    EffectLostError,
    UnrecordableError,
    check_number,
)
from streamq.handlers.context import current_queue
from streamq.queue.server_errors import translated
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.message import MAX_PAYLOAD, Default, dumps

TTL: Final = 86_400.0  # seconds that a record lives
LEASE: Final = 30.0  # seconds that an effect in progress is believed in after its last renewal
_SHORTEST: Final = 0.1  # seconds
_PAUSES: Final = (0.05, 1.0)  # seconds between two tries to say how an effect ended: the first, and the longest
_GIVE_UP_WITHIN: Final = 2.0  # seconds that a run that was cancelled has to give its effect up


class HasStore(Protocol):
    """What has the commands of a queue: a broker, or the context of a run."""

    @property
    def store(self) -> Store: ...


class Effect:
    """One effect, inside `async with once(key) as effect:`.

    `done` says that it was recorded before: it is not to be repeated, and `result` is what was recorded.
    `token` is the fencing token of the run that recorded it, or of this one. A run that sets `abandoned` and
    then fails does not give its effect up: others wait until its lease is over (a thread may still be at it).
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
        """What was recorded, as JSON gives it back; None so far as nothing was.

        Raises UnrecordableError if it was nothing that can be recorded.
        """
        value = orjson.loads(self.payload)
        if "ok" not in value:
            raise UnrecordableError(self.key, value["error"])
        return value["ok"]

    @property
    def payload(self) -> bytes:
        """The record as it is kept."""
        return self._payload or b'{"ok":null}'

    def record(self, value: Any, default: Default | None = None) -> None:
        """Set what is recorded when the block ends; `default` turns into JSON what JSON lacks.

        Raises UnrecordableError if the value is not JSON or takes more than 1 MiB. The effect then counts as
        done all the same, even if that error ends the block. Raises ConfigurationError if it was recorded before.
        """
        if self.done:
            raise ConfigurationError(f"the effect {self.key!r} was recorded before: look at effect.done first")
        try:
            packed = dumps({"ok": value}, default)
            why = f"it takes {len(packed)} bytes and the limit is {MAX_PAYLOAD}" if len(packed) > MAX_PAYLOAD else ""
        except (TypeError, RecursionError) as error:
            packed, why = b"", f"it is not JSON: {error}"
        self._payload = dumps({"error": why}) if why else packed
        if why:
            raise UnrecordableError(self.key, why)


@asynccontextmanager
async def once(
    key: str, *, ttl: float = TTL, lease: float = LEASE, wait: float = 0.0, broker: HasStore | None = None
) -> AsyncGenerator[Effect, None]:
    """Do what is in the block once per key: the first run records its result, and later ones get it.

    Leaving the block records; an exception gives the effect up, so that a retry may begin it at once. The
    record lives for `ttl` seconds. The effect in progress is leased for `lease` seconds, and renewed while
    the block runs: if its process dies, another run takes over after that time. While another run is at it,
    this one waits up to `wait` seconds for its end. Without a `broker` it is the queue of the running worker.

    Raises EffectInProgressError if another run is at it, EffectLostError if another has taken over, in which
    case the block was cancelled or its end not recorded; both are RetryLater. BrokerError if the server cannot
    be used, LookupError if there is neither broker nor worker, ConfigurationError for values that cannot be used.
    """
    if not isinstance(key, str) or not key:
        raise ConfigurationError(f"key={key!r} cannot be used: give a text that is not empty")
    check_number("ttl", ttl, _SHORTEST)
    check_number("lease", lease, _SHORTEST)
    check_number("wait", wait, 0.0)
    record = _Record(current_queue() if broker is None else broker.store, key, ttl, lease)
    effect = await record.begin(wait)
    if effect.done:
        yield effect
        return
    failed: BaseException | None = None
    happened = False
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(record.keep, effect.token, group.cancel_scope)
            try:
                yield effect
                happened = True
            except BaseException as error:  # raised below: a task group would wrap it
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
                failed = error
                happened = isinstance(error, UnrecordableError) and error.key == key
            group.cancel_scope.cancel()
    except anyio.get_cancelled_exc_class():
        await record.conclude(effect, happened=happened)
        raise
    recorded = await record.conclude(effect, happened=happened)
    if failed is not None:
        raise failed
    if not recorded:
        raise EffectLostError(key, effect.token, after=lease)


class _Record:
    """The record of one key, as the run sees it that would like to have the effect."""

    __slots__ = ("_key", "_keys", "_lease", "_store", "_ttl", "_until")

    def __init__(self, store: Store, key: str, ttl: float, lease: float) -> None:
        self._store = store
        self._key = key
        self._keys = [store.keys.once(key)]
        self._ttl = ttl
        self._lease = lease
        self._until = 0.0  # when the lease is over, on the store's clock

    def __repr__(self) -> str:
        return f"<_Record {self._keys[0]}>"

    async def begin(self, wait: float) -> Effect:
        """Return the effect, to be done or done. Raises EffectInProgressError after `wait` seconds."""
        now = self._store.clock.elapsed
        end = now() + wait
        found = await self._ask()
        if isinstance(found, Effect):
            return found
        if not wait:
            raise EffectInProgressError(self._key, after=found)
        try:
            async with self._store.client.subscriber() as ear:
                await ear.subscribe(*self._keys)
                # Only now nothing is missed. Who died says nothing: its lease ends the wait as well.
                while not isinstance(found := await self._ask(), Effect):
                    left = end - now()
                    if left <= 0:
                        raise EffectInProgressError(self._key, after=found)
                    with anyio.move_on_after(min(left, found)):
                        await ear.receive()
        except redis.exceptions.RedisError as error:
            raise translated(error) from error
        return found

    async def _ask(self) -> Effect | float:
        """Return the effect, or for how long (s) another has it at least."""
        asked = self._store.clock.elapsed()
        state, token, *rest = await self._store.one(step("once_begin")(self._keys, self._ms(self._lease), self._living))
        if state == b"taken":
            return float(rest[0]) / 1000
        self._until = asked + self._lease
        return Effect(self._key, int(token), rest[0] if rest else None)

    async def keep(self, token: int, scope: anyio.CancelScope) -> None:
        """Renew the lease until cancelled; cancel the block if it is lost."""
        now = self._store.clock.elapsed
        pause = self._lease / 3
        while True:
            await anyio.sleep(pause)
            asked, kept = now(), None
            try:
                with anyio.move_on_after(max(pause, self._until - asked)):
                    kept = await self._store.one(
                        step("once_renew")(self._keys, token, self._ms(self._lease), self._living)
                    )
            except BrokerError:
                pass  # it may be back before the lease is over
            if kept:
                self._until = asked + self._lease
            elif kept == 0 or now() >= self._until:
                scope.cancel()
                return

    async def conclude(self, effect: Effect, *, happened: bool) -> bool:
        """Record an effect that happened, and return whether it is recorded; give another one up.

        Tries for as long as the lease is ours. Raises BrokerError if the server cannot be used for all that time.
        """
        if not happened:
            await self._give_up(effect)
            return False
        pause, longest = _PAUSES
        while True:
            try:
                # The effect has happened: who cancels us now must wait for the answer.
                with anyio.CancelScope(shield=True):
                    return bool(await self._store.one(
                        step("once_end")(self._keys, effect.token, self._ms(self._ttl), effect.payload)
                    ))  # fmt: skip
            except BrokerError:
                if self._store.clock.elapsed() + pause >= self._until:
                    raise
            await anyio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _give_up(self, effect: Effect) -> None:
        """Let another begin the effect at once, if that can be said; its lease ends anyway."""
        if effect.abandoned:
            return
        with suppress(BrokerError), anyio.move_on_after(_GIVE_UP_WITHIN, shield=True):
            await self._store.one(step("once_end")(self._keys, effect.token, self._ms(self._ttl)))

    @property
    def _living(self) -> int:
        """How long (ms) the record lives while the effect is in progress."""
        return self._ms(max(self._ttl, self._lease))

    def _ms(self, seconds: float) -> int:
        return max(1, round(seconds * 1000))
