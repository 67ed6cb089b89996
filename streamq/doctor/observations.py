"""The values that an examination read. Checks read only these and never the server.

Times are Unix seconds by the server's clock, durations are seconds. A value that could not be read is None
or empty; `Observations.refused` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streamq.middleware.circuit_view import StoredCircuit
from streamq.queue.read_queues import ReadQueues
from streamq.wire.acl import escaped
from streamq.wire.command_line import bring_home, streamq_command, worker_remedy
from streamq.wire.keys import RELEASED_CONSUMER, Keys, TierKeys
from streamq.wire.tiers import DEFAULT_TIERS

DEFAULT_LEASE = 30.0  # seconds: the default visibility timeout of a worker
LAST_MS = f"{2**64 - 1}-"  # the ids of the last ms that there is
SERVING = 60.0  # seconds after its last command that a consumer without a heartbeat counts as one that reads


def is_used_up(last_id: str) -> bool:
    """Is this an id of the last ms that there is? Somebody has written it: no clock has come so far."""
    return last_id.startswith(LAST_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server. `features` are the commands that streamq can use, and whether the server has them.

    `offset` is how far its clock is ahead of this machine's, plus or minus `offset_error`.
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
        """Return a number from INFO, else from the configuration, else None."""
        text = self.info.get(name) or self.config.get(name) or ""
        return int(text) if text.isascii() and text.removeprefix("-").isdigit() else None


@dataclass(frozen=True, slots=True)
class DeniedRight:
    """A missing right as an ACL rule (`+xadd`, `~queue:bulk`), the command that needs it, and the features that do."""

    permission: str
    command: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """The result of checking the rights of a role. `asked` is the number of probes, 0 if there was no check.

    `rules` give all rights that are missing. `unasked` are those among them that could not be asked for, and may be
    there: the server refuses the commands that could do so.
    """

    user: str = ""
    role: str = "worker"
    features: tuple[str, ...] = ()
    asked: int = 0
    denied: tuple[DeniedRight, ...] = ()
    rules: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


def entry_order(entry_id: str) -> tuple[int, int]:
    """Return the id of an entry as numbers that sort as the entries do."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Settled:
    """The oldest entries of a stream that all groups but one have settled.

    All of the stream below the id `before` are such: there are `count`; `before` is empty if the first is none. `apart`
    are such entries behind one that is not. `more`: there may be others, younger than those that were looked at.
    """

    before: str = ""
    count: int = 0
    apart: tuple[str, ...] = ()
    more: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group. `alive` is how many of its consumers are alive, None if unknown.

    `settled` is what all groups but this one have settled. It is read of another group that has no worker.
    """

    name: str
    pending: int
    delivered: str
    alive: int | None = None
    settled: Settled = Settled()


@dataclass(frozen=True, slots=True)
class Consumer:
    """A consumer of the broker's group. It counts as alive until `alive_until`; None if it has no heartbeat."""

    name: str
    pending: int
    idle: float
    alive_until: float | None = None
    lease: float = DEFAULT_LEASE


@dataclass(frozen=True, slots=True)
class StalePending:
    """A pending entry, its consumer, and the seconds since its lease was last renewed."""

    entry_id: str
    consumer: str
    idle: float


