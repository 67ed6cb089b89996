"""The wire format of a dead letter: the fields of its entry, the failure of a run, the bound of the stream.

`queue.settle_commands` writes it with `scripts/dead_letter.lua`; `dead_letter.entry` reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from streamq.errors import UndecodableError
from streamq.wire import bounds
from streamq.wire.delivery import Delivery
from streamq.wire.message import MOST_FIELDS, TRACEBACK_TAIL, Field, entry_ms, iso, utf8

# The fields of the message that a dead letter has, too. A replay uses them again.
_KEPT = (
    b"priority", b"retries", b"timeout", b"result_ttl", b"headers", b"then", b"dedup", b"dedup_until", b"dedup_ttl",
    b"workflow",
)  # fmt: skip
ERROR_KEPT = 8_000  # characters of the message of an error
EVIDENCE_BYTES = 64 << 10  # of an entry that cannot be decoded, names of fields included
UNDECODABLE = "undecodable"  # the reason; also that of a field that can be decoded but not be carried out
_NOT_STARTED = frozenset(
    {"crash_loop", "expired", "unknown_group", "unknown_task", UNDECODABLE}
)  # reasons known before a run
_SPENT = "retries_exhausted"  # the reason of a delivery that spent an attempt
_NAME_KEPT = 1_000  # bytes of a name or an id that is kept for people


@dataclass(frozen=True, slots=True)
class DeadLetterBound:
    """The bound of the dead letter stream: `max_size` entries, `max_age` seconds (0: any age), `max_bytes` (0: any).

    `max_bytes` is the memory of the stream, as the server estimates it from its oldest entries. Beyond a bound the
    oldest dead letters are dropped, and counted. Raises ConfigurationError for a value that cannot be used.
    """

    max_size: int = 10_000
    max_age: float = 0.0
    max_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        bounds.DEAD_LETTERS.check(self.max_size)
        bounds.DEAD_LETTER_BYTES.check(self.max_bytes)
        object.__setattr__(self, "max_age", bounds.DEAD_LETTER_AGE.check(self.max_age))


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run failed, as text that outlives the process."""

    error_type: str
    error: str
    traceback: str = ""


def dead_letter_fields(
    delivery: Delivery, *, reason: str, failure: Failure, worker: str, stream: str, died_at: float, group: str,
    refused: str = "",
) -> list[Field]:  # fmt: skip
    """Return the flat fields of a dead letter's entry. `died_at` is Unix seconds.

    `refused` says which step the server refused before, empty if none.

    An entry that cannot be decoded keeps its fields, byte for byte and once, as `raw.<name>`: at most
    `EVIDENCE_BYTES`. What is beyond that is counted in the field `cut`.
    """
    fields = delivery.fields
    entry = delivery.entry_id.decode()
    readable = reason != UNDECODABLE and _readable(delivery)
    flat: list[Field] = ["task_id", (fields.get(b"id") or delivery.entry_id)[:_NAME_KEPT]]
    flat += ("task", fields.get(b"task", b"")[: None if readable else _NAME_KEPT])
    if readable:
        flat += ("args", fields.get(b"args") or "[]", "kwargs", fields.get(b"kwargs") or "{}")
    flat += ("tier", delivery.tier_name, "reason", reason, "error_type", failure.error_type)
    flat += ("error", utf8(failure.error[:ERROR_KEPT]), "traceback", utf8(failure.traceback[-TRACEBACK_TAIL:]))
    attempts, starts = runs_of(delivery, reason)
    flat += ("attempts", str(attempts), "starts", str(starts))
    if readable:
        flat += ("enqueued_at", iso(delivery.enqueued_at))
        for name in _KEPT:
            if name in fields:
                flat += (name, fields[name])
    else:
        flat += ("enqueued_at", iso(entry_ms(delivery.entry_id) / 1000))
        flat += _evidence(fields)
    if delivery.crashed_workers:
        flat += ("crashed", " ".join(delivery.crashed_workers))
    if refused:
        flat += ("refused", utf8(refused))
    return [*flat, "died_at", iso(died_at), "worker", worker, "group", group, "origin", f"{stream} {entry}"]


def undecoded_fields(
    delivery: Delivery, *, reason: str, failure: Failure, worker: str, stream: str, died_at: float, group: str,
    refused: str = "",
) -> list[Field]:  # fmt: skip
    """Return the flat fields of a dead letter of which nothing is decoded, where `dead_letter_fields` fails.

    It has what a replay uses, byte for byte; of an entry that is no message, the evidence.
    """
    fields = delivery.fields
    flat: list[Field] = ["task_id", (fields.get(b"id") or delivery.entry_id)[:_NAME_KEPT]]
    readable = reason != UNDECODABLE and _readable(delivery)
    flat += ("task", fields.get(b"task", b"")[: None if readable else _NAME_KEPT])
    flat += ("tier", delivery.tier_name, "reason", reason, "error_type", failure.error_type)
    flat += ("error", failure.error[:ERROR_KEPT])
    with suppress(Exception):  # what cannot be had is left out
        attempts, starts = runs_of(delivery, reason)
        flat += ("attempts", str(attempts), "starts", str(starts))
    if readable:
        for name in (b"args", b"kwargs", *_KEPT):
            if name in fields:
                flat += (name, fields[name])
    else:
        flat += _evidence(fields)
    if refused:
        flat += ("refused", refused)
    flat += ("died_at", iso(died_at), "worker", worker, "group", group)
    flat += ("origin", f"{stream} {delivery.entry_id.decode(errors='backslashreplace')}")
    return [utf8(part) if isinstance(part, str) else part for part in flat]


def runs_of(delivery: Delivery, reason: str) -> tuple[int, int]:
    """Return the runs of the retry budget that a dead task has had, and all its starts.

    The delivery counts as a run, unless it became a dead letter before its handler began. One that spent the last
    attempt counts, although middleware failed in its place. Numbers that cannot be read, or are beyond their bounds,
    are not believed.
    """
    not_started = reason in _NOT_STARTED or (not delivery.began and reason != _SPENT)
    try:
        return delivery.attempt - not_started, delivery.starts - not_started
    except UndecodableError:
        return 0, len(delivery.crashed_workers)


def _readable(delivery: Delivery) -> bool:
    try:
        delivery.check()
    except Exception:  # noqa: BLE001 - a mistake of ours must not keep an entry from becoming a dead letter
        return False
    return True


def _evidence(fields: Mapping[bytes, bytes]) -> list[Field]:
    """Return the fields of an entry that cannot be decoded, and what of them is cut off."""
    flat: list[Field] = []
    left, fields_cut, bytes_cut = EVIDENCE_BYTES, 0, 0
    for place, (name, value) in enumerate(fields.items()):
        if place >= MOST_FIELDS or len(name) > left:
            fields_cut, bytes_cut = fields_cut + 1, bytes_cut + len(name) + len(value)
            continue
        kept = value[: left - len(name)]
        flat += (b"raw." + name, kept)
        left -= len(name) + len(kept)
        bytes_cut += len(value) - len(kept)
    return [*flat, "cut", f"{bytes_cut} bytes, {fields_cut} of {len(fields)} fields"] if bytes_cut else flat
