"""Checks the keys in the namespace: unknown keys, and keys that have lost their TTL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import and_so, counted, first_names, make_finding, redis_cli_command
from streamq.doctor.observations import Observations
from streamq.doctor.read_keys import TYPES, WITH_TTL

_MAX_SHOWN: Final = 5
_MOST_TIERS: Final = 10  # of a remedy
_SOON: Final = 60.0  # seconds that an entry may wait for the first worker of its stream


def keys(observed: Observations) -> Iterator[Finding]:
    """Check for unknown keys and for keys without the TTL that they should have."""
    scan = observed.scan
    # A key of another type belongs to another program (wrong_type): it is not for us to expire.
    without_ttl = [getattr(tier.keys, what) for tier in observed.tiers for what, ttl in tier.ttls.items()
                if what in WITH_TTL and ttl == -1 and tier.types.get(what, TYPES[what]) == TYPES[what]]  # fmt: skip
    without_ttl = list(dict.fromkeys((*without_ttl, *(scan.without_ttl if scan else ()))))
    if without_ttl:
        lost = counted(
            len(without_ttl), "key has lost its TTL and never expires", "keys have lost their TTL and never expire"
        )
        yield make_finding(
            "no_ttl",
            f"{lost}: {first_names(without_ttl, _MAX_SHOWN)}",
            and_so(redis_cli_command("EXPIRE", without_ttl[0], "3600"), len(without_ttl) - 1), keys=without_ttl,
        )  # fmt: skip
    if scan is None:
        return
    if scan.unknown:
        names = list(scan.unknown)
        yield make_finding(
            "unknown_keys",
            f"{counted(len(names), 'key in the namespace is', 'keys in the namespace are')} not streamq's: "
            f"{first_names(names, _MAX_SHOWN)}",
            "find the program that writes them, and give each program its own --namespace", keys=dict(scan.unknown),
        )  # fmt: skip
    if scan.streams:
        message = (
            f"{counted(len(scan.streams), 'stream belongs to another tier', 'streams belong to other tiers')}, not "
            f"checked: {first_names(scan.streams, _MAX_SHOWN)}"
        )
        left = len(scan.streams) - _MOST_TIERS
        yield make_finding(
            "other_streams",
            message,
            observed.command("doctor", streams=scan.streams[:_MOST_TIERS])
            + (f" (and again with the names of {left} more)" if left > 0 else ""),
            streams=list(scan.streams),
        )
    yield from _others_wait(observed)
    if not scan.complete:
        yield make_finding(
            "scan_stopped",
            f"the scan for unknown keys stopped after {scan.scanned} keys; {scan.met} of them are in the namespace",
            observed.command("doctor", "--scan", str(scan.scanned * 10)), scanned=scan.scanned, met=scan.met,
        )  # fmt: skip
    elif not (without_ttl or scan.unknown or scan.unread or scan.wrong):
        yield make_finding("keys_fine", f"all {scan.met} keys in the namespace are known", met=scan.met)


def _others_wait(observed: Observations) -> Iterator[Finding]:
    """Find entries in streams of other tiers that nobody alive reads: a producer may have tiers that no worker has."""
    alive = bool(observed.live_consumers())  # so a stream without any group is no new queue: it is none of theirs
    waiting = [
        (other, max(0.0, observed.now - other.since))
        for other in observed.other_streams
        if other.length and other.alive == 0 and other.since is not None
        and (observed.now - other.since > _SOON or (alive and not other.has_group))
    ]  # fmt: skip
    if not waiting:
        return
    number = sum(other.length for other, _ in waiting)
    first = [waiting[0][0].name]
    yield make_finding(
        "other_streams_wait",
        f"{counted(number, 'entry waits', 'entries wait')} for up to {max(age for _, age in waiting):.0f} s where no "
        f"worker is alive, in streams of other tiers: {first_names([other.name for other, _ in waiting], _MAX_SHOWN)}",
        "give producers and workers the same tiers; if a program of other tiers put them there, start its workers; to "
        f"look: {observed.command('doctor', streams=first)}; to run them: "
        f"{and_so(observed.bring_home(first[0]), len(waiting) - 1)}",
        streams={other.name: {"length": other.length, "oldest_s": round(age, 1)} for other, age in waiting},
    )  # fmt: skip


def values(observed: Observations) -> Iterator[Finding]:
    """Check samples of internal values: workers read around those that streamq did not write."""
    if not observed.foreign:
        return
    key, shown = next(iter(observed.foreign.items()))
    names = list(observed.foreign)
    yield make_finding(
        "foreign_values",
        f"{counted(len(names), 'key has values', 'keys have values')} that streamq did not write, and does not use: "
        f"{first_names(names, _MAX_SHOWN)}; {key} has {shown[0]}",
        "find the program that writes them; what is read around is lost: leases, counters, limits, evidence of crashes",
        values={name: list(some) for name, some in observed.foreign.items()},
    )  # fmt: skip
