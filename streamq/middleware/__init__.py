"""Middleware wraps runs of tasks, and enqueues: limits, circuit breakers, recorded effects, and your own.

The built-in middleware is imported on first use, so a producer without middleware does not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.lazy_names import load_on_first_use
from streamq.middleware.chain import CallNext, Context, Middleware, MiddlewareChain, Resident, SendMiddleware, SendNext

if TYPE_CHECKING:
    from streamq.middleware.circuit_breaker import CircuitBreaker
    from streamq.middleware.circuit_view import CircuitView, RemoteFailureError
    from streamq.middleware.concurrency_limit import ConcurrencyLimit
    from streamq.middleware.idempotency import Idempotency
    from streamq.middleware.rate_limit import RateLimitMiddleware

_HOMES = {
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

if not TYPE_CHECKING:  # for a type checker a name that is not above is an error
    __getattr__, __dir__ = load_on_first_use(globals(), _HOMES)
