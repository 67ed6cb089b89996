"""The worker: what becomes of tasks, on every server, under both backends."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from streamq import RedisBroker, Reject, RetryLater, Worker, current_delivery, task
from streamq.consumer import cancellation
from streamq.consumer import consumer as consumers
from streamq.consumer.events import Recovered, Settled, Started, Superseded, Trouble
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import BrokerUnavailableError, ConfigurationError, LifespanEndedError, TaskNameError
from streamq.queue import lease_commands
from streamq.tasks.outcome import Ack, DeadLetter, Postpone, Retry
from streamq.worker import State
from tests import deferred
from tests.at_work import STREAMS, assert_nothing_left, burst, dead, entries, pending, until, working

pytestmark = pytest.mark.paired("memory")


def soon(attempt, error):
    """A backoff that tests can wait for."""
    return 0.01


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


@task
async def send(to: str, n: int = 1) -> None: ...


# --- how a run ends -------------------------------------------------------------------------------


async def test_a_success_is_acknowledged_and_leaves_nothing(server, broker):
    """P2, and P8 after a clean stop: no entry, no lease, no consumer, no key that is not documented."""
    got = []

    @task
    async def remember(n: int) -> None:
        got.append(n)

    await broker.enqueue_many([remember.call(n) for n in range(50)])
    async with working(broker, remember):
        await until(lambda: len(got) == 50)
    assert sorted(got) == list(range(50))
    assert_nothing_left(server)


async def test_nothing_is_acknowledged_before_its_handler_ended(server, broker):
    """P2: what runs is pending."""
    inside, go = anyio.Event(), anyio.Event()

    @task
    async def wait() -> None:
        inside.set()
        await go.wait()

    await broker.enqueue(wait)
    async with working(broker, wait):
        await inside.wait()
        assert pending(server) == 1
        go.set()
        await until(lambda: pending(server) == 0)


async def test_a_failure_is_retried_with_backoff_until_it_succeeds(server, broker):
    """P6: through the delayed set, one attempt poorer each time, the same task id."""
    seen = []

    @task(backoff=soon)
    async def flaky() -> None:
        delivery = current_delivery()
        seen.append((delivery.task_id, delivery.attempt))
        if len(seen) < 3:
            raise ValueError(len(seen))

    handle = await broker.enqueue(flaky)
    async with working(broker, flaky):
        await until(lambda: len(seen) == 3)
    assert seen == [(handle.task_id, 1), (handle.task_id, 2), (handle.task_id, 3)]
    assert dead(server) == []
    assert_nothing_left(server)


async def test_spent_retries_end_in_a_dead_letter_that_says_everything(server, broker):
    """SPEC 3, field by field."""

    @task(retries=1, backoff=soon)
    async def fails(to: str, n: int) -> None:
        raise ValueError(f"no {to}")

    handle = await broker.enqueue(fails.options(priority=100), "a@b.c", n=2)
    worker = await burst(broker, fails, name="w1")
    (letter,) = dead(server)
    assert {name: letter[name] for name in ("task_id", "task", "args", "kwargs", "tier", "reason")} == {
        "task_id": handle.task_id, "task": "fails", "args": '["a@b.c"]', "kwargs": '{"n":2}', "tier": "critical",
        "reason": "retries_exhausted",
    }  # fmt: skip
    assert (letter["error_type"], letter["error"]) == ("ValueError", "no a@b.c")
    assert 'raise ValueError(f"no {to}")' in letter["traceback"]
    assert (letter["attempts"], letter["starts"], letter["worker"]) == ("2", "2", worker.name)
    assert letter["origin"].startswith("queue:critical ")
    assert letter["enqueued_at"] <= letter["died_at"]
    assert_nothing_left(server)


async def test_no_retries_means_one_run(server, broker):
    """retries=0, of the task or of the sender."""
    runs = []

    @task(retries=0)
    async def once() -> None:
        runs.append("task")
        raise ValueError

    @task(backoff=soon)
    async def thrice() -> None:
        runs.append("sender")
        raise ValueError

    await broker.enqueue(once)
    await broker.enqueue(thrice.options(retries=0))
    await burst(broker, once, thrice)
    assert sorted(runs) == ["sender", "task"]
    assert [letter["attempts"] for letter in dead(server)] == ["1", "1"]


async def test_what_middleware_rejected_never_ran(server, broker):
    """A dead letter has no run if its handler did not begin; middleware that fails spends an attempt all the same."""

    async def around(context, call_next):
        if context.delivery.args == ["reject"]:
            raise Reject("not today")
        if context.delivery.args == ["fail"]:
            raise OSError
        return await call_next(context)

    @task(retries=1, backoff=0.01, middleware=[around])
    async def runs(how: str = "") -> None:
        raise Reject("it ran")

    for how in ("reject", "fail", "run"):
        await broker.enqueue(runs, how)
    await burst(broker, runs)
    counts = {letter["args"]: (letter["reason"], letter["attempts"], letter["starts"]) for letter in dead(server)}
    assert counts == {
        '["reject"]': ("rejected", "0", "0"),
        '["fail"]': ("retries_exhausted", "2", "2"),
        '["run"]': ("rejected", "1", "1"),
    }


@pytest.mark.parametrize("error", [Reject("no use"), LookupError("gone")])
async def test_what_repeating_cannot_cure_dies_at_once(server, broker, error):
    """P6: Reject, and what `give_up_on` names."""

    @task(give_up_on=LookupError, retries=9)
    async def refuses() -> None:
        raise error

    await broker.enqueue(refuses)
    await burst(broker, refuses)
    (letter,) = dead(server)
    assert (letter["reason"], letter["attempts"]) == ("rejected", "1")
    assert str(error) in letter["error"]
    assert_nothing_left(server)


async def test_retry_later_spends_no_attempt(server, broker):
    """P6: more often than there are retries; headers go along; the starts are counted."""
    seen = []

    @task(retries=0)
    async def limited() -> None:
        delivery = current_delivery()
        seen.append((delivery.attempt, delivery.starts, delivery.headers))
        if len(seen) < 4:
            raise RetryLater("busy", after=0.01, headers={"seen": len(seen)})

    await broker.enqueue(limited.options(headers={"mine": 1}))
    await burst(broker, limited)
    assert [attempt for attempt, _, _ in seen] == [1] * 4
    assert [starts for _, starts, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][2] == {"mine": 1, "seen": 3}
    assert_nothing_left(server)


@pytest.mark.parametrize(
    "nonsense",
    [{"after": float("inf")}, {"after": "soon"}, {"after": 1, "headers": {"x": object()}}, {"after": None}],
)
@pytest.mark.parametrize("server", ["memory", "valkey"], indirect=True)
async def test_a_retry_later_that_nobody_can_carry_out_is_a_failure(server, broker, nonsense):
    """A mistake in a handler costs the task its attempt and never the worker."""

    @task(retries=1, backoff=soon)
    async def confused() -> None:
        error = RetryLater("x", after=1)
        for name, value in nonsense.items():
            setattr(error, name, value)
        raise error

    await broker.enqueue(confused)
    await burst(broker, confused)
    assert [letter["reason"] for letter in dead(server)] == ["retries_exhausted"]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["memory"], indirect=True)
async def test_a_broken_backoff_costs_neither_the_task_nor_the_worker(server, broker):
    """It falls back to the default, here with a second at most."""

    @task(retries=1, backoff=lambda attempt, error: 1 / 0)
    async def fails() -> None:
        raise ValueError

    await broker.enqueue(fails)
    await burst(broker, fails)
    assert [letter["error_type"] for letter in dead(server)] == ["ValueError"]


async def test_what_expired_before_it_started_dies_and_does_not_run(server, broker):
    """`expires` is the latest start; what starts in time may take its time."""
    ran = []

    @task
    async def timely(name: str) -> None:
        ran.append(name)

    late = await broker.enqueue(timely.options(expires=0.001), "late")
    await broker.enqueue(timely.options(expires=60), "in time")
    await anyio.sleep(0.02)
    await burst(broker, timely)
    assert ran == ["in time"]
    assert [(letter["reason"], letter["task_id"]) for letter in dead(server)] == [("expired", late.task_id)]


async def test_a_timeout_is_a_failure_of_the_run(server, broker):
    """Of the task or of the sender; the handler is cancelled, cleans up, and is retried."""
    ended = []

    @task(timeout=0.03, retries=1, backoff=soon)
    async def slow(seconds: float) -> None:
        try:
            await anyio.sleep(seconds)
        finally:
            ended.append(seconds)

    await broker.enqueue(slow, 30)
    await broker.enqueue(slow.options(timeout=10), 0.06)
    await burst(broker, slow)
    assert sorted(ended) == [0.06, 30, 30]
    (letter,) = dead(server)
    assert (letter["error_type"], letter["attempts"]) == ("streamq.errors.TaskTimeoutError", "2")
    assert "0.03 s" in letter["error"]


async def test_a_timeout_of_the_handlers_own_is_not_the_tasks(server, broker):
    """A TimeoutError that a handler raises is an error as any other."""

    @task(timeout=30, retries=0)
    async def impatient() -> None:
        with anyio.fail_after(0.01):
            await anyio.sleep(10)

    await broker.enqueue(impatient)
    await burst(broker, impatient)
    assert dead(server)[0]["error_type"] == "TimeoutError"


class Own(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        Own("mine"),
        asyncio.CancelledError(),
        BaseExceptionGroup("g", [Own()]),
        StopIteration(),
        StopAsyncIteration(),
    ],
)
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("server", ["memory"], indirect=True)
async def test_any_exception_of_a_handler_is_its_own_affair(server, broker, error, sync):
    """SystemExit, classes of one's own, a bogus cancellation: retried, dead-lettered, and the worker goes on."""
    runs = []

    @task(name="odd", retries=1, backoff=soon)
    async def odd() -> None:
        runs.append(1)
        raise error

    @task(name="odd", retries=1, backoff=soon)
    def odd_sync() -> None:
        runs.append(1)
        raise error

    await broker.enqueue("odd")
    async with working(broker, odd_sync if sync else odd, send) as worker:
        await until(lambda: dead(server))
        handle = await broker.enqueue(send.options(result_ttl=5), "x")
        await handle.result(timeout=5)
        assert worker.state is State.RUNNING
    assert len(runs) == 2
    assert dead(server)[0]["reason"] == "retries_exhausted"
    assert_nothing_left(server)


