"""`streamq doctor` on badly configured servers: each finding is provoked on a real server where possible."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
from pathlib import Path

import anyio
import pytest

from streamq import RedisBroker
from streamq.client.sockets import SocketStream
from streamq.clock import Clock, ServerClock
from streamq.doctor import Severity, examine
from tests.at_work import until
from tests.doctor.examined import bad, examined, one
from tests.servers import REAL_KINDS, available, fresh_server

pytestmark = [pytest.mark.anyio, pytest.mark.paired("memory")]
KEPT = ("--appendonly", "yes")


@pytest.fixture(params=REAL_KINDS)
def kind(request):
    if not available(request.param):
        pytest.skip(f"no {request.param}-server on PATH")
    return request.param


async def found_on(kind, *arguments, **options):
    """Start a server with these options and examine it."""
    with fresh_server(kind, *arguments) as server:
        return await examined(server.url, **options)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


class TestReachable:
    async def test_unreachable(self, anyio_backend):
        """This is a finding, without the password."""
        report = await examined("redis://u:hunter2@127.0.0.1:1")
        assert bad(report) == ["unreachable"]
        assert report.exit_code() == 2
        assert "hunter2" not in str(report.as_dict())
        assert report.server == "redis://u:***@127.0.0.1:1/0"

    async def test_login_refused(self, kind, anyio_backend):
        with fresh_server(kind) as server:
            server.command("CONFIG", "SET", "requirepass", "s3cret")
            assert bad(await examined(server.url)) == ["login_refused"]
            wrong = await examined(server.url.replace("unix://", "unix://:hunter2@"))
            assert bad(wrong) == ["login_refused"]
            assert "hunter2" not in str(wrong.as_dict())
            right = await examined(server.url.replace("unix://", "unix://:s3cret@"))
            assert "permissions_fine" in right.codes()
            assert "s3cret" not in str(right.as_dict())

    @pytest.mark.slow
    async def test_not_ready(self, kind, anyio_backend):
        """A replica that has no data of its primary yet, and may not answer without it."""
        with fresh_server(kind, "--replica-serve-stale-data", "no") as server:
            server.command("REPLICAOF", "127.0.0.1", "1")
            assert bad(await examined(server.url)) == ["not_ready"]

    @pytest.mark.slow
    async def test_slow(self, kind, anyio_backend):
        """A proxy delays each reply, so all round trips are slow."""
        with fresh_server(kind) as server:
            async with delayed_line(server.socket, 0.06) as url:
                report = await examined(url, scan=0)
            assert one(report, "slow").evidence["best_ms"] >= 60
            assert "slow" not in (await examined(server.url)).codes()


@contextlib.asynccontextmanager
async def delayed_line(path, seconds):
    """Yield the URL of a proxy to the server that delays each reply."""
    door = f"{path}.slow"
    async with await anyio.create_unix_listener(door) as listener, anyio.create_task_group() as group:

        async def serve(client):
            async with client, await SocketStream.to_path(path) as there, anyio.create_task_group() as pumps:
                pumps.start_soon(pump, client, there, 0)
                pumps.start_soon(pump, there, client, seconds)

        async def pump(source, sink, pause):
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                while True:
                    data = await source.receive()
                    await anyio.sleep(pause)
                    await sink.send(data)
            await source.aclose()
            await sink.aclose()

        group.start_soon(listener.serve, serve)
        yield f"unix://{door}"
        group.cancel_scope.cancel()


class TestClock:
    @pytest.mark.parametrize("ahead", [-7200.0, 2.5])
    async def test_offset(self, kind, anyio_backend, ahead):
        """The test changes the clock of this machine and not that of the server."""
        import time

        with fresh_server(kind) as server:
            async with RedisBroker(server.url) as broker:
                broker.store.clock = ServerClock(Clock(now=lambda: time.time() - ahead))
                report = await examine(broker)
        offset = one(report, "clock_offset").evidence["offset_s"]
        assert abs(offset - ahead) < 1
        assert ("ahead of" if ahead > 0 else "behind") in one(report, "clock_offset").message

    async def test_due_times_use_the_servers_clock(self, kind, anyio_backend):
        """A wrong clock on this machine gives no false findings: due times use the server's clock."""
        import time

        from tests.doctor.test_queue import send

        with fresh_server(kind) as server:
            async with RedisBroker(server.url) as broker:
                await broker.enqueue(send.options(delay=10))
                broker.store.clock = ServerClock(Clock(now=lambda: time.time() + 7200))
                report = await examine(broker)
        assert "delayed_overdue" not in report.codes()
        assert "clock_offset" in report.codes()


