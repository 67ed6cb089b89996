"""Exporters: metrics for Prometheus, and spans for OpenTelemetry.

    from streamq.exporters import Endpoint, QueueCollector              # needs streamq[metrics]
    from streamq.exporters import StatsdExporter                        # needs no extra
    from streamq.exporters import TracingMiddleware, inject_headers     # needs streamq[otel]

Names are loaded on first use (PEP 562). So importing this package needs no extra, and one exporter does not
need the extra of the other. Raises MissingExtraError if a name is used without its extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.lazy_names import load_on_first_use

if TYPE_CHECKING:
    from streamq.exporters.endpoint import Endpoint
    from streamq.exporters.prometheus import QueueCollector
    from streamq.exporters.statsd import StatsdExporter
    from streamq.exporters.tracing import TracingMiddleware, inject_headers

_HOMES = {
    "Endpoint": "endpoint",
    "QueueCollector": "prometheus",
    "StatsdExporter": "statsd",
    "TracingMiddleware": "tracing",
    "inject_headers": "tracing",
}

__all__ = ["Endpoint", "QueueCollector", "StatsdExporter", "TracingMiddleware", "inject_headers"]

if not TYPE_CHECKING:  # for a type checker a name that is not above is an error
    __getattr__, __dir__ = load_on_first_use(globals(), _HOMES)
