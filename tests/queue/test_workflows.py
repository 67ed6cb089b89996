"""Workflows: one task after the other with its result, groups with a callback, and failing steps."""

from __future__ import annotations

import json
from collections import Counter

import anyio
import orjson
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from streamq import RedisBroker, Reject, Status, TaskRef, current_delivery, group, step, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import (
    ArgumentsError,
    BrokerError,
    ConfigurationError,
    EncodingError,
    NotDurableError,
    PayloadTooLargeError,
    ResultNotKeptError,
    ResultTimeoutError,
    TaskFailedError,
    UndecodableError,
)
from streamq.middleware import MiddlewareChain
from streamq.wire.workflow_steps import (
    GroupMemberEnd,
    JoinMessage,
    NextGroup,
    NextMessage,
    NextStep,
    decode,
    encode,
    next_messages,
    wanted_results,
)
from tests import workflow_app
from tests.at_work import STREAMS, assert_nothing_left, burst, dead, entries, until, working
from tests.crew import Crew

pytestmark = pytest.mark.paired("memory")

WEIRD = [
    2**63 - 1,
    -(2**63),
    0.1 + 0.2,
    1e-310,
    1.7976931348623157e308,
    -0.0,
    '\u2028 é 😀 \x00 \x7f / \\ "',
    [],
    {},
    None,
]


@task(result_ttl=60)
async def fetch(url: str) -> dict[str, str]:
    return {"page": url}


@task(result_ttl=60)
async def parse(page: dict[str, str], *, strict: bool = False) -> list[str]:
    return [page["page"], f"strict={strict}"]


@task(result_ttl=60)
async def store(words: list[str], table: str) -> str:
    return f"{'+'.join(words)} in {table}"


@task(result_ttl=60)
async def number(value: int) -> int:
    return value


@task(result_ttl=60, validate=False)
async def double(value: int) -> int:
    return 2 * value


@task(result_ttl=60, validate=False)
async def together(parts: list, *more) -> list:
    return [parts, *more]


@task(result_ttl=60, validate=False)
async def weird() -> object:
    return WEIRD


sick: dict[str, bool] = {}


@task(result_ttl=60, retries=0)
async def fragile(value: int, name: str = "it") -> int:
    if sick.get(name, True):
        raise ValueError(f"{name} is sick")
    return value


ALL = (fetch, parse, store, number, double, together, weird, fragile)


@pytest.fixture(autouse=True)
def _sick():
    sick.clear()


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


# --- chains -------------------------------------------------------------------------------------


async def test_a_chain_gives_each_step_the_result_of_the_one_before(server, broker):
    """As its first argument, before those of its own; the end is the workflow's result, and nothing is left behind."""
    flow = await broker.start(fetch.call("u").then(parse, strict=True).then(store, table="x"))
    assert [handle.task_name for handle in flow.steps] == ["fetch", "parse", "store"]
    assert [handle.task_id for handle in flow.steps] == [f"{flow.workflow_id}.{n}" for n in (1, 2, 3)]
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == "u+strict=True in x"
    assert await flow.steps[1].result(timeout=5) == ["u", "strict=True"]
    assert_nothing_left(server)


async def test_a_call_is_complete_and_gets_no_result(server, broker):
    """`then(task)` is given the result, `then(task.call(...))` is not; a name is as a task."""
    flow = await broker.start(number.call(1).then(number.call(5)).then("double").then(TaskRef("together"), "more"))
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == [10, "more"]


async def test_a_single_call_is_a_workflow_too(server, broker):
    """Of one step."""
    flow = await broker.start(double.call(4))
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == 8
    assert_nothing_left(server)


async def test_a_step_keeps_its_options(server, broker):
    """Tier, retries, timeout, headers and an id of its own: each step has those of its call."""
    seen = []

    @task(result_ttl=60)
    async def look(before: int) -> None:
        it = current_delivery()
        seen.append((it.task_id, it.tier_name, it.retries, it.timeout, it.headers, it.priority, before))

    chosen = look.options(task_id="mine", tier="bulk", retries=7, timeout=9, headers={"a": 1}, priority=99)
    await broker.start(number.call(3).then(chosen))
    await burst(broker, number, look)
    assert seen == [("mine", "bulk", 7, 9.0, {"a": 1}, 99, 3)]


