"""What each role needs to be allowed, and how that is found out without doing any of it.

Every probe is a command as streamq sends it, to the same key, with one argument that the command
itself refuses (`x` for a number, say). The server checks the ACL before it looks at arguments: NOPERM means
that the permission is missing, any other answer that it is there. Reads are sent as they are.
Publishing has no such argument: it is queued in a transaction that is then discarded, on a
connection of its own, and only where this user may do that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final, Literal

import redis.exceptions

from streamq.client import Client, Command
from streamq.doctor.observations import Denied, Rights
from streamq.doctor.queries import Questions, permission, shown, text
from streamq.errors import BrokerError
from streamq.queue.server_errors import translated
from streamq.wire.keys import Keys

Role = Literal["producer", "worker", "monitor", "operator"]
ROLES: Final[tuple[Role, ...]] = ("worker", "producer", "monitor", "operator")

# What no task, consumer or group is called: what is to be removed is not there.
_NOBODY: Final = "\0streamq-doctor"

# By the initials of the roles that need them.
_OF_A_TIER: Final = (
    ("pwo", "XADD {stream} x-x task -"),
    ("w", "XREADGROUP GROUP {group} {nobody} COUNT x STREAMS {stream} >"),
    ("w", "XACK {stream} {group} x-x"),
    ("pw", "XDEL {stream} x-x"),
    ("pwm", "XRANGE {stream} 0-1 0-1 COUNT 1"),
    ("wm", "XLEN {stream}"),
    ("pwm", "XPENDING {stream} {group}"),
    ("w", "XCLAIM {stream} {group} {nobody} x 0-1"),
    ("w", "XAUTOCLAIM {stream} {group} {nobody} x 0-0"),
    ("pwm", "XINFO GROUPS {stream}"),
    ("wm", "XINFO STREAM {stream}"),
    ("wm", "XINFO CONSUMERS {stream} {group}"),
    ("w", "XGROUP CREATE {stream} {group} x-x"),
    ("w", "XGROUP DELCONSUMER {stream} {nobody} {nobody}"),
    ("pwo", "EVALSHA 0000000000000000000000000000000000000000 1 {stream}"),
    ("pw", "ZADD {delayed} x {nobody}"),
    ("pw", "ZREM {delayed} {nobody}"),
    ("pw", "ZSCORE {delayed} {nobody}"),
    ("pw", "HMGET {messages} {nobody}"),
    ("p", "HSCAN {messages} x"),
    ("pwm", "ZRANGE {delayed} 0 0"),
    ("w", "ZRANGEBYSCORE {delayed} 0 0 LIMIT 0 1"),
    ("w", "ZCOUNT {delayed} 0 0"),
    ("m", "ZCARD {delayed}"),
    ("pw", "HSET {messages} {nobody} - odd"),
    ("w", "HGET {messages} {nobody}"),
    ("w", "HLEN {messages}"),
    ("pw", "HEXISTS {messages} {nobody}"),
    ("pw", "HDEL {messages} {nobody}"),
    ("w", "ZADD {alive} x {nobody}"),
    ("w", "ZSCORE {alive} {nobody}"),
    ("w", "ZMSCORE {alive} {nobody}"),
    ("w", "ZREM {alive} {nobody}"),
    ("w", "ZRANGEBYSCORE {alive} 0 0 LIMIT 0 1"),
    ("wm", "ZRANGE {alive} 0 0"),
    ("w", "EXPIRE {alive} x"),
    ("w", "HSET {leases} {nobody} - odd"),
    ("w", "HMGET {leases} {nobody}"),
    ("w", "HSET {crashes} {nobody} - odd"),
    ("w", "HGET {crashes} {nobody}"),
    ("w", "HMGET {crashes} {nobody}"),
    ("w", "HDEL {crashes} {nobody}"),
    ("w", "PEXPIRE {crashes} x"),
)
_OF_THE_NAMESPACE: Final = (
    ("pwmo", "TIME"),
    ("pwo", "EVAL return -1"),
    ("w", "CLIENT ID"),
    ("w", "CLIENT UNBLOCK 0"),
    ("w", "XADD {dead} x-x task_id -"),
    ("w", "XINFO GROUPS {dead}"),
    ("wo", "XRANGE {dead} 0-1 0-1 COUNT 1"),
    ("wo", "XDEL {dead} x-x"),
    ("wmo", "XLEN {dead}"),
    ("o", "XREVRANGE {dead} 0-1 0-1 COUNT 1"),
    ("o", "XTRIM {dead} MAXLEN x"),
    ("m", "ZRANGE {circuits} 0 0"),
    ("m", "HGETALL {circuit}"),
    ("w", "HINCRBY {stats} {nobody} x"),
    ("w", "EXPIRE {stats} x"),
    ("m", "HGETALL {stats}"),
    ("w", "SET {result} - WRONG"),
    ("p", "GET {result}"),
    ("p", "GET {accepted}"),
    ("p", "SET {accepted} - WRONG"),
    ("p", "GET {dedup}"),
    ("p", "SET {dedup} - WRONG"),
    ("w", "GET {dedup}"),
    ("w", "SET {dedup} - WRONG"),
    ("p", "PTTL {dedup}"),
    ("p", "HGETALL {latest}"),
    ("w", "HMGET {latest} id"),
    ("pw", "HSET {latest} {nobody} - odd"),
    ("pw", "PEXPIRE {latest} x"),
    ("w", "SET {seen} - WRONG"),
    ("w", "HSET {join} {nobody} - odd"),
    ("w", "HGET {join} {nobody}"),
    ("w", "HLEN {join}"),
    ("w", "PEXPIRE {join} x"),
    ("wo", "HGETALL {schedules}"),
    ("w", "HGET {schedules} {nobody}"),
    ("w", "HSET {schedules} {nobody} - odd"),
    ("o", "HDEL {schedules} {nobody}"),
    ("wmo", "ZRANGE {ticks} 0 0"),
    ("w", "ZSCORE {ticks} {nobody}"),
    ("w", "ZADD {ticks} x {nobody}"),
    ("o", "ZREM {ticks} {nobody}"),
    ("w", "HSET {ticked} {nobody} - odd"),
    ("o", "HGETALL {ticked}"),
    ("o", "HDEL {ticked} {nobody}"),
)
# What has no form that fails: queued in a MULTI, and discarded.
_QUEUED: Final = (
    ("pwo", "PUBLISH {wake} streamq-doctor"),
    ("w", "PUBLISH {result} streamq-doctor"),
    ("pw", "DEL {dedup} {latest}"),
)
_HEARD: Final = (("w", "{wake}"), ("p", "{result}"))


def probes(keys: Keys, role: Role) -> list[Command]:
    """Return what is asked for a role; nothing of it changes anything."""
    commands = [probe for tier in keys.tiers for probe in _filled(_OF_A_TIER, role, group=keys.group, **asdict(tier))]
    return [*_filled(_OF_THE_NAMESPACE, role, **_names(keys)), *commands]


async def rights(questions: Questions, keys: Keys, role: Role) -> Rights:
    """Find out what this user lacks for a role."""
    client = questions.store.client
    asked = probes(keys, role)
    replies = await questions.store.attempt(asked)
    denied = list(_denials(asked, replies))
    channels = _filled(_QUEUED, role, **_names(keys))
    denied += _denials(channels, await _queued_and_discarded(client, channels))
    heard = [("SUBSCRIBE", word) for (word,) in _filled(_HEARD, role, **_names(keys))]
    denied += _denials(heard, [await _subscribed(client, channel) for _, channel in heard])
    user = await questions.one("ACL", "WHOAMI")
    questions.refused.pop("+acl|whoami", None)  # the URL says it as well
    name = text(user) if user else client.address.username or "default"
    return Rights(user=name, role=role, asked=len(asked) + len(channels) + len(heard), denied=tuple(denied))


def _names(keys: Keys) -> dict[str, str]:
    nobody = "streamq-doctor"
    return {
        "dead": keys.dead, "wake": keys.wake, "stats": keys.stats(0), "result": keys.result(nobody),
        "accepted": keys.accepted(nobody), "dedup": keys.dedup(nobody),
        "latest": keys.latest(nobody), "seen": keys.seen(nobody),
        "join": keys.join(nobody), "circuits": keys.circuits, "circuit": keys.circuit(nobody),
        "schedules": keys.schedules, "ticks": keys.ticks, "ticked": keys.ticked,
    }  # fmt: skip


def _filled(templates: Sequence[tuple[str, str]], role: Role, **names: str) -> list[Command]:
    wanted = [template for roles, template in templates if role[0] in roles]
    return [tuple(word.format_map({"nobody": _NOBODY, **names}) for word in template.split()) for template in wanted]


def _denials(commands: Sequence[Command], replies: Sequence[object]) -> Iterator[Denied]:
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, BrokerError) and reply.code == "NOPERM":
            yield Denied(permission(command, str(reply)), shown(command))


async def _queued_and_discarded(client: Client, commands: Sequence[Command]) -> list[object]:
    """Return what the server says to commands that it queues and never runs; None where that cannot be done."""
    unknown: list[object] = [None] * len(commands)
    if not commands:
        return unknown
    try:
        async with Client(client.address, connect_timeout=client.connect_timeout) as own:
            if any(isinstance(reply, Exception) for reply in await own.call([("MULTI",), ("DISCARD",)])):
                return unknown
            replies = (await own.call([("MULTI",), *commands, ("DISCARD",)]))[1:-1]
    except redis.exceptions.RedisError:
        return unknown
    return [translated(reply) if isinstance(reply, Exception) else reply for reply in replies]


async def _subscribed(client: Client, channel: object) -> object:
    """Return None, or the error with which the server refuses a subscription."""
    try:
        async with client.subscriber() as subscriber:
            await subscriber.subscribe(str(channel))
    except redis.exceptions.RedisError as error:
        return translated(error)
    return None
