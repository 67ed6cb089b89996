"""`TracingMiddleware`: an OpenTelemetry span for each run, in the trace of the producer.

Owns the names and attributes of the spans. Knows no exporter and sets up no provider. The trace is in the
headers of the message, in the format of the configured propagator (W3C `traceparent` by default). A
retry keeps the headers, so all runs of a task are children of one span.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from streamq import __version__
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import MissingExtraError, RetryLater
from streamq.middleware import CallNext, Context
from streamq.tasks.outcome import failure_of
from streamq.wire.delivery import Delivery

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_tracer, set_span_in_context
except ImportError as error:
    raise MissingExtraError("streamq.exporters.tracing", "otel") from error

log = SafeLog("streamq.exporters")


def inject_headers() -> dict[str, str]:
    """Return the current trace as headers for a message. They are empty outside a trace.

    With these headers the run joins the producer's trace:

        await broker.enqueue(send.options(headers=inject_headers()), "a@b.c")
    """
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


class TracingMiddleware:
    """Start a span for each run, named like its task. Add it first, so that it is the outermost middleware.

    `tracer` is by default that of the global provider. A run that raises ends with the status ERROR and an
    exception event. A postponed run (RetryLater, a limit, an open breaker) and an interrupted one (its
    worker stopped, it was cancelled) are no errors. The attribute `streamq.outcome` has the outcome.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = get_tracer("streamq", __version__) if tracer is None else tracer

    def __repr__(self) -> str:
        return f"<TracingMiddleware {type(self._tracer).__name__}>"

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task in its span. Raises what the run raises.

        What a tracer, a sampler, a processor or a propagator raises is logged, and harms no run.
        """
        token: Any = None
        span: Span | None = None
        with _harmless("start"):
            # Replaces the whole context, so that the handler sees the producer's baggage and nothing of the context in
            # which the worker was started.
            found = propagate.extract(_text_headers(context.delivery), otel_context.Context())
            span = self._tracer.start_span(
                context.task.name, context=found, kind=SpanKind.CONSUMER, attributes=_attributes(context.delivery)
            )
            token = otel_context.attach(set_span_in_context(span, found))
        try:
            return await _run_in_span(span, context, call_next)
        finally:
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


def _attributes(delivery: Delivery) -> dict[str, str | int | bool]:
    """Return the attributes of a span, by OpenTelemetry's semantic conventions for messaging."""
    return {
        "messaging.system": "redis",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": delivery.tier_name,
        "messaging.message.id": delivery.task_id,
        "streamq.attempt": delivery.attempt,
        "streamq.redelivered": delivery.redelivered,
    }
