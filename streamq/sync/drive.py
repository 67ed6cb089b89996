"""Runs coroutines without an event loop: those that never suspend, because their client blocks.

One that does suspend waits for something else: for an event loop, which is not there. That is an error with a remedy.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, Final, TypeVar

from streamq.errors import SyncCallError

T = TypeVar("T")

_NO_LOOP: Final = ("no running event loop", "must be called from async context")  # of asyncio, of trio
_NO_LOOP_ERRORS: Final = ("NoEventLoopError", "AsyncLibraryNotFoundError")  # of anyio, of sniffio


def refuse_in_event_loop() -> None:
    """Raise SyncCallError if an event loop of asyncio or trio runs in this thread: the call would stop it."""
    # Another thread may be importing either just now: then there is no loop yet.
    running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    if running_loop is not None and running_loop() is not None:
        raise _in_loop("asyncio")
    in_trio_run = getattr(sys.modules.get("trio.lowlevel"), "in_trio_run", None)
    if in_trio_run is not None and in_trio_run():
        raise _in_loop("trio")


def _in_loop(library: str) -> SyncCallError:
    return SyncCallError(
        f"a SyncBroker blocks, and the event loop of {library} runs in this thread: everything in it would wait. "
        "Nothing was sent. Use RedisBroker there, or call the SyncBroker in a thread (anyio.to_thread.run_sync, "
        "asyncio.to_thread); see docs/sync.md (event loops)"
    )


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in this thread. Raises what it raises, and SyncCallError if it suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise suspended(coroutine)


def suspended(coroutine: Coroutine[Any, Any, Any], who: str = "what a SyncBroker called") -> SyncCallError:
    """Close a coroutine that has suspended, and return the error."""
    coroutine.close()
    return needs_loop(who)


def needs_loop(who: str) -> SyncCallError:
    """Return the error of something that waits for an event loop. `who` is that, for the message."""
    return SyncCallError(
        f"{who} waits for something else than the server (a pause, a lock, another connection), and a SyncBroker has "
        "no event loop. Nothing was sent. Send through RedisBroker, in an event loop or a portal of anyio "
        "(docs/client.md, sync programs), or have the middleware await send_next alone"
    )


def asks_for_loop(error: BaseException) -> bool:
    """Return whether an error says that there is no event loop."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ in _NO_LOOP_ERRORS or any(text in str(error) for text in _NO_LOOP)
    )


def iterate(generator: AsyncGenerator[T, None]) -> Iterator[T]:
    """Yield what an async generator yields. It is closed with this one."""
    try:
        while True:
            refuse_in_event_loop()
            try:
                item = run_now(generator.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run_now(generator.aclose())
