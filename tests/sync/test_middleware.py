"""Middleware around the enqueues of a SyncBroker: awaiting `send_next` alone works, waiting for a loop does not."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest
import trio

from streamq import SyncBroker, group, task
from streamq.errors import ArgumentsError, ConfigurationError, SyncCallError
from streamq.middleware import MiddlewareChain

pytestmark = pytest.mark.timeout(30)


@task
def nothing(number: int = 0) -> None: ...


class Adds:
    """Adds a header, and notes what it got."""

    def __init__(self) -> None:
        self.seen = []

    async def enqueue(self, call, send_next):
        handle = await send_next(call.options(headers={"by": "middleware"}))
        self.seen.append(handle.task_id)
        return handle


class Waits:
    """Waits for an event loop, before or after its call is sent."""

    def __init__(self, wait, *, after: bool) -> None:
        self.wait = wait
        self.after = after
        self.closed = False

    async def enqueue(self, call, send_next):
        try:
            if not self.after:
                await self.wait()
            handle = await send_next(call)
            if self.after:
                await self.wait()
            return handle
        finally:
            self.closed = True


WAYS = [
    lambda: asyncio.sleep(0), lambda: asyncio.sleep(0.01), lambda: anyio.sleep(0.01), lambda: trio.sleep(0.01),  # noqa: ASYNC105 - awaited by the link
    lambda: anyio.to_thread.run_sync(int),
]  # fmt: skip


def sent(broker) -> int:
    return broker.monitor().snapshot().depth


def test_a_chain_that_awaits_the_next_link_alone_works():
    """For one, for many, for a workflow, for the middleware of a task."""
    first, own = Adds(), Adds()
    inner = task(name="inner", middleware=[own])(lambda number=0: None)
    with SyncBroker("memory://", middleware=MiddlewareChain(first)) as broker:
        one = broker.enqueue(nothing, 1)
        many = broker.enqueue_many([nothing.call(number) for number in range(3)])
        flow = broker.start(group(nothing.call(1), nothing.call(2)))
        last = broker.enqueue(inner, 1)
        handles = [one, *many, *flow.steps, last]
        assert sorted(first.seen) == sorted(handle.task_id for handle in handles)
        assert own.seen == [last.task_id]
        entries = broker.client.call([("XRANGE", one.stream, "-", "+")])[0]
        assert all(b'{"by":"middleware"}' in flat for _, flat in entries)
        assert len(entries) == 7
    with SyncBroker("memory://") as broker:
        assert broker.enqueue_many([inner.call(), nothing.call()])[0].task_id in own.seen


@pytest.mark.parametrize("wait", WAYS)
def test_a_chain_that_waits_for_a_loop_sends_nothing(wait):
    """An error with the remedy; for many, none of them is sent, and every chain has ended."""
    link, other = Waits(wait, after=False), Waits(wait, after=True)
    with SyncBroker("memory://", middleware=MiddlewareChain(other, link)) as broker:
        with pytest.raises(SyncCallError, match="Nothing was sent"):
            broker.enqueue(nothing)
        assert link.closed
        other.closed = False
        with pytest.raises(SyncCallError):
            broker.enqueue_many([nothing.call(), nothing.call()])
        assert other.closed
        with pytest.raises(SyncCallError):
            broker.start(group(nothing.call(), nothing.call()))
        assert sent(broker) == 0


@pytest.mark.parametrize("wait", WAYS)
def test_a_task_that_was_accepted_is_never_reported_as_failed(wait, caplog):
    """The middleware is left off with a warning, and the caller gets the handle."""
    link = Waits(wait, after=True)
    with SyncBroker("memory://", middleware=MiddlewareChain(link)) as broker, caplog.at_level(logging.WARNING):
        assert broker.enqueue(nothing).fresh
        assert link.closed
        assert [handle.fresh for handle in broker.enqueue_many([nothing.call(), nothing.call()])] == [True, True]
        assert broker.start(group(nothing.call(), nothing.call())).fresh
        assert sent(broker) == 5
    assert len([line for line in caplog.messages if "was left off after the task" in line]) == 5


def test_what_middleware_raises_or_refuses_comes_out_as_it_is():
    """Before anything is sent; so does what is no handle."""

    class Refuses:
        async def enqueue(self, call, send_next):
            if call.args == (13,):
                raise ValueError("unlucky")
            return await send_next(call)

    class Swallows:
        async def enqueue(self, call, send_next):
            return None

    with SyncBroker("memory://", middleware=MiddlewareChain(Refuses())) as broker:
        for send in (
            lambda: broker.enqueue(nothing, 13),
            lambda: broker.enqueue_many([nothing.call(1), nothing.call(13)]),
        ):
            with pytest.raises(ValueError, match="unlucky"):
                send()
        assert sent(broker) == 0
    with SyncBroker("memory://", middleware=MiddlewareChain(Swallows())) as broker:
        with pytest.raises(ConfigurationError, match="no handle"):
            broker.enqueue(nothing)
        with pytest.raises(ConfigurationError, match="no handle"):
            broker.enqueue_many([nothing.call()])


def test_middleware_may_send_another_task_with_the_same_broker():
    """In the middle of its own enqueue."""

    class Audits:
        async def enqueue(self, call, send_next):
            if call.task.name == "nothing":
                audits.append(broker.enqueue("audit", call.task.name))
            return await send_next(call)

    audits = []
    with SyncBroker("memory://", middleware=MiddlewareChain(Audits())) as broker:
        handle = broker.enqueue(nothing)
        assert handle.task_name == "nothing"
        assert [audit.task_name for audit in audits] == ["audit"]
        assert sent(broker) == 2


def test_the_middleware_of_opentelemetry_works():
    """A producer span for each enqueue. None is the current one afterwards, nor the parent of another."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import get_current_span

    from streamq.exporters import TracingMiddleware

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = TracingMiddleware(provider.get_tracer("test"))
    with SyncBroker("memory://", middleware=MiddlewareChain(tracing)) as broker:
        broker.enqueue(nothing)
        broker.enqueue_many([nothing.call(), nothing.call()])
    assert [span.name for span in spans.get_finished_spans()] == ["send queue:standard"] * 3
    assert not any(span.parent for span in spans.get_finished_spans())
    assert not get_current_span().get_span_context().is_valid


def test_a_span_of_an_enqueue_that_failed_says_so(caplog):
    """As through a RedisBroker: the status, the type of the error, and nothing in the log."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import StatusCode

    from streamq.exporters import TracingMiddleware

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = TracingMiddleware(provider.get_tracer("test"))
    with SyncBroker("memory://", middleware=MiddlewareChain(tracing)) as broker, pytest.raises(ArgumentsError):
        broker.enqueue(nothing, 1, 2, 3)
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.attributes["error.type"]) == (
        StatusCode.ERROR, "streamq.errors.ArgumentsError"
    )  # fmt: skip
    assert caplog.records == []
