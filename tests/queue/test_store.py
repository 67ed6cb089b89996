"""The queue's commands: what is sent, and how errors are named."""

from __future__ import annotations

import anyio
import pytest
import redis.exceptions

from streamq import RedisBroker, task
from streamq.client import OutcomeUnknown
from streamq.errors import BrokerError, BrokerUnavailableError, OutcomeUnknownError
from streamq.queue.delayed import next_due, promote
from streamq.queue.lease_commands import renew, survey
from streamq.queue.server_errors import cause, translated

pytestmark = pytest.mark.paired("memory")


@task(validate=False)
async def send(to: str) -> None: ...


@pytest.fixture
async def store(server):
    async with RedisBroker(server.url) as broker:
        yield broker.store


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (OutcomeUnknown("lost"), OutcomeUnknownError, "UNKNOWN"),
        (redis.exceptions.ConnectionError("refused"), BrokerUnavailableError, "UNAVAILABLE"),
        (redis.exceptions.TimeoutError("slow"), BrokerUnavailableError, "UNAVAILABLE"),
        (redis.exceptions.AuthenticationError("WRONGPASS no"), BrokerError, "NOAUTH"),
        (redis.exceptions.BusyLoadingError("LOADING"), BrokerError, "LOADING"),
        (redis.exceptions.ReadOnlyError("You can't write"), BrokerError, "READONLY"),
        (redis.exceptions.OutOfMemoryError("command not allowed"), BrokerError, "OOM"),
        (redis.exceptions.NoPermissionError("this user has no permissions"), BrokerError, "NOPERM"),
        (redis.exceptions.ResponseError("NOGROUP No such key 'x'"), BrokerError, "NOGROUP"),
        (redis.exceptions.ResponseError("ERR Error running script: NOGROUP No such"), BrokerError, "NOGROUP"),
        (redis.exceptions.ResponseError("ERR no such key"), BrokerError, "NOGROUP"),
        (redis.exceptions.ResponseError("MISCONF cannot persist"), BrokerError, "MISCONF"),
        (redis.exceptions.ResponseError("UNBLOCKED the stream key no longer exists"), BrokerError, "NOGROUP"),
        (
            redis.exceptions.ResponseError(
                "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
            ),
            BrokerError,
            "READONLY",
        ),
        (redis.exceptions.ResponseError("UNBLOCKED for a reason of tomorrow"), BrokerError, "UNBLOCKED"),
        (redis.exceptions.ResponseError("wrong number of arguments"), BrokerError, "ERR"),
        (BrokerError("x", code="Y"), BrokerError, "Y"),
    ],
)
def test_errors_are_translated_at_the_edge(error, kind, code):
    """Foreign errors become streamq's, with the server's own word as their code."""
    found = translated(error)
    assert type(found) is kind
    assert found.code == code


@pytest.mark.parametrize("script", [f". script: {'ee1b' * 10}, on", f", script: {'ee1b' * 10}, on", ". script: on"])
def test_the_place_in_a_script_is_kept_and_not_shown(script):
    """Its digest and its line say nothing to a user; the line says which command was refused."""
    found = translated(redis.exceptions.ReadOnlyError(f"You can't write{script} @user_script:176."))
    assert str(found) == "You can't write"
    assert found.script_line == 176


def test_one_cause_has_many_texts():
    """A replica names the command and the place; a lost connection is not a refused one."""
    refused = [BrokerError(f"READONLY {text}", code="READONLY") for text in ("at XADD", "at XAUTOCLAIM")]
    assert {cause(error) for error in refused} == {"READONLY"}
    lost = [BrokerUnavailableError(text) for text in ("port 7 was lost", "port 8 was lost", "port 8 is closed")]
    assert len({cause(error) for error in lost}) == 2
    other = [BrokerError(f"NOPERM {text}", code="NOPERM") for text in ("on a", "on b")]
    assert len({cause(error) for error in other}) == 2


def test_what_may_have_happened_is_a_connection_error_too():
    """So a program that catches ConnectionError catches both."""
    assert isinstance(translated(OutcomeUnknown("x")), ConnectionError)
    assert isinstance(translated(redis.exceptions.ConnectionError("x")), ConnectionError)


