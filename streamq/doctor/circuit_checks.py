"""Checks circuit breakers: tasks of a circuit that is not closed wait among the delayed ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import counted, make_finding
from streamq.doctor.observations import Observations
from streamq.middleware.circuit_view import StoredCircuit

_MAX_SHOWN: Final = 3


def circuits(observed: Observations) -> Iterator[Finding]:
    """Report circuits that are not closed, with the last failure of each."""
    found = observed.circuits
    if not found:
        return
    named = [_described(one, observed.now) for one in found[:_MAX_SHOWN]]
    more = f"; and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    yield make_finding(
        "circuits_open",
        f"{counted(len(found), 'circuit is', 'circuits are')} not closed, and their tasks wait, delayed: "
        f"{'; '.join(named)}{more}",
        "mend what they call: each is tried again by itself, and its tasks come back in order",
        circuits=[
            {
                "name": one.name, "worker": one.worker, "state": one.state, "failures": one.failures,
                "error_type": one.error_type, "error": one.error,
            } for one in found
        ],
    )  # fmt: skip


def _described(one: StoredCircuit, now: float) -> str:
    where = "" if one.worker is None else f" of {one.worker}"
    failed = f", the last failure: {': '.join(filter(None, (one.error_type, one.error)))}" if one.error_type else ""
    return f"{one.name}{where} is {one.state} for {max(0.0, now - one.since.timestamp()):.0f} s{failed}"
