"""`QueueMonitor`: one snapshot in two round trips.

The first round trip reads the current state in one transaction, so that a task that moves from one place to
another is counted exactly once. The second reads the counters of the window, which workers write with
their acknowledgements, and the oldest waiting entries. Each command costs the server O(1), or O(workers) or
O(names of tasks) for lists of those. Nothing scans keys or entries. A window that has ended does not change: it is
read once.

Depth: an acknowledged entry is deleted in the same step, so each entry of a stream is waiting or pending,
and depth = XLEN - pending. (The group's `lag` becomes nil when a waiting entry is deleted.) A released entry
is pending for the consumer `RELEASED_CONSUMER`, and it waits. With several groups an entry stays until all have
acknowledged it. XLEN - pending is then an upper bound. When this group has received all entries, its depth is
exactly the number of released entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Self

import anyio

from streamq.broker import RedisBroker
from streamq.client import Command
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import BrokerError
from streamq.middleware.circuit_view import StoredCircuit
from streamq.monitoring.metrics import CircuitMetrics, ConsumerMetrics, QueueMetrics, TaskMetrics, TierMetrics, figures
from streamq.queue.server_errors import translated
from streamq.wire import bounds
from streamq.wire.argument_types import check_type
from streamq.wire.counters import DROPPED, Counters, stored_dropped, unpack
from streamq.wire.keys import RELEASED_CONSUMER, STATS_WINDOW, TierKeys
from streamq.wire.message import entry_ms
from streamq.wire.stored_numbers import LAST_MS

_SETTLED_AFTER = 30.0  # seconds after the end of a window, in which a settlement may still be on its way to it
_MIN_COVERED = 1.0  # seconds: a shorter time would make the rate of a few tasks look huge
_MAX_CIRCUITS = 100  # most circuits in a snapshot: those that changed last
_COMMANDS_PER_TIER = 5  # commands of the first round trip for each tier
_ABSENT_ERRORS = ("no such key", "NOGROUP")
_Window = Mapping[tuple[str, str], Counters]  # by tier and task
_READ_AROUND = ("ZRANGE", "HGETALL")  # heartbeats, circuits, counters: without them the other figures are right


@dataclass(slots=True)
class _TierState:
    """The current state of one tier."""

    keys: TierKeys
    length: int
    delayed: int
    groups: int = 0
    pending: int = 0
    delivered: bytes = b"0-0"
    parked: int = 0
    consumers: dict[str, tuple[int, float]] = field(default_factory=dict)  # name -> pending, idle (s)
    alive: dict[str, float] = field(default_factory=dict)  # name -> end of its heartbeat (Unix s)
    oldest: float = 0.0  # age (s) of the oldest waiting task

    @property
    def depth(self) -> int:
        return max(0, self.length - self.pending) + self.parked

    @property
    def processing(self) -> int:
        return max(0, self.pending - self.parked)


class QueueMonitor:
    """Reads the figures of a broker's queue, as its consumer group sees it.

    `window` is the time that throughput, latency and errors cover, from 10 s to 15 minutes. Counters are in
    buckets of 10 s. The window begins with the first bucket that is completely in it and not empty. So after
    an idle time the figures cover only the time since the first run, but at least one second.

    Raises ConfigurationError for a value that cannot be used.
    """

    def __init__(self, *, broker: RedisBroker, window: float | timedelta = 60.0) -> None:
        self._broker = check_type("broker", broker, RedisBroker, "a RedisBroker")
        self.window = float(bounds.MONITOR_WINDOW.check(window))
        self._ended: dict[int, _Window] = {}  # windows that do not change any more, by their beginning (Unix s)

    def __repr__(self) -> str:
        return f"<QueueMonitor of {self._broker!r} window={self.window:g}>"

    def watch(self, interval: float | timedelta = 1.0) -> Watch:
        """Return an async iterator over snapshots: one at once, then one every `interval` seconds.

        It raises BrokerError if the server cannot be used. Iterate again to go on. Raises ConfigurationError for an
        interval that cannot be used.

        Example:
            async for metrics in monitor.watch(5.0):
                print(metrics.depth, metrics.oldest_wait_s)
        """
        return Watch(self, float(bounds.MONITOR_INTERVAL.check(interval)))

    async def snapshot(self) -> QueueMetrics:
        """Return the current figures. Works on a server without any queue as well.

        Raises BrokerError if the server cannot be used.
        """
        now, dead, circuit_names, tiers = await self._read_current()
        counted, covered, circuits, dropped = await self._read_counters(now, circuit_names, tiers)
        names = [tier.name for tier in self._broker.tiers]
        by_tier = {name: Counters() for name in names}
        by_task: dict[str, Counters] = {}
        total = Counters()
        for (tier_name, task), counters in counted.items():
            for target in (total, by_tier[tier_name], by_task.setdefault(task, Counters())):
                target.add(counters)
        return QueueMetrics(
            taken_at=datetime.fromtimestamp(now, UTC), covered_s=covered,
            depth=sum(tier.depth for tier in tiers),
            processing=sum(tier.processing for tier in tiers),
            delayed=sum(tier.delayed for tier in tiers),
            dead_letter_count=dead,
            dead_letters_dropped=dropped,
            oldest_wait_s=max(tier.oldest for tier in tiers),
            tiers=MappingProxyType({
                name: TierMetrics(
                    name=name, depth=tier.depth, processing=tier.processing, delayed=tier.delayed,
                    oldest_wait_s=tier.oldest, **figures(by_tier[name], covered),
                )
                for name, tier in zip(names, tiers, strict=True)
            }),
            tasks=MappingProxyType({
                name: TaskMetrics(name=name, **figures(counters, covered)) for name, counters in sorted(by_task.items())
            }),
            consumers=tuple(_consumers(now, tiers)),
            circuits=circuits,
            **figures(total, covered),
        )  # fmt: skip

    # --- first round trip: current state ---------------------------------------------

    async def _read_current(self) -> tuple[float, int, list[str], list[_TierState]]:
        """Return the server's Unix time, the number of dead letters, circuits to read, and all tiers."""
        keys = self._broker.keys
        commands: list[Command] = [("TIME",), ("XLEN", keys.dead)]
        commands.append(("ZRANGE", keys.circuits, -_MAX_CIRCUITS, -1, "WITHSCORES"))
        for tier in keys.tiers:
            commands += [
                ("XLEN", tier.stream), ("ZCARD", tier.delayed), ("XINFO", "GROUPS", tier.stream),
                ("XINFO", "CONSUMERS", tier.stream, keys.group), ("ZRANGE", tier.alive, 0, -1, "WITHSCORES"),
            ]  # fmt: skip
        (seconds, micros), dead, circuits, *rest = await self._in_transaction(commands)
        tiers = [
            self._tier(tier, *rest[at * _COMMANDS_PER_TIER : (at + 1) * _COMMANDS_PER_TIER])
            for at, tier in enumerate(keys.tiers)
        ]
        now = int(seconds) + int(micros) / 1e6
        circuits = circuits or []
        circuit_names: list[str] = [
            name.decode(errors="replace")
            for name, until in zip(circuits[::2], circuits[1::2], strict=True)
            if float(until) / 1000 > now
        ]
        return now, int(dead), circuit_names, tiers

    def _tier(
        self, keys: TierKeys, length: int, delayed: int, groups: Any, consumers: Any, alive: list[bytes] | None
    ) -> _TierState:
        tier = _TierState(keys, length, delayed, groups=len(groups or ()))
        for group in map(_as_dict, groups or ()):
            if group[b"name"] == self._broker.keys.group.encode():
                tier.pending, tier.delivered = group[b"pending"], group[b"last-delivered-id"]
        for consumer in map(_as_dict, consumers or ()):
            name = consumer[b"name"].decode(errors="replace")
            if name == RELEASED_CONSUMER:
                tier.parked = consumer[b"pending"]
            else:
                tier.consumers[name] = consumer[b"pending"], consumer[b"idle"] / 1000
        for name, score in zip((alive or ())[::2], (alive or ())[1::2], strict=True):
            tier.alive[name.decode(errors="replace")] = max(0.0, min(float(score), LAST_MS)) / 1000
        return tier

    async def _in_transaction(self, commands: list[Command]) -> list[Any]:
        """Run commands in one transaction. A reply is None for what does not exist, or is somebody else's."""
        store = self._broker.store
        replies = (await store.attempt([("MULTI",), *commands, ("EXEC",)]))[-1]
        if isinstance(replies, BrokerError):
            # A server that is out of memory refuses transactions, even of reads.
            replies = await store.attempt(commands)
        return [self._or_none(command, reply) for command, reply in zip(commands, replies, strict=True)]

    def _or_none(self, command: Command, reply: Any) -> Any:
        """Return a reply, None for what does not exist. Raises other errors, translated.

        Somebody else's key in the place of a stream is an error: it must not look like an empty queue.
        """
        if isinstance(reply, Exception):
            code = getattr(reply, "code", "") or str(reply).partition(" ")[0]
            if any(word in str(reply) for word in _ABSENT_ERRORS) or code == "NOGROUP":
                return None
            if "WRONGTYPE" in (code, str(reply).partition(" ")[0]) and command[0] in _READ_AROUND:
                return None
            raise self._broker.store.explained(translated(reply), command)
        return reply

    # --- second round trip: counters and oldest entries -----------------------------------------

    async def _read_counters(
        self, now: float, circuit_names: list[str], tiers: list[_TierState]
    ) -> tuple[dict[tuple[str, str], Counters], float, tuple[CircuitMetrics, ...], int]:
        """Return counters by tier and task, the seconds that they cover, circuits, and dropped dead letters.

        Set `oldest` of each tier.
        """
        keys, store = self._broker.keys, self._broker.store
        last = int(now // STATS_WINDOW)
        first = last - max(0, int(self.window // STATS_WINDOW) - 1)
        starts = [index * STATS_WINDOW for index in range(first, last + 1)]
        asked = [start for start in starts if start not in self._ended]
        commands: list[Command] = [("HGETALL", keys.stats(start)) for start in asked]
        for tier in tiers:
            # The first entry after the last delivered one of the first round trip: the oldest that waited then.
            commands.append(("XRANGE", tier.keys.stream, f"({tier.delivered.decode()}", "+", "COUNT", 1))
            if tier.parked:
                commands.append(("XPENDING", tier.keys.stream, keys.group, "-", "+", 1, RELEASED_CONSUMER))
        commands += [("HGETALL", keys.totals), *(("HGETALL", keys.circuit(name)) for name in circuit_names)]
        answers = zip(commands, await store.attempt(commands), strict=True)
        replies = iter([self._or_none(command, reply) for command, reply in answers])
        windows = self._windows(now, starts, {start: next(replies) or [] for start in asked})
        for tier in tiers:
            self._set_oldest(tier, now, next(replies), next(replies) if tier.parked else None)
        totals = next(replies) or []
        circuits = tuple(circuit for name in circuit_names if (circuit := _circuit(name, next(replies))) is not None)
        counted: dict[tuple[str, str], Counters] = {}
        for window in windows.values():
            for key, counters in window.items():
                counted.setdefault(key, Counters()).add(counters)
        first_used = next((start for start, window in windows.items() if window), last * STATS_WINDOW)
        dropped = stored_dropped(dict(zip(totals[::2], totals[1::2], strict=True)).get(DROPPED.encode())) or 0
        return counted, max(_MIN_COVERED, now - first_used), circuits, dropped

    def _windows(self, now: float, starts: Sequence[int], read: Mapping[int, list[bytes]]) -> dict[int, _Window]:
        """Return the counters of each window, in order: those that were `read` now, and those that have ended."""
        tiers = frozenset(tier.name for tier in self._broker.tiers)  # of a single stream: the other tiers do not count
        found = {start: unpack(zip(flat[::2], flat[1::2], strict=True), tiers) for start, flat in read.items()}
        windows = {start: found[start] if start in found else self._ended[start] for start in starts}
        ended = now - STATS_WINDOW - _SETTLED_AFTER
        self._ended = {start: window for start, window in windows.items() if start <= ended}
        return windows

    def _set_oldest(self, tier: _TierState, now: float, waiting: Any, parked: Any) -> None:
        if tier.groups > 1 and not waiting:
            tier.length = tier.pending  # the other entries wait only for other groups
        heads = [row[0] for row in (*(waiting or ()), *(parked or ()))]
        if heads and tier.depth:
            tier.oldest = max(0.0, *(now - entry_ms(head) / 1000 for head in heads))


class Watch:
    """Snapshots of a queue, one every `interval` seconds; see `QueueMonitor.watch`."""

    def __init__(self, monitor: QueueMonitor, interval: float) -> None:
        self._monitor = monitor
        self._interval = interval
        self._next = -math.inf  # when (monotonic) the next one is due

    def __repr__(self) -> str:
        return f"<Watch of {self._monitor!r} every {self._interval:g} s>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> QueueMetrics:
        """Return the next snapshot, when it is due. What was missed meanwhile is left out."""
        due = max(self._next, anyio.current_time())
        await anyio.sleep_until(due)
        self._next = due + self._interval
        return await self._monitor.snapshot()


def _consumers(now: float, tiers: list[_TierState]) -> Iterator[ConsumerMetrics]:
    """Yield each consumer with its sums over the tiers."""
    names = sorted({name for tier in tiers for name in (*tier.consumers, *tier.alive)})
    for name in names:
        states = [tier.consumers[name] for tier in tiers if name in tier.consumers]
        alive_s = max((tier.alive[name] for tier in tiers if name in tier.alive), default=now) - now
        yield ConsumerMetrics(
            name=name, pending=sum(pending for pending, _ in states),
            idle_s=min((idle for _, idle in states), default=0.0),
            alive_s=alive_s, alive=alive_s > 0,
        )  # fmt: skip


def _circuit(key: str, flat: list[bytes] | None) -> CircuitMetrics | None:
    """Return a circuit from the fields of its hash, None if it is gone or closed."""
    found = StoredCircuit.read(key, flat)
    if found is None:
        return None
    return CircuitMetrics(
        name=found.name, scope="process" if found.worker is not None else "fleet", worker=found.worker,
        state=found.state.value, failures=found.failures, error_type=found.error_type, error=found.error,
        since=found.since,
    )  # fmt: skip


def _as_dict(flat: list[Any]) -> Mapping[bytes, Any]:
    """Return an entry of XINFO as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


name_remedies(QueueMonitor, "monitor")
