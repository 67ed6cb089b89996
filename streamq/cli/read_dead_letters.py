"""Reads the dead letter stream for `streamq dlq`, with every field of an entry, known or not.

Whatever an entry holds, it is read: values that are no text or no JSON stay texts with escapes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
import orjson

from streamq.broker import RedisBroker
from streamq.cli import output
from streamq.errors import BrokerError
from streamq.queue.server_errors import is_final
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Backoff

if TYPE_CHECKING:
    from streamq.dead_letter import Redaction

_PAGE_SIZE: Final = 500  # entries of one read
_BLOCK_SECONDS: Final = 5.0  # seconds of one blocking read
_OUTAGE_BACKOFF: Final = Backoff(base=0.2, factor=2.0, cap=3.0, jitter=False)
_JSON_FIELDS: Final = {"args": list, "kwargs": dict, "headers": dict, "attempts": int, "starts": int, "retries": int,
                       "priority": int}  # fmt: skip

DeadLetterFields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FieldFilter:
    """Selects dead letters by task name and reason (None matches any), and hides arguments of them."""

    task: str | None = None
    reason: str | None = None
    redact: Redaction | None = None

    def decoded(self, entry_id: bytes, flat: Sequence[bytes]) -> DeadLetterFields:
        """Return every field of an entry, with what is hidden."""
        return decoded(entry_id, flat if self.redact is None else self.redact.flat(flat))

    def __contains__(self, entry: DeadLetterFields) -> bool:
        return self.task in (None, entry.get("task")) and self.reason in (None, entry.get("reason"))


async def read_newest_first(broker: RedisBroker, filter_: FieldFilter) -> AsyncIterator[DeadLetterFields]:
    """Yield the dead letters that match the filter, newest first."""
    last = "+"
    while True:
        rows = await broker.store.one(("XREVRANGE", broker.keys.dead, last, "-", "COUNT", _PAGE_SIZE))
        for entry_id, flat in rows:
            if (entry := filter_.decoded(entry_id, flat)) in filter_:
                yield entry
        if len(rows) < _PAGE_SIZE:
            return
        last = f"({rows[-1][0].decode()}"


async def follow(broker: RedisBroker, last: str, filter_: FieldFilter) -> AsyncIterator[DeadLetterFields]:
    """Yield the entries after the entry id `last` that match the filter, without end.

    If the server cannot be used, wait and read on.
    """
    store, key = broker.store, broker.keys.dead
    failures = 0
    async with store.client.blocking() as connection:
        while True:
            command = ("XREAD", "COUNT", _PAGE_SIZE, "BLOCK", round(_BLOCK_SECONDS * 1000), "STREAMS", key, last)
            try:
                reply = await store.blocked(connection, command, block=_BLOCK_SECONDS, on_late_reply=lambda _: None)
            except BrokerError as error:
                if is_final(error):
                    raise
                failures += 1
                if failures == 1:
                    output.note(f"streamq: {error}; waiting for the server")
                await anyio.sleep(_OUTAGE_BACKOFF.ceiling(min(failures, 8)))
                continue
            failures = 0
            for _, rows in reply or ():
                for entry_id, flat in rows:
                    last = entry_id.decode()
                    if (entry := filter_.decoded(entry_id, flat)) in filter_:
                        yield entry


async def newest_id(store: Store, key: str) -> str:
    """Return the id of the newest entry. With it, unlike with `$`, XREAD misses nothing between two reads."""
    rows = await store.one(("XREVRANGE", key, "+", "-", "COUNT", 1))
    return rows[0][0].decode() if rows else "0-0"


def decoded(entry_id: bytes, flat: Sequence[bytes]) -> DeadLetterFields:
    """Return every field of an entry: texts, and JSON where it is what it should be."""
    texts = [part.decode(errors="backslashreplace") for part in flat]
    entry: DeadLetterFields = dict(zip(texts[::2], texts[1::2], strict=False))
    for name, kind in _JSON_FIELDS.items():
        if (text := entry.get(name)) is None:
            continue
        try:
            value = orjson.loads(text)
            orjson.dumps([[value]])  # what is nested deeper can be read, and not be written
        except (orjson.JSONDecodeError, TypeError):
            continue  # it stays text
        if type(value) is kind:
            entry[name] = value
    # Whatever fields an entry has, this is its id.
    return {"entry_id": entry_id.decode(), **{name: value for name, value in entry.items() if name != "entry_id"}}
