"""P13, runs are apart: what a run leaves behind reaches no other run, never the worker. The culprit alone fails."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import gc
import sys
import warnings
from contextlib import AsyncExitStack, aclosing

import anyio
import anyio.lowlevel
import pytest
import trio

from streamq import RedisBroker, Worker, batch_task, current_delivery, task
from streamq.consumer.left_behind import HOOKS, RunScope, abandoned_generators_kept
from streamq.middleware import CircuitBreaker, MiddlewareChain, RateLimitMiddleware
from tests.at_work import burst, dead, working

pytestmark = pytest.mark.paired

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
kept: list[object] = []  # keeps what a run abandons alive
LEFT_OPEN = "streamq.errors.LeftOpenError"


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    kept.clear()


def task_of_backend() -> object:
    """Return the running task itself; anyio's information about it does not keep it."""
    return trio.lowlevel.current_task() if trio.lowlevel.in_trio_task() else asyncio.current_task()


async def alone(broker, *tasks, concurrency=1, **options):
    """Run what is enqueued, one after the other: the runner that a culprit had is the next one's."""
    await burst(broker, *tasks, concurrency=concurrency, **options)


# --- the context ----------------------------------------------------------------------------------------------


class Watcher:
    """Tasks that leave something in the context, and tasks that look at it."""

    def __init__(self):
        self.seen = set()

        def look():
            self.seen.add((tenant.get(), decimal.getcontext().prec, str(decimal.Decimal(1) / 3)))

        @task(retries=0)
        async def culprit(how: str) -> None:
            tenant.set("acme")
            decimal.getcontext().prec = 3
            await anyio.lowlevel.checkpoint()
            if how == "raises":
                raise ValueError(how)
            if how == "cancelled":
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

        @task(retries=0, timeout=0.05)
        async def slow_culprit() -> None:
            tenant.set("acme")
            await anyio.sleep(10)

        @task
        async def watching() -> None:
            look()
            await anyio.lowlevel.checkpoint()
            look()

        @task
        def watching_in_thread() -> None:
            look()

        self.culprits = [
            culprit.call("returns"),
            culprit.call("raises"),
            culprit.call("cancelled"),
            slow_culprit.call(),
        ]
        self.watchers = [watching.call(), watching_in_thread.call()] * 5
        self.tasks = [culprit, slow_culprit, watching, watching_in_thread]


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_what_a_run_sets_in_its_context_is_seen_by_no_other(broker, concurrency):
    """Context variables and the decimal context, whether the run returned, raised, was cancelled or timed out."""
    watcher = Watcher()
    for culprit in watcher.culprits:
        await broker.enqueue_many([culprit, *watcher.watchers])
    await alone(broker, *watcher.tasks, concurrency=concurrency)
    assert watcher.seen == {("nobody", 28, "0.3333333333333333333333333333")}


async def test_each_run_begins_with_the_context_of_the_worker(broker):
    """A decimal context that the program set is copied for each run, for it is an object that a run may change."""
    watcher = Watcher()
    await broker.enqueue_many([*watcher.culprits, *watcher.watchers])
    tenant.set("the program's")
    with decimal.localcontext() as own:
        own.prec = 5
        await alone(broker, *watcher.tasks, concurrency=1)
        assert decimal.getcontext().prec == 5
        assert tenant.get() == "the program's"
    assert watcher.seen == {("the program's", 5, "0.33333")}


class Unlike:
    """A value that nothing can be compared with."""

    __hash__ = None

    def __eq__(self, other):
        raise TypeError("compared")


async def test_a_value_that_cannot_be_compared_is_a_changed_one(broker):
    """Its `__eq__` is code of the user: it must not end the worker."""
    seen = []

    @task
    async def culprit() -> None:
        tenant.set(Unlike())

    @task
    async def watching() -> None:
        seen.append(tenant.get())

    tenant.set(Unlike())
    try:
        await broker.enqueue_many([culprit.call(), watching.call()])
        mine = tenant.get()
        await alone(broker, culprit, watching)
        assert seen == [mine] or seen[0] is mine
    finally:
        tenant.set("nobody")


async def test_a_variable_that_is_put_back_keeps_the_runner(broker):
    """As `structlog`'s and OpenTelemetry's do it: no new task of anyio for that."""
    runners = set()
    breaker = CircuitBreaker(failure_threshold=3, reset_timeout=1.0)

    @task
    async def tidy() -> None:
        runners.add(anyio.get_current_task().id)
        token = tenant.set("acme")
        async with breaker:
            await anyio.lowlevel.checkpoint()
        tenant.reset(token)

    @task
    async def untidy() -> None:
        runners.add(anyio.get_current_task().id)
        kept.append(task_of_backend())  # or its id may be that of the next one
        tenant.set("acme")

    await broker.enqueue_many([tidy.call()] * 20)
    await alone(broker, tidy)
    assert len(runners) == 1
    await broker.enqueue_many([untidy.call()] * 5)
    await alone(broker, untidy)
    assert len(runners) > 2


