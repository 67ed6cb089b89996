"""Settlements that the server refused. They are tried apart, so that they hold up no other task.

A refused settlement leaves the shared round trip and waits here. Its delivery stays held, so its lease is renewed. It
is tried again with backoff. After `allowed` refusals that are its own (a key of another type, a missing right) it is
tried in the *lesser ways* that its settler knows: as a dead letter, with fewer consequences each time. If all of them
are refused it is *left*: it stays pending and held, and all its ways are tried again every `LEFT_PAUSE` seconds, until
somebody mends the cause. A way that leaves out nothing that may be to blame is passed over (see `Way`). Refusals that
pass with the state of the server (OOM, NOGROUP) are not counted.

Cost: nothing while nothing is refused. Memory: a tier with `MOST_TRIED` of them is not read, and of those that are left
the oldest beyond `MOST_LEFT` are let go: their leases end, and a worker runs them again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any

import anyio

from streamq.client import Command
from streamq.clock import Clock, ServerClock
from streamq.consumer.counting import Counting
from streamq.consumer.refusal_lines import AS_DEAD_LETTER, AS_DECIDED, RefusalLines
from streamq.consumer.refused_settlement import Blame, RefusedSettlement, times
from streamq.consumer.round_trip import RoundTrip
from streamq.consumer.shortage import is_shortage
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import BrokerError
from streamq.queue.missing_right import may_be_refused, where_refused
from streamq.queue.refused_command import ask_types, keys_of, said, wrong_keys
from streamq.queue.server_errors import CLOSED, SHORTAGE, UNPACKABLE, concerns_server, is_final
from streamq.queue.settle_commands import SettleCommands
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Backoff
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

TRIES = 5  # refusals of a settlement as it was decided: about 3 s
TRIES_WITHOUT_RIGHT = 7  # the same for a missing right, which may be given back: about 10 s
_ALLOWED = {UNPACKABLE: 1, CLOSED: 2, "NOPERM": TRIES_WITHOUT_RIGHT}  # by code: each closing disturbs all others
LEFT_PAUSE = 30.0  # seconds between two tries of a settlement that is left
MOST_TRIED = 1000  # settlements of one tier that are tried: beyond them the tier is not read
MOST_LEFT = 1000  # settlements that are left: beyond them the oldest are let go
_PAUSE = Backoff(base=0.25, factor=2.0, cap=4.0)
_MOST_PER_TRIP = 200
_MOST_NAMED = 10  # in `Worker.health`, and of which the types of keys are asked for after one round trip


class SetAside:
    """The refused settlements of one consumer.

    `on_change` is called when another set of tiers is `full`, `let_go` with a delivery that is held no longer.
    """

    def __init__(
        self, commands: SettleCommands, counting: Counting, tiers: int, clock: Clock | ServerClock, *,
        let_go: Callable[[Delivery], None], acknowledged: Callable[[int, list[Delivery], Sequence[bytes]], None],
        per_entry: bool, uniform: random.Random,
    ) -> None:  # fmt: skip
        self.full: frozenset[int] = frozenset()  # tiers of which too many are refused to read more
        self.on_change: Callable[[], None] = lambda: None
        self._unnamed: list[RefusedSettlement] = []  # refused for another reason than before, and not logged yet
        self._lines = RefusalLines(commands.keys.namespace, clock)
        self.resending = False  # may the commands that are loaded have been carried out before?
        self._lost = False  # was one of them lost?
        self._commands = commands
        self._counting = counting
        self._clock = clock
        self._let_go = let_go
        self._acknowledged = acknowledged
        self._per_entry = per_entry
        self._random = uniform
        self._all: dict[RefusedSettlement, None] = {}
        self._left: dict[RefusedSettlement, None] = {}
        self._due: list[tuple[float, int, RefusedSettlement]] = []
        self._numbers = count()
        self._waiting = [0] * tiers  # by tier: those that may still be settled soon, and acknowledgements that are left
        self._let_go_by_tier = [0] * tiers
        self._wake = anyio.Event()

    def __repr__(self) -> str:
        return f"<SetAside {len(self._all)} refused, {len(self._left)} of them left>"

    def __bool__(self) -> bool:
        return bool(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def trying(self) -> bool:
        """Is any of them to be settled within seconds?"""
        return len(self._left) < len(self._all)

    def left_by_tier(self) -> list[int]:
        """Return how many of each tier are left, or were let go."""
        left = list(self._let_go_by_tier)
        for one in self._left:
            left[one.delivery.tier] += one.held
        return left

    def named(self) -> list[str]:
        """Return a text for each of the first ones."""
        return [str(one) for one in islice(self._all, _MOST_NAMED)]

    def find(self, delivery: Delivery) -> RefusedSettlement | None:
        """Return the refused settlement of a delivery, None if there is none."""
        return next((one for one in self._all if one.delivery is delivery), None)

    async def name_refused(self, store: Store) -> None:
        """Find the keys that are to blame for what was refused since the last call, and log it by kinds."""
        waiting = [one for one in self._unnamed if not one.gone]
        unnamed, self._unnamed = waiting[:_MOST_PER_TRIP], waiting[_MOST_PER_TRIP:]
        lacking = [(one, (one.error, one.command)) for one in unnamed if one.error and one.code == "NOPERM"]
        places = await store.where_refused([what for _, what in lacking])
        for (one, _), (where, refused) in zip(lacking, places, strict=True):
            one.where = where
            if refused and one.error is not None:
                asked = may_be_refused(one.error, one.command, store.keys) or frozenset()
                one.allowed = asked - {(pair.command, pair.key) for pair in refused}
        for one in unnamed[:_MOST_NAMED]:
            if one.code == "WRONGTYPE" and (names := keys_of(one.command)):
                with suppress(BrokerError):
                    one.where = wrong_keys(names, await store.attempt(ask_types(names)), store.keys.namespace)
        for one in unnamed:
            if not one.place and not one.gone:  # a lesser way was refused: the line that it is left has that reason
                self._lines.refused(one)
        self._lines.remind()

    def log_given_up(self, name: str) -> None:
        """Log what is still refused as the consumer with this name leaves."""
        again = [str(one) for one in self._all if one.held]
        keys = [str(one) for one in self._all if one.lasting]
        for some, what in (
            (again, "tasks that run again, on another worker"),
            (keys, "deduplication keys that stay held until their TTL ends, or their dead letter is replayed"),
        ):
            if some:
                first = "; ".join(some[:_MOST_NAMED])
                log.warning("%s: refused to the end; %s: %d: %s", name, what, len(some), first, event="refused")

    # --- in ----------------------------------------------------------------------------------

    def add(self, one: RefusedSettlement, error: BrokerError, command: Command) -> None:
        """Set a settlement aside: the server refused it."""
        self._take_in(one)
        self._refused(one, error, command)

    def add_untried(self, some: Sequence[RefusedSettlement]) -> None:
        """Set settlements aside that the server refused together: one of them may be to blame for all."""
        for one in some:
            self._take_in(one)
            self._try_at(one, self._clock.elapsed())

    def _take_in(self, one: RefusedSettlement) -> None:
        self._all[one] = None
        self._waiting[one.delivery.tier] += 1
        self._note_full()

    def _try_at(self, one: RefusedSettlement, due: float) -> None:
        heappush(self._due, (due, next(self._numbers), one))
        if self._due[0][2] is one:
            self._wake.set()

    # --- out ---------------------------------------------------------------------------------

    async def wait_until_due(self) -> None:
        """Wait until one of them is to be tried."""
        while not self._due or self._due[0][0] > self._clock.elapsed():
            self._wake = anyio.Event()
            with anyio.move_on_after(self._due[0][0] - self._clock.elapsed() if self._due else None):
                await self._wake.wait()

    def load(self, trip: RoundTrip, *, last: bool = False) -> None:
        """Put those that are due on a round trip; as the `last` try, all of them as they were decided."""
        if last:
            self._due = []
            chosen = list(self._all)
            for one in chosen:
                one.place = 0
        else:
            chosen = list(self._pop_due())
        self.resending, self._lost = self._lost, False
        plain: dict[int, list[RefusedSettlement]] = {}
        for one in chosen:
            if one.plain:
                plain.setdefault(one.delivery.tier, []).append(one)
            else:
                self._load_one(trip, one)
        for tier, some in plain.items():
            for at in range(0, len(some), _MOST_PER_TRIP):
                part = some[at : at + _MOST_PER_TRIP]
                held = [one.delivery for one in part]
                command = self._commands.ack([(tier, [one.entry_id for one in held])], per_entry=self._per_entry)
                command = self._counting.acknowledging(command, held, superseded=not self.resending)
                trip.add(command, self._acks_replied, (part, command))

    def _pop_due(self) -> Iterator[RefusedSettlement]:
        now = self._clock.elapsed()
        number = 0
        while self._due and self._due[0][0] <= now and number < _MOST_PER_TRIP:
            one = heappop(self._due)[2]
            if not one.gone:
                number += 1
                yield one

    def _load_one(self, trip: RoundTrip, one: RefusedSettlement) -> None:
        try:
            command = one.ways[one.place].command()
        except Exception as error:  # noqa: BLE001 - it holds for this delivery, and for this way of it
            self._refused(one, not_built(error), ())
        else:
            trip.add(command, self._replied, (one, command))
            trip.add_then(one.ways[one.place].then, one.delivery)

    # --- replies -----------------------------------------------------------------------------

    def _replied(self, subject: tuple[RefusedSettlement, Command], reply: Any) -> bool:
        one, command = subject
        if isinstance(reply, BrokerError):
            return self._refused(one, reply, command)
        self._remove(one)
        self._lines.ended(one, AS_DEAD_LETTER if one.place else AS_DECIDED)
        one.ways[one.place].done(reply)
        return False

    def _acks_replied(self, subject: tuple[list[RefusedSettlement], Command], reply: Any) -> bool:
        some, command = subject
        if isinstance(reply, BrokerError):
            return [self._refused(one, reply, command) for one in some][-1]
        for one in some:
            self._remove(one)
            self._lines.ended(one, AS_DECIDED)
        self._acknowledged(some[0].delivery.tier, [one.delivery for one in some], self._counting.heard(reply)[0])
        return False

    def _refused(self, one: RefusedSettlement, error: BrokerError, command: Command) -> bool:
        """Decide what becomes of a settlement that was refused once more; True if the server cannot be used."""
        now = self._clock.elapsed()
        if concerns_server(error):
            self._lost = True
            self._try_at(one, now)
            return True
        if self._counting.to_blame(error, command):
            self._try_at(one, now)
            return False
        one.refusals += 1
        one.command, one.code, one.error, one.keys = command, error.code, error, self._commands.keys
        if (why := said(error, command)) != one.why:
            one.why, one.where = why, ""
            if error.code == "NOPERM":  # for now without asking the server, so that no text lacks the key
                one.where = where_refused(error, command, self._commands.keys)
            self._unnamed.append(one)
        elif one.left and not one.place and not one.plain:  # another key may be to blame by now
            self._unnamed.append(one)
        final = is_final(error)
        allowed = _ALLOWED.get(error.code, TRIES)
        if not final or (not one.left and not one.place and one.refusals < allowed):
            self._try_at(one, now + _PAUSE.ceiling(one.refusals) * self._random.uniform(0.75, 1.0))
        elif self._take_next_way(one):
            self._try_at(one, now)
        else:
            self._leave(one)
        return False

    def _take_next_way(self, one: RefusedSettlement) -> bool:
        pairs = None if one.error is None else may_be_refused(one.error, one.command, self._commands.keys)
        if pairs is not None:
            pairs = pairs - one.allowed or pairs
        blame = Blame(one.code, pairs, one.ways[one.place].carries if one.ways else None)
        if one.lesser is not None:
            lesser, one.lesser = one.lesser, None
            self._lines.may_become_dead(one)
            try:
                one.ways += lesser(f"{one.what} was refused {times(one.refusals)}: {one.about}")
            except Exception:
                log.exception(
                    "%r has no other way to be settled", one.delivery, event="internal_error", of=one.delivery
                )
        for place in range(one.place + 1, len(one.ways)):
            if one.ways[place].helps(blame):
                one.place = place
                return True
        return False

    def _leave(self, one: RefusedSettlement) -> None:
        """Leave a settlement that is refused in every way, until its cause is mended."""
        one.place = 0
        if not one.held and not one.lasting:
            self._lines.given_up(one, "its lease ends by itself")
            self._remove(one)
            return
        if not one.left:
            one.left = True
            self._left[one] = None
            self._lines.left(one)
            if not one.plain:  # of those, too many to hold are let go: the tier can be settled, so it is read on
                self._waiting[one.delivery.tier] -= 1
                self._note_full()
            self._let_go_of_oldest()
        if not one.gone:
            self._try_at(one, self._clock.elapsed() + LEFT_PAUSE * self._random.uniform(0.75, 1.0))

    def _let_go_of_oldest(self) -> None:
        if len(self._left) > MOST_LEFT and (oldest := next((one for one in self._left if not one.plain), None)):
            self._lines.given_up(oldest, f"it is held no longer: more than {MOST_LEFT} settlements are refused")
            self._remove(oldest)
            self._let_go(oldest.delivery)
            self._let_go_by_tier[oldest.delivery.tier] += oldest.held

    def _remove(self, one: RefusedSettlement) -> None:
        one.gone = True
        del self._all[one]
        was_left = self._left.pop(one, one) is None
        if not was_left or one.plain:
            self._waiting[one.delivery.tier] -= 1
            self._note_full()

    def _note_full(self) -> None:
        full = frozenset(tier for tier, number in enumerate(self._waiting) if number >= MOST_TRIED)
        if full != self.full:
            self.full = full
            self.on_change()


def not_built(error: Exception) -> BrokerError:
    """Return why a command was not sent: the command cannot be built, or not now."""
    return BrokerError(f"{type_name(error)}: {str_of(error)}", code=SHORTAGE if is_shortage(error) else UNPACKABLE)
