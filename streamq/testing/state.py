"""What lies in Redis when a run is over, read with commands that anyone may send.

It reads everything, key by key (SCAN, XRANGE, HGETALL): for tests, and not for a server at work.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson

from streamq.broker import RedisBroker
from streamq.dead_letter import DeadLetterQueue
from streamq.queue.store import Store
from streamq.testing.verdict import FinalState
from streamq.wire.keys import PARKED, Keys, TierKeys

_PAGE = 1000


async def final_state(broker: RedisBroker, *, shared: bool = False) -> FinalState:
    """Return what a broker's namespace holds, as its consumer group sees it.

    A server that is `shared` holds other things too: keys outside the namespace are then not looked at.
    Otherwise each of them is a stray. Raises BrokerError if the server cannot be used.
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
            found = await _consumers(store, names.stream, broker.keys.group)
            consumers += [(tier.name, name, held) for name, held in found.items()]
            pending[tier.name] = {name: held for name, held in found.items() if held}
            stray += await _leftovers(store, names, entries)
        delayed |= await _delayed(store, names, broker.keys.group)
    letters = DeadLetterQueue(broker=broker)
    dead = [(letter.task_id, letter.reason) for letter in await letters.peek(await letters.size(), oldest_first=True)]
    return FinalState(
        waiting, pending, frozenset(delayed), tuple(dead), tuple(consumers), tuple(sorted(stray)), tuple(sorted(keys))
    )


# --- the queue -----------------------------------------------------------------------------------


async def _entries(store: Store, stream: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Yield the entries of a stream: id and fields."""
    start = "-"
    while rows := await store.one(("XRANGE", stream, start, "+", "COUNT", _PAGE)):
        for entry_id, flat in rows:
            yield entry_id.decode(), _fields(part.decode(errors="backslashreplace") for part in flat)
        start = "(" + rows[-1][0].decode()


async def _consumers(store: Store, stream: str, group: str) -> dict[str, int]:
    """Return how much is pending for each consumer; those that hold nothing included."""
    groups = [_named(flat)["name"].decode() for flat in await store.one(("XINFO", "GROUPS", stream))]
    if group not in groups:
        return {}
    rows = [_named(flat) for flat in await store.one(("XINFO", "CONSUMERS", stream, group))]
    return {row["name"].decode(): row["pending"] for row in rows if row["name"].decode() != PARKED or row["pending"]}


async def _delayed(store: Store, names: TierKeys, group: str) -> set[str]:
    """Return the ids of the tasks that a tier keeps for later."""
    members = await store.one(("ZRANGE", names.delayed, 0, -1))
    found = set()
    for at in range(0, len(members), _PAGE):
        some = members[at : at + _PAGE]
        for member, packed in zip(some, await store.one(("HMGET", names.messages, *some)), strict=True):
            found.add(_packed_id(packed) or member.decode().removeprefix(f"{group}:"))
    return found


def _packed_id(packed: bytes | None) -> str:
    """Return the id in a delayed message, empty if it is none."""
    try:
        return _fields(orjson.loads(packed or b"[]")).get("id", "")
    except (orjson.JSONDecodeError, TypeError):
        return ""


# --- keys ----------------------------------------------------------------------------------------


async def _strays(store: Store, keys: Keys, found: list[str]) -> list[str]:
    """Return the keys that docs/wire-format.md does not know, or that should have a TTL and have none."""
    lasting = {keys.dead, keys.schedules, keys.ticks, keys.ticked}
    for names in keys.tiers:
        lasting |= {names.stream, names.delayed, names.messages}
    passing = _passing(keys)
    stray = []
    for at in range(0, len(found), _PAGE):
        some = found[at : at + _PAGE]
        for key, ttl in zip(some, await store.call([("PTTL", key) for key in some]), strict=True):
            if key not in lasting and not passing.fullmatch(key):
                stray.append(key)
            elif key not in lasting and ttl == -1:
                stray.append(f"{key} (no TTL)")
    return stray


def _passing(keys: Keys) -> re.Pattern[str]:
    """Return what the names of keys with a TTL look like; other groups have theirs."""
    streams = "|".join(re.escape(names.stream) for names in keys.tiers)
    own = re.escape(keys.namespace)
    kinds = "result|id|dedup|latest|seen|once|progress|join|rate|circuit|permits|called|line"
    return re.compile(
        rf"(?:{streams}):(?:alive|leases|crashes):\S+|{own}:(?:durable|circuits|limits|stats:\S+:\d+|(?:{kinds}):.+)",
        re.DOTALL,
    )


async def _leftovers(store: Store, names: TierKeys, entries: dict[str, Any]) -> list[str]:
    """Return what outlived its task inside keys that may be there: evidence, and halves of what is delayed."""
    crashes, messages, members = await store.call(
        [("HKEYS", names.crashes), ("HKEYS", names.messages), ("ZRANGE", names.delayed, 0, -1)]
    )
    kept = [field.decode().removesuffix(":alone") for field in crashes]
    stray = [f"{names.crashes} {entry}" for entry in kept if entry not in entries]
    for half, whole, name in ((messages, members, names.messages), (members, messages, names.delayed)):
        stray += [f"{name} {left.decode(errors='backslashreplace')}" for left in set(half) - set(whole)]
    return stray


async def _scan(store: Store, pattern: str) -> AsyncIterator[str]:
    """Yield the names of all keys that match, each once."""
    cursor, seen = b"0", set[bytes]()
    while True:
        cursor, some = await store.one(("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE))
        for key in some:
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


def _named(flat: list[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
