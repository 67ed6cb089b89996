"""P13: values in internal keys that streamq did not write are read around: no loop and no snapshot ends of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from streamq import RedisBroker, Worker, gather, task
from streamq.doctor import examine
from streamq.exporters.prometheus import QueueCollector
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, MiddlewareChain, RateLimitMiddleware
from streamq.monitoring import QueueMonitor
from streamq.queue.lease_commands import reclaim, remove_consumers, survey

pytestmark = [pytest.mark.paired, pytest.mark.slow]

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import RealServer

STREAM = "queue:standard"
ALIVE, LEASES, CRASHES = (f"{STREAM}:{kind}:workers" for kind in ("alive", "leases", "crashes"))
FOR_EVER = 9e15  # ms
HUGE = "9" * 5000


def held_by_the_dead(server: RealServer, consumer: bytes = b"ghost") -> bytes:
    """Send a task, and let a consumer that has died hold it. Return its entry."""
    server.command("XGROUP", "CREATE", STREAM, "workers", "0", "MKSTREAM")
    entry: bytes = server.command("XADD", STREAM, "*", "task", "work", "args", '["held"]')
    server.command("XREADGROUP", "GROUP", "workers", consumer, "STREAMS", STREAM, ">")
    server.command("ZADD", ALIVE, 1, consumer)
    return entry


def other(server: RealServer, key: str) -> None:
    server.command("DEL", key)
    server.command("SET", key, "somebody else's")


def lease(value: Any, until: Any = FOR_EVER) -> Callable[[Any, bytes], Any]:
    """Let somebody be alive for ever, with such a lease."""
    return lambda s, _: (s.command("ZADD", ALIVE, until, "evil"), s.command("HSET", LEASES, "evil", value))


EVIDENCE: dict[str, Callable[[Any, bytes], Any]] = {
    "crashes are no text": lambda s, entry: s.command("HSET", CRASHES, entry, b"\xff\xfe"),
    "crashes are a megabyte": lambda s, entry: s.command("HSET", CRASHES, entry, "a " * 500_000),
    "crashes are no hash": lambda s, _: other(s, CRASHES),
    "alive is no sorted set": lambda s, _: other(s, ALIVE),
    "leases are no hash": lambda s, _: other(s, LEASES),
    "a lease is no number": lease("abc"),
    "a lease is huge": lease("1e300", until="+inf"),
    "a lease is nan": lease("nan"),
    "a lease is negative": lease(-5),
    "nine thousand live": lambda s, _: s.command(
        "ZADD", ALIVE, *(part for n in range(9000) for part in (FOR_EVER, f"evil{n}"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EVIDENCE)
async def test_a_takeover_reads_around_what_is_foreign(real_server, what):
    """A task that a dead worker held runs, whatever somebody wrote beside it, and so does a new one."""
    entry = held_by_the_dead(real_server)
    EVIDENCE[what](real_server, entry)
    done = await worked_off(real_server, "new", wanted={"held", "new"})
    assert done == {"held", "new"}


async def test_a_dead_consumer_may_have_any_name(real_server):
    """Bytes that are no text, and blanks."""
    held_by_the_dead(real_server, b"gh\xff \xfe")
    assert await worked_off(real_server, wanted={"held"}) == {"held"}


async def worked_off(server: RealServer, *arguments: str, wanted: set[str]) -> set[str]:
    """Run a worker until these tasks are done, or for 10 s. Return what was done."""
    done: set[str] = set()
    ended = anyio.Event()

    @task
    async def work(what: str) -> None:
        done.add(what)
        if done >= wanted:
            ended.set()

    async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
        worker = Worker(broker, tasks=[work], visibility_timeout=1.0)
        await group.start(worker.run)
        for argument in arguments:
            await broker.enqueue(work, argument)
        with anyio.move_on_after(10):
            await ended.wait()
        worker.stop()
    return done


async def test_takeover_and_removal_work_in_pieces(real_server):
    """P3: any number of dead workers that held a task each: more than a script can pass on at once."""
    count = 9000
    async with RedisBroker(real_server.url) as broker:
        await broker.store.ensure_groups()
    real_server.command(
        "EVAL",
        """for n = 1, ARGV[2] do
              redis.call('XADD', KEYS[1], '*', 'task', 'work')
              redis.call('XREADGROUP', 'GROUP', 'workers', 'dead' .. n, 'COUNT', 1, 'STREAMS', KEYS[1], '>')
              redis.call('ZADD', ARGV[1], 1, 'dead' .. n)
            end""",
        1, STREAM, ALIVE, count,
    )  # fmt: skip
    async with RedisBroker(real_server.url) as broker:
        store, tier, taken = broker.store, 1, 0
        now = float(real_server.command("TIME")[0])
        assert await survey(store, tier, now=now, forgotten=60.0) == ([0, count, 0], False)
        for _ in range(3):
            cursor, found, *_ = await reclaim(
                store, "me", tier, idle=0.0, margin=10.0, cursor=b"0-0", count=100, max_crashes=3, suspect_after=2,
                deadline=now + 3600,
            )  # fmt: skip
            assert len({delivery.entry_id for delivery in found}) == 100
            assert cursor == b"0-0"
            taken += len(found)
        assert real_server.command("XPENDING", STREAM, "workers")[0] == count
        real_server.command("DEL", STREAM)
        real_server.command("XGROUP", "CREATE", STREAM, "workers", "0", "MKSTREAM")
        rounds = 0
        while await remove_consumers(store, limit=1000):
            rounds += 1
    assert rounds == count // 1000
    assert real_server.command("ZCARD", ALIVE) == 0


FIGURES: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "a counter is a word": ("stats", lambda s, key: s.command("HSET", key, "standard|work|done", "abc")),
    "a counter is huge": ("stats", lambda s, key: s.command("HSET", key, "standard|work|done", HUGE)),
    "a counter is negative": ("stats", lambda s, key: s.command("HSET", key, "standard|work|done", -7)),
    "a bucket is huge": ("stats", lambda s, key: s.command("HSET", key, "standard|work|l999999999999", 1)),
    "a bucket is no digit": ("stats", lambda s, key: s.command("HSET", key, "standard|work|l²", 1)),
    "counters are no hash": ("stats", other),
    "circuits are no sorted set": ("circuits", other),
    "a circuit began at a word": ("circuit", lambda s, key: s.command("HSET", key, "state", "open", "since", "abc")),
    "a circuit began too late": ("circuit", lambda s, key: s.command("HSET", key, "state", "open", "since", "1e300")),
    "a circuit failed x times": ("circuit", lambda s, key: s.command("HSET", key, "state", "open", "failures", "x")),
    "a circuit is in no state": ("circuit", lambda s, key: s.command("HSET", key, "state", b"\xff")),
    "a circuit is no hash": ("circuit", other),
    "a heartbeat is endless": ("alive", lambda s, key: s.command("ZADD", key, "+inf", "x")),
    "heartbeats are no sorted set": ("alive", other),
}  # fmt: skip


@pytest.mark.parametrize("what", FIGURES)
async def test_a_snapshot_reads_around_what_is_foreign(server, what):
    """The monitor and the exporter go on, and doctor says where it is."""
    place, write = FIGURES[what]
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(anything)
        now = float(server.command("TIME")[0])
        key = {"stats": broker.keys.stats(now), "circuits": broker.keys.circuits, "alive": ALIVE}.get(place, "")
        if not key:
            key = broker.keys.circuit("c")
            server.command("ZADD", broker.keys.circuits, FOR_EVER, "c")
        write(server, key)
        snapshot = await QueueMonitor(broker=broker).snapshot()
        assert snapshot.depth == 1
        assert snapshot.done >= 0
        collector = QueueCollector(QueueMonitor(broker=broker))
        await collector.refresh()
        assert [family.name for family in collector.collect()]
        codes = set((await examine(broker)).codes())
    assert codes & {"foreign_values", "wrong_type"}


@task
async def anything() -> None:
    pass


def rate(*fields: Any) -> tuple[Any, Callable[[Any], Any]]:
    return RateLimitMiddleware(100.0, scope="fleet"), lambda s: s.command("HSET", "queue:rate:work", *fields)


def members(key: str, *flat: Any) -> tuple[Any, Callable[[Any], Any]]:
    return ConcurrencyLimit(2), lambda s: s.command("ZADD", key, *flat)


def circuit(*fields: Any) -> tuple[Any, Callable[[Any], Any]]:
    return CircuitBreaker(scope="fleet"), lambda s: s.command("HSET", "queue:circuit:work", *fields)


LIMITS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a rate is no number": rate("tail", "abc", "gate", "x"),
    "a rate is nan": rate("tail", "nan", "gate", "nan"),
    "a rate is huge": rate("tail", "1e300", "again", HUGE),
    "a rate is no hash": (RateLimitMiddleware(100.0, scope="fleet"), lambda s: other(s, "queue:rate:work")),
    "permits for ever": members("queue:permits:work", FOR_EVER, "x", FOR_EVER, "y"),
    "permits are no set": (ConcurrencyLimit(2), lambda s: other(s, "queue:permits:work")),
    "waiters are junk": members("queue:line:work", 1, b"\xff", 2, "a b c d"),
    "names are junk": members("queue:limits", 1, b"\xff", "-inf", "a\nb"),
    "a circuit is in no state": circuit("state", "x", "period", "y"),
    "a circuit opened in the future": circuit("state", "open", "since", "1e300"),
    "probes are junk": circuit("state", "half_open", "since", 1, "probes", "junk 1 " + "9" * 400),
    "a circuit is no hash": (CircuitBreaker(scope="fleet"), lambda s: other(s, "queue:circuit:work")),
}


@pytest.mark.parametrize("what", LIMITS)
async def test_limits_read_around_what_is_foreign(real_server, what):
    """Guarded tasks run. A limit whose key is somebody else's is not kept, and the log says so."""
    limit, write = LIMITS[what]
    write(real_server)
    done: list[int] = []

    @task
    async def work(n: int) -> None:
        done.append(n)

    async with RedisBroker(real_server.url) as broker:
        for n in range(5):
            await broker.enqueue(work, n)
        with anyio.fail_after(20):
            await Worker(broker, tasks=[work], middleware=MiddlewareChain(limit), burst=True).run()
    assert sorted(done) == [0, 1, 2, 3, 4]


