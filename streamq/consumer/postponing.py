"""The command of a retry or a postponement: the message as it is sent again, and when.

The delay runs from the decision on, so a command that waits for the server, or is sent again, has less of it left.
"""

from __future__ import annotations

from collections.abc import Callable

from streamq.client import Command
from streamq.queue.store import Store
from streamq.tasks.outcome import Postpone, Retry
from streamq.wire.bounds import ATTEMPT
from streamq.wire.delivery import Delivery
from streamq.wire.message import as_text, dumps, milliseconds, pack_flat


def postponement(store: Store, consumer: str, delivery: Delivery, outcome: Retry | Postpone) -> Callable[[], Command]:
    """Return what builds the command that moves a delivery of `consumer` to the delayed set."""
    fields = delivery.resend_fields(store.keys.group, **_changes(store, delivery, outcome))
    if (signer := store.signer) is not None:
        fields = as_text(signer.sign(store.keys.tiers[delivery.tier].stream, fields))
    packed = pack_flat(fields)
    elapsed = store.clock.elapsed
    due = elapsed() + outcome.delay

    def command() -> Command:
        return store.settle_commands.postpone(consumer, delivery, max(0.0, due - elapsed()), packed)

    return command


def _changes(store: Store, delivery: Delivery, outcome: Retry | Postpone) -> dict[str, str | None]:
    """Return the fields that change; None for one that is left out."""
    changes: dict[str, str | None] = {}
    attempt, starts = delivery.attempt, delivery.starts
    if isinstance(outcome, Retry):
        changes["attempt"] = str(min(attempt + 1, int(ATTEMPT.highest)))
        changes["starts"] = str(starts) if starts != attempt else None
        changes["unknown_since"] = None
    elif outcome.unknown:
        changes["unknown_since"] = str(milliseconds(delivery.unknown_since or store.clock.now()))
        changes["starts"] = str(starts - 1) if starts != attempt else None
    else:
        changes["starts"] = str(starts)
        if outcome.headers:
            changes["headers"] = dumps({**delivery.headers, **outcome.headers}).decode()
    return changes
