"""The fields by which a line of the log names its task: `task`, `task_id`, `attempt`, `tier`, `trace_id`.

A delivery may be anything but a message, so each field is read for itself. Nothing here raises, and each text has a
bound.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Any, Final

from streamq.diagnostics.safe_text import repr_of, str_of, type_name

OF_EVERY_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
TASK_FIELDS: Final = ("task", "task_id", "attempt", "tier", "trace_id")
_LONGEST: Final = 256  # characters of a text
_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-")  # W3C Trace Context, 3.2


def fields_of(delivery: Any) -> dict[str, str | int]:
    """Return the fields that name the task of a delivery; those that can be read. None has none."""
    if delivery is None:
        return {}
    fields: dict[str, str | int] = {}
    for name, read in _READ.items():
        try:
            value = read(delivery)
        except BaseException:  # noqa: BLE001, S112 - a field that cannot be decoded; the line says what it is about
            continue
        if value:
            fields[name] = value if type(value) is int else str_of(value, _LONGEST)
    return fields


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a record. If it cannot be made, its parts: a line is not lost, and raises nothing."""
    try:
        return record.getMessage()
    except BaseException as error:  # noqa: BLE001 - a value's text may raise anything; a format may not fit its values
        return f"{str_of(record.msg)} (cannot be formatted with {repr_of(record.args)}: {type_name(error)})"


def current_trace_id() -> str:
    """Return the id of OpenTelemetry's current trace, an empty text without one, or without OpenTelemetry."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def _trace_id(delivery: Any) -> str:
    if b"headers" not in delivery.fields:
        return ""
    found = _TRACEPARENT.match(delivery.headers.get("traceparent", ""))
    return found[1] if found else ""


_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "task": lambda delivery: delivery.task,
    "task_id": lambda delivery: delivery.task_id,
    "attempt": lambda delivery: delivery.attempt,
    "tier": lambda delivery: delivery.tier_name,
    "trace_id": _trace_id,
}
