"""Chains around runs and around enqueues: their order; and middleware with work of its own."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest

from streamq import RedisBroker, Worker, group, task
from streamq.errors import ConfigurationError, PayloadTooLargeError
from streamq.middleware import MiddlewareChain
from tests.at_work import burst, dead

seen = []


class Named:
    """Says when it was entered and left, around runs and around enqueues."""

    def __init__(self, name):
        self.name = name

    async def __call__(self, context, call_next):
        seen.append(f"{self.name} in")
        try:
            return await call_next(context)
        finally:
            seen.append(f"{self.name} out")

    async def enqueue(self, call, send_next):
        seen.append(f"{self.name} sends {call.args[0]}")
        handle = await send_next(call.options(headers={**(call.task.send_options.headers or {}), self.name: 1}))
        seen.append(f"{self.name} sent {call.args[0]}")
        return handle


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()


def tasks():
    @task(middleware=[Named("task")])
    async def wrapped(n: int) -> None:
        seen.append(f"ran {n}")

    @task
    async def plain(n: int) -> None:
        seen.append(f"ran {n}")

    return wrapped, plain


async def test_the_brokers_is_outermost_and_the_tasks_innermost(server):
    """Runs go through broker > worker > task; another task does not go through this one's."""
    wrapped, plain = tasks()
    async with RedisBroker(server.url, middleware=MiddlewareChain(Named("broker"))) as broker:
        await broker.enqueue(wrapped, 1)
        seen.clear()
        await Worker(broker, [wrapped, plain], middleware=MiddlewareChain(Named("worker")), burst=True).run()
        assert seen == ["broker in", "worker in", "task in", "ran 1", "task out", "worker out", "broker out"]
        await broker.enqueue(plain, 2)
        seen.clear()
        await Worker(broker, [wrapped, plain], middleware=MiddlewareChain(Named("worker")), burst=True).run()
        assert seen == ["broker in", "worker in", "ran 2", "worker out", "broker out"]


async def test_enqueues_go_through_the_brokers_and_the_tasks(server):
    """The headers that they add are in the message; the worker's chain does not wrap enqueues."""
    wrapped, _ = tasks()
    async with RedisBroker(server.url, middleware=MiddlewareChain(Named("broker"))) as broker:
        await broker.enqueue(wrapped, 1)
        assert seen == ["broker sends 1", "task sends 1", "task sent 1", "broker sent 1"]
        (entry,) = server.command("XRANGE", "queue:standard", "-", "+")
        assert entry[1][entry[1].index(b"headers") + 1] == b'{"broker":1,"task":1}'


async def test_enqueue_many_is_one_round_trip_with_middleware_too(server):
    """Each call goes through its own chain, and all are sent together, in their order."""
    wrapped, plain = tasks()
    async with RedisBroker(server.url, middleware=MiddlewareChain(Named("broker"))) as broker:
        batches = []
        send_all = broker._producer.send_all

        async def counted(calls):
            batches.append(len(calls))
            return await send_all(calls)

        broker._producer.send_all = counted
        handles = await broker.enqueue_many([wrapped.call(1), plain.call(2), wrapped.call(3)])
        assert batches == [3]
        assert [handle.task_name for handle in handles] == ["wrapped", "plain", "wrapped"]
        assert {item for item in seen if "sends" in item and "task" in item} == {"task sends 1", "task sends 3"}
        sent = server.command("XRANGE", "queue:standard", "-", "+")
        assert [fields[fields.index(b"args") + 1] for _, fields in sent] == [b"[1]", b"[2]", b"[3]"]
        assert await broker.enqueue_many([]) == []


async def test_a_chain_around_an_enqueue_is_put_together_once(server, monkeypatch):
    """Once per task and not once per message, whatever options it is sent with; a link that is added later counts."""
    wrapped, plain = tasks()
    around = MiddlewareChain.around_enqueue
    made = []

    def counted(chain, send):
        made.append(chain)
        return around(chain, send)

    monkeypatch.setattr(MiddlewareChain, "around_enqueue", counted)
    async with RedisBroker(server.url, middleware=MiddlewareChain(Named("broker"))) as broker:
        for number in range(3):
            await broker.enqueue(wrapped.options(priority=number), number)
            await broker.enqueue(plain, number)
        assert len(made) == 2
        broker.middleware.add(Named("late"))
        seen.clear()
        await broker.enqueue(plain, 4)
        assert seen == ["broker sends 4", "late sends 4", "late sent 4", "broker sent 4"]


async def test_one_that_refuses_its_call_keeps_all_from_being_sent(server):
    """Nothing is sent if one of them cannot be; the error is the middleware's own, in no group."""

    class NoTwos:
        async def enqueue(self, call, send_next):
            if call.args[0] == 2:
                raise ValueError("no twos")
            return await send_next(call)

    _, plain = tasks()
    async with RedisBroker(server.url, middleware=MiddlewareChain(NoTwos())) as broker:
        with pytest.raises(ValueError, match="no twos"):
            await broker.enqueue_many([plain.call(1), plain.call(2), plain.call(3)])
        with pytest.raises(ValueError, match="no twos"):
            await broker.enqueue(plain, 2)
        assert server.command("XLEN", "queue:standard") == 0
        await broker.enqueue(plain, 3)
        assert server.command("XLEN", "queue:standard") == 1