INTERRUPTED = """
import sys
import anyio
from streamq import RedisBroker, Worker, task

@task(retries=0, result_ttl=60)
def in_thread() -> int:
    return 1

@task(retries=0)
async def interrupted() -> None:
    await anyio.sleep(0.05)
    raise KeyboardInterrupt

async def main():
    async with RedisBroker("memory://") as broker:
        handle = await broker.enqueue(in_thread)
        await broker.enqueue_many([interrupted.call()] * int(sys.argv[2]))
        worker = Worker(broker, [in_thread, interrupted], concurrency=1)
        if sys.argv[3] == "beside":
            async with anyio.create_task_group() as group:
                await group.start(worker.run)
                await anyio.sleep(30)
        await worker.run()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["beside", "alone"])
@pytest.mark.parametrize("count", ["1", "3"])
def test_a_program_ends_after_a_keyboard_interrupt_of_a_handler(anyio_backend, count, where):
    """Raised again in the task of `Worker.run`, it broke asyncio's end of the loop: idle threads kept the program."""
    program = [sys.executable, "-c", INTERRUPTED, anyio_backend, count, where]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=25, check=False)
    assert ended.returncode not in (0, None)
    assert "KeyboardInterrupt" in ended.stderr


# asyncio lets a KeyboardInterrupt out through the loop; tasks that had not begun are dropped by it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
def test_keyboard_interrupt_ends_the_worker_as_itself(server, anyio_backend, caplog):
    """Somebody wants the program to end: it is no failure of the task, and no task is lost. The log names it."""

    @task
    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def main():
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(interrupted)
            await Worker(broker, [interrupted]).run()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=anyio_backend)
    gc.collect()
    assert server.command("XLEN", "queue:standard") == 1
    assert dead(server) == []
    assert [record.levelname for record in caplog.records if "task interrupted " in record.message] == ["ERROR"]


