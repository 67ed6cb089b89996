"""Finds a stream without a consumer group beside others that have some: the queue may have tiers of its own.

Whoever enqueues by hand gives the names of its tiers, or else the task waits where nobody reads. Looks only where it
may: a user that lacks a right to look gets no entry in the ACL LOG of the server, and no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from streamq.errors import BrokerError
from streamq.wire.command_line import tier_names

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.queue.store import Store

_MOST_SCANS: Final = 20
_SCAN_STEP: Final = 1000  # keys that one SCAN looks at
_MOST_STREAMS: Final = 50
_MAY_LOOK: Final = """\
if not redis.acl_check_cmd then return -1 end
return (redis.acl_check_cmd('SCAN', '0') and redis.acl_check_cmd('XINFO', 'GROUPS', ARGV[1])) and 1 or 0"""


async def served_tiers(broker: RedisBroker, stream: str) -> list[str]:
    """Return the names of the tiers that have consumer groups, if this stream has none; else none. Raises nothing."""
    try:
        if not await _may_look(broker) or await _has_group(broker.store, stream):
            return []
        others = [name for name in await _streams(broker.store, broker.keys.namespace) if name != stream]
        served = [name for name in others if await _has_group(broker.store, name)]
    except BrokerError:  # the task is enqueued: the rest is a courtesy
        return []
    return tier_names(broker.keys.namespace, served)


async def _may_look(broker: RedisBroker) -> bool:
    """May this user look for streams? A server before Redis 7 cannot be asked: there a user with a name may not."""
    if broker.url.startswith(("memory:", "embedded:")):
        return True
    (reply,) = await broker.store.attempt([("EVAL", _MAY_LOOK, "0", f"{broker.keys.namespace}:\0")])
    return reply == 1 or (reply == -1 and broker.client.address.username is None)


async def _has_group(store: Store, stream: str) -> bool:
    """Has this stream a consumer group? So it counts where that cannot be read; a stream that is not there has none."""
    (reply,) = await store.attempt([("XINFO", "GROUPS", stream)])
    return bool(reply) if isinstance(reply, list) else "no such key" not in str(reply)


async def _streams(store: Store, namespace: str) -> list[str]:
    """Return the streams of tiers that a bounded scan of the namespace meets."""
    found: dict[str, None] = {}
    cursor: Any = "0"
    for _ in range(_MOST_SCANS):
        (reply,) = await store.attempt([
            ("SCAN", cursor, "MATCH", f"{namespace}:*", "COUNT", _SCAN_STEP, "TYPE", "stream")
        ])  # fmt: skip
        if not isinstance(reply, list):
            break
        names = [name.decode(errors="replace") for name in reply[1]]
        found.update((name, None) for name in names if tier_names(namespace, [name]))
        cursor = reply[0]
        if int(cursor) == 0 or len(found) >= _MOST_STREAMS:
            break
    return sorted(found)[:_MOST_STREAMS]