class Odd:
    """One that does something odd with the call whose argument is 5."""

    def __init__(self, what):
        self.what = what

    async def enqueue(self, call, send_next):
        if [*call.args] == [5]:
            return await self.what(call, send_next)
        return await send_next(call)


async def awaits_what_others_cancelled(*_):
    try:
        token = asyncio.get_running_loop().create_future()
    except RuntimeError:
        raise CancelledToken from None
    token.cancel()
    await token


class CancelledToken(BaseException):
    """What stands for it under trio, where nothing raises a cancellation that is another's."""


async def exits(*_):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("what", "kinds"),
    [(awaits_what_others_cancelled, (CancelledToken, asyncio.CancelledError)), (exits, SystemExit)],
)
async def test_whatever_one_raises_the_caller_gets(server, what, kinds):
    """`enqueue_many` returned no handle, and `start` a workflow without steps: nothing was sent, without an error."""
    _, plain = tasks()
    async with RedisBroker(server.url, middleware=MiddlewareChain(Odd(what))) as broker:
        for sending in (
            lambda: broker.enqueue(plain, 5),
            lambda: broker.enqueue_many([plain.call(n) for n in range(10)]),
            lambda: broker.start(group(plain.call(1), plain.call(5)).then(plain)),
        ):
            with pytest.raises(kinds):
                await sending()
        assert server.command("XLEN", "queue:standard") == 0
        assert (await broker.enqueue(plain, 1)).fresh  # the broker lives


async def test_a_cancelled_caller_stays_cancelled(server):
    """A real cancellation passes, and nothing is sent."""
    _, plain = tasks()
    async with RedisBroker(server.url, middleware=MiddlewareChain(Odd(lambda *_: anyio.sleep_forever()))) as broker:
        with anyio.move_on_after(0.05) as scope:
            await broker.enqueue_many([plain.call(n) for n in range(10)])
        assert scope.cancelled_caught
        assert server.command("XLEN", "queue:standard") == 0


async def test_there_are_as_many_handles_as_calls(server):
    """One that forgets to return the handle of what it has sent does not take it; without any, nothing is sent."""
    _, plain = tasks()

    async def forgets(call, send_next):
        await send_next(call)

    async def drops(*_):
        return None

    async with RedisBroker(server.url, middleware=MiddlewareChain(Odd(forgets))) as broker:
        handles = await broker.enqueue_many([plain.call(n) for n in range(10)])
        assert len({handle.task_id for handle in handles}) == 10
        with pytest.raises(ConfigurationError, match=r"returned None and no handle.*was sent"):
            await broker.enqueue(plain, 5)
        assert server.command("XLEN", "queue:standard") == 11
    async with RedisBroker(server.url, middleware=MiddlewareChain(Odd(drops)), namespace="drops") as broker:
        for sending in (
            lambda: broker.enqueue(plain, 5),
            lambda: broker.enqueue_many([plain.call(n) for n in range(10)]),
            lambda: broker.start(group(plain.call(1), plain.call(5)).then(plain)),
        ):
            with pytest.raises(ConfigurationError, match="returned None and no handle"):
                await sending()
        assert server.command("XLEN", "drops:standard") == 0


async def test_one_that_swallows_the_error_of_the_server_has_no_handle(server):
    """The caller gets the error: there is no handle for the call."""
    _, plain = tasks()

    async def swallows(call, send_next):
        with contextlib.suppress(PayloadTooLargeError):
            await send_next(call.options(headers={"large": "x" * 300}))

    async with RedisBroker(server.url, middleware=MiddlewareChain(Odd(swallows)), max_payload=200) as broker:
        with pytest.raises(PayloadTooLargeError):
            await broker.enqueue_many([plain.call(5)])


class Forgets:
    """Calls the next link, and does not await it."""

    def __init__(self, returns):
        self.returns = returns

    async def __call__(self, context, call_next):
        begun = call_next(context)
        return begun if self.returns else None

    async def enqueue(self, call, send_next):
        begun = send_next(call)
        return begun if self.returns else None


@pytest.mark.parametrize("returns", [False, True], ids=["drops it", "returns it"])
@pytest.mark.parametrize("inner", [False, True], ids=["outermost", "around another"])
@pytest.mark.parametrize("way", ["loop", "thread", "with a timeout"])
async def test_one_that_forgets_to_await_fails_the_run(server, returns, inner, way):
    """Its task was acknowledged, and no handler had run."""
    ran = []

    if way == "thread":

        @task(retries=0)
        def noted() -> None:
            ran.append(1)

    else:

        @task(retries=0, timeout=None if way == "loop" else 5)
        async def noted() -> None:
            ran.append(1)

    chain = MiddlewareChain(Forgets(returns), *([Named("inner")] if inner else []))
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(noted)
        await burst(broker, noted, middleware=chain)
    (letter,) = dead(server)
    assert letter["error_type"] == "streamq.errors.ConfigurationError"
    assert "Forgets" in letter["error"]
    assert "did not await it: write 'await call_next(context)'" in letter["error"]
    assert ran == []