@pytest.mark.parametrize("grouped", [False, True])
async def test_keyboard_interrupt_of_a_handler_is_a_failure_where_signals_are_heard_apart(
    server, broker, monkeypatch, grouped
):
    """As under `streamq worker`: there Ctrl-C raises nothing. The other tasks run on."""
    monkeypatch.setattr(cancellation, "_ends_program", [KeyboardInterrupt])
    cancellation.hear_signals_apart()

    @task(retries=0)
    async def interrupted() -> None:
        raise BaseExceptionGroup("two", [KeyboardInterrupt()]) if grouped else KeyboardInterrupt

    @task(retries=0, name="interrupted_thread")
    def interrupted_thread() -> None:
        raise KeyboardInterrupt

    await broker.enqueue_many([interrupted.call(), interrupted_thread.call()])
    await burst(broker, interrupted, interrupted_thread)
    letters = await DeadLetterQueue(broker=broker).peek()
    assert {(letter.task_name, letter.error_type) for letter in letters} == {
        ("interrupted", "KeyboardInterrupt"), ("interrupted_thread", "KeyboardInterrupt"),
    }  # fmt: skip


# --- where it runs -----------------------------------------------------------------------------------


async def test_sync_functions_run_in_threads_beside_each_other(server, broker):
    """As many as there are slots."""
    barrier = threading.Barrier(3, timeout=5)
    threads = set()

    @task
    def meet() -> None:
        threads.add(threading.current_thread())
        barrier.wait()

    await broker.enqueue_many([meet.call() for _ in range(3)])
    await burst(broker, meet, concurrency=3)
    assert dead(server) == []
    assert threading.main_thread() not in threads


@pytest.mark.slow
@pytest.mark.parametrize("server", ["memory", "valkey"], indirect=True)
async def test_cpu_bound_functions_run_in_processes(broker, server):
    """run_in="process": the function is looked up by name there; arguments and results are plain values."""
    handle = await broker.enqueue(deferred.power.options(result_ttl=30), 7)
    await burst(broker, deferred.power)
    assert await handle.result(timeout=5) == 49


@pytest.mark.slow
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_a_process_that_hangs_or_dies_is_a_failure_of_its_task_alone(broker, server):
    """It is killed at its timeout; the worker goes on with the next."""
    await broker.enqueue(deferred.for_ever)
    await broker.enqueue(deferred.dies)
    async with working(broker, deferred.for_ever, deferred.dies, deferred.power):
        await until(lambda: len(dead(server)) == 2, 20)
        handle = await broker.enqueue(deferred.power.options(result_ttl=30), 3)
        assert await handle.result(timeout=10) == 9
    errors = sorted(letter["error_type"].rpartition(".")[2] for letter in dead(server))
    assert errors == ["ProcessDiedError", "TaskTimeoutError"]


