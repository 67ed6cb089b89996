"""P11: signed messages, by every way in: what holders of a key send runs, and nothing else does."""

from __future__ import annotations

import json
import logging
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import anyio
import orjson
import pytest

from streamq import RedisBroker, Reject, RetryLater, SigningKeys, TaskRef, batch_task, current_delivery, group, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import ConfigurationError, SignatureError
from streamq.queue.schedules import ScheduleDefinition, read_schedules, register
from tests.at_work import assert_nothing_left, burst, dead, entries, until, working

pytestmark = pytest.mark.paired

OLD, NEW, FOREIGN = b"o" * 32, b"n" * 32, b"f" * 32
KEYS = SigningKeys({"old": OLD, "new": NEW}, sign_with="new")
STANDARD = "queue:standard"


def soon(attempt, error):
    return 0.01


def opened(server, signing=KEYS, **options):
    return RedisBroker(server.url, signing=signing, **options)


@pytest.fixture
async def broker(server):
    async with opened(server) as broker:
        yield broker


class Ran(list):
    """What ran, in order."""

    def task(self, **options):
        @task(name="note", backoff=soon, **options)
        async def note(*args, **kwargs):
            self.append((args, kwargs))
            return args

        return note


def refused_ones(server):
    """Return the dead letters; each was refused for its signature."""
    found = dead(server)
    for one in found:
        assert (one["reason"], one["error_type"]) == ("undecodable", "streamq.errors.SignatureError"), one
        assert "sig" not in one
    return found


def sent(server, stream=STANDARD):
    """Return the flat fields of the only entry of a stream, which is taken away."""
    ((entry, flat),) = server.command("XRANGE", stream, "-", "+")
    server.command("XDEL", stream, entry)
    return flat


def kept(server):
    """Return the names of the keys of results."""
    names = server.keys()
    return [name for name in names if "result" in name]


# --- what is signed runs -------------------------------------------------------------------------


async def test_every_way_in(server, broker):
    """Each option, each kind of enqueue, now and delayed, replaced, in batches, and with all retries between."""
    ran = Ran()
    note = ran.task()

    @batch_task(size=3, wait=0.05)
    async def many(items: list[int]) -> None:
        ran.extend(((item,), {}) for item in items)

    @task(backoff=soon, retries=3)
    async def shaky(n: int) -> None:
        attempt = current_delivery().attempt
        if attempt == 1:
            raise ValueError
        if attempt == 2 and "again" not in current_delivery().headers:
            raise RetryLater(after=0.01, headers={"again": 1})
        ran.append(((n,), {}))

    soonest = datetime.now(UTC) + timedelta(seconds=0.2)
    await broker.enqueue(note, 1, word="é")
    for number, options in enumerate((
        {"priority": 100}, {"priority": -7}, {"tier": "bulk"}, {"retries": 0, "timeout": 5.0}, {"headers": {"a": [1]}},
        {"expires": 60.0, "result_ttl": 60.0}, {"task_id": "own"}, {"delay": 0.1}, {"at": soonest}, {"dedup_key": "k1"},
        {"dedup_key": "k2", "dedup_mode": "debounce", "delay": 0.2}, {"dedup_key": "k3", "dedup_mode": "keep_last"},
        {"dedup_key": "k4", "dedup_window": "until_done"}, {"dedup_key": "k5", "dedup_window": "until_started"},
    ), 2):  # fmt: skip
        await broker.enqueue(note.options(**options), number)
    assert (await broker.enqueue(note.options(dedup_key="k2", dedup_mode="debounce", delay=0.1), 12)).replaced
    assert (await broker.enqueue(note.options(dedup_key="k3", dedup_mode="keep_last"), 13)).replaced
    await broker.enqueue_many([note.call(n) for n in range(16, 20)])
    await broker.enqueue_many([many.call(n) for n in range(20, 25)])
    await broker.enqueue_many([shaky.call(n) for n in range(25, 28)])
    async with working(broker, note, many, shaky):
        await until(lambda: len(ran) >= 27)
    assert sorted(args[0] for args, _ in ran) == list(range(1, 28))
    assert dead(server) == []
    assert_nothing_left(server, "queue:standard:messages")


