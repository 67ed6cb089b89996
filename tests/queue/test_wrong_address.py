"""An address that reaches something, and not what was meant: which error it is, and what to do about it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from streamq import RedisBroker, task
from streamq.doctor import examine
from streamq.errors import BrokerError, BrokerUnavailableError
from streamq.queue.remedies import LOADED, START_SERVER, remedy_of
from streamq.queue.server_errors import concerns_server, translated

pytestmark = [pytest.mark.anyio, pytest.mark.paired]


@task
async def send() -> None:
    """Is never run."""


@asynccontextmanager
async def listening(reply: bytes):
    """Yield the port of a server that answers everything with these bytes, once for each command."""

    async def answer(stream):
        async with stream:
            with anyio.move_on_after(5):
                while True:
                    for _ in range((await stream.receive()).count(b"*")):
                        await stream.send(reply)

    async def serve(stream):
        try:
            await answer(stream)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        group.cancel_scope.cancel()


async def refused(url):
    """Return the error of an enqueue, and the doctor's finding about the server."""
    async with RedisBroker(url, connect_timeout=1, reply_timeout=1) as broker:
        with pytest.raises(BrokerError) as raised:
            await broker.enqueue(send)
        (finding,) = (await examine(broker)).findings
    return raised.value, finding


async def test_a_database_that_is_not_there(real_server, anyio_backend):
    """It is no outage: to try again, or to start a server, is no use."""
    error, finding = await refused(f"{real_server.url}?db=99")
    assert (type(error), error.code, concerns_server(error)) == (BrokerError, "ADDRESS", True)
    assert "refuses database 99: DB index is out of range; give one that it has" in str(error)
    assert remedy_of(error) == ""
    assert (finding.code, START_SERVER in finding.remedy) == ("unreachable", False)


async def test_a_password_that_the_server_does_not_have(real_server, anyio_backend):
    """It is to be left out, and not to be written."""
    error, finding = await refused(real_server.url.replace("unix://", "unix://:hunter2@"))
    assert (type(error), error.code) == (BrokerError, "NOAUTH")
    assert str(error).endswith(f"it has no password; leave the password out of the URL: unix://{real_server.socket}")
    assert (finding.code, finding.message.endswith("it has no password")) == ("login_refused", True)
    assert finding.remedy.startswith("leave the password out of the URL: unix://")
    assert finding.remedy.endswith("; give it with --url or STREAMQ_URL")
    assert "hunter2" not in f"{error}{finding}"


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ESMTP\r\n"])
async def test_another_protocol(reply, anyio_backend):
    """A port of a web server, say."""
    async with listening(reply) as port:
        error, finding = await refused(f"redis://127.0.0.1:{port}")
    assert (type(error), error.code) == (BrokerError, "ADDRESS")
    assert f"127.0.0.1:{port} does not answer as a Redis or Valkey server does" in str(error)
    assert str(error).endswith("give the address of one")
    assert (finding.code, finding.remedy) == ("unreachable", "")


async def test_a_server_that_loads(anyio_backend):
    """It runs: it is to be waited for, and not to be started."""
    async with listening(b"-LOADING Redis is loading the dataset in memory\r\n") as port:
        error, finding = await refused(f"redis://127.0.0.1:{port}")
    assert type(error) is BrokerUnavailableError
    assert remedy_of(error) == LOADED
    assert (finding.code, finding.remedy) == ("not_ready", LOADED)


async def test_a_node_of_a_cluster_without_these_keys(anyio_backend):
    """Another node has them."""
    from streamq.client.resp_codec import reply_error

    error = translated(reply_error("MOVED 3999 127.0.0.1:6381"))
    assert (error.code, concerns_server(error)) == ("MOVED", True)
    assert "another node has these keys" in remedy_of(error)
