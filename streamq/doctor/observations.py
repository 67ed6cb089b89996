"""What an examination saw, as values: no check asks the server anything, all of them judge these.

Times are Unix seconds by the server's clock, durations seconds. What could not be asked is None
or empty; why is in `Facts.refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamq.wire.keys import PARKED, TierKeys

DEFAULT_LEASE = 30.0  # seconds: the visibility timeout of a worker that nobody configured


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server itself. `features` are commands that streamq can make use of, and whether they are there.

    `offset` is how far its clock is ahead of this machine's, give or take `offset_error`.
    `slots` are the cluster slots of the keys.
    """

    product: str = "unknown"
    version: str = ""
    in_process: bool = False
    features: Mapping[str, bool] = field(default_factory=dict)
    round_trips: tuple[float, ...] = ()
    offset: float | None = None
    offset_error: float = 0.0
    info: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    slots: frozenset[int] = frozenset()

    def number(self, name: str) -> int | None:
        """Return a number of INFO, or else of the configuration, None if there is none."""
        text = self.info.get(name) or self.config.get(name) or ""
        return int(text) if text.isascii() and text.removeprefix("-").isdigit() else None


@dataclass(frozen=True, slots=True)
class Denied:
    """A permission that is needed and not there, as an ACL rule (`+xadd`, `~queue:bulk`), and what for."""

    permission: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the user of the URL may do, of what its role needs; nothing was asked if `asked` is 0."""

    user: str = ""
    role: str = "worker"
    asked: int = 0
    denied: tuple[Denied, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group; `alive` is how many of its consumers live, None if nobody can know."""

    name: str
    pending: int
    delivered: str
    alive: int | None = None


@dataclass(frozen=True, slots=True)
class Consumer:
    """A consumer of our group. `until` is when it stops to count as alive, None without any heartbeat."""

    name: str
    pending: int
    idle: float
    until: float | None = None
    lease: float = DEFAULT_LEASE


@dataclass(frozen=True, slots=True)
class Held:
    """A pending entry, who holds it and since when it was not renewed."""

    entry_id: str
    owner: str
    idle: float


@dataclass(frozen=True, slots=True)
class Delayed:
    """The delayed set of a tier and its messages; ids are samples."""

    waiting: int = 0
    messages: int = 0
    overdue: int = 0
    oldest_due: float | None = None
    without_message: tuple[str, ...] = ()
    without_delay: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """One tier: its keys with their types and TTLs (ms; -1 is none), and what lies in them.

    `kinds` and `ttls` are by the field of `TierKeys`. `held` are the entries that were not renewed for long,
    `gone` those pending whose entry is not in the stream, `stranded` those in the stream that the group
    was given and nobody holds: samples of at most `SAMPLE`.
    """

    name: str
    keys: TierKeys
    kinds: Mapping[str, str] = field(default_factory=dict)
    ttls: Mapping[str, int] = field(default_factory=dict)
    length: int = 0
    last_id: str = "0-0"
    groups: tuple[Group, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    waits_since: float | None = None
    held: tuple[Held, ...] = ()
    gone: tuple[str, ...] = ()
    stranded: tuple[str, ...] = ()
    crashes: Mapping[str, str] = field(default_factory=dict)
    delayed: Delayed = Delayed()

    def group(self, name: str) -> Group | None:
        """Return a group by its name."""
        return next((group for group in self.groups if group.name == name), None)

    def waiting(self, group: str) -> int:
        """Return how many entries wait for a worker of this group: not delivered, or handed back."""
        ours = self.group(group)
        parked = sum(consumer.pending for consumer in self.consumers if consumer.name == PARKED)
        return max(0, self.length - (ours.pending if ours else 0)) + parked


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """The dead letter stream. `lately` are deaths of the last hour by reason, `more` if there were more."""

    kind: str = "none"
    size: int = 0
    bound: int = 10_000
    lately: Mapping[str, int] = field(default_factory=dict)
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """What a scan of the namespace met. `scanned` is about how many keys the server looked at; names are samples."""

    scanned: int = 0
    met: int = 0
    complete: bool = True
    unknown: Mapping[str, str] = field(default_factory=dict)  # name -> type
    streams: tuple[str, ...] = ()  # of tiers that this broker does not have
    immortal: tuple[str, ...] = ()  # without the TTL that they should have
    wrong: Mapping[str, str] = field(default_factory=dict)  # documented names of another type -> type


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that was seen. `refused` are the permissions that were missing to look, and for what.

    `late_schedules` are those that nobody ticked, each with the time it was due.
    """

    now: float
    group: str = "workers"
    server: Server = Server()
    rights: Rights = Rights()
    tiers: tuple[TierFacts, ...] = ()
    dead_key: str = "queue:dead"
    dead: DeadLetters = DeadLetters()
    late_schedules: Mapping[str, float] = field(default_factory=dict)
    scan: KeyFacts | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def living(self) -> list[str]:
        """Return the names of the consumers that live, over all tiers."""
        names = (consumer.name for tier in self.tiers for consumer in tier.consumers if self.lives(consumer))
        return list(dict.fromkeys(names))

    def saw(self, key: str, *commands: str) -> bool:
        """Were these commands allowed, and was this key?"""
        return not self.refused.keys() & {f"~{key}", *(f"+{command}" for command in commands)}

    def lives(self, consumer: Consumer) -> bool:
        """Is its heartbeat in time?"""
        return consumer.until is not None and consumer.until > self.now