async def test_every_message_in_redis_has_a_signature(server, broker):
    """In streams, in the delayed set and among dead letters: nothing is left out."""

    @task(retries=1, backoff=60.0)
    async def fails(n: int) -> None:
        if n:
            raise Reject
        raise ValueError

    await broker.enqueue(fails, 0)
    await broker.enqueue(fails, 1)
    async with working(broker, fails):
        await until(lambda: dead(server) and server.command("ZCARD", f"{STANDARD}:delayed"))
    await broker.enqueue(fails, 2)
    await broker.enqueue(fails.options(delay=60.0), 3)
    await broker.schedule("nightly", "0 3 * * *", TaskRef("t"))
    ((_, flat),) = server.command("XRANGE", STANDARD, "-", "+")
    delayed = [orjson.loads(one) for one in server.command("HVALS", f"{STANDARD}:messages")]
    ((_, letter),) = server.command("XRANGE", "queue:dead", "-", "+")
    (stored,) = server.command("HVALS", "queue:schedules")
    assert len(delayed) == 2
    assert flat[-2] == letter[-2] == b"sig"
    assert {one[-2] for one in delayed} == {"sig"}
    assert {str(one[-1])[:7] for one in delayed} == {"v1:new:"}
    assert json.loads(stored)["sig"].startswith("v1:new:")


WEIRD = [2**63 - 1, 0.1 + 0.2, 1e-310, -0.0, '\u2028 é 😀 \x00 "', {"a": [None]}, None]


async def test_workflows_are_signed_step_by_step(server, broker):
    """The producer signs the steps, the worker signs what they become; results of a group come through as they were."""
    ran = []

    @task
    async def give(n: int):
        return WEIRD[n]

    @task
    async def pass_on(value, more=None):
        return value

    @task(result_ttl=60)
    async def total(values, *rest):
        ran.append((values, rest))
        return len(values)

    members = [give.call(n).then(pass_on) for n in range(len(WEIRD))]
    flow = give.call(0).then(pass_on, more=1).then(group(*members)).then(total, "x").then(pass_on)
    done = await broker.start(flow)
    async with working(broker, give, pass_on, total):
        await until(lambda: len(ran) == 1)
        assert await done.steps[-2].result(5) == len(WEIRD)
    assert [orjson.dumps(value) for value in ran[0][0]] == [orjson.dumps(value) for value in WEIRD]
    assert ran[0][1] == ("x",)
    assert dead(server) == []


async def test_a_group_survives_retries_and_delays(server, broker):
    """The step after a group fails, is postponed, and waits: its results are signed anew with it."""
    seen = []

    @task
    async def give(n: int) -> int:
        return n

    @task(backoff=soon, retries=2)
    async def total(values: list[int]) -> None:
        seen.append(values)
        if len(seen) < 3:
            raise ValueError

    await broker.start(group(*(give.call(n) for n in range(3))).then(total.options(delay=0.05)))
    async with working(broker, give, total):
        await until(lambda: len(seen) == 3)
    assert seen == [[0, 1, 2]] * 3
    assert dead(server) == []


async def test_ticks_and_replays_and_on_exhausted(server, broker):
    """What workers and operators send is signed with their keys."""
    ran = Ran()
    note = ran.task()

    @task(on_exhausted=note, retries=0)
    async def dies(n: int) -> None:
        if current_delivery().headers.get("replayed_from") is None:
            raise Reject

    await broker.enqueue(dies.options(headers={"x": 1}, timeout=3.0), 7)
    now = (await read_schedules(broker.store))[0]
    one = ScheduleDefinition(
        name="often", cron="0 3 * * *", tz="UTC", missed="last", overlap=False, declared=False, task="note",
        stream=STANDARD, fields=["task", "note", "args", '["tick"]'], headers={"h": 1}, expires=600.0,
    )  # fmt: skip
    assert await register(broker.store, one.signed(broker.store.signer), now) == now
    async with working(broker, note, dies):
        await until(lambda: len(ran) == 2)
        (letter,) = await DeadLetterQueue(broker=broker).peek()
        assert letter.replayable
        await DeadLetterQueue(broker=broker).replay(task_id=letter.task_id, retries=4)
        await until(lambda: server.command("XLEN", STANDARD) == 0)
    assert dead(server) == []
    assert {args[0] if args[0] == "tick" else args[0]["task_id"] for args, _ in ran} == {"tick", letter.task_id}


