"""Finds the rights of the table (`wire.rights`) that a user lacks, without changing anything.

Each command is sent as streamq sends it, about a key of each kind that it is for, with one argument that makes it fail
(for example `x` for a number). The server checks the ACL before the arguments: NOPERM means that the right is missing,
any other reply that it is there. Read commands are sent unchanged, and commands that remove something, about names that
nothing has. Each examination makes up new names, so a right to the name of an earlier one satisfies nobody.

The server refuses a command before it looks at the key. So where a command is refused, the patterns that only it would
ask for are asked for by another one that the user has. What is left can be asked for in no way, and may be there.

The rights to publish and to subscribe are asked for in a script, by `redis.acl_check_cmd`. A server before Redis 7 has
no such function: there a word that no worker knows is published, and the channels are subscribed to.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.exceptions

from streamq.client import Client, Command
from streamq.client.resp_codec import pack_unchecked
from streamq.doctor.observations import DeniedRight, Rights
from streamq.doctor.queries import Queries, described, text
from streamq.errors import BrokerError
from streamq.queue.server_errors import translated
from streamq.wire.acl import key_names, patterns_of, without_covered
from streamq.wire.keys import Keys
from streamq.wire.rights import Role, features_of, rights_of

_WORD: Final = "streamq-doctor"  # no worker knows it
# The arguments of each command; {key} has a name made up for this examination where an id or a key stands.
_ARGUMENTS: Final = {
    "ping": "", "time": "", "info": "server", "scan": "x", "client|id": "", "client|unblock": "0",
    "client|setname": "{two_words}", "wait": "x 0", "waitaof": "x 0 0", "eval": "return -1",
    "config|get": "maxmemory", "command|list": "FILTERBY x x", "command|info": "ping", "acl|whoami": "",
    "evalsha": "0000000000000000000000000000000000000000 1 {key}",
    "xadd": "{key} x-x task -", "xdel": "{key} x-x", "xtrim": "{key} MAXLEN x", "xlen": "{key}",
    "memory|usage": "{key} SAMPLES 1",
    "xrange": "{key} 0-1 0-1 COUNT 1", "xrevrange": "{key} 0-1 0-1 COUNT 1", "xread": "COUNT x STREAMS {key} 0",
    "xreadgroup": "GROUP {group} {absent} COUNT x STREAMS {key} >", "xack": "{key} {group} x-x",
    "xpending": "{key} {group}", "xclaim": "{key} {group} {absent} x 0-1", "xautoclaim": "{key} {group} {absent} x 0-0",
    "xinfo|stream": "{key}", "xinfo|groups": "{key}", "xinfo|consumers": "{key} {group}",
    "xgroup|create": "{key} {group} x-x", "xgroup|delconsumer": "{key} {absent} {absent}",
    "get": "{key}", "mget": "{key}", "set": "{key} - WRONG", "del": "{key}", "exists": "{key}", "type": "{key}",
    "pttl": "{key}", "expire": "{key} x", "pexpire": "{key} x",
    "hget": "{key} {absent}", "hmget": "{key} {absent}", "hgetall": "{key}", "hset": "{key} {absent} - odd",
    "hdel": "{key} {absent}", "hlen": "{key}", "hexists": "{key} {absent}", "hscan": "{key} x",
    "hrandfield": "{key} x", "hincrby": "{key} {absent} x",
    "zadd": "{key} x {absent}", "zrem": "{key} {absent}", "zscore": "{key} {absent}", "zmscore": "{key} {absent}",
    "zrank": "{key} {absent}", "zcard": "{key}", "zcount": "{key} 0 0", "zrange": "{key} 0 0",
    "zrangebyscore": "{key} 0 0 LIMIT 0 1", "zremrangebyscore": "{key} x x", "zremrangebyrank": "{key} x x",
}  # fmt: skip
# Commands that read, and may be sent about a key of any type in the place of another.
_READS: Final = (
    "exists", "type", "pttl", "get", "mget", "hget", "hmget", "hlen", "hexists", "hgetall", "zscore", "zmscore",
    "zrank", "zcard", "zcount", "zrange", "xlen", "xinfo|stream", "xpending", "xrange", "xrevrange",
)  # fmt: skip
_CHANNEL_READS: Final = ("publish", "subscribe")
_NOT_ASKED: Final = object()  # in the place of a reply
_TRANSACTION: Final = ("multi", "exec")  # asked together, on a connection of their own
_MAY_PUBLISH: Final = """\
if not redis.acl_check_cmd then return {} end
local found = {}
for k = 1, #ARGV, 2 do found[#found + 1] = redis.acl_check_cmd(ARGV[k], ARGV[k + 1], 'x') and 1 or 0 end
return found"""


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that asks for a right. `pattern` is the rule of its key or channel, empty if it has none.

    `features` are those of the role that need it, `name` is that of the key or channel.
    """

    command: str
    words: Command
    pattern: str
    features: tuple[str, ...]
    name: str = ""


