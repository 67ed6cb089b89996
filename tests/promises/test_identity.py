"""Names are matched whole: no id, tier, group or worker touches what another one owns (P13)."""

from __future__ import annotations

import os

import anyio
import pytest

from streamq import RedisBroker, Tier, Worker, current_delivery, task
from streamq.errors import ConfigurationError
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, Idempotency, MiddlewareChain
from streamq.wire.keys import RESERVED
from tests.at_work import burst, dead, until, working
from tests.crew import Crew, say

pytestmark = [pytest.mark.paired, pytest.mark.slow]

ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


@task(retries=3, backoff=600.0)
async def flaky(what: str) -> None:
    ran.append(what)
    raise ValueError("again")


@task(result_ttl=60)
async def note(what: str = "") -> str:
    ran.append(what)
    return what


@task(retries=0)
async def killer() -> None:
    say(f"start {os.getpid()} by {current_delivery().tier_name}")
    os._exit(1)


class TestIds:
    async def test_an_id_that_begins_like_another_is_another(self, server):
        """Neither status nor cancel of `order:1` touches the retry of `order:1:email`, or of `order:1:5-1`."""
        async with RedisBroker(server.url) as broker:
            for name in ("order:1:email", "order:1:5-1"):
                await broker.enqueue(flaky.options(task_id=name), name)
            await burst(broker, flaky)
            before = server.command("ZRANGE", "queue:standard:delayed", 0, -1)
            assert len(before) == 2
            assert await broker.handle("order:1").status() == "unknown"
            assert not await broker.cancel("order:1")
            assert server.command("ZRANGE", "queue:standard:delayed", 0, -1) == before
            assert await broker.cancel("order:1:email")
            assert await broker.handle("order:1:5-1").status() == "delayed"

    async def test_an_id_like_the_group_and_another_id_is_accepted_and_runs(self, server):
        """The retry of `abc` waits under a name that no id can have."""
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(flaky.options(task_id="abc"), "first")
            await burst(broker, flaky)
            for task_id in ("workers:abc", "workers"):
                handle = await broker.enqueue(note.options(task_id=task_id, delay=0.05), task_id)
                assert handle.fresh
            await burst(broker, flaky, note)
            assert sorted(ran) == ["first", "workers", "workers:abc"]
            assert await broker.handle("abc").status() == "delayed"

    @pytest.mark.parametrize("task_id", ["workers|abc", "", "a b", "a\n", "\x1b[2J", "\u202e", "\ud800", "x" * 201])
    async def test_a_text_that_is_no_id_is_refused_wherever_one_is_given(self, task_id):
        async with RedisBroker("memory://") as broker:
            for refused in (
                lambda: broker.handle(task_id),
                lambda: note.options(task_id=task_id),
                lambda: broker.handle("a", tier=task_id),
            ):
                with pytest.raises(ConfigurationError):
                    refused()
            with pytest.raises(ConfigurationError, match="task_id="):
                await broker.cancel(task_id)
            with pytest.raises(ConfigurationError, match="workflow_id="):
                await broker.start(note.call("x").then(note), workflow_id=task_id)

    async def test_a_workflow_and_a_task_of_one_id_are_two(self, server):
        async with RedisBroker(server.url) as broker:
            assert (await broker.enqueue(note.options(task_id="order-7"), "task")).fresh
            assert (await broker.start(note.call("step").then(note), workflow_id="order-7")).fresh
            await burst(broker, note)
        assert sorted(ran) == ["step", "step", "task"]

    async def test_an_id_in_a_message_that_is_none_is_a_dead_letter(self, server):
        """By hand, delayed by hand, and in the rest of a workflow."""
        bad = "two words"
        server.command("XADD", "queue:standard", "*", "task", "note", "id", bad, "args", '["stream"]')
        server.command("HSET", "queue:bulk:messages", "m", f'["task","note","id","{bad}"]')
        server.command("ZADD", "queue:bulk:delayed", 1, "m")
        then = f'[{{"send":"queue:bulk","fields":["task","note","id","{bad}"]}}]'
        server.command("XADD", "queue:standard", "*", "task", "note", "args", '["then"]', "then", then)
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(note, "good")
            await burst(broker, note)
        assert ran == ["good"]
        assert [letter["reason"] for letter in dead(server)] == ["undecodable"] * 3


class TestKeys:
    @pytest.mark.parametrize("key", ["", "a\nb", "\0", "\x1b]0;x\x07", "\u202e", "\ud800", "x" * 501])
    async def test_a_key_that_cannot_be_seen_or_has_no_end_is_refused(self, key):
        with pytest.raises(ConfigurationError, match="dedup_key="):
            note.options(dedup_key=key)

    async def test_a_key_of_ones_own_is_not_that_of_a_schedule(self, server):
        """Whatever a sender chooses, a schedule holds another key."""
        async with RedisBroker(server.url) as broker:
            for key in ("schedule:nightly", "schedule|nightly", "|schedule|nightly"):
                assert (await broker.enqueue(note.options(dedup_key=key), key)).fresh
            assert server.command("EXISTS", "queue:dedup:schedule|nightly") == 0
            await burst(broker, note)
        assert len(ran) == 3

    async def test_limits_of_two_names_and_keys_do_not_meet(self, server):
        """("a", "b:c") and ("a:b", "c") are two limits, and so are two circuits."""
        limits = [ConcurrencyLimit(1, key=key, name=name) for name, key in (("a", "b:c"), ("a:b", "c"), ("", "a:b:c"))]
        seen = []

        @task(middleware=[*limits, Idempotency()])
        async def look() -> None:
            seen.extend(name for name in server.keys() if ":permits:" in name)  # noqa: SIM118

        async with RedisBroker(server.url) as broker:
            await broker.enqueue(look)
            await burst(broker, look)
        assert sorted(seen) == ["queue:permits:a:b:c", "queue:permits:a:b|c", "queue:permits:a|b:c"]

    async def test_a_key_made_of_arguments_that_is_none_fails_its_task_alone(self, server):
        @task(retries=0, middleware=[ConcurrencyLimit(1, key="{what}")])
        async def limited(what: str) -> None:
            ran.append(what)

        async with RedisBroker(server.url) as broker:
            for what in ("a\x1b[2J", "x" * 600, "New York", "a|b"):
                await broker.enqueue(limited, what)
            await burst(broker, limited)
        assert sorted(ran) == ["New York", "a|b"]
        assert {letter["error_type"] for letter in dead(server)} == {"streamq.errors.ConfigurationError"}

    @pytest.mark.parametrize("name", ["a|b", "a b", "a@b", "\n", "x" * 101])
    def test_the_name_of_a_limit_is_a_name(self, name):
        for make in (lambda: ConcurrencyLimit(1, name=name), lambda: CircuitBreaker(1, 1.0, name=name)):
            with pytest.raises(ConfigurationError, match="name="):
                make()