async def test_a_manual_consumer_checks_as_a_worker_does(server, broker):
    await broker.enqueue("note", 1)
    server.command("XADD", STANDARD, "*", "task", "note", "args", "[2]")
    await broker.enqueue("note", 3)
    got = []
    with anyio.fail_after(5):
        async with aclosing(broker.consume()) as messages:
            async for delivery in messages:
                got.append(delivery.args[0])
                await broker.ack(delivery.task_id)
                if len(got) == 2:
                    break
    assert got == [1, 3]
    assert len(refused_ones(server)) == 1


async def test_released_and_reclaimed_deliveries_keep_their_signature(server, broker):
    """A delivery that another worker takes over is checked by that worker."""
    ran, inside = Ran(), anyio.Event()
    note = ran.task()

    @task(name="note")
    async def waits(*args):
        inside.set()
        await anyio.sleep_forever()

    await broker.enqueue(note, 1)
    async with working(broker, waits, grace_period=0.01):
        await inside.wait()
    async with working(broker, note):
        await until(lambda: ran == [((1,), {})])
    assert dead(server) == []


# --- what is not signed does not run -------------------------------------------------------------------


async def test_unsigned_messages_are_refused_by_every_way_in(server, broker, caplog):
    """In a stream, in the delayed set, from a producer without keys; a tick and a replay of theirs as well."""
    ran = Ran()
    note = ran.task()
    async with RedisBroker(server.url) as stranger:
        await stranger.enqueue(note, 1)
        await stranger.enqueue(note.options(delay=0.01), 2)
        await stranger.enqueue(note.options(dedup_key="k", dedup_mode="keep_last"), 3)
        await stranger.start(note.call(4).then(note))
        await stranger.schedule("theirs", "* * * * *", note.call(5))
        server.command("ZADD", "queue:ticks", 0, "theirs")
    server.command("XADD", STANDARD, "*", "task", "note", "args", "[6]")
    server.command("XADD", "queue:bulk", "*", "rubbish", "\xff")
    server.command("HSET", f"{STANDARD}:messages", "x", '["task","note","id","x"]')
    server.command("ZADD", f"{STANDARD}:delayed", 1, "x")
    with caplog.at_level(logging.WARNING):
        async with working(broker, note):
            await until(lambda: len(dead(server)) == 7)
            await anyio.sleep(0.1)
    assert ran == []
    assert all("the message is not signed; accepted here: 'old', 'new'" in one["error"] for one in refused_ones(server))
    assert "does not tick the schedule 'theirs': the schedule 'theirs' is not signed" in caplog.text
    assert server.command("EXISTS", "queue:ticked") == 0


FULL = {"priority": 10, "retries": 2, "timeout": 9.5, "result_ttl": 60.0, "expires": 600.0, "headers": {"h": "v"},
        "dedup_key": "key", "dedup_window": "until_done"}  # fmt: skip
