"""What recurs, on every kind of server: the steps, the loop in real time, and workers that are killed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from streamq import Cron, RedisBroker, Worker, current_delivery, task
from streamq.errors import ArgumentsError, ConfigurationError, MissingExtraError
from streamq.queue.schedules import ScheduleDefinition, read_schedules, register, tick_command, unregister
from tests.at_work import assert_nothing_left, entries, until, working
from tests.crew import Crew, say

pytestmark = pytest.mark.paired("memory")

SCHEDULES = ("queue:schedules", "queue:ticks", "queue:ticked")


@pytest.fixture(name="broker")  # a worker of this module would take it for its own
async def opened(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def defined(name="nightly", **changes):
    """Return a definition as it is read from Redis."""
    values = {"cron": "0 3 * * *", "tz": "UTC", "missed": "last", "overlap": True, "declared": False, "task": "t"}
    values |= {"name": name, "stream": "queue:standard", "fields": ["task", "t"], **changes}
    return ScheduleDefinition.parse(name, ScheduleDefinition(**values).packed())


async def now_of(broker):
    return (await read_schedules(broker.store))[0]


class TestSteps:
    async def test_of_many_one_ticks(self, server, broker):
        """Twenty try the same tick at once: one sends it, all hear of the next one."""
        one, now = defined(), await now_of(broker)
        assert await register(broker.store, one, now) == now
        answers = []

        async def try_it() -> None:
            answers.append(await broker.store.one(tick_command(broker.store, one, now, [now // 1000], now + 60_000)))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(try_it)
        assert sorted(done for done, _, _ in answers) == [0] * 19 + [1]
        assert {due for _, due, _ in answers} == {now + 60_000}
        (entry,) = entries(server, "queue:standard")
        when = datetime.fromtimestamp(now // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert entry == {
            "task": "t",
            "id": f"nightly@{when}",
            "headers": json.dumps({"scheduled_for": when}, separators=(",", ":")),
        }

    async def test_never_early_and_only_as_defined(self, server, broker):
        """Whoever is early, late, or has read another definition changes nothing."""
        one, now = defined(), await now_of(broker)
        await register(broker.store, one, now + 60_000)
        for expected, definition, answer in (
            (now + 60_000, one, now + 60_000), (now, one, now + 60_000),
            (now + 60_000, defined(fields=["task", "u"]), -1), (now, defined("other"), -1),
        ):  # fmt: skip
            done, due, at = await broker.store.one(tick_command(broker.store, definition, expected, [1], now + 120_000))
            assert (done, due) == (0, answer)
            assert at >= now
        assert entries(server, "queue:standard") == []

    async def test_a_refusing_stream_keeps_the_tick(self, server, broker):
        """The message and the next tick are one step, also where it fails."""
        one, now = defined(stream="queue:odd"), await now_of(broker)
        await register(broker.store, one, now)
        server.command("SET", "queue:odd", "no stream")
        (answer,) = await broker.store.attempt([tick_command(broker.store, one, now, [1], now + 60_000)])
        assert "WRONGTYPE" in str(answer)
        assert int(server.command("ZSCORE", "queue:ticks", "nightly")) == now
        assert server.command("HGET", "queue:ticked", "nightly") is None

    async def test_a_key_that_is_held_leaves_a_tick_out(self, server, broker):
        """The next tick is set, no message is sent; two ticks in one step are one message."""
        one, now = defined(overlap=False), await now_of(broker)
        await register(broker.store, one, now)
        assert (await broker.store.one(tick_command(broker.store, one, now, [1, 2], now)))[0] == 1
        assert (await broker.store.one(tick_command(broker.store, one, now, [3], now + 60_000)))[0] == 1
        assert [entry["id"] for entry in entries(server, "queue:standard")] == ["nightly@1970-01-01T00:00:01Z"]
        assert 0 < server.command("PTTL", "queue:dedup:schedule|nightly") <= 24 * 3600 * 1000
        assert int(server.command("ZSCORE", "queue:ticks", "nightly")) == now + 60_000

    async def test_registering(self, server, broker):
        """The same again changes nothing; the same times keep the tick, others have another."""
        store, now = broker.store, await now_of(broker)
        assert await register(store, defined(), now) == now
        assert await register(store, defined(), now + 1) == now
        assert await register(store, defined(task="u"), now + 2) == now
        assert await register(store, defined(tz="Europe/Berlin"), now + 3) == now + 3
        assert await register(store, defined(declared=True), now + 4) is None
        assert (await read_schedules(store))[1][0].definition == defined(tz="Europe/Berlin")
        assert await unregister(store, "nightly")
        assert not await unregister(store, "nightly")
        assert not set(server.keys()) & set(SCHEDULES)

    async def test_any_text_survives(self, server, broker):
        """Arguments of all kinds are sent as they were given."""
        text = 'a "quoted" \\ \n\t\x00 é 漢 😀 \u2028'
        GOT.clear()
        call = TASK.call(text, [], {}, None, 1.5, 12345678901234567890)
        await broker.schedule("odd", "* * * * * *", call)
        server.command("ZADD", "queue:ticks", "0", "odd")
        async with working(broker, TASK):
            await until(lambda: GOT)
            await broker.unschedule("odd")
        assert GOT[0] == (text, [], {}, None, 1.5, 12345678901234567890)


GOT = []


@task(validate=False)
async def anything(*args):
    GOT.append(args)


TASK = anything


class TestWorkers:
    @pytest.mark.slow
    async def test_every_second_once_also_on_a_server_that_lost_its_data(self, real_server):
        """Three workers in real time: each tick once, in its order. After FLUSHALL they go on."""
        ran = []

        @task(cron="* * * * * *")
        async def each_second() -> None:
            ran.append((current_delivery().task_id, current_delivery().headers["scheduled_for"]))

        async with (
            RedisBroker(real_server.url) as broker,
            working(broker, each_second), working(broker, each_second), working(broker, each_second),
        ):  # fmt: skip
            await until(lambda: len(ran) >= 2, 20)
            (seen,) = await broker.schedules()
            real_server.command("FLUSHALL")
            count = len(ran)
            await until(lambda: len(ran) > count, 20)
        times = [datetime.fromisoformat(when) for _, when in ran]
        assert times[:count] == [times[0] + timedelta(seconds=number) for number in range(count)]
        assert len(set(times)) == len(times)
        assert [name for name, _ in ran] == [f"each_second@{when}" for _, when in ran]
        assert (seen.name, seen.task, seen.expression, seen.declared) == ("each_second",) * 2 + ("* * * * * *", True)
        assert seen.last is not None
        assert seen.next == seen.last + timedelta(seconds=1)
        assert_nothing_left(real_server, *SCHEDULES)

    @pytest.mark.slow
    async def test_missed_ticks_of_many_schedules_hold_up_nobody(self, real_server):
        """Half a century of missed ticks, twenty times over: other tasks run meanwhile. They waited for a minute."""
        broker = RedisBroker(real_server.url)
        by_hand = {"cron": "0 3 * * *", "task": "anything", "stream": "queue:bulk", "fields": ["task", "anything"]}
        async with broker:
            pipeline = broker.client.pipeline()
            for number in range(20):
                pipeline.hset("queue:schedules", f"s{number}", json.dumps({**by_hand, "missed": "all"}))
                pipeline.zadd("queue:ticks", {f"s{number}": 0})
            pipeline.hset("queue:schedules", "none", json.dumps({**by_hand, "cron": "0 0 29 2 *", "missed": "all"}))
            pipeline.zadd("queue:ticks", {"none": await now_of(broker) - 3_600_500})  # the time of no tick
            await pipeline.execute()
            async with working(broker, TASK):
                with anyio.fail_after(40):
                    for number in range(5):
                        handle = await broker.enqueue(TASK.options(result_ttl=60, priority=100), number)
                        await handle.result()
                await until(lambda: float(real_server.command("ZSCORE", "queue:ticks", "none")) > 1.8e12, 40)
            assert int(real_server.command("HLEN", "queue:ticked")) > 0
            await broker.client.flushall()

    async def test_many_schedules_are_read_at_a_stretch_of_a_hundred(self, server, broker):
        """To read ten thousand took a second in which nothing else ran."""
        pipeline, turns = broker.client.pipeline(), 0
        for number in range(1000):
            pipeline.hset("queue:schedules", f"s{number}", defined().packed())
        await pipeline.execute()

        async def count() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async with anyio.create_task_group() as group:
            group.start_soon(count)
            await broker.store.one(("PING",))
            before = turns
            _, rows = await read_schedules(broker.store)
            group.cancel_scope.cancel()
        assert len(rows) == 1000
        assert turns - before >= 10
        await broker.client.delete("queue:schedules")

    async def test_arguments_are_checked_at_the_start(self, broker):
        """A schedule that could only fail is an error of the program: it is named, with its arguments."""

        @task(name="a", cron=Cron("@daily", args=("x",)))
        async def other(region: str) -> None: ...

        @task(cron=["@hourly", Cron("@daily", kwargs={"day": "today"})])
        async def report(day: int = 1) -> None: ...

        with pytest.raises(ConfigurationError, match=r"schedule 'report-2', .*task 'report': .*day.*'today'") as caught:
            Worker(broker, [other, report])
        assert isinstance(caught.value.__cause__, ArgumentsError)

        @task(cron=Cron("@daily", args=(object(),)))
        async def loose(value) -> None: ...  # type: ignore[no-untyped-def]

        with pytest.raises(ConfigurationError, match=r"schedule 'loose', .*task 'loose': "):
            Worker(broker, [loose])

    async def test_two_schedules_of_one_name(self, broker):
        """The second of `a` is `a-2`: a task of that name with a schedule cannot be beside it."""

        async def run() -> None: ...

        with pytest.raises(ConfigurationError, match="two schedules are named 'a-2'"):
            Worker(broker, [task(name="a", cron=["@daily", "@hourly"])(run), task(name="a-2", cron="@daily")(run)])

    async def test_without_the_parser(self, broker, monkeypatch):
        """The extra is named, by the worker that declares and by the program that stores."""
        declared = task(name="run", cron="@daily")(anything.function)
        monkeypatch.setitem(__import__("sys").modules, "cronsim", None)
        with pytest.raises(MissingExtraError, match=r"streamq\[cron\]"):
            Worker(broker, [declared])
        with pytest.raises(MissingExtraError, match=r"streamq\[cron\]"):
            await broker.schedule("x", "@daily", "send")
        assert await broker.schedules() == []

    async def test_a_worker_without_the_parser_works(self, server, broker, monkeypatch, caplog):
        """It runs tasks, and says once that it does not tick what is stored."""
        await broker.schedule("x", "* * * * * *", TASK)
        server.command("ZADD", "queue:ticks", "0", "x")
        monkeypatch.setitem(__import__("sys").modules, "cronsim", None)
        async with working(broker, TASK):
            await until(lambda: "does not tick the schedule" in caplog.text)
            handle = await broker.enqueue(TASK.options(result_ttl=60), "by hand")
            await handle.result(timeout=10)
        assert caplog.text.count("does not tick the schedule") == 1
        assert int(server.command("ZSCORE", "queue:ticks", "x")) == 0


@pytest.mark.parametrize("stream", ["other:orders", "queue:dead", "queue:id:victim", "queue:standard:delayed"])
async def test_a_schedule_sends_to_tiers_of_its_namespace_alone(server, stream, caplog):
    """Who may write definitions has not the worker's rights to other keys."""
    async with RedisBroker(server.url) as broker:
        now = await now_of(broker)
        await register(broker.store, defined("stray", stream=stream), now)
        await register(broker.store, defined("good"), now)
        async with working(broker, TASK):
            await until(lambda: entries(server, "queue:standard") or server.command("HGET", "queue:ticked", "good"))
            await until(lambda: "is no stream of 'queue'" in caplog.text)
        assert server.command("TYPE", stream) != b"stream"
        assert "does not tick the schedule 'stray'" in caplog.text


