"""The pytest plugin in suites of users: under each plugin that runs async tests, and beside their fixtures."""

from __future__ import annotations

import textwrap
from importlib.metadata import entry_points
from importlib.util import find_spec

import fakeredis  # noqa: F401 - once, and not in each run in this process
import pytest

import streamq.testing.suite  # noqa: F401 - as above
from tests.test_import_cost import modules_after

pytest_plugins = ["pytester"]


def needs(*modules):
    return pytest.mark.skipif(not all(map(find_spec, modules)), reason=f"not all of {modules} are installed")


TASKS = """
    import anyio
    from streamq import Cron, RetryLater, Retry, task, batch_task, current_delivery

    @task(result_ttl=60)
    async def double(n: int) -> int:
        return 2 * n

    @task(retries=2, backoff=3600, result_ttl=60)
    async def third_time() -> int:
        attempt = current_delivery().attempt
        if attempt < 3:
            raise ValueError(f"attempt {attempt}")
        return attempt

    @task(retries=0, result_ttl=60)
    async def dies(why: str) -> None:
        raise KeyError(why)

    @task(run_in="thread")
    def in_thread(n: int) -> int:
        return n + 1

    @task
    async def sleeps() -> str:
        await anyio.sleep(300)
        return "slept"
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    """Make and run the suite of a user, whose tests must pass, or end as `expected` says. Return the result.

    In this process; in another one with `plugins` that run async tests, which change their process, and if `apart`. A
    plugin that is not named is not there.
    """
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    installed = any(one.name == "streamq" for one in entry_points(group="pytest11"))

    def run(*options, plugins=(), apart=False, ini="", conftest="", expected=None, **modules):
        modules |= {"conftest": conftest, "app_tasks": TASKS}
        pytester.makepyfile(**{name: textwrap.dedent(code) for name, code in modules.items()})
        pytester.makeini("[pytest]\nfilterwarnings = error\n" + textwrap.dedent(ini))
        without = {"asyncio", "trio", "xdist", "timeout", "cacheprovider"} - {*plugins}
        ours = () if installed else ("-p", "streamq.testing.pytest_plugin")
        start = pytester.runpytest_subprocess if plugins or apart else pytester.runpytest_inprocess
        result = start(*(f"-pno:{one}" for one in sorted(without)), *ours, "--strict-markers", *options)
        outcomes = result.parseoutcomes()
        assert outcomes == expected if expected else [*outcomes] == ["passed"]
        return result

    return run


BODY = """
    import time
    import anyio
    import pytest
    from app_tasks import dies, double, in_thread, third_time
    from streamq import TaskRef

    async def test_result(broker, run_tasks):
        handle = await broker.enqueue(double, 2)
        (ended,) = await run_tasks()
        assert (ended.name, ended.args, ended.runs, ended.result, ended.error) == ("double", [2], 1, 4, None)
        assert await handle.result(timeout=1) == 4
        assert await run_tasks() == []

    async def test_nothing_is_left_of_another_test(broker, run_tasks):
        assert await run_tasks() == []

    async def test_a_retry_is_not_waited_for(broker, run_tasks):
        began = time.monotonic()
        handle = await broker.enqueue(third_time)
        (ended,) = await run_tasks()
        assert (ended.runs, ended.result) == (3, 3)
        assert [str(error) for error in ended.errors] == ["attempt 1", "attempt 2"]
        assert await handle.result(timeout=1) == 3
        assert time.monotonic() - began < 60

    async def test_a_death_is_raised(broker, run_tasks):
        handle = await broker.enqueue(dies, "here")
        await broker.enqueue(double, 1)
        with pytest.raises(KeyError, match="here") as raised:
            await run_tasks()
        assert "died after 1 runs: retries_exhausted" in raised.value.__notes__[-1]
        with pytest.raises(Exception, match="KeyError"):
            await handle.result(timeout=1)
        await broker.enqueue(dies, "one")
        await broker.enqueue(dies, "two")
        with pytest.raises(ExceptionGroup, match="2 tasks died"):
            await run_tasks()
        await broker.enqueue(dies, "here")
        (ended,) = await run_tasks(check=False)
        assert ended.outcome.reason == "retries_exhausted"
        assert isinstance(ended.error, KeyError)

    async def test_worker(broker, worker):
        handles = [await broker.enqueue(double, 4), await broker.enqueue(third_time.options(retries=0))]
        assert await handles[0].result(timeout=10) == 8
        with pytest.raises(Exception, match="attempt 1"):
            await handles[1].result(timeout=10)

    async def test_in_thread(broker, run_tasks):
        await broker.enqueue("in_thread", 1)
        (ended,) = await run_tasks()
        assert ended.result == 2

    @pytest.fixture
    def doubled(broker):
        return broker.url

    async def test_a_fixture_of_the_user_has_the_broker(doubled, broker):
        assert doubled == broker.url

    class TestEager:
        pytestmark = pytest.mark.streamq(eager=True)

        async def test_it_has_run(self, broker, run_tasks):
            handle = await broker.enqueue(double.options(delay=3600), 2)
            assert await handle.result(timeout=0) == 4
            handle = await broker.enqueue(dies, "later")
            with pytest.raises(Exception, match="KeyError"):
                await handle.result(timeout=0)
            workflow = await broker.start(double.call(1).then(double))
            assert await workflow.result(timeout=0) == 4
            with pytest.raises(KeyError):
                await run_tasks()
