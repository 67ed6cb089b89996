"""Commands that settle deliveries: acknowledge, retry, dead-letter, release; and the command that adds counters.

They are built from keys alone; nothing here sends. Each is one atomic step. A step that moves a delivery acts only if
the consumer still holds it. `consumer.settling` decides when they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from streamq.client import Command
from streamq.queue.side_effect_arguments import side_effect_arguments
from streamq.scripts import step
from streamq.wire.dead_letter_fields import DeadLetterBound
from streamq.wire.delivery import Delivery
from streamq.wire.keys import RELEASED_CONSUMER, STATS_KEPT, TOTALS_KEPT, Keys
from streamq.wire.message import Field, milliseconds
from streamq.wire.side_effects import SideEffect
from streamq.wire.signing import Signer

MOST_ACKS = 1000  # entries of one `ack`: no other command runs during a script
MOST_RESULTS = 500  # results of one `ack_results`
TO_BE_CANCELLED = 2  # the answer of `postpone` and `dead_letter` about an entry with that mark, which is still held
NOBODY = 2  # the answer of `skip` about an entry that nobody else would run, nor dead-letter
MOST_IDS = 500  # ids of one `release`: Lua's unpack allows some thousands


class SettleCommands:
    """The settle commands of one consumer group, for one set of keys.

    `bound` returns the bound of the dead letter stream; it is called for each dead letter. `signer` signs the messages
    that side effects send.
    """

    def __init__(
        self, keys: Keys, *, bound: Callable[[], DeadLetterBound] = DeadLetterBound, signer: Signer | None = None
    ) -> None:
        self.keys = keys
        self._signer = signer
        self._bound = bound
        self._results = keys.result("").encode()

    def __repr__(self) -> str:
        return f"<SettleCommands {self.keys.namespace} group={self.keys.group}>"

    def ack(self, entries: Sequence[tuple[int, Sequence[bytes]]], *, per_entry: bool = False) -> Command:
        """Return the command that acknowledges entries of some tiers, at most `MOST_ACKS`.

        It answers for each tier which entries had been settled before. With `per_entry` it gives their ids, else
        one b"" for each.
        """
        tiers = self.keys.tiers
        names = [name for tier, _ in entries for name in (tiers[tier].stream, tiers[tier].crashes)]
        flat: list[Field | int] = []
        for _, ids in entries:
            flat += (len(ids), *ids)
        return step("ack")(names, self.keys.group, "1" if per_entry else "0", *flat)

    def ack_results(
        self, tier: int, ids: Sequence[bytes], keys: Sequence[bytes], ttls: Sequence[float], results: Sequence[bytes]
    ) -> Command:
        """Return the command that acknowledges entries, at most `MOST_RESULTS`, and keeps their results.

        Each entry has an id, the key of its result (see `result_key`), that key's TTL in seconds, and the result
        (JSON). It answers with the ids of those that had been settled before.
        """
        of_tier = self.keys.tiers[tier]
        runs = [(ttls[0], len(ids))]  # of neighbours with the same TTL; usually there is one
        if ttls.count(ttls[0]) < len(ids):
            runs = [(ttl, len(list(some))) for ttl, some in groupby(ttls)]
        flat = [part for ttl, count in runs for part in (max(1, milliseconds(ttl)), count)]
        return step("ack_results")(
            [of_tier.stream, of_tier.crashes, *keys], self.keys.group, len(flat), *flat, *ids, *results
        )

    def result_key(self, delivery: Delivery) -> bytes:
        """Return the name of the key, and of the channel, of the result of a delivery."""
        return self._results + (delivery.fields.get(b"id") or delivery.entry_id)

    def ack_side_effects(self, tier: int, entry_id: bytes, also: Sequence[SideEffect]) -> Command:
        """Return the command that acknowledges one entry and carries out side effects; answers as `ack_results`."""
        keys = self.keys.tiers[tier]
        names, values = side_effect_arguments(self.keys, also, self._signer)
        return step("ack_side_effects")([keys.stream, keys.crashes, *names], self.keys.group, entry_id, *values)

    def task_started(self, also: Sequence[SideEffect]) -> Command:
        """Return the command that carries out the side effects of a task's start."""
        names, values = side_effect_arguments(self.keys, also, self._signer)
        return step("task_started")(names, *values)

    def skip(self, consumer: str, delivery: Delivery) -> Command:
        """Return the command that acknowledges a held delivery of another group without a run.

        It answers 1 or 0, or `NOBODY`: the group does not exist, no other one needs the entry, and it is still held.
        """
        keys = self.keys.tiers[delivery.tier]
        return step("skip")(
            [keys.stream, keys.crashes], self.keys.group, consumer, delivery.entry_id, delivery.group or b""
        )

    def postpone(self, consumer: str, delivery: Delivery, delay: float, packed: bytes) -> Command:
        """Return the command that moves a held delivery to the delayed set, for `delay` seconds.

        It answers 1 or 0, or `TO_BE_CANCELLED`.
        """
        keys = self.keys.tiers[delivery.tier]
        return step("postpone")(
            [keys.stream, keys.crashes, keys.delayed, keys.messages],
            self.keys.group, consumer, delivery.entry_id, milliseconds(delay),
            self.keys.retry_member(delivery.task_id), packed, self.keys.wake,
        )  # fmt: skip

    def dead_letter(
        self, consumer: str, delivery: Delivery, fields: Sequence[Field], also: Sequence[SideEffect] = (), *,
        cancellable: bool = False,
    ) -> Command:  # fmt: skip
        """Return the command that moves a held delivery to the dead letters, with side effects.

        It answers 1 or 0, or, if it is `cancellable`, `TO_BE_CANCELLED`.
        """
        keys = self.keys.tiers[delivery.tier]
        names, values = side_effect_arguments(self.keys, also, self._signer)
        bound = self._bound()
        return step("dead_letter")(
            [keys.stream, keys.crashes, self.keys.dead, self.keys.totals, *names],
            self.keys.group, consumer, delivery.entry_id, bound.max_size, milliseconds(bound.max_age), bound.max_bytes,
            TOTALS_KEPT, int(cancellable), len(fields), *fields, *values,
        )  # fmt: skip

    def release(self, consumer: str, tier: int, ids: Sequence[bytes], idle: float) -> list[Command]:
        """Return the commands that release held deliveries: any consumer may take them at once.

        `idle` (s) is the idle time that they get: the visibility timeout.
        """
        stream = self.keys.tiers[tier].stream
        fixed = (self.keys.group, consumer, RELEASED_CONSUMER, milliseconds(idle), self.keys.wake)
        return [step("release")([stream], *fixed, *ids[at : at + MOST_IDS]) for at in range(0, len(ids), MOST_IDS)]

    def add_counters(self, at: float, counters: Mapping[str, int]) -> Command:
        """Return the command that adds counters to the window of this time (Unix seconds)."""
        flat = [part for pair in counters.items() for part in pair]
        return step("add_counters")([self.keys.stats(at)], STATS_KEPT, *flat)
