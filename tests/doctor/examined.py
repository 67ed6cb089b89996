"""Helpers for the tests of the doctor: examine by URL, and commands that break a queue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streamq import RedisBroker
from streamq.doctor import Finding, Report, Severity, examine

if TYPE_CHECKING:
    from tests.servers import TestServer

STREAM = "queue:standard"
GROUP = "workers"


async def examined(
    url: str, *, role: str = "worker", features: list[str] | None = None, scan: int = 100_000, **options: Any
) -> Report:
    """Examine the queue of a broker with these options."""
    async with RedisBroker(url, **options) as broker:
        return await examine(broker, role=role, features=features, scan=scan)


def one(report: Report, code: str) -> Finding:
    """Return the only finding of this code."""
    (finding,) = [finding for finding in report.findings if finding.code == code]
    return finding


def bad(report: Report) -> list[str]:
    """Return the codes above info."""
    return report.codes(Severity.WARNING)


def ms(seconds_from_now: float = 0.0) -> int:
    """Return a time in Unix ms, as a score."""
    return round((time.time() + seconds_from_now) * 1000)


def add(server: TestServer, count: int = 1, stream: str = STREAM, *, at: str = "*") -> list[str]:
    """Put tasks into a stream and return their entry ids."""
    return [server.command("XADD", stream, at, "task", "send").decode() for _ in range(count)]


def make_group(server: TestServer, stream: str = STREAM, start: str = "0", name: str = GROUP) -> None:
    server.command("XGROUP", "CREATE", stream, name, start, "MKSTREAM")


def take(server: TestServer, consumer: str, count: int = 1, stream: str = STREAM, group: str = GROUP) -> list[str]:
    """Read as this consumer and return the entry ids."""
    reply = server.command("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", stream, ">")
    return [entry[0].decode() for entry in reply[0][1]]


def heartbeat(server: TestServer, consumer: str, left: float, stream: str = STREAM) -> None:
    """Set the heartbeat of a consumer. It is alive for `left` seconds; negative: dead for that long."""
    server.command("ZADD", f"{stream}:alive:{GROUP}", ms(left), consumer)
    server.command("EXPIRE", f"{stream}:alive:{GROUP}", 1000)
