"""The wire format of a dead letter: the fields of its entry, the failure of a run, the bound of the stream.

`queue.settle_commands` writes it with `scripts/dead_letter.lua`; `dead_letter.entry` reads it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamq.errors import UndecodableError
from streamq.wire.delivery import Delivery
from streamq.wire.message import MOST_FIELDS, TRACEBACK_TAIL, Field, entry_ms, iso, utf8

# The fields of the message that a dead letter has, too. A replay uses them again.
_KEPT = (
    b"priority", b"retries", b"timeout", b"result_ttl", b"headers", b"then", b"dedup", b"dedup_until", b"dedup_ttl",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeadLetterBound:
    """The bound of the dead letter stream: `max_size` entries, and `max_age` seconds (0: any age)."""

    max_size: int = 10_000
    max_age: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run failed, as text that outlives the process."""

    error_type: str
    error: str
    traceback: str = ""


def dead_letter_fields(
    delivery: Delivery, *, reason: str, failure: Failure, worker: str, stream: str, died_at: float, group: str
) -> list[Field]:
    """Return the flat fields of a dead letter's entry. `died_at` is Unix seconds.

    An entry that cannot be decoded keeps each of its fields, byte for byte, as `raw.<name>`.
    """
    fields = delivery.fields
    entry = delivery.entry_id.decode()
    flat: list[Field] = ["task_id", fields.get(b"id") or entry, "task", fields.get(b"task", b"")]
    flat += ("args", fields.get(b"args") or "[]", "kwargs", fields.get(b"kwargs") or "{}")
    flat += ("tier", delivery.tier_name, "reason", reason, "error_type", failure.error_type)
    flat += ("error", utf8(failure.error), "traceback", utf8(failure.traceback[-TRACEBACK_TAIL:]))
    try:
        delivery.check()
    except UndecodableError:
        flat += ("attempts", fields.get(b"attempt", b"1"), "starts", "0")
        flat += ("enqueued_at", iso(entry_ms(delivery.entry_id) / 1000))
        for name, value in list(fields.items())[:MOST_FIELDS]:
            flat += (b"raw." + name, value)
    else:
        flat += ("attempts", str(delivery.attempt), "starts", str(delivery.starts))
        flat += ("enqueued_at", iso(delivery.enqueued_at))
        for name in _KEPT:
            if name in fields:
                flat += (name, fields[name])
    if delivery.crashed_workers:
        flat += ("crashed", " ".join(delivery.crashed_workers))
    return [*flat, "died_at", iso(died_at), "worker", worker, "group", group, "origin", f"{stream} {entry}"]
