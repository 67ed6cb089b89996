"""Streams over sockets of our own."""

from __future__ import annotations

import socket
import tempfile
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute

from streamq.client import sockets
from streamq.client.sockets import SocketStream


@contextmanager
def listening():
    """A socket that listens, and its path; a short one, whatever tmp_path is."""
    with tempfile.TemporaryDirectory() as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        path = str(Path(folder) / "s")
        listener.bind(path)
        listener.listen(1)
        yield listener, path


@pytest.fixture
async def ends():
    """A stream, and the socket at its other end."""
    with listening() as (listener, path):
        async with await SocketStream.to_path(path) as stream:
            with closing(listener.accept()[0]) as peer:
                yield stream, peer


async def receive(stream, heard):
    try:
        heard.append(await stream.receive())
    except anyio.ClosedResourceError:
        heard.append("closed")


@pytest.mark.parametrize("way", ["closed", "cancelled"])
async def test_data_that_arrive_in_the_turn_in_which_it_ends(ends, way):
    """Closed or cancelled in the very turn of the loop that finds it readable: nothing is raised in the loop."""
    stream, peer = ends
    heard = []
    async with anyio.create_task_group() as group:
        group.start_soon(receive, stream, heard)
        await anyio.wait_all_tasks_blocked()
        peer.send(b"x")
        await anyio.lowlevel.checkpoint()  # the loop has seen it, and goes on with this task first
        if way == "closed":
            await stream.aclose()
        else:
            group.cancel_scope.cancel()
    assert heard in ([[b"x"], ["closed"]] if way == "closed" else [[b"x"], []])
    await anyio.wait_all_tasks_blocked()


async def test_all_of_it_passes_both_ways(ends):
    """More than the socket's buffers hold at once."""
    stream, peer = ends
    peer.setblocking(True)
    whole = bytes(range(256)) * 8192

    def echo():
        left = len(whole)
        while left:
            data = peer.recv(65536)
            peer.sendall(data)
            left -= len(data)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, echo)
        group.start_soon(stream.send, whole)
        got = b""
        while len(got) < len(whole):
            got += await stream.receive()
    assert got == whole


async def test_each_end_is_told(ends):
    """EndOfStream when the other end is closed, ClosedResourceError for who waits while this one is."""
    stream, peer = ends
    heard = []
    async with anyio.create_task_group() as group:
        group.start_soon(receive, stream, heard)
        await anyio.wait_all_tasks_blocked()
        await stream.send_eof()
        assert peer.recv(10) == b""
        await stream.aclose()
    assert heard == ["closed"]
    assert repr(stream) == "<SocketStream closed fd=-1>"
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"x")
    await stream.aclose()


async def test_a_peer_that_is_gone(ends):
    """What it sent is read first; then EndOfStream, and BrokenResourceError for what is sent."""
    stream, peer = ends
    peer.send(b"last")
    peer.close()
    assert await stream.receive() == b"last"
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await stream.send(b"x")


async def test_sent_from_where_the_caller_stands(ends):
    """`send_now` sends what the kernel takes and says how much that was; `send` waits for room for the rest."""
    stream, peer = ends
    taken = 0
    while count := stream.send_now(bytes(1 << 16)):
        taken += count
    async with anyio.create_task_group() as group:
        group.start_soon(stream.send, b"the rest")
        await anyio.wait_all_tasks_blocked()
        peer.setblocking(True)
        while taken:
            taken -= len(peer.recv(min(taken, 1 << 16)))
    assert peer.recv(100) == b"the rest"


async def test_followed_without_a_task(ends, anyio_backend_name):
    """Where the loop has callbacks what arrives is handed over in order, then the end, once; elsewhere it is not."""
    stream, peer = ends
    heard, ended = [], anyio.Event()

    def end(error):
        heard.append(type(error))
        ended.set()

    following = stream.follow(lambda data, now: heard.append((data, now <= anyio.current_time())), end)
    assert following == (anyio_backend_name != "trio")
    if not following:
        return
    for part in (b"one", b"two"):
        seen = len(heard)
        peer.send(part)
        while len(heard) == seen:
            await anyio.lowlevel.checkpoint()
    peer.close()
    await ended.wait()
    await anyio.wait_all_tasks_blocked()
    assert heard == [(b"one", True), (b"two", True), anyio.EndOfStream]


async def test_closed_while_followed(ends, anyio_backend_name):
    """Nothing is heard any more, not even the end."""
    stream, peer = ends
    heard = []
    if stream.follow(lambda data, now: heard.append(data), heard.append):
        assert "following" in repr(stream)
        peer.send(b"late")
        await stream.aclose()
        await anyio.wait_all_tasks_blocked()
    assert heard == []


async def test_nobody_listens():
    """OSError, as every Dial says it, and no socket is left open (warnings are errors)."""
    with listening() as (listener, path):
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await SocketStream.to_path(path)
        with pytest.raises(FileNotFoundError):
            await SocketStream.to_path(path + "x")


@contextmanager
def ports(*kinds):
    """TCP ports of 127.0.0.1 that accept, refuse, or say nothing at all, as `_addresses` gives them."""
    with ExitStack() as stack:
        found = []
        for kind in kinds:
            listener = stack.enter_context(closing(socket.socket()))
            listener.bind(("127.0.0.1", 0))
            address = listener.getsockname()
            if kind == "accepts":
                listener.listen()
            elif kind == "silent":  # its queue is full: the kernel drops what knocks
                listener.listen(0)
                for _ in range(3):
                    knock = stack.enter_context(closing(socket.socket()))
                    knock.setblocking(False)
                    knock.connect_ex(address)
            found.append((int(socket.AF_INET), address))
        yield found


@pytest.mark.parametrize("first", ["refuses", "silent"])
async def test_the_next_address_is_tried(first, monkeypatch):
    """At once if one refuses, a quarter of a second later if it says nothing."""
    with ports(first, "accepts") as found:

        async def addresses(host, port):
            return found

        monkeypatch.setattr(sockets, "_addresses", addresses)
        with anyio.fail_after(10):
            async with await SocketStream.to_host("both", 1) as stream:
                raw = stream.extra(SocketAttribute.raw_socket)
                assert raw.getpeername() == found[1][1]
                assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_no_address_accepts():
    """The error is the kernel's; an unknown host is an OSError, too."""
    with ports("refuses") as ((_, (_, port)),), pytest.raises(ConnectionRefusedError):
        await SocketStream.to_host("127.0.0.1", port)
    with pytest.raises(OSError):  # noqa: PT011 - what it says is the resolver's business
        await SocketStream.to_host("no.such.host.invalid", 1)


async def test_the_families_take_turns():
    """The names of this machine itself, and a number of either family."""
    assert await sockets._addresses("127.0.0.1", 5) == [(int(socket.AF_INET), ("127.0.0.1", 5))]
    assert [family for family, _ in await sockets._addresses("::1", 5)] == [int(socket.AF_INET6)]
    assert {address[0] for _, address in await sockets._addresses("localhost", 5)} <= {"127.0.0.1", "::1"}
