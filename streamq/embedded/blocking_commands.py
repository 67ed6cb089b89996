"""Commands that may block: how they are parsed, and how they are tried without waiting.

fakeredis blocks the thread that runs such a command. (XREADGROUP with COUNT does not block at
all there.) So fakeredis is asked only for what is available now, and `server_state` does the
waiting. This module knows no connection and no server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from streamq.embedded.resp import CommandError

if TYPE_CHECKING:
    from streamq.embedded.dataset import Session
    from streamq.embedded.resp import Reply

STREAM_READS: Final = frozenset({b"XREAD", b"XREADGROUP"})

# Where the keys of a blocking command stand, and its timeout: (first key, end, timeout), counted as
# in slices. BLMPOP and BZMPOP have a number of keys instead and are parsed separately.
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


@dataclass(frozen=True, slots=True)
class BlockingCommand:
    """A parsed command that may block.

    `request` is the command without its BLOCK option. `timeout` is in seconds: `inf` blocks for
    ever, None does not block.
    """

    request: list[bytes]
    keys: list[bytes]
    timeout: float | None


def parse(request: list[bytes]) -> BlockingCommand | None:
    """Parse a blocking command. Return None if it is malformed: fakeredis has the better error text.

    Raises CommandError if the timeout is not a number or is negative.
    """
    name = request[0].upper()
    if name in STREAM_READS:
        return _parse_stream_read(name, request)
    if name in _MULTIPLE_POPS:
        if len(request) < 5 or not request[2].isdigit():
            return None
        return BlockingCommand(request, request[3 : 3 + int(request[2])], _seconds(request[1]))
    first, end, timeout = _POPS[name]
    if len(request) < 3:
        return None
    return BlockingCommand(request, request[first:end], _seconds(request[timeout]))


def _parse_stream_read(name: bytes, request: list[bytes]) -> BlockingCommand | None:
    timeout, index = None, 4 if name == b"XREADGROUP" else 1
    while index < len(request):
        option = request[index].upper()
        if option == b"STREAMS":
            names = request[index + 1 :]
            return BlockingCommand(request, names[: len(names) // 2], timeout)
        if option == b"BLOCK" and index + 1 < len(request):
            timeout = _milliseconds(request[index + 1])
            request = request[:index] + request[index + 2 :]
        elif option == b"COUNT":
            index += 2
        else:
            index += 1
    return None


def _milliseconds(value: bytes) -> float:
    """Return a BLOCK option in seconds."""
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


def resolve_newest_ids(session: Session, command: BlockingCommand) -> BlockingCommand:
    """Replace each `$` of a blocking XREAD by the id of the newest entry.

    The command is tried more than once, and `$` would mean another entry each time.
    """
    request = command.request
    if request[0].upper() != b"XREAD" or command.timeout is None or b"$" not in request:
        return command
    first = len(request) - len(command.keys)
    ids = [
        _newest_id(session, key) if start == b"$" else start
        for key, start in zip(command.keys, request[first:], strict=True)
    ]
    return BlockingCommand(request[:first] + ids, command.keys, command.timeout)


def _newest_id(session: Session, key: bytes) -> bytes:
    (fields,) = session.run([b"XINFO", b"STREAM", key])
    if not isinstance(fields, list):
        return b"0-0"
    return bytes(fields[fields.index(b"last-generated-id") + 1])


def run_without_waiting(session: Session, command: BlockingCommand) -> Reply:
    """Run the command and return its reply, or None if nothing is available now."""
    request = command.request
    if request[0].upper() in STREAM_READS:
        (reply,) = session.run(request)
        return reply or None
    # Inside a transaction no command of fakeredis blocks.
    for part in ([b"MULTI"], request):
        (reply,) = session.run(part)
        if isinstance(reply, Exception):
            session.run([b"DISCARD"])
            return reply
    (replies,) = session.run([b"EXEC"])
    return replies[0] if isinstance(replies, list) else replies