async def test_a_step_that_is_retried_sends_the_next_one_once(server, broker):
    """Only its success does, whatever came before it."""
    runs: list[str] = []

    @task(result_ttl=60, backoff=lambda attempt, error: 0.01)
    async def flaky(value: int) -> int:
        runs.append("flaky")
        if len(runs) < 3:
            raise OSError
        return value + 1

    @task(result_ttl=60)
    async def after(value: int) -> int:
        runs.append("after")
        return value + 1

    async with working(broker, number, flaky, after):
        assert await (await broker.start(number.call(1).then(flaky).then(after))).result(timeout=10) == 3
    assert runs == ["flaky"] * 3 + ["after"]
    assert_nothing_left(server)


async def test_a_delay_and_an_expiry_count_from_when_a_step_is_sent(server, broker):
    """Not from when the workflow was started."""
    flow = await broker.start(number.call(1).then(double.options(delay=3600, expires=7200)).then(double))
    assert server.command("ZCARD", "queue:standard:delayed") == 0
    await burst(broker, *ALL)
    ((member, due),) = [server.command("ZRANGE", "queue:standard:delayed", 0, -1, "WITHSCORES")]
    now = int(server.command("TIME")[0])
    assert 3500 < int(due) / 1000 - now < 3700
    fields = orjson.loads(server.command("HGET", "queue:standard:messages", member))
    message = dict(zip(fields[::2], fields[1::2], strict=True))
    assert (message["args"], message["id"]) == ("[1]", flow.steps[1].task_id)
    assert 7100 < int(message["expires"]) / 1000 - now < 7300
    assert await flow.steps[1].status() is Status.DELAYED
    assert await flow.steps[2].status() is Status.UNKNOWN
    server.command("ZADD", "queue:standard:delayed", 1, member)
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == 4
    assert_nothing_left(server)


async def test_a_workflow_can_begin_later(server, broker):
    """A delay of the first step holds back all of it."""
    flow = await broker.start(double.options(delay=3600).call(2).then(double))
    assert await flow.steps[0].status() is Status.DELAYED
    (member,) = server.command("ZRANGE", "queue:standard:delayed", 0, -1)
    server.command("ZADD", "queue:standard:delayed", 1, member)
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == 8


# --- failure --------------------------------------------------------------------------------------


async def test_a_failed_step_is_told_at_once_to_all_who_wait_for_a_later_one(server, broker):
    """With the error of the step that failed, its name and its id; the later ones are not sent."""
    flow = await broker.start(number.call(1).then(fragile).then(double).then(double))
    async with working(broker, *ALL):
        for handle in flow.steps[2:]:
            with pytest.raises(TaskFailedError) as caught:
                await handle.result(timeout=5)
            error = caught.value
            assert (error.reason, error.error_type, error.task_id) == ("upstream", "ValueError", handle.task_id)
            assert error.error == f"fragile {flow.steps[1].task_id} before it failed (retries_exhausted): it is sick"
            assert "raise ValueError" in error.traceback
            assert await handle.status() is Status.FAILED
        with pytest.raises(TaskFailedError) as caught:
            await flow.steps[1].result(timeout=5)
        assert caught.value.reason == "retries_exhausted"
        with pytest.raises(TaskFailedError):
            await flow.result(timeout=5)
    assert [letter["task"] for letter in dead(server)] == ["fragile"]
    assert_nothing_left(server)


async def test_a_replayed_step_lets_its_workflow_go_on(server, broker):
    """The dead letter keeps what comes after it; who asks again for the end gets it."""
    flow = await broker.start(number.call(21).then(fragile).then(double))
    await burst(broker, *ALL)
    with pytest.raises(TaskFailedError):
        await flow.result(timeout=5)
    sick["it"] = False
    await DeadLetterQueue(broker=broker).replay(task_id=flow.steps[1].task_id)
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == 42
    assert dead(server) == []
    assert_nothing_left(server)


async def test_a_step_that_expires_or_is_rejected_fails_its_workflow(server, broker):
    """As any other end that is no success."""

    @task
    async def refuses(value: int) -> None:
        raise Reject("no")

    one = await broker.start(number.call(1).then(refuses).then(double))
    two = await broker.start(number.call(1).then(double.options(expires=0)).then(double))
    async with working(broker, *ALL, refuses):
        for flow, reason in ((one, "rejected"), (two, "expired")):
            with pytest.raises(TaskFailedError, match=reason) as caught:
                await flow.result(timeout=5)
            assert caught.value.reason == "upstream"
    assert_nothing_left(server)


