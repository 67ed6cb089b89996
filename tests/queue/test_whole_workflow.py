"""`broker.workflow(id)`: how far a whole workflow is, and its cancellation, which no later step survives."""

from __future__ import annotations

import random
from collections import defaultdict

import anyio
import pytest

from streamq import (
    Progress,
    RedisBroker,
    Retry,
    StepState,
    SyncBroker,
    Worker,
    Workflow,
    WorkflowHandle,
    WorkflowState,
    WorkflowStatus,
    current_delivery,
    group,
    scripts,
    step,
    task,
)
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import BrokerError, ConfigurationError, TaskFailedError
from streamq.wire.workflow_record import RECORD_KEPT, StepPlace, WorkflowRecord
from tests.at_work import STREAMS, burst, dead, until, working

pytestmark = pytest.mark.paired("memory")

UNKNOWN = WorkflowStatus("order-7", WorkflowState.UNKNOWN)
sick: set[str] = set()


@task(result_ttl=60)
async def number(value: int) -> int:
    return value


@task(result_ttl=60, retries=0)
async def fragile(value: int) -> int:
    if sick:
        raise ValueError("sick")
    return value


@task(result_ttl=60)
async def total(values: list[int]) -> int:
    return sum(values)


ALL = (number, fragile, total)


@pytest.fixture(autouse=True)
def _healthy():
    sick.clear()


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def word(status: WorkflowStatus) -> str:
    """Return a status as text: `running: done sent waiting`."""
    return f"{status.state}: {' '.join(one.state for one in status.steps)}"


# --- how far it is ----------------------------------------------------------------------------------


async def test_a_workflow_says_how_far_it_is(server, broker):
    """From its start to its end, by its id alone; each step is told by the atomic step that sends or ends it."""
    whole = broker.workflow("order-7")
    assert await whole.status() == UNKNOWN
    assert await whole.progress() is None
    assert not await whole.cancel()
    flow = await broker.start(number.call(1).then(group(step(number), step(number))).then(total), workflow_id="order-7")
    assert word(await whole.status()) == "running: sent waiting waiting waiting"
    assert await flow.status() == await whole.status()
    assert await whole.progress() == Progress(0, 4)
    worker = Worker(broker, tasks=ALL, concurrency=1)
    seen = set()
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        with anyio.fail_after(10):
            while (status := await whole.status()).state is WorkflowState.RUNNING:
                seen.add(word(status))
                assert (await whole.progress()).total == 4
        worker.stop()
    assert word(status) == "succeeded: done done done done"
    assert seen <= {
        "running: sent waiting waiting waiting", "running: done sent sent waiting", "running: done done sent waiting",
        "running: done sent done waiting", "running: done done done sent",
    }  # fmt: skip


async def test_the_end_of_a_workflow_is_known_for_an_hour(server, broker):
    """Its steps are named in their order, with the ids of their tasks."""
    flow = await broker.start(number.options(task_id="mine").call(1).then(number), workflow_id="order-7")
    assert isinstance(flow, WorkflowHandle)
    assert isinstance(flow, Workflow)
    assert 0 < server.command("PTTL", "queue:workflow:order-7") <= RECORD_KEPT * 1000
    await burst(broker, *ALL)
    status = await broker.workflow("order-7").status()
    assert word(status) == "succeeded: done done"
    assert [(one.task_id, one.task_name) for one in status.steps] == [("mine", "number"), ("order-7.2", "number")]
    assert status.counts == {**dict.fromkeys(StepState, 0), StepState.DONE: 2}
    assert await broker.workflow("order-7").progress() == Progress(2, 2)
    assert 0 < server.command("PTTL", "queue:workflow:order-7") <= 3_600_000
    assert not await flow.cancel()
    assert word(await flow.status()) == "succeeded: done done"
    assert await flow.result(timeout=5) == 1


