"""P14: a settlement that is refused for ever harms no other task, and ends where an operator sees it."""

from __future__ import annotations

import json
import math
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from streamq import Backoff, RedisBroker, RetryLater, Worker, task
from streamq.consumer import set_aside, tier_refusals
from streamq.consumer.events import Settled
from streamq.errors import BrokerError, TaskFailedError
from streamq.middleware import CallNext, Context
from streamq.tasks.outcome import Postpone, Retry
from streamq.wire.acl import acl_rules
from streamq.wire.dead_letter_fields import Failure
from tests.at_work import dead, pending, until, working

pytestmark = [pytest.mark.paired, pytest.mark.slow]

GOOD = 200
STANDARD = "queue:standard"
done: list[int] = []
runs: list[str] = []
gate: list[anyio.Event] = []


@task(retries=0)
async def good(number: int) -> None:
    done.append(number)


@task(retries=0)
async def echo(value: Any = None) -> Any:
    runs.append("echo")
    return value


@task(retries=0)
async def fail() -> None:
    runs.append("fail")
    raise ValueError("as always")


@task(retries=3, backoff=0.01)
async def flaky() -> None:
    runs.append("flaky")
    if runs.count("flaky") < 2:
        raise ValueError("the first time")


@task(retries=0)
async def later() -> None:
    runs.append("later")
    raise RetryLater(after=0.01)


@task(retries=0)
async def hold() -> None:
    runs.append("hold")
    await gate[0].wait()
    raise ValueError("at the end")


@task(retries=1, backoff=0.01)
async def fail_again() -> None:
    raise ValueError("each time")


