"""The list of checks in their order. Each check is a pure function from `Observations` to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from streamq.doctor import (
    circuit_checks,
    data_checks,
    delay_checks,
    key_checks,
    server_checks,
    signature_checks,
    stream_checks,
    worker_checks,
)
from streamq.doctor.finding import Finding
from streamq.doctor.observations import Observations

Check = Callable[[Observations], Iterator[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    server_checks.reachable, server_checks.features, server_checks.cluster, server_checks.permissions,
    server_checks.clock, server_checks.settings,
    data_checks.memory, data_checks.persistence, data_checks.replication,
    stream_checks.key_types, stream_checks.streams, stream_checks.never_read, stream_checks.used_up,
    worker_checks.workers, worker_checks.unknown_tasks, worker_checks.crashes,
    delay_checks.delayed, delay_checks.schedules, delay_checks.dead_letters,
    circuit_checks.circuits,
    signature_checks.signatures,
    key_checks.keys, key_checks.values, server_checks.not_asked,
)  # fmt: skip


def run_checks(observed: Observations) -> Iterator[Finding]:
    """Yield the findings of all checks, in the order of `CHECKS`."""
    for check in CHECKS:
        yield from check(observed)
