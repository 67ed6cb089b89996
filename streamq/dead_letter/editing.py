"""Edits the arguments of dead letters before their replay, and checks them as an enqueue does. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import orjson

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.filter import PLACE
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import ArgumentsError, ConfigurationError, StreamqError, UndecodableError
from streamq.tasks.task import Task
from streamq.wire.argument_types import check_type
from streamq.wire.message import Message, dumps

Edit: TypeAlias = Callable[[DeadLetterEntry], "tuple[Sequence[Any], Mapping[str, Any]]"]
"""A function that gets a dead letter and returns its new arguments, as `(args, kwargs)`."""

MOST_BYTES: Final = 64 << 10  # of the values that an operation sets: it keeps them


class ArgumentEditor:
    """Gives dead letters other arguments: `values` by name or place, then those that `edit` returns.

    `tasks` are checked as they are declared; of a task that is not among them only the size and the JSON are checked,
    as of an enqueue by name.
    """

    def __init__(
        self, values: Mapping[str, Any], edit: Edit | None, tasks: Iterable[Task[Any, Any]], *, max_payload: int
    ) -> None:
        self._values = values
        self._edit = edit
        self._tasks = {task.name: task for task in tasks}
        self._max_payload = max_payload

    def __repr__(self) -> str:
        return f"<ArgumentEditor of {', '.join(self._values) or 'nothing'}{', by a function' if self._edit else ''}>"

    def __bool__(self) -> bool:
        return bool(self._values) or self._edit is not None

    def edited(self, letter: DeadLetterEntry) -> DeadLetterEntry:
        """Return a letter with its new arguments.

        Raises UndecodableError for what is not a message, ArgumentsError if the arguments do not fit or `edit` fails,
        EncodingError or PayloadTooLargeError if they cannot be sent.
        """
        if not letter.replayable:
            raise UndecodableError(
                f"dead letter {letter.entry_id} (task {letter.task_id!r}) is not a message and cannot be edited; "
                "enqueue a corrected task"
            )
        task = self._tasks.get(letter.task_name)
        args, kwargs = list(letter.args), dict(letter.kwargs)
        for name, value in self._values.items():
            _set(letter.task_name, args, kwargs, _place_of(name, task, args, kwargs), value)
        if self._edit is not None:
            args, kwargs = self._by_function(self._edit, replace(letter, args=args, kwargs=kwargs))
        return self._sendable(letter, task, args, kwargs)

    def _by_function(self, edit: Edit, letter: DeadLetterEntry) -> tuple[list[Any], dict[str, Any]]:
        try:
            args, kwargs = edit(letter)
            return list(args), dict(kwargs)
        except StreamqError:
            raise
        except Exception as error:  # of the user's function: it concerns this letter alone
            raise ArgumentsError(
                letter.task_name, f"the edit of {letter.task_id!r} raised {type_name(error)}: {str_of(error)}"
            ) from error

    def _sendable(
        self, letter: DeadLetterEntry, task: Task[Any, Any] | None, args: list[Any], kwargs: dict[str, Any]
    ) -> DeadLetterEntry:
        sent: tuple[Sequence[Any], Mapping[str, Any]] = (args, kwargs)
        default = None
        if task is not None:
            sent, default = _as_declared(task, args, kwargs), task.arguments.default
        message = Message(task=letter.task_name, args=sent[0], kwargs=sent[1], headers=letter.headers)
        flat = message.fields(limit=self._max_payload, default=default)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        new_args, new_kwargs = (orjson.loads(fields.get(name, empty)) for name, empty in _EMPTY)
        return replace(letter, args=new_args, kwargs=new_kwargs)


_EMPTY: Final = (("args", "[]"), ("kwargs", "{}"))


def _as_declared(task: Task[Any, Any], args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return arguments that are JSON, or values of a program, as an enqueue of this task sends them."""
    task.arguments.bind(args, kwargs)
    converter = task.arguments.converter
    if converter is None:
        return args, kwargs
    try:
        return converter.sendable(*converter(args, kwargs))
    except StreamqError:
        raise
    except Exception as error:  # of a validator of the app
        raise ArgumentsError(task.name, f"a validator raised {type_name(error)}: {str_of(error)}") from error


def checked_values(values: Any) -> dict[str, Any]:
    """Return the values that an operation sets, as JSON has them. Raises ConfigurationError if it cannot keep them."""
    check_type("set_arguments", values, Mapping, "a mapping of names to values")
    for name in values:
        check_type("the name of an argument", name, str, "a text")
    try:
        packed = dumps(dict(values))
    except (TypeError, RecursionError) as error:
        raise ConfigurationError(f"set_arguments has no JSON: {error}") from None
    if len(packed) > MOST_BYTES:
        raise ConfigurationError(f"set_arguments has {len(packed):,} bytes: an operation keeps {MOST_BYTES:,}")
    found: dict[str, Any] = orjson.loads(packed)
    return found


def _place_of(name: str, task: Task[Any, Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | int:
    """Return where the argument of this name is: its place among the positional ones, or else its name."""
    if name in kwargs:
        return name
    if task is not None and name in task.arguments.names:
        place = list(task.arguments.signature.parameters).index(name)
        parameter = task.arguments.signature.parameters[name]
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        return place if positional and place < len(args) else name
    return int(name) if PLACE.fullmatch(name) else name


def _set(task: str, args: list[Any], kwargs: dict[str, Any], place: str | int, value: Any) -> None:
    if isinstance(place, str):
        kwargs[place] = value
    elif place < len(args):
        args[place] = value
    else:
        raise ArgumentsError(task, f"it has no positional argument {place}: it has {len(args)}, from 0 on")
