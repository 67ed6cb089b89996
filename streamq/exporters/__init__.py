"""Exporters: a queue's figures and runs, for the systems that watch the rest of a service.

Each is a module of its own, imported by its name, and needs an extra: `streamq.exporters.prometheus`
(`metrics`) and `streamq.exporters.tracing` (`otel`). Nothing is imported here, so that one of
them can be had without the other.
"""