@pytest.mark.filterwarnings("ignore")
async def test_a_run_that_leaves_something_open_is_the_last_of_its_runner(broker, quiet):
    """What Python's collector finds later is not in the task of another run."""
    runners = []

    @task(retries=0)
    async def culprit() -> None:
        runners.append(anyio.get_current_task().id)
        kept.append(task_of_backend())  # or its id may be that of the next one
        await breaks(with_timeout)

    await broker.enqueue_many([culprit.call()] * 5)
    await alone(broker, culprit)
    assert len(set(runners)) == 5


async def test_a_task_that_outlives_its_run_sees_its_own_delivery(broker):
    """What a handler starts elsewhere keeps the context of that run; the next run does not show in it."""
    seen = []

    async def outlives(event):
        await event.wait()
        seen.append(current_delivery().args)

    async with anyio.create_task_group() as group:
        event = anyio.Event()

        @task
        async def starts(n: int) -> None:
            if n == 1:
                group.start_soon(outlives, event)

        await broker.enqueue_many([starts.call(1), starts.call(2)])
        await alone(broker, starts)
        event.set()
    assert seen == [[1]]


# --- scopes ---------------------------------------------------------------------------------------------------


async def with_timeout():
    with anyio.move_on_after(0.1):
        for n in range(10):
            yield n


async def with_task_group():
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        for n in range(10):
            yield n


async def with_a_failing_child():
    async def fail():
        await anyio.sleep(0.05)
        raise ValueError("child")

    async with anyio.create_task_group() as group:
        group.start_soon(fail)
        for n in range(10):
            yield n


async def nested():
    with anyio.move_on_after(0.1):
        async for n in with_task_group():
            yield n


async def stubborn():
    with anyio.move_on_after(0.1):
        try:
            yield 1
        finally:
            yield 2


async def breaks(source):
    async for _ in source():
        break


async def breaks_and_goes_on(source):
    async for _ in source():
        break
    await anyio.sleep(0.2)  # beyond the timeout that is left open


async def keeps(source):
    generator = source()
    kept.append(generator)
    await anext(generator)


async def in_a_cycle(source):
    generator = source()
    cycle = [generator]
    cycle.append(cycle)
    await anext(generator)


async def collected_by_others(source):
    await in_a_cycle(source)
    await anyio.sleep(0.03)  # meanwhile others run, and Python's collector in their tasks


async def collected_as_it_ends(source):
    await in_a_cycle(source)  # Python's collector comes while the run is closed


async def inside_a_timeout(source):
    with anyio.fail_after(5):
        await keeps(source)


async def collected_after_a_timeout(source):
    try:
        with anyio.fail_after(5):  # its end drops the scopes inside of it, but not a nursery of trio
            await in_a_cycle(source)
    finally:
        gc.collect()


async def inside_a_task_group(source):
    async with anyio.create_task_group():
        await breaks(source)


async def raises(source):
    await keeps(source)
    raise KeyError("its own")


async def by_exit_stack(_):
    stack = AsyncExitStack()
    kept.append(stack)
    group = await stack.enter_async_context(anyio.create_task_group())
    group.start_soon(anyio.sleep_forever)
    stack.enter_context(anyio.move_on_after(0.1))


async def by_hand(_):
    for _ in range(3):
        scope = anyio.CancelScope(deadline=anyio.current_time() + 0.1)
        kept.append(scope)
        scope.__enter__()


SOURCES = [with_timeout, with_task_group, with_a_failing_child, nested, stubborn]
WAYS = [
    breaks,
    breaks_and_goes_on,
    keeps,
    in_a_cycle,
    inside_a_timeout,
    collected_after_a_timeout,
    inside_a_task_group,
    raises,
]
COLLECTED = [
    (way, source) for way in (collected_by_others, collected_as_it_ends) for source in (with_task_group, nested)
]
CASES = [(way, source) for way in WAYS for source in SOURCES] + COLLECTED + [(by_exit_stack, None), (by_hand, None)]


@pytest.fixture(autouse=True, scope="module")
def collector_sees_these_tests_alone():
    """The collector is called often here, and takes half a second for what earlier tests have left in the process."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def quiet():
    """What an event loop says about generators that somebody keeps is not under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        kept.clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("way", "source"), CASES, ids=lambda one: getattr(one, "__name__", ""))
