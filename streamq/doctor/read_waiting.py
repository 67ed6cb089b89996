"""Reads what waits unseen by a look at one tier: in streams of other tiers, and tasks that no worker knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from streamq.doctor.observations import SERVING, OtherStream, UnknownTask
from streamq.doctor.queries import SAMPLE, Queries, pairs, rows, text
from streamq.errors import ConfigurationError
from streamq.wire.keys import RELEASED_CONSUMER, Keys, TierKeys
from streamq.wire.message import entry_ms
from streamq.wire.stored_numbers import stored_time

_PAGE: Final = 10  # messages of one reply; a message may be large


async def read_other_streams(queries: Queries, names: Sequence[str], now: float) -> tuple[OtherStream, ...]:
    """Return what waits in streams of tiers that the broker does not have, and who is alive there."""
    found = []
    for name in names:
        length, groups = await queries.ask(("XLEN", name), ("XINFO", "GROUPS", name))
        if groups is None:  # refused, or gone by now
            continue
        of_groups = [text(pairs(flat).get("name")) for flat in rows(groups)]
        of_groups = list(dict.fromkeys((*of_groups, queries.store.keys.group)))
        heartbeats = [TierKeys.of(name, group).alive for group in of_groups if _is_group(queries, group)]
        alive = await queries.ask(*(("ZCOUNT", key, round(now * 1000), "+inf") for key in heartbeats))
        alive += [await _count_others(queries, name, group) for group in of_groups]
        first = rows(await queries.one("XRANGE", name, "-", "+", "COUNT", 1)) if length else []
        since = entry_ms(first[0][0]) / 1000 if first else None
        known = all(number is not None for number in alive)
        found.append(OtherStream(name, length or 0, sum(map(int, alive)) if known else None, since, bool(groups)))
    return tuple(found)


async def _count_others(queries: Queries, stream: str, group: str) -> int:
    """Return how many consumers did something a moment ago: those of another program have no heartbeat."""
    consumers = map(pairs, rows(await queries.one("XINFO", "CONSUMERS", stream, group)))
    return sum(one["idle"] < SERVING * 1000 and text(one["name"]) != RELEASED_CONSUMER for one in consumers)


def _is_group(queries: Queries, group: str) -> bool:
    """Can this be the name of a streamq group? Others have no heartbeats."""
    try:
        Keys.of(queries.store.keys.namespace, group, queries.store.tiers)
    except ConfigurationError:
        return False
    return True


async def read_unknown_tasks(queries: Queries) -> tuple[UnknownTask, ...]:
    """Return the tasks that wait because no worker that took them knew their name: the next to be due of each tier."""
    counts: dict[str, int] = {}
    since: dict[str, float] = {}
    for keys in queries.store.keys.tiers:
        ids = [text(one) for one in rows(await queries.one("ZRANGE", keys.delayed, 0, SAMPLE - 1))]
        for at in range(0, len(ids), _PAGE):
            packed = rows(await queries.one("HMGET", keys.messages, *ids[at : at + _PAGE]))
            for fields in map(_fields, packed):
                moment = stored_time(fields.get("unknown_since", "").encode())
                name = fields.get("task")
                if moment is not None and name is not None:
                    counts[name] = counts.get(name, 0) + 1
                    since[name] = min(since.get(name, moment.timestamp()), moment.timestamp())
    return tuple(UnknownTask(name, count, since[name]) for name, count in counts.items())


def _fields(packed: Any) -> dict[str, str]:
    """Return the fields of a delayed message, none if it is not one."""
    if packed is None or b"unknown_since" not in packed:
        return {}
    try:
        flat = orjson.loads(packed)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(flat, list) or not all(isinstance(part, str) for part in flat):
        return {}
    return dict(zip(flat[::2], flat[1::2], strict=False))
