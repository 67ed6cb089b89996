"""Dead letters of one consumer: builds the command that writes one, and the lesser ones after the server refused it.

Each lesser one has fewer consequences than the one before: without one of its side effects, without any, without the
evidence (traceback, long texts). The message itself, and all that a replay uses, is kept in all of them. None is tried
that leaves out nothing which may be to blame: a right that is missing for a moment costs no consequence. Only for what
cannot be written otherwise is there one of which nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from streamq.client import Command
from streamq.consumer.outcome_log import name_of
from streamq.consumer.refused_settlement import Blame, after_any
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import SignatureError, UndecodableError
from streamq.queue.server_errors import UNPACKABLE
from streamq.queue.side_effect_arguments import side_effect_arguments
from streamq.queue.store import Store
from streamq.tasks.outcome import CANCELLED, DeadLetter, Outcome, Postpone, Reason, Retry, failure_of
from streamq.wire.command_line import streamq_command
from streamq.wire.dead_letter_fields import Failure, dead_letter_fields, undecoded_fields
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field, dumps
from streamq.wire.side_effects import SideEffect, effects_of_end, has_side_effects

log = SafeLog("streamq")

_TRACEBACK_FOR_WAITERS = 4000  # characters
_MOST_LEFT_OUT = 4  # side effects of which each is left out in turn; of more, all are left out at once
_OF_THE_ENTRY = frozenset({"XACK", "XDEL", "XINFO GROUPS", "XPENDING"})  # no side effect needs these commands
_OF_A_KEY = frozenset({"NOPERM", "WRONGTYPE"})  # codes of refusals that no text in a dead letter is to blame for
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
    """What builds the command of a dead letter, its side effects, those that it leaves out, and after what it helps."""

    command: Callable[[], Command]
    carries: Sequence[SideEffect]
    left_out: Sequence[SideEffect] = ()
    helps: Callable[[Blame], bool] = after_any


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

    def in_full(
        self, delivery: Delivery, outcome: DeadLetter, keep: float | None, *, cancellable: bool = False
    ) -> Command:
        """Return the command that writes a dead letter with all of its side effects."""
        also = self.side_effects(delivery, outcome, keep)
        return self.command(delivery, outcome, also, cancellable=cancellable)

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
        replay = streamq_command(self._keys, "dlq", "replay", "ID")
        text = (
            f"its field 'group' names the consumer group {named}, which {self._keys.tiers[delivery.tier].stream} does "
            "not have: it was destroyed or renamed, or the name is mistyped; replay this dead letter "
            f"({replay}), and the task runs in the group {self._keys.group!r}"
        )
        return DeadLetter(Reason.UNKNOWN_GROUP, Failure("UnknownGroup", text))

    def of_cancelled(self, delivery: Delivery) -> Outcome:
        """Return the outcome of a delivery that is to be cancelled: dead if it is not signed as it must be."""
        try:
            self._store.check_signature(delivery)
        except UndecodableError as error:
            return DeadLetter(Reason.UNDECODABLE, failure_of(error))
        log.info("task %s is cancelled on request", name_of(delivery), event="cancelled", of=delivery)
        return CANCELLED

    # --- after a refusal -----------------------------------------------------------------------

    def refused(self, delivery: Delivery, outcome: Outcome, why: str) -> DeadLetter:
        """Return the dead letter that stands in for a settlement that the server refuses."""
        traceback = ""
        match outcome:
            case Retry(_, failure):
                after, traceback = f"the run raised {failure.error_type}: {failure.error}", failure.traceback
            case Postpone():
                after = "it was to run again later" if delivery.began else "it did not run, and was to run later"
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
            log.exception("%r has no side effects", delivery, event="internal_error", of=delivery)
            also, as_decided = [], True
        if as_decided:
            yield LesserLetter(partial(self.command, delivery, letter, also, why), also)
        if 1 < len(also) <= _MOST_LEFT_OUT:
            for place in range(len(also)):
                others = [*also[:place], *also[place + 1 :]]
                helps = partial(self._leaves_out_blamed, also, others)
                yield LesserLetter(partial(self.command, delivery, letter, others, why), others, (also[place],), helps)
        if also:
            helps = partial(self._leaves_out_blamed, also, ())
            yield LesserLetter(partial(self.command, delivery, letter, (), why), (), also, helps)
        failure, why = letter.failure, why[:_SHORT]
        short = replace(letter, failure=Failure(failure.error_type[:_SHORT], str_of(failure.error, _SHORT)))
        yield LesserLetter(partial(self.command, delivery, short, (), why), (), also, _may_be_a_text)
        yield LesserLetter(partial(self._undecoded, delivery, short, why), (), also, _cannot_be_written)

    def _leaves_out_blamed(self, every: Sequence[SideEffect], kept: Sequence[SideEffect], blame: Blame) -> bool:
        """May a side effect be to blame that the refused letter had, and one with those that are `kept` has not?"""
        if blame.pairs is None:
            return True
        had = every if blame.carried is None else blame.carried
        try:
            names, _ = side_effect_arguments(self._keys, [one for one in had if one not in kept])
        except Exception:  # noqa: BLE001 - one that cannot be built may be
            return True
        return not {key for command, key in blame.pairs if command not in _OF_THE_ENTRY}.isdisjoint(names)

    def _undecoded(self, delivery: Delivery, letter: DeadLetter, why: str) -> Command:
        """Return the command that writes a dead letter of which nothing is decoded."""
        fields = undecoded_fields(
            delivery, reason=letter.reason, failure=letter.failure, worker=self._name,
            stream=self._keys.tiers[delivery.tier].stream, died_at=self._now(), group=self._keys.group, refused=why,
        )  # fmt: skip
        return self._commands.dead_letter(self._name, delivery, self._signed(delivery, fields))


def _may_be_a_text(blame: Blame) -> bool:
    """May the length, or the form, of a text be to blame?"""
    return blame.code not in _OF_A_KEY


def _cannot_be_written(blame: Blame) -> bool:
    return blame.code == UNPACKABLE
