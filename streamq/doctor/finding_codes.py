"""All codes of findings, each with its one severity. `docs/doctor.md` has the same table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from streamq.doctor.finding import Finding, Severity

_BY_SEVERITY: Final = {
    Severity.OK: """
        reachable features permissions_fine clock_fine settings_fine memory_fine persistence_fine primary
        streams_fine workers_fine delayed_fine dead_letters_none keys_fine
    """,
    Severity.INFO: """
        in_process not_asked keepalive_off memory_unbounded aof_everysec features_missing
        stream_missing group_missing other_groups no_worker_yet takeover_due dead_consumers crash_evidence
        dead_letters scan_stopped other_streams signatures_unchecked
    """,
    Severity.WARNING: """
        slow clock_offset clock_went_back idle_timeout output_buffer_small clients_near_limit eviction_dormant
        memory_filling persistence_off persistence_rdb_only appendfsync_no aof_rewrite_failed replica_behind
        replica_not_online pending_gone group_abandoned orphans unknown_consumer lease_not_renewed suspects
        crash_verdict circuits_open dead_letters_growing dead_letters_near_bound dead_letters_dropped
        schedules_overdue schedules_unusable no_ttl unknown_keys other_streams_wait never_read unknown_tasks
        signatures_mixed signatures_refused foreign_values
    """,
    Severity.ERROR: """
        unreachable login_refused not_ready too_old permission_missing cluster_slots eviction memory_full
        aof_write_failed rdb_save_failed replica replicas_too_few wrong_type group_ahead stranded no_worker
        ids_used_up
        delayed_overdue delayed_without_message message_without_delay
    """,
}  # fmt: skip

SEVERITIES: Final = MappingProxyType(
    {code: severity for severity, codes in _BY_SEVERITY.items() for code in codes.split()}
)
"""Each code's severity."""


def redis_cli_command(*words: str) -> str:
    """Return a redis-cli command, quoted for a shell: names come from the server and may contain anything."""
    return shlex.join(("redis-cli", *words))


def counted(number: int, one: str, many: str) -> str:
    """Return a number with its words: `1 task waits`, `2 tasks wait`."""
    return f"{number} {one if number == 1 else many}"


def and_so(remedy: str, left: int) -> str:
    """Return a remedy for some, with a word that it is to be repeated for those that are left, if there are any."""
    return f"{remedy} (then for {left} more: run the doctor again)" if left > 0 else remedy


def first_names(names: Sequence[str], most: int) -> str:
    """Return the first names, and how many more there are: `a, b, c and 2 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def make_finding(code: str, message: str, remedy: str = "", /, **evidence: Any) -> Finding:
    """Return a finding with this code. Raises KeyError for an unknown code."""
    return Finding(code, SEVERITIES[code], message, evidence, remedy)