ODD_FAILURE = b'{"error_type":5,"error":[],"reason":{},"traceback":7}'


@pytest.mark.parametrize("payload", [b"junk", b"\xff", b"[1]", b"7", b"{}", b'{"reason":"rejected"}', ODD_FAILURE])
async def test_a_result_that_is_none_is_an_error_and_no_crash(server, payload):
    """Neither `result` nor `status` raises what is not streamq's own; and it is no failure of the task."""
    from streamq.errors import BrokerError

    kept = anything.options(result_ttl=60)
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(kept)
        server.command("SET", broker.keys.result(handle.task_id), payload)
        for asking in (lambda: handle.result(timeout=1), handle.status, lambda: gather(handle, return_exceptions=True)):
            with pytest.raises(BrokerError, match="nothing that streamq wrote"):
                await asking()


async def test_a_published_result_that_is_none_is_an_error_too(real_server):
    """Whoever waits is told, and does not take it for a failure of the task."""
    from streamq.errors import BrokerError

    kept = anything.options(result_ttl=60)
    async with RedisBroker(real_server.url) as broker, anyio.create_task_group() as group:
        handle = await broker.enqueue(kept)
        told = anyio.Event()

        async def wait() -> None:
            with pytest.raises(BrokerError, match="nothing that streamq wrote"):
                await handle.result(timeout=10)
            told.set()

        group.start_soon(wait)
        with anyio.fail_after(10):
            while not told.is_set():
                await broker.client.publish(broker.keys.result(handle.task_id), ODD_FAILURE)
                await anyio.sleep(0.02)
