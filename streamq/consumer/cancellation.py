"""Who ended a run: its handler, or a scope around it? What a cancelled run raised is split accordingly."""

from __future__ import annotations

import anyio


def is_failure(error: BaseException) -> bool:
    """Did the handler raise this itself, and not because the run or the program ends?"""
    if isinstance(error, Exception):
        return True
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return False
    if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt):
        return False
    if not isinstance(error, BaseExceptionGroup | anyio.get_cancelled_exc_class()):
        return True
    # If no scope around this run is cancelled, the handler raised the cancellation itself.
    return anyio.current_effective_deadline() != float("-inf")


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