"""


def body(mark, until="nowhere"):
    """Return the tests with a mark, up to one of them."""
    return f"import pytest\npytestmark = {mark}\n" + textwrap.dedent(BODY).partition(until)[0]


def test_under_anyio(suite):
    """Both backends, without another package."""
    suite(test_user=body("pytest.mark.anyio"))


@pytest.mark.slow  # with the pinned versions alone: older plugins choose the fixtures before the backend
def test_under_anyio_with_hypothesis(suite):
    """On the second backend too: anyio's plugin has then replaced the function of the test by a sync one."""
    tests = """
        import pytest
        from app_tasks import double
        from hypothesis import HealthCheck, given, settings, strategies

        @pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")  # about what is frozen (conftest)
        @pytest.mark.anyio
        @settings(max_examples=2, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(n=strategies.integers())
        async def test_double(broker, run_tasks, n):
            await broker.enqueue(double, n)
            (ended,) = await run_tasks()
            assert ended.result == 2 * n
    """
    suite(test_user=tests)


IN_LOOPS_OF_ITS_OWN = """
    import asyncio
    import pytest
    from app_tasks import double
    from streamq import RedisBroker
    from streamq.testing import own_task

    pytestmark = pytest.mark.asyncio(loop_scope="module")
    loops = set()

    async def test_the_loop_of_the_module(broker, run_tasks):
        loops.add(asyncio.get_running_loop())
        await broker.enqueue(double, 2)
        (ended,) = await run_tasks()
        assert ended.result == 4

    async def test_it_is_the_same(broker, worker):
        loops.add(asyncio.get_running_loop())
        assert len(loops) == 1
        handle = await broker.enqueue(double, 2)
        assert await handle.result(timeout=10) == 4
"""
MODULE_BROKER = """
    import pytest
    import pytest_asyncio
    from app_tasks import double
    from streamq import RedisBroker, Worker
    from streamq.testing import own_task

    pytestmark = pytest.mark.asyncio(loop_scope="module")
    opened = []

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def broker():
        async with own_task(RedisBroker("memory://")) as broker:
            opened.append(broker)
            yield broker
        assert "closed" in repr(broker)

    async def test_first(broker, run_tasks):
        await broker.enqueue(double, 2)
        (ended,) = await run_tasks()
        assert ended.result == 4

    async def test_second(broker, worker):
        handle = await broker.enqueue(double, 2)
        assert await handle.result(timeout=10) == 4
        assert len(opened) == 1
"""

