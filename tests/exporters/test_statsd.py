"""StatsD: what a server of ours receives, over UDP and over a socket of Unix."""

from __future__ import annotations

import re
import socket
from collections import Counter
from contextlib import asynccontextmanager, closing, contextmanager

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, task
from streamq.consumer.events import Recovered, Settled, Trouble
from streamq.errors import ConfigurationError
from streamq.exporters import StatsdExporter
from streamq.exporters import statsd as module
from streamq.monitoring import QueueMonitor
from streamq.tasks.outcome import Ack
from streamq.wire.delivery import Delivery
from tests.at_work import burst
from tests.servers import fresh_server

LINE = re.compile(r"([\w.()]+):(-?[\d.]+)\|(c|g|ms)(?:\|@([\d.]+))?(?:\|#(.+))?")


@task(retries=0)
async def work(fate: str = "well") -> None:
    match fate:
        case "fail":
            raise ValueError
        case "reject":
            raise Reject
        case "later":
            raise RetryLater(after=1000)


@contextmanager
def receiving(path=None):
    """Yield a socket that a StatsD server would have."""
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(str(path) if path else ("127.0.0.1", 0))
        server.setblocking(False)
        yield server


@asynccontextmanager
async def exporting(statsd=None, **options):
    """Yield an exporter that sends to this server."""
    port = statsd.getsockname()[1] if statsd and statsd.family == socket.AF_INET else 8125
    with closing(StatsdExporter(port=port, **options)) as exporter:
        yield exporter


def received(server) -> list[tuple[str, ...]]:
    """Return the parsed lines of all packets that have come."""
    lines = []
    while True:
        try:
            packet = server.recv(65_536)
        except BlockingIOError:
            return [LINE.fullmatch(line).groups(default="") for line in lines]
        assert len(packet) <= module.PACKET
        lines += packet.decode().split("\n")


def settled(name: str, duration: float = 0.25) -> Settled:
    return Settled(Delivery(1, "standard", b"1-1", [b"task", name.encode()]), Ack(), duration)


class TestEvents:
    async def test_of_a_worker(self, server):
        """Runs by task, tier and outcome; the time of each; the last of it when it ends."""
        with receiving() as statsd:
            exporter = StatsdExporter(port=statsd.getsockname()[1])
            async with RedisBroker(server.url) as broker, exporter.lifespan():
                await broker.enqueue_many([work.call(fate) for fate in ("well", "well", "fail", "reject", "later")])
                await burst(broker, work, listeners=[exporter])
            lines = received(statsd)
        runs = {tags: int(value) for name, value, kind, _, tags in lines if (name, kind) == ("streamq.runs", "c")}
        assert runs == {
            "task:work,tier:standard,outcome:done": 2, "task:work,tier:standard,outcome:died": 2,
            "task:work,tier:standard,outcome:postponed": 1,
        }  # fmt: skip
        times = [(float(value), tags) for name, value, kind, _, tags in lines if (name, kind) == ("streamq.run", "ms")]
        assert [tags for _, tags in times] == ["task:work,tier:standard"] * 4
        assert all(0 <= ms < 10_000 for ms, _ in times)

    async def test_without_tags_they_are_parts_of_the_name(self, anyio_backend):
        with receiving() as statsd:
            async with exporting(statsd, tags=False, prefix="shop") as exporter:
                exporter(settled("mail.send:now|c\n\x1b"))
                exporter(Trouble("gone"))
                exporter(Recovered(1.0))
                await exporter.send()
                assert received(statsd) == [
                    ("shop.runs.mail_send_now_c__.standard.done", "1", "c", "", ""),
                    ("shop.server_lost", "1", "c", "", ""), ("shop.server_back", "1", "c", "", ""),
                    ("shop.run.mail_send_now_c__.standard", "250.000", "ms", "", ""),
                ]  # fmt: skip

    async def test_many_times_are_a_sample_with_its_rate(self, anyio_backend):
        with receiving() as statsd:
            async with exporting(statsd) as exporter:
                for _ in range(1000):
                    exporter(settled("a"))
                await exporter.send()
                lines = received(statsd)
                assert Counter(line[0] for line in lines) == {"streamq.runs": 1, "streamq.run": module._MOST_SAMPLES}
                assert {line[3] for line in lines if line[2] == "ms"} == {"0.02"}
                await exporter.send()
                assert received(statsd) == []

    async def test_strangers_names_have_a_bound(self, anyio_backend, monkeypatch):
        """And one that fits into no packet is left out."""
        monkeypatch.setattr(module, "_MOST_KEYS", 10)
        with receiving() as statsd:
            async with exporting(statsd) as exporter:
                exporter(settled("x" * 2000))
                for number in range(50):
                    exporter(settled(f"t{number}"))
                await exporter.send()
                runs = [line for line in received(statsd) if line[0] == "streamq.runs"]
        assert sum(int(line[1]) for line in runs) == 50
        assert ("streamq.runs", "41", "c", "", "task:(other),tier:standard,outcome:done") in runs

    @pytest.mark.parametrize("name", ["a|b", "a:b", "a#b,c", "a\nfake:1|c", "\udcff", "ü"])
    async def test_a_name_forges_no_line(self, anyio_backend, name):
        with receiving() as statsd:
            async with exporting(statsd) as exporter:
                exporter(Settled(Delivery(1, "standard", b"1-1", [b"task", name.encode(errors="replace")]), Ack(), 0.1))
                await exporter.send()
                assert [line[0] for line in received(statsd)] == ["streamq.runs", "streamq.run"]


