"""What goes onto the wire and what comes off it: packing, error replies, response callbacks.

No I/O. Error replies become the classes of `redis.exceptions` that redis-py itself would
raise, each with its code (`OOM`, `NOGROUP`, ...) in `status_code`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

import redis
from hiredis import pack_command
from redis import exceptions

Command = Sequence[bytes | str | int | float] | bytes
"""One command: its name and arguments, as `("XADD", "stream", "*", "field", b"value")`, or that from `pack_one`."""

ResponseCallback = Callable[..., Any]

_pack = cast("Callable[[Any], bytes]", pack_command)  # hiredis' annotation allows tuples of one element only


class OutcomeUnknown(exceptions.ConnectionError):
    """Bytes of a command may have reached the server and no reply came.

    The connection was cut, or the server owed a reply for longer than the reply timeout.
    The command may or may not have been carried out.
    """


_CLASSES: Final[Mapping[str, Callable[..., exceptions.RedisError]]] = {
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

CODES: Final[Mapping[Callable[..., Exception], str]] = {found: code for code, found in _CLASSES.items()}
"""What redis-py cuts off the text of an error, by the error's class."""

_CLASSES_OF_ERR: Final[Mapping[str, Callable[..., exceptions.RedisError]]] = {
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

    As in redis-py the code is cut off the message where the class says it, and stays where
    the class is the plain ResponseError.
    """
    code, _, message = text.partition(" ")
    if code == "ERR":
        error = _CLASSES_OF_ERR.get(message, exceptions.ResponseError)(message)
    elif (found := _CLASSES.get(code)) is not None:
        error = found(message)
    else:
        error = exceptions.ResponseError(text)
    error.status_code = code  # set here: before 7.4 redis-py's classes have no such argument
    return error


# Commands that would break a connection shared by many callers, each with what to use instead.
_REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
        "client.subscriber()",
    ),
    **dict.fromkeys(
        (
            *("BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN"),
            *("BLOCKING XREAD", "BLOCKING XREADGROUP"),
        ),
        "client.blocking()",
    ),
    **dict.fromkeys(("MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH"), "client.pipeline()"),
    **dict.fromkeys(("SELECT", "AUTH"), "another Client with another Address"),
    **dict.fromkeys(("MONITOR", "SYNC", "PSYNC", "RESET", "QUIT", "CLIENT REPLY"), "redis-cli"),
}
# What a call of several commands at once may not contain; MULTI ... EXEC in one call is whole.
_DESYNC: Final = frozenset(
    word
    for name in _REFUSED
    if " " not in name and name not in {"MULTI", "EXEC", "DISCARD"} and not name.startswith("B")
    for word in (name, name.encode())
)


def refusal(name: str) -> exceptions.DataError:
    """Return the error for a command that the shared connection cannot carry."""
    return exceptions.DataError(f"{name} cannot be sent on a connection that many callers share; use {_REFUSED[name]}")


def pack(commands: Sequence[Command]) -> bytes:
    """Return the commands as RESP bytes.

    Raises DataError for an argument that is not bytes, str, int or float, and for a command
    that would change what later replies on a shared connection mean.
    """
    if len(commands) == 1:
        return pack_one(commands[0])
    return b"".join(map(pack_one, commands))


def pack_one(command: Command) -> bytes:
    """Return a command as RESP bytes, which stand for it wherever a command may. Raises as `pack`."""
    if isinstance(command, bytes):
        return command
    try:
        if command[0] not in _DESYNC:
            return _pack(command if command.__class__ is tuple else tuple(command))
    except (TypeError, IndexError):
        raise exceptions.DataError(_misfit(command)) from None
    word = command[0]
    raise refusal(word.decode() if isinstance(word, bytes) else str(word))


def pack_greeting(commands: Sequence[Command]) -> bytes:
    """Return commands as RESP bytes for a connection that nobody shares: nothing is refused."""
    return b"".join([_pack(tuple(command)) for command in commands])


def _misfit(command: Sequence[Any]) -> str:
    if not command:
        return "a command is empty; its first element is its name"
    for position, item in enumerate(command):
        if isinstance(item, bool) or not isinstance(item, bytes | str | int | float | memoryview):
            return f"argument {position} of {command[0]!r} is a {type(item).__name__}; pass bytes, str, int or float"
    return "a command cannot be packed; pass a tuple of bytes, str, int or float"


@lru_cache(maxsize=1)
def response_callbacks() -> dict[str, ResponseCallback]:
    """Return redis-py's reply shapers by upper-case command name; opens no socket."""
    try:
        client = redis.Redis(protocol=2, legacy_responses=False)
    except TypeError:  # before 8.0 redis-py has one shape only, the legacy one
        client = redis.Redis(protocol=2)
    return {str(name): callback for name, callback in client.response_callbacks.items()}


@lru_cache(maxsize=1024)
def plan(name: str | bytes) -> tuple[tuple[str, ...], ResponseCallback | None, bool]:
    """Return how a command that redis-py names `name` is sent and its reply shaped.

    That is its words ("XGROUP CREATE" is two), the response callback if there is one, and
    whether it blocks when BLOCK is among its arguments. Raises DataError if the shared
    connection cannot carry it.
    """
    text = name.decode() if isinstance(name, bytes) else name
    upper = text.upper()
    if upper in _REFUSED:
        raise refusal(upper)
    return tuple(text.split(" ")), response_callbacks().get(upper), upper in {"XREAD", "XREADGROUP"}


def words(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], ResponseCallback | None]:
    """Return the command that redis-py's `execute_command(*args)` means, and its callback."""
    head, callback, may_block = plan(args[0])
    if may_block and any(isinstance(word, str | bytes) and word in {"BLOCK", b"BLOCK"} for word in args):
        raise refusal(f"BLOCKING {head[0].upper()}")
    return (args if len(head) == 1 else (*head, *args[1:])), callback


def shape(reply: Any, callback: ResponseCallback | None, options: dict[str, Any], *, decode: bool) -> Any:
    """Return `reply` as redis-py's command methods promise it.

    `options` are those of `execute_command`. Raises the reply if it is an error, unless the
    option EMPTY_RESPONSE says what to return then.
    """
    if isinstance(reply, Exception):
        if "EMPTY_RESPONSE" in options and isinstance(reply, exceptions.ResponseError):
            return options["EMPTY_RESPONSE"]
        raise reply
    if options:
        options = {name: value for name, value in options.items() if name not in _OUR_OPTIONS}
        decode = decode and "NEVER_DECODE" not in options
        options.pop("NEVER_DECODE", None)
    if decode:
        reply = _decoded(reply)
    return reply if callback is None else callback(reply, **options)


_OUR_OPTIONS: Final = frozenset({"keys", "EMPTY_RESPONSE"})


def _decoded(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return reply.decode()
    if isinstance(reply, list):
        return [_decoded(item) for item in reply]
    return reply


class Encoder:
    """The part of redis-py's encoder that its command methods ask a client for."""

    encoding = "utf-8"
    encoding_errors = "strict"

    def __init__(self, *, decode_responses: bool) -> None:
        self.decode_responses = decode_responses

    def encode(self, value: bytes | memoryview | str | float) -> bytes | memoryview:
        """Return `value` as bytes; raises DataError for bool and for other types."""
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
        """Return bytes as str where the client decodes responses, or where `force` says so."""
        if isinstance(value, memoryview):
            value = value.tobytes()
        return value.decode() if isinstance(value, bytes) and (self.decode_responses or force) else value