async def test_a_record_lives_as_long_as_the_longest_delay(server, broker):
    """Of the first steps and of later ones; a step that ends before does not shorten it."""
    late = number.options(delay=20 * 86400.0)
    await broker.start(group(late.call(1), number.call(2).then(number)).then(total), workflow_id="order-7")
    assert server.command("PTTL", "queue:workflow:order-7") > 26 * 86400 * 1000
    await burst(broker, *ALL)
    assert server.command("PTTL", "queue:workflow:order-7") > 26 * 86400 * 1000
    assert word(await broker.workflow("order-7").status()) == "running: sent done done waiting"
    assert await broker.workflow("order-7").cancel()
    assert server.command("ZCARD", "queue:standard:delayed") == 0
    assert server.command("EXISTS", "queue:join:workers:order-7.4") == 0
    assert word(await broker.workflow("order-7").status()) == "cancelled: cancelled done done cancelled"


async def test_a_dead_step_is_named_and_its_replay_goes_on(server, broker):
    """The state of the whole follows: failed, running, succeeded. After the replay its step has the id of that."""
    sick.add("yes")
    flow = await broker.start(number.call(1).then(fragile).then(number), workflow_id="order-7")
    await burst(broker, *ALL)
    status = await flow.status()
    assert word(status) == "failed: done dead waiting"
    assert [one.task_id for one in status.failed] == ["order-7.2"]
    sick.clear()
    new_id = await DeadLetterQueue(broker=broker).replay(task_id="order-7.2")
    status = await flow.status()
    assert word(status) == "running: done sent waiting"
    assert status.steps[1].task_id == new_id
    await burst(broker, *ALL)
    assert word(await flow.status()) == "succeeded: done done done"
    assert await flow.progress() == Progress(3, 3)


async def test_each_consumer_group_has_its_own_states(server):
    """The workflow runs in each; what is sent first is sent to all of them."""
    async with RedisBroker(server.url, group="a") as a, RedisBroker(server.url, group="b") as b:
        await a.store.ensure_groups()
        await b.store.ensure_groups()
        await a.start(number.call(1).then(number), workflow_id="order-7")
        await burst(a, *ALL)
        assert word(await a.workflow("order-7").status()) == "succeeded: done done"
        assert word(await b.workflow("order-7").status()) == "running: sent waiting"
        await burst(b, *ALL)
        assert word(await b.workflow("order-7").status()) == "succeeded: done done"


async def test_a_new_workflow_of_an_old_id_begins_anew(server, broker):
    """After the hour in which its start is not repeated. A cancellation of the earlier one does not count."""
    flow = await broker.start(number.call(1).then(number).then(number), workflow_id="order-7")
    assert await flow.cancel()
    again = await broker.start(number.call(1), workflow_id="order-7")
    assert not again.fresh
    assert word(await again.status()) == "cancelled: cancelled cancelled cancelled"
    for key in ("order-7|workflow", "order-7.1", "order-7.2", "order-7.3"):
        server.command("DEL", f"queue:id:{key}")
    again = await broker.start(number.call(1).then(number), workflow_id="order-7")
    assert word(await again.status()) == "running: sent waiting"
    await burst(broker, *ALL)
    assert word(await again.status()) == "succeeded: done done"


async def test_what_is_no_workflow(server, broker):
    """A bad id, and a key of somebody else, are errors that name it. A bad place in a message is none."""
    with pytest.raises(ConfigurationError, match="workflow_id"):
        broker.workflow("")
    server.command("HSET", "queue:workflow:x", "plan", "nonsense")
    with pytest.raises(BrokerError, match="'plan' of a workflow is no list of steps"):
        await broker.workflow("x").status()
    server.command("SET", "queue:workflow:y", "theirs")
    with pytest.raises(BrokerError, match="queue:workflow:y"):
        await broker.workflow("y").cancel()
    for place in ("x", "x.", ".1", "x.y", "x.1000000", "x.²", ""):
        assert StepPlace.parse(place.encode()) is None
        await broker.client.xadd("queue:standard", {"task": "number", "args": "[1]", "workflow": place})
    assert StepPlace.parse(b"a.b.12") == ("a.b", 12)
    await burst(broker, *ALL)
    assert dead(server) == []
    assert WorkflowRecord.read([], "workers") is None


# --- its cancellation -------------------------------------------------------------------------------