async def test_handlers_that_do_not_wait_need_few_runners(broker):
    """One runner goes on and hands on; those that wait each have their own."""
    quick, slow = set(), set()

    @task
    async def at_once() -> None:
        quick.add(anyio.get_current_task().id)

    @task
    async def waits() -> None:
        slow.add(anyio.get_current_task().id)
        await until(lambda: len(slow) == 50)

    await broker.enqueue_many([at_once.call()] * 500)
    await burst(broker, at_once, concurrency=50)
    assert 0 < len(quick) < 25
    await broker.enqueue_many([waits.call()] * 50)
    await burst(broker, waits, concurrency=50)
    assert len(slow) == 50


async def test_the_running_delivery_is_at_hand(server, broker):
    """`current_delivery()` in async handlers and in threads, each its own; outside there is none."""
    seen = {}

    @task
    async def in_loop(n: int) -> None:
        await anyio.sleep(0.001)
        seen[current_delivery().task_id] = n

    @task
    def in_thread(n: int) -> None:
        seen[current_delivery().task_id] = n

    handles = await broker.enqueue_many([t.call(n) for n, t in enumerate([in_loop, in_thread] * 5)])
    await burst(broker, in_loop, in_thread)
    assert seen == {handle.task_id: n for n, handle in enumerate(handles)}
    with pytest.raises(LookupError, match="no delivery"):
        current_delivery()


async def test_the_lifespan_wraps_the_whole_run_and_its_state_is_at_hand(server, broker):
    """Opened before the first delivery, closed after the last."""
    story = []

    @asynccontextmanager
    async def lifespan(worker):
        story.append(f"open {worker.state}")
        yield {"pool": 5}
        story.append(f"close {pending(server)}")

    @task
    async def use() -> None:
        story.append(current_delivery().state["pool"])

    await broker.enqueue(use)
    await burst(broker, use, lifespan=lifespan)
    assert story == ["open starting", 5, "close 0"]


async def test_a_lifespan_that_is_no_context_manager_is_refused_with_the_remedy(broker):
    """An async generator is where the worker is made; what a function returns, where it runs."""

    async def bare(worker):
        yield

    with pytest.raises(ConfigurationError, match="async generator: decorate it with @contextlib"):
        Worker(broker, [send], lifespan=bare)
    worker = Worker(broker, [send], lifespan=lambda worker: bare(worker))  # noqa: PLW0108 - a function around it
    with pytest.raises(ConfigurationError, match="lifespan has returned an object of type async_generator"):
        await worker.run()


@pytest.mark.parametrize("how", ["its scope", "its timeout", "swallowed"])
async def test_a_lifespan_that_ends_the_run_is_an_error_of_its_own(server, broker, how):
    """The worker has not been told to stop: nobody starts again what ended well."""

    @asynccontextmanager
    async def lifespan(worker):
        with anyio.CancelScope() as scope, anyio.move_on_after(0.3 if how == "its timeout" else None):
            async with anyio.create_task_group() as group:

                async def disturb():
                    await anyio.sleep(0.3)
                    if how == "its scope":
                        scope.cancel()
                    if how == "swallowed":
                        raise ValueError("swallowed")

                group.start_soon(disturb)
                try:
                    yield
                finally:
                    group.cancel_scope.cancel()

    @asynccontextmanager
    async def swallowing(worker):
        try:
            async with lifespan(worker):
                yield
        except ExceptionGroup:
            pass

    worker = Worker(broker, [send], lifespan=swallowing)
    with anyio.fail_after(10), pytest.raises(LifespanEndedError):
        await worker.run()


async def test_a_lifespan_that_fails_is_the_error_of_the_run(server, broker):
    """As itself, before anything is read."""

    @asynccontextmanager
    async def lifespan(worker):
        raise OSError("no pool")
        yield

    await broker.enqueue(send, "x")
    worker = Worker(broker, [send], lifespan=lifespan)
    with pytest.raises(OSError, match="no pool"):
        await worker.run()
    assert worker.state is State.STOPPED
    assert server.command("XLEN", "queue:standard") == 1


# --- events ---------------------------------------------------------------------------------------------


async def test_listeners_hear_of_every_start_and_settle(server, broker):
    """One that raises is named in the log and harms nobody."""
    heard = []

    def broken(event):
        raise RuntimeError("deaf")

    @task(retries=1, backoff=soon)
    async def play(what: str) -> None:
        if what == "fail":
            raise ValueError
        if what == "later" and current_delivery().starts == 1:
            raise RetryLater(after=0)

    logging.getLogger("streamq").addHandler(handler := logging.NullHandler())
    try:
        for what in ("good", "fail", "later"):
            await broker.enqueue(play, what)
        await burst(broker, play, listeners=[broken, heard.append])
    finally:
        logging.getLogger("streamq").removeHandler(handler)
    settled = [event.outcome for event in heard if isinstance(event, Settled)]
    assert sorted(type(outcome).__name__ for outcome in settled) == ["Ack", "Ack", "DeadLetter", "Postpone", "Retry"]
    assert {Ack, Retry, Postpone, DeadLetter} == set(map(type, settled))
    assert len([event for event in heard if isinstance(event, Started)]) == 5
    assert all(event.duration >= 0 for event in heard if isinstance(event, Settled))