async def test_a_result_that_cannot_be_passed_on_is_a_dead_letter_of_its_step(server, broker):
    """Visible and replayable as `rejected`, rather than a workflow that stops silently."""

    @task(result_ttl=60)
    async def odd(n: int) -> object:
        return {1, object()} if n == 0 else "x" * 2000

    async with RedisBroker(server.url, max_payload=1500) as small:
        flows = [await small.start(odd.call(n).then(together, "y" * 100).then(number.call(1))) for n in (0, 1)]
        kept = await small.start(odd.call(0).then(number.call(1)))
        await burst(small, odd, *ALL)
        assert await kept.result(timeout=5) == 1
        for flow, kind in zip(flows, (EncodingError, PayloadTooLargeError), strict=True):
            with pytest.raises(TaskFailedError, match=r"rejected.*'together'") as caught:
                await flow.result(timeout=5)
            assert caught.value.error_type == f"streamq.errors.{kind.__name__}"
        assert [letter["reason"] for letter in dead(server)] == ["rejected"] * 2
        assert "the result of 'odd' (set)" in dead(server)[0]["error"]
        assert "the limit is 1500" in dead(server)[1]["error"]
    assert_nothing_left(server)


async def test_a_cancelled_step_ends_its_workflow(server, broker):
    """One that waits is withdrawn, one that runs is stopped; who waits for a later one is told either way."""
    started = anyio.Event()

    @task(result_ttl=60)
    async def endless(value: int) -> int:
        started.set()
        await anyio.sleep_forever()
        return value

    waiting = await broker.start(number.call(1).then(double))
    assert await waiting.cancel()
    with pytest.raises(TaskFailedError, match="cancelled before it started") as caught:
        await waiting.result(timeout=5)
    assert (caught.value.reason, caught.value.error_type) == ("upstream", "Cancelled")
    running = await broker.start(endless.call(1).then(double))
    async with working(broker, *ALL, endless):
        with anyio.fail_after(10):
            await started.wait()
        assert await running.cancel()
        with pytest.raises(TaskFailedError, match="cancelled") as caught:
            await running.result(timeout=5)
        assert caught.value.reason in ("cancelled", "upstream")  # told by the cancellation, then by the step that ran
    assert not await running.cancel()
    assert dead(server) == []
    assert_nothing_left(server)


async def test_a_settlement_that_comes_second_sends_nothing(server, broker):
    """A stale worker's success: somebody else has settled the step, and that one's follow-up is the only one."""
    await broker.start(number.call(1).then(double), workflow_id="w")
    store = broker.store
    await store.ensure_groups()
    found = store.read_commands.deliveries(await store.one(store.read_commands.new_entries("a", [1], 1)))
    (delivery,) = found[1]
    from streamq.wire.side_effects import effects_of_end

    also = effects_of_end(delivery, payload=b'{"ok":7}', keep=None, done=True, now=0.0, group="workers")
    command = store.settle_commands.ack_side_effects(1, delivery.entry_id, also)
    assert await store.one(command) == []
    assert await store.one(command) == [delivery.entry_id]
    (left,) = entries(server, "queue:standard")
    assert (left["id"], left["args"], left["task"], left["group"]) == ("w.2", "[7]", "double", "workers")


async def test_an_entry_whose_then_cannot_be_read_is_a_dead_letter_before_it_runs(server, broker):
    """Written by hand, and wrong."""
    for then in (
        "nonsense",
        "[]",
        "{}",
        "[1]",
        '[{"send":"queue:bulk","fields":["task","x"]}]',
        '[{"send":"s","fields":["task","x","id","y"],"delay":"1"}]',
        '[{"member":2,"of":1}]',
        '[{"member":1,"of":1}]',
        '[{"group":[]}]',
    ):
        with pytest.raises(UndecodableError, match="then"):
            decode(then.encode())
        server.command("XADD", "queue:standard", "*", "task", "number", "args", "[1]", "then", then)
    await burst(broker, *ALL)
    assert {letter["reason"] for letter in dead(server)} == {"undecodable"}
    assert_nothing_left(server)


async def test_a_workflow_by_hand(server, broker):
    """One XADD, as the page of the wire format shows it."""
    then = '[{"send":"queue:bulk","fields":["task","double","id","d-1"],"fed":true,"keep":60}]'
    server.command("XADD", "queue:standard", "*", "task", "number", "args", "[8]", "then", then)
    await burst(broker, *ALL)
    assert await broker.handle("d-1").result(timeout=5) == 16


