"""The log of a process that runs handlers: its records go to the worker, and to nobody else.

The worker gives each to its own logger of that name, as if a thread of its own had made it. So the levels of the worker
hold, and its handlers write. What modules configure here (`dictConfig`, `basicConfig`, handlers of loggers, the SDK of
Sentry), before or after, is configured in the worker as well, where they are imported too: here it would write each
line again. So some methods of `logging.Logger` are others in this process, and no logger's own level, handlers, filters
or `disabled` count.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from streamq.consumer.process_channel import Channel, call_var
from streamq.consumer.process_frames import Kind
from streamq.consumer.process_outcome import pack_answer, send_error
from streamq.diagnostics.log_fields import OF_EVERY_RECORD, message_of
from streamq.diagnostics.safe_text import repr_of, str_of

_LONGEST_TEXT: Final = 100_000  # characters of a text in a log record
_LONGEST_VALUE: Final = 10_000  # characters of a value of `extra` that JSON lacks
_LARGEST: Final = 1 << 20  # bytes of a record: the worker reads it in its event loop
_MOST_FIELDS: Final = 100
_PLAIN: Final = (bool, int, float, str, type(None))
_COPIED: Final = ("name", "levelno", "levelname", "created", "msecs", "pathname", "filename", "module", "lineno",
                  "funcName", "thread", "threadName", "process", "processName")  # fmt: skip


class ToWorker(logging.Handler):
    """Sends each record to the worker, which gives it to its own logger of that name, with the fields of the task."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. Never raises for what the user has put into it."""
        try:
            self._channel.send(Kind.LOG, call_var.get(), _encoded(_parts(record)))
        except Exception:  # noqa: BLE001 - the user's values may raise anything
            self.handleError(record)


def log_to_worker(channel: Channel, levels: Mapping[str, int], disabled: int, *, warnings: bool) -> None:
    """Have all records of this process go to the worker, and nowhere else, from now on.

    `levels` are those of the worker's loggers by name, that of the root under an empty one. `disabled` is what
    `logging.disable` has set there. `warnings`: they are logged there. A child that a handler forks logs by itself.
    """
    sender = ToWorker(channel)
    level_of = _levels(levels)
    kept: Any = logging.Logger
    before_enabled, before_level, before_handle = kept.isEnabledFor, kept.getEffectiveLevel, kept.handle

    def is_enabled_for(self: logging.Logger, level: int) -> bool:
        if channel.closed:
            return bool(before_enabled(self, level))
        return level > disabled and level >= level_of(self.name)

    def get_effective_level(self: logging.Logger) -> int:
        return int(before_level(self) if channel.closed else level_of(self.name))

    def handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if channel.closed:
            before_handle(self, record)
        else:
            sender.handle(record)

    kept.isEnabledFor, kept.getEffectiveLevel, kept.handle = is_enabled_for, get_effective_level, handle
    logging.captureWarnings(capture=warnings)


def _levels(levels: Mapping[str, int]) -> Callable[[str], int]:
    """Return what gives the effective level of a logger by its name."""
    root = levels.get("", logging.WARNING)
    known: dict[str, int] = {"root": root}

    def level_of(name: str) -> int:
        if name not in known:
            parent = name
            while parent and parent not in levels:
                parent = parent.rpartition(".")[0]
            known[name] = levels[parent] if parent else root
        return known[name]

    return level_of


def _parts(record: logging.LogRecord) -> dict[str, Any]:
    given = record.__dict__
    parts = {name: given.get(name) for name in _COPIED}
    parts["msg"] = str_of(message_of(record), _LONGEST_TEXT)
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_info and record.exc_info[1] is not None:
        sent = pack_answer(send_error(record.exc_info[1], trimmed=False), 0)
        parts["error"] = b64encode(sent).decode() if len(sent) <= _LARGEST // 2 else None
    parts["exc_text"] = record.exc_text and str_of(record.exc_text, _LONGEST_TEXT)
    parts["stack_info"] = record.stack_info and str_of(record.stack_info, _LONGEST_TEXT)
    extra = {str_of(name, 256): value for name, value in given.items() if name not in OF_EVERY_RECORD}
    parts["extra"] = dict(list(extra.items())[:_MOST_FIELDS])
    return parts


def _encoded(parts: dict[str, Any]) -> bytes:
    """Return the parts of a record as JSON; a value that JSON lacks is its text, and so is one that is too deep."""
    try:
        packed = orjson.dumps(parts, default=_text)
    except TypeError:
        return _encoded_texts(parts, _PLAIN)
    return packed if len(packed) <= _LARGEST else _encoded_texts(parts, (bool, int, float, type(None)))


def _encoded_texts(parts: dict[str, Any], plain: tuple[type, ...]) -> bytes:
    extra = {name: value if type(value) in plain else _text(value) for name, value in parts["extra"].items()}
    return orjson.dumps({**parts, "extra": extra}, default=_text)


def _text(value: Any) -> str:
    return str_of(value, _LONGEST_VALUE) if type(value) is str else repr_of(value, _LONGEST_VALUE)
