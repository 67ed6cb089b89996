"""Commands that wait: how they are asked without waiting, and the readers that wait for them.

fakeredis blocks the thread that asks (or, for XREADGROUP with COUNT, does not block at
all), so it is only ever asked for what is there now; waiting is done here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from streamq.embedded.pipe import Signal
from streamq.embedded.resp import CommandError, encode

if TYPE_CHECKING:
    from streamq.embedded.connection import Connection
    from streamq.embedded.resp import Reply

STREAM_READS: Final = frozenset({b"XREAD", b"XREADGROUP"})

# Where the keys of a blocking command stand, and its timeout: (first key, end, timeout),
# counted as slices count. LMPOP and ZMPOP have a number of keys instead and are done apart.
_POPS: Final[dict[bytes, tuple[int, int, int]]] = {
    b"BLPOP": (1, -1, -1),
    b"BRPOP": (1, -1, -1),
    b"BZPOPMIN": (1, -1, -1),
    b"BZPOPMAX": (1, -1, -1),
    b"BLMOVE": (1, 2, -1),
    b"BRPOPLPUSH": (1, 2, -1),
}
_MULTIPLE_POPS: Final = frozenset({b"BLMPOP", b"BZMPOP"})

BLOCKING: Final = STREAM_READS | _POPS.keys() | _MULTIPLE_POPS
UNBLOCKED: Final = CommandError("UNBLOCKED client unblocked via CLIENT UNBLOCK")


@dataclass(frozen=True, slots=True)
class Question:
    """A command that may wait, taken apart. `timeout` is in seconds; None means it does not wait."""

    command: list[bytes]
    keys: list[bytes]
    timeout: float | None


def parse(request: list[bytes]) -> Question | None:
    """Take a blocking command apart; None if it is malformed, which fakeredis then says better.

    Raises CommandError for a timeout that is none.
    """
    name = request[0].upper()
    if name in STREAM_READS:
        return _parse_stream_read(name, request)
    if name in _MULTIPLE_POPS:
        if len(request) < 5 or not request[2].isdigit():
            return None
        return Question(request, request[3 : 3 + int(request[2])], _seconds(request[1]))
    first, end, timeout = _POPS[name]
    if len(request) < 3:
        return None
    return Question(request, request[first:end], _seconds(request[timeout]))


def _parse_stream_read(name: bytes, request: list[bytes]) -> Question | None:
    command, timeout, index = request, None, 4 if name == b"XREADGROUP" else 1
    while index < len(command):
        option = command[index].upper()
        if option == b"STREAMS":
            names = command[index + 1 :]
            return Question(command, names[: len(names) // 2], timeout)
        if option == b"BLOCK" and index + 1 < len(command):
            timeout = _milliseconds(command[index + 1])
            command = command[:index] + command[index + 2 :]
        elif option == b"COUNT":
            index += 2
        else:
            index += 1
    return None


def _milliseconds(value: bytes) -> float:
    try:
        timeout = int(value)
    except ValueError:
        raise CommandError("ERR timeout is not an integer or out of range") from None
    if timeout < 0:
        raise CommandError("ERR timeout is negative")
    return timeout / 1000 or math.inf


def _seconds(value: bytes) -> float:
    try:
        timeout = float(value)
    except ValueError:
        raise CommandError("ERR timeout is not a float or out of range") from None
    if timeout < 0:
        raise CommandError("ERR timeout is negative")
    return timeout or math.inf


def pin(connection: Connection, question: Question) -> Question:
    """Replace the `$` of an XREAD, the newest entry, by its id: asked again, `$` would be another."""
    command = question.command
    if command[0].upper() != b"XREAD" or question.timeout is None or b"$" not in command:
        return question
    first = len(command) - len(question.keys)
    ids = [
        _last_id(connection, key) if start == b"$" else start
        for key, start in zip(question.keys, command[first:], strict=True)
    ]
    return Question(command[:first] + ids, question.keys, question.timeout)


def _last_id(connection: Connection, key: bytes) -> bytes:
    (facts,) = connection.session.run([b"XINFO", b"STREAM", key])
    if not isinstance(facts, list):
        return b"0-0"
    return bytes(facts[facts.index(b"last-generated-id") + 1])


class BlockedRead:
    """A connection that waits for one of `keys` to be written to."""

    def __init__(self, connection: Connection, question: Question) -> None:
        self.connection = connection
        self.question = question
        self.reply: bytes | None = None
        self.signal = Signal()

    def notify_watch(self) -> None:
        """Called by the dataset in the middle of a write: remember to try again after it."""
        self.connection.server.touched.append(self)

    def begin(self) -> None:
        """Queue up behind those who already wait."""
        server = self.connection.server
        for key in self.question.keys:
            server.dataset.watch(self.connection.database, key, self)
        server.blocked[self] = None

    def end(self) -> None:
        """Leave the queue. May be called again."""
        server = self.connection.server
        if server.blocked.pop(self, self) is self:
            return
        for key in dict.fromkeys(self.question.keys):
            server.dataset.unwatch(self.connection.database, key, self)

    def retry(self) -> None:
        """Ask again, unless nobody is there any more to take the answer: it would be lost."""
        if self.connection.gone or self.reply is not None:
            return
        reply = ask(self.connection, self.question)
        if reply is not None:
            self.finish(reply)

    def finish(self, reply: Reply) -> None:
        """Answer the waiting client: with entries, nil or an error."""
        self.reply = encode(reply, nil_arrays=True)
        self.end()
        self.signal.set()


def ask(connection: Connection, question: Question) -> Reply:
    """Ask for what is there now; None if there is nothing."""
    name = question.command[0].upper()
    if name in STREAM_READS:
        (reply,) = connection.session.run(question.command)
        return reply or None
    # Inside a transaction no command of fakeredis waits.
    for command in ([b"MULTI"], question.command):
        (reply,) = connection.session.run(command)
        if isinstance(reply, Exception):
            connection.session.run([b"DISCARD"])
            return reply
    (replies,) = connection.session.run([b"EXEC"])
    return replies[0] if isinstance(replies, list) else replies
