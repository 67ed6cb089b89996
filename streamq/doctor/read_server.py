"""Reads the server's product, features, round trip, clock and configuration."""

from __future__ import annotations

from typing import Any, Final

from redis.crc import key_slot

from streamq.clock import ServerClock
from streamq.doctor.observations import Server
from streamq.doctor.queries import Queries, lines, rows, text
from streamq.wire.keys import Keys

_ROUND_TRIPS: Final = 5
FEATURES: Final = ("XAUTOCLAIM", "EVALSHA", "WAIT", "WAITAOF", "XACKDEL")
SETTINGS: Final = (
    "maxmemory", "maxmemory-policy", "maxclients", "appendonly", "appendfsync", "save", "stop-writes-on-bgsave-error",
    "min-replicas-to-write", "timeout", "tcp-keepalive", "client-output-buffer-limit",
)  # fmt: skip
IN_PROCESS: Final = "streamq-memory"  # the product name of memory://


async def read_server(queries: Queries) -> tuple[Server, float]:
    """Return the server's values and its time. It is this machine's time if TIME is not allowed."""
    clock = queries.store.clock
    round_trips, offset, error = await _measure_clock(queries, clock)
    observed = await queries.store.client.server_features()
    in_process = observed.product == IN_PROCESS
    asked: list[tuple[str, ...]] = [("INFO",), ("COMMAND", "INFO", *FEATURES)]
    if not in_process:
        asked += [("CONFIG", "GET", name) for name in SETTINGS]
    info, known, *configured = await queries.ask(*asked)
    server = Server(
        product="memory" if in_process else observed.product, version=observed.version, in_process=in_process,
        features=_features(known), round_trips=round_trips, offset=offset, offset_error=error, info=lines(info),
        config={text(pair[0]): text(pair[1]) for pair in map(rows, configured) if len(pair) == 2},
        slots=slots(queries.store.keys),
    )  # fmt: skip
    return server, clock.local() + (offset or 0.0)


def slots(keys: Keys) -> frozenset[int]:
    """Return the cluster slots of the keys that one atomic step may use."""
    names = [name for tier in keys.tiers for name in (tier.stream, tier.delayed, tier.messages)]
    return frozenset(key_slot(name.encode()) for name in (*names, keys.dead, keys.result("x"), keys.accepted("x")))


async def _measure_clock(queries: Queries, clock: ServerClock) -> tuple[tuple[float, ...], float | None, float]:
    """Return the round trips, how far the server's clock is ahead, and the error of that (all in seconds)."""
    await queries.ask(("PING",))  # connects
    round_trips: list[float] = []
    offset: float | None = None
    for _ in range(_ROUND_TRIPS):
        started, local_time = clock.elapsed(), clock.local()
        server_time = await queries.one("TIME")
        round_trips.append(clock.elapsed() - started)
        if server_time is not None and round_trips[-1] == min(round_trips):
            offset = _seconds(server_time) - (local_time + round_trips[-1] / 2)
    return tuple(round_trips), offset, min(round_trips) / 2


def _seconds(time: Any) -> float:
    return int(time[0]) + int(time[1]) / 1e6


def _features(known: Any) -> dict[str, bool]:
    """Return which commands the server has, empty if COMMAND is not allowed."""
    return {name: bool(entry) for name, entry in zip(FEATURES, rows(known), strict=False)}
