"""The endpoint for probes and scrapes: a real socket, real requests, a worker beside it."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from streamq import RedisBroker, Worker, task
from streamq.errors import ConfigurationError
from streamq.exporters import Endpoint, QueueCollector
from streamq.exporters import endpoint as module
from streamq.monitoring import QueueMonitor
from tests.at_work import until, working
from tests.servers import fresh_server


@task
async def work(seconds: float = 0.0) -> None:
    await anyio.sleep(seconds)


@asynccontextmanager
async def served(broker, worker=None, **options):
    """Serve an endpoint; yield it, and a client of it."""
    options = {"port": 0, "registry": CollectorRegistry()} | options
    endpoint = Endpoint(QueueCollector(QueueMonitor(broker=broker)), worker=worker, **options)
    async with anyio.create_task_group() as group:
        port = await group.start(endpoint.serve)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield endpoint, client
        group.cancel_scope.cancel()


async def raw(port: int, sent: bytes) -> bytes:
    """Send bytes, and return the whole answer."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(sent)
        found = b""
        with anyio.fail_after(15):
            while True:
                try:
                    found += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return found


class TestProbes:
    async def test_a_worker_is_ready_while_it_reads(self, server):
        """Not before it has started, and not once it drains; alive until it has ended."""
        async with RedisBroker(server.url) as broker:
            worker = Worker(broker, tasks=[work])
            async with served(broker, worker) as (_, client), anyio.create_task_group() as group:
                before = await client.get("/readyz")
                assert (before.status_code, before.text) == (503, "the worker is new\n")
                assert (await client.get("/livez")).status_code == 200
                await group.start(worker.run)
                assert (await client.get("/readyz")).text == "ok\n"
                await broker.enqueue(work, 60)
                await until(lambda: worker.health.running)
                worker.stop()
                await until(lambda: worker.state == "draining")
                assert (await client.get("/readyz")).text == "the worker is draining\n"
                assert (await client.get("/livez")).status_code == 200
                worker.stop()
                await until(lambda: worker.state == "stopped")
                assert (await client.get("/livez")).status_code == 503

    @pytest.mark.parametrize("kind", ["redis", "valkey"])
    async def test_a_lost_server_makes_it_unready_and_not_dead(self, kind):
        """With the reason; ready again once the server is back."""
        with fresh_server(kind) as server:
            async with (
                RedisBroker(server.url) as broker, working(broker, work) as worker,
                served(broker, worker) as (_, client),
            ):  # fmt: skip
                assert (await client.get("/readyz")).status_code == 200
                server.kill()
                await until(lambda: worker.health.trouble)
                lost = await client.get("/readyz")
                assert (lost.status_code, lost.text.startswith("the worker is running: ")) == (503, True)
                assert (await client.get("/livez")).status_code == 200
                assert "streamq_up 0.0" in (await client.get("/metrics")).text
                server.restart()
                await until(lambda: worker.health.ready)
                assert (await client.get("/readyz")).status_code == 200

    @pytest.mark.parametrize("kind", ["redis", "valkey"])
    async def test_a_server_that_hangs_makes_it_unready(self, kind):
        """Before anything has failed: it has not answered for the visibility timeout."""
        with fresh_server(kind) as server:
            async with (
                RedisBroker(server.url, reply_timeout=30) as broker,
                working(broker, work, visibility_timeout=1.0) as worker, served(broker, worker) as (_, client),
            ):  # fmt: skip
                await until(lambda: worker.health.ready)
                os.kill(server.pid, signal.SIGSTOP)
                await until(lambda: not worker.health.ready)
                assert "has not answered lately" in (await client.get("/readyz")).text
                os.kill(server.pid, signal.SIGCONT)
                await until(lambda: worker.health.ready)

    async def test_without_a_worker_it_is_ready_once_it_has_read_the_figures(self, server):
        async with RedisBroker(server.url) as broker, served(broker) as (endpoint, client):
            assert (await client.get("/readyz")).status_code == 503
            await endpoint.refresh()
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get("/livez")).status_code == 200


class TestMetrics:
    async def test_the_figures_of_the_queue_and_of_the_program(self, server):
        """In both formats of Prometheus; what handlers count is there, too."""
        registry = CollectorRegistry()
        mails = Counter("mails", "Mails that were sent", registry=registry)
        async with RedisBroker(server.url) as broker, served(broker, registry=registry) as (_, client):
            await broker.enqueue_many([work.call() for _ in range(3)])
            mails.inc(7)
            plain = await client.get("/metrics")
            assert plain.headers["content-type"].startswith("text/plain")
            assert 'streamq_depth{tier="standard"} 3.0\n' in plain.text
            assert "mails_total 7.0\n" in plain.text
            other = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
            assert other.headers["content-type"].startswith("application/openmetrics-text")
            assert other.text.endswith("# EOF\n")

    async def test_scrapes_at_once_share_a_round_trip(self, server, monkeypatch):
        async with RedisBroker(server.url) as broker, served(broker) as (endpoint, client):
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(client.get, "/metrics")
            assert "1 refreshed" in repr(endpoint.collector)
            monkeypatch.setattr(module, "_FRESH", 0.0)
            await client.get("/metrics")
            assert "2 refreshed" in repr(endpoint.collector)

    async def test_a_scrape_does_not_wait_for_ever(self, monkeypatch):
        """A server that hangs: old figures are not taken for new ones."""
        monkeypatch.setattr(module, "_REFRESH_WAIT", 0.3)
        monkeypatch.setattr(module, "_FRESH", 0.0)
        with fresh_server("valkey") as server:
            async with RedisBroker(server.url, reply_timeout=30) as broker, served(broker) as (_, client):
                assert "streamq_up 1.0" in (await client.get("/metrics")).text
                os.kill(server.pid, signal.SIGSTOP)
                assert "streamq_up 0.0" in (await client.get("/metrics")).text
                os.kill(server.pid, signal.SIGCONT)
                assert "streamq_up 1.0" in (await client.get("/metrics")).text

    async def test_it_leaves_the_registry_as_it_was(self, server):
        registry = CollectorRegistry()
        async with RedisBroker(server.url) as broker:
            async with served(broker, registry=registry):
                assert registry.get_sample_value("streamq_up") == 0
                with pytest.raises(BaseExceptionGroup) as info:
                    async with served(broker, registry=registry):
                        pass
                assert info.group_contains(ConfigurationError, match="another registry")
            assert registry.get_sample_value("streamq_up") is None


