"""Packing commands, turning error replies into exceptions, and redis-py's response callbacks.

This module does no I/O. Error replies become the classes of `redis.exceptions` that redis-py
itself raises, each with its code (`OOM`, `NOGROUP`, ...) in `status_code`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

import redis
from hiredis import pack_command
from redis import exceptions

Command = Sequence[bytes | str | int | float] | bytes
"""One command: its name and arguments, as `("XADD", "stream", "*", "field", b"value")`, or bytes of `pack_one`."""

ResponseCallback = Callable[..., Any]

_pack = cast("Callable[[Any], bytes]", pack_command)  # hiredis' annotation allows tuples of one element only


class OutcomeUnknown(exceptions.ConnectionError):
    """A command may have reached the server, and no reply came.

    The connection was lost, or the server owed a reply for longer than the reply timeout.
    The server may or may not have carried out the command.
    """


_ERROR_CLASSES: Final[Mapping[str, Callable[..., exceptions.RedisError]]] = {
    "ASK": exceptions.AskError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "CROSSSLOT": exceptions.ClusterCrossSlotError,
    "EXECABORT": exceptions.ExecAbortError,
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "MOVED": exceptions.MovedError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "TRYAGAIN": exceptions.TryAgainError,
    "WRONGPASS": exceptions.AuthenticationError,
}

CODES: Final[Mapping[Callable[..., Exception], str]] = {found: code for code, found in _ERROR_CLASSES.items()}
"""The code that redis-py removes from the text of an error, by the error's class."""

_ERR_CLASSES: Final[Mapping[str, Callable[..., exceptions.RedisError]]] = {
    "max number of clients reached": exceptions.ConnectionError,
    "invalid password": exceptions.AuthenticationError,
    "Client sent AUTH, but no password is set": exceptions.AuthenticationError,
    "AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?": exceptions.AuthenticationError,
    "wrong number of arguments for 'auth' command": exceptions.AuthenticationWrongNumberOfArgsError,
    "wrong number of arguments for 'AUTH' command": exceptions.AuthenticationWrongNumberOfArgsError,
}


def reply_error(text: str) -> Exception:
    """Return the exception for an error reply such as `NOGROUP No such key ...`.

    As in redis-py, the message has no code if the class stands for the code. It keeps the code
    if the class is the plain ResponseError.
    """
    code, _, message = text.partition(" ")
    if code == "ERR":
        error = _ERR_CLASSES.get(message, exceptions.ResponseError)(message)
    elif (found := _ERROR_CLASSES.get(code)) is not None:
        error = found(message)
    else:
        error = exceptions.ResponseError(text)
    error.status_code = code  # set here: older redis-py has no such argument
    return error


_SUBSCRIBING: Final = ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE")
_BLOCKING: Final = (
    "BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN", "BLOCKING XREAD",
    "BLOCKING XREADGROUP", "WAIT", "WAITAOF",
)  # fmt: skip
_TRANSACTION: Final = ("MULTI", "EXEC", "DISCARD")
# Commands that would break a connection shared by many callers, each with its replacement.
_REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(_SUBSCRIBING, "client.subscriber()"),
    **dict.fromkeys(_BLOCKING, "client.blocking()"),
    **dict.fromkeys((*_TRANSACTION, "WATCH", "UNWATCH"), "client.pipeline()"),
    **dict.fromkeys(("SELECT", "AUTH", "HELLO"), "another Client with another Address"),
    **dict.fromkeys(("MONITOR", "SYNC", "PSYNC", "RESET", "QUIT", "CLIENT REPLY"), "redis-cli"),
}
# Names that `pack` refuses, in any case. MULTI ... EXEC is allowed there, because one call is sent as a whole.
# Blocking commands, which only delay other callers, and HELLO with a protocol are refused in `command` and
# `execute_command` alone.
_REFUSED_NAMES: Final = frozenset(name for name in _REFUSED if name not in {*_BLOCKING, *_TRANSACTION, "HELLO"})


@lru_cache(maxsize=1024)
def _is_refused(word: str | bytes) -> bool:
    return _upper(word) in _REFUSED_NAMES


def _upper(word: object) -> str:
    return (word.decode(errors="replace") if isinstance(word, bytes) else str(word)).upper()


def check_shareable(command: Sequence[Any]) -> None:
    """Raise DataError for a command that a connection of many callers cannot carry, sent by itself."""
    words = [_upper(word) for word in command[:2]]
    for name in (" ".join(words[:1]), " ".join(words)):
        if name in _REFUSED and words != ["HELLO"]:  # which asks, and changes nothing
            raise not_shareable(name)
    if words[:1] in (["XREAD"], ["XREADGROUP"]) and "BLOCK" in [_upper(word) for word in command if len(str(word)) < 9]:
        raise not_shareable(f"BLOCKING {words[0]}")


def not_shareable(name: str) -> exceptions.DataError:
    """Return the error for a command that the shared connection cannot carry."""
    return exceptions.DataError(f"{name} cannot be sent on a connection that many callers share; use {_REFUSED[name]}")


def pack(commands: Sequence[Command]) -> bytes:
    """Return the commands as RESP bytes.

    Raises DataError for an argument that is not bytes, str, int or float, and for a text that has
    no UTF-8. Raises DataError for a command that would change the meaning of later replies on a shared connection.
    """
    if len(commands) == 1:
        return pack_one(commands[0])
    return b"".join(map(pack_one, commands))


