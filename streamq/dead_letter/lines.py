"""Dead letters as lines of JSON, and back: nothing of a letter is lost on the way, bytes that are no text included.

A line is `{"id": "1767225600000-0", "fields": {"task": "send", ...}}`. A value that is no UTF-8 is `{"base64": "..."}`.
If a name is no UTF-8, or there twice, `fields` is a list of pairs. Whatever a terminal would obey is an escape of JSON.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import orjson

from streamq.client import Command
from streamq.dead_letter.filter import DeadLetterFilter
from streamq.dead_letter.pages import PAGE, PAGE_BYTES, newest_id, pages
from streamq.dead_letter.redaction import Redaction
from streamq.dead_letter.searching import window_of
from streamq.dead_letter.selection import is_full_entry_id, order
from streamq.errors import BrokerError, ConfigurationError, MessageError, StreamqError
from streamq.queue.store import Store
from streamq.wire.bounds import FIELDS_OF_ENTRY, shown
from streamq.wire.message import entry_ms, iso
from streamq.wire.printable import escaped_json

_OWN_CAUSES: Final = frozenset({"ERR", "CLOSED"})  # codes of what the server refuses about one letter
_MOST_FIELDS: Final = 4 * int(FIELDS_OF_ENTRY.highest)  # those of a message, `raw.` before each, and our own


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one line: `entry_id` of the new letter, or `error`, which says why the line was passed over."""

    line: int  # from 1 on
    entry_id: str = ""
    error: StreamqError | None = None


async def export_lines(
    store: Store, filter_: DeadLetterFilter, redact: Redaction | None
) -> AsyncGenerator[bytes, None]:
    """Yield a line for each letter that matches and is there now, oldest first."""
    after, last = await window_of(store, filter_)
    matches, last = filter_.matcher(), min(last, await newest_id(store), key=order)
    async with aclosing(pages(store, last, after=after)) as some:
        async for page in some:
            for letter in page:
                if matches is None or matches(letter):
                    yield line_of(letter.entry_id, letter.flat, redact)


def line_of(entry_id: str, flat: Sequence[bytes], redact: Redaction | None = None) -> bytes:
    """Return one letter as a line of JSON, without its end."""
    kept = list(flat) if redact is None else redact.flat(flat)
    pairs = [(_packed(name), _packed(value)) for name, value in zip(kept[::2], kept[1::2], strict=False)]
    plain = all(isinstance(name, str) for name, _ in pairs) and len(dict(pairs)) == len(pairs)
    line: dict[str, Any] = {"id": entry_id, "fields": dict(pairs) if plain else pairs}
    if redact is not None:
        line["redacted"] = True
    return escaped_json(orjson.dumps(line))


def _packed(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}


def read_line(text: bytes | str) -> list[bytes]:
    """Return the flat fields of a line. Raises MessageError if it is no dead letter that `export` has written."""
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MessageError(f"{_start(text)} is no JSON ({error}): give lines of 'streamq dlq export'") from None
    fields = line.get("fields") if isinstance(line, dict) else None
    if not isinstance(fields, dict | list) or not fields:
        raise MessageError(f"{_start(text)} has no fields: give lines of 'streamq dlq export'")
    if line.get("redacted"):
        raise MessageError(f"{_start(text)} was redacted: its arguments are gone; export without --redact")
    pairs = list(fields.items()) if isinstance(fields, dict) else fields
    if len(pairs) > _MOST_FIELDS:
        raise MessageError(f"{_start(text)} has {len(pairs):,} fields: a dead letter has {_MOST_FIELDS:,} at most")
    flat: list[bytes] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise MessageError(f"{_start(text)} has a field that is no pair of a name and a value")
        flat += map(_unpacked, pair)
    return _with_time(flat, line.get("id"))


def _unpacked(value: Any) -> bytes:
    match value:
        case str():
            return value.encode()
        case {"base64": str(text), **others} if not others:
            try:
                return b64decode(text, validate=True)
            except ValueError:
                raise MessageError(f"{text[:80]!r} is no base64") from None
    raise MessageError(f"{str(value)[:80]!r} is neither a text nor {{'base64': ...}}, as each field is")


def _with_time(flat: list[bytes], id_: Any) -> list[bytes]:
    """Return the fields with the time at which the letter died: a letter that lacks it died when it was written."""
    if b"died_at" in flat[::2] or not isinstance(id_, str) or not is_full_entry_id(id_):
        return flat
    return [*flat, b"died_at", iso(entry_ms(id_.encode()) / 1000).encode()]


def _start(text: bytes | str) -> str:
    return shown(text if isinstance(text, bytes) else text.encode(errors="backslashreplace"))


async def import_lines(store: Store, lines: Iterable[bytes | str]) -> AsyncGenerator[Imported, None]:
    """Add the letters of these lines, in pipelines, and yield what became of each line that is not blank."""
    if isinstance(lines, str | bytes):
        raise ConfigurationError("lines is one text: give a list of lines, or a file")
    batch, size = list[tuple[int, list[bytes]]](), 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            flat = read_line(text)
        except MessageError as error:
            yield Imported(number, error=MessageError(f"line {number}: {error}"))
            continue
        batch.append((number, flat))
        size += len(text)
        if len(batch) >= PAGE or size >= PAGE_BYTES:
            for one in await _added(store, batch):
                yield one
            batch, size = [], 0
    for one in await _added(store, batch) if batch else ():
        yield one


async def _added(store: Store, batch: Sequence[tuple[int, list[bytes]]]) -> list[Imported]:
    commands: list[Command] = [("XADD", store.keys.dead, "*", *flat) for _, flat in batch]
    found: list[Imported] = []
    refused: BrokerError | None = None
    for (number, _), command, reply in zip(batch, commands, await store.attempt(commands), strict=True):
        if isinstance(reply, BrokerError):
            error = await store.explain(reply, command)
            if reply.code not in _OWN_CAUSES:
                refused = refused or error
            found.append(Imported(number, error=error))
        else:
            found.append(Imported(number, str(reply, "ascii")))
    if refused is not None and not any(one.entry_id for one in found):
        raise refused
    return found
