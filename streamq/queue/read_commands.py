"""Commands that read deliveries from the streams, and that create the consumer group.

They are built from keys alone; nothing here sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import milliseconds
from streamq.wire.tiers import Tier


@dataclass(frozen=True, slots=True)
class EnsuredGroups:
    """What was missing and was created: `streams` with their group, and `groups` alone, by the name of their stream.

    `refused` is the error with which the server refused to create groups that exist: a full server, or one that is
    read-only, refuses before it looks.
    """

    streams: tuple[str, ...]
    groups: tuple[str, ...]
    refused: BrokerError | None


class ReadCommands:
    """The read commands of one consumer group, for one set of keys. `tiers` are in the order of the keys' tiers."""

    def __init__(self, keys: Keys, tiers: Sequence[Tier]) -> None:
        self.keys = keys
        self._labels = tuple(tier.name for tier in tiers)
        self._by_stream = {tier.stream.encode(): place for place, tier in enumerate(keys.tiers)}

    def __repr__(self) -> str:
        return f"<ReadCommands {self.keys.namespace} group={self.keys.group}>"

    def new_entries(self, consumer: str, tiers: Iterable[int], count: int, block: float | None = None) -> Command:
        """Return the command that reads up to `count` new entries of each tier.

        `block` (s) is how long it waits for an entry, None for not at all.
        """
        streams = [self.keys.tiers[tier].stream for tier in tiers]
        wait = () if block is None else ("BLOCK", max(1, milliseconds(block)))
        return (
            "XREADGROUP", "GROUP", self.keys.group, consumer, "COUNT", count, *wait,
            "STREAMS", *streams, *[">"] * len(streams),
        )  # fmt: skip

    def held_entries(self, consumer: str) -> list[Command]:
        """Return, for each tier, the command that reads the first entry which this consumer holds already."""
        names = [keys.stream for keys in self.keys.tiers]
        return [("XREADGROUP", "GROUP", self.keys.group, consumer, "COUNT", 1, "STREAMS", name, "0") for name in names]

    def deliveries(self, reply: Any) -> dict[int, list[Delivery]]:
        """Return the deliveries in a reply to XREADGROUP, by tier."""
        found: dict[int, list[Delivery]] = {}
        for name, entries in reply or ():
            tier = self._by_stream.get(name)
            if tier is None:
                raise BrokerError(f"the server answered with the stream {name!r}, which was not read")
            label = self._labels[tier]
            # An entry that was deleted during its delivery comes as [id, nil].
            found[tier] = [Delivery(tier, label, entry[0], entry[1]) for entry in entries if entry[1] is not None]
        return found

    def create_groups(self) -> list[tuple[str, Command]]:
        """Return, for each stream, its name and the command that creates it with its group, read from the beginning."""
        group = self.keys.group
        return [
            (keys.stream, ("XGROUP", "CREATE", keys.stream, group, "0", "MKSTREAM")) for keys in self.keys.tiers
        ]  # fmt: skip

    def check_types(self) -> list[tuple[str, str, Command]]:
        """Return, for each key, its name, its type, and a command that is refused (WRONGTYPE) if the type is another.

        These are the keys into which a settlement moves entries. Only commands that are used elsewhere, too: the server
        keeps 25 KB for each kind of command that it was ever sent.
        """
        dead = self.keys.dead
        asked: list[tuple[str, str, Command]] = [(dead, "stream", ("XINFO", "GROUPS", dead))]
        for keys in self.keys.tiers:
            asked.append((keys.delayed, "sorted set", ("ZRANGE", keys.delayed, 0, 0)))
            asked.append((keys.messages, "hash", ("HMGET", keys.messages, "")))
        return asked
