"""Rights: what each role may do on the server, in one table. Pure data.

`streamq acl` prints the ACL rules that follow from it (`wire.acl`), and `streamq doctor` asks for exactly these rights
(`doctor.read_rights`). Whoever adds a command, a key or a channel adds it here: a test runs the whole work of each role
under these rules, another compares the table with the text of the scripts.

The server checks each command inside a script as if the client had sent it, so those of the scripts are here, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError

Role = Literal["producer", "worker", "monitor", "operator"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

ANY: Final = "any"  # a kind of key: every key of the namespace


@dataclass(frozen=True, slots=True)
class Feature:
    """What a program may use. `roles` have it unless they ask for fewer features; `on_demand` have it if they ask."""

    about: str
    roles: frozenset[str]
    on_demand: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Right:
    """Commands that a feature sends about one kind of key or channel.

    `subject` is a field of `TierKeys`, a member of `Keys`, or `ANY`; `&` stands before a channel; it is empty for
    commands about the connection or the server.
    """

    feature: str
    subject: str
    commands: tuple[str, ...]


def _roles(initials: str) -> frozenset[str]:
    return frozenset(role for role in ROLES if role[0] in initials)


# The features without which a role is nothing, and those of every role.
BASE: Final = {"producer": "enqueue", "worker": "consume", "monitor": "monitoring", "operator": "dead-letters"}
CONNECT: Final = "connect"

FEATURES: Final = {
    name: Feature(about, _roles(roles), _roles(on_demand))
    for name, roles, on_demand, about in (
        (CONNECT, "pwmo", "", "connect, and name the connection"),
        ("enqueue", "pw", "", "send tasks, with a `task_id` or without"),
        ("consume", "w", "", "run tasks: read, retry, settle, renew leases, take over, write dead letters, count"),
        ("delayed", "pwmo", "", "`delay` and `at`; list delayed tasks"),
        ("dedup", "pw", "", "deduplication keys"),
        ("workflows", "pw", "", "start workflows, and send their next steps"),
        ("results", "pw", "", "keep results, wait for them, ask for the status of a task"),
        ("progress", "pw", "", "report progress, and read it"),
        ("cancel", "pwo", "", "cancel tasks"),
        ("schedules", "pwmo", "", "store, tick, list and remove schedules"),
        ("durable", "pw", "", '`durable="replica"`'),
        ("durable-aof", "", "pw", '`durable="aof"` (Redis 7.2 or newer, Valkey)'),
        ("limits", "w", "", "rate limits of the fleet, concurrency limits"),
        ("circuits", "w", "p", "circuit breakers: those of the fleet, and reports to the monitor"),
        ("idempotency", "w", "p", "`once`, `Idempotency`, `is_duplicate`"),
        ("monitoring", "m", "", "figures: `QueueMonitor`, exporters"),
        ("dead-letters", "o", "", "list, search, follow, replay, edit, remove, export and import dead letters"),
        ("doctor", "", "pwmo", "all checks of `streamq doctor`, with the server's configuration and every key"),
    )
}

# feature, initials of the roles, subject, commands
_TABLE: Final = (
    (CONNECT, "pwmo", "", "ping client|id client|setname"),
    ("enqueue", "pw", "", "eval time"),
    ("enqueue", "pw", "stream", "xadd evalsha"),
    ("enqueue", "pw", "delayed", "evalsha"),
    ("enqueue", "pw", "messages", "hexists evalsha"),
    ("enqueue", "pw", "accepted", "get set evalsha"),
    ("consume", "w", "", "eval time client|unblock"),
    ("consume", "w", "stream", "xreadgroup xack xdel xadd xrange xlen xpending xclaim xautoclaim evalsha"),
    ("consume", "w", "stream", "xgroup|create xgroup|delconsumer xinfo|groups xinfo|consumers xinfo|stream"),
    ("consume", "w", "delayed", "zadd zrem zscore zcount zrange zrangebyscore evalsha"),
    ("consume", "w", "messages", "hget hset hdel hlen hmget evalsha"),
    ("consume", "w", "alive", "zadd zrem zscore zmscore zrange zrangebyscore expire evalsha"),
    ("consume", "w", "leases", "hset hdel hmget expire evalsha"),
    ("consume", "w", "crashes", "hget hset hdel hmget exists pexpire evalsha"),
    ("consume", "w", "dead", "xadd xdel xlen xrange xinfo|groups memory|usage evalsha"),
    ("consume", "w", "stats", "hincrby hset expire evalsha"),
    ("consume", "w", "&wake", "publish subscribe"),
    ("delayed", "pw", "", "eval time"),
    ("delayed", "pw", "stream", "xadd evalsha"),
    ("delayed", "pw", "delayed", "zadd zrange evalsha"),
    ("delayed", "pw", "messages", "hset hexists evalsha"),
    ("delayed", "pw", "accepted", "get set evalsha"),
    ("delayed", "pw", "&wake", "publish"),
    ("delayed", "pwmo", "delayed", "zrangebyscore"),
    ("delayed", "pwmo", "messages", "hmget"),
    ("dedup", "pw", "", "eval time"),
    ("dedup", "pw", "stream", "xadd xdel xlen xrange xpending xinfo|groups evalsha"),
    ("dedup", "pw", "delayed", "zadd zrem zscore zcard zrange evalsha"),
    ("dedup", "pw", "messages", "hset hdel hlen hexists evalsha"),
    ("dedup", "pw", "accepted", "get set evalsha"),
    ("dedup", "pw", "dedup", "get set pttl evalsha"),
    ("dedup", "pw", "latest", "hgetall hset del pexpire evalsha"),
    ("dedup", "pw", "&wake", "publish"),
    ("dedup", "w", "dedup", "del"),
    ("dedup", "w", "latest", "hmget hlen"),
    ("workflows", "pw", "", "eval time"),
    ("workflows", "pw", "stream", "xadd xlen xinfo|stream evalsha"),
    ("workflows", "pw", "delayed", "zadd zcard zrange evalsha"),
    ("workflows", "pw", "messages", "hset hlen hexists evalsha"),
    ("workflows", "pw", "accepted", "get set evalsha"),
    ("workflows", "pw", "&wake", "publish"),
    ("workflows", "pw", "join", "del"),
    ("workflows", "pw", "workflow", "hget hmget hgetall hset hlen del pttl pexpire evalsha"),
    ("workflows", "w", "join", "hget hset hlen pexpire evalsha"),
    ("workflows", "w", "result", "set evalsha"),
    ("workflows", "w", "&result", "publish"),
    ("results", "pw", "", "eval"),
    ("results", "pw", "result", "get mget del"),
    ("results", "pw", "&result", "subscribe unsubscribe"),
    ("results", "pw", "stream", "xrange xpending evalsha"),
    ("results", "pw", "messages", "hmget"),
    ("results", "w", "result", "set evalsha"),
    ("results", "w", "&result", "publish"),
    ("progress", "pw", "progress", "get mget del"),
    ("progress", "pw", "&progress", "subscribe unsubscribe"),
    ("progress", "w", "", "eval"),
    ("progress", "w", "progress", "set evalsha"),
    ("progress", "w", "&progress", "publish"),
    ("cancel", "pwo", "", "eval time"),
    ("cancel", "pwo", "stream", "xdel xrange xpending xinfo|groups evalsha"),
    ("cancel", "pwo", "delayed", "zadd zrem zscore zcard zrange evalsha"),
    ("cancel", "pwo", "messages", "hmget hscan hdel hlen evalsha"),
    ("cancel", "pwo", "crashes", "hset pexpire evalsha"),
    ("cancel", "pwo", "dedup", "get set del evalsha"),
    ("cancel", "pwo", "latest", "hmget hset hlen del pexpire evalsha"),
    ("cancel", "pwo", "result", "set evalsha"),
    ("cancel", "pwo", "&result", "publish"),
    ("cancel", "pwo", "workflow", "hmget hset hlen pttl pexpire evalsha"),
    ("cancel", "pwo", "&wake", "publish"),
    ("schedules", "pwmo", "", "time"),
    ("schedules", "pwmo", "schedules", "hgetall"),
    ("schedules", "pwmo", "ticks", "zrange"),
    ("schedules", "pwmo", "ticked", "hgetall"),
    ("schedules", "pwo", "", "eval"),
    ("schedules", "pwo", "schedules", "hdel hexists evalsha"),
    ("schedules", "pwo", "ticks", "zrem zscore zcard evalsha"),
    ("schedules", "pwo", "ticked", "hdel hlen evalsha"),
    ("schedules", "pwo", "&wake", "publish"),
    ("schedules", "pw", "schedules", "hget hset"),
    ("schedules", "pw", "ticks", "zadd"),
    ("schedules", "w", "ticked", "hset"),
    ("schedules", "w", "stream", "xadd xlen xinfo|stream evalsha"),
    ("schedules", "w", "dedup", "get set evalsha"),
    ("durable", "pw", "", "wait"),
    ("durable", "pw", "durable", "set"),
    ("durable-aof", "pw", "", "waitaof info command|list command|info"),
    ("durable-aof", "pw", "durable", "set"),
    ("limits", "w", "", "eval time"),
    ("limits", "w", "rate", "hget hmget hset pttl pexpire evalsha"),
    ("limits", "w", "limits", "zadd zrem zrange pexpire evalsha"),
    ("limits", "w", "permits", "zadd zrem zcard zrange zremrangebyscore pexpire evalsha"),
    ("limits", "w", "called", "zadd zrem zscore zcard zrange zrangebyscore zremrangebyscore pexpire evalsha"),
    ("limits", "w", "line", "zadd zrem zscore zcard zrank zrange pexpire evalsha"),
    ("limits", "w", "delayed", "zadd zscore evalsha"),
    ("limits", "w", "&wake", "publish"),
    ("circuits", "pw", "", "eval time"),
    ("circuits", "pw", "circuit", "hgetall hmget hset hlen del pexpire evalsha"),
    ("circuits", "pw", "circuits", "zadd zrem zremrangebyscore zremrangebyrank pttl pexpire evalsha"),
    ("idempotency", "pw", "", "eval time"),
    ("idempotency", "pw", "once", "hmget hset hdel pexpire evalsha"),
    ("idempotency", "pw", "&once", "publish subscribe"),
    ("idempotency", "pw", "seen", "set"),
    ("monitoring", "m", "", "time multi exec"),
    ("monitoring", "m", "stream", "xlen xrange xpending xinfo|groups xinfo|consumers"),
    ("monitoring", "m", "delayed", "zcard"),
    ("monitoring", "m", "alive", "zrange"),
    ("monitoring", "m", "dead", "xlen"),
    ("monitoring", "m", "stats", "hgetall"),
    ("monitoring", "m", "circuits", "zrange"),
    ("monitoring", "m", "circuit", "hgetall"),
    ("dead-letters", "o", "", "eval time client|unblock"),
    ("dead-letters", "o", "dead", "xadd xlen xrange xrevrange xread xdel xtrim evalsha"),
    ("dead-letters", "o", "operation", "hgetall hmget hset hlen pexpire evalsha"),
    ("dead-letters", "o", "operations", "zadd zcard zrange zremrangebyscore zremrangebyrank pexpire evalsha"),
    ("dead-letters", "o", "stats", "hincrby hset expire evalsha"),
    ("dead-letters", "o", "stream", "xadd xinfo|groups evalsha"),
    ("dead-letters", "o", "dedup", "get set evalsha"),
    ("dead-letters", "o", "latest", "hmget hset pexpire evalsha"),
    ("dead-letters", "o", "result", "get del"),
    ("dead-letters", "o", "workflow", "hexists hset evalsha"),
    ("doctor", "pwmo", "", "info config|get command|list command|info acl|whoami scan time"),
    ("doctor", "pwmo", ANY, "type pttl xlen xrange xrevrange xpending xinfo|stream xinfo|groups xinfo|consumers"),
    ("doctor", "pwmo", ANY, "hlen hgetall hscan hmget hexists hrandfield zcard zcount zrange zscore zmscore"),
)  # fmt: skip

STEPS: Final = {
    "consume": (
        "ack ack_side_effects add_counters dead_letter mark_isolated postpone promote reclaim release "
        "remove_consumers renew skip"
    ),
    "delayed results progress": "enqueue",
    "dedup": "debounce keep_last task_started free_key",
    "workflows": "start_workflow begin_workflow note_step send_task delay_task join_group",
    "workflows cancel": "stop_workflow",
    "consume results": "ack_results",
    "results": "find_entry keep_result",
    "progress": "progress",
    "cancel": "cancel",
    "schedules": "register unregister tick",
    "limits": (
        "permit_acquire permit_check permit_release permit_renew permit_sweep permit_wake rate_acquire rate_drain "
        "rate_return"
    ),
    "circuits": "circuit_enter circuit_leave circuit_postpone circuit_report",
    "idempotency": "once_begin once_end once_renew once_withdraw",
    "dead-letters": ("replay count_dropped operation_advance operation_begin operation_replay operation_state"),
}
"""The scripts of each feature, or of several together, and the side effects in them. A test compares them."""


def features_of(roles: Iterable[Role], wanted: Collection[str] | None = None) -> list[str]:
    """Return the features of these roles, in the order of `FEATURES`: all that they have by themselves, or `wanted`.

    Those without which a role is nothing are always among them. Raises ConfigurationError for a feature that none of
    the roles can have.
    """
    chosen = set(roles)
    base = {CONNECT, *(BASE[role] for role in chosen)}
    if wanted is None:
        return [name for name, one in FEATURES.items() if name in base or one.roles & chosen]
    offered = [name for name, one in FEATURES.items() if (one.roles | one.on_demand) & chosen]
    for name in wanted:
        if name not in offered:
            raise ConfigurationError(
                f"the role {' and '.join(sorted(chosen))} has no feature {repr_of(name)}: "
                f"give some of {', '.join(offered)}"
            )
    return [name for name in offered if name in base or name in wanted]


def rights_of(roles: Iterable[Role], wanted: Collection[str] | None = None) -> list[Right]:
    """Return the rights of these roles, each feature by itself. Raises what `features_of` raises."""
    found: dict[Right, None] = {}
    for role in dict.fromkeys(roles):
        may_have = [name for name, one in FEATURES.items() if role in one.roles | one.on_demand]
        own = features_of([role], None if wanted is None else [name for name in wanted if name in may_have])
        for feature, initials, subject, commands in _TABLE:
            if feature in own and role[0] in initials:
                found[Right(feature, subject, tuple(commands.split()))] = None
    return list(found)