AUTOJUMP = """
    import anyio
    import pytest
    from streamq import task

    @task(result_ttl=60)
    async def slept() -> str:
        await anyio.sleep(300)
        return "slept"

    @pytest.mark.trio
    async def test_the_broker_follows_the_clock_of_trio(broker, worker, autojump_clock):
        began = anyio.current_time()
        handle = await broker.enqueue(slept.options(delay=100))
        assert await handle.result(timeout=1000) == "slept"
        assert anyio.current_time() - began == pytest.approx(400, abs=1)
"""


@pytest.mark.slow
@needs("pytest_asyncio")
def test_under_pytest_asyncio(suite):
    """In its auto mode: loops of a test, and of a module; and a broker of the user's own for a module."""
    ini = "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function"
    suite(plugins=["asyncio"], ini=ini, test_body=BODY, test_loops=IN_LOOPS_OF_ITS_OWN, test_own=MODULE_BROKER)


@pytest.mark.slow
@needs("pytest_asyncio", "pytest_trio")
def test_beside_the_auto_mode_of_pytest_asyncio(suite):
    """It takes tests of others. Those of anyio run where their fixtures are; for those of pytest-trio an error says so.

    pytest-asyncio is loaded first: anyio's plugin then sets up fixtures. In the other order pytest-asyncio has it all.
    """
    tests = """
        import pytest
        import trio
        from app_tasks import double

        @pytest.fixture
        async def doubled(broker):
            return await broker.enqueue(double, 2)

        @pytest.mark.anyio
        async def test_of_anyio(doubled, run_tasks, anyio_backend_name):
            assert trio.lowlevel.in_trio_run() == (anyio_backend_name == "trio")
            (ended,) = await run_tasks()
            assert ended.result == await doubled.result(timeout=0) == 4

        @pytest.mark.anyio
        @pytest.mark.streamq(eager=True)
        class TestEager:
            async def test_eager(self, broker):
                assert await (await broker.enqueue(double, 2)).result(timeout=0) == 4

        @pytest.mark.anyio
        async def test_worker_of_anyio(broker, worker, caplog):
            assert await (await broker.enqueue(double, 2)).result(timeout=5) == 4
            assert not caplog.records

        async def test_without_a_mark(broker, worker, caplog):
            assert await (await broker.enqueue(double, 2)).result(timeout=5) == 4
            assert not caplog.records

        @pytest.mark.trio
        async def test_of_trio(broker):
            raise AssertionError
    """
    ini = "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function"
    result = suite(
        "-pasyncio", plugins=["asyncio", "trio"], ini=ini, test_user=tests, expected={"passed": 7, "errors": 1}
    )
    result.stdout.fnmatch_lines(["pytest-asyncio takes this test from pytest-trio: * set asyncio_mode = strict*"])


@pytest.mark.slow
@needs("pytest_asyncio", "pytest_trio")
def test_beside_each_other(suite):
    """All three plugins in one run, each with tests of its own; pytest-asyncio in its strict mode."""
    tests = {
        "test_asyncio": body("pytest.mark.asyncio", until="async def test_a_death"),
        "test_trio": body("pytest.mark.trio"),
        "test_jumps": AUTOJUMP,
        "test_anyio": body("pytest.mark.anyio", until="async def test_nothing"),
    }
    ini = "asyncio_mode = strict\nasyncio_default_fixture_loop_scope = function"
    suite(plugins=["asyncio", "trio"], ini=ini, test_loops=IN_LOOPS_OF_ITS_OWN, **tests)