@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}], ids=["", "timed"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_culprit_alone_fails(backend, way, source, options, quiet):
    """Whatever it leaves open, and however: those after it, and beside it, run once and to their end."""
    anyio.run(one_culprit, way, source, options, backend=backend)


async def one_culprit(way, source, options):
    ran = []

    @task(retries=0)
    async def culprit() -> None:
        await way(source)

    @task(retries=0)
    async def innocent(n: int) -> None:
        await anyio.sleep(0.02)
        if way is in_a_cycle and n == 0:
            gc.collect()
        ran.append(n)

    async def collect():
        while way in (collected_by_others, collected_as_it_ends):
            await anyio.sleep(0.002)
            gc.collect()

    async with RedisBroker("memory://") as broker, anyio.create_task_group() as group:
        group.start_soon(collect)
        await broker.enqueue_many([culprit.options(**options).call(), *(innocent.call(n) for n in range(4))])
        await alone(broker, culprit, innocent, concurrency=2)
        assert sorted(ran) == list(range(4))
        ((_, letter),) = await broker.client.xrange("queue:dead")
        group.cancel_scope.cancel()
    assert letter[b"task"] == b"culprit"
    # A timeout around it raises an error of its own, for a scope inside of it is open.
    assert letter[b"error_type"].decode() == ("KeyError" if way is raises and not options else LEFT_OPEN), letter


async def test_a_generator_that_holds_nothing_may_be_abandoned(server, broker):
    """As `async for row in cursor: break` does it. One that is closed in time is no fault either."""

    async def rows():
        for n in range(3):
            yield n

    @task(retries=0)
    async def fine() -> None:
        with anyio.fail_after(5):
            await breaks(rows)
        async with aclosing(with_timeout()) as numbers:
            async for _ in numbers:
                break

    await broker.enqueue(fine)
    await alone(broker, fine)
    assert dead(server) == []


@pytest.mark.filterwarnings("ignore")
async def test_a_batch_that_leaves_something_open_fails_alone(server, broker, quiet):
    """All its messages have failed; the next batch runs."""
    ran = []

    @batch_task(size=2, wait=0.05, retries=0)
    async def culprit(numbers: list[int]) -> None:
        tenant.set("acme")
        if 1 in numbers:
            await breaks(with_task_group)

    @batch_task(size=2, wait=0.05, retries=0)
    async def innocent(numbers: list[int]) -> None:
        await anyio.sleep(0.2)
        ran.extend((n, tenant.get()) for n in numbers)

    await broker.enqueue_many([culprit.call(1), culprit.call(2), *(innocent.call(n) for n in range(4))])
    await alone(broker, culprit, innocent, concurrency=4)
    assert sorted(ran) == [(n, "nobody") for n in range(4)]
    assert {letter["error_type"] for letter in dead(server)} == {LEFT_OPEN}


@pytest.mark.filterwarnings("ignore")
async def test_on_exhausted_leaves_nothing_behind(broker, quiet):
    """Each call has a context and an anyio task of its own."""
    seen = []

    async def culprit(exhausted) -> None:
        seen.append(tenant.get())
        tenant.set("acme")
        await breaks(with_task_group)

    @task(retries=0, on_exhausted=culprit)
    async def fails() -> None:
        raise ValueError

    await broker.enqueue_many([fails.call()] * 20)
    await alone(broker, fails, concurrency=5)
    assert seen == ["nobody"] * 20


@pytest.mark.filterwarnings("ignore")
async def test_middleware_around_a_culprit_does_no_harm(server, broker, quiet):
    """Its own scopes are closed as well."""
    chain = MiddlewareChain()
    chain.add(RateLimitMiddleware(max_per_second=1000.0))

    async def scoped(context, call_next):
        with anyio.fail_after(5):
            return await call_next(context)

    chain.add(scoped)
    ran = []

    @task(retries=0)
    async def culprit() -> None:
        await breaks(with_task_group)

    @task
    async def innocent() -> None:
        await anyio.sleep(0.05)
        ran.append(1)

    await broker.enqueue_many([culprit.call(), *[innocent.call()] * 4])
    await alone(broker, culprit, innocent, middleware=chain)
    assert len(ran) == 4
    assert [letter["error_type"] for letter in dead(server)] == [LEFT_OPEN]


async def test_a_worker_stops_while_a_culprit_runs(broker, quiet):
    """What is cancelled with something open is released as any other, and nothing hangs."""
    began = anyio.Event()

    @task
    async def culprit() -> None:
        generator = with_task_group()
        await anext(generator)
        began.set()
        await anyio.sleep_forever()

    await broker.enqueue(culprit)
    worker = Worker(broker, tasks=[culprit], grace_period=0.1)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            await began.wait()
            worker.stop()
    assert await broker.client.xlen("queue:standard") == 1


async def test_the_backends_show_what_is_open():
    """The scopes inside of a scope have no public name: this fails where a version of a backend has moved them."""
    with anyio.CancelScope() as outer:
        run = RunScope(outer)
        assert not run.inner
        with anyio.CancelScope():
            assert len(run.inner) == 1
            await anyio.lowlevel.checkpoint()
        async with anyio.create_task_group():
            assert len(run.inner) == 1
        assert not run.inner
        assert await run.close("nothing") is None


def test_the_finalizer_is_taken_back():
    """However many workers run in one thread, and whoever leaves first."""
    before = sys.get_asyncgen_hooks()
    first, second = abandoned_generators_kept(), abandoned_generators_kept()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.get_asyncgen_hooks() != before
    second.__exit__(None, None, None)
    assert sys.get_asyncgen_hooks() == before


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_a_loop_that_goes_on_after_a_stop_is_no_culprit(library, caplog):
    """It sets its own hooks as it goes on, in each `run_until_complete`: ours are put back, and nobody is warned.

    A handler that changes them later is still named: the test of it is in `tests/promises/test_vandals.py`.
    """
    loop = pytest.importorskip(library).new_event_loop()

    @task(result_ttl=60)
    async def looks() -> None: ...

    async def serve(leave, opened):
        async with RedisBroker("memory://") as broker, working(broker, looks):
            opened.append(broker)
            await leave.wait()

    async def begin():
        leave, opened = asyncio.Event(), []
        serving = loop.create_task(serve(leave, opened))
        while not opened:
            await asyncio.sleep(0.001)
        return leave, serving, opened[0]

    async def look(broker):
        await (await broker.enqueue(looks)).result(5)
        await anyio.wait_all_tasks_blocked()
        return sys.get_asyncgen_hooks()

    async def end(leave, serving):
        leave.set()
        await serving
        return sys.get_asyncgen_hooks()

    leave, serving, broker = loop.run_until_complete(begin())
    for _ in range(2):
        assert loop.run_until_complete(look(broker)) == HOOKS
    ended = loop.run_until_complete(end(leave, serving))
    loop.close()
    assert all(hook.__self__ is loop for hook in ended)
    assert "hooks of async generators" not in caplog.text


# --- warnings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_a_warning_filter_is_taken_back(broker, concurrency, caplog):  # noqa: C901 - one for each way to leave it
    """Those who run after it see the worker's filters, and the log names who it was."""
    raised = []

    def forget():
        warnings.simplefilter("error")

    def generator():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield

    async def agenerator():
        for _ in generator():
            yield

    @task
    async def culprit() -> None:
        forget()

    @task
    def in_thread() -> None:
        warnings.resetwarnings()
        forget()

    @task
    async def abandons() -> None:
        async for _ in agenerator():
            break

    @task
    async def innocent() -> None:
        try:
            warnings.warn("mine", UserWarning, stacklevel=1)
        except UserWarning as error:
            raised.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = list(warnings.filters)
        for guilty in (culprit, in_thread, abandons):
            await broker.enqueue(guilty)
            await alone(broker, culprit, in_thread, abandons, innocent, concurrency=concurrency)
            await broker.enqueue_many([guilty.call(), *[innocent.call()] * 5])
            await alone(broker, culprit, in_thread, abandons, innocent, concurrency=1)
            assert warnings.filters == before
        assert raised == []
    assert "warning filters were changed while the task culprit ran" in caplog.text


# --- a request to cancel the runner's task (asyncio) ------------------------------------------------------------


@pytest.mark.parametrize("when", ["before it returns", "soon after", "while nothing runs"])
async def test_who_cancels_its_own_task_ends_no_runner(server, anyio_backend_name, when, caplog):
    """`asyncio.current_task()` in a handler is the task of its runner: that one is replaced, and the worker goes on."""
    if anyio_backend_name != "asyncio":
        pytest.skip("trio has no tasks that can be cancelled")
    done = []

    @task(retries=0)
    async def culprit() -> None:
        own = asyncio.current_task()
        assert own is not None
        if when == "before it returns":
            own.cancel()
        else:
            asyncio.get_running_loop().call_later(0 if when == "soon after" else 0.1, own.cancel)

    @task(retries=0)
    async def innocent(number: int) -> None:
        await anyio.sleep(0.01)
        done.append(number)

    async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
        worker = Worker(broker, tasks=[culprit, innocent], concurrency=2)
        await group.start(worker.run)
        for round_ in range(3):
            await broker.enqueue(culprit)
            await anyio.sleep(0.2)
            await broker.enqueue_many([innocent.call(2 * round_), innocent.call(2 * round_ + 1)])
            with anyio.fail_after(5):
                while len(done) < 2 * (round_ + 1):
                    await anyio.sleep(0.01)
        assert worker.health.state == "running"
        assert dead(server) == []
        worker.stop()
    assert sorted(done) == list(range(6))
    assert "the task of a runner was cancelled" in caplog.text