TAMPERED = {
    "task": b"other", "id": b"mine", "args": b"[2]", "kwargs": b'{"k":2}', "priority": b"9", "retries": b"99",
    "timeout": b"0", "result_ttl": b"999999", "expires": b"99999999999999", "headers": b'{"h":"w"}', "dedup": b"mine",
    "dedup_until": b"started", "then": b'[{"send":"queue:bulk","fields":["task","other","id","o"]}]',
    "enqueued_at": b"1", "attempt": b"1", "starts": b"7", "group": b"workers", "unknown_since": b"1", "more": b"x",
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
async def test_no_field_can_be_changed_or_added(server, broker, name):
    """Each field in turn: refused, and nothing in it is believed: no result, no key freed, no next step."""
    ran = Ran()
    note, other = ran.task(), task(name="other")(ran.task().function)
    await broker.enqueue(note.options(**FULL), 1, k=1)
    flat = sent(server)
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    fields[name.encode()] = TAMPERED[name]
    server.command("XADD", STANDARD, "*", *(part for pair in fields.items() for part in pair))
    held = server.command("GET", "queue:dedup:key")
    await burst(broker, note, other)
    assert ran == []
    (letter,) = refused_ones(server)
    assert "signature (key 'new') is not that of the message" in letter["error"]
    assert letter[f"raw.{name}"] == TAMPERED[name].decode()
    assert server.command("GET", "queue:dedup:key") == held
    assert kept(server) == []


@pytest.mark.parametrize("name", ["args", "kwargs", "retries", "timeout", "expires", "headers", "id", "sig"])
async def test_no_field_can_be_left_out(server, broker, name):
    note = Ran().task()
    await broker.enqueue(note.options(**FULL), 1, k=1)
    flat = sent(server)
    fields = {key: value for key, value in zip(flat[::2], flat[1::2], strict=True) if key != name.encode()}
    server.command("XADD", STANDARD, "*", *(part for pair in fields.items() for part in pair))
    await burst(broker, note)
    assert len(refused_ones(server)) == 1


@pytest.mark.parametrize("change", ['"attempt","1"', '"retries","99"', '"args","[2]"', '"group","workers"'])
async def test_a_retry_cannot_be_changed_while_it_waits(server, broker, change):
    """What a worker wrote into the delayed set is signed with all its fields."""

    @task(name="note", retries=5, backoff=60.0)
    async def fails(n: int) -> None:
        raise ValueError

    await broker.enqueue(fails, 1)
    async with working(broker, fails):
        await until(lambda: server.command("ZCARD", f"{STANDARD}:delayed"))
    ((member, message),) = zip(*[iter(server.command("HGETALL", f"{STANDARD}:messages"))] * 2, strict=True)
    server.command("HSET", f"{STANDARD}:messages", member, message[:-1] + f",{change}]".encode())
    server.command("ZADD", f"{STANDARD}:delayed", 1, member)
    await burst(broker, fails)
    assert len(refused_ones(server)) == 1


async def test_moved_messages_are_refused_and_copied_ones_are_not(server, broker):
    """To another tier, to another namespace. A copy in its own stream runs again: `expires` bounds how long."""
    ran = Ran()
    note = ran.task()
    await broker.enqueue(note, 1)
    flat = sent(server)
    for stream in ("queue:critical", "other:standard", STANDARD, STANDARD):
        server.command("XADD", stream, "*", *flat)
    async with opened(server, namespace="other") as elsewhere:
        await burst(elsewhere, note)
    await burst(broker, note)
    assert ran == [((1,), {})] * 2
    assert [one["tier"] for one in refused_ones(server)] == ["critical"]
    assert server.command("XLEN", "other:dead") == 1


async def test_the_results_of_a_group_cannot_be_changed(server, broker):
    """Those that wait for the others lie in a hash: each is signed by the worker that it comes from."""
    ran, gate = [], anyio.Event()

    @task
    async def give(n: int) -> int:
        if n:
            await gate.wait()
        return n

    @task
    async def total(values: list[int]) -> None:
        ran.append(values)

    await broker.start(group(give.call(0), give.call(1)).then(total), workflow_id="w")
    async with working(broker, give, total):
        await until(lambda: server.command("HLEN", "queue:join:workers:w.3") == 1)
        server.command("HSET", "queue:join:workers:w.3", "1", "77")
        gate.set()
        await until(lambda: dead(server))
    assert ran == []
    assert "the result of member 1 of 2 of the group is not signed" in refused_ones(server)[0]["error"]


async def test_a_crash_loop_that_nobody_signed_calls_no_on_exhausted(server, broker):
    """What was never checked because it took its workers down is checked before it is dead-lettered."""
    ran = Ran()

    @task(name="dies", on_exhausted=ran.task())
    async def dies() -> None: ...

    server.command("XGROUP", "CREATE", STANDARD, "workers", "0", "MKSTREAM")
    entry = server.command("XADD", STANDARD, "*", "task", "dies", "id", "forged", "result_ttl", "60").decode()
    server.command("XREADGROUP", "GROUP", "workers", "third", "STREAMS", STANDARD, ">")
    server.command("ZADD", f"{STANDARD}:alive:workers", 1, "third")
    server.command("XCLAIM", STANDARD, "workers", "third", 0, entry, "IDLE", 99999)
    server.command("HSET", f"{STANDARD}:crashes:workers", entry, "one two", f"{entry}:alone", "third")
    async with working(broker, dies, visibility_timeout=0.3):
        await until(lambda: dead(server))
        await anyio.sleep(0.05)
    assert ran == []
    (letter,) = refused_ones(server)
    assert letter["crashed"] == "one two third"
    assert kept(server) == []


# --- dead letters --------------------------------------------------------------------------------


async def test_a_replay_believes_signed_dead_letters_alone(server, broker):
    """A forged or changed one is not signed anew by an operator who has the keys."""

    @task(name="note")
    async def rejects(n: int) -> None:
        raise Reject

    letters = DeadLetterQueue(broker=broker)
    await broker.enqueue(rejects, 1)
    await burst(broker, rejects)
    ((_, flat),) = server.command("XRANGE", "queue:dead", "-", "+")
    changed = [b"[2]" if part == b"[1]" else part for part in flat]
    server.command("XADD", "queue:dead", "*", *changed)
    server.command("XADD", "queue:dead", "*", *flat[:-2])
    server.command("XADD", "queue:dead", "*", "task_id", "forged", "task", "note", "tier", "standard")
    for letter in (await letters.peek())[:3]:
        with pytest.raises(SignatureError):
            await letters.replay(task_id=letter.entry_id)
    assert len(await letters.replay(task_name="note")) == 1
    assert [one["args"] for one in entries(server, STANDARD)] == ["[1]"]
    assert server.command("XLEN", "queue:dead") == 3


async def test_a_refused_message_cannot_be_replayed(server, broker):
    """Or an operator would sign what a stranger sent. With the keys that it needs, see dead_letter/test_refused.py."""
    server.command("XADD", STANDARD, "*", "task", "note", "id", "x")
    await burst(broker, Ran().task())
    (letter,) = await DeadLetterQueue(broker=broker).peek()
    assert not letter.replayable
    assert letter.raw["task"] == b"note"
    assert await DeadLetterQueue(broker=broker).replay(limit=10) == []
    async with RedisBroker(server.url) as without:
        assert await DeadLetterQueue(broker=without).replay(limit=10) == []


async def test_a_signed_dead_letter_stays_without_keys(server, broker):
    """What would replace it has no signature: workers with keys would refuse it for good."""

    @task
    async def dies() -> None:
        raise Reject

    await broker.enqueue(dies)
    await burst(broker, dies)
    async with RedisBroker(server.url) as stranger:
        queue = DeadLetterQueue(broker=stranger)
        (letter,) = await queue.peek()
        with pytest.raises(SignatureError, match=f"the dead letter {letter.entry_id} is signed and this broker has no"):
            await queue.replay(task_id=letter.task_id)
        assert await queue.replay(task_name="dies") == []
    assert await DeadLetterQueue(broker=broker).replay(task_id=letter.task_id)


# --- rotation, and fleets that mix ---------------------------------------------------------------------


async def test_rotation_while_tasks_wait(server):
    """A rolling deploy: accept the new key everywhere, sign with it, take the old one away."""
    ran = Ran()
    note = ran.task(retries=2)
    both_old = SigningKeys({"old": OLD, "new": NEW}, sign_with="old")
    async with opened(server, SigningKeys({"old": OLD})) as first:
        await first.enqueue(note, 1)
    async with opened(server, both_old) as second:
        await second.enqueue(note, 2)
    async with opened(server, KEYS) as third:
        await third.enqueue(note, 3)
    async with opened(server, both_old) as late:  # still signs with the old key, and accepts both
        await burst(late, note)
    async with opened(server, SigningKeys({"new": NEW})) as last:
        await last.enqueue(note, 4)
        await burst(last, note)
    assert [args[0] for args, _ in ran] == [1, 2, 3, 4]
    async with opened(server, SigningKeys({"new": FOREIGN})) as foreign:
        await foreign.enqueue(note, 5)
    async with opened(server, SigningKeys({"old": OLD})) as old, opened(server, SigningKeys({"new": NEW})) as last:
        await old.enqueue(note, 6)
        await burst(last, note)
    texts = sorted(one["error"] for one in refused_ones(server))
    assert "unknown key 'old'; accepted here: 'new'" in texts[0] + texts[1]
    assert "another key of this id" in texts[0] + texts[1]
    assert len(ran) == 4


async def test_signing_is_introduced_without_losing_a_task(server):
    """First everybody signs and accepts unsigned; a worker without keys removes the signatures of what it changes."""
    ran = Ran()

    @task(name="note", backoff=soon, retries=9)
    async def shaky(n: int) -> None:
        ran.append(n)
        if current_delivery().attempt == 1:
            raise ValueError

    both = SigningKeys({"new": NEW}, accept_unsigned=True)
    async with RedisBroker(server.url) as old, opened(server, both) as open_for_all:
        await old.enqueue(shaky, 1)
        await open_for_all.enqueue(shaky.options(delay=0.01), 2)
        await old.schedule("theirs", "0 3 * * *", TaskRef("note"))
        async with working(old, shaky, concurrency=1), working(open_for_all, shaky, concurrency=1):
            await until(lambda: len(ran) == 4)
        await open_for_all.enqueue(shaky, 3)
        flat = sent(server)
        server.command("XADD", STANDARD, "*", *flat, "retries", "7")
        await burst(open_for_all, shaky)
    assert sorted(ran) == [1, 1, 2, 2]
    assert "is not that of the message" in refused_ones(server)[0]["error"]


async def test_without_keys_nothing_is_signed_and_everything_runs(server):
    """A hand-written XADD stays possible, and so does the message of a fleet that signs."""
    ran = Ran()
    note = ran.task()
    async with RedisBroker(server.url) as off, opened(server) as signing:
        await off.enqueue(note, 1)
        assert b"sig" not in server.command("XRANGE", STANDARD, "-", "+")[0][1]
        server.command("XADD", STANDARD, "*", "task", "note", "args", "[2]")
        await signing.enqueue(note, 3)
        await burst(off, note)
    assert [args[0] for args, _ in ran] == [1, 2, 3]


async def test_a_schedule_that_was_changed_is_not_ticked(server, broker, caplog):
    """Its worker would sign what a stranger wrote. The revision that the script compares is not enough."""
    ran = Ran()
    note = ran.task()
    await broker.schedule("mine", "* * * * *", note.call(1))
    stored = json.loads(server.command("HGET", "queue:schedules", "mine"))
    changed = {**stored, "fields": ["task", "note", "args", "[2]"]}
    server.command("HSET", "queue:schedules", "mine", orjson.dumps(changed))
    server.command("HSET", "queue:schedules", "copied", orjson.dumps(stored))
    server.command("ZADD", "queue:ticks", 1, "mine", 1, "copied")
    async with working(broker, note):
        await anyio.sleep(0.2)
    assert ran == []
    assert caplog.text.count("does not tick the schedule") == 2
    assert server.command("XLEN", STANDARD) == 0


async def test_a_schedule_changed_behind_its_worker_sends_what_nobody_runs(server, broker):
    """It is changed after the worker has read it, and the revision is left as it was."""
    ran = Ran()
    note = ran.task()
    now = (await read_schedules(broker.store))[0]
    one = ScheduleDefinition(
        name="mine", cron="0 3 * * *", tz="UTC", missed="last", overlap=True, declared=False, task="note",
        stream=STANDARD, fields=["task", "note", "args", "[1]"],
    )  # fmt: skip
    await register(broker.store, one.signed(broker.store.signer), now + 2000)
    async with working(broker, note):
        await anyio.sleep(0.8)  # it has read it, also on a busy machine
        stored = json.loads(server.command("HGET", "queue:schedules", "mine"))
        server.command("HSET", "queue:schedules", "mine", orjson.dumps({**stored, "fields": ["task", "note"]}))
        await until(lambda: dead(server))
    assert ran == []
    assert len(refused_ones(server)) == 1


async def test_a_declared_schedule_is_signed(server, broker):
    """By each worker that starts and has it in its code."""
    from streamq import Cron

    @task(cron=Cron("0 3 * * *"))
    async def nightly() -> None: ...

    async with working(broker, nightly):
        await until(lambda: server.command("EXISTS", "queue:schedules"))
        (stored,) = [json.loads(one) for one in server.command("HVALS", "queue:schedules")]
    assert stored["sig"].startswith("v1:new:")


def test_signing_is_signing_keys():
    with pytest.raises(ConfigurationError, match="signing is of type bytes: give SigningKeys"):
        RedisBroker(signing=NEW)