async def test_groups_are_made_once_and_again(server, store):
    """From the beginning of the stream, so that nothing sent before is missed; and again without harm."""
    server.command("XADD", "queue:bulk", "*", "task", "early")
    for _ in range(2):
        await store.ensure_groups()
    rows = server.command("XREADGROUP", "GROUP", "workers", "me", "STREAMS", "queue:bulk", ">")
    assert rows[0][1][0][1] == [b"task", b"early"]


async def test_what_was_missing_is_known(server, store):
    """A stream that is gone has lost what waited in it; a group alone has lost nothing."""
    streams = tuple(keys.stream for keys in store.keys.tiers)
    first, second = await store.ensure_groups(), await store.ensure_groups()
    assert (first.streams, first.groups, first.refused) == (streams, (), None)
    assert (second.streams, second.groups) == ((), ())
    server.command("XGROUP", "DESTROY", streams[0], "workers")
    server.command("DEL", streams[1])
    third = await store.ensure_groups()
    assert (third.streams, third.groups) == (streams[1:2], streams[:1])


async def test_a_stream_of_another_type_is_an_error(server, store):
    """Not one that is waited for."""
    server.command("SET", "queue:bulk", "x")
    with pytest.raises(BrokerError) as caught:
        await store.ensure_groups()
    assert caught.value.code == "WRONGTYPE"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("queue:bulk", "no stream"),
        ("queue:dead", "no stream"),
        ("queue:bulk:delayed", "no sorted set"),
        ("queue:critical:messages", "no hash"),
    ],
)
async def test_a_key_of_somebody_else_is_named_before_any_work(server, store, name, kind):
    """What would fail in the middle of a settlement fails at the start, with the remedy."""
    server.command("LPUSH", name, "x")
    with pytest.raises(BrokerError, match=rf"{name}.* is {kind}; .* rename its key, or choose") as caught:
        await store.ensure_groups()
    assert caught.value.code == "WRONGTYPE"
    server.command("DEL", name)
    await store.ensure_groups()


async def test_attempt_gives_errors_in_their_places(server, store):
    """One that fails harms no other of its round trip; `call` raises the first."""
    server.command("SET", "text", "x")
    replies = await store.attempt([("GET", "text"), ("XLEN", "text"), ("GET", "text")])
    assert replies[0] == replies[2] == b"x"
    assert isinstance(replies[1], BrokerError)
    with pytest.raises(BrokerError, match="WRONGTYPE"):
        await store.call([("GET", "text"), ("XLEN", "text")])


async def test_a_script_that_the_server_forgot_is_sent_again(server, store):
    """SCRIPT FLUSH, a restart or a failover: NOSCRIPT is nobody's error."""
    for _ in range(2):
        await promote(store)
        server.command("SCRIPT", "FLUSH")
    assert await promote(store) == (0, None, False)


async def test_a_survey_tells_what_is_pending_and_whether_anybody_is_gone(server, store):
    """Of all tiers and of one; who holds something is not gone, nor who is in time."""
    await store.ensure_groups()
    now, _, _ = await renew(store, "me", 30, [[], [], []])

    async def asked(tier, **options):
        return await survey(store, tier, **{"now": now, "forgotten": 60.0, **options})

    server.command("XADD", "queue:standard", "*", "task", "t")
    assert await asked(1) == ([0, 0, 0], False)
    server.command("XREADGROUP", "GROUP", "workers", "me", "STREAMS", "queue:standard", ">")
    assert await asked(1) == ([0, 1, 0], False)
    assert await asked(1, now=now + 31) == ([0, 1, 0], False)  # its time is up, and it holds something
    assert await asked(0, now=now + 31) == ([0, 1, 0], True)
    server.command("XGROUP", "CREATECONSUMER", "queue:bulk", "workers", "stranger")
    assert await asked(2) == ([0, 1, 0], False)
    await anyio.sleep(0.02)
    assert await asked(2, forgotten=0.01) == ([0, 1, 0], True)
    assert await asked(1, forgotten=0.01) == ([0, 1, 0], False)