@pytest.mark.parametrize("returns", [False, True], ids=["drops it", "returns it"])
async def test_one_that_forgets_to_await_refuses_the_call(server, returns):
    """Of one, of many and of a workflow. Nothing is sent."""
    _, plain = tasks()
    async with RedisBroker(server.url, middleware=MiddlewareChain(Forgets(returns), Named("inner"))) as broker:
        for send in (
            lambda: broker.enqueue(plain, 1),
            lambda: broker.enqueue_many([plain.call(1), plain.call(2)]),
            lambda: broker.start(plain.call(1).then(plain)),
        ):
            with pytest.raises(ConfigurationError, match=r"Forgets.* write 'await send_next\(call\)'"):
                await send()
    assert server.command("EXISTS", "queue:standard") == 0


async def test_one_may_never_call_the_next_or_return_before_it_ends(server):
    """It answers by itself; or it leaves the rest to a task that has begun."""
    ran = []

    class Answers:
        async def __call__(self, context, call_next):
            if context.args[0] == 1:
                return "by itself"
            async with anyio.create_task_group() as group_:
                group_.start_soon(call_next, context)
            return "by another task"

    @task(result_ttl=60)
    async def noted(n: int) -> str:
        ran.append(n)
        return "by the handler"

    async with RedisBroker(server.url) as broker:
        handles = [await broker.enqueue(noted, n) for n in (1, 2)]
        await burst(broker, noted, middleware=MiddlewareChain(Answers()))
        assert [await handle.result(timeout=1) for handle in handles] == ["by itself", "by another task"]
    assert ran == [2]


async def test_one_may_answer_by_itself_or_send_twice(server):
    """A link that calls next never, or more than once, does not keep the others waiting."""
    _, plain = tasks()

    class Returns:
        first = None

        async def enqueue(self, call, send_next):
            if call.args[0] == 1:
                self.first = await send_next(call)
                return self.first
            if call.args[0] == 2:
                return self.first
            await send_next(call)
            return await send_next(call)

    odd = Returns()
    async with RedisBroker(server.url, middleware=MiddlewareChain(odd)) as broker:
        one = await broker.enqueue(plain, 1)
        handles = await broker.enqueue_many([plain.call(2), plain.call(3)])
        assert handles[0] is one
        assert server.command("XLEN", "queue:standard") == 3


async def test_every_chain_gets_the_error_of_the_server(server):
    """An error of the one round trip is raised in each chain, and to the caller."""
    raised = []

    class Listens:
        async def enqueue(self, call, send_next):
            try:
                return await send_next(call)
            except Exception as error:
                raised.append(error)
                raise

    @task
    async def heavy(text: str) -> None: ...

    async with RedisBroker(server.url, middleware=MiddlewareChain(Listens()), max_payload=200) as broker:
        with pytest.raises(ValueError, match="200"):
            await broker.enqueue_many([heavy.call("x"), heavy.call("x" * 300)])
        assert len(raised) == 2
        assert server.command("XLEN", "queue:standard") == 0


async def test_a_resident_lives_as_long_as_its_worker_runs(server):
    """Once for each worker, whichever chains it is in; until the last run has ended."""
    lived = []

    class Lives:
        async def __call__(self, context, call_next):
            return await call_next(context)

        async def live(self, store):
            lived.append(store.keys.group)
            try:
                await anyio.sleep_forever()
            finally:
                lived.append("ended")

    lives = Lives()

    @task(middleware=[lives])
    async def hello() -> None:
        assert lived == ["workers"]

    async with RedisBroker(server.url, middleware=MiddlewareChain(lives)) as broker:
        await broker.enqueue(hello)
        await burst(broker, hello)
    assert lived == ["workers", "ended"]
    assert server.command("XLEN", "queue:dead") == 0


async def test_a_resident_that_fails_is_started_again(server):
    """The worker goes on meanwhile."""
    lived = []

    class Fails:
        async def __call__(self, context, call_next):
            return await call_next(context)

        async def live(self, store):
            lived.append(store)
            raise RuntimeError("no licence")

    _, plain = tasks()
    worker = Worker(RedisBroker(server.url), [plain], middleware=MiddlewareChain(Fails()))
    async with worker.broker, anyio.create_task_group() as group:
        await group.start(worker.run)
        with anyio.fail_after(10):
            while len(lived) < 3:
                await anyio.sleep(0.01)
        worker.stop()


@pytest.mark.parametrize("what", [None, 5, Named, "text"])
def test_an_object_that_wraps_nothing_is_refused(what):
    """The error names the object and the remedy."""
    with pytest.raises(ConfigurationError, match="is no middleware: give an object with"):
        MiddlewareChain(what)
    with pytest.raises(ConfigurationError, match="is no middleware"):
        task(middleware=[what])(print_nothing)


async def print_nothing() -> None: ...
