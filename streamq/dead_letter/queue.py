"""The dead letter queue: read, search, replay, remove and follow dead letters, one or many.

Reads one stream, page by page (`dead_letter/pages.py`). Knows nothing about workers. They write dead letters with
`scripts/dead_letter.lua`, which keeps the bound.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, overload

from streamq.broker import RedisBroker
from streamq.dead_letter.editing import checked_values
from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.filter import DeadLetterFilter
from streamq.dead_letter.groups import with_existing_groups
from streamq.dead_letter.lines import Imported, export_lines, import_lines
from streamq.dead_letter.operation import DeadLetterOperation, begin, list_operations, read_progress, this_process
from streamq.dead_letter.pages import PAGE, PageReader, newest_id, pages
from streamq.dead_letter.progress import KINDS, Kind, OperationProgress
from streamq.dead_letter.redaction import Redaction
from streamq.dead_letter.replay_many import replay_many
from streamq.dead_letter.replaying import checked_replay, stream_of
from streamq.dead_letter.searching import DeadLetterStats, SearchResult, count_by_error, search, window_of
from streamq.dead_letter.selection import checked_entry_id, order
from streamq.dead_letter.trimming import count_dropped, remove, trim
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import (
    BrokerError,
    ConfigurationError,
    DeadLetterNotFoundError,
    OutcomeUnknownError,
)
from streamq.queue.sending import new_task_id
from streamq.queue.server_errors import passes
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Backoff
from streamq.wire import bounds
from streamq.wire.argument_types import check_type
from streamq.wire.command_line import in_quotes, streamq_command
from streamq.wire.message import iso

log = SafeLog("streamq")

_BLOCK_SECONDS = 5.0  # seconds of one blocking read
_ALL = DeadLetterFilter()
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_OUTAGE_BACKOFF = Backoff(base=0.1, factor=2.0, cap=2.0)
_TRANSIENT_CODES = frozenset(
    {"UNAVAILABLE", "UNKNOWN", "NOGROUP", "UNBLOCKED"}
)  # codes of errors that go away by themselves, beside the states of the server


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
        matches = DeadLetterFilter(task_name=task_name, reason=reason, error_type=error_type).matcher()
        reader = PageReader(store, after=after, newest_first=not oldest_first)
        while len(found) < count and not reader.ended:
            page = await reader.next(PAGE if matches is not None else count)
            found += page if matches is None else filter(matches, page)
        return found[:count]

    async def search(
        self, matching: DeadLetterFilter = _ALL, *, count: int = 20, after: str | None = None,
        oldest_first: bool = False, examine: int = 10_000,
    ) -> SearchResult:  # fmt: skip
        """Return up to `count` dead letters that match, newest first, and how far this call has looked.

        It looks at `examine` letters at most, or at 64 MiB of them. To go on, give the result's `after`, with the same
        order. Raises ConfigurationError for a value that cannot be used, BrokerError if the server cannot be used.
        """
        bounds.SEARCHED.check(count)
        bounds.EXAMINED.check(examine)
        store = await self._trimmed_store()
        return await search(store, matching, count=count, after=after, newest_first=not oldest_first, most=examine)

    async def stats(
        self, matching: DeadLetterFilter = _ALL, *, before: DeadLetterStats | None = None, examine: int = 10_000
    ) -> DeadLetterStats:
        """Return the dead letters that match, counted by task, type of error and reason.

        One call looks at `examine` letters at most, or at 64 MiB of them, oldest first. While the result's `after` is
        not None, give it as `before` to go on. Raises what `search` raises.
        """
        bounds.EXAMINED.check(examine)
        store = await self._trimmed_store()
        return await count_by_error(store, matching, before=before or DeadLetterStats(), most=examine)

    async def find(self, task_id: str) -> DeadLetterEntry:
        """Return the newest dead letter of a task. Raises DeadLetterNotFoundError if there is none.

        `task_id` may also be the entry id of a dead letter. Searches from the newest, page by page.
        """
        store = await self._trimmed_store()
        reader = PageReader(store, after=None, newest_first=True)
        while not reader.ended:
            for dead_letter in await reader.next():
                if task_id in (dead_letter.task_id, dead_letter.entry_id):
                    return dead_letter
        raise self._not_found(task_id)

    async def tail(self, *, after: str | None = None) -> AsyncGenerator[DeadLetterEntry, None]:
        """Yield new dead letters as they arrive, or all `after` an entry id, without end.

        Blocks on its own connection. If the server is down, or becomes a replica, waits for it. Close the iterator if
        you leave it before its end (`contextlib.aclosing`).
        """
        store = await self._trimmed_store()
        last = checked_entry_id(after) if after is not None else await newest_id(store)
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
        chosen = DeadLetterFilter(task_name=task_name, reason=reason, error_type=error_type).matcher()
        if task_id is not None:
            if chosen is not None or limit is not None:
                raise ConfigurationError("replay takes a task_id or a filter: give one of the two")
            return await self._replay_one(task_id, retries)
        if chosen is None and limit is None:
            raise ConfigurationError("replay needs a task_id, a filter (task_name, reason, error_type) or a limit")
        return await replay_many(await self._trimmed_store(), chosen, limit, retries)

    async def select(
        self, ids: Collection[str] = (), *, task_name: str | None = None, reason: str | None = None,
        error_type: str | None = None,
    ) -> AsyncGenerator[DeadLetterEntry | str, None]:  # fmt: skip
        """Yield the newest dead letter of each of these ids; or all that match and are there now, oldest first.

        Reads the stream once. An id that has no dead letter is yielded itself.
        """
        store = await self._trimmed_store()
        wanted, found = set(ids), dict[str, DeadLetterEntry]()
        matches = DeadLetterFilter(task_name=task_name, reason=reason, error_type=error_type).matcher()
        async with aclosing(pages(store, await newest_id(store))) as some:
            async for page in some:
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
        (dead_letter,) = await with_existing_groups(store, [dead_letter], partial(stream_of, store))
        one = checked_replay(store, dead_letter, retries)
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
        filter_ = DeadLetterFilter(task_name=task_name, reason=reason, error_type=error_type, older_than=older_than)
        _, oldest_kept = await window_of(store, filter_)
        return await remove(store, filter_.matcher(), min(oldest_kept, await newest_id(store), key=order))

    # --- operations -----------------------------------------------------------------------------

    async def start(
        self, kind: Kind, matching: DeadLetterFilter = _ALL, *, limit: int | None = None, rate: float | None = None,
        retries: int | None = None, set_arguments: Mapping[str, Any] = _NOTHING, edits: bool = False,
        dry_run: bool = False,
    ) -> DeadLetterOperation:  # fmt: skip
        """Begin to "replay" or "purge" the letters that match and are there now. `run` of the result carries it out.

        It replays or removes `limit` letters at most, `rate` a second. `set_arguments` are new values of arguments, by
        name or by the place of a positional one ("0"); with `edits` a function that `run` is given makes them.
        `retries` overrides the retry budget. With `dry_run` nothing is changed, and nothing kept.
        Raises ConfigurationError for a value that cannot be used, BrokerError if the server cannot be used.
        """
        if kind not in KINDS:
            raise ConfigurationError(f"kind={repr_of(kind)} is not known: give one of {', '.join(KINDS)}")
        values = checked_values(set_arguments)
        if kind == "purge" and (values or edits or retries is not None):
            raise ConfigurationError("purge removes letters: leave out set_arguments, edits and retries")
        for bound, value in ((bounds.OPERATED, limit), (bounds.OPERATION_RATE, rate), (bounds.RETRIES, retries)):
            if value is not None:
                bound.check(value)
        store = await self._trimmed_store()
        newest = await newest_id(store)
        after, last = await window_of(store, matching)
        now = datetime.fromisoformat(iso(store.clock.now()))
        progress = OperationProgress(
            id=new_task_id(), kind=kind, state="running", filter=matching, limit=limit, rate=rate, retries=retries,
            set_arguments=values, edited=edits, total=await self.size(), started_by=this_process(), started_at=now,
            changed_at=now, after=after, last=min(last, newest, key=order),
        )  # fmt: skip
        if not dry_run:
            await begin(store, progress)
        return DeadLetterOperation(self._broker, progress, dry_run=dry_run)

    async def operation(self, operation_id: str) -> DeadLetterOperation:
        """Return an operation that was begun, to stop or resume it. Raises OperationNotFoundError."""
        check_type("operation_id", operation_id, str, "the id of an operation, as text")
        return DeadLetterOperation(self._broker, await read_progress(self._broker.store, operation_id))

    async def operations(self) -> list[OperationProgress]:
        """Return the operations of the last days and how far each is, the newest first: 100 at most."""
        return await list_operations(self._broker.store)

    # --- lines ----------------------------------------------------------------------------------

    async def export(
        self, matching: DeadLetterFilter = _ALL, *, redact: Redaction | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the dead letters that match and are there now, each as a line of JSON, oldest first.

        Nothing is lost, bytes that are no text included. With `redact` the values of some arguments are; such lines
        cannot be imported. Close the iterator if you leave it before its end (`contextlib.aclosing`).
        """
        async with aclosing(export_lines(await self._trimmed_store(), matching, redact)) as lines:
            async for line in lines:
                yield line

    async def import_lines(self, lines: Iterable[bytes | str]) -> AsyncGenerator[Imported, None]:
        """Add dead letters that `export` has written, each with a new entry id, and yield what became of each line.

        A line that is none is passed over. To import a line twice adds its letter twice. Raises BrokerError if the
        server cannot be used: what was yielded before is there. Close the iterator if you leave it before its end.
        """
        async with aclosing(import_lines(self._broker.store, lines)) as found:
            async for one in found:
                yield one

    # --- the bound ------------------------------------------------------------------------------

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


name_remedies(DeadLetterQueue, "dlq")


def _ignore_late_reply(_: Any) -> None:
    """Ignore the reply of a cancelled read: reading removes nothing, so the entries are still there."""
