"""P13: what a handler does to the objects that it is given harms its own run at most."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import anyio
import pytest

from streamq import (
    Event,
    RedisBroker,
    RetryLater,
    batch_task,
    current_batch,
    current_delivery,
    report_progress_sync,
    task,
)
from streamq.consumer.left_behind import HOOKS
from streamq.middleware import Context, MiddlewareChain
from streamq.wire.delivery import Delivery
from tests.at_work import assert_nothing_left, burst, dead, until, working
from tests.servers import TestServer

pytestmark = pytest.mark.paired

ran: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


def spoil(delivery: Delivery) -> None:
    """Write to all of a delivery that can be written to."""
    delivery.fields.clear()
    delivery.fields[b"task"] = b"good"
    delivery.fields["no bytes"] = object()  # type: ignore[index, assignment]
    delivery.flat.clear()
    delivery.args.append("more")
    for name in Delivery.__slots__:
        setattr(delivery, name, None)


ENDS = ["returns", "fails", "asks for later"]


def end(how: str, items: list[Any]) -> None:
    ran.append(list(items))
    if how == "fails":
        raise ValueError(how)
    if how == "asks for later" and len(ran) == 1:
        raise RetryLater("later", after=0)
    items.append("more")


@task(retries=1, backoff=lambda attempt, error: 0.01, result_ttl=60)
async def in_loop(how: str, items: list[int]) -> str:
    spoil(current_delivery())
    end(how, items)
    return "done"


@task(retries=1, backoff=lambda attempt, error: 0.01, result_ttl=60)
def in_thread(how: str, items: list[int]) -> str:
    report_progress_sync(1)
    spoil(current_delivery())
    report_progress_sync(2)
    end(how, items)
    return "done"


@batch_task(size=1, wait=0.01, retries=1, backoff=lambda attempt, error: 0.01, result_ttl=60)
async def in_batch(batch: list[tuple[str, list[int]]]) -> list[str]:
    for one in current_batch():
        spoil(one)
    end(*batch[0])
    return ["done"]


@task(retries=1, backoff=lambda attempt, error: 0.01, result_ttl=60)
async def in_middleware(how: str, items: list[int]) -> str:
    end(how, items)
    return "done"


@task
async def good(n: int) -> None:
    ran.append(n)


async def vandal(context: Context, call_next: Any) -> Any:
    try:
        return await call_next(context)
    finally:
        if context.task is not good:
            spoil(context.delivery)


def listener(event: Event) -> None:
    if (delivery := getattr(event, "delivery", None)) is not None and delivery.fields.get(b"task") != b"good":
        spoil(delivery)


async def settled_as_decided(server: TestServer, culprit: Any, how: str, **options: Any) -> None:
    given = (how, [1, 2])
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(culprit, *([given] if culprit is in_batch else given))
        await burst(broker, culprit, good, visibility_timeout=1.0, **options)
        assert ran == [[1, 2]] * (1 if how == "returns" else 2)
        if how == "fails":
            (letter,) = dead(server)
            assert (letter["task"], letter["reason"], letter["attempts"]) == (culprit.name, "retries_exhausted", "2")
            assert letter["task_id"] == handle.task_id
            assert "[1,2]" in letter["args"]
        else:
            assert dead(server) == []
            assert await handle.result(1) == "done"
        await broker.enqueue(good, 7)
        await burst(broker, culprit, good, visibility_timeout=1.0)
        assert ran[-1] == 7
    assert_nothing_left(server)


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("culprit", [in_loop, in_thread, in_batch], ids=lambda one: one.name)
async def test_a_handler_that_writes_to_its_delivery_is_settled_as_decided(anyio_backend, shared_server, culprit, how):
    """`current_delivery()` and `current_batch()` are copies; so are the arguments."""
    await settled_as_decided(shared_server("redis"), culprit, how)


@pytest.mark.parametrize("how", ENDS)
async def test_middleware_that_writes_to_a_delivery_is_settled_as_decided(anyio_backend, shared_server, how):
    """The context has a copy of it."""
    await settled_as_decided(shared_server("redis"), in_middleware, how, middleware=MiddlewareChain(vandal))


@pytest.mark.parametrize("how", ENDS)
async def test_a_listener_that_writes_to_a_delivery_harms_no_task(anyio_backend, shared_server, how):
    """An event has a copy of it."""
    await settled_as_decided(shared_server("redis"), in_middleware, how, listeners=[listener])


# --- the hooks of async generators ---------------------------------------------------------------------------


@task(retries=0)
async def changes_hooks(how: str) -> None:
    if how == "none":
        sys.set_asyncgen_hooks(None, None)
    elif how == "the first alone":
        sys.set_asyncgen_hooks(firstiter=None)
    else:
        sys.set_asyncgen_hooks(firstiter=ran.append, finalizer=ran.append)


@task(retries=0)
async def looks(_: int) -> None:
    time.sleep(0.0005)  # noqa: ASYNC251 - runs in a row, without a wait
    ran.append(tuple(sys.get_asyncgen_hooks()))


@pytest.mark.parametrize("how", ["none", "the first alone", "its own"])
@pytest.mark.parametrize("busy", [False, True], ids=["then idle", "then busy"])
async def test_hooks_of_generators_that_a_handler_leaves_are_put_back(anyio_backend, how, busy, caplog):
    """When a runner waits, and every few runs if none does: without ours, what a later run abandons is closed late."""
    async with RedisBroker("memory://") as broker:
        if busy:
            await broker.enqueue_many([changes_hooks.call(how), *(looks.call(n) for n in range(100))])
        async with working(broker, changes_hooks, looks, concurrency=1 if busy else 3):
            if not busy:
                await (await broker.enqueue(changes_hooks.options(result_ttl=60), how)).result(5)
                await broker.enqueue(looks, 1)
            await until(lambda: len(ran) >= (100 if busy else 1))
    assert ran[-1] == HOOKS
    assert "hooks of async generators" in caplog.text


# --- StopIteration -------------------------------------------------------------------------------------------

GIVES_UP = {"retries": 5, "backoff": 0.0, "give_up_on": (StopIteration, StopAsyncIteration)}
STOPS = {"StopIteration": StopIteration, "StopAsyncIteration": StopAsyncIteration}


@task(**GIVES_UP)
async def stops(kind: str) -> None:
    raise STOPS[kind]("empty")


@task(**GIVES_UP)
def stops_in_thread(kind: str) -> None:
    raise STOPS[kind]("empty")


@task(**GIVES_UP)
async def stops_in_a_group(kind: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(stops.function, kind)


@batch_task(size=1, wait=0.01, **GIVES_UP)
async def stops_in_a_batch(kinds: list[str]) -> list[BaseException]:
    return [STOPS[kind]("empty") for kind in kinds]


@task(retries=0, give_up_on=RuntimeError)
async def stops_and_names_what_python_makes_of_it() -> None:
    raise StopIteration


@pytest.mark.parametrize("kind", STOPS)
@pytest.mark.parametrize("one", [stops, stops_in_thread, stops_in_a_group, stops_in_a_batch], ids=lambda one: one.name)
async def test_a_policy_that_names_stop_iteration_finds_it(anyio_backend, shared_server, one, kind):
    """A coroutine cannot raise it: Python makes a RuntimeError of it, which was retried."""
    server = shared_server("redis")
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(one, kind)
        await burst(broker, one)
    (letter,) = dead(server)
    assert (letter["reason"], letter["attempts"], letter["error_type"]) == ("rejected", "1", kind)


async def test_who_names_runtime_errors_gets_them(anyio_backend, shared_server):
    """As before: the StopIteration is only looked for where it is named."""
    server = shared_server("redis")
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(stops_and_names_what_python_makes_of_it)
        await burst(broker, stops_and_names_what_python_makes_of_it)
    (letter,) = dead(server)
    assert (letter["reason"], letter["error_type"]) == ("rejected", "RuntimeError")


# --- the filters of warnings -----------------------------------------------------------------------------------


@task(retries=0)
async def breaks_warnings(how: str) -> None:
    if how == "deleted":
        del warnings.filters
    else:
        warnings.filters = {"None": None, "a tuple": (), "a dict": {}}[how]


@task(result_ttl=60)
async def warns() -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("heard", stacklevel=1)
    return bool(caught)


@pytest.mark.parametrize("how", ["None", "deleted", "a tuple", "a dict"])
async def test_no_filters_of_warnings_end_no_worker(real_server, how, caplog):
    """A run of them ended the worker: their comparison raised, outside of all containment."""
    before, filters = warnings.filters, list(warnings.filters)
    async with RedisBroker(real_server.url) as broker, working(broker, breaks_warnings, warns, concurrency=1):
        await broker.enqueue(breaks_warnings, how)
        handle = await broker.enqueue(warns)
        with anyio.fail_after(5):
            assert await handle.result()
        assert warnings.filters is before
        assert warnings.filters == filters
    assert "put back" in caplog.text


# --- errors that raise when they are looked at -------------------------------------------------------------------


class Interrupts(Exception):  # noqa: N818 - it is no usual one
    """`isinstance` asks for the class, and gets Ctrl-C."""

    @property
    def __class__(self) -> type:
        raise KeyboardInterrupt


@task(retries=0)
async def raises_what_interrupts() -> None:
    raise Interrupts


async def test_an_error_that_interrupts_when_it_is_looked_at_ends_no_worker(real_server, monkeypatch):
    """Where signals are heard apart, as by `streamq worker`, a KeyboardInterrupt is an error like any other."""
    monkeypatch.setattr("streamq.consumer.cancellation._ends_program", [])
    async with RedisBroker(real_server.url) as broker, working(broker, raises_what_interrupts, warns):
        await broker.enqueue(raises_what_interrupts)
        handle = await broker.enqueue(warns)
        with anyio.fail_after(5):
            assert await handle.result()
        await until(lambda: dead(real_server))
    assert [one["reason"] for one in dead(real_server)] == ["retries_exhausted"]
