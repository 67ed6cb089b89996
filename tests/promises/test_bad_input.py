"""Whatever lies in a stream: the worker goes on, and nothing is lost without a trace (P1, P11)."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamq import RedisBroker, task
from tests.at_work import assert_nothing_left, burst, dead, working
from tests.servers import InProcess

ran: list[str] = []


@task(retries=1, backoff=lambda attempt, error: 0.01, result_ttl=60, validate=False)
async def send(to: str = "", n: int = 1) -> None:
    ran.append(to)
    if to == "fail":
        raise ValueError("no")


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


BROKEN = {
    "no task": ["to", "x"],
    "an empty task": ["task", ""],
    "a task that is no text": ["task", b"\xff\xfe"],
    "arguments that are no JSON": ["task", "send", "args", "x,y"],
    "arguments that are an object": ["task", "send", "args", '{"to":"x"}'],
    "keyword arguments that are an array": ["task", "send", "kwargs", '["x"]'],
    "arguments that are no text": ["task", "send", "args", b"\xff"],
    "nothing closed": ["task", "send", "args", "[" * 5000],
    "NaN": ["task", "send", "args", "[NaN]"],
    "headers that are no object": ["task", "send", "headers", "1"],
    "an attempt that is no number": ["task", "send", "attempt", "first"],
    "retries that are no number": ["task", "send", "retries", "-3"],
    "a timeout that never ends": ["task", "send", "timeout", "inf"],
    "a result_ttl that is no number": ["task", "send", "result_ttl", "long"],
    "a time that is no number": ["task", "send", "expires", "tomorrow"],
    "a time beyond the calendar": ["task", "send", "enqueued_at", str(2**63 - 1)],
    "a priority that fits nowhere": ["task", "send", "priority", "-99999999999"],
    "an id that is no text, and a result wanted": ["task", "send", "id", b"\xff", "result_ttl", "60"],
    "an unknown field that is no text": ["task", "send", "args", '["fail"]', "mine", b"\xff"],
    "a field name that is no text": ["task", "send", b"\xff", "x"],
    "very many fields": ["task", "send", *(f"f{n}" for n in range(5000))],
    "one field, twenty thousand times": ["f", "v"] * 10_000,
}


@pytest.mark.parametrize("flat", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_what_is_no_message_is_dead_lettered_with_all_of_its_fields(server, flat):
    """Reason `undecodable`, byte for byte; and what comes after it runs."""
    server.command("XADD", "queue:standard", "*", *flat)
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(send, "good")
        await burst(broker, send)
    assert ran == ["good"]
    (letter,) = dead(server)
    assert letter["reason"] == "undecodable"
    assert letter["attempts"]
    assert any(name.startswith("raw.") for name in letter)
    assert_nothing_left(server)


ODD = {
    "a 2 MiB payload": (["task", "send", "kwargs", '{"to":"' + "x" * 2**21 + '"}'], 2**21),
    "empty fields": (["task", "send", "args", "", "kwargs", "", "id", "", "headers", ""], 0),
    "unknown fields": (["task", "send", "mine", "1", "yours", "2"], 0),
    "a field twice": (["task", "other", "task", "send"], 0),
    "an id of other letters": (["task", "send", "id", "zażółć:7"], 0),
    "a long id": (["task", "send", "id", "x" * 200], 0),
}


@pytest.mark.parametrize(("flat", "size"), ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_what_is_merely_odd_runs(server, flat, size):
    """The limit on payloads is for producers of ours; what lies there by hand is run."""
    server.command("XADD", "queue:standard", "*", *flat)
    async with RedisBroker(server.url) as broker:
        await burst(broker, send)
    assert [len(to) for to in ran] == [size]
    assert dead(server) == []
    assert_nothing_left(server)


WRONG = {
    "too many": ["args", '["a",1,2]'],
    "unknown by name": ["kwargs", '{"who":"x"}'],
    "twice": ["args", '["a"]', "kwargs", '{"to":"b"}'],
}


@pytest.mark.parametrize("flat", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_wrong_arguments_are_rejected_without_a_retry(server, flat):
    """Repeating a wrong call cannot help; who waits for the result is told."""
    server.command("XADD", "queue:standard", "*", "task", "send", *flat)
    async with RedisBroker(server.url) as broker:
        await burst(broker, send)
    (letter,) = dead(server)
    assert (letter["reason"], letter["attempts"], letter["starts"]) == ("rejected", "0", "0")  # it never ran
    assert letter["error_type"] == "streamq.errors.ArgumentsError"
    assert ran == []
    assert_nothing_left(server)


@pytest.mark.parametrize(
    "flat",
    [
        ["args", '["fail"]', "enqueued_at", str(253402300799000)],
        ["args", '["fail"]', "id", "zażółć:7"],
        ["args", '["fail"]', "mine", "ü\x00\x1f"],
        ["args", '["fail"]', "headers", '{"a":"\\u0000"}'],
        ["args", '["fail"]', "starts", str(2**33)],
        ["args", '["fail"]', "attempt", str(2**32)],
        ["args", '["fail"]', "retries", "0", "result_ttl", "0.0001"],
    ],
)
@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_odd_messages_that_fail_end_in_the_dead_letters(server, flat):
    """Through a retry and the delayed set, whatever stands in their fields."""
    server.command("XADD", "queue:standard", "*", "task", "send", *flat)
    async with RedisBroker(server.url) as broker:
        await burst(broker, send)
    assert [letter["reason"] for letter in dead(server)] == ["retries_exhausted"]
    assert_nothing_left(server)


@pytest.mark.parametrize("entry", ["18446744073709551615-1", "0-1", "99999999999999-0"])
async def test_odd_entry_ids_do_no_harm(server, entry):
    """Ids by hand: the latency is then nonsense, and nothing else."""
    server.command("XADD", "queue:bulk", entry, "task", "send", "args", '["fail"]')
    async with RedisBroker(server.url) as broker:
        await burst(broker, send)
    assert [letter["task_id"] for letter in dead(server)] == [entry]
    assert_nothing_left(server)


async def test_a_broken_delayed_message_is_dead_lettered(server):
    """Written by hand into the set, with and without a message."""
    server.command("ZADD", "queue:standard:delayed", 1, "a", 2, "b", 3, "c")
    server.command("HSET", "queue:standard:messages", "a", "{", "b", "[1]")
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(send, "good")
        await burst(broker, send)
    assert sorted(letter["task_id"] for letter in dead(server)) == ["a", "b", "c"]
    assert {letter["reason"] for letter in dead(server)} == {"undecodable"}
    assert ran == ["good"]
    assert_nothing_left(server)


async def test_nonsense_on_the_wake_channel_is_ignored(server):
    """Anybody may publish there."""
    async with RedisBroker(server.url) as broker, working(broker, send):
        for payload in ("", "due", "released", "cancel", "cancel x", "cancel 1-1 2", b"\xff\xfe", "x" * 1000):
            server.command("PUBLISH", "queue:wake", payload)
        handle = await broker.enqueue(send, "good")
        await handle.result(timeout=5)
    assert_nothing_left(server)


async def test_a_retry_that_belongs_to_another_group_is_passed_over(server):
    """SPEC 3: acknowledged here without a run, and counted by no one. Without such a group: `test_unknown_group.py`."""
    server.command("XGROUP", "CREATE", "queue:standard", "others", "$", "MKSTREAM")
    server.command("XADD", "queue:standard", "*", "task", "send", "group", "others")
    async with RedisBroker(server.url) as broker:
        await burst(broker, send)
        assert ran == []
        assert dead(server) == []
        assert server.command("XLEN", "queue:standard") == 1  # the other group has not had it yet
    async with RedisBroker(server.url, group="others") as broker:
        await burst(broker, send)
    assert len(ran) == 1
    assert dead(server) == []
    assert server.command("XLEN", "queue:standard") == 0


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.binary(max_size=12) | st.sampled_from([b"task", b"send", b"args", b"[]", b"kwargs", b"{}", b"id", b"attempt", b"1"]),  # noqa: E501
                 min_size=1, max_size=4).map(lambda values: [part for value in values for part in (value, value[::-1])]),  # noqa: E501
        max_size=6,
    ),
    st.sampled_from(["asyncio", "trio"]),
)  # fmt: skip
def test_nothing_that_lies_in_a_stream_stops_a_worker(flats, backend):
    """Random bytes in random fields: each entry runs or is a dead letter, and nothing stays behind."""
    server = InProcess()

    async def main():
        async with RedisBroker(server.url) as broker:
            with anyio.fail_after(15):
                await burst(broker, send, unknown_wait=0)

    try:
        for flat in flats:
            server.command("XADD", "queue:standard", "*", *flat)
        before = len(ran)
        anyio.run(main, backend=backend)
        assert len(dead(server)) + len(ran) - before == len(flats)
        assert_nothing_left(server)
    finally:
        server.close()
