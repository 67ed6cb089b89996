"""Commands on which the server closes the connection: there is no answer, so they are found by their size.

A server (`proto-max-bulk-len`) or a proxy before it closes the connection on a text that is too large for it. Every
other command of that moment is lost with it, and all are sent again: for ever, if nobody finds which one it is. So
losses with a large command among them are counted, whatever else succeeds in between. After `LOSSES` of them in a row
that command counts as refused, with the code `CLOSED`. A large one that is answered starts the count anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.queue.server_errors import CLOSED

LARGE = 64 << 10  # bytes of one argument; no server or proxy is known that refuses less
LOSSES = 3


class LostCommands:
    """The losses of one store, one after the other, that may be the fault of a large command."""

    __slots__ = ("_smallest", "losses")

    def __init__(self) -> None:
        self.losses = 0  # in a row, with a large command among them
        self._smallest = inf  # bytes of the smallest argument that is to blame, as far as known

    def __repr__(self) -> str:
        return f"<LostCommands {self.losses} with large ones>"

    def note_answered(self, commands: Sequence[Command]) -> None:
        """Note that commands were answered, whatever was said."""
        if max(map(largest_part, commands), default=0) >= self._smallest:
            self.losses, self._smallest = 0, inf

    def note_lost(self, commands: Sequence[Command], error: BrokerError) -> list[BrokerError]:
        """Note that the connection broke before commands were answered.

        Return the error of each, nothing if all are lost and none is known to be refused.
        """
        sizes = [largest_part(command) for command in commands]
        if (large := max(sizes)) < LARGE:
            return []
        self.losses += 1
        self._smallest = min(self._smallest, large)
        if self.losses < LOSSES:
            return []
        return [_refusal(size) if size >= self._smallest else error for size in sizes]


def largest_part(command: Command) -> int:
    """Return the bytes, about, of the largest argument of a command; of one that is packed already, all its bytes."""
    if isinstance(command, bytes):
        return len(command)
    return max((len(part) for part in command if isinstance(part, str | bytes)), default=0)


def _refusal(size: int) -> BrokerError:
    return BrokerError(
        f"the connection was closed each time that this was sent, with an argument of {size:,} bytes: the server "
        "(proto-max-bulk-len) or a proxy takes no text of that size",
        code=CLOSED,
    )