async def test_the_loop_by_hand_goes_on_with_nothing(server, broker):
    """`ack` has no result to give: the next step gets None."""
    flow = await broker.start(number.call(1).then(together))
    messages = broker.consume()
    message = await anext(messages)
    await broker.ack(message.task_id)
    await messages.aclose()
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == [None]


# --- groups ---------------------------------------------------------------------------------------


async def test_the_callback_of_a_group_gets_all_results_in_their_order(server, broker):
    """However they ended; once, and its own arguments come after the list."""
    gates = [anyio.Event() for _ in range(4)]
    calls: list[list] = []

    @task(result_ttl=60)
    async def gated(n: int) -> int:
        await gates[n].wait()
        return n

    @task(result_ttl=60)
    async def total(parts: list[int], more: str) -> int:
        calls.append([parts, more])
        return sum(parts)

    flow = await broker.start(group(*(gated.call(n) for n in range(4))).then(total, more="x"))
    async with working(broker, gated, total):
        for done, n in enumerate((2, 0, 3, 1), 1):
            gates[n].set()
            assert await flow.steps[n].result(timeout=5) == n
            key = f"queue:join:workers:{flow.workflow_id}.5"
            if done < 4:
                assert server.command("HLEN", key) == done
                assert 6 * 86_400_000 < server.command("PTTL", key) <= 7 * 86_400_000
        assert await flow.result(timeout=5) == 6
    assert calls == [[[0, 1, 2, 3], "x"]]
    assert_nothing_left(server)


async def test_groups_within_chains_and_chains_within_groups(server, broker):
    """In the middle each member that is a step is given the result before it; groups nest."""
    inner = group(step(double).then(double), number.call(7)).then(together)
    flow = await broker.start(
        number.call(1).then(group(inner, step(double), step("double"))).then(together).then(together)
    )
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == [[[[[4, 7]], 2, 2]]]
    first = await broker.start(
        group(group(number.call(1), number.call(2)).then(together), number.call(3)).then(together)
    )
    await burst(broker, *ALL)
    assert await first.result(timeout=5) == [[[[1, 2]], 3]]
    assert_nothing_left(server)


@pytest.mark.slow
async def test_a_group_without_callback_has_the_results_of_its_members(server, broker):
    """At the end of a chain as at its beginning; the first failure is raised."""
    one = await broker.start(group(number.call(1), number.call(2).then(double)))
    two = await broker.start(number.call(5).then(group(step(double), step(double).then(double))))
    three = await broker.start(group(number.call(1), fragile.call(1)))
    with pytest.raises(ResultTimeoutError):
        await one.result(timeout=0.05)
    await burst(broker, *ALL)
    assert await one.result(timeout=5) == [1, 4]
    assert await two.result(timeout=5) == [10, 20]
    with pytest.raises(TaskFailedError, match="sick"):
        await three.result(timeout=5)
    assert_nothing_left(server)


async def test_a_callback_can_be_a_call_or_come_later(server, broker):
    """A call waits for all and is given nothing; a delay counts from when the last member is done."""
    plain = await broker.start(group(number.call(1), weird.call()).then(number.call(3)))
    late = await broker.start(group(number.call(1), weird.call()).then(together.options(delay=3600), 'é\x00"\\'))
    await burst(broker, *ALL)
    assert await plain.result(timeout=5) == 3
    (member,) = server.command("ZRANGE", "queue:standard:delayed", 0, -1)
    assert await late.steps[2].status() is Status.DELAYED
    server.command("ZADD", "queue:standard:delayed", 1, member)
    await burst(broker, *ALL)
    assert await late.result(timeout=5) == [[1, WEIRD], 'é\x00"\\']
    assert_nothing_left(server)


@pytest.mark.slow
async def test_a_failed_member_fails_the_callback_and_a_replay_completes_the_group(server, broker):
    """The others run on; the callback is told of the failure at once, and runs once the dead one was replayed."""
    sick.update(b=True, c=True)
    flow = await broker.start(
        group(number.call(1), fragile.call(2, "b"), fragile.call(3, "c").then(double)).then(together)
    )
    await burst(broker, *ALL)
    with pytest.raises(TaskFailedError, match=r"[bc] is sick") as caught:
        await flow.result(timeout=5)
    assert caught.value.reason == "upstream"
    assert await flow.steps[0].result(timeout=5) == 1
    queue = DeadLetterQueue(broker=broker)
    sick.update(b=False, c=False)
    await queue.replay(task_id=flow.steps[1].task_id)
    await burst(broker, *ALL)
    with pytest.raises((TaskFailedError, ResultTimeoutError)):  # the first if it says that "c" failed
        await flow.result(timeout=0.1)
    await queue.replay(task_id=flow.steps[2].task_id)
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == [[1, 2, 6]]
    assert dead(server) == []
    assert_nothing_left(server)


