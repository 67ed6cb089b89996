"""Deduplication at enqueue: windows, modes, which task won, and what frees a key."""

from __future__ import annotations

import anyio
import anyio.to_thread
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamq import Backoff, RedisBroker, Reject, RetryLater, task
from streamq.errors import ConfigurationError
from streamq.queue.delayed import promote
from streamq.tasks.task import TaskRef
from streamq.wire.side_effects import effects_of_end
from tests.at_work import STREAMS, assert_nothing_left, burst, dead, entries, until, working
from tests.crew import Crew, say
from tests.servers import InProcess

pytestmark = pytest.mark.paired("memory")

WINDOWS = {
    "seconds": {"dedup_ttl": 60},
    "until_started": {"dedup_ttl": "until_started"},
    "until_done": {"dedup_window": "until_done", "dedup_ttl": 600},
}
FREED_BY_SUCCESS = ("until_started", "until_done")


@pytest.fixture(name="broker")  # a worker of this module would take it for its own
async def opened(server):
    async with RedisBroker(server.url) as opened:
        yield opened


class Gate:
    """A task that waits inside each run until it is let go, and remembers with what it ran."""

    def __init__(self, **policy):
        self.ran: list[int] = []
        self.inside = 0
        self.go = anyio.Event()

        @task(validate=False, **policy)
        async def work(n: int) -> int:
            self.ran.append(n)
            self.inside += 1
            await self.go.wait()
            return n

        self.task = work


def key_of(server, key="k"):
    holder = server.command("GET", f"queue:dedup:{key}")
    return None if holder is None else holder.decode()


# --- windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
async def test_the_first_wins_and_the_others_are_told_which_task_it_was(server, broker, window):
    """Whatever the window; after it the next is accepted."""
    gate = Gate()
    once = gate.task.options(dedup_key="k", **WINDOWS[window])
    first = await broker.enqueue(once, 1)
    second = await broker.enqueue(once, 2)
    assert (first.fresh, first.replaced, second.fresh, second.replaced) == (True, False, False, False)
    assert second.task_id == first.task_id == key_of(server)
    async with working(broker, gate.task):
        await until(lambda: gate.inside)
        running = await broker.enqueue(once, 3)
        assert running.fresh == (window == "until_started")
        gate.go.set()
        await until(lambda: len(gate.ran) == 1 + running.fresh)
    assert gate.ran == [1] if not running.fresh else [1, 3]
    done = await broker.enqueue(once, 4)
    assert done.fresh == (window in FREED_BY_SUCCESS)
    if done.fresh:
        assert await done.cancel()
    assert_nothing_left(server)


@pytest.mark.parametrize("window", WINDOWS)
async def test_a_task_that_dies_frees_its_key(server, broker, window):
    """Under every window: what was not done may be sent again."""

    @task(retries=0)
    async def fails() -> None:
        raise ValueError

    once = fails.options(dedup_key="k", **WINDOWS[window])
    await broker.enqueue(once)
    await burst(broker, fails)
    assert len(dead(server)) == 1
    assert key_of(server) is None
    assert (await broker.enqueue(once)).fresh


@pytest.mark.parametrize("why", ["rejected", "expired", "unknown_task", "undecodable"])
async def test_whatever_it_died_of(server, broker, why):
    """Also what never ran."""

    @task
    async def refuses() -> None:
        raise Reject("no")

    options = {"dedup_key": "k", "dedup_ttl": 600} | ({"expires": 0.001} if why == "expired" else {})
    sent = TaskRef("nobody") if why == "unknown_task" else refuses
    await broker.enqueue(sent.options(**options))
    if why == "undecodable":
        ((entry, flat),) = server.command("XRANGE", "queue:standard", "-", "+")
        server.command("XDEL", "queue:standard", entry)
        server.command("XADD", "queue:standard", "*", *flat, "args", "nonsense")
    await anyio.sleep(0.01)
    await burst(broker, refuses, unknown_wait=0.0)
    assert [letter["reason"] for letter in dead(server)] == [why]
    assert key_of(server) is None


@pytest.mark.parametrize(
    ("window", "state"),
    [("seconds", "queued"), ("until_started", "delayed"), ("seconds", "running"), ("until_done", "running")],
)
async def test_a_task_that_is_cancelled_frees_its_key(server, broker, window, state):
    """Wherever it was."""
    gate = Gate()
    once = gate.task.options(dedup_key="k", delay=60 if state == "delayed" else None, **WINDOWS[window])
    handle = await broker.enqueue(once, 1)
    if state == "running":
        async with working(broker, gate.task):
            await until(lambda: gate.inside)
            assert await handle.cancel()
            await until(lambda: key_of(server) is None)
    else:
        assert await handle.cancel()
    assert key_of(server) is None
    assert_nothing_left(server)


