"""The types of arguments that are neither numbers (`bounds`) nor names (`names`): checked where they enter.

A value of a wrong type would otherwise be taken, and fail far from the mistake, perhaps with every dead letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from streamq.diagnostics.safe_log import LEVELS
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError

T = TypeVar("T")


def check_type(what: str, value: T, kinds: Any, wanted: str) -> T:
    """Return the value of an argument named `what`. Raises ConfigurationError, without the value: it may be secret.

    `kinds` is what `isinstance` takes, and `wanted` says what to give.
    """
    if isinstance(value, kinds):
        return value
    raise ConfigurationError(f"{what} is of type {type(value).__name__}: give {wanted}")


def check_items(what: str, value: Any, wanted: str) -> tuple[Any, ...]:
    """Return the items of an argument that can be any iterable but a text or a mapping."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{what} is of type {type(value).__name__}: give {wanted}")
    return tuple(value)


def check_callable(what: str, value: Any, wanted: str) -> Any:
    """Return the value of an argument that is called later."""
    if callable(value):
        return value
    raise ConfigurationError(f"{what} is of type {type(value).__name__}: give {wanted}")


def check_level(what: str, value: Any) -> int:
    """Return the level of `logging` that an argument names."""
    if isinstance(value, str) and (level := LEVELS.get(value)) is not None:
        return level
    raise ConfigurationError(f"{what}={repr_of(value)} cannot be used: give one of {', '.join(map(repr, LEVELS))}")
