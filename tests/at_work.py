"""What the tests of the core share: a broker, a worker in the background, and a look behind it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio

from streamq import RedisBroker, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from streamq import Task
    from tests.servers import TestServer

STREAMS = ("queue:critical", "queue:standard", "queue:bulk")


@contextlib.asynccontextmanager
async def working(broker: RedisBroker, *tasks: Task[Any, Any], **options: Any) -> AsyncIterator[Worker]:
    """Run a worker beside the block; it is drained at its end."""
    worker = Worker(broker, tasks=tasks, **options)
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        yield worker
        worker.stop()


async def burst(broker: RedisBroker, *tasks: Task[Any, Any], **options: Any) -> Worker:
    """Run a worker until the queue is empty."""
    worker = Worker(broker, tasks=tasks, burst=True, **options)
    with anyio.fail_after(60):  # on a busy machine it may start many processes
        await worker.run()
    return worker


async def until(condition: Callable[[], Any], seconds: float = 8.0) -> Any:
    """Poll until a condition holds, and return what it gave; a TimeoutError says that it never did."""
    with anyio.fail_after(seconds):
        while not (value := condition()):
            await anyio.sleep(0.002)
    return value


@contextlib.asynccontextmanager
async def watched_loop() -> AsyncIterator[list[float]]:
    """Watch the event loop beside the block; the list has the longest pause between two of its turns, in seconds."""
    longest = [0.0]

    async def watch() -> None:
        while True:
            begun = anyio.current_time()
            await anyio.sleep(0.01)
            longest[0] = max(longest[0], anyio.current_time() - begun)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        yield longest
        group.cancel_scope.cancel()


def pending(server: TestServer, stream: str = "queue:standard", group: str = "workers") -> int:
    """Return how many entries of a stream are in somebody's hands."""
    return int(server.command("XPENDING", stream, group)[0])


def entries(server: TestServer, stream: str) -> list[dict[str, str]]:
    """Return the entries of a stream as dicts."""
    found = []
    for _, flat in server.command("XRANGE", stream, "-", "+"):
        texts = [part.decode(errors="backslashreplace") for part in flat]
        found.append(dict(zip(texts[::2], texts[1::2], strict=True)))
    return found


def dead(server: TestServer) -> list[dict[str, str]]:
    """Return the dead letters."""
    return entries(server, "queue:dead")


def assert_nothing_left(server: TestServer, *others: str, group: str = "workers") -> None:
    """Check what a cleanly stopped worker leaves: empty streams, no consumer, only keys that are documented.

    `others` are further keys that the test itself made.
    """
    for name in server.keys():  # noqa: SIM118
        kind = server.command("TYPE", name)
        if name == "queue:dead" or name in others:
            continue
        if name in STREAMS:
            assert server.command("XLEN", name) == 0, f"{name} is not empty"
            for flat in server.command("XINFO", "GROUPS", name):
                info = dict(zip(flat[::2], flat[1::2], strict=True))
                assert info[b"pending"] == 0, f"{name}: pending for {info[b'name']!r}"
                assert server.command("XINFO", "CONSUMERS", name, info[b"name"]) == [], f"{name} keeps a consumer"
            continue
        assert name.startswith(
            (
                f"queue:stats:{group}:",
                "queue:result:",
                "queue:id:",
                "queue:dedup:",
                "queue:latest:",
                "queue:seen:",
                "queue:once:",
                "queue:rate:",
                "queue:progress:",
                "queue:workflow:",
            )
        ), f"{name} ({kind!r}) is no documented key, or should be gone"
        assert server.command("PTTL", name) > 0, f"{name} has no TTL"
