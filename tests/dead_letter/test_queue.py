"""The dead letter queue: peek, replay, purge, tail, and the bound. A replay has its deduplication key (P13)."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from streamq import DeadLetterBound, Priority, RedisBroker, Reject, current_delivery, task
from streamq.dead_letter import DeadLetterEntry, DeadLetterQueue
from streamq.dead_letter.queue import PAGE
from streamq.doctor import examine
from streamq.errors import ConfigurationError, DeadLetterNotFoundError, DedupKeyHeldError, UndecodableError
from streamq.monitoring import QueueMonitor
from tests.at_work import burst, dead, entries, until, working

pytestmark = pytest.mark.paired("memory")

healthy = False
seen: list[tuple] = []


@pytest.fixture(autouse=True)
def _sick():
    global healthy  # noqa: PLW0603 - the task below is a module's, as tasks are
    healthy = False
    seen.clear()


@task(retries=0)
async def send(to, n=1):
    delivery = current_delivery()
    seen.append((to, n, delivery.attempt, delivery.task_id, delivery.headers, delivery.tier_name))
    if not healthy:
        raise ValueError(f"no way to {to}")


@task(retries=0)
async def other():
    raise Reject("never")


async def _die(broker, *names, **options):
    """Make a dead letter for each name, in this order, and return the task ids."""
    handles = [await broker.enqueue(send.options(**options), name) for name in names]
    await burst(broker, send, concurrency=1)
    return [handle.task_id for handle in handles]


def _bury(server, count, **fields):
    """Write dead letters by hand."""
    for at in range(count):
        flat = [part for pair in {"task_id": f"t{at}", "task": "send", **fields}.items() for part in pair]
        server.command("XADD", "queue:dead", "*", *flat)


class TestPeek:
    async def test_all_fields_of_a_dead_task(self, server):
        """All fields of the entry are available as Python types."""
        async with RedisBroker(server.url) as broker:
            before = datetime.now(UTC) - timedelta(seconds=5)
            handle = await broker.enqueue(send.options(priority=Priority.HIGH, headers={"a": 1}), "x", n=2)
            worker = await burst(broker, send)
            (letter,) = await DeadLetterQueue(broker=broker).peek()
        assert (letter.task_id, letter.task_name) == (handle.task_id, "send")
        assert (letter.args, letter.kwargs) == (["x"], {"n": 2})
        assert (letter.tier, letter.reason, letter.error_type) == ("critical", "retries_exhausted", "ValueError")
        assert letter.error == "no way to x"
        assert letter.traceback.endswith("ValueError: no way to x\n")
        assert (letter.attempts, letter.starts, letter.headers) == (1, 1, {"a": 1})
        assert before < letter.enqueued_at <= letter.died_at < datetime.now(UTC) + timedelta(seconds=5)
        assert (letter.worker, letter.crashed) == (worker.name, ())
        assert letter.origin == f"queue:critical {handle.entry_id}"
        assert letter.replayable
        assert letter.raw == {}

    async def test_pages_in_both_orders(self, server):
        """`after` continues where a page ended, newest first or oldest first. Large counts read several pages."""
        _bury(server, PAGE + 30)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            newest = await queue.peek(10)
            assert [letter.task_id for letter in newest] == [f"t{PAGE + 29 - at}" for at in range(10)]
            assert (await queue.peek(1, after=newest[-1].entry_id))[0].task_id == f"t{PAGE + 19}"
            oldest = await queue.peek(PAGE + 20, oldest_first=True)
            assert [letter.task_id for letter in oldest] == [f"t{at}" for at in range(PAGE + 20)]
            rest = await queue.peek(100, after=oldest[-1].entry_id, oldest_first=True)
            assert len(rest) == 10
            assert await queue.peek(0) == []
            assert await queue.size() == PAGE + 30
            with pytest.raises(ConfigurationError, match="not an entry id"):
                await queue.peek(after="yesterday")

    @pytest.mark.parametrize(
        "after", ["9" * 30 + "-0", "1-" + "9" * 30, "18446744073709551616", "1-", "\u0661-0", "-1"]
    )
    async def test_after_what_is_no_entry_id(self, server, after):
        async with RedisBroker(server.url) as broker:
            with pytest.raises(ConfigurationError, match="is not an entry id"):
                await DeadLetterQueue(broker=broker).peek(after=after)

    async def test_after_the_last_id_of_all_there_is_nothing(self, server):
        """The server refuses such a read, in either direction."""
        _bury(server, 2)
        last = f"{2**64 - 1}-{2**64 - 1}"
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            assert await queue.peek(after="0-0") == []
            assert await queue.peek(after=last, oldest_first=True) == []
            assert len(await queue.peek(after=last)) == len(await queue.peek(after="0-0", oldest_first=True)) == 2

    async def test_filters(self, server):
        """Only matching dead letters are returned, also from later pages."""
        _bury(server, 3, reason="expired", error_type="app.errors.Odd")
        _bury(server, PAGE + 1, reason="rejected")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            assert len(await queue.peek(reason="expired")) == 3
            assert len(await queue.peek(2, error_type="Odd")) == 2
            assert len(await queue.peek(error_type="app.errors.Odd")) == 3
            assert await queue.peek(task_name="nobody") == []

    @pytest.mark.parametrize(
        "flat",
        [
            ["x", "y"],
            ["task", "send"],
            ["task", "send", "args", "{", "kwargs", "[]", "headers", "1"],
            ["task", b"\xff\xfe", "task_id", b"\xff", "error", b"\xff"],
            ["task", "send", "attempts", "many", "starts", "-1"],
            ["task", "send", "enqueued_at", "then", "died_at", "2026-01-02T03:04:05"],
            ["task", "send", "attempts", "9" * 40],
            ["task", "send", "attempts", "99999999999", "starts", "99999999999"],
        ],
    )
    async def test_written_by_hand(self, server, flat):
        """Fields may be missing or invalid: peek returns the others."""
        entry = server.command("XADD", "queue:dead", "*", *flat).decode()
        async with RedisBroker(server.url) as broker:
            (letter,) = await DeadLetterQueue(broker=broker).peek()
        assert letter.entry_id == entry
        assert letter.task_id
        assert letter.died_at.tzinfo is not None
        assert letter.args == []
        assert (letter.attempts, letter.starts) == (0, 0)
        assert letter.replayable == (letter.task_name == "send" and b"{" not in letter.raw.values())

    async def test_beyond_the_calendar(self, server):
        """An entry id beyond the year 9999 raises no error."""
        server.command("XADD", "queue:dead", "253402300800000000-1", "task", "send")
        async with RedisBroker(server.url) as broker:
            (letter,) = await DeadLetterQueue(broker=broker).peek()
        assert letter.died_at.year == 9999

    async def test_undecodable_keeps_its_bytes(self, server):
        """An undecodable entry keeps its bytes."""
        async with RedisBroker(server.url) as broker:
            await broker.store.ensure_groups()
            server.command("XADD", "queue:standard", "*", "task", "send", "args", b"{\xff")
            await burst(broker, send)
            (letter,) = await DeadLetterQueue(broker=broker).peek()
        assert letter.reason == "undecodable"
        assert letter.raw["args"] == b"{\xff"
        assert not letter.replayable


class TestReplay:
    @pytest.mark.slow
    async def test_runs_again_as_new(self, server):
        """A replay is a first attempt in the same tier, with a new id, and its header has the old one."""
        global healthy  # noqa: PLW0603
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            options = {"priority": 77, "timeout": 5.5, "result_ttl": 60.0, "headers": {"a": 1}, "retries": 0}
            (task_id,) = await _die(broker, "x", **options)
            new_id = await queue.replay(task_id=task_id)
            assert dead(server) == []
            (entry,) = entries(server, "queue:critical")
            assert {name: entry[name] for name in ("priority", "timeout", "result_ttl", "retries")} == {
                "priority": "77", "timeout": "5.5", "result_ttl": "60.0", "retries": "0",
            }  # fmt: skip
            assert "attempt" not in entry
            healthy = True
            await burst(broker, send)
        assert new_id != task_id
        assert seen[-1] == ("x", 1, 1, new_id, {"a": 1, "replayed_from": task_id}, "critical")

    async def test_with_a_budget_out_of_bounds_nothing_is_replayed(self, server):
        """Chosen by id, or one by one after a selection, as `streamq dlq replay` does."""
        _bury(server, 1)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            (letter,) = await queue.peek()
            with pytest.raises(ConfigurationError, match=r"retries=10000000000 .* at most 1,000,000,000"):
                await queue.replay(task_id="t0", retries=10**10)
            with pytest.raises(ConfigurationError, match=r"retries=10000000000 .* at most 1,000,000,000"):
                await queue.replay_entry(letter, retries=10**10)
            assert await queue.size() == 1

    async def test_with_another_budget(self, server):
        """`retries` overrides the budget of the dead task."""
        async with RedisBroker(server.url) as broker:
            (task_id,) = await _die(broker, "x", retries=0)
            await DeadLetterQueue(broker=broker).replay(task_id=task_id, retries=7)
            (entry,) = entries(server, "queue:standard")
            assert entry["retries"] == "7"

    @pytest.mark.parametrize(
        ("options", "ttl"),
        [
            ({"dedup_window": "until_done"}, 24 * 3600), ({"dedup_window": "until_done", "dedup_ttl": 90.0}, 90),
            ({"dedup_ttl": 50.0}, 50), ({}, 3600), ({"dedup_mode": "keep_last"}, 24 * 3600),
        ],
    )  # fmt: skip
    async def test_it_holds_its_deduplication_key_again(self, server, options, ttl):
        """An enqueue while the replayed task waits is not accepted; its end frees the key, if it did so before."""
        global healthy  # noqa: PLW0603
        async with RedisBroker(server.url) as broker:
            (task_id,) = await _die(broker, "x", dedup_key="sync:7", **options)
            assert server.command("EXISTS", "queue:dedup:sync:7") == 0
            new_id = await DeadLetterQueue(broker=broker).replay(task_id=task_id)
            assert server.command("GET", "queue:dedup:sync:7").decode() == new_id
            assert ttl - 5 < server.command("PTTL", "queue:dedup:sync:7") / 1000 <= ttl
            if options.get("dedup_mode") is None:
                again = await broker.enqueue(send.options(dedup_key="sync:7", **options), "y")
                assert (again.fresh, again.task_id) == (False, new_id)
            healthy = True
            await burst(broker, send)
            by_time = "dedup_window" not in options and "dedup_mode" not in options
            assert server.command("EXISTS", "queue:dedup:sync:7") == by_time

    async def test_it_says_who_holds_its_deduplication_key(self, server):
        """The dead letter stays, alone and among others; when the key is free it is replayed."""
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            (task_id,) = await _die(broker, "x", dedup_key="sync:7", dedup_window="until_done")
            (free,) = await _die(broker, "free")
            holder = await broker.enqueue(send.options(dedup_key="sync:7", dedup_window="until_done", delay=600), "y")
            with pytest.raises(DedupKeyHeldError, match=f"task '{holder.task_id}' holds its deduplication key") as info:
                await queue.replay(task_id=task_id)
            assert (info.value.task_id, info.value.key, info.value.holder) == (task_id, "sync:7", holder.task_id)
            assert len(await queue.replay(limit=10)) == 1
            assert [letter["task_id"] for letter in dead(server)] == [task_id]
            assert free not in [letter["task_id"] for letter in dead(server)]
            await holder.cancel()
            assert await queue.replay(task_id=task_id)
            assert dead(server) == []

    async def test_of_two_with_one_deduplication_key_one_is_replayed(self, server):
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            for name in ("x", "y"):
                await _die(broker, name, dedup_key="k", dedup_window="until_done")
            assert len(await queue.replay(limit=10)) == 1
            assert len(dead(server)) == 1

    async def test_a_key_that_only_a_delayed_task_held_is_not_held_again(self, server):
        """With debounce the key is free when the task is due; a replay is due at once."""
        async with RedisBroker(server.url) as broker:
            (task_id,) = await _die(broker, "x", dedup_key="k", dedup_mode="debounce", delay=0.05)
            await DeadLetterQueue(broker=broker).replay(task_id=task_id)
            assert server.command("EXISTS", "queue:dedup:k") == 0

    @pytest.mark.parametrize("noted", ["", "x", "-1", "9" * 40])
    async def test_by_hand_the_key_is_held_for_the_usual_time(self, server, noted):
        _bury(server, 1, tier="standard", dedup="k", dedup_until="done", dedup_ttl=noted)
        async with RedisBroker(server.url) as broker:
            new_id = await DeadLetterQueue(broker=broker).replay(task_id="t0")
        assert server.command("GET", "queue:dedup:k").decode() == new_id
        assert server.command("PTTL", "queue:dedup:k") <= 24 * 3600 * 1000

    @pytest.mark.parametrize(
        "field", [{"retries": "x"}, {"timeout": "-1"}, {"result_ttl": "9" * 400}, {"priority": "high"}, {"then": "["}]
    )
    async def test_one_that_no_worker_could_read_stays(self, server, field):
        """Written by hand: replayed, it would be dead again, as undecodable. Named, and passed over among others."""
        _bury(server, 1, tier="standard", **field)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            (well,) = await _die(broker, "x")
            with pytest.raises(UndecodableError, match=f"task 't0'.*cannot be replayed.*{next(iter(field))}"):
                await queue.replay(task_id="t0")
            assert len(await queue.replay(limit=10)) == 1
            assert [letter["task_id"] for letter in dead(server)] == ["t0"] != [well]

    async def test_that_dies_again(self, server):
        """A replay that dies is a dead letter again and can be replayed again."""
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            (task_id,) = await _die(broker, "x")
            second = await queue.replay(task_id=task_id)
            await burst(broker, send)
            (letter,) = await queue.peek()
            assert (letter.task_id, letter.headers) == (second, {"replayed_from": task_id})
            assert await queue.replay(task_id=second)

    async def test_new_ids_begin_with_a_letter_or_a_digit(self, server):
        """The command line takes a word that begins with a dash for an option."""
        _bury(server, 1 + PAGE, tier="standard")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            ids = [await queue.replay(task_id="t0"), *await queue.replay(task_name="send")]
        assert len(ids) == 1 + PAGE
        assert [new_id for new_id in ids if not re.fullmatch("[a-z0-9]{16}", new_id)] == []

    async def test_unknown(self, server):
        """An unknown id raises an error, also if another operator was faster."""
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            with pytest.raises(DeadLetterNotFoundError, match="nobody"):
                await queue.replay(task_id="nobody")
            (task_id,) = await _die(broker, "x")
            await queue.replay(task_id=task_id)
            with pytest.raises(DeadLetterNotFoundError):
                await queue.replay(task_id=task_id)

    async def test_once_for_many_at_once(self, server):
        """If several operators replay the same task, one succeeds."""
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            (task_id,) = await _die(broker, "x")
            ids = []

            async def one():
                with contextlib.suppress(DeadLetterNotFoundError):
                    ids.append(await queue.replay(task_id=task_id))

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(one)
            assert len(ids) == len(entries(server, "queue:standard")) == 1

    async def test_not_for_an_undecodable_entry(self, server):
        """An undecodable entry is refused, the error names the field, and the entry stays."""
        _bury(server, 1, args="{")
        async with RedisBroker(server.url) as broker:
            with pytest.raises(UndecodableError, match="unreadable: args"):
                await DeadLetterQueue(broker=broker).replay(task_id="t0")
            assert await DeadLetterQueue(broker=broker).replay(task_name="send") == []
        assert len(dead(server)) == 1

    async def test_the_refusal_says_what_was_unreadable(self, server):
        """The error of the dead letter names the one field that was bad; `raw` has all of them."""
        bad = "field 'retries' is '+3', which is no whole number"
        _bury(server, 1, task="", reason="undecodable", error=bad, **{"raw.task": "send", "raw.retries": "+3"})
        async with RedisBroker(server.url) as broker:
            with pytest.raises(UndecodableError, match=r"cannot be replayed; field 'retries' is '\+3'"):
                await DeadLetterQueue(broker=broker).replay(task_id="t0")

    async def test_not_into_a_tier_that_is_not_there(self, server):
        """The tier must be one of the broker's, by name or by stream."""
        _bury(server, 1, tier="gone", origin="queue:gone 1-1")
        _bury(server, 1, task_id="renamed", tier="gone", origin="queue:bulk 1-1")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            with pytest.raises(ConfigurationError, match="'gone'; this broker has critical, standard, bulk"):
                await queue.replay(task_id="t0")
            await queue.replay(task_id="renamed")
        assert len(entries(server, "queue:bulk")) == 1

    async def test_refused_by_the_server_leaves_it(self, server):
        """If the server refuses the task, the dead letter stays."""
        _bury(server, 1, tier="standard")
        server.command("SET", "queue:standard", "no stream")
        async with RedisBroker(server.url) as broker:
            with pytest.raises(Exception, match="WRONGTYPE"):
                await DeadLetterQueue(broker=broker).replay(task_id="t0")
        assert len(dead(server)) == 1

    async def test_by_filter(self, server):
        """All that match, oldest first, up to a limit, over several pages."""
        _bury(server, PAGE + 5, tier="standard", reason="expired")
        _bury(server, 2, tier="standard", reason="rejected", error_type="a.b.Bad")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            assert len(await queue.replay(reason="expired", limit=3)) == 3
            assert [e["headers"] for e in entries(server, "queue:standard")] == [
                f'{{"replayed_from":"t{at}"}}' for at in range(3)
            ]
            ids = await queue.replay(error_type="Bad")
            assert [e["id"] for e in entries(server, "queue:standard")][3:] == ids
            assert len(await queue.replay(task_name="send")) == PAGE + 2
            assert await queue.size() == 0

    async def test_tasks_that_die_again_meanwhile(self, server):
        """A filter replays only dead letters that exist when it starts: no task is replayed twice."""
        async with RedisBroker(server.url) as broker:
            _bury(server, 2 * PAGE + 1, tier="standard", args='["x"]')
            async with working(broker, send):
                assert len(await DeadLetterQueue(broker=broker).replay(task_name="send")) == 2 * PAGE + 1

    async def test_needs_a_selection(self, server):
        """No selection is an error, and so is a task id with a filter."""
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            for wrong in ({}, {"task_id": "a", "reason": "b"}, {"task_id": "a", "retries": -1}):
                with pytest.raises(ConfigurationError):
                    await queue.replay(**wrong)