async def test_a_success_that_others_settled_first_is_superseded(server, broker):
    """P4: counted, told, and harmless."""
    inside, go, heard = anyio.Event(), anyio.Event(), []

    @task
    async def wait() -> None:
        inside.set()
        await go.wait()

    handle = await broker.enqueue(wait)
    async with working(broker, wait, listeners=[heard.append]) as worker:
        await inside.wait()
        server.command("XACK", "queue:standard", "workers", handle.entry_id)
        server.command("XDEL", "queue:standard", handle.entry_id)
        go.set()
        await until(lambda: worker.health.superseded == 1)
    assert [event.delivery.task_id for event in heard if isinstance(event, Superseded)] == [handle.task_id]
    assert not any(isinstance(event, Settled) for event in heard)
    assert_nothing_left(server)


async def test_a_run_that_lost_its_lease_is_cancelled_as_soon_as_that_is_noticed(server, broker):
    """P4: its failure is void, and the new holder is not disturbed."""
    inside, ended = anyio.Event(), []

    @task
    async def wait() -> None:
        inside.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(1)

    handle = await broker.enqueue(wait)
    async with working(broker, wait, visibility_timeout=0.6) as worker:
        await inside.wait()
        server.command("XCLAIM", "queue:standard", "workers", "thief", 0, handle.entry_id)
        server.command("ZADD", "queue:standard:alive:workers", 9_999_999_999_999, "thief")
        await until(lambda: ended)
        await until(lambda: worker.health.superseded == 1)
        (row,) = server.command("XPENDING", "queue:standard", "workers", "-", "+", 9)
        assert row[1] == b"thief"
        server.command("XACK", "queue:standard", "workers", handle.entry_id)


@pytest.mark.slow
async def test_workers_of_one_group_may_have_different_visibility_timeouts(real_server):
    """P3: who sweeps by a short lease leaves alone what a living worker with a longer one holds."""
    starts = []

    @task
    async def long() -> None:
        starts.append(1)
        await anyio.sleep(2.0)

    async with (
        RedisBroker(real_server.url) as broker,
        working(broker, long, visibility_timeout=30, name="patient"),
    ):
        await broker.enqueue(long)
        await until(lambda: starts)
        async with working(broker, long, visibility_timeout=0.3, name="hasty"):
            await until(lambda: real_server.command("XLEN", "queue:standard") == 0)
    assert starts == [1]


@pytest.mark.slow
async def test_a_task_may_run_for_longer_than_the_visibility_timeout(real_server):
    """P3: a lease, not a timeout: it is not delivered twice, though another worker waits for it."""
    runs = []

    @task
    async def long() -> None:
        runs.append(1)
        await anyio.sleep(0.9)

    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(long)
        async with (
            working(broker, long, visibility_timeout=0.3, name="a"),
            working(broker, long, visibility_timeout=0.3, name="b"),
        ):
            await until(lambda: real_server.command("XLEN", "queue:standard") == 0)
    assert runs == [1]
    assert_nothing_left(real_server)


# --- start and stop -----------------------------------------------------------------------------------------


async def test_a_cut_connection_is_no_reason_to_leave_without_a_word(server, broker, monkeypatch):
    """P8: the last words are said once more."""
    remove_consumers, cuts = lease_commands.remove_consumers, [BrokerUnavailableError("cut")]

    async def cut(store, name="", **options):
        if name and cuts:
            raise cuts.pop()
        await remove_consumers(store, name, **options)

    monkeypatch.setattr(consumers, "remove_consumers", cut)
    async with working(broker, send):
        await (await broker.enqueue(send.options(result_ttl=5), "a")).result(timeout=5)
    assert not cuts
    assert_nothing_left(server)


async def test_a_worker_runs_in_a_programs_own_task_group(server, broker):
    """`group.start(worker.run)` returns once it reads; cancelling the group ends it."""
    worker = Worker(broker, [send])
    assert worker.state is State.NEW
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        assert worker.state is State.RUNNING
        assert worker.health.trouble is None
        group.cancel_scope.cancel()
    assert worker.state is State.STOPPED
    assert_nothing_left(server)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_worker_runs_in_a_trio_nursery(server, broker):
    """With trio's own `nursery.start`."""
    import trio

    handle = await broker.enqueue(send.options(result_ttl=5), "x")
    async with trio.open_nursery() as nursery:
        worker = Worker(broker, [send])
        await nursery.start(worker.run)
        await handle.result(timeout=5)
        nursery.cancel_scope.cancel()
    assert_nothing_left(server)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_worker_runs_in_an_asyncio_task_and_is_cancelled_as_one(server, broker):
    """With asyncio's own TaskGroup and Task.cancel."""
    handle = await broker.enqueue(send.options(result_ttl=5), "x")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Worker(broker, [send]).run())
        await handle.result(timeout=5)
        running.cancel()
    assert running.cancelled()
    assert_nothing_left(server)


