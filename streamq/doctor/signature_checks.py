"""Checks whether all members of the fleet sign, and whether the workers would run what waits."""

from __future__ import annotations

from collections.abc import Iterator

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import counted, make_finding
from streamq.doctor.observations import Observations


def signatures(observed: Observations) -> Iterator[Finding]:
    """Yield what the signatures of the waiting messages show."""
    found = observed.signatures
    if found.refused:
        place, why = next(iter(found.refused.items()))
        message = f"{counted(len(found.refused), 'waiting message', 'waiting messages')} will be refused: {why}"
        remedy = "find the sender: redis-cli XRANGE; give it the keys, or the workers accept_unsigned for a while"
        yield make_finding("signatures_refused", message, remedy, first=place, refused=len(found.refused))
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
