"""Asks about the server: what it is, how far away, its clock, its configuration. Judges nothing."""

from __future__ import annotations

from typing import Any, Final

from redis.crc import key_slot

from streamq.clock import Clock
from streamq.doctor.observations import Server
from streamq.doctor.queries import Questions, lines, rows, text
from streamq.wire.keys import Keys

_ROUND_TRIPS: Final = 5
FEATURES: Final = ("XAUTOCLAIM", "EVALSHA", "WAIT", "WAITAOF", "XACKDEL")
SETTINGS: Final = (
    "maxmemory", "maxmemory-policy", "maxclients", "appendonly", "appendfsync", "save", "stop-writes-on-bgsave-error",
    "min-replicas-to-write", "timeout", "tcp-keepalive", "client-output-buffer-limit",
)  # fmt: skip
IN_PROCESS: Final = "streamq-memory"  # what memory:// calls itself


async def look_at_server(questions: Questions) -> tuple[Server, float]:
    """Return what the server is, and its time (this machine's, where it may not be asked)."""
    clock = questions.store.clock
    round_trips, offset, error = await _distance(questions, clock)
    facts = await questions.store.client.facts()
    in_process = facts.product == IN_PROCESS
    asked: list[tuple[str, ...]] = [("INFO",), ("COMMAND", "INFO", *FEATURES)]
    if not in_process:
        asked += [("CONFIG", "GET", name) for name in SETTINGS]
    info, known, *configured = await questions.ask(*asked)
    server = Server(
        product="memory" if in_process else facts.product, version=facts.version, in_process=in_process,
        features=_features(known), round_trips=round_trips, offset=offset, offset_error=error, info=lines(info),
        config={text(pair[0]): text(pair[1]) for pair in map(rows, configured) if len(pair) == 2},
        slots=slots(questions.store.keys),
    )  # fmt: skip
    return server, clock.now() + (offset or 0.0)


def slots(keys: Keys) -> frozenset[int]:
    """Return the slots of a cluster that the keys of one step may fall into."""
    names = [name for tier in keys.tiers for name in (tier.stream, tier.delayed, tier.messages)]
    return frozenset(key_slot(name.encode()) for name in (*names, keys.dead, keys.result("x"), keys.accepted("x")))


async def _distance(questions: Questions, clock: Clock) -> tuple[tuple[float, ...], float | None, float]:
    """Return the round trips, how far the server's clock is ahead, and how wrong that may be."""
    await questions.ask(("PING",))  # connects
    took: list[float] = []
    offset: float | None = None
    for _ in range(_ROUND_TRIPS):
        began, here = clock.elapsed(), clock.now()
        there = await questions.one("TIME")
        took.append(clock.elapsed() - began)
        if there is not None and took[-1] == min(took):
            offset = _seconds(there) - (here + took[-1] / 2)
    return tuple(took), offset, min(took) / 2


def _seconds(time: Any) -> float:
    return int(time[0]) + int(time[1]) / 1e6


def _features(known: Any) -> dict[str, bool]:
    """Return which commands are there; nothing where COMMAND may not be asked."""
    return {name: bool(entry) for name, entry in zip(FEATURES, rows(known), strict=False)}
