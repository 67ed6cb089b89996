"""The queue's Redis commands: the only module that speaks them.

Two kinds of doors. *Commands* (`read`, `ack`, `postpone`, ...) are built here and carried out
by the consumer, many in one round trip. *Calls* (`enqueue`, `cancel`, `drained`, ...) are
awaited. Errors of the connection and of the server are translated at this edge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, assert_never

import redis.exceptions

from streamq.client import BlockingConnection, Client, Command, pack_one
from streamq.clock import SYSTEM, Clock
from streamq.errors import BrokerError, BrokerUnavailableError, NotDurableError, OutcomeUnknownError
from streamq.queue.acceptance import Accepted, Guarded, Newest, accepted_of
from streamq.queue.server_errors import translated
from streamq.scripts import step
from streamq.tasks.task import Durable
from streamq.wire.delivery import Delivery
from streamq.wire.keys import PARKED, STATS_KEPT, Keys, TierKeys
from streamq.wire.message import MAX_PAYLOAD, Field, as_text, pack_flat
from streamq.wire.message import milliseconds as _ms
from streamq.wire.side_effects import Consequence, Free, Join, Later, Send, Tell, of_start
from streamq.wire.tiers import Tier

_CONFIRM_WITHIN = 0.8  # of the reply timeout: the server must answer before we give it up
_WAITS: Mapping[Durable, Command] = {"replica": ("WAIT", 1), "aof": ("WAITAOF", 1, 0)}
MOST_ACKS = 1000  # entries that one `ack` acknowledges: a script holds up all others
MOST_RESULTS = 500  # and results that one `ack_results` keeps
_SCRIPT_ENTRIES = 500  # ids for one script: Lua's unpack allows some thousands


@dataclass(frozen=True, slots=True)
class DeadLetterBound:
    """How much the dead letter stream keeps: entries, and seconds (0: of any age)."""

    max_size: int = 10_000
    max_age: float = 0.0


class Store:
    """The commands of one namespace, seen as one consumer group.

    `bound` is asked for the bound of the dead letter stream at each death; `max_payload` (bytes) bounds what one
    step of a workflow sends to the next.
    """

    def __init__(
        self, client: Client, keys: Keys, tiers: Sequence[Tier], *,
        bound: Callable[[], DeadLetterBound] = DeadLetterBound, clock: Clock = SYSTEM, max_payload: int = MAX_PAYLOAD,
    ) -> None:  # fmt: skip
        self.client = client
        self.keys = keys
        self.tiers = tuple(tiers)
        self.clock = clock
        self.max_payload = max_payload
        self._bound = bound
        self._results = keys.result("").encode()
        self._by_stream = {keys.stream.encode(): tier for tier, keys in enumerate(keys.tiers)}

    def __repr__(self) -> str:
        return f"<Store {self.keys.namespace} group={self.keys.group} on {self.client!r}>"

    # --- producing ---------------------------------------------------------------------------

    def add(self, tier: int, fields: Sequence[Field]) -> bytes:
        """Return the command that appends a message to its stream, packed."""
        return pack_one(("XADD", self.keys.tiers[tier].stream, "*", *fields))

    def add_guarded(self, wanted: Guarded) -> Command:
        """Return the command that accepts a task once, now or at its time."""
        keys = self.keys.tiers[wanted.tier]
        due = -1 if wanted.delay <= 0 else 0
        if wanted.due is not None:
            due = max(1, _ms(wanted.due))
        return step("enqueue")(
            [keys.stream, keys.delayed, keys.messages, *(key for key, _ in wanted.guards)],
            wanted.task_id, _ms(wanted.delay), due, self.keys.wake, wanted.packed,
            *(_ms(ttl) for _, ttl in wanted.guards), *wanted.fields,
        )  # fmt: skip

    def add_newest(self, wanted: Newest) -> Command:
        """Return the command that accepts a task for whose deduplication key the newest wins."""
        due = -1 if wanted.delay <= 0 else 0
        if wanted.due is not None:
            due = max(1, _ms(wanted.due))
        rest = wanted.packed.removeprefix(b"[")
        return step(wanted.mode)(
            [
                self.keys.dedup(wanted.key), self.keys.latest(wanted.key), self.keys.accepted(wanted.task_id),
                *(name for keys in self.keys.tiers for name in (keys.stream, keys.delayed, keys.messages)),
            ],
            wanted.task_id, wanted.tier + 1, _ms(wanted.delay), due, _ms(wanted.ttl),
            -1 if wanted.bound is None else _ms(wanted.bound), _ms(wanted.accepted), self.keys.wake, rest,
            *wanted.fields,
        )  # fmt: skip

    def start(
        self, workflow_id: str, also: Sequence[Consequence], guards: Sequence[str] = (), *, accepted: float
    ) -> Command:
        """Return the command that sends a workflow's first steps, once for each guard key within `accepted` seconds."""
        names, values = self._consequences(also)
        return step("start")([*guards, *names], workflow_id, len(guards), _ms(accepted), *values)

    async def enqueue(self, commands: Sequence[Command]) -> Iterator[Accepted]:
        """Carry out enqueue commands in one round trip, and return one answer for each, as they are asked for.

        The answer of `add` has no task id: the sender knows it.

        Raises BrokerUnavailableError if nothing was sent, OutcomeUnknownError if it may have
        been, BrokerError if the server refused one (those before it were accepted).
        """
        return _all_accepted(await self._send(commands))

    async def enqueue_durably(self, commands: Sequence[Command], wanted: Collection[Durable]) -> Iterator[Accepted]:
        """As `enqueue`, and wait until what was accepted is on a replica, in the append-only file, or both.

        Raises NotDurableError if that was not confirmed within 4/5 of the reply timeout, and
        BrokerError, before anything is sent, if the server cannot know it.
        """
        if "aof" in wanted and not await self._can_wait_for_aof():
            raise BrokerError("durable='aof': this server has no WAITAOF (Redis 7.2, Valkey); use appendfsync always")
        limit = _ms(self.client.reply_timeout * _CONFIRM_WITHIN)
        waits = {name: (*_WAITS[name], limit) for name in _WAITS if name in wanted}
        written = ("SET", self.keys.durable, "1", "PX", 1000)
        replies = await self._send([*commands, written, *waits.values()], self.client.call_apart)
        accepted = _all_accepted(replies[: len(commands)])
        for name, reply in zip(waits, replies[len(commands) + 1 :], strict=True):
            confirmed = reply[0] if isinstance(reply, list) else reply
            if isinstance(confirmed, Exception):
                raise NotDurableError(name, str(confirmed))
            if not confirmed:
                raise NotDurableError(name, f"no {name} confirmed it within {limit / 1000:g} s")
        return accepted

    async def _can_wait_for_aof(self) -> bool:
        try:
            return (await self.client.facts()).has("WAITAOF")
        except redis.exceptions.RedisError as error:
            raise translated(error) from error

    async def cancel(
        self, tier: int, task_id: str, entry_id: str, also: Sequence[Consequence] = (),
        members: Sequence[str] | None = None,
    ) -> str:  # fmt: skip
        """Withdraw a task that was not delivered yet; return what it was (see cancel.lua).

        `also` is what follows from its withdrawal, `members` are what it may be delayed as.
        """
        members = (task_id, self.member(task_id)) if members is None else members
        keys = self.keys.tiers[tier]
        names, values = self._consequences(also)
        reply = await self.one(step("cancel")(
            [keys.stream, keys.delayed, keys.messages, *names],
            entry_id, self.keys.wake, len(members), *members, *values,
        ))  # fmt: skip
        return str(reply, "ascii")

    # --- reading -----------------------------------------------------------------------------

    async def ensure_groups(self) -> None:
        """Make every stream and its consumer group, from the beginning, where they are missing.

        Raises BrokerError (WRONGTYPE) if one of them, or a key into which a settlement moves what it takes from them,
        holds something of somebody else's.
        """
        group, dead = self.keys.group, self.keys.dead
        asked: list[tuple[str, str, Command]] = [
            (keys.stream, "stream", ("XGROUP", "CREATE", keys.stream, group, "0", "MKSTREAM"))
            for keys in self.keys.tiers
        ]
        made = len(asked)
        # By commands that are used anyway: the server keeps 25 KB for each that was ever.
        asked.append((dead, "stream", ("XINFO", "GROUPS", dead)))
        for keys in self.keys.tiers:
            asked.append((keys.delayed, "sorted set", ("ZRANGE", keys.delayed, 0, 0)))
            asked += ((name, "hash", ("HMGET", name, "")) for name in (keys.messages, keys.crashes))
        replies = await self._send([command for _, _, command in asked])
        for place, ((name, kind, _), reply) in enumerate(zip(asked, replies, strict=True)):
            if not isinstance(reply, Exception):
                continue
            error = translated(reply)
            if error.code == "WRONGTYPE":
                why = f"the key {name!r} is no {kind}; rename what is there, or choose another namespace"
                raise BrokerError(f"WRONGTYPE: {why}", code="WRONGTYPE")
            if place < made and error.code != "BUSYGROUP":
                raise error

    def read(self, consumer: str, tiers: Iterable[int], count: int, block: float | None = None) -> Command:
        """Return the command that reads up to `count` new entries of each tier.

        `block` is in seconds; None does not wait.
        """
        streams = [self.keys.tiers[tier].stream for tier in tiers]
        wait = () if block is None else ("BLOCK", max(1, _ms(block)))
        return (
            "XREADGROUP", "GROUP", self.keys.group, consumer, "COUNT", count, *wait,
            "STREAMS", *streams, *[">"] * len(streams),
        )  # fmt: skip

    def deliveries(self, reply: Any) -> dict[int, list[Delivery]]:
        """Return what an XREADGROUP gave, by tier."""
        found: dict[int, list[Delivery]] = {}
        for name, entries in reply or ():
            tier = self._by_stream.get(name)
            if tier is None:
                raise BrokerError(f"the server answered with the stream {name!r}, which was not asked for")
            label = self.tiers[tier].name
            # An entry that was deleted while it was delivered comes as [id, nil].
            found[tier] = [Delivery(tier, label, entry[0], entry[1]) for entry in entries if entry[1] is not None]
        return found

    # --- settling ----------------------------------------------------------------------------

    def ack(self, entries: Sequence[tuple[int, Sequence[bytes]]], *, each: bool = False) -> Command:
        """Return the command that acknowledges entries of some tiers, `MOST_ACKS` of them at most.

        Answers for each tier those that came late. Which these are it says only if `each`; else there is one b"" for
        each of them.
        """
        tiers = self.keys.tiers
        names = [name for tier, _ in entries for name in (tiers[tier].stream, tiers[tier].crashes)]
        flat: list[Field | int] = []
        for _, ids in entries:
            flat += (len(ids), *ids)
        return step("ack")(names, self.keys.group, "1" if each else "0", *flat)

    def ack_results(
        self, tier: int, ids: Sequence[bytes], keys: Sequence[bytes], ttls: Sequence[float], results: Sequence[bytes]
    ) -> Command:
        """Return the command that acknowledges entries, `MOST_RESULTS` of them at most, and keeps their results.

        Of each its id, the key of its result (see `result_key`), the TTL of that in seconds, and the result (JSON).
        The answer names those that came late.
        """
        of_tier = self.keys.tiers[tier]
        runs = [(ttls[0], len(ids))]  # of neighbours with the same TTL; most often there is one
        if ttls.count(ttls[0]) < len(ids):
            runs = [(ttl, len(list(some))) for ttl, some in groupby(ttls)]
        flat = [part for ttl, count in runs for part in (max(1, _ms(ttl)), count)]
        return step("ack_results")(
            [of_tier.stream, of_tier.crashes, *keys], self.keys.group, len(flat), *flat, *ids, *results
        )

    def result_key(self, delivery: Delivery) -> bytes:
        """Return the key, and the channel, of the result of a delivery."""
        return self._results + (delivery.fields.get(b"id") or delivery.entry_id)

    def finish(self, tier: int, entry_id: bytes, also: Sequence[Consequence]) -> Command:
        """Return the command that acknowledges one entry and carries out what follows; answers as `ack_results`."""
        keys = self.keys.tiers[tier]
        names, values = self._consequences(also)
        return step("finish")([keys.stream, keys.crashes, *names], self.keys.group, entry_id, *values)

    async def started(self, delivery: Delivery) -> None:
        """Carry out what follows from the start of a task, where anything does."""
        if also := of_start(delivery):
            names, values = self._consequences(also)
            with suppress(BrokerError):  # it is said again with the end of the task
                await self.one(step("started")(names, *values))

    def _consequences(self, wanted: Sequence[Consequence]) -> tuple[list[str], list[Field | int]]:
        """Return the KEYS and the ARGV of what `carry_out` will do."""
        names: list[str] = []
        values: list[Field | int] = []
        for one in wanted:
            keys, arguments = self._consequence(one)
            names += keys
            values += (type(one).__name__.lower(), len(keys), len(arguments), *arguments)
        return names, values

    def _consequence(self, wanted: Consequence) -> tuple[list[str], list[Field | int]]:
        match wanted:
            case Tell(task_id, ttl, payload):
                return [self.keys.result(task_id)], [max(1, _ms(ttl)), payload]
            case Free(key, task_id):
                names = [self.keys.dedup(key), self.keys.latest(key), *(keys.delayed for keys in self.keys.tiers)]
                return names, [task_id, self.keys.wake]
            case Send(stream, fields):
                return [stream], list(fields)
            case Later(stream, task_id, fields, delay):
                delayed = TierKeys.of(stream, self.keys.group)
                packed = pack_flat(as_text(fields))
                member = self.member(task_id)
                return [delayed.delayed, delayed.messages], [member, _ms(delay), self.keys.wake, packed]
            case Join(stream, task_id):
                delayed = TierKeys.of(stream, self.keys.group)
                names = [self.keys.join(task_id), stream, delayed.delayed, delayed.messages]
                return names, [
                    wanted.index, wanted.result, wanted.size, _ms(wanted.keep), self.member(task_id), _ms(wanted.delay),
                    self.keys.wake, wanted.rest, *wanted.fields,
                ]  # fmt: skip
            case _:
                assert_never(wanted)

    def postpone(self, consumer: str, delivery: Delivery, delay: float, packed: bytes) -> Command:
        """Return the command that moves a held delivery to the delayed set; answers 1 or 0."""
        keys = self.keys.tiers[delivery.tier]
        member = self.member(delivery.task_id)
        return step("postpone")(
            [keys.stream, keys.crashes, keys.delayed, keys.messages],
            self.keys.group, consumer, delivery.entry_id, _ms(delay), member, packed, self.keys.wake,
        )  # fmt: skip

    def member(self, task_id: str) -> str:
        """Return what a retry is delayed as: it belongs to its group, and another may delay the same task."""
        return f"{self.keys.group}:{task_id}"

    def bury(
        self, consumer: str, delivery: Delivery, fields: Sequence[Field], also: Sequence[Consequence] = ()
    ) -> Command:
        """Return the command that moves a held delivery to the dead letters, and what follows; answers 1 or 0."""
        keys = self.keys.tiers[delivery.tier]
        names, values = self._consequences(also)
        bound = self._bound()
        return step("dead")(
            [keys.stream, keys.crashes, self.keys.dead, *names],
            self.keys.group, consumer, delivery.entry_id, bound.max_size, _ms(bound.max_age), len(fields),
            *fields, *values,
        )  # fmt: skip

    def release(self, consumer: str, tier: int, ids: Sequence[bytes], idle: float) -> list[Command]:
        """Return the commands that hand held deliveries back to whoever comes first."""
        stream = self.keys.tiers[tier].stream
        return [
            step("release")(
                [stream],
                self.keys.group,
                consumer,
                PARKED,
                _ms(idle),
                self.keys.wake,
                *ids[at : at + _SCRIPT_ENTRIES],
            )
            for at in range(0, len(ids), _SCRIPT_ENTRIES)
        ]

    async def release_all(self, consumer: str, idle: float, *, but: Collection[bytes] = ()) -> None:
        """Hand back whatever is pending for this consumer, known to it or not, but for some."""
        for tier, keys in enumerate(self.keys.tiers):
            start = "-"
            page = (_SCRIPT_ENTRIES, consumer)
            while rows := await self.one(("XPENDING", keys.stream, self.keys.group, start, "+", *page)):
                if ids := [row[0] for row in rows if row[0] not in but]:
                    await self.call(self.release(consumer, tier, ids, idle))
                start = "(" + rows[-1][0].decode()

    def count(self, at: float, counters: dict[str, int]) -> Command:
        """Return the command that adds counters to the window of this time (Unix seconds)."""
        flat = [part for pair in counters.items() for part in pair]
        return step("count")([self.keys.stats(at)], STATS_KEPT, *flat)

    # --- the end -----------------------------------------------------------------------------

    async def drained(self, horizon: float) -> bool:
        """Is everything settled by this group, and nothing delayed by less than `horizon` seconds?"""
        soon = f"{(self.clock.now() + horizon) * 1000:.0f}"
        commands: list[Command] = []
        for keys in self.keys.tiers:
            commands += [
                ("XLEN", keys.stream), ("XINFO", "GROUPS", keys.stream), ("XINFO", "STREAM", keys.stream),
                ("ZCOUNT", keys.delayed, "-inf", soon),
            ]  # fmt: skip
        replies = await self.call(commands)
        for length, groups, stream, delayed in zip(*(replies[at::4] for at in range(4)), strict=True):
            if delayed or (length and not self._caught_up(groups, stream)):
                return False
        return True

    def _caught_up(self, groups: list[list[Any]], stream: list[Any]) -> bool:
        last = dict(zip(stream[::2], stream[1::2], strict=False))[b"last-generated-id"]
        for flat in groups:
            group = dict(zip(flat[::2], flat[1::2], strict=False))
            if group[b"name"] == self.keys.group.encode():
                return bool(group[b"pending"] == 0 and group[b"last-delivered-id"] == last)
        return False

    # --- plumbing ----------------------------------------------------------------------------

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands in one round trip; raises the first error of any, translated."""
        replies = await self.attempt(commands)
        for reply in replies:
            if isinstance(reply, BrokerError):
                raise reply
        return replies

    async def one(self, command: Command) -> Any:
        """Carry out one command; raises its error, translated."""
        return (await self.call([command]))[0]

    async def attempt(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands in one round trip; errors of the server stand in their places."""
        return [translated(reply) if isinstance(reply, Exception) else reply for reply in await self._send(commands)]

    async def blocked(
        self, connection: BlockingConnection, command: Command, *, block: float, on_stranded: Callable[[Any], None]
    ) -> Any:
        """Carry out a command that blocks at most `block` seconds (see BlockingConnection.read)."""
        try:
            reply = await connection.read(command, block=block, on_stranded=on_stranded)
        except redis.exceptions.RedisError as error:
            raise translated(error) from error
        if isinstance(reply, Exception):
            raise translated(reply)
        return reply

    async def _send(
        self, commands: Sequence[Command], call: Callable[[Sequence[Command]], Awaitable[list[Any]]] | None = None
    ) -> list[Any]:
        try:
            return await (call or self.client.call)(commands)
        except redis.exceptions.RedisError as error:
            raise translated(error) from error


def _all_accepted(replies: list[Any]) -> Iterator[Accepted]:
    """Return what the replies to an enqueue say, one by one; raises the first error of any, translated."""
    errors = [translated(reply) for reply in replies if isinstance(reply, Exception)]
    if not errors:
        return map(accepted_of, replies)
    if len(errors) < len(replies) and isinstance(errors[0], BrokerUnavailableError):
        raise OutcomeUnknownError(f"some of these tasks were accepted, others not sent: {errors[0]}")
    raise errors[0]
