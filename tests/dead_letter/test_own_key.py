"""A dead letter whose own task still holds the deduplication key is replayed: the right to free the key was missing."""

from __future__ import annotations

import sys

import anyio
import pytest

from streamq import Backoff, RedisBroker, task
from streamq.consumer import set_aside
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import DedupKeyHeldError
from streamq.wire.acl import acl_rules
from tests.at_work import burst, dead, until, working

pytestmark = [pytest.mark.paired, pytest.mark.slow]

ran: list[int] = []
healthy: list[bool] = []
WINDOW = {"dedup_key": "k", "dedup_window": "until_done"}
NEWEST = {"dedup_key": "k", "dedup_mode": "keep_last"}


@task(retries=0)
async def pay(number: int) -> None:
    if not healthy:
        await anyio.sleep(0.1)
        raise OSError("the first time")
    ran.append(number)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The pauses between two tries are short here; a key that could not be freed is tried again when it is too late."""
    ran.clear()
    healthy.clear()
    monkeypatch.setattr(set_aside, "_PAUSE", Backoff(base=0.01, factor=2.0, cap=0.03))
    monkeypatch.setattr(set_aside, "LEFT_PAUSE", 600.0)


async def die_with_key(server, options, *, behind: bool = False) -> str:
    """Let a worker that may not touch the key write the dead letter; return the id of the task."""
    rules = acl_rules(RedisBroker(server.url).keys, ["worker"]).line("app").replace("PASSWORD", "pw").split()
    server.command(*rules)
    async with RedisBroker(server.url) as own, RedisBroker(server.url.replace("://", "://app:pw@")) as broker:
        handle = await own.enqueue(pay.options(**options), 1)
        async with working(broker, pay):
            await until(lambda: server.command("XPENDING", "queue:standard", "workers")[0])
            if behind:
                await own.enqueue(pay.options(**options), 2)
            server.command(*[word for word in rules if word != "~queue:dedup:*"])
            await until(lambda: dead(server))
    server.command("ACL", "DELUSER", "app")
    assert server.command("GET", "queue:dedup:k").decode() == handle.task_id
    return handle.task_id


async def test_the_last_line_of_its_worker_says_that_it_is_held(real_server, caplog):
    """It does not claim that anything was released."""
    dead_id = await die_with_key(real_server, WINDOW)
    (line,) = [line for line in caplog.messages if "refused to the end" in line]
    held = "deduplication keys that stay held until their TTL ends, or their dead letter is replayed: 1: the release of"
    assert held in line
    assert dead_id in line


@pytest.mark.parametrize("way", ["single", "entry", "filter", "command"])
async def test_it_is_replayed_in_every_way(real_server, way):
    """The new task holds the key, and frees it at its end."""
    dead_id = await die_with_key(real_server, WINDOW)
    async with RedisBroker(real_server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        if way == "single":
            new_id = await queue.replay(task_id=dead_id)
        elif way == "entry":
            new_id = await queue.replay_entry((await queue.peek())[0])
        elif way == "filter":
            (new_id,) = await queue.replay(error_type="OSError")
        else:
            command = [sys.executable, "-m", "streamq", "dlq", "replay", dead_id, "--url", real_server.url]
            new_id = (await anyio.run_process(command)).stdout.decode().strip()
        assert real_server.command("GET", "queue:dedup:k").decode() == new_id
        assert not (await broker.enqueue(pay.options(**WINDOW), 3)).fresh
        healthy.append(True)
        await burst(broker, pay)
    assert ran == [1]
    assert real_server.command("EXISTS", "queue:dedup:k") == 0


async def test_the_task_that_waits_for_its_end_waits_for_that_of_the_replay(real_server):
    """Under keep_last it runs as soon as the replayed task has ended, and not when the key expires."""
    dead_id = await die_with_key(real_server, NEWEST, behind=True)
    async with RedisBroker(real_server.url) as broker:
        await DeadLetterQueue(broker=broker).replay(task_id=dead_id)
        healthy.append(True)
        async with working(broker, pay):
            await until(lambda: ran == [1, 2])
    assert real_server.command("EXISTS", "queue:dedup:k", "queue:latest:k") == 0


async def test_an_operator_has_the_rights(real_server):
    """Those of dead letters alone are enough."""
    dead_id = await die_with_key(real_server, NEWEST, behind=True)
    keys = RedisBroker(real_server.url).keys
    rules = acl_rules(keys, ["operator"], ["dead-letters"]).line("boss").replace("PASSWORD", "pw")
    real_server.command(*rules.split())
    try:
        async with RedisBroker(real_server.url.replace("://", "://boss:pw@")) as broker:
            assert await DeadLetterQueue(broker=broker).replay(task_id=dead_id)
    finally:
        real_server.command("ACL", "DELUSER", "boss")


async def test_a_filter_says_what_it_passed_over(real_server, caplog):
    """Ten of each cause by name, and their number."""
    async with RedisBroker(real_server.url) as broker:
        for number in range(15):
            held = ("dedup", "k", "dedup_until", "done")
            real_server.command(
                "XADD", "queue:dead", "*", "task_id", f"d{number}", "task", "pay", "tier", "standard", *held
            )
        real_server.command("XADD", "queue:dead", "*", "task_id", "bad", "task", "pay", "tier", "standard", "args", "x")
        real_server.command("XADD", "queue:dead", "*", "task_id", "far", "task", "pay", "tier", "elsewhere")
        real_server.command("XADD", "queue:dead", "*", "task_id", "good", "task", "pay", "tier", "standard")
        real_server.command("SET", "queue:dedup:k", "other")
        queue = DeadLetterQueue(broker=broker)
        assert len(await queue.replay(limit=100)) == 1
        lines = [line for line in caplog.messages if line.startswith("not replayed: ")]
        assert sum("task 'other' holds its deduplication key 'k'" in line for line in lines) == 10
        assert any("'bad'" in line for line in lines)
        assert any("died in the tier 'elsewhere'" in line for line in lines)
        assert caplog.messages[-1] == (
            "dead letters replayed: 1; passed over: "
            "1 (UndecodableError), 1 (ConfigurationError), 15 (DedupKeyHeldError)"
        )
        with pytest.raises(DedupKeyHeldError):
            await queue.replay(task_id="d3")
