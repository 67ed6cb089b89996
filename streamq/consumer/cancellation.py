"""Who ended a run: its handler, or a scope around it? What a cancelled run raised is split accordingly."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from itertools import islice

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import Reject, Retry, RetryLater
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

CANCELLED_BY_OTHERS = (
    "the task of a runner was cancelled, and not by the worker, and is replaced: a handler has cancelled its own task, "
    "or somebody has kept it (asyncio.current_task())"
)
SAID_EVERY = 1.0  # seconds: often all runners are cancelled
WHILE_CANCELLED = "task %s %s was cancelled, and raised %r"
_MOST_NAMED = 10  # runs that are cut off
_ends_program: list[type[BaseException]] = [KeyboardInterrupt]


def hear_signals_apart() -> None:
    """Note that Ctrl-C raises no KeyboardInterrupt in this process: from now on one is an error of its handler."""
    _ends_program.clear()


def by_a_stranger(error: BaseException) -> bool:
    """Is this a cancellation that nobody may have asked for: of the task of a worker that hears signals apart?"""
    asked_for = bool(_ends_program) or anyio.current_effective_deadline() == float("-inf")
    return isinstance(error, anyio.get_cancelled_exc_class()) and (not asked_for or trio_ends())


def trio_ends() -> bool:
    """Does trio end its main task because a callback or a system task raised?

    A handler can leave such a one behind (`run_sync_soon`, `spawn_system_task`).
    """
    if not anyio.get_cancelled_exc_class().__module__.startswith("trio"):
        return False
    root = import_module("trio").lowlevel.current_root_task()  # by name: streamq depends on no backend
    return any(nursery.cancel_scope.cancel_called for nursery in root.child_nurseries)


def note_fatal(fatal: set[bytes], delivery: Delivery, error: BaseException) -> None:
    """Note that a run ends the worker. Its delivery is not released: its lease ends, and a crash loop is found."""
    if delivery.entry_id not in fatal:
        fatal.add(delivery.entry_id)
        log.error(
            "task %s %s raised %r: it ends the worker",
            delivery.task,
            delivery.task_id,
            error,
            event="worker_failed",
            of=delivery,
        )


def log_cut_off(deliveries: Collection[Delivery], why: str) -> None:
    """Say, in one line, which runs a worker cuts off as it ends, `_MOST_NAMED` of them by name."""
    if not deliveries:
        return
    named = ", ".join(f"{one.task} {one.task_id}" for one in islice(deliveries, _MOST_NAMED))
    more = len(deliveries) - _MOST_NAMED
    log.warning(
        "%s: %s%s cut off, and will be delivered again unless settled now",
        why, named, f" and {more} more are" if more > 0 else " is" if len(deliveries) == 1 else " are", event="cut_off",
    )  # fmt: skip


def log_cancelled_by_others(now: float, said_at: float) -> float:
    """Say that others have cancelled a runner, unless that was said just now; return when it was said last."""
    if now < said_at + SAID_EVERY:
        return said_at
    log.warning(CANCELLED_BY_OTHERS, event="left_behind")
    return now


def belongs_to_delivery(error: BaseException) -> bool:
    """Is this, when it comes out of a run although no handler raised it, a mistake with that delivery alone?"""
    return isinstance(error, Exception | SystemExit) or (isinstance(error, KeyboardInterrupt) and not _ends_program)


def asked_by_nobody(error: BaseException, requests: int) -> bool:
    """Is this a cancellation that neither a scope nor a request to this task has caused?

    The class of an exception may raise one when it is looked at.
    """
    is_cancellation = isinstance(error, anyio.get_cancelled_exc_class())
    return is_cancellation and not requests and anyio.current_effective_deadline() != float("-inf")


def ends_nothing(error: BaseException) -> bool:
    """Is this, raised beside a cancellation, a failure of the run alone? A group is, if all of its members are."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(ends_nothing, error.exceptions))
    return belongs_to_delivery(error)


def is_failure(error: BaseException) -> bool:
    """Did the handler raise this itself, and not because the run or the program ends?"""
    if isinstance(error, Exception):
        return True
    if isinstance(error, (GeneratorExit, *_ends_program)):
        return False
    if isinstance(error, BaseExceptionGroup) and error.subgroup(tuple(_ends_program)):
        return False
    if ends_nothing(error) or not isinstance(error, BaseExceptionGroup | anyio.get_cancelled_exc_class()):
        return True
    # If no scope around this run is cancelled, the handler raised the cancellation itself.
    return anyio.current_effective_deadline() != float("-inf")


def is_cut_off(error: BaseException) -> bool:
    """Did a handler fail with this because the worker ends? Then it spends no attempt; what asks for something counts.

    Database clients, say, raise an error of their own if they cannot clean up after they were cancelled.
    """
    return anyio.current_effective_deadline() == float("-inf") and not isinstance(error, Retry | RetryLater | Reject)


def cancelled_and_rest(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Split what a cancelled run raised into the cancellation and the rest."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)
    return (error, None) if isinstance(error, cancelled) else (None, error)


def without_cancellation(error: BaseException) -> BaseException:
    """Return an exception group without the cancellations in it, if it has other exceptions; all else as it is."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    return cancelled_and_rest(error)[1] or error
