"""Translates errors of the connection and of the server (redis-py's) into streamq's own, and says what they concern.

A refused command is the server's fault or its own. The *server* cannot be used: it is away, loads, is a replica, cannot
write its file. That passes, and everything waits for it. Or this *command* alone is refused: a key of another type, a
missing right, a value that the server cannot take. Others go on meanwhile. OOM and NOGROUP are between the two: others
may go on, and it passes.
"""

from __future__ import annotations

import re
from typing import Final

import redis.exceptions

from streamq.client import OutcomeUnknown, RefusedAddressError, RefusedDatabaseError
from streamq.errors import BrokerError, BrokerUnavailableError, OutcomeUnknownError


def translated(error: Exception) -> BrokerError:
    """Return an error of redis-py as one of streamq's."""
    text = str(error).rstrip(".")  # a remedy may follow
    match error:
        case BrokerError():
            return error
        case OutcomeUnknown():
            return OutcomeUnknownError(text)
        case RefusedAddressError() | redis.exceptions.AuthenticationError():
            return BrokerError(text, code=_code_of_connection(error))
        case redis.exceptions.ResponseError():
            line = _LINE.search(text)
            return BrokerError(
                _SCRIPT.sub("", text).rstrip("."), code=_code(error), script_line=int(line[1]) if line else 0
            )
        case redis.exceptions.BusyLoadingError() | redis.exceptions.DataError():
            return BrokerError(text, code=_OTHERS[type(error)])
        case _:
            return BrokerUnavailableError(text)


def concerns_server(error: BrokerError) -> bool:
    """Is this the state of the server, or of the connection, so that any other command is refused, too?"""
    return error.code in _SERVER


def passes(error: BrokerError) -> bool:
    """Does the server refuse this for now, so that waiting helps, and no change of the configuration is needed?"""
    return error.code in _STATES or error.code == "OOM"


def cause(error: BrokerError) -> str:
    """Return what errors of one cause have in common: the code where that is the whole cause, else the text.

    A replica refuses each command in other words, at another place of a script. That its connection was lost, and that
    it refuses connections, are two causes with one code.
    """
    return error.code if passes(error) or error.code == "NOGROUP" else shape(str(error))


def shape(text: str) -> str:
    """Return the text of an error without its numbers: ports, addresses and times change, and the cause is the same."""
    return _CHANGING.sub("#", text)


def is_final(error: BrokerError) -> bool:
    """Is the command refused for a reason of its own, which does not pass with the state of the server?"""
    return error.code not in _SERVER and error.code not in _PASSES


def _code_of_connection(error: Exception) -> str:
    if isinstance(error, RefusedDatabaseError):
        return NO_DATABASE
    return ADDRESS if isinstance(error, RefusedAddressError) else "NOAUTH"


def _code(error: redis.exceptions.ResponseError) -> str:
    """Return the server's code of an error; that of an error in a script may be inside the text."""
    text = str(error)
    code = _CODES.get(type(error)) or getattr(error, "status_code", None) or text.partition(" ")[0]
    if code == "ERR" or not code.isupper():
        return next((inside for words, inside in _INSIDE if words in text), "ERR")
    return _why_unblocked(text) if code == "UNBLOCKED" else code


def _why_unblocked(text: str) -> str:
    """Return the code of the error with which a server ends a blocked read: what happened to it.

    CLIENT UNBLOCK is no error here (see `BlockingConnection.read`).
    """
    return next((code for words, code in _UNBLOCKED if words in text), "UNBLOCKED")


_LINE: Final = re.compile(r"@?user_script:\s*(\d+)")
_SCRIPT: Final = re.compile(r",? ?script: (?:[0-9a-f]{40}, )?on @user_script:\d+\.?")
_CHANGING: Final = re.compile(r"\d+(\.\d+)*")
ADDRESS = "ADDRESS"  # the code if the address names no Redis or Valkey server, or a database that it does not have
NO_DATABASE = "NO_DATABASE"  # the code if the user lacks the right to choose the database of the address
CLOSED = "CLOSED"  # the code of a command on which the server closes the connection (see `lost_commands`)
SHORTAGE = "SHORTAGE"  # the code of a command that could not be built: this process lacks descriptors or memory
UNPACKABLE = "UNPACKABLE"  # the code of a command that cannot be packed, so it was not sent

_OTHERS: dict[type[Exception], str] = {
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.DataError: UNPACKABLE,
}
_STATES = frozenset({
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "READONLY", "TRYAGAIN",
})  # fmt: skip
_SERVER = _STATES | {
    "UNAVAILABLE", "UNKNOWN", "MOVED", "ASK", "UNKILLABLE", "NOAUTH", "EXECABORT", ADDRESS, NO_DATABASE,
}  # fmt: skip
_PASSES = frozenset({"OOM", "NOGROUP", "NOSCRIPT", "UNBLOCKED", SHORTAGE})
_UNBLOCKED = (
    ("no longer exists", "NOGROUP"),  # Redis before 7.2, of a stream: deleted, renamed, expired, overwritten
    ("instance state changed", "READONLY"),  # a failover: it has become a replica
)
# A deleted stream has lost its group, too. In a script, the server says of a missing right no code.
_INSIDE = (
    ("NOGROUP", "NOGROUP"),
    ("no such key", "NOGROUP"),
    ("READONLY", "READONLY"),
    ("OOM command not allowed", "OOM"),
    ("MISCONF", "MISCONF"),
    ("NOREPLICAS", "NOREPLICAS"),
    ("The user executing the script can't", "NOPERM"),  # Redis
    ("ACL failure in script", "NOPERM"),  # Valkey
    ("NOPERM", "NOPERM"),
    ("WRONGTYPE", "WRONGTYPE"),
)
_CODES: dict[type[Exception], str] = {
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.NoScriptError: "NOSCRIPT",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}
