"""The store: the queue on one server. It sends commands, and turns errors into streamq's own.

Commands are built from keys alone, in `enqueue_commands`, `read_commands` and `settle_commands`. A consumer sends many
of them in one round trip. The store holds one set of keys and one client: a second server, or a second slot of a
cluster, is a second store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import redis.exceptions

from streamq.client import BlockingConnection, Client, Command, pack_one
from streamq.clock import SYSTEM, Clock, ServerClock
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, BrokerUnavailableError, NotDurableError, OutcomeUnknownError
from streamq.queue.enqueue_commands import EnqueueCommands, SignedEnqueueCommands
from streamq.queue.enqueue_requests import EnqueueReply, parse_enqueue_reply
from streamq.queue.lost_commands import LostCommands
from streamq.queue.missing_right import (
    Suspect,
    ask_which,
    commands_to_ask_for,
    explained,
    keys_in,
    named_by,
    not_there,
    suspects,
    where_refused,
)
from streamq.queue.read_commands import EnsuredGroups, ReadCommands
from streamq.queue.refusals import Refusals
from streamq.queue.refused_command import ask_types, said, wrong_key, wrong_keys
from streamq.queue.remedies import KEY_OF_OTHERS, advised
from streamq.queue.server_errors import UNPACKABLE, translated
from streamq.queue.settle_commands import MOST_IDS, SettleCommands
from streamq.tasks.options import Durable
from streamq.wire.dead_letter_fields import DeadLetterBound
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import MAX_PAYLOAD, milliseconds
from streamq.wire.rights import Role
from streamq.wire.side_effects import SideEffect, effects_of_start
from streamq.wire.signing import Signer, SigningKeys
from streamq.wire.tiers import Tier

log = SafeLog("streamq")

_CONFIRM_WITHIN = 0.8  # of the reply timeout: the server must answer before the client gives up
_FORGET_REFUSAL_AFTER = 600.0  # seconds after which a limit or a record that was not refused again is named no more
_WAITS: Mapping[Durable, Command] = {"replica": ("WAIT", 1), "aof": ("WAITAOF", 1, 0)}


class Store:
    """The queue of one namespace on one server, as one consumer group sees it.

    `bound` returns the bound of the dead letter stream; it is called for each dead letter. `max_payload` (bytes) bounds
    the messages that the steps of a workflow send. With `signing` every message is signed, and `signer` checks those
    that are read. `role` is that of the program, if it is known: the remedy of a missing right names it. `refusals` has
    what middleware and handlers asked for in vain.
    """

    def __init__(
        self, client: Client, keys: Keys, tiers: Sequence[Tier], *,
        bound: Callable[[], DeadLetterBound] = DeadLetterBound, clock: Clock | ServerClock = SYSTEM,
        max_payload: int = MAX_PAYLOAD, signing: SigningKeys | None = None, role: Role | None = None,
    ) -> None:  # fmt: skip
        self.client = client
        self.keys = keys
        self.role: Role | None = role
        self.tiers = tuple(tiers)
        self.clock = clock if isinstance(clock, ServerClock) else ServerClock(clock)
        self.max_payload = max_payload
        self._lost = LostCommands()
        self.refusals = Refusals(clock=self.clock, forget_after=_FORGET_REFUSAL_AFTER, role=role, keys=keys)
        self.signer = None if signing is None else Signer(signing, namespace=keys.namespace, group=keys.group)
        self.enqueue_commands = (
            EnqueueCommands(keys) if self.signer is None else SignedEnqueueCommands(keys, self.signer)
        )
        self.read_commands = ReadCommands(keys, tiers)
        self.settle_commands = SettleCommands(keys, bound=bound, signer=self.signer)

    def __repr__(self) -> str:
        return f"<Store {self.keys.namespace} group={self.keys.group} on {self.client!r}>"

    # --- producing ---------------------------------------------------------------------------

    async def enqueue(self, commands: Sequence[Command]) -> Iterator[EnqueueReply]:
        """Carry out enqueue commands in one round trip; return an iterator over their answers.

        The answer to a plain command has no task id: the sender knows it. Raises BrokerUnavailableError if nothing was
        sent, OutcomeUnknownError if the commands may have been sent, BrokerError if the server refused one (those
        before it were accepted).
        """
        return await self.all_accepted(commands, await self._send(commands))

    async def enqueue_durably(self, commands: Sequence[Command], wanted: Collection[Durable]) -> Iterator[EnqueueReply]:
        """Do as `enqueue`, and wait until the tasks are on a replica, in the append-only file, or both.

        Raises NotDurableError if the server did not confirm that within 4/5 of the reply timeout, and
        BrokerError, before anything is sent, if the server cannot confirm it.
        """
        if "aof" in wanted and not await self._can_wait_for_aof():
            raise BrokerError("durable='aof': this server has no WAITAOF (Redis 7.2, Valkey); use appendfsync always")
        limit = milliseconds(self.client.reply_timeout * _CONFIRM_WITHIN)
        waits = {name: (*_WAITS[name], limit) for name in _WAITS if name in wanted}
        written = ("SET", self.keys.durable, "1", "PX", 1000)
        replies = await self._send([*commands, written, *waits.values()], self.client.call_on_second_connection)
        accepted = await self.all_accepted(commands, replies[: len(commands)])
        for name, reply in zip(waits, replies[len(commands) + 1 :], strict=True):
            confirmed = reply[0] if isinstance(reply, list) else reply
            if isinstance(confirmed, Exception):
                raise NotDurableError(name, str(self.explained(translated(confirmed), waits[name])))
            if not confirmed:
                raise NotDurableError(name, f"no {name} confirmed it within {limit / 1000:g} s")
        return accepted

    async def compare_clocks(self) -> None:
        """Ask for the server's time. Raises BrokerUnavailableError if it is away.

        If it does not tell its time, what is known of it goes on to count, or this machine's clock.
        """
        asked = self.clock.elapsed()
        try:
            seconds, microseconds = await self.one(("TIME",))
        except BrokerUnavailableError:
            raise
        except BrokerError as error:
            self.clock.give_up()
            log.warning(
                "the server's time is not known, so times are sent by an older comparison of clocks: %s",
                error,
                event="clock_unknown",
            )
        else:
            self.clock.compare(int(seconds) + int(microseconds) / 1e6, asked, self.clock.elapsed())

    async def _can_wait_for_aof(self) -> bool:
        try:
            return (await self.client.server_features()).has("WAITAOF")
        except redis.exceptions.RedisError as error:
            raise translated(error) from error

    async def cancel(
        self, tier: int, task_id: str, entry_id: str, also: Sequence[SideEffect] = (),
        members: Sequence[str] | None = None,
    ) -> str:  # fmt: skip
        """Withdraw a task that was not delivered yet; return where the task was (see cancel.lua).

        Arguments as for `EnqueueCommands.withdraw`.
        """
        reply = await self.one(self.enqueue_commands.withdraw(tier, task_id, entry_id, also, members))
        return str(reply, "ascii")

    # --- consuming ---------------------------------------------------------------------------

    async def ensure_groups(self) -> EnsuredGroups:
        """Create each stream and its consumer group, from the beginning of the stream, where they are missing.

        Raises BrokerError if a group is missing and cannot be created, and (WRONGTYPE) if a stream, or a key into
        which a settlement moves entries, exists with another type.
        """
        creations = self.read_commands.create_groups()
        checks = self.read_commands.check_types()
        before = [("XINFO", "GROUPS", name) for name, _ in creations]
        sent = await self._send([*before, *(command for _, command in creations), *(command for *_, command in checks)])
        known, replies = sent[: len(before)], sent[len(before) :]
        asked = [*((name, "stream") for name, _ in creations), *((name, kind) for name, kind, _ in checks)]
        refused: list[tuple[str, BrokerError]] = []
        for place, ((name, kind), reply) in enumerate(zip(asked, replies, strict=True)):
            if not isinstance(reply, Exception):
                continue
            error = translated(reply)
            if error.code == "WRONGTYPE":
                raise BrokerError(f"WRONGTYPE: the key {name!r} is no {kind}; {KEY_OF_OTHERS}", code="WRONGTYPE")
            if place < len(creations) and error.code != "BUSYGROUP":
                refused.append((name, error))
        made = [
            (name, isinstance(found, Exception) and translated(found).code == "NOGROUP")
            for (name, _), found, reply in zip(creations, known, replies, strict=False)
            if not isinstance(reply, Exception)
        ]
        return EnsuredGroups(
            streams=tuple(name for name, was_gone in made if was_gone),
            groups=tuple(name for name, was_gone in made if not was_gone),
            refused=await self._first_refusal(refused) if refused else None,
        )

    async def _first_refusal(self, refused: Sequence[tuple[str, BrokerError]]) -> BrokerError:
        """Return the first of these errors. Raises that of a group that does not exist."""
        replies = await self.attempt([("XINFO", "GROUPS", name) for name, _ in refused])
        group = self.keys.group.encode()
        for (name, error), rows in zip(refused, replies, strict=True):
            if isinstance(rows, BrokerError) or not any(row[1] == group for row in rows):
                raise self.explained(error, ("XGROUP CREATE", name))
        name, error = refused[0]
        return self.explained(error, ("XGROUP CREATE", name))

    async def started(self, delivery: Delivery) -> None:
        """Carry out the side effects of a task's start, if it has any."""
        if also := effects_of_start(delivery):
            with suppress(BrokerError):  # they are carried out with the end of the task, too
                await self.one(self.settle_commands.task_started(also))

    def check_signature(self, delivery: Delivery) -> None:
        """Raise SignatureError if messages are signed here, and this delivery is not signed as they must be."""
        if self.signer is not None:
            self.signer.check(self.keys.tiers[delivery.tier].stream, delivery)

    async def release_all(
        self, consumer: str, idle: float, *, but: Collection[bytes] = (), tiers: Iterable[int] | None = None
    ) -> None:
        """Release every entry that is pending for this consumer, known to it or not, except those in `but`.

        Those of `tiers`, by default of all.
        """
        for tier in range(len(self.keys.tiers)) if tiers is None else tiers:
            stream, start = self.keys.tiers[tier].stream, "-"
            while rows := await self.one(("XPENDING", stream, self.keys.group, start, "+", MOST_IDS, consumer)):
                if ids := [row[0] for row in rows if row[0] not in but]:
                    await self.call(self.settle_commands.release(consumer, tier, ids, idle))
                start = "(" + rows[-1][0].decode()

    async def drained(self, horizon: float, *, left: Sequence[int] = ()) -> bool:
        """Has the group settled every entry, and is no task due within `horizon` seconds?

        `left` is how many entries of each tier the server refuses to settle: they stay pending.
        """
        soon = f"{(self.clock.now() + horizon) * 1000:.0f}"
        commands: list[Command] = []
        for keys in self.keys.tiers:
            count = ("ZCOUNT", keys.delayed, "-inf", soon)  # twice: a task may be promoted meanwhile, or postponed
            commands += [count, ("XLEN", keys.stream), count]
        replies = await self.call(commands)
        if any(replies[0::3]) or any(replies[2::3]):
            return False
        return not any(replies[1::3]) or await self._all_caught_up(soon, left)

    async def _all_caught_up(self, soon: str, left: Sequence[int]) -> bool:
        """Has the group settled what is in the streams? Entries of other groups, or of nobody, may stay."""
        commands: list[Command] = []
        for keys in self.keys.tiers:
            count = ("ZCOUNT", keys.delayed, "-inf", soon)
            commands += [
                count, ("XLEN", keys.stream), ("XINFO", "GROUPS", keys.stream), ("XINFO", "STREAM", keys.stream), count,
            ]  # fmt: skip
        replies = await self.call(commands)
        for tier, (before, length, groups, stream, delayed) in enumerate(
            zip(*(replies[at::5] for at in range(5)), strict=True)
        ):
            if before or delayed or (length and not self._caught_up(groups, stream, left[tier] if left else 0)):
                return False
        return True

    def _caught_up(self, groups: list[list[Any]], stream: list[Any], left: int) -> bool:
        last = dict(zip(stream[::2], stream[1::2], strict=False))[b"last-generated-id"]
        for flat in groups:
            group = dict(zip(flat[::2], flat[1::2], strict=False))
            if group[b"name"] == self.keys.group.encode():
                return bool(group[b"pending"] <= left and group[b"last-delivered-id"] == last)
        return False

    # --- calling -----------------------------------------------------------------------------

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands in one round trip. Raises the first error of any, as BrokerError."""
        replies = await self.attempt(commands)
        for reply, command in zip(replies, commands, strict=True):
            if isinstance(reply, BrokerError):
                raise await self.explain(reply, command)
        return replies

    async def one(self, command: Command) -> Any:
        """Carry out one command. Raises its error, as BrokerError."""
        return (await self.call([command]))[0]

    async def attempt(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands in one round trip; an error of the server stands in the place of its reply.

        So does the error of a command that cannot be packed: the others are sent.
        """
        try:
            replies = await self._send(commands)
        except OutcomeUnknownError as error:
            if errors := self._lost.note_lost(commands, error):
                return list(errors)
            raise
        except BrokerError as error:
            if error.code != UNPACKABLE:
                raise
            replies = await self._send_packable(commands)
        if self._lost.losses:
            self._lost.note_answered(commands)
        return [translated(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _send_packable(self, commands: Sequence[Command]) -> list[Any]:
        """Send the commands that can be packed; the errors of the others stand in their places."""
        replies: list[Any] = []
        for command in commands:
            try:
                pack_one(command)
            except redis.exceptions.DataError as error:
                replies.append(error)
            else:
                replies.append(None)
        sent = [place for place, error in enumerate(replies) if error is None]
        answers = await self._send([commands[place] for place in sent]) if sent else []
        for place, answer in zip(sent, answers, strict=True):
            replies[place] = answer
        return replies

    async def blocked(
        self, connection: BlockingConnection, command: Command, *, block: float, on_late_reply: Callable[[Any], None]
    ) -> Any:
        """Carry out a command that blocks at most `block` seconds (see BlockingConnection.read)."""
        try:
            reply = await connection.read(command, block=block, on_late_reply=on_late_reply)
        except redis.exceptions.RedisError as error:
            raise translated(error) from error
        if isinstance(reply, Exception):
            raise await self.explain(translated(reply), command)
        return reply

    def explained(self, error: BrokerError, command: Command) -> BrokerError:
        """Return the error of a command with what was refused, and the remedy, if a right is missing."""
        return explained(error, command, self.keys, self.role)

    async def explain(self, error: BrokerError, command: Command) -> BrokerError:
        """Do as `explained`, and ask the server which key, or what command, was refused, if the error does not tell."""
        if named := commands_to_ask_for(error, command):
            reply: Any = None
            with suppress(BrokerError):
                (reply,) = await self.attempt([("COMMAND", "INFO", *named)])
            return not_there(error, named, reply)
        if type(error) is BrokerError and error.code != "NOPERM":
            return await self._explain_refusal(error, command)
        (refused,) = await self._ask_which([(error, command)])
        return explained(error, command, self.keys, self.role, refused)

    async def _explain_refusal(self, error: BrokerError, command: Command) -> BrokerError:
        """Return the error of a command with the key that has another type, and the remedy, if they are known."""
        text = said(error, command)
        if error.code == "WRONGTYPE" and (names := keys_in(command, self.keys)):
            wrong = "" if len(names) > 1 else wrong_key(names[0], self.keys.namespace)
            with suppress(BrokerError):
                wrong = wrong or wrong_keys(names, await self.attempt(ask_types(names)), self.keys.namespace)
            text = f"{text}: {wrong or 'one of ' + ', '.join(names)}"
        return BrokerError(advised(text, error.code), code=error.code)

    async def where_refused(self, some: Sequence[tuple[BrokerError, Command]]) -> list[tuple[str, list[Suspect]]]:
        """Return what missing rights have refused, each as a part of a sentence, and as far as the server tells which.

        At most one round trip.
        """
        asked = zip(some, await self._ask_which(some), strict=True)
        return [(where_refused(error, command, self.keys, refused), refused) for (error, command), refused in asked]

    async def _ask_which(self, some: Sequence[tuple[BrokerError, Command]]) -> list[list[Suspect]]:
        found = [suspects(error, command, self.keys) for error, command in some]
        doubtful = [place for place, among in enumerate(found) if len(among) > 1]
        replies: list[Any] = [None] * len(doubtful)
        if doubtful:
            with suppress(BrokerError):
                replies = await self.attempt([ask_which(found[place]) for place in doubtful])
        for place, reply in zip(doubtful, replies, strict=True):
            found[place] = named_by(reply, found[place])
        return found

    async def _send(
        self, commands: Sequence[Command], call: Callable[[Sequence[Command]], Awaitable[list[Any]]] | None = None
    ) -> list[Any]:
        try:
            return await (call or self.client.call)(commands)
        except redis.exceptions.RedisError as error:
            raise translated(error) from error

    async def all_accepted(self, commands: Sequence[Command], replies: list[Any]) -> Iterator[EnqueueReply]:
        """Return an iterator over the answers to an enqueue. Raises the first error of any, as BrokerError."""
        errors = [place for place, reply in enumerate(replies) if isinstance(reply, Exception)]
        if not errors:
            return map(parse_enqueue_reply, replies)
        first = await self.explain(translated(replies[errors[0]]), commands[errors[0]])
        if len(errors) < len(replies) and isinstance(first, BrokerUnavailableError):
            raise OutcomeUnknownError(f"some of these tasks were accepted, others not sent: {first}")
        raise first
