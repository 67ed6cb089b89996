"""Why a stored definition of a schedule cannot be used: the field and its value, in words. Pure.

Anybody may write a definition by hand. What is wrong with it is said by each worker once, and by `streamq doctor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, MissingExtraError
from streamq.tasks.cron import MISSED, next_tick
from streamq.wire import bounds
from streamq.wire.message import dumps
from streamq.wire.names import is_name

DEFAULTS: Final = {"tz": "UTC", "missed": "last", "overlap": True, "declared": False, "headers": {}}
_REQUIRED: Final = ("cron", "task", "stream", "fields")
_TEXTS: Final = ("cron", "tz", "task", "stream", "revision", "sig")


def read_definition(packed: bytes) -> dict[str, Any] | str:
    """Return the fields of a stored definition, or why it cannot be read."""
    try:
        found = orjson.loads(packed)
    except orjson.JSONDecodeError as error:
        return f"it is not JSON: {error}"
    if not isinstance(found, dict):
        return f"it is no JSON object: {repr_of(found)}"
    return {**DEFAULTS, **found}


def problem_of(name: str, found: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the fields of a definition, None if it can be used."""
    if not is_name("schedule", name):
        return f"{repr_of(name)} is no name of a schedule"
    for field in _REQUIRED:
        if field not in found:
            return f"it has no field {field!r}"
    for field in _TEXTS:
        if not isinstance(found.get(field, ""), str):
            return _cannot(field, found, "a text")
    if not is_name("task", found["task"]):
        return _cannot("task", found, "the name of a task")
    if found["missed"] not in MISSED:
        return _cannot("missed", found, f"one of {', '.join(MISSED)}")
    return _problem_of_message(found)


def problem_of_ticks(cron: str, tz: str, now: float) -> str:
    """Return why a schedule has no tick after `now` (Unix seconds); empty if it has, or without the parser."""
    try:
        following = next_tick(cron, tz, now)
    except ConfigurationError as error:
        return str(error)
    except MissingExtraError:
        return ""
    return f"cron={repr_of(cron)} never ticks: there is no such day" if following is None else ""


def _problem_of_message(found: Mapping[str, Any]) -> str | None:
    fields, expires = found["fields"], found.get("expires")
    if not isinstance(fields, list) or not all(isinstance(text, str) for text in fields):
        return _cannot("fields", found, "an array of texts: names and values in turn")
    if not fields or len(fields) % 2:
        return _cannot("fields", found, f"names and values in turn, not {len(fields)} texts")
    try:
        if expires is not None:
            bounds.EXPIRES.check(expires)
    except ConfigurationError as error:
        return str(error)
    if not isinstance(found["headers"], dict):
        return _cannot("headers", found, "an object")
    try:
        dumps(found["headers"])
    except TypeError:  # nested too deep: they can be read, and cannot be sent
        return "its headers are nested too deep"
    return None


def _cannot(field: str, found: Mapping[str, Any], give: str) -> str:
    return f"{field}={repr_of(found[field])} cannot be used: give {give}"
