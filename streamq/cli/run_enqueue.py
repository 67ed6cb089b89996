"""Runs `streamq enqueue`: builds the call, enqueues it, and returns the result as plain values."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from streamq.broker import RedisBroker
from streamq.cli import output
from streamq.cli.options import ServerOptions
from streamq.cli.run_command import run
from streamq.cli.unserved import served_tiers
from streamq.cli.usage_errors import CommandLineError, from_streamq_error
from streamq.errors import StreamqError
from streamq.tasks.task import TaskRef


def send(
    server: ServerOptions, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Enqueue one task and return its ids, tier and stream. Raises CommandLineError if that fails."""
    broker = server.lasting_broker()
    if server.has_own_tiers() and len(broker.tiers) > 1 and "tier" not in options:
        raise CommandLineError(
            f"--tiers without --tier: give --tier, one of {', '.join(tier.name for tier in broker.tiers)}; which of "
            "them takes a priority is known to the program alone"
        )
    try:
        call = TaskRef(name).options(**options).call(*args, **kwargs)
    except StreamqError as error:
        raise from_streamq_error(error) from error

    async def main() -> dict[str, Any]:
        async with broker:
            (handle,) = await broker.enqueue_many([call])
            if served := await served_tiers(broker, handle.stream):
                _warn(broker, handle.stream, served)
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


def _warn(broker: RedisBroker, stream: str, served: Sequence[str]) -> None:
    """Say on stderr that no worker has served this stream yet, and which tiers of the namespace have workers."""
    options = ("--tiers", ",".join(served))
    unknown = not {tier.name for tier in broker.tiers}.issuperset(served)
    remedy = f"; if the queue has tiers of its own, give {shlex.join(options)} and --tier NAME" if unknown else ""
    output.note(
        f"streamq: warning: {stream} has no consumer group: no worker has served it yet, and the task waits; there are "
        f"groups for the tier{'s' * (len(served) > 1)} {', '.join(served)}{remedy}"
    )
