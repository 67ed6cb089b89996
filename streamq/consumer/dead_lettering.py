"""Dead letters of one consumer: builds the command that writes one, and the lesser ones after the server refused it.

Each lesser one has fewer consequences than the one before: without one of its side effects, without any, without the
evidence (traceback, long texts). The message itself is kept in all of them, so each can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from streamq.client import Command
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import SignatureError, StreamqError, UndecodableError
from streamq.queue.store import Store
from streamq.tasks.outcome import CANCELLED, DeadLetter, Outcome, Postpone, Reason, Retry, failure_of
from streamq.wire.dead_letter_fields import Failure, dead_letter_fields
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field, dumps
from streamq.wire.side_effects import SideEffect, effects_of_end, has_side_effects

log = SafeLog("streamq")

_TRACEBACK_FOR_WAITERS = 4000  # characters
_MOST_LEFT_OUT = 4  # side effects of which each is left out in turn; of more, all are left out at once
_SHORT = 1000  # characters of a text in a dead letter without evidence


class DeadLetterEffects(Protocol):
    """The side effects that a worker adds to a dead letter, beside those of the message (see `on_exhausted`)."""

    def side_effects(self, delivery: Delivery, outcome: DeadLetter) -> list[SideEffect]:
        """Return side effects for the atomic step that writes the dead letter."""
        ...

    def confirmed(self, delivery: Delivery, outcome: DeadLetter) -> None:
        """The server has confirmed the dead letter. Must not wait."""
        ...


class LesserLetter(NamedTuple):
    """What builds the command of a dead letter, and the side effects that it leaves out."""

    command: Callable[[], Command]
    left_out: Sequence[SideEffect] = ()


class DeadLetters:
    """Builds the dead letters of one consumer. `now` returns the server's Unix time."""

    def __init__(self, store: Store, name: str, now: Callable[[], float]) -> None:
        self.effects: DeadLetterEffects | None = None  # set by a worker whose tasks have any
        self._store = store
        self._keys = store.keys
        self._commands = store.settle_commands
        self._name = name
        self._now = now

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._name}>"

    def side_effects(self, delivery: Delivery, outcome: DeadLetter, keep: float | None) -> list[SideEffect]:
        """Return all side effects of a dead letter: those of the message, and those of the worker.

        A message that is not signed as it must be has none: nothing in it is believed.
        """
        if not self._believed(delivery):
            return []
        failure = outcome.failure
        for_waiters = {
            "error_type": failure.error_type, "error": failure.error,
            "traceback": failure.traceback[-_TRACEBACK_FOR_WAITERS:], "reason": outcome.reason,
        }  # fmt: skip
        also: list[SideEffect] = []
        if keep or has_side_effects(delivery, done=False):
            also = effects_of_end(delivery, payload=dumps(for_waiters), keep=keep)
        if self.effects is not None:
            also = [*also, *self.effects.side_effects(delivery, outcome)]
        return also

    def command(
        self, delivery: Delivery, outcome: DeadLetter, also: Sequence[SideEffect], refused: str = "", *,
        cancellable: bool = False,
    ) -> Command:  # fmt: skip
        """Return the command that writes a dead letter, with these side effects; see `dead_letter_fields`."""
        stream = self._keys.tiers[delivery.tier].stream
        fields = dead_letter_fields(
            delivery, reason=outcome.reason, failure=outcome.failure, worker=self._name, stream=stream,
            died_at=self._now(), group=self._keys.group, refused=refused,
        )  # fmt: skip
        signed = self._signed(delivery, fields)
        return self._commands.dead_letter(self._name, delivery, signed, also, cancellable=cancellable)

    def _believed(self, delivery: Delivery) -> bool:
        try:
            self._store.check_signature(delivery)
        except SignatureError:
            return False
        return True

    def _signed(self, delivery: Delivery, fields: list[Field]) -> list[Field]:
        signer = self._store.signer
        return fields if signer is None or not self._believed(delivery) else signer.sign_dead_letter(fields)

    def of_unknown_group(self, delivery: Delivery) -> DeadLetter:
        """Return the outcome of a delivery that names a group which its stream does not have."""
        named = repr_of((delivery.group or b"").decode(errors="backslashreplace"))
        text = (
            f"its field 'group' names the consumer group {named}, which {self._keys.tiers[delivery.tier].stream} does "
            "not have: it was destroyed or renamed, or the name is mistyped; replay this dead letter "
            f"(streamq dlq replay ID), and the task runs in the group {self._keys.group!r}"
        )
        return DeadLetter(Reason.UNKNOWN_GROUP, Failure("UnknownGroup", text))

    def of_cancelled(self, delivery: Delivery) -> Outcome:
        """Return the outcome of a delivery that is to be cancelled: dead if it is not signed as it must be."""
        try:
            self._store.check_signature(delivery)
        except UndecodableError as error:
            return DeadLetter(Reason.UNDECODABLE, failure_of(error))
        log.info("task %s is cancelled on request", name_of(delivery))
        return CANCELLED

    # --- after a refusal -----------------------------------------------------------------------

    def refused(self, outcome: Outcome, why: str) -> DeadLetter:
        """Return the dead letter that stands in for a settlement that the server refuses."""
        traceback = ""
        match outcome:
            case Retry(_, failure):
                after, traceback = f"the run raised {failure.error_type}: {failure.error}", failure.traceback
            case Postpone():
                after = "it was to run again later"
            case _:
                after = "the run succeeded"
        return DeadLetter(Reason.REFUSED, Failure("SettlementRefused", f"{after}; {why}", traceback))

    def lesser(
        self, delivery: Delivery, letter: DeadLetter, keep: float | None, why: str, *, as_decided: bool
    ) -> Iterator[LesserLetter]:
        """Yield each dead letter to be tried, the one with most consequences first.

        `as_decided`: the one with all consequences, which was not tried before, is the first. `why` says what was
        refused; it is kept in the field `refused`.
        """
        try:
            also = self.side_effects(delivery, letter, keep)
        except Exception:  # those of the worker are made with code of the user
            log.exception("%r has no side effects", delivery)
            also = []
        if as_decided:
            yield LesserLetter(partial(self.command, delivery, letter, also, why))
        if 1 < len(also) <= _MOST_LEFT_OUT:
            for place in range(len(also)):
                others = [*also[:place], *also[place + 1 :]]
                yield LesserLetter(partial(self.command, delivery, letter, others, why), (also[place],))
        if also:
            yield LesserLetter(partial(self.command, delivery, letter, (), why), also)
        for command in self.bare(delivery, letter, why[:_SHORT]):
            yield LesserLetter(command, also)

    def bare(self, delivery: Delivery, letter: DeadLetter, why: str = "") -> Iterator[Callable[[], Command]]:
        """Yield what builds the command of a dead letter without side effects and evidence, and one of raw fields."""
        failure = letter.failure
        short = Failure(failure.error_type[:_SHORT], str_of(failure.error, _SHORT))
        yield partial(self.command, delivery, replace(letter, failure=short), (), why)
        yield partial(self._raw, delivery, letter.reason, short)

    def _raw(self, delivery: Delivery, reason: str, failure: Failure) -> Command:
        """Return the command that writes a dead letter of which nothing is decoded."""
        fields = delivery.fields
        stream = self._keys.tiers[delivery.tier].stream
        flat: list[Field] = ["task_id", fields.get(b"id") or delivery.entry_id]
        for name in (b"task", b"args", b"kwargs"):
            flat += (name, fields.get(name, b""))
        flat += ("tier", delivery.tier_name, "reason", reason, "error_type", failure.error_type)
        flat += ("error", failure.error, "worker", self._name, "group", self._keys.group)
        flat += ("origin", f"{stream} {delivery.entry_id.decode(errors='backslashreplace')}")
        return self._commands.dead_letter(self._name, delivery, self._signed(delivery, flat))


def name_of(delivery: Delivery) -> str:
    """Return the name and the id of a task, for a line of the log."""
    try:
        return f"{delivery.task} {delivery.task_id}"
    except StreamqError:
        return repr(delivery)
