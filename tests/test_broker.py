"""`RedisBroker`: sending, in every form, and what goes wrong."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import anyio
import orjson
import pytest

from streamq import Priority, RedisBroker, Status, TaskRef, Tier, task
from streamq.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    EncodingError,
    NotOpenError,
    PayloadTooLargeError,
    TaskNameError,
)
from streamq.wire.dead_letter_fields import DeadLetterBound
from tests.at_work import STREAMS, assert_nothing_left, burst, entries, until, working
from tests.servers import fresh_server

pytestmark = pytest.mark.paired("memory")


@task(validate=False)
async def send(to: str, n: int = 1) -> dict:
    return {"to": to, "n": n}


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def lengths(server):
    return [server.command("XLEN", stream) for stream in STREAMS]


# --- forms ------------------------------------------------------------------------------------


async def test_a_task_is_one_flat_entry(server, broker):
    """Defaults left out; what lies there is readable by hand."""
    handle = await broker.enqueue(send, "a@b.c", n=2)
    (row,) = server.command("XRANGE", "queue:standard", "-", "+")
    fields = [b"task", b"send", b"id", handle.task_id.encode(), b"args", b'["a@b.c"]', b"kwargs", b'{"n":2}']
    assert row == [handle.entry_id.encode(), fields]
    assert (handle.task_name, handle.fresh) == ("send", True)


async def test_by_name_the_producer_need_not_have_the_task(server, broker):
    """SPEC 2: a name, or a TaskRef; arguments are taken as they come."""
    await broker.enqueue("send", "a@b.c", priority=Priority.HIGH)
    await broker.enqueue(TaskRef("send").options(priority=1), to="x")
    assert lengths(server) == [1, 0, 1]
    (entry,) = entries(server, "queue:bulk")
    assert entry.pop("id")
    assert entry == {"task": "send", "kwargs": '{"to":"x"}', "priority": "1"}


async def test_options_may_be_keywords_where_the_task_has_no_such_parameter(server, broker):
    """And of `options(...)` always."""
    await broker.enqueue(send, "x", priority=Priority.CRITICAL)
    await broker.enqueue(send.options(tier="bulk", retries=5, timeout=2, headers={"a": 1}), "x")
    assert lengths(server) == [1, 0, 1]
    (entry,) = entries(server, "queue:bulk")
    assert entry.pop("id")
    assert entry == {"task": "send", "args": '["x"]', "retries": "5", "timeout": "2.0", "headers": '{"a":1}'}


async def test_the_priority_of_the_task_is_the_default(server, broker):
    """Its declaration, then its options."""

    @task(priority=Priority.HIGH, validate=False)
    async def urgent() -> None: ...

    await broker.enqueue(urgent)
    await broker.enqueue(urgent.options(priority=Priority.LOW))
    assert lengths(server) == [1, 0, 1]


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ([send], r"calls\[0\] is no call: send has no arguments yet: write send\.call\(\.\.\.\)"),
        ([send.call("a"), TaskRef("far")], r"calls\[1\] is no call: far has no arguments yet: write far\.call"),
        (["send"], r"calls\[0\] is no call: it is a text: write TaskRef\(name\)\.call"),
        ([5], r"calls\[0\] is no call: it is of type int: give what task\.call\(\.\.\.\) returns"),
        ([send.call("a").then(send.call("b"))], r"calls\[0\] .* start a workflow with broker\.start"),
        (None, "calls is of type NoneType: give a list of calls"),
        (send, "calls is of type AsyncTask: give a list of calls"),
        ("send", r"calls\[0\] is no call: it is a text"),
    ],
)
async def test_what_is_no_call_is_refused_with_the_remedy(server, broker, calls, says):
    """Nothing is sent, not even the calls before it."""
    with pytest.raises(ConfigurationError, match=says):
        await broker.enqueue_many(calls)
    assert lengths(server) == [0, 0, 0]


async def test_many_are_sent_in_one_round_trip(server, broker):
    """In order, over all tiers, with a handle each; of nothing nothing."""
    assert await broker.enqueue_many([]) == []
    calls = [send.call("a"), send.call("b", n=3), TaskRef("x").call(), send.options(priority=100, delay=60).call("c")]
    handles = await broker.enqueue_many(call for call in calls)
    assert [handle.task_name for handle in handles] == ["send", "send", "x", "send"]
    assert len({handle.task_id for handle in handles}) == 4
    assert [entry["task"] for entry in entries(server, "queue:standard")] == ["send", "send", "x"]
    assert server.command("ZCARD", "queue:critical:delayed") == 1


async def test_of_many_none_is_sent_if_one_cannot_be(server, broker):
    """All are checked before the first goes out."""
    with pytest.raises(EncodingError):
        await broker.enqueue_many([send.call("a"), send.call(object())])  # type: ignore[arg-type]
    assert server.keys() == []


async def test_a_thousand_are_one_round_trip(real_server):
    """SPEC 6: counted by the server."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(send, "warm up")
        before = reads(real_server)
        await broker.enqueue_many([send.call("a") for _ in range(1000)])
        assert real_server.command("XLEN", "queue:standard") == 1001
        # The server reads a large request in pieces; a round trip for each task would be a thousand.
        assert reads(real_server) - before < 30


