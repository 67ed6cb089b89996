"""Who lives, and what becomes of what the dead held: the calls of the leases.

Every consumer says until when it is known to live (`<stream>:alive`); what others hold is taken over when their
time is up. What decides is in the scripts, in one step with what is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.keys import PARKED
from streamq.wire.message import milliseconds as _ms

CRASHES_KEPT = 24 * 3600.0  # seconds that the evidence of crashes outlives the last crash


async def renew(
    store: Store,
    consumer: str,
    lease: float,
    held: Sequence[Sequence[bytes]],
    *,
    in_full: Collection[int] | None = None,
) -> tuple[float, list[list[bytes]]]:
    """Keep what is held, by tier, and say that this consumer lives for `lease` seconds.

    In the tiers `in_full` (None: in all), and where the server does not know this consumer, it is also said what
    its lease is, and the keys' time to live begins anew.
    Returns the server's Unix time and, by tier, the entries that are not held any more.
    """
    flat: list[bytes | int] = []
    for tier, ids in enumerate(held):
        flat += (int(in_full is None or tier in in_full), len(ids), *ids)
    reply = await store.one(step("renew")(_liveness(store), store.keys.group, consumer, _ms(lease), *flat))
    return int(reply[0]) / 1000, list(reply[1:])


async def survey(store: Store, tier: int, *, now: float, forgotten: float) -> tuple[list[int], bool]:
    """Ask, in one round trip, how much is pending in each tier, and after the consumers of one of them.

    Returns the number of entries by tier, and whether `depart` would find anybody in `tier`: a consumer that
    holds nothing and whose time was up at `now` (Unix seconds, the server's), or one of whom nothing is known and
    that did nothing for `forgotten` seconds.
    """
    group, asked = store.keys.group, store.keys.tiers[tier]
    *pending, alive, consumers = await store.call([
        *(("XPENDING", keys.stream, group) for keys in store.keys.tiers),
        ("ZRANGE", asked.alive, 0, -1, "WITHSCORES"), ("XINFO", "CONSUMERS", asked.stream, group),
    ])  # fmt: skip
    until = dict(zip(alive[::2], map(float, alive[1::2]), strict=True))
    rows = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in consumers]
    holding = {row[b"name"] for row in rows if row[b"pending"]}
    gone = {name for name, ms in until.items() if ms <= now * 1000}
    gone |= {row[b"name"] for row in rows if row[b"name"] not in until and row[b"idle"] > forgotten * 1000}
    return [row[0] for row in pending], bool(gone - holding)


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
) -> tuple[bytes, list[Delivery], bool]:
    """Take over entries of one tier that nobody alive holds, one suspect at most.

    Nothing is taken after `deadline` (Unix seconds, the server's). Returns the next cursor,
    what was taken, and whether suspects were left.

    Those of dead consumers once they are `idle` for so long; those of others `margin` after
    the longest lease of all that live. Seconds.
    """
    keys = store.keys.tiers[tier]
    cursor, rows, left = await store.one(step("reclaim")(
        [keys.stream, keys.alive, keys.leases, keys.crashes],
        store.keys.group, consumer, PARKED, _ms(idle), _ms(margin), cursor, count, _ms(CRASHES_KEPT),
        max_crashes, suspect_after, _ms(deadline),
    ))  # fmt: skip
    label = store.tiers[tier].name
    found = []
    for entry, flat, crashes, alone, orphaned in rows:
        delivery = Delivery(tier, label, entry, flat, redelivered=True, crashes=tuple(crashes.decode().split()))
        delivery.convicted, delivery.orphaned = alone == 1, orphaned == 1
        found.append(delivery)
    return cursor, found, left > 0


async def alone(store: Store, consumer: str, delivery: Delivery) -> bool:
    """Note that a suspect runs with nothing beside it; False if it is not held any more."""
    keys = store.keys.tiers[delivery.tier]
    return bool(await store.one(step("alone")(
        [keys.stream, keys.crashes], store.keys.group, consumer, delivery.entry_id, _ms(CRASHES_KEPT)
    )))  # fmt: skip


async def depart(store: Store, consumer: str = "", *, forgotten: float = 3600.0, limit: int = 10) -> None:
    """Remove this consumer, or those whose time is up, from each tier where they hold nothing.

    Those of whom nothing is known count as dead once they did nothing for `forgotten` seconds.
    """
    wanted = (store.keys.group, PARKED, limit, consumer, _ms(forgotten))
    await store.one(step("depart")(_liveness(store), *wanted))


def _liveness(store: Store) -> list[str]:
    return [name for keys in store.keys.tiers for name in (keys.stream, keys.alive, keys.leases)]