def test_fixtures_of_the_user_win(suite):
    """Those of the short names; `run_tasks` has the broker of the user, and says so if it is none."""
    conftest = """
        import pytest

        @pytest.fixture
        def worker():
            return "the worker of the user"
    """
    mine = """
        import pytest
        from app_tasks import double
        from streamq import RedisBroker, Tier

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        async def broker():
            async with RedisBroker("memory://", tiers=[Tier("mine")]) as broker:
                yield broker

        async def test_mine(broker, run_tasks, worker):
            assert worker == "the worker of the user"
            assert broker.tiers[0].name == "mine"
            await broker.enqueue(double, 2)
            (ended,) = await run_tasks()
            assert ended.result == 4
            with pytest.raises(ValueError, match="cannot be moved"):
                await run_tasks(during=1)
    """
    other = """
        import pytest
        from app_tasks import double

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def broker():
            return "mosquitto"

        async def test_with_the_prefix(broker, streamq_broker, streamq_run_tasks):
            assert broker == "mosquitto"
            await streamq_broker.enqueue(double, 2)
            (ended,) = await streamq_run_tasks()
            assert ended.result == 4

        async def test_worker_with_the_prefix(broker, streamq_broker, streamq_worker):
            handle = await streamq_broker.enqueue(double, 2)
            assert await handle.result(timeout=10) == 4
    """
    wrong = """
        import pytest

        @pytest.fixture
        def broker():
            return "mosquitto"

        @pytest.mark.anyio
        async def test_wrong(broker, run_tasks):
            raise AssertionError
    """
    suite(conftest=conftest, test_mine=mine, test_other=other)
    result = suite("test_wrong.py", test_wrong=wrong, expected={"errors": 2})
    result.stdout.fnmatch_lines(
        ["*got 'mosquitto' from a fixture `broker` of your own*streamq_broker and streamq_run_*"]
    )


def test_what_cannot_be_is_told(suite):
    """A test that nobody runs, both fixtures at once, an unknown option, a task that the worker does not know."""
    tests = """
        import pytest
        import app_tasks
        import streamq

        async def test_nobody_runs_it(broker):
            raise AssertionError

        @pytest.mark.anyio
        async def test_both(worker, run_tasks):
            with pytest.raises(ValueError, match="ask for worker or run_tasks"):
                await run_tasks()

        @pytest.mark.anyio
        @pytest.mark.streamq(server="redis://localhost")
        async def test_option(broker):
            raise AssertionError

        @pytest.mark.anyio
        async def test_unknown(broker, worker):
            @streamq.task
            async def hidden(): ...

            with pytest.raises(ValueError, match="does not know task 'hidden'"):
                await broker.enqueue(hidden)

        @pytest.mark.anyio
        async def test_time_limit(broker, run_tasks):
            await broker.enqueue(app_tasks.sleeps)
            with pytest.raises(TimeoutError, match=r"not ended within 0.7 s.*sleeps \\w+ \\(1 runs"):
                await run_tasks(timeout=0.7)
    """
    without = """
        import pytest

        @pytest.mark.anyio
        async def test_no_task(broker, run_tasks):
            with pytest.raises(ValueError, match="no task is known"):
                await run_tasks()
    """
    result = suite(test_user=tests, test_without=without, expected={"passed": 8, "errors": 3})
    result.stdout.fnmatch_lines_random([
        "no plugin runs this async test: mark it by @pytest.mark.anyio*",
        "*streamq(server): it takes eager, now, tasks, url by name",
    ])  # fmt: skip