def reads(server):
    text = server.command("INFO", "stats").decode()
    return int(dict(line.split(":", 1) for line in text.splitlines() if ":" in line)["total_reads_processed"])


# --- when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 60},
        {"delay": timedelta(minutes=1)},
        {"at": lambda: time.time() + 60},
        {"at": lambda: datetime.now(UTC) + timedelta(minutes=1)},
    ],
)
async def test_a_task_for_later_waits_in_the_delayed_set(server, broker, options):
    """By a delay or at a time, as seconds or as the library's types."""
    options = {name: value() if callable(value) else value for name, value in options.items()}
    handle = await broker.enqueue(send.options(**options), "x")
    assert lengths(server) == [0, 0, 0]
    due = float(server.command("ZSCORE", "queue:standard:delayed", handle.task_id)) / 1000
    assert abs(due - time.time() - 60) < 2
    assert await handle.status() is Status.DELAYED


@pytest.mark.parametrize("expires", [60, timedelta(minutes=1), lambda: datetime.now(UTC) + timedelta(minutes=1)])
async def test_expires_counts_from_now(server, broker, expires):
    """Seconds or a timedelta from now, or an aware datetime."""
    await broker.enqueue(send.options(expires=expires() if callable(expires) else expires), "x")
    (entry,) = entries(server, "queue:standard")
    assert abs(int(entry["expires"]) / 1000 - time.time() - 60) < 2


# --- once ---------------------------------------------------------------------------------------


async def test_a_task_id_is_accepted_once(server, broker):
    """P9: repeating an enqueue whose outcome is unknown is safe."""
    first = await broker.enqueue(send.options(task_id="abc-123"), "x")
    again = await broker.enqueue(send.options(task_id="abc-123"), "x")
    assert (first.fresh, again.fresh) == (True, False)
    assert first.task_id == again.task_id == "abc-123"
    assert lengths(server) == [0, 1, 0]
    one, two = await broker.enqueue_many([send.options(task_id="d", delay=60).call("x")] * 2)
    assert (one.fresh, two.fresh) == (True, False)


async def test_of_a_dedup_key_the_first_wins_for_its_time(server, broker):
    """The loser's handle is that of the winner."""
    first = await broker.enqueue(send.options(dedup_key="k", dedup_ttl=60), "x")
    second = await broker.enqueue(send.options(dedup_key="k", dedup_ttl=60, task_id="mine"), "x")
    assert second.task_id == first.task_id
    assert not second.fresh
    assert lengths(server) == [0, 1, 0]
    server.command("DEL", "queue:dedup:k")
    assert (await broker.enqueue(send.options(dedup_key="k", dedup_ttl=60, task_id="mine"), "x")).fresh


async def test_is_duplicate_says_so_the_second_time(server, broker):
    """For handlers that must not act twice."""
    assert not await broker.is_duplicate("x", 60)
    assert await broker.is_duplicate("x", 60)
    assert not await broker.is_duplicate("y", 60)
    assert server.command("PTTL", "queue:seen:x") > 50_000


# --- status and cancel -----------------------------------------------------------------------------


async def test_status_follows_a_task(server, broker):
    """Queued, running, and then what is known of its end."""
    go, inside = anyio.Event(), anyio.Event()

    @task(validate=False, result_ttl=60)
    async def work() -> None:
        inside.set()
        await go.wait()

    handle = await broker.enqueue(work)
    assert await handle.status() is Status.QUEUED
    async with working(broker, work):
        await inside.wait()
        assert await handle.status() is Status.RUNNING
        go.set()
        await handle.result(timeout=5)
        assert await handle.status() is Status.SUCCEEDED
    server.flush()
    assert await handle.status() is Status.UNKNOWN


