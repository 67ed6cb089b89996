"""What recurs, in virtual time: each tick once in the fleet, at its moment; what is missed; what comes back."""

from __future__ import annotations

import contextlib
import json
import random
from datetime import UTC, datetime
from types import SimpleNamespace

import anyio
import pytest

from streamq import Cron, Reject, current_delivery, task
from streamq.consumer import scheduler
from streamq.consumer.events import Listeners
from streamq.consumer.outage import Outage
from streamq.consumer.scheduler import LOAD_EVERY, Scheduler
from streamq.errors import ConfigurationError
from streamq.tasks.cron import ON_TIME, ticks
from streamq.testing.clock import START, VirtualTime
from tests.timed.stage import OnTime, Stage

pytestmark = pytest.mark.paired("memory")

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
SCHEDULES = {"queue:schedules", "queue:ticks", "queue:ticked"}


@pytest.fixture
def report(stage):
    """A task that notes the id under which it runs."""

    @task
    async def report(*_: object) -> None:
        stage.note(current_delivery().task_id)

    return report


def declared(stage, cron, name="declared"):
    """Return a task that declares a schedule."""

    async def run() -> None:
        stage.note(current_delivery().task_id)

    return task(name=name, cron=cron)(run)


@contextlib.asynccontextmanager
async def fleet(stage, broker, count, *tasks):
    """Run some workers; they share every tick."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(stage.working(broker, *tasks, visibility_timeout=600))
        yield


def tick(name, at):
    """Return the task id of a tick, `at` in seconds since the test began."""
    return f"{name}@{datetime.fromtimestamp(START + at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def definition(stage, name):
    """Return the definition of a schedule as it lies in Redis."""
    return json.loads(stage.command("HGET", "queue:schedules", name))


def keys(stage):
    return {name.decode() for name in stage.command("KEYS", "*")}


class TestTicking:
    @pytest.mark.slow
    async def test_each_tick_once_and_at_its_moment(self, stage):
        """Three workers, three schedules: neither early nor late, and each by one of them."""
        tasks = [declared(stage, "*/5 * * * *", "five"), declared(stage, ["10 * * * *", "*/40 * * * * *"], "two")]
        async with stage.broker() as broker, fleet(stage, broker, 3, *tasks):
            await anyio.sleep(15 * MINUTE + 1)
        wanted = {tick("five", at): at for at in (300, 600, 900)} | {tick("two", 600): 600}
        wanted |= {tick("two-2", at): at for at in range(1, 901) if at % 60 in (0, 40)}
        assert len(stage.starts) == len(wanted)
        assert dict(stage.starts) == {name: OnTime(at) for name, at in wanted.items()}

    async def test_a_tick_knows_its_time(self, stage):
        """Its id and a header say for when it was; the headers of the call stay."""
        seen = []

        @task
        async def look(what: str) -> None:
            seen.append((what, current_delivery().task_id, dict(current_delivery().headers)))

        async with stage.broker() as broker, stage.working(broker, look):
            cron = Cron("5 1 * * *", tz="Europe/Berlin")
            await broker.schedule("early", cron, look.options(headers={"a": 1}).call("x"))
            await anyio.sleep(10 * MINUTE)
        when = "2026-01-01T00:05:00Z"
        assert seen == [("x", f"early@{when}", {"a": 1, "scheduled_for": when})]

    async def test_a_schedule_that_comes_while_workers_sleep(self, stage, report):
        """A word on the wake channel: what ticks sooner than what a worker sleeps for is not late either."""
        hourly = declared(stage, "0 * * * *", "hourly")
        async with stage.broker() as broker, fleet(stage, broker, 2, hourly, report):
            await anyio.sleep(10.5)
            await broker.schedule("soon", "*/20 * * * * *", report)
            await anyio.sleep(30)
            assert await broker.unschedule("soon")
            await anyio.sleep(60)
        assert stage.starts == [(tick("soon", 20), OnTime(20)), (tick("soon", 40), OnTime(40))]

    async def test_any_worker_ticks_what_is_stored(self, stage):
        """What is sent is in Redis: a worker that does not know the task sends it to those who do."""
        other = declared(stage, "@yearly", "other")
        async with stage.broker() as broker, stage.working(broker, other, tiers={"bulk": 1}):
            await broker.schedule("mail", "* * * * *", "send")
            await anyio.sleep(2 * MINUTE + 1)
        rows = stage.command("XRANGE", "queue:standard", "-", "+")
        assert [dict(zip(flat[::2], flat[1::2], strict=True))[b"id"].decode() for _, flat in rows] == [
            tick("mail", 60), tick("mail", 120),
        ]  # fmt: skip

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("expression", "begin", "days"),
        [
            ("30 2 * * *", "2026-01-01", 183), ("30 2 * * *", "2026-07-03", 183), ("0 3 * * MON", "2026-03-02", 183),
            ("0 * * * *", "2026-03-28", 3), ("0 * * * *", "2026-10-24", 3),
            ("*/30 1-3 * * *", "2026-03-27", 5), ("*/30 1-3 * * *", "2026-10-23", 5),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])  # its own clocks are below
    def test_the_changes_of_clocks(self, expression, begin, days, anyio_backend, monkeypatch):
        """Berlin, three loops, both backends: each tick of the year, or of the days around a change, once."""
        monkeypatch.setattr(scheduler, "LOAD_EVERY", 40 * DAY)
        start = datetime.fromisoformat(begin).replace(tzinfo=UTC).timestamp()
        for backend in ("asyncio", "trio"):
            virtual = VirtualTime(start)
            with contextlib.closing(Stage(virtual)) as stage:
                virtual.run(self.alone, stage, Cron(expression, tz="Europe/Berlin"), days * DAY, backend=backend)
                rows = stage.command("XRANGE", "queue:standard", "-", "+")
            wanted = []
            for at in ticks(expression, "Europe/Berlin", start):
                if at > start + days * DAY:
                    break
                wanted.append(at)
            sent = [int(entry.partition(b"-")[0]) / 1000 for entry, _ in rows]
            assert sent == [pytest.approx(at, abs=0.0021) for at in wanted]
            assert all(at >= due for at, due in zip(sent, wanted, strict=True))
            assert len({flat[flat.index(b"id") + 1] for _, flat in rows}) == len(wanted) > 3

    async def alone(self, stage, cron, seconds):
        """Run the loops that tick without the rest of their workers."""

        async def recover(_: str, error: Exception) -> None:
            raise error

        # Nothing else is to happen meanwhile: a client that looks after its connection does so each few seconds.
        async with stage.broker(reply_timeout=80 * DAY) as broker, anyio.create_task_group() as group:
            outage = Outage("alone", Listeners(), random.Random(7), broker.store.clock)
            consumer = SimpleNamespace(name="alone", store=broker.store, outage=outage, recover=recover)
            for _ in range(3):
                loop = Scheduler(consumer, broker.declared([declared(stage, cron, "run")]))
                group.start_soon(loop.tick_forever)
            await anyio.sleep(seconds + 1)
            group.cancel_scope.cancel()

    @pytest.mark.slow
    async def test_without_schedules_nothing_is_asked(self, stage, report, monkeypatch):
        """An idle worker that has nothing to tick looks when it starts and when it is heard, and never again."""
        looks = []
        really = scheduler.read_schedules

        async def look(store):
            looks.append(stage.at)
            return await really(store)

        monkeypatch.setattr(scheduler, "read_schedules", look)
        async with stage.broker() as broker, stage.working(broker, report):
            await anyio.sleep(10 * MINUTE)
            assert len(looks) <= 2
            assert max(looks) < 1
            await broker.schedule("now", "@yearly", report)
            await anyio.sleep(1)
            assert len(looks) == 3  # told


class TestMissed:
    """Nobody was there when it was time."""

    @pytest.mark.parametrize(("missed", "made_up"), [("last", [600]), ("skip", []), ("all", [120, 240, 360, 480, 600])])
    async def test_the_policies(self, stage, missed, made_up):
        """Ten minutes without a worker: the latest tick, none, or each; then all goes on in time."""
        run = declared(stage, Cron("*/2 * * * *", missed=missed), "run")
        async with stage.broker() as broker:
            async with stage.working(broker, run):
                await anyio.sleep(10)
            await anyio.sleep(10 * MINUTE + 20)
            async with stage.working(broker, run):
                await anyio.sleep(100)
        assert [name for name, _ in stage.starts] == [tick("run", at) for at in (*made_up, 720)]
        assert stage.starts[-1][1] == OnTime(720)
        assert all(at == OnTime(630) for _, at in stage.starts[:-1])

    async def test_a_little_late_is_not_missed(self, stage):
        """A restart that takes less than ten seconds leaves out nothing, whatever the policy."""
        run = declared(stage, Cron("* * * * *", missed="skip"), "run")
        async with stage.broker() as broker:
            async with stage.working(broker, run):
                await anyio.sleep(55)
            await anyio.sleep(5 + ON_TIME - 1)
            async with stage.working(broker, run):
                await anyio.sleep(1)
        assert stage.starts == [(tick("run", 60), OnTime(60 + ON_TIME - 1))]

    async def test_a_worker_without_its_server(self, stage):
        """It goes on once the server is back, and what it missed is handled as declared."""
        run = declared(stage, Cron("* * * * *", missed="all"), "run")
        async with stage.mortal(run, visibility_timeout=10) as cable:
            await anyio.sleep(70)
            cable.cut()
            await anyio.sleep(3 * MINUTE)
            cable.mend()
            await anyio.sleep(60)
        names = [name for name, _ in stage.starts]
        assert names == [tick("run", at) for at in (60, 120, 180, 240, 300)]

    async def test_more_than_one_step_sends(self, stage):
        """Five minutes of seconds are made up for in batches, each tick once."""
        run = declared(stage, Cron("* * * * * *", missed="all"), "run")
        async with stage.broker() as broker:
            async with stage.working(broker, run):
                await anyio.sleep(2.5)
            await anyio.sleep(5 * MINUTE)
            async with fleet(stage, broker, 2, run):
                await anyio.sleep(2)
        assert sorted(name for name, _ in stage.starts) == [tick("run", at) for at in range(1, 305)]


class TestDefinitions:
    async def test_what_was_removed_from_the_code(self, stage):
        """It ticks no more, is listed as overdue, and is gone when it is unscheduled."""
        old, new = declared(stage, "* * * * *", "old"), declared(stage, "@yearly", "new")
        async with stage.broker() as broker:
            async with stage.working(broker, old):
                await anyio.sleep(61)
            async with stage.working(broker, new):
                await anyio.sleep(5 * MINUTE)
                schedules = {one.name: one for one in await broker.schedules()}
                assert schedules["old"].overdue
                assert schedules["old"].declared
                assert schedules["old"].last == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
                assert not schedules["new"].overdue
                assert await broker.unschedule("old")
                assert not await broker.unschedule("old")
            assert await broker.unschedule("new")
            assert len(stage.starts) == 1
        assert keys(stage) & SCHEDULES == set()

    async def test_the_newest_start_wins(self, stage):
        """A rolling deploy: the new expression holds, those of the old code tick it too, and nothing flaps."""
        async with stage.broker() as broker, stage.working(broker, declared(stage, "*/2 * * * *", "run")):
            await anyio.sleep(10)
            async with stage.working(broker, declared(stage, "*/3 * * * *", "run")):
                await anyio.sleep(1)
                packed = definition(stage, "run")
            await anyio.sleep(2 * LOAD_EVERY + 60)  # the new one has left
            assert definition(stage, "run") == packed
        assert packed["cron"] == "*/3 * * * *"
        assert [name for name, _ in stage.starts] == [tick("run", 180)]

    async def test_what_newer_code_declared_survives_a_lost_server(self, stage):
        """The old worker that is left brings back what it ticked, not what its own code says."""
        async with stage.broker() as broker, stage.working(broker, declared(stage, "*/2 * * * *", "run")):
            async with stage.working(broker, declared(stage, "*/3 * * * *", "run")):
                await anyio.sleep(1)
            await anyio.sleep(1)
            stage.command("FLUSHALL")
            await anyio.sleep(3 * MINUTE)
            assert definition(stage, "run")["cron"] == "*/3 * * * *"
        assert [name for name, _ in stage.starts] == [tick("run", 180)]

    async def test_a_changed_call_keeps_its_next_tick(self, stage, report):
        """What is missed is not forgotten because a deploy changes an argument; another time is another tick."""
        async with stage.broker() as broker:
            await broker.schedule("nightly", "0 3 * * *", report.call(1))
            due = (await broker.schedules())[0].next
            await anyio.sleep(4 * HOUR)
            await broker.schedule("nightly", "0 3 * * *", report.call(2))
            (seen,) = await broker.schedules()
            assert (seen.next, seen.overdue, seen.args) == (due, True, [2])
            await broker.schedule("nightly", Cron("0 3 * * *", tz="Europe/Berlin"), report.call(2))
            (seen,) = await broker.schedules()
            assert (seen.next, seen.overdue) == (datetime(2026, 1, 2, 2, tzinfo=UTC), False)

    async def test_a_name_is_declared_or_stored(self, stage, report, caplog):
        """Neither replaces the other behind its back."""
        run = declared(stage, "* * * * *", "run")
        async with stage.broker() as broker:
            async with stage.working(broker, run):
                await anyio.sleep(1)
                with pytest.raises(ConfigurationError, match="declared by"):
                    await broker.schedule("run", "@daily", report)
            await broker.unschedule("run")
            await broker.schedule("run", "@daily", report)
            async with stage.working(broker, run):
                await anyio.sleep(60)
                assert [one.expression for one in await broker.schedules()] == ["@daily"]
                assert stage.starts == []
                await broker.unschedule("run")
                await anyio.sleep(60)
        assert stage.starts == [(tick("run", 120), OnTime(120))]
        assert caplog.text.count("the schedule 'run' of @task(cron=...) is not used") == 1

    async def test_unscheduled_and_still_declared(self, stage):
        """It comes back, with the tick it had: what a worker's code declares is there."""
        run = declared(stage, "* * * * *", "run")
        async with stage.broker() as broker, fleet(stage, broker, 2, run):
            await anyio.sleep(30)
            assert await broker.unschedule("run")
            await anyio.sleep(31)
        assert stage.starts == [(tick("run", 60), OnTime(60))]

    @pytest.mark.slow
    async def test_a_server_that_lost_its_data(self, stage, report):
        """What is declared comes back by itself, in time; what was stored is lost with the data."""
        run = declared(stage, "*/3 * * * *", "run")
        async with stage.broker() as broker, fleet(stage, broker, 2, run, report):
            await broker.schedule("stored", "* * * * *", report)
            await anyio.sleep(170)
            stage.command("FLUSHALL")
            await anyio.sleep(3 * MINUTE + 20)
            assert [one.name for one in await broker.schedules()] == ["run"]
        assert [name for name, _ in stage.starts] == [
            tick("stored", 60), tick("stored", 120), tick("run", 180), tick("run", 360),
        ]  # fmt: skip

    @pytest.mark.slow
    @pytest.mark.parametrize("mend", [0.5, 30.0])
    async def test_a_tick_that_was_sent_before_the_data_was_lost(self, stage, mend):
        """A worker that did not hear of it asks the others before it sends what it remembers."""
        run = declared(stage, "*/3 * * * *", "run")
        async with stage.mortal(run) as deaf, stage.broker() as broker, stage.working(broker, run):
            await anyio.sleep(170)
            deaf.cut()
            await anyio.sleep(11)
            stage.command("FLUSHALL")
            await anyio.sleep(mend)
            deaf.mend()
            await anyio.sleep(3 * MINUTE)
        assert [name for name, _ in stage.starts] == [tick("run", 180), tick("run", 360)]

    @pytest.mark.slow
    async def test_a_tick_that_nobody_sent_before_the_data_was_lost(self, stage):
        """Where no other knows better, what a worker remembers is sent: a second later."""
        run = declared(stage, "*/3 * * * *", "run")
        async with stage.mortal(run) as one, stage.mortal(run) as other:
            await anyio.sleep(170)
            one.cut()
            other.cut()
            await anyio.sleep(11)
            stage.command("FLUSHALL")
            one.mend()
            other.mend()
            await anyio.sleep(4)
            assert [name for name, _ in stage.starts] == [tick("run", 180)]
            await anyio.sleep(176)
        assert [name for name, _ in stage.starts] == [tick("run", 180), tick("run", 360)]