@pytest.mark.slow
def test_an_exit_harms_no_later_test(suite):
    """A SystemExit in the event loop of anyio's plugin: later tests got the broker, marks and server of that one."""
    first = """
        import sys
        import pytest
        from contextlib import asynccontextmanager
        from streamq import task

        @task(retries=0)
        async def leaves():
            sys.exit(3)

        @pytest.mark.anyio
        @pytest.mark.streamq(url="memory://that-of-the-first")
        async def test_leaves(broker, run_tasks):
            await broker.enqueue(leaves)
            await run_tasks()
    """
    second = """
        import pytest
        from app_tasks import double

        @pytest.fixture
        def streamq_broker_options():
            return {"namespace": "mine"}

        @pytest.mark.anyio
        async def test_async(broker, run_tasks):
            assert (broker.keys.namespace, "first" in broker.url) == ("mine", False)
            await broker.enqueue(double, 2)
            assert [one.result for one in await run_tasks()] == [4]

        def test_sync(broker, run_tasks):
            assert (broker.keys.namespace, "first" in broker.url) == ("mine", False)

        @pytest.mark.streamq(nothing=1)
        def test_marks(broker):
            ...
    """
    third = """
        import sys
        import pytest
        from contextlib import asynccontextmanager
        from app_tasks import double

        @pytest.fixture
        def streamq_worker_options():
            @asynccontextmanager
            async def exits(worker):
                yield
                sys.exit(2)

            return {"lifespan": exits}

        @pytest.mark.anyio
        async def test_lifespan(broker, worker):
            ...

        @pytest.mark.anyio
        async def test_after(broker):
            await broker.enqueue(double, 1)
    """
    result = suite(
        expected={"failed": 2, "errors": 4, "passed": 7}, apart=True, test_1=first, test_2=second, test_3=third
    )
    result.stdout.fnmatch_lines(["*the worker of this test was ended by SystemExit(2)*"])
    result.stdout.fnmatch_lines(["*the event loop of this test was ended by SystemExit(3)*"])
    result.stdout.fnmatch_lines(["*mark.streamq(nothing)*"])


def test_time_that_passes(suite):
    """Delays, schedules, and the clock of the server, which `during` moves."""
    tests = """
        import pytest
        import app_tasks
        from datetime import datetime, timedelta, timezone
        from streamq import Cron, RetryLater, current_delivery, task, Status

        pytestmark = [pytest.mark.anyio, pytest.mark.streamq(tasks=["app_tasks"])]
        at_ten = pytest.mark.streamq(now=datetime(2030, 1, 1, 10, 30, tzinfo=timezone.utc))

        @task(cron=Cron("0 * * * *"))
        async def hourly() -> None: ...

        @task
        async def again(times: int) -> int:
            starts = current_delivery().starts
            if starts <= times:
                raise RetryLater(after=600)
            return starts

        @at_ten
        async def test_schedules(broker, run_tasks):
            ended = await run_tasks(during=timedelta(hours=5))
            assert [one.name for one in ended] == ["hourly"] * 5
            assert await run_tasks() == []

        @at_ten
        async def test_what_is_due_later_stays(broker, run_tasks):
            handle = await broker.enqueue("double", 2, delay=3600)
            await broker.enqueue("double", 3, delay=60)
            (ended,) = await run_tasks(during=600)
            assert ended.result == 6
            assert await handle.status() is Status.DELAYED
            ended = await run_tasks(during=3000)
            assert [one.name for one in ended] in (["double", "hourly"], ["hourly", "double"])

        async def test_postponed(broker, run_tasks):
            await broker.enqueue(again, 5)
            (ended,) = await run_tasks()
            assert (ended.result, ended.runs) == (6, 6)

        async def test_a_task_sends_another(broker, run_tasks):
            @task
            async def sends() -> None:
                await broker.enqueue(sent.options(delay=10), 1)

            @task
            async def sent(n: int) -> int:
                return n

            await broker.enqueue(sends)
            ended = await run_tasks()
            assert [(one.name, one.result) for one in ended] == [("sends", None), ("sent", 1)]

        async def test_nobody_knows_it(broker, run_tasks):
            await broker.enqueue("nothing")
            (ended,) = await run_tasks(check=False)
            assert ended.outcome.reason == "unknown_task"
            assert (ended.name, ended.runs, ended.error.reason) == ("nothing", 0, "unknown_task")
    """
    suite(test_user=tests)


