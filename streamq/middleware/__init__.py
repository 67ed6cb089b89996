"""Middleware: what wraps the runs of tasks, and what wraps their enqueue.

The built-in parts are loaded on first use: a producer that has none pays for none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamq.middleware.chain import CallNext, Context, Middleware, MiddlewareChain, Resident, SendMiddleware, SendNext

if TYPE_CHECKING:
    from streamq.middleware.circuit_breaker import CircuitBreaker
    from streamq.middleware.circuit_fleet import CircuitView, RemoteFailureError
    from streamq.middleware.concurrency_limit import ConcurrencyLimit
    from streamq.middleware.idempotency import Idempotency
    from streamq.middleware.rate_limit import RateLimitMiddleware

_HOMES = {
    "CircuitBreaker": "circuit_breaker",
    "CircuitView": "circuit_fleet",
    "ConcurrencyLimit": "concurrency_limit",
    "Idempotency": "idempotency",
    "RateLimitMiddleware": "rate_limit",
    "RemoteFailureError": "circuit_fleet",
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
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
