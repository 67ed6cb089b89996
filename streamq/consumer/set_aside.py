"""Settlements that the server refused. They are tried apart, so that they hold up no other task.

A refused settlement leaves the shared round trip and waits here. Its delivery stays held, so its lease is renewed. It
is tried again with backoff. After `allowed` refusals that are its own (a key of another type, a missing right) it is
tried in the *lesser ways* that its settler knows: as a dead letter, with fewer consequences each time. If all of them
are refused it is *left*: it stays pending and held, and all its ways are tried again every `LEFT_PAUSE` seconds, until
somebody mends the cause. Refusals that pass with the state of the server (OOM, NOGROUP) are not counted.

Cost: nothing while nothing is refused. Memory: a tier with `MOST_TRIED` of them is not read, and of those that are left
the oldest beyond `MOST_LEFT` are let go: their leases end, and a worker runs them again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any

import anyio

from streamq.client import Command
from streamq.clock import Clock, ServerClock
from streamq.consumer.round_trip import RoundTrip
from streamq.consumer.shortage import is_shortage
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import BrokerError
from streamq.queue.missing_right import where_refused, with_remedy
from streamq.queue.refused_command import ask_types, keys_of, said, wrong_keys
from streamq.queue.server_errors import CLOSED, SHORTAGE, UNPACKABLE, concerns_server, is_final
from streamq.queue.settle_commands import SettleCommands
from streamq.queue.store import Store
from streamq.tasks.outcome import DeadLetter, Outcome, Postpone, Release, Retry
from streamq.tasks.retry_policy import Backoff
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

TRIES = 5  # refusals of a settlement as it was decided: about 3 s
TRIES_WITHOUT_RIGHT = 7  # the same for a missing right, which may be given back: about 10 s
_ALLOWED = {UNPACKABLE: 1, CLOSED: 2, "NOPERM": TRIES_WITHOUT_RIGHT}  # by code: each closing disturbs all others
LEFT_PAUSE = 30.0  # seconds between two tries of a settlement that is left
MOST_TRIED = 1000  # settlements of one tier that are tried: beyond them the tier is not read
MOST_LEFT = 1000  # settlements that are left: beyond them the oldest are let go
ACK = "the acknowledgement"
_PAUSE = Backoff(base=0.25, factor=2.0, cap=4.0)
_MOST_PER_TRIP = 200
_MOST_NAMED = 10  # in `Worker.health`, and of those that one round trip refused in the log
_MOST_KINDS = 100  # of refusals that are not logged again


@dataclass(frozen=True, slots=True)
class Way:
    """One way to settle a delivery. `command` builds the command, `done` gets the reply of the server."""

    command: Callable[[], Command]
    done: Callable[[Any], object]


@dataclass(slots=True, eq=False)
class RefusedSettlement:
    """A settlement that was refused. `what` names it: "the acknowledgement", "the retry".

    `lesser` returns further ways, given why the first one was refused. None: it has no consequence to leave out.
    `plain`: an acknowledgement of its entry alone, which can go in one command with others of its tier. `held`: its
    delivery is held until it is settled; a release holds nothing. `lasting`: it is tried on although nothing is held.
    """

    delivery: Delivery
    what: str
    ways: list[Way]
    lesser: Callable[[str], Sequence[Way]] | None = None
    plain: bool = False
    held: bool = True
    lasting: bool = False
    refusals: int = 0
    place: int = 0  # of the way that is tried next
    left: bool = False
    announced: bool = False  # did the log say that it may not be settled as it was decided?
    gone: bool = False
    why: str = ""
    code: str = ""
    where: str = ""  # the key that is to blame, if it is known
    command: Command = field(default=(), repr=False)  # that was refused last
    error: BrokerError | None = field(default=None, repr=False)  # of that

    @property
    def about(self) -> str:
        """Why it was refused, with the key that is to blame, and the remedy for a missing right."""
        text = self.why
        if self.where:
            text = f"{text.rstrip('.')}, {self.where}" if self.code == "NOPERM" else f"{text}; {self.where}"
        return with_remedy(text, self.code, "worker")

    def __str__(self) -> str:
        left = ("left pending, " if self.held else "left, ") if self.left else ""
        state = f"{left}refused {_times(self.refusals)}"
        return f"{self.what} of {_name_of(self.delivery)} is {state}: {self.about}"


class SetAside:
    """The refused settlements of one consumer.

    `on_change` is called when another set of tiers is `full`, `let_go` with a delivery that is held no longer.
    """

    def __init__(
        self, commands: SettleCommands, tiers: int, clock: Clock | ServerClock, *,
        let_go: Callable[[Delivery], None], acknowledged: Callable[[int, list[Delivery], Sequence[bytes]], None],
        per_entry: bool, uniform: random.Random,
    ) -> None:  # fmt: skip
        self.full: frozenset[int] = frozenset()  # tiers of which too many are refused to read more
        self.on_change: Callable[[], None] = lambda: None
        self._unnamed: list[RefusedSettlement] = []  # refused for another reason than before, and not logged yet
        self._logged: set[tuple[str, bytes, str]] = set()
        self._commands = commands
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
        """Log what was refused since the last call, with the key that is to blame. Each kind of refusal once."""
        unnamed, self._unnamed = self._unnamed[:_MOST_PER_TRIP], []
        lacking = [(one, (one.error, one.command)) for one in unnamed if one.error and one.code == "NOPERM"]
        places = await store.where_refused([what for _, what in lacking])
        for (one, _), where in zip(lacking, places, strict=True):
            one.where = where
        for one in unnamed[:_MOST_NAMED]:
            if one.code == "WRONGTYPE" and (names := keys_of(one.command)):
                with suppress(BrokerError):
                    one.where = wrong_keys(names, await store.attempt(ask_types(names)), store.keys.namespace)
            kind = (one.what, one.delivery.fields.get(b"task", b"?"), one.why)
            if kind not in self._logged:
                log.warning("%s; it is tried apart, everything else goes on", one)
                self._logged = {*islice(self._logged, _MOST_KINDS - 1), kind}

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
        plain: dict[int, list[RefusedSettlement]] = {}
        for one in chosen:
            if one.plain:
                plain.setdefault(one.delivery.tier, []).append(one)
            else:
                self._load_one(trip, one)
        for tier, some in plain.items():
            for at in range(0, len(some), _MOST_PER_TRIP):
                part = some[at : at + _MOST_PER_TRIP]
                command = self._commands.ack(
                    [(tier, [one.delivery.entry_id for one in part])], per_entry=self._per_entry
                )
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

    # --- replies -----------------------------------------------------------------------------

    def _replied(self, subject: tuple[RefusedSettlement, Command], reply: Any) -> bool:
        one, command = subject
        if isinstance(reply, BrokerError):
            return self._refused(one, reply, command)
        self._remove(one)
        one.ways[one.place].done(reply)
        _say_settled(one)
        return False

    def _acks_replied(self, subject: tuple[list[RefusedSettlement], Command], reply: Any) -> bool:
        some, command = subject
        if isinstance(reply, BrokerError):
            return [self._refused(one, reply, command) for one in some][-1]
        for one in some:
            self._remove(one)
            _say_settled(one)
        self._acknowledged(some[0].delivery.tier, [one.delivery for one in some], reply[0])
        return False

    def _refused(self, one: RefusedSettlement, error: BrokerError, command: Command) -> bool:
        """Decide what becomes of a settlement that was refused once more; True if the server cannot be used."""
        now = self._clock.elapsed()
        if concerns_server(error):
            self._try_at(one, now)
            return True
        one.refusals += 1
        one.command, one.code, one.error = command, error.code, error
        if (why := said(error, command)) != one.why:
            one.why, one.where = why, ""
            if error.code == "NOPERM":  # for now without asking the server, so that no text lacks the key
                one.where = where_refused(error, command, self._commands.keys)
            self._unnamed.append(one)
        final = is_final(error)
        allowed = _ALLOWED.get(error.code, TRIES)
        if not final or (not one.left and not one.place and one.refusals < allowed):
            self._try_at(one, now + _PAUSE.ceiling(one.refusals) * self._random.uniform(0.75, 1.0))
        elif self._has_next_way(one):
            one.place += 1
            self._try_at(one, now)
        else:
            self._leave(one)
        return False

    def _has_next_way(self, one: RefusedSettlement) -> bool:
        if one.lesser is not None:
            lesser, one.lesser = one.lesser, None
            one.announced = True
            try:
                one.ways += lesser(f"{one.what} was refused {_times(one.refusals)}: {one.about}")
            except Exception:
                log.exception("%r has no other way to be settled", one.delivery)
        return one.place + 1 < len(one.ways)

    def _leave(self, one: RefusedSettlement) -> None:
        """Leave a settlement that is refused in every way, until its cause is mended."""
        one.place = 0
        if not one.held and not one.lasting:
            self._remove(one)
            log.error("%s; its lease ends by itself", one)
            return
        if not one.left:
            one.left = one.announced = True
            self._left[one] = None
            log.error("%s", one)
            if not one.plain:  # of those, too many to hold are let go: the tier can be settled, so it is read on
                self._waiting[one.delivery.tier] -= 1
                self._note_full()
            self._let_go_of_oldest()
        if not one.gone:
            self._try_at(one, self._clock.elapsed() + LEFT_PAUSE * self._random.uniform(0.75, 1.0))

    def _let_go_of_oldest(self) -> None:
        if len(self._left) > MOST_LEFT and (oldest := next((one for one in self._left if not one.plain), None)):
            self._remove(oldest)
            self._let_go(oldest.delivery)
            self._let_go_by_tier[oldest.delivery.tier] += oldest.held
            log.error("%r is held no longer: more than %d settlements are refused", oldest.delivery, MOST_LEFT)

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


def _say_settled(one: RefusedSettlement) -> None:
    """Log that the server took a settlement at last, if the log said before that it may not."""
    if one.announced:
        how = "a dead letter, with what could be had" if one.place else "it was decided"
        name = _name_of(one.delivery)
        log.warning("%s of %s is settled after %d refusals, as %s", one.what, name, one.refusals, how)


def _name_of(delivery: Delivery) -> str:
    fields = delivery.fields
    name, given = fields.get(b"task", b"?"), fields.get(b"id") or delivery.entry_id
    return f"{_shown(name)} {_shown(given)} ({delivery.tier_name}, entry {_shown(delivery.entry_id)})"


def _shown(raw: bytes) -> str:
    return raw[:200].decode(errors="backslashreplace")


def _times(count: int) -> str:
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