def test_sync_tests(suite, shared_server):
    """They get a SyncBroker, and fixtures that block; on a server the keys are removed, too."""
    server = shared_server("redis")
    tests = f"""
        import pytest
        from app_tasks import dies, double, in_thread, third_time
        from streamq import SyncBroker, current_broker, task

        @task
        async def sends() -> None:
            await current_broker().enqueue(double.options(delay=60), 3)

        def test_run_tasks(broker, run_tasks):
            assert isinstance(broker, SyncBroker)
            handles = broker.enqueue_many([double.options(delay=3600).call(2), third_time.call()])
            ended = run_tasks()
            assert [(one.name, one.runs, one.result) for one in ended] == [("double", 1, 4), ("third_time", 3, 3)]
            assert handles[1].result(timeout=1) == 3
            broker.enqueue(double.options(expires=10), 2)
            assert run_tasks(during=5)[0].result == 4
            broker.enqueue(sends)
            assert [one.result for one in run_tasks()] == [None, 6]
            broker.enqueue(dies, "here")
            with pytest.raises(KeyError, match="here"):
                run_tasks()
            assert run_tasks() == []

        def test_worker(broker, worker):
            assert broker.enqueue(double, 2).result(timeout=10) == 4

            @task
            def hidden() -> None: ...

            with pytest.raises(ValueError, match="does not know task 'hidden'"):
                broker.enqueue(hidden)

        @pytest.mark.streamq(eager=True)
        def test_eager(broker, run_tasks):
            assert broker.enqueue(double.options(delay=60), 2).result(timeout=0) == 4
            assert broker.start(double.call(1).then(double)).result(timeout=0) == 4
            broker.enqueue_many([in_thread.call(1), dies.call("later")])
            with pytest.raises(KeyError):
                run_tasks()

        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        @pytest.mark.anyio
        @pytest.mark.streamq(url="embedded://")
        async def test_async_beside_them(broker, run_tasks):
            await broker.enqueue(double, 2)
            assert (await run_tasks())[0].result == 4

        @pytest.mark.parametrize("url", ["memory://", "embedded://", "{server.url}"])
        def test_servers(request, url):
            request.applymarker(pytest.mark.streamq(url=url))
            broker, run_tasks = request.getfixturevalue("broker"), request.getfixturevalue("run_tasks")
            broker.enqueue(double.options(delay=0.05), 2)
            assert run_tasks()[0].result == 4
    """
    suite(test_user=tests)
    assert server.command("KEYS", "*") == []


