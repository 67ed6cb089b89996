"""Judges whether the data is safe: memory and eviction, what is on disk, replicas."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import found
from streamq.doctor.observations import Facts, Server

_LOOK_AT_THE_DISK: Final = "look for 'No space left' and the like in the server's log; redis-cli INFO persistence"
_FILLING: Final = 0.85  # of maxmemory
_FULL: Final = 0.98
_BEHIND: Final = 10  # seconds that a replica was not heard of
_OFF: Final = frozenset({"", "0", None})


def memory(facts: Facts) -> Iterator[Finding]:
    """May the server remove keys by itself, and how much room is there?"""
    server = facts.server
    most, used = server.number("maxmemory") or 0, server.number("used_memory")
    policy = server.config.get("maxmemory-policy") or server.info.get("maxmemory_policy")
    if policy is None or server.in_process:
        return
    seen = {
        "maxmemory_policy": policy, "maxmemory": most, "used_memory": used,
        "evicted_keys": server.number("evicted_keys") or 0,
    }  # fmt: skip
    keep = "redis-cli CONFIG SET maxmemory-policy noeviction, and in redis.conf"
    if policy != "noeviction" and most:
        yield found(
            "eviction", f"maxmemory-policy is {policy}: a full server removes tasks or what guards them", keep, **seen
        )
    elif policy != "noeviction":
        yield found(
            "eviction_dormant", f"maxmemory-policy is {policy}: once maxmemory is set, tasks are removed", keep, **seen
        )
    if not most:
        message = "maxmemory is not set: a backlog may take all memory, until the system ends the server"
        yield found("memory_unbounded", message, "redis-cli CONFIG SET maxmemory 2gb", **seen)
        return
    share = (used or 0) / most
    room = "run more workers (streamq worker), or redis-cli CONFIG SET maxmemory with more"
    if share >= _FULL:
        yield found("memory_full", f"{share:.0%} of maxmemory is in use: new tasks are refused", room, **seen)
    elif share >= _FILLING:
        yield found("memory_filling", f"{share:.0%} of maxmemory is in use", room, **seen)
    elif policy == "noeviction":
        yield found("memory_fine", f"nothing is evicted; {share:.0%} of maxmemory is in use", **seen)


# --- on disk ---------------------------------------------------------------------------------------


def persistence(facts: Facts) -> Iterator[Finding]:
    """What outlives the server's process?"""
    server = facts.server
    aof = server.info.get("aof_enabled")
    if aof is None or server.in_process:
        return
    troubles = [*_kept(server, aof == "1"), *_failures(server, aof == "1")]
    yield from troubles
    if not troubles:
        yield found("persistence_fine", "every accepted task is on disk before it is accepted", **_disk(server))


def _disk(server: Server) -> dict[str, str | None]:
    names = ("aof_enabled", "aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    return {
        "appendfsync": server.config.get("appendfsync"), "save": server.config.get("save"),
        **{name: server.info.get(name) for name in names},
    }  # fmt: skip


def _kept(server: Server, aof: bool) -> Iterator[Finding]:
    fsync, save = server.config.get("appendfsync"), server.config.get("save")
    turn_on = "redis-cli CONFIG SET appendonly yes, and in redis.conf"
    match aof, fsync:
        case True, "no":
            message = "appendfsync is no: a crash of the machine loses what the system had not written, up to 30 s"
            yield found("appendfsync_no", message, "redis-cli CONFIG SET appendfsync everysec", **_disk(server))
        case True, "everysec":
            message = "a crash of the machine loses the tasks of the last second or two"
            yield found(
                "aof_everysec", message, "redis-cli CONFIG SET appendfsync always, if that is too much", **_disk(server)
            )
        case False, _ if save == "":
            message = "nothing is on disk: when the server ends, every task is lost"
            yield found("persistence_off", message, turn_on, **_disk(server))
        case False, _:
            message = f"only snapshots are on disk ({save or 'at times'}): a crash loses all that came since the last"
            yield found("persistence_rdb_only", message, turn_on, **_disk(server))


def _failures(server: Server, aof: bool) -> Iterator[Finding]:
    info = server.info
    look = _LOOK_AT_THE_DISK
    if aof and info.get("aof_last_write_status", "ok") != "ok":
        yield found(
            "aof_write_failed",
            "the last write to the append-only file failed: writes are refused (MISCONF)",
            look,
            **_disk(server),
        )
    if aof and info.get("aof_last_bgrewrite_status", "ok") != "ok":
        message = "the last rewrite of the append-only file failed: it grows for ever"
        yield found("aof_rewrite_failed", message, f"redis-cli BGREWRITEAOF; {look}", **_disk(server))
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        refused = server.config.get("stop-writes-on-bgsave-error") != "no" and server.config.get("save") not in _OFF
        message = "the last snapshot failed" + (": writes are refused (MISCONF)" if refused else "")
        yield found("rdb_save_failed", message, f"redis-cli BGSAVE; {look}", **_disk(server))


# --- replicas --------------------------------------------------------------------------------------


def replication(facts: Facts) -> Iterator[Finding]:
    """Is this the primary, and do its replicas follow?"""
    server, info = facts.server, facts.server.info
    role = info.get("role")
    if role is None or server.in_process:
        return
    if role != "master":
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        yield found(
            "replica", f"this is a replica of {primary}: it refuses every write (READONLY)",
            f"give the primary's address: --url {shlex.quote(f'redis://{primary}')}", role=role, primary=primary,
            link=info.get("master_link_status"), silent_for_s=server.number("master_last_io_seconds_ago"),
        )  # fmt: skip
        return
    replicas = [_replica(value) for name, value in info.items() if re.fullmatch(r"slave\d+", name)]
    troubles = list(_replicas(server, replicas))
    yield from troubles
    if not troubles:
        yield found("primary", f"the primary, with {len(replicas)} replicas", replicas=replicas)


def _replicas(server: Server, replicas: list[dict[str, str]]) -> Iterator[Finding]:
    wanted = server.number("min-replicas-to-write") or 0
    good = server.number("min_slaves_good_slaves")
    if wanted and (good if good is not None else len(replicas)) < wanted:
        yield found(
            "replicas_too_few", f"{good or 0} of {wanted} replicas that must follow do: writes are refused",
            "start the replicas, or redis-cli CONFIG SET min-replicas-to-write 0",
            min_replicas_to_write=wanted, good_replicas=good or 0, replicas=replicas,
        )  # fmt: skip
    for replica in replicas:
        place = f"{replica.get('ip')}:{replica.get('port')}"
        if replica.get("state") != "online":
            message = f"the replica {place} is not online: {replica.get('state')}"
            yield found("replica_not_online", message, "look at its log; redis-cli INFO replication", **replica)
        elif int(replica.get("lag", "0")) > _BEHIND:
            message = f"the replica {place} was not heard of for {replica['lag']} s: a failover loses what it lacks"
            yield found(
                "replica_behind", message, "look at its load and at the network; redis-cli INFO replication", **replica
            )


def _replica(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (part.partition("=") for part in text.split(","))}
