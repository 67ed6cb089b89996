"""P11: each role does its whole work with the rules of `streamq acl` alone: the server's ACL LOG stays empty."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, Worker, gather, group, once, report_progress, task
from streamq.dead_letter import DeadLetterFilter, DeadLetterQueue
from streamq.errors import NotDurableError
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, RateLimitMiddleware
from streamq.monitoring import QueueMonitor
from streamq.wire.acl import acl_rules
from tests.at_work import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.slow, pytest.mark.paired]


@pytest.fixture
def login(real_server):
    """Make a user by the rules of a role, and return its URL. Afterwards the ACL LOG must be empty."""
    names = []
    real_server.command("ACL", "LOG", "RESET")
    real_server.command("CONFIG", "RESETSTAT")

    def make(role, **options):
        rules = acl_rules(RedisBroker(real_server.url, **options).keys, [role])
        names.append(f"the-{role}")
        line = rules.line(names[-1]).replace("PASSWORD", "pw")
        assert real_server.command(*line.split()) == b"OK"
        return real_server.url.replace("unix://", f"unix://{names[-1]}:pw@")

    yield make
    refused = [dict(zip(row[::2], row[1::2], strict=True)) for row in real_server.command("ACL", "LOG")]
    for name in names:
        real_server.command("ACL", "DELUSER", name)
    assert [(row[b"username"], row[b"reason"], row[b"object"]) for row in refused] == []


def commands_used(server):
    """Return the names of the commands that were carried out since `reset_used`, as ACL rules have them."""
    lines = server.command("INFO", "commandstats").decode().splitlines()
    return {f"+{line.split(':')[0].removeprefix('cmdstat_')}" for line in lines if line.startswith("cmdstat_")}


# --- tasks -----------------------------------------------------------------------------------------

runs: dict[str, int] = {}
gate: list[anyio.Event] = []
breaker = CircuitBreaker(2, 0.2, name="far", scope="fleet", counts=(OSError,))
nearby = CircuitBreaker(1, 0.1, name="near", counts=(OSError,))


def note(name):
    runs[name] = runs.get(name, 0) + 1
    return runs[name]


@task(result_ttl=60, retries=0)
async def add(left, right=1):
    note("add")
    return left + right


@task(result_ttl=60, retries=0)
async def total(parts):
    return sum(parts)


@task(retries=2, backoff=0.01)
async def flaky(name):
    if note(name) < 2:
        raise ValueError(name)


@task(retries=0)
async def later(name):
    if note(name) < 2:
        raise RetryLater(after=0.01)


@task(retries=0, result_ttl=60)
async def fails(what="no"):
    raise Reject(what)


@task(retries=0, result_ttl=60)
async def reports():
    for done in range(3):
        await report_progress(done, 3)
        await anyio.sleep(0.15)


@task(retries=0)
async def waits():
    note("waits")
    with suppress(IndexError):
        await gate[0].wait()


@task(retries=0, result_ttl=60)
async def effect(key):
    async with once(key) as made:
        if not made.done:
            made.record(note("effect"))
    return made.result


@task(retries=5, backoff=0.05, middleware=[breaker, nearby])
async def calls():
    if note("calls") < 3:
        raise OSError


@task(retries=0, middleware=[RateLimitMiddleware(max_per_second=50.0, burst=1, scope="fleet")])
async def limited():
    note("limited")


@task(retries=0, middleware=[ConcurrencyLimit(1)])
async def alone():
    await anyio.sleep(0.02)
    note("alone")


@task(retries=0)
async def mourn(dead):
    note("mourn")


@task(retries=0, on_exhausted=mourn)
async def mourned():
    raise Reject("for good")


TASKS = [add, total, flaky, later, fails, reports, waits, effect, calls, limited, alone, mourn, mourned]


@asynccontextmanager
async def working(broker, *, tasks=TASKS, **options):
    """Run a worker beside the block, and drain it afterwards."""
    worker = Worker(broker, tasks=tasks, grace_period=2, **options)
    async with anyio.create_task_group() as loops:
        await loops.start(worker.run)
        try:
            yield worker
        finally:
            for event in gate:
                event.set()
            worker.stop()


@pytest.fixture(autouse=True)
def fresh(anyio_backend):
    runs.clear()
    gate.clear()


# --- what programs do -----------------------------------------------------------------------------


async def produce(broker):
    """Everything that a producer can do. Every task that has a result is waited for."""
    gate.append(anyio.Event())
    moment = datetime.now(UTC) + timedelta(seconds=0.2)
    plain = await broker.enqueue(add, 1)
    many = await broker.enqueue_many([add.call(2), add.options(task_id="own", delay=0.1).call(3)])
    again = await broker.enqueue(add.options(task_id="own"), 3)
    assert not again.fresh
    at = await broker.enqueue(add.options(at=moment, dedup_key="k", dedup_ttl=5), 4)
    flow = await broker.start(group(add.call(1), add.call(2)).then(total).then(add, 5), workflow_id="flow")
    upstream = await broker.start(fails.call().then(add, 5))
    for mode in ("debounce", "keep_last"):
        for _ in range(2):
            await broker.enqueue(add.options(dedup_key=mode, dedup_mode=mode, delay=0.1), 1)
    for _ in range(3):  # one runs, one waits, one replaces that
        await broker.enqueue(waits.options(dedup_key="w", dedup_mode="keep_last"))
        await anyio.sleep(0.1)
    await broker.enqueue(add.options(dedup_key="s", dedup_window="until_started"), 1)
    await broker.enqueue(add.options(dedup_key="d", dedup_window="until_done"), 1)
    with pytest.raises(NotDurableError):
        await broker.enqueue(add.options(durable="replica"), 1)
    for n in range(3):
        await broker.enqueue(flaky, f"flaky{n}")
        await broker.enqueue(later, f"later{n}")
    await broker.enqueue(mourned)
    assert await gather(plain, *many, at, timeout=10) == (2, 3, 4, 5)
    assert await flow.result(timeout=10) == 10
    with pytest.raises(Exception, match="upstream"):
        await upstream.result(timeout=10)
    seen = [one async for one in (await broker.enqueue(reports)).watch(timeout=10)]
    assert seen
    await plain.progress()
    await plain.status()


async def withdraw(broker):
    """Cancel what is delayed, what waits and what runs, with a deduplication key and without."""
    for options in ({}, {"dedup_key": "gone", "dedup_window": "until_done"}):
        delayed = await broker.enqueue(add.options(delay=60, **options), 1)
        assert await broker.cancel(delayed.task_id)
    running = await broker.enqueue(waits)
    await until(lambda: runs.get("waits", 0) > 0)
    assert await running.status() == "running"
    assert await running.cancel()
    assert not await broker.cancel("nothing")


async def schedules(broker):
    """Store a schedule, list it, remove it."""
    await broker.schedule("hourly", "0 * * * *", add.call(1))
    assert [one.name for one in await broker.schedules()] == ["hourly"]
    assert await broker.unschedule("hourly")


async def scheduled(broker):
    """List what is delayed."""
    handle = await broker.enqueue(add.options(delay=60), 1)
    assert [one.task_id async for one in broker.scheduled()] == [handle.task_id]
    await handle.cancel()


# --- roles -----------------------------------------------------------------------------------------


async def test_a_producer(real_server, login):
    """It sends in every way, waits, watches, cancels and schedules. The worker beside it may do everything."""
    async with RedisBroker(real_server.url) as admin, RedisBroker(login("producer"), reply_timeout=1) as broker:
        await scheduled(broker)
        await schedules(broker)
        async with working(admin):
            await produce(broker)
            runs.clear()
            gate[:] = [anyio.Event()]
            await withdraw(broker)


async def test_a_worker(real_server, login):
    """It runs tasks in every way. Its handlers do what a producer does, through the same broker."""
    async with RedisBroker(login("worker"), reply_timeout=1) as broker:
        crash(real_server)
        async with working(broker, visibility_timeout=0.6):
            await scheduled(broker)
            await schedules(broker)
            await produce(broker)
            runs.clear()
            gate[:] = [anyio.Event()]
            await withdraw(broker)
            assert await (await broker.enqueue(effect, "e")).result(timeout=10) == 1
            assert await (await broker.enqueue(effect, "e")).result(timeout=10) == 1
            assert not await broker.is_duplicate("x")
            await broker.enqueue_many([calls.call() for _ in range(2)])
            await broker.enqueue_many([one.call() for one in (limited, alone) for _ in range(6)])
            await until(lambda: runs.get("calls", 0) >= 4 and runs.get("limited", 0) == runs.get("alone", 0) == 6, 20)
            # It waits in a read when it is stopped: that takes a right of its own.
            await until(lambda: b"blocked_clients:0" not in real_server.command("INFO", "clients"))
        await broker.enqueue(add.options(delay=0.1), 1)
        await Worker(broker, tasks=TASKS, burst=True).run()
        await broker.enqueue(add, 1)
        async with aclosing(broker.consume()) as deliveries:
            await broker.ack((await anext(deliveries)).task_id)
    # Every command was needed: the table has none too many.
    assert set(acl_rules(broker.keys, ["worker"]).commands) <= commands_used(real_server)


def crash(server):
    """Entries of dead workers, so often that they are suspects."""
    for tier in ("critical", "standard"):
        stream = f"queue:{tier}"
        server.command("XGROUP", "CREATE", stream, "workers", "0", "MKSTREAM")
        entry = server.command("XADD", stream, "*", "task", "add", "args", "[1]")
        server.command("XREADGROUP", "GROUP", "workers", "dead", "STREAMS", stream, ">")
        server.command("ZADD", f"{stream}:alive:workers", 1, "dead")
        server.command("HSET", f"{stream}:leases:workers", "dead", 100)
        server.command("HSET", f"{stream}:crashes:workers", entry, "one")
        server.command("XGROUP", "CREATECONSUMER", stream, "workers", "idle")
        server.command("ZADD", f"{stream}:alive:workers", 1, "idle")


async def test_a_monitor(real_server, login):
    """It reads all figures while a queue is busy, with circuits that are open, and lists what is delayed."""
    async with RedisBroker(real_server.url) as admin, RedisBroker(login("monitor")) as broker:
        await admin.enqueue(add.options(delay=60), 1)
        await admin.schedule("hourly", "0 * * * *", add.call(1))
        async with working(admin):
            await admin.enqueue_many([add.call(n) for n in range(20)])
            await admin.enqueue_many([calls.call() for _ in range(3)])
            await until(lambda: runs.get("calls", 0) >= 2)
            metrics = await QueueMonitor(broker=broker).snapshot()
        assert metrics.delayed >= 1
        assert [one.task async for one in broker.scheduled()][-1] == "add"
        assert len(await broker.schedules()) == 1


async def test_an_operator(real_server, login):
    """It lists, searches, replays, edits, removes and imports dead letters, cancels tasks, removes schedules."""
    async with RedisBroker(real_server.url) as admin, RedisBroker(login("operator")) as broker:
        await admin.schedule("hourly", "0 * * * *", add.call(1))
        for n in range(4):
            await admin.enqueue(fails.options(dedup_key=f"k{n}", dedup_window="until_done"), str(n))
        async with working(admin):
            await until(lambda: real_server.command("XLEN", "queue:dead") == 4)
        letters = DeadLetterQueue(broker=broker, max_size=100, max_age=3600)
        first, *_ = await letters.peek(2)
        assert await letters.size() == 4
        async with anyio.create_task_group() as reading:
            reading.start_soon(follow, letters, reading.cancel_scope)
        assert await letters.replay(task_id=first.task_id)
        assert len(await letters.replay(task_name="fails", limit=1)) == 1
        await operate(letters, [line async for line in letters.export()])
        assert await letters.purge(older_than=0) == 2
        delayed = await admin.enqueue(add.options(delay=60), 1)
        gate.append(anyio.Event())
        async with working(admin, tasks=[waits, add]):
            running = await admin.enqueue(waits)
            await until(lambda: runs.get("waits", 0) > 0)
            assert await broker.cancel(delayed.task_id)
            assert await broker.cancel(running.task_id)
        assert [one.name for one in await broker.schedules()] == ["hourly"]
        assert await broker.unschedule("hourly")


async def operate(letters, lines):
    """Search, count, import, replay and purge by operations, stop one. Two letters are there, and stay."""
    assert len((await letters.search(DeadLetterFilter(newer_than=3600))).letters) == len(lines) == 2
    assert (await letters.stats()).matched == 2
    assert [one.error async for one in letters.import_lines(lines)] == [None, None]
    found = await letters.search(DeadLetterFilter(text="errors.reject"), oldest_first=True)
    assert len(found.letters) == 4
    replay = await letters.start("replay", limit=1, set_arguments={"0": "other"})
    assert [one.error async for one in replay.run()] == [None]
    purge = await letters.start("purge", limit=1)
    assert (await purge.stop()).state == "stopped"
    assert len([one async for one in (await letters.operation(purge.id)).run()]) == 1
    assert [one.state for one in await letters.operations()] == ["finished", "finished"]


async def follow(letters, scope):
    """Read one dead letter that is there, then wait for the next until the timeout."""
    async for _ in letters.tail(after="0-0"):
        scope.cancel()
