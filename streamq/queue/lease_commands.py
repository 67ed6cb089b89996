"""Leases on the server: renew them, survey the group, reclaim deliveries, remove consumers.

Every consumer writes until when it counts as alive (`<stream>:alive`). When that time has passed, other consumers
reclaim its deliveries. The scripts decide that, in the same atomic step. The loops are in `consumer.leases`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.keys import RELEASED_CONSUMER
from streamq.wire.message import milliseconds as _ms

_NO_ENTRY = "0-0"  # no entry has this id
_MOST_NAMES = 1000  # of crashed workers that evidence may have
CRASHES_KEPT = 24 * 3600.0  # seconds that the evidence of crashes is kept after the last crash


async def renew(
    store: Store,
    consumer: str,
    lease: float,
    held: Sequence[Sequence[bytes]],
    *,
    in_full: Collection[int] | None = None,
    tiers: Sequence[int] | None = None,
) -> tuple[float, list[list[bytes]], list[list[bytes]]]:
    """Renew the lease of every held entry of these tiers, and count this consumer as alive for `lease` seconds.

    `tiers` are all by default; `held` has the entries of each of them. In the tiers `in_full` (None: in all), and where
    the server does not know this consumer, this also writes its lease and sets the TTL of the keys again. Returns the
    server's Unix time and, for each of the tiers, the entries that this consumer holds no longer, and those whose runs
    are to be cancelled.
    """
    wanted = range(len(store.keys.tiers)) if tiers is None else tiers
    flat: list[bytes | int] = []
    for tier, ids in zip(wanted, held, strict=True):
        flat += (int(in_full is None or tier in in_full), len(ids), *ids)
    names = [name for keys in map(store.keys.tiers.__getitem__, wanted)
             for name in (keys.stream, keys.alive, keys.leases, keys.crashes)]  # fmt: skip
    reply = await store.one(step("renew")(names, store.keys.group, consumer, _ms(lease), *flat))
    half = 1 + len(wanted)
    return int(reply[0]) / 1000, list(reply[1:half]), list(reply[half:])


async def try_to_claim(store: Store, consumer: str, tier: int) -> None:
    """Ask for what a renewal needs where entries are held, and change nothing. Raises BrokerError if it is refused."""
    stream, group = store.keys.tiers[tier].stream, store.keys.group
    await store.call([
        ("XPENDING", stream, group, _NO_ENTRY, _NO_ENTRY, 1, consumer),
        ("XCLAIM", stream, group, consumer, 0, _NO_ENTRY, "JUSTID"),
    ])  # fmt: skip


async def count_pending(store: Store) -> list[int | BrokerError]:
    """Return how many entries are pending in each tier, or why the server refuses that."""
    commands: list[Command] = [("XPENDING", keys.stream, store.keys.group) for keys in store.keys.tiers]
    replies = _explained(store, commands, await store.attempt(commands))
    return [row if isinstance(row, BrokerError) else row[0] for row in replies]


def _explained(store: Store, commands: Sequence[Command], replies: Sequence[Any]) -> list[Any]:
    """Return the replies; the error of a missing right says what was refused."""
    return [
        store.explained(reply, command) if isinstance(reply, BrokerError) else reply
        for command, reply in zip(commands, replies, strict=True)
    ]


async def survey(
    store: Store, tier: int, *, now: float, forgotten: float
) -> tuple[list[int | BrokerError], bool | BrokerError]:  # fmt: skip
    """Do as `count_pending`, and return, in the same round trip, whether `tier` has gone consumers.

    If the server refuses that, the error takes its place.

    These are the consumers that `remove_consumers` would remove: they hold nothing, and they counted as alive until
    `now` (Unix seconds, the server's) at most. Or the server does not know their lease, and they did nothing for
    `forgotten` seconds.
    """
    group, asked = store.keys.group, store.keys.tiers[tier]
    commands: list[Command] = [
        *(("XPENDING", keys.stream, group) for keys in store.keys.tiers),
        ("ZRANGE", asked.alive, 0, -1, "WITHSCORES"), ("XINFO", "CONSUMERS", asked.stream, group),
    ]  # fmt: skip
    *pending, alive, consumers = _explained(store, commands, await store.attempt(commands))
    numbers = [row if isinstance(row, BrokerError) else row[0] for row in pending]
    if isinstance(alive, BrokerError) and alive.code == "WRONGTYPE":
        alive = []  # somebody else's key knows nobody
    if isinstance(alive, BrokerError) or isinstance(consumers, BrokerError):
        return numbers, alive if isinstance(alive, BrokerError) else consumers
    until = dict(zip(alive[::2], map(float, alive[1::2]), strict=True))
    rows = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in consumers]
    holding = {row[b"name"] for row in rows if row[b"pending"]}
    gone = {name for name, ms in until.items() if ms <= now * 1000}
    gone |= {row[b"name"] for row in rows if row[b"name"] not in until and row[b"idle"] > forgotten * 1000}
    return numbers, bool(gone - holding)


async def reclaim(
    store: Store,
    consumer: str,
    tier: int,
    *,
    idle: float,
    margin: float,
    cursor: bytes,
    count: int,
    max_crashes: int,
    suspect_after: int,
    deadline: float,
) -> tuple[bytes, list[Delivery], bool, list[Delivery]]:
    """Reclaim entries of one tier that no living consumer holds, at most one suspect among them.

    Entries of dead consumers are reclaimed once they are idle for `idle` seconds. Entries of others are reclaimed once
    they are idle for `margin` seconds longer than the longest lease of any living consumer. Nothing is reclaimed after
    `deadline` (Unix seconds, the server's). Returns the next cursor, the deliveries, whether suspects were left, and
    the deliveries that are to be cancelled: their worker ended before it could.
    """
    keys = store.keys.tiers[tier]
    cursor, rows, left, marked = await store.one(step("reclaim")(
        [keys.stream, keys.alive, keys.leases, keys.crashes],
        store.keys.group, consumer, RELEASED_CONSUMER, _ms(idle), _ms(margin), cursor, count, _ms(CRASHES_KEPT),
        max_crashes, suspect_after, _ms(deadline),
    ))  # fmt: skip
    label = store.tiers[tier].name
    found: list[Delivery] = []
    cancelled: list[Delivery] = []
    for entry, flat, crashed, isolated, died in rows:
        workers = tuple(name.decode(errors="backslashreplace") for name in crashed.split()[-_MOST_NAMES:])
        delivery = Delivery(tier, label, entry, flat, redelivered=True, crashed_workers=workers)
        delivery.crash_proven, delivery.owner_died = isolated == 1, died == 1
        (cancelled if entry in marked else found).append(delivery)
    return cursor, found, left > 0, cancelled


async def mark_isolated(store: Store, consumer: str, delivery: Delivery) -> bool:
    """Note that this consumer runs a suspect in isolation; False if it holds it no longer."""
    return await _mark_alone(store, consumer, delivery.tier, delivery.entry_id)


async def mark_only_one(store: Store, consumer: str) -> None:
    """Note that a consumer which an error of its own ends holds one delivery alone, if that is so.

    Then the error was about that delivery: it counts as a crash in isolation.
    """
    held: list[tuple[int, bytes]] = []
    for tier, keys in enumerate(store.keys.tiers):
        rows = await store.one(("XPENDING", keys.stream, store.keys.group, "-", "+", 2, consumer))
        held += ((tier, row[0]) for row in rows)
    if len(held) == 1:
        await _mark_alone(store, consumer, *held[0])


async def _mark_alone(store: Store, consumer: str, tier: int, entry_id: bytes) -> bool:
    keys = store.keys.tiers[tier]
    return bool(await store.one(step("mark_isolated")(
        [keys.stream, keys.crashes], store.keys.group, consumer, entry_id, _ms(CRASHES_KEPT)
    )))  # fmt: skip


async def remove_consumers(
    store: Store, consumer: str = "", *, forgotten: float = 3600.0, limit: int = 10, tiers: Sequence[int] | None = None
) -> bool:
    """Remove this consumer from each tier where it holds nothing; without a name, dead ones, at most `limit` of each.

    Returns whether there may be more of them.

    `tiers` are all by default.
    A consumer whose lease the server does not know counts as dead once it did nothing for `forgotten` seconds.
    """
    wanted = (store.keys.group, RELEASED_CONSUMER, limit, consumer, _ms(forgotten))
    names = _liveness(store, range(len(store.keys.tiers)) if tiers is None else tiers)
    most = await store.one(step("remove_consumers")(names, *wanted))
    return not consumer and int(most or 0) >= limit


def _liveness(store: Store, tiers: Iterable[int]) -> list[str]:
    return [
        name for keys in map(store.keys.tiers.__getitem__, tiers) for name in (keys.stream, keys.alive, keys.leases)
    ]
