"""P11: without channels, or without PUBLISH, what is announced comes later. Nothing fails, and nothing is lost."""

from __future__ import annotations

import logging

import anyio
import pytest

from streamq import RedisBroker, gather, once, report_progress, task
from streamq.errors import TaskFailedError
from streamq.wire.acl import acl_rules
from tests.at_work import until, working

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired, pytest.mark.slow]


@task(result_ttl=60)
async def add(left, right=1):
    return left + right


@task(result_ttl=60)
async def sleeps():
    await anyio.sleep(30)


@task(result_ttl=60)
async def reports():
    await report_progress(1, 2)
    await anyio.sleep(0.8)


WITHOUT = {
    "channels": lambda rule: rule.startswith("&"),
    "publish": lambda rule: rule == "+publish",
    "subscribe": lambda rule: rule == "+subscribe",
}


@pytest.fixture(params=WITHOUT)
def url(request, real_server):
    """The URL of a worker without these rights."""
    rules = acl_rules(RedisBroker(real_server.url).keys, ["worker"]).words()
    lacks = WITHOUT[request.param]
    line = ["ACL", "SETUSER", "mute", *(rule.replace("PASSWORD", "pw") for rule in rules if not lacks(rule))]
    assert real_server.command(*line) == b"OK"
    yield real_server.url.replace("unix://", "unix://mute:pw@")
    real_server.command("ACL", "DELUSER", "mute")


@pytest.fixture(autouse=True)
def looking_often(monkeypatch):
    """Look every half second in place of every ten: these tests are of what happens, not of how late."""
    monkeypatch.setattr("streamq.queue.waiters.LOOK_EVERY", 0.5)
    monkeypatch.setattr("streamq.consumer.promoter.LOOK_EVERY", 0.5)


async def test_results(real_server, url):
    """Results settle at full speed, and waiters get them: at once where they are told, else within a look."""
    async with RedisBroker(url) as broker, working(broker, add) as worker:
        handles = await broker.enqueue_many([add.call(n) for n in range(200)])
        with anyio.fail_after(12):
            assert await gather(*handles) == tuple(n + 1 for n in range(200))
        assert real_server.command("XLEN", "queue:standard") == 0
        late = await broker.enqueue(add.options(delay=0.3), 1)
        with anyio.fail_after(12):
            assert await late.result() == 2
        assert "late" in (worker.health.trouble or "")


async def test_a_delayed_task_is_accepted_once(real_server, url):
    """Its enqueue raises nothing, with an id or without, with a deduplication key or without."""
    async with RedisBroker(url) as broker:
        await broker.enqueue(add.options(delay=60), 1)
        assert (await broker.enqueue(add.options(delay=60, task_id="own"), 1)).fresh
        assert not (await broker.enqueue(add.options(delay=60, task_id="own"), 1)).fresh
        await broker.enqueue(add.options(delay=60, dedup_key="k", dedup_mode="debounce"), 1)
        assert real_server.command("ZCARD", "queue:standard:delayed") == 3


async def test_progress_is_seen(url):
    """A watcher gets reports, and the end."""
    async with RedisBroker(url) as broker, working(broker, reports):
        handle = await broker.enqueue(reports)
        with anyio.fail_after(25):
            seen = [progress.done async for progress in handle.watch()]
        assert seen == [1]


async def test_a_run_is_cancelled(real_server, url):
    """The renewal of its lease finds that; nothing stays behind."""
    async with RedisBroker(url) as broker, working(broker, sleeps, visibility_timeout=1.5):
        handle = await broker.enqueue(sleeps)
        await until(lambda: real_server.command("XPENDING", "queue:standard", "workers")[0])
        await anyio.sleep(0.1)
        assert await handle.cancel()
        with anyio.fail_after(5), pytest.raises(TaskFailedError, match="cancelled"):
            await handle.result()
        assert real_server.command("EXISTS", "queue:standard:crashes:workers") == 0


