"""P1 for messages of one consumer group: if its stream does not have that group, they become dead letters."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import pytest

from streamq import RedisBroker, Reject, task
from streamq.dead_letter import DeadLetterQueue
from tests.at_work import burst, dead, entries, until, working

pytestmark = pytest.mark.paired("memory")

STREAM = "queue:standard"
fails: list[BaseException] = []
ran: list[str] = []


@pytest.fixture(autouse=True)
def _forget():
    fails.clear()
    ran.clear()


@task(retries=3, backoff=0.5)
async def send(to):
    if fails:
        raise fails.pop()
    ran.append(to)


@pytest.fixture
async def new(server):
    async with RedisBroker(server.url, group="new") as opened:
        await opened.store.ensure_groups()
        yield opened


@pytest.fixture
async def old(server):
    async with RedisBroker(server.url, group="old") as opened:
        await opened.store.ensure_groups()
        yield opened


def by_hand(server, group, to="a"):
    server.command("XADD", STREAM, "*", "task", "send", "args", f'["{to}"]', "group", group)


def destroy(server, group="old"):
    for stream in ("queue:critical", STREAM, "queue:bulk"):
        server.command("XGROUP", "DESTROY", stream, group)


async def test_a_mistyped_group_is_a_dead_letter_that_can_be_replayed(server, new):
    """Nothing of it is lost: the letter names the group, and its replay runs."""
    by_hand(server, "wrokers")
    await burst(new, send)
    (letter,) = dead(server)
    assert (letter["reason"], letter["error_type"], letter["group"]) == ("unknown_group", "UnknownGroup", "new")
    assert (letter["attempts"], letter["starts"]) == ("0", "0")  # it never ran
    assert letter["error"].startswith("its field 'group' names the consumer group 'wrokers', which queue:standard")
    assert "replay" in letter["error"]
    assert not ran
    assert entries(server, STREAM) == []
    await DeadLetterQueue(broker=new).replay(reason="unknown_group")
    await burst(new, send)
    assert ran == ["a"]
    assert dead(server) == []


async def test_a_retry_whose_group_is_gone_is_a_dead_letter(server, old):
    """It becomes due after its group was destroyed; what its sender gave it is kept."""
    fails.append(ValueError("no way"))
    await old.enqueue(send, "a", task_id="mail-1")
    async with working(old, send):
        await until(lambda: server.command("ZCARD", f"{STREAM}:delayed"))
    destroy(server)
    async with RedisBroker(server.url, group="new") as new:
        async with working(new, send):
            (letter,) = await until(lambda: dead(server))
        assert (letter["reason"], letter["task_id"], letter["attempts"]) == ("unknown_group", "mail-1", "1")
        await DeadLetterQueue(broker=new).replay(task_id="mail-1")
        await burst(new, send)
    assert ran == ["a"]


@pytest.mark.parametrize("one", [True, False])
async def test_a_replay_runs_where_there_is_a_group(server, old, new, one):
    """The group of the dead letter was destroyed: it runs in that of the broker that replays it."""
    fails.append(Reject("never"))
    handle = await old.enqueue(send, "a")
    await burst(old, send)
    await burst(new, send)
    destroy(server)
    ran.clear()
    letters = DeadLetterQueue(broker=new)
    await (letters.replay(task_id=handle.task_id) if one else letters.replay(limit=10))
    assert [entry["group"] for entry in entries(server, STREAM)] == ["new"]
    await burst(new, send)
    assert (ran, dead(server)) == (["a"], [])


async def test_a_replay_stays_in_its_group(server, old, new):
    """That group exists: whoever replays the dead letter, no other group runs it."""
    fails.append(Reject("never"))
    await old.enqueue(send, "a")
    await burst(old, send)
    await burst(new, send)
    ran.clear()
    await DeadLetterQueue(broker=new).replay(limit=10)
    assert [entry["group"] for entry in entries(server, STREAM)] == ["old"]
    await burst(new, send)
    assert ran == []
    await burst(old, send)
    assert (ran, dead(server), entries(server, STREAM)) == (["a"], [], [])


async def test_of_several_groups_one_writes_the_dead_letter(server, old, new):
    """The last one that gets the entry: before it, others acknowledge it."""
    for number in range(20):
        by_hand(server, "wrokers", f"{number}")
    async with working(old, send, concurrency=2), working(new, send, concurrency=2):
        await until(lambda: len(dead(server)) == 20 and not entries(server, STREAM))
    assert sorted(int(letter["args"][2:-2]) for letter in dead(server)) == list(range(20))
    assert not ran


async def test_what_was_passed_and_is_delivered_again_is_not_lost(server, old, new):
    """The doctor's remedy for stranded entries, XGROUP SETID 0, delivers a retry of a destroyed group again."""
    by_hand(server, "old")
    await burst(new, send)
    assert (len(entries(server, STREAM)), dead(server)) == (1, [])  # `old` still needs it
    destroy(server)
    server.command("XGROUP", "SETID", STREAM, "new", "0")
    await burst(new, send)
    assert [letter["reason"] for letter in dead(server)] == ["unknown_group"]
    assert entries(server, STREAM) == []


async def test_the_loop_by_hand_does_the_same(server, new):
    """`consume` skips what belongs to a group that exists; the rest is a dead letter."""
    by_hand(server, "wrokers")
    await new.enqueue(send, "b")
    async with aclosing(new.consume()) as messages:
        with anyio.fail_after(10):
            message = await anext(messages)
        assert message.args == ["b"]
        await new.ack(message.task_id)
        await until(lambda: dead(server))
    assert [letter["reason"] for letter in dead(server)] == ["unknown_group"]
    assert entries(server, STREAM) == []


async def test_who_waits_hears_of_it(server, new):
    """Its result is the failure of the dead letter."""
    server.command("XADD", STREAM, "*", "task", "send", "id", "x", "args", '["a"]', "group", "no", "result_ttl", "60")
    await burst(new, send)
    assert b'"reason":"unknown_group"' in server.command("GET", "queue:result:x")
