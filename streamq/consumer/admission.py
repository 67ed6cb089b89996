"""May a delivery start? Settled without a run are the work of another group, what is no message, and what is late."""

from __future__ import annotations

from functools import partial

from streamq.errors import UndecodableError
from streamq.queue.store import Store
from streamq.tasks.outcome import EXPIRED, DeadLetter, Outcome, Reason, Skip, failure_of
from streamq.wire.delivery import Delivery
from streamq.wire.keys import is_stream_of
from streamq.wire.signing import is_signed_and_basic


class Admission:
    """Looks at the deliveries of one consumer that have more than the basic fields."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._signer = store.signer
        self._group = store.keys.group.encode()
        self._may_send_to = partial(is_stream_of, store.keys)

    def __repr__(self) -> str:
        return f"<Admission of {self._group!r}>"

    def early_outcome(self, delivery: Delivery) -> Outcome | None:
        """Return the outcome of a delivery that must not start, None for all others."""
        if delivery.fields.get(b"group", self._group) != self._group:
            return Skip()
        try:
            self._store.check_signature(delivery)
            if self._signer is not None and is_signed_and_basic(delivery.fields):
                delivery.only_basic_fields = True
                return None
            delivery.check(self._may_send_to)
        except UndecodableError as error:
            return DeadLetter(Reason.UNDECODABLE, failure_of(error))
        if delivery.expires is not None and delivery.expires < self._store.clock.now():
            return DeadLetter(Reason.EXPIRED, EXPIRED)
        return None