async def test_stop_drains(server, broker):
    """P8: what runs is finished, what has not started is handed back, nothing new is read."""
    inside, go, done = anyio.Event(), anyio.Event(), []

    @task
    async def work(n: int) -> None:
        inside.set()
        await go.wait()
        done.append(n)

    await broker.enqueue_many([work.call(n) for n in range(5)])
    worker = Worker(broker, [work], concurrency=2)
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        await until(lambda: worker.health.running == 2)
        worker.stop()
        await until(lambda: worker.state is State.DRAINING)
        await broker.enqueue(work, 99)
        go.set()
    assert len(done) == 2
    assert server.command("XLEN", "queue:standard") == 4
    assert {row[1] for row in server.command("XPENDING", "queue:standard", "workers", "-", "+", 9)} <= {b"released"}
    await burst(broker, work)
    assert sorted(done) == [0, 1, 2, 3, 4, 99]
    assert_nothing_left(server)


async def test_a_second_stop_releases_what_runs_and_ends_at_once(server, broker):
    """P8: handlers are cancelled; their tasks are anybody's, and have spent no attempt."""
    inside, attempts = anyio.Event(), []

    @task
    async def endless() -> None:
        attempts.append(current_delivery().attempt)
        if len(attempts) == 1:
            inside.set()
            await anyio.sleep_forever()

    await broker.enqueue(endless)
    worker = Worker(broker, [endless])
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        await inside.wait()
        worker.stop()
        await until(lambda: worker.state is State.DRAINING)
        worker.stop()
        with anyio.fail_after(3):
            await until(lambda: worker.state is State.STOPPED)
    assert pending(server) == 1
    await burst(broker, endless)
    assert attempts == [1, 1]
    assert_nothing_left(server)


async def test_the_grace_period_bounds_a_drain(server, broker):
    """After it the rest is released as by a second stop."""
    inside = anyio.Event()

    @task
    async def endless() -> None:
        inside.set()
        await anyio.sleep_forever()

    await broker.enqueue(endless)
    worker = Worker(broker, [endless], grace_period=0.1)
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        await inside.wait()
        worker.stop()
        with anyio.fail_after(3):
            await until(lambda: worker.state is State.STOPPED)
    assert [row[1] for row in server.command("XPENDING", "queue:standard", "workers", "-", "+", 9)] == [b"released"]


async def test_a_cancelled_worker_hands_back_at_once(server, broker):
    """Cancellation is the hard way to stop and loses nothing either."""
    inside, runs = anyio.Event(), []

    @task
    async def endless() -> None:
        runs.append(1)
        inside.set()
        if len(runs) <= 3:
            await anyio.sleep_forever()

    await broker.enqueue_many([endless.call() for _ in range(3)])
    async with anyio.create_task_group() as group:
        await group.start(Worker(broker, [endless]).run)
        await until(lambda: len(runs) == 3)
        group.cancel_scope.cancel()
    assert pending(server) == 3
    started = time.monotonic()
    await burst(broker, endless)
    assert time.monotonic() - started < 5
    assert len(runs) == 6
    assert_nothing_left(server)


async def test_a_burst_ends_when_the_queue_is_empty(server, broker):
    """Retries and what is due soon included; what is due much later is left."""
    runs = []

    @task(backoff=soon)
    async def flaky() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    await broker.enqueue(flaky)
    await broker.enqueue(send.options(delay=0.1), "soon")
    await broker.enqueue(send.options(delay=3600), "later")
    await burst(broker, flaky, send)
    assert len(runs) == 2
    assert server.command("ZCARD", "queue:standard:delayed") == 1
    await burst(broker, flaky)  # of an empty queue


async def test_a_worker_runs_once(server, broker):
    """Another run needs another worker."""
    worker = await burst(broker, send)
    with pytest.raises(ConfigurationError, match="has run already"):
        await worker.run()


async def test_no_server_at_the_start_is_an_error_at_once(tmp_path):
    """Later the worker waits."""
    async with RedisBroker(f"unix://{tmp_path}/none.sock", connect_timeout=0.2) as broker:
        with pytest.raises(BrokerUnavailableError):
            await Worker(broker, [send]).run()


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0}, {"concurrency": 1.5}, {"visibility_timeout": 0}, {"visibility_timeout": "30"}, {"grace_period": -1},  # noqa: E501
        {"max_crashes": 1}, {"unknown_wait": -1}, {"tiers": {}}, {"tiers": {"none": 1}}, {"tiers": {"bulk": 0}},
        {"max_prefetch": -1}, {"concurrency": True}, {"concurrency": float("nan")},
    ],
)  # fmt: skip
def test_options_that_cannot_be_used_are_refused(options):
    """When the worker is made."""
    with pytest.raises(ConfigurationError):
        Worker(RedisBroker("memory://"), [send], **options)


def test_tasks_of_one_name_are_an_error_at_start():
    """SPEC 2: and the error says where both are."""

    @task(name="send")
    async def other() -> None: ...

    with pytest.raises(TaskNameError, match="two tasks are named 'send'.*other"):  # noqa: RUF043
        Worker(RedisBroker("memory://"), [send, other])
    Worker(RedisBroker("memory://"), [send, send, send.options(priority=1)])
    for wrong in ([], [print]):
        with pytest.raises(ConfigurationError):
            Worker(RedisBroker("memory://"), wrong)


