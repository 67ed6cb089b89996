"""`TracingMiddleware`: an OpenTelemetry span for each run, in the trace of whoever sent the task.

Owns what a span of a run looks like; knows no exporter and sets up no provider. The trace travels
in the message's headers, in the form of the propagator that is configured (W3C `traceparent` by
default); a retry carries the same headers, so all runs of a task are children of one span.
"""

from __future__ import annotations

from typing import Any

import anyio

from streamq import __version__
from streamq.errors import MissingExtraError, RetryLater
from streamq.middleware import CallNext, Context
from streamq.tasks.outcome import failure_of
from streamq.wire.delivery import Delivery

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_tracer
except ImportError as error:
    raise MissingExtraError("streamq.exporters.tracing", "otel") from error


def inject_headers() -> dict[str, str]:
    """Return the current trace as headers for a message; empty outside a trace.

    With them the run joins the sender's trace:

        await broker.enqueue(send.options(headers=inject_headers()), "a@b.c")
    """
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


class TracingMiddleware:
    """Put every run in a span of its own, named like its task; add it first, to be the outermost.

    `tracer` is that of the global provider unless it is given. A run that raises ends with the
    status ERROR and the exception as an event; one that was only held back (RetryLater, a limit, an
    open breaker) or interrupted (its worker left, it was cancelled) is no error. The attribute
    `streamq.outcome` says which.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = get_tracer("streamq", __version__) if tracer is None else tracer

    def __repr__(self) -> str:
        return f"<TracingMiddleware {type(self._tracer).__name__}>"

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task in its span. Raises what the run raises."""
        # Attached as a whole, so that the handler finds the sender's baggage as well, and nothing of
        # what the worker itself was started in.
        token = contexts.attach(propagate.extract(_carried(context.delivery), contexts.Context()))
        try:
            with self._tracer.start_as_current_span(
                context.task.name, kind=SpanKind.CONSUMER, attributes=_attributes(context.delivery),
                record_exception=False, set_status_on_exception=False,
            ) as span:  # fmt: skip
                return await _traced(span, context, call_next)
        finally:
            contexts.detach(token)


async def _traced(span: Span, context: Context, call_next: CallNext) -> Any:
    try:
        result = await call_next(context)
    except RetryLater:
        span.set_attribute("streamq.outcome", "postponed")
        raise
    except anyio.get_cancelled_exc_class():
        span.set_attribute("streamq.outcome", "interrupted")
        raise
    except BaseException as error:
        _failed(span, error)
        raise
    span.set_attribute("streamq.outcome", "done")
    return result


def _failed(span: Span, error: BaseException) -> None:
    # Not span.record_exception: it trusts the exception's __str__, and text that UTF-8 cannot carry
    # would cost the exporter the whole batch.
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


def _carried(delivery: Delivery) -> dict[str, str]:
    """Return the headers that a propagator can read: anyone may have written the others."""
    if b"headers" not in delivery.fields:
        return {}
    return {name: value for name, value in delivery.headers.items() if isinstance(value, str)}


def _attributes(delivery: Delivery) -> dict[str, str | int | bool]:
    """Return what a span says of its message, by OpenTelemetry's semantic conventions for messaging."""
    return {
        "messaging.system": "redis",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": delivery.tier_name,
        "messaging.message.id": delivery.task_id,
        "streamq.attempt": delivery.attempt,
        "streamq.redelivered": delivery.redelivered,
    }