@pytest.mark.parametrize("window", ["until_started", "until_done"])
async def test_a_retry_holds_the_key_until_it_is_done_and_frees_no_other_ones(server, broker, window):
    """Once freed by its first start the key may be another task's: later starts leave it alone."""
    runs, go = [], anyio.Event()

    @task(validate=False, backoff=Backoff(base=0.01, cap=0.01), retries=3)
    async def flaky(n: int) -> None:
        runs.append(n)
        if runs.count(n) < 3 and n == 1:
            raise ValueError
        await go.wait()

    once = flaky.options(dedup_key="k", dedup_window=window)
    first = await broker.enqueue(once, 1)
    async with working(broker, flaky, concurrency=1):
        await until(lambda: runs)
        other = await broker.enqueue(once.options(delay=60), 2)
        assert other.fresh == (window == "until_started")
        await until(lambda: runs.count(1) == 3)
        assert key_of(server) == (other.task_id if other.fresh else first.task_id)
        go.set()
    assert key_of(server) == (other.task_id if other.fresh else None)


async def test_a_task_that_a_middleware_holds_back_has_not_started(server, broker):
    """It keeps its key until its handler runs."""
    from streamq.middleware import MiddlewareChain

    held, gate = [], Gate()

    class DelayTask:
        async def __call__(self, context, call_next):
            if not held:
                held.append(1)
                raise RetryLater(after=0.2)
            return await call_next(context)

    once = gate.task.options(dedup_key="k", dedup_window="until_started")
    first = await broker.enqueue(once, 1)
    async with working(broker, gate.task, middleware=MiddlewareChain().add(DelayTask())):
        await until(lambda: server.command("ZCARD", "queue:standard:delayed"))
        assert (await broker.enqueue(once, 2)).task_id == first.task_id
        await until(lambda: gate.inside)
        await until(lambda: key_of(server) is None)
        gate.go.set()


async def test_the_key_of_a_delayed_task_is_held_from_its_time_on(server, broker):
    """`dedup_ttl` bounds the window from when it is due; a number of seconds counts from the enqueue."""

    @task
    async def work() -> None: ...

    await broker.enqueue(work.options(dedup_key="a", dedup_window="until_done", dedup_ttl=10, delay=1000))
    await broker.enqueue(work.options(dedup_key="b", dedup_ttl=10, delay=1000))
    await broker.enqueue(work.options(dedup_key="c", dedup_window="until_started"))
    await broker.enqueue(work.options(dedup_key="d", dedup_mode="keep_last", dedup_ttl=10, delay=1000))
    assert 1_000_000 < server.command("PTTL", "queue:dedup:a") <= 1_010_000
    assert 5_000 < server.command("PTTL", "queue:dedup:b") <= 10_000
    assert 86_000_000 < server.command("PTTL", "queue:dedup:c") <= 86_400_000
    assert 1_000_000 < server.command("PTTL", "queue:dedup:d") <= 1_010_000
    assert 1_000_000 < server.command("PTTL", "queue:latest:d") <= 1_010_000


async def test_a_success_under_a_window_of_seconds_is_acknowledged_as_any_other(real_server):
    """No command of its own: only what is freed by its success costs one."""

    @task
    async def work() -> None: ...

    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue_many([work.options(dedup_key=f"{n}", dedup_ttl=60).call() for n in range(300)])
        real_server.command("CONFIG", "RESETSTAT")
        await burst(broker, work)
    stats = real_server.command("INFO", "commandstats").decode()
    (scripts,) = [line for line in stats.splitlines() if line.startswith("cmdstat_evalsha:")]
    assert int(scripts.partition("calls=")[2].partition(",")[0]) < 100


async def test_the_loop_by_hand_starts_what_it_gives_out(server, broker):
    """`consume` frees a key that is held until the start, `ack` one that is held until the end."""

    @task
    async def work() -> None: ...

    await broker.enqueue(work.options(dedup_key="a", dedup_window="until_started"))
    await broker.enqueue(work.options(dedup_key="b", dedup_window="until_done"))
    deliveries = broker.consume()
    for name in ("a", "b"):
        delivery = await anext(deliveries)
        assert delivery.dedup == name
        assert (key_of(server, name) is None) == (name == "a")
        await broker.ack(delivery.task_id)
        assert key_of(server, name) is None
    await deliveries.aclose()


