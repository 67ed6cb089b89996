"""Bugs, planted on purpose: each is patched into streamq while a history runs, to see whether it is found.

A planted bug is small, and one that somebody might well write. What it breaks is in its docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import orjson

from streamq.client import Script
from streamq.client.multiplexer import Multiplexer
from streamq.consumer import consumer, leases, settling
from streamq.consumer.consumer import Consumer
from streamq.consumer.runner_pool import Runners
from streamq.consumer.settling import Settler
from streamq.queue.settle_commands import SettleCommands
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.outcome import Ack, Postpone, Retry

Patches = Callable[[ExitStack], None]
PLANTS: dict[str, Patches] = {}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have the bug of that name in streamq; none if the name is empty. Raises KeyError if it is unknown."""
    with ExitStack() as stack:
        if name:
            PLANTS[name](stack)
        yield


def plant(function: Patches) -> Patches:
    """Register a bug under its function's name."""
    PLANTS[function.__name__.replace("_", "-")] = function
    return function


def _rewritten(stack: ExitStack, name: str, old: str, new: str) -> None:
    """Have a step run another script: with `old`, which must be there, replaced."""
    original = step(name)
    source = original._script.source
    if old not in source:
        raise ValueError(f"{name}.lua has changed: {old!r} is not in it")
    stack.enter_context(patch.object(original, "_script", Script(source.replace(old, new))))


# --- the six of the plan ---------------------------------------------------------------------------------


@plant
def acknowledge_before_run(stack: ExitStack) -> None:
    """P2: a delivery is acknowledged when its run begins."""
    run, settle = Runners._run, Consumer.settle

    async def early(runners: Any, delivery: Any, slot: Any) -> None:
        runners._consumer.settler.settle(delivery, Ack())
        await run(runners, delivery, slot)

    def late(holder: Any, delivery: Any, outcome: Any, **rest: Any) -> None:
        if not isinstance(outcome, Ack):
            settle(holder, delivery, outcome, **rest)

    stack.enter_context(patch.object(Runners, "_run", early))
    stack.enter_context(patch.object(Consumer, "settle", late))


@plant
def renew_without_owner(stack: ExitStack) -> None:
    """P3, P4: a worker that lost a delivery takes it back when it renews."""
    held = "(holds(KEYS[k], ARGV[1], ARGV[2], ARGV[i]) or dropped_entry(KEYS[k], ARGV[1], ARGV[i]))"
    _rewritten(stack, "renew", f"{held} and kept or lost", "kept")


@plant
def sweep_from_the_start(stack: ExitStack) -> None:
    """P3: each step of a sweep begins at 0-0 and looks at one entry: what lies behind living ones is never reached.

    Two changes, as XAUTOCLAIM looks at ten entries for each that it may claim, and a history has few: the step looks
    at the first two pending entries alone, and dead consumers are not asked for.
    """
    _rewritten(stack, "reclaim", "alive < now then", "false then")
    reclaim = leases.reclaim

    async def forgetful(store: Any, *args: Any, **rest: Any) -> Any:
        rest |= {"cursor": b"0-0"}
        _, *others = await reclaim(store, *args, **rest)
        return b"0-0", *others

    stack.enter_context(patch.object(leases, "reclaim", forgetful))
    _rewritten(
        stack, "reclaim", "local swept = call('XAUTOCLAIM', stream, group, me, idle, cursor, 'COUNT', room - #taken)",
        "local swept = {'0-0', {}}\n"
        "  for _, row in ipairs(call('XPENDING', stream, group, '-', '+', 1)) do\n"
        "    swept[2] = call('XCLAIM', stream, group, me, idle, row[1])\n"
        "  end",
    )  # fmt: skip


@plant
def retry_in_two_steps(stack: ExitStack) -> None:
    """P4: a retry is an XADD and then an XACK, without asking who holds the delivery."""

    def in_two(commands: Any, consumer: str, delivery: Any, delay: float, packed: bytes) -> Any:
        stream = commands.keys.tiers[delivery.tier].stream
        command = ("XADD", stream, "*", *orjson.loads(packed))
        return _Two(
            command, ("XACK", stream, commands.keys.group, delivery.entry_id), ("XDEL", stream, delivery.entry_id)
        )

    attempt = Store.attempt

    async def both(store: Any, commands: Any) -> Any:
        firsts = [command.first if isinstance(command, _Two) else command for command in commands]
        replies = await attempt(store, firsts)
        for command in commands:
            if isinstance(command, _Two):
                for rest in command.rest:
                    await attempt(store, [rest])
        return replies

    stack.enter_context(patch.object(SettleCommands, "postpone", in_two))
    stack.enter_context(patch.object(Store, "attempt", both))