async def test_cancel_ends_the_whole(server, broker):
    """One that runs is stopped; one that waits, for its time or a retry, is withdrawn; the others are never sent."""
    started, hurt = anyio.Event(), anyio.Event()

    @task(result_ttl=60)
    async def endless(value: int) -> int:
        started.set()
        await anyio.sleep_forever()
        return value

    @task(result_ttl=60)
    async def hurts(value: int) -> int:
        hurt.set()
        raise Retry(after=60)

    lone = number.options(delay=60)
    flow = await broker.start(
        group(endless.call(1).then(number), hurts.call(1).then(number), lone.call(1), number.call(5)).then(total)
    )
    whole = broker.workflow(flow.workflow_id)
    async with working(broker, *ALL, endless, hurts):
        with anyio.fail_after(10):
            await started.wait()
            await hurt.wait()
            while await server_delayed(broker) < 2 or (await whole.progress()).done < 1:
                await anyio.sleep(0.01)
        assert word(await whole.status()) == "running: sent waiting sent waiting sent done waiting"
        assert await whole.cancel()
        for handle in (flow.steps[1], flow.steps[3], flow.steps[6]):
            with pytest.raises(TaskFailedError, match="cancelled"):
                await handle.result(timeout=0)
        with anyio.fail_after(10):
            while StepState.SENT in {one.state for one in (await whole.status()).steps}:
                await anyio.sleep(0.01)
    assert not await whole.cancel()
    assert word(await whole.status()) == "cancelled: cancelled cancelled cancelled cancelled cancelled done cancelled"
    assert all(server.command("XLEN", stream) == 0 for stream in STREAMS)
    assert await server_delayed(broker) == 0
    assert dead(server) == []


async def server_delayed(broker: RedisBroker) -> int:
    return int(await broker.client.zcard("queue:standard:delayed"))


async def test_many_steps_are_cancelled_together(server, broker, monkeypatch):
    """A hundred of them in two round trips; one that has moved is found as its handle finds it."""
    flow = await broker.start(group(*(number.call(n) for n in range(250))).then(total))
    entry, flat = server.command("XRANGE", "queue:standard", "-", "+")[120]
    server.command("XADD", "queue:standard", "*", *flat)
    server.command("XDEL", "queue:standard", entry)
    trips: list[int] = []
    attempt = broker.store.attempt

    async def counted(commands):
        trips.append(len(commands))
        return await attempt(commands)

    monkeypatch.setattr(broker.store, "attempt", counted)
    assert await flow.cancel()
    assert len(trips) < 20
    assert server.command("XLEN", "queue:standard") == 0
    assert (await flow.status()).counts[StepState.CANCELLED] == 251


async def test_a_message_that_cannot_be_read_is_a_dead_step(server, broker):
    """Whatever a step dies of, its workflow knows."""
    flow = await broker.start(number.call(1).then(number), workflow_id="order-7")
    ((entry, flat),) = server.command("XRANGE", "queue:standard", "-", "+")
    server.command("XDEL", "queue:standard", entry)
    server.command("XADD", "queue:standard", "*", *flat, "then", "nonsense")
    await burst(broker, *ALL)
    assert [letter["reason"] for letter in dead(server)] == ["undecodable"]
    assert word(await flow.status()) == "failed: dead waiting"


async def test_a_replay_after_the_cancellation_runs_its_step_alone(server, broker):
    """A dead step stays a dead letter. Who replays it wants it to run; what came after it is cancelled."""
    sick.add("yes")
    flow = await broker.start(fragile.call(1).then(number), workflow_id="order-7")
    await burst(broker, *ALL)
    assert await flow.cancel()
    assert word(await flow.status()) == "cancelled: dead cancelled"
    assert not await flow.cancel()
    sick.clear()
    await DeadLetterQueue(broker=broker).replay(task_id="order-7.1")
    await burst(broker, *ALL)
    assert word(await flow.status()) == "cancelled: done cancelled"
    with pytest.raises(TaskFailedError, match="its workflow was cancelled before it was sent"):
        await flow.result(timeout=0)