@dataclass(frozen=True, slots=True)
class Delayed:
    """The delayed set of a tier and its messages. The ids are samples."""

    waiting: int = 0
    messages: int = 0
    overdue: int = 0
    oldest_due: float | None = None
    without_message: tuple[str, ...] = ()
    without_delay: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierObservations:
    """One tier: its keys with their types and TTLs (ms; -1 is none), and their content.

    The keys of `types` and `ttls` are the fields of `TierKeys`. `stale` are pending entries whose lease was not
    renewed for long. `gone` are pending entries that are not in the stream. `stranded` are entries in the
    stream that were delivered and are not pending. Each is a sample of at most `SAMPLE`.
    """

    name: str
    keys: TierKeys
    types: Mapping[str, str] = field(default_factory=dict)
    ttls: Mapping[str, int] = field(default_factory=dict)
    length: int = 0
    last_id: str = "0-0"
    groups: tuple[Group, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    waits_since: float | None = None
    stale: tuple[StalePending, ...] = ()
    gone: tuple[str, ...] = ()
    stranded: tuple[str, ...] = ()
    crashes: Mapping[str, str] = field(default_factory=dict)
    delayed: Delayed = Delayed()

    def group(self, name: str) -> Group | None:
        """Return the group with this name, None if there is none."""
        return next((group for group in self.groups if group.name == name), None)

    def waiting(self, group: str) -> int:
        """Return how many entries wait for a worker of this group: not delivered, or released."""
        ours = self.group(group)
        parked = sum(consumer.pending for consumer in self.consumers if consumer.name == RELEASED_CONSUMER)
        if len(self.groups) > 1 and ours is not None and self.waits_since is None:
            return parked  # the entries are there for the other groups
        return max(0, self.length - (ours.pending if ours else 0)) + parked

    def orphaned(self, now: float) -> int:
        """Return how many entries dead consumers hold."""
        return sum(one.pending for one in self.consumers if one.alive_until is not None and one.alive_until <= now)

    def is_served(self, now: float) -> bool:
        """Does anybody read this stream? A consumer is alive, or has no heartbeat and did something a moment ago."""
        return any(
            one.idle < SERVING if one.alive_until is None else one.alive_until > now
            for one in self.consumers
            if one.name != RELEASED_CONSUMER
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """The dead letter stream. `recent` counts those of the last hour by reason; `more` says that it stopped early.

    `cut` is how many of these do not have all bytes of their entry. `dropped` is how many a bound has removed.
    """

    kind: str = "none"
    size: int = 0
    bound: int = 10_000
    recent: Mapping[str, int] = field(default_factory=dict)
    more: bool = False
    cut: int = 0
    dropped: int = 0
    totals: str = ""  # the key that has this count
    last_id: str = "0-0"


@dataclass(frozen=True, slots=True)
class OtherStream:
    """A stream of a tier that this broker does not have. `alive` is how many consumers of its groups are alive.

    `alive` is None if unknown, `since` the time of its oldest entry. `has_group`: some worker was there once.
    """

    name: str
    length: int
    alive: int | None
    since: float | None
    has_group: bool = True


@dataclass(frozen=True, slots=True)
class UnknownTask:
    """Delayed tasks of a name that no worker knew that took them, and since when the oldest waits for one."""

    name: str
    count: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyObservations:
    """The result of a scan. `scanned` is about how many keys the server scanned. The names are samples."""

    scanned: int = 0
    met: int = 0
    complete: bool = True
    unknown: Mapping[str, str] = field(default_factory=dict)  # name -> type
    streams: tuple[str, ...] = ()  # streams of tiers that this broker does not have
    unread: int = 0  # keys whose type this user may not read: nothing is known of them
    without_ttl: tuple[str, ...] = ()  # keys without the TTL that they should have
    wrong: Mapping[str, str] = field(default_factory=dict)  # known names with a wrong type -> type
    by_kind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names of keys that have one for each subject
    joins: tuple[str, ...] = ()  # all that were met, no sample: results of members of workflow groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Signatures:
    """How many of the oldest messages are signed. `refused` maps places of those that a worker would refuse to why.

    `checked`: there were keys to check them with.
    """

    signed: int = 0
    unsigned: int = 0
    checked: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LateCause:
    """Why no worker ticks a schedule: its definition is invalid, or its signature may be `refused` by workers."""

    why: str
    refused: bool


def _default_keys() -> Keys:
    return Keys.of("queue", "workers", DEFAULT_TIERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """All values that were read. `refused` maps each permission that was missing to the command that needed it.

    `late_schedules` maps each overdue schedule to its due time, `late_causes` those of which the cause is known to it.
    """

    now: float
    group: str = "workers"
    keys: Keys = field(default_factory=_default_keys)
    server: Server = Server()
    rights: Rights = Rights()
    tiers: tuple[TierObservations, ...] = ()
    dead_key: str = "queue:dead"
    dead: DeadLetters = DeadLetters()
    late_schedules: Mapping[str, float] = field(default_factory=dict)
    late_causes: Mapping[str, LateCause] = field(default_factory=dict)
    unusable_schedules: Mapping[str, str] = field(default_factory=dict)  # name -> why no worker can tick it
    circuits: tuple[StoredCircuit, ...] = ()  # that are not closed
    signatures: Signatures = Signatures()
    scan: KeyObservations | None = None
    other_streams: tuple[OtherStream, ...] = ()  # of those in `scan.streams`
    read_instead: ReadQueues = field(default_factory=ReadQueues)  # if a stream of this queue has no group
    unknown_tasks: tuple[UnknownTask, ...] = ()
    foreign: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # key -> values that streamq did not write
    refused: Mapping[str, str] = field(default_factory=dict)

    def command(self, *words: str, streams: Iterable[str] | None = None) -> str:
        """Return a command of streamq about this queue, or about other streams of its namespace, for a shell."""
        return streamq_command(self.keys, *words, streams=streams)

    def worker_command(self, *, streams: Iterable[str] | None = None, weights: str = "") -> str:
        """Return the command that starts a worker of this queue, or of other streams of its namespace, for a shell.

        A word follows about the broker that a module of it has, or must have.
        """
        return worker_remedy(self.keys, streams=streams, weights=weights)

    def bring_home(self, stream: str) -> str:
        """Return what runs the tasks of a stream that no broker of the modules may have."""
        return bring_home(self.keys, stream)

    def live_consumers(self) -> list[str]:
        """Return the names of the consumers that are alive in any tier."""
        names = (consumer.name for tier in self.tiers for consumer in tier.consumers if self.is_alive(consumer))
        return list(dict.fromkeys(names))

    def never_read(self) -> list[TierObservations]:
        """Return the tiers whose stream has no group."""
        return [tier for tier in self.tiers if not tier.groups and self.could_read(tier.keys.stream, "xinfo|groups")]

    def could_read(self, key: str, *commands: str) -> bool:
        """Did the server allow these commands on this key?"""
        return not self.refused.keys() & {f"~{escaped(key)}", *(f"+{command}" for command in commands)}

    def is_alive(self, consumer: Consumer) -> bool:
        """Is the heartbeat of this consumer in time?"""
        return consumer.alive_until is not None and consumer.alive_until > self.now
