"""Middleware wraps runs of tasks, and enqueues: limits, circuit breakers, recorded effects, and your own.

The built-in middleware is imported on first use, so a producer without middleware does not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamq.middleware.chain import CallNext, Context, Middleware, MiddlewareChain, Resident, SendMiddleware, SendNext

if TYPE_CHECKING:
    from streamq.middleware.circuit_breaker import CircuitBreaker
    from streamq.middleware.circuit_view import CircuitView, RemoteFailureError
    from streamq.middleware.concurrency_limit import ConcurrencyLimit
    from streamq.middleware.idempotency import Idempotency
    from streamq.middleware.rate_limit import RateLimitMiddleware

_MODULES = {
    "CircuitBreaker": "circuit_breaker",
    "CircuitView": "circuit_view",
    "ConcurrencyLimit": "concurrency_limit",
    "Idempotency": "idempotency",
    "RateLimitMiddleware": "rate_limit",
    "RemoteFailureError": "circuit_view",
}

__all__ = [
    "CallNext",
    "CircuitBreaker",
    "CircuitView",
    "ConcurrencyLimit",
    "Context",
    "Idempotency",
    "Middleware",
    "MiddlewareChain",
    "RateLimitMiddleware",
    "RemoteFailureError",
    "Resident",
    "SendMiddleware",
    "SendNext",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    try:
        value = getattr(import_module(f"{__name__}.{module}"), name)
    except AttributeError as error:  # of a dependency: as itself it would read as if there were no such name here
        raise ImportError(f"{__name__}.{name} cannot be loaded: {error}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