# --- unknown tasks -----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_an_unknown_task_is_given_back_and_dies_after_its_wait(server, broker):
    """P1: a rolling deploy costs no attempt; after `unknown_wait` it is a dead letter that says who knew what."""
    await broker.enqueue("unheard_of", 1)
    await burst(broker, send, unknown_wait=0.2)
    (letter,) = dead(server)
    assert (letter["reason"], letter["attempts"], letter["task"]) == ("unknown_task", "0", "unheard_of")
    assert "this one knows send" in letter["error"]
    assert_nothing_left(server)


@pytest.mark.slow
async def test_a_worker_that_knows_it_takes_it(server, broker):
    """Old and new side by side: the task ends up where its code is, in its first attempt."""
    seen = []

    @task
    async def fresh() -> None:
        delivery = current_delivery()
        seen.append((delivery.attempt, delivery.starts))

    async with working(broker, send, name="old", unknown_wait=10):
        await broker.enqueue(fresh)
        await until(lambda: server.command("ZCARD", "queue:standard:delayed") or seen)
        async with working(broker, fresh, name="new"):
            await until(lambda: seen, 20)
    assert seen == [(1, 1)]
    assert_nothing_left(server)


# --- when -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_delayed_task_starts_on_time_on_an_idle_worker(real_server):
    """SPEC 6: at most 50 ms late, never early; here with a margin for a busy machine."""
    lateness = []

    @task
    async def note(due: float) -> None:
        lateness.append(time.time() - due)

    async with RedisBroker(real_server.url) as broker, working(broker, note):
        for options in ("delay", "at") * 3:
            before, due = len(lateness), time.time() + 0.15
            when = {"delay": 0.15} if options == "delay" else {"at": due}
            await broker.enqueue(note.options(**when), due)
            await until(lambda before=before: len(lateness) > before)
    assert min(lateness) > -0.002
    assert sorted(lateness)[len(lateness) // 2] < 0.05
    assert max(lateness) < 0.25


async def test_an_earlier_time_wakes_a_scheduler_that_sleeps_for_a_later_one(server, broker):
    """What changes the next due time from outside is told, not polled for."""
    done = []

    @task
    async def note(n: int) -> None:
        done.append(n)

    await broker.enqueue(note.options(delay=4), 1)
    async with working(broker, note):
        started = time.monotonic()
        await broker.enqueue(note.options(delay=0.05), 2)
        await until(lambda: done, 3)
        assert time.monotonic() - started < 2
    assert done == [2]


# --- tiers ------------------------------------------------------------------------------------------------------


async def test_a_worker_of_one_tier_leaves_the_others_alone(server, broker):
    """`tiers` picks those that are served."""
    got = []

    @task
    async def note(tier: str) -> None:
        got.append(tier)

    for priority, name in ((100, "critical"), (10, "standard"), (1, "bulk")):
        await broker.enqueue(note.options(priority=priority), name)
    await burst(broker, note, tiers={"bulk": 1})
    assert got == ["bulk"]
    assert server.command("XLEN", "queue:critical") == 1
    await burst(broker, note)
    assert_nothing_left(server)


@pytest.mark.parametrize("concurrency", [1, 10, 100])
async def test_starts_follow_the_weights_while_all_tiers_are_backlogged(shared_server, concurrency):
    """P7 with a real worker on a real server: within 5 % over every 1,000 starts."""
    server = shared_server("valkey")
    started = []

    @task
    async def note(tier: int) -> None:
        started.append(tier)
        if len(started) == 3000:
            worker.stop()

    async with RedisBroker(server.url) as broker:
        for tier, (priority, number) in enumerate(((100, 2600), (10, 1500), (1, 700))):
            await broker.enqueue_many([note.options(priority=priority).call(tier)] * number)
        worker = Worker(broker, [note], concurrency=concurrency)
        with anyio.fail_after(30):
            await worker.run()
    for start in range(0, 2001, 50):
        window = started[start : start + 1000]
        for tier, share in enumerate((600, 300, 100)):
            assert abs(window.count(tier) - share) <= 0.05 * share, (start, [window.count(t) for t in range(3)])


@pytest.mark.slow
async def test_weights_hold_for_slow_handlers_too(shared_server):
    """With handlers that take a while the prefetch is small, and the shares are the same."""
    server = shared_server("valkey")
    started = []

    @task
    async def note(tier: int) -> None:
        started.append(tier)
        if len(started) == 1200:
            worker.stop()
        await anyio.sleep(0.01)

    async with RedisBroker(server.url) as broker:
        for tier, (priority, number) in enumerate(((100, 1000), (10, 600), (1, 300))):
            await broker.enqueue_many([note.options(priority=priority).call(tier)] * number)
        worker = Worker(broker, [note], concurrency=20)
        with anyio.fail_after(30):
            await worker.run()
    window = started[:1000]
    for tier, share in enumerate((600, 300, 100)):
        assert abs(window.count(tier) - share) <= 0.05 * share, [window.count(t) for t in range(3)]


async def test_a_tier_alone_gets_everything(server, broker):
    """P7: whichever it is."""
    done = []

    @task
    async def note(n: int) -> None:
        done.append(n)

    await broker.enqueue_many([note.options(priority=1).call(n) for n in range(100)])
    await burst(broker, note, concurrency=5)
    assert done[0] == 0
    assert sorted(done) == list(range(100))


async def test_two_workers_share_the_work(server, broker):
    """Each task runs once, in one of them; a worker whose slots are full hoards nothing."""
    by_worker = {"a": 0, "b": 0}
    barrier = anyio.Event()

    def tasks_of(name):
        @task(name="work")
        async def work() -> None:
            by_worker[name] += 1
            if by_worker["a"] and by_worker["b"]:
                barrier.set()
            await barrier.wait()

        return work

    async with (
        working(broker, tasks_of("a"), concurrency=2, name="a"),
        working(broker, tasks_of("b"), concurrency=2, name="b"),
    ):
        await broker.enqueue_many([tasks_of("a").call() for _ in range(20)])
        await until(lambda: sum(by_worker.values()) == 20)
    assert min(by_worker.values()) >= 1
    assert_nothing_left(server)


# --- crashes ------------------------------------------------------------------------------------------------------


async def test_a_suspect_starts_though_something_else_runs_for_hours(server, broker):
    """It waits for its patience, not for the end of a run that takes for ever; and the worker goes on meanwhile."""
    go, done = anyio.Event(), []

    @task
    async def hours() -> None:
        await go.wait()

    @task
    async def note(name: str) -> None:
        done.append(name)

    await crashed_twice(server, broker, note.call("suspect"))
    async with working(broker, hours, note, visibility_timeout=0.6, concurrency=3):
        await until(lambda: "suspect" in done)
        go.set()


async def crashed_twice(server, broker, call):
    """Leave a delivery behind as two dead workers would have."""
    await broker.enqueue("hours")
    (handle,) = await broker.enqueue_many([call])
    server.command("XGROUP", "CREATE", "queue:standard", "workers", handle.entry_id)
    server.command("XGROUP", "SETID", "queue:standard", "workers", "0")
    rows = server.command("XREADGROUP", "GROUP", "workers", "two", "COUNT", 2, "STREAMS", "queue:standard", ">")[0][1]
    server.command("XCLAIM", "queue:standard", "workers", "released", 0, rows[0][0], "IDLE", 60000, "JUSTID")
    server.command("XCLAIM", "queue:standard", "workers", "two", 0, handle.entry_id, "IDLE", 60000, "JUSTID")
    server.command("HSET", "queue:standard:crashes:workers", handle.entry_id, "one")
    server.command("ZADD", "queue:standard:alive:workers", 1, "two")


async def test_what_takes_its_workers_down_alone_is_a_crash_loop(server, broker):
    """P5: with the names of the workers; the dead consumers are reaped."""
    ran = []

    @task
    async def deadly() -> None:
        ran.append(1)

    handle = await broker.enqueue(deadly)
    server.command("XGROUP", "CREATE", "queue:standard", "workers", "0")
    server.command("XREADGROUP", "GROUP", "workers", "three", "COUNT", 2, "STREAMS", "queue:standard", ">")
    server.command("XCLAIM", "queue:standard", "workers", "three", 0, handle.entry_id, "IDLE", 60000, "JUSTID")
    server.command(
        "HSET", "queue:standard:crashes:workers", handle.entry_id, "one two", f"{handle.entry_id}:alone", "three"
    )
    server.command("ZADD", "queue:standard:alive:workers", 1, "three")
    await burst(broker, deadly, visibility_timeout=1)
    assert ran == []
    (letter,) = dead(server)
    assert (letter["reason"], letter["crashed"]) == ("crash_loop", "one two three")
    assert (letter["attempts"], letter["starts"]) == ("0", "3")
    assert_nothing_left(server)


# --- trouble -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_a_server_that_lost_everything_is_gone_on_with(server, broker):
    """P9: NOGROUP is cured, said, and forgotten."""
    done, heard = [], []

    @task
    async def note(n: int) -> None:
        done.append(n)

    async with working(broker, note, listeners=[heard.append], visibility_timeout=1) as worker:
        await broker.enqueue(note, 1)
        await until(lambda: done == [1])
        server.flush()
        await broker.enqueue(note, 2)
        await until(lambda: done == [1, 2], 10)
        await until(lambda: worker.health.trouble is None)
    assert [type(event) for event in heard if isinstance(event, Trouble | Recovered)][:2] in ([], [Trouble, Recovered])


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_an_emptied_server_is_said_in_one_line(server, broker, caplog):
    """FLUSHALL beside an idle worker: that data are gone, not that three reads are refused."""

    @task
    async def nothing() -> None:
        pass

    async with working(broker, nothing, visibility_timeout=1) as worker:
        await anyio.sleep(0.3)  # it blocks
        caplog.clear()
        server.command("FLUSHALL")
        await until(lambda: len(server.keys()) >= len(STREAMS))
        await anyio.sleep(1.2)
        await until(lambda: not worker.health.trouble and not worker.health.refused)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in said if "the server was emptied (FLUSHALL" in line]) == 1
    assert not [line for line in said if "is refused" in line]


async def test_a_stream_is_never_trimmed(server, broker):
    """SPEC 3: a backlog is kept, whatever its size."""
    await broker.enqueue_many([send.call(str(n)) for n in range(3000)])
    assert server.command("XLEN", "queue:standard") == 3000
    assert entries(server, "queue:standard")[0]["args"] == '["0"]'
