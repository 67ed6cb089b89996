"""Reads whether the messages that wait are signed. The oldest entries of each stream are a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from streamq.doctor.observations import Signatures
from streamq.doctor.queries import Queries, rows, text
from streamq.errors import SignatureError
from streamq.wire.delivery import Delivery
from streamq.wire.signing import SIG
from streamq.wire.tiers import Tier

_SAMPLE: Final = 10  # entries of each stream; an entry may be large


async def read_signatures(queries: Queries, tiers: Sequence[Tier]) -> Signatures:
    """Count signed and unsigned messages among the oldest entries. With keys, check them as a worker would."""
    store = queries.store
    signed = unsigned = 0
    refused: dict[str, str] = {}
    for index, tier in enumerate(tiers):
        stream = store.keys.tiers[index].stream
        for entry_id, flat in rows(await queries.one("XRANGE", stream, "-", "+", "COUNT", _SAMPLE)):
            if not flat:
                continue
            delivery = Delivery(index, tier.name, entry_id, flat)
            signed += SIG in delivery.fields
            unsigned += SIG not in delivery.fields
            try:
                store.check_signature(delivery)
            except SignatureError as error:
                refused[f"{stream} {text(entry_id)}"] = str(error)
    return Signatures(signed=signed, unsigned=unsigned, checked=store.signer is not None, refused=refused)
