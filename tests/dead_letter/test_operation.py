"""Operations over dead letters: each letter once, whatever is killed, stopped or refused; edited letters; dry runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import anyio
import orjson
import pytest

from streamq import RedisBroker, task
from streamq.dead_letter import DeadLetterFilter, DeadLetterOperation, DeadLetterQueue, LetterOutcome
from streamq.errors import (
    ArgumentsError,
    BrokerError,
    ConfigurationError,
    DedupKeyHeldError,
    OperationNotFoundError,
    OperationTakenError,
    PayloadTooLargeError,
    UndecodableError,
)
from tests.conftest import BACKENDS
from tests.dead_letter.letters import bury, bury_many, dead_ids, replayed_from

pytestmark = pytest.mark.paired("memory")

ROOT = Path(__file__).parents[2]


@task
async def send(to: str, n: int = 1) -> None: ...


async def all_of(operation: DeadLetterOperation, **given: object) -> list[LetterOutcome]:
    async with aclosing(operation.run(**given)) as outcomes:  # type: ignore[arg-type]
        return [one async for one in outcomes]


def kept(server, operation_id: str) -> dict[str, str]:
    flat = server.command("HGETALL", f"queue:operation:{operation_id}")
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


class TestReplay:
    async def test_all_that_match_are_replayed_in_their_order(self, server):
        """Newer ones stay; the state is kept with a TTL, and in the index."""
        bury_many(server, 250)
        bury(server, "other", task="mail")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            operation = await queue.start("replay", DeadLetterFilter(task_name="send"), retries=7)
            bury(server, "newer")
            outcomes = await all_of(operation)
            (listed,) = await queue.operations()
        assert replayed_from(server) == [f"t{number}" for number in range(250)]
        assert dead_ids(server) == ["other", "newer"]
        assert [one.letter.task_id for one in outcomes] == [f"t{number}" for number in range(250)]
        assert len({one.new_task_id for one in outcomes}) == 250
        now = operation.progress
        assert (now.state, now.done, now.passed_over, now.examined, now.total) == ("finished", 250, 0, 251, 251)
        assert listed == now
        assert now.changed_at >= now.started_at
        assert str(os.getpid()) in now.started_by
        assert 0 < server.command("PTTL", f"queue:operation:{operation.id}") <= 7 * 24 * 3_600_000
        assert server.command("PTTL", "queue:operations") > 0
        flat = server.command("XRANGE", "queue:standard", "-", "+", "COUNT", 1)[0][1]
        assert dict(zip(flat[::2], flat[1::2], strict=True))[b"retries"] == b"7"

    async def test_a_limit_ends_it(self, server):
        """So many are replayed, of those that match; passed ones do not count."""
        bury(server, "bad", args="[")
        for number in range(5):
            bury(server, f"t{number}")
            bury(server, f"m{number}", task="mail")
        async with RedisBroker(server.url) as broker:
            operation = await DeadLetterQueue(broker=broker).start(
                "replay", DeadLetterFilter(task_name="send"), limit=3
            )
            outcomes = await all_of(operation)
            assert await all_of(operation) == []  # it has finished
        assert replayed_from(server) == ["t0", "t1", "t2"]
        assert len(outcomes) == 4
        assert (operation.progress.state, operation.progress.passed_over) == ("finished", 1)

    async def test_what_cannot_be_replayed_is_passed_over_named_and_counted(self, server):
        """Whatever refuses it: it is no message, its tier is unknown, its key is held, the server says no."""
        server.command("SET", "queue:dedup:k", "holder")
        server.command("LPUSH", "queue:dedup:odd", "x")
        bury(server, "a")
        bury(server, "raw", args="[")
        bury(server, "tier", tier="nosuch")
        bury(server, "held", dedup="k")
        for number in range(5):
            bury(server, f"odd{number}", dedup="odd")  # WRONGTYPE, by the script
        bury(server, "b")
        async with RedisBroker(server.url) as broker:
            operation = await DeadLetterQueue(broker=broker).start("replay")
            outcomes = await all_of(operation)
            seen = await (await DeadLetterQueue(broker=broker).operation(operation.id)).refresh()
        named = {one.letter.task_id: type(one.error) for one in outcomes}
        assert named == {
            "a": type(None), "b": type(None), "raw": UndecodableError, "tier": ConfigurationError,
            "held": DedupKeyHeldError, **{f"odd{number}": BrokerError for number in range(5)},
        }  # fmt: skip
        assert replayed_from(server) == ["a", "b"]
        assert dead_ids(server) == ["raw", "tier", "held", "odd0", "odd1", "odd2", "odd3", "odd4"]
        assert seen == operation.progress
        assert (seen.done, seen.passed_over, seen.examined, seen.state) == (2, 8, 10, "finished")
        assert "WRONGTYPE" in seen.last_error

    async def test_what_another_client_took_is_no_error(self, server):
        """It was replayed or removed between the read and the step: neither done by this one nor passed over."""
        bury_many(server, 3)
        async with RedisBroker(server.url) as broker:
            operation = await DeadLetterQueue(broker=broker).start("replay")
            call = broker.store.attempt

            async def attempt(commands):
                if len(commands) == 3:
                    server.command("XDEL", "queue:dead", server.command("XRANGE", "queue:dead", "-", "+")[1][0])
                return await call(commands)

            broker.store.attempt = attempt  # type: ignore[method-assign]
            outcomes = await all_of(operation)
        assert [one.letter.task_id for one in outcomes] == ["t0", "t2"]
        assert (operation.progress.done, operation.progress.passed_over, operation.progress.examined) == (2, 0, 3)

    async def test_scripts_that_the_server_does_not_know_skip_nothing(self, server):
        """Some steps of a pipeline are known and others not: those are sent again, behind what has said no."""
        for number in range(0, 60, 2):
            bury(server, f"t{number}")
            bury(server, f"bad{number}", args="[")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            await all_of(await queue.start("purge", DeadLetterFilter(task_name="nobody")))  # loads one of the scripts
            operation = await queue.start("replay")
            outcomes = await all_of(operation)
        assert len(outcomes) == 60
        assert replayed_from(server) == [f"t{number}" for number in range(0, 60, 2)]
        assert (operation.progress.done, operation.progress.passed_over) == (30, 30)

    async def test_a_rate_is_kept(self, server):
        bury_many(server, 30)
        async with RedisBroker(server.url) as broker:
            operation = await DeadLetterQueue(broker=broker).start("replay", rate=50)
            began = time.monotonic()
            await all_of(operation)
        assert time.monotonic() - began > 0.4
        assert operation.progress.done == 30


class TestStopAndResume:
    async def test_it_stops_before_its_next_letter_and_goes_on(self, server):
        """Whoever stops it. Nothing is replayed twice or left out."""
        bury_many(server, 60)
        async with RedisBroker(server.url) as broker, RedisBroker(server.url) as other:
            queue = DeadLetterQueue(broker=broker)
            operation = await queue.start("replay", rate=100)  # ten at a time
            seen = 0
            async with aclosing(operation.run()) as outcomes:
                async for _ in outcomes:
                    seen += 1
                    if seen == 20:
                        stopped = await (await DeadLetterQueue(broker=other).operation(operation.id)).stop()
            assert stopped == operation.progress
            assert stopped.state == "stopped"
            assert stopped.done == seen == 20
            again = await queue.operation(operation.id)
            assert again.progress == stopped
            await all_of(again)
        assert again.progress.done == 60
        assert replayed_from(server) == [f"t{number}" for number in range(60)]

    async def test_of_two_processes_one_goes_on(self, server):
        """The other ends with an error, and has done nothing of it."""
        bury_many(server, 80)
        async with RedisBroker(server.url) as broker, RedisBroker(server.url) as other:
            operation = await DeadLetterQueue(broker=broker).start("replay", rate=100)
            taking = await DeadLetterQueue(broker=other).operation(operation.id)
            async with aclosing(operation.run()) as outcomes, aclosing(taking.run()) as theirs:
                await anext(outcomes)
                await anext(theirs)
                with pytest.raises(OperationTakenError, match=operation.id):
                    _ = [one async for one in outcomes]
                _ = [one async for one in theirs]
            assert (taking.progress.state, taking.progress.done) == ("finished", 80)
        assert replayed_from(server) == [f"t{number}" for number in range(80)]

    async def test_what_another_process_has_finished(self, server):
        """It ends, and knows how far that came."""
        bury_many(server, 40)
        async with RedisBroker(server.url) as broker, RedisBroker(server.url) as other:
            operation = await DeadLetterQueue(broker=broker).start("replay", rate=200)
            async with aclosing(operation.run()) as outcomes:
                await anext(outcomes)
                await all_of(await DeadLetterQueue(broker=other).operation(operation.id))
                _ = [one async for one in outcomes]
        assert (operation.progress.state, operation.progress.done) == ("finished", 40)
        assert replayed_from(server) == [f"t{number}" for number in range(40)]

    async def test_an_operation_that_is_gone(self, server):
        """Its key was deleted, or has expired: it does nothing more."""
        bury_many(server, 60)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            operation = await queue.start("replay", rate=100)
            async with aclosing(operation.run()) as outcomes:
                await anext(outcomes)
                server.command("DEL", f"queue:operation:{operation.id}")
                with pytest.raises(OperationNotFoundError):
                    _ = [one async for one in outcomes]
            assert len(replayed_from(server)) == 10
            with pytest.raises(OperationNotFoundError, match="no operation has the id 'x'"):
                await queue.operation("x")
            assert await queue.operations() == []

    @pytest.mark.parametrize(
        "fields",
        [
            {"kind": "rob"},
            {"at": "x"},
            {"filter": "{"},
            {"filter": '{"a":1}'},
            {"state": "\x1b"},
            {"rate": "much"},
            {"rate": "nan"},
            {"rate": "0"},
            {"rate": "inf"},
            {"rate": "1e-300"},
            {"set": "[1]"},
            {"set": "{"},
            {"limit": "x"},
            {"limit": "-1"},
            {"limit": "9" * 40},
            {"retries": "many"},
        ],
    )
    async def test_what_is_no_operation_is_named(self, server, fields):
        bury(server, "a")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            operation = await queue.start("replay")
            for name, value in fields.items():
                server.command("HSET", f"queue:operation:{operation.id}", name, value)
            with pytest.raises(BrokerError, match="cannot be read"):
                await queue.operation(operation.id)
            assert await queue.operations() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replay", "purge"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_letter_once_through_sigkill(real_server, backend, kind):
    """P14: the process is killed again and again, at any moment. What is kept says exactly what was done."""
    number = 3000
    bury_many(real_server, number)
    lot = random.Random(f"{kind} {backend} {real_server.kind}")
    what, kills = kind, 0
    while True:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.dead_letter.operate", backend, real_server.url, what],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert program.stdout is not None
        with program.stdout:
            what = program.stdout.readline().strip()
            goal = int(kept(real_server, what).get("done", 0)) + lot.randrange(1, number // 3)
            while program.poll() is None and int(kept(real_server, what).get("done", 0)) < goal:
                pass
            program.send_signal(signal.SIGKILL)
            said = program.stdout.read()
        kills += program.wait() == -signal.SIGKILL and "finished" not in said
        done, left = int(kept(real_server, what)["done"]), real_server.command("XLEN", "queue:dead")
        assert done + left == number
        if kept(real_server, what)["state"] == "finished":
            break
    assert kills >= 2
    assert done == number
    assert replayed_from(real_server) == ([f"t{at}" for at in range(number)] if kind == "replay" else [])


class TestPurge:
    async def test_all_that_match_are_removed(self, server):
        bury_many(server, 150)
        bury(server, "other", task="mail")
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            operation = await queue.start("purge", DeadLetterFilter(task_name="send"), limit=149)
            bury(server, "newer")
            assert len(await all_of(operation)) == 149
        assert dead_ids(server) == ["t149", "other", "newer"]
        assert (operation.progress.done, operation.progress.state) == (149, "finished")

    async def test_a_dry_run_changes_nothing_and_can_be_confirmed(self, server):
        """Confirmed, it removes what it has counted, and nothing newer."""
        bury_many(server, 30)
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            for kind in ("replay", "purge"):
                dry = await queue.start(kind, dry_run=True)
                assert len(await all_of(dry)) == dry.progress.done == 30
            assert server.keys() == ["queue:dead"]
            bury(server, "newer")
            operation = await dry.confirm()
            await all_of(operation)
            with pytest.raises(ConfigurationError, match="is no dry run"):
                await operation.confirm()
        assert dead_ids(server) == ["newer"]

    async def test_on_a_server_that_is_full(self, real_server):
        """It makes room: nothing that it does needs memory first. A replay is refused, and goes on later."""
        bury_many(real_server, 10)
        async with RedisBroker(real_server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            replay = await queue.start("replay", limit=5)
            real_server.command("CONFIG", "SET", "maxmemory", 1)
            try:
                with pytest.raises(BrokerError) as refused:
                    await all_of(replay)
                assert refused.value.code == "OOM"
                purge = await queue.start("purge", limit=5)
                await all_of(purge)
            finally:
                real_server.command("CONFIG", "SET", "maxmemory", 0)
            await all_of(await queue.operation(replay.id))
        assert purge.progress.done == 5
        assert replayed_from(real_server) == [f"t{number}" for number in range(5, 10)]


class TestEdit:
    async def test_arguments_by_name_and_by_place(self, server):
        bury(server, "a", args="[1,2]", kwargs='{"x":1}')
        bury(server, "b", args="[1]")
        async with RedisBroker(server.url) as broker:
            operation = await DeadLetterQueue(broker=broker).start(
                "replay", set_arguments={"1": {"deep": ["ü"]}, "x": None}
            )
            first, second = await all_of(operation)
        assert first.error is None
        assert isinstance(second.error, ArgumentsError)
        assert "no positional argument 1" in str(second.error)
        ((_, flat),) = server.command("XRANGE", "queue:standard", "-", "+")
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        assert orjson.loads(fields[b"args"]) == [1, {"deep": ["ü"]}]
        assert orjson.loads(fields[b"kwargs"]) == {"x": None}

    async def test_by_a_function(self, server):
        """It sees each letter. One for which it fails is passed over with what it raised; given again, it goes on."""
        for number in range(5):
            bury(server, f"t{number}", kwargs=orjson.dumps({"n": number}))
        async with RedisBroker(server.url) as broker:
            queue = DeadLetterQueue(broker=broker)
            operation = await queue.start("replay", edits=True)
            with pytest.raises(ConfigurationError, match="give edit="):
                await all_of(operation)

            def double(letter):
                return letter.args, {"n": 10 // letter.kwargs["n"]}

            outcomes = await all_of(await queue.operation(operation.id), edit=double)
            with pytest.raises(ConfigurationError, match="edits=True"):
                await all_of(await queue.start("replay"), edit=double)
        assert [one.letter.task_id for one in outcomes if one.error] == ["t0"]
        assert "the edit of 't0' raised ZeroDivisionError" in str(outcomes[0].error)
        rows = server.command("XRANGE", "queue:standard", "-", "+")
        sent = [dict(zip(flat[::2], flat[1::2], strict=True))[b"kwargs"] for _, flat in rows]
        assert sent == [b'{"n":10}', b'{"n":5}', b'{"n":3}', b'{"n":2}']

    async def test_it_is_checked_as_an_enqueue_is(self, server):
        """By the task's signature and annotations where it is known, and by size and JSON always."""
        bury(server, "a", args="[]", kwargs='{"to": "x"}')
        bury(server, "b", args='["x"]', kwargs="{}")
        async with RedisBroker(server.url, max_payload=2000) as broker:
            queue = DeadLetterQueue(broker=broker)
            for values, error in (
                ({"n": "many"}, ArgumentsError),
                ({"nosuch": 1}, ArgumentsError),
                ({"to": "x" * 3000}, PayloadTooLargeError),
            ):
                for one in await all_of(await queue.start("replay", set_arguments=values), tasks=[send]):
                    assert isinstance(one.error, error), one
            assert dead_ids(server) == ["a", "b"]
            outcomes = await all_of(await queue.start("replay", set_arguments={"to": "y"}), tasks=[send])
            assert [one.error for one in outcomes] == [None, None]
        rows = server.command("XRANGE", "queue:standard", "-", "+")
        fields = [dict(zip(flat[::2], flat[1::2], strict=True)) for _, flat in rows]
        assert orjson.loads(fields[0][b"kwargs"]) == {"to": "y"}
        assert orjson.loads(fields[1][b"args"]) == ["y"]  # by its name: the task is known

    @pytest.mark.parametrize(
        ("kind", "given", "named"),
        [
            ("rob", {}, "kind='rob' is not known"),
            ("purge", {"set_arguments": {"a": 1}}, "purge removes letters"),
            ("purge", {"retries": 1}, "purge removes letters"),
            ("replay", {"limit": 0}, "limit=0"),
            ("replay", {"rate": 0}, "rate=0"),
            ("replay", {"set_arguments": {"a": object()}}, "has no JSON"),
            ("replay", {"set_arguments": {"a": "x" * 70_000}}, "an operation keeps"),
            ("replay", {"set_arguments": ["a"]}, "is of type list"),
        ],
    )
    async def test_what_cannot_be_begun(self, server, kind, given, named):
        async with RedisBroker(server.url) as broker:
            with pytest.raises(ConfigurationError, match=named):
                await DeadLetterQueue(broker=broker).start(kind, **given)
        assert server.keys() == []


async def test_the_index_is_bounded(server, monkeypatch):
    monkeypatch.setattr("streamq.dead_letter.operation.MOST", 5)
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        made = []
        for _ in range(8):
            made.append((await queue.start("replay")).id)
            await anyio.sleep(0.002)  # their times differ
        assert [one.id for one in await queue.operations()] == made[:2:-1]