async def test_a_survey_without_a_group_says_so(server, store):
    """P9: a server that lost its data is noticed by those who sweep."""
    for prepared in (lambda: None, lambda: server.command("XADD", "queue:standard", "*", "task", "t")):
        prepared()
        pending, gone = await survey(store, 1, now=0.0, forgotten=60.0)
        assert [error.code for error in pending] == ["NOGROUP"] * 3
        assert gone.code == "NOGROUP"


async def test_when_the_next_of_the_delayed_is_due(server, store):
    """By the server's clock, the first of all tiers; below zero once its time has come."""
    assert await next_due(store, range(3)) is None
    seconds = int(server.command("TIME")[0])
    for tier, after in (("bulk", 90), ("standard", 60), ("bulk", 600)):
        server.command("ZADD", f"queue:{tier}:delayed", (seconds + after) * 1000, str(after))
    assert 50 < await next_due(store, range(3)) <= 60
    server.command("ZADD", "queue:critical:delayed", "-inf", "at once")
    assert await next_due(store, range(3)) < 0


async def test_drained_means_settled_and_nothing_due_soon(server, store):
    """Read but not settled, and due before the horizon, are not drained."""
    await store.ensure_groups()
    assert await store.drained(60)
    entry = server.command("XADD", "queue:standard", "*", "task", "t")
    assert not await store.drained(60)
    server.command("XREADGROUP", "GROUP", "workers", "me", "STREAMS", "queue:standard", ">")
    assert not await store.drained(60)
    server.command("XACK", "queue:standard", "workers", entry)
    assert await store.drained(60)  # another group may keep the entry
    server.command("XDEL", "queue:standard", entry)
    seconds = int(server.command("TIME")[0])
    server.command("ZADD", "queue:bulk:delayed", (seconds + 30) * 1000, "x")
    assert not await store.drained(60)
    assert await store.drained(5)


async def test_the_server_has_the_last_word_on_time(server, store):
    """Renewing a lease tells the server's clock."""
    await store.ensure_groups()
    now, lost, _ = await renew(store, "me", 5, [[], [], []])
    assert abs(now - int(server.command("TIME")[0])) < 3
    assert lost == [[], [], []]
    assert "queue" in repr(store)


async def test_a_batch_of_which_a_part_was_accepted_has_no_certain_outcome(store, monkeypatch):
    """P9: "nothing was sent" would have its sender send the accepted part twice."""

    async def call(commands):
        return [b"1-1", redis.exceptions.ConnectionError("refused")]

    monkeypatch.setattr(store.client, "call", call)
    with pytest.raises(OutcomeUnknownError, match="some of these tasks were accepted"):
        await store.enqueue([("XADD",), ("EVALSHA",)])


@pytest.mark.parametrize("at", range(15))
@pytest.mark.parametrize("what", ["promoted", "postponed"])
async def test_a_task_that_moves_while_it_is_looked_for_is_seen(server, monkeypatch, what, at):
    """Between two commands of the look. A burst worker has ended as if the queue were empty."""
    async with RedisBroker(server.url) as broker:
        store, keys = broker.store, broker.keys.tiers[1]
        for tier in broker.keys.tiers:
            await store.one(("XGROUP", "CREATE", tier.stream, broker.keys.group, "0", "MKSTREAM"))
        now = store.clock.now() * 1000
        if what == "promoted":
            await store.one(("ZADD", keys.delayed, f"{now:.0f}", "x"))
            moving = [("XADD", keys.stream, "*", "task", "x"), ("ZREM", keys.delayed, "x")]
        else:
            await store.one(("XADD", keys.stream, "1-0", "task", "x"))
            await store.one(("XREADGROUP", "GROUP", broker.keys.group, "c", "STREAMS", keys.stream, ">"))
            moving = [("XACK", keys.stream, broker.keys.group, "1-0"), ("XDEL", keys.stream, "1-0")]
            moving.insert(0, ("ZADD", keys.delayed, f"{now:.0f}", "x"))
        call = store.call

        async def one_by_one(commands):
            replies = []
            for number, command in enumerate(commands):
                replies += await call([command])
                if number == at:
                    await call(moving)
            return replies

        monkeypatch.setattr(type(store), "call", lambda _, commands: one_by_one(commands))
        assert not await store.drained(0.5)
