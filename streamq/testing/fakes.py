"""A delivery for a handler that a test calls itself: no server, no worker, no event loop.

It sets the context variables that a worker sets for a run (`handlers/context.py`), so that `current_delivery()`,
`report_progress()`, `cancel_requested()`, `once()` and the fields of the log work as in a worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from streamq.broker import RedisBroker
from streamq.clock import SYSTEM
from streamq.consumer.batching import _deliveries as batch_var
from streamq.handlers.context import Cancellation, cancellation_var, delivery_var, reporter_var, store_var
from streamq.handlers.progress import Progress, Report
from streamq.tasks.batch import BatchTask
from streamq.tasks.task import Call, Task, check_calls
from streamq.wire.bounds import ATTEMPT
from streamq.wire.delivery import Delivery
from streamq.wire.message import Message, as_text
from streamq.wire.names import check_name

_ENTRY = b"1767225600000-%d"


class FakeDelivery:
    """The run of a handler that a test calls itself.

    `delivery` is what `current_delivery()` returns a copy of. `progress` are the reports so far, the oldest first.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.progress: list[Progress] = []
        self.cancellation = Cancellation()

    def __repr__(self) -> str:
        return f"<FakeDelivery of {self.delivery!r}: {len(self.progress)} reports>"

    def cancel(self) -> None:
        """Ask the handler to stop, as `Handle.cancel` does with a handler in a thread."""
        self.cancellation.request()

    # --- as `ProgressReporter` -------------------------------------------------------------

    def note(self, delivery: Delivery, done: float, total: float | None, note: str, data: Any) -> bool:  # noqa: ARG002
        """Keep a report. Raises ConfigurationError for values that cannot be reported."""
        self.progress.append(Progress.parse(Report.of(done, total, note, data, SYSTEM.now()).encode()))
        return False

    def due(self) -> bool:
        """Need the handler pause? Never: nothing is written."""
        return False

    def forget(self, delivery: Delivery) -> None:
        """Keep what a run reported that was asked to stop meanwhile."""


@contextmanager
def fake_delivery(
    *calls: Call[Any], attempt: int = 1, task_id: str = "fake", tier: str = "standard",
    headers: Mapping[str, Any] | None = None, state: Any = None, broker: RedisBroker | None = None,
) -> Iterator[FakeDelivery]:  # fmt: skip
    """Make what runs in this block believe that a worker has delivered a task to it.

        with fake_delivery(send.call("a@b.c"), attempt=3) as fake:
            await send("a@b.c")
        assert fake.progress[-1].done == 1

    The call is checked as it is when it is sent; without one, the task is named "fake". Several calls, or one of a
    batch task, are the batch that `current_batch()` returns. `state` is what the worker's lifespan would have yielded.
    With an open `broker`, `once()` and `Inbox` have its server.

    Raises what sending the call would raise, and ConfigurationError for a value that no delivery can have.
    """
    check_name("task_id", task_id)
    ATTEMPT.check(attempt)
    deliveries = [
        _delivery(call, number, attempt, task_id if number == 1 else f"{task_id}-{number}", tier, headers)
        for number, call in enumerate(check_calls(calls) or (None,), 1)
    ]
    fake = FakeDelivery(deliveries[0])
    with ExitStack() as stack:
        _set_here(stack, delivery_var, deliveries[0])
        _set_here(stack, reporter_var, fake)
        if not calls or getattr(calls[0].task, "run_in", "thread") != "loop":  # an async handler has none
            _set_here(stack, cancellation_var, fake.cancellation)
        if len(deliveries) > 1 or (calls and isinstance(calls[0].task, BatchTask)):
            _set_here(stack, batch_var, tuple(deliveries))
        if broker is not None:
            _set_here(stack, store_var, broker.store)
        for one in deliveries:
            one.state = state
        yield fake
        fake.cancellation.request()  # for threads that the handler started


def _set_here(stack: ExitStack, variable: ContextVar[Any], value: Any) -> None:
    """Set a context variable until the stack is left."""
    stack.callback(variable.reset, variable.set(value))


def _delivery(
    call: Call[Any] | None, number: int, attempt: int, task_id: str, tier: str, headers: Mapping[str, Any] | None
) -> Delivery:
    message, default = Message(task="fake", task_id=task_id, headers=headers), None
    if call is not None:
        message = replace(message, task=call.task.name, args=call.args, kwargs=call.kwargs)
        if isinstance(call.task, Task):
            args, kwargs = call.task.arguments.sendable(call.args, call.kwargs)
            message, default = replace(message, args=args, kwargs=kwargs), call.task.arguments.default
    flat = [*as_text(message.fields(default=default)), "attempt", str(attempt)]
    return Delivery(0, tier, _ENTRY % number, [part.encode() for part in flat])
