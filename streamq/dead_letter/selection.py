"""Which dead letters are chosen, and in which order. Pure: reads no stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.queue.sending import default_dedup_ttl
from streamq.tasks.outcome import Reason
from streamq.wire.argument_types import check_type
from streamq.wire.message import milliseconds

_ENTRY_ID: Final = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_LARGEST: Final = 2**64 - 1  # of each part of an entry id


def matcher(
    task_name: str | None, reason: str | None, error_type: str | None
) -> Callable[[DeadLetterEntry], bool] | None:
    """Return a function that tells whether a dead letter matches, None if all match. Raises ConfigurationError."""
    for name, value in (("task_name", task_name), ("reason", reason), ("error_type", error_type)):
        check_type(name, value, str | None, "a text")
    if reason is not None and reason not in tuple(Reason):
        raise ConfigurationError(f"reason={repr_of(reason)} is not known: give one of {', '.join(Reason)}")
    if task_name is None and reason is None and error_type is None:
        return None

    def matches(dead_letter: DeadLetterEntry) -> bool:
        return (
            task_name in (None, dead_letter.task_name)
            and reason in (None, dead_letter.reason)
            and error_type in (None, dead_letter.error_type, dead_letter.error_type.rpartition(".")[2])
        )

    return matches


def dedup_ttl(dead_letter: DeadLetterEntry) -> int:
    """Return for how long (ms) a replay holds the deduplication key at most, 0 if it holds none."""
    options = dead_letter.options
    if not options.get("dedup"):
        return 0
    noted = options.get("dedup_ttl", "")
    if noted.isascii() and noted.isdigit() and len(noted) < 16:
        return int(noted)
    return milliseconds(default_dedup_ttl(options.get("dedup_until")))


def checked_entry_id(text: str) -> str:
    """Return an entry id. Raises ConfigurationError if it is none."""
    matched = _ENTRY_ID.fullmatch(check_type("after", text, str, "the entry_id of a dead letter"))
    if matched is None or any(int(part or 0) > _LARGEST for part in matched.groups()):
        raise ConfigurationError(f"after={repr_of(text)} is not an entry id: give the entry_id of a dead letter")
    return text


def is_full_entry_id(text: str) -> bool:
    """Is this the id of an entry, with both of its parts?"""
    matched = _ENTRY_ID.fullmatch(text)
    return matched is not None and all(part and int(part) <= _LARGEST for part in matched.groups())


def nothing_after(entry_id: str, *, newest_first: bool) -> bool:
    """Is this the last possible entry id in that order? The server refuses to read after it."""
    return checked_entry_id(entry_id) == ("0-0" if newest_first else f"{_LARGEST}-{_LARGEST}")


def order(entry_id: str) -> tuple[int, int]:
    """Return the place of an entry in its stream."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)