async def test_the_beginning_of_1970_is_a_time_that_is_over(server, broker):
    """`at=0` is within its bound: the task runs at once."""
    for number, at in enumerate((0, 0.0, datetime.fromtimestamp(0, UTC))):
        handle = await broker.enqueue(TaskRef("later").options(at=at, task_id=f"t{number}"))
        assert 0 < float(server.command("ZSCORE", "queue:standard:delayed", handle.task_id)) <= 1
    with pytest.raises(ConfigurationError):
        await broker.enqueue(TaskRef("later").options(at=-1))


async def test_a_queued_and_a_delayed_task_can_be_withdrawn(server, broker):
    """They never run, and waiters for their results get the error."""
    from streamq.errors import TaskFailedError

    for handle in (
        await broker.enqueue(send.options(result_ttl=60), "x"),
        await broker.enqueue(send.options(result_ttl=60, delay=60), "x"),
    ):
        assert await handle.cancel()
        assert not await handle.cancel()
        assert await handle.status() is Status.FAILED
        with pytest.raises(TaskFailedError, match="cancelled before it started"):
            await handle.result(timeout=1)
    await burst(broker, send)
    assert_nothing_left(server)


async def test_a_running_task_is_asked_to_stop(server, broker):
    """Its handler is cancelled, it is not repeated, and the worker goes on."""
    from streamq.errors import TaskFailedError

    inside, ended = anyio.Event(), []

    @task(validate=False, result_ttl=60)
    async def endless() -> None:
        inside.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async with working(broker, endless, send):
        handle = await broker.enqueue(endless)
        await inside.wait()
        assert await handle.cancel()
        with pytest.raises(TaskFailedError, match="cancelled while it ran"):
            await handle.result(timeout=5)
        assert ended == ["cancelled"]
        assert await (await broker.enqueue(send.options(result_ttl=5), "x")).result(timeout=5) == {"to": "x", "n": 1}
    assert_nothing_left(server)


@pytest.mark.slow
async def test_cancelling_one_task_harms_no_other(server, broker):
    """A handler that ignores its cancellation must not hand it on to the next delivery."""
    inside, ran = anyio.Event(), []

    @task(validate=False)
    async def quick(n: int) -> None:
        await anyio.sleep(0.0005)
        ran.append(n)

    @task(validate=False)
    async def stubborn() -> str:
        inside.set()
        try:
            await anyio.sleep(20)
        except BaseException:  # noqa: BLE001 - this is what it is about
            return "I do not care"
        return ""

    await broker.enqueue_many([quick.call(n) for n in range(200)])
    handle = await broker.enqueue(stubborn)
    await broker.enqueue_many([quick.call(n) for n in range(200, 230)])
    async with working(broker, quick, stubborn, concurrency=1):
        await inside.wait()
        await handle.cancel()
        await until(lambda: len(ran) == 230)
    assert sorted(ran) == list(range(230))
    assert_nothing_left(server)


async def test_a_task_that_waits_for_its_retry_can_be_cancelled(server, broker):
    """Between two attempts it is delayed as any other."""
    failed = anyio.Event()

    @task(validate=False, backoff=lambda attempt, error: 60)
    async def fails() -> None:
        failed.set()
        raise ValueError

    handle = await broker.enqueue(fails)
    async with working(broker, fails):
        await failed.wait()
        await until(lambda: server.command("ZCARD", "queue:standard:delayed"))
    assert await handle.status() is Status.DELAYED
    assert await handle.cancel()
    assert_nothing_left(server)


# --- what cannot be ---------------------------------------------------------------------------------


async def test_what_cannot_be_sent_is_refused_before_it_is(server, broker):
    """Each with an error of its own."""
    with pytest.raises(PayloadTooLargeError):
        await broker.enqueue(send, "x" * 2**21)
    with pytest.raises(EncodingError, match="number 1"):
        await broker.enqueue(send, object())  # type: ignore[arg-type]
    with pytest.raises(TaskNameError):
        await broker.enqueue("a name")
    with pytest.raises(ConfigurationError, match="is no task"):
        await broker.enqueue(print)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="tier='none'"):
        await broker.enqueue(send, "x", tier="none")
    with pytest.raises(ConfigurationError, match="at least 0 and at most 253,402,300,799"):
        await broker.enqueue(send.options(at=datetime(1960, 1, 1, tzinfo=UTC)), "x")
    assert server.keys() == []


