"""P14: host names are looked up by threads that nobody else can fill."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest

from streamq.client import Client, resolver
from streamq.client.resolver import look_up
from tests.promises.test_wrong_loop import in_child

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


@pytest.fixture
def names(monkeypatch):
    """A resolver of names that answers when it is told to; its calls, and the event that ends them."""
    calls: list[str] = []
    answer = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if kwargs.get("flags"):
            return real(host, port, *args, **kwargs)
        calls.append(host)
        answer.wait(10)
        if host == "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("127.0.0.1", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield calls, answer
    answer.set()


@contextmanager
def busy(backend: str, threads: int):
    """Fill the threads that the event loop gives to everyone."""
    release = threading.Event()
    loop = None
    if backend == "asyncio":
        loop = asyncio.get_running_loop()
        for _ in range(threads):
            loop.run_in_executor(None, release.wait, 20)
    try:
        yield
    finally:
        release.set()


async def test_a_name_is_looked_up_while_all_threads_of_the_loop_are_taken(anyio_backend):
    """By the pool of asyncio, and by the limiter of anyio and of trio."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    release = threading.Event()
    with busy(anyio_backend, 64):
        async with anyio.create_task_group() as group:
            for _ in range(int(limiter.total_tokens)):
                group.start_soon(anyio.to_thread.run_sync, release.wait, 20)
            while limiter.available_tokens:
                await anyio.sleep(0.01)
            with anyio.fail_after(5):
                found = await look_up("localhost", 6379)
            release.set()
    assert {row[4][0] for row in found} <= {"127.0.0.1", "::1"}


async def test_a_numeric_address_needs_no_look_up(names):
    """Of either family."""
    calls, _ = names
    assert (await look_up("127.0.0.1", 1))[0][4] == ("127.0.0.1", 1)
    assert (await look_up("::1", 1))[0][4][:2] == ("::1", 1)
    assert calls == []


async def test_a_look_up_can_be_cancelled_and_all_that_want_a_name_share_one_thread(names):
    """A resolver that hangs does not gather threads, however often a connection is tried."""
    calls, answer = names
    for _ in range(5):
        with anyio.move_on_after(0.05) as scope:
            await look_up("slow.test", 5)
        assert scope.cancelled_caught
    found = []

    async def wait() -> None:
        found.append(await look_up("slow.test", 5))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
        await anyio.sleep(0.05)
        answer.set()
    assert calls == ["slow.test"]
    assert [rows[0][4] for rows in found] == [("127.0.0.1", 5)] * 3
    assert resolver._in_progress == {}


async def test_the_error_of_a_name_names_it(names):
    """And each that waits gets an exception of its own."""
    _, answer = names
    answer.set()
    async with Client.from_url("redis://unknown.test:7") as client:
        with pytest.raises(Exception, match=r"unknown\.test:7: .*not known"):
            await client.ping()
    errors = []

    async def wait() -> None:
        try:
            await look_up("unknown.test", 7)
        except OSError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(wait)
    assert len({id(error) for error in errors}) == 2


async def test_a_connection_is_given_up_in_time_while_its_name_is_looked_up(names):
    """The connect timeout bounds the look-up, too."""
    started = time.monotonic()
    async with Client.from_url("redis://slow.test:7", connect_timeout=0.3) as client:
        with pytest.raises(Exception, match=r"slow\.test:7"):
            await client.ping()
    assert time.monotonic() - started < 3


async def test_a_name_that_cannot_be_encoded_is_an_error_of_the_connection():
    """A label may have 63 characters."""
    async with Client.from_url("redis://" + "ü" * 80 + ":7") as client:
        with pytest.raises(Exception, match=r"ü:7: .*label"):
            await client.ping()


async def test_a_thread_that_the_system_does_not_have_is_waited_for(monkeypatch):
    """Until the system has one, or shortly before the caller would give up: then the error says why."""
    real, refusals = threading.Thread.start, [3]

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("streamq resolver") and refusals[0]:
            refusals[0] -= 1
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with anyio.fail_after(5):
        assert await look_up("localhost", 1)
    assert refusals == [0]
    refusals[0] = 1000
    with anyio.fail_after(1), pytest.raises(OSError, match=r"no thread to look up 'localhost' \(can't start"):
        await look_up("localhost", 1)


async def test_loops_in_several_threads_share_a_look_up(names, anyio_backend):
    """Each is woken in its own loop."""
    calls, answer = names
    found = []

    def other() -> None:
        found.append(anyio.run(look_up, "slow.test", 5, backend=anyio_backend))

    threads = [threading.Thread(target=other) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not calls:
        await anyio.sleep(0.01)
    await anyio.sleep(0.1)
    answer.set()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert len(found) == 3


async def test_a_forked_child_does_not_wait_for_look_ups_of_its_parent(names):
    """Their threads are not in the child."""
    _, answer = names

    async def look() -> str:
        with anyio.fail_after(5):
            return str((await look_up("slow.test", 5))[0][4])

    def child() -> str:
        answer.set()
        return asyncio.run(look())

    with anyio.move_on_after(0.05):
        await look_up("slow.test", 5)
    assert await anyio.to_thread.run_sync(in_child, child) == "('127.0.0.1', 5)"