async def test_an_effect_is_waited_for(url):
    """A run that waits for an effect gets its result, though nobody tells it."""
    async with RedisBroker(url) as broker:

        async def begin(begun):
            async with once("key", broker=broker, lease=2) as effect:
                begun.set()
                await anyio.sleep(0.3)
                effect.record("done")

        async with anyio.create_task_group() as runs:
            begun = anyio.Event()
            runs.start_soon(begin, begun)
            await begun.wait()
            async with once("key", broker=broker, wait=10) as effect:
                assert effect.result == "done"


async def test_it_is_said_once(real_server, url, caplog):
    """In the log once, and in the health of the worker as long as it lasts."""
    with caplog.at_level(logging.WARNING, "streamq"):
        async with RedisBroker(url) as broker, working(broker, add) as worker:
            await until(lambda: worker.health.trouble)
            handle = await broker.enqueue(add, 1)
            with anyio.fail_after(12):
                await handle.result()
            assert "permission" in worker.health.trouble.lower()
    texts = [record.getMessage() for record in caplog.records if "late" in record.getMessage()]
    assert texts
    assert len(texts) == len(set(texts))


@pytest.fixture
def worker_user(real_server):
    """A user with all rights of a worker: its URL."""
    rules = acl_rules(RedisBroker(real_server.url).keys, ["worker"]).words()
    real_server.command("ACL", "SETUSER", "app", *(rule.replace("PASSWORD", "pw") for rule in rules))
    yield real_server.url.replace("unix://", "unix://app:pw@")
    real_server.command("ACL", "DELUSER", "app")


TAKEN = {
    "publish": (["-publish"], ["+publish"], 1),
    "channels": (["resetchannels"], ["&*"], 2),  # to publish, and to subscribe
}


@pytest.mark.parametrize("what", TAKEN)
async def test_a_right_that_is_taken_away_meanwhile_is_said(real_server, worker_user, caplog, monkeypatch, what):
    """In the health within a minute (here: a second), once in the log; and the health is clean once it is back."""
    monkeypatch.setattr("streamq.consumer.promoter._CHECK_EVERY", 0.5)
    monkeypatch.setattr("streamq.consumer.promoter._LOOKS", 2)
    taken, given, rights = TAKEN[what]
    async with (
        RedisBroker(real_server.url) as admin,
        RedisBroker(worker_user) as broker,
        working(broker, add) as worker,
    ):
        assert await (await admin.enqueue(add, 1)).result() == 2
        await anyio.sleep(0.7)
        assert (worker.health.trouble, worker.health.refused) == (None, ())
        real_server.command("ACL", "SETUSER", "app", *taken)
        await until(lambda: len(worker.health.refused) == rights)
        assert worker.health.trouble == worker.health.refused[0]
        assert all("'streamq doctor --role worker'" in line for line in worker.health.refused)
        await anyio.sleep(1.5)  # some checks, and another try to subscribe
        with anyio.fail_after(12):
            assert await (await admin.enqueue(add, 2)).result() == 3
        real_server.command("ACL", "SETUSER", "app", *given)
        await until(lambda: worker.health.refused == ())
        assert worker.health.trouble is None
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("'streamq doctor --role worker'" in text for text in texts) == rights, texts
    assert sum("the missing right is back" in text for text in texts) == rights, texts


async def test_who_waits_while_the_channels_are_taken_away(real_server, worker_user, monkeypatch):
    """The wait goes on by looking, as often as if the channels had been missing from the start."""
    monkeypatch.setattr("streamq.queue.waiters.LOOK_EVERY", 60)
    async with RedisBroker(worker_user) as broker, RedisBroker(real_server.url) as admin:
        handle, ended = await broker.enqueue(add, 1), anyio.Event()
        async with anyio.create_task_group() as group:

            async def wait():
                assert await handle.result() == 2
                ended.set()

            group.start_soon(wait)
            channel = handle.result_key  # another test may have left a program that listens
            await until(lambda: real_server.command("PUBSUB", "NUMSUB", channel)[1])
            real_server.command("ACL", "SETUSER", "app", "resetchannels")
            await until(lambda: not real_server.command("PUBSUB", "NUMSUB", channel)[1])
            await anyio.sleep(1)
            async with working(admin, add):
                with anyio.fail_after(20):
                    await ended.wait()
