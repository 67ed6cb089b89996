"""The dead letter queue: look at what died, run it again, remove it, watch it come in.

Reads one stream, page by page: no round trip carries more than `PAGE` entries. Knows nothing
of workers; they write dead letters by `scripts/dead.lua`, which keeps the bound.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any, overload

import anyio

from streamq.broker import RedisBroker
from streamq.client import Command
from streamq.dead_letter.entry import DeadLetter
from streamq.errors import (
    BrokerError,
    ConfigurationError,
    DeadLetterNotFoundError,
    OutcomeUnknownError,
    UndecodableError,
)
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.retry_policy import Backoff
from streamq.wire.message import Field, Message

log = logging.getLogger("streamq")

PAGE = 100  # entries of one round trip
REPLAYED_FROM = "replayed_from"  # the header that names the dead task
_TRIM_STEP = 10_000  # entries that one trim removes
_BLOCK = 5.0  # seconds of one blocking read
_OUTAGE = Backoff(base=0.1, factor=2.0, cap=2.0)
_PASSING = frozenset({"UNAVAILABLE", "UNKNOWN", "LOADING", "MASTERDOWN", "NOGROUP"})  # errors that waiting cures
_LAST_SEQUENCE = (1 << 64) - 1


class DeadLetterQueue:
    """The dead letters of a broker's namespace, and how many of them are kept.

    `max_size` is how many are kept at most and `max_age` (s) for how long; None leaves that as
    the broker has it (10,000, of any age). The bound holds for what dies through this broker
    object, in its workers that is, from now on; what exceeds it already is removed at the
    first use. A queue that was given no bound removes nothing by being looked at.

    Raises ConfigurationError for a bound that cannot be used.
    """

    def __init__(
        self, *, broker: RedisBroker, max_size: int | None = None, max_age: float | timedelta | None = None
    ) -> None:
        self._broker = broker
        self._excess = max_size is not None or max_age is not None  # may there be more than is wanted?
        bound = broker.dead_letters
        if max_size is not None:
            if type(max_size) is not int or max_size < 1:
                raise ConfigurationError(f"max_size={max_size!r} cannot be used: give an integer of at least 1")
            bound = replace(bound, max_size=max_size)
        if max_age is not None:
            bound = replace(bound, max_age=_seconds("max_age", max_age))
        self.bound = bound
        if self._excess:
            broker.dead_letters = bound  # its store and its workers ask for it at each death

    def __repr__(self) -> str:
        age = f" max_age={self.bound.max_age:g}" if self.bound.max_age else ""
        return f"<DeadLetterQueue {self._key} max_size={self.bound.max_size}{age}>"

    @property
    def _key(self) -> str:
        return self._broker.keys.dead

    # --- looking -------------------------------------------------------------------------------

    async def size(self) -> int:
        """Return how many dead letters there are."""
        store = await self._ready()
        return int(await store.one(("XLEN", self._key)))

    async def peek(
        self, count: int = 20, *, after: str | None = None, oldest_first: bool = False,
        task_name: str | None = None, reason: str | None = None, error_type: str | None = None,
    ) -> list[DeadLetter]:  # fmt: skip
        """Return up to `count` dead letters and leave them where they are; newest first.

        The next page begins `after` the `entry_id` of the last one, in the same order. Those
        that do not match are left out: `error_type` is a class with its module or without.
        Raises ConfigurationError if `after` is no entry id, BrokerError if the server cannot be
        used.
        """
        store = await self._ready()
        found: list[DeadLetter] = []
        wanted = _filter(task_name, reason, error_type)
        size = PAGE if wanted is not None else min(PAGE, count)
        while len(found) < count:
            page = await self._page(store, size, after=after, newest_first=not oldest_first)
            found += page if wanted is None else filter(wanted, page)
            if len(page) < size:
                break
            after = page[-1].entry_id
        return found[: max(0, count)]

    async def find(self, task_id: str) -> DeadLetter:
        """Return the newest dead letter of a task. Raises DeadLetterNotFoundError if there is none.

        `task_id` may be the entry id of a dead letter, too. Searches from the newest, a page
        at a time.
        """
        store = await self._ready()
        after: str | None = None
        while True:
            page = await self._page(store, PAGE, after=after, newest_first=True)
            for letter in page:
                if task_id in (letter.task_id, letter.entry_id):
                    return letter
            if len(page) < PAGE:
                raise DeadLetterNotFoundError(task_id)
            after = page[-1].entry_id

    async def tail(self, *, after: str | None = None) -> AsyncGenerator[DeadLetter, None]:
        """Yield dead letters as they come in, from now on or `after` an entry id, without end.

        Blocks on a connection of its own and waits for a server that is away. Close the
        iterator when you leave it half way (`contextlib.aclosing`).
        """
        store = await self._ready()
        last = _entry_id(after) if after is not None else await self._newest(store)
        troubled = 0
        async with store.client.blocking() as connection:
            while True:
                command = ("XREAD", "COUNT", PAGE, "BLOCK", round(_BLOCK * 1000), "STREAMS", self._key, last)
                try:
                    reply = await store.blocked(connection, command, block=_BLOCK, on_stranded=_ignored)
                except BrokerError as error:
                    if error.code not in _PASSING:
                        raise
                    troubled += 1
                    log.warning("dead letters cannot be read: %s; trying again", error)
                    await anyio.sleep(_OUTAGE.ceiling(min(troubled, 8)))
                    continue
                troubled = 0
                for entry_id, flat in reply[0][1] if reply else ():
                    last = entry_id.decode()
                    yield DeadLetter.of(entry_id, flat)

    # --- running again ---------------------------------------------------------------------------

    @overload
    async def replay(self, *, task_id: str, retries: int | None = None) -> str: ...
    @overload
    async def replay(
        self, *, task_name: str | None = None, reason: str | None = None, error_type: str | None = None,
        limit: int | None = None, retries: int | None = None,
    ) -> list[str]: ...  # fmt: skip
    async def replay(
        self, *, task_id: str | None = None, task_name: str | None = None, reason: str | None = None,
        error_type: str | None = None, limit: int | None = None, retries: int | None = None,
    ) -> str | list[str]:  # fmt: skip
        """Make dead letters tasks again, each in one atomic step, and return their new ids.

        With `task_id` that one task (the newest, if it died more than once). Else all that match
        `task_name`, `reason` and `error_type`, at most `limit`, in the order they died in; those
        that cannot be replayed stay. A replay is a first attempt in the tier it had, with its
        priority, timeout, result TTL and headers; the header `replayed_from` names the dead
        task. `retries` overrides its retry budget.

        The new id is a random one: ids of entries repeat among tiers, and this one is known
        before the step, so that OutcomeUnknownError can name it (as its `task_id`).

        Raises DeadLetterNotFoundError if there is no such task (any more), UndecodableError if
        it is no message, ConfigurationError if its tier is none of the broker's, or if nothing
        says which to replay.
        """
        if retries is not None and (type(retries) is not int or retries < 0):
            raise ConfigurationError(f"retries={retries!r} cannot be used: give an integer of at least 0")
        chosen = _filter(task_name, reason, error_type)
        if task_id is not None:
            if chosen is not None or limit is not None:
                raise ConfigurationError("replay takes a task_id or a filter: give one of them")
            return await self._replay_one(task_id, retries)
        if chosen is None and limit is None:
            raise ConfigurationError("replay needs a task_id, a filter (task_name, reason, error_type) or a limit")
        return await self._replay_all(chosen, limit, retries)

    async def _replay_one(self, task_id: str, retries: int | None) -> str:
        store = await self._ready()
        letter = await self.find(task_id)
        if not letter.replayable:
            raise UndecodableError(
                f"dead letter {letter.entry_id} (task {letter.task_id!r}) is no message and cannot be replayed; "
                f"unreadable: {', '.join(letter.raw) or 'it names no task'}; enqueue it anew, corrected"
            )
        tier = self._tier(letter)
        if tier is None:
            names = ", ".join(tier.name for tier in self._broker.tiers)
            raise ConfigurationError(f"task {task_id!r} died in the tier {letter.tier!r}; this broker has {names}")
        new_id = secrets.token_urlsafe(12)
        try:
            entry = await store.one(self._step(letter, tier, new_id, retries))
        except OutcomeUnknownError as error:
            error.task_id = new_id
            raise
        if not entry:
            raise DeadLetterNotFoundError(task_id)
        return new_id

    async def _replay_all(
        self, wanted: Callable[[DeadLetter], bool] | None, limit: int | None, retries: int | None
    ) -> list[str]:
        store = await self._ready()
        replayed: list[str] = []
        # What dies again while this goes on is behind the newest of now, and not replayed again.
        async with aclosing(self._pages(store, await self._newest(store))) as pages:
            async for page in pages:
                commands: dict[str, Command] = {}
                for letter in page:
                    tier = self._tier(letter)
                    if not letter.replayable or tier is None or not (wanted is None or wanted(letter)):
                        continue
                    if limit is not None and len(replayed) + len(commands) >= limit:
                        break
                    new_id = secrets.token_urlsafe(12)
                    commands[new_id] = self._step(letter, tier, new_id, retries)
                entries = await store.call(list(commands.values()))
                replayed += [new_id for new_id, entry in zip(commands, entries, strict=True) if entry]
                if limit is not None and len(replayed) >= limit:
                    break
        return replayed

    def _step(self, letter: DeadLetter, tier: int, new_id: str, retries: int | None) -> Command:
        fields: list[Field] = Message(
            task=letter.task_name,
            task_id=new_id,
            args=letter.args,
            kwargs=letter.kwargs,
            headers={**letter.headers, REPLAYED_FROM: letter.task_id},
        ).fields(limit=1 << 62)  # it was accepted once: the header must not make it too large
        options = dict(letter.options) if retries is None else {**letter.options, "retries": str(retries)}
        for pair in options.items():
            fields += pair
        return step("replay")([self._key, self._broker.keys.tiers[tier].stream], letter.entry_id, *fields)

    def _tier(self, letter: DeadLetter) -> int | None:
        """Return the tier that a dead letter came from: by its name, or else by its stream."""
        for index, tier in enumerate(self._broker.tiers):
            if tier.name == letter.tier:
                return index
        stream = letter.origin.partition(" ")[0]
        for index, keys in enumerate(self._broker.keys.tiers):
            if keys.stream == stream:
                return index
        return None

    # --- removing --------------------------------------------------------------------------------

    async def purge(
        self, *, older_than: float | timedelta | None = None, task_name: str | None = None,
        reason: str | None = None, error_type: str | None = None,
    ) -> int:  # fmt: skip
        """Remove dead letters for good and return how many: all, or those that match.

        `older_than` is seconds, or a timedelta, since they died, by the server's clock. What
        dies while this goes on stays. Raises BrokerError if the server cannot be used.
        """
        store = await self._ready()
        last = await self._newest(store)
        if older_than is not None:
            seconds, micros = await store.one(("TIME",))
            limit = int(seconds) * 1000 + int(micros) // 1000 - round(_seconds("older_than", older_than) * 1000)
            last = min(last, f"{max(0, limit - 1)}-{_LAST_SEQUENCE}", key=_order)
        wanted = _filter(task_name, reason, error_type)
        removed = 0
        # By id and not by XTRIM MINID: that of Redis 6.2.5 takes younger entries as well.
        async with aclosing(self._pages(store, last)) as pages:
            async for page in pages:
                if ids := [letter.entry_id for letter in page if wanted is None or wanted(letter)]:
                    removed += int(await store.one(("XDEL", self._key, *ids)))
        return removed

    async def _trim(self, store: Store, size: int) -> None:
        """Trim in steps that do not keep the server for long."""
        while await store.one(("XTRIM", self._key, "MAXLEN", "~", size, "LIMIT", _TRIM_STEP)):
            pass
        await store.one(("XTRIM", self._key, "MAXLEN", "=", size))

    # --- plumbing ----------------------------------------------------------------------------------

    async def _ready(self) -> Store:
        """Return the store; at the first use remove what exceeds the bound that was given."""
        store = self._broker.store
        if self._excess:
            self._excess = False
            try:
                await self._trim(store, self.bound.max_size)
                if self.bound.max_age:
                    await self.purge(older_than=self.bound.max_age)
            except BaseException:
                self._excess = True
                raise
        return store

    async def _newest(self, store: Store) -> str:
        entries = await store.one(("XREVRANGE", self._key, "+", "-", "COUNT", 1))
        return str(entries[0][0], "ascii") if entries else "0-0"

    async def _page(self, store: Store, size: int, *, after: str | None, newest_first: bool) -> list[DeadLetter]:
        if size <= 0:
            return []
        start = None if after is None else f"({_entry_id(after)}"
        first, last = (start or "+", "-") if newest_first else (start or "-", "+")
        command = ("XREVRANGE" if newest_first else "XRANGE", self._key, first, last, "COUNT", size)
        return [DeadLetter.of(entry_id, flat) for entry_id, flat in await store.one(command)]

    async def _pages(self, store: Store, last: str) -> AsyncGenerator[list[DeadLetter], None]:
        """Yield pages, oldest first, up to the entry `last`."""
        after: str | None = None
        while True:
            page = await self._page(store, PAGE, after=after, newest_first=False)
            yield [letter for letter in page if _order(letter.entry_id) <= _order(last)]
            if len(page) < PAGE or _order(page[-1].entry_id) >= _order(last):
                return
            after = page[-1].entry_id


def _filter(task_name: str | None, reason: str | None, error_type: str | None) -> Callable[[DeadLetter], bool] | None:
    """Return what tells whether a dead letter matches, None if all do."""
    if task_name is None and reason is None and error_type is None:
        return None

    def wanted(letter: DeadLetter) -> bool:
        return (
            task_name in (None, letter.task_name)
            and reason in (None, letter.reason)
            and error_type in (None, letter.error_type, letter.error_type.rpartition(".")[2])
        )

    return wanted


def _seconds(what: str, value: float | timedelta) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not 0 <= seconds < float("inf"):
        raise ConfigurationError(f"{what}={value!r} cannot be used: give seconds of at least 0")
    return float(seconds)


def _entry_id(text: str) -> str:
    ms, _, sequence = text.partition("-")
    if not (text.isascii() and ms.isdigit() and (sequence or "0").isdigit()):
        raise ConfigurationError(f"after={text!r} is no entry id: give the entry_id of a dead letter")
    return text


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)


def _ignored(_: Any) -> None:
    """Reading dead letters takes nothing away: what a cancelled read got is still there."""