# --- debounce --------------------------------------------------------------------------------------


async def test_debounce_lets_the_last_win_and_wait_anew(server, broker):
    """One task, with the last arguments and the last options, its delay from the last enqueue on."""
    gate = Gate()
    gate.go.set()
    calm = gate.task.options(dedup_key="k", dedup_mode="debounce", delay=30)
    first = await broker.enqueue(calm, 1)
    due = float(server.command("ZSCORE", "queue:standard:delayed", first.task_id))
    await anyio.sleep(0.03)
    second = await broker.enqueue(calm.options(tier="bulk", result_ttl=60, headers={"who": "second"}), 2)
    assert (first.fresh, first.replaced, second.fresh, second.replaced) == (True, False, False, True)
    assert second.task_id == first.task_id
    assert server.command("EXISTS", "queue:standard:delayed", "queue:standard:messages") == 0
    assert float(server.command("ZSCORE", "queue:bulk:delayed", first.task_id)) >= due + 30
    third = await broker.enqueue(calm.options(delay=0.05), 3)
    await until(lambda: key_of(server) is None)
    assert (await broker.enqueue(calm, 4)).fresh
    async with working(broker, gate.task):
        await until(lambda: gate.ran)
    assert (gate.ran, third.task_id) == ([3], first.task_id)


@pytest.mark.slow
async def test_debounce_cannot_be_put_off_for_ever_where_a_bound_is_given(server, broker):
    """`dedup_max_delay` counts from the first."""
    gate = Gate()
    calm = gate.task.options(dedup_key="k", dedup_mode="debounce", delay=0.4, dedup_max_delay=0.5)
    handles = [await broker.enqueue(calm, 0)]
    started = anyio.current_time()
    while handles[-1].task_id == handles[0].task_id:
        await anyio.sleep(0.02)
        handles.append(await broker.enqueue(calm, len(handles)))
        assert anyio.current_time() < started + 5
    assert handles[-1].fresh
    assert anyio.current_time() >= started + 0.45
    gate.go.set()
    async with working(broker, gate.task):
        await until(lambda: len(gate.ran) == 2)
    assert gate.ran[0] in (len(handles) - 2, len(handles) - 1)
    assert gate.ran[1] == len(handles) - 1


# --- keep_last -------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 0.05])
async def test_keep_last_runs_the_last_state_once(server, broker, delay):
    """What waits, in a stream or for its time, is replaced."""
    gate = Gate(result_ttl=60)
    gate.go.set()
    newest = gate.task.options(dedup_key="k", dedup_mode="keep_last", delay=delay)
    handles = [await broker.enqueue(newest, n) for n in range(5)]
    assert {handle.task_id for handle in handles} == {handles[0].task_id}
    assert [handle.fresh for handle in handles] == [True, *[False] * 4]
    assert [handle.replaced for handle in handles] == [False, *[True] * 4]
    async with working(broker, gate.task):
        assert [await handle.result(timeout=10) for handle in handles] == [4] * 5
    assert gate.ran == [4]
    assert (await broker.enqueue(newest, 5)).fresh
    assert await broker.cancel(key_of(server))
    assert_nothing_left(server)


async def test_keep_last_keeps_one_more_behind_the_one_that_runs(server, broker):
    """The newest; it runs when that one has ended, and not before."""
    gate = Gate()
    newest = gate.task.options(dedup_key="k", dedup_mode="keep_last")
    first = await broker.enqueue(newest, 1)
    async with working(broker, gate.task):
        await until(lambda: gate.inside)
        second = await broker.enqueue(newest, 2)
        third = await broker.enqueue(newest.options(tier="bulk"), 3)
        assert (second.fresh, second.replaced) == (True, False)
        assert (third.fresh, third.replaced, third.task_id) == (False, True, second.task_id)
        assert second.task_id != first.task_id == key_of(server)
        await anyio.sleep(0.05)
        assert gate.ran == [1]
        gate.go.set()
        await until(lambda: gate.ran == [1, 3])
        await until(lambda: key_of(server) is None)
    assert_nothing_left(server)


