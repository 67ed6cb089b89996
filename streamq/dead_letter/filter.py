"""A filter of dead letters: one frozen value behind search, stats, export and operations. Pure: reads no stream.

Ages are a matter of entry ids: the id of an entry is the time at which the letter came into the stream, by the server's
clock. So a bound of age bounds what is read, and nothing older is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, Self

import orjson

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.tasks.outcome import Reason
from streamq.wire import bounds
from streamq.wire.argument_types import check_type
from streamq.wire.message import dumps, milliseconds

LAST_SEQUENCE: Final = (1 << 64) - 1
MOST_BYTES: Final = 16 << 10  # of a filter as JSON: an operation keeps it
PLACE: Final = re.compile(r"[0-9]{1,4}")  # an argument's name that is a place among the positional ones
_MISSING: Final = object()

Matches = Callable[[DeadLetterEntry], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Selects dead letters: those that match all that is given. Without anything, all.

    `error_type` is a class name with its module or without. `text` is in the error, its type, the arguments, or what
    could not be decoded; upper and lower case are the same. `older_than` and `newer_than` (seconds or a timedelta)
    count from the letter's arrival in the stream, by the server's clock. `arguments` are values by the name of a
    keyword argument, or by the place of a positional one, from "0" on.

    Raises ConfigurationError for a value that cannot be used.
    """

    task_name: str | None = None
    error_type: str | None = None
    reason: str | None = None
    tier: str | None = None
    text: str | None = None
    older_than: float | timedelta | None = None
    newer_than: float | timedelta | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("task_name", "error_type", "reason", "tier", "text"):
            check_type(name, getattr(self, name), str | None, "a text")
        if self.reason is not None and self.reason not in tuple(Reason):
            raise ConfigurationError(f"reason={repr_of(self.reason)} is not known: give one of {', '.join(Reason)}")
        if self.text == "":
            raise ConfigurationError("text='' is in every dead letter: leave it out")
        for name in ("older_than", "newer_than"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(bounds.OLDER_THAN.check(value, name)))
        object.__setattr__(self, "arguments", _checked_arguments(self.arguments))
        if len(packed := self.to_json()) > MOST_BYTES:
            raise ConfigurationError(f"a filter of {len(packed):,} bytes is too long: it may have {MOST_BYTES:,}")

    def __bool__(self) -> bool:
        """Does it select?"""
        return self != DeadLetterFilter()

    def __str__(self) -> str:
        return ", ".join(f"{name}={repr_of(value)}" for name, value in self._given().items()) or "all"

    def to_json(self) -> bytes:
        """Return it as JSON."""
        try:
            return orjson.dumps(self._given())
        except TypeError:  # half a surrogate pair
            raise ConfigurationError(f"the filter {self} has a text that has no UTF-8") from None

    @classmethod
    def of_json(cls, packed: bytes) -> Self:
        """Return the filter of `to_json`. Raises ConfigurationError if this is none."""
        try:
            return cls(**orjson.loads(packed))
        except (orjson.JSONDecodeError, TypeError):
            raise ConfigurationError(f"{bounds.shown(packed)} is no filter of dead letters") from None

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}

    def window(self, now_ms: int) -> tuple[str, str]:
        """Return between which entry ids the letters of this age are: after the first, up to the second."""
        after, last = "0-0", f"{LAST_SEQUENCE}-{LAST_SEQUENCE}"
        if (
            self.newer_than is not None
            and (begin := now_ms - milliseconds(bounds.OLDER_THAN.check(self.newer_than))) > 0
        ):
            after = f"{begin - 1}-{LAST_SEQUENCE}"
        if self.older_than is not None:
            last = f"{max(0, now_ms - milliseconds(bounds.OLDER_THAN.check(self.older_than)) - 1)}-{LAST_SEQUENCE}"
        return after, last

    def matcher(self) -> Matches | None:
        """Return a function that tells whether a letter matches in all but its age; None if each does."""
        if replace(self, older_than=None, newer_than=None) == DeadLetterFilter():
            return None
        tests = [*self._text_tests(), *(_argument_test(*one) for one in self.arguments.items())]
        task, reason, kind, tier = self.task_name, self.reason, self.error_type, self.tier

        def matches(letter: DeadLetterEntry) -> bool:
            return (
                task in (None, letter.task_name)
                and reason in (None, letter.reason)
                and kind in (None, letter.error_type, letter.error_type.rpartition(".")[2])
                and tier in (None, letter.tier)
                and all(test(letter) for test in tests)
            )

        return matches

    def _text_tests(self) -> list[Matches]:
        if self.text is None:
            return []
        wanted = self.text.casefold()
        in_json = orjson.dumps(self.text)[1:-1].decode().casefold()

        def found(letter: DeadLetterEntry) -> bool:
            if wanted in letter.error.casefold() or wanted in letter.error_type.casefold():
                return True
            return any(wanted in one or in_json in one for one in _texts(letter))

        return [found]


def _texts(letter: DeadLetterEntry) -> list[str]:
    """Return the arguments of a letter as texts, and what could not be decoded, in lower case.

    JSON may write a letter as an escape: then as orjson writes it, too.
    """
    found = [value.decode(errors="backslashreplace").casefold() for value in letter.raw.values()]
    for name, value in zip(letter.flat[::2], letter.flat[1::2], strict=False):
        if name in (b"args", b"kwargs"):
            found.append(value.decode(errors="backslashreplace").casefold())
            if b"\\u" in value and (packed := _packed(letter.args if name == b"args" else letter.kwargs)):
                found.append(packed.decode().casefold())
    return found


def _packed(value: Any) -> bytes | None:
    """Return a decoded value as JSON, None if it is nested too deep for that."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None


def _checked_arguments(given: Any) -> dict[str, Any]:
    check_type("arguments", given, Mapping, "a mapping of names to values")
    for name, value in given.items():
        check_type("the name of an argument", name, str, "a text")
        try:
            dumps(value)
        except (TypeError, RecursionError) as error:
            raise ConfigurationError(f"arguments[{repr_of(name)}] has no JSON: {error}") from None
    return {name: orjson.loads(dumps(value)) for name, value in given.items()}


def _argument_test(name: str, wanted: Any) -> Matches:
    packed, place = _packed(wanted), int(name) if PLACE.fullmatch(name) else None
    number = isinstance(wanted, int | float) and not isinstance(wanted, bool)

    def matches(letter: DeadLetterEntry) -> bool:
        value = letter.kwargs.get(name, _MISSING)
        if value is _MISSING and place is not None and place < len(letter.args):
            value = letter.args[place]
        if value is _MISSING or isinstance(value, bool) != isinstance(wanted, bool):
            return False
        return bool(value == wanted) if number else _packed(value) == packed

    return matches