class TestRequests:
    """Whoever can connect can ask: nothing that is sent may harm the worker beside it."""

    async def test_other_paths_and_methods(self, server):
        async with RedisBroker(server.url) as broker, served(broker) as (endpoint, client):
            assert (await client.get("/")).status_code == 404
            assert (await client.get("/livez?verbose=1")).status_code == 200
            post = b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000
            assert (await raw(endpoint.port, post)).startswith(b"HTTP/1.1 405")
            head = await client.head("/livez")
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "3")

    @pytest.mark.parametrize(
        "sent",
        [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /livez HTTP/1.1\r\nA: " + b"x" * 100_000,
         b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"],
    )  # fmt: skip
    async def test_what_is_no_request(self, server, sent):
        """An answer of 4xx, or none; the next one has its answer."""
        async with RedisBroker(server.url) as broker, served(broker) as (endpoint, client):
            with anyio.move_on_after(1):
                found = await raw(endpoint.port, sent)
                assert found == b"" or found.startswith(b"HTTP/1.1 4")
            assert (await client.get("/livez")).status_code == 200

    async def test_silent_clients_are_few_and_do_not_stay(self, server, monkeypatch):
        """Beyond a number they are closed at once, and each after a time."""
        monkeypatch.setattr(module, "_MOST_CONNECTIONS", 3)
        monkeypatch.setattr(module, "_TIME_LIMIT", 1.0)
        async with RedisBroker(server.url) as broker, served(broker) as (endpoint, client):
            silent = [await anyio.connect_tcp("127.0.0.1", endpoint.port) for _ in range(5)]
            await until(lambda: endpoint._connections == 3)
            with pytest.raises(httpx.TransportError):
                await client.get("/livez")
            await until(lambda: endpoint._connections == 0)
            assert (await client.get("/livez")).status_code == 200
            for stream in silent:
                await anyio.aclose_forcefully(stream)

    async def test_a_client_that_reads_nothing_does_not_stay(self, server, monkeypatch):
        monkeypatch.setattr(module, "_TIME_LIMIT", 0.5)
        registry = CollectorRegistry()
        for number in range(2_000):
            Counter(f"large_{number}", "x" * 4_000, registry=registry)
        async with RedisBroker(server.url) as broker, served(broker, registry=registry) as (endpoint, client):
            async with await anyio.connect_tcp("127.0.0.1", endpoint.port) as stream:
                await stream.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                await until(lambda: endpoint._connections == 1)
                await until(lambda: endpoint._connections == 0)
            assert (await client.get("/livez")).status_code == 200


class TestListening:
    async def test_nothing_can_listen_there(self, server):
        """A port that is taken, an address of another machine, a name that is none."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            async with RedisBroker(server.url) as broker:
                for options in ({"port": port}, {"host": "192.0.2.1"}, {"host": "no such host"}):
                    with pytest.raises(BaseExceptionGroup) as info:
                        async with served(broker, **options):
                            pass
                    assert info.group_contains(ConfigurationError, match="nothing can listen at")

    @pytest.mark.parametrize("port", [-1, 65_536, "80", True, 1.5])
    async def test_no_port(self, server, port):
        async with RedisBroker(server.url) as broker:
            with pytest.raises(ConfigurationError, match="port="):
                Endpoint(QueueCollector(QueueMonitor(broker=broker)), port=port)

    async def test_two_processes_of_one_worker_share_a_port(self, server):
        """While one is replaced: the old one stops listening, and ends when its answers are sent."""
        async with RedisBroker(server.url) as broker:
            collector = QueueCollector(QueueMonitor(broker=broker))
            old = Endpoint(collector, port=0, registry=CollectorRegistry(), reuse_port=True)
            async with anyio.create_task_group() as group:
                port = await group.start(old.serve)
                async with served(broker, port=port, reuse_port=True) as (_, client):
                    old.stop_listening()
                    # What comes before it has closed its socket is reset: a probe asks again.
                    await anyio.sleep(0.05)
                    for _ in range(20):
                        assert (await client.get("/livez")).status_code == 200
