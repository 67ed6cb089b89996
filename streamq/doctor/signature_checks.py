"""Checks whether all members of the fleet sign, and whether the workers would run what waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import counted, make_finding, redis_cli_command
from streamq.doctor.observations import Observations


def signatures(observed: Observations) -> Iterator[Finding]:
    """Yield what the signatures of the waiting messages show."""
    found = observed.signatures
    if found.refused:
        first = next(iter(found.refused))
        causes = Counter((_counted_key(place, observed), why) for place, why in found.refused.items())
        listed = ", ".join(f"{number} in {key} {why}" for (key, why), number in causes.items())
        message = f"{counted(len(found.refused), 'message', 'messages')} will be refused: {listed}"
        remedy = f"look at one: {_look(first, observed)}; {_remedy(found.refused.values())}"
        yield make_finding("signatures_refused", message, remedy, first=first, refused=len(found.refused))
    elif found.signed and found.unsigned:
        message = (
            f"of the oldest messages {found.signed} are signed and {found.unsigned} are not: workers that require "
            "signatures refuse those"
        )
        remedy = "give all brokers of the namespace the same signing keys; see docs/signing.md"
        yield make_finding("signatures_mixed", message, remedy, signed=found.signed, unsigned=found.unsigned)
    elif found.signed and not found.checked:
        message = "messages are signed; without keys this check cannot say whether their signatures are right"
        yield make_finding("signatures_unchecked", message, "give --signing-keys FILE", signed=found.signed)


def _counted_key(place: str, observed: Observations) -> str:
    """Return the key under which this place is counted: one for the hashes of all groups of workflows."""
    key = place.partition(" ")[0]
    joins = observed.dead_key.removesuffix("dead") + "join:"
    return f"{joins}*" if key.startswith(joins) else key


def _look(place: str, observed: Observations) -> str:
    """Return the command that shows what lies at this place."""
    key, _, name = place.partition(" ")
    streams = {observed.dead_key, *(tier.keys.stream for tier in observed.tiers)}
    return redis_cli_command("XRANGE", key, name, name) if key in streams else redis_cli_command("HGET", key, name)


def _remedy(causes: Collection[str]) -> str:
    """Return what helps against these causes."""
    remedies = []
    if "not signed" in causes:
        remedies.append("give its sender the keys, and the workers accept_unsigned for a while")
    if any("unknown key" in cause for cause in causes):
        remedies.append("keep that key until these have run, were replayed or were stored again, if it is yours")
    if any("wrong" in cause or "no signature" in cause for cause in causes):
        remedies.append("find out who changed those")
    return "; ".join(remedies)
