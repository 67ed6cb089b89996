"""Finds which queues of a server are read: the streams that have a consumer group, in this namespace and in others.

Whoever sends by hand can miss the queue of the workers, by its namespace or by its tiers: then the task waits where
nobody reads. A queue of another namespace counts if streamq has left something there: a group of another program says
nothing. Looks only where it may: a user that lacks a right to look gets no entry in the ACL LOG of the server, and no
answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamq.errors import BrokerError, ConfigurationError
from streamq.queue.store import Store
from streamq.wire.keys import RESERVED, STATS_KEPT, STATS_WINDOW, Keys
from streamq.wire.tiers import Tier

_MOST_SCANS: Final = 20
_SCAN_STEP: Final = 1000  # keys that one SCAN looks at
_MOST_STREAMS: Final = 50
_MAY_LOOK: Final = """\
if not redis.acl_check_cmd then return -1 end
if not redis.acl_check_cmd('SCAN', '0') then return 0 end
for k = 1, 2 do
  if not redis.acl_check_cmd('XINFO', 'GROUPS', ARGV[k]) then return k - 1 end
end
return redis.acl_check_cmd('EXISTS', ARGV[2]) and 2 or 1"""
_OWN, _ALL = 1, 2  # what a user may look at


@dataclass(frozen=True, slots=True)
class ReadQueues:
    """The streams of this namespace, and the other namespaces, that somebody reads or has read."""

    streams: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()


async def queues_read_beside(store: Store, stream: str, *, embedded: bool) -> ReadQueues:
    """Return the queues that are read, if this stream is not. Nothing, if it is, or if this user may not look.

    `embedded`: the server is one of ours, where everybody may look. Bounded: it meets some 20,000 keys, and asks 50
    streams of the namespace and 50 others. Raises BrokerError if the server cannot be used.
    """
    allowed = _ALL if embedded else await _may_look(store)
    if not allowed or await _is_read(store, stream):
        return ReadQueues()
    own, others = await _streams(store, store.keys.namespace, everywhere=allowed == _ALL)
    streams = [one for one in own if await _is_read(store, one)]
    elsewhere: dict[str, None] = {}
    for other in () if streams else others:
        home = other.rpartition(":")[0]
        if home not in elsewhere and await _was_read_by_streamq(store, home, other):
            elsewhere[home] = None
    return ReadQueues(tuple(streams), tuple(elsewhere))


async def _is_read(store: Store, stream: str) -> bool:
    """Has this stream a consumer group? So it counts where that cannot be read; a stream that is not there has none."""
    (reply,) = await store.attempt([("XINFO", "GROUPS", stream)])
    return bool(reply) if isinstance(reply, list) else "no such key" not in str(reply)


async def _may_look(store: Store) -> int:
    """What may this user look at? A server before Redis 7 cannot be asked: there a user with a name may not look."""
    (reply,) = await store.attempt([("EVAL", _MAY_LOOK, "0", f"{store.keys.namespace}:\0", "\0")])
    if isinstance(reply, BrokerError):
        return 0
    return int(reply) if reply != -1 else _ALL * (store.client.address.username is None)


async def _streams(store: Store, namespace: str, *, everywhere: bool) -> tuple[list[str], list[str]]:
    """Return streams that a bounded scan meets: those of the namespace, and those of others."""
    own: dict[str, None] = {}
    others: dict[str, None] = {}
    cursor: Any = "0"
    pattern = "*" if everywhere else f"{namespace}:*"
    for _ in range(_MOST_SCANS):
        (reply,) = await store.attempt([("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_STEP, "TYPE", "stream")])
        if not isinstance(reply, list):
            break
        for name in _of_tiers(one.decode(errors="replace") for one in reply[1]):
            (own if name.rpartition(":")[0] == namespace else others)[name] = None
        cursor = reply[0]
        if int(cursor) == 0 or len(own) >= _MOST_STREAMS:
            break
    return sorted(own)[:_MOST_STREAMS], sorted(others)[:_MOST_STREAMS]


def _of_tiers(names: Iterable[str]) -> list[str]:
    """Return the names that a stream of a tier can have: not those of dead letters."""
    parted = [(name, name.split(":")) for name in names]
    return [name for name, parts in parted if len(parts) > 1 and RESERVED.isdisjoint(parts[1:])]


async def _was_read_by_streamq(store: Store, namespace: str, stream: str) -> bool:
    """Have workers of streamq read this stream, as far as the keys of one of its groups are left?"""
    (reply,) = await store.attempt([("XINFO", "GROUPS", stream)])
    groups = [_name_of(flat) for flat in reply] if isinstance(reply, list) else []
    left = [_left_by_workers(namespace, group, stream, store.clock.now()) for group in groups]
    replies = await store.attempt([("EXISTS", *names) for names in left if names])
    return any(isinstance(one, int) and one > 0 for one in replies)


def _left_by_workers(namespace: str, group: str, stream: str, now: float) -> Sequence[str]:
    """Return keys that workers of a group write while they are alive, and those that stay for a while, or for ever."""
    try:
        keys = Keys.of(namespace, group, [Tier("tier", stream=stream)])
    except ConfigurationError:  # no name of ours
        return ()
    counters = [keys.stats(now - back) for back in range(0, STATS_KEPT + 1, STATS_WINDOW)]
    tier = keys.tiers[0]
    return tier.alive, tier.leases, tier.messages, keys.totals, keys.dead, keys.schedules, *counters


def _name_of(flat: Any) -> str:
    try:
        named = dict(zip(flat[::2], flat[1::2], strict=True))
        name = named[b"name"]
        return name.decode() if isinstance(name, bytes) else ""
    except (KeyError, TypeError, ValueError):
        return ""
