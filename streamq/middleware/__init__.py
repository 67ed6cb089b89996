"""Middleware: what wraps the runs of tasks."""

from streamq.middleware.chain import CallNext, Context, Middleware, MiddlewareChain
from streamq.middleware.circuit_breaker import CircuitBreaker
from streamq.middleware.rate_limit import RateLimitMiddleware

__all__ = ["CallNext", "CircuitBreaker", "Context", "Middleware", "MiddlewareChain", "RateLimitMiddleware"]
