"""Exporters: metrics for Prometheus, and spans for OpenTelemetry.

    from streamq.exporters import QueueCollector                        # needs streamq[metrics]
    from streamq.exporters import TracingMiddleware, inject_headers     # needs streamq[otel]

Names are loaded on first use (PEP 562). So importing this package needs no extra, and one exporter does not
need the extra of the other. Raises MissingExtraError if a name is used without its extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamq.exporters.prometheus import QueueCollector
    from streamq.exporters.tracing import TracingMiddleware, inject_headers

_HOMES = {"QueueCollector": "prometheus", "TracingMiddleware": "tracing", "inject_headers": "tracing"}

__all__ = ["QueueCollector", "TracingMiddleware", "inject_headers"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    try:
        value = getattr(import_module(f"{__name__}.{home}"), name)
    except AttributeError as error:  # of a dependency: as itself it would read as if there were no such name here
        raise ImportError(f"{__name__}.{name} cannot be loaded: {error}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