@pytest.mark.slow
async def test_a_group_of_a_thousand(server, broker):
    """Started in one round trip, all or none; one callback with a thousand results in order."""
    size = 1000
    if server.kind != "memory":
        server.command("CONFIG", "RESETSTAT")
    flow = await broker.start(group(*(number.call(n) for n in range(size))).then(together))
    assert server.command("XLEN", "queue:standard") == size
    if server.kind != "memory":
        stats = server.command("INFO", "commandstats").decode()
        assert sum(int(line.split("calls=")[1].split(",")[0]) for line in stats.splitlines() if "_eval" in line) <= 2
    async with working(broker, *ALL):
        assert await flow.result(timeout=30) == [list(range(size))]
    assert server.command("EXISTS", f"queue:join:workers:{flow.workflow_id}.{size + 1}") == 0


async def test_each_consumer_group_runs_each_step_once(server):
    """What a group's success sends is for that group alone: steps do not multiply, and joins do not mix."""
    ran: list[tuple[str, int]] = []

    @task(result_ttl=60)
    async def count(value: int) -> int:
        ran.append((current_delivery().task, value))
        return value + 1

    @task(result_ttl=60)
    async def collect(values: list[int]) -> int:
        ran.append(("collect", sum(values)))
        return sum(values)

    async with RedisBroker(server.url, group="a") as a, RedisBroker(server.url, group="b") as b:
        await a.store.ensure_groups()
        await b.store.ensure_groups()
        flow = await a.start(group(count.call(1).then(count), count.call(10)).then(collect).then(count))
        async with working(a, count, collect), working(b, count, collect):
            await until(lambda: len(ran) == 10)
            assert await flow.result(timeout=5) == 15
    assert Counter(ran) == dict.fromkeys((("count", 1), ("count", 2), ("count", 10), ("collect", 14), ("count", 14)), 2)
    assert all(server.command("XLEN", stream) == 0 for stream in STREAMS)
    assert not [key for key in server.keys() if ":join:" in key]  # noqa: SIM118


async def test_a_group_says_for_how_long_its_results_wait(server, broker):
    """Counted from the last one; it travels with the members, in the middle of a chain as well."""
    flow = await broker.start(number.call(1).then(group(step(double), step(fragile), keep=90)).then(together))
    await burst(broker, *ALL)
    key = f"queue:join:workers:{flow.steps[-1].task_id}"
    assert server.command("HGETALL", key) == [b"1", b"2"]
    assert 0 < server.command("PTTL", key) <= 90_000


# --- starting -------------------------------------------------------------------------------------


async def test_a_workflow_id_makes_a_start_repeatable(server, broker):
    """The second is told that it is not fresh, and its handles are those of the first. Own ids of tasks likewise."""
    flow = number.call(1).then(double)
    first = await broker.start(flow, workflow_id="order-7")
    second = await broker.start(flow, workflow_id="order-7")
    assert (first.fresh, second.fresh) == (True, False)
    assert [handle.task_id for handle in second.steps] == ["order-7.1", "order-7.2"]
    named = number.call(1).then(double.options(task_id="mine"))
    assert [(await broker.start(named)).fresh for _ in range(2)] == [True, False]
    assert server.command("XLEN", "queue:standard") == 2
    assert 0 < server.command("PTTL", "queue:id:order-7|workflow") <= 3_600_000
    await burst(broker, *ALL)
    assert await second.result(timeout=5) == 2
    assert_nothing_left(server)


async def test_two_delayed_steps_of_one_id_are_both_kept(server, broker):
    """An id of one's own may be used again after an hour: nothing that was accepted is overwritten."""
    for value in (1, 2):
        await broker.start(number.call(value).then(double.options(task_id="mine", delay=3600)))
        await burst(broker, *ALL)
        server.command("DEL", "queue:id:mine")
    members = server.command("ZRANGE", "queue:standard:delayed", 0, -1)
    assert sorted(members) == [b"workers|mine", b"workers|mine|2"]
    sent = [orjson.loads(server.command("HGET", "queue:standard:messages", member)) for member in members]
    assert sorted(fields[fields.index("args") + 1] for fields in sent) == ["[1]", "[2]"]