async def test_the_payload_limit_is_the_brokers(server):
    """P11: enforced at enqueue, configurable."""
    async with RedisBroker(server.url, max_payload=100) as small:
        with pytest.raises(PayloadTooLargeError, match="100"):
            await small.enqueue(send, "x" * 100)
    async with RedisBroker(server.url, max_payload=4 << 20) as large:
        await large.enqueue(send, "x" * 2**21)
        await large.enqueue(send.options(delay=60), "x" * 2**21)


async def test_outside_its_block_a_broker_says_how_to_open_it(server):
    """For every door."""
    broker = RedisBroker(server.url)
    for door in (
        lambda: broker.enqueue(send, "x"),
        lambda: broker.enqueue_many([send.call("x")]),
        lambda: broker.is_duplicate("x"),
    ):
        with pytest.raises(NotOpenError, match="async with"):
            await door()
    with pytest.raises(NotOpenError, match="async with"):
        async for _ in broker.consume():
            pass
    with pytest.raises(NotOpenError):
        _ = broker.client
    assert "closed" in repr(broker)


async def test_a_broker_can_be_opened_again_but_not_twice(server):
    """Closed is not broken."""
    broker = RedisBroker(server.url)
    for _ in range(2):
        async with broker:
            assert "open" in repr(broker)
            await broker.enqueue(send, "x")
            with pytest.raises(ConfigurationError, match="open already"):
                await broker.__aenter__()
            await broker.enqueue(send, "y")
    assert lengths(server) == [0, 4, 0]


async def test_a_handle_outlives_its_broker_only_as_a_value(server):
    """Its doors say that the broker is closed; they neither hang nor raise something foreign."""
    from streamq.errors import StreamqError

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(send.options(result_ttl=5), "x")
    assert handle.task_name == "send"
    with anyio.fail_after(5):
        for door in (lambda: handle.result(timeout=1), handle.status, handle.cancel):
            with pytest.raises(StreamqError):
                await door()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyboardInterrupt(),
        SystemExit(3),
        ExceptionGroup("two", [ValueError(), KeyError()]),
        BrokerError("x"),
    ],
)
async def test_an_exception_of_the_body_comes_out_as_itself(server, error):
    """Neither wrapped in a group nor swallowed."""
    with pytest.raises(type(error)) as caught:
        async with RedisBroker(server.url):
            raise error
    assert caught.value is error


async def test_cancelling_the_body_closes_the_broker(server):
    """A cancelled scope around it ends as any other."""
    with anyio.move_on_after(0.05) as scope:
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(send, "x")
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert "closed" in repr(broker)


# --- configuration -----------------------------------------------------------------------------------


async def test_queue_name_is_one_stream_alone(server):
    """SPEC 2: whatever the priority, it goes there, and a worker serves it."""
    async with RedisBroker(server.url, queue_name="queue:critical") as broker:
        await broker.enqueue(send, "x", priority=Priority.LOW)
        assert lengths(server) == [1, 0, 0]
        await burst(broker, send)
    assert_nothing_left(server)
    async with RedisBroker(server.url, queue_name="mails") as broker:
        await broker.enqueue(send, "x")
        assert server.command("XLEN", "mails") == 1
    with pytest.raises(ConfigurationError, match="give one of them"):
        RedisBroker(server.url, queue_name="a", tiers=[Tier("b")])


async def test_the_namespace_is_the_prefix_of_every_key(server):
    """With a hash tag all of them are in one slot of a cluster."""
    async with RedisBroker(server.url, namespace="{queue}", group="mine") as broker:
        await broker.enqueue(send, "x")
        await broker.enqueue(send.options(task_id="a", dedup_key="b", delay=0.01, result_ttl=5), "x")
        await burst(broker, send)
    assert server.keys()
    assert all(name.startswith("{queue}:") for name in server.keys())  # noqa: SIM118


async def test_tiers_and_thresholds_are_configurable(server):
    """A number picks the tier by its threshold."""
    tiers = [Tier("now", 5, threshold=7), Tier("later", 1, stream="elsewhere")]
    async with RedisBroker(server.url, tiers=tiers) as broker:
        await broker.enqueue(send, "x", priority=7)
        await broker.enqueue(send, "x", priority=6)
        assert server.command("XLEN", "queue:now") == 1
        assert server.command("XLEN", "elsewhere") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://x"},
        {"url": "localhost"},
        {"namespace": "a b"},
        {"group": ""},
        {"tiers": []},
        {"url": "redis://h:x"},
    ],
)
def test_what_cannot_be_used_is_refused_when_the_broker_is_made(options):
    """Not at the first command."""
    with pytest.raises(ConfigurationError):
        RedisBroker(**options)