class _Two(tuple[Any, ...]):
    """A command that is followed by others."""

    __slots__ = ()

    def __new__(cls, *commands: Any) -> Any:
        return super().__new__(cls, commands)

    @property
    def first(self) -> Any:
        return self[0]

    @property
    def rest(self) -> Any:
        return self[1:]


@plant
def leave_with_pending(stack: ExitStack) -> None:
    """P8, P1: a worker that stops deletes its consumer, whatever is pending for it."""

    async def release_all(*_: Any, **__: Any) -> None:
        return None

    async def remove_consumers(store: Any, name: str = "", **_: Any) -> int:
        if not name:
            return 0
        for keys in store.keys.tiers:
            await store.one(("XGROUP", "DELCONSUMER", keys.stream, store.keys.group, name))
        return 1

    stack.enter_context(patch.object(Store, "release_all", release_all))
    stack.enter_context(patch.object(consumer, "remove_consumers", remove_consumers))
    stack.enter_context(patch.object(leases, "remove_consumers", remove_consumers))


@plant
def group_at_the_end(stack: ExitStack) -> None:
    """P9, P1: after NOGROUP the group is made again at `$`, so what came before it is never read."""
    recover, restore = Consumer.recover, Consumer.restore_groups

    async def at_the_end(store: Any) -> None:
        await store.attempt(
            [("XGROUP", "CREATE", keys.stream, store.keys.group, "$", "MKSTREAM") for keys in store.keys.tiers]
        )

    async def recovered(holder: Any, loop: str, error: Any, **rest: Any) -> None:
        if error.code == "NOGROUP":
            await at_the_end(holder.store)
        await recover(holder, loop, error, **rest)

    async def restored(holder: Any) -> None:
        await at_the_end(holder.store)
        await restore(holder)

    stack.enter_context(patch.object(Consumer, "recover", recovered))
    stack.enter_context(patch.object(Consumer, "restore_groups", restored))


# --- more of them ------------------------------------------------------------------------------------------


@plant
def retry_without_owner(stack: ExitStack) -> None:
    """P4: a stale worker's failure counts."""
    _rewritten(
        stack,
        "postpone",
        "if not holds_or_dropped(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return counted(0, {1}) end",
        "",
    )


@plant
def bury_without_owner(stack: ExitStack) -> None:
    """P4: a stale worker's dead letter counts."""
    _rewritten(
        stack,
        "dead_letter",
        "if not holds_or_dropped(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return counted(0, {1}) end",
        "",
    )


@plant
def prefetched_not_renewed(stack: ExitStack) -> None:
    """P3: only the first delivery of a tier is renewed."""
    renew = leases.renew

    async def few(store: Any, consumer: str, lease: float, held: Any, **rest: Any) -> Any:
        return await renew(store, consumer, lease, [ids[:1] for ids in held], **rest)

    stack.enter_context(patch.object(leases, "renew", few))


@plant
def settle_said_once(stack: ExitStack) -> None:
    """P1, P2: what was not confirmed is not said again."""
    replied = Settler._replied

    def forget(settler: Any, settlement: Any, reply: Any) -> bool:
        return replied(settler, settlement, 1 if isinstance(reply, Exception) else reply)

    stack.enter_context(patch.object(Settler, "_replied", forget))


@plant
def replies_to_the_wrong(stack: ExitStack) -> None:
    """The client: a caller that was cancelled leaves the order of replies."""
    exchange = Multiplexer.exchange

    async def impatient(mux: Any, data: bytes, wanted: int) -> Any:
        try:
            return await exchange(mux, data, wanted)
        except BaseException:
            connection = mux.current
            if connection is not None:
                for request in [request for request in connection._sent if request.abandoned]:
                    connection._sent.remove(request)
            raise

    stack.enter_context(patch.object(Multiplexer, "exchange", impatient))


@plant
def retries_are_free(stack: ExitStack) -> None:
    """P6: a retry spends no attempt."""
    postponement = settling.postponement

    def free(store: Any, consumer: str, delivery: Any, outcome: Any) -> Any:
        free_of_charge = Postpone(outcome.delay, "free") if isinstance(outcome, Retry) else outcome
        return postponement(store, consumer, delivery, free_of_charge)

    stack.enter_context(patch.object(settling, "postponement", free))


@plant
def sweep_takes_the_living(stack: ExitStack) -> None:
    """P3: a sweep takes what has been idle for a fifth of a lease, from whoever is alive."""
    reclaim = leases.reclaim

    async def greedy(store: Any, *args: Any, **rest: Any) -> Any:
        return await reclaim(store, *args, **(rest | {"margin": -0.8 * rest["idle"]}))

    stack.enter_context(patch.object(leases, "reclaim", greedy))
