"""`TracingMiddleware`: OpenTelemetry spans and metrics for each enqueue and each run, in one trace.

Owns the names and attributes, by the semantic conventions for messaging (1.44; they are still in development). Knows
no exporter and sets up no provider. The trace is in the headers of the message, in the format of the configured
propagator (W3C `traceparent` by default). A retry keeps the headers, so all runs of a task belong to one send.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio

from streamq import __version__
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import MissingExtraError, RetryLater
from streamq.middleware import CallNext, Context, SendNext
from streamq.queue.results import Handle
from streamq.tasks.outcome import failure_of
from streamq.tasks.task import Call
from streamq.wire.delivery import Delivery

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate
    from opentelemetry.metrics import Meter, get_meter
    from opentelemetry.trace import (
        INVALID_SPAN,
        Link,
        Span,
        SpanKind,
        Status,
        StatusCode,
        Tracer,
        get_current_span,
        get_tracer,
        set_span_in_context,
    )
except ImportError as error:
    raise MissingExtraError("streamq.exporters.tracing", "otel") from error

log = SafeLog("streamq.exporters")

_SYSTEM = {"messaging.system": "redis"}


def inject_headers() -> dict[str, str]:
    """Return the current trace as headers for a message. They are empty outside a trace.

    With these headers the run joins the producer's trace:

        await broker.enqueue(send.options(headers=inject_headers()), "a@b.c")

    Where the broker has a TracingMiddleware, every message has them already.
    """
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def _is_cancellation(error: BaseException) -> bool:
    try:
        return isinstance(error, anyio.get_cancelled_exc_class())
    except (RuntimeError, LookupError):  # there is no event loop: a SyncBroker sends
        return False


class TracingMiddleware:
    """Makes a span for each enqueue, if the broker has it, and one for each run. Add it first: it is then outermost.

    An enqueue is a span `send`, and its trace goes into the headers of the message. A run is a span `process`: it
    has a link to what its message carries, and with `parent` it is a child of that, too, in the same trace. Without
    `parent` each run begins a trace of its own.

    `tracer` and `meter` are by default those of the global providers. A run that raises ends with the status ERROR and
    an exception event. A postponed run (RetryLater, a limit, an open breaker) and an interrupted one (its worker
    stopped, it was cancelled) are no errors. The attribute `streamq.outcome` has the outcome.
    """

    def __init__(self, tracer: Tracer | None = None, *, meter: Meter | None = None, parent: bool = True) -> None:
        self._tracer = get_tracer("streamq", __version__) if tracer is None else tracer
        meter = get_meter("streamq", __version__) if meter is None else meter
        self._parent = parent
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages that were sent.")
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Deliveries that began to run."
        )
        self._duration = meter.create_histogram("messaging.process.duration", "s", "How long runs took.")

    def __repr__(self) -> str:
        return f"<TracingMiddleware {type(self._tracer).__name__}>"

    async def enqueue(self, call: Call[Any], send_next: SendNext) -> Handle[Any]:
        """Send a call in its span, with its trace in the headers. Raises what the enqueue raises.

        What a tracer, a sampler, a processor or a propagator raises is logged, and harms no enqueue.
        """
        name, span, token = call.task.name, None, None
        attributes = {**_SYSTEM, "messaging.operation.name": "send", "messaging.operation.type": "send"}
        with _harmless("start"):
            span = self._tracer.start_span(
                "send", kind=SpanKind.PRODUCER, attributes={**attributes, "streamq.task": name}
            )
            token = otel_context.attach(set_span_in_context(span))
            headers = {**(call.task.send_options.headers or {}), **inject_headers()}
            call = call.options(headers=headers)
        try:
            handle = await send_next(call)
        except BaseException as error:
            with _harmless("end"):
                kind = type_name(error)
                self._sent.add(1, {**attributes, "error.type": kind})
                if span is not None and not _is_cancellation(error):
                    span.set_attribute("error.type", kind)
                    span.set_status(Status(StatusCode.ERROR, f"{kind}: {str_of(error)}"))
            raise
        else:
            with _harmless("end"):
                destination = handle.stream
                self._sent.add(1, {**attributes, "messaging.destination.name": destination})
                if span is not None:
                    span.update_name(f"send {destination}")
                    span.set_attributes({
                        "messaging.destination.name": destination, "messaging.message.id": handle.task_id,
                    })  # fmt: skip
            return handle
        finally:
            _end(span, token)

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task in its span. Raises what the run raises.

        What a tracer, a sampler, a processor or a propagator raises is logged, and harms no run.
        """
        token: Any = None
        span: Span | None = None
        measured: dict[str, str] = {}
        begin = time.perf_counter()
        with _harmless("start"):
            keys, delivery = context.store.keys, context.delivery
            destination = keys.tiers[delivery.tier].stream
            measured = {
                **_SYSTEM, "messaging.operation.name": "process", "messaging.destination.name": destination,
                "messaging.consumer.group.name": keys.group, "streamq.task": context.task.name,
            }  # fmt: skip
            self._consumed.add(1, measured)
            # Replaces the whole context, so that the handler sees the producer's baggage and nothing of the context in
            # which the worker was started.
            found = propagate.extract(_text_headers(delivery), otel_context.Context())
            sender = get_current_span(found).get_span_context()
            around = found if self._parent else set_span_in_context(INVALID_SPAN, found)
            span = self._tracer.start_span(
                f"process {destination}", context=around, kind=SpanKind.CONSUMER,
                links=[Link(sender)] if sender.is_valid else [],
                attributes={**measured, "messaging.operation.type": "process", **_attributes(delivery)},
            )  # fmt: skip
            token = otel_context.attach(set_span_in_context(span, found))
        try:
            return await _run_in_span(span, context, call_next)
        except BaseException as error:
            if not isinstance(error, RetryLater | anyio.get_cancelled_exc_class()):
                measured["error.type"] = type_name(error)
            raise
        finally:
            with _harmless("end"):
                self._duration.record(time.perf_counter() - begin, measured)
            _end(span, token)