def test_a_repr_shows_no_password():
    """Nor does an error message."""
    broker = RedisBroker("redis://user:hidden@localhost:1/0")
    assert repr(broker) == "<RedisBroker redis://user:***@localhost:1/0 namespace=queue group=workers closed>"
    with pytest.raises(NotOpenError, match=r"^<RedisBroker redis://user:\*\*\*@localhost:1/0 [^(]* is not open"):
        _ = broker.store


def test_a_broker_takes_the_bound_of_the_dead_letters():
    """P10."""
    assert RedisBroker(dead_letters=DeadLetterBound(5, 60)).dead_letters.max_size == 5


# --- trouble -----------------------------------------------------------------------------------------


async def test_no_server_is_a_clear_error_and_nothing_was_sent(tmp_path):
    """P9: BrokerUnavailableError, which is a ConnectionError, within the connect timeout."""
    started = time.monotonic()
    async with RedisBroker(f"unix://{tmp_path}/none.sock", connect_timeout=0.3) as broker:
        with pytest.raises(BrokerUnavailableError, match=r"none\.sock") as caught:
            await broker.enqueue(send, "x")
    assert isinstance(caught.value, ConnectionError)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("kind", ["valkey"])
async def test_a_wrong_password_says_so(kind):
    """NOAUTH, and at once."""
    with fresh_server(kind) as server:
        server.command("CONFIG", "SET", "requirepass", "secret")
        async with RedisBroker(server.url, connect_timeout=1) as broker:
            with pytest.raises(BrokerError) as caught:
                await broker.enqueue(send, "x")
            assert caught.value.code == "NOAUTH"
        async with RedisBroker(server.url.replace("unix://", "unix://:wrong@"), connect_timeout=1) as broker:
            with pytest.raises(BrokerError) as caught:
                await broker.enqueue(send, "x")
            assert caught.value.code == "NOAUTH"
            assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
        async with RedisBroker(server.url.replace("unix://", "unix://:secret@")) as broker:
            await broker.enqueue(send, "x")


async def test_a_server_that_is_full_refuses_and_says_so(real_server):
    """OOM: whichever way the task was sent, nothing is half done."""
    real_server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        async with RedisBroker(real_server.url) as broker:
            for wanted in (send, send.options(task_id="x"), send.options(dedup_key="k"), send.options(delay=60)):
                with pytest.raises(BrokerError) as caught:
                    await broker.enqueue(wanted, "x")
                assert caught.value.code == "OOM"
            assert real_server.keys() == []
            real_server.command("CONFIG", "SET", "maxmemory", "0")
            assert (await broker.enqueue(send.options(task_id="x"), "x")).fresh
    finally:
        real_server.command("CONFIG", "SET", "maxmemory", "0")


async def test_a_replica_refuses_and_says_so(real_server):
    """READONLY."""
    real_server.command("REPLICAOF", "127.0.0.1", "1")
    try:
        async with RedisBroker(real_server.url) as broker:
            for wanted in (send, send.options(task_id="x")):
                with pytest.raises(BrokerError) as caught:
                    await broker.enqueue(wanted, "x")
                assert caught.value.code == "READONLY"
    finally:
        real_server.command("REPLICAOF", "NO", "ONE")


async def test_a_key_of_another_type_is_named_by_the_server(server, broker):
    """WRONGTYPE is nobody's outage."""
    server.command("SET", "queue:standard", "x")
    with pytest.raises(BrokerError) as caught:
        await broker.enqueue(send, "x")
    assert caught.value.code == "WRONGTYPE"


async def test_a_broker_on_an_embedded_server():
    """embedded:// is a Valkey process that lives as long as the block."""
    async with RedisBroker("embedded://") as broker:
        handle = await broker.enqueue(send.options(result_ttl=5), "x")
        await burst(broker, send)
        assert await handle.result(timeout=5) == {"to": "x", "n": 1}