async def test_a_worker_that_may_not_look(real_server):
    """Rights for the queue alone: it works as before there were schedules, and is well."""
    keys = ("~queue:critical*", "~queue:standard*", "~queue:bulk*", "~queue:stats*", "~queue:result*", "~queue:dead")
    real_server.command("ACL", "SETUSER", "narrow", "on", "nopass", "+@all", "allchannels", *keys)
    url = real_server.url.replace("unix://", "unix://narrow:x@", 1)
    try:
        async with RedisBroker(url) as broker, working(broker, TASK) as worker:
            handle = await broker.enqueue(TASK.options(result_ttl=60), "narrow")
            await handle.result(timeout=10)
            assert worker.health.trouble is None
    finally:
        real_server.command("ACL", "DELUSER", "narrow")


# --- under faults ---------------------------------------------------------------------------------


@task(cron=Cron("* * * * * *", missed="all"))
async def crew_tick() -> None:
    say(f"ran {current_delivery().task_id}")


TASKS = [crew_tick]


@pytest.mark.slow
async def test_each_tick_once_though_workers_are_killed(anyio_backend, shared_server, tmp_path):
    """Two workers tick every second and are killed by turns: no tick is missing, none is sent twice, each is run."""
    server = shared_server("valkey" if anyio_backend == "asyncio" else "redis")
    server.command("XGROUP", "CREATE", "queue:standard", "audit", "0", "MKSTREAM")  # nothing leaves the stream
    with Crew("tests.consumer.test_scheduler", server, tmp_path, backend=anyio_backend) as crew:
        crew.start("worker-0", "--max-crashes", "9")  # more than kills: each may hit the same tick
        for number in range(3):
            crew.start(f"worker-{number + 1}", "--max-crashes", "9")
            await anyio.to_thread.run_sync(crew.until, "ran", len(crew.lines("ran")) + 1)
            crew.members[number].kill()
        await anyio.to_thread.run_sync(crew.until, "ran", len(crew.lines("ran")) + 2)
        sent = [entry["id"] for entry in entries(server, "queue:standard")]
        times = [datetime.fromisoformat(name.partition("@")[2]) for name in sent]
        assert times == [times[0] + timedelta(seconds=number) for number in range(len(sent))]
        assert len(sent) >= 4

        def missing():
            return set(sent) - {line.partition(" ")[2] for line in crew.lines("ran")}

        await until(lambda: not missing(), 20)
