"""Events of a worker, and the listeners that get them.

Events are values. A listener changes nothing and must not wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors.readable import readable
from streamq.tasks.outcome import Outcome
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A sweep reclaimed a delivery. `died`: its owner is dead. Otherwise it was released, or not renewed."""

    delivery: Delivery
    died: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """This consumer settled a delivery, and the server confirmed it. `duration` (s) is that of the run."""

    delivery: Delivery
    outcome: Outcome
    duration: float


@dataclass(frozen=True, slots=True)
class Superseded:
    """A run ended, or was cancelled, after another consumer had reclaimed or settled its delivery."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Trouble:
    """The server cannot be used. The worker waits and goes on."""

    error: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The server can be used again, after `after` seconds."""

    after: float


_MOST_KINDS = 100  # of failures of listeners that are counted apart

Event = Started | Reclaimed | Settled | Superseded | Trouble | Recovered
Listener = Callable[[Event], None]


class Listeners:
    """The listeners of one consumer. False if there are none."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = tuple(listeners)
        self._failures: Counter[tuple[int, type[BaseException]]] = Counter()  # by the listener's place

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def __repr__(self) -> str:
        return f"<Listeners {len(self._listeners)}>"

    def emit(self, event: Event) -> None:
        """Call each listener with an event. Whatever it raises is swallowed, and logged with the listener.

        A traceback costs as much as some tasks, so it is logged the first time, the second, the fourth, and so on.

        Each gets a copy of the delivery: what it does to that reaches neither the worker nor the others.
        """
        for place, listener in enumerate(self._listeners):
            try:
                listener(event if isinstance(event, Trouble | Recovered) else _with_copy(event))
            except BaseException as error:
                if (times := self._failed(place, error)).bit_count() == 1:  # a power of two
                    log.exception(
                        "listener %r raised, %d times so far",
                        listener,
                        times,
                        event="listener_failed",
                        error=readable(error),
                    )

    def _failed(self, place: int, error: BaseException) -> int:
        kind = (place, type(error))
        if kind not in self._failures and len(self._failures) >= _MOST_KINDS:
            kind = (place, BaseException)
        self._failures[kind] += 1
        return self._failures[kind]


def _with_copy(event: Started | Reclaimed | Settled | Superseded) -> Event:
    return replace(event, delivery=event.delivery.copy())