@pytest.mark.slow
async def test_a_start_can_be_durable(real_server):
    """The wish of any step holds for the start; what was not confirmed was started all the same, and is named."""
    async with RedisBroker(real_server.url, reply_timeout=3) as broker:
        flow = number.call(1).then(double.options(durable="replica"))
        with pytest.raises(NotDurableError) as caught:
            await broker.start(flow, workflow_id="w")
        assert caught.value.task_id == "w"
        assert not (await broker.start(number.call(1).then(double), workflow_id="w")).fresh
        assert real_server.command("XLEN", "queue:standard") == 1


async def test_middleware_around_enqueue_wraps_every_step(server):
    """Also those that are sent by workers, later: what it does to a call is done to each; what it refuses stops all."""

    class Tenant:
        refuse = ""

        async def enqueue(self, call, send_next):
            if call.task.name == self.refuse:
                raise PermissionError(call.task.name)
            return await send_next(call.options(headers={"tenant": "acme"}))

    seen = []

    @task(result_ttl=60)
    async def look(value: int) -> int:
        seen.append(current_delivery().headers)
        return value

    tenant = Tenant()
    async with RedisBroker(server.url, middleware=MiddlewareChain(tenant)) as broker:
        flow = await broker.start(look.call(1).then(look).then(group(step(look), step(look)))
                                  .then(together))  # fmt: skip
        await burst(broker, look, together)
        assert await flow.result(timeout=5) == [[1, 1]]
        assert seen == [{"tenant": "acme"}] * 4
        tenant.refuse = "together"
        with pytest.raises(PermissionError):
            await broker.start(look.call(1).then(together))
    assert_nothing_left(server)


async def test_what_cannot_be_started_says_so_and_sends_nothing(server, broker):
    """Each with the remedy."""
    for flow, kind, match in (
        (number, ConfigurationError, "cannot be started"),
        (step(number), ConfigurationError, "there is none"),
        (group(step(number)).then(together), ConfigurationError, "there is none"),
        (number.call(1).then(fetch, "too", "many"), ArgumentsError, "too many positional"),
        (number.call(1).then(parse, strikt=True), ArgumentsError, "strikt"),
        (number.call(1).then(double.options(dedup_key="k")), ConfigurationError, "workflow_id"),
        (number.call(1).then(double.options(tier="none")), ConfigurationError, "none of this broker's"),
        (number.options(task_id="a").call(1).then(double.options(task_id="a")), ConfigurationError, "same task_id"),
        (number.call(1).then(together, {1, object()}), EncodingError, "together"),
        (number.call(1).then(together, "x" * 2_000_000), PayloadTooLargeError, "'together'"),
        (number.call(1).then(together, "x" * 600_000).then(together, "x" * 600_000),
         PayloadTooLargeError, "er'.* 1048576"),
    ):  # fmt: skip
        with pytest.raises(kind, match=match):
            await broker.start(flow)
    for name in ("a b", "x" * 191):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            await broker.start(number.call(1), workflow_id=name)
    with pytest.raises(ResultNotKeptError):
        await (await broker.start(number.call(1).then(Silent))).result()
    assert sum(server.command("XLEN", stream) for stream in STREAMS) == 1


def nested(depth, *, first=False):
    """A workflow with so many groups in each other, at its beginning or after a step."""
    flow = number.call(1)
    for _ in range(depth):
        inner = group(flow, number.call(2))
        flow = inner.then(together) if first else number.call(0).then(inner).then(together)
    return flow


@pytest.mark.parametrize("first", [True, False])
async def test_groups_in_each_other_have_a_bound_at_the_start(server, broker, first):
    """What the worker could not read is not accepted; what is accepted runs to its end."""
    for depth in (33, 40, 5000):
        with pytest.raises(ConfigurationError, match="more than 32 groups in each other: start the inner"):
            await broker.start(nested(depth, first=first))
    assert_nothing_left(server)
    await broker.start(nested(32, first=first))
    await burst(broker, number, together)
    assert dead(server) == []


@task
async def Silent(value: int) -> None: ...  # noqa: N802