class TestTheBound:
    async def test_what_is_dropped_is_counted(self, server):
        """By the workers that write dead letters, and by a queue that trims: the monitor and the doctor say it."""
        async with RedisBroker(server.url, dead_letters=DeadLetterBound(max_size=5)) as broker:
            for _ in range(8):
                await broker.enqueue("unknown", retries=0)
            await burst(broker, send, unknown_wait=0)
            monitor = QueueMonitor(broker=broker)
            assert (await monitor.snapshot()).dead_letters_dropped == 3
            assert await DeadLetterQueue(broker=broker, max_size=2).size() == 2
            assert (await monitor.snapshot()).dead_letters_dropped == 6
            assert 0 < server.command("TTL", "queue:stats:workers:totals") <= 30 * 86400
            (finding,) = [one for one in (await examine(broker)).findings if one.code == "dead_letters_dropped"]
            assert finding.evidence["dropped"] == 6
            assert "foreign_values" not in (await examine(broker)).codes()


class TestPurge:
    async def test_all(self, server):
        """All dead letters are removed, and the number is right."""
        _bury(server, 250)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            assert await queue.purge() == 250
            assert await queue.purge() == 0
            assert await queue.size() == 0

    async def test_by_filter(self, server):
        """Only matching dead letters are removed."""
        _bury(server, PAGE + 1, reason="expired")
        _bury(server, 2, task="other")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            assert await queue.purge(task_name="send", reason="expired") == PAGE + 1
            assert [letter.task_name for letter in await queue.peek()] == ["other", "other"]

    async def test_by_age(self, server):
        """`older_than` uses the server's clock, and works together with a filter."""
        for ms, name in ((1000, "ancient"), (2000, "old")):
            server.command("XADD", "queue:dead", f"{ms}-0", "task", name, "task_id", name)
        _bury(server, 2)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            assert await queue.purge(older_than=3600, task_name="send") == 0
            assert await queue.purge(older_than=3600, task_name="old") == 1
            assert await queue.purge(older_than=timedelta(hours=1)) == 1
            assert await queue.size() == 2
            assert await queue.purge(older_than=0) == 2
            for wrong in (-1, float("nan"), timedelta(seconds=-1)):
                with pytest.raises(ConfigurationError, match="older_than"):
                    await queue.purge(older_than=wrong)


