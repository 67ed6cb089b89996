"""Logs for production: fields that name the task on each line, and formatters for text and JSON.

`TaskFields` gives the lines of handlers, and of the libraries that they call, the fields of their task; streamq's own
lines have them already. `JsonFormatter` writes every field of a record, `TextFormatter` a line for people. All of them
are made for `logging.config.dictConfig`, too; `add_task_fields` is the same for structlog. `streamq worker` uses them.

Nothing that is logged can forge a line: what is not printable is written as its escape.
"""

from __future__ import annotations

import json
import logging
from collections.abc import MutableMapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Final

from streamq.diagnostics.log_fields import OF_EVERY_RECORD, TASK_FIELDS, current_trace_id, fields_of, message_of
from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.handlers.context import delivery_var
from streamq.wire.printable import json_line, printable, printable_lines

__all__ = ["JsonFormatter", "TaskFields", "TextFormatter", "add_task_fields", "task_fields"]

_MOST_TRACEBACK: Final = 50_000  # characters of a traceback, from its end
_MOST_OF_FIELD: Final = 10_000  # characters of a field's value, as JSON
_MOST_FIELDS: Final = 100  # of one record, beside those that each line has
_TEXT: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s[%(process)d] %(message)s"
_SECONDS: Final = "%Y-%m-%d %H:%M:%S"
_PLAIN: Final = (bool, int, float, type(None))


def task_fields() -> dict[str, str | int]:
    """Return the fields of the task whose handler runs here: `task`, `task_id`, `attempt`, `tier`, `trace_id`.

    `trace_id` is that of OpenTelemetry's current trace, or else of the header `traceparent` of the message; it is not
    there without a trace. Nothing is there outside of a handler.
    """
    delivery = delivery_var.get()
    if delivery is None:
        return {}
    fields = fields_of(delivery)
    try:
        trace_id = current_trace_id()
    except Exception:  # noqa: BLE001 - a tracer of the user's; a line is not lost for it
        return fields
    return {**fields, "trace_id": trace_id} if trace_id else fields


def add_task_fields(logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ARG001
    """Add the fields of the running task to a line of structlog: put this among its processors.

    A field of the line with such a name gets an underscore after it.
    """
    fields = task_fields()
    for name in TASK_FIELDS if fields else ():  # those that this task lacks, too: nobody else gives them
        if name in event_dict:
            event_dict[f"{name}_"] = event_dict.pop(name)
        if name in fields:
            event_dict[name] = fields[name]
    return event_dict


class TaskFields(logging.Filter):
    """Gives each record the fields of the task whose handler logs it (see `task_fields`). Lets every record pass.

    A field of `extra` with such a name gets an underscore after it. A record of no task has empty fields, so that a
    format such as `%(task_id)s` fits it.

    It belongs to a handler of `logging`, not to a logger: a logger's filter does not see the records of its children.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields of the task to a record. Return True."""
        given, ours = record.__dict__, _is_ours(record)
        fields = {} if ours else task_fields()
        for name in TASK_FIELDS if fields else ():  # those that this task lacks, too: nobody else gives them
            value = fields.get(name, "")
            if given.setdefault(name, value) != value:
                given[f"{name}_"], given[name] = given[name], value
        for name in TASK_FIELDS:
            given.setdefault(name, "")
        return True


class TextFormatter(logging.Formatter):
    """Writes one line for a record. The lines of a traceback follow, indented: no text begins a line of its own.

    A line of a handler ends with its task: `[send 1700000000000-0, attempt 1]`.
    """

    def __init__(self) -> None:
        super().__init__(_TEXT, _SECONDS)

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text, with escapes for what is not printable."""
        record.message = message_of(record)
        record.asctime = _time(record).strftime(_SECONDS)
        lines = [printable(self.formatMessage(record) + _whose(record))]
        if trace := _traceback(self, record):
            lines.append(trace)
        if record.stack_info:
            lines.append(self.formatStack(record.stack_info))
        return "\n".join([lines[0], *(printable_lines(text[-_MOST_TRACEBACK:], indent="    ") for text in lines[1:])])


class JsonFormatter(logging.Formatter):
    """Writes one object per line: ts, level, logger, pid, message, every field of `extra`; `exc`, `stack`.

    A field of `extra` whose name is one of these gets an underscore after its name.
    """

    def __init__(self) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        line: dict[str, Any] = {
            "ts": _time(record, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": message_of(record),
        }
        trace = _traceback(self, record)
        reserved = {*line, "exc", "stack", *(() if _is_ours(record) else ("event",))}
        for name, value in _extra(record).items():
            line[f"{name}_" if name in reserved else name] = value
        if trace:
            line["exc"] = trace[-_MOST_TRACEBACK:]
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json_line(line)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the traceback of a record: the text that was made already, if there is one."""
    if record.exc_text:
        return record.exc_text
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] is not None else ""


def _time(record: logging.LogRecord, zone: tzinfo | None = None) -> datetime:
    """Return the time of a record, by default as local time; the time of now if it has none that can be."""
    try:
        return datetime.fromtimestamp(record.created, zone)
    except (ValueError, OverflowError, OSError, TypeError):
        return datetime.fromtimestamp(logging.makeLogRecord({}).created, zone)


def _is_ours(record: logging.LogRecord) -> bool:
    """Is this a line of streamq? It has the fields of its task already, and no others of it."""
    return record.name == "streamq" or str_of(record.name).startswith("streamq.")


def _whose(record: logging.LogRecord) -> str:
    """Return the task of a handler's line. Those of streamq name it in their words; what a process prints does not."""
    fields = record.__dict__
    if (_is_ours(record) and fields.get("event") != "output") or not fields.get("task_id"):
        return ""
    return f" [{fields.get('task', '?')} {fields['task_id']}, attempt {fields.get('attempt', '?')}]"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of `extra`, those of the task first."""
    given = {name: value for name, value in record.__dict__.items() if name not in OF_EVERY_RECORD}
    for name in TASK_FIELDS:
        if given.get(name) == "":
            del given[name]
    first = [name for name in ("event", *TASK_FIELDS) if name in given]
    names = [*first, *(name for name in given if name not in first)]
    fields = {str_of(name, 100): _value(given[name]) for name in names[:_MOST_FIELDS]}
    if len(names) > _MOST_FIELDS:
        fields["more_fields"] = len(names) - _MOST_FIELDS
    return fields


def _value(value: Any) -> Any:
    """Return a value as it is logged: what JSON has within a bound, else its text."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is str:
        return str_of(value, _MOST_OF_FIELD)
    try:
        if len(line := json_line(value)) <= _MOST_OF_FIELD:
            return json.loads(line)
    except BaseException:  # noqa: BLE001, S110 - nested too deep; `str` of something within raises, SystemExit too
        pass
    return repr_of(value, _MOST_OF_FIELD)
