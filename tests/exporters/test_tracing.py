"""Spans of runs: their parents, attributes and status."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from streamq import Priority, RedisBroker, Reject, RetryLater, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import ArgumentsError
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
        self.reader = InMemoryMetricReader()
        self.meter = MeterProvider([self.reader], shutdown_on_exit=False).get_meter("tests")
        self.chain = MiddlewareChain(TracingMiddleware(self.tracer, meter=self.meter))

    def named(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def of(self, task, kind=SpanKind.CONSUMER):
        """The spans of a task's runs, or of its enqueues."""
        found = [span for span in self.exporter.get_finished_spans() if span.kind is kind]
        return [span for span in found if span.attributes["streamq.task"] == task]

    def metrics(self):
        """The points of each metric, by its name."""
        (resource,) = self.reader.get_metrics_data().resource_metrics
        (scope,) = resource.scope_metrics
        return {metric.name: list(metric.data.data_points) for metric in scope.metrics}


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

    (run,), (inner,) = spans.of("send"), spans.named("smtp")
    assert run.parent.span_id == request.get_span_context().span_id
    assert run.parent.is_remote
    assert run.context.trace_id == request.get_span_context().trace_id
    assert inner.parent.span_id == run.context.span_id
    assert run.kind is SpanKind.CONSUMER
    assert run.status.status_code is StatusCode.UNSET
    assert dict(run.attributes) == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "queue:critical",
        "messaging.consumer.group.name": "workers",
        "messaging.message.id": "mail-1",
        "streamq.task": "send",
        "streamq.tier": "critical",
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
    runs = spans.of("send")
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

    runs = spans.of("send")
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
        await until(lambda: spans.of("send"))
    (run,) = spans.of("send")
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
    (run,) = spans.of("send")
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
    (run,) = spans.of("send")
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


async def test_the_middleware_of_a_broker_traces_each_enqueue(spans):
    """A producer span in the trace of the caller, and the run a child of it, with a link; without `inject_headers`."""

    @task
    async def send(to):
        pass

    async with RedisBroker("memory://", middleware=spans.chain) as broker:
        with spans.tracer.start_as_current_span("request") as request:
            handle = await broker.enqueue(send.options(priority=Priority.CRITICAL, headers={"tenant": "acme"}), "a")
            await broker.enqueue_many([send.call("b"), send.call("c")])
        await burst(broker, send)
        with trace.use_span(request, end_on_exit=False):
            await broker.enqueue("elsewhere", headers={"traceparent": "mine"})
    sent = {span.attributes["messaging.message.id"]: span for span in spans.of("send", SpanKind.PRODUCER)}
    runs = {span.attributes["messaging.message.id"]: span for span in spans.of("send")}
    assert len(sent) == 3
    assert sent.keys() == runs.keys()
    for task_id, span in sent.items():
        run = runs[task_id]
        assert span.parent.span_id == request.get_span_context().span_id
        assert run.parent.span_id == span.context.span_id
        assert [link.context.span_id for link in run.links] == [span.context.span_id]
        assert run.context.trace_id == request.get_span_context().trace_id
    first = sent[handle.task_id]
    assert first.name == "send queue:critical"
    assert runs[handle.task_id].name == "process queue:critical"
    assert dict(first.attributes) == {
        "messaging.system": "redis", "messaging.operation.name": "send", "messaging.operation.type": "send",
        "messaging.destination.name": "queue:critical", "messaging.message.id": handle.task_id, "streamq.task": "send",
    }  # fmt: skip
    (foreign,) = spans.of("elsewhere", SpanKind.PRODUCER)
    assert foreign.parent.span_id == request.get_span_context().span_id


async def test_a_run_may_begin_a_trace_of_its_own(spans):
    """`parent=False`: the link alone says who sent it. Baggage arrives all the same."""
    found = []

    @task
    async def send():
        found.append(baggage.get_baggage("tenant"))

    chain = MiddlewareChain(TracingMiddleware(spans.tracer, meter=spans.meter, parent=False))
    async with RedisBroker("memory://", middleware=chain) as broker:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        await broker.enqueue(send)
        context.detach(token)
        await burst(broker, send)
    (sent,), (run,) = spans.of("send", SpanKind.PRODUCER), spans.of("send")
    assert run.parent is None
    assert run.context.trace_id != sent.context.trace_id
    assert [link.context.span_id for link in run.links] == [sent.context.span_id]
    assert found == ["acme"]


async def test_an_enqueue_that_fails_is_an_error(spans):
    """The caller gets the error; nothing is counted as sent without its type."""

    @task
    async def send(to: int):
        pass

    async with RedisBroker("memory://", middleware=spans.chain) as broker:
        with pytest.raises(ArgumentsError):
            await broker.enqueue(send, "no number")  # type: ignore[arg-type]
    (sent,) = spans.of("send", SpanKind.PRODUCER)
    assert sent.status.status_code is StatusCode.ERROR
    assert sent.attributes["error.type"] == "streamq.errors.ArgumentsError"
    (point,) = spans.metrics()["messaging.client.sent.messages"]
    assert point.attributes["error.type"] == "streamq.errors.ArgumentsError"


async def test_enqueues_and_runs_are_metrics(spans):
    """Sent, consumed, and how long the runs took, by destination, group and error."""

    @task(retries=0)
    async def send(fails):
        if fails:
            raise ValueError("no")

    async with RedisBroker("memory://", middleware=spans.chain) as broker:
        await broker.enqueue_many([send.call(fails=False), send.call(fails=False), send.call(fails=True)])
        await burst(broker, send)
    metrics = spans.metrics()
    assert [point.value for point in metrics["messaging.client.sent.messages"]] == [3]
    assert [point.value for point in metrics["messaging.client.consumed.messages"]] == [3]
    by_error = {point.attributes.get("error.type"): point for point in metrics["messaging.process.duration"]}
    assert {error: point.count for error, point in by_error.items()} == {None: 2, "ValueError": 1}
    assert dict(by_error[None].attributes) == {
        "messaging.system": "redis", "messaging.operation.name": "process", "streamq.task": "send",
        "messaging.destination.name": "queue:standard", "messaging.consumer.group.name": "workers",
    }  # fmt: skip


class Broken:
    """A tracer and a meter whose every call raises."""

    def create_counter(self, *args):
        return self

    create_histogram = create_counter

    def __getattr__(self, name):
        raise SystemExit(name)


async def test_what_raises_in_tracing_harms_neither_enqueue_nor_run():
    """A tracer, a meter or a sampler of somebody else's."""
    ran = []

    @task
    async def send():
        ran.append(1)

    chain = MiddlewareChain(TracingMiddleware(Broken(), meter=Broken()))  # type: ignore[arg-type]
    async with RedisBroker("memory://", middleware=chain) as broker:
        await broker.enqueue(send)
        await burst(broker, send)
    assert ran == [1]
