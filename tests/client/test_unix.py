"""Streams over unix sockets."""

from __future__ import annotations

import socket
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from streamq.client.unix import UnixStream


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
        async with await UnixStream.connect(path) as stream:
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
    assert repr(stream) == "<UnixStream closed>"
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


async def test_nobody_listens():
    """OSError, as every Dial says it, and no socket is left open (warnings are errors)."""
    with listening() as (listener, path):
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await UnixStream.connect(path)
        with pytest.raises(FileNotFoundError):
            await UnixStream.connect(path + "x")
