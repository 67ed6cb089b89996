"""Judges the server: how far it is, what it can do, what its user may do, its clock, settings that hurt."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import found, typed
from streamq.doctor.observations import Facts, Server

SLOW: Final = 0.050  # seconds of the shortest round trip
OFF: Final = 1.0  # seconds between two clocks
_SHOWN: Final = 10  # permissions in a message
_NEEDED: Final = ("XAUTOCLAIM", "EVALSHA")
_LEAST_BUFFER: Final = 1 << 20  # bytes: the largest message, see streamq.wire.message.MAX_PAYLOAD
_CROWDED: Final = 0.9


def reachable(facts: Facts) -> Iterator[Finding]:
    """It answered; how fast?"""
    server = facts.server
    best, typical = min(server.round_trips), statistics.median(server.round_trips)
    seen = {"product": server.product, "version": server.version, "best_ms": _ms(best), "median_ms": _ms(typical)}
    name = f"{server.product} {server.version}".strip()
    yield found("reachable", f"{name} answers; a round trip takes {_ms(typical):g} ms", **seen)
    if best > SLOW:
        yield found(
            "slow", f"even the fastest of {len(server.round_trips)} round trips took {_ms(best):g} ms",
            "run the workers nearer to the server; find out what keeps it: redis-cli SLOWLOG GET 10",
            best_ms=_ms(best), limit_ms=_ms(SLOW),
        )  # fmt: skip
    if server.in_process:
        yield found(
            "in_process",
            "this server lives in this process and ends with it; it has no permissions, settings, persistence or "
            "replication to ask about",
        )  # fmt: skip


def features(facts: Facts) -> Iterator[Finding]:
    """Does it have the commands that streamq makes use of?"""
    known = facts.server.features
    missing = [name for name, there in known.items() if not there]
    if needed := [name for name in missing if name in _NEEDED]:
        yield found(
            "too_old", f"{facts.server.product} {facts.server.version} has no {', '.join(needed)}",
            "run Redis 6.2 or newer, or Valkey", missing=needed, version=facts.server.version,
        )  # fmt: skip
    elif missing:
        yield found("features_missing", f"not there, and not needed: {', '.join(missing)}", features=dict(known))
    elif known:
        yield found("features", f"all there: {', '.join(known)}", features=dict(known))


def cluster(facts: Facts) -> Iterator[Finding]:
    """In a cluster all keys of a step must fall into one slot."""
    if facts.server.info.get("cluster_enabled") == "1" and len(facts.server.slots) > 1:
        yield found(
            "cluster_slots", f"a cluster, and the keys fall into {len(facts.server.slots)} slots: steps are refused",
            "put all keys into one slot: --namespace '{queue}'", slots=sorted(facts.server.slots),
        )  # fmt: skip


def permissions(facts: Facts) -> Iterator[Finding]:
    """May the user do what its role does?"""
    rights = facts.rights
    if not rights.asked:
        return
    if not rights.denied:
        message = f"the user {rights.user!r} may do all that a {rights.role} does"
        yield found("permissions_fine", message, user=rights.user, role=rights.role, asked=rights.asked)
        return
    missing = sorted({denied.permission for denied in rights.denied})
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    yield found(
        "permission_missing",
        f"the user {rights.user!r} may not do what a {rights.role} does: {' '.join(missing[:_SHOWN])}{more}",
        typed("ACL", "SETUSER", rights.user, *missing),
        user=rights.user, role=rights.role, missing=missing,
        commands=sorted({denied.command for denied in rights.denied}),
    )  # fmt: skip


def clock(facts: Facts) -> Iterator[Finding]:
    """Do this machine and the server agree on the time? Did the server's clock go back?"""
    server = facts.server
    if server.offset is not None:
        seen = {"offset_s": round(server.offset, 3), "give_or_take_s": round(server.offset_error, 4)}
        if abs(server.offset) - server.offset_error > OFF:
            ahead = "ahead of" if server.offset > 0 else "behind"
            yield found(
                "clock_offset", f"the server's clock is {abs(server.offset):.1f} s {ahead} this machine's",
                "set both clocks by NTP (timedatectl set-ntp true): 'at' and 'expires' are the sender's time, "
                "delays and leases the server's", **seen,
            )  # fmt: skip
        else:
            yield found("clock_fine", f"the clocks differ by {_ms(abs(server.offset)):g} ms", **seen)
    for tier in facts.tiers:
        ahead_by = int(tier.last_id.partition("-")[0]) / 1000 - facts.now
        if ahead_by > 10:
            yield found(
                "clock_went_back",
                f"the newest entry of {tier.keys.stream} is {ahead_by:.0f} s in the future: the clock went back",
                "set the server's clock by NTP; until it has caught up, waits and latencies are wrong",
                stream=tier.keys.stream, last_id=tier.last_id, ahead_s=round(ahead_by, 1),
            )  # fmt: skip


def settings(facts: Facts) -> Iterator[Finding]:
    """Is there a setting that cuts connections or their replies?"""
    before = list(_hurting(facts.server))
    yield from before
    if not before and facts.server.config:
        yield found("settings_fine", "no setting cuts connections that streamq keeps")


def _hurting(server: Server) -> Iterator[Finding]:
    config = server.config
    if (timeout := server.number("timeout") or 0) > 0:
        yield found(
            "idle_timeout", f"the server closes connections that were idle for {timeout} s: a command sent just then "
            "has an unknown outcome", "redis-cli CONFIG SET timeout 0", timeout=timeout,
        )  # fmt: skip
    if config.get("tcp-keepalive") == "0":
        yield found(
            "keepalive_off", "the server never notices that a client vanished, and keeps its connection",
            "redis-cli CONFIG SET tcp-keepalive 300", tcp_keepalive=0,
        )  # fmt: skip
    for kind, limit in _buffer_limits(config.get("client-output-buffer-limit", "")).items():
        if 0 < limit < _LEAST_BUFFER and kind in ("normal", "pubsub"):
            yield found(
                "output_buffer_small",
                f"the server closes {kind} connections to which it owes {limit} bytes: one large message does that",
                f'redis-cli CONFIG SET client-output-buffer-limit "{kind} 33554432 8388608 60"', kind=kind, limit=limit,
            )  # fmt: skip
    clients, most = server.number("connected_clients") or 0, server.number("maxclients") or 0
    if most and clients >= most * _CROWDED:
        yield found(
            "clients_near_limit", f"{clients} of at most {most} connections are open; a worker needs three",
            "redis-cli CLIENT LIST shows whose they are; redis-cli CONFIG SET maxclients 10000",
            connected_clients=clients, maxclients=most,
        )  # fmt: skip


def _buffer_limits(text: str) -> dict[str, int]:
    """Return the hard limits of client-output-buffer-limit by class."""
    words = text.split()
    return {kind: int(hard) for kind, hard in zip(words[::4], words[1::4], strict=False) if hard.isdigit()}


def not_asked(facts: Facts) -> Iterator[Finding]:
    """Say what this user could not be told."""
    for permission, what in facts.refused.items():
        yield found(
            "not_asked", f"{what}: not asked, for want of {permission}",
            typed("ACL", "SETUSER", facts.rights.user or "default", permission), permission=permission, command=what,
        )  # fmt: skip


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