def test_what_cannot_be_written_down():
    """Groups of none, groups that follow groups, members that end in groups or are no flows, steps that are no tasks.

    The text says it in short: it names tasks and calls, and does not show all that they hold.
    """
    pair = group(number.call(1), number.call(2))
    for make, match in (
        (group, "group without members"),
        (lambda: pair.then(pair), "put a step between"),
        (lambda: group(pair), "put a step after"),
        (lambda: group(number, number), "^the task 'number' cannot be a member of a group: give a call \\(number.call"),
        (lambda: group(print), "^<built-in function print> cannot be a member of a group: give a call \\(task.call"),
        (lambda: group(number.call(1), keep=0), "keep"),
        (lambda: number.call(1).then(number.call(1), 5), "^the call of 'number' is complete"),
        (lambda: number.call(1).then(pair, 5), "^a group is complete"),
        (
            lambda: number.call(1).then(lambda x: x),
            "^<function .*lambda.* is no task, .* decorate a function with @task",
        ),
        (
            lambda: number.call(1).then(double.call),
            "^a method of the task 'double' cannot be a step: .*then\\(double\\)",
        ),
        (lambda: step(double.call), "give step\\(double\\), .* or double.call\\(...\\)"),
        (lambda: step(double.call(1)), "^the call of 'double' cannot be in step.*: give it as it is, without step"),
        (lambda: step(pair), "^a group cannot be in step"),
        (lambda: step(None), "^None is no task"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            make()


async def test_a_server_that_refuses_starts_nothing(real_server):
    """One script: all first steps or none, so the error of the server leaves nothing half-started."""
    async with RedisBroker(real_server.url) as broker:
        flow = group(number.call(1), number.options(tier="critical").call(2), double.options(tier="bulk").call(3))
        real_server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(BrokerError) as caught:
                await broker.start(flow, workflow_id="w")
            assert caught.value.code == "OOM"
        finally:
            real_server.command("CONFIG", "SET", "maxmemory", "0")
        assert real_server.keys() == []
        real_server.command("SET", "queue:bulk", "no stream")
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            await broker.start(flow, workflow_id="w")
        assert real_server.keys() == ["queue:bulk"]
        real_server.command("DEL", "queue:bulk")
        assert (await broker.start(flow, workflow_id="w")).fresh


@pytest.mark.slow
async def test_a_next_step_is_not_lost_to_a_key_of_somebody_else(real_server):
    """The stream that it is for is overwritten while the step before runs: it is sent once that is mended."""

    @task
    async def overwrite() -> int:
        real_server.command("DEL", "queue:bulk")
        real_server.command("SET", "queue:bulk", "theirs")
        return 4

    async with RedisBroker(real_server.url) as broker, working(broker, overwrite, double):
        handle = await broker.start(overwrite.call().then(double.options(tier="bulk", result_ttl=60)))
        await until(lambda: real_server.command("GET", "queue:bulk") == b"theirs")
        await anyio.sleep(0.3)
        assert real_server.command("XLEN", "queue:standard") == 1
        real_server.command("DEL", "queue:bulk")
        assert await handle.result(timeout=20) == 8
    assert_nothing_left(real_server)


# --- the field ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def text_of(value):
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


@pytest.mark.slow
@given(JSON.map(json.dumps), st.lists(JSON, max_size=3).map(lambda args: json.dumps(args, indent=1)))
def test_a_result_is_spliced_into_the_arguments_as_the_text_that_it_is(result, args):
    """Whatever it is, and however the arguments are written: the first argument is that text, the others follow."""
    (sent,) = next_messages(
        [NextStep("s", ("task", "t", "id", "i", "args", args), takes_result=True)], result.encode(), now=0.0
    )
    assert isinstance(sent, NextMessage)
    fields = dict(zip(sent.fields[::2], sent.fields[1::2], strict=True))
    assert json.loads(fields["args"]) == [json.loads(result), *json.loads(args)]
    assert fields["args"].startswith(b"[" + result.encode())


@pytest.mark.slow
@given(st.lists(JSON.map(json.dumps), min_size=1, max_size=4), st.lists(JSON, max_size=3).map(json.dumps))
def test_the_results_of_a_group_are_joined_as_texts(results, args):
    """As the script does it: `[[` + the results + `]` + the rest."""
    whole = [
        NextStep("s", ("task", "t", "id", "i", "args", args), takes_result=True),
        NextStep("s", ("task", "u", "id", "j")),
    ]
    joined = [
        next_messages([GroupMemberEnd(index, len(results)), *whole], result.encode(), now=0.0)[0]
        for index, result in enumerate(results, 1)
    ]
    assert all(isinstance(one, JoinMessage) and b"args" not in one.message.fields for one in joined)
    made = b"[[" + b",".join(one.result for one in joined) + b"]" + joined[0].rest
    assert json.loads(made) == [[json.loads(result) for result in results], *json.loads(args)]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
STEP = st.builds(
    lambda more, fed, delay, keep: NextStep(
        "s", ("task", "t", "id", "i", "kwargs", more), fed, delay, None, None, keep
    ),
    TEXT, st.booleans(), st.none() | st.floats(0, 1e9), st.none() | st.floats(1, 1e9),
)  # fmt: skip
MEMBERS = st.lists(st.lists(STEP, min_size=1, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple)
STAGES = st.lists(STEP, min_size=1, max_size=3) | st.tuples(STEP, MEMBERS.map(NextGroup), STEP).map(list)


@pytest.mark.slow
@given(STAGES)
def test_the_field_then_is_read_as_it_was_written(stages):
    """Whatever the texts in it are; and who is to be told are the steps that keep results."""
    assert decode(encode(stages)) == stages
    inner = [one for stage in stages if isinstance(stage, NextGroup) for member in stage.members for one in member]
    kept = [one for one in [*stages, *inner] if isinstance(one, NextStep) and one.keep]
    assert len(list(wanted_results(stages))) == len(kept)


@pytest.mark.slow
@given(STAGES)
def test_a_long_chain_is_text_in_json_once(stages):
    """Each message carries the rest of the list: nothing is escaped once more with each step."""
    size = len(encode(stages))
    (first, *_) = next_messages(stages, b"1", now=0.0)
    fields = dict(zip(first.fields[::2], first.fields[1::2], strict=True)) if isinstance(first, NextMessage) else {}
    assert len(fields.get("then", b"")) < size


async def test_values_survive_every_way_from_step_to_step(server, broker):
    """Whole numbers of 64 bits, small and large floats, unicode: through a chain, a group, and a delayed callback."""
    flow = await broker.start(weird.call().then(group(step(together), step(together))).then(together, WEIRD))
    await burst(broker, *ALL)
    got = await flow.result(timeout=5)
    assert got == [[[WEIRD], [WEIRD]], WEIRD]
    assert [type(value) for value in got[0][1][0]] == [type(value) for value in WEIRD]


# --- under a fault ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_no_step_is_lost_and_none_sent_twice_when_workers_are_killed(shared_server, tmp_path, anyio_backend):
    """SIGKILL at random, again and again: each step follows the one before it, once, and the ends are right.

    A second consumer group that acknowledges nothing keeps every entry in its stream: each id is there once.
    """
    server = shared_server("valkey" if anyio_backend == "asyncio" else "redis")
    flows, length = 4, 20
    async with RedisBroker(server.url) as broker:
        for stream in STREAMS:
            server.command("XGROUP", "CREATE", stream, "witness", "0", "MKSTREAM")
        started = []
        for number_of in range(flows):
            chain = workflow_app.begin.call(number_of)
            for at in range(1, length):
                chain = chain.then(workflow_app.walk, at)
            started.append(await broker.start(chain))
        halves = [workflow_app.begin.call(n).then(workflow_app.walk, 1) for n in range(10)]
        started.append(await broker.start(group(*halves).then(workflow_app.meet)))
        with Crew("tests.workflow_app", server, tmp_path, backend=anyio_backend) as crew:
            for at in range(2):
                crew.start(f"w{at}", "-c", "2", "--max-crashes", "9")  # more than kills: each may hit the same step
            for at, so_far in enumerate((5, 25, 50, 70)):
                await to_thread.run_sync(lambda wanted=so_far: crew.until("ran", wanted))
                crew.members[at].kill()
                crew.start(f"w{at + 2}", "-c", "2", "--max-crashes", "9")
            results = [await flow.result(timeout=60) for flow in started]
            again = len(crew.lines("ran")) - sum(len(flow.steps) for flow in started)
    assert results[:-1] == [[n, *range(1, length)] for n in range(flows)]
    assert results[-1] == [n + 1 for n in range(10)]
    sent = Counter(entry["id"] for stream in STREAMS for entry in entries(server, stream))
    assert sent == {handle.task_id: 1 for flow in started for handle in flow.steps}
    assert again > 0, "no worker was killed while it ran a step"
    assert dead(server) == []
    assert not [key for key in server.keys() if ":join:" in key]  # noqa: SIM118
