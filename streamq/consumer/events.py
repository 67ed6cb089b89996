"""What listeners hear. Events are values; a listener changes nothing and must not wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streamq.tasks.outcome import Outcome
from streamq.wire.delivery import Delivery


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A sweep took a delivery over. `died` says that its owner is dead; else it was handed back, or went stale."""

    delivery: Delivery
    died: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """A delivery was settled by this consumer, and the server said so. `duration` is the run's, in seconds."""

    delivery: Delivery
    outcome: Outcome
    duration: float


@dataclass(frozen=True, slots=True)
class Superseded:
    """A run ended, or was cancelled, after somebody else had taken or settled its delivery."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Trouble:
    """The server cannot be used. The worker waits and goes on."""

    error: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The server can be used again, after this many seconds."""

    after: float


Event = Started | Reclaimed | Settled | Superseded | Trouble | Recovered
Listener = Callable[[Event], None]
