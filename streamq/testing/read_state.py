"""Reads the final state of Redis after a run, with ordinary commands.

It reads all keys and entries (SCAN, XRANGE, HGETALL). Use it in tests and not on a busy server.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson

from streamq.broker import RedisBroker
from streamq.dead_letter import DeadLetterQueue
from streamq.diagnostics.unawaited import name_remedy
from streamq.queue.store import Store
from streamq.testing.report import FinalState
from streamq.wire.keys import RELEASED_CONSUMER, Keys, TierKeys

_PAGE = 1000


async def final_state(broker: RedisBroker, *, shared: bool = False) -> FinalState:
    """Read the state of a broker's namespace, as its consumer group sees it.

    `shared` says that the server holds other keys as well: keys outside the namespace are then ignored.
    Otherwise each of them is reported in `stray`. Raises BrokerError if the server cannot be used.
    """
    store = broker.store
    keys = [key async for key in _scan(store, f"{_escaped(broker.keys.namespace)}*" if shared else "*")]
    waiting: dict[str, frozenset[str]] = {}
    pending: dict[str, dict[str, int]] = {}
    consumers: list[tuple[str, str, int]] = []
    delayed: set[str] = set()
    stray = await _strays(store, broker.keys, keys)
    for tier, names in zip(broker.tiers, broker.keys.tiers, strict=True):
        if names.stream in keys:
            entries = {entry: fields async for entry, fields in _entries(store, names.stream)}
            waiting[tier.name] = frozenset(fields.get("id") or entry for entry, fields in entries.items())
            pending_by_consumer = await _consumers(store, names.stream, broker.keys.group)
            consumers += [(tier.name, name, held) for name, held in pending_by_consumer.items()]
            pending[tier.name] = {name: held for name, held in pending_by_consumer.items() if held}
            stray += await _leftovers(store, names, entries)
        delayed |= await _delayed(store, names, broker.keys.group)
    queue = DeadLetterQueue(broker=broker)
    dead = [
        (dead_letter.task_id, dead_letter.reason)
        for dead_letter in await queue.peek(await queue.size(), oldest_first=True)
    ]
    return FinalState(
        waiting, pending, frozenset(delayed), tuple(dead), tuple(consumers), tuple(sorted(stray)), tuple(sorted(keys))
    )


# --- the queue -----------------------------------------------------------------------------------


async def _entries(store: Store, stream: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Yield the id and the fields of each entry of a stream."""
    start = "-"
    while rows := await store.one(("XRANGE", stream, start, "+", "COUNT", _PAGE)):
        for entry_id, flat in rows:
            yield entry_id.decode(), _fields(part.decode(errors="backslashreplace") for part in flat)
        start = "(" + rows[-1][0].decode()


async def _consumers(store: Store, stream: str, group: str) -> dict[str, int]:
    """Return the number of pending entries of each consumer, 0 included."""
    groups = [_as_dict(flat)["name"].decode() for flat in await store.one(("XINFO", "GROUPS", stream))]
    if group not in groups:
        return {}
    rows = [_as_dict(flat) for flat in await store.one(("XINFO", "CONSUMERS", stream, group))]
    return {
        row["name"].decode(): row["pending"]
        for row in rows
        if row["name"].decode() != RELEASED_CONSUMER or row["pending"]
    }


async def _delayed(store: Store, names: TierKeys, group: str) -> set[str]:
    """Return the ids of the delayed tasks of a tier."""
    members = await store.one(("ZRANGE", names.delayed, 0, -1))
    task_ids = set()
    for at in range(0, len(members), _PAGE):
        batch = members[at : at + _PAGE]
        for member, packed in zip(batch, await store.one(("HMGET", names.messages, *batch)), strict=True):
            task_ids.add(_packed_id(packed) or member.decode().removeprefix(f"{group}|"))
    return task_ids


def _packed_id(packed: bytes | None) -> str:
    """Return the task id in a delayed message, empty if there is none."""
    try:
        return _fields(orjson.loads(packed or b"[]")).get("id", "")
    except (orjson.JSONDecodeError, TypeError):
        return ""


# --- keys ----------------------------------------------------------------------------------------


async def _strays(store: Store, keys: Keys, found: list[str]) -> list[str]:
    """Return the keys that docs/wire-format.md does not list, or that have lost their TTL."""
    permanent = {keys.dead, keys.schedules, keys.ticks, keys.ticked}
    for names in keys.tiers:
        permanent |= {names.stream, names.delayed, names.messages}
    expiring = _expiring(keys)
    stray = []
    for at in range(0, len(found), _PAGE):
        batch = found[at : at + _PAGE]
        for key, ttl in zip(batch, await store.call([("PTTL", key) for key in batch]), strict=True):
            if key not in permanent and not expiring.fullmatch(key):
                stray.append(key)
            elif key not in permanent and ttl == -1:
                stray.append(f"{key} (no TTL)")
    return stray


def _expiring(keys: Keys) -> re.Pattern[str]:
    """Return a pattern for the names of keys with a TTL, those of other groups included."""
    streams = "|".join(re.escape(names.stream) for names in keys.tiers)
    own = re.escape(keys.namespace)
    kinds = "result|id|dedup|latest|seen|once|progress|join|workflow|rate|circuit|permits|called|line"
    return re.compile(
        rf"(?:{streams}):(?:alive|leases|crashes):\S+|{own}:(?:durable|circuits|limits|stats:\S+:\d+|(?:{kinds}):.+)",
        re.DOTALL,
    )


async def _leftovers(store: Store, names: TierKeys, entries: dict[str, Any]) -> list[str]:
    """Return remains of tasks inside permitted keys: crash evidence, and delayed tasks without id or message."""
    crashes, messages, members = await store.call(
        [("HKEYS", names.crashes), ("HKEYS", names.messages), ("ZRANGE", names.delayed, 0, -1)]
    )
    kept = [field.decode().removesuffix(":alone") for field in crashes]
    stray = [f"{names.crashes} {entry}" for entry in kept if entry not in entries]
    for half, whole, name in ((messages, members, names.messages), (members, messages, names.delayed)):
        stray += [f"{name} {left.decode(errors='backslashreplace')}" for left in set(half) - set(whole)]
    return stray


async def _scan(store: Store, pattern: str) -> AsyncIterator[str]:
    """Yield the names of all matching keys, each once."""
    cursor, seen = b"0", set[bytes]()
    while True:
        cursor, batch = await store.one(("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE))
        for key in batch:
            if key not in seen:
                seen.add(key)
                yield key.decode(errors="backslashreplace")
        if cursor == b"0":
            return


# --- replies -------------------------------------------------------------------------------------


def _escaped(text: str) -> str:
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def _fields(flat: Iterable[str]) -> dict[str, str]:
    parts = iter(flat)
    return dict(zip(parts, parts, strict=False))


def _as_dict(flat: list[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


name_remedy(final_state, "final_state(...)")
