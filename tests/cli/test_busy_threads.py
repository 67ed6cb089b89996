"""The threads for which the exit of a worker would wait: which of them are named."""

from __future__ import annotations

import queue
import threading

import anyio
import anyio.to_thread
import pytest

from streamq.cli.busy_threads import busy_threads, living_threads


@pytest.fixture
def anyio_backend() -> str:
    """Those of asyncio alone: trio's threads are daemons."""
    return "asyncio"


async def test_a_thread_that_waits_for_the_next_call_is_not_busy(anyio_backend):
    """One whose function runs is. anyio keeps a thread whose function has returned."""
    begun, gate = threading.Event(), threading.Event()

    def held() -> None:
        begun.set()
        gate.wait(30)

    before = set(living_threads())
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, held)
        while not begun.is_set():
            await anyio.sleep(0.001)
        (thread,) = set(living_threads()) - before
        assert thread in busy_threads()
        gate.set()
    assert thread.is_alive()
    assert thread not in busy_threads()


def test_a_thread_at_a_queue_of_its_own_is_busy():
    """Nobody knows what it waits for."""
    items: queue.Queue[None] = queue.Queue()
    thread = threading.Thread(target=items.get)
    thread.start()
    try:
        assert thread in busy_threads()
    finally:
        items.put(None)
        thread.join()