@pytest.mark.parametrize("end", ["dies", "is cancelled", "frees it when it starts"])
async def test_however_the_one_that_runs_ends(server, broker, end):
    """What waits behind it runs."""
    ran, go, inside = [], anyio.Event(), anyio.Event()

    @task(validate=False, retries=0)
    async def work(n: int) -> None:
        ran.append(n)
        if n == 1:
            inside.set()
            await go.wait()
            raise ValueError

    newest = work.options(dedup_key="k", dedup_mode="keep_last")
    if end == "frees it when it starts":
        newest = newest.options(dedup_window="until_started")
    first = await broker.enqueue(newest, 1)
    async with working(broker, work):
        await inside.wait()
        second = await broker.enqueue(newest, 2)
        if end == "is cancelled":
            assert await first.cancel()
        if end == "dies":
            go.set()
        await until(lambda: ran == [1, 2])
        assert second.fresh
        go.set()
        await until(lambda: key_of(server) is None)
    assert_nothing_left(server)


async def test_what_waits_behind_another_has_its_own_time_too(server, broker):
    """Sent with a delay, it does not run before that though the other one has ended."""
    gate = Gate()
    newest = gate.task.options(dedup_key="k", dedup_mode="keep_last")
    await broker.enqueue(newest, 1)
    async with working(broker, gate.task):
        await until(lambda: gate.inside)
        behind = await broker.enqueue(newest.options(delay=60), 2)
        gate.go.set()
        await until(lambda: key_of(server) == behind.task_id)
        due = float(server.command("ZSCORE", "queue:standard:delayed", behind.task_id)) / 1000
        assert 30 < due - int(server.command("TIME")[0]) <= 61
        replaced = await broker.enqueue(newest, 3)
        assert (replaced.task_id, replaced.replaced) == (behind.task_id, True)
        assert await replaced.cancel()
    assert gate.ran == [1]
    assert_nothing_left(server)


@pytest.mark.slow
async def test_what_waits_behind_another_is_not_lost_with_the_key(server, broker):
    """P1: should nobody say that the other one has ended, it runs when the key's time is over."""
    gate = Gate()
    newest = gate.task.options(dedup_key="k", dedup_mode="keep_last", dedup_ttl=1.0)
    await broker.enqueue(newest, 1)
    async with working(broker, gate.task):
        await until(lambda: gate.inside)
        await broker.enqueue(newest, 2)
        await until(lambda: gate.ran == [1, 2])
        assert not gate.go.is_set()
        gate.go.set()
    assert_nothing_left(server)


async def test_a_waiting_task_is_not_moved_to_the_end_for_ever(server, broker):
    """After `dedup_max_delay` it keeps its place, and the newest waits behind it."""
    gate = Gate()
    gate.go.set()
    newest = gate.task.options(dedup_key="k", dedup_mode="keep_last", dedup_max_delay=0.05)
    first = await broker.enqueue(newest, 1)
    await anyio.sleep(0.08)
    second = await broker.enqueue(newest, 2)
    assert (second.fresh, second.task_id == first.task_id) == (True, False)
    async with working(broker, gate.task):
        await until(lambda: gate.ran == [1, 2])
        await until(lambda: key_of(server) is None)
    assert_nothing_left(server)


async def test_what_is_not_json_in_an_id_of_ones_own_is_written_as_json(server, broker):
    """The message of a delayed task is JSON, whatever the id."""
    gate = Gate()
    gate.go.set()
    newest = gate.task.options(dedup_key="k", dedup_mode="keep_last", delay=0.01, task_id='"ü\\/]')
    first = await broker.enqueue(newest, 1)
    again = await broker.enqueue(newest, 2)
    assert (first.task_id, again.task_id, again.fresh, again.replaced) == ('"ü\\/]', '"ü\\/]', False, False)
    async with working(broker, gate.task):
        await until(lambda: gate.ran == [1])
    assert dead(server) == []


# --- together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["throttle", "debounce", "keep_last"])
async def test_of_fifty_rivals_one_wins_and_all_know_it(server, mode):
    """Sent at once through several brokers, alone and by enqueue_many."""
    gate = Gate()
    options = {"dedup_key": "k", "dedup_mode": mode} | ({"delay": 60} if mode == "debounce" else {})
    handles = []

    async def one(broker, n):
        handles.append(await broker.enqueue(gate.task.options(**options), n))

    async def many(broker, numbers):
        handles.extend(await broker.enqueue_many([gate.task.options(**options).call(n) for n in numbers]))

    async with (
        RedisBroker(server.url) as a, RedisBroker(server.url) as b, RedisBroker(server.url) as c,
        anyio.create_task_group() as group,
    ):  # fmt: skip
        for n in range(20):
            group.start_soon(one, (a, b)[n % 2], n)
        group.start_soon(many, c, range(20, 50))
    assert len(handles) == 50
    assert len({handle.task_id for handle in handles}) == 1
    assert sum(handle.fresh for handle in handles) == 1
    assert sum(handle.replaced for handle in handles) == (0 if mode == "throttle" else 49)
    sent = sum(server.command("XLEN", stream) for stream in STREAMS)
    assert sent + server.command("ZCARD", "queue:standard:delayed") == 1


