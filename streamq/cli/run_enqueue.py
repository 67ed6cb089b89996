"""Runs `streamq enqueue`: builds the call, enqueues it, and returns the result as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamq.cli.options import ServerOptions
from streamq.cli.run_command import run
from streamq.cli.usage_errors import from_streamq_error
from streamq.errors import StreamqError
from streamq.tasks.task import TaskRef


def send(
    server: ServerOptions, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Enqueue one task and return its ids, tier and stream. Raises CommandLineError if that fails."""
    broker = server.lasting_broker()
    try:
        call = TaskRef(name).options(**options).call(*args, **kwargs)
    except StreamqError as error:
        raise from_streamq_error(error) from error

    async def main() -> dict[str, Any]:
        async with broker:
            (handle,) = await broker.enqueue_many([call])
            return {
                "task_id": handle.task_id,
                "task": name,
                "tier": broker.tiers[handle.tier].name,
                "stream": handle.stream,
                "entry_id": handle.entry_id or None,
                "fresh": handle.fresh,
                "replaced": handle.replaced,
            }

    return run(main)