class TestBound:
    @pytest.mark.parametrize("when", ["before the broker opens", "after"])
    async def test_holds_for_new_dead_letters(self, server, when):
        """The stream never keeps more than `max_size`. The oldest are removed first."""
        broker = RedisBroker(server.url)
        if when == "after":
            async with broker:
                DeadLetterQueue(broker=broker, max_size=3)
                await _die(broker, *"abcde")
        else:
            DeadLetterQueue(broker=broker, max_size=3)
            async with broker:
                await _die(broker, *"abcde")
        assert [entry["args"] for entry in dead(server)] == ['["c"]', '["d"]', '["e"]']

    async def test_holds_for_workers_that_run_already(self, server):
        """A worker reads the bound for each dead letter."""
        async with RedisBroker(server.url) as broker, working(broker, send, concurrency=1):
            DeadLetterQueue(broker=broker, max_size=2)
            await broker.enqueue_many([send.call(name) for name in "abcd"])
            await until(lambda: [entry["args"] for entry in dead(server)] == ['["c"]', '["d"]'])

    async def test_of_age(self, server):
        """Dead letters older than `max_age` are removed with the next one, and at the first use."""
        server.command("XADD", "queue:dead", "1000-0", "task", "ancient")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker, max_age=timedelta(days=1))
            assert queue.bound == DeadLetterBound(10_000, 86_400.0)
            assert await queue.size() == 0
            server.command("DEL", "queue:dead")
            server.command("XADD", "queue:dead", "1000-0", "task", "ancient")
            await _die(broker, "x")
            assert [letter.task_name for letter in await queue.peek()] == ["send"]

    async def test_excess_goes_at_the_first_use(self, server):
        """A smaller bound takes effect at the first use."""
        _bury(server, 250)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker, max_size=7)
            assert [letter.task_id for letter in await queue.peek(100)] == [f"t{249 - at}" for at in range(7)]

    async def test_reading_removes_nothing(self, server):
        """A queue without a bound removes nothing."""
        _bury(server, 5)
        async with RedisBroker(server.url, dead_letters=DeadLetterBound(max_size=2)) as broker:
            queue = DeadLetterQueue(broker=broker)
            assert queue.bound.max_size == 2
            assert await queue.size() == 5

    @pytest.mark.parametrize("wrong", [{"max_size": 0}, {"max_size": 1.5}, {"max_age": -1}, {"max_age": float("inf")}])
    def test_must_make_sense(self, wrong):
        """An invalid bound is refused, and the error names it."""
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            DeadLetterQueue(broker=RedisBroker(), **wrong)

    def test_repr(self):
        queue = DeadLetterQueue(broker=RedisBroker(), max_size=5, max_age=60)
        assert repr(queue) == "<DeadLetterQueue queue:dead max_size=5 max_age=60>"


