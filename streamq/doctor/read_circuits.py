"""Reads the circuits that are not closed, from the index that the monitor reads, too."""

from __future__ import annotations

from streamq.doctor.queries import SAMPLE, Queries, pairs, rows
from streamq.middleware.circuit_view import StoredCircuit


async def read_circuits(queries: Queries, now: float) -> tuple[StoredCircuit, ...]:
    """Return the circuits that are not closed: those that changed last, at most `SAMPLE`."""
    keys = queries.store.keys
    until = pairs(await queries.one("ZRANGE", keys.circuits, -SAMPLE, -1, "WITHSCORES"))
    names = [name for name, score in until.items() if float(score) / 1000 > now]
    replies = await queries.ask(*(("HGETALL", keys.circuit(name)) for name in names))
    found = (StoredCircuit.read(name, rows(reply)) for name, reply in zip(names, replies, strict=True))
    return tuple(one for one in found if one is not None)
