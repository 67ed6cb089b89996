"""Reads samples of what internal keys hold, and finds values that streamq cannot have written.

Workers and monitors read around such values. They say that another program, or a person, writes into the namespace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from streamq.doctor.queries import SAMPLE, Queries, pairs, rows, text
from streamq.wire.counters import DROPPED, is_counter, stored_dropped
from streamq.wire.stored_numbers import stored_count, stored_time

LONGEST_LEASE: Final = 31 * 86_400.0  # seconds: scripts ignore leases beyond it (`_consumers.lua`)
_FARTHEST: Final = 1e8  # seconds ahead: scripts ignore times beyond it (`_time_in.lua`)
_MOST_EVIDENCE: Final = 65_536  # bytes (`_crashes.lua`)
_SHOWN: Final = 80  # characters of a value

HASHES: Final = ("leases", "crashes", "stats", "totals", "circuit", "rate", "once")
SORTED_SETS: Final = ("alive", "permits", "called")
_COUNTS: Final = frozenset({"period", "failures", "token"})
_PAST: Final = frozenset({"since", "closed", "failed_at"})
_TIMES: Final = frozenset({"until", "tail", "gate", "again", "shut", "late", "ramp", "last_due"})


async def read_foreign_values(
    queries: Queries, names: Iterable[tuple[str, str]], now: float
) -> dict[str, tuple[str, ...]]:
    """Return foreign values by key: `field: value`, or `member: score`. `names` are kinds and names of keys."""
    asked = [(kind, name) for kind, name in names if kind in HASHES or kind in SORTED_SETS]
    found: dict[str, tuple[str, ...]] = {}
    for at in range(0, len(asked), SAMPLE):
        page = asked[at : at + SAMPLE]
        replies = await queries.ask(*(
            ("HRANDFIELD", name, SAMPLE, "WITHVALUES") if kind in HASHES else ("ZRANGE", name, -3, -1, "WITHSCORES")
            for kind, name in page
        ))  # fmt: skip
        for (kind, name), reply in zip(page, replies, strict=True):
            foreign = _foreign_fields(kind, _flat(reply), now)
            if shown := tuple(f"{field}: {text(value)[:_SHOWN]}" for field, value in foreign):
                found[name] = shown
    return found


def _flat(reply: Any) -> dict[str, Any]:
    """Return names and values, as RESP2 and RESP3 pair them."""
    some: Sequence[Any] = rows(reply)
    if some and isinstance(some[0], list):
        some = [part for row in some for part in row]
    return pairs(some)


def _foreign_fields(kind: str, fields: Mapping[str, Any], now: float) -> Iterator[tuple[str, Any]]:
    for field, value in fields.items():
        if not _is_sound(kind, field, value, now):
            yield field[:_SHOWN], value


def _is_sound(kind: str, field: str, value: Any, now: float) -> bool:
    """Whether streamq may have written this."""
    match kind:
        case "leases":
            return stored_count(value, most=round(LONGEST_LEASE * 1000)) is not None
        case "crashes":
            return len(value) < _MOST_EVIDENCE and _is_utf8(value)
        case "stats":
            return is_counter(field) and stored_count(value) is not None
        case "totals":
            return field == DROPPED and stored_dropped(value) is not None
        case _ if kind in SORTED_SETS:
            return 0 <= float(value) <= (now + LONGEST_LEASE) * 1000
        case _:
            return _is_sound_field(field, value, now)


def _is_sound_field(field: str, value: Any, now: float) -> bool:
    """Whether a circuit, a bucket or an effect may have this field."""
    if field == "state":
        return value in (b"closed", b"open", b"half_open")
    if field in _COUNTS:
        return stored_count(value) is not None
    if field not in _PAST | _TIMES:
        return True
    moment = stored_time(value)
    return moment is not None and moment.timestamp() <= now + (_FARTHEST if field in _TIMES else 60.0)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
