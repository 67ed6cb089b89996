"""`QueueMonitor`: one snapshot in two round trips.

The first asks for what there is now, in one transaction, so that a task on its way from one
place to another is seen in exactly one. The second fetches the counters of the last windows,
which workers write with their acknowledgements, and the head of what waits. Every command costs
the server O(1), or O(workers) or O(tasks) for lists of those; nothing scans, nothing counts.

How much waits: an entry that was acknowledged is deleted in the same step, so what lies in a
stream is either waiting or pending, and depth = XLEN - pending. (The group's own `lag` turns nil
once a waiting entry is deleted.) What a worker handed back is pending in the name of nobody: it
waits. With several groups an entry stays until all have acknowledged it; XLEN - pending is then
an upper bound, until this group has been given everything, when it is exactly what was handed back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from streamq.broker import RedisBroker
from streamq.client import Command
from streamq.errors import BrokerError, ConfigurationError
from streamq.monitoring.figures import CircuitMetrics, ConsumerMetrics, QueueMetrics, TaskMetrics, TierMetrics, figures
from streamq.queue.server_errors import translated
from streamq.wire.counters import Tally, unpack
from streamq.wire.keys import PARKED, STATS_KEPT, STATS_WINDOW, TierKeys
from streamq.wire.message import entry_ms

_LEAST_COVERED = 1.0  # seconds: less would make a rate of very few tasks look huge
_MOST_CIRCUITS = 100  # that are not closed, and are shown; those that changed last
_PER_TIER = 5  # commands of the first round trip for each tier
_ABSENT = ("no such key", "NOGROUP")


@dataclass(slots=True)
class _Tier:
    """What one tier holds now."""

    keys: TierKeys
    length: int
    delayed: int
    groups: int = 0
    pending: int = 0
    delivered: bytes = b"0-0"
    parked: int = 0
    consumers: dict[str, tuple[int, float]] = field(default_factory=dict)  # name -> pending, idle (s)
    alive: dict[str, float] = field(default_factory=dict)  # name -> until when (Unix s)
    oldest: float = 0.0  # age (s) of the oldest that waits

    @property
    def depth(self) -> int:
        return max(0, self.length - self.pending) + self.parked

    @property
    def processing(self) -> int:
        return max(0, self.pending - self.parked)


class QueueMonitor:
    """Figures of a broker's queue, as its consumer group sees it.

    `window` (s) is how far back throughput, latency and errors reach, from 10 s to 15 minutes.
    Counters lie in buckets of 10 s, and the window begins with the first bucket that lies in it
    whole and has anything in it: after a quiet start figures cover what happened since, and never
    less than one second.

    Raises ConfigurationError for a window that cannot be had.
    """

    def __init__(self, *, broker: RedisBroker, window: float = 60.0) -> None:
        if not STATS_WINDOW <= window <= STATS_KEPT:
            raise ConfigurationError(
                f"window={window!r} cannot be had: give {STATS_WINDOW} to {STATS_KEPT} seconds; counters live no longer"
            )
        self._broker = broker
        self.window = float(window)

    def __repr__(self) -> str:
        return f"<QueueMonitor of {self._broker!r} window={self.window:g}>"

    async def snapshot(self) -> QueueMetrics:
        """Return the figures of this moment. Works on a server without any queue, too.

        Raises BrokerError if the server cannot be used.
        """
        now, dead, named, tiers = await self._present()
        counted, covered, circuits = await self._past(now, named, tiers)
        names = [tier.name for tier in self._broker.tiers]
        by_tier = {name: Tally() for name in names}
        by_task: dict[str, Tally] = {}
        total = Tally()
        for (tier_name, task), tally in counted.items():
            if tier_name in by_tier:  # a broker of one stream alone sees that stream alone
                for sum_ in (total, by_tier[tier_name], by_task.setdefault(task, Tally())):
                    sum_.add(tally)
        return QueueMetrics(
            taken_at=datetime.fromtimestamp(now, UTC), covered_s=covered,
            depth=sum(tier.depth for tier in tiers),
            processing=sum(tier.processing for tier in tiers),
            delayed=sum(tier.delayed for tier in tiers),
            dead_letter_count=dead,
            oldest_wait_s=max(tier.oldest for tier in tiers),
            tiers=MappingProxyType({
                name: TierMetrics(
                    name=name, depth=tier.depth, processing=tier.processing, delayed=tier.delayed,
                    oldest_wait_s=tier.oldest, **figures(by_tier[name], covered),
                )
                for name, tier in zip(names, tiers, strict=True)
            }),
            tasks=MappingProxyType({
                name: TaskMetrics(name=name, **figures(tally, covered)) for name, tally in sorted(by_task.items())
            }),
            consumers=tuple(_consumers(now, tiers)),
            circuits=circuits,
            **figures(total, covered),
        )  # fmt: skip

    # --- the first round trip: what there is now ---------------------------------------------

    async def _present(self) -> tuple[float, int, list[str], list[_Tier]]:
        """Return the server's Unix time, the number of dead letters, circuits to look at, and every tier."""
        keys = self._broker.keys
        commands: list[Command] = [("TIME",), ("XLEN", keys.dead)]
        commands.append(("ZRANGE", keys.circuits, -_MOST_CIRCUITS, -1, "WITHSCORES"))
        for tier in keys.tiers:
            commands += [
                ("XLEN", tier.stream), ("ZCARD", tier.delayed), ("XINFO", "GROUPS", tier.stream),
                ("XINFO", "CONSUMERS", tier.stream, keys.group), ("ZRANGE", tier.alive, 0, -1, "WITHSCORES"),
            ]  # fmt: skip
        (seconds, micros), dead, circuits, *rest = await self._at_once(commands)
        tiers = [self._tier(tier, *rest[at * _PER_TIER : (at + 1) * _PER_TIER]) for at, tier in enumerate(keys.tiers)]
        now = int(seconds) + int(micros) / 1e6
        named = [
            name.decode(errors="replace")
            for name, until in zip(circuits[::2], circuits[1::2], strict=True)
            if float(until) / 1000 > now
        ]
        return now, int(dead), named, tiers

    def _tier(
        self, keys: TierKeys, length: int, delayed: int, groups: Any, consumers: Any, alive: list[bytes]
    ) -> _Tier:
        tier = _Tier(keys, length, delayed, groups=len(groups or ()))
        for group in map(_named, groups or ()):
            if group[b"name"] == self._broker.keys.group.encode():
                tier.pending, tier.delivered = group[b"pending"], group[b"last-delivered-id"]
        for consumer in map(_named, consumers or ()):
            name = consumer[b"name"].decode(errors="replace")
            if name == PARKED:
                tier.parked = consumer[b"pending"]
            else:
                tier.consumers[name] = consumer[b"pending"], consumer[b"idle"] / 1000
        for name, score in zip(alive[::2], alive[1::2], strict=True):
            tier.alive[name.decode(errors="replace")] = float(score) / 1000
        return tier

    async def _at_once(self, commands: list[Command]) -> list[Any]:
        """Carry out commands in one transaction; None stands for what is not there."""
        store = self._broker.store
        whole = (await store.attempt([("MULTI",), *commands, ("EXEC",)]))[-1]
        if isinstance(whole, BrokerError):
            # A server out of memory refuses transactions, of reads as well.
            whole = await store.attempt(commands)
        return [_present(reply) for reply in whole]

    # --- the second: what was counted, and what waits -----------------------------------------

    async def _past(
        self, now: float, named: list[str], tiers: list[_Tier]
    ) -> tuple[dict[tuple[str, str], Tally], float, tuple[CircuitMetrics, ...]]:
        """Return the counters by tier and task, the seconds they cover, and circuits; note the oldest waits."""
        keys, store = self._broker.keys, self._broker.store
        last = int(now // STATS_WINDOW)
        first = last - max(0, int(self.window // STATS_WINDOW) - 1)
        starts = [index * STATS_WINDOW for index in range(first, last + 1)]
        commands: list[Command] = [("HGETALL", keys.stats(start)) for start in starts]
        for tier in tiers:
            # An exclusive range from the last one delivered: the next one, whether it is there now or was then.
            commands.append(("XRANGE", tier.keys.stream, f"({tier.delivered.decode()}", "+", "COUNT", 1))
            if tier.parked:
                commands.append(("XPENDING", tier.keys.stream, keys.group, "-", "+", 1, PARKED))
        commands += [("HGETALL", keys.circuit(name)) for name in named]
        replies = iter([_present(reply) for reply in await store.attempt(commands)])
        windows = [next(replies) or [] for _ in starts]
        for tier in tiers:
            self._note_oldest(tier, now, next(replies), next(replies) if tier.parked else None)
        circuits = tuple(circuit for name in named if (circuit := _circuit(name, next(replies))) is not None)
        counted: dict[tuple[str, str], Tally] = {}
        for flat in windows:
            for key, tally in unpack(zip(flat[::2], flat[1::2], strict=True)).items():
                counted.setdefault(key, Tally()).add(tally)
        begun = next((start for start, flat in zip(starts, windows, strict=True) if flat), last * STATS_WINDOW)
        return counted, max(_LEAST_COVERED, now - begun), circuits

    def _note_oldest(self, tier: _Tier, now: float, waiting: Any, parked: Any) -> None:
        if tier.groups > 1 and not waiting:
            tier.length = tier.pending  # what else lies there is waited for by other groups only
        heads = [row[0] for row in (*(waiting or ()), *(parked or ()))]
        if heads and tier.depth:
            tier.oldest = max(0.0, *(now - entry_ms(head) / 1000 for head in heads))


def _consumers(now: float, tiers: list[_Tier]) -> Iterator[ConsumerMetrics]:
    """Sum up each consumer over the tiers."""
    names = sorted({name for tier in tiers for name in (*tier.consumers, *tier.alive)})
    for name in names:
        seen = [tier.consumers[name] for tier in tiers if name in tier.consumers]
        left = max((tier.alive[name] for tier in tiers if name in tier.alive), default=now) - now
        yield ConsumerMetrics(
            name=name, pending=sum(pending for pending, _ in seen), idle_s=min((idle for _, idle in seen), default=0.0),
            alive_s=left, alive=left > 0,
        )  # fmt: skip


def _circuit(key: str, flat: list[bytes] | None) -> CircuitMetrics | None:
    """Return a circuit as its hash tells of it; None if it is gone, or closed."""
    texts = [part.decode(errors="replace") for part in flat or ()]
    told = dict(zip(texts[::2], texts[1::2], strict=True))
    if told.get("state", "closed") == "closed":
        return None
    return CircuitMetrics(
        name=told.get("name", key), scope="process" if "worker" in told else "fleet", worker=told.get("worker"),
        state=told["state"], failures=int(told.get("failures", 0)), error_type=told.get("error_type", ""),
        error=told.get("error", ""), since=datetime.fromtimestamp(float(told.get("since", 0)) / 1000, UTC),
    )  # fmt: skip


def _present(reply: Any) -> Any:
    """Return a reply, None for a stream or group that is not there. Raises other errors, translated."""
    if isinstance(reply, Exception):
        if any(word in str(reply) for word in _ABSENT) or getattr(reply, "code", "") == "NOGROUP":
            return None
        raise translated(reply)
    return reply


def _named(flat: list[Any]) -> Mapping[bytes, Any]:
    """Return an entry of XINFO by the names of its fields."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
