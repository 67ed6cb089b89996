"""Checks the server: round trip, features, permissions, clock, settings."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import make_finding, redis_cli_command
from streamq.doctor.observations import Observations, Server, is_used_up
from streamq.wire.acl import escaped, patterns_of
from streamq.wire.command_line import OWN_TIERS, own_tiers_forgotten, tier_names
from streamq.wire.rights import ROLES, Role, rights_of

MAX_ROUND_TRIP: Final = 0.050  # seconds: limit for the fastest round trip
MAX_CLOCK_OFFSET: Final = 1.0  # seconds between two clocks
_MAX_SHOWN: Final = 6  # rights of one feature in a message
_REQUIRED: Final = ("XAUTOCLAIM", "EVALSHA")
_MIN_BUFFER: Final = 1 << 20  # bytes: the largest message, see streamq.wire.message.MAX_PAYLOAD
_CLOSING: Final = {"timeout", "client-output-buffer-limit"}  # settings that close connections
_NEAR_MAXCLIENTS: Final = 0.9
_DOCTOR_USER: Final = ("acl", "--role", "monitor", "--features", "doctor", "--user", "doctor")


def reachable(observed: Observations) -> Iterator[Finding]:
    """Report the product, and check the round trip."""
    server = observed.server
    fastest, typical = min(server.round_trips), statistics.median(server.round_trips)
    evidence = {
        "product": server.product,
        "version": server.version,
        "best_ms": _ms(fastest),
        "median_ms": _ms(typical),
    }
    name = f"{server.product} {server.version}".strip()
    yield make_finding("reachable", f"{name} answers; a round trip takes {_ms(typical):g} ms", **evidence)
    if fastest > MAX_ROUND_TRIP:
        yield make_finding(
            "slow", f"even the fastest of {len(server.round_trips)} round trips took {_ms(fastest):g} ms",
            "run the workers nearer to the server; look for slow commands: redis-cli SLOWLOG GET 10",
            best_ms=_ms(fastest), limit_ms=_ms(MAX_ROUND_TRIP),
        )  # fmt: skip
    if server.in_process:
        yield make_finding(
            "in_process",
            "this server is in this process and ends with it; it has no permissions, settings, persistence or "
            "replication to check",
        )  # fmt: skip


def features(observed: Observations) -> Iterator[Finding]:
    """Check that the server has the commands that streamq can use."""
    known = observed.server.features
    missing = [name for name, present in known.items() if not present]
    if observed.server.info.get("redis_mode", observed.server.info.get("server_mode")) == "sentinel":
        yield make_finding(
            "too_old", "this is a Sentinel: it holds no tasks, and has none of the commands",
            "give the address of the primary: redis-cli -p PORT SENTINEL GET-MASTER-ADDR-BY-NAME NAME",
            missing=missing, version=observed.server.version,
        )  # fmt: skip
    elif needed := [name for name in missing if name in _REQUIRED]:
        yield make_finding(
            "too_old", f"{observed.server.product} {observed.server.version} has no {', '.join(needed)}",
            "run Redis 6.2 or newer, or Valkey", missing=needed, version=observed.server.version,
        )  # fmt: skip
    elif missing:
        yield make_finding(
            "features_missing",
            f"optional commands that the server does not have: {', '.join(missing)}",
            features=dict(known),
        )
    elif known:
        yield make_finding("features", f"all commands are there: {', '.join(known)}", features=dict(known))


def cluster(observed: Observations) -> Iterator[Finding]:
    """Check that all keys are in one slot if the server is a cluster."""
    if observed.server.info.get("cluster_enabled") == "1" and len(observed.server.slots) > 1:
        yield make_finding(
            "cluster_slots",
            f"this is a cluster, and the keys are in {len(observed.server.slots)} slots: atomic steps are refused",
            "put all keys into one slot: --namespace '{queue}'", slots=sorted(observed.server.slots),
        )  # fmt: skip


def permissions(observed: Observations) -> Iterator[Finding]:
    """Check that the user has the rights of its role."""
    rights = observed.rights
    if not rights.asked:
        return
    evidence: dict[str, Any] = {"user": rights.user, "role": rights.role, "features": list(rights.features)}
    if not rights.denied:
        message = f"the user {rights.user!r} has all rights of {_one(rights.role)} with {', '.join(rights.features)}"
        yield make_finding("permissions_fine", message, asked=rights.asked, **evidence)
        return
    by_feature: dict[str, set[str]] = {}
    for denied in rights.denied:
        for feature in denied.features:
            by_feature.setdefault(feature, set()).add(denied.permission)
    missing = sorted({denied.permission for denied in rights.denied})
    shown = "; ".join(f"{feature}: {_some(sorted(lacks))}" for feature, lacks in by_feature.items())
    unasked = f"; could not be asked for, and may be there: {_some(rights.unasked)}" if rights.unasked else ""
    yield make_finding(
        "permission_missing", f"the user {rights.user!r} lacks rights of {_one(rights.role)}: {shown}{unasked}",
        _unless_forgotten(observed, missing) + redis_cli_command("ACL", "SETUSER", rights.user, *rights.rules),
        missing=missing, by_feature={feature: sorted(lacks) for feature, lacks in by_feature.items()},
        rules=list(rights.rules), unasked=list(rights.unasked),
        commands=sorted({denied.command for denied in rights.denied}), **evidence,
    )  # fmt: skip


def _unless_forgotten(observed: Observations, missing: Sequence[str]) -> str:
    """Return what to do first if a user of other keys lacks all default tiers: others may have been forgotten."""
    keys = observed.keys
    streams = {f"~{escaped(tier.stream)}" for tier in keys.tiers}
    of_tiers = {f"~{escaped(name)}" for tier in keys.tiers for name in asdict(tier).values()}
    roles: list[Role] = [one for one in ROLES if one == observed.rights.role]
    subjects = {one.subject for one in rights_of(roles, observed.rights.features) if one.subject}
    others = {rule for one in subjects for rule in patterns_of(keys, one) if rule.startswith("~")} - of_tiers
    held = not others or not others <= {*missing}  # a user without any right is none that has rights to other tiers
    if not held or not streams <= {*missing} or not own_tiers_forgotten(keys, [keys.tiers[0].stream]):
        return ""
    served = tier_names(keys.namespace, [other.name for other in observed.other_streams if other.has_group])
    again = f"--tiers {shlex.quote(','.join(served))}, which have groups" if served else OWN_TIERS
    return f"if this queue has tiers of its own, grant nothing, and run this again with {again}; if it has none: "


def _one(role: str) -> str:
    return f"an {role}" if role == "operator" else f"a {role}"


def _some(rules: Sequence[str]) -> str:
    more = f" and {len(rules) - _MAX_SHOWN} more" if len(rules) > _MAX_SHOWN else ""
    return " ".join(rules[:_MAX_SHOWN]) + more


def clock(observed: Observations) -> Iterator[Finding]:
    """Compare the clocks of this machine and the server, and detect a server clock that went back."""
    server = observed.server
    if server.offset is not None:
        evidence = {"offset_s": round(server.offset, 3), "give_or_take_s": round(server.offset_error, 4)}
        if abs(server.offset) - server.offset_error > MAX_CLOCK_OFFSET:
            ahead = "ahead of" if server.offset > 0 else "behind"
            yield make_finding(
                "clock_offset", f"the server's clock is {abs(server.offset):.1f} s {ahead} this machine's",
                "set both clocks by NTP (timedatectl set-ntp true): streamq goes by the server's clock alone, but the "
                "times that a program computes, for 'at' say, are of its own clock", **evidence,
            )  # fmt: skip
        else:
            yield make_finding("clock_fine", f"the clocks differ by {_ms(abs(server.offset)):g} ms", **evidence)
    for tier in observed.tiers:
        ahead_by = int(tier.last_id.partition("-")[0]) / 1000 - observed.now
        if ahead_by > 10 and not is_used_up(tier.last_id):
            agrees = server.offset is not None and abs(server.offset) - server.offset_error <= MAX_CLOCK_OFFSET
            yield make_finding(
                "clock_went_back",
                f"the newest entry of {tier.keys.stream} is {ahead_by:.0f} s in the future: the server's clock went "
                "back, or somebody wrote that id",
                ("the clock agrees with this machine's by now: look who has given the id to XADD, or has set the clock"
                 if agrees else "set the server's clock by NTP")
                + "; waits and latencies are wrong until the clock passes that time",
                stream=tier.keys.stream, last_id=tier.last_id, ahead_s=round(ahead_by, 1),
            )  # fmt: skip


def settings(observed: Observations) -> Iterator[Finding]:
    """Check for settings that close connections."""
    problems = list(_setting_problems(observed.server))
    yield from problems
    if not problems and observed.server.config.keys() >= _CLOSING:
        yield make_finding("settings_fine", "no setting closes connections of streamq")


def _setting_problems(server: Server) -> Iterator[Finding]:
    config = server.config
    if (timeout := server.number("timeout") or 0) > 0:
        yield make_finding(
            "idle_timeout",
            f"the server closes connections that are idle for {timeout} s: a command sent at that moment has an "
            "unknown outcome", "redis-cli CONFIG SET timeout 0", timeout=timeout,
        )  # fmt: skip
    if config.get("tcp-keepalive") == "0":
        yield make_finding(
            "keepalive_off", "the server keeps connections of clients that have vanished",
            "redis-cli CONFIG SET tcp-keepalive 300", tcp_keepalive=0,
        )  # fmt: skip
    for kind, limit in _buffer_limits(config.get("client-output-buffer-limit", "")).items():
        if 0 < limit < _MIN_BUFFER and kind in ("normal", "pubsub"):
            yield make_finding(
                "output_buffer_small",
                f"the server closes {kind} connections with {limit} bytes of unread replies: one large message is more",
                f'redis-cli CONFIG SET client-output-buffer-limit "{kind} 33554432 8388608 60"', kind=kind, limit=limit,
            )  # fmt: skip
    clients, maxclients_ = server.number("connected_clients") or 0, server.number("maxclients") or 0
    if maxclients_ and clients >= maxclients_ * _NEAR_MAXCLIENTS:
        yield make_finding(
            "clients_near_limit", f"{clients} of at most {maxclients_} connections are open; a worker needs 3",
            "find their programs with redis-cli CLIENT LIST; redis-cli CONFIG SET maxclients 10000",
            connected_clients=clients, maxclients=maxclients_,
        )  # fmt: skip


def _buffer_limits(text: str) -> dict[str, int]:
    """Return the hard limits (bytes) of client-output-buffer-limit by class."""
    words = text.split()
    return {kind: int(hard) for kind, hard in zip(words[::4], words[1::4], strict=False) if hard.isdigit()}


def not_asked(observed: Observations) -> Iterator[Finding]:
    """Report in one finding what this user may not read. To give it those rights would undo least privilege."""
    refused = observed.refused
    if not refused:
        return
    missing = sorted(refused)
    checks = f"{len(missing)} read{'s' * (len(missing) != 1)}"
    yield make_finding(
        "not_asked", f"{checks} not made with these rights ({' '.join(missing)}); that is normal for "
        f"{_one(observed.rights.role)}", f"for these checks use a user of its own: {observed.command(*_DOCTOR_USER)}",
        permissions=missing, commands=[refused[permission] for permission in missing],
    )  # fmt: skip


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