TASKS = (good, echo, fail, flaky, later)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between two tries are short here."""
    done.clear()
    runs.clear()
    gate[:] = [anyio.Event()]
    monkeypatch.setattr(set_aside, "_PAUSE", Backoff(base=0.01, factor=2.0, cap=0.03))
    monkeypatch.setattr(set_aside, "LEFT_PAUSE", 0.05)
    monkeypatch.setattr(tier_refusals, "_PAUSE", Backoff(base=0.02, factor=2.0, cap=0.05))


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def poison(server, name: str, **fields: str) -> bytes:
    flat = [part for pair in fields.items() for part in pair]
    entry: bytes = server.command("XADD", STANDARD, "*", "task", name, "id", "poison", *flat)
    return entry


def next_step(stream: str) -> str:
    return json.dumps([{"send": stream, "fields": ["task", "good", "id", "next", "args", "[0]"]}])


async def all_good(broker: RedisBroker, start: int = 0) -> None:
    """The others are done, and settled."""
    numbers = range(start, start + GOOD)
    await broker.enqueue_many([good.call(number) for number in numbers])
    await until(lambda: set(numbers) <= set(done))


class TestOfOneTask:
    async def test_a_next_step_that_cannot_be_sent(self, server, broker):
        """The task ran: it is a dead letter that says so, without the step. Health named it, with the key."""
        server.command("SET", "queue:next", "of somebody else")
        poison(server, "echo", then=next_step("queue:next"))
        said: set[str] = set()
        async with working(broker, *TASKS) as worker:
            await all_good(broker)
            await until(lambda: said.update(worker.health.refused) or dead(server))
            await until(lambda: pending(server) == 0)
            await until(lambda: worker.health.refused == ())
            assert worker.health.trouble is None
        (letter,) = dead(server)
        assert (letter["task_id"], letter["reason"], letter["then"]) == ("poison", "refused", next_step("queue:next"))
        assert "WRONGTYPE" in letter["error"]
        assert "'queue:next' is a string" in letter["error"]
        assert "the run succeeded" in letter["error"]
        assert any("echo poison" in line and "'queue:next' is a string" in line for line in said), said
        assert runs == ["echo"]

    async def test_a_deduplication_key_that_cannot_be_freed(self, server, broker):
        """The dead letter keeps its reason, and is written without that consequence; the field says so."""
        server.command("RPUSH", "queue:dedup:k", "x")
        poison(server, "fail", dedup="k", result_ttl="60")
        async with working(broker, *TASKS):
            await all_good(broker)
            await until(lambda: dead(server))
        (letter,) = dead(server)
        assert (letter["reason"], letter["error"]) == ("retries_exhausted", "as always")
        assert "WRONGTYPE" in letter["refused"]
        assert b"as always" in server.command("GET", "queue:result:poison")  # its waiters are told all the same

    async def test_one_that_middleware_postponed_never_ran(self, server, broker):
        """Its dead letter has 0 runs and says so; one that its handler postponed ran. Both keep the reason."""

        async def postpones(context: Context, call_next: CallNext) -> Any:
            if context.delivery.args:
                return await call_next(context)
            raise RetryLater(after=0.01)

        @task(name="limited", middleware=[postpones], retries=0)
        async def limited(value: int = 0) -> None:
            runs.append("limited")
            raise RetryLater(after=0.01)

        async with working(broker, limited):
            server.command("SET", f"{STANDARD}:messages", "of somebody else")
            await broker.enqueue(limited)
            await broker.enqueue(limited, 1)
            server.command("XADD", STANDARD, "*", "task", "nosuch")
            await until(lambda: len(dead(server)) == 3)
        letters = {(one["task"], one["args"]): one for one in dead(server)}
        assert {one["reason"] for one in letters.values()} == {"refused"}
        assert runs == ["limited"]
        counts = {name: (one["attempts"], one["starts"]) for name, one in letters.items()}
        assert counts == {("limited", "[]"): ("0", "0"), ("limited", "[1]"): ("1", "1"), ("nosuch", "[]"): ("0", "0")}
        assert "it did not run, and was to run later" in letters["limited", "[]"]["error"]
        assert "it was to run again later" in letters["limited", "[1]"]["error"]

    @pytest.mark.parametrize(("name", "text"), [("flaky", "the first time"), ("later", "run again later")])
    async def test_a_later_run_that_cannot_be_kept(self, server, broker, name, text):
        """A retry and a postponement: a dead letter, with what happened in the run."""
        async with working(broker, *TASKS):
            server.command("SET", f"{STANDARD}:messages", "of somebody else")
            poison(server, name)
            await all_good(broker)
            await until(lambda: dead(server))
        (letter,) = dead(server)
        assert (letter["task"], letter["reason"]) == (name, "refused")
        assert text in letter["error"]
        assert runs == [name]

    async def test_a_dead_letter_that_cannot_be_written_stays_pending(self, server, broker):
        """It is held and not run again. When the cause is mended, it is written."""
        async with working(broker, *TASKS, visibility_timeout=0.5) as worker:
            server.command("SET", "queue:dead", "of somebody else")
            poison(server, "fail")
            await until(lambda: any("left pending" in line for line in worker.health.refused))
            await all_good(broker)
            await anyio.sleep(1.5)
            assert pending(server) == 1
            assert "fail poison" in worker.health.trouble
            server.command("DEL", "queue:dead")
            await until(lambda: dead(server))
            await until(lambda: worker.health.trouble is None)
        assert runs == ["fail"]

    async def test_a_worker_with_one_that_is_left_stops_and_hands_it_back(self, server, broker):
        with anyio.fail_after(5):
            async with working(broker, *TASKS) as worker:
                server.command("SET", "queue:dead", "of somebody else")
                poison(server, "fail")
                await until(lambda: any("left pending" in line for line in worker.health.refused))
        assert server.command("XPENDING", STANDARD, "workers")[3][0][0] == b"released"

    async def test_a_burst_ends_with_one_that_is_left(self, server, broker):
        poison(server, "fail")
        await broker.enqueue_many([good.call(number) for number in range(GOOD)])
        worker = Worker(broker, TASKS, burst=True)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                await group.start(worker.run)
                server.command("SET", "queue:dead", "of somebody else")
        assert len(done) == GOOD
        assert pending(server) == 1

    async def test_an_acknowledgement_by_hand(self, server, broker):
        """`ack` says it; the loop goes on; the delivery ends as a dead letter."""
        server.command("SET", "queue:next", "of somebody else")
        poison(server, "echo", then=next_step("queue:next"))
        await broker.enqueue_many([good.call(number) for number in range(20)])
        acknowledged = 0
        with anyio.fail_after(10):
            async with aclosing(broker.consume()) as messages:
                async for message in messages:
                    try:
                        await broker.ack(message.task_id)
                    except BrokerError as error:
                        assert (message.task_id, error.code) == ("poison", "WRONGTYPE")  # noqa: PT017
                    else:
                        acknowledged += 1
                    if acknowledged == 20:
                        break
                await until(lambda: dead(server))

    @pytest.mark.parametrize("outcome", [Retry(math.inf, Failure("E", "x")), Postpone(math.inf, "x")])
    async def test_what_cannot_be_built_convicts_that_delivery(self, server, broker, outcome):
        """A delay that is no number of milliseconds ends no worker. Who waits is told, the key is free."""
        handle = await broker.enqueue(echo.options(result_ttl=60, dedup_key="k", dedup_ttl=60))
        async with aclosing(broker.consume()) as messages:
            message = await anext(messages)
            (manual,) = broker._consumers
            manual.consumer.settle(message, outcome, keep=60)
            await until(lambda: dead(server))
            await broker.enqueue(good, 1)
            await broker.ack((await anext(messages)).task_id)
            assert manual.consumer.settler.set_aside.named() == []
        assert [letter["reason"] for letter in dead(server)] == ["internal_error"]
        with pytest.raises(TaskFailedError, match="internal_error"):
            await handle.result(1)
        assert server.command("EXISTS", "queue:dedup:k") == 0


class TestOfManyTasks:
    async def test_results_of_which_one_cannot_be_kept(self, real_server, anyio_backend):
        """They travel in one command; only the one is refused."""
        kept = [{"task": "echo", "id": str(number), "args": f"[{number}]", "result_ttl": "60"} for number in range(50)]
        kept[20]["result_ttl"] = "1e14"  # the server refuses the TTL
        for fields in kept:
            real_server.command("XADD", STANDARD, "*", *[part for pair in fields.items() for part in pair])
        async with RedisBroker(real_server.url) as broker, working(broker, *TASKS):
            await until(lambda: pending(real_server) == 0 and len(runs) >= 49)
            await all_good(broker)
        assert real_server.command("EXISTS", *(f"queue:result:{n}" for n in range(50) if n != 20)) == 49

    async def test_a_tier_with_too_many_is_not_read_on(self, server, broker, monkeypatch):
        """Memory is bounded, and the other tiers go on."""
        monkeypatch.setattr(set_aside, "MOST_TRIED", 20)
        monkeypatch.setattr(set_aside, "TRIES", 10**9)
        async with working(broker, fail_again, good, concurrency=10) as worker:
            server.command("SET", f"{STANDARD}:messages", "of somebody else")
            await broker.enqueue_many([fail_again.call() for _ in range(200)])
            await until(lambda: len(worker._consumer.settler.set_aside) >= 20)
            await broker.enqueue_many([good.options(priority=100).call(number) for number in range(GOOD)])
            await until(lambda: len(done) == GOOD)
            # What was prefetched when the tier was no longer read comes to it as well.
            assert len(worker._consumer.settler.set_aside) <= 20 + 10 + 10 + 20
            server.command("DEL", f"{STANDARD}:messages")
            await until(lambda: server.command("XLEN", STANDARD) == 0, 20)

    async def test_those_that_are_left_are_bounded(self, server, broker, monkeypatch):
        monkeypatch.setattr(set_aside, "MOST_LEFT", 10)
        async with working(broker, *TASKS) as worker:
            server.command("SET", "queue:dead", "of somebody else")
            await broker.enqueue_many([fail.call() for _ in range(40)])
            await until(lambda: pending(server) == 40 and len(worker._consumer.settler.set_aside) == 10)
            await all_good(broker)
        assert pending(server) == 40


class TestRights:
    @pytest.fixture
    def user(self, real_server):
        """A user, and a function that gives it all rights but some."""

        def without(*commands: str) -> str:
            minus = [f"-{command}" for command in commands]
            real_server.command("ACL", "SETUSER", "app", "reset", "on", ">pw", "+@all", "~queue:*", "&*", *minus)
            return real_server.url.replace("://", "://app:pw@")

        yield without
        real_server.command("ACL", "DELUSER", "app")

    async def test_a_missing_right_is_named_and_given_back(self, real_server, user):
        """Nothing is lost: the retry is kept as soon as it may be."""
        async with RedisBroker(user()) as broker, working(broker, *TASKS) as worker:
            user("hset")
            poison(real_server, "flaky")
            (line,) = await until(
                lambda: [line for line in worker.health.refused if "the retry of flaky poison" in line]
            )
            assert "hset" in line.lower()
            assert "NOPERM" in line
            user()
            await until(lambda: runs == ["flaky", "flaky"])
        assert dead(real_server) == []

    @pytest.mark.parametrize("minus", ["~queue:result:*", "-set"])
    async def test_the_dead_letter_names_command_key_and_remedy(self, real_server, caplog, minus):
        """As all errors of a missing right do: the fields `error` and `refused`, the log, and the health at once."""
        rules = acl_rules(RedisBroker(real_server.url).keys, ["worker"]).line("app").replace("PASSWORD", "pw")
        real_server.command(*rules.split())
        health: set[str] = set()
        try:
            async with (
                RedisBroker(real_server.url.replace("://", "://app:pw@")) as broker,
                working(broker, *TASKS) as worker,
            ):
                real_server.command(*rules.replace(f" {minus}", "").split(), *([minus] if minus == "-set" else []))
                poison(real_server, "echo", result_ttl="60")
                await until(lambda: health.update(worker.health.refused) or dead(real_server))
        finally:
            real_server.command("ACL", "DELUSER", "app")
        (letter,) = dead(real_server)
        (said,) = [line for line in caplog.messages if "may become a dead letter" in line]
        first = [line for line in caplog.messages if "is tried apart" in line]
        assert letter["reason"] == "refused"
        for text in (letter["error"], letter["refused"], said, *first, *health):
            assert ("EVALSHA" if minus != "-set" else "'set'") in text
            assert "queue:result:poison" in text
            assert "run 'streamq doctor --role worker' as this user" in text
        for text in (letter["error"], letter["refused"], said):  # until the server was asked, all that may be meant
            assert "queue:standard" not in text.partition("NOPERM")[2]

    async def test_a_right_that_stays_missing(self, real_server, user):
        """The task ends as a dead letter with its failure."""
        async with RedisBroker(user()) as broker, working(broker, *TASKS):
            user("hset")
            poison(real_server, "flaky")
            await all_good(broker)
            await until(lambda: dead(real_server))
            user()
        (letter,) = dead(real_server)
        assert letter["reason"] == "refused"
        assert "the first time" in letter["error"]

    async def test_acknowledgements_that_are_refused_are_kept(self, real_server, user, caplog):
        """Every task ran once, and is acknowledged once the right is back. The log says so of what it named before."""
        async with RedisBroker(user()) as broker, working(broker, *TASKS) as worker:
            user("xack")
            await broker.enqueue_many([good.call(number) for number in range(GOOD)])
            await until(lambda: len(done) == GOOD)
            await until(lambda: any("left pending" in line for line in worker.health.refused))
            assert all("'streamq doctor --role worker'" in line for line in worker.health.refused)
            user()
            await until(lambda: pending(real_server) == 0)
        assert sorted(done) == list(range(GOOD))
        assert dead(real_server) == []
        texts = [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"]
        assert sum("left pending" in text for text in texts) == 1
        assert sum(f"and {GOOD - 1} more like it have ended (as it was decided: {GOOD})" in text for text in texts) == 1

    async def test_a_deduplication_key_that_could_not_be_freed_is_freed_later(self, real_server, user):
        """The task that waits for it runs as soon as the right is back, and not when the key expires."""
        newest = {"dedup_key": "k", "dedup_mode": "keep_last"}
        async with (
            RedisBroker(real_server.url) as broker,
            RedisBroker(user()) as limited,
            working(limited, *TASKS, hold) as worker,
        ):
            await broker.enqueue(hold.options(**newest))
            await until(lambda: runs == ["hold"])
            waiting = await broker.enqueue(good.options(**newest), 1)
            assert await waiting.status() == "delayed"
            user("hset")
            gate[0].set()
            await until(lambda: dead(real_server))
            await until(lambda: any("deduplication key of hold" in line for line in worker.health.refused))
            user()
            await until(lambda: done == [1])
            await until(lambda: not any("deduplication key" in line for line in worker.health.refused))
        assert [letter["task"] for letter in dead(real_server)] == ["hold"]

    async def test_a_dead_letter_that_was_only_threatened(self, real_server, user, caplog):
        """The log does not claim one; and it says as what the task was settled at last."""
        async with RedisBroker(user()) as broker, working(broker, *TASKS) as worker:
            user("xack")
            await broker.enqueue(echo.options(result_ttl=60), 1)
            await until(lambda: any("left pending" in line for line in worker.health.refused))
            user()
            await until(lambda: pending(real_server) == 0)
        texts = [record.getMessage() for record in caplog.records if " echo " in record.getMessage()]
        assert any("may become a dead letter (refused)" in text for text in texts), texts
        assert "as it was decided" in texts[-1], texts

    async def test_reads_that_are_refused_name_the_remedy(self, real_server, user):
        """As all other refusals do."""
        async with RedisBroker(user()) as broker, working(broker, *TASKS) as worker:
            user("xreadgroup")
            await broker.enqueue(good, 1)
            await until(lambda: any("reading" in line for line in worker.health.refused))
            assert all("'streamq doctor --role worker'" in line for line in worker.health.refused)
            user()
            await until(lambda: done == [1])

    async def test_listeners_hear_of_an_acknowledgement_that_was_left(self, real_server, user, monkeypatch):
        """Once, although dead letters were tried in its place. It is tried again as the worker stops."""
        monkeypatch.setattr(set_aside, "LEFT_PAUSE", 60.0)  # or the right comes back between two of its ways
        heard: list[Settled] = []
        listener = lambda event: heard.append(event) if isinstance(event, Settled) else None  # noqa: E731
        async with RedisBroker(user()) as broker, working(broker, *TASKS, listeners=[listener]) as worker:
            user("xack")
            await broker.enqueue_many([echo.options(result_ttl=60).call(number) for number in range(5)])
            await until(lambda: sum("left pending" in line for line in worker.health.refused) == 5)
            user()
        assert pending(real_server) == 0
        assert len({event.delivery.task_id for event in heard}) == len(heard) == 5
        assert dead(real_server) == []


class TestLoops:
    async def test_a_stream_of_another_type_stops_no_other_tier(self, server, broker):
        """The others are read, renewed and promoted; it is named; and it is read once it is mended."""
        async with working(broker, *TASKS, visibility_timeout=0.6) as worker:
            await all_good(broker)
            server.command("DEL", "queue:bulk")
            server.command("SET", "queue:bulk", "of somebody else")
            await broker.enqueue(good.options(delay=0.3), -1)
            await until(lambda: any("reading queue:bulk: WRONGTYPE" in line for line in worker.health.refused))
            await all_good(broker, GOOD)
            await until(lambda: -1 in done)
            server.command("DEL", "queue:bulk")
            await broker.enqueue(good.options(priority=1), -2)
            await until(lambda: -2 in done, 15)
            await until(lambda: worker.health.refused == ())

    async def test_a_delayed_set_of_another_type_stops_no_other_tier(self, server, broker):
        async with working(broker, *TASKS) as worker:
            server.command("SET", "queue:bulk:delayed", "of somebody else")
            await broker.enqueue(good.options(delay=0.2), 1)
            await until(lambda: done == [1])
            await until(lambda: any("promoting to queue:bulk" in line for line in worker.health.refused))
            await broker.enqueue(good.options(delay=0.2), 2)
            await until(lambda: done == [1, 2])