class TestMessages:
    @pytest.mark.slow
    async def test_runs_that_must_not_overlap(self, stage):
        """A tick is left out while an earlier run waits or runs; its end, also its death, lets the next one go."""
        begun = []

        @task(cron=Cron("* * * * *", overlap=False), retries=0)
        async def slow() -> None:
            begun.append(stage.at)
            await anyio.sleep(150 if len(begun) == 1 else 1)
            raise Reject("no")

        async with stage.broker() as broker, fleet(stage, broker, 2, slow):
            await anyio.sleep(5 * MINUTE + 10)
        assert begun == [OnTime(60), OnTime(240), OnTime(300)]
        assert not stage.exists("queue:dedup:schedule|slow")

    async def test_it_expires_after_its_tick(self, stage, report):
        """`expires` counts from each tick; other options are those of the message."""
        async with stage.broker() as broker, stage.working(broker, report, tiers={"bulk": 1}):
            call = report.options(expires=30, tier="critical", retries=7).call("x")
            await broker.schedule("short", "* * * * *", call)
            await anyio.sleep(61)
        ((_, flat),) = stage.command("XRANGE", "queue:critical", "-", "+")
        fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
        assert fields == {
            "task": "report", "args": '["x"]', "retries": "7", "id": tick("short", 60),
            "headers": '{"scheduled_for":"2026-01-01T00:01:00Z"}', "expires": f"{(START + 90) * 1000:.0f}",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"delay": 5}, "delay"), ({"at": START}, "at"), ({"task_id": "x"}, "task_id"),
            ({"durable": "aof"}, "durable"), ({"dedup_key": "k"}, "dedup_key"),
            ({"expires": datetime(2030, 1, 1, tzinfo=UTC)}, "expires"),
        ],
    )  # fmt: skip
    async def test_options_that_make_no_sense(self, stage, report, options, named):
        """Named, and nothing is stored."""
        async with stage.broker() as broker:
            with pytest.raises(ConfigurationError, match=named):
                await broker.schedule("name", "@daily", report.options(**options).call())
            with pytest.raises(ConfigurationError, match="both have arguments"):
                await broker.schedule("name", Cron("@daily", args=(1,)), report.call(2))
            for name in ("", "a b", "a@b", "x" * 171, None):
                with pytest.raises(ConfigurationError, match="name of a schedule="):
                    await broker.schedule(name, "@daily", report)
            assert await broker.schedules() == []
        assert keys(stage) & SCHEDULES == set()