def _end(span: Span | None, token: Any) -> None:
    with _harmless("end"):
        if token is not None:
            otel_context.detach(token)
    with _harmless("end"):
        if span is not None:
            span.end()


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Log what tracing raises, and go on."""
    try:
        yield
    except BaseException as error:
        log.exception("tracing failed at the %s of a span", what, event="tracing_failed", error=error)


async def _run_in_span(span: Span | None, context: Context, call_next: CallNext) -> Any:
    if span is None:
        return await call_next(context)
    try:
        result = await call_next(context)
    except RetryLater:
        _set_outcome(span, "postponed")
        raise
    except anyio.get_cancelled_exc_class():
        _set_outcome(span, "interrupted")
        raise
    except BaseException as error:
        with _harmless("end"):
            _record_failure(span, error)
        raise
    _set_outcome(span, "done")
    return result


def _set_outcome(span: Span, outcome: str) -> None:
    with _harmless("end"):
        span.set_attribute("streamq.outcome", outcome)


def _record_failure(span: Span, error: BaseException) -> None:
    # Not span.record_exception: it uses the exception's __str__, and text that UTF-8 cannot encode would make
    # the exporter lose the whole batch.
    failure = failure_of(error)
    span.set_attributes({"streamq.outcome": "failed", "error.type": failure.error_type})
    span.add_event(
        "exception",
        {
            "exception.type": failure.error_type, "exception.message": failure.error,
            "exception.stacktrace": failure.traceback,
        },
    )  # fmt: skip
    span.set_status(Status(StatusCode.ERROR, f"{failure.error_type}: {failure.error}"))


def _text_headers(delivery: Delivery) -> dict[str, str]:
    """Return the headers that are text. A propagator can read only these; other programs may write other values."""
    if b"headers" not in delivery.fields:
        return {}
    return {name: value for name, value in delivery.headers.items() if isinstance(value, str)}


def _attributes(delivery: Delivery) -> Mapping[str, str | int | bool]:
    """Return what is known of one delivery: too many values for a metric."""
    return {
        "messaging.message.id": delivery.task_id,
        "streamq.tier": delivery.tier_name,
        "streamq.attempt": delivery.attempt,
        "streamq.redelivered": delivery.redelivered,
    }
