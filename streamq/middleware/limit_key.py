"""The key that a limit, a circuit or an effect counts by: the task's name, or a text made of its arguments.

A key is a function of the context, or a format string such as "customer:{customer_id}" over the names of the task's
parameters. Defaults count, and "{order[id]}" looks into a dict. The values are those of the message, as JSON has them:
pydantic has not validated them yet.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import ArgumentsError, ConfigurationError
from streamq.middleware.chain import Context
from streamq.tasks.arguments import NOT_GIVEN
from streamq.tasks.task import Task
from streamq.wire.names import check_name

Key = Callable[[Context], object] | str | None

_FORMATTER = string.Formatter()


def check_key(key: Key) -> Key:
    """Return the key. Raises ConfigurationError if it is neither a function nor a format string over names."""
    if key is None or callable(key):
        return key
    if not isinstance(key, str) or not key:
        raise ConfigurationError(
            f"key={repr_of(key)} cannot be used: give a function of the context, or a format string"
        )
    try:
        names = [name for _, name, _, _ in _FORMATTER.parse(key) if name is not None]
    except ValueError as error:
        raise ConfigurationError(f"key={repr_of(key)} is no format string: {error}") from None
    for name in names:
        if not name or name[0].isdigit():
            raise ConfigurationError(f"key={repr_of(key)}: name the parameter, as in 'customer:{{customer_id}}'")
    return key


def resolve_key(key: Key, context: Context) -> str:
    """Return the key of a run.

    Raises ConfigurationError if the key names a parameter that the task does not have, or is no text that can be a key
    (too long, control characters); ArgumentsError if the task cannot be called with the arguments of this run.
    """
    if key is None:
        return context.task.name
    if callable(key):
        return check_name("key", str(key(context)))
    return check_name("key", _formatted(key, context))


def _formatted(key: str, context: Context) -> str:
    values = _arguments(context)
    try:
        return key.format_map(values)
    except KeyError as error:
        remedy = f"there are {', '.join(sorted(values)) or 'none'}"
        raise ConfigurationError(
            f"key={repr_of(key)}: {context.task.name!r} has no parameter {error}; {remedy}"
        ) from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(f"key={repr_of(key)} cannot be made for {context.task.name!r}: {error}") from None


def _arguments(context: Context) -> dict[str, Any]:
    """Return the arguments of a run by parameter name, defaults included."""
    task: Task[Any, Any] = context.task
    signature = task.arguments.signature
    try:
        bound = signature.bind(*context.args, **context.kwargs)
    except TypeError as error:
        raise ArgumentsError(task.name, f"{error}; its parameters are {str_of(signature)}") from None
    bound.apply_defaults()
    values = {name: value for name, value in bound.arguments.items() if value is not NOT_GIVEN}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            values.update(values.pop(name))
    return values