class TestState:
    async def test_of_the_queue(self, server, tmp_path):
        """Gauges by tier, over a socket of Unix."""
        path = tmp_path / "statsd.sock"
        with receiving(path) as statsd:
            async with RedisBroker(server.url) as broker:
                await broker.enqueue_many([work.call(), work.call()])
                async with exporting(path=str(path), monitor=QueueMonitor(broker=broker)) as exporter:
                    await exporter.send()
                lines = received(statsd)
        assert ("streamq.up", "1", "g", "", "") in lines
        assert ("streamq.depth", "2", "g", "", "tier:standard") in lines
        assert {line[0] for line in lines} == {
            f"streamq.{name}"
            for name in ("up", "depth", "processing", "delayed", "oldest_wait_s", "dead_letters", "consumers_alive")
        }

    async def test_a_lost_server_is_down(self, anyio_backend):
        with fresh_server("valkey") as server, receiving() as statsd:
            async with (
                RedisBroker(server.url, connect_timeout=0.2) as broker,
                exporting(statsd, monitor=QueueMonitor(broker=broker)) as exporter,
            ):  # fmt: skip
                await exporter.send()
                received(statsd)
                server.kill()
                await exporter.send()
                assert received(statsd) == [("streamq.up", "0", "g", "", "")]


async def test_a_server_that_is_not_there_is_named_once(anyio_backend, tmp_path, caplog):
    """And found when it comes."""
    path = tmp_path / "statsd.sock"
    async with exporting(path=str(path)) as exporter:
        for _ in range(3):
            exporter(settled("a"))
            await exporter.send()
        assert len([record for record in caplog.records if record.event == "statsd_lost"]) == 1
        with receiving(path) as statsd:
            exporter(settled("a"))
            await exporter.send()
            assert len(received(statsd)) == 2


async def test_no_host_of_that_name(anyio_backend, caplog):
    exporter = StatsdExporter("no such host", 8125)
    exporter(settled("a"))
    with anyio.fail_after(20):
        await exporter.send()
    assert "what is lost is not sent again" in caplog.text


@pytest.mark.parametrize(
    "given", [{"port": 0}, {"port": "8125"}, {"interval": 0}, {"host": 1}, {"tags": "yes"}, {"path": 1}]
)
def test_values_that_cannot_be_used(given):
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        StatsdExporter(**given)
