"""Printable: text from outside, as it may stand in a terminal or in a log of lines. Pure.

Messages, errors, names of keys, hosts and fields are written by strangers. Printed as they are, they could drive the
terminal (escape sequences), turn the direction of its text, or begin a line that looks like one of ours. Here every
character that is not printable is written as its escape: `\\n`, `\\x1b`, `\\u202e`, and half a surrogate pair too.
"""

from __future__ import annotations

import re
from typing import Any, Final

LONGEST: Final = 10_000  # characters of one printed line
_BEYOND_ASCII: Final = re.compile(r"[^\x20-\x7e]+")


def printable(text: str, limit: int = LONGEST) -> str:
    """Return a text as one line of at most about `limit` characters, with escapes for what is not printable."""
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text) - limit} more characters)"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str, *, indent: str = "", limit: int = LONGEST) -> str:
    """Return a text of several lines, each printable and indented. Lines end at a newline alone."""
    return "\n".join(indent + printable(line.expandtabs(), limit) for line in text.rstrip("\n").split("\n"))


def json_line(value: Any) -> str:
    """Return a value as one line of JSON, with escapes for what a terminal would obey. Its strings mean the same.

    What JSON cannot carry (bytes, half a surrogate pair) becomes a text. Raises TypeError for a value that is nested
    too deep.
    """
    import orjson  # noqa: PLC0415 - a command that prints no JSON is quicker without it

    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS
    try:
        packed = orjson.dumps(value, option=options, default=_plain)
    except TypeError:
        packed = orjson.dumps(_plain(value), option=options)
    return escaped_json(packed).decode()


def escaped_json(packed: bytes) -> bytes:
    """Return JSON with escapes for what a terminal would obey. It means the same."""
    if packed.isascii():  # JSON has escapes for the rest of ASCII, but for one
        return packed.replace(b"\x7f", b"\\u007f")
    return _BEYOND_ASCII.sub(_escaped_run, packed.decode()).encode()


def _escaped_run(found: re.Match[str]) -> str:
    return "".join(char if char.isprintable() else _escaped(char) for char in found[0])


def _escaped(char: str) -> str:
    """Return a character as JSON escapes it."""
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one for each kind of value
    """Return a value as JSON has it: texts can be encoded, and what JSON lacks is its text."""
    match value:
        case str():
            return str.__str__(value).encode(errors="backslashreplace").decode()
        case None | bool() | float():
            return value
        case int():
            return int(value) if -(2**63) <= value < 2**64 else str(int(value))
        case dict():
            return {_plain(str(name)): _plain(part) for name, part in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(part) for part in value]
        case bytes() | bytearray():
            return bytes(value).decode(errors="backslashreplace")
        case _:
            return _plain(str(value))
