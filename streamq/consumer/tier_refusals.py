"""Tiers of which the server refuses one step of a loop (the stream has another type, a right is missing).

One refused tier must not hold up the others. A step for several tiers that is refused is repeated for each tier alone.
The tier that is to blame is named in the outage of the consumer, and tried again with backoff; the step goes on for the
others together.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence

from streamq.clock import Clock, ServerClock
from streamq.consumer.outage import Outage
from streamq.errors import BrokerError
from streamq.queue.server_errors import concerns_server
from streamq.tasks.retry_policy import Backoff

_PAUSE = Backoff(base=0.25, factor=2.0, cap=5.0)


class TierRefusals:
    """The tiers of which one step is refused, each with the time (monotonic) at which it is tried again.

    `what` names the step. `restore` is called when a stream or its group is missing: it creates them.
    """

    def __init__(
        self,
        what: str,
        streams: Sequence[str],
        outage: Outage,
        clock: Clock | ServerClock,
        restore: Callable[[], Awaitable[object]],
        uniform: random.Random,
    ) -> None:
        self.refused: dict[int, float] = {}
        self._names = [f"{what} {stream}" for stream in streams]
        self._outage = outage
        self._clock = clock
        self._restore = restore
        self._streaks = [0] * len(streams)
        self._random = uniform

    def __repr__(self) -> str:
        return f"<TierRefusals {[self._names[tier] for tier in self.refused]}>"

    def note_refused(self, tier: int, error: BrokerError) -> None:
        """Note that the step of this tier alone was refused."""
        self._streaks[tier] += 1
        pause = _PAUSE.ceiling(self._streaks[tier]) * self._random.uniform(0.75, 1.0)
        self.refused[tier] = self._clock.elapsed() + pause
        if error.code != "NOGROUP" or self._streaks[tier] > 1:  # at first the group is created, and that is said
            self._outage.note_refused(self._names[tier], error)

    def note_accepted(self, tiers: Iterable[int]) -> None:
        """Note that the step of these tiers was carried out."""
        for tier in tiers:
            if self._streaks[tier]:
                self._streaks[tier] = 0
                self.refused.pop(tier, None)
                self._outage.note_accepted(self._names[tier])

    def due(self) -> list[int]:
        """Return the refused tiers that are to be tried again."""
        now = self._clock.elapsed()
        return [tier for tier, at in self.refused.items() if at <= now]

    def paused(self, tier: int) -> bool:
        """Was the step of this tier refused, and is its pause not over?"""
        return self.refused.get(tier, 0.0) > self._clock.elapsed()

    def next_try(self) -> float:
        """Return the seconds until the first refused tier is tried again."""
        return max(0.0, min(self.refused.values()) - self._clock.elapsed())

    async def carry_out(self, step: Callable[[list[int]], Awaitable[object]]) -> None:
        """Carry out a step for all tiers: for those that were not refused together, for each other one alone.

        A tier that was refused waits first. Raises the error if the server cannot be used.
        """
        sound = [tier for tier in range(len(self._names)) if tier not in self.refused]
        due = self.due()
        if sound:
            await self._try(step, sound)
        for tier in due:
            await self._try(step, [tier])

    async def begin(self, step: Callable[[list[int]], Awaitable[object]]) -> None:
        """Do as `carry_out`, for a step without which the consumer cannot begin. Raises the error if no tier takes it.

        Then no tier is named: nothing goes on, and the caller says so.
        """
        every, refused = list(range(len(self._names))), list[tuple[int, BrokerError]]()
        for tiers in (every, *([tier] for tier in every)):
            try:
                await step(tiers)
            except BrokerError as error:
                if concerns_server(error) or len(every) == 1:
                    raise
                if error.code == "NOGROUP":
                    await self._restore()
                refused += [(tiers[0], error)] if len(tiers) == 1 else []
            else:
                self.note_accepted(tiers)
                if tiers is every:
                    return
        if len(refused) == len(every):
            raise refused[0][1]
        for tier, why in refused:
            self.note_refused(tier, why)

    async def _try(self, step: Callable[[list[int]], Awaitable[object]], tiers: list[int]) -> None:
        try:
            await step(tiers)
        except BrokerError as error:
            await self.take_in(tiers, error)
            if len(tiers) > 1:
                for tier in tiers:
                    await self._try(step, [tier])
        else:
            self.note_accepted(tiers)

    async def take_in(self, tiers: Sequence[int], error: BrokerError) -> None:
        """Take in the error of the step of some tiers; one of several may be to blame. Raises that of the server."""
        if concerns_server(error):
            raise error
        if error.code == "NOGROUP":
            await self._restore()
        if len(tiers) == 1:
            self.note_refused(tiers[0], error)
