"""What a worker says of itself when it starts. No password is part of it."""

from __future__ import annotations

import logging
import platform
from typing import Any

import click

import streamq
from streamq.broker import RedisBroker
from streamq.client.address import Address
from streamq.client.server_features import ServerFacts
from streamq.worker import Worker

log = logging.getLogger("streamq.cli")

_TASKS_SHOWN = 12


def address_of(broker: RedisBroker) -> str:
    """Return a broker's URL as it may be shown."""
    if broker.url.startswith(("memory://", "embedded://")):
        return broker.url
    return str(Address.parse(broker.url))


def facts_of(worker: Worker, server: ServerFacts, *, loop: str, processes: int, broker_at: str) -> dict[str, Any]:
    """Return what a worker runs, on what, as plain values."""
    broker = worker.broker
    return {
        "version": streamq.__version__,
        "worker": worker.name,
        "python": platform.python_version(),
        "backend": loop,
        "server": f"{server.product} {server.version}".strip(),
        "url": address_of(broker),
        "broker": broker_at or None,
        "group": broker.keys.group,
        "tiers": {
            keys.stream: next((tier.weight for tier in worker.tiers if tier.name == named.name), 0)
            for named, keys in zip(broker.tiers, broker.keys.tiers, strict=True)
        },
        "tasks": sorted(worker.tasks),
        "middleware": [type(link).__name__ for link in worker.middleware],
        "concurrency": worker.concurrency,
        "processes": processes,
        "lease": worker.visibility_timeout,
        "grace": worker.grace_period,
        "burst": worker.burst,
    }


def as_text(facts: dict[str, Any]) -> str:
    """Return the banner for people."""
    tasks, processes = facts["tasks"], facts["processes"]
    shown = ", ".join(tasks[:_TASKS_SHOWN]) + (f" and {len(tasks) - _TASKS_SHOWN} more" * (len(tasks) > _TASKS_SHOWN))
    served = [f"{stream} x{weight}" for stream, weight in facts["tiers"].items() if weight]
    left_out = [stream for stream, weight in facts["tiers"].items() if not weight]
    rows = [
        ("server", f"{facts['server']} at {facts['url']}" + (f" (from {facts['broker']})" if facts["broker"] else "")),
        ("tiers", ", ".join(served) + (f"; not served: {', '.join(left_out)}" if left_out else "")),
        ("group", facts["group"]),
        ("tasks", f"{shown} ({len(tasks)})"),
        ("middleware", " > ".join(facts["middleware"])),
        ("concurrency", f"{facts['concurrency']}" + (f" in each of {processes} processes" if processes > 1 else "")),
        ("lease", f"{facts['lease']:g} s, grace period {facts['grace']:g} s" + ", burst" * facts["burst"]),
    ]
    head = f"streamq {facts['version']} worker {facts['worker']} on {facts['backend']}, Python {facts['python']}"
    return "\n".join([head, *(f"  {name:<12} {value}" for name, value in rows if value)])


def announce(facts: dict[str, Any], *, log_format: str, whole: bool) -> None:
    """Print the banner: lines of text, one JSON object, or a short line where another process printed it."""
    if not log.isEnabledFor(logging.INFO):
        return
    if not whole:
        log.info("worker %s started", facts["worker"])
    elif log_format == "json":
        log.info("streamq %s worker %s", facts["version"], facts["worker"], extra={"facts": facts})
    else:
        click.echo(as_text(facts), err=True)
