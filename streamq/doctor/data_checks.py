"""Checks whether the data is safe: memory and eviction, persistence, replication."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import make_finding
from streamq.doctor.observations import Observations, Server
from streamq.queue.remedies import MORE_REPLICAS, WRITABLE_DISK, more_memory

_FILLING_SHARE: Final = 0.85  # of maxmemory
_FULL_SHARE: Final = 0.98
_MAX_REPLICA_LAG: Final = 10  # seconds since the last report of a replica
_OFF: Final = frozenset({"", "0", None})
_LIMIT_IT: Final = "redis-cli CONFIG SET maxmemory 2gb (the value is yours to choose, as the machine has memory)"


def memory(observed: Observations) -> Iterator[Finding]:
    """Check the eviction policy and how much of maxmemory is in use."""
    server = observed.server
    maxmemory, used = server.number("maxmemory"), server.number("used_memory")
    policy = server.config.get("maxmemory-policy") or server.info.get("maxmemory_policy")
    if policy is None or maxmemory is None or server.in_process:
        return
    evidence = {
        "maxmemory_policy": policy, "maxmemory": maxmemory, "used_memory": used,
        "evicted_keys": server.number("evicted_keys"),
    }  # fmt: skip
    remedy = "redis-cli CONFIG SET maxmemory-policy noeviction, and in redis.conf"
    if policy != "noeviction" and maxmemory:
        yield make_finding(
            "eviction",
            f"maxmemory-policy is {policy}: a full server removes tasks, or keys that protect tasks",
            remedy,
            **evidence,
        )
    elif policy != "noeviction":
        yield make_finding(
            "eviction_dormant",
            f"maxmemory-policy is {policy}: if maxmemory is set, a full server removes tasks",
            remedy,
            **evidence,
        )
    if not maxmemory:
        message = "maxmemory is not set: a backlog may use all memory, until the system kills the server"
        yield make_finding("memory_unbounded", message, _LIMIT_IT, **evidence)
        return
    if used is None:
        return
    share = used / maxmemory
    more_room = more_memory(maxmemory, used)
    if share >= _FULL_SHARE:
        yield make_finding(
            "memory_full", f"{share:.0%} of maxmemory is in use: new tasks are refused", more_room, **evidence
        )
    elif share >= _FILLING_SHARE:
        yield make_finding("memory_filling", f"{share:.0%} of maxmemory is in use", more_room, **evidence)
    elif policy == "noeviction":
        yield make_finding("memory_fine", f"no key is evicted; {share:.0%} of maxmemory is in use", **evidence)


# --- on disk ---------------------------------------------------------------------------------------


def persistence(observed: Observations) -> Iterator[Finding]:
    """Check what survives the end of the server process."""
    server = observed.server
    aof = server.info.get("aof_enabled")
    if aof is None or server.in_process:
        return
    problems = [*_persistence_mode(server, aof == "1"), *_failed_writes(server, aof == "1")]
    yield from problems
    if aof == "1" and server.config.get("appendfsync") == "always" and not problems:
        yield make_finding(
            "persistence_fine", "a task is on disk before it is accepted", **_persistence_evidence(server)
        )


def _persistence_evidence(server: Server) -> dict[str, str | None]:
    names = ("aof_enabled", "aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    return {
        "appendfsync": server.config.get("appendfsync"), "save": server.config.get("save"),
        **{name: server.info.get(name) for name in names},
    }  # fmt: skip


def _persistence_mode(server: Server, aof: bool) -> Iterator[Finding]:
    fsync, save = server.config.get("appendfsync"), server.config.get("save")
    turn_on = "redis-cli CONFIG SET appendonly yes, and in redis.conf"
    match aof, fsync:
        case True, "no":
            message = "appendfsync is no: a crash of the machine can lose the tasks of the last 30 s"
            yield make_finding(
                "appendfsync_no", message, "redis-cli CONFIG SET appendfsync everysec", **_persistence_evidence(server)
            )
        case True, "everysec":
            message = "a crash of the machine can lose the tasks of the last 1 to 2 s"
            yield make_finding(
                "aof_everysec",
                message,
                "redis-cli CONFIG SET appendfsync always, if you cannot accept that",
                **_persistence_evidence(server),
            )
        case False, _ if save == "":
            message = "nothing is on disk: all tasks are lost when the server stops"
            yield make_finding("persistence_off", message, turn_on, **_persistence_evidence(server))
        case False, _ if save:  # None: what may not be read says nothing, neither of snapshots nor of none
            message = f"only snapshots are on disk ({save}): a crash loses all tasks since the last snapshot"
            yield make_finding("persistence_rdb_only", message, turn_on, **_persistence_evidence(server))


def _failed_writes(server: Server, aof: bool) -> Iterator[Finding]:
    info = server.info
    disk_remedy = WRITABLE_DISK
    if aof and info.get("aof_last_write_status", "ok") != "ok":
        yield make_finding(
            "aof_write_failed",
            "the last write to the append-only file failed: writes are refused (MISCONF)",
            disk_remedy,
            **_persistence_evidence(server),
        )
    if aof and info.get("aof_last_bgrewrite_status", "ok") != "ok":
        message = "the last rewrite of the append-only file failed: the file grows without limit"
        yield make_finding(
            "aof_rewrite_failed", message, f"redis-cli BGREWRITEAOF; {disk_remedy}", **_persistence_evidence(server)
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        refused = server.config.get("stop-writes-on-bgsave-error") != "no" and server.config.get("save") not in _OFF
        message = "the last snapshot failed" + (": writes are refused (MISCONF)" if refused else "")
        yield make_finding(
            "rdb_save_failed", message, f"redis-cli BGSAVE; {disk_remedy}", **_persistence_evidence(server)
        )


# --- replicas --------------------------------------------------------------------------------------


def replication(observed: Observations) -> Iterator[Finding]:
    """Check that this is the primary and that its replicas follow."""
    server, info = observed.server, observed.server.info
    role = info.get("role")
    if role is None or server.in_process:
        return
    if role != "master":
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        yield make_finding(
            "replica", f"this is a replica of {primary}: it refuses every write (READONLY)",
            f"give the primary's address: --url {shlex.quote(f'redis://{primary}')}", role=role, primary=primary,
            link=info.get("master_link_status"), silent_for_s=server.number("master_last_io_seconds_ago"),
        )  # fmt: skip
        return
    replicas = [_replica(value) for name, value in info.items() if re.fullmatch(r"slave\d+", name)]
    problems = list(_replicas(server, replicas))
    yield from problems
    if not problems:
        yield make_finding("primary", f"the primary, with {len(replicas)} replicas", replicas=replicas)


def _replicas(server: Server, replicas: list[dict[str, str]]) -> Iterator[Finding]:
    wanted = server.number("min-replicas-to-write") or 0
    good = server.number("min_slaves_good_slaves")
    if wanted and (good if good is not None else len(replicas)) < wanted:
        yield make_finding(
            "replicas_too_few", f"{good or 0} of {wanted} required replicas follow: writes are refused",
            MORE_REPLICAS,
            min_replicas_to_write=wanted, good_replicas=good or 0, replicas=replicas,
        )  # fmt: skip
    for replica in replicas:
        address = f"{replica.get('ip')}:{replica.get('port')}"
        if replica.get("state") != "online":
            message = f"the replica {address} is not online: {replica.get('state')}"
            yield make_finding("replica_not_online", message, "read its log; redis-cli INFO replication", **replica)
        elif int(replica.get("lag", "0")) > _MAX_REPLICA_LAG:
            message = f"the replica {address} has sent no report for {replica['lag']} s: a failover loses newer tasks"
            yield make_finding(
                "replica_behind", message, "check its load and the network; redis-cli INFO replication", **replica
            )


def _replica(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (part.partition("=") for part in text.split(","))}