def probes(keys: Keys, role: Role, features: Collection[str] | None = None) -> list[Probe]:
    """Return the probes for a role. None of them changes anything, but those of channels, which are not to be sent."""
    part = secrets.token_hex(8)
    found: dict[tuple[str, str, str], list[str]] = {}
    for right in rights_of([role], features):
        subject = right.subject.removeprefix("&")
        of_kind = zip(key_names(keys, subject, part), patterns_of(keys, right.subject), strict=True) if subject else ()
        for name, pattern in of_kind if subject else [("", "")]:
            for command in right.commands:
                found.setdefault((command, name, pattern), []).append(right.feature)
    return [_probe(keys, *what, tuple(dict.fromkeys(wanted))) for what, wanted in found.items()]


def _probe(keys: Keys, command: str, name: str, pattern: str, features: tuple[str, ...]) -> Probe:
    """Return the probe for a command about the key or channel of this name."""
    # A name of a client is one word.
    names = {"key": name, "group": keys.group, "absent": f"\0{_WORD}", "two_words": "streamq doctor"}
    template = "{key}" if pattern.startswith("&") else _ARGUMENTS.get(command, "")
    words = (*command.upper().split("|"), *(word.format(**names) for word in template.split()))
    return Probe(command, words, pattern, features, name)


async def read_rights(queries: Queries, keys: Keys, role: Role, features: Collection[str] | None = None) -> Rights:
    """Find the rights of a role that this user does not have. Raises ConfigurationError for an unknown feature."""
    client = queries.store.client
    asked = probes(keys, role, features)
    in_transaction = [probe for probe in asked if probe.command in _TRANSACTION]
    channels = [probe for probe in asked if probe.pattern.startswith("&")]
    plain = [probe for probe in asked if probe not in (*in_transaction, *channels)]
    replies: dict[Probe, Any] = dict(
        zip(plain, await queries.store.attempt([probe.words for probe in plain]), strict=True)
    )
    replies |= zip(in_transaction, await _apart(client, [probe.words for probe in in_transaction]), strict=True)
    replies |= zip(channels, await _channel_replies(queries, channels), strict=True)
    replies |= await _ask_otherwise(queries, keys, replies)
    denied = list(_denied(replies))
    lacks = {one.permission for one in denied}
    rules = without_covered(keys, sorted({*lacks, *_hidden(replies)}) if denied else ())
    user = await queries.one("ACL", "WHOAMI")
    queries.refused.pop("+acl|whoami", None)  # the URL names the user as well
    return Rights(
        user=text(user) if user else client.address.username or "default", role=role,
        features=tuple(features_of([role], features)), asked=len(asked),
        denied=tuple(denied), rules=tuple(rules), unasked=tuple(rule for rule in rules if rule not in lacks),
    )  # fmt: skip


