"""RESP2 on the side of a server: hiredis parses requests, this module encodes replies.

Does no I/O and knows no command. In fakeredis a status is an object whose `value` is bytes, and
an error is an exception whose `value` is text. They are recognised by that attribute, so that no
private name of fakeredis is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

import hiredis

from streamq.client.resp_codec import CODES

if TYPE_CHECKING:
    from collections.abc import Iterator

Reply: TypeAlias = object
"""bytes, int, float, str, None, a list of replies, `Status`, or an exception."""

NIL: Final = b"$-1\r\n"
NIL_ARRAY: Final = b"*-1\r\n"


class ProtocolError(Exception):
    """A client sent bytes that are not a request."""


class Status:
    """A simple string: `+OK`."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Status({self.value!r})"


class CommandError(Exception):
    """An error reply; its text begins with the error's code (`ERR`, `NOGROUP`, ...)."""

    def __init__(self, value: str) -> None:
        self.value = value
        super().__init__(value)


OK: Final = Status(b"OK")


class RequestParser:
    """Parses a stream of bytes into requests: feed bytes, get lists of arguments."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=self)

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """Yield the requests that are complete now. Raises ProtocolError if the bytes are not RESP."""
        self._reader.feed(data)
        while True:
            try:
                request = self._reader.gets()
            except hiredis.ProtocolError as error:
                raise ProtocolError(str(error)) from error
            if request is self:
                return
            if not isinstance(request, list) or not all(type(item) is bytes for item in request):
                raise ProtocolError("expected an array of bulk strings")
            if request:
                yield cast("list[bytes]", request)


def encode(reply: Reply, *, nil_arrays: bool = False) -> bytes:
    """Encode one reply. With `nil_arrays` None is the null array, else the null bulk string."""
    out: list[bytes] = []
    _encode(reply, out, NIL_ARRAY if nil_arrays else NIL)
    return b"".join(out)


def _encode(reply: Reply, out: list[bytes], nil: bytes) -> None:
    if isinstance(reply, dict):
        reply = [part for pair in reply.items() for part in pair]
    if not isinstance(reply, list | tuple):
        out.append(nil if reply is None else _encode_scalar(reply))
        return
    out.append(b"*%d\r\n" % len(reply))
    for item in reply:
        _encode(item, out, nil)


def _encode_scalar(reply: Reply) -> bytes:
    if isinstance(reply, str):
        reply = reply.encode()
    elif isinstance(reply, float):
        reply = b"%.17g" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, Exception):
        return b"-%b\r\n" % _line(error_text(reply))
    if isinstance(value := getattr(reply, "value", None), bytes):
        return b"+%b\r\n" % value
    raise TypeError(f"{reply!r} cannot be encoded as a reply")


def error_text(error: Exception) -> str:
    """Return the line of an error reply, which begins with its code.

    redis-py removes the codes that it knows from the text. Newer versions keep the code as `status_code`; with older
    ones only the class of the error says which code it was.
    """
    value = getattr(error, "value", None)
    if isinstance(value, str):
        return value
    text = str(error)
    code = getattr(error, "status_code", None) or CODES.get(type(error))
    return f"{code} {text}" if code else text or f"ERR {type(error).__name__}"


def _line(text: str) -> bytes:
    return text.replace("\r", " ").replace("\n", " ").encode(errors="replace")