@pytest.mark.parametrize("mode", ["throttle", "debounce", "keep_last"])
async def test_an_enqueue_repeated_with_its_id_is_accepted_once(server, broker, mode):
    """P9: it is answered as it was the first time, and replaces nothing any more."""

    @task
    async def work(n: int) -> None: ...

    options = {"dedup_key": "k", "dedup_mode": mode} | ({"delay": 60} if mode == "debounce" else {})
    first = await broker.enqueue(work.options(**options), 1)
    mine = work.options(**options, task_id="mine")
    second = await broker.enqueue(mine, 2)
    third = await broker.enqueue(work.options(**options), 3)
    again = await broker.enqueue(mine, 2)
    assert {handle.task_id for handle in (first, second, third, again)} == {first.task_id}
    assert not again.replaced
    messages = [row["args"] for stream in STREAMS for row in entries(server, stream)]
    messages += [flat.decode() for flat in server.command("HVALS", "queue:standard:messages")]
    assert len(messages) == 1
    assert {"throttle": "1", "debounce": "3", "keep_last": "3"}[mode] in messages[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dedup_mode": "debounce"}, "without dedup_key"),
        ({"dedup_key": "k", "dedup_mode": "first"}, "throttle, debounce, keep_last"),
        ({"dedup_key": "k", "dedup_ttl": "until_ended"}, "until_started, until_done, or seconds"),
        ({"dedup_key": "k", "dedup_window": -1}, "dedup_window=-1"),
        ({"dedup_key": "k", "dedup_window": 5, "dedup_ttl": 6}, "give one"),
        ({"dedup_key": "k", "dedup_window": "until_done", "dedup_ttl": "until_done"}, "give one"),
        ({"dedup_key": "k", "dedup_mode": "debounce"}, "give the delay"),
        ({"dedup_key": "k", "dedup_mode": "debounce", "delay": 1, "dedup_ttl": 5}, "leave that out"),
        ({"dedup_key": "k", "dedup_mode": "keep_last", "dedup_window": 5}, "until_started or until_done"),
        ({"dedup_key": "k", "dedup_max_delay": 5}, "put off"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_is_written(options, says):
    """With the value and the remedy."""

    @task
    async def work() -> None: ...

    with pytest.raises(ConfigurationError, match=says):
        work.options(**options)


# --- against a model ----------------------------------------------------------------------------


_STEPS = st.lists(
    st.sampled_from(["enqueue", "enqueue", "enqueue late", "start", "done", "die", "retry", "cancel", "promote"]),
    min_size=1, max_size=25,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["throttle", "keep_last"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_STEPS)
def test_any_order_of_events_against_a_plain_model(mode, steps):
    """Of throttle the first of each window runs; of keep_last the newest state is always run in the end."""

    async def main():
        server = InProcess()
        try:
            async with RedisBroker(server.url) as broker:
                await _drive(server, broker, mode, steps)
        finally:
            server.close()

    anyio.run(main)


async def _drive(server, broker, mode, steps):
    await broker.store.ensure_groups()
    course = _Course(server, broker, mode)
    for one in [*steps, *["promote", "start", "done"] * 6]:
        await course.step(one)
        held = key_of(server)
        assert len(course.accepted) <= (1 if mode == "throttle" else 2)
        assert (held in course.accepted) if held else not course.accepted
    assert not course.accepted
    assert key_of(server) is None
    assert server.command("EXISTS", "queue:latest:k", "queue:standard:delayed", "queue:standard:messages") == 0
    assert server.command("XLEN", "queue:standard") == 0


class _Course:
    """The queue and, beside it, what is known of it: with which state each accepted task is to run."""

    def __init__(self, server, broker, mode):
        self.server, self.broker, self.store, self.mode = server, broker, broker.store, mode
        self.sent = 0
        self.running = []
        self.accepted: dict[str, int] = {}

    async def step(self, one):
        if one.startswith("enqueue"):
            await self.enqueue(0.001 if "late" in one else None)
        elif one == "promote":
            await anyio.sleep(0.002)
            await promote(self.store)
        elif one == "start":
            reply = await self.store.one(self.store.read_commands.new_entries("me", range(3), 1))
            for deliveries in self.store.read_commands.deliveries(reply).values():
                self.running.extend(deliveries)
        elif one == "cancel":
            await self.cancel()
        elif self.running:
            await self.end(self.running.pop(0), one)

    async def enqueue(self, delay):
        self.sent += 1
        held = key_of(self.server)
        wanted = work_n.options(dedup_key="k", dedup_window="until_done", dedup_mode=self.mode, delay=delay)
        handle = await self.broker.enqueue(wanted, self.sent)
        if self.mode == "throttle":
            assert (handle.fresh, handle.replaced) == (held is None, False)
            assert handle.task_id == (held or handle.task_id)
        else:
            assert handle.fresh != handle.replaced
        if handle.fresh or handle.replaced:
            self.accepted[handle.task_id] = self.sent

    async def cancel(self):
        target = next(iter(self.accepted), None)
        if target is not None and all(delivery.task_id != target for delivery in self.running):
            assert await self.broker.cancel(target)
            self.accepted.pop(target)

    async def end(self, delivery, how):
        also = effects_of_end(delivery, payload=b"{}", keep=None, done=how == "done")
        if how == "retry":
            packed = orjson.dumps(delivery.resend_fields("workers", attempt="2"))
            assert await self.store.one(self.store.settle_commands.postpone("me", delivery, 0.0, packed)) == 1
            return
        if how == "done":
            assert delivery.args == [self.accepted[delivery.task_id]]
            await self.store.one(self.store.settle_commands.ack_side_effects(delivery.tier, delivery.entry_id, also))
        else:
            assert (
                await self.store.one(self.store.settle_commands.dead_letter("me", delivery, ["task", "t"], also)) == 1
            )
        self.accepted.pop(delivery.task_id)


@task(validate=False)
async def work_n(n: int) -> None: ...


# --- under faults ---------------------------------------------------------------------------------


@task(validate=False, name="crew_slow", retries=0)
async def crew_slow(n: int) -> None:
    say(f"run {n}")
    await anyio.sleep(0.8)
    say(f"done {n}")


@task(validate=False, name="crew_killer", retries=0)
async def crew_killer(n: int) -> None:
    import os
    import signal

    say(f"killer {n}")
    os.kill(os.getpid(), signal.SIGKILL)


TASKS = [crew_slow, crew_killer]


@pytest.fixture
def any_real(anyio_backend, shared_server):
    """One kind of server for each backend."""
    return shared_server("valkey" if anyio_backend == "asyncio" else "redis")


@pytest.mark.slow
async def test_the_key_of_a_task_whose_worker_was_killed_stays_held_until_it_is_done(any_real, anyio_backend, tmp_path):
    """SIGKILL in the middle of the run: it is delivered again, and the key is its own until then."""
    async with RedisBroker(any_real.url) as broker:
        once = crew_slow.options(dedup_key="k", dedup_mode="keep_last")
        first = await broker.enqueue(once, 1)
        with Crew("tests.queue.test_dedup", any_real, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            await anyio.to_thread.run_sync(crew.until, "run 1")
            behind = await broker.enqueue(once, 2)
            victim.kill()
            victim.wait()
            crew.start("heir")
            await anyio.to_thread.run_sync(crew.until, "run 1", 2)
            assert key_of(any_real) == first.task_id
            assert (await broker.enqueue(once, 3)).task_id == behind.task_id
            await anyio.to_thread.run_sync(crew.until, "done 3")
            await until(lambda: key_of(any_real) is None)
            assert crew.lines("done") == ["done 1", "done 3"]


@pytest.mark.slow
async def test_a_crash_loop_frees_the_key(any_real, anyio_backend, tmp_path):
    """The task that takes its workers down is dead in the end, and may be sent again."""
    async with RedisBroker(any_real.url) as broker:
        once = crew_killer.options(dedup_key="k", dedup_ttl=3600)
        await broker.enqueue(once, 1)
        with Crew("tests.queue.test_dedup", any_real, tmp_path, backend=anyio_backend, lease=0.3) as crew:
            for number in range(3):
                member = crew.start(f"worker-{number}")
                await anyio.to_thread.run_sync(crew.until, "killer", number + 1)
                await anyio.to_thread.run_sync(member.wait)
                assert key_of(any_real) is not None
            crew.start("last")
            await until(lambda: dead(any_real), 20)
        assert [letter["reason"] for letter in dead(any_real)] == ["crash_loop"]
        assert key_of(any_real) is None