def test_a_real_server(suite, shared_server):
    """By a mark, the option or the ini file; each test has a namespace of its own, and leaves no key."""
    server = shared_server("valkey")
    tests = """
        import pytest
        from app_tasks import double, third_time
        import os

        pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

        async def test_by_option(broker, run_tasks):
            assert broker.url == os.environ["SERVER"]
            handle = await broker.enqueue(double.options(delay=0.05), 2)
            (ended,) = await run_tasks()
            assert await handle.result(timeout=1) == ended.result == 4

        async def test_worker(broker, worker):
            handle = await broker.enqueue(double, 2)
            assert await handle.result(timeout=10) == 4

        @pytest.mark.streamq(url="memory://")
        async def test_by_mark(broker, run_tasks):
            assert broker.url.startswith("memory://")
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVER", server.url)
        suite("--streamq-url", server.url, test_user=tests, expected={"passed": 3})
        suite("test_user.py", ini=f"streamq_url = {server.url}", test_user=tests, expected={"passed": 3})
    assert server.command("KEYS", "*") == []


def test_virtual_time(suite):
    """In a loop with a virtual clock a handler that sleeps costs nothing either, and all clocks agree."""
    tests = """
        import anyio
        import pytest
        from app_tasks import double, sleeps
        from streamq.testing import VirtualTime

        pytestmark = pytest.mark.anyio

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param, VirtualTime().options(request.param)

        async def test_sleeps(broker, run_tasks):
            began = anyio.current_time()
            await broker.enqueue(sleeps)
            await broker.enqueue(double.options(delay=1000), 2)
            ended = await run_tasks()
            assert [one.result for one in ended] == ["slept", 4]
            assert 1000 <= anyio.current_time() - began < 1001

        async def test_worker(broker, worker):
            handle = await broker.enqueue(double.options(delay=50), 2)
            assert await handle.result(timeout=100) == 4
    """
    suite(test_user=tests)


@pytest.mark.slow
@needs("freezegun", "time_machine")
def test_frozen_time(suite):
    """What works, and the error where freezegun has stopped the event loop (docs/testing-your-tasks.md)."""
    tests = """
        from datetime import datetime, timedelta, timezone

        import anyio
        import pytest
        import time_machine
        from freezegun import freeze_time
        from streamq import current_delivery, task

        pytestmark = pytest.mark.anyio
        UTC = timezone.utc

        @task(retries=2, backoff=300, result_ttl=3600)
        async def when(sent: datetime) -> datetime:
            if current_delivery().attempt < 2 and current_delivery().expires is None:
                raise ValueError
            return datetime.now(UTC)

        async def frozen(broker, run_tasks, year):
            now = datetime.now(UTC)
            assert now.year == year
            await broker.enqueue(when, now)
            handle = await broker.enqueue(when.options(at=now + timedelta(hours=1)), now)
            await broker.enqueue(when.options(expires=now + timedelta(hours=1)), now)
            await broker.enqueue(when.options(expires=50), now)
            ended = await run_tasks()
            assert [one.runs for one in ended] == [1, 1, 2, 2]
            with anyio.fail_after(5):
                assert (await handle.result(timeout=1)).year == year

        async def thawed(broker, run_tasks):
            with anyio.fail_after(5):
                await anyio.sleep(0.001)
                await broker.enqueue(when, datetime.now(UTC))
                await run_tasks()

        @pytest.fixture
        def ticking():
            with freeze_time("2030-01-01", tick=True):
                yield

        async def test_from_before(ticking, broker, worker):
            handle = await broker.enqueue(when.options(delay=0.1, expires=60), datetime.now(UTC))
            assert (await handle.result(timeout=5)).year == 2030

        async def test_for_a_while(broker, run_tasks):
            with freeze_time("2020-01-01", tick=True):
                await frozen(broker, run_tasks, 2020)
            await thawed(broker, run_tasks)

        async def test_real_asyncio(broker, run_tasks, anyio_backend_name):
            with freeze_time("2030-01-01", real_asyncio=True):
                if anyio_backend_name == "asyncio":
                    await frozen(broker, run_tasks, 2030)
                else:
                    with pytest.raises(ValueError, match="stands still"):
                        await run_tasks()
            await thawed(broker, run_tasks)

        @freeze_time("2030-01-01")
        async def test_a_stopped_loop(broker, run_tasks):
            with pytest.raises(ValueError, match="stands still.*tick=True"):
                await run_tasks()

        async def test_time_machine(broker, run_tasks):
            with time_machine.travel("2020-01-01", tick=False):
                await frozen(broker, run_tasks, 2020)
            await thawed(broker, run_tasks)
    """
    suite(apart=True, test_user=tests)


def test_the_plugin_is_light():
    """pytest loads it at each start: it brings no event loop, no client, and nothing of streamq but its clock."""
    others = modules_after("import pytest")
    code = (
        "import pytest, streamq.testing.pytest_plugin as plugin, streamq.testing.pytest_runners as own; own.for_anyio()"
    )
    added = modules_after(code) - others
    ours = {name for name in added if name.startswith("streamq")}
    assert added == ours
    assert ours == {
        "streamq", "streamq.clock", "streamq.lazy_names", "streamq.testing", "streamq.testing.pytest_plugin",
        "streamq.testing.pytest_runners",
    }  # fmt: skip
