"""Keys: the name of every key of the queue. Nothing else in streamq builds a key name.

The table in `docs/wire-format.md` has the type, the owner and the lifetime of each.

Different names make different keys, in all namespaces together. A key is read from its left: its namespace ends before
the first part (after the first `:`) that is a family of keys, such as `result`. Without such a part it is a stream. So
`RESERVED`, all families, are refused as the name of a tier, and as a later part of a namespace or a stream. They are
taken from the methods below: a new key reserves its name. A group has no `:`, since more may follow it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.wire.names import SEPARATOR, check_name, is_name
from streamq.wire.tiers import Tier

STATS_WINDOW = 10  # seconds that one window of counters covers
STATS_KEPT = 900  # seconds that a window of counters is kept
TOTALS_KEPT = 30 * 24 * 3600  # seconds that the totals of a group are kept after their last change
RELEASED_CONSUMER = "released"  # the consumer that holds released deliveries


@dataclass(frozen=True, slots=True)
class TierKeys:
    """The keys of one tier."""

    stream: str
    delayed: str  # sorted set: task id -> due time in ms
    messages: str  # hash: task id -> message, for the members of `delayed`
    alive: str  # sorted set, of one group: consumer -> until when (ms) it counts as alive
    leases: str  # hash, of one group: consumer -> its visibility timeout (ms)
    crashes: str  # hash, of one group: entry id -> the workers that died holding it

    @classmethod
    def of(cls, stream: str, group: str) -> TierKeys:
        """Return the keys that belong to a stream."""
        return cls(
            stream=stream,
            delayed=f"{stream}:delayed",
            messages=f"{stream}:messages",
            alive=f"{stream}:alive:{group}",
            leases=f"{stream}:leases:{group}",
            crashes=f"{stream}:crashes:{group}",
        )


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one namespace, as one consumer group sees them."""

    namespace: str
    group: str
    tiers: tuple[TierKeys, ...]
    streams: frozenset[str] = frozenset()  # of all tiers of the broker: a worker may serve some of them alone

    @classmethod
    def of(cls, namespace: str, group: str, tiers: Sequence[Tier], also: Iterable[str] = ()) -> Keys:
        """Return the keys of these tiers. `also` are the streams of all tiers of the same broker.

        Raises ConfigurationError for a name that no key may have.
        """
        check_name("namespace", namespace)
        check_name("group", group)
        streams = [tier.stream or f"{namespace}:{tier.name}" for tier in tiers]
        _check_reserved("namespace", namespace)
        for tier, stream in zip(tiers, streams, strict=True):
            _check_reserved("tier" if tier.stream is None else "stream", stream)
            if streams.count(stream) > 1:
                raise ConfigurationError(f"two tiers have the stream {stream!r}: give each its own")
        return cls(
            namespace, group, tuple(TierKeys.of(stream, group) for stream in streams), frozenset((*streams, *also))
        )  # fmt: skip

    def retry_member(self, task_id: str) -> str:
        """Return the member of a delayed retry. It has the group in it: other groups may delay the same task.

        No task id has a `|`, so no other task has this member.
        """
        return f"{self.group}{SEPARATOR}{task_id}"

    @property
    def dead(self) -> str:
        """The dead letter stream."""
        return f"{self.namespace}:dead"

    @property
    def operations(self) -> str:
        """The sorted set of the operations over dead letters: id -> when it began (ms)."""
        return f"{self.namespace}:operations"

    def operation(self, operation_id: str) -> str:
        """Return the hash of one operation over dead letters: what it does, and how far it is."""
        return f"{self.namespace}:operation:{operation_id}"

    @property
    def durable(self) -> str:
        """The string that is written before WAIT, so that the connection has a write to wait for."""
        return f"{self.namespace}:durable"

    @property
    def schedules(self) -> str:
        """The hash of schedules: name -> definition."""
        return f"{self.namespace}:schedules"

    @property
    def ticks(self) -> str:
        """The sorted set of schedules: name -> next tick (Unix ms)."""
        return f"{self.namespace}:ticks"

    @property
    def ticked(self) -> str:
        """The hash of schedules: name -> the last tick that was sent (Unix ms)."""
        return f"{self.namespace}:ticked"

    @property
    def wake(self) -> str:
        """The channel that wakes workers for events that no blocking read shows."""
        return f"{self.namespace}:wake"

    @property
    def circuits(self) -> str:
        """The sorted set of the circuits that are not closed: name -> until when (ms) a monitor reads it."""
        return f"{self.namespace}:circuits"

    def circuit(self, name: str) -> str:
        """Return the hash of one circuit: of the fleet, or of one process."""
        return f"{self.namespace}:circuit:{name}"

    def rate(self, name: str) -> str:
        """Return the hash of the token bucket that a fleet shares."""
        return f"{self.namespace}:rate:{name}"

    @property
    def limits(self) -> str:
        """The sorted set of the concurrency limits in use: name -> when (ms) to check its permits."""
        return f"{self.namespace}:limits"

    def permits(self, name: str) -> str:
        """Return the sorted set of the runs under a concurrency limit: run -> until when (ms) its permit is leased."""
        return f"{self.namespace}:permits:{name}"

    def called(self, name: str) -> str:
        """Return the sorted set of waiting runs that were called: place -> until when (ms) a permit is kept for it."""
        return f"{self.namespace}:called:{name}"

    def line(self, name: str) -> str:
        """Return the sorted set of runs that wait for a permit: place -> since when (microseconds)."""
        return f"{self.namespace}:line:{name}"

    def stats(self, seconds: float) -> str:
        """Return the hash of counters of the window of this time (Unix seconds)."""
        return f"{self.namespace}:stats:{self.group}:{int(seconds // STATS_WINDOW)}"

    @property
    def totals(self) -> str:
        """The hash of what is counted for longer than a window: dead letters that were dropped."""
        return f"{self.namespace}:stats:{self.group}:totals"

    def result(self, task_id: str) -> str:
        """Return the name of the key, and of the channel, of a task's result."""
        return f"{self.namespace}:result:{task_id}"

    def progress(self, task_id: str) -> str:
        """Return the name of the key, and of the channel, of a task's progress."""
        return f"{self.namespace}:progress:{task_id}"

    def accepted(self, task_id: str) -> str:
        """Return the key that makes an enqueue with a task id safe to repeat."""
        return f"{self.namespace}:id:{task_id}"

    def accepted_workflow(self, workflow_id: str) -> str:
        """Return the key that makes the start of a workflow with an id safe to repeat."""
        return f"{self.namespace}:id:{workflow_id}{SEPARATOR}workflow"

    def workflow(self, workflow_id: str) -> str:
        """Return the hash of what is known of a workflow: its steps, and how far each of them is."""
        return f"{self.namespace}:workflow:{workflow_id}"

    def dedup(self, key: str) -> str:
        """Return the string that holds the id of the task that holds a deduplication key."""
        return f"{self.namespace}:dedup:{key}"

    def latest(self, key: str) -> str:
        """Return the hash beside a deduplication key for which the newest wins."""
        return f"{self.namespace}:latest:{key}"

    def join(self, callback_id: str) -> str:
        """Return the hash of the results of the members of a workflow's group, until all of them are there."""
        return f"{self.namespace}:join:{self.group}:{callback_id}"

    def once(self, key: str) -> str:
        """Return the name of the key, and of the channel, of an effect that happens once."""
        return f"{self.namespace}:once:{key}"

    def seen(self, task_id: str) -> str:
        """Return the key that `is_duplicate` sets."""
        return f"{self.namespace}:seen:{task_id}"