class TestByHand:
    """Everything may be written by hand, and wrongly."""

    async def test_a_definition_by_hand(self, stage, report):
        """Few fields are enough."""
        async with stage.broker() as broker, stage.working(broker, report):
            packed = {"cron": "* * * * *", "task": "report", "stream": "queue:bulk", "fields": ["task", "report"]}
            stage.command("HSET", "queue:schedules", "mine", json.dumps(packed))
            stage.command("ZADD", "queue:ticks", "0", "mine")
            stage.command("PUBLISH", "queue:wake", "schedules")
            await anyio.sleep(61)
        assert stage.starts == [(tick("mine", 0), OnTime(0)), (tick("mine", 60), OnTime(60))]

    @pytest.mark.parametrize("score", ["inf", "-inf", "1.5", "-5"])
    async def test_a_next_tick_that_is_none(self, stage, score, report):
        """It neither spins nor stands still: what others have due comes in time."""
        async with stage.broker() as broker, stage.working(broker, report):
            await broker.schedule("odd", "* * * * *", report)
            await broker.schedule("even", "* * * * *", report)
            stage.command("ZADD", "queue:ticks", score, "odd")
            await anyio.sleep(2 * LOAD_EVERY + 1)
            names = [name for name, _ in stage.starts]
            assert {tick("even", 60), tick("even", 120)} <= set(names)
            assert len(names) == len(set(names)) <= 6
            assert (tick("odd", 120) in names) == (score != "inf")

    @pytest.mark.parametrize(
        "packed",
        [
            "", "[]", "{", "{}", '"x"', '{"cron": 5, "task": "t", "stream": "s", "fields": []}',
            '{"cron": "* * *", "task": "report", "stream": "queue:bulk", "fields": ["task", "report"]}',
            '{"cron": "* * * * *", "tz": "Mars", "task": "x", "stream": "queue:bulk", "fields": ["task", "x"]}',
            '{"cron": "* * * * *", "task": "report", "stream": "queue:bulk", "fields": [["task"], "report"]}',
            '{"cron": "* * * * *", "task": "x", "stream": "queue:bulk", "fields": ["task", "x"], "expires": 1e300}',
            '{"cron": "* * * * *", "task": "x", "stream": "queue:bulk", "fields": ["task", "x"], "expires": "soon"}',
            '{"cron": "* * * * *", "task": "x", "stream": "queue:bulk", "fields": ["task", "x"], "headers": {"a":'
            + "[" * 500 + "]" * 500 + "}}",
            '{"cron": "* * * * *", "task": "x", "stream": "queue:bulk", "fields": null}',
        ],
    )  # fmt: skip
    async def test_a_definition_that_is_none(self, stage, packed, report):
        """It is listed, and hurts no other; it can be unscheduled."""
        async with stage.broker() as broker, stage.working(broker, report):
            stage.command("HSET", "queue:schedules", "odd", packed)
            stage.command("ZADD", "queue:ticks", "0", "odd")
            await broker.schedule("even", "* * * * *", report)
            await anyio.sleep(61)
            assert {one.name for one in await broker.schedules()} == {"odd", "even"}
            assert await broker.unschedule("odd")
        assert stage.starts == [(tick("even", 60), OnTime(60))]

    async def test_a_name_that_is_no_text(self, stage, report, monkeypatch):
        """It is found gone when it is due, once a minute, and no more often."""
        looks = []
        really = scheduler.read_schedules

        async def look(store):
            looks.append(stage.at)
            return await really(store)

        monkeypatch.setattr(scheduler, "read_schedules", look)
        async with stage.broker() as broker, stage.working(broker, report):
            packed = {"cron": "* * * * *", "task": "report", "stream": "queue:bulk", "fields": ["task", "report"]}
            stage.command("HSET", "queue:schedules", b"\xff", json.dumps(packed))
            stage.command("ZADD", "queue:ticks", "0", b"\xff")
            await broker.schedule("even", "* * * * *", report)
            await anyio.sleep(2 * MINUTE + 1)
            assert len(looks) <= 8
        assert stage.starts == [(tick("even", 60), OnTime(60)), (tick("even", 120), OnTime(120))]

    async def test_a_stream_that_refuses(self, stage, report):
        """Its tick waits until the stream takes it; others are in time."""
        stage.command("SET", "queue:odd", "no stream")
        async with stage.broker() as broker, stage.working(broker, report):
            await broker.schedule("even", "* * * * *", report)
            packed = {"cron": "* * * * *", "task": "x", "stream": "queue:odd", "fields": ["task", "x"], "missed": "all"}
            stage.command("HSET", "queue:schedules", "odd", json.dumps(packed))
            stage.command("ZADD", "queue:ticks", f"{(START + 60) * 1000:.0f}", "odd")
            stage.command("PUBLISH", "queue:wake", "schedules")
            await anyio.sleep(122)
            stage.command("DEL", "queue:odd")
            await anyio.sleep(10)
        assert stage.starts == [(tick("even", 60), OnTime(60)), (tick("even", 120), OnTime(120))]
        assert stage.command("XLEN", "queue:odd") == 2