async def test_no_step_is_sent_once_cancel_has_returned(server, broker):
    """Whatever ends at the same moment: of each workflow, no step starts that was not sent before."""
    rng = random.Random(7)
    begun: dict[str, list[int]] = defaultdict(list)

    @task
    async def link(value: int = 0) -> int:
        place = StepPlace.parse(current_delivery().fields[b"workflow"])
        begun[place.workflow_id].append(place.number)
        await anyio.sleep(rng.random() / 500)
        return value

    chain = link.call()
    for _ in range(6):
        chain = chain.then(link)
    after: dict[str, WorkflowStatus] = {}

    async def cancel_one(workflow_id: str) -> None:
        await anyio.sleep(rng.random() / 20)
        whole = broker.workflow(workflow_id)
        await whole.cancel()
        after[workflow_id] = await whole.status()

    async with working(broker, link, concurrency=20):
        flows = [await broker.start(chain) for _ in range(40)]
        async with anyio.create_task_group() as tasks:
            for flow in flows:
                tasks.start_soon(cancel_one, flow.workflow_id)
        states = {status.state for status in after.values()}
        assert WorkflowState.CANCELLED in states
        assert states <= {WorkflowState.CANCELLED, WorkflowState.SUCCEEDED}
        await until(lambda: all(server.command("XLEN", stream) == 0 for stream in STREAMS))
    for workflow_id, status in after.items():
        unsent = {number for number, one in enumerate(status.steps, 1) if one.state is StepState.CANCELLED}
        last = [number for number, one in enumerate(status.steps, 1) if one.state in (StepState.DONE, StepState.SENT)]
        assert StepState.WAITING not in {one.state for one in status.steps}
        assert set(begun[workflow_id]) <= set(last) | {min(unsent, default=0)}  # the first of them may have been sent
        assert begun[workflow_id] == sorted(set(begun[workflow_id])), "a step ran twice"


async def test_a_workflow_that_is_forgotten_is_cancelled_by_its_steps(server, broker):
    """Its record has expired, or was deleted: `start` returned the handles of its steps."""
    flow = await broker.start(number.call(1).then(number))
    server.command("DEL", f"queue:workflow:{flow.workflow_id}")
    assert not await broker.workflow(flow.workflow_id).cancel()
    assert await flow.cancel()
    assert server.command("XLEN", "queue:standard") == 0
    flow = await broker.start(number.call(1).then(number))
    server.command("DEL", f"queue:workflow:{flow.workflow_id}")
    await burst(broker, *ALL)
    assert await flow.result(timeout=5) == 1
    assert await flow.status() == WorkflowStatus(flow.workflow_id, WorkflowState.UNKNOWN)
    assert server.command("EXISTS", f"queue:workflow:{flow.workflow_id}") == 0


async def test_a_missing_right_is_named(real_server):
    """As of every other key; what was refused has changed nothing."""
    rules = ("reset", "on", ">pa55word", "&*", "+@all", "~queue:standard*", "~queue:result:*", "~queue:join:*")
    real_server.command("ACL", "SETUSER", "bob", *rules)
    try:
        async with RedisBroker(real_server.url.replace("unix://", "unix://bob:pa55word@")) as bob:
            for refused in (
                bob.workflow("x").status, bob.workflow("x").progress, bob.workflow("x").cancel,
                lambda: bob.start(number.call(1)),
            ):  # fmt: skip
                with pytest.raises(BrokerError, match="queue:workflow:") as caught:
                    await refused()
                assert caught.value.code == "NOPERM"
                assert "streamq acl" in str(caught.value)
        assert real_server.command("XLEN", "queue:standard") == 0
    finally:
        real_server.command("ACL", "DELUSER", "bob")


def test_without_an_event_loop(server):
    """The handle of a thread says and does the same."""
    if server.kind == "memory":
        pytest.skip("a memory:// server is that of one broker")
    with SyncBroker(server.url) as broker:
        flow = broker.start(number.call(1).then(number), workflow_id="order-7")
        whole = broker.workflow("order-7")
        assert word(whole.status()) == "running: sent waiting"
        assert (flow.progress(), whole.progress()) == (Progress(0, 2), Progress(0, 2))
        assert repr(whole) == "<SyncWorkflowHandle order-7>"
        assert whole.cancel()
        assert not flow.cancel()
        assert word(flow.status()) == "cancelled: cancelled cancelled"
        assert broker.workflow("other").status().state is WorkflowState.UNKNOWN


async def test_a_number_that_nobody_sends_does_not_stop_the_server(real_server):
    """A count below 0 had the script count from there."""
    async with RedisBroker(real_server.url) as broker:
        command = scripts.step("stop_workflow")(("queue:workflow:w",), "workers", "{}", 1000, -(1 << 63), "0")
        with anyio.fail_after(5):
            assert await broker.store.one(command) == [0, []]