async def _ask_otherwise(queries: Queries, keys: Keys, replies: dict[Probe, Any]) -> dict[Probe, Any]:
    """Ask for the patterns whose commands are refused by other commands; return the replies about these patterns."""
    hidden = set(_hidden(replies))
    allowed = {probe.command for probe in replies if not _is_refused(probe, replies)}
    asked: dict[str, Probe] = {}
    for probe in replies:
        reads = _CHANNEL_READS if probe.pattern.startswith("&") else _READS
        if probe.pattern in hidden and (command := next((one for one in reads if one in allowed), None)) is not None:
            asked.setdefault(probe.pattern, _probe(keys, command, probe.name, probe.pattern, probe.features))
    channels = [probe for probe in asked.values() if probe.pattern.startswith("&")]
    plain = [probe for probe in asked.values() if probe not in channels]
    found = dict(zip(plain, await queries.store.attempt([probe.words for probe in plain]), strict=True))
    found |= zip(channels, await _channel_replies(queries, channels), strict=True)
    return {probe: reply for probe, reply in found.items() if not _is_denied(reply) or _is_about_key(reply)}


def _is_refused(probe: Probe, replies: dict[Probe, Any]) -> bool:
    """Is the command refused, whatever the key? Where that was not asked, it may be."""
    reply = replies[probe]
    return reply is _NOT_ASKED or (_is_denied(reply) and not _is_about_key(reply))


def _denied(replies: dict[Probe, Any]) -> Iterator[DeniedRight]:
    for probe, reply in replies.items():
        if _is_denied(reply):
            rule = probe.pattern if _is_about_key(reply) else f"+{probe.command}"
            yield DeniedRight(rule, described(probe.words), probe.features)


def _hidden(replies: dict[Probe, Any]) -> Iterator[str]:
    """Yield the rules that no probe could ask for: the server refuses the command before it looks at the key."""
    answered = {probe for probe, reply in replies.items() if reply is not _NOT_ASKED and not _is_denied(reply)}
    known = {probe.pattern for probe in answered if probe.command != "unsubscribe"}
    known |= {probe.pattern for probe, reply in replies.items() if _is_denied(reply) and _is_about_key(reply)}
    commands = {probe.command for probe in answered}
    for probe, reply in replies.items():
        if probe.pattern and probe.pattern not in known:
            yield probe.pattern
        if reply is _NOT_ASKED and probe.command not in commands:
            yield f"+{probe.command}"


def _is_denied(reply: Any) -> bool:
    # To a refused EXEC the server answers EXECABORT, and why.
    return isinstance(reply, BrokerError) and (reply.code == "NOPERM" or "NOPERM" in str(reply))


def _is_about_key(reply: Any) -> bool:
    """Is it about a key or a channel, and not about the command?"""
    return "access" in str(reply)


async def _apart(client: Client, commands: Sequence[Command]) -> list[Any]:
    """Return the replies to commands on a connection of their own: MULTI and UNSUBSCRIBE may change its state."""
    if not commands:
        return []
    try:
        async with Client(client.address, connect_timeout=client.connect_timeout) as connection:
            replies = await connection.call(commands)
    except redis.exceptions.RedisError:
        return [_NOT_ASKED] * len(commands)
    return [translated(reply) if isinstance(reply, Exception) else reply for reply in replies]


async def _channel_replies(queries: Queries, channels: Sequence[Probe]) -> list[Any]:
    """Return None for each channel that may be used as its probe says, else the error of the server."""
    if not channels:
        return []
    flat = [str(word) for probe in channels for word in probe.words]
    (allowed,) = await queries.store.attempt([("EVAL", _MAY_PUBLISH, "0", *flat)])
    answered = isinstance(allowed, list) and len(allowed) == len(channels)
    return [
        None if answered and allowed[place] else await _try_channel(queries, probe, known=answered)
        for place, probe in enumerate(channels)
    ]


async def _try_channel(queries: Queries, probe: Probe, *, known: bool) -> Any:
    """Publish a word, or subscribe. `known`: the script said that this is refused; the server says why."""
    command, channel = map(str, probe.words)
    if command == "PUBLISH":
        (reply,) = await queries.store.attempt([("PUBLISH", channel, _WORD)])
        return reply
    if command == "UNSUBSCRIBE":  # needs no right to the channel
        if known:
            return BrokerError("NOPERM UNSUBSCRIBE is refused", code="NOPERM")
        (reply,) = await _apart(queries.store.client, [pack_unchecked([(command, channel)])])
        return reply
    try:
        async with queries.store.client.subscriber() as subscriber:
            await subscriber.subscribe(channel)
    except redis.exceptions.RedisError as error:
        return translated(error)
    return None