class TestSettings:
    async def test_each_bad_setting(self, kind, anyio_backend):
        report = await found_on(
            kind, "--timeout", "30", "--tcp-keepalive", "0", "--client-output-buffer-limit", "pubsub 1000 500 10",
            "--client-output-buffer-limit", "normal 0 0 0",
        )  # fmt: skip
        assert one(report, "idle_timeout").evidence == {"timeout": 30}
        assert one(report, "keepalive_off").severity is Severity.INFO
        assert one(report, "output_buffer_small").evidence == {"kind": "pubsub", "limit": 1000}
        assert "settings_fine" not in report.codes()

    async def test_connections(self, kind, anyio_backend):
        """Almost all connections are in use."""
        with fresh_server(kind, "--maxclients", "12") as server, contextlib.ExitStack() as stack:
            assert "clients_near_limit" not in (await examined(server.url)).codes()
            for _ in range(10):
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(server.socket)
            report = await examined(server.url)
        assert one(report, "clients_near_limit").evidence["maxclients"] == 12

    @pytest.mark.slow
    async def test_cluster(self, kind, anyio_backend):
        """All keys of one atomic step must be in one slot."""
        with fresh_server(kind, "--cluster-enabled", "yes", "--cluster-port", free_port()) as server:
            server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"))
            assert len(one(await examined(server.url), "cluster_slots").evidence["slots"]) > 1
            report = await examined(server.url, namespace="{queue}")
            assert "cluster_slots" not in report.codes()
            assert "stream_missing" in report.codes()


