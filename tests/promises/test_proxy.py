"""P9: a connection that swallows everything, and one that loses its replies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import anyio
import anyio.abc
import pytest

from streamq import RedisBroker, Worker, task
from streamq.client.sockets import SocketStream
from streamq.errors import BrokerError, BrokerUnavailableError, OutcomeUnknownError
from tests.servers import RealServer

pytestmark = [pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(90)]
effects: list[int] = []


@task
async def effect(number: int) -> None:
    """Record it."""
    effects.append(number)


class Proxy:
    """Stands between client and server, and fails them on demand."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.clear = anyio.Event()  # replaced by one that is not set: nothing passes
        self.clear.set()
        self.loses_replies = False

    async def serve(self, client: anyio.abc.SocketStream) -> None:
        """Carry one connection until either side, or a fault, ends it."""
        async with client, await SocketStream.to_path(self._path) as server, anyio.create_task_group() as pumps:
            pumps.start_soon(self._pump, client, server)
            pumps.start_soon(self._pump, server, client)

    async def _pump(self, source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream) -> None:
        replies = isinstance(source, SocketStream)
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while not (replies and self.loses_replies):
                data = await source.receive()
                await self.clear.wait()
                if not (replies and self.loses_replies):
                    await sink.send(data)
        await source.aclose()  # which ends the other pump
        await sink.aclose()


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.01)


async def accepted(broker: RedisBroker, number: int) -> None:
    """Send with the same task id until it is accepted for certain."""
    while True:
        try:
            await broker.enqueue(effect.options(task_id=f"effect-{number}"), number)
        except BrokerError:
            await anyio.sleep(0.05)
        else:
            return


async def test_a_black_hole_and_lost_replies(real_server: RealServer, anyio_backend: str) -> None:
    """Bounded waits, honest errors, and every task once: those whose replies were lost as well."""
    effects.clear()
    proxy = Proxy(real_server.socket)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    url = f"redis://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, proxy.serve)
        async with RedisBroker(url, connect_timeout=1, reply_timeout=1) as broker:
            worker = Worker(broker, [effect], visibility_timeout=1.5)
            await group.start(worker.run)
            for number in range(20):
                await broker.enqueue(effect, number)
            await until(lambda: len(effects) == 20)

            proxy.clear = anyio.Event()
            with anyio.fail_after(6), pytest.raises(OutcomeUnknownError) as raised:
                await broker.enqueue(effect.options(task_id="effect-20"), 20)
            assert raised.value.task_id == "effect-20"
            with anyio.fail_after(6), pytest.raises(BrokerUnavailableError):
                await broker.enqueue(effect.options(task_id="effect-21"), 21)
            await until(lambda: worker.health.trouble is not None)
            proxy.clear.set()
            await accepted(broker, 20)
            await accepted(broker, 21)
            await until(lambda: worker.health.trouble is None)

            proxy.loses_replies = True
            for number in range(22, 26):
                with pytest.raises(BrokerError):
                    await broker.enqueue(effect.options(task_id=f"effect-{number}"), number)
            proxy.loses_replies = False
            for number in range(22, 26):
                await accepted(broker, number)
            await until(lambda: len(effects) >= 26)
            await until(lambda: real_server.command("XLEN", "queue:standard") == 0)
            assert sorted(effects) == list(range(26))
            worker.stop()
            await until(lambda: worker.state == "stopped")
        group.cancel_scope.cancel()