@pytest.mark.slow
async def test_brokers_of_one_memory_name_share_a_queue(anyio_backend):
    """One process can be producer, worker and monitor on the same memory://name."""
    from streamq.embedded import MemoryServer

    name = f"shared-{anyio_backend}"
    async with RedisBroker(f"memory://{name}") as one, RedisBroker(f"memory://{name}") as two:
        handle = await one.enqueue(send.options(result_ttl=5), "x")
        await burst(two, send)
        assert await handle.result(timeout=5) == {"to": "x", "n": 1}
    MemoryServer.discard(name)


async def test_the_client_of_the_broker_is_redis_pys(server, broker):
    """Every command method, on the broker's own connection."""
    await broker.client.set("mine", b"x")
    assert await broker.client.get("mine") == b"x"
    assert orjson.loads(b"1") == 1


async def test_the_options_of_a_url_are_kept(server):
    """`client_name`, `socket_timeout` and `socket_connect_timeout` (docs/client.md); an argument goes before them."""
    sign = "&" if "?" in server.url else "?"
    if server.kind == "memory":
        return
    url = f"{server.url}{sign}client_name=billing&socket_timeout=1.5&socket_connect_timeout=0.7"
    async with RedisBroker(url) as broker:
        assert (broker.client.reply_timeout, broker.client.connect_timeout) == (1.5, 0.7)
        assert await broker.client.command("CLIENT", "GETNAME") == b"billing"
    async with RedisBroker(url, reply_timeout=3) as broker:
        assert (broker.client.reply_timeout, broker.client.connect_timeout) == (3, 0.7)
    async with RedisBroker(server.url) as broker:
        assert (broker.client.reply_timeout, broker.client.connect_timeout) == (10.0, 5.0)
        assert await broker.client.command("CLIENT", "GETNAME") == b"streamq"


@pytest.mark.parametrize("url", ["memory://u:hunter2@x", "embedded:///x?password=hunter2", "embedded://u:hunter2@/x"])
def test_an_embedded_server_has_no_password(url):
    with pytest.raises(ConfigurationError, match="has no options, user or password") as caught:
        RedisBroker(url)
    assert "hunter2" not in str(caught.value)


async def test_a_second_open_says_where_a_broker_may_be_used(anyio_backend):
    """In another thread, say: it is opened once, and used where it was opened."""
    async with RedisBroker("memory://") as broker:
        with pytest.raises(ConfigurationError, match="the thread that opened it; elsewhere, open"):
            await broker.__aenter__()
        await broker.client.command("PING")


async def test_a_call_can_be_sent_as_a_task_can(broker, server):
    """With its own options, and with those of the enqueue; its arguments are complete."""
    handle = await broker.enqueue(send.call("a", n=2))
    await broker.enqueue(send.options(priority=Priority.LOW).call("b"), headers={"x": 1})
    await broker.enqueue(TaskRef("elsewhere").call(1), priority=Priority.HIGH)
    (first,), (second,), (third,) = (entries(server, f"queue:{name}") for name in ("standard", "bulk", "critical"))
    assert (first["id"], first["args"], first["kwargs"]) == (handle.task_id, '["a"]', '{"n":2}')
    assert (second["args"], second["headers"]) == ('["b"]', '{"x":1}')
    assert third["task"] == "elsewhere"
    for args, kwargs, named in [((1,), {}, "1"), ((), {"n": 3}, "n"), (("x",), {"n": 3, "priority": 1}, "'x', n")]:
        with pytest.raises(
            ConfigurationError, match=rf"^send\.call\(...\) has its arguments already, so {named} cannot"
        ):
            await broker.enqueue(send.call("a"), *args, **kwargs)


async def test_a_task_may_declare_its_tier(server):
    """It goes before the declared priority; what the call names goes before both."""

    @task(tier="later", priority=9)
    async def mail() -> None: ...

    async with RedisBroker(server.url, tiers=[Tier("now", 5, threshold=7), Tier("later", 1)]) as broker:
        sent = [
            await broker.enqueue(mail),
            await broker.enqueue(mail, priority=8),
            await broker.enqueue(mail, tier="now"),
            await broker.enqueue("mail"),
            *await broker.enqueue_many([mail.call(), mail.options(priority=1).call()]),
        ]
        assert [broker.tiers[one.tier].name for one in sent] == ["later", "now", "now", "now", "later", "later"]
        (entry,) = await broker.client.xrange(sent[0].stream, count=1)
        assert entry[1][b"priority"] == b"9"
    async with RedisBroker(server.url) as broker:
        with pytest.raises(ConfigurationError, match="tier='later' is none of this broker's: critical"):
            await broker.enqueue(mail)
