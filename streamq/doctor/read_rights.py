"""The permissions that each role needs, and probes that check them without changing anything.

Each probe is a command as streamq sends it, on the same key, with one argument that makes it fail (for
example `x` for a number). The server checks the ACL before the arguments: NOPERM means that the permission
is missing, any other reply means that it is there. Read commands are sent unchanged. PUBLISH has no argument
that fails, so it is queued in a transaction that is then discarded, on a separate connection, and only
if the user may use transactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final, Literal

import redis.exceptions

from streamq.client import Client, Command
from streamq.doctor.observations import DeniedCommand, Rights
from streamq.doctor.queries import Queries, described, missing_permission, text
from streamq.errors import BrokerError
from streamq.queue.server_errors import translated
from streamq.wire.keys import Keys

Role = Literal["producer", "worker", "monitor", "operator"]
ROLES: Final[tuple[Role, ...]] = ("worker", "producer", "monitor", "operator")

# No task, consumer or group has this name, so a probe that removes it removes nothing.
_ABSENT_NAME: Final = "\0streamq-doctor"

# (initials of the roles that need it, command)
_TIER_PROBES: Final = (
    ("pwo", "XADD {stream} x-x task -"),
    ("w", "XREADGROUP GROUP {group} {absent} COUNT x STREAMS {stream} >"),
    ("w", "XACK {stream} {group} x-x"),
    ("pw", "XDEL {stream} x-x"),
    ("pwm", "XRANGE {stream} 0-1 0-1 COUNT 1"),
    ("wm", "XLEN {stream}"),
    ("pwm", "XPENDING {stream} {group}"),
    ("w", "XCLAIM {stream} {group} {absent} x 0-1"),
    ("w", "XAUTOCLAIM {stream} {group} {absent} x 0-0"),
    ("pwm", "XINFO GROUPS {stream}"),
    ("wm", "XINFO STREAM {stream}"),
    ("wm", "XINFO CONSUMERS {stream} {group}"),
    ("w", "XGROUP CREATE {stream} {group} x-x"),
    ("w", "XGROUP DELCONSUMER {stream} {absent} {absent}"),
    ("pwo", "EVALSHA 0000000000000000000000000000000000000000 1 {stream}"),
    ("pw", "ZADD {delayed} x {absent}"),
    ("pw", "ZREM {delayed} {absent}"),
    ("pw", "ZSCORE {delayed} {absent}"),
    ("pw", "HMGET {messages} {absent}"),
    ("p", "HSCAN {messages} x"),
    ("pwm", "ZRANGE {delayed} 0 0"),
    ("w", "ZRANGEBYSCORE {delayed} 0 0 LIMIT 0 1"),
    ("w", "ZCOUNT {delayed} 0 0"),
    ("m", "ZCARD {delayed}"),
    ("pw", "HSET {messages} {absent} - odd"),
    ("w", "HGET {messages} {absent}"),
    ("w", "HLEN {messages}"),
    ("pw", "HEXISTS {messages} {absent}"),
    ("pw", "HDEL {messages} {absent}"),
    ("w", "ZADD {alive} x {absent}"),
    ("w", "ZSCORE {alive} {absent}"),
    ("w", "ZMSCORE {alive} {absent}"),
    ("w", "ZREM {alive} {absent}"),
    ("w", "ZRANGEBYSCORE {alive} 0 0 LIMIT 0 1"),
    ("wm", "ZRANGE {alive} 0 0"),
    ("w", "EXPIRE {alive} x"),
    ("w", "HSET {leases} {absent} - odd"),
    ("w", "HMGET {leases} {absent}"),
    ("w", "HSET {crashes} {absent} - odd"),
    ("w", "HGET {crashes} {absent}"),
    ("w", "HMGET {crashes} {absent}"),
    ("w", "HDEL {crashes} {absent}"),
    ("w", "PEXPIRE {crashes} x"),
)
_NAMESPACE_PROBES: Final = (
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
    ("w", "HINCRBY {stats} {absent} x"),
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
    ("pw", "HSET {latest} {absent} - odd"),
    ("pw", "PEXPIRE {latest} x"),
    ("w", "SET {seen} - WRONG"),
    ("w", "HSET {join} {absent} - odd"),
    ("w", "HGET {join} {absent}"),
    ("w", "HLEN {join}"),
    ("w", "PEXPIRE {join} x"),
    ("wo", "HGETALL {schedules}"),
    ("w", "HGET {schedules} {absent}"),
    ("w", "HSET {schedules} {absent} - odd"),
    ("o", "HDEL {schedules} {absent}"),
    ("wmo", "ZRANGE {ticks} 0 0"),
    ("w", "ZSCORE {ticks} {absent}"),
    ("w", "ZADD {ticks} x {absent}"),
    ("o", "ZREM {ticks} {absent}"),
    ("w", "HSET {ticked} {absent} - odd"),
    ("o", "HGETALL {ticked}"),
    ("o", "HDEL {ticked} {absent}"),
)
# These commands have no form that fails. They are queued in a MULTI and discarded.
_PUBLISH_PROBES: Final = (
    ("pwo", "PUBLISH {wake} streamq-doctor"),
    ("w", "PUBLISH {result} streamq-doctor"),
    ("pw", "DEL {dedup} {latest}"),
)
_SUBSCRIBE_PROBES: Final = (("w", "{wake}"), ("p", "{result}"))


def probes(keys: Keys, role: Role) -> list[Command]:
    """Return the probes for a role. None of them changes anything."""
    commands = [
        probe for tier in keys.tiers for probe in _commands_for(_TIER_PROBES, role, group=keys.group, **asdict(tier))
    ]
    return [*_commands_for(_NAMESPACE_PROBES, role, **_key_names(keys)), *commands]


async def read_rights(queries: Queries, keys: Keys, role: Role) -> Rights:
    """Find the permissions of a role that this user does not have."""
    client = queries.store.client
    asked = probes(keys, role)
    replies = await queries.store.attempt(asked)
    denied = list(_denials(asked, replies))
    channels = _commands_for(_PUBLISH_PROBES, role, **_key_names(keys))
    denied += _denials(channels, await _replies_in_discarded_multi(client, channels))
    subscriptions = [("SUBSCRIBE", word) for (word,) in _commands_for(_SUBSCRIBE_PROBES, role, **_key_names(keys))]
    denied += _denials(subscriptions, [await _subscribe_reply(client, channel) for _, channel in subscriptions])
    user = await queries.one("ACL", "WHOAMI")
    queries.refused.pop("+acl|whoami", None)  # the URL names the user as well
    name = text(user) if user else client.address.username or "default"
    return Rights(user=name, role=role, asked=len(asked) + len(channels) + len(subscriptions), denied=tuple(denied))


def _key_names(keys: Keys) -> dict[str, str]:
    sample = "streamq-doctor"
    return {
        "dead": keys.dead, "wake": keys.wake, "stats": keys.stats(0), "result": keys.result(sample),
        "accepted": keys.accepted(sample), "dedup": keys.dedup(sample),
        "latest": keys.latest(sample), "seen": keys.seen(sample),
        "join": keys.join(sample), "circuits": keys.circuits, "circuit": keys.circuit(sample),
        "schedules": keys.schedules, "ticks": keys.ticks, "ticked": keys.ticked,
    }  # fmt: skip


def _commands_for(templates: Sequence[tuple[str, str]], role: Role, **names: str) -> list[Command]:
    role_templates = [template for roles, template in templates if role[0] in roles]
    return [
        tuple(word.format_map({"absent": _ABSENT_NAME, **names}) for word in template.split())
        for template in role_templates
    ]


def _denials(commands: Sequence[Command], replies: Sequence[object]) -> Iterator[DeniedCommand]:
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, BrokerError) and reply.code == "NOPERM":
            yield DeniedCommand(missing_permission(command, str(reply)), described(command))


async def _replies_in_discarded_multi(client: Client, commands: Sequence[Command]) -> list[object]:
    """Return the replies to commands that are queued and discarded. All are None if the user may not do that."""
    unknown: list[object] = [None] * len(commands)
    if not commands:
        return unknown
    try:
        async with Client(client.address, connect_timeout=client.connect_timeout) as connection:
            if any(isinstance(reply, Exception) for reply in await connection.call([("MULTI",), ("DISCARD",)])):
                return unknown
            replies = (await connection.call([("MULTI",), *commands, ("DISCARD",)]))[1:-1]
    except redis.exceptions.RedisError:
        return unknown
    return [translated(reply) if isinstance(reply, Exception) else reply for reply in replies]


async def _subscribe_reply(client: Client, channel: object) -> object:
    """Return None, or the error of a refused subscription."""
    try:
        async with client.subscriber() as subscriber:
            await subscriber.subscribe(str(channel))
    except redis.exceptions.RedisError as error:
        return translated(error)
    return None
