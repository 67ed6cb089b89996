"""A settlement that the server refused: its ways, why it was refused, and what may help. Values, and their texts.

`set_aside` tries it again, `refusal_lines` logs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.queue.missing_right import with_remedy
from streamq.tasks.outcome import DeadLetter, Outcome, Postpone, Release, Retry
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.side_effects import SideEffect

ACK = "the acknowledgement"


class Blame(NamedTuple):
    """What a refusal was about.

    `code` is that of the error, `pairs` are the commands and keys of which one was refused, None if any may be meant.
    `carried` are the side effects of the way that was refused, None if it was no lesser one.
    """

    code: str
    pairs: frozenset[tuple[str, str]] | None
    carried: Sequence[SideEffect] | None


def after_any(_: Blame) -> bool:
    """Return that a way may be tried, whatever was refused before it."""
    return True


@dataclass(frozen=True, slots=True)
class Way:
    """One way to settle a delivery. `command` builds the command, `done` gets the reply of the server.

    `helps` says whether it differs, from the way that was refused before it, in what is to blame. If not, it is passed
    over: it would be refused as well, or win by chance, as the right comes back, and what it leaves out would be lost.
    `carries` are its side effects, None if they are not known. `then` is a command that follows it, () for none.
    """

    command: Callable[[], Command]
    done: Callable[[Any], object]
    helps: Callable[[Blame], bool] = after_any
    carries: Sequence[SideEffect] | None = None
    then: Command = ()


@dataclass(slots=True, eq=False)
class RefusedSettlement:
    """A settlement that was refused. `what` names it: "the acknowledgement", "the retry".

    `lesser` returns further ways, given why the first one was refused: dead letters with the reason `becomes`. None: it
    has no consequence to leave out. `plain`: an acknowledgement of its entry alone, which can go in one command with
    others of its tier. `held`: its delivery is held until it is settled; a release holds nothing. `lasting`: it is
    tried on although nothing is held.
    """

    delivery: Delivery
    what: str
    ways: list[Way]
    lesser: Callable[[str], Sequence[Way]] | None = None
    becomes: str = ""
    plain: bool = False
    held: bool = True
    lasting: bool = False
    refusals: int = 0
    place: int = 0  # of the way that is tried next
    left: bool = False
    gone: bool = False
    why: str = ""
    code: str = ""
    where: str = ""  # the key that is to blame, if it is known
    allowed: frozenset[tuple[str, str]] = frozenset()  # commands and keys that the server does not refuse, as it said
    command: Command = field(default=(), repr=False)  # that was refused last
    error: BrokerError | None = field(default=None, repr=False)  # of that
    keys: Keys | None = field(default=None, repr=False)  # of the queue in which it was refused

    @property
    def cause(self) -> str:
        """Why it was refused, with the key that is to blame."""
        if not self.where:
            return self.why
        return f"{self.why.rstrip('.')}, {self.where}" if self.code == "NOPERM" else f"{self.why}; {self.where}"

    @property
    def about(self) -> str:
        """The cause, and the remedy for a missing right."""
        return with_remedy(self.cause, self.code, "worker", self.keys)

    @property
    def name(self) -> str:
        """The task of which it is, and its entry."""
        fields = self.delivery.fields
        name, given = fields.get(b"task", b"?"), fields.get(b"id") or self.delivery.entry_id
        return f"{_shown(name)} {_shown(given)} ({self.delivery.tier_name}, entry {_shown(self.delivery.entry_id)})"

    def __str__(self) -> str:
        left = ("left pending, " if self.held else "left, ") if self.left else ""
        return f"{self.what} of {self.name} is {left}refused {times(self.refusals)}: {self.about}"


def times(count: int) -> str:
    """Return a number of times in words."""
    return "once" if count == 1 else f"{count} times"


def what_of(outcome: Outcome) -> str:
    """Return what settles an outcome, in words."""
    match outcome:
        case Retry():
            return "the retry"
        case Postpone():
            return "the postponement"
        case DeadLetter(reason):
            return f"the dead letter ({reason})"
        case Release():
            return "the release"
        case _:
            return ACK


def _shown(raw: bytes) -> str:
    return raw[:200].decode(errors="backslashreplace")
