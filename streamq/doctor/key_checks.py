"""Judges the names in the namespace: keys that nobody documented, and keys that stay for ever."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import found, typed
from streamq.doctor.observations import Facts
from streamq.doctor.read_keys import MORTAL

_SHOWN: Final = 5


def keys(facts: Facts) -> Iterator[Finding]:
    """Is there anything that should not be, or that should have gone?"""
    scan = facts.scan
    immortal = [getattr(tier.keys, what) for tier in facts.tiers for what, ttl in tier.ttls.items()
                if what in MORTAL and ttl == -1]  # fmt: skip
    immortal = list(dict.fromkeys((*immortal, *(scan.immortal if scan else ()))))
    if immortal:
        yield found(
            "no_ttl", f"{len(immortal)} keys have lost their TTL and stay for ever: {_some(immortal)}",
            typed("EXPIRE", immortal[0], "3600"), keys=immortal,
        )  # fmt: skip
    if scan is None:
        return
    if scan.unknown:
        names = list(scan.unknown)
        yield found(
            "unknown_keys", f"{len(names)} keys in the namespace are none of streamq's: {_some(names)}",
            "find out who writes them, and give each program a --namespace of its own", keys=dict(scan.unknown),
        )  # fmt: skip
    if scan.streams:
        message = f"{len(scan.streams)} streams here are of other tiers, and were not examined: {_some(scan.streams)}"
        yield found(
            "other_streams",
            message,
            f"streamq doctor --queue {shlex.quote(scan.streams[0])}",
            streams=list(scan.streams),
        )
    if not scan.complete:
        yield found(
            "scan_stopped",
            f"the search for strange keys stopped early, after {scan.scanned} keys; {scan.met} are in the namespace",
            f"streamq doctor --scan {scan.scanned * 10}", scanned=scan.scanned, met=scan.met,
        )  # fmt: skip
    elif not (immortal or scan.unknown):
        yield found("keys_fine", f"all {scan.met} keys in the namespace are documented ones", met=scan.met)


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