class TestMemory:
    async def test_eviction(self, kind, anyio_backend):
        report = await found_on(kind, "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru", *KEPT)
        assert bad(report) == ["eviction"]
        assert report.exit_code() == 2
        assert one(report, "eviction").evidence["maxmemory_policy"] == "allkeys-lru"

    async def test_eviction_without_maxmemory(self, kind, anyio_backend):
        report = await found_on(kind, "--maxmemory-policy", "volatile-ttl", *KEPT)
        assert bad(report) == ["eviction_dormant"]
        assert (report.exit_code(), report.exit_code(strict=True)) == (0, 1)
        assert "memory_unbounded" in report.codes()

    async def test_filling(self, kind, anyio_backend):
        """Nearly full, and full: a server that refuses all writes can be examined."""
        with fresh_server(kind) as server:
            server.command("SET", "large", "x" * 20_000_000)
            used = int(server.command("INFO", "memory").split(b"used_memory:")[1].split(b"\r")[0])
            server.command("CONFIG", "SET", "maxmemory", round(used / 0.9))
            assert one(await examined(server.url), "memory_filling").evidence["maxmemory"] == round(used / 0.9)
            server.command("CONFIG", "SET", "maxmemory", used // 2)
            report = await examined(server.url)
            remedy = one(report, "memory_full").remedy
            assert "the value is yours to choose" in remedy
            server.command(*shlex.split(remedy.partition("redis-cli ")[2].partition(" (")[0]))
            assert "memory_fine" in (await examined(server.url)).codes()
        assert "memory_full" in report.codes(Severity.ERROR)
        assert "permissions_fine" in report.codes()


class TestPersistence:
    async def test_off(self, kind, anyio_backend):
        assert "persistence_off" in bad(await found_on(kind, "--save", ""))

    async def test_snapshots_only(self, kind, anyio_backend):
        finding = one(await found_on(kind, "--save", "3600 1"), "persistence_rdb_only")
        assert "3600 1" in finding.message

    @pytest.mark.parametrize(
        ("how", "code"), [("no", "appendfsync_no"), ("everysec", "aof_everysec"), ("always", "persistence_fine")]
    )
    async def test_fsync(self, kind, anyio_backend, how, code):
        assert one(await found_on(kind, *KEPT, "--appendfsync", how), code).evidence["appendfsync"] == how

    @pytest.mark.slow
    async def test_a_snapshot_that_fails(self, kind, anyio_backend):
        """A folder has the name of the snapshot file."""
        with fresh_server(kind, "--save", "3600 1") as server:
            (Path(server.directory) / "dump.rdb").mkdir()
            server.command("BGSAVE")
            await until(lambda: b"rdb_last_bgsave_status:err" in server.command("INFO", "persistence"))
            report = await examined(server.url)
            assert bad(report) == ["persistence_rdb_only", "rdb_save_failed"]
            assert "MISCONF" in one(report, "rdb_save_failed").message
            server.command("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
            report = await examined(server.url)
        assert one(report, "rdb_save_failed").evidence["rdb_last_bgsave_status"] == "err"
        assert "stream_missing" in report.codes()

    @pytest.mark.slow
    async def test_a_disk_that_is_full(self, kind, anyio_backend):
        """The next append-only file is a link to /dev/full."""
        with fresh_server(kind, *KEPT, "--appendfsync", "everysec") as server:
            folder = Path(server.directory) / "appendonlydir"
            (folder / "appendonly.aof.2.incr.aof").symlink_to("/dev/full")
            async with RedisBroker(server.url) as broker:
                await examine(broker)  # connects
                server.command("BGREWRITEAOF")
                await until(lambda: b"aof_rewrite_in_progress:0" in server.command("INFO", "persistence"))
                server.command("SET", "a", "b")
                await until(lambda: b"aof_last_write_status:err" in server.command("INFO", "persistence"))
                report = await examine(broker)
                assert one(report, "aof_write_failed").evidence["aof_last_write_status"] == "err"
            assert bad(await examined(server.url)) == ["aof_write_failed"]

    async def test_a_rewrite_that_fails(self, kind, anyio_backend):
        """The folder of the append-only file is gone."""
        with fresh_server(kind, *KEPT) as server:
            shutil.rmtree(Path(server.directory) / "appendonlydir")
            (Path(server.directory) / "appendonlydir").touch()
            server.command("BGREWRITEAOF")
            await until(lambda: b"aof_last_bgrewrite_status:err" in server.command("INFO", "persistence"))
            assert "aof_rewrite_failed" in bad(await examined(server.url))


class TestReplication:
    async def test_replica(self, kind, anyio_backend):
        """A replica refuses writes in any state of its link. Its queue can be examined."""
        with fresh_server(kind) as server:
            server.command("REPLICAOF", "127.0.0.1", "1")
            report = await examined(server.url)
        evidence = one(report, "replica").evidence
        assert (evidence["primary"], evidence["link"]) == ("127.0.0.1:1", "down")
        assert "stream_missing" in report.codes()

    async def test_too_few_replicas(self, kind, anyio_backend):
        evidence = one(await found_on(kind, "--min-replicas-to-write", "2"), "replicas_too_few").evidence
        assert (evidence["min_replicas_to_write"], evidence["good_replicas"]) == (2, 0)

    @pytest.mark.slow
    async def test_a_replica_that_does_not_come_online(self, kind, anyio_backend):
        """A replica that follows is fine. One that hangs while it loads the data is not online."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        with (
            fresh_server(kind, "--port", port, "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0") as primary,
            fresh_server(kind) as replica,
        ):
            replica.command("REPLICAOF", "127.0.0.1", port)
            await until(lambda: b"state=online" in primary.command("INFO", "replication"))
            (seen,) = one(await examined(primary.url), "primary").evidence["replicas"]
            assert seen["state"] == "online"
            primary.command("CONFIG", "SET", "repl-diskless-sync-delay", "60")
            replica.command("REPLICAOF", "NO", "ONE")
            replica.command("SET", "makes", "its history another")
            primary.command("SET", "so that", "it needs all")
            replica.command("REPLICAOF", "127.0.0.1", port)
            await until(lambda: b"state=wait_bgsave" in primary.command("INFO", "replication"))
            finding = one(await examined(primary.url), "replica_not_online")
            assert finding.evidence["state"] == "wait_bgsave"
