"""How a circuit looks from outside: its name, its state, and its last failure. No I/O."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from streamq.clock import SYSTEM
from streamq.errors import StreamqError
from streamq.middleware.circuit_state_machine import State
from streamq.tasks.outcome import failure_of
from streamq.wire.names import SEPARATOR, qualified
from streamq.wire.stored_numbers import stored_count, stored_time

MAX_INDEXED: Final = 1000  # circuits in the index that the monitor reads; it has those that are not closed
MAX_TEXT: Final = 500  # characters of the type and of the text of an error in Redis
_NOT_CLOSED: Final = frozenset({State.OPEN, State.HALF_OPEN})


class RemoteFailureError(StreamqError):
    """A failure of a call in another process: the type and the text of its error, and when it failed. Never raised."""

    def __init__(self, error_type: str, error: str, at: datetime) -> None:
        self.error_type = error_type
        self.error = error
        self.at = at
        super().__init__(f"{error_type}: {error}")

    def __repr__(self) -> str:
        return f"<RemoteFailureError {self.error_type}: {self.error}>"


@dataclass(frozen=True, slots=True)
class CircuitView:
    """One circuit, as this process knows it.

    `failures` counts failures in a row. `last_failure` is a copy of the exception, without its traceback and causes, if
    this process raised it, else a RemoteFailureError. `since` is the time of the last change of state. It is None if
    the state never changed, and for circuits of this process.
    """

    state: State = State.CLOSED
    failures: int = 0
    last_failure: BaseException | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredCircuit:
    """A circuit in Redis that is not closed, as people read it. `worker` is None for one of the fleet."""

    name: str
    worker: str | None
    state: State
    failures: int
    error_type: str
    error: str
    since: datetime

    @classmethod
    def read(cls, key: str, flat: Sequence[bytes] | None) -> Self | None:
        """Return the circuit of a hash, None if it is gone or closed. `key` is its name in Redis."""
        texts = [part.decode(errors="replace") for part in flat or ()]
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        if fields.get("state") not in _NOT_CLOSED:
            return None
        return cls(
            name=fields.get("name", shown_name(key)), worker=fields.get("worker"), state=State(fields["state"]),
            failures=stored_count(fields.get("failures")) or 0,
            error_type=fields.get("error_type", "")[:MAX_TEXT], error=fields.get("error", "")[:MAX_TEXT],
            since=stored_time(fields.get("since")) or datetime.fromtimestamp(0, UTC),
        )  # fmt: skip


def circuit_name(breaker: str, key: str) -> str:
    """Return the name of a circuit in Redis: the name of its breaker, its key, or both; '' if it has neither.

    Other pairs have other names. A breaker without a name whose key is the name of another one has its circuit.
    """
    return qualified(breaker, key) if key else breaker


def process_circuit_name(circuit: str, worker: str) -> str:
    """Return the name in Redis of a circuit of one process: no circuit of a fleet has an `@` before its `|`."""
    return f"@{worker}{SEPARATOR}{circuit}"


def shown_name(circuit: str) -> str:
    """Return the name of a circuit as people read it."""
    return ":".join(filter(None, circuit.split(SEPARATOR, 1))) or "breaker"


def remembered(error: BaseException, at: datetime | None = None) -> BaseException:
    """Return a copy of an exception that was raised `at` this time (now), without its frames and causes.

    A RemoteFailureError if it cannot be copied, or is a group: its members have frames.
    """
    copied: BaseException = error
    if not isinstance(error, BaseExceptionGroup):
        with suppress(BaseException):  # the class of the error is a stranger's
            copied = copy.copy(error)
    if type(copied) is type(error) and copied is not error:
        copied.__traceback__ = copied.__cause__ = copied.__context__ = None
        return copied
    return RemoteFailureError(*failure_fields(error), at or datetime.fromtimestamp(SYSTEM.now(), UTC))


def failure_fields(error: BaseException) -> tuple[str, str]:
    """Return the type and the text of an exception, as Redis has them."""
    failure = failure_of(error)
    return failure.error_type[:MAX_TEXT], failure.error[:MAX_TEXT]
