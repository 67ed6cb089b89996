"""Our own byte streams over sockets."""

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
    """A socket that listens, and its path; short, unlike some tmp_path."""
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


async def receive(stream, received):
    try:
        received.append(await stream.receive())
    except anyio.ClosedResourceError:
        received.append("closed")


@pytest.mark.parametrize("way", ["closed", "cancelled"])
async def test_data_that_arrive_in_the_turn_in_which_the_stream_ends(ends, way):
    """Closed or cancelled in the same turn of the loop that finds it readable: nothing is raised in the loop."""
    stream, peer = ends
    received = []
    async with anyio.create_task_group() as group:
        group.start_soon(receive, stream, received)
        await anyio.wait_all_tasks_blocked()
        peer.send(b"x")
        await anyio.lowlevel.checkpoint()  # the loop has seen it, and runs this task first
        if way == "closed":
            await stream.aclose()
        else:
            group.cancel_scope.cancel()
    assert received in ([[b"x"], ["closed"]] if way == "closed" else [[b"x"], []])
    await anyio.wait_all_tasks_blocked()


async def test_all_bytes_pass_both_ways(ends):
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


async def test_each_end_gets_its_error(ends):
    """EndOfStream if the other end is closed, ClosedResourceError in a task that waits while this end is closed."""
    stream, peer = ends
    received = []
    async with anyio.create_task_group() as group:
        group.start_soon(receive, stream, received)
        await anyio.wait_all_tasks_blocked()
        await stream.send_eof()
        assert peer.recv(10) == b""
        await stream.aclose()
    assert received == ["closed"]
    assert repr(stream) == "<SocketStream closed fd=-1>"
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"x")
    await stream.aclose()


async def test_a_peer_that_is_gone(ends):
    """Its last bytes are read first, then EndOfStream. Sending raises BrokenResourceError."""
    stream, peer = ends
    peer.send(b"last")
    peer.close()
    assert await stream.receive() == b"last"
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await stream.send(b"x")


async def test_send_now(ends):
    """`send_now` sends as many bytes as the kernel takes and returns their number. `send` waits for room."""
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


async def test_received_by_callback(ends, anyio_backend_name):
    """If the loop has callbacks, they get the bytes in order, then the end, once. Otherwise there are none."""
    stream, peer = ends
    received, ended = [], anyio.Event()

    def end(error):
        received.append(type(error))
        ended.set()

    by_callback = stream.receive_by_callback(
        lambda data, now: received.append((data, now <= anyio.current_time())), end
    )
    assert by_callback == (anyio_backend_name != "trio")
    if not by_callback:
        return
    for part in (b"one", b"two"):
        seen = len(received)
        peer.send(part)
        while len(received) == seen:
            await anyio.lowlevel.checkpoint()
    peer.close()
    await ended.wait()
    await anyio.wait_all_tasks_blocked()
    assert received == [(b"one", True), (b"two", True), anyio.EndOfStream]


async def test_closed_while_received_by_callback(ends, anyio_backend_name):
    """No callback is called after the close, not even that for the end."""
    stream, peer = ends
    received = []
    if stream.receive_by_callback(lambda data, now: received.append(data), received.append):
        assert "callback" in repr(stream)
        peer.send(b"late")
        await stream.aclose()
        await anyio.wait_all_tasks_blocked()
    assert received == []


async def test_no_server_listens():
    """OSError, as every Dial promises, and no socket is left open (warnings are errors)."""
    with listening() as (listener, path):
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await SocketStream.to_path(path)
        with pytest.raises(FileNotFoundError):
            await SocketStream.to_path(path + "x")


@contextmanager
def ports(*kinds):
    """TCP ports of 127.0.0.1 that accept, refuse, or do not answer, in the form of `_addresses`."""
    with ExitStack() as stack:
        found = []
        for kind in kinds:
            listener = stack.enter_context(closing(socket.socket()))
            listener.bind(("127.0.0.1", 0))
            address = listener.getsockname()
            if kind == "accepts":
                listener.listen()
            elif kind == "silent":  # its queue is full: the kernel drops new connections
                listener.listen(0)
                for _ in range(3):
                    attempt = stack.enter_context(closing(socket.socket()))
                    attempt.setblocking(False)
                    attempt.connect_ex(address)
            found.append((int(socket.AF_INET), address))
        yield found


@pytest.mark.parametrize("first", ["refuses", "silent"])
async def test_the_next_address_is_tried(first, monkeypatch):
    """At once if one refuses, a quarter of a second later if it does not answer."""
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
    """The error is the kernel's. An unknown host is an OSError, too."""
    with ports("refuses") as ((_, (_, port)),), pytest.raises(ConnectionRefusedError):
        await SocketStream.to_host("127.0.0.1", port)
    with pytest.raises(OSError):  # noqa: PT011 - the text is the resolver's
        await SocketStream.to_host("no.such.host.invalid", 1)


async def test_the_families_take_turns():
    """The addresses of localhost, and a numeric address of each family."""
    assert await sockets._addresses("127.0.0.1", 5) == [(int(socket.AF_INET), ("127.0.0.1", 5))]
    assert [family for family, _ in await sockets._addresses("::1", 5)] == [int(socket.AF_INET6)]
    assert {address[0] for _, address in await sockets._addresses("localhost", 5)} <= {"127.0.0.1", "::1"}
