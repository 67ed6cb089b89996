"""The dead letter queue: read, replay, remove and follow dead letters.

Reads one stream, page by page: no round trip carries more than `PAGE` entries. Knows nothing about
workers. They write dead letters with `scripts/dead_letter.lua`, which keeps the bound.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any, overload

from streamq.broker import RedisBroker
from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.groups import with_existing_groups
from streamq.dead_letter.replaying import PassedOver, Replay, checked_replay
from streamq.dead_letter.selection import checked_entry_id, matcher, nothing_after, order
from streamq.dead_letter.trimming import count_dropped, trim
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import (
    BrokerError,
    ConfigurationError,
    DeadLetterNotFoundError,
    OutcomeUnknownError,
    StreamqError,
)
from streamq.queue.server_errors import passes
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Backoff
from streamq.wire import bounds
from streamq.wire.argument_types import check_type
from streamq.wire.command_line import in_quotes, streamq_command

log = SafeLog("streamq")

PAGE = 100  # entries of one round trip
_BLOCK_SECONDS = 5.0  # seconds of one blocking read
_OUTAGE_BACKOFF = Backoff(base=0.1, factor=2.0, cap=2.0)
_TRANSIENT_CODES = frozenset(
    {"UNAVAILABLE", "UNKNOWN", "NOGROUP", "UNBLOCKED"}
)  # codes of errors that go away by themselves, beside the states of the server
_LAST_SEQUENCE = (1 << 64) - 1


class DeadLetterQueue:
    """The dead letters of a broker's namespace, and the bound of their stream.

    `max_size` is the most dead letters to keep, and `max_age` (seconds or timedelta) how long to keep them.
    None keeps the broker's value (by default 10,000, of any age). The bound applies to dead letters that
    workers of this broker object write from now on. The first use removes dead letters above a bound that
    was given. A queue without one removes nothing when it is read.

    Raises ConfigurationError if a bound cannot be used.
    """

    def __init__(
        self, *, broker: RedisBroker, max_size: int | None = None, max_age: float | timedelta | None = None
    ) -> None:
        self._broker = check_type("broker", broker, RedisBroker, "a RedisBroker")
        self._may_exceed_bound = max_size is not None or max_age is not None  # may the stream hold more than the bound?
        bound = broker.dead_letters
        if max_size is not None:
            bound = replace(bound, max_size=max_size)
        if max_age is not None:
            bound = replace(bound, max_age=bounds.DEAD_LETTER_AGE.check(max_age))
        self.bound = bound
        if self._may_exceed_bound:
            broker.dead_letters = bound  # its store and its workers read it for each dead letter

    def __repr__(self) -> str:
        age = f" max_age={self.bound.max_age:g}" if self.bound.max_age else ""
        return f"<DeadLetterQueue {self._key} max_size={self.bound.max_size}{age}>"

    @property
    def _key(self) -> str:
        return self._broker.keys.dead

    # --- reading -------------------------------------------------------------------------------

    async def size(self) -> int:
        """Return the number of dead letters."""
        store = await self._trimmed_store()
        return int(await store.one(("XLEN", self._key)))

    async def peek(
        self, count: int = 20, *, after: str | None = None, oldest_first: bool = False,
        task_name: str | None = None, reason: str | None = None, error_type: str | None = None,
    ) -> list[DeadLetterEntry]:  # fmt: skip
        """Return up to `count` dead letters, newest first. They stay in the stream.

        To get the next page, give the `entry_id` of the last one as `after`, with the same order. `task_name`,
        `reason` and `error_type` select dead letters; `error_type` is a class name with its module or without.
        Raises ConfigurationError for a value that cannot be used, BrokerError if the server cannot be used.
        """
        bounds.PEEKED.check(count)
        store = await self._trimmed_store()
        found: list[DeadLetterEntry] = []
        matches = matcher(task_name, reason, error_type)
        size = PAGE if matches is not None else min(PAGE, count)
        while len(found) < count:
            page = await self._page(store, size, after=after, newest_first=not oldest_first)
            found += page if matches is None else filter(matches, page)
            if len(page) < size:
                break
            after = page[-1].entry_id
        return found[:count]

    async def find(self, task_id: str) -> DeadLetterEntry:
        """Return the newest dead letter of a task. Raises DeadLetterNotFoundError if there is none.

        `task_id` may also be the entry id of a dead letter. Searches from the newest, page by page.
        """
        store = await self._trimmed_store()
        after: str | None = None
        while True:
            page = await self._page(store, PAGE, after=after, newest_first=True)
            for dead_letter in page:
                if task_id in (dead_letter.task_id, dead_letter.entry_id):
                    return dead_letter
            if len(page) < PAGE:
                raise self._not_found(task_id)
            after = page[-1].entry_id

    async def tail(self, *, after: str | None = None) -> AsyncGenerator[DeadLetterEntry, None]:
        """Yield new dead letters as they arrive, or all `after` an entry id, without end.

        Blocks on its own connection. If the server is down, or becomes a replica, waits for it. Close the iterator if
        you leave it before its end (`contextlib.aclosing`).
        """
        store = await self._trimmed_store()
        last = checked_entry_id(after) if after is not None else await self._newest_id(store)
        failures = 0
        async with store.client.blocking() as connection:
            while True:
                command = ("XREAD", "COUNT", PAGE, "BLOCK", round(_BLOCK_SECONDS * 1000), "STREAMS", self._key, last)
                try:
                    reply = await store.blocked(
                        connection, command, block=_BLOCK_SECONDS, on_late_reply=_ignore_late_reply
                    )
                except BrokerError as error:
                    if store.client.closed or (error.code not in _TRANSIENT_CODES and not passes(error)):
                        raise
                    failures += 1
                    log.warning("cannot read dead letters: %s; trying again", error, event="server_lost")
                    await store.client.pause(_OUTAGE_BACKOFF.ceiling(min(failures, 8)))
                    continue
                failures = 0
                for entry_id, flat in reply[0][1] if reply else ():
                    last = entry_id.decode()
                    yield DeadLetterEntry.of(entry_id, flat)

    # --- replaying ---------------------------------------------------------------------------

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
        """Enqueue dead letters again, each in one atomic step, and return their new task ids.

        `task_id` replays one task (its newest dead letter, if it has several). Without it, replays all
        that match `task_name`, `reason` and `error_type`, at most `limit`, oldest first. Dead letters that cannot be
        replayed stay, and the log names them, ten of each cause.
        A replay is a first attempt in the same tier, with the same priority, timeout,
        result TTL and headers, and holds the deduplication key of the dead task again. The header `replayed_from`
        names the dead task. `retries` overrides the retry budget. It runs in the consumer group of the dead letter, or
        in that of the broker if its stream has no such group.

        The new id is random: entry ids repeat among tiers, and this id is known before the step, so that
        OutcomeUnknownError can carry it (as `task_id`).

        Raises DedupKeyHeldError if another task holds the deduplication key,
        DeadLetterNotFoundError if there is no such dead letter, UndecodableError if it is not a
        message, ConfigurationError if the broker does not have its tier, or if no selection is given.
        """
        if retries is not None:
            bounds.RETRIES.check(retries)
        if limit is not None:
            bounds.REPLAYED.check(limit)
        chosen = matcher(task_name, reason, error_type)
        if task_id is not None:
            if chosen is not None or limit is not None:
                raise ConfigurationError("replay takes a task_id or a filter: give one of the two")
            return await self._replay_one(task_id, retries)
        if chosen is None and limit is None:
            raise ConfigurationError("replay needs a task_id, a filter (task_name, reason, error_type) or a limit")
        return await self._replay_all(chosen, limit, retries)

    async def select(
        self, ids: Collection[str] = (), *, task_name: str | None = None, reason: str | None = None,
        error_type: str | None = None,
    ) -> AsyncGenerator[DeadLetterEntry | str, None]:  # fmt: skip
        """Yield the newest dead letter of each of these ids; or all that match and are there now, oldest first.

        Reads the stream once. An id that has no dead letter is yielded itself.
        """
        store = await self._trimmed_store()
        last = await self._newest_id(store)
        matches, wanted, found = matcher(task_name, reason, error_type), set(ids), dict[str, DeadLetterEntry]()
        async with aclosing(self._pages(store, last)) as pages:
            async for page in pages:
                for dead_letter in page:
                    if wanted:
                        own = wanted & {dead_letter.entry_id, dead_letter.task_id}
                        found.update(dict.fromkeys(own, dead_letter))
                    elif matches is None or matches(dead_letter):
                        yield dead_letter
        for one in dict.fromkeys(ids):
            yield found.get(one, one)

    async def replay_entry(self, dead_letter: DeadLetterEntry, *, retries: int | None = None) -> str:
        """Enqueue one dead letter again, and return its new task id. Raises what `replay` raises."""
        if retries is not None:
            bounds.RETRIES.check(retries)
        return await self._replay_letter(dead_letter, dead_letter.task_id, retries)

    async def _replay_one(self, task_id: str, retries: int | None) -> str:
        return await self._replay_letter(await self.find(task_id), task_id, retries)

    async def _replay_letter(self, dead_letter: DeadLetterEntry, task_id: str, retries: int | None) -> str:
        store = await self._trimmed_store()
        (dead_letter,) = await with_existing_groups(store, [dead_letter], self._stream_of)
        one = checked_replay(store, dead_letter, self._tier_index(dead_letter), self._broker.tiers, retries)
        try:
            entry, holder = await store.one(one.command(store))
        except OutcomeUnknownError as error:
            error.task_id = one.task_id
            raise
        if holder:
            raise one.held(holder)
        if not entry:
            raise self._not_found(task_id)
        return one.task_id

    def _not_found(self, task_id: str) -> DeadLetterNotFoundError:
        return DeadLetterNotFoundError(task_id, in_quotes(streamq_command(self._broker.keys, "dlq", "ls")))

    async def _replay_all(
        self, matches: Callable[[DeadLetterEntry], bool] | None, limit: int | None, retries: int | None
    ) -> list[str]:
        store = await self._trimmed_store()
        replayed, passed_over = list[str](), PassedOver()
        # A task that dies again during the replay is newer than this entry, so it is not replayed twice.
        async with aclosing(self._pages(store, await self._newest_id(store))) as pages:
            async for page in pages:
                chosen: list[Replay] = []
                for dead_letter in await with_existing_groups(store, page, self._stream_of):
                    if matches is not None and not matches(dead_letter):
                        continue
                    if limit is not None and len(replayed) + len(chosen) >= limit:
                        break
                    tier = self._tier_index(dead_letter)
                    try:
                        chosen.append(checked_replay(store, dead_letter, tier, self._broker.tiers, retries))
                    except StreamqError as error:
                        passed_over.note(error)
                replies = await store.call([one.command(store) for one in chosen])
                for one, (entry, holder) in zip(chosen, replies, strict=True):
                    if entry:
                        replayed.append(one.task_id)
                    elif holder:
                        passed_over.note(one.held(holder))
                if limit is not None and len(replayed) >= limit:
                    break
        passed_over.log_total(len(replayed))
        return replayed

    def _tier_index(self, dead_letter: DeadLetterEntry) -> int | None:
        """Return the index of the tier of a dead letter: by the tier's name, or else by its stream."""
        for index, tier in enumerate(self._broker.tiers):
            if tier.name == dead_letter.tier:
                return index
        stream = dead_letter.origin.partition(" ")[0]
        for index, keys in enumerate(self._broker.keys.tiers):
            if keys.stream == stream:
                return index
        return None

    def _stream_of(self, dead_letter: DeadLetterEntry) -> str | None:
        tier = self._tier_index(dead_letter)
        return None if tier is None else self._broker.keys.tiers[tier].stream

    # --- removing --------------------------------------------------------------------------------

    async def purge(
        self, *, older_than: float | timedelta | None = None, task_name: str | None = None,
        reason: str | None = None, error_type: str | None = None,
    ) -> int:  # fmt: skip
        """Remove all dead letters, or those that match, and return how many were removed.

        `older_than` is the least age in seconds, or as a timedelta, by the server's clock. Dead letters that
        arrive during the purge stay. Raises BrokerError if the server cannot be used.
        """
        store = await self._trimmed_store()
        last = await self._newest_id(store)
        if older_than is not None:
            seconds, micros = await store.one(("TIME",))
            limit = int(seconds) * 1000 + int(micros) // 1000 - round(bounds.OLDER_THAN.check(older_than) * 1000)
            last = min(last, f"{max(0, limit - 1)}-{_LAST_SEQUENCE}", key=order)
        matches = matcher(task_name, reason, error_type)
        removed = 0
        # By id and not by XTRIM MINID: in Redis 6.2.5 that removes newer entries as well.
        async with aclosing(self._pages(store, last)) as pages:
            async for page in pages:
                if ids := [dead_letter.entry_id for dead_letter in page if matches is None or matches(dead_letter)]:
                    removed += int(await store.one(("XDEL", self._key, *ids)))
        return removed

    # --- pages ----------------------------------------------------------------------------------

    async def _trimmed_store(self) -> Store:
        """Return the store. The first call removes dead letters above the bound that was given."""
        store = self._broker.store
        if self._may_exceed_bound:
            self._may_exceed_bound = False
            try:
                await trim(store, self.bound.max_size)
                if self.bound.max_age:
                    await count_dropped(store, await self.purge(older_than=self.bound.max_age))
            except BaseException:
                self._may_exceed_bound = True
                raise
        return store

    async def _newest_id(self, store: Store) -> str:
        entries = await store.one(("XREVRANGE", self._key, "+", "-", "COUNT", 1))
        return str(entries[0][0], "ascii") if entries else "0-0"

    async def _page(self, store: Store, size: int, *, after: str | None, newest_first: bool) -> list[DeadLetterEntry]:
        if size <= 0 or (after is not None and nothing_after(after, newest_first=newest_first)):
            return []
        start = None if after is None else f"({checked_entry_id(after)}"
        first, last = (start or "+", "-") if newest_first else (start or "-", "+")
        command = ("XREVRANGE" if newest_first else "XRANGE", self._key, first, last, "COUNT", size)
        return [DeadLetterEntry.of(entry_id, flat) for entry_id, flat in await store.one(command)]

    async def _pages(self, store: Store, last: str) -> AsyncGenerator[list[DeadLetterEntry], None]:
        """Yield pages, oldest first, up to the entry id `last`."""
        after: str | None = None
        while True:
            page = await self._page(store, PAGE, after=after, newest_first=False)
            yield [dead_letter for dead_letter in page if order(dead_letter.entry_id) <= order(last)]
            if len(page) < PAGE or order(page[-1].entry_id) >= order(last):
                return
            after = page[-1].entry_id


name_remedies(DeadLetterQueue, "dlq")


def _ignore_late_reply(_: Any) -> None:
    """Ignore the reply of a cancelled read: reading removes nothing, so the entries are still there."""
