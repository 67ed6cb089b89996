"""The banner that a worker prints when it starts. It contains no password."""

from __future__ import annotations

import inspect
import logging
import platform
from typing import Any

import streamq
from streamq.broker import RedisBroker
from streamq.cli import output
from streamq.client.address import Address
from streamq.client.server_features import ServerFeatures
from streamq.diagnostics.safe_log import SafeLog
from streamq.wire.printable import printable
from streamq.worker import Worker

log = SafeLog("streamq.cli")

_MAX_TASKS_SHOWN = 12


def shown_url(broker: RedisBroker) -> str:
    """Return a broker's URL without its password."""
    if broker.url.startswith(("memory://", "embedded://")):
        return broker.url
    return str(Address.parse(broker.url))


def describe(worker: Worker, server: ServerFeatures, *, loop: str, processes: int, broker_path: str) -> dict[str, Any]:
    """Return the worker, its server and its settings as plain values that have JSON."""
    broker = worker.broker
    return {
        "version": streamq.__version__,
        "worker": worker.name,
        "python": platform.python_version(),
        "backend": loop,
        "server": f"{server.product} {server.version}".strip(),
        "url": shown_url(broker),
        "broker": broker_path or None,
        "group": broker.keys.group,
        "tiers": {
            keys.stream: next((tier.weight for tier in worker.tiers if tier.name == own_tier.name), 0)
            for own_tier, keys in zip(broker.tiers, broker.keys.tiers, strict=True)
        },
        "tasks": sorted(worker.tasks),
        "middleware": [_name_of(each) for each in (*broker.middleware, *worker.middleware)],
        "concurrency": worker.concurrency,
        "processes": processes,
        "lease": worker.visibility_timeout,
        "grace": worker.grace_period,
        "burst": worker.burst,
    }


def _name_of(middleware: Any) -> str:
    """Return the name of a function, or that of the class of another object."""
    name = middleware.__name__ if inspect.isroutine(middleware) else type(middleware).__name__
    return str(name)


def banner_text(description: dict[str, Any]) -> str:
    """Return the banner as text."""
    tasks, processes = description["tasks"], description["processes"]
    shown = ", ".join(tasks[:_MAX_TASKS_SHOWN]) + (
        f" and {len(tasks) - _MAX_TASKS_SHOWN} more" * (len(tasks) > _MAX_TASKS_SHOWN)
    )
    served = [f"{stream} x{weight}" for stream, weight in description["tiers"].items() if weight]
    unserved = [stream for stream, weight in description["tiers"].items() if not weight]
    rows = [
        (
            "server",
            f"{description['server']} at {description['url']}"
            + (f" (from {description['broker']})" if description["broker"] else ""),
        ),
        ("tiers", ", ".join(served) + (f"; not served: {', '.join(unserved)}" if unserved else "")),
        ("group", description["group"]),
        ("tasks", f"{shown} ({len(tasks)})"),
        ("middleware", " > ".join(description["middleware"])),
        (
            "concurrency",
            f"{description['concurrency']}" + (f" in each of {processes} processes" if processes > 1 else ""),
        ),
        (
            "lease",
            f"{description['lease']:g} s, grace period {description['grace']:g} s" + ", burst" * description["burst"],
        ),
    ]
    title = (
        f"streamq {description['version']} worker {description['worker']} on {description['backend']}, "
        f"Python {description['python']}"
    )
    return "\n".join([printable(title), *(printable(f"  {name:<12} {value}") for name, value in rows if value)])


def announce(description: dict[str, Any], *, log_format: str, full: bool) -> None:
    """Print the banner as text or as one JSON object. Print one short line if another process printed it."""
    if not logging.getLogger(log.name).isEnabledFor(logging.INFO):
        return
    if not full:
        log.info("worker %s started", description["worker"], event="worker_started")
    elif log_format == "json":
        log.info(
            "streamq %s worker %s",
            description["version"],
            description["worker"],
            event="worker_started",
            extra={"facts": description},
        )
    else:
        output.block(banner_text(description), err=True)
