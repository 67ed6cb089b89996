"""Spans of runs: their parents, attributes and status."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from streamq import Priority, RedisBroker, Reject, RetryLater, task
from streamq.dead_letter import DeadLetterQueue
from streamq.exporters.tracing import TracingMiddleware, inject_headers
from streamq.middleware import MiddlewareChain
from tests.at_work import burst, until, working


class Spans:
    """A tracer that keeps its spans in memory."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("tests")
        self.chain = MiddlewareChain(TracingMiddleware(self.tracer))

    def named(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
async def broker():
    async with RedisBroker("memory://") as broker:
        yield broker


async def test_a_run_joins_the_trace_of_its_producer(broker, spans):
    """The parent is the producer's span. Spans of the handler are children of the run's span."""

    @task
    async def send(to):
        with spans.tracer.start_as_current_span("smtp"):
            await anyio.lowlevel.checkpoint()

    with spans.tracer.start_as_current_span("request") as request:
        options = send.options(headers=inject_headers(), priority=Priority.CRITICAL, task_id="mail-1")
        await broker.enqueue(options, "a@b.c")
    await burst(broker, send, middleware=spans.chain)

    (run,), (inner,) = spans.named("send"), spans.named("smtp")
    assert run.parent.span_id == request.get_span_context().span_id
    assert run.parent.is_remote
    assert run.context.trace_id == request.get_span_context().trace_id
    assert inner.parent.span_id == run.context.span_id
    assert run.kind is SpanKind.CONSUMER
    assert run.status.status_code is StatusCode.UNSET
    assert dict(run.attributes) == {
        "messaging.system": "redis",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "critical",
        "messaging.message.id": "mail-1",
        "streamq.attempt": 1,
        "streamq.redelivered": False,
        "streamq.outcome": "done",
    }


async def test_without_a_trace_a_run_starts_its_own(broker, spans):
    """Without trace headers the span is a root, and not a child of the worker's context."""

    @task
    async def send():
        pass

    await broker.enqueue(send)
    await broker.enqueue(send.options(headers={"traceparent": 5, "tracestate": ["x"], "tenant": None}))
    await broker.enqueue(send.options(headers={"traceparent": "nonsense"}))
    with spans.tracer.start_as_current_span("the worker's program"):
        assert "traceparent" in inject_headers()  # by the propagators of this OpenTelemetry, which may add others
        await burst(broker, send, middleware=spans.chain)
    assert "traceparent" not in inject_headers()
    runs = spans.named("send")
    assert [run.parent for run in runs] == [None] * 3
    assert len({run.context.trace_id for run in runs}) == 3


async def test_failed_runs_are_errors_and_children_of_one_span(broker, spans):
    """Each attempt has a span with the exception and the status ERROR. A replay joins the trace as well."""

    @task(retries=1, backoff=lambda _, __: 0.0)
    async def send():
        raise ValueError("no such address")

    with spans.tracer.start_as_current_span("request") as request:
        handle = await broker.enqueue(send.options(headers=inject_headers()))
    await burst(broker, send, middleware=spans.chain)
    await DeadLetterQueue(broker=broker).replay(task_id=handle.task_id, retries=0)
    await burst(broker, send, middleware=spans.chain)

    runs = spans.named("send")
    assert [run.attributes["streamq.attempt"] for run in runs] == [1, 2, 1]
    for run in runs:
        assert run.parent.span_id == request.get_span_context().span_id
        assert run.status.status_code is StatusCode.ERROR
        assert run.status.description == "ValueError: no such address"
        assert (run.attributes["streamq.outcome"], run.attributes["error.type"]) == ("failed", "ValueError")
        (event,) = run.events
        assert event.name == "exception"
        assert event.attributes["exception.type"] == "ValueError"
        assert event.attributes["exception.message"] == "no such address"
        assert "in send" in event.attributes["exception.stacktrace"]


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (RetryLater(after=1000), "postponed", StatusCode.UNSET),
        (Reject("never"), "failed", StatusCode.ERROR),
        (MuteError(), "failed", StatusCode.ERROR),
        (ValueError("\udcff"), "failed", StatusCode.ERROR),
    ],
    ids=["later", "reject", "mute", "surrogate"],
)
async def test_how_a_run_ended(broker, spans, error, outcome, status):
    """A postponed run is no error. An exception whose text cannot be encoded loses only its text."""

    @task(retries=0)
    async def send():
        raise error

    await broker.enqueue(send)
    async with working(broker, send, middleware=spans.chain):
        await until(lambda: spans.named("send"))
    (run,) = spans.named("send")
    assert (run.attributes["streamq.outcome"], run.status.status_code) == (outcome, status)
    for event in run.events:
        event.attributes["exception.message"].encode()
    assert len(await DeadLetterQueue(broker=broker).peek()) == (outcome == "failed")


async def test_a_timeout_is_an_error(broker, spans):
    """The handler is cancelled, and the run has failed."""

    @task(retries=0, timeout=0.05)
    async def send():
        await anyio.sleep(60)

    await broker.enqueue(send)
    await burst(broker, send, middleware=spans.chain)
    (run,) = spans.named("send")
    assert run.status.status_code is StatusCode.ERROR
    assert run.attributes["error.type"] == "streamq.errors.TaskTimeoutError"


async def test_a_released_run_is_interrupted(broker, spans):
    """The task runs again on another worker: no error, and the span ends."""
    running = anyio.Event()

    @task
    async def send():
        running.set()
        await anyio.sleep(60)

    await broker.enqueue(send)
    async with working(broker, send, middleware=spans.chain) as worker:
        await running.wait()
        worker.stop()
        worker.stop()
    (run,) = spans.named("send")
    assert (run.attributes["streamq.outcome"], run.status.status_code) == ("interrupted", StatusCode.UNSET)


async def test_concurrent_runs_do_not_mix(broker, spans):
    """Each of many concurrent runs is a child of its own producer's span, also in threads."""

    @task
    async def send(number):
        await anyio.sleep(0.01)
        with spans.tracer.start_as_current_span(f"inner {number}"):
            await anyio.sleep(0.01)

    @task
    def count(number):
        with spans.tracer.start_as_current_span(f"inner {number}"):
            pass

    senders = {}
    for number in range(20):
        with spans.tracer.start_as_current_span("request") as request:
            senders[number] = request.get_span_context().trace_id
            await broker.enqueue((send if number % 2 else count).options(headers=inject_headers()), number)
    await burst(broker, send, count, middleware=spans.chain, concurrency=10)
    for number, trace_id in senders.items():
        (inner,) = spans.named(f"inner {number}")
        assert inner.context.trace_id == trace_id


async def test_baggage_arrives(broker, spans):
    """The handler sees the producer's baggage."""
    found = []

    @task
    async def send():
        found.append(baggage.get_baggage("tenant"))

    token = context.attach(baggage.set_baggage("tenant", "acme"))
    await broker.enqueue(send.options(headers=inject_headers()))
    context.detach(token)
    await broker.enqueue(send)
    await burst(broker, send, middleware=spans.chain)
    assert found == ["acme", None]


async def test_without_a_provider_nothing_is_traced(broker):
    """The default tracer is the global one. Without a provider, runs work as usual."""
    ran = []

    @task
    async def send():
        ran.append(trace.get_current_span().is_recording())

    await broker.enqueue(send)
    await burst(broker, send, middleware=MiddlewareChain(TracingMiddleware()))
    assert ran == [False]
    assert repr(TracingMiddleware()).startswith("<TracingMiddleware ")
