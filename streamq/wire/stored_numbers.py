"""Numbers that are read from Redis, where somebody else may have written anything.

A value that streamq cannot have written counts as missing: it is read around. `streamq doctor` names it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

LARGEST: Final = 2**63 - 1  # of the server's own integers
LAST_MS: Final = 253_402_300_799_000  # Unix ms: the end of the year 9999
_NUMBER: Final = re.compile(rb"[0-9]{1,19}")
_TIME: Final = re.compile(rb"[0-9]{1,19}(\.[0-9]{1,20})?")


def stored_count(value: object, most: int = LARGEST) -> int | None:
    """Return a whole number from 0 to `most`; None if the value is anything else."""
    raw = _raw(value)
    if _NUMBER.fullmatch(raw) is None:
        return None
    number = int(raw)
    return number if number <= most else None


def stored_time(value: object) -> datetime | None:
    """Return the moment of a Unix time in ms; None if the value is no time before the year 10000."""
    raw = _raw(value)
    if _TIME.fullmatch(raw) is None or float(raw) > LAST_MS:
        return None
    return datetime.fromtimestamp(float(raw) / 1000, UTC)


def _raw(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode(errors="replace")
        case bool():
            return b""
        case int():
            return str(value).encode() if abs(value) <= LARGEST else b""
        case _:
            return b""
