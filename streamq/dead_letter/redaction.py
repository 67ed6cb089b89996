"""A policy that hides values of arguments: in what is printed, and in what is exported. Pure.

It changes the flat fields of a letter, so whatever is made of them lacks the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any, Final

import orjson

from streamq.errors import ConfigurationError
from streamq.wire.argument_types import check_items

REDACTED: Final = "[redacted]"
_PACKED: Final = orjson.dumps(REDACTED)
_ARGUMENTS: Final = frozenset({b"args", b"kwargs", b"headers"})
_TEXTS: Final = frozenset({b"error", b"traceback"})
_LEAST: Final = 4  # characters of a hidden text that is looked for in errors: shorter ones are everywhere


class Redaction:
    """Hides the values of arguments with these names, at every depth. `*` in a name stands for any text.

    `Redaction(["password", "*token*"])` hides them among keyword arguments, in headers, and in objects inside of any
    argument; upper and lower case are the same. A positional argument has its place as its name, from "0" on, so "*"
    hides all. Hidden texts of four characters or more are hidden in the error and its traceback, too. What cannot be
    decoded, and the later steps of a workflow, are hidden as a whole.

    Raises ConfigurationError if no name is given.
    """

    __slots__ = ("_names", "_pattern")

    def __init__(self, names: Iterable[str]) -> None:
        self._names = check_items("names", names, "names of arguments")
        if not self._names or not all(isinstance(one, str) and one for one in self._names):
            raise ConfigurationError("names of arguments to hide are texts, one at least: leave it out to hide none")
        self._pattern = re.compile("|".join(translate(one.casefold()) for one in self._names))

    def __repr__(self) -> str:
        return f"<Redaction of {', '.join(self._names)}>"

    def flat(self, flat: Sequence[bytes]) -> list[bytes]:
        """Return the flat fields of a letter with the values hidden."""
        hidden: set[str] = set()
        pairs = [(name, self._value(name, value, hidden)) for name, value in zip(flat[::2], flat[1::2], strict=False)]
        found: list[bytes] = []
        for name, value in pairs:
            found += (name, _without(value, hidden) if name in _TEXTS and hidden else value)
        return found

    def _value(self, name: bytes, value: bytes, hidden: set[str]) -> bytes:
        if name.startswith(b"raw.") or name in (b"then", b"broken"):
            return REDACTED.encode()
        if name not in _ARGUMENTS or not value:
            return value
        try:
            decoded = orjson.loads(value)
            if isinstance(decoded, list):
                return orjson.dumps([self._hide(str(at), one, hidden) for at, one in enumerate(decoded)])
            if isinstance(decoded, dict):
                return orjson.dumps(self._inside(decoded, hidden))
        except (orjson.JSONDecodeError, TypeError, RecursionError):  # no JSON, or nested too deep to look into
            pass
        return _PACKED

    def _hide(self, name: str, value: Any, hidden: set[str]) -> Any:
        if self._pattern.fullmatch(name.casefold()):
            _collect(value, hidden)
            return REDACTED
        return self._inside(value, hidden)

    def _inside(self, value: Any, hidden: set[str]) -> Any:
        match value:
            case Mapping():
                return {name: self._hide(name, part, hidden) for name, part in value.items()}
            case list():
                return [self._inside(part, hidden) for part in value]
        return value


def _collect(value: Any, hidden: set[str]) -> None:
    """Add the texts in a value to those that are hidden."""
    match value:
        case str():
            if len(value) >= _LEAST:
                hidden.add(value)
        case Mapping():
            for part in value.values():
                _collect(part, hidden)
        case list():
            for part in value:
                _collect(part, hidden)


def _without(text: bytes, hidden: Iterable[str]) -> bytes:
    for one in sorted(hidden, key=len, reverse=True):
        text = text.replace(one.encode(), REDACTED.encode()).replace(repr(one)[1:-1].encode(), REDACTED.encode())
    return text