class TestTail:
    async def test_yields_new_dead_letters(self, server):
        """No earlier dead letters, all later ones, in order, as they arrive."""
        _bury(server, 2)
        got: list[DeadLetterEntry] = []
        async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
            queue = DeadLetterQueue(broker=broker)

            async def watch():
                async with contextlib.aclosing(queue.tail()) as letters:
                    async for letter in letters:
                        got.append(letter)  # noqa: PERF401 - seen while it grows

            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            if server.kind != "memory":
                await until(lambda: b"cmd=xread " in server.command("CLIENT", "LIST"))
            ids = await _die(broker, *"abc")
            await until(lambda: len(got) == 3)
            group.cancel_scope.cancel()
        assert [letter.task_id for letter in got] == ids

    async def test_goes_on_after_an_entry(self, server):
        """With `after` no dead letter is missed between two calls."""
        _bury(server, PAGE + 5)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            (oldest,) = await queue.peek(1, oldest_first=True)
            got = []
            with anyio.fail_after(5):
                async with contextlib.aclosing(queue.tail(after=oldest.entry_id)) as letters:
                    async for letter in letters:
                        got.append(letter.task_id)
                        if len(got) == PAGE + 4:
                            break
        assert got == [f"t{at}" for at in range(1, PAGE + 5)]

    async def test_goes_on_after_a_failover(self, real_server):
        """A server that becomes a replica ends the blocked read: it is waited for, and no dead letter is missed."""
        got: list[str] = []
        async with RedisBroker(real_server.url) as broker, anyio.create_task_group() as group:
            queue = DeadLetterQueue(broker=broker)

            async def watch():
                async with contextlib.aclosing(queue.tail()) as letters:
                    async for letter in letters:
                        got.append(letter.task_id)  # noqa: PERF401 - seen while it grows

            group.start_soon(watch)
            await until(lambda: b"cmd=xread " in real_server.command("CLIENT", "LIST"))
            try:
                real_server.command("REPLICAOF", "127.0.0.1", "1")
                await anyio.sleep(0.3)
            finally:
                real_server.command("REPLICAOF", "NO", "ONE")
            ids = await _die(broker, *"ab")
            await until(lambda: len(got) == 2)
            group.cancel_scope.cancel()
        assert got == ids

    async def test_of_a_server_without_any(self, server):
        """The stream does not have to exist."""
        async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
            queue = DeadLetterQueue(broker=broker)
            got = []

            async def watch():
                async with contextlib.aclosing(queue.tail()) as letters:
                    async for letter in letters:
                        got.append(letter.task_id)  # noqa: PERF401 - seen while it grows

            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            await _die(broker, "x")
            await until(lambda: got)
            group.cancel_scope.cancel()