class TestTiers:
    @pytest.mark.parametrize("name", sorted(RESERVED))
    def test_no_tier_has_the_name_of_a_key(self, name):
        """Else its stream would be the key of something else, and be replaced by it."""
        for given in ({"tiers": [Tier(name)]}, {"queue_name": f"queue:{name}"}, {"namespace": f"a:{name}"}):
            with pytest.raises(ConfigurationError, match=f"'{name}' is a name of streamq's own keys"):
                RedisBroker(**given)

    @pytest.mark.parametrize("name", ["", "a b", "a\r\nb", "a*", "\0", "a\x1b[31m", "a\u202eb", "a|b", "a" * 500])
    def test_namespaces_groups_and_streams_that_nobody_can_see_are_refused(self, name):
        for what in ("namespace", "group", "queue_name"):
            with pytest.raises(ConfigurationError, match="cannot be used"):
                RedisBroker(**{what: name})


class TestConsumers:
    @pytest.mark.parametrize("name", ["a b", "a\nb", "\x1b[31m", "\0", "", "x" * 5000])
    async def test_a_name_that_cannot_be_used_is_refused(self, name):
        broker = RedisBroker("memory://")
        with pytest.raises(ConfigurationError, match="name="):
            Worker(broker, tasks=[note], name=name)
        async with broker:
            with pytest.raises(ConfigurationError, match="name="):
                await anext(broker.consume(name=name))

    async def test_two_workers_of_one_name_run_each_task_once(self, server):
        """Also if it is the name of the consumer that holds what was released."""

        @task
        async def slow(what: str) -> None:
            ran.append(what)
            await anyio.sleep(0.8)

        async with RedisBroker(server.url) as broker:
            options = {"name": "released", "visibility_timeout": 0.5, "concurrency": 3}
            async with working(broker, slow, **options), working(broker, slow, **options):
                for number in range(6):
                    await broker.enqueue(slow, str(number))
                await until(lambda: len(ran) >= 6 and not server.command("XLEN", "queue:standard"))
        assert sorted(ran) == [str(number) for number in range(6)]

    async def test_what_a_consumer_with_blanks_in_its_name_held_counts_as_one_crash(self, server):
        """It was made by hand: no worker can have such a name."""
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(note, "x")
            await broker.store.ensure_groups()
            server.command("XREADGROUP", "GROUP", "workers", "mail worker 1", "STREAMS", "queue:standard", ">")
            server.command("ZADD", "queue:standard:alive:workers", 1, "mail worker 1")
            async with working(broker, note, visibility_timeout=0.5):
                with anyio.fail_after(10):
                    while not (crashes := server.command("HVALS", "queue:standard:crashes:workers")) and not ran:
                        await anyio.sleep(0.01)
                await until(lambda: ran == ["x"])
        assert crashes in ([b"mail_worker_1"], [])

    @pytest.mark.timeout(60)
    async def test_a_fixed_name_ends_crash_loops_as_others_do(self, real_server, anyio_backend, tmp_path):
        """P5: its supervisor starts it again under its name. That is another worker than the one that died."""
        async with RedisBroker(real_server.url) as broker:
            await broker.enqueue("killer")
        with Crew(f"{__name__}:killer", real_server, tmp_path, backend=anyio_backend, lease=0.5) as crew:
            with anyio.fail_after(50):
                while not real_server.command("XLEN", "queue:dead"):
                    if not crew.members or crew.members[-1].poll() is not None:
                        crew.start("mailer")
                    await anyio.sleep(0.02)
            starts = len(crew.lines("start"))
        (letter,) = dead(real_server)
        assert (letter["reason"], starts) == ("crash_loop", 3)
        crashed = letter["crashed"].split()
        assert len(set(crashed)) == 3
        assert all(name.startswith("mailer-") for name in crashed)


async def test_a_record_of_ones_own_is_not_that_of_a_task(server):
    """Idempotency without a key and `once` with a key that looks like its own are two records."""
    chain = MiddlewareChain(Idempotency(), Idempotency(key="workers|{what}"))
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(note.options(task_id="t"), "t")
        await burst(broker, note, middleware=chain)
        assert await handle.result(timeout=5) == "t"
        names = [name for name in server.keys() if ":once:" in name]  # noqa: SIM118
        server.command("DEL", *names)
    assert names == ["queue:once:workers|t", "queue:once:|workers|t"]
