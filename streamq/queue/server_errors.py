"""Translates errors of the connection and of the server (redis-py's) into streamq's own."""

from __future__ import annotations

import redis.exceptions

from streamq.client import OutcomeUnknown
from streamq.errors import BrokerError, BrokerUnavailableError, OutcomeUnknownError


def translated(error: Exception) -> BrokerError:
    """Return an error of redis-py as one of streamq's."""
    match error:
        case BrokerError():
            return error
        case OutcomeUnknown():
            return OutcomeUnknownError(str(error))
        case redis.exceptions.AuthenticationError():
            return BrokerError(str(error), code="NOAUTH")
        case redis.exceptions.ResponseError():
            return BrokerError(str(error), code=_code(error))
        case redis.exceptions.BusyLoadingError():
            return BrokerError(str(error), code="LOADING")
        case _:
            return BrokerUnavailableError(str(error))


def _code(error: redis.exceptions.ResponseError) -> str:
    """Return the server's code of an error; that of an error in a script may be inside the text."""
    text = str(error)
    for word, code in _INSIDE:
        if word in text:
            return code
    first = text.partition(" ")[0]
    return first if first.isupper() else _CODES.get(type(error), "ERR")


# A deleted stream has lost its group, too. A blocked reader of it gets UNBLOCKED.
_INSIDE = (
    ("NOGROUP", "NOGROUP"),
    ("no such key", "NOGROUP"),
    ("UNBLOCKED", "NOGROUP"),
    ("READONLY", "READONLY"),
    ("OOM command not allowed", "OOM"),
    ("MISCONF", "MISCONF"),
    ("NOREPLICAS", "NOREPLICAS"),
    ("The user executing the script can't", "NOPERM"),  # Redis
    ("ACL failure in script", "NOPERM"),  # Valkey
)
_CODES: dict[type[Exception], str] = {
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.NoScriptError: "NOSCRIPT",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.NoPermissionError: "NOPERM",
}