def _families(keys: Keys) -> Iterable[str]:
    """Yield the part of each key that says what it is, the same for all names."""
    (tier,) = keys.tiers
    yield from (name.removeprefix(f"{tier.stream}:").split(":")[0] for name in astuple(tier) if name != tier.stream)
    for kind, member in vars(Keys).items():
        made: Any = None
        if isinstance(member, property):
            made = getattr(keys, kind)
        elif inspect.isfunction(member) and not kind.startswith("_"):
            made = member(keys, 0)
        if isinstance(made, str) and made.startswith(f"{keys.namespace}:"):
            yield made.removeprefix(f"{keys.namespace}:").split(":")[0]


RESERVED = frozenset(_families(Keys("n", "g", (TierKeys.of("n:t", "g"),))))
"""The families of keys: no tier has such a name."""


def is_stream_of(keys: Keys, stream: str) -> bool:
    """Is this the stream of a tier of this namespace? A message may send its later steps to no other key."""
    if stream in keys.streams:
        return True
    namespace, _, name = stream.rpartition(":")
    return namespace == keys.namespace and is_name("tier", name) and name not in RESERVED


def _check_reserved(what: str, name: str) -> None:
    """Raise ConfigurationError if this namespace or stream would make keys of something else."""
    first, *later = name.split(":")
    if not first or "" in later:
        raise ConfigurationError(f"{what}={repr_of(name)} cannot be used: give a text between and around each ':'")
    for part in later:
        if part in RESERVED:
            raise ConfigurationError(
                f"{what}={repr_of(name)} cannot be used: {part!r} is a name of streamq's own keys, as are "
                f"{', '.join(sorted(RESERVED - {part}))}"
            )