def pack_texts(commands: Sequence[Command]) -> bytes:
    """Return the commands as `pack` does, for a thread in which signal handlers run.

    hiredis 3.5 crashes the process if one raises (Ctrl-C) while it makes the text of a number, so it gets none.
    """
    return pack([one if isinstance(one, bytes) else tuple(map(_number_as_text, one)) for one in commands])


def _number_as_text(item: Any) -> Any:
    return repr(item) if type(item) is int or type(item) is float else item


def pack_one(command: Command) -> bytes:
    """Return a command as RESP bytes. They may be passed wherever a command may. Raises as `pack`."""
    if isinstance(command, bytes):
        return command
    try:
        if not _is_refused(command[0]):
            return _pack(command if command.__class__ is tuple else tuple(command))
    except (TypeError, IndexError, ValueError, OverflowError) as error:
        raise exceptions.DataError(_why_not_packable(command, error)) from None
    raise not_shareable(_upper(command[0]))


def pack_unchecked(commands: Sequence[Command]) -> bytes:
    """Return commands as RESP bytes for a connection with one user: no command is refused."""
    return b"".join([_pack(tuple(map(_number_as_text, command))) for command in commands])


def _why_not_packable(command: Sequence[Any], error: Exception) -> str:
    if not command:
        return "a command is empty; its first element is its name"
    for position, item in enumerate(command):
        if isinstance(item, bool) or not isinstance(item, bytes | str | int | float | memoryview):
            return f"argument {position} of {command[0]!r} is a {type(item).__name__}; pass bytes, str, int or float"
    if isinstance(error, UnicodeEncodeError):
        return f"a text in {command[0]!r} has no UTF-8: {error.reason}"
    return "a command cannot be packed; pass a tuple of bytes, str, int or float"


@lru_cache(maxsize=1)
def response_callbacks() -> dict[str, ResponseCallback]:
    """Return redis-py's response callbacks by upper-case command name. Opens no socket."""
    try:
        client = redis.Redis(protocol=2, legacy_responses=False)
    except TypeError:  # before 8.0 redis-py has the legacy shape only
        client = redis.Redis(protocol=2)
    return {str(name): callback for name, callback in client.response_callbacks.items()}


@lru_cache(maxsize=1024)
def redis_py_command(name: str | bytes) -> tuple[tuple[str, ...], ResponseCallback | None, bool]:
    """Look up a command by the name that redis-py gives it.

    Returns the words to send ("XGROUP CREATE" is two), the response callback or None, and
    whether the argument BLOCK makes it block. Raises DataError if the shared connection cannot
    carry the command.
    """
    text = name.decode() if isinstance(name, bytes) else name
    upper = text.upper()
    if upper in _REFUSED:
        raise not_shareable(upper)
    return tuple(text.split(" ")), response_callbacks().get(upper), upper in {"XREAD", "XREADGROUP"}


def build_command(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], ResponseCallback | None]:
    """Return the command to send for redis-py's `execute_command(*args)`, and its response callback."""
    head, callback, may_block = redis_py_command(args[0])
    if may_block or len(head) == 1:
        check_shareable(args)
    return (args if len(head) == 1 else (*head, *args[1:])), callback


def apply_callback(reply: Any, callback: ResponseCallback | None, options: dict[str, Any], *, decode: bool) -> Any:
    """Return `reply` as redis-py's command methods promise it.

    `options` are those of `execute_command`. Raises an error reply, unless the option
    EMPTY_RESPONSE has the value to return instead.
    """
    if isinstance(reply, Exception):
        if "EMPTY_RESPONSE" in options and isinstance(reply, exceptions.ResponseError):
            return options["EMPTY_RESPONSE"]
        raise reply
    if options:
        options = {name: value for name, value in options.items() if name not in _OPTIONS_NOT_FOR_CALLBACK}
        decode = decode and "NEVER_DECODE" not in options
        options.pop("NEVER_DECODE", None)
    if decode:
        reply = _decoded(reply)
    return reply if callback is None else callback(reply, **options)


_OPTIONS_NOT_FOR_CALLBACK: Final = frozenset({"keys", "EMPTY_RESPONSE"})


def _decoded(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return reply.decode()
    if isinstance(reply, list):
        return [_decoded(item) for item in reply]
    return reply


class Encoder:
    """The part of redis-py's encoder that its command methods use."""

    encoding = "utf-8"
    encoding_errors = "strict"

    def __init__(self, *, decode_responses: bool) -> None:
        self.decode_responses = decode_responses

    def encode(self, value: bytes | memoryview | str | float) -> bytes | memoryview:
        """Return `value` as bytes. Raises DataError for bool and for other types."""
        match value:
            case bytes() | memoryview():
                return value
            case bool():
                pass
            case str():
                return value.encode()
            case int() | float():
                return repr(value).encode()
            case _:
                pass
        raise exceptions.DataError(
            f"a {type(value).__name__} cannot be sent; convert it to bytes, str, int or float first"
        )

    def decode(self, value: Any, force: bool = False) -> Any:
        """Return bytes as str if the client decodes responses, or with `force`."""
        if isinstance(value, memoryview):
            value = value.tobytes()
        return value.decode() if isinstance(value, bytes) and (self.decode_responses or force) else value
