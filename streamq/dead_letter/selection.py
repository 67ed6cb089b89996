"""Entry ids of dead letters, and what of a letter its replay needs to know. Pure: reads no stream."""

from __future__ import annotations

import re
from typing import Final

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.queue.sending import default_dedup_ttl
from streamq.wire.argument_types import check_type
from streamq.wire.message import milliseconds

_ENTRY_ID: Final = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_LARGEST: Final = 2**64 - 1  # of each part of an entry id


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
